//! The change stream: a task that reads logical decoding for as long as the shim lives, and gathers
//! what the service changed.
//!
//! What the shim itself changes to apply agreed updates never gets here: the server's output plugin
//! drops it by its replication origin. Anything else that is changed outside any request lands in the
//! write set of the next one, where the vote will see it.

use super::overflow::Overflow;
use super::pgoutput::{parse, Datum, Message, ParseError};
use super::schema::{Schema, SchemaError};
use super::settings::Settings;
use super::values::ValueError;
use super::wire::{Wire, WireError};
use super::write_set::{Change, WriteSet};
use bytes::{Buf, Bytes};
use nix::libc;
use spare_protocol::update::{Row, Value};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Log after which the server is told what it need not keep. Seldom, as it writes the slot to disk.
const CONFIRM_BYTES: u64 = 4 << 20;
/// What a request may change beyond twice the longest update, the rows before and the rows after: for what
/// surrounds them in the stream.
const SURROUNDINGS_BYTES: u64 = 16 << 20;

/// The stream has ended, or carried what can't become a write set.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("cannot read the change stream; was the image prepared with `spare-shim prepare`?")]
    NotPrepared(#[source] WireError),
    #[error("the change stream has ended")]
    Ended(#[source] Option<Box<StreamError>>),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the change stream carried something unknown")]
    Unknown,
    #[error(transparent)]
    Message(#[from] ParseError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("cannot keep what a request changed too much, to undo it")]
    Overflow(#[source] io::Error),
    #[error("a change of table {0}, which was not described")]
    NotDescribed(u32),
    #[error(
        "a change of table {0} came without its old row; it needs REPLICA IDENTITY FULL \
         (`spare-shim prepare` sets it)"
    )]
    OldRowMissing(String),
    #[error("a row of table {table} has {values} values")]
    RowLength { table: String, values: usize },
    #[error("column {column} of table {table}")]
    Value {
        column: String,
        table: String,
        source: ValueError,
    },
    #[error("a value of table {0} did not travel")]
    ValueMissing(String),
}

/// The shim's end of the stream: what was read of it so far.
#[derive(Debug)]
pub(super) struct ChangeStream {
    gatherer: Arc<Mutex<Gatherer>>,
    /// The LSN before which everything that was committed is gathered.
    reached: watch::Receiver<u64>,
}

impl ChangeStream {
    /// Begins to read the stream.
    ///
    /// # Errors
    /// When the slot or the publication is not there.
    pub(super) async fn open(
        settings: &Settings,
        schema: Arc<Schema>,
    ) -> Result<ChangeStream, StreamError> {
        let mut wire = Wire::connect(&settings.socket_dir, &settings.database).await?;
        let command = format!(
            // With messages, the commit that flushes the log is told as soon as it is decoded.
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{}', \
             messages 'true', binary 'true')",
            super::schema::quoted(&settings.slot),
            super::schema::quoted(&settings.publication).replace('\'', "''"),
        );
        let started = wire.start_copy(&command).await;
        started.map_err(StreamError::NotPrepared)?;
        if let Some(process) = wire.server_process() {
            yield_to_requests(process);
        }
        let folder = settings.leaves.parent().unwrap_or(&settings.leaves);
        let gatherer = Arc::new(Mutex::new(Gatherer::new(schema, folder.to_owned())));
        let (sender, reached) = watch::channel(0);
        let mut stream = Stream {
            wire,
            gatherer: gatherer.clone(),
            confirmed: 0,
        };
        tokio::spawn(async move {
            if let Err(e) = stream.run(&sender).await {
                lock(&stream.gatherer).failed = Some(e);
            }
        });
        Ok(ChangeStream { gatherer, reached })
    }

    /// Waits until everything that was committed before `lsn` is gathered, and takes it.
    ///
    /// # Errors
    /// When the stream has ended.
    pub(super) async fn take(&mut self, lsn: u64) -> Result<Gathered, StreamError> {
        let reached = self
            .reached
            .wait_for(|reached| *reached >= lsn)
            .await
            .is_ok();
        let mut gatherer = lock(&self.gatherer);
        if !reached {
            return Err(StreamError::Ended(gatherer.failed.take().map(Box::new)));
        }
        Ok(gatherer.take())
    }

    /// The longest update of one request. Requests that change much more are not gathered in memory.
    pub(super) fn limit(&self, update_bytes_max: u64) {
        lock(&self.gatherer).limit(update_bytes_max);
    }

    /// The write set of messages that were taken from an overflow.
    ///
    /// # Errors
    /// When they are no changes.
    pub(super) fn write_set(&self, messages: Vec<Bytes>) -> Result<WriteSet, StreamError> {
        lock(&self.gatherer).write_set(messages)
    }
}

/// Lets the server's decoding process use only time that nobody else wants. A replica that was woken
/// has the log of a batch of applied changes to read, and a request that can't wait for that. A write
/// does wait for it, but then nobody else wants the time.
fn yield_to_requests(process: u32) {
    const LOWEST: libc::c_int = 19;
    // SAFETY: the call takes numbers and touches no memory.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, process, LOWEST) } != 0 {
        let e = std::io::Error::last_os_error();
        eprintln!("spare-shim: cannot lower the priority of process {process}: {e}");
    }
}

