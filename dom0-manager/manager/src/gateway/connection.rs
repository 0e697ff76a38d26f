//! One client's connection, from its first byte to its end.

use super::addresses::Share;
use super::pace::{Cut, Paced};
use super::places::{Phase, Place};
use super::reply::{refuse, unavailable, Reply};
use super::Clients;
use crate::config::Gateway;
use hyper::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::StatusCode;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// For a client to take a last short answer.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);
/// For a client to read the last answer, while what it still sends is thrown away: if its bytes met a closed socket,
/// the answer would be lost to it.
const LINGER_LIMIT: Duration = Duration::from_secs(2);
/// So much is thrown away.
const LINGER_BYTES_MAX: usize = 4 << 20;
/// So many bytes the kernel keeps for a client that does not take them. Whatever is in flight comes on top.
const UNSENT_BYTES_MAX: u32 = 16 << 10;

/// HTTP/1.1 within the limits for one connection. How slow a client may be is watched over by [`Paced`].
pub(crate) fn http(limits: &Gateway) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        // Who has nothing more to say may still wait for the reply.
        .half_close(true)
        .max_buf_size(limits.header_bytes_max);
    builder
}

/// Serves a client until one of both ends the connection.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: IpAddr,
    clients: Arc<Clients>,
    place: Place,
    share: Option<Share>,
) {
    let (limits, all) = (Arc::clone(&clients.limits), Arc::clone(&clients));
    if let Err(error) = prepare(&stream, &limits) {
        tracing::debug!("a connection cannot be used: {error}");
        return;
    }
    let (stream, place) = (Arc::new(stream), Arc::new(place));
    let budget = clients.requests.clone();
    let paced = Paced::new(
        Arc::clone(&stream),
        Arc::clone(&place),
        Arc::clone(&limits),
        budget,
    );
    let its_place = Arc::clone(&place);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        its_place.enter(if request.body().is_end_stream() {
            Phase::Busy
        } else {
            Phase::Body
        });
        let (clients, place) = (Arc::clone(&clients), Arc::clone(&its_place));
        async move { Ok::<_, Infallible>(clients.handle(request, peer, &place).await) }
    });
    let mut connection = http(&limits).serve_connection(TokioIo::new(paced), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = place.closing() => {
            let answered = connection.into_parts().io.into_inner().answered();
            return give_way(&stream, &place, answered).await;
        }
        () = gone(&stream) => return,
    };
    let paced = connection.into_parts().io.into_inner();
    let (cut, answered, client_ended) = (paced.cut(), paced.answered(), paced.ended());
    drop(paced);
    if let Err(error) = &ended {
        tracing::debug!("a client's connection ended: {error}");
    }
    match (cut, ended) {
        (Some(Cut::Slow(Phase::Writing)), _) => reset(&stream),
        (Some(Cut::Slow(Phase::Head)), _) => {
            // Those who came together are not refused together.
            place.enter(Phase::Idle);
            tokio::select! {
                () = all.refusal_may_leave() => {}
                () = place.closing() => return,
            }
            say(&stream, too_slow(&limits)).await;
        }
        (Some(Cut::NoRoom), _) => say(&stream, no_room(&limits)).await,
        // Without a word: nothing was asked.
        (Some(Cut::Slow(Phase::Idle)), _) => return,
        // hyper answers whatever is no HTTP, but not what is HTTP/2.
        (None, Err(error)) if error.is_parse() && !answered => say(&stream, other_version()).await,
        _ => {}
    }
    if !client_ended {
        place.enter(Phase::Idle);
        tokio::select! {
            () = linger(&stream) => {}
            () = place.closing() => {}
        }
    }
    drop(share);
}

fn prepare(stream: &TcpStream, limits: &Gateway) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    // Also for what the kernel sends when the connection is closed.
    socket.set_tcp_user_timeout(Some(Duration::from_millis(limits.write_timeout_ms)))
}

/// Returns when the client is gone: its machine answers with a reset. One that ended its sending side is not.
async fn gone(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::ERROR).await {
            Ok(ready) if !ready.is_error() => tokio::task::yield_now().await,
            _ => return,
        }
    }
}

/// The connection has to go because others need its place or its bytes.
async fn give_way(stream: &TcpStream, place: &Place, answered: bool) {
    match place.phase() {
        Phase::Head | Phase::Body if !answered => {
            let why = "others need the room that this slow connection takes";
            say(stream, unavailable(why)).await;
        }
        Phase::Writing => reset(stream),
        _ => {}
    }
}

/// What is not sent yet is not kept for the client either.
fn reset(stream: &TcpStream) {
    // It is closed in any case.
    let _ = stream.set_zero_linger();
}

fn too_slow(limits: &Gateway) -> Reply {
    let why = format!(
        "nothing of the request line and headers arrived for {} ms, or they came too slowly \
         (gateway.header_timeout_ms, gateway.bytes_per_s_min)",
        limits.header_timeout_ms
    );
    refuse(StatusCode::REQUEST_TIMEOUT, &why)
}

fn no_room(limits: &Gateway) -> Reply {
    unavailable(&format!(
        "requests of {} bytes are being received and under way already (gateway.requests_bytes_max)",
        limits.requests_bytes_max
    ))
}

fn other_version() -> Reply {
    let why = "this is a gateway for HTTP/1.1";
    refuse(StatusCode::HTTP_VERSION_NOT_SUPPORTED, why)
}

/// Last words to a client, if it takes them soon.
pub(super) async fn say(stream: &TcpStream, reply: Reply) {
    let bytes = reply.into_last_bytes();
    let all = async {
        let mut left = &bytes[..];
        while !left.is_empty() {
            stream.writable().await?;
            match stream.try_write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    // A client that does not take it is told nothing.
    let _ = tokio::time::timeout(LAST_WORDS_LIMIT, all).await;
}

/// Ends the sending side and reads on for a while.
pub(super) async fn linger(stream: &TcpStream) {
    // It may be ended already, or the client be gone.
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
    let discard = async {
        let mut buffer = [0; 16 << 10];
        let mut discarded = 0;
        while discarded < LINGER_BYTES_MAX {
            if stream.readable().await.is_err() {
                return;
            }
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => discarded += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER_LIMIT, discard).await;
}
