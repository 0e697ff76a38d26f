//! Going on without hosts that are known to be off (docs/protocol.md#views).
//!
//! Two hosts cannot tell a crash from a partition. An engine calls a membership primary when a quorum, perhaps
//! with a witness, says so. Where it does not, its members may go on all the same once every member that
//! is missing was *fenced*: somebody who can tell says that it is off. [`guarded`] wraps an engine, and adds such
//! memberships. What is known of fencing is multicast like everything else, so that all members go on at
//! the same point of the order.
//!
//! ```text
//! engine:   view r, not primary ...                    messages ...
//! told:     view 2r, not primary ... [all missing off] view 2r+1, primary ... messages ...
//! ```
//!
//! Where only a majority decides, half of all members know that the others cannot have decided anything without
//! them, unless they turned them off, which they would not have survived. Then they are told that they are
//! *suspended*, and keep what they are in the middle of.

use crate::channel::{Closed, Delivery, GroupChannel, MemberId, NotSent};
use bytes::Bytes;
use nix::time::{clock_gettime, ClockId};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The last byte of each message tells what it is.
const OF_MEMBERS: u8 = 0;
const MISSING_ARE_OFF: u8 = 1;
/// What is asked for anew before each use need not last long.
const FENCED_LEASE: Duration = Duration::from_secs(1);

/// A membership, as the engine told of it last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The engine's name for it; 0 before the first.
    pub ring: u64,
    /// In ascending order.
    pub members: Vec<MemberId>,
    /// All other members of the group.
    pub missing: Vec<MemberId>,
    /// It may decide: by the engine's quorum, or because all that are missing are off.
    pub primary: bool,
    /// It may not, but neither can others, nor could they since it last did.
    pub suspended: bool,
}

/// The end of a guarded group for whoever can tell that hosts are off: it learns of memberships, and tells.
#[derive(Debug)]
pub struct Guard {
    memberships: watch::Receiver<Membership>,
    off: mpsc::UnboundedSender<(u64, MemberId)>,
}

impl Guard {
    /// Memberships, the newest only.
    #[must_use]
    pub fn memberships(&self) -> watch::Receiver<Membership> {
        self.memberships.clone()
    }

    /// This member, missing in the ring of this name, is off: it stopped after it was in the ring before, and
    /// it has not started since. Means nothing in another ring.
    pub fn is_off(&self, ring: u64, member: MemberId) {
        // The group may be closed already.
        let _ = self.off.send((ring, member));
    }
}

/// An engine whose members may go on when those missing are off.
#[derive(Debug)]
pub struct Guarded<G> {
    engine: G,
    all: Vec<MemberId>,
    current: Membership,
    known_off: BTreeSet<MemberId>,
    asked: bool,
    /// The current membership may decide because those who are missing are off.
    by_fencing: bool,
    /// Since the last membership that may decide, nobody else can have decided.
    unbroken: bool,
    told: watch::Sender<Membership>,
    off: mpsc::UnboundedReceiver<(u64, MemberId)>,
    ready: VecDeque<Delivery>,
}

/// The name that an engine's ring is greater than, if those of a guarded group are greater than `last`.
#[must_use]
pub fn engine_ring(last: u64) -> u64 {
    last / 2
}

/// Wraps one member's end of a group of these members.
pub fn guarded<G: GroupChannel>(engine: G, all: Vec<MemberId>) -> (Guarded<G>, Guard) {
    let (told, memberships) = watch::channel(Membership::default());
    let (sender, off) = mpsc::unbounded_channel();
    let guarded = Guarded {
        engine,
        all,
        current: Membership::default(),
        known_off: BTreeSet::new(),
        asked: false,
        by_fencing: false,
        unbroken: false,
        told,
        off,
        ready: VecDeque::new(),
    };
    let guard = Guard {
        memberships,
        off: sender,
    };
    (guarded, guard)
}

fn with_kind(bytes: &[u8], kind: u8) -> Bytes {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.extend_from_slice(bytes);
    message.push(kind);
    message.into()
}

