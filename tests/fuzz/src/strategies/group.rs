//! Messages between managers. The one file to extend when they get a new variant or field; the test
//! `group_messages_of_every_variant_are_generated` tells when it was forgotten.

use super::{bytes, class, hash, outcome, position, replica, text};
use proptest::prelude::*;
use spare_protocol::messages::{
    DecidedRequest, Envelope, LossReason, OrderedMessage, PeerMessage, PrimaryView, Progress,
    Request, RequestId, RootVote, Sync, ViewId, Vote, Votes,
};
use spare_protocol::versions::VersionRange;
use spare_protocol::SeatId;

fn seat() -> impl Strategy<Value = SeatId> {
    any::<u16>().prop_map(SeatId)
}

fn seats() -> impl Strategy<Value = Vec<SeatId>> {
    prop::collection::vec(seat(), 0..5)
}

fn id() -> impl Strategy<Value = RequestId> {
    (seat(), any::<u64>()).prop_map(|(seat, number)| RequestId { seat, number })
}

fn request() -> impl Strategy<Value = Request> {
    let key = prop::option::of(hash());
    let key = (key, any::<u64>());
    (id(), class(), key, any::<i64>(), any::<[u8; 32]>(), bytes()).prop_map(
        |(id, class, (key, key_owner), proposed_time_us, seed, request)| Request {
            id,
            class,
            key,
            key_owner,
            proposed_time_us,
            seed,
            request,
        },
    )
}

fn vote() -> impl Strategy<Value = Vote> {
    (position(), replica(), hash(), hash()).prop_map(|(position, replica, reply, update)| Vote {
        position,
        replica,
        reply,
        update,
    })
}

fn root_vote() -> impl Strategy<Value = RootVote> {
    (position(), replica(), hash()).prop_map(|(position, replica, root)| RootVote {
        position,
        replica,
        root,
    })
}

fn progress() -> impl Strategy<Value = Progress> {
    let positions = (position(), position(), position());
    (positions, any::<u64>(), any::<i64>()).prop_map(
        |((delivered, agreed, stored), view_stored, clock_us)| Progress {
            delivered,
            agreed,
            stored,
            view_stored,
            clock_us,
        },
    )
}

fn votes() -> impl Strategy<Value = Votes> {
    let suspected = prop::collection::vec((replica(), position()), 0..3);
    (
        prop::collection::vec(vote(), 0..4),
        prop::collection::vec(root_vote(), 0..3),
        suspected,
        progress(),
    )
        .prop_map(|(votes, roots, suspected, progress)| Votes {
            votes,
            roots,
            suspected,
            progress,
        })
}

fn loss() -> impl Strategy<Value = LossReason> {
    prop_oneof![
        text().prop_map(LossReason::VmStopped),
        text().prop_map(LossReason::Broken),
        Just(LossReason::ApplyTimeout),
        Just(LossReason::ChannelStalled),
        text().prop_map(LossReason::Hypervisor),
        Just(LossReason::SeatLost),
        position().prop_map(LossReason::Poisoned),
        Just(LossReason::Recovered),
        Just(LossReason::Surplus),
        Just(LossReason::Forgotten),
    ]
}

fn sync() -> impl Strategy<Value = Sync> {
    let view = (any::<u64>(), any::<u64>(), seats());
    let view = view.prop_map(|(epoch, ring, members)| PrimaryView {
        id: ViewId { epoch, ring },
        members,
    });
    let log = (any::<u64>(), position());
    let rings = (any::<u64>(), any::<u64>(), any::<u64>());
    let views = (view, seats(), any::<u16>());
    (rings, any::<bool>(), views, log, any::<u64>(), any::<u16>()).prop_map(
        |((ring, came_from, served), live, (view, established, seats), log, delivered, version)| {
            Sync {
                ring,
                live,
                came_from,
                served,
                view,
                established,
                log,
                delivered,
                seats,
                version,
            }
        },
    )
}

