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
/// What takes so long never ends.
pub(crate) const ENDLESS: u64 = u64::MAX;
/// What a gateway takes of a request, what a shim passes on of a reply, and what it keeps of an update. (A thousandth
/// or less of the real limits: only what lies within or beyond them matters.)
pub(crate) const REQUEST_BYTES_MAX: u32 = 4 << 10;
pub(crate) const REPLY_BYTES_MAX: usize = 16 << 10;
pub(crate) const UPDATE_BYTES_MAX: usize = 64 << 10;
/// A reply that is an error: the request was undone.
const UNDONE: u8 = 2;
/// A reply that is an error: the service's own cannot be passed on.
const NOT_CARRIED: u8 = 3;

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
    /// A read whose reply is another one at each replica.
    Differs,
    /// A read whose reply is one of two.
    Sides,
    /// A swap whose update, or whose reply if it is stamped, is another one at each replica.
    WriteDiffers,
}

/// What a request asks of who executes it, beside its effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Burden {
    /// How long it takes beside what every request does, in microseconds.
    pub(crate) takes: u64,
    /// Bytes of the request itself that mean nothing.
    pub(crate) request_bytes: u32,
    pub(crate) reply_bytes: u32,
    /// Of a write.
    pub(crate) update_bytes: u32,
}

/// Who executes: what differs between replicas follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Executor(pub(crate) u64);

impl Executor {
    /// Those on one side, and on the other.
    pub(crate) const SIDES: [Executor; 2] = [Executor(0), Executor(1)];

    pub(crate) fn of(replica: spare_protocol::ReplicaId) -> Executor {
        Executor(u64::from(replica.generation) << 16 | u64::from(replica.seat.0))
    }

    fn side(self) -> u8 {
        // Bits of seat and generation, so that a seat's two replicas are on both sides.
        u8::from((self.0 ^ self.0 >> 16) & 1 == 1)
    }
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
    pub(crate) burden: Burden,
}

impl Operation {
    /// A read that asks for nothing.
    pub(crate) const NOTHING: Operation = Operation {
        kind: Kind::Read,
        register: 0,
        stamped: false,
        id: 0,
        value: 0,
        expected: 0,
        burden: Burden {
            takes: 0,
            request_bytes: 0,
            reply_bytes: 0,
            update_bytes: 0,
        },
    };

    pub(crate) fn encode(&self) -> Bytes {
        let kind = match self.kind {
            Kind::Read => 0,
            Kind::Swap => 1,
            Kind::CompareAndSet => 2,
            Kind::HiddenSwap => 3,
            Kind::Treacherous => 4,
            Kind::Poison => 5,
            Kind::Differs => 6,
            Kind::Sides => 7,
            Kind::WriteDiffers => 8,
        };
        let mut bytes = Vec::with_capacity(27);
        bytes.extend_from_slice(&[kind, self.register, u8::from(self.stamped)]);
        for number in [self.id, self.value, self.expected] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let burden = self.burden;
        if burden != Burden::default() {
            bytes.extend_from_slice(&burden.takes.to_le_bytes());
            for number in [burden.reply_bytes, burden.update_bytes] {
                bytes.extend_from_slice(&u64::from(number).to_le_bytes());
            }
            bytes.resize(bytes.len() + padding(burden.request_bytes), 0);
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
            5 => Kind::Poison,
            6 => Kind::Differs,
            7 => Kind::Sides,
            _ => Kind::WriteDiffers,
        };
        let bytes_of = |at| u32::try_from(number(at).unwrap_or(0)).unwrap_or(0);
        let burden = Burden {
            takes: number(27).unwrap_or(0),
            request_bytes: u32::try_from(bytes.len().saturating_sub(51)).unwrap_or(0),
            reply_bytes: bytes_of(35),
            update_bytes: bytes_of(43),
        };
        Some(Operation {
            kind,
            register: *bytes.get(1)?,
            stamped: *bytes.get(2)? == 1,
            id: number(3)?,
            value: number(11)?,
            expected: number(19)?,
            burden,
        })
    }

    /// Whether it changes its register, if its condition holds.
    pub(crate) fn changes(&self) -> bool {
        !matches!(self.kind, Kind::Read | Kind::Differs | Kind::Sides)
    }

