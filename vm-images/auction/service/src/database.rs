//! Connections to PostgreSQL: a few for reads, which cannot write, and one for writes, which run one
//! at a time. All statements are prepared, and have run once, before the first request comes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use crate::queries::Query;
use crate::refusal::{explain, Refusal};
use crate::request::Class;
use crate::time::Moment;

/// Connections for reads. Reads that run at once on one processor need no more.
const READERS: usize = 4;
/// How often the database is asked for a connection while it starts, and how long between.
const CONNECT_ATTEMPTS: u32 = 600;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Settings of every connection. Every statement is an index lookup: one plan fits all parameters,
/// and planning again, compiling and parallel workers only cost time.
const SETTINGS: &str = "-c plan_cache_mode=force_generic_plan -c jit=off \
     -c max_parallel_workers_per_gather=0 -c TimeZone=UTC";
/// The setting that makes PostgreSQL refuse every write of a connection (SQLSTATE 25006).
const READ_ONLY: &str = "-c default_transaction_read_only=on";

/// Why the database is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// What should say where it is does not.
    #[error("\"{text}\" is no PostgreSQL connection string")]
    Address {
        /// What was given as one.
        text: String,
        /// What is wrong with it.
        source: tokio_postgres::Error,
    },
    /// It cannot be reached, or refuses.
    #[error("cannot connect to the database: {0}")]
    Connect(String),
    /// It does not know the tables.
    #[error("cannot prepare the statements; the database's schema is what \"auction schema\" prints: {0}")]
    Prepare(String),
    /// It has other tables of the same names.
    #[error("a statement has a parameter of the unexpected type {0}; the database's schema is what \"auction schema\" prints")]
    Parameter(Type),
    /// A statement fails.
    #[error("cannot run the statement {query:?}: {what}")]
    Statement {
        /// The statement's name.
        query: Query,
        /// What the database says.
        what: String,
    },
}

/// One connection with its prepared statements.
struct Connection {
    client: Client,
    statements: Vec<Statement>,
    in_use: AtomicUsize,
}

/// The connections of the service, opened once and never again.
pub struct Database {
    readers: Vec<Connection>,
    writer: Connection,
    write_turn: Mutex<()>,
    lost: Arc<Notify>,
}

impl Database {
    /// Connects, prepares and warms up, waiting for a database that is still starting.
    ///
    /// # Errors
    /// If the database cannot be reached for a minute or lacks a table.
    pub async fn connect(connection: &str) -> Result<Self, DatabaseError> {
        let config: Config = connection
            .parse()
            .map_err(|source| DatabaseError::Address {
                text: connection.to_owned(),
                source,
            })?;
        let lost = Arc::new(Notify::new());
        // The first connection waits until the database answers.
        let writer = Connection::open(&config, Class::Write, &lost).await?;
        let readers = (0..READERS).map(|_| Connection::open(&config, Class::Read, &lost));
        Ok(Self {
            readers: try_join_all(readers).await?,
            writer,
            write_turn: Mutex::new(()),
            lost,
        })
    }

    /// Returns when a connection was lost. The process then ends: what became of a write that ran
    /// is not known, and whoever supervises the replica has to decide about it.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// A turn on the database: beside others for reads, alone for writes.
    pub async fn session(&self, class: Class) -> Session<'_> {
        match class {
            Class::Write => Session {
                _write_turn: Some(self.write_turn.lock().await),
                connection: self.writer.enter(),
            },
            Class::Read => {
                let idlest = self.readers.iter().min_by_key(|reader| reader.load());
                Session {
                    _write_turn: None,
                    // There are `READERS` of them, which is not 0; so this never takes the writer.
                    connection: idlest.unwrap_or(&self.writer).enter(),
                }
            }
        }
    }
}

