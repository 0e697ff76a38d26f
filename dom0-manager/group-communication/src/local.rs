//! The embedded engine for one host: all seats on one machine, in one process. It masks faulty VMs,
//! not the loss of the host.
//!
//! A lock around the members' queues is the whole ordering: whoever holds it appends to all of them.

use crate::channel::{Closed, Delivery, GroupChannel, MemberId, NotSent, MESSAGE_BYTES_MAX};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};

type Queues = Arc<Mutex<Vec<UnboundedSender<Delivery>>>>;

/// One member's end of a local group.
///
/// The queues have no bound of their own. All of them hold the same bytes, once, until the slowest member took them, and
/// the members' process has one gateway: what it lets be under way is all that waits, with the votes on it.
#[derive(Debug)]
pub struct LocalGroup {
    me: MemberId,
    queues: Queues,
    deliveries: UnboundedReceiver<Delivery>,
}

/// A group of `size` members, numbered from 0. The first delivery of each is the view of all, as `ring`,
/// which must be greater than those of all groups of these members before.
#[must_use]
pub fn local_group(size: MemberId, ring: u64) -> Vec<LocalGroup> {
    let view = Delivery::View {
        ring,
        members: (0..size).collect(),
        primary: true,
    };
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..size).map(|_| unbounded_channel()).unzip();
    for sender in &senders {
        // The receiver lives in `receivers`, so this cannot fail.
        let _ = sender.send(view.clone());
    }
    let queues: Queues = Arc::new(Mutex::new(senders));
    (0..size)
        .zip(receivers)
        .map(|(me, deliveries)| LocalGroup {
            me,
            queues: Arc::clone(&queues),
            deliveries,
        })
        .collect()
}

impl GroupChannel for LocalGroup {
    fn multicast(&self, bytes: Bytes) -> Result<(), NotSent> {
        let length = bytes.len();
        if length > MESSAGE_BYTES_MAX {
            return Err(NotSent::TooLong { length });
        }
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for queue in queues.iter() {
            let message = Delivery::Message {
                from: self.me,
                bytes: bytes.clone(),
            };
            queue.send(message).map_err(|_| Closed)?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<Delivery, Closed> {
        self.deliveries.recv().await.ok_or(Closed)
    }

    fn try_receive(&mut self) -> Option<Delivery> {
        self.deliveries.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_beyond_the_limit_is_refused_and_the_group_goes_on() {
        let mut group = local_group(2, 1);
        let length = MESSAGE_BYTES_MAX + 1;
        let refused = group[0].multicast(Bytes::from(vec![0; length]));
        assert_eq!(refused, Err(NotSent::TooLong { length }));
        assert_eq!(group[0].multicast(Bytes::from_static(b"next")), Ok(()));
        let next = std::iter::from_fn(|| group[1].try_receive()).last();
        assert!(matches!(next, Some(Delivery::Message { bytes, .. }) if &bytes[..] == b"next"));
    }

    #[test]
    fn all_members_see_one_order_that_begins_with_the_view() {
        let mut group = local_group(3, 1);
        let senders: Vec<Queues> = group.iter().map(|m| Arc::clone(&m.queues)).collect();
        std::thread::scope(|scope| {
            for member in &group {
                let member = LocalGroup {
                    me: member.me,
                    queues: Arc::clone(&senders[0]),
                    deliveries: unbounded_channel().1,
                };
                scope.spawn(move || {
                    for i in 0..500u32 {
                        member
                            .multicast(Bytes::copy_from_slice(&i.to_le_bytes()))
                            .expect("open");
                    }
                });
            }
        });
        let mut drain =
            |i: usize| std::iter::from_fn(|| group[i].try_receive()).collect::<Vec<_>>();
        let first = drain(0);
        assert_eq!(first.len(), 1501);
        assert!(matches!(&first[0], Delivery::View { members, .. } if members.len() == 3));
        assert_eq!(first, drain(1));
        assert_eq!(first, drain(2));
    }
}
