//! Clients and gateways: operations begin, are answered, refused, repeated, given up.

use crate::clients::{end_of, End};
use crate::invariants::hold;
use crate::network::seat;
use crate::plan::{MS, SECOND};
use crate::service::Kind;
use crate::strain::Strain;
use crate::world::{Event, Phase, World};
use spare_core::{Input, Refusal};
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{Request, RequestId};
use spare_protocol::{Class, Position};

/// Stands for a client, where a scrub was asked for.
pub(crate) const SCRUB: usize = usize::MAX;

impl World {
    pub(crate) fn client_acts(&mut self, client: usize) {
        if let Some(pending) = &self.clients[client].pending {
            if pending.id.is_none() {
                self.send_attempt(client);
            }
            return;
        }
        if self.phase >= Phase::Ending {
            return;
        }
        let floor = self.checks.acknowledged.last().0;
        let poison = self.poison_next && self.phase == Phase::Safety;
        self.poison_next = false;
        let c = &mut self.clients[client];
        if c.burst_left == 0 {
            c.burst_left = c.random.range(1, self.plan.burst);
        }
        let strain = match self.phase {
            // What never ends would outlast the beginning.
            Phase::Beginning => Strain::default(),
            _ => self.plan.strain,
        };
        let pace = self.plan.pace;
        c.invent(self.now, floor, poison, (strain, pace, &mut self.allowance));
        self.send_attempt(client);
    }

    /// Everybody who does nothing comes now.
    pub(crate) fn rush(&mut self) {
        for client in 0..self.clients.len() {
            if self.clients[client].pending.is_none() {
                self.client_acts(client);
            }
        }
        if self.phase < Phase::Ending {
            self.later(2 * SECOND, 20 * SECOND, Event::Rush);
        }
    }

