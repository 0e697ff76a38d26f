//! A client of the replica manager's admin API: HTTP over a Unix socket.

use crate::http::{form_encode, Address, Connection, HttpError, Reply, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use spare_protocol::admin::{
    self as calls, Call, Event, FaultTimeline, Nothing, ScrubReport, Status,
};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a manager listens if nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/spare/admin.sock";

/// How long an answer that the manager has at hand may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a scrub (a scan of every replica's whole database) or a stop may take.
const WORK_TIMEOUT: Duration = Duration::from_secs(900);
/// How often it is looked whether a manager has stopped: it may be started again at once.
const STOP_POLL: Duration = Duration::from_millis(50);
/// How long the manager waits for an event before it answers that there is none.
pub const EVENTS_WAIT_MS: u64 = 5_000;

/// The manager did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens on the socket.
    #[error(
        "no replica manager listens on {socket}: it is not running, or its admin socket is elsewhere.\n\
         Start it with `systemctl start spare-manager`, or name its socket with --admin SOCKET."
    )]
    NotRunning {
        /// Where the manager should listen.
        socket: PathBuf,
    },
    /// The socket belongs to someone else.
    #[error(
        "no permission to use {socket}: run this as root, or as a member of the group that the manager's admin.group \
         names (its own group, if it names none)"
    )]
    Forbidden {
        /// Where the manager should listen.
        socket: PathBuf,
    },
    /// The connection failed.
    #[error("{0}\nThe manager may be stuck or stopping; see `journalctl -u spare-manager`.")]
    Http(#[from] HttpError),
    /// The manager began to stop, and its socket is still there.
    #[error(
        "the manager has not said that it is done: {socket} is still there. Replicas may be left; see \
         `journalctl -u spare-manager`"
    )]
    NotStopped {
        /// Where the manager listened.
        socket: PathBuf,
    },
    /// The manager refused.
    #[error("the manager refused {call} with status {status}: {text}")]
    Refused {
        /// The method, path and query.
        call: String,
        /// The status of the manager's answer.
        status: u16,
        /// The manager's words.
        text: String,
    },
    /// The answer is of another version.
    #[error("the manager's answer to {call} makes no sense here ({source}); are spare and spare-manager of the same version?")]
    Answer {
        /// The method, path and query.
        call: String,
        /// Where its JSON differs from what is expected.
        source: serde_json::Error,
    },
}

/// How much of a manager's words is shown when it refuses.
const REFUSAL_BYTES_MAX: usize = 4096;

/// A client of one manager.
pub struct Admin {
    socket: PathBuf,
}