/// A panic while the lock was held ended the whole shim.
fn lock(gatherer: &Mutex<Gatherer>) -> MutexGuard<'_, Gatherer> {
    gatherer.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Stream {
    wire: Wire,
    gatherer: Arc<Mutex<Gatherer>>,
    confirmed: u64,
}

impl Stream {
    async fn run(&mut self, reached: &watch::Sender<u64>) -> Result<(), StreamError> {
        loop {
            match parse_copy_data(self.wire.copy_data().await?)? {
                CopyData::XLogData(message) => {
                    if let Some(end) = lock(&self.gatherer).add(message)? {
                        reached.send_replace(end);
                    }
                }
                CopyData::Keepalive { end, answer } => {
                    reached.send_replace(end);
                    if answer {
                        self.confirm(end).await?;
                    }
                }
            }
            let end = *reached.borrow();
            if end >= self.confirmed + CONFIRM_BYTES {
                self.confirm(end).await?;
            }
        }
    }

    /// Tells the server how much of its log was processed.
    async fn confirm(&mut self, end: u64) -> Result<(), WireError> {
        let mut status = Vec::with_capacity(34);
        status.push(b'r');
        status.extend(end.to_be_bytes()); // written
        status.extend(end.to_be_bytes()); // flushed
        status.extend(end.to_be_bytes()); // applied
        status.extend(0u64.to_be_bytes()); // the time, which nobody reads
        status.push(0);
        self.confirmed = end;
        self.wire.send_copy_data(&status).await
    }
}

/// Whether a message tells of rows.
fn is_change(message: &[u8]) -> bool {
    matches!(message.first(), Some(b'I' | b'U' | b'D' | b'T'))
}

/// What the server sends as copied data, in the documentation's words.
#[derive(Debug)]
pub(super) enum CopyData {
    /// A message of the plugin.
    XLogData(Bytes),
    /// Sent whenever the server has nothing more to send.
    Keepalive {
        /// How far its log goes.
        end: u64,
        /// Whether it wants to be told what was processed.
        answer: bool,
    },
}

/// Reads a message that was sent as copied data.
///
/// # Errors
/// When it is of an unknown kind.
pub(super) fn parse_copy_data(mut data: Bytes) -> Result<CopyData, StreamError> {
    match data.first() {
        Some(b'w') if data.len() >= 25 => {
            data.advance(25); // tag, start and end in the log, time
            Ok(CopyData::XLogData(data))
        }
        Some(b'k') if data.len() >= 18 => Ok(CopyData::Keepalive {
            end: data.slice(1..9).get_u64(),
            answer: data[17] != 0,
        }),
        _ => Err(StreamError::Unknown),
    }
}

/// What one request changed.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) set: WriteSet,
    /// Of all changes, each with the row before and the row after.
    pub(super) bytes: u64,
    pub(super) changes: u64,
    /// What followed when that was too much to be carried.
    pub(super) overflow: Option<Overflow>,
}

/// Turns messages into a write set.
#[derive(Debug)]
pub(super) struct Gatherer {
    schema: Arc<Schema>,
    /// Index in the schema by OID, for the tables that the stream described.
    relations: HashMap<u32, usize>,
    gathered: Gathered,
    bytes_max: u64,
    /// For the file of an overflow.
    folder: PathBuf,
    /// Why the stream has ended.
    failed: Option<StreamError>,
}

impl Gatherer {
    pub(super) fn new(schema: Arc<Schema>, folder: PathBuf) -> Gatherer {
        Gatherer {
            schema,
            relations: HashMap::new(),
            gathered: Gathered::default(),
            bytes_max: u64::MAX,
            folder,
            failed: None,
        }
    }

