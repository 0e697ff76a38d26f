//! The update of a write request: what the service changed, and which sequences moved.
//!
//! After the service has answered, one query tells how far the database's log goes and where the
//! sequences stand; then the change stream is read up to there. The stream only carries what is
//! flushed. The service's own commit is, unless the service asked for less; then a commit of the
//! shim's flushes everything.

use super::connection::{connect, ConnectError};
use super::schema::{Schema, Sequence};
use super::settings::Settings;
use super::stream::{ChangeStream, StreamError};
use super::write_set::WriteSet;
use spare_protocol::update::{SequenceState, Update};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::error::Elapsed;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row, Statement};

/// The change stream delivers within a few milliseconds; after this it never will.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);
/// Times the log is flushed before the shim gives up: something else writes all the time.
const FLUSHES_MAX: usize = 100;
/// Writes a little and commits, which flushes everything written before.
const FLUSH: &str = "SELECT pg_logical_emit_message(true, 'spare.flush', '')";

/// What the service changed is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the change stream does not deliver")]
    Late(#[source] Elapsed),
    #[error("cannot ask for the end of the log")]
    EndOfLog(#[source] tokio_postgres::Error),
    #[error("the database's log grows without end")]
    EndlessLog,
    #[error("a table was emptied with TRUNCATE, which can't be undone")]
    Truncated,
}

/// Where each sequence stands, by name.
type Sequences = BTreeMap<String, SequenceState>;

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
        })
    }

    /// Everything the service changed since the last call. The service's transaction must be over.
    ///
    /// # Errors
    /// When the database or the change stream fails.
    pub(super) async fn collect(&mut self) -> Result<Update, CaptureError> {
        let (set, sequences) = self.gather().await?;
        Ok(Update {
            tables: set.finish(&self.schema),
            sequences,
        })
    }

    /// The update that undoes everything the service changed since the last call.
    ///
    /// # Errors
    /// When the service emptied a table; when the database or the change stream fails.
    pub(super) async fn collect_undo(&mut self) -> Result<Update, CaptureError> {
        let before = self.sequences.clone();
        let (set, moved) = self.gather().await?;
        let tables = set.undo(&self.schema).ok_or(CaptureError::Truncated)?;
        let restored = |(name, _)| before.get_key_value(&name).map(|(n, s)| (n.clone(), *s));
        Ok(Update {
            tables,
            sequences: moved.into_iter().filter_map(restored).collect(),
        })
    }

    async fn gather(&mut self) -> Result<(WriteSet, Vec<(String, SequenceState)>), CaptureError> {
        let (lsn, row) = self.flushed().await?;
        let now = match self.probe.states(&self.schema, &self.sequences, &row) {
            Some(states) => states,
            None => self.scan_sequences().await?,
        };
        let set = tokio::time::timeout(STREAM_TIMEOUT, self.changes.take(lsn))
            .await
            .map_err(CaptureError::Late)??;
        let moved: Vec<(String, SequenceState)> = now
            .into_iter()
            .filter(|(name, state)| self.sequences.get(name) != Some(state))
            .collect();
        self.note_sequences(&moved).await?;
        Ok((set, moved))
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

    /// The end of the log, all of it flushed, and the answer of the query that told it.
    async fn flushed(&self) -> Result<(u64, Row), CaptureError> {
        for _ in 0..FLUSHES_MAX {
            let row = self
                .client
                .query_one(&self.probe.statement, &[])
                .await
                .map_err(CaptureError::EndOfLog)?;
            let (flushed, written): (PgLsn, PgLsn) = (row.get(0), row.get(1));
            if flushed >= written {
                return Ok((flushed.into(), row));
            }
            self.client.query_one(&self.flush, &[]).await?;
        }
        Err(CaptureError::EndlessLog)
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
