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
/// The largest head of a reply: its headers, each with what separates it from the next.
const REPLY_HEAD_BYTES_MAX: usize = 256 << 10;
/// Bytes between a header's name and value, and after it.
const HEADER_SEPARATORS: usize = 4;
/// hyper's limit depends on how the bytes arrive, so it is beyond ours, which is the same at every replica.
const READ_BUFFER_BYTES_MAX: usize = 2 * REPLY_HEAD_BYTES_MAX;
/// The beginning of names that only manager and shim may give to headers.
const RESERVED: &str = "spare-";

/// The service and how it is reached.
#[derive(Clone, Debug)]
pub struct HttpService {
    address: Address,
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The service's reply, or one in its place.
    pub outcome: Outcome,
    /// The service did not reply: transactions of its may still be under way.
    pub unanswered: bool,
}

/// The service failed in a way that leaves the replica's position in doubt.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// It does not listen.
    #[error("cannot connect to the service at {0:?}: {1}")]
    Unreachable(Address, std::io::Error),
    /// It closed a request's connection, and listens no more.
    #[error("the service ended in the middle of a request: {0}")]
    Ended(String),
}

/// Why the client gets no reply of the service, which goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoReply {
    /// It replied, after its transactions, with what can't be passed on.
    #[error("the service's reply can't be passed on: {0}")]
    Unfit(String),
    /// It closed the connection.
    #[error("the service did not reply: {0}")]
    Missing(String),
}

/// From a connection that the service closed to the second look whether it listens: a process that ends closes
/// its sockets one after the other.
const END_PAUSE: Duration = Duration::from_millis(100);

impl HttpService {
    /// The service as it is configured.
    #[must_use]
    pub fn new(settings: &ServiceSettings) -> HttpService {
        HttpService {
            address: settings.address.clone(),
        }
    }

    /// Executes one ordered request.
    ///
    /// A request that is not valid HTTP, and a reply that can't be passed on or is missing, are answered here, by
    /// every correct replica in the same way: a client must not be able to break replicas. It takes as long as it takes: the
    /// managers end what takes too long, all at the same point of the order.
    ///
    /// # Errors
    /// When the service fails; what it did is then not known.
    pub async fn execute(&self, execute: &Execute) -> Result<Answer, ServiceError> {
        let Some(request) = service_request(execute) else {
            return Ok(answered(&own_answer(
                400,
                "The request is not valid HTTP.\n",
            )));
        };
        // Boxed, so that all callers run the same code: the warm-up's requests would leave a copy cold.
        let exchanged = self.exchange(request).boxed().await?;
        let reply = match exchanged {
            Ok(reply) => reply,
            Err(why) => return self.in_place_of_reply(&why).await,
        };
        let refused = reply.header(HEADER_WRITE_IN_READ) == Some(b"1");
        if refused && execute.class == Class::Read {
            return Ok(Answer {
                outcome: Outcome::WriteInRead,
                unanswered: false,
            });
        }
        Ok(answered(&strip_reserved(reply)))
    }

    /// The answer of a service that gave none, if it goes on.
    async fn in_place_of_reply(&self, why: &NoReply) -> Result<Answer, ServiceError> {
        eprintln!("spare-shim: {why}");
        let unanswered = matches!(why, NoReply::Missing(_));
        if unanswered {
            tokio::time::sleep(END_PAUSE).await;
            if !self.is_listening().await {
                return Err(ServiceError::Ended(why.to_string()));
            }
        }
        // The same words whatever exactly went wrong.
        let page = own_answer(502, "The service gave no reply that can be passed on.\n");
        Ok(Answer {
            unanswered,
            ..answered(&page)
        })
    }

    /// Whether the service accepts connections.
    pub async fn is_listening(&self) -> bool {
        match &self.address {
            Address::Unix(path) => UnixStream::connect(path).await.is_ok(),
            Address::Tcp(address) => TcpStream::connect(address).await.is_ok(),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Result<HttpReply, NoReply>, ServiceError> {
        let unreachable = |e| ServiceError::Unreachable(self.address.clone(), e);
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                Ok(exchange_over(stream, request).await)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(unreachable)?;
                Ok(exchange_over(stream, request).await)
            }
        }
    }
}

