//! Reads whole tables: for the root of what the database really holds, and for trial rows.

use super::schema::{Column, Schema, Table};
use super::values::ValueError;
use crate::root::StateRoot;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{pin_mut, TryStreamExt};
use spare_protocol::update::{row_hash, Row, Value};
use tokio_postgres::Client;

/// What a copy in binary format begins with.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// A table can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    #[error("cannot scan table {table}")]
    Table {
        table: String,
        source: Box<ScanError>,
    },
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
    #[error("not a copy in binary format")]
    NotACopy,
    #[error("the copy ended early")]
    EndsEarly,
    #[error("a row of {0} values")]
    RowLength(i16),
    #[error("column {column}")]
    Value { column: String, source: ValueError },
}

/// The leaves of what the tables really hold, within one snapshot. Rows are read as a stream, so
/// memory is bounded by the largest row.
///
/// # Errors
/// When the database fails.
pub(super) async fn scan(client: &Client, schema: &Schema) -> Result<StateRoot, ScanError> {
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let mut leaves = StateRoot::default();
    for table in &schema.tables {
        let add = |row: Row| {
            leaves.add_row(
                &table.name,
                &table.key_of(&row),
                &row_hash(&table.name, &row),
            )
        };
        for_each_row(client, table, None, add)
            .await
            .map_err(|e| ScanError::Table {
                table: table.name.clone(),
                source: Box::new(e),
            })?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(leaves)
}

/// Some rows of a table.
///
/// # Errors
/// When the database fails.
pub(super) async fn sample(
    client: &Client,
    table: &Table,
    count: u32,
) -> Result<Vec<Row>, ScanError> {
    let mut rows = Vec::new();
    for_each_row(client, table, Some(count), |row| rows.push(row)).await?;
    Ok(rows)
}

async fn for_each_row(
    client: &Client,
    table: &Table,
    limit: Option<u32>,
    mut with: impl FnMut(Row),
) -> Result<(), ScanError> {
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|c| super::schema::quoted(&c.name))
        .collect();
    let limit = limit.map_or(String::new(), |n| format!(" LIMIT {n}"));
    let query = format!(
        "COPY (SELECT {} FROM ONLY {}{limit}) TO STDOUT (FORMAT binary)",
        columns.join(", "),
        table.sql_name
    );
    let chunks = client.copy_out(query.as_str()).await?;
    pin_mut!(chunks);
    let mut rows = Rows::new(&table.columns);
    while let Some(chunk) = chunks.try_next().await? {
        rows.push(&chunk);
        while let Some(row) = rows.next()? {
            with(row);
        }
    }
    if !rows.complete {
        return Err(ScanError::EndsEarly);
    }
    Ok(())
}

/// Finds rows in a copy in binary format.
pub(super) struct Rows<'a> {
    columns: &'a [Column],
    buffer: BytesMut,
    headed: bool,
    complete: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(columns: &'a [Column]) -> Rows<'a> {
        Rows {
            columns,
            buffer: BytesMut::new(),
            headed: false,
            complete: false,
        }
    }

    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole row, if it has arrived.
    pub(super) fn next(&mut self) -> Result<Option<Row>, ScanError> {
        // What follows the end is not part of the copy.
        if self.complete || (!self.headed && !self.skip_head()?) {
            return Ok(None);
        }
        let Some(length) = self.row_bytes() else {
            return Ok(None);
        };
        let mut bytes = self.buffer.split_to(length).freeze();
        let count = bytes.get_i16();
        if count == -1 {
            self.complete = true;
            return Ok(None);
        }
        if usize::try_from(count) != Ok(self.columns.len()) {
            return Err(ScanError::RowLength(count));
        }
        let row = self.columns.iter().map(|column| value(column, &mut bytes));
        row.collect::<Result<Row, ScanError>>().map(Some)
    }

    /// Signature, flags, length of an extension.
    fn skip_head(&mut self) -> Result<bool, ScanError> {
        if self.buffer.len() < SIGNATURE.len() + 8 {
            return Ok(false);
        }
        if !self.buffer.starts_with(SIGNATURE) {
            return Err(ScanError::NotACopy);
        }
        self.buffer.advance(SIGNATURE.len() + 8);
        self.headed = true;
        Ok(true)
    }

    /// Bytes of the row at the front, if it is complete.
    fn row_bytes(&self) -> Option<usize> {
        let mut rest = &self.buffer[..];
        if rest.len() < 2 {
            return None;
        }
        let count = rest.get_i16();
        for _ in 0..count.max(0) {
            if rest.len() < 4 {
                return None;
            }
            // A negative length stands for NULL, which has no bytes.
            let length = usize::try_from(rest.get_i32()).unwrap_or(0);
            if rest.len() < length {
                return None;
            }
            rest.advance(length);
        }
        Some(self.buffer.len() - rest.len())
    }
}

/// Takes one value off a row whose bytes are complete.
fn value(column: &Column, bytes: &mut Bytes) -> Result<Value, ScanError> {
    let Ok(length) = usize::try_from(bytes.get_i32()) else {
        return Ok(Value::Null);
    };
    let value = column.kind.decode(&bytes.split_to(length));
    value.map_err(|source| ScanError::Value {
        column: column.name.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::postgresql::values::Kind;
    use proptest::prelude::*;

    fn columns() -> Vec<Column> {
        [Kind::Int2, Kind::Text]
            .into_iter()
            .map(|kind| Column {
                name: "c".into(),
                type_oid: 0,
                kind,
            })
            .collect()
    }

    fn read(bytes: &[u8], cut: usize) -> Result<(Vec<Row>, bool), ScanError> {
        let columns = columns();
        let mut rows = Rows::new(&columns);
        let mut found = Vec::new();
        for chunk in bytes.chunks(cut) {
            rows.push(chunk);
            while let Some(row) = rows.next()? {
                found.push(row);
            }
        }
        Ok((found, rows.complete))
    }

    #[test]
    fn rows_are_found_in_any_fragmentation() {
        let mut copy = SIGNATURE.to_vec();
        copy.extend([0; 8]);
        copy.extend(b"\0\x02\0\0\0\x02\0\x05\0\0\0\x01x");
        copy.extend(b"\0\x02\xff\xff\xff\xff\0\0\0\0");
        copy.extend(b"\xff\xff");
        for cut in 1..copy.len() {
            let (rows, complete) = read(&copy, cut).expect("well formed");
            let wanted = [
                vec![Value::Int(5), Value::Text("x".into())],
                vec![Value::Null, Value::Text(String::new())],
            ];
            assert_eq!(rows, wanted);
            assert!(complete);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(rest in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut copy = SIGNATURE.to_vec();
            copy.extend([0; 8]);
            copy.extend(rest);
            let _ = read(&copy, 7);
        }
    }
}
