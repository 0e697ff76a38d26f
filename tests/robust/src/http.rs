//! What is right in HTTP, over the whole way to the demo service and back. Every case that there is stands in the
//! gateway's own tests; here are those whose answer depends on what is behind it.

use crate::suite::Suite;
use crate::trial;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// For an answer, on a machine that is busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Bodies that are begun and never come.
const WAITING_BODIES: usize = 1030;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_client_that_ends_its_sending_side_gets_its_reply",
            half_closed,
        ),
        trial("head_is_answered_as_get_without_the_page", head),
        trial("a_request_without_exactly_one_host_gets_400", hosts),
        trial(
            "headers_that_only_spare_writes_do_not_reach_the_service",
            reserved_headers,
        ),
        trial(
            "bodies_that_never_come_keep_nobody_from_being_served",
            waiting_bodies,
        ),
    ]
}

fn connect(suite: &Suite) -> Result<TcpStream> {
    let stream = TcpStream::connect(suite.gateway()?)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

/// What comes on a connection that is closed after the request, or by it.
fn exchange(suite: &Suite, request: &str) -> Result<(String, String)> {
    let mut stream = connect(suite)?;
    Write::write_all(&mut stream, request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let (head, body) = reply
        .split_once("\r\n\r\n")
        .with_context(|| format!("no reply to {request:?}: {reply:?}"))?;
    Ok((head.to_owned(), body.to_owned()))
}

async fn half_closed(suite: &mut Suite) -> Result<()> {
    let (head, body) = exchange(suite, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    ensure!(
        head.starts_with("HTTP/1.1 200") && body.contains("<main"),
        "{head}\n{body}"
    );
    Ok(())
}

async fn head(suite: &mut Suite) -> Result<()> {
    let ask = |method: &str| {
        exchange(
            suite,
            &format!("{method} /categories HTTP/1.1\r\nHost: shop\r\n\r\n"),
        )
    };
    let [(get, page), (head, nothing)] = [ask("GET")?, ask("HEAD")?];
    ensure!(
        nothing.is_empty() && !page.is_empty(),
        "HEAD has a body: {nothing}"
    );
    // The date, and the place in the order, are the reply's own.
    let plain = |head: &str| {
        let lines = head.lines();
        let lines = lines.filter(|l| !l.starts_with("date:") && !l.starts_with("spare-position:"));
        lines.collect::<Vec<_>>().join("\n")
    };
    ensure!(plain(&get) == plain(&head), "{get}\n\n{head}");
    ensure!(
        head.contains(&format!("content-length: {}", page.len())),
        "{head}"
    );
    Ok(())
}

async fn hosts(suite: &mut Suite) -> Result<()> {
    for head in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
        "GET http://evil/ HTTP/1.1\r\nHost: shop\r\n",
    ] {
        let (head, _) = exchange(suite, &format!("{head}\r\n"))?;
        ensure!(head.starts_with("HTTP/1.1 400"), "{head}");
    }
    Ok(())
}

/// The service takes the class from a header: a write that it takes for a read would change nothing.
async fn reserved_headers(suite: &mut Suite) -> Result<()> {
    let form = "item=1&nickname=user1&password=password1&to=2&rating=5&comment=kept";
    let request = format!(
        "POST /comment HTTP/1.1\r\nHost: shop\r\nSpare_Class: read\r\nSpare-Class: read\r\nSpare_Time: 1\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let (head, body) = exchange(suite, &request)?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
    let (_, page) = exchange(suite, "GET /user?id=2 HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    ensure!(page.contains(">kept<"), "{page}");
    Ok(())
}

async fn waiting_bodies(suite: &mut Suite) -> Result<()> {
    let mut waiting = Vec::new();
    // From two addresses: one may not have so many connections.
    for number in 0..WAITING_BODIES {
        let address = std::net::Ipv4Addr::new(127, 0, 1, if number % 2 == 0 { 1 } else { 2 });
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((address, 0).into())?;
        let mut stream = socket.connect(suite.gateway()?).await?;
        let head = b"POST /bid HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n";
        stream.write_all(head).await?;
        waiting.push(stream);
    }
    let begun = Instant::now();
    let (head, _) = exchange(suite, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    ensure!(
        begun.elapsed() < Duration::from_secs(1),
        "it took {:?}",
        begun.elapsed()
    );
    Ok(())
}
