//! The liar in front of a small HTTP service, both as they run in a guest.

#![allow(clippy::unwrap_used)] // a test may panic

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: &str = "<main>price 10.00</main>";
const WRONG_PAGE: &str = "<main>price 20.00</main>";

/// A service that answers every request with [`PAGE`], and a liar that took its place.
struct Lied {
    folder: PathBuf,
    liar: Child,
}

impl Lied {
    fn start(name: &str, arguments: &[&str]) -> Lied {
        let folder = std::env::temp_dir().join(format!("spare-liar-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let socket = folder.join("http.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o620)).unwrap();
        thread::spawn(move || {
            for connection in listener.incoming() {
                serve_page(connection.unwrap());
            }
        });
        let liar = Command::new(env!("CARGO_BIN_EXE_spare-attacker"))
            .arg("liar")
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .current_dir(&folder)
            .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
            .spawn()
            .unwrap();
        let lied = Lied { folder, liar };
        lied.wait_until_taken_over();
        lied
    }

    /// The last step of taking over is a socket with another inode than the real one.
    fn wait_until_taken_over(&self) {
        use std::os::unix::fs::MetadataExt;
        let inode = |file| fs::metadata(self.folder.join(file)).map(|m| m.ino()).ok();
        let started = Instant::now();
        while inode("http.sock.real").is_none() || inode("http.sock") == inode("http.sock.real") {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "the liar did not take over"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn get(&self) -> String {
        page_of(
            "GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
            &self.socket(),
        )
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("http.sock")
    }
}

impl Drop for Lied {
    fn drop(&mut self) {
        self.liar.kill().unwrap();
        self.liar.wait().unwrap();
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

fn serve_page(mut connection: UnixStream) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    let reply = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{PAGE}",
        PAGE.len()
    );
    connection.write_all(reply.as_bytes()).unwrap();
}

fn page_of(request: &str, socket: &Path) -> String {
    let mut connection = UnixStream::connect(socket).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).unwrap();
    reply.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn always_changes_every_page() {
    let lied = Lied::start("always", &["--mode", "always"]);
    assert_eq!([lied.get(), lied.get()], [WRONG_PAGE, WRONG_PAGE]);
    let mode = fs::metadata(lied.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o620, "the real socket's mode");
}

#[test]
fn once_changes_one_page() {
    let lied = Lied::start("once", &["--mode", "once"]);
    assert_eq!([lied.get(), lied.get()], [WRONG_PAGE, PAGE]);
}

#[test]
fn an_armed_liar_waits_for_its_file_and_lies_once_for_each() {
    let lied = Lied::start("armed", &["--mode", "once", "--arm", "now"]);
    assert_eq!(lied.get(), PAGE);
    for _ in 0..2 {
        fs::write(lied.folder.join("now"), "").unwrap();
        assert_eq!([lied.get(), lied.get()], [WRONG_PAGE, PAGE]);
    }
}

#[test]
fn late_is_wrong_after_its_delay() {
    let lied = Lied::start("late", &["--mode", "late", "--delay-ms", "300"]);
    let started = Instant::now();
    assert_eq!(lied.get(), WRONG_PAGE);
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[test]
fn hang_takes_the_request_and_never_answers() {
    let lied = Lied::start("hang", &["--mode", "hang"]);
    let mut connection = UnixStream::connect(lied.socket()).unwrap();
    connection.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let half_a_second = Some(Duration::from_millis(500));
    connection.set_read_timeout(half_a_second).unwrap();
    let error = connection.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

/// In the place of `psql` is a program that notes what it was told.
#[test]
fn update_tampers_before_a_post_and_not_before_a_get() {
    let lied = Lied::start("update", &["--mode", "update", "--sql", "UPDATE x"]);
    let psql = lied.folder.join("psql");
    fs::write(&psql, "#!/bin/sh\necho \"$@\" >>psql.log\n").unwrap();
    fs::set_permissions(psql, fs::Permissions::from_mode(0o755)).unwrap();

    assert_eq!(lied.get(), PAGE);
    let log = lied.folder.join("psql.log");
    assert!(!log.exists(), "tampered before a GET");
    let post = "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(page_of(post, &lied.socket()), PAGE);
    assert!(fs::read_to_string(log).unwrap().ends_with("UPDATE x\n"));
}
