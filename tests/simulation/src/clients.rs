//! Clients: each with one operation under way, against whichever gateway it likes.

use crate::random::Random;
use crate::service::{Burden, Kind, Operation, Read, REGISTERS};
use crate::strain::{burden, Allowance, Strain};
use bytes::Bytes;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::RequestId;
use spare_protocol::{Class, Hash};

/// What became of an operation, as its client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Answered: whether its condition held, and the register's value before.
    Done { held: bool, before: u64 },
    /// An error: it had no effect.
    Nothing,
    /// It may take effect at any time, or never.
    Unknown,
}

/// One line of a client's history.
#[derive(Clone, Debug)]
pub(crate) struct Operated {
    pub(crate) operation: Operation,
    pub(crate) invoked: u64,
    pub(crate) completed: u64,
    pub(crate) end: End,
}

/// An operation under way.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) operation: Operation,
    pub(crate) bytes: Bytes,
    pub(crate) key: Option<Hash>,
    /// The key was used for something else before: it must be refused.
    pub(crate) reuses_key: bool,
    pub(crate) invoked: u64,
    /// Positions that were answered before it was invoked are at most this.
    pub(crate) floor: u64,
    /// The attempt that the client waits for.
    pub(crate) id: Option<RequestId>,
    pub(crate) attempt: u64,
    /// When that attempt was sent.
    pub(crate) sent: u64,
    /// An earlier attempt may take effect.
    pub(crate) unsure: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) random: Random,
    pub(crate) number: usize,
    pub(crate) host: usize,
    pub(crate) pending: Option<Pending>,
    pub(crate) burst_left: u64,
    /// The key of a write that was answered. (What a read's stood for is on no disk when that is answered.)
    pub(crate) used_key: Option<Hash>,
    /// Its first of those, which is still remembered as long as it has used so few.
    first_key: Option<Hash>,
    pub(crate) first_kept_for: usize,
    keys_used: usize,
    count: u64,
    /// What it saw last, to expect it in a comparison.
    seen: [u64; REGISTERS],
    /// For strain alone.
    strain_random: Random,
    /// It does nothing but send keys.
    pub(crate) floods: bool,
}

impl Client {
    pub(crate) fn new(number: usize, mut random: Random, hosts: usize) -> Client {
        Client {
            number,
            host: random.index(hosts),
            random,
            pending: None,
            burst_left: 0,
            used_key: None,
            first_key: None,
            first_kept_for: 0,
            keys_used: 0,
            count: 0,
            seen: [0; REGISTERS],
            strain_random: Random::new(number as u64 ^ 0xC11E_2717),
            floods: false,
        }
    }

    /// The next operation.
    pub(crate) fn invent(
        &mut self,
        now: u64,
        floor: u64,
        poison: bool,
        (strain, pace, allowance): (Strain, u64, &mut Allowance),
    ) -> &Pending {
        self.count += 1;
        let id = (self.number as u64 + 1) << 32 | self.count;
        let register = self.random.index(REGISTERS);
        let kind = match self.random.below(100) {
            share if poison => match share {
                0..=49 => Kind::Poison,
                _ => Kind::Treacherous,
            },
            0..=44 => Kind::Read,
            45..=74 => Kind::Swap,
            75..=95 => Kind::CompareAndSet,
            _ => Kind::HiddenSwap,
        };
        let mut operation = Operation {
            kind,
            register: u8::try_from(register).unwrap_or(0),
            stamped: self.random.permille(200),
            id,
            value: id,
            expected: self.seen[register],
            burden: Burden::default(),
        };
        if !poison {
            burden(
                &mut operation,
                (strain, pace),
                allowance,
                &mut self.strain_random,
            );
        }
        let keyed = self.random.permille(500) || self.floods;
        let mut key = keyed.then(|| Hash::of(&id.to_le_bytes()));
        let reuses_key = self.used_key.is_some() && self.random.permille(10) && !poison;
        if reuses_key {
            let first = self
                .first_key
                .filter(|_| self.keys_used < self.first_kept_for);
            key = first.or(self.used_key);
        } else {
            self.keys_used += usize::from(keyed);
        }
        self.pending.insert(Pending {
            bytes: operation.encode(),
            operation,
            key,
            reuses_key,
            invoked: now,
            floor,
            id: None,
            attempt: 0,
            sent: now,
            unsure: false,
        })
    }

    /// Ends what is under way.
    pub(crate) fn end(&mut self, now: u64, end: End) -> Option<Operated> {
        let pending = self.pending.take()?;
        if let End::Done { held, before } = &end {
            let changed = pending.operation.changes() && *held;
            let now_there = if changed {
                pending.operation.value
            } else {
                *before
            };
            if let Some(seen) = self.seen.get_mut(usize::from(pending.operation.register)) {
                *seen = now_there;
            }
            if !pending.reuses_key && pending.operation.class() == Class::Write {
                self.used_key = pending.key.or(self.used_key);
                self.first_key = self.first_key.or(self.used_key);
            }
        }
        Some(Operated {
            operation: pending.operation,
            invoked: pending.invoked,
            completed: now,
            end,
        })
    }
}

/// What a client makes of an answer.
pub(crate) fn end_of(outcome: Option<&Outcome>) -> Option<End> {
    match outcome {
        None => Some(End::Nothing),
        Some(Outcome::WriteInRead) => None,
        Some(Outcome::Reply(bytes)) => Some(match crate::service::read_reply(bytes)? {
            Read::Value { held, before } => End::Done { held, before },
            Read::Undone => End::Nothing,
            Read::NotCarried => End::Unknown,
        }),
    }
}