/// A message in total order.
pub fn group_message() -> impl Strategy<Value = OrderedMessage> {
    let of_requests = prop_oneof![
        prop::collection::vec(request(), 0..3).prop_map(OrderedMessage::Requests),
        votes().prop_map(OrderedMessage::Votes),
        (position(), any::<u32>(), any::<u16>()).prop_map(|(position, attempt, needed)| {
            OrderedMessage::HelpMe {
                position,
                attempt,
                needed,
            }
        }),
        (position(), any::<u32>(), replica()).prop_map(|(position, attempt, replica)| {
            OrderedMessage::IDo {
                position,
                attempt,
                replica,
            }
        }),
        (position(), prop::collection::vec(replica(), 0..3))
            .prop_map(|(position, overdue)| OrderedMessage::Abort { position, overdue }),
    ];
    let of_replicas = prop_oneof![
        (replica(), text())
            .prop_map(|(replica, reason)| OrderedMessage::Convicted { replica, reason }),
        (replica(), position(), any::<bool>()).prop_map(|(replica, position, clean)| {
            OrderedMessage::Built {
                replica,
                position,
                clean,
            }
        }),
        (replica(), loss()).prop_map(|(replica, reason)| OrderedMessage::Lost { replica, reason }),
        replica().prop_map(|replica| OrderedMessage::Slept { replica }),
        replica().prop_map(|replica| OrderedMessage::Compensate { replica }),
    ];
    let of_seats = prop_oneof![
        seat().prop_map(|seat| OrderedMessage::Recover { seat }),
        seat().prop_map(|seat| OrderedMessage::RecoveryEnded { seat }),
        sync().prop_map(OrderedMessage::Sync),
        (any::<u64>(), position(), any::<bool>(), seats()).prop_map(
            |(ring, agreed, drained, seats)| OrderedMessage::Joined {
                ring,
                agreed,
                drained,
                seats
            }
        ),
        (seat(), any::<bool>()).prop_map(|(seat, drained)| OrderedMessage::Drain { seat, drained }),
        any::<u64>().prop_map(|ring| OrderedMessage::ViewStored { ring }),
        (any::<u64>(), seats())
            .prop_map(|(ring, seats)| OrderedMessage::AcceptLoss { ring, seats }),
        (any::<u64>(), any::<(u16, u16)>(), any::<Option<u16>>()).prop_map(
            |(ring, (lowest, highest), active)| OrderedMessage::Speaks {
                ring,
                versions: VersionRange { lowest, highest },
                active,
            }
        ),
    ];
    prop_oneof![of_requests, of_replicas, of_seats]
}

/// A message in total order as it travels.
pub fn envelope() -> impl Strategy<Value = Envelope> {
    (any::<u64>(), group_message()).prop_map(|(epoch, message)| Envelope { epoch, message })
}

/// A decided request.
pub fn decided_request() -> impl Strategy<Value = DecidedRequest> {
    let what = (id(), class(), prop::option::of(hash()), bytes());
    let agreed = (hash(), hash(), prop::option::of(outcome()), bytes());
    let when = (position(), any::<u64>(), any::<i64>(), any::<[u8; 32]>());
    (what, agreed, when).prop_map(
        |(
            (id, class, key, request),
            (reply_hash, update_hash, outcome, update),
            (position, epoch, time_us, seed),
        )| DecidedRequest {
            position,
            epoch,
            id,
            class,
            key,
            time_us,
            seed,
            request,
            reply_hash,
            update_hash,
            outcome,
            update,
        },
    )
}

/// A message from one manager to another.
pub fn peer_message() -> impl Strategy<Value = PeerMessage> {
    prop_oneof![
        position().prop_map(|position| PeerMessage::Fetch { position }),
        (position(), prop::option::of(outcome()), bytes()).prop_map(
            |(position, outcome, update)| PeerMessage::Agreed {
                position,
                outcome,
                update,
            }
        ),
        any::<u64>().prop_map(|ring| PeerMessage::WantState { ring }),
        (any::<u64>(), any::<u64>(), bytes()).prop_map(|(ring, seen, state)| PeerMessage::State {
            ring,
            seen,
            state
        }),
        position().prop_map(|after| PeerMessage::WantLog { after }),
        prop::collection::vec(decided_request(), 0..3)
            .prop_map(|records| PeerMessage::Log { records }),
    ]
}
