//! Links that take their time. The machine's kernel need not have a queue that delays (`netem`), so a process
//! takes the frames of a delayed direction from one port of the bridge and puts them into the other, later.
//! The bridge itself drops them ([`Rules::nft`]).

use crate::names::mac;
use crate::rules::{Direction, Fault, Rules};
use anyhow::{bail, Context, Result};
use nix::libc;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::CString;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The header with which the kernel says what of a frame it left to the network card: a checksum, cutting it to
/// size. Passed on as it came, the other side does it.
const OFFLOAD_HEADER_BYTES: usize = 10;
/// The longest frame that a card with such offloads sends, and its header.
const FRAME_BYTES_MAX: usize = 66 << 10;
/// Frames on their way; above that they are lost, as in a real queue.
const QUEUE_MAX: usize = 20_000;

/// The pairs of hosts whose frames are delayed, and by how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delays(Vec<Delay>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Delay {
    from: String,
    to: String,
    to_mac: [u8; 6],
    delay_ms: u32,
    loss_percent: u8,
}

impl Delays {
    /// The delayed directions of `rules` between hosts that have a port; one that is cut needs no delay.
    pub(crate) fn from_rules(rules: &Rules, has_port: impl Fn(&str) -> bool) -> Result<Delays> {
        let delayed = |fault: &Fault| fault.delay_ms > 0 && !fault.cut;
        let delays = rules.faults().filter(|(direction, fault)| {
            delayed(fault) && has_port(&direction.from) && has_port(&direction.to)
        });
        let delays = delays.map(|(Direction { from, to }, fault)| {
            Ok(Delay {
                from: from.clone(),
                to: to.clone(),
                to_mac: mac(to)?,
                delay_ms: fault.delay_ms,
                loss_percent: fault.loss_percent,
            })
        });
        Ok(Delays(delays.collect::<Result<_>>()?))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One direction: frames in the order in which they came, each with when it is due.
struct Line {
    delay: Delay,
    source: usize,
    port: Port,
    queue: VecDeque<(Instant, Vec<u8>)>,
}

/// Delays frames until it is killed.
///
/// # Errors
/// When the ports cannot be opened: it must run in the bridge's namespace.
pub fn run(delays: &Delays) -> Result<()> {
    let mut names: Vec<&str> = delays.0.iter().map(|d| d.from.as_str()).collect();
    names.dedup();
    let sources: Vec<Port> = names
        .iter()
        .map(|n| Port::open(n, true))
        .collect::<Result<_>>()?;
    let lines = delays.0.iter().map(|delay| {
        Ok(Line {
            source: names
                .iter()
                .position(|n| *n == delay.from)
                .context("no source")?,
            port: Port::open(&delay.to, false)?,
            delay: delay.clone(),
            queue: VecDeque::new(),
        })
    });
    let mut lines: Vec<Line> = lines.collect::<Result<_>>()?;
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        let due = lines
            .iter()
            .filter_map(|l| l.queue.front().map(|(due, _)| *due))
            .min();
        wait(&sources, due)?;
        for (number, source) in sources.iter().enumerate() {
            while let Some(length) = source.receive(&mut frame)? {
                let lines = lines.iter_mut().filter(|l| l.source == number);
                lines.for_each(|line| line.take(&frame[..length]));
            }
        }
        lines.iter_mut().for_each(Line::deliver);
    }
}

impl Line {
    fn take(&mut self, frame: &[u8]) {
        let Some(to) = frame.get(OFFLOAD_HEADER_BYTES..OFFLOAD_HEADER_BYTES + 6) else {
            return;
        };
        // The lowest bit of the first byte says: to many.
        let for_it = to == self.delay.to_mac || to[0] & 1 == 1;
        let lost = rand::random_range(0..100) < self.delay.loss_percent;
        if for_it && !lost && self.queue.len() < QUEUE_MAX {
            let due = Instant::now() + Duration::from_millis(self.delay.delay_ms.into());
            self.queue.push_back((due, frame.to_owned()));
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.queue.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, frame)) = self.queue.pop_front() {
                self.port.send(&frame);
            }
        }
    }
}