    /// The class that the configuration gives it.
    pub(crate) fn class(&self) -> Class {
        match self.kind {
            Kind::Read | Kind::HiddenSwap | Kind::Differs | Kind::Sides => Class::Read,
            Kind::Swap
            | Kind::CompareAndSet
            | Kind::Treacherous
            | Kind::Poison
            | Kind::WriteDiffers => Class::Write,
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
        let mut bytes = [0_u8; 72];
        bytes[..32].copy_from_slice(&self.chain.0);
        let length = update.len().min(40);
        bytes[32..32 + length].copy_from_slice(&update[..length]);
        self.chain = Hash::of(&bytes[..32 + length]);
    }

    /// Executes a request; none if it killed the service. What cannot be carried is answered with an error, as by a
    /// shim: a write whose update is too large is undone.
    pub(crate) fn execute(
        &mut self,
        class: Class,
        request: &[u8],
        time_us: i64,
        seed: &[u8; 32],
        executor: Executor,
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
            Kind::Read | Kind::Differs | Kind::Sides => None,
            Kind::Swap | Kind::HiddenSwap | Kind::Treacherous | Kind::WriteDiffers => Some(true),
            Kind::CompareAndSet => Some(before == operation.expected),
        };
        let differs = operation.kind == Kind::WriteDiffers;
        let burden = operation.burden;
        let mut update = Vec::new();
        if let Some(changes) = writes {
            let named = if changes { operation.register } else { NOTHING };
            update.push(named);
            update.extend_from_slice(&operation.value.to_le_bytes());
            update.extend_from_slice(&operation.id.to_le_bytes());
            if differs && !operation.stamped {
                update.extend_from_slice(&executor.0.to_le_bytes());
            }
            update.resize(update.len() + padding(burden.update_bytes), 0);
            if update.len() > UPDATE_BYTES_MAX {
                return Some(error(UNDONE, Vec::new()));
            }
            self.apply(&update);
        }
        let mut reply = Vec::with_capacity(32);
        reply.push(u8::from(writes.unwrap_or(true)));
        reply.extend_from_slice(&before.to_le_bytes());
        if operation.stamped {
            reply.extend_from_slice(&time_us.to_le_bytes());
            reply.extend_from_slice(&seed[..8]);
        }
        match operation.kind {
            Kind::Sides => reply.push(executor.side()),
            Kind::Differs => reply.extend_from_slice(&executor.0.to_le_bytes()),
            _ if differs && operation.stamped => reply.extend_from_slice(&executor.0.to_le_bytes()),
            _ => {}
        }
        reply.resize(reply.len() + padding(burden.reply_bytes), 0);
        if reply.len() > REPLY_BYTES_MAX {
            return Some(error(NOT_CARRIED, update));
        }
        Some(Effect {
            outcome: Outcome::Reply(Bytes::from(reply)),
            update: Bytes::from(update),
        })
    }
}

/// The largest request that a gateway takes.
pub(crate) fn request_bytes() -> usize {
    /// An operation without its padding is no longer.
    const OF_OPERATION: usize = 64;
    padding(REQUEST_BYTES_MAX) + OF_OPERATION
}

fn padding(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn error(reply: u8, update: Vec<u8>) -> Effect {
    Effect {
        outcome: Outcome::Reply(Bytes::from(vec![reply])),
        update: Bytes::from(update),
    }
}

/// What a client reads in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Whether its condition held, and the register's value before.
    Value { held: bool, before: u64 },
    /// An error: the request had no effect.
    Undone,
    /// An error: the request was executed, and what came of it cannot be told.
    NotCarried,
}

/// What a client reads in a reply, if it can.
pub(crate) fn read_reply(reply: &[u8]) -> Option<Read> {
    Some(match (*reply.first()?, reply.len()) {
        (UNDONE, 1) => Read::Undone,
        (NOT_CARRIED, 1) => Read::NotCarried,
        (held, _) => Read::Value {
            held: held == 1,
            before: reply.get(1..9)?.try_into().ok().map(u64::from_le_bytes)?,
        },
    })
}
