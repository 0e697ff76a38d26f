//! A request gets its position and its agreed time, unless it was delivered before or repeats another
//! (`docs/protocol.md#order`, `docs/protocol.md#exactly-once`).

use crate::bugs::{planted, Bug};
use crate::checkpoints::Checkpoints;
use crate::group_state::{Event, GroupState, Rules};
use crate::membership::Views;
use crate::order::Order;
use spare_protocol::channel::RootRequest;
use spare_protocol::http::essence;
use spare_protocol::messages::Request;
use spare_protocol::{Class, SeatId};

impl GroupState {
    /// A request was delivered: gives it the next position, unless it was delivered before.
    pub(crate) fn requested(&mut self, from: SeatId, request: Request) {
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
            let owner = request.key_owner;
            if self.exactly_once.count_of(owner) >= self.rules.keys_of_owner_max {
                // To forget one of these would let its retry take effect twice.
                return self.event(Event::KeysExhausted(request.id));
            }
            let position = self.ordered().next();
            let time_us = agreed_time(&self.rules, &self.views, &self.order, &request);
            self.exactly_once
                .insert_key((key, owner), digest, position, time_us);
        }
        self.append(request);
    }

    /// Appends a request to the order.
    pub(crate) fn append(&mut self, request: Request) {
        let time_us = agreed_time(&self.rules, &self.views, &self.order, &request);
        let oldest = time_us.saturating_sub(self.rules.key_lifetime_us);
        self.exactly_once.expire_keys(oldest, self.rules.keys_max);
        let (rules, class) = (&self.rules, request.class);
        let root = mark_checkpoint(rules, &mut self.order, &mut self.checkpoints, class);
        let (executing, following) = (self.roster.executing(), self.roster.following());
        let enough = executing.len() + following.len() >= self.quorum();
        self.order
            .append(request, time_us, root, executing, following);
        let position = self.ordered();
        self.event(Event::Ordered(position));
        if !enough {
            self.tally(position);
        }
    }
}

/// The proposed time, if it is later than the last one and not too far ahead of the other
/// managers' clocks; else what is nearest to it. In microseconds.
fn agreed_time(rules: &Rules, views: &Views, order: &Order, request: &Request) -> i64 {
    let latest = views.latest_clock_but(request.id.seat);
    let limit = latest.map_or(i64::MAX, |clock| {
        clock.saturating_add(rules.clock_ahead_max_us)
    });
    let proposed = request.proposed_time_us.min(limit);
    if planted(Bug::TimeGoesBack) {
        return request.proposed_time_us;
    }
    proposed.max(order.time_last_us().saturating_add(1))
}

/// Which root is reported after the next request; it opens a checkpoint if one is.
fn mark_checkpoint(
    rules: &Rules,
    order: &mut Order,
    checkpoints: &mut Checkpoints,
    class: Class,
) -> RootRequest {
    if !class.is_exclusive() {
        return RootRequest::No;
    }
    let count = order.count_exclusive();
    let root = match class {
        Class::Scrub => RootRequest::FullScan,
        _ if count.is_multiple_of(rules.checkpoint_writes) => RootRequest::Incremental,
        _ => return RootRequest::No,
    };
    checkpoints.open(order.ordered().next(), class == Class::Scrub);
    root
}
