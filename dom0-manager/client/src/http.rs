//! One HTTP/1.1 connection that is kept alive and opened again when needed, over TCP or a Unix
//! socket.
//!
//! A request is sent at most once: it is repeated on a new connection only if not one byte of it
//! left this process.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

/// The largest reply that is read: the largest a guest may send.
pub const REPLY_BYTES_MAX: usize = 16 << 20;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address, `host:port`.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The address in a URL `http://host[:port][/]`.
    ///
    /// # Errors
    /// When it is another kind of URL, or none.
    pub fn from_url(url: &str) -> Result<Address, UrlError> {
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| UrlError::NotHttp(url.to_owned()))?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
            return Err(UrlError::NotAnAuthority(url.to_owned()));
        }
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Address::Tcp(if has_port {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        }))
    }

    fn host(&self) -> &str {
        match self {
            Address::Tcp(authority) => authority,
            Address::Unix(_) => "localhost",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(authority) => f.write_str(authority),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why a URL is no gateway's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("\"{0}\" is not a URL of plain HTTP; write http://HOST:PORT")]
    NotHttp(String),
    /// A path, a query or a user, or no host.
    #[error("\"{0}\" is more or less than a host and a port; write http://HOST:PORT")]
    NotAnAuthority(String),
}

/// A request, without the headers that the connection adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// Further headers; `host`, `content-length` and the like are added.
    pub headers: Vec<(&'static str, String)>,
    /// Empty for a `GET`.
    pub body: String,
}

/// A reply, read to its end.
#[derive(Clone, Debug)]
pub struct Reply {
    /// From 100 to 999.
    pub status: u16,
    /// As they came, with those that are there twice.
    pub headers: HeaderMap,
    /// At most [`REPLY_BYTES_MAX`] bytes.
    pub body: Bytes,
}

impl Reply {
    /// A header as text, if it is there and is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// No whole reply came back.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "a field has a comment where name and type leave a question"
)]
pub enum HttpError {
    /// Nobody answers there, or not to us.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        address: Address,
        source: std::io::Error,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the connection to {address} failed: {reason}")]
    Broken {
        address: Address,
        /// What is wrong, in hyper's words or in ours.
        reason: String,
    },
    /// No whole reply in time.
    #[error("no reply from {address} within {after:?}")]
    Timeout {
        address: Address,
        /// How long the request was given, connecting included.
        after: Duration,
    },
    /// The request cannot be put into HTTP.
    #[error("not a request: {0}")]
    Request(String),
}

/// An open connection and the task that drives it.
struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A connection to one address.
pub struct Connection {
    address: Address,
    timeout: Duration,
    open: Option<Open>,
    opened: u64,
}

impl Connection {
    /// Will connect with the first request. Every request may take `timeout` from its beginning to
    /// the end of its reply.
    #[must_use]
    pub fn new(address: Address, timeout: Duration) -> Connection {
        Connection {
            address,
            timeout,
            open: None,
            opened: 0,
        }
    }

    /// How many times a connection was opened.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Sends a request and reads the whole reply.
    ///
    /// # Errors
    /// When no whole reply came in time. The connection is then closed; the next request opens
    /// another.
    pub async fn send(&mut self, request: &Request) -> Result<Reply, HttpError> {
        let after = self.timeout;
        let outcome = match tokio::time::timeout(after, self.send_unlimited(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(HttpError::Timeout {
                address: self.address.clone(),
                after,
            }),
        };
        if outcome.is_err() {
            self.open = None;
        }
        outcome
    }

    async fn send_unlimited(&mut self, request: &Request) -> Result<Reply, HttpError> {
        let mut to_send = self.encode(request)?;
        // The second attempt is on a new connection, so it is the last.
        for fresh in [false, true] {
            let open = match &mut self.open {
                Some(open) if !fresh && !open.sender.is_closed() => open,
                _ => self.connect().await?,
            };
            match open.sender.try_send_request(to_send).await {
                Ok(response) => return self.receive(response).await,
                Err(mut e) => match e.take_message() {
                    Some(unsent) if !fresh => to_send = unsent,
                    _ => return Err(self.broken(e.error())),
                },
            }
        }
        Err(self.broken(&"closed before the request was sent"))
    }

    async fn connect(&mut self) -> Result<&mut Open, HttpError> {
        let failed = |source| HttpError::Connect {
            address: self.address.clone(),
            source,
        };
        let (sender, driver) = match &self.address {
            Address::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                self.handshake(TokioIo::new(stream)).await?
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                self.handshake(TokioIo::new(stream)).await?
            }
        };
        self.opened += 1;
        Ok(self.open.insert(Open { sender, driver }))
    }

    async fn handshake<T>(
        &self,
        stream: T,
    ) -> Result<(SendRequest<Full<Bytes>>, JoinHandle<()>), HttpError>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(stream)
            .await
            .map_err(|e| self.broken(&e))?;
        // Its errors come back with the request that is under way.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok((sender, driver))
    }

    fn encode(&self, request: &Request) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
        let mut builder = hyper::Request::builder()
            .method(request.method)
            .uri(&request.target)
            .header("host", self.address.host());
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        builder
            .body(Full::new(Bytes::from(request.body.clone())))
            .map_err(|e| HttpError::Request(e.to_string()))
    }

    async fn receive(
        &mut self,
        response: hyper::Response<hyper::body::Incoming>,
    ) -> Result<Reply, HttpError> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, REPLY_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| match e.downcast_ref::<LengthLimitError>() {
                Some(_) => self.broken(&format!("a reply of more than {REPLY_BYTES_MAX} bytes")),
                None => self.broken(&format!("the reply's body breaks off: {e}")),
            })?
            .to_bytes();
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }

    fn broken(&self, reason: &dyn fmt::Display) -> HttpError {
        HttpError::Broken {
            address: self.address.clone(),
            reason: reason.to_string(),
        }
    }
}

