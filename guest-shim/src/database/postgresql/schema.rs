//! The tables and sequences of the service's database, read from the catalogues when the shim
//! starts. What can't be replicated is refused here, by name.

use super::pgoutput::Relation;
use super::settings::PLUGIN;
use super::values::Kind;
use spare_protocol::update::{Key, Row, TableUpdate};
use std::collections::HashMap;
use tokio_postgres::Client;

/// What there is to replicate.
#[derive(Clone, Debug, Default)]
pub(super) struct Schema {
    /// Tables, sorted by name.
    pub(super) tables: Vec<Table>,
    /// Sequences, sorted by name.
    pub(super) sequences: Vec<Sequence>,
}

/// A table, which has a primary key and only columns with a canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its OID in this database.
    pub(super) oid: u32,
    /// Name with schema, as updates carry it.
    pub(super) name: String,
    /// Name with schema, quoted for SQL.
    pub(super) sql_name: String,
    /// Its columns without generated ones.
    pub(super) columns: Vec<Column>,
    /// Indexes into `columns` of the primary key, in the key's order.
    pub(super) key: Vec<u16>,
    /// Whether changes carry the whole old row.
    pub(super) identity_full: bool,
}

/// A column whose values have a canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// OID of its type.
    pub(super) type_oid: u32,
    /// How its values are read.
    pub(super) kind: Kind,
}

/// A sequence; its state is part of updates and of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    /// Name with schema, as updates carry it.
    pub(super) name: String,
    /// Name with schema, quoted for SQL.
    pub(super) sql_name: String,
    /// Values that a session takes at once. More than one, and the keys that a replica gives depend on which of its
    /// sessions a request meets.
    pub(super) cache: i64,
}

/// The database can't be replicated, or not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
    #[error("table {table} is unlogged: its changes can't be captured; ALTER TABLE {sql_name} SET LOGGED")]
    Unlogged { table: String, sql_name: String },
    #[error("table {0} has no primary key; give it one: rows are told apart by it")]
    NoPrimaryKey(String),
    #[error("the primary key of table {0} contains a generated column")]
    GeneratedKey(String),
    #[error(
        "column {column} of table {table} has type {type_name}, which has no canonical form; use a \
         boolean, integer, floating-point, numeric, text, bytea, timestamp, date, time or uuid column"
    )]
    ColumnType {
        column: String,
        table: String,
        type_name: String,
    },
    #[error("table {0} is not REPLICA IDENTITY FULL; `spare-shim prepare` sets it")]
    OldRowsMissing(String),
    #[error("sequence {0} hands out values in advance; `spare-shim prepare` sets CACHE 1")]
    Cache(String),
    #[error("sessions do not load {PLUGIN}, which refuses what can't be captured; `spare-shim prepare` sets it")]
    Unguarded,
    #[error("the database's encoding is {0}; create it with ENCODING 'UTF8', which texts are carried in")]
    Encoding(String),
    #[error("{kind} {name}: what it holds can't be captured; {way_out}")]
    Uncaptured {
        kind: &'static str,
        name: String,
        way_out: &'static str,
    },
    #[error(
        "table {0} was created or changed while the service ran; the schema is part of the image and \
         changes with it"
    )]
    Changed(String),
}

const TABLES: &str = "
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
           c.relreplident::text, s.seqcache
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_sequence s ON s.seqrelid = c.oid
    WHERE c.relkind IN ('r', 'S') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
    ORDER BY 2, 3";

const COLUMNS: &str = "
    SELECT a.attrelid, a.attnum, a.attname::text, a.atttypid, format_type(a.atttypid, a.atttypmod)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ORDER BY a.attrelid, a.attnum";

/// Whether every session loads that library.
pub(super) const PRELOADED: &str =
    "SELECT $1 = ANY (string_to_array(replace(current_setting('session_preload_libraries'), ' ', ''), ','))";

/// What holds a state of the database and no row of a table that is captured. Materialized views, whose content is
/// the image's for ever, are none.
const UNCAPTURED: [(&str, &str, &str); 3] = [
    (
        "large object",
        "SELECT oid::text FROM pg_largeobject_metadata ORDER BY oid LIMIT 1",
        "keep it in a bytea column",
    ),
    (
        "foreign data wrapper",
        "SELECT fdwname::text FROM pg_foreign_data_wrapper ORDER BY 1 LIMIT 1",
        "drop it: a guest has no other database to reach",
    ),
    (
        "extension",
        "SELECT extname::text FROM pg_extension WHERE extname IN ('dblink', 'lo') ORDER BY 1 LIMIT 1",
        "drop it",
    ),
];

const KEYS: &str = "SELECT indrelid, indkey::int2[] FROM pg_index WHERE indisprimary";

impl Schema {
    /// Finds in the database's catalogues what there is to replicate.
    ///
    /// # Errors
    /// Names the first table that can't be replicated, and why.
    pub(super) async fn read(client: &Client) -> Result<Schema, SchemaError> {
        check_kinds(client).await?;
        let mut columns = read_columns(client).await?;
        let keys = read_keys(client).await?;
        let mut schema = Schema::default();
        for row in client.query(TABLES, &[]).await? {
            let (oid, namespace, name): (u32, &str, &str) = (row.get(0), row.get(1), row.get(2));
            let (kind, persistence, identity): (&str, &str, &str) =
                (row.get(3), row.get(4), row.get(5));
            let sql_name = format!("{}.{}", quoted(namespace), quoted(name));
            let name = format!("{namespace}.{name}");
            if kind == "S" {
                schema.sequences.push(Sequence {
                    name,
                    sql_name,
                    cache: row.get(6),
                });
                continue;
            }
            if persistence != "p" {
                return Err(SchemaError::Unlogged {
                    table: name,
                    sql_name,
                });
            }
            let columns = columns.remove(&oid).unwrap_or_default();
            let key = key_of(&name, &columns, keys.get(&oid))?;
            let columns = checked_columns(&name, columns)?;
            schema.tables.push(Table {
                oid,
                name,
                sql_name,
                columns,
                key,
                identity_full: identity == "f",
            });
        }
        schema.tables.sort_by(|a, b| a.name.cmp(&b.name));
        schema.sequences.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(schema)
    }

