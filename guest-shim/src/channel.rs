//! The bytes between this guest and its manager: a virtio-serial port, or a Unix socket for replicas
//! that are processes: one to connect to (the oracle's), or an inherited one to listen at (the agent's),
//! which serves one connection at a time as a port does.
//!
//! A virtio-serial port has two habits that a plain asynchronous file can't cope with. While nobody
//! holds the host's end, `poll` reports a hang-up and `read` returns 0 at once, again and again; and
//! the hang-up ends when somebody connects, while tokio takes a hang-up for final and would report
//! "readable" for ever. So the port sits in an epoll set of its own, edge triggered, and the runtime
//! watches that set, which never hangs up. It wakes once for each change, and nothing spins.

use crate::config::Transport;
use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::net::UnixListener;

/// Where the kernel lists virtio-serial ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// Bytes asked for in one read; the driver hands out at most a page at a time.
const READ_BYTES: usize = 64 << 10;
/// Unsent bytes above which nothing more is read: one largest frame and some.
const UNSENT_BYTES_MAX: usize = 32 << 20;
/// Pause between two attempts to find the port or to connect.
const RETRY: Duration = Duration::from_millis(100);

/// The guest's end of the channel.
#[derive(Debug)]
pub struct Port {
    source: Source,
    link: Link,
    /// The connection is over, and the next is not here yet.
    reopens: bool,
    buffer: Box<[u8]>,
    unsent: Vec<u8>,
    unsent_from: usize,
}

/// Where connections come from.
#[derive(Debug)]
enum Source {
    /// There is one for good, within this program.
    Pair,
    /// The virtio-serial port of that name, which stays open whoever comes and goes.
    Device(String),
    /// Connecting to the socket at that path.
    Connecting(PathBuf),
    /// Others connect.
    Listening(UnixListener),
}

/// One opened device or connected socket.
#[derive(Debug)]
struct Link {
    file: File,
    changes: AsyncFd<Changes>,
    /// Whether a read may find something; false after one that did not, until the next change.
    readable: bool,
    /// Whether the epoll set also watches for room to write.
    awaits_room: bool,
}

/// The epoll set that holds nothing but the port.
#[derive(Debug)]
struct Changes(Epoll);

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0 .0.as_raw_fd()
    }
}

impl Port {
    /// Opens the port, or connects to the socket; waits until it is there.
    ///
    /// # Errors
    /// When it is there but can't be opened.
    pub async fn open(transport: Transport) -> Result<Port> {
        let source = Source::of(transport)?;
        let link = source.open().await?;
        Ok(Port::over(source, link))
    }

    /// A channel that does not leave this program, and the manager's end of it.
    ///
    /// # Errors
    /// When sockets can't be created.
    pub fn pair() -> Result<(Port, UnixStream)> {
        let (guest, manager) = UnixStream::pair().context("cannot create a pair of sockets")?;
        let link = Link::over(nonblocking(guest)?)?;
        Ok((Port::over(Source::Pair, link), manager))
    }

    fn over(source: Source, link: Link) -> Port {
        Port {
            source,
            link,
            reopens: false,
            buffer: vec![0; READ_BYTES].into(),
            unsent: Vec::new(),
            unsent_from: 0,
        }
    }

    /// Waits for bytes and returns them; none at all means that the manager hung up, and what comes next
    /// is another's. Meanwhile sends what could not be sent before. May be dropped and called again
    /// without losing anything.
    ///
    /// # Errors
    /// When the device fails. A manager that goes away is not an error: the next one is waited for.
    pub async fn receive(&mut self) -> Result<&[u8]> {
        if self.reopens {
            if matches!(self.source, Source::Connecting(_)) {
                // Not at once: a manager that accepts and hangs up must not make the guest spin.
                tokio::time::sleep(RETRY).await;
            }
            self.link = self.source.open().await?;
            self.reopens = false;
        }
        loop {
            let full = self.unsent.len() - self.unsent_from > UNSENT_BYTES_MAX;
            if self.link.readable && !full {
                match self.link.read(&mut self.buffer) {
                    Ok(0) => return Ok(self.hung_up()),
                    Ok(n) => return Ok(&self.buffer[..n]),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                        self.link.readable = false;
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {
                        return Ok(self.hung_up());
                    }
                    Err(e) => return Err(e).context("cannot read from the channel"),
                }
                continue;
            }
            self.link.changed().await?;
            self.flush()?;
        }
    }