impl<G: GroupChannel> Guarded<G> {
    fn take(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::View {
                ring,
                members,
                primary,
            } => self.view(ring, members, primary),
            // No engine tells of such.
            Delivery::Suspended { ring, members } => self.view(ring, members, false),
            Delivery::Message { from, mut bytes } => {
                let content = bytes.split_to(bytes.len().saturating_sub(1));
                match bytes.first() {
                    Some(&OF_MEMBERS) => self.ready.push_back(Delivery::Message {
                        from,
                        bytes: content,
                    }),
                    Some(&MISSING_ARE_OFF) => self.missing_are_off(&content),
                    // Of a later version, or nothing at all.
                    _ => {}
                }
            }
        }
    }

    fn view(&mut self, ring: u64, members: Vec<MemberId>, primary: bool) {
        // In no membership nobody is missing: the others go on.
        let all = self.all.iter().copied().filter(|_| !members.is_empty());
        let missing = all.filter(|m| !members.contains(m));
        let half = members.len() * 2 >= self.all.len();
        let suspended = !primary && self.unbroken && half && self.engine.majority_decides();
        self.unbroken = primary || suspended;
        self.current = Membership {
            ring,
            missing: missing.collect(),
            primary,
            suspended,
            members: members.clone(),
        };
        self.known_off.clear();
        self.asked = false;
        self.by_fencing = false;
        self.told.send_replace(self.current.clone());
        let ring = ring.saturating_mul(2);
        self.ready.push_back(match suspended {
            true => Delivery::Suspended { ring, members },
            false => Delivery::View {
                ring,
                members,
                primary,
            },
        });
    }

    /// Somebody tells this member, not through the order, who is off.
    fn is_off(&mut self, ring: u64, member: MemberId) -> Result<(), Closed> {
        let current = &self.current;
        if ring != current.ring || current.primary || !current.missing.contains(&member) {
            return Ok(());
        }
        self.known_off.insert(member);
        let all = current.missing.iter().all(|m| self.known_off.contains(m));
        if all && !self.asked {
            self.asked = true;
            let message = with_kind(&ring.to_le_bytes(), MISSING_ARE_OFF);
            // It is short.
            if let Err(NotSent::Closed(closed)) = self.engine.multicast(message) {
                return Err(closed);
            }
        }
        Ok(())
    }

    /// Delivered: all that are missing in the ring are off.
    fn missing_are_off(&mut self, content: &[u8]) {
        let ring = self.current.ring;
        if self.current.primary || content != ring.to_le_bytes() {
            return;
        }
        self.current.primary = true;
        self.current.suspended = false;
        self.by_fencing = true;
        self.unbroken = true;
        self.told.send_replace(self.current.clone());
        self.ready.push_back(Delivery::View {
            ring: ring.saturating_mul(2).saturating_add(1),
            members: self.current.members.clone(),
            primary: true,
        });
    }
}

impl<G: GroupChannel> GroupChannel for Guarded<G> {
    fn multicast(&self, bytes: Bytes) -> Result<(), NotSent> {
        self.engine.multicast(with_kind(&bytes, OF_MEMBERS))
    }

