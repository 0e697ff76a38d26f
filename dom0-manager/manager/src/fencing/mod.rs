//! Fencing: without quorum, this host's group goes on only when every host that is missing is known to be off
//! (docs/protocol.md#views): a fence agent turned it off and said so, or an operator says so.
//!
//! Only hosts that were lost are turned off, not those that are late at the start, and only by a member of the group
//! that goes on then: half of all hosts, where nobody but a majority decides. Fewer are never to turn off those that
//! go on without them.

mod agent;

#[cfg(test)]
mod tests;

use crate::clock;
use crate::config;
use crate::event_log::EventLog;
use agent::Agent;
use spare_core::Micros;
use spare_group_communication::guarded::{Guard, Membership};
use spare_protocol::admin::EventKind;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// For the membership to settle.
const SETTLING: Duration = Duration::from_millis(200);
/// For the membership to settle at a host that stood still: it first sees itself alone, for a moment, and must not turn off those who
/// went on without it.
const SETTLING_AFTER_STALL: Duration = Duration::from_millis(1500);
/// That this host stood still is noticed with this.
const TICK: Duration = Duration::from_millis(100);
/// A tick that is this late is a stall. Shorter ones nobody else takes for the loss of this host.
const STALL: Micros = Micros(400_000);
/// A stall may have to do with a membership that comes so soon after it.
const STALL_MATTERS: Micros = Micros(10_000_000);
/// From an attempt that failed to the next one.
const RETRY: Duration = Duration::from_secs(5);

/// An operator's word that a host is off would mean nothing at present.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfirmError {
    #[error("there is no host {0} in group.hosts")]
    UnknownHost(String),
    #[error("this host is in a group that goes on: nothing waits for this")]
    Primary,
    #[error("host {0} is not missing")]
    NotMissing(String),
}

/// Makes sure that hosts are off.
pub(crate) struct Fencing {
    guard: Guard,
    /// This host is in the middle of everything, and goes on once the others are off.
    suspended: watch::Receiver<bool>,
    hosts: Vec<config::Host>,
    agents: BTreeMap<u16, Agent>,
    delay: Duration,
    event_log: Arc<EventLog>,
    /// When this host stood still last; microseconds since its boot.
    stood_still: AtomicU64,
}

impl Fencing {
    pub(crate) fn new(
        guard: Guard,
        suspended: watch::Receiver<bool>,
        hosts: Vec<config::Host>,
        settings: Option<&config::Fencing>,
        event_log: Arc<EventLog>,
    ) -> Fencing {
        let agents = settings.into_iter().flat_map(|settings| {
            hosts.iter().map(|host| {
                let mut parameters = settings.parameters.clone();
                parameters.extend(settings.hosts.get(&host.name).cloned().unwrap_or_default());
                let agent = Agent {
                    program: settings.agent.clone(),
                    parameters,
                    limit: Duration::from_secs(settings.timeout_s),
                };
                (host.seat, agent)
            })
        });
        Fencing {
            guard,
            suspended,
            agents: agents.collect(),
            hosts,
            delay: Duration::from_millis(settings.map_or(0, |s| s.delay_ms)),
            event_log,
            stood_still: AtomicU64::new(0),
        }
    }

