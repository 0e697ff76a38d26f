//! The Unix socket: who may connect, and what runs for each connection.
//!
//! The socket is made in a folder to which only root can write, and given to the manager's user there. In a folder of
//! that user it could be exchanged for a link in between, and whatever the link leads to would be given away.

use crate::dbus::{Agent, PATH};
use crate::error::{Error, Result};
use crate::pids::Process;
use crate::trusted::Folder;
use nix::errno::Errno;
use nix::sys::socket::{
    bind, getsockopt, listen, socket, sockopt::PeerCredentials, AddressFamily, Backlog, SockFlag,
    SockType, UnixAddr,
};
use nix::sys::stat::{fchmod, Mode};
use nix::unistd::{Uid, User};
use std::ffi::{OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use zbus::object_server::SignalEmitter;

/// Connections at once: a manager, its successor, and an operator who looks on, several times over.
const CONNECTIONS_MAX: usize = 16;
/// A peer has this long to authenticate itself.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after the system could not accept a connection, usually for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The listening socket. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    folder: Folder,
    /// Of the socket in the folder.
    name: OsString,
    manager: Uid,
}

impl Server {
    /// Listens at `socket` for `manager` and root.
    pub fn bind(socket: &Path, manager: Uid) -> Result<Server> {
        let what = format!("cannot listen at {}", socket.display());
        let (Some(above), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(Error::failed(what, "it names no file"));
        };
        let folder = Folder::make(above).map_err(|e| Error::failed(&what, e))?;
        make_way(&folder, name, &what)?;
        let listener = bind_private(&folder.entry(name)).map_err(|e| Error::failed(&what, e))?;
        let server = Server {
            listener: UnixListener::from_std(listener).map_err(|e| Error::failed(&what, e))?,
            folder,
            name: name.to_owned(),
            manager,
        };
        let given = server.folder.give_socket(name, manager);
        given.map_err(|e| Error::failed(&what, e))?;
        Ok(server)
    }

    /// Serves connections until the future is dropped.
    pub async fn run(&self, agent: Agent) {
        let connections = Arc::new(AtomicUsize::new(0));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let manager = match admit(&stream, self.manager) {
                Ok(process) => process,
                Err(why) => {
                    tracing::warn!("a connection was refused: {why}");
                    continue;
                }
            };
            let slot = Slot::take(&connections);
            if connections.load(Ordering::Relaxed) > CONNECTIONS_MAX {
                tracing::warn!("a connection was refused: {CONNECTIONS_MAX} are open");
                continue;
            }
            let agent = agent.for_manager(manager);
            tokio::spawn(async move {
                if let Err(e) = serve(stream, agent).await {
                    tracing::warn!("a connection ended: {e}");
                }
                drop(slot);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing more can be done about one that cannot be removed.
        let _ = self.folder.remove(&self.name);
    }
}

/// Counts a connection as long as it lives.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(count: &Arc<AtomicUsize>) -> Slot {
        count.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(count))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The user who may connect.
pub fn user_id(name: &str) -> Result<Uid> {
    let what = format!("manager_user \"{name}\"");
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid),
        Ok(None) => Err(Error::failed(
            what,
            format!("there is no such user; create it (useradd --system {name}) or name another"),
        )),
        Err(e) => Err(Error::failed(what, e)),
    }
}

/// Removes the socket that a dead agent left; a live one's is an error.
fn make_way(folder: &Folder, name: &OsStr, what: &str) -> Result<()> {
    if StdUnixStream::connect(folder.entry(name)).is_ok() {
        return Err(Error::failed(
            what,
            "another process serves this socket; stop it, or set another socket",
        ));
    }
    folder.remove(name).map_err(|e| Error::failed(what, e))
}

/// A listening socket that is its owner's alone from the moment it exists: its file gets the mode that the socket
/// has before (unix(7)).
fn bind_private(path: &Path) -> std::io::Result<StdUnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(made.as_raw_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(made.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&made, Backlog::new(128)?)?;
    Ok(made.into())
}

/// Who may not connect, or cannot be known.
#[derive(Debug, thiserror::Error)]
enum NotAdmitted {
    #[error("{0}")]
    Unknown(Errno),
    #[error("user {user} of process {process} is neither the manager nor root")]
    Foreign { user: u32, process: i32 },
}

/// Checks who is at the other end; its process, if it can be told here.
fn admit(
    stream: &UnixStream,
    manager: Uid,
) -> std::result::Result<Option<Arc<Process>>, NotAdmitted> {
    let peer = getsockopt(stream, PeerCredentials).map_err(NotAdmitted::Unknown)?;
    let user = Uid::from_raw(peer.uid());
    if !may_connect(user, manager) {
        return Err(NotAdmitted::Foreign {
            user: peer.uid(),
            process: peer.pid(),
        });
    }
    // 0 for a process in another namespace.
    let pid = u32::try_from(peer.pid()).ok().filter(|pid| *pid > 0);
    let process = pid.and_then(|pid| Process::open(pid).ok());
    // It may have ended since it connected, and its number be another user's process's.
    let process = process.filter(|process| process.user().is_ok_and(|now| now == user));
    Ok(process.map(Arc::new))
}