    /// Sends bytes, now or as soon as there is room.
    ///
    /// # Errors
    /// When the device fails.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.unsent_from == self.unsent.len() {
            self.unsent.clear();
            self.unsent_from = 0;
        }
        self.unsent.extend_from_slice(bytes);
        self.flush()
    }

    /// A socket is connected anew; a virtio port stays open and reports when somebody is there.
    fn hung_up(&mut self) -> &'static [u8] {
        self.link.readable = false;
        if matches!(self.source, Source::Connecting(_) | Source::Listening(_)) {
            self.unsent.clear();
            self.unsent_from = 0;
            self.reopens = true;
        }
        &[]
    }

    fn flush(&mut self) -> Result<()> {
        while self.unsent_from < self.unsent.len() {
            match self.link.write(&self.unsent[self.unsent_from..]) {
                Ok(n) => self.unsent_from += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return self.link.await_room(true);
                }
                // Reading will find the hang-up and deal with it.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                Err(e) => return Err(e).context("cannot write to the channel"),
            }
        }
        self.unsent.clear();
        self.unsent_from = 0;
        self.link.await_room(false)
    }
}

impl Source {
    fn of(transport: Transport) -> Result<Source> {
        match transport {
            Transport::VirtioPort(name) => Ok(Source::Device(name)),
            Transport::UnixSocket(path) => Ok(Source::Connecting(path)),
            Transport::Inherited(fd) => {
                // SAFETY: whoever started this program left the descriptor to it, for this alone.
                let listener = unsafe { StdUnixListener::from_raw_fd(fd) };
                listener
                    .set_nonblocking(true)
                    .and_then(|()| UnixListener::from_std(listener))
                    .map(Source::Listening)
                    .context("cannot listen at the inherited channel")
            }
        }
    }

    async fn open(&self) -> Result<Link> {
        let file = match self {
            Source::Pair => bail!("a channel within this program is not opened twice"),
            Source::Device(name) => open_port(name).await?,
            Source::Connecting(path) => connect(path).await?,
            Source::Listening(listener) => {
                let (stream, _) = listener.accept().await.context("cannot accept a manager")?;
                nonblocking(stream.into_std()?)?
            }
        };
        Link::over(file)
    }
}

impl Link {
    fn over(file: File) -> Result<Link> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot create epoll")?;
        epoll
            .add(&file, EpollEvent::new(watched(false), 0))
            .context("cannot watch the channel")?;
        Ok(Link {
            file,
            changes: register(Changes(epoll))?,
            readable: true,
            awaits_room: false,
        })
    }

    fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(nix::unistd::read(self.file.as_raw_fd(), buffer)?)
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(nix::unistd::write(self.file.as_fd(), bytes)?)
    }

    /// Waits until something changed at the port: bytes, room, somebody came or went.
    async fn changed(&mut self) -> Result<()> {
        let mut guard = self
            .changes
            .readable()
            .await
            .context("cannot watch the channel")?;
        let mut events = [EpollEvent::empty()];
        match guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot watch the channel"),
        }
        guard.clear_ready();
        self.readable = true;
        Ok(())
    }

    fn await_room(&mut self, wanted: bool) -> Result<()> {
        if self.awaits_room != wanted {
            let mut event = EpollEvent::new(watched(wanted), 0);
            self.changes
                .get_ref()
                .0
                .modify(&self.file, &mut event)
                .context("cannot watch the channel")?;
            self.awaits_room = wanted;
        }
        Ok(())
    }
}

fn register(changes: Changes) -> Result<AsyncFd<Changes>> {
    // SAFETY: the descriptor belongs to `Changes`, which is moved in, never exchanged, and always
    // names the same one.
    unsafe { AsyncFd::register_with_interest(changes, Interest::READABLE) }
        .map_err(std::io::Error::from)
        .context("cannot watch the channel")
}

