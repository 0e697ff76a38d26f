//! The statements of a table, and their text.

use super::error::ApplyError;
use crate::database::postgresql::schema::{quoted, Column, Schema, Table};
use crate::database::postgresql::values::Kind;
use spare_protocol::update::TableUpdate;
use std::collections::BTreeMap;
use tokio_postgres::{Client, Statement};

/// The prepared statements of one table.
#[derive(Debug)]
pub(super) struct Statements {
    /// Inserts rows that are not there.
    pub(super) insert: Statement,
    pub(super) delete: Statement,
    /// Changes these columns of rows that are there.
    pub(super) changes: BTreeMap<Vec<u16>, Statement>,
    /// Reads rows by their keys.
    pub(super) read: Statement,
    /// Empties the table. Not TRUNCATE, which foreign keys could refuse.
    pub(super) clear: Statement,
}

impl Statements {
    pub(super) async fn prepare(
        client: &Client,
        table: &Table,
    ) -> Result<Statements, tokio_postgres::Error> {
        Ok(Statements {
            insert: client.prepare(&insert_sql(table)).await?,
            delete: client.prepare(&delete_sql(table)).await?,
            changes: BTreeMap::new(),
            read: client.prepare(&read_sql(table)).await?,
            clear: client
                .prepare(&format!("DELETE FROM {}", table.sql_name))
                .await?,
        })
    }
}

/// The index of the update's table.
pub(super) fn table_index(schema: &Schema, update: &TableUpdate) -> Result<usize, ApplyError> {
    match schema.find(&update.table) {
        Some(index) if schema.tables[index].matches(update) => Ok(index),
        Some(_) => Err(ApplyError::OtherColumns(update.table.clone())),
        None => Err(ApplyError::NoTable(update.table.clone())),
    }
}

/// Sets among `known` that together are part of `set`, and what of it they leave over. Large ones first,
/// and none that adds nothing.
pub(super) fn cover<'a, T>(
    known: &'a BTreeMap<Vec<u16>, T>,
    set: &[u16],
) -> (Vec<&'a Vec<u16>>, Vec<u16>) {
    if let Some((same, _)) = known.get_key_value(set) {
        return (vec![same], vec![]);
    }
    let within = |part: &&Vec<u16>| part.iter().all(|c| set.binary_search(c).is_ok());
    let mut parts: Vec<&Vec<u16>> = known.keys().filter(within).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    let mut left = set.to_vec();
    parts.retain(|part| {
        let before = left.len();
        left.retain(|c| part.binary_search(c).is_err());
        left.len() < before
    });
    (parts, left)
}

fn insert_sql(table: &Table) -> String {
    let columns: Vec<String> = table.columns.iter().map(|c| quoted(&c.name)).collect();
    let values: Vec<String> = (table.columns.iter().enumerate())
        .map(|(i, column)| value(i, column))
        .collect();
    format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
        table.sql_name,
        columns.join(", "),
        values.join(", "),
        rows(table.columns.iter()),
    )
}

/// The parameters are the key columns and then these.
pub(super) fn change_sql(table: &Table, columns: &[u16]) -> String {
    let first = table.key.len();
    let columns: Vec<&Column> = (columns.iter())
        .map(|i| &table.columns[usize::from(*i)])
        .collect();
    let set: Vec<String> = (columns.iter().enumerate())
        .map(|(i, column)| format!("{} = {}", quoted(&column.name), value(first + i, column)))
        .collect();
    format!(
        "UPDATE {} t SET {} FROM {} WHERE {}",
        table.sql_name,
        set.join(", "),
        rows(table.key_columns().chain(columns)),
        same_key(table),
    )
}

fn delete_sql(table: &Table) -> String {
    format!(
        "DELETE FROM {} t USING {} WHERE {}",
        table.sql_name,
        rows(table.key_columns()),
        same_key(table),
    )
}

fn read_sql(table: &Table) -> String {
    let columns = table
        .columns
        .iter()
        .map(|c| format!("t.{}", quoted(&c.name)));
    format!(
        "SELECT {} FROM {} t, {} WHERE {}",
        columns.collect::<Vec<_>>().join(", "),
        table.sql_name,
        rows(table.key_columns()),
        same_key(table),
    )
}

/// The table's key is that of the parameters, whose first columns it is.
fn same_key(table: &Table) -> String {
    let same: Vec<String> = (table.key_columns().enumerate())
        .map(|(i, column)| format!("t.{} = {}", quoted(&column.name), value(i, column)))
        .collect();
    same.join(" AND ")
}

/// The parameters as a relation of rows with these columns.
fn rows<'a>(columns: impl Iterator<Item = &'a Column>) -> String {
    let (mut arrays, mut names) = (Vec::new(), Vec::new());
    for (i, column) in columns.enumerate() {
        arrays.push(format!("${}::{}[]", i + 1, column.kind.wire_type_name()));
        names.push(format!("c{i}"));
    }
    format!("unnest({}) AS r({})", arrays.join(", "), names.join(", "))
}

/// Column number `i` of such a row, in the type of the table's column.
fn value(i: usize, column: &Column) -> String {
    match column.kind {
        // The only type whose values travel in another.
        Kind::Numeric => format!("r.c{i}::numeric"),
        _ => format!("r.c{i}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_covered_by_sets_that_are_known() {
        let known: BTreeMap<Vec<u16>, ()> = [&[1, 2][..], &[2], &[4], &[4, 9], &[5, 6]]
            .iter()
            .map(|set| (set.to_vec(), ()))
            .collect();
        let cover = |set: &[u16]| {
            let (parts, left) = cover(&known, set);
            (parts.into_iter().cloned().collect::<Vec<_>>(), left)
        };
        assert_eq!(cover(&[4, 9]), (vec![vec![4, 9]], vec![]));
        assert_eq!(cover(&[1, 2, 4]), (vec![vec![1, 2], vec![4]], vec![]));
        assert_eq!(cover(&[2, 5, 7]), (vec![vec![2]], vec![5, 7]));
        assert_eq!(cover(&[5]), (vec![], vec![5]));
    }
}
