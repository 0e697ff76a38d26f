//! The HTTP adapter: hands a request to the service and brings its reply back. The service is an
//! unmodified web application as far as it need not know more than three headers.
//!
//! Every request has a connection of its own. A kept connection could be closed by the service just
//! when the next request is sent, and nobody could tell whether that one was executed.

use crate::causes::with_causes;
use crate::config::{Address, ServiceSettings};
use bytes::Bytes;
use futures_util::future::{select, Either, FutureExt};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{HeaderName, HeaderValue, CONNECTION, HOST};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use spare_protocol::channel::{Execute, Outcome};
use spare_protocol::http::{
    is_connection_header, HttpReply, HttpRequest, HEADER_CLASS, HEADER_SEED, HEADER_TIME,
    HEADER_WRITE_IN_READ,
};
use spare_protocol::{decode, encode, Class};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// The largest body of a reply.
pub const REPLY_BODY_BYTES_MAX: usize = 16 << 20;
/// The largest head of a reply.
const REPLY_HEAD_BYTES_MAX: usize = 256 << 10;
/// The beginning of names that only manager and shim may give to headers.
const RESERVED: &str = "spare-";

/// The service and how it is reached.
#[derive(Clone, Debug)]
pub struct HttpService {
    address: Address,
    timeout: Duration,
}

/// The service failed in a way that leaves the replica's position in doubt.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// It does not listen.
    #[error("cannot connect to the service at {0:?}: {1}")]
    Unreachable(Address, std::io::Error),
    /// It did not answer in time.
    #[error("the service did not answer within {0:?}")]
    TimedOut(Duration),
    /// It closed the connection or did not speak HTTP.
    #[error("the service did not answer in HTTP: {0}")]
    NotHttp(String),
}

impl HttpService {
    /// The service as it is configured.
    #[must_use]
    pub fn new(settings: &ServiceSettings) -> HttpService {
        HttpService {
            address: settings.address.clone(),
            timeout: settings.request_timeout(),
        }
    }

    /// Executes one ordered request.
    ///
    /// A request that is not valid HTTP, and a reply that is too large, are answered here, by every
    /// correct replica in the same way: a client must not be able to break replicas.
    ///
    /// # Errors
    /// When the service fails; what it did is then not known.
    pub async fn execute(&self, execute: &Execute) -> Result<Outcome, ServiceError> {
        let Some(request) = service_request(execute) else {
            return Ok(reply(&own_answer(400, "The request is not valid HTTP.\n")));
        };
        // Boxed, so that all callers run the same code: the warm-up's requests would leave a copy cold.
        let exchange = self.exchange(request).boxed();
        let answer = tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| ServiceError::TimedOut(self.timeout))??;
        let refused = answer.header(HEADER_WRITE_IN_READ) == Some(b"1");
        if refused && execute.class == Class::Read {
            return Ok(Outcome::WriteInRead);
        }
        Ok(reply(&strip_reserved(answer)))
    }

    /// Whether the service accepts connections.
    pub async fn is_listening(&self) -> bool {
        match &self.address {
            Address::Unix(path) => UnixStream::connect(path).await.is_ok(),
            Address::Tcp(address) => TcpStream::connect(address).await.is_ok(),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<HttpReply, ServiceError> {
        let unreachable = |e| ServiceError::Unreachable(self.address.clone(), e);
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                exchange_over(stream, request).await
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(unreachable)?;
                exchange_over(stream, request).await
            }
        }
    }
}

pub(crate) async fn exchange_over<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<HttpReply, ServiceError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let not_http = |e: hyper::Error| ServiceError::NotHttp(with_causes(&e));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(REPLY_HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(not_http)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(not_http)?;
        read_reply(response).await
    };
    tokio::pin!(exchange, connection);
    match select(exchange, connection).await {
        Either::Left((answer, _)) => answer,
        // The connection ends with the reply; what it read is there.
        Either::Right((_, exchange)) => exchange.await,
    }
}

async fn read_reply(response: Response<hyper::body::Incoming>) -> Result<HttpReply, ServiceError> {
    let (head, body) = response.into_parts();
    if head.status.as_u16() < 200 {
        return Err(ServiceError::NotHttp(format!("status {}", head.status)));
    }
    let body = match Limited::new(body, REPLY_BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<LengthLimitError>() => {
            return Ok(own_answer(502, "The page is larger than 16 MiB.\n"));
        }
        Err(e) => return Err(ServiceError::NotHttp(with_causes(&*e))),
    };
    let headers = head
        .headers
        .iter()
        .filter(|(name, _)| !is_connection_header(name.as_str()))
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    Ok(HttpReply {
        status: head.status.as_u16(),
        headers,
        body: body.into(),
    })
}