fn watched(room: bool) -> EpollFlags {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    if room {
        flags | EpollFlags::EPOLLOUT
    } else {
        flags
    }
}

async fn open_port(name: &str) -> Result<File> {
    let path = loop {
        match find_port(Path::new(PORTS), name)? {
            Some(path) => break path,
            None => tokio::time::sleep(RETRY).await,
        }
    };
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&path)
        .with_context(|| format!("cannot open {} (the port {name})", path.display()))
}

/// The device of the port of that name; `None` if the driver has not shown it (yet).
fn find_port(ports: &Path, name: &str) -> Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(ports) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => bail!("cannot list {}: {e}", ports.display()),
    };
    for entry in entries {
        let entry = entry?;
        let named = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if named.trim_end() == name {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

async fn connect(path: &Path) -> Result<File> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return nonblocking(stream),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                bail!("cannot connect to {}: {e}", path.display())
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

fn nonblocking(stream: UnixStream) -> Result<File> {
    stream
        .set_nonblocking(true)
        .context("cannot set up the channel")?;
    Ok(File::from(OwnedFd::from(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("spare-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a folder");
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let folder = Folder::new("ports");
        for (device, name) in [("vport0p1", "org.other"), ("vport0p2", "org.spare.shim.0")] {
            std::fs::create_dir_all(folder.0.join(device)).expect("a folder");
            std::fs::write(folder.0.join(device).join("name"), format!("{name}\n"))
                .expect("a file");
        }
        let found = |name: &str| find_port(&folder.0, name).expect("a listing");
        assert_eq!(found("org.spare.shim.0"), Some("/dev/vport0p2".into()));
        assert_eq!(found("org.spare.door.0"), None);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_new_manager_is_connected_to() {
        let folder = Folder::new("channel");
        let path = folder.0.join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let manager = std::thread::spawn(move || {
            for round in 0u8..2 {
                let (mut stream, _) = listener.accept().expect("the guest");
                stream.write_all(&[round; 3]).expect("room");
                let mut answer = vec![0; 1 << 20];
                stream.read_exact(&mut answer).expect("the answer");
                assert!(answer.iter().all(|b| *b == round));
            }
        });
        let mut port = Port::open(Transport::UnixSocket(path))
            .await
            .expect("a channel");
        for round in 0u8..2 {
            if round > 0 {
                assert_eq!(port.receive().await.expect("a hang-up"), []);
            }
            assert_eq!(port.receive().await.expect("bytes"), [round; 3]);
            port.send(&vec![round; 1 << 20]).expect("sent");
        }
        // Receiving also sends the rest.
        let _ = tokio::time::timeout(Duration::from_secs(1), port.receive()).await;
        manager.join().expect("both rounds");
    }

    #[tokio::test]
    async fn an_inherited_port_serves_one_manager_after_the_other() {
        let folder = Folder::new("inherited");
        let path = folder.0.join("socket");
        let listener = OwnedFd::from(UnixListener::bind(&path).expect("a socket"));
        let transport = Transport::Inherited(std::os::fd::IntoRawFd::into_raw_fd(listener));
        // Both connect before anybody listens, as when the guest is frozen.
        let mut first = UnixStream::connect(&path).expect("a connection");
        let mut second = UnixStream::connect(&path).expect("a connection");
        first.write_all(b"one").expect("room");
        second.write_all(b"two").expect("room");
        let mut port = Port::open(transport).await.expect("a channel");
        assert_eq!(port.receive().await.expect("bytes"), b"one");
        drop(first);
        assert_eq!(port.receive().await.expect("a hang-up"), b"");
        // A call that is given up while nobody is there loses nothing.
        let nobody = Duration::from_millis(50);
        assert_eq!(port.receive().await.expect("bytes"), b"two");
        drop(second);
        assert_eq!(port.receive().await.expect("a hang-up"), b"");
        assert!(tokio::time::timeout(nobody, port.receive()).await.is_err());
        let mut third = UnixStream::connect(&path).expect("a connection");
        third.write_all(b"three").expect("room");
        assert_eq!(port.receive().await.expect("bytes"), b"three");
        port.send(b"answer").expect("sent");
        let mut answer = [0; 6];
        third.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"answer");
    }
}
