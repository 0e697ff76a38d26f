//! What a manager does that was taken over. This program, started once more as an ordinary user: each attack is named
//! on the command line, and what came of it is printed, a line for each attempt.

use futures_util::future::join_all;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use zbus::zvariant::{DynamicType, OwnedFd};
use zbus::Proxy;

const NAME: &str = "org.spare.Agent1";
const PATH: &str = "/org/spare/Agent1";
/// The variable of the environment that makes this program the manager.
pub(crate) const ATTACK: &str = "SPARE_TEST_ATTACK";
/// What is printed of an attempt that succeeded.
pub(crate) const DONE: &str = "done";

/// An attack, and what it takes.
pub(crate) async fn attack(name: &str, arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (name, arguments.as_slice()) {
        ("create", [socket, replica, image]) => {
            let created = call(&connect(socket).await, "Create", &(*replica, *image)).await;
            println!("{created}");
        }
        ("create-many", [socket, count]) => create_many(socket, count.parse().unwrap()).await,
        ("destroy", [socket, replica]) => {
            println!(
                "{}",
                call(&connect(socket).await, "Destroy", &(*replica,)).await
            );
        }
        ("prioritise", [socket, replica, nice]) => {
            let nice: i32 = nice.parse().unwrap();
            let done = call(&connect(socket).await, "Prioritise", &(*replica, nice)).await;
            println!("{done}");
        }
        ("odd-names", [socket, foreign]) => odd_names(socket, foreign).await,
        ("read", paths) => paths.iter().for_each(|path| read(Path::new(path))),
        ("run", [program]) => run(program),
        ("exchange", [socket, victim]) => exchange(Path::new(socket), Path::new(victim)),
        other => panic!("no such attack: {other:?}"),
    }
}

async fn connect(socket: &str) -> Proxy<'static> {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let connection = zbus::connection::Builder::unix_stream(stream)
        .p2p()
        .build()
        .await
        .unwrap();
    zbus::proxy::Builder::new(&connection)
        .destination(NAME)
        .unwrap()
        .path(PATH)
        .unwrap()
        .interface(NAME)
        .unwrap()
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .unwrap()
}

/// What came of a call: [`DONE`], or the error's name and text.
async fn call<B: serde::Serialize + DynamicType>(
    agent: &Proxy<'_>,
    method: &str,
    body: &B,
) -> String {
    said(agent.call::<_, _, ()>(method, body).await)
}

fn said<T>(result: zbus::Result<T>) -> String {
    match result {
        Ok(_) => DONE.to_owned(),
        Err(zbus::Error::MethodError(name, text, _)) => {
            let name = name.as_str().trim_start_matches("org.spare.Agent1.Error.");
            format!("{name}: {}", text.unwrap_or_default())
        }
        Err(other) => format!("no answer: {other}"),
    }
}

/// So many replicas at once.
async fn create_many(socket: &str, count: u32) {
    let agent = connect(socket).await;
    let calls = (1..=count).map(|generation| {
        let agent = agent.clone();
        async move {
            let replica = format!("0.{generation}");
            call(&agent, "Create", &(replica.as_str(), "tiny")).await
        }
    });
    for result in join_all(calls).await {
        println!("{result}");
    }
}

/// Names that are no replica's of this service, to every method that takes one; and of images.
async fn odd_names(socket: &str, foreign: &str) {
    let agent = connect(socket).await;
    let long = "9".repeat(100_000);
    let names = [
        "", "..", "../0.1", "0.1/..", "/0.1", "0.01", "0.1\n", "0.-1", "*", foreign, &long,
    ];
    for name in names {
        for method in ["Pause", "Unpause", "Calm", "Destroy", "Quarantine", "Usage"] {
            println!("{}", call(&agent, method, &(name,)).await);
        }
        println!("{}", call(&agent, "Prioritise", &(name, 5)).await);
        println!("{}", call(&agent, "Create", &(name, "tiny")).await);
        println!("{}", call(&agent, "Create", &("0.1", name)).await);
        let opened: zbus::Result<OwnedFd> =
            agent.call("OpenChannel", &(name, "org.spare.shim.0")).await;
        println!("{}", said(opened));
    }
}

fn read(path: &Path) {
    let read = match path.is_dir() {
        true => std::fs::read_dir(path).map(drop),
        false => std::fs::read(path).map(drop),
    };
    println!("{}", read.map_or_else(|e| e.to_string(), |()| DONE.into()));
}

/// Prints what the program does, by whose rights it runs if it is `id`.
fn run(program: &str) {
    match Command::new(program).output() {
        Ok(output) => println!("{DONE}: {}", String::from_utf8_lossy(&output.stdout)),
        Err(e) => println!("{e}"),
    }
}

/// Puts a link to `victim` in the place of the socket whenever there is one, for a while.
fn exchange(socket: &Path, victim: &Path) {
    let link: PathBuf = socket.with_extension("link");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        let is_socket = std::fs::symlink_metadata(socket).is_ok_and(|is| !is.is_symlink());
        if is_socket && std::os::unix::fs::symlink(victim, &link).is_ok() {
            // It may be gone by now.
            let _ = std::fs::rename(&link, socket);
        }
    }
    println!("{DONE}");
}
