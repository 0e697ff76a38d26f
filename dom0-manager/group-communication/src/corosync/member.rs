//! A member's end of a group: what it sends is put into a queue for the engine's thread, what is delivered comes
//! through another.

use super::close_reason::CloseReason;
use super::engine::{End, Engine};
use super::membership::Past;
use super::packing;
use super::settings::{JoinError, Settings, GROUP_NAME_MAX};
use super::shared::Shared;
use crate::channel::{Closed, Delivery, GroupChannel, NotSent, MESSAGE_BYTES_MAX};
use bytes::Bytes;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};

/// Between two attempts to join a group again.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// One member's end of a group over Corosync.
#[derive(Debug)]
pub struct CorosyncGroup {
    shared: Arc<Shared>,
    deliveries: UnboundedReceiver<Delivery>,
}

/// Joins a group. The first delivery is the first view with this member in it. Blocks until Corosync has
/// taken this process into the group, which takes milliseconds, or seconds while its nodes form a ring.
///
/// # Errors
/// When the group cannot be joined, or must not be with these settings; [`JoinError`] has all reasons.
pub fn join(settings: Settings) -> Result<CorosyncGroup, JoinError> {
    if settings.group.is_empty() || settings.group.len() > GROUP_NAME_MAX {
        return Err(JoinError::Name);
    }
    let (waker, wake) = UnixStream::pair().map_err(JoinError::Thread)?;
    let nonblocking = waker.set_nonblocking(true);
    nonblocking
        .and_then(|()| wake.set_nonblocking(true))
        .map_err(JoinError::Thread)?;
    let shared = Arc::new(Shared {
        outgoing: Mutex::default(),
        outgoing_bytes: AtomicUsize::new(0),
        overload: Mutex::new(None),
        unread: AtomicUsize::new(0),
        sleeping: AtomicBool::new(false),
        waker,
        ended: AtomicBool::new(false),
        reason: Mutex::new(None),
        lease: AtomicU64::new(0),
        majority_decides: AtomicBool::new(false),
    });
    let (sender, deliveries) = unbounded_channel();
    let (started, result) = mpsc::channel();
    let life = Life {
        settings,
        shared: Arc::clone(&shared),
        wake,
        deliveries: sender,
    };
    // The group is dropped, and the thread told to end, if joining fails.
    let group = CorosyncGroup { shared, deliveries };
    std::thread::Builder::new()
        .name("corosync".into())
        .spawn(move || life.run(&started))
        .map_err(JoinError::Thread)?;
    let ended = |_| JoinError::Ended(CloseReason::ThreadEnded);
    result.recv().map_err(ended)??;
    Ok(group)
}

/// What the engine's thread has, whether there is an engine or not.
struct Life {
    settings: Settings,
    shared: Arc<Shared>,
    wake: UnixStream,
    deliveries: UnboundedSender<Delivery>,
}

impl Life {
    /// Joins, and tells whether that worked; then until the group is closed.
    fn run(self, started: &mpsc::Sender<Result<(), JoinError>>) {
        let first = self.start(Past::on_disk(self.settings.last_ring));
        let (engine, told) = match first {
            Ok(engine) => (Some(engine), Ok(())),
            Err(e) => (None, Err(e)),
        };
        // Nobody waits for it if the group was dropped.
        let _ = started.send(told);
        if let Some(engine) = engine {
            // The reason is there before the reader learns, from the queue's end, that there is one.
            self.shared.end(self.serve(engine));
        }
    }

    fn start(&self, past: Past) -> Result<Engine, JoinError> {
        let wake = self.wake.try_clone().map_err(JoinError::Thread)?;
        let shared = Arc::clone(&self.shared);
        Engine::start(&self.settings, past, shared, wake, self.deliveries.clone())
    }

    fn serve(&self, first: Engine) -> CloseReason {
        let mut engine = first;
        loop {
            let overload = match engine.run() {
                End::Closed(reason) => return reason,
                End::Left(overload) => overload,
            };
            tracing::error!("this host leaves the group, and joins it again: {overload}");
            let past = engine.leave();
            self.shared.rest();
            engine = match self.start_again(past) {
                Ok(engine) => engine,
                Err(reason) => return reason,
            };
        }
    }

    /// Until Corosync has forgotten that this process was in the group, and takes it.
    fn start_again(&self, past: Past) -> Result<Engine, CloseReason> {
        loop {
            if self.shared.ended.load(Ordering::SeqCst) {
                return Err(self.shared.reason());
            }
            match self.start(past) {
                Ok(engine) => return Ok(engine),
                Err(e) if e.may_pass() => tracing::warn!("the group is not joined again yet: {e}"),
                Err(e) => return Err(CloseReason::NotJoinedAgain(e.to_string())),
            }
            std::thread::sleep(AGAIN_PAUSE);
        }
    }
}

impl Drop for CorosyncGroup {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl CorosyncGroup {
    fn taken(&self, delivery: Delivery) -> Delivery {
        if let Delivery::Message { bytes, .. } = &delivery {
            let cost = packing::cost(bytes);
            self.shared.unread.fetch_sub(cost, Ordering::SeqCst);
        }
        delivery
    }
}

impl GroupChannel for CorosyncGroup {
    fn multicast(&self, bytes: Bytes) -> Result<(), NotSent> {
        if self.shared.ended.load(Ordering::SeqCst) {
            return Err(Closed.into());
        }
        let length = bytes.len();
        if length > MESSAGE_BYTES_MAX {
            return Err(NotSent::TooLong { length });
        }
        self.shared.push(bytes);
        Ok(())
    }

    async fn receive(&mut self) -> Result<Delivery, Closed> {
        let delivery = self.deliveries.recv().await.ok_or(Closed)?;
        Ok(self.taken(delivery))
    }

    fn try_receive(&mut self) -> Option<Delivery> {
        let delivery = self.deliveries.try_recv().ok()?;
        Some(self.taken(delivery))
    }

    fn lease(&self) -> Option<Duration> {
        let nanos = self.shared.lease.load(Ordering::SeqCst);
        Some(Duration::from_nanos(nanos))
    }

    fn majority_decides(&self) -> bool {
        self.shared.majority_decides.load(Ordering::SeqCst)
    }

    fn closed_because(&self) -> Option<String> {
        let reason = self.shared.reason.lock();
        reason
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(CloseReason::to_string)
    }
}