impl Connection {
    async fn open(
        config: &Config,
        class: Class,
        lost: &Arc<Notify>,
    ) -> Result<Self, DatabaseError> {
        let mut config = config.clone();
        let given = config.get_options().unwrap_or_default().to_owned();
        let read_only = if class == Class::Read { READ_ONLY } else { "" };
        config.options(format!("{given} {SETTINGS} {read_only}"));
        config.application_name("auction");
        let client = connect_patiently(&config, lost).await?;
        let statements = try_join_all(Query::all().map(|query| client.prepare(query.sql())))
            .await
            .map_err(|error| DatabaseError::Prepare(explain(&error)))?;
        let connection = Self {
            client,
            statements,
            in_use: AtomicUsize::new(0),
        };
        connection.warm_up(class).await?;
        Ok(connection)
    }

    /// Runs each statement with parameters that match nothing, so that catalogs, plans and indexes
    /// are loaded before the first request needs them. Changes nothing, not even a sequence.
    async fn warm_up(&self, class: Class) -> Result<(), DatabaseError> {
        for query in Query::all().filter(|query| class == Class::Write || !query.is_write()) {
            let statement = &self.statements[query as usize];
            let nothing = statement.params().iter().map(matches_nothing);
            let nothing = nothing.collect::<Result<Vec<_>, _>>()?;
            let nothing: Vec<_> = nothing.iter().map(|value| &**value as _).collect();
            let rows = self.client.query(statement, &nothing).await;
            rows.map_err(|error| DatabaseError::Statement {
                query,
                what: explain(&error),
            })?;
        }
        Ok(())
    }

    fn load(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Entered<'_> {
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Entered(self)
    }
}

/// A value of the type of a statement's parameter that no row has.
fn matches_nothing(kind: &Type) -> Result<Box<dyn ToSql + Sync>, DatabaseError> {
    Ok(match *kind {
        Type::INT8 => Box::new(0_i64),
        Type::TEXT => Box::new(""),
        Type::BYTEA => Box::new(Vec::<u8>::new()),
        Type::TIMESTAMPTZ => Box::new(Moment::EPOCH),
        ref other => return Err(DatabaseError::Parameter(other.clone())),
    })
}

/// Connects, again and again while the database does not answer or says that it is starting.
async fn connect_patiently(config: &Config, lost: &Arc<Notify>) -> Result<Client, DatabaseError> {
    let mut attempt = 1;
    loop {
        match config.connect(NoTls).await {
            Ok((client, connection)) => {
                let lost = Arc::clone(lost);
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        eprintln!("auction: a database connection failed: {}", explain(&error));
                    }
                    lost.notify_one();
                });
                return Ok(client);
            }
            Err(error) if attempt == CONNECT_ATTEMPTS || !is_starting(&error) => {
                return Err(DatabaseError::Connect(explain(&error)));
            }
            Err(error) => {
                if attempt == 1 {
                    eprintln!("auction: waiting for the database: {}", explain(&error));
                }
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
        attempt += 1;
    }
}

/// Whether a failed connection is worth another attempt: the server cannot be reached (yet), or
/// says itself that it is starting.
fn is_starting(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_none_or(|code| *code == tokio_postgres::error::SqlState::CANNOT_CONNECT_NOW)
}

/// Counts a session's use of a connection.
struct Entered<'a>(&'a Connection);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's turn on one connection. Statements that are awaited together travel together.
pub struct Session<'a> {
    connection: Entered<'a>,
    _write_turn: Option<MutexGuard<'a, ()>>,
}

impl Session<'_> {
    /// The rows that a statement gives.
    ///
    /// # Errors
    /// Whatever the database refuses, see [`Refusal`].
    pub async fn rows(
        &self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Refusal> {
        let Connection {
            client, statements, ..
        } = self.connection.0;
        Ok(client
            .query(&statements[query as usize], parameters)
            .await?)
    }

    /// The first row that a statement gives, if it gives any.
    ///
    /// # Errors
    /// Whatever the database refuses, see [`Refusal`].
    pub async fn row(
        &self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Refusal> {
        Ok(self.rows(query, parameters).await?.into_iter().next())
    }
}
