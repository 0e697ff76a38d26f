//! The service that the simulated guests run: a few registers, read, written and compared.
//!
//! Its state is so small that every position's is remembered; its root is the hash chain of all updates,
//! and the root of a scan covers the registers too.

use bytes::Bytes;
use spare_protocol::channel::Outcome;
use spare_protocol::{Class, Hash};

/// How many registers there are.
pub(crate) const REGISTERS: usize = 6;
/// In an update: no register changed.
const NOTHING: u8 = 255;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    /// Writes, and returns what was there before.
    Swap,
    /// Writes if what is there is what is expected; returns what was there before.
    CompareAndSet,
    /// A swap that is announced as a read.
    HiddenSwap,
    /// A swap of which many services die, here and there one does not.
    Treacherous,
    /// Kills every service that executes it.
    Poison,
}

/// A request to the simulated service, about one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) register: u8,
    /// The reply contains the agreed time and seed.
    pub(crate) stamped: bool,
    /// Never used twice by a client.
    pub(crate) id: u64,
    pub(crate) value: u64,
    pub(crate) expected: u64,
}

impl Operation {
    pub(crate) fn encode(&self) -> Bytes {
        let kind = match self.kind {
            Kind::Read => 0,
            Kind::Swap => 1,
            Kind::CompareAndSet => 2,
            Kind::HiddenSwap => 3,
            Kind::Treacherous => 4,
            Kind::Poison => 5,
        };
        let mut bytes = Vec::with_capacity(27);
        bytes.extend_from_slice(&[kind, self.register, u8::from(self.stamped)]);
        for number in [self.id, self.value, self.expected] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        Bytes::from(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Operation> {
        let number = |at: usize| -> Option<u64> {
            let part = bytes.get(at..at + 8)?;
            part.try_into().ok().map(u64::from_le_bytes)
        };
        let kind = match bytes.first()? {
            0 => Kind::Read,
            1 => Kind::Swap,
            2 => Kind::CompareAndSet,
            3 => Kind::HiddenSwap,
            4 => Kind::Treacherous,
            _ => Kind::Poison,
        };
        Some(Operation {
            kind,
            register: *bytes.get(1)?,
            stamped: *bytes.get(2)? == 1,
            id: number(3)?,
            value: number(11)?,
            expected: number(19)?,
        })
    }

    /// The class that the configuration gives it.
    pub(crate) fn class(&self) -> Class {
        match self.kind {
            Kind::Read | Kind::HiddenSwap => Class::Read,
            Kind::Swap | Kind::CompareAndSet | Kind::Treacherous | Kind::Poison => Class::Write,
        }
    }
}

/// The state of the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) registers: [u64; REGISTERS],
    /// The hash chain of all updates.
    pub(crate) chain: Hash,
}

/// What executing a request gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) outcome: Outcome,
    pub(crate) update: Bytes,
}

impl State {
    /// The incremental root.
    pub(crate) fn root(&self) -> Hash {
        self.chain
    }

    /// The root of everything that is really there.
    pub(crate) fn scan(&self) -> Hash {
        let mut bytes = self.chain.0.to_vec();
        for register in self.registers {
            bytes.extend_from_slice(&register.to_le_bytes());
        }
        Hash::of(&bytes)
    }

    pub(crate) fn apply(&mut self, update: &[u8]) {
        let register = update.first().copied().unwrap_or(NOTHING);
        let value = update.get(1..9).and_then(|b| b.try_into().ok());
        if let Some(slot) = self.registers.get_mut(usize::from(register)) {
            *slot = value.map_or(0, u64::from_le_bytes);
        }
        let mut bytes = [0_u8; 64];
        bytes[..32].copy_from_slice(&self.chain.0);
        let length = update.len().min(32);
        bytes[32..32 + length].copy_from_slice(&update[..length]);
        self.chain = Hash::of(&bytes[..32 + length]);
    }

    /// Executes a request; none if it killed the service.
    pub(crate) fn execute(
        &mut self,
        class: Class,
        request: &[u8],
        time_us: i64,
        seed: &[u8; 32],
    ) -> Option<Effect> {
        if class == Class::Scrub {
            let outcome = Outcome::Reply(Bytes::new());
            let update = Bytes::new();
            return Some(Effect { outcome, update });
        }
        let operation = Operation::decode(request)?;
        let register = usize::from(operation.register).min(REGISTERS - 1);
        let before = self.registers[register];
        let writes = match operation.kind {
            Kind::Poison => return None,
            Kind::HiddenSwap if class == Class::Read => {
                let outcome = Outcome::WriteInRead;
                let update = Bytes::new();
                return Some(Effect { outcome, update });
            }
            Kind::Read => None,
            Kind::Swap | Kind::HiddenSwap | Kind::Treacherous => Some(true),
            Kind::CompareAndSet => Some(before == operation.expected),
        };
        let mut update = Vec::new();
        if let Some(changes) = writes {
            let named = if changes { operation.register } else { NOTHING };
            update.push(named);
            update.extend_from_slice(&operation.value.to_le_bytes());
            update.extend_from_slice(&operation.id.to_le_bytes());
            self.apply(&update);
        }
        let mut reply = Vec::with_capacity(32);
        reply.push(u8::from(writes.unwrap_or(true)));
        reply.extend_from_slice(&before.to_le_bytes());
        if operation.stamped {
            reply.extend_from_slice(&time_us.to_le_bytes());
            reply.extend_from_slice(&seed[..8]);
        }
        Some(Effect {
            outcome: Outcome::Reply(Bytes::from(reply)),
            update: Bytes::from(update),
        })
    }
}

/// What a client reads in a reply: whether its condition held, and the register's value before.
pub(crate) fn read_reply(reply: &[u8]) -> Option<(bool, u64)> {
    let held = *reply.first()? == 1;
    let value = reply.get(1..9)?.try_into().ok().map(u64::from_le_bytes)?;
    Some((held, value))
}
