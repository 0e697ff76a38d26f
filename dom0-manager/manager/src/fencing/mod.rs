//! Fencing: without quorum, this host's group goes on only when every host that is missing is known to be off
//! (DESIGN §3.2): a fence agent turned it off and said so, or an operator says so.
//!
//! Only hosts that were lost are turned off, not those that are late at the start, and only by at least half
//! of all hosts: fewer are never to turn off a majority that goes on without them.

mod agent;

#[cfg(test)]
mod tests;

use crate::config;
use crate::journal::Journal;
use agent::Agent;
use spare_group::guarded::{Guard, Membership};
use spare_protocol::admin::EventKind;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// For the membership to settle: a host that froze and wakes first sees itself alone, for a moment. It must not
/// turn off those who went on without it.
const SETTLING: Duration = Duration::from_secs(1);
/// From an attempt that failed to the next one.
const RETRY: Duration = Duration::from_secs(5);

/// Makes sure that hosts are off.
pub(crate) struct Fencing {
    guard: Guard,
    hosts: Vec<config::Host>,
    agents: BTreeMap<u16, Agent>,
    delay: Duration,
    journal: Arc<Journal>,
}

impl Fencing {
    pub(crate) fn new(
        guard: Guard,
        hosts: Vec<config::Host>,
        settings: Option<&config::Fencing>,
        journal: Arc<Journal>,
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
            agents: agents.collect(),
            hosts,
            delay: Duration::from_millis(settings.map_or(0, |s| s.delay_ms)),
            journal,
        }
    }

    /// Until the task is ended.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut memberships = self.guard.memberships();
        loop {
            let membership = memberships.borrow_and_update().clone();
            // What was begun for another membership ends here.
            let mut attempts = JoinSet::new();
            if membership.ring > 0 && !membership.primary && !membership.missing.is_empty() {
                self.begin(&membership, &mut attempts);
            }
            if memberships.changed().await.is_err() {
                return;
            }
        }
    }

    fn begin(self: &Arc<Self>, membership: &Membership, attempts: &mut JoinSet<()>) {
        let half = membership.members.len() * 2 >= self.hosts.len();
        let fences = !self.agents.is_empty() && membership.was_primary && half;
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
        tokio::time::sleep(SETTLING + self.delay).await;
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
    /// When that would mean nothing at present, in words.
    pub(crate) fn confirm(&self, name: &str) -> Result<(), String> {
        let Some(host) = self.hosts.iter().find(|h| h.name == name) else {
            return Err(format!("there is no host {name} in group.hosts"));
        };
        let membership = self.guard.memberships().borrow().clone();
        if membership.primary {
            return Err("this host is in a group that goes on: nothing waits for this".to_owned());
        }
        if !membership.missing.contains(&host.seat) {
            return Err(format!("host {name} is not missing"));
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
        self.journal.event(kind, None, text);
    }
}
