//! A request gets its position, its agreed time, and its place in the memory of keys.

use super::{Ballot, Decision, Entry, Event, Group, LATE_DECISIONS_MAX, UNANSWERED_KEPT};
use crate::bugs::{planted, Bug};
use spare_protocol::channel::RootRequest;
use spare_protocol::group::Request;
use spare_protocol::http::essence;
use spare_protocol::{Class, Hash, Position, SeatId};

impl Group {
    /// A request was delivered: gives it the next position, unless it was delivered before.
    pub(super) fn order(&mut self, from: SeatId, request: Request) {
        if request.id.seat != from || !self.exactly_once.is_new(request.id) {
            return;
        }
        if let Some(key) = request.key.filter(|_| !planted(Bug::KeysIgnored)) {
            let digest = essence(&request.request);
            if let Some(used) = self.exactly_once.key(&key) {
                let id = request.id;
                self.event(
                    if used.digest == digest || planted(Bug::KeyMatchesAnyRequest) {
                        let position = used.position;
                        Event::Repeated { id, position }
                    } else {
                        Event::KeyReused(id)
                    },
                );
                return;
            }
            let position = self.ordered().next();
            let time_us = self.agreed_time(&request);
            self.exactly_once.insert_key(key, digest, position, time_us);
        }
        self.append(request);
    }

    /// Where the request with this key is in the order.
    pub(crate) fn position_of_key(&self, key: &Hash) -> Option<Position> {
        self.exactly_once.key(key).map(|used| used.position)
    }

    /// Appends a request to the order.
    pub(super) fn append(&mut self, request: Request) {
        self.time_last_us = self.agreed_time(&request);
        let oldest = self.time_last_us.saturating_sub(self.rules.key_lifetime_us);
        self.exactly_once.expire_keys(oldest, self.rules.keys_max);
        let position = self.ordered().next();
        let root = self.mark_checkpoint(position, request.class);
        self.entries.push(Entry {
            time_us: self.time_last_us,
            root,
            request,
            ballot: Ballot::default(),
            missing: self.roster.executing().into(),
            held: self.roster.following().into(),
            decision: None,
            decided_in: 0,
            aborted: false,
            trouble: None,
        });
        if !self.roster.following().is_empty() {
            self.held.insert(position);
        }
        self.event(Event::Ordered(position));
        self.tally(position);
    }

    /// The proposed time, if it is later than the last one and not too far ahead of the other
    /// managers' clocks; else what is nearest to it.
    fn agreed_time(&self, request: &Request) -> i64 {
        let latest = self.views.latest_clock_but(request.id.seat);
        let limit = latest.map_or(i64::MAX, |clock| {
            clock.saturating_add(self.rules.clock_ahead_max_us)
        });
        let proposed = request.proposed_time_us.min(limit);
        if planted(Bug::TimeGoesBack) {
            return request.proposed_time_us;
        }
        proposed.max(self.time_last_us.saturating_add(1))
    }

    fn mark_checkpoint(&mut self, position: Position, class: Class) -> RootRequest {
        if !class.is_exclusive() {
            return RootRequest::No;
        }
        self.exclusive += 1;
        let root = match class {
            Class::Scrub => RootRequest::FullScan,
            _ if self.exclusive.is_multiple_of(self.rules.checkpoint_writes) => {
                RootRequest::Incremental
            }
            _ => return RootRequest::No,
        };
        self.checkpoints.open(position, class == Class::Scrub);
        root
    }

    /// Forgets requests that nobody needs any more: every member has their agreed bytes.
    pub(super) fn prune(&mut self) {
        let everywhere = self.views.agreed_everywhere();
        let ordered = self.ordered();
        let mut forgotten = self.entries.before();
        for (position, entry) in self.entries.iter_above(forgotten) {
            let kept = position.0 + UNANSWERED_KEPT > ordered.0;
            let open = !entry.missing.is_empty() && kept;
            let Some(decision) = entry.decision.filter(|_| position <= everywhere && !open) else {
                break;
            };
            // Who votes on an aborted request is no liar.
            if !entry.aborted {
                self.late.push_back((position, decision));
            }
            if self.late.len() > LATE_DECISIONS_MAX {
                self.late.pop_front();
            }
            forgotten = position;
        }
        self.entries.forget_upto(forgotten);
    }

    /// The decision on a request that was forgotten already, if that is not too long ago.
    pub(super) fn late_decision(&self, position: Position) -> Option<Decision> {
        let at = self
            .late
            .binary_search_by_key(&position, |(p, _)| *p)
            .ok()?;
        self.late.get(at).map(|(_, decision)| *decision)
    }

    pub(super) fn note_settled(&mut self) {
        self.settled = self.settled.max(self.stored_everywhere());
    }
}