pub(crate) async fn exchange_over<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<HttpReply, NoReply>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let no_reply = |e: hyper::Error| match e.is_parse() {
        true => NoReply::Unfit(with_causes(&e)),
        false => NoReply::Missing(with_causes(&e)),
    };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(no_reply)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(no_reply)?;
        read_reply(response).await
    };
    tokio::pin!(exchange, connection);
    match select(exchange, connection).await {
        Either::Left((answer, _)) => answer,
        // The connection ends with the reply; what it read is there.
        Either::Right((_, exchange)) => exchange.await,
    }
}

async fn read_reply(response: Response<hyper::body::Incoming>) -> Result<HttpReply, NoReply> {
    let (head, body) = response.into_parts();
    if !(200..600).contains(&head.status.as_u16()) {
        return Err(NoReply::Unfit(format!("status {}", head.status)));
    }
    let header_bytes = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + HEADER_SEPARATORS
    };
    let head_bytes: usize = head.headers.iter().map(header_bytes).sum();
    if head_bytes > REPLY_HEAD_BYTES_MAX {
        return Err(NoReply::Unfit(format!("{head_bytes} bytes of headers")));
    }
    let body = match Limited::new(body, REPLY_BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<LengthLimitError>() => {
            return Ok(own_answer(502, "The page is larger than 16 MiB.\n"));
        }
        Err(e) => return Err(NoReply::Unfit(with_causes(&*e))),
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

fn strip_reserved(mut reply: HttpReply) -> HttpReply {
    reply
        .headers
        .retain(|(name, _)| !name.starts_with(RESERVED));
    reply
}

pub(crate) fn reply(answer: &HttpReply) -> Outcome {
    Outcome::Reply(encode(answer).into())
}

fn answered(answer: &HttpReply) -> Answer {
    Answer {
        outcome: reply(answer),
        unanswered: false,
    }
}

/// The answer to a write that was undone because of its size.
pub(crate) fn too_large(update_bytes_max: u64) -> Outcome {
    let text = format!(
        "The request changes more than the {update_bytes_max} bytes that one request may change. It was undone.\n"
    );
    reply(&own_answer(507, &text))
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
        (HttpService { address }, rx)
    }

    fn decoded(answer: Answer) -> HttpReply {
        match answer.outcome {
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
        assert_eq!(outcome.outcome, Outcome::WriteInRead);
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
    async fn a_reply_that_cannot_be_passed_on_is_answered_with_one_error_page() {
        let many = "x: y\r\n".repeat(spare_protocol::http::HEADERS_MAX + 1);
        let long = "y".repeat(REPLY_HEAD_BYTES_MAX);
        let longer = "y".repeat(2 * READ_BUFFER_BYTES_MAX);
        for reply in [
            "hello there\r\n\r\n".to_owned(),
            "HTTP/1.1 99 Low\r\n\r\n".to_owned(),
            "HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_owned(),
            "HTTP/1.1 666 High\r\ncontent-length: 0\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n"),
            format!("HTTP/1.1 200 OK\r\nx: {longer}\r\n\r\n"),
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort".to_owned(),
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz".to_owned(),
        ] {
            let (service, _seen) = service(reply.clone().into_bytes()).await;
            let answer = service.execute(&request(Class::Write, "/")).await;
            let answer = answer.expect("an answer");
            assert!(!answer.unanswered, "{reply:.60}");
            assert_eq!(decoded(answer).status, 502, "{reply:.60}");
        }
    }

    #[tokio::test]
    async fn a_service_that_hangs_up_is_answered_for_if_it_goes_on() {
        let (silent, _seen) = service(b"".to_vec()).await;
        let answer = silent.execute(&request(Class::Write, "/")).await;
        let answer = answer.expect("an answer");
        assert!(answer.unanswered);
        assert_eq!(decoded(answer).status, 502);
    }

    #[tokio::test]
    async fn a_service_that_ends_or_is_gone_leaves_the_position_in_doubt() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let service = HttpService {
            address: Address::Tcp(listener.local_addr().expect("an address").to_string()),
        };
        let ends = tokio::spawn(async move {
            let _ = listener.accept().await;
        });
        let ended = service.execute(&request(Class::Write, "/")).await;
        assert!(matches!(ended, Err(ServiceError::Ended(_))), "{ended:?}");
        ends.await.expect("no panic");
        let gone = service.execute(&request(Class::Write, "/")).await;
        assert!(
            matches!(gone, Err(ServiceError::Unreachable(..))),
            "{gone:?}"
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