/// The reply that a server's bytes hold, if they are one.
#[cfg(feature = "fuzzing")]
pub(crate) async fn reply_in(bytes: Vec<u8>) -> Option<Reply> {
    let mut connection = Connection::new(Address::Unix(PathBuf::new()), Duration::ZERO);
    let request = connection.encode(&Request {
        method: "GET",
        target: "/".to_owned(),
        headers: vec![],
        body: String::new(),
    });
    let stream = tokio::io::join(std::io::Cursor::new(bytes), tokio::io::sink());
    let (sender, driver) = connection.handshake(TokioIo::new(stream)).await.ok()?;
    let mut open = Open { sender, driver };
    let response = open.sender.try_send_request(request.ok()?).await.ok()?;
    connection.receive(response).await.ok()
}

/// Encodes names and values for a query or a form (`application/x-www-form-urlencoded`).
#[must_use]
pub fn form_encode(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        form_encode_into(&mut out, name);
        out.push('=');
        form_encode_into(&mut out, value);
    }
    out
}

fn form_encode_into(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn get(target: &str) -> Request {
        Request {
            method: "GET",
            target: target.to_owned(),
            headers: vec![],
            body: String::new(),
        }
    }

    /// A server whose n-th connection answers one request after the other with the n-th list of
    /// byte strings and is then closed.
    async fn server(connections: Vec<Vec<&'static str>>) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = Address::Tcp(listener.local_addr().expect("address").to_string());
        tokio::spawn(async move {
            for replies in connections {
                let (mut stream, _) = listener.accept().await.expect("accept");
                for reply in replies {
                    let mut buffer = [0; 4096];
                    let read = stream.read(&mut buffer).await.expect("read");
                    assert!(buffer[..read].ends_with(b"\r\n\r\n"), "one whole request");
                    stream.write_all(reply.as_bytes()).await.expect("write");
                }
            }
        });
        address
    }

    const PLAIN: &str = "HTTP/1.1 200 OK\r\nspare-position: 7\r\ncontent-length: 5\r\n\r\nplain";
    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n";
    const CUT_OFF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\ncut";

    #[tokio::test]
    async fn one_connection_serves_many_requests_plain_and_chunked() {
        let address = server(vec![vec![PLAIN, CHUNKED, PLAIN]]).await;
        let mut connection = Connection::new(address, Duration::from_secs(5));
        let first = connection.send(&get("/")).await.expect("plain");
        assert_eq!((first.status, &first.body[..]), (200, &b"plain"[..]));
        assert_eq!(first.header("spare-position"), Some("7"));
        let second = connection.send(&get("/")).await.expect("chunked");
        assert_eq!(&second.body[..], b"chunked");
        connection.send(&get("/")).await.expect("plain again");
        assert_eq!(connection.opened(), 1);
    }

    #[tokio::test]
    async fn a_connection_closed_between_requests_is_opened_again() {
        let address = server(vec![vec![PLAIN], vec![PLAIN]]).await;
        let mut connection = Connection::new(address, Duration::from_secs(5));
        connection.send(&get("/")).await.expect("first");
        tokio::time::sleep(Duration::from_millis(50)).await;
        connection.send(&get("/")).await.expect("second");
        assert_eq!(connection.opened(), 2);
    }

    #[tokio::test]
    async fn a_reply_that_breaks_off_is_an_error_and_the_next_request_connects_anew() {
        let address = server(vec![vec![CUT_OFF], vec![PLAIN]]).await;
        let mut connection = Connection::new(address, Duration::from_secs(5));
        let error = connection.send(&get("/")).await.expect_err("cut off");
        assert!(matches!(error, HttpError::Broken { .. }), "{error}");
        connection.send(&get("/")).await.expect("next");
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_times_out() {
        let address = server(vec![vec!["", ""]]).await;
        let mut connection = Connection::new(address, Duration::from_millis(100));
        let error = connection.send(&get("/")).await.expect_err("silence");
        assert!(matches!(error, HttpError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_named() {
        let address = Address::from_url("http://127.0.0.1:1").expect("a URL");
        let mut connection = Connection::new(address, Duration::from_secs(5));
        let error = connection.send(&get("/")).await.expect_err("nobody");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }

    #[test]
    fn urls_of_something_else_are_refused() {
        assert_eq!(
            Address::from_url("http://h/"),
            Ok(Address::Tcp("h:80".to_owned()))
        );
        for url in [
            "https://h",
            "h:80",
            "http://",
            "http://h/path",
            "http://u@h",
        ] {
            assert!(Address::from_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            form_encode(&[("a", "x y"), ("b", "ü&=1.5")]),
            "a=x+y&b=%C3%BC%26%3D1.5"
        );
    }
}
