//! The bytes between this guest and its manager, over whatever a [`Transport`] opens.
//!
//! A virtio-serial port has two habits that a plain asynchronous file can't cope with. While nobody
//! holds the host's end, `poll` reports a hang-up and `read` returns 0 at once, again and again; and
//! the hang-up ends when somebody connects, while tokio takes a hang-up for final and would report
//! "readable" for ever. So the connection sits in an epoll set of its own, edge triggered, and the
//! runtime watches that set, which never hangs up. It wakes once for each change, and nothing spins.

use crate::transport::{Transport, TransportError};
use bytes::{Buf, Bytes};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use spare_protocol::channel::Frame;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Bytes asked for in one read; a virtio-serial port hands out at most a page at a time.
const READ_BYTES: usize = 64 << 10;
/// Unsent bytes above which nothing more is read: one largest frame and some.
const UNSENT_BYTES_MAX: usize = 32 << 20;

/// The guest's end of the channel.
#[derive(Debug)]
pub struct Channel {
    transport: Box<dyn Transport>,
    link: Link,
    /// The connection is over, and the next is not here yet.
    reopens: bool,
    buffer: Box<[u8]>,
    /// Headers and payloads, none of them empty. Payloads are not copied: a long update is there once.
    unsent: VecDeque<Bytes>,
    unsent_bytes: usize,
}

/// The channel can't be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The manager's end can't be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The kernel gives no epoll set.
    #[error("cannot create epoll")]
    Epoll(#[source] Errno),
    /// The connection can't be watched.
    #[error("cannot watch the channel")]
    Watch(#[source] io::Error),
    /// The connection can't be read from.
    #[error("cannot read from the channel")]
    Read(#[source] io::Error),
    /// The connection can't be written to.
    #[error("cannot write to the channel")]
    Write(#[source] io::Error),
}

/// One open connection.
#[derive(Debug)]
struct Link {
    connection: OwnedFd,
    watch: AsyncFd<Watch>,
    /// Whether a read may find something; false after one that did not, until the next change.
    readable: bool,
    /// Whether the epoll set also watches for room to write.
    awaits_room: bool,
}

/// The epoll set that holds nothing but the connection.
#[derive(Debug)]
struct Watch(Epoll);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0 .0.as_raw_fd()
    }
}

impl Channel {
    /// Opens the first connection; waits until it is there.
    ///
    /// # Errors
    /// When it is there but can't be opened.
    pub async fn open(mut transport: Box<dyn Transport>) -> Result<Channel, ChannelError> {
        let link = Link::over(transport.open().await?)?;
        Ok(Channel {
            transport,
            link,
            reopens: false,
            buffer: vec![0; READ_BYTES].into(),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
        })
    }

    /// Waits for bytes and returns them; none at all means that the manager hung up, and what comes next
    /// is another's. Meanwhile sends what could not be sent before. May be dropped and called again
    /// without losing anything.
    ///
    /// # Errors
    /// When the device fails. A manager that goes away is not an error: the next one is waited for.
    pub async fn receive(&mut self) -> Result<&[u8], ChannelError> {
        if self.reopens {
            self.link = Link::over(self.transport.open().await?)?;
            self.reopens = false;
        }
        loop {
            let full = self.unsent_bytes > UNSENT_BYTES_MAX;
            if self.link.readable && !full {
                match self.link.read(&mut self.buffer) {
                    Ok(0) => return Ok(self.hung_up()),
                    Ok(n) => return Ok(&self.buffer[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.link.readable = false;
                    }
                    Err(e) if self.transport.is_hang_up(&e) => return Ok(self.hung_up()),
                    Err(e) => return Err(ChannelError::Read(e)),
                }
                continue;
            }
            self.link.changed().await?;
            self.flush()?;
        }
    }

    /// Sends a frame, now or as soon as there is room.
    ///
    /// # Errors
    /// When the device fails.
    pub fn send(&mut self, frame: Frame) -> Result<(), ChannelError> {
        let header = Bytes::copy_from_slice(&frame.header());
        for piece in [header, frame.payload] {
            if !piece.is_empty() {
                self.unsent_bytes += piece.len();
                self.unsent.push_back(piece);
            }
        }
        self.flush()
    }

    /// What follows is opened anew, or is reported by the connection that stays.
    fn hung_up(&mut self) -> &'static [u8] {
        self.link.readable = false;
        if !self.transport.outlives_manager() {
            self.unsent.clear();
            self.unsent_bytes = 0;
            self.reopens = true;
        }
        &[]
    }

    fn flush(&mut self) -> Result<(), ChannelError> {
        while let Some(piece) = self.unsent.front_mut() {
            match self.link.write(piece) {
                Ok(written) => {
                    piece.advance(written);
                    self.unsent_bytes -= written;
                    if piece.is_empty() {
                        self.unsent.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return self.link.await_room(true);
                }
                // Reading will find the hang-up and deal with it.
                Err(e) if self.transport.is_hang_up(&e) => return Ok(()),
                Err(e) => return Err(ChannelError::Write(e)),
            }
        }
        self.link.await_room(false)
    }
}

impl Link {
    fn over(connection: OwnedFd) -> Result<Link, ChannelError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(ChannelError::Epoll)?;
        epoll
            .add(&connection, EpollEvent::new(watched(false), 0))
            .map_err(unwatched)?;
        Ok(Link {
            connection,
            watch: register(Watch(epoll))?,
            readable: true,
            awaits_room: false,
        })
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.connection.as_raw_fd(), buffer)?)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(self.connection.as_fd(), bytes)?)
    }

    /// Waits until something changed at the connection: bytes, room, somebody came or went.
    async fn changed(&mut self) -> Result<(), ChannelError> {
        let mut guard = self.watch.readable().await.map_err(ChannelError::Watch)?;
        let mut events = [EpollEvent::empty()];
        match guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(unwatched(e)),
        }
        guard.clear_ready();
        self.readable = true;
        Ok(())
    }

    fn await_room(&mut self, wanted: bool) -> Result<(), ChannelError> {
        if self.awaits_room != wanted {
            let mut event = EpollEvent::new(watched(wanted), 0);
            self.watch
                .get_ref()
                .0
                .modify(&self.connection, &mut event)
                .map_err(unwatched)?;
            self.awaits_room = wanted;
        }
        Ok(())
    }
}

