//! A member's end of a group: what it sends is put into a queue for the engine's thread, what is delivered comes
//! through another.

use super::close_reason::CloseReason;
use super::engine::Engine;
use super::packing;
use super::settings::{JoinError, Settings, GROUP_NAME_MAX};
use super::shared::Shared;
use crate::channel::{Closed, Delivery, GroupChannel};
use bytes::Bytes;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};

/// What this member sent and Corosync did not deliver yet: far above what admission lets be under way.
const OUTGOING_BYTES_MAX: usize = 256 << 20;
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
    let theirs = Arc::clone(&shared);
    // The group is dropped, and the thread told to end, if joining fails.
    let group = CorosyncGroup { shared, deliveries };
    std::thread::Builder::new()
        .name("corosync".into())
        .spawn(move || {
            let engine = Engine::start(settings, Arc::clone(&theirs), wake, sender);
            match engine {
                Ok(mut engine) => {
                    let _ = started.send(Ok(()));
                    // The reason is there before the reader learns, from the queue's end, that there is one.
                    theirs.end(engine.run());
                    drop(engine);
                }
                Err(e) => {
                    let _ = started.send(Err(e));
                }
            }
        })
        .map_err(JoinError::Thread)?;
    let ended = |_| JoinError::Ended(CloseReason::ThreadEnded);
    result.recv().map_err(ended)??;
    Ok(group)
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
    fn multicast(&self, bytes: Bytes) -> Result<(), Closed> {
        if self.shared.ended.load(Ordering::SeqCst) {
            return Err(Closed);
        }
        let (length, cost) = (bytes.len(), packing::cost(&bytes));
        let waiting = self.shared.outgoing_bytes.fetch_add(cost, Ordering::SeqCst);
        if length > packing::MESSAGE_BYTES_MAX || waiting > OUTGOING_BYTES_MAX {
            self.shared.end(CloseReason::TooMuch {
                length,
                waiting,
                length_max: packing::MESSAGE_BYTES_MAX,
                waiting_max: OUTGOING_BYTES_MAX,
            });
            return Err(Closed);
        }
        let outgoing = self.shared.outgoing.lock();
        outgoing
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(bytes);
        self.shared.wake();
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
