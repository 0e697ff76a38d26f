//! Threads on which the hypervisor is called, each call under a deadline.
//!
//! The operations on one replica run one after the other on a thread of its own, those on the host
//! as a whole on another. So a hypervisor that hangs in one call delays nothing but the calls behind
//! it, and those fail when their own deadline passes. A call whose caller has given up before it
//! began is never begun: an old "pause" can't overtake what was decided since.

use crate::error::{Error, Result};
use crate::hypervisor::Hypervisor;
use spare_protocol::ReplicaId;
use std::collections::HashMap;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Calls that wait on one thread at most.
const CALLS_WAITING_MAX: usize = 16;
/// Threads at most; a host has few replicas, and more threads than this are stuck ones.
const LANES_MAX: usize = 64;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(30);

/// What calls share a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Calls that concern the whole host.
    Host,
    /// Calls that concern one replica.
    Replica(ReplicaId),
    /// Connecting to one replica's ports, which needs no libvirt and waits for nothing that does.
    Channel(ReplicaId),
}

type Call = Box<dyn FnOnce(&dyn Hypervisor) + Send>;
type Lanes = Arc<Mutex<HashMap<Lane, SyncSender<Call>>>>;

/// The threads, made when there is work for them. All clones share them.
#[derive(Clone)]
pub struct Workers {
    hypervisor: Arc<dyn Hypervisor>,
    lanes: Lanes,
}

impl Workers {
    /// Calls go to `hypervisor`.
    #[must_use]
    pub fn new(hypervisor: Arc<dyn Hypervisor>) -> Workers {
        Workers {
            hypervisor,
            lanes: Lanes::default(),
        }
    }

    /// The hypervisor, for what does not block.
    #[must_use]
    pub fn hypervisor(&self) -> &dyn Hypervisor {
        &*self.hypervisor
    }

    /// Runs `call` on the thread of `lane` and waits for it until `deadline`. `what` names it in the
    /// errors.
    pub async fn call<T: Send + 'static>(
        &self,
        lane: Lane,
        what: &'static str,
        deadline: Duration,
        call: impl FnOnce(&dyn Hypervisor) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        let job: Call = Box::new(move |hypervisor| {
            if reply.is_closed() {
                return;
            }
            if reply.send(call(hypervisor)).is_err() {
                tracing::warn!("{what} ended after its deadline");
            }
        });
        self.enqueue(lane, what, job)?;
        match tokio::time::timeout(deadline, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::failed(what, "the operation's thread ended early")),
            Err(_) => Err(Error::Timeout { what, deadline }),
        }
    }

    /// Hands `job` to the lane's thread, which it starts if need be.
    fn enqueue(&self, lane: Lane, what: &'static str, job: Call) -> Result<()> {
        let mut lanes = lock(&self.lanes);
        let job = match lanes.get(&lane) {
            Some(queue) => match queue.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(_)) => return Err(Error::Busy(what)),
                // A call has panicked and taken its thread along; a new one replaces it.
                Err(TrySendError::Disconnected(job)) => job,
            },
            None => job,
        };
        if lanes.len() >= LANES_MAX && !lanes.contains_key(&lane) {
            return Err(Error::Busy(what));
        }
        let (queue, calls) = sync_channel(CALLS_WAITING_MAX);
        let hypervisor = Arc::clone(&self.hypervisor);
        let all = Arc::clone(&self.lanes);
        std::thread::Builder::new()
            .name("hypervisor".to_owned())
            .spawn(move || work(&*hypervisor, lane, &all, &calls))
            .map_err(|e| Error::failed("cannot start a thread", e))?;
        // The queue is new and empty, and its receiver lives until this lock is released.
        let _ = queue.try_send(job);
        lanes.insert(lane, queue);
        Ok(())
    }
}

/// Runs the calls of one lane until none has come for a while.
fn work(hypervisor: &dyn Hypervisor, lane: Lane, lanes: &Lanes, calls: &Receiver<Call>) {
    loop {
        match calls.recv_timeout(IDLE) {
            Ok(call) => call(hypervisor),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                // Calls are queued under this lock: if none is here now, none can come any more.
                let mut all = lock(lanes);
                let Ok(call) = calls.try_recv() else {
                    all.remove(&lane);
                    return;
                };
                drop(all);
                call(hypervisor);
            }
        }
    }
}

/// The lanes are consistent after every statement, so a panic elsewhere doesn't spoil them.
fn lock(lanes: &Lanes) -> MutexGuard<'_, HashMap<Lane, SyncSender<Call>>> {
    lanes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::double::Double;
    use crate::names::parse_replica;
    use std::time::Instant;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    fn lane(name: &str) -> Lane {
        Lane::Replica(parse_replica(name).unwrap())
    }

    fn workers() -> Workers {
        Workers::new(Arc::new(Double::new()))
    }

    #[tokio::test]
    async fn a_call_that_hangs_fails_at_its_deadline_and_delays_no_other_replica() {
        let workers = workers();
        let begun = Instant::now();
        let hung = workers.call(lane("0.1"), "pause", SHORT, |_| {
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        });
        let other = workers.call(lane("0.2"), "pause", LONG, |_| Ok(7));
        let (hung, other) = tokio::join!(hung, other);
        assert_eq!(
            hung,
            Err(Error::Timeout {
                what: "pause",
                deadline: SHORT
            })
        );
        assert_eq!(other, Ok(7));
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_call_given_up_before_it_began_is_never_begun() {
        let workers = workers();
        let (done, ran) = std::sync::mpsc::channel();
        let first = workers.call(lane("0.1"), "pause", LONG, |_| {
            std::thread::sleep(SHORT * 4);
            Ok(())
        });
        let stale = workers.call(lane("0.1"), "pause", SHORT, move |_| {
            let _ = done.send(());
            Ok(())
        });
        let (first, stale) = tokio::join!(first, stale);
        assert_eq!(first, Ok(()));
        assert!(matches!(stale, Err(Error::Timeout { .. })));
        workers
            .call(lane("0.1"), "pause", LONG, |_| Ok(()))
            .await
            .unwrap();
        assert!(ran.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_stuck_lane_refuses_more_calls_than_it_can_hold() {
        let workers = workers();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let stuck = workers.clone();
        let first = tokio::spawn(async move {
            stuck
                .call(lane("0.1"), "pause", LONG, move |_| {
                    let _ = wait.recv();
                    Ok(())
                })
                .await
        });
        tokio::time::sleep(SHORT).await;
        let mut waiting = Vec::new();
        for _ in 0..CALLS_WAITING_MAX {
            let workers = workers.clone();
            waiting.push(tokio::spawn(async move {
                workers.call(lane("0.1"), "usage", LONG, |_| Ok(())).await
            }));
        }
        tokio::time::sleep(SHORT).await;
        let refused = workers.call(lane("0.1"), "usage", LONG, |_| Ok(())).await;
        assert_eq!(refused, Err(Error::Busy("usage")));
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(()));
        for call in waiting {
            assert_eq!(call.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test]
    async fn a_call_that_panics_fails_and_the_next_one_works() {
        let workers = workers();
        let failed = workers
            .call(lane("0.1"), "pause", LONG, |_| -> Result<()> {
                panic!("a bug in a hypervisor's driver (this test's doing)")
            })
            .await;
        assert!(matches!(failed, Err(Error::Failed(_))));
        // The thread has to unwind before its queue is seen to be closed.
        tokio::time::sleep(SHORT).await;
        let next = workers.call(lane("0.1"), "pause", LONG, |_| Ok(1)).await;
        assert_eq!(next, Ok(1));
    }
}