    fn send_attempt(&mut self, client: usize) {
        let c = &mut self.clients[client];
        let mut host = c.host;
        if self.hosts[host].core.is_none() {
            host = c.random.index(self.hosts.len());
            c.host = host;
        }
        if self.hosts[host].core.is_none() {
            let wait = c.random.range(20 * MS, 500 * MS);
            return self.schedule(self.now + wait, Event::Client(client));
        }
        let h = &mut self.hosts[host];
        h.next_number += 1;
        let id = RequestId {
            seat: seat(host),
            number: h.next_number,
        };
        let proposed_time_us = h.now(self.now).clock_us;
        let Some(pending) = c.pending.as_mut() else {
            return;
        };
        pending.attempt += 1;
        pending.sent = self.now;
        pending.id = Some(id);
        let attempt = pending.attempt;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&c.random.next().to_le_bytes());
        let request = Request {
            id,
            class: pending.operation.class(),
            key: pending.key,
            key_owner: client as u64 + 1,
            proposed_time_us,
            seed,
            request: pending.bytes.clone(),
        };
        h.open.insert(id.number, (client, attempt));
        if c.random
            .permille(if self.plan.strain.stalls { 150 } else { 30 })
        {
            let patience = c.random.range(SECOND, 20 * SECOND);
            self.schedule(self.now + patience, Event::Impatient { client, attempt });
        }
        self.input(host, Input::Submit(request));
    }

    /// A scrub is ordered through a gateway.
    pub(crate) fn scrub(&mut self, host: usize) {
        if self.hosts[host].core.is_none() {
            return;
        }
        let h = &mut self.hosts[host];
        h.next_number += 1;
        let request = Request {
            id: RequestId {
                seat: seat(host),
                number: h.next_number,
            },
            class: Class::Scrub,
            key: None,
            key_owner: 0,
            proposed_time_us: h.now(self.now).clock_us,
            seed: [0; 32],
            request: bytes::Bytes::new(),
        };
        h.open.insert(request.id.number, (SCRUB, 0));
        self.scrub_asked = true;
        self.input(host, Input::Submit(request));
    }

    fn waiting(&self, client: usize, host: usize, number: u64) -> bool {
        let id = RequestId {
            seat: seat(host),
            number,
        };
        let pending = self.clients[client].pending.as_ref();
        pending.is_some_and(|p| p.id == Some(id))
    }

    pub(crate) fn answered(
        &mut self,
        host: usize,
        number: u64,
        position: Position,
        outcome: Option<&Outcome>,
    ) {
        let Some((client, _)) = self.hosts[host].open.remove(&number) else {
            return;
        };
        if client == SCRUB {
            self.scrub_asked = false;
            return;
        }
        self.answered_last = self.now;
        if !self.waiting(client, host, number) {
            return;
        }
        let Some(pending) = self.clients[client].pending.clone() else {
            return;
        };
        let verdict = hold(
            "a request takes effect at most once",
            !pending.reuses_key,
            || format!("client {client} used a key for two requests, and both were answered"),
        );
        let after = hold(
            "client histories are linearizable",
            position.0 > pending.floor,
            || {
                format!(
                    "an operation is at {position}, but {} was answered before it began",
                    pending.floor
                )
            },
        );
        self.hold(verdict);
        self.hold(after);
        let poison = pending.operation.kind == Kind::Poison;
        let end = end_of(outcome);
        let sane = hold(
            "only correct pages",
            end.is_some() && (!poison || outcome.is_none()),
            || format!("client {client} gets {outcome:?} for an answer"),
        );
        self.hold(sane);
        self.finish(client, end.unwrap_or(End::Unknown));
    }

    fn finish(&mut self, client: usize, end: End) {
        let c = &mut self.clients[client];
        let operated = c.end(self.now, end);
        self.history.extend(operated);
        c.burst_left = c.burst_left.saturating_sub(1);
        let wait = if c.floods {
            c.random.range(10, 200)
        } else if c.burst_left == 0 {
            c.random.range(0, self.plan.pause)
        } else {
            c.random.range(100, 2 * MS)
        };
        if c.random.permille(50) {
            c.host = c.random.index(self.plan.hosts);
        }
        self.schedule(self.now + wait, Event::Client(client));
    }

    pub(crate) fn refused(&mut self, host: usize, number: u64, reason: Refusal) {
        let Some((client, _)) = self.hosts[host].open.remove(&number) else {
            return;
        };
        if client == SCRUB {
            self.scrub_asked = false;
            return;
        }
        if !self.waiting(client, host, number) {
            return;
        }
        match reason {
            Refusal::KeysExhausted => {
                let pending = self.clients[client].pending.as_ref();
                let unsure = pending.is_some_and(|p| p.unsure);
                self.clients[client].floods = false;
                self.finish(client, if unsure { End::Unknown } else { End::Nothing });
            }
            Refusal::Busy | Refusal::Overloaded { .. } | Refusal::NotPrimary => {
                let c = &mut self.clients[client];
                let unsure = c.pending.as_ref().is_some_and(|p| p.unsure);
                let keyed = c.pending.as_ref().is_some_and(|p| p.key.is_some());
                debug_assert!(keyed || !unsure);
                if let Some(pending) = c.pending.as_mut() {
                    pending.id = None;
                }
                c.host = c.random.index(self.plan.hosts);
                let wait = c.random.range(10 * MS, 600 * MS);
                self.schedule(self.now + wait, Event::Client(client));
            }
            Refusal::Interrupted => self.lost_gateway(client),
            Refusal::KeyReused => {
                let reuses = self.clients[client]
                    .pending
                    .as_ref()
                    .is_some_and(|p| p.reuses_key);
                let verdict = hold("a request takes effect at most once", reuses, || {
                    format!("client {client} is told that its key was used, and it was not")
                });
                self.hold(verdict);
                self.finish(client, End::Nothing);
            }
        }
    }

    /// The client does not know what became of its request: with a key it asks again elsewhere.
    pub(crate) fn lost_gateway(&mut self, client: usize) {
        let c = &mut self.clients[client];
        c.host = c.random.index(self.plan.hosts);
        let Some(pending) = c.pending.as_mut() else {
            return;
        };
        if pending.key.is_some() {
            pending.unsure = true;
            pending.id = None;
            let wait = c.random.range(5 * MS, 400 * MS);
            self.schedule(self.now + wait, Event::Client(client));
        } else {
            self.finish(client, End::Unknown);
        }
    }

    pub(crate) fn client_loses_patience(&mut self, client: usize, attempt: u64) {
        let waits = self.clients[client].pending.as_ref();
        if waits.is_some_and(|p| p.attempt == attempt && p.id.is_some()) {
            self.lost_gateway(client);
        }
    }
}
