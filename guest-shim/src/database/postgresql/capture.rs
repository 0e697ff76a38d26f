//! The update of a write request: what the service changed, and which sequences moved.
//!
//! After the service has answered, one query tells how far the database's log goes and where the
//! sequences stand; then the change stream is read up to there. The stream only carries what is
//! flushed. The service's own commit is, unless the service asked for less; then a commit of the
//! shim's flushes everything.

use super::connection::{connect, ConnectError};
use super::overflow::Overflow;
use super::schema::{Schema, Sequence};
use super::settings::Settings;
use super::stream::{ChangeStream, Gathered, StreamError};
use super::write_set::WriteSet;
use spare_protocol::update::{SequenceState, Update};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row, Statement};

/// For a service that did not answer to end its transactions by itself; then they are ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks whether they are over.
const SETTLE_PAUSE: Duration = Duration::from_millis(10);
/// Update bytes of one change beyond those that the stream had for it, at most: two hashes, and what is encoded
/// longer than there.
const CHANGE_BYTES: u64 = 128;
/// Update bytes of a table and its columns, or of a sequence, at most. (A name has 63 bytes, a table 1600
/// columns.)
const TABLE_BYTES: u64 = 128 << 10;
/// Writes a little and commits, which flushes everything written before.
const FLUSH: &str = "SELECT pg_logical_emit_message(true, 'spare.flush', '')";

