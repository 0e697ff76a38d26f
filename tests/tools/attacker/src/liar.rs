//! A service that lies: takes the place of the real one and passes requests on to it, except for its
//! misdeeds.

use crate::http::Message;
use anyhow::{ensure, Context, Result};
use nix::unistd::{chown, Gid, Uid};
use std::fs;
use std::io::{BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A change to the database that no page shows.
pub(crate) const WRONG_UPDATE: &str =
    "UPDATE items SET reserve_price = reserve_price + 1 WHERE id = (SELECT max(id) FROM items)";

/// How long a connection that is never to be answered is kept open.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What the liar does to requests that pass through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Every page is wrong, after this time.
    WrongPage(Duration),
    /// The next page is wrong, then none any more.
    OneWrongPage,
    /// Before a POST is passed on, this SQL is executed.
    WrongUpdate(String),
    /// No request is answered.
    Hang,
}

/// A liar in front of one service.
pub(crate) struct Liar {
    socket: PathBuf,
    real: PathBuf,
    deed: Deed,
    arm: Option<PathBuf>,
    has_lied: AtomicBool,
}

impl Liar {
    /// A liar that will take the place of the service at `socket` and, given `arm`, behaves while
    /// that file does not exist.
    pub(crate) fn new(socket: PathBuf, deed: Deed, arm: Option<PathBuf>) -> Liar {
        let mut real = socket.clone().into_os_string();
        real.push(".real");
        Liar {
            socket,
            real: real.into(),
            deed,
            arm,
            has_lied: AtomicBool::new(false),
        }
    }

    /// Takes the service's place and stays there.
    pub(crate) fn run(self) -> Result<()> {
        let listener = self.take_over()?;
        let liar = Arc::new(self);
        for connection in listener.incoming() {
            let connection = connection.context("cannot accept")?;
            let liar = liar.clone();
            thread::Builder::new()
                .spawn(move || {
                    // Whatever goes wrong, the caller sees a connection that broke.
                    let _ = liar.serve(connection);
                })
                .context("cannot start a thread")?;
        }
        Ok(())
    }

    /// Puts a socket of our own in the place of the service's, in one step and with the same owner
    /// and mode. If another liar was here before, its socket is replaced and the real one stays where
    /// that one put it.
    fn take_over(&self) -> Result<UnixListener> {
        let socket = self.socket.display();
        let before = fs::metadata(&self.socket)
            .with_context(|| format!("there is no {socket}: does the service run?"))?;
        let own = self
            .socket
            .with_extension(format!("{}", std::process::id()));
        let listener = UnixListener::bind(&own)
            .with_context(|| format!("cannot listen at {}", own.display()))?;
        fs::set_permissions(&own, before.permissions())?;
        let (user, group) = (Uid::from_raw(before.uid()), Gid::from_raw(before.gid()));
        chown(&own, Some(user), Some(group))?;
        if !self.real.exists() {
            fs::hard_link(&self.socket, &self.real)
                .with_context(|| format!("cannot move {socket} aside"))?;
        }
        fs::rename(&own, &self.socket).with_context(|| format!("cannot replace {socket}"))?;
        Ok(listener)
    }

    /// Serves one connection: one request.
    fn serve(&self, mut caller: UnixStream) -> Result<()> {
        let request = Message::read_request(&mut BufReader::new(&caller))?;
        match &self.deed {
            Deed::Hang if self.is_armed() => thread::sleep(FOR_EVER),
            Deed::WrongUpdate(sql) if request.is_method("POST") && self.is_armed() => tamper(sql)?,
            _ => {}
        }
        let mut reply = forward(&self.real, &request)?;
        self.falsify(&mut reply);
        caller.write_all(&reply.to_bytes())?;
        Ok(())
    }

    fn falsify(&self, reply: &mut Message) {
        match &self.deed {
            Deed::WrongPage(delay) if self.is_armed() => {
                thread::sleep(*delay);
                flip_digit(&mut reply.body);
            }
            Deed::OneWrongPage if self.claims_the_one_lie() => {
                flip_digit(&mut reply.body);
            }
            _ => {}
        }
    }

    fn is_armed(&self) -> bool {
        self.arm.as_ref().is_none_or(|file| file.exists())
    }

    /// Whether this caller is the one that is lied to. Of several at a time only one removes the file.
    fn claims_the_one_lie(&self) -> bool {
        match &self.arm {
            Some(file) => fs::remove_file(file).is_ok(),
            None => !self.has_lied.swap(true, Ordering::Relaxed),
        }
    }
}

/// Executes a request at the real service.
fn forward(service: &Path, request: &Message) -> Result<Message> {
    let mut connection = UnixStream::connect(service)?;
    connection.write_all(&request.to_bytes())?;
    Message::read_reply(&mut BufReader::new(connection))
}

/// Changes the database, as its superuser.
fn tamper(sql: &str) -> Result<()> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--host=/run/postgresql"])
        .args(["--username=postgres", "--dbname=auction", "--command", sql])
        .output()
        .context("cannot start psql")?;
    ensure!(
        output.status.success(),
        "psql: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Makes a page wrong: its first digit within `<main`, or else its first digit, becomes the next one.
/// A page without a digit gets one.
fn flip_digit(page: &mut Vec<u8>) {
    let main = page.windows(5).position(|window| window == b"<main");
    let digit_from = |start: usize| (start..page.len()).find(|&i| page[i].is_ascii_digit());
    match digit_from(main.unwrap_or(0)).or_else(|| digit_from(0)) {
        Some(at) => page[at] = b'0' + (page[at] - b'0' + 1) % 10,
        None => page.push(b'1'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flipped(page: &str) -> String {
        let mut page = page.as_bytes().to_vec();
        flip_digit(&mut page);
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn a_lie_changes_one_digit_of_the_content() {
        assert_eq!(flipped("3<main>9.50</main>"), "3<main>0.50</main>");
        assert_eq!(flipped("3<main></main>"), "4<main></main>");
        assert_eq!(flipped("no digit"), "no digit1");
    }
}