    /// The same changes come to the same number of bytes at every replica, in whatever order they are made.
    fn limit(&mut self, update_bytes_max: u64) {
        self.bytes_max = 2 * update_bytes_max + SURROUNDINGS_BYTES;
    }

    /// Takes what was gathered.
    pub(super) fn take(&mut self) -> Gathered {
        std::mem::take(&mut self.gathered)
    }

    /// Adds a message. The end of a transaction gives the LSN up to which all is gathered.
    pub(super) fn add(&mut self, message: Bytes) -> Result<Option<u64>, StreamError> {
        if let Some(overflow) = &mut self.gathered.overflow {
            if is_change(&message) {
                overflow.push(&message).map_err(StreamError::Overflow)?;
                return Ok(None);
            }
        }
        let bytes = message.len();
        match parse(message)? {
            Message::Commit { end } => return Ok(Some(end)),
            Message::Relation(relation) => {
                let index = self.schema.resolve(&relation)?;
                self.relations.insert(relation.oid, index);
            }
            message => {
                for change in self.changes(message)? {
                    self.gather(bytes, change)?;
                }
            }
        }
        Ok(None)
    }

    fn gather(&mut self, bytes: usize, change: Change) -> Result<(), StreamError> {
        // A decimal number can be many times as long as text.
        self.gathered.bytes += bytes.max(change.text_bytes()) as u64;
        self.gathered.changes += 1;
        self.gathered.set.add(&self.schema, change);
        if self.gathered.bytes > self.bytes_max {
            let overflow = Overflow::new(&self.folder).map_err(StreamError::Overflow)?;
            self.gathered.overflow = Some(overflow);
        }
        Ok(())
    }

    fn write_set(&self, messages: Vec<Bytes>) -> Result<WriteSet, StreamError> {
        let mut set = WriteSet::default();
        for message in messages {
            for change in self.changes(parse(message)?)? {
                set.add(&self.schema, change);
            }
        }
        Ok(set)
    }

    /// What a message tells of rows.
    fn changes(&self, message: Message) -> Result<Vec<Change>, StreamError> {
        Ok(match message {
            Message::Insert { relation, new } => {
                let table = self.table(relation)?;
                vec![Change::Insert(table, self.row(table, new, None)?)]
            }
            Message::Update { relation, old, new } => {
                let table = self.table(relation)?;
                let old = self.old_row(table, old)?;
                let new = self.row(table, new, Some(&old))?;
                vec![Change::Update(table, old, new)]
            }
            Message::Delete { relation, old } => {
                let table = self.table(relation)?;
                vec![Change::Delete(table, self.old_row(table, old)?)]
            }
            Message::Truncate { relations } => {
                let emptied = |relation| self.table(relation).map(Change::Truncate);
                let emptied: Result<Vec<Change>, _> = relations.into_iter().map(emptied).collect();
                emptied?
            }
            Message::Commit { .. } | Message::Relation(_) | Message::Other => vec![],
        })
    }

    fn table(&self, relation: u32) -> Result<usize, StreamError> {
        let index = self.relations.get(&relation).copied();
        index.ok_or(StreamError::NotDescribed(relation))
    }

    fn old_row(&self, table: usize, old: Option<Vec<Datum>>) -> Result<Row, StreamError> {
        let Some(old) = old else {
            let name = self.schema.tables[table].name.clone();
            return Err(StreamError::OldRowMissing(name));
        };
        self.row(table, old, None)
    }