    /// Until the task is ended.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut memberships = self.guard.memberships();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticked = clock::now();
        loop {
            let membership = memberships.borrow_and_update().clone();
            // What was begun for another membership ends here.
            let mut attempts = JoinSet::new();
            if membership.ring > 0 && !membership.primary && !membership.missing.is_empty() {
                self.begin(&membership, &mut attempts);
            }
            loop {
                tokio::select! {
                    changed = memberships.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    _ = ticks.tick() => {
                        let now = clock::now();
                        if now.since(ticked) > STALL {
                            self.stood_still.store(now.0, Ordering::Relaxed);
                        }
                        ticked = now;
                    }
                }
            }
        }
    }

    /// Lets a membership settle that has just formed.
    async fn settle(&self) {
        tokio::time::sleep(SETTLING).await;
        let stood_still = self.stood_still.load(Ordering::Relaxed);
        if stood_still > 0 && clock::now().since(Micros(stood_still)) < STALL_MATTERS {
            tokio::time::sleep(SETTLING_AFTER_STALL).await;
        }
    }

    fn begin(self: &Arc<Self>, membership: &Membership, attempts: &mut JoinSet<()>) {
        let fences = !self.agents.is_empty() && membership.suspended;
        let names: Vec<&str> = membership.missing.iter().map(|m| self.name(*m)).collect();
        let names = names.join(", ");
        let what = match fences {
            true => format!("host {names} is turned off before this host goes on"),
            false => "clients get 503 until it is back, or a witness gives quorum, or an operator makes sure that \
                      it is off and says so: spare fence confirm HOST"
                .to_owned(),
        };
        self.event(
            EventKind::Alarm,
            format!("host {names} is missing, and there is no quorum without it: {what}"),
        );
        if fences {
            for seat in membership.missing.clone() {
                let (fencing, ring) = (Arc::clone(self), membership.ring);
                attempts.spawn(async move { fencing.turn_off(ring, seat).await });
            }
        }
    }

    /// Until it has succeeded.
    async fn turn_off(&self, ring: u64, seat: u16) {
        let (Some(agent), name) = (self.agents.get(&seat), self.name(seat)) else {
            return;
        };
        self.settle().await;
        tokio::time::sleep(self.delay).await;
        // One that has yet to take over the group's state cannot go on, and turns nobody off.
        let mut suspended = self.suspended.clone();
        if suspended.wait_for(|suspended| *suspended).await.is_err() {
            return; // this manager ends
        }
        let mut told = String::new();
        loop {
            match agent.turn_off().await {
                Ok(()) => {
                    let text = format!("host {name} is off: {} turned it off", agent.program);
                    self.event(EventKind::Fenced, text);
                    return self.guard.is_off(ring, seat);
                }
                Err(why) => {
                    let text = format!(
                        "host {name} cannot be turned off, and this host does not go on without it: {why}. It is tried \
                         again; make sure that it is off, and run: spare fence confirm {name}"
                    );
                    // Told once, not with every attempt.
                    if text != told {
                        self.event(EventKind::Alarm, text.clone());
                        told = text;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// An operator has made sure that a host is off.
    ///
    /// # Errors
    /// When that would mean nothing at present.
    pub(crate) fn confirm(&self, name: &str) -> Result<(), ConfirmError> {
        let Some(host) = self.hosts.iter().find(|h| h.name == name) else {
            return Err(ConfirmError::UnknownHost(name.to_owned()));
        };
        let membership = self.guard.memberships().borrow().clone();
        if membership.primary {
            return Err(ConfirmError::Primary);
        }
        if !membership.missing.contains(&host.seat) {
            return Err(ConfirmError::NotMissing(name.to_owned()));
        }
        let text = format!("an operator says that host {name} is off");
        self.event(EventKind::Fenced, text);
        self.guard.is_off(membership.ring, host.seat);
        Ok(())
    }

    /// Who is missing, if there is no quorum without them; in words.
    pub(crate) fn without_quorum(&self) -> Option<String> {
        let membership = self.guard.memberships().borrow().clone();
        let names: Vec<&str> = membership.missing.iter().map(|m| self.name(*m)).collect();
        let waits = membership.ring > 0 && !membership.primary && !names.is_empty();
        waits.then(|| format!("there is no quorum without host {}", names.join(", ")))
    }

    fn name(&self, seat: u16) -> &str {
        let host = self.hosts.iter().find(|h| h.seat == seat);
        host.map_or("?", |h| &h.name)
    }

    fn event(&self, kind: EventKind, text: String) {
        self.event_log.event(kind, None, text);
    }
}