/// The request as the service gets it; `None` if the ordered bytes are none.
pub(crate) fn service_request(execute: &Execute) -> Option<Request<Full<Bytes>>> {
    let ordered: HttpRequest = decode(&execute.request).ok()?;
    let mut request = Request::new(Full::new(Bytes::from(ordered.body)));
    *request.method_mut() = Method::from_bytes(ordered.method.as_bytes()).ok()?;
    *request.uri_mut() = ordered.target.parse::<Uri>().ok()?;
    let headers = request.headers_mut();
    for (name, value) in ordered.headers {
        if name.starts_with(RESERVED) || is_connection_header(&name) {
            continue;
        }
        // In lower case, as the names that were left out above.
        let name = HeaderName::from_lowercase(name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(&value).ok()?);
    }
    if !headers.contains_key(HOST) {
        headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(HEADER_TIME, HeaderValue::from(execute.time_us));
    headers.insert(
        HEADER_SEED,
        HeaderValue::from_str(&hex(&execute.seed)).ok()?,
    );
    let class = match execute.class {
        Class::Read => "read",
        Class::Write | Class::Scrub => "write",
    };
    headers.insert(HEADER_CLASS, HeaderValue::from_static(class));
    Some(request)
}

fn strip_reserved(mut answer: HttpReply) -> HttpReply {
    answer
        .headers
        .retain(|(name, _)| !name.starts_with(RESERVED));
    answer
}

pub(crate) fn reply(answer: &HttpReply) -> Outcome {
    Outcome::Reply(encode(answer).into())
}

pub(crate) fn own_answer(status: u16, text: &str) -> HttpReply {
    HttpReply {
        status,
        headers: vec![("content-type".into(), b"text/plain".to_vec())],
        body: text.into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::channel::RootRequest;
    use spare_protocol::Position;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn request(class: Class, target: &str) -> Execute {
        let http = HttpRequest {
            method: "GET".into(),
            target: target.into(),
            headers: vec![
                ("accept".into(), b"text/html".to_vec()),
                ("spare-time".into(), b"0".to_vec()),
            ],
            body: vec![],
        };
        Execute {
            position: Position(1),
            class,
            time_us: 1234,
            seed: [0xab; 32],
            root: RootRequest::No,
            request: encode(&http).into(),
        }
    }

    /// Answers every connection with `answer` and hands out what it was sent.
    async fn service(answer: Vec<u8>) -> (HttpService, tokio::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = Address::Tcp(listener.local_addr().expect("an address").to_string());
        let (tx, rx) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut seen).await.expect("a request") == 0 {
                        break;
                    }
                }
                let _ = tx.send(String::from_utf8_lossy(&seen).into_owned()).await;
                let _ = stream.write_all(&answer).await;
            }
        });
        let timeout = Duration::from_secs(5);
        (HttpService { address, timeout }, rx)
    }

    fn decoded(outcome: Outcome) -> HttpReply {
        match outcome {
            Outcome::Reply(bytes) => decode(&bytes).expect("a reply"),
            Outcome::WriteInRead => panic!("a reply"),
        }
    }

    #[tokio::test]
    async fn the_agreed_values_replace_what_the_client_claims() {
        let (service, mut seen) = service(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\npage".to_vec(),
        )
        .await;
        let outcome = service.execute(&request(Class::Write, "/a?b=c")).await;
        let reply = decoded(outcome.expect("a reply"));
        assert_eq!(
            (reply.status, reply.body.as_slice()),
            (200, b"page".as_slice())
        );
        assert_eq!(
            reply.headers,
            [("content-type".into(), b"text/html".to_vec())]
        );
        let sent = seen.recv().await.expect("a request");
        assert!(sent.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{sent}");
        assert!(sent.contains("spare-time: 1234\r\n"), "{sent}");
        assert!(!sent.contains("spare-time: 0\r\n"), "{sent}");
        assert!(
            sent.contains(&format!("spare-seed: {}\r\n", "ab".repeat(32))),
            "{sent}"
        );
        assert!(sent.contains("spare-class: write\r\n"), "{sent}");
    }

    #[tokio::test]
    async fn a_write_in_a_read_is_reported() {
        let answer = b"HTTP/1.1 500 No\r\nspare-write-in-read: 1\r\ncontent-length: 0\r\n\r\n";
        let (service, _seen) = service(answer.to_vec()).await;
        let outcome = service
            .execute(&request(Class::Read, "/"))
            .await
            .expect("an outcome");
        assert_eq!(outcome, Outcome::WriteInRead);
        let outcome = service
            .execute(&request(Class::Write, "/"))
            .await
            .expect("an outcome");
        assert!(decoded(outcome)
            .headers
            .iter()
            .all(|(n, _)| n != "spare-write-in-read"));
    }

    #[tokio::test]
    async fn garbage_and_silence_are_errors() {
        let (garbage, _seen) = service(b"hello there\r\n\r\n".to_vec()).await;
        let result = garbage.execute(&request(Class::Read, "/")).await;
        assert!(
            matches!(result, Err(ServiceError::NotHttp(_))),
            "{result:?}"
        );
        let (silent, _seen) = service(b"".to_vec()).await;
        let result = silent.execute(&request(Class::Read, "/")).await;
        assert!(
            matches!(result, Err(ServiceError::NotHttp(_))),
            "{result:?}"
        );
    }

    #[tokio::test]
    async fn a_request_that_is_not_http_is_answered_and_breaks_nothing() {
        let (service, _seen) = service(b"".to_vec()).await;
        let outcome = service
            .execute(&request(Class::Read, "no path"))
            .await
            .expect("an outcome");
        assert_eq!(decoded(outcome).status, 400);
    }

    #[tokio::test]
    async fn a_giant_page_is_answered_with_an_error_page() {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + REPLY_BODY_BYTES_MAX + 1, b'x');
        let (service, _seen) = service(answer).await;
        let outcome = service
            .execute(&request(Class::Read, "/"))
            .await
            .expect("an outcome");
        assert_eq!(decoded(outcome).status, 502);
    }
}
