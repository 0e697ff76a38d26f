//! The comparison of the replicas' whole states at a start: replicas that were all built from what is on disk are
//! compared before anybody is answered.
//!
//! ```text
//! Wanted ──asked──> Asked ──equal roots, or this seat joined others that serve──> Done
//!    ^                │
//!    └─different roots┘     (asked again when it takes too long)
//! ```

use super::shared::Shared;
use crate::clock::unix_us;
use bytes::Bytes;
use spare_core::Input;
use spare_protocol::admin::EventKind;
use spare_protocol::messages::{Request, RequestId};
use spare_protocol::{Class, Hash, ReplicaId, SeatId};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// For a scrub at the start: it reads every replica's whole database.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Verification {
    Wanted,
    Asked(Instant),
    Done,
}

impl Verification {
    /// Whether it is done; if not, it is asked for. Called once all replicas are there.
    pub(super) fn is_done(
        &mut self,
        seat: SeatId,
        shared: &Shared,
        inputs: &mpsc::Sender<Input>,
    ) -> bool {
        match self {
            Verification::Done => return true,
            Verification::Asked(at) if at.elapsed() < ANSWER_LIMIT => return false,
            Verification::Asked(_) => {
                let text = "comparing the replicas' states takes long; it is asked for again";
                shared
                    .event_log
                    .event(EventKind::Alarm, None, text.to_owned());
            }
            Verification::Wanted => {}
        }
        *self = Verification::Asked(Instant::now());
        // Nobody waits for the answer; the roots come with `Output::ScrubEnded`.
        let _ = shared.pending.enter(|number| {
            let _ = inputs.try_send(Input::Submit(Request {
                id: RequestId { seat, number },
                class: Class::Scrub,
                key: None,
                key_owner: 0,
                proposed_time_us: unix_us(),
                seed: rand::random(),
                request: Bytes::new(),
            }));
        });
        false
    }

    /// This seat has joined others that serve. If they are on other hosts, their replicas were there before, and
    /// scrubs and checkpoints hold those of this host against them: service is not interrupted for it.
    pub(super) fn joined(&mut self, shared: &Shared) {
        if shared.several_hosts {
            *self = Verification::Done;
        }
    }

    /// The replicas' whole states were compared.
    pub(super) fn compared(&mut self, roots: &[(ReplicaId, Hash)], shared: &Shared) {
        if !matches!(self, Verification::Asked(_)) {
            return;
        }
        let root = roots.first().map(|(_, root)| *root);
        if roots.iter().all(|(_, r)| Some(*r) == root) {
            *self = Verification::Done;
            let root = root.map_or(String::new(), |r| format!(": {}", r.short()));
            tracing::info!(
                "the replicas were built from what is on disk, and their states have the same root{root}"
            );
        } else {
            *self = Verification::Wanted;
            let text = "replicas that were built from what is on disk have different states; those in the \
                        minority are replaced, and all are compared again";
            shared
                .event_log
                .event(EventKind::Alarm, None, text.to_owned());
        }
    }
}