/// Root and the manager may.
fn may_connect(peer: Uid, manager: Uid) -> bool {
    peer.is_root() || peer == manager
}

/// Serves one connection until the peer hangs up.
async fn serve(stream: UnixStream, agent: Agent) -> zbus::Result<()> {
    let mut events = agent.events();
    let builder = zbus::connection::Builder::unix_stream(stream)
        .server(zbus::Guid::generate())?
        .p2p()
        .serve_at(PATH, agent)?;
    let connection = tokio::time::timeout(HANDSHAKE, builder.build())
        .await
        .map_err(|_| zbus::Error::Handshake("the peer took too long".to_owned()))??;
    let emitter = SignalEmitter::new(&connection, PATH)?;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = connection.closed() => return Ok(()),
        };
        match event {
            Ok(change) => {
                let replica = change.replica.to_string();
                Agent::state_changed(&emitter, &replica, change.state.name(), change.reason)
                    .await?;
            }
            // A peer that does not read loses its connection: it would act on old news.
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!("a connection is closed: it missed {missed} state changes");
                return connection.close().await;
            }
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timeouts;
    use crate::dbus::INTERFACE;
    use crate::double::{Double, GREETING, HANGS, IMAGE};
    use crate::scratch::Scratch;
    use crate::workers::Workers;
    use futures_util::StreamExt;
    use std::io::Read;
    use std::path::PathBuf;
    use std::time::Instant;
    use zbus::zvariant::OwnedFd;
    use zbus::{Connection, Proxy};

    /// A server over the double, and the folder of its socket.
    fn start(name: &str, timeouts: &str) -> (Scratch, PathBuf) {
        let scratch = Scratch::new(name);
        let socket = scratch.path().join("agent.sock");
        let server = Server::bind(&socket, Uid::current()).unwrap();
        let timeouts: Timeouts = toml::from_str(timeouts).unwrap();
        let agent = Agent::new(Workers::new(Arc::new(Double::new())), timeouts);
        tokio::spawn(async move { server.run(agent).await });
        (scratch, socket)
    }

    async fn connect(socket: &Path) -> Connection {
        let stream = UnixStream::connect(socket).await.unwrap();
        zbus::connection::Builder::unix_stream(stream)
            .p2p()
            .build()
            .await
            .unwrap()
    }

    async fn proxy(connection: &Connection) -> Proxy<'static> {
        zbus::proxy::Builder::new(connection)
            .destination(INTERFACE)
            .unwrap()
            .path(PATH)
            .unwrap()
            .interface(INTERFACE)
            .unwrap()
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .unwrap()
    }

    fn error_name(error: zbus::Error) -> String {
        match error {
            zbus::Error::MethodError(name, _, _) => name.to_string(),
            other => panic!("not a method's error: {other}"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_connection_hears_what_any_of_them_does() {
        let (_scratch, socket) = start("server-signals", "");
        let (one, two) = (connect(&socket).await, connect(&socket).await);
        let (one, two) = (proxy(&one).await, proxy(&two).await);
        let mut heard = two.receive_signal("StateChanged").await.unwrap();
        // The second connection has answered something, so its signals are on.
        let none: Vec<(String, String)> = two.call("List", &()).await.unwrap();
        assert!(none.is_empty());
        let () = one.call("Create", &("0.1", IMAGE)).await.unwrap();
        let () = one.call("Pause", &("0.1",)).await.unwrap();
        for expected in [("running", "created"), ("paused", "paused")] {
            let signal = heard.next().await.unwrap();
            let (replica, state, reason): (String, String, String) =
                signal.body().deserialize().unwrap();
            assert_eq!(replica, "0.1");
            assert_eq!((state.as_str(), reason.as_str()), expected);
        }
        let listed: Vec<(String, String)> = two.call("List", &()).await.unwrap();
        assert_eq!(listed, [("0.1".to_owned(), "paused".to_owned())]);
        let folder: String = one.call("Quarantine", &("0.1",)).await.unwrap();
        assert_eq!(folder, "/quarantine/0.1");
        let (_, accelerator): (String, String) = two.call("Host", &()).await.unwrap();
        assert_eq!(accelerator, "tcg");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_channel_arrives_as_a_connected_socket() {
        let (_scratch, socket) = start("server-channel", "");
        let connection = connect(&socket).await;
        let agent = proxy(&connection).await;
        let () = agent.call("Create", &("0.1", IMAGE)).await.unwrap();
        let channel: OwnedFd = agent
            .call("OpenChannel", &("0.1", "org.spare.shim.0"))
            .await
            .unwrap();
        let mut text = Vec::new();
        let fd: std::os::fd::OwnedFd = channel.into();
        StdUnixStream::from(fd).read_to_end(&mut text).unwrap();
        assert_eq!(text, GREETING);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn errors_have_names_of_their_own() {
        let (_scratch, socket) = start("server-errors", "");
        let connection = connect(&socket).await;
        let agent = proxy(&connection).await;
        let cases: [(&str, (&str, &str), &str); 3] = [
            ("Create", ("../etc", IMAGE), "InvalidName"),
            ("Create", ("0.1", "unknown"), "NoSuchImage"),
            ("OpenChannel", ("x", "y"), "InvalidName"),
        ];
        for (method, body, expected) in cases {
            let error = agent.call::<_, _, ()>(method, &body).await.unwrap_err();
            assert_eq!(
                error_name(error),
                format!("org.spare.Agent1.Error.{expected}")
            );
        }
        let error = agent
            .call::<_, _, ()>("Pause", &("9.9",))
            .await
            .unwrap_err();
        assert_eq!(error_name(error), "org.spare.Agent1.Error.NoSuchReplica");
        let error = agent
            .call::<_, _, ()>("Prioritise", &("0.1", 20))
            .await
            .unwrap_err();
        assert_eq!(error_name(error), "org.spare.Agent1.Error.Failed");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_hypervisor_that_hangs_fails_one_call_and_stalls_no_other() {
        let (_scratch, socket) = start("server-hangs", "create_ms = 100\nprobe_ms = 100\n");
        let connection = connect(&socket).await;
        let agent = proxy(&connection).await;
        let () = agent.call("Create", &("0.2", IMAGE)).await.unwrap();
        let begun = Instant::now();
        let hung = (agent.clone(), ("0.1", HANGS));
        let hung = tokio::spawn(async move { hung.0.call::<_, _, ()>("Create", &hung.1).await });
        let () = agent.call("Pause", &("0.2",)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(100));
        let error = hung.await.unwrap().unwrap_err();
        assert_eq!(error_name(error), "org.spare.Agent1.Error.Timeout");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_socket_in_use_is_an_error_and_a_dead_one_is_replaced() {
        let scratch = Scratch::new("server-in-use");
        let socket = scratch.path().join("agent.sock");
        let first = Server::bind(&socket, Uid::current()).unwrap();
        let message = Server::bind(&socket, Uid::current())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("another process serves this socket"),
            "{message}"
        );
        drop(first);
        assert!(!socket.exists());
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        Server::bind(&socket, Uid::current()).unwrap();
    }

    #[tokio::test]
    async fn only_the_manager_and_root_may_connect() {
        let [root, manager, other] = [0, 900, 901].map(Uid::from_raw);
        assert!(may_connect(root, manager));
        assert!(may_connect(manager, manager));
        assert!(!may_connect(other, manager));
        let (here, _there) = UnixStream::pair().unwrap();
        let admitted = admit(&here, Uid::current()).unwrap().unwrap();
        assert_eq!(admitted.pid(), std::process::id());
    }

    #[tokio::test]
    async fn in_a_folder_that_others_can_write_to_there_is_no_socket() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("server-folder");
        let folder = scratch.path().join("run");
        let socket = folder.join("agent.sock");
        drop(Server::bind(&socket, Uid::current()).unwrap());
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o770)).unwrap();
        let message = Server::bind(&socket, Uid::current())
            .unwrap_err()
            .to_string();
        assert!(message.contains("chmod go-w"), "{message}");
        assert!(!socket.exists());
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_a_link_in_its_place_is_not_followed() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("server-link");
        let (socket, victim) = (
            scratch.path().join("agent.sock"),
            scratch.path().join("victim"),
        );
        std::fs::write(&victim, b"of somebody else").unwrap();
        std::os::unix::fs::symlink(&victim, &socket).unwrap();
        let server = Server::bind(&socket, Uid::current()).unwrap();
        let mode = std::fs::symlink_metadata(&socket).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&victim).unwrap(), b"of somebody else");
        drop(server);
        // What is in its place by now is given to nobody.
        std::os::unix::fs::symlink(&victim, &socket).unwrap();
        let folder = Folder::open(scratch.path()).unwrap();
        let refused = folder.give_socket(OsStr::new("agent.sock"), Uid::current());
        assert!(refused.unwrap_err().to_string().contains("is no socket"));
    }

    #[test]
    fn an_unknown_user_is_an_error_that_says_how_to_create_it() {
        let message = user_id("nobody-of-this-name").unwrap_err().to_string();
        assert!(
            message.contains("useradd --system nobody-of-this-name"),
            "{message}"
        );
    }
}