impl Admin {
    /// A client of the manager that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Admin {
        Admin {
            socket: socket.to_owned(),
        }
    }

    /// Makes a call without parameters that the manager answers with what it has at hand.
    ///
    /// # Errors
    /// When the manager cannot be reached, refuses, or answers something else.
    pub async fn ask<A: DeserializeOwned>(&self, call: Call<A>) -> Result<A, AdminError> {
        self.call(call, &[], ANSWER_TIMEOUT).await
    }

    /// The state of the deployment.
    ///
    /// # Errors
    /// When the manager cannot be reached or answers something else.
    pub async fn status(&self) -> Result<Status, AdminError> {
        self.ask(calls::STATUS).await
    }

    /// The events numbered above `after`. If there is none yet, waits for the first for at most
    /// `wait_ms` and may return none.
    ///
    /// # Errors
    /// When the manager cannot be reached or answers something else.
    pub async fn events(&self, after: u64, wait_ms: u64) -> Result<Vec<Event>, AdminError> {
        let (after, wait) = (after.to_string(), wait_ms.to_string());
        let query = [("after", after.as_str()), ("wait_ms", &wait)];
        let timeout = ANSWER_TIMEOUT + Duration::from_millis(wait_ms);
        self.call(calls::EVENTS, &query, timeout).await
    }

    /// How every fault since the start was dealt with.
    ///
    /// # Errors
    /// When the manager cannot be reached or answers something else.
    pub async fn faults(&self) -> Result<Vec<FaultTimeline>, AdminError> {
        self.ask(calls::FAULTS).await
    }

    /// Orders a scrub and waits for its outcome.
    ///
    /// # Errors
    /// When the manager cannot be reached, refuses, or answers something else.
    pub async fn scrub(&self) -> Result<ScrubReport, AdminError> {
        self.call(calls::SCRUB, &[], WORK_TIMEOUT).await
    }

    /// Tells the manager that a lost host is off.
    ///
    /// # Errors
    /// When the manager cannot be reached, or when that means nothing at present.
    pub async fn confirm_fence(&self, host: &str) -> Result<(), AdminError> {
        self.about_host(calls::FENCE_CONFIRM, host).await
    }

    /// Tells the manager that a host's disk is gone for good.
    ///
    /// # Errors
    /// When the manager cannot be reached, or does not wait for that host.
    pub async fn accept_loss(&self, host: &str) -> Result<(), AdminError> {
        self.about_host(calls::LOSS_ACCEPT, host).await
    }

    /// Has other hosts take the places of a host's replicas, or gives it its share again. Returns before that is
    /// done.
    ///
    /// # Errors
    /// When the manager cannot be reached, or when too few hosts would have replicas.
    pub async fn drain(&self, host: &str, drained: bool) -> Result<(), AdminError> {
        let call = match drained {
            true => calls::HOST_DRAIN,
            false => calls::HOST_FILL,
        };
        self.about_host(call, host).await
    }

    async fn about_host(&self, call: Call<Nothing>, host: &str) -> Result<(), AdminError> {
        let Nothing {} = self.call(call, &[("host", host)], ANSWER_TIMEOUT).await?;
        Ok(())
    }

    /// Stops the service and destroys its replicas. Returns when the manager has done so: the last that it does is to
    /// remove its socket.
    ///
    /// # Errors
    /// When the manager cannot be reached, refuses, or takes too long.
    pub async fn stop(&self) -> Result<(), AdminError> {
        let Nothing {} = self.call(calls::STOP, &[], WORK_TIMEOUT).await?;
        let removed = async {
            while self.socket.exists() {
                tokio::time::sleep(STOP_POLL).await;
            }
        };
        let in_time = tokio::time::timeout(WORK_TIMEOUT, removed).await;
        in_time.map_err(|_| AdminError::NotStopped {
            socket: self.socket.clone(),
        })
    }

    /// Has the manager make a snapshot of now, and writes it to `out`. Check it: a connection that breaks in
    /// the middle leaves part of it.
    ///
    /// # Errors
    /// When the manager cannot be reached or refuses, and when `out` refuses.
    pub async fn backup(&self, out: &mut impl std::io::Write) -> Result<(), AdminError> {
        let address = Address::Unix(self.socket.clone());
        let broken = |reason: String| {
            AdminError::Http(HttpError::Broken {
                address: address.clone(),
                reason,
            })
        };
        let stream = tokio::net::UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| {
            self.name(HttpError::Connect {
                address: address.clone(),
                source,
            })
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(e.to_string()))?;
        let driver = tokio::spawn(connection);
        let request = hyper::Request::post(calls::BACKUP.path)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|e| broken(e.to_string()))?;
        let mut response = sender
            .send_request(request)
            .await
            .map_err(|e| broken(e.to_string()))?;
        let status = response.status().as_u16();
        let mut refusal = Vec::new();
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|e| broken(e.to_string()))?;
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            if status == 200 {
                out.write_all(bytes).map_err(|e| broken(e.to_string()))?;
            } else if refusal.len() < REFUSAL_BYTES_MAX {
                refusal.extend_from_slice(bytes);
            }
        }
        driver.abort();
        if status == 200 {
            return Ok(());
        }
        Err(AdminError::Refused {
            call: format!("{} {}", calls::BACKUP.method, calls::BACKUP.path),
            status,
            text: String::from_utf8_lossy(&refusal).trim().to_owned(),
        })
    }

    async fn call<A: DeserializeOwned>(
        &self,
        call: Call<A>,
        query: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<A, AdminError> {
        let target = match query {
            [] => call.path.to_owned(),
            query => format!("{}?{}", call.path, form_encode(query)),
        };
        let request = Request {
            method: call.method,
            target,
            headers: vec![],
            body: String::new(),
        };
        let mut connection = Connection::new(Address::Unix(self.socket.clone()), timeout);
        let reply = connection.send(&request).await.map_err(|e| self.name(e))?;
        answer(format!("{} {}", request.method, request.target), &reply)
    }

    /// Says what an error means for an operator.
    fn name(&self, error: HttpError) -> AdminError {
        let socket = self.socket.clone();
        match &error {
            HttpError::Connect { source, .. } => match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    AdminError::NotRunning { socket }
                }
                ErrorKind::PermissionDenied => AdminError::Forbidden { socket },
                _ => AdminError::Http(error),
            },
            _ => AdminError::Http(error),
        }
    }
}

fn answer<T: DeserializeOwned>(call: String, reply: &Reply) -> Result<T, AdminError> {
    if reply.status != 200 {
        return Err(AdminError::Refused {
            call,
            status: reply.status,
            text: String::from_utf8_lossy(&reply.body).trim().to_owned(),
        });
    }
    parse(&reply.body).map_err(|source| AdminError::Answer { call, source })
}

/// The answer in a body.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    async fn manager_that_answers(name: &str, status: u16, body: &str) -> PathBuf {
        let socket = std::env::temp_dir().join(format!("spare-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("bind");
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await.expect("read");
            stream.write_all(answer.as_bytes()).await.expect("write");
        });
        socket
    }

    #[tokio::test]
    async fn it_is_stopped_when_the_manager_has_removed_its_socket_and_not_before() {
        let socket = manager_that_answers("stop", 200, "{}").await;
        let admin = Admin::new(&socket);
        let stopping = admin.stop();
        tokio::pin!(stopping);
        let early = tokio::time::timeout(Duration::from_millis(300), &mut stopping).await;
        assert!(early.is_err(), "its replicas are not destroyed yet");
        std::fs::remove_file(&socket).expect("it is there");
        stopping.await.expect("stopped");
    }

    #[tokio::test]
    async fn a_manager_that_does_not_run_is_named_with_the_way_out() {
        let missing = Path::new("/nonexistent/admin.sock");
        let text = Admin::new(missing)
            .status()
            .await
            .expect_err("none")
            .to_string();
        assert!(text.contains("/nonexistent/admin.sock"), "{text}");
        assert!(text.contains("systemctl start spare-manager"), "{text}");
    }

    #[tokio::test]
    async fn a_scrub_report_is_read() {
        let body = r#"{"position":9,"roots":[["0.1","aa"]],"equal":true}"#;
        let socket = manager_that_answers("scrub", 200, body).await;
        let report = Admin::new(&socket).scrub().await.expect("report");
        assert!(report.equal && report.position == 9);
        std::fs::remove_file(socket).expect("remove");
    }

    #[tokio::test]
    async fn a_refusal_carries_the_managers_words() {
        let socket = manager_that_answers("refusal", 409, "a scrub is under way").await;
        let text = Admin::new(&socket)
            .scrub()
            .await
            .expect_err("refused")
            .to_string();
        assert!(text.contains("409") && text.contains("under way"), "{text}");
        std::fs::remove_file(socket).expect("remove");
    }
}
