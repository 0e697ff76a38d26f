//! The web server: accepts connections, reads requests within limits, and hands them to the pages.

use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::database::{Database, DatabaseError};
use crate::pages;
use crate::refusal::Refusal;
use crate::request::{Agreed, Parameters, Request, HEADER_WRITE_IN_READ};
use spare_auction_interactions::{Interaction, Method, NoRoute};

/// The largest body of a request, in bytes. The largest form is a tenth of it.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Connections served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// How long a connection may take to send its headers, so that idle ones do not pile up. It ends
/// connections without an answer and so has no influence on any page.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the service does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum ServeError {
    /// The system lacks what every program needs.
    #[error("cannot {what}")]
    System {
        /// What cannot be done.
        what: &'static str,
        source: io::Error,
    },
    /// Nobody can connect.
    #[error("cannot listen at the {kind} {at}")]
    Listen {
        /// `Unix socket` or `address`.
        kind: &'static str,
        /// The address or the path.
        at: String,
        source: io::Error,
    },
    /// Only its owner could connect.
    #[error("cannot open {at} to other users")]
    Open {
        /// The path of the socket.
        at: String,
        source: io::Error,
    },
    /// What is in the place of the socket cannot be looked at.
    #[error("cannot look at {}", .path.display())]
    Look {
        /// The path that was to be listened at.
        path: PathBuf,
        source: io::Error,
    },
    /// Something else is in the place of the socket.
    #[error("{} exists and is no socket; listen elsewhere or remove it", .0.display())]
    NoSocket(PathBuf),
    /// Somebody else listens there.
    #[error("another process listens at {}; stop it or listen elsewhere", .0.display())]
    InUse(PathBuf),
    /// What a service left behind cannot be removed.
    #[error("cannot remove the stale socket {}", .path.display())]
    Remove {
        /// The path that was to be listened at.
        path: PathBuf,
        source: io::Error,
    },
    /// The database is of no use.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The database went away.
    #[error("a connection to the database was lost; see PostgreSQL's log, then start again")]
    Lost,
}

/// Serves at `listen` (a path that begins with `/` is a Unix socket, anything else a TCP address)
/// until SIGTERM or SIGINT, on this thread alone: the service has one slow processor, and shares it with
/// the database.
///
/// # Errors
/// If the address is in use or the database cannot be reached or is lost.
pub fn run(listen: &str, database: &str) -> Result<(), ServeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?
        .block_on(serve(listen, database))
}

async fn serve(listen: &str, database: &str) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for SIGINT"))?;
    let listener = Listener::bind(listen).await?;
    let database = Arc::new(Database::connect(database).await?);
    eprintln!("auction: serving at {listen}");
    tokio::select! {
        () = listener.accept_all(&database) => Ok(()),
        () = database.lost() => Err(ServeError::Lost),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

/// The file of a Unix socket, removed when the service ends.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The service ends anyway; a file that stays is recognised as stale by the next start.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    async fn bind(listen: &str) -> Result<Self, ServeError> {
        let refused = |kind| {
            move |source| ServeError::Listen {
                kind,
                at: listen.to_owned(),
                source,
            }
        };
        if listen.starts_with('/') {
            let path = Path::new(listen);
            remove_stale_socket(path)?;
            let listener = UnixListener::bind(path).map_err(refused("Unix socket"))?;
            let file = SocketFile(path.to_owned());
            // The shim runs as another user.
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(|source| {
                ServeError::Open {
                    at: listen.to_owned(),
                    source,
                }
            })?;
            Ok(Self::Unix {
                listener,
                _file: file,
            })
        } else {
            let listener = TcpListener::bind(listen)
                .await
                .map_err(refused("address"))?;
            Ok(Self::Tcp(listener))
        }
    }

    /// Accepts connections for as long as it is let.
    async fn accept_all(&self, database: &Arc<Database>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                // Nobody closes the semaphore.
                return;
            };
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(converse(stream, Arc::clone(database), permit));
                }),
                Self::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(converse(stream, Arc::clone(database), permit));
                }),
            };
            if let Err(error) = accepted {
                // Out of descriptors, or the client is gone already: others may still come.
                eprintln!("auction: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Removes a socket that a service left behind.
fn remove_stale_socket(path: &Path) -> Result<(), ServeError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(ServeError::Look {
                path: path.to_owned(),
                source: error,
            })
        }
    };
    if !kind.is_socket() {
        return Err(ServeError::NoSocket(path.to_owned()));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ServeError::InUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(|source| ServeError::Remove {
        path: path.to_owned(),
        source,
    })
}

