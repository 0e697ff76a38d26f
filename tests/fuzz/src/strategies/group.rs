//! Messages between managers. The one file to extend when they get a new variant or field; the test
//! `group_messages_of_every_variant_are_generated` tells when it was forgotten.

use super::{bytes, class, hash, outcome, position, replica, text};
use proptest::prelude::*;
use spare_protocol::group::{GroupMessage, LossReason, PeerMessage, Request, RequestId, Vote};
use spare_protocol::SeatId;

fn request() -> impl Strategy<Value = Request> {
    let id = (any::<u16>(), any::<u64>()).prop_map(|(seat, number)| RequestId {
        seat: SeatId(seat),
        number,
    });
    (id, class(), any::<i64>(), any::<[u8; 32]>(), bytes()).prop_map(
        |(id, class, proposed_time_us, seed, request)| Request {
            id,
            class,
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

fn loss() -> impl Strategy<Value = LossReason> {
    prop_oneof![
        text().prop_map(LossReason::VmStopped),
        text().prop_map(LossReason::Broken),
        Just(LossReason::ApplyTimeout),
        Just(LossReason::ChannelStalled),
        text().prop_map(LossReason::Hypervisor),
    ]
}

/// A message in total order.
pub fn group_message() -> impl Strategy<Value = GroupMessage> {
    let votes = (prop::collection::vec(vote(), 0..4), position(), position());
    prop_oneof![
        request().prop_map(GroupMessage::Request),
        votes.prop_map(|(votes, delivered, agreed)| GroupMessage::Votes {
            votes,
            delivered,
            agreed,
        }),
        (position(), any::<u32>(), any::<u16>()).prop_map(|(position, attempt, needed)| {
            GroupMessage::HelpMe {
                position,
                attempt,
                needed,
            }
        }),
        (position(), any::<u32>(), replica()).prop_map(|(position, attempt, replica)| {
            GroupMessage::IDo {
                position,
                attempt,
                replica,
            }
        }),
        (replica(), position())
            .prop_map(|(replica, position)| GroupMessage::Suspected { replica, position }),
        (replica(), text())
            .prop_map(|(replica, reason)| GroupMessage::Convicted { replica, reason }),
        (replica(), position())
            .prop_map(|(replica, position)| GroupMessage::Built { replica, position }),
        (replica(), loss()).prop_map(|(replica, reason)| GroupMessage::Lost { replica, reason }),
        replica().prop_map(|replica| GroupMessage::Slept { replica }),
        (position(), replica(), hash()).prop_map(|(position, replica, root)| GroupMessage::Root {
            position,
            replica,
            root,
        }),
    ]
}

/// A message from one manager to another.
pub fn peer_message() -> impl Strategy<Value = PeerMessage> {
    prop_oneof![
        position().prop_map(|position| PeerMessage::Fetch { position }),
        (position(), outcome(), bytes()).prop_map(|(position, outcome, update)| {
            PeerMessage::Agreed {
                position,
                outcome,
                update,
            }
        }),
    ]
}