    /// The canonical row; values that did not travel are taken from the old one.
    fn row(&self, table: usize, row: Vec<Datum>, old: Option<&Row>) -> Result<Row, StreamError> {
        let table = &self.schema.tables[table];
        if row.len() != table.columns.len() {
            return Err(StreamError::RowLength {
                table: table.name.clone(),
                values: row.len(),
            });
        }
        let mut values = Vec::with_capacity(row.len());
        for (i, (datum, column)) in row.into_iter().zip(&table.columns).enumerate() {
            let invalid = |source| StreamError::Value {
                column: column.name.clone(),
                table: table.name.clone(),
                source,
            };
            values.push(match datum {
                Datum::Null => Value::Null,
                Datum::Binary(bytes) => column.kind.decode(&bytes).map_err(invalid)?,
                Datum::Unchanged => match old.and_then(|old| old.get(i)) {
                    Some(value) => value.clone(),
                    None => return Err(StreamError::ValueMissing(table.name.clone())),
                },
            });
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::postgresql::schema::{Column, Table};
    use crate::database::postgresql::values::Kind;
    use proptest::prelude::*;
    use spare_protocol::update::{RowOp, TableUpdate};

    fn gatherer() -> Gatherer {
        let column = |name: &str, type_oid, kind| Column {
            name: name.into(),
            type_oid,
            kind,
        };
        let table = Table {
            oid: 7,
            name: "public.t".into(),
            sql_name: "public.t".into(),
            columns: vec![column("id", 23, Kind::Int4), column("x", 25, Kind::Text)],
            key: vec![0],
            identity_full: true,
        };
        let schema = Schema {
            tables: vec![table],
            sequences: vec![],
        };
        let mut gatherer = Gatherer::new(Arc::new(schema), std::env::temp_dir());
        add(
            &mut gatherer,
            b"R\0\0\0\x07public\0t\0f\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\x01x\0\0\0\0\x19\xff\xff\xff\xff",
        );
        gatherer
    }

    fn add(gatherer: &mut Gatherer, message: &'static [u8]) -> Option<u64> {
        gatherer
            .add(Bytes::from_static(message))
            .expect("a good message")
    }

    fn taken(gatherer: &mut Gatherer) -> Vec<TableUpdate> {
        gatherer.take().set.finish(&gatherer.schema)
    }

    const BEGIN: &[u8] = b"B\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\x01";
    const COMMIT: &[u8] = b"C\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0";
    const INSERT: &[u8] = b"I\0\0\0\x07N\0\x02b\0\0\0\x04\0\0\0\x01b\0\0\0\x01a";
    const UPDATE: &[u8] =
        b"U\0\0\0\x07O\0\x02b\0\0\0\x04\0\0\0\x02b\0\0\0\x01bN\0\x02b\0\0\0\x04\0\0\0\x03u";
    const FLUSH: &[u8] = b"M\x01\0\0\0\0\0\0\0\x09spare.flush\0\0\0\0\0";

    #[test]
    fn changes_are_gathered_until_they_are_taken() {
        let mut gatherer = gatherer();
        for message in [BEGIN, FLUSH] {
            assert_eq!(add(&mut gatherer, message), None);
        }
        assert_eq!(add(&mut gatherer, COMMIT), Some(9));
        assert!(taken(&mut gatherer).is_empty());
        for message in [BEGIN, INSERT, COMMIT] {
            add(&mut gatherer, message);
        }
        let tables = taken(&mut gatherer);
        assert_eq!(tables.len(), 1);
        assert_eq!(tables[0].ops.len(), 1);
        assert!(taken(&mut gatherer).is_empty());
    }

    #[test]
    fn a_value_that_did_not_travel_is_taken_from_the_old_row() {
        let mut gatherer = gatherer();
        add(&mut gatherer, UPDATE);
        let tables = taken(&mut gatherer);
        let [RowOp::Delete { key, .. }, RowOp::Put { row, before: None }] = &tables[0].ops[..]
        else {
            panic!("the key changed: {tables:?}")
        };
        assert_eq!(key, &[Value::Int(2)]);
        assert_eq!(row, &[Value::Int(3), Value::Text("b".into())]);
    }

    #[test]
    fn what_is_too_much_overflows_and_can_be_undone_all_the_same() {
        let mut gatherer = gatherer();
        gatherer.bytes_max = 1;
        for message in [BEGIN, INSERT, UPDATE, COMMIT] {
            add(&mut gatherer, message);
        }
        let mut taken = gatherer.take();
        assert_eq!(taken.set.finish(&gatherer.schema).len(), 1);
        let mut overflow = taken.overflow.take().expect("too much");
        let chunk = overflow.pop().expect("readable").expect("the update");
        let set = gatherer.write_set(chunk).expect("changes");
        let undone = set.undo(&gatherer.schema).expect("rows are known");
        assert_eq!(undone[0].ops.len(), 2);
        assert!(gatherer.take().overflow.is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(
            kind in prop::sample::select(&b"BCRIUDTM"[..]),
            rest in prop::collection::vec(prop_oneof![Just(0u8), Just(7), any::<u8>()], 0..40),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            let _ = gatherer().add(bytes.into());
        }
    }
}