/// Answers the requests of one connection.
fn converse<S>(
    stream: S,
    database: Arc<Database>,
    permit: OwnedSemaphorePermit,
) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let database = Arc::clone(&database);
        async move { Ok::<_, Infallible>(reply(request, &database).await) }
    });
    // No `Date` header: it would be the only part of a reply that comes from a clock. And a client
    // that closes its sending side, or leaves, does not stop a request half-way.
    let connection = http1::Builder::new()
        .auto_date_header(false)
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    async move {
        let _permit = permit;
        // A client that breaks off or sends no HTTP harms nobody but itself; hyper has answered it.
        let _ = connection.await;
    }
}

/// A page, or the page of a refusal, as a reply.
async fn reply(request: hyper::Request<Incoming>, database: &Database) -> Response<Full<Bytes>> {
    let route = Interaction::find(request.method().as_str(), request.uri().path());
    match answer(route, request, database).await {
        Ok(page) => html(StatusCode::OK, page),
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status);
            let mut response = html(
                status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                refusal.page(),
            );
            if refusal.write_in_read {
                let headers = response.headers_mut();
                headers.insert(HEADER_WRITE_IN_READ, HeaderValue::from_static("1"));
            }
            if let Err(NoRoute::Method { allowed }) = route {
                let headers = response.headers_mut();
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            response
        }
    }
}

fn html(status: StatusCode, page: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(page)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    response
}

async fn answer(
    route: Result<Interaction, NoRoute>,
    request: hyper::Request<Incoming>,
    database: &Database,
) -> Result<String, Refusal> {
    let agreed = Agreed::from_headers(request.headers())?;
    let interaction = route.map_err(|reason| no_route(reason, &request))?;
    let parameters = match interaction.method() {
        Method::Get => Parameters::decode(request.uri().query().unwrap_or_default().as_bytes()),
        Method::Post => Parameters::decode(&read_body(request.into_body()).await?),
    };
    let request = Request {
        interaction,
        parameters,
        agreed,
    };
    let session = database.session(agreed.class).await;
    Ok(pages::answer(&request, &session).await?.finish())
}

fn no_route(reason: NoRoute, request: &hyper::Request<Incoming>) -> Refusal {
    let path = request.uri().path();
    match reason {
        NoRoute::Path => {
            let message = format!("There is no page {path}.");
            Refusal::new(404, "no-such-page", message)
        }
        NoRoute::Method { allowed } => {
            let method = request.method();
            let message =
                format!("The page {path} does not know the method {method}, only {allowed}.");
            Refusal::new(405, "wrong-method", message)
        }
    }
}

/// A body that is too long is read to its end all the same, and not kept: a client that still writes when the connection is
/// closed may not get to see the answer.
async fn read_body(mut body: Incoming) -> Result<Bytes, Refusal> {
    let (mut kept, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            let message = "The body of the request could not be read.";
            Refusal::new(400, "bad-body", message)
        })?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        length += data.len();
        if length <= BODY_BYTES_MAX {
            kept.extend_from_slice(data);
        }
    }
    if length > BODY_BYTES_MAX {
        let message = format!("The body of the request is larger than {BODY_BYTES_MAX} bytes.");
        return Err(Refusal::new(413, "body-too-large", message));
    }
    Ok(kept.into())
}