/// How many transactions of others than the shim are under way; if told to, they are ended.
const UNDER_WAY: &str = "
    SELECT count(*) FILTER (WHERE NOT $1 OR pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND datname = current_database()
      AND usename <> current_user AND xact_start IS NOT NULL";

/// What the service changed is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("cannot ask for the end of the log")]
    EndOfLog(#[source] tokio_postgres::Error),
    #[error("cannot read what a request changed, to undo it")]
    Overflow(#[source] io::Error),
    #[error("a table was emptied with TRUNCATE, which can't be undone")]
    Truncated,
}

/// Where each sequence stands, by name.
type Sequences = BTreeMap<String, SequenceState>;

/// What a request changed.
#[derive(Debug)]
pub(super) enum Collected {
    /// The canonical update.
    Update(Update),
    /// More than one request may change.
    TooLarge(Undo),
}

/// What undoes a request.
#[derive(Debug)]
pub(super) struct Undo {
    set: WriteSet,
    /// What followed.
    overflow: Option<Overflow>,
    /// Where the sequences stood before that it moved.
    sequences: Vec<(String, SequenceState)>,
}

/// Finds out what a request changed in the database, as its canonical update.
#[derive(Debug)]
pub(super) struct Capture {
    schema: Arc<Schema>,
    client: Client,
    changes: ChangeStream,
    flush: Statement,
    read_sequences: Statement,
    probe: Probe,
    /// The state of all sequences as updates told it so far.
    sequences: Sequences,
    update_bytes_max: u64,
}

/// The query that is made after each write.
///
/// It asks a function for the sequences that have handed out a value, at a fifth of the price of
/// reading them, and reads only those that have not; so it is prepared anew when one hands out its
/// first.
#[derive(Debug)]
struct Probe {
    statement: Statement,
    /// Which sequences had handed out a value when it was prepared.
    called: Vec<bool>,
}

impl Capture {
    /// Opens the change stream and the connection for the query.
    ///
    /// # Errors
    /// When the database was not prepared for it.
    pub(super) async fn open(
        settings: &Settings,
        schema: Arc<Schema>,
    ) -> Result<Capture, CaptureError> {
        let changes = ChangeStream::open(settings, schema.clone()).await?;
        let client = connect(settings).await?;
        client.batch_execute("SET synchronous_commit = on").await?;
        let read_sequences = client.prepare(&sequences_query(&schema)).await?;
        let sequences = read_all(&client, &read_sequences, &schema).await?;
        Ok(Capture {
            probe: Probe::prepare(&client, &schema, &sequences).await?,
            flush: client.prepare(FLUSH).await?,
            schema,
            client,
            changes,
            read_sequences,
            sequences,
            update_bytes_max: u64::MAX,
        })
    }

    /// The longest update of one request.
    pub(super) fn limit(&mut self, update_bytes_max: u64) {
        self.update_bytes_max = update_bytes_max;
        self.changes.limit(update_bytes_max);
    }

    /// Waits until the service is in no transaction any more, and ends those that take too long.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn settle(&self) -> Result<(), CaptureError> {
        let begun = Instant::now();
        loop {
            let end = begun.elapsed() > SETTLE_LIMIT;
            let row = self.client.query_one(UNDER_WAY, &[&end]).await?;
            if row.get::<_, i64>(0) == 0 {
                return Ok(());
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Everything the service changed since the last call. The service's transaction must be over.
    ///
    /// # Errors
    /// When the database or the change stream fails.
    pub(super) async fn collect(&mut self) -> Result<Collected, CaptureError> {
        let (gathered, moved) = self.gather().await?;
        if self.is_too_large(&gathered, &moved) {
            let undo = self.undo(gathered, moved).await?;
            return Ok(Collected::TooLarge(undo));
        }
        self.note_sequences(&moved).await?;
        Ok(Collected::Update(Update {
            tables: gathered.set.finish(&self.schema),
            sequences: moved,
        }))
    }

    /// What undoes everything the service changed since the last call.
    ///
    /// # Errors
    /// When the database or the change stream fails.
    pub(super) async fn collect_undo(&mut self) -> Result<Undo, CaptureError> {
        let (gathered, moved) = self.gather().await?;
        self.undo(gathered, moved).await
    }

    async fn undo(
        &mut self,
        gathered: Gathered,
        moved: Vec<(String, SequenceState)>,
    ) -> Result<Undo, CaptureError> {
        let before = |(name, _): &(String, _)| self.sequences.get_key_value(name);
        let before = moved.iter().filter_map(before);
        let sequences = before.map(|(name, state)| (name.clone(), *state)).collect();
        self.note_sequences(&moved).await?;
        Ok(Undo {
            set: gathered.set,
            overflow: gathered.overflow,
            sequences,
        })
    }

    /// The next update that undoes a request, from its last changes to its first; `None` after the last. Each is
    /// to be applied before the next is asked for.
    ///
    /// # Errors
    /// When a table was emptied otherwise than row by row, or what was kept can't be read.
    pub(super) fn next_undo(&self, undo: &mut Undo) -> Result<Option<Update>, CaptureError> {
        let chunk = match &mut undo.overflow {
            Some(overflow) => overflow.pop().map_err(CaptureError::Overflow)?,
            None => None,
        };
        let (set, sequences) = match chunk {
            Some(messages) => (self.changes.write_set(messages)?, vec![]),
            None => (
                std::mem::take(&mut undo.set),
                std::mem::take(&mut undo.sequences),
            ),
        };
        if set.is_empty() && sequences.is_empty() {
            return Ok(None);
        }
        let tables = set.undo(&self.schema).ok_or(CaptureError::Truncated)?;
        Ok(Some(Update { tables, sequences }))
    }

    /// Whether the update is longer than it may be. Most are so short that nothing has to be counted.
    fn is_too_large(&self, gathered: &Gathered, moved: &[(String, SequenceState)]) -> bool {
        let named = self.schema.tables.len() + moved.len();
        let most = gathered.bytes + gathered.changes * CHANGE_BYTES + named as u64 * TABLE_BYTES;
        let encoded = || gathered.set.encoded_bytes(&self.schema, moved) as u64;
        gathered.overflow.is_some()
            || most > self.update_bytes_max && encoded() > self.update_bytes_max
    }

    async fn gather(&mut self) -> Result<(Gathered, Vec<(String, SequenceState)>), CaptureError> {
        let (lsn, row) = self.flushed().await?;
        let now = match self.probe.states(&self.schema, &self.sequences, &row) {
            Some(states) => states,
            None => self.scan_sequences().await?,
        };
        // However long that takes: it is the manager that knows what is too long.
        let gathered = self.changes.take(lsn).await?;
        let moved = now
            .into_iter()
            .filter(|(name, state)| self.sequences.get(name) != Some(state));
        Ok((gathered, moved.collect()))
    }

    /// Takes note of sequences that were set or have moved.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn note_sequences(
        &mut self,
        moved: &[(String, SequenceState)],
    ) -> Result<(), CaptureError> {
        for (name, state) in moved {
            self.sequences.insert(name.clone(), *state);
        }
        if self.probe.called != called(&self.schema, &self.sequences) {
            self.probe = Probe::prepare(&self.client, &self.schema, &self.sequences).await?;
        }
        Ok(())
    }

    /// The state of all sequences as the updates so far tell it.
    pub(super) fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// The state of all sequences as the database has it.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn scan_sequences(&self) -> Result<Sequences, CaptureError> {
        Ok(read_all(&self.client, &self.read_sequences, &self.schema).await?)
    }

    /// The end of the log, all of it flushed, and the answer of the query that told it. What others write
    /// meanwhile, vacuuming for example, is not waited for.
    async fn flushed(&self) -> Result<(u64, Row), CaptureError> {
        let mut end = None;
        loop {
            let row = self
                .client
                .query_one(&self.probe.statement, &[])
                .await
                .map_err(CaptureError::EndOfLog)?;
            let (flushed, written): (PgLsn, PgLsn) = (row.get(0), row.get(1));
            let end = *end.get_or_insert(written);
            if flushed >= end {
                return Ok((end.into(), row));
            }
            self.client.query_one(&self.flush, &[]).await?;
        }
    }
}

impl Probe {
    async fn prepare(
        client: &Client,
        schema: &Schema,
        sequences: &Sequences,
    ) -> Result<Probe, tokio_postgres::Error> {
        let called = called(schema, sequences);
        let mut query = "SELECT pg_current_wal_flush_lsn(), pg_current_wal_insert_lsn()".to_owned();
        for (sequence, called) in schema.sequences.iter().zip(&called) {
            query.push_str(&match called {
                true => format!(", pg_sequence_last_value({}), true", literal(sequence)),
                false => format!(
                    ", (SELECT last_value FROM {0}), (SELECT is_called FROM {0})",
                    sequence.sql_name
                ),
            });
        }
        Ok(Probe {
            statement: client.prepare(&query).await?,
            called,
        })
    }

    /// The states in an answer; `None` if a sequence was reset, which the function can't tell.
    fn states(&self, schema: &Schema, known: &Sequences, row: &Row) -> Option<Sequences> {
        let mut states = known.clone();
        for (i, sequence) in schema.sequences.iter().enumerate() {
            let state = SequenceState {
                last_value: row.get::<_, Option<i64>>(2 + 2 * i)?,
                called: row.get(3 + 2 * i),
            };
            states.insert(sequence.name.clone(), state);
        }
        Some(states)
    }
}

fn called(schema: &Schema, sequences: &Sequences) -> Vec<bool> {
    let called = |s: &Sequence| sequences.get(&s.name).is_some_and(|state| state.called);
    schema.sequences.iter().map(called).collect()
}

/// The sequence as a constant of type `regclass`.
fn literal(sequence: &Sequence) -> String {
    format!("'{}'::regclass", sequence.sql_name.replace('\'', "''"))
}

/// A row for each sequence: its number, last value, whether that was handed out.
fn sequences_query(schema: &Schema) -> String {
    let mut query = "SELECT 0::int4, 0::int8, false WHERE false".to_owned();
    for (i, sequence) in schema.sequences.iter().enumerate() {
        let name = &sequence.sql_name;
        query.push_str(&format!(
            " UNION ALL SELECT {i}, last_value, is_called FROM {name}"
        ));
    }
    query
}

async fn read_all(
    client: &Client,
    query: &Statement,
    schema: &Schema,
) -> Result<Sequences, tokio_postgres::Error> {
    let mut states = Sequences::new();
    for row in client.query(query, &[]).await? {
        let index = usize::try_from(row.get::<_, i32>(0)).ok();
        if let Some(sequence) = index.and_then(|index| schema.sequences.get(index)) {
            let state = SequenceState {
                last_value: row.get(1),
                called: row.get(2),
            };
            states.insert(sequence.name.clone(), state);
        }
    }
    Ok(states)
}