/// Until a frame comes, or until `due`.
fn wait(sources: &[Port], due: Option<Instant>) -> Result<()> {
    let mut wanted: Vec<libc::pollfd> = sources
        .iter()
        .map(|port| libc::pollfd {
            fd: port.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let left = due.map(|due| due.saturating_duration_since(Instant::now()));
    let left = left.map(|left| libc::timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(0),
        tv_nsec: left.subsec_nanos().into(),
    });
    let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the time live until the call returns; the count is the array's.
    let done = unsafe {
        libc::ppoll(
            wanted.as_mut_ptr(),
            wanted.len() as libc::nfds_t,
            timeout,
            std::ptr::null(),
        )
    };
    if done < 0 {
        let e = std::io::Error::last_os_error();
        if e.kind() != std::io::ErrorKind::Interrupted {
            bail!("waiting for frames: {e}");
        }
    }
    Ok(())
}

/// A port of the bridge, with everything that passes it.
struct Port {
    socket: OwnedFd,
}

impl Port {
    fn open(name: &str, receives: bool) -> Result<Port> {
        let explain = || format!("cannot open the port {name} of the bridge");
        // No protocol: nothing is received by one that only sends.
        let protocol = if receives {
            (libc::ETH_P_ALL as u16).to_be()
        } else {
            0
        };
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers are involved, and the number is owned by nothing else.
        let socket = unsafe {
            let number = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
            if number < 0 {
                return Err(std::io::Error::last_os_error()).with_context(explain);
            }
            OwnedFd::from_raw_fd(number)
        };
        let port = Port { socket };
        port.set(libc::PACKET_VNET_HDR, 1).with_context(explain)?;
        port.set(libc::PACKET_IGNORE_OUTGOING, 1)
            .with_context(explain)?;
        port.bind(name, protocol).with_context(explain)?;
        Ok(port)
    }

    fn set(&self, option: i32, value: i32) -> std::io::Result<()> {
        // SAFETY: the pointer is to an int, whose size is given.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if done < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }

    fn bind(&self, name: &str, protocol: u16) -> Result<()> {
        let name = CString::new(name)?;
        // SAFETY: the name ends in a zero.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: index.try_into()?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is one of this family, and its size is given.
        let done = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if done < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }

    /// The next frame that came, with its header; none if there is none now.
    fn receive(&self, frame: &mut [u8]) -> Result<Option<usize>> {
        // SAFETY: the buffer is as long as said.
        let got = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        match usize::try_from(got) {
            Ok(length) => Ok(Some(length)),
            Err(_) => match std::io::Error::last_os_error() {
                e if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                // The port is down: a host whose cable was pulled.
                e if e.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
                e => bail!("receiving a frame: {e}"),
            },
        }
    }

    /// A frame that cannot be sent is lost, as on a cable.
    fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer is as long as said.
        let _ = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Ways;

    #[test]
    fn only_what_is_delayed_and_not_cut_takes_the_long_way() {
        let mut rules = Rules::default();
        rules
            .change("h1", "h2", Ways::Both, |f| f.delay_ms = 20)
            .unwrap();
        rules
            .change("h2", "h1", Ways::One, |f| f.cut = true)
            .unwrap();
        rules
            .change("h1", "h3", Ways::Both, |f| f.loss_percent = 20)
            .unwrap();
        assert!(Delays::from_rules(&rules, |host| host != "h2")
            .unwrap()
            .is_empty());
        let delays = Delays::from_rules(&rules, |_| true).unwrap();
        assert_eq!(delays.0.len(), 1);
        assert_eq!(
            (delays.0[0].from.as_str(), delays.0[0].delay_ms),
            ("h1", 20)
        );
        assert_eq!(delays.0[0].to_mac, mac("h2").unwrap());
    }
}