    /// Checks that `spare-shim prepare` was run, and nothing changed since.
    ///
    /// # Errors
    /// Names the first thing that is missing.
    pub(super) async fn check_prepared(&self, client: &Client) -> Result<(), SchemaError> {
        if let Some(table) = self.tables.iter().find(|table| !table.identity_full) {
            return Err(SchemaError::OldRowsMissing(table.name.clone()));
        }
        if let Some(sequence) = self.sequences.iter().find(|sequence| sequence.cache != 1) {
            return Err(SchemaError::Cache(sequence.name.clone()));
        }
        let preloaded = client.query_one(PRELOADED, &[&PLUGIN]).await?;
        match preloaded.get(0) {
            true => Ok(()),
            false => Err(SchemaError::Unguarded),
        }
    }

    /// The index of the table of that name.
    #[must_use]
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.tables
            .binary_search_by(|t| t.name.as_str().cmp(name))
            .ok()
    }

    /// The index of the table that the change stream describes.
    ///
    /// # Errors
    /// When the table is not the one that was read at the start.
    pub(super) fn resolve(&self, relation: &Relation) -> Result<usize, SchemaError> {
        let name = format!("{}.{}", relation.namespace, relation.name);
        let same = |table: &Table| {
            let columns = table.columns.iter().map(|c| (&c.name, c.type_oid));
            table.name == name && columns.eq(relation.columns.iter().map(|(n, t)| (n, *t)))
        };
        match self.tables.iter().position(|t| t.oid == relation.oid) {
            Some(index) if same(&self.tables[index]) => Ok(index),
            _ => Err(SchemaError::Changed(name)),
        }
    }
}

impl Table {
    /// Of one of its rows, in the key's order.
    #[must_use]
    pub(super) fn key_of(&self, row: &Row) -> Key {
        self.key
            .iter()
            .map(|&i| row[usize::from(i)].clone())
            .collect()
    }

    /// As updates list them.
    #[must_use]
    pub(super) fn column_names(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }

    /// In the key's order.
    pub(super) fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|&i| &self.columns[usize::from(i)])
    }

    /// Whether an update's table has the same shape.
    #[must_use]
    pub(super) fn matches(&self, update: &TableUpdate) -> bool {
        self.key == update.key && self.columns.iter().map(|c| &c.name).eq(&update.columns)
    }
}

async fn check_kinds(client: &Client) -> Result<(), SchemaError> {
    let row = client.query_one("SELECT current_setting('server_encoding')", &[]);
    let encoding: String = row.await?.get(0);
    if encoding != "UTF8" {
        return Err(SchemaError::Encoding(encoding));
    }
    for (kind, query, way_out) in UNCAPTURED {
        if let Some(row) = client.query_opt(query, &[]).await? {
            return Err(SchemaError::Uncaptured {
                kind,
                name: row.get(0),
                way_out,
            });
        }
    }
    Ok(())
}

/// A column as the catalogue has it.
struct RawColumn {
    number: i16,
    name: String,
    type_oid: u32,
    type_name: String,
}

async fn read_columns(client: &Client) -> Result<HashMap<u32, Vec<RawColumn>>, SchemaError> {
    let mut columns: HashMap<u32, Vec<RawColumn>> = HashMap::new();
    for row in client.query(COLUMNS, &[]).await? {
        columns.entry(row.get(0)).or_default().push(RawColumn {
            number: row.get(1),
            name: row.get(2),
            type_oid: row.get(3),
            type_name: row.get(4),
        });
    }
    Ok(columns)
}

async fn read_keys(client: &Client) -> Result<HashMap<u32, Vec<i16>>, SchemaError> {
    let rows = client.query(KEYS, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn key_of(
    table: &str,
    columns: &[RawColumn],
    key: Option<&Vec<i16>>,
) -> Result<Vec<u16>, SchemaError> {
    let Some(key) = key else {
        return Err(SchemaError::NoPrimaryKey(table.to_owned()));
    };
    let index = |number: &i16| columns.iter().position(|c| c.number == *number);
    let key: Option<Vec<u16>> = key
        .iter()
        .map(|n| index(n).and_then(|i| u16::try_from(i).ok()))
        .collect();
    key.ok_or_else(|| SchemaError::GeneratedKey(table.to_owned()))
}

fn checked_columns(table: &str, columns: Vec<RawColumn>) -> Result<Vec<Column>, SchemaError> {
    let mut checked = Vec::with_capacity(columns.len());
    for column in columns {
        let Some(kind) = Kind::from_oid(column.type_oid) else {
            return Err(SchemaError::ColumnType {
                column: column.name,
                table: table.to_owned(),
                type_name: column.type_name,
            });
        };
        checked.push(Column {
            name: column.name,
            type_oid: column.type_oid,
            kind,
        });
    }
    Ok(checked)
}

/// A name as SQL takes it literally.
#[must_use]
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