    async fn receive(&mut self) -> Result<Delivery, Closed> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(delivery);
            }
            tokio::select! {
                delivery = self.engine.receive() => self.take(delivery?),
                Some((ring, member)) = self.off.recv() => self.is_off(ring, member)?,
            }
        }
    }

    fn try_receive(&mut self) -> Option<Delivery> {
        if self.ready.is_empty() {
            let delivery = self.engine.try_receive()?;
            self.take(delivery);
        }
        self.ready.pop_front()
    }

    /// Nobody else can decide while those who are missing are off, however long this member stood still: who
    /// is switched on again is in this member's membership before it may decide.
    fn lease(&self) -> Option<Duration> {
        if self.by_fencing {
            let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
            return Some(now + FENCED_LEASE);
        }
        self.engine.lease()
    }

    fn majority_decides(&self) -> bool {
        self.engine.majority_decides()
    }

    fn closed_because(&self) -> Option<String> {
        self.engine.closed_because()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Delivers what the test says; what is multicast is kept.
    #[derive(Default)]
    struct Script {
        deliveries: VecDeque<Delivery>,
        multicast: Arc<Mutex<Vec<Bytes>>>,
        majority_decides: bool,
    }

    impl GroupChannel for Script {
        fn multicast(&self, bytes: Bytes) -> Result<(), NotSent> {
            self.multicast.lock().expect("unpoisoned").push(bytes);
            Ok(())
        }

        async fn receive(&mut self) -> Result<Delivery, Closed> {
            match self.deliveries.pop_front() {
                Some(delivery) => Ok(delivery),
                None => std::future::pending().await,
            }
        }

        fn try_receive(&mut self) -> Option<Delivery> {
            self.deliveries.pop_front()
        }

        fn majority_decides(&self) -> bool {
            self.majority_decides
        }
    }

    fn view(ring: u64, members: &[MemberId], primary: bool) -> Delivery {
        Delivery::View {
            ring,
            members: members.to_vec(),
            primary,
        }
    }

    fn message(from: MemberId, bytes: Bytes) -> Delivery {
        Delivery::Message { from, bytes }
    }

    /// A member of 0, 1 and 2, and what it multicasts.
    fn member() -> (Guarded<Script>, Guard, Arc<Mutex<Vec<Bytes>>>) {
        let script = Script::default();
        let multicast = Arc::clone(&script.multicast);
        let (guarded, guard) = guarded(script, vec![0, 1, 2]);
        (guarded, guard, multicast)
    }

    impl Guarded<Script> {
        fn deliver(&mut self, delivery: Delivery) -> Vec<Delivery> {
            self.engine.deliveries.push_back(delivery);
            std::iter::from_fn(|| self.try_receive()).collect()
        }

        fn hear_of_fencing(&mut self) {
            while let Ok((ring, member)) = self.off.try_recv() {
                self.is_off(ring, member).expect("open");
            }
        }
    }

    #[test]
    fn members_go_on_at_one_point_of_the_order_once_all_that_are_missing_are_off() {
        let (mut member, guard, multicast) = member();
        let found = member.deliver(view(5, &[0, 1, 2], true));
        assert_eq!(found, [view(10, &[0, 1, 2], true)]);
        let found = member.deliver(view(7, &[0], false));
        assert_eq!(found, [view(14, &[0], false)]);
        let told = guard.memberships().borrow().clone();
        assert_eq!((told.missing, told.suspended), (vec![1, 2], false));

        guard.is_off(7, 1);
        member.hear_of_fencing();
        assert!(multicast.lock().expect("unpoisoned").is_empty());
        guard.is_off(7, 2);
        guard.is_off(7, 2);
        member.hear_of_fencing();
        let sent = multicast.lock().expect("unpoisoned").clone();
        assert_eq!(sent.len(), 1);
        let found = member.deliver(message(0, sent[0].clone()));
        assert_eq!(found, [view(15, &[0], true)]);
        // Another member found out as well.
        assert_eq!(member.deliver(message(0, sent[0].clone())), []);
        let found = member.deliver(view(8, &[0, 1, 2], true));
        assert_eq!(found, [view(16, &[0, 1, 2], true)]);
        assert_eq!(engine_ring(15), 7);
    }

    fn suspended(ring: u64, members: &[MemberId]) -> Delivery {
        Delivery::Suspended {
            ring,
            members: members.to_vec(),
        }
    }

    #[test]
    fn half_of_the_members_are_suspended_where_only_a_majority_decides() {
        let (mut member, _guard, _) = member();
        member.all = vec![0, 1];
        member.engine.majority_decides = true;
        assert_eq!(
            member.deliver(view(1, &[0], false)),
            [view(2, &[0], false)],
            "it was in none that may decide"
        );
        member.deliver(view(2, &[0, 1], true));
        let found = member.deliver(view(3, &[0], false));
        assert_eq!(found, [suspended(6, &[0])]);
        let found = member.deliver(view(4, &[0], false));
        assert_eq!(found, [suspended(8, &[0])], "and still");
        member.engine.majority_decides = false;
        let found = member.deliver(view(5, &[0], false));
        assert_eq!(found, [view(10, &[0], false)], "a witness came");
        member.engine.majority_decides = true;
        let found = member.deliver(view(6, &[0], false));
        assert_eq!(found, [view(12, &[0], false)], "somebody may have decided");
    }

    #[test]
    fn fewer_than_half_are_never_suspended() {
        let (mut member, _guard, _) = member();
        member.engine.majority_decides = true;
        member.deliver(view(2, &[0, 1, 2], true));
        let found = member.deliver(view(3, &[0], false));
        assert_eq!(found, [view(6, &[0], false)]);
    }

    #[test]
    fn who_is_in_no_membership_misses_nobody_and_is_not_suspended() {
        let (mut member, guard, _) = member();
        member.all = vec![0, 1];
        member.engine.majority_decides = true;
        member.deliver(view(2, &[0, 1], true));
        let found = member.deliver(view(3, &[], false));
        assert_eq!(found, [view(6, &[], false)]);
        let told = guard.memberships().borrow().clone();
        assert_eq!((told.missing, told.suspended), (vec![], false));
    }

    #[test]
    fn what_is_known_of_one_membership_means_nothing_in_the_next() {
        let (mut member, guard, multicast) = member();
        member.deliver(view(5, &[0, 1], false));
        guard.is_off(5, 2);
        member.hear_of_fencing();
        let sent = multicast.lock().expect("unpoisoned").clone();
        assert_eq!(sent.len(), 1);
        member.deliver(view(6, &[0], false));
        assert_eq!(member.deliver(message(1, sent[0].clone())), []);
        guard.is_off(5, 1);
        guard.is_off(6, 1);
        member.hear_of_fencing();
        assert_eq!(multicast.lock().expect("unpoisoned").len(), 1);
    }

    #[test]
    fn messages_arrive_as_they_were_sent_and_others_are_dropped() {
        let (mut member, _guard, multicast) = member();
        member.multicast(Bytes::from_static(b"abc")).expect("open");
        member.multicast(Bytes::new()).expect("open");
        for (sent, expected) in [(0, &b"abc"[..]), (1, b"")] {
            let sent = multicast.lock().expect("unpoisoned")[sent].clone();
            let found = member.deliver(message(2, sent));
            assert_eq!(found, [message(2, Bytes::copy_from_slice(expected))]);
        }
        assert_eq!(member.deliver(message(2, Bytes::new())), []);
        assert_eq!(member.deliver(message(2, Bytes::from_static(b"x"))), []);
    }
}