fn unwatched(errno: Errno) -> ChannelError {
    ChannelError::Watch(errno.into())
}

fn register(watch: Watch) -> Result<AsyncFd<Watch>, ChannelError> {
    // SAFETY: the descriptor belongs to `Watch`, which is moved in, never exchanged, and always
    // names the same one.
    unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }
        .map_err(|e| ChannelError::Watch(e.into()))
}

fn watched(room: bool) -> EpollFlags {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    if room {
        flags | EpollFlags::EPOLLOUT
    } else {
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::unix_socket::{InheritedSocket, UnixSocket};
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;
    use std::time::Duration;

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

    fn answer(round: u8) -> Frame {
        Frame {
            session: 1,
            sequence: round.into(),
            payload: vec![round; 1 << 20].into(),
        }
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
                let expected = answer(round).to_bytes();
                let mut answer = vec![0; expected.len()];
                stream.read_exact(&mut answer).expect("the answer");
                assert!(answer == expected, "the same bytes");
            }
        });
        let transport = Box::new(UnixSocket::new(&path));
        let mut channel = Channel::open(transport).await.expect("a channel");
        for round in 0u8..2 {
            if round > 0 {
                assert_eq!(channel.receive().await.expect("a hang-up"), []);
            }
            assert_eq!(channel.receive().await.expect("bytes"), [round; 3]);
            channel.send(answer(round)).expect("sent");
        }
        // Receiving also sends the rest.
        let _ = tokio::time::timeout(Duration::from_secs(1), channel.receive()).await;
        manager.join().expect("both rounds");
    }

    #[tokio::test]
    async fn an_inherited_port_serves_one_manager_after_the_other() {
        let folder = Folder::new("inherited");
        let path = folder.0.join("socket");
        let listener = OwnedFd::from(UnixListener::bind(&path).expect("a socket"));
        let fd = std::os::fd::IntoRawFd::into_raw_fd(listener);
        let transport = Box::new(InheritedSocket::new(fd));
        // Both connect before anybody listens, as when the guest is frozen.
        let mut first = UnixStream::connect(&path).expect("a connection");
        let mut second = UnixStream::connect(&path).expect("a connection");
        first.write_all(b"one").expect("room");
        second.write_all(b"two").expect("room");
        let mut channel = Channel::open(transport).await.expect("a channel");
        assert_eq!(channel.receive().await.expect("bytes"), b"one");
        drop(first);
        assert_eq!(channel.receive().await.expect("a hang-up"), b"");
        // A call that is given up while nobody is there loses nothing.
        let nobody = Duration::from_millis(50);
        assert_eq!(channel.receive().await.expect("bytes"), b"two");
        drop(second);
        assert_eq!(channel.receive().await.expect("a hang-up"), b"");
        assert!(tokio::time::timeout(nobody, channel.receive())
            .await
            .is_err());
        let mut third = UnixStream::connect(&path).expect("a connection");
        third.write_all(b"three").expect("room");
        assert_eq!(channel.receive().await.expect("bytes"), b"three");
        channel.send(answer(3)).expect("sent");
        let mut header = [0; spare_protocol::channel::HEADER_BYTES];
        third.read_exact(&mut header).expect("an answer");
        assert_eq!(header, answer(3).header());
    }
}
