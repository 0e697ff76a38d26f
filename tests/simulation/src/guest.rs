//! One simulated virtual machine with its service: correct until a fault is switched on.
//!
//! Its channel is first in, first out. What it is given while it is paused waits; so does what it
//! says.

use crate::random::Random;
use crate::schedule::Schedule;
use crate::service::{Executor, Kind, Operation, State};
use bytes::Bytes;
use spare_core::Input;
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::messages::LossReason;
use spare_protocol::{Class, Hash, Position, ReplicaId};
use std::collections::{BTreeSet, VecDeque};

/// Of a thousand services that execute a treacherous request so many die of it.
const TREACHERY: u64 = 700;

/// A manager waits so long for a guest that opens its channel.
const HELLO_TIMEOUT: u64 = 10 * crate::plan::SECOND;

/// How a faulty replica misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lie {
    /// A wrong reply; its state stays right.
    Reply,
    /// A wrong update; its state stays right.
    Update,
    /// A wrong update that its own state and root agree with.
    ConsistentUpdate,
    /// A wrong root at checkpoints.
    Root,
    /// A row was changed behind the database's back: only a scan sees it.
    Row,
    /// It says that a read tried to write.
    WriteInRead,
    /// A read comes with an update.
    UpdateInRead,
    /// It does not answer.
    Silent,
    /// It answers just within the time limits.
    Slow,
    /// It says everything twice, the second time otherwise.
    Twice,
    /// It answers a request that it was answered before.
    Replay,
    /// It says that it applied more than it was given.
    Ahead,
    /// It leaves out roots.
    NoRoot,
    /// It floods its channel.
    Flood,
    /// Its service says that it is broken.
    Broken,
    /// Its VM stops.
    Stop,
}

impl Lie {
    pub(crate) const ALL: [Lie; 16] = [
        Lie::Reply,
        Lie::Update,
        Lie::ConsistentUpdate,
        Lie::Root,
        Lie::Row,
        Lie::WriteInRead,
        Lie::UpdateInRead,
        Lie::Silent,
        Lie::Slow,
        Lie::Twice,
        Lie::Replay,
        Lie::Ahead,
        Lie::NoRoot,
        Lie::Flood,
        Lie::Broken,
        Lie::Stop,
    ];
}

/// A fault that was switched on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) lie: Lie,
    /// On so many of a thousand occasions.
    pub(crate) permille: u64,
    pub(crate) once: bool,
    /// All that lie tell the same lie.
    pub(crate) colludes: bool,
    /// It also answers late.
    pub(crate) late: u64,
}

/// What a guest is to do.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Load(State, Position),
    Execute(Execute),
    Apply {
        updates: Vec<(Position, Bytes)>,
        upto: Position,
        root: RootRequest,
    },
}

/// The virtual machine of a replica.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) replica: ReplicaId,
    pub(crate) booted: bool,
    pub(crate) running: bool,
    pub(crate) dead: bool,
    pub(crate) position: Position,
    pub(crate) state: State,
    /// How many requests it executed.
    pub(crate) executions: u64,
    /// The writes that it executed: its state contains them.
    pub(crate) wrote: BTreeSet<Position>,
    /// How many roots it reported.
    pub(crate) roots: u64,
    pub(crate) share: Share,
    /// It goes before all others: it was woken, and somebody waits for it.
    pub(crate) realtime: bool,
    pub(crate) fault: Option<Fault>,
    /// A fault was switched on at some time: whatever it says, now or later, may be wrong.
    pub(crate) faulty: bool,
    work: VecDeque<Work>,
    schedule: Schedule,
    /// When it has done what it was at while its VM stood still for a moment, the last time.
    pub(crate) stood_still_until: u64,
    /// When it is listened to next.
    pub(crate) speaks_at: u64,
}

/// What its VM gets of the processors. (It is as fast with each: only that it has the right one is simulated.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Building,
    Passive,
    Active,
}

/// How fast a host's guests are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    pub(crate) factor: u64,
    /// They never pause for a moment.
    pub(crate) steady: bool,
}

impl Guest {
    /// With so many that execute reads.
    pub(crate) fn new(replica: ReplicaId, readers: usize) -> Guest {
        Guest {
            replica,
            booted: false,
            running: false,
            dead: false,
            position: Position(0),
            state: State::default(),
            executions: 0,
            wrote: BTreeSet::new(),
            roots: 0,
            share: Share::Building,
            realtime: false,
            fault: None,
            faulty: false,
            work: VecDeque::new(),
            schedule: Schedule::new(readers),
            stood_still_until: 0,
            speaks_at: u64::MAX,
        }
    }

    pub(crate) fn take(&mut self, work: Work, now: u64, speed: Speed, random: &mut Random) {
        if self.running {
            self.perform(work, now, speed, random);
        } else {
            self.work.push_back(work);
        }
    }

    pub(crate) fn resume(&mut self, now: u64, speed: Speed, random: &mut Random) {
        self.running = true;
        while let Some(work) = self.work.pop_front() {
            self.perform(work, now, speed, random);
        }
    }

    /// Its manager is another one, which opens its channel anew: it does what it was given, says nothing about
    /// that any more, and tells its position. None if it is gone, or at something that does not end in time.
    pub(crate) fn hello(
        &mut self,
        now: u64,
        speed: Speed,
        random: &mut Random,
    ) -> Option<Position> {
        if !self.booted || self.dead {
            return None;
        }
        self.resume(now, speed, random);
        if self.schedule.alone_until() > now + HELLO_TIMEOUT {
            return None;
        }
        self.schedule.clear();
        self.speaks_at = u64::MAX;
        let lies = self.lies(&[Lie::Ahead], random).is_some();
        (!self.dead).then_some(Position(self.position.0 + 7 * u64::from(lies)))
    }

    pub(crate) fn next_answer_at(&self) -> Option<u64> {
        let running = self.running;
        self.schedule.next_at().filter(|_| running)
    }

    pub(crate) fn next_answer(&mut self, now: u64) -> Option<Input> {
        self.next_answer_at().filter(|at| *at <= now)?;
        self.schedule.next()
    }

    fn say(&mut self, at: u64, input: Input) {
        self.schedule.say(at, input);
    }

    /// A request is aborted: it stops that, and answers something. If it is paused it does not come to it at all.
    pub(crate) fn cancel(&mut self, position: Position, now: u64, random: &mut Random) {
        let instead = Outcome::Reply(Bytes::from_static(b"stopped"));
        let span = random.skewed(50, 5000);
        for work in &mut self.work {
            if let Work::Execute(request) = work {
                if request.position == position {
                    request.request = Operation::NOTHING.encode();
                }
            }
        }
        self.schedule.cancel(now, position, span, &instead);
    }

    /// Whether the fault shows on this occasion.
    fn lies(&mut self, lies: &[Lie], random: &mut Random) -> Option<Fault> {
        let fault = self.fault.filter(|f| lies.contains(&f.lie))?;
        if !random.permille(fault.permille) {
            return None;
        }
        if fault.once {
            self.fault = None;
        }
        Some(fault)
    }

    /// Bytes that differ from the right ones; liars that collude all say the same.
    fn wrong(&self, right: &[u8], fault: Fault) -> Bytes {
        let mut bytes = right.to_vec();
        bytes.push(0xEE);
        if !fault.colludes {
            bytes.extend_from_slice(&self.replica.generation.to_le_bytes());
            bytes.extend_from_slice(&self.replica.seat.0.to_le_bytes());
        }
        Bytes::from(bytes)
    }

    fn perform(&mut self, work: Work, now: u64, speed: Speed, random: &mut Random) {
        if self.dead {
            return;
        }
        let mut span = match &work {
            Work::Load(..) => random.skewed(1000, 200_000),
            Work::Execute(_) => random.skewed(80, 900),
            Work::Apply { updates, .. } => 100 + updates.len() as u64 * random.skewed(20, 120),
        } * speed.factor;
        let stands_still = random.permille(4) && !speed.steady;
        if stands_still {
            span += random.below(30_000);
        }
        if let Some(fault) = self.lies(&[Lie::Slow], random) {
            span += fault.late;
        }
        let (shared, takes) = match &work {
            Work::Execute(request) => (
                request.class == Class::Read,
                Operation::decode(&request.request).map_or(0, |o| o.burden.takes),
            ),
            Work::Load(..) | Work::Apply { .. } => (false, 0),
        };
        let end = self.schedule.take(now, shared, span, takes);
        if stands_still {
            self.stood_still_until = self.stood_still_until.max(end);
        }
        let replica = self.replica;
        match work {
            Work::Load(state, upto) => {
                self.state = state;
                self.wrote.clear();
                self.position = upto;
                let position = upto;
                let root = None;
                self.say(
                    end,
                    Input::Applied {
                        replica,
                        position,
                        root,
                    },
                );
            }
            Work::Apply {
                updates,
                upto,
                root,
            } => {
                for (_, update) in updates {
                    self.state.apply(&update);
                }
                self.position = upto;
                self.confirm(end, upto, root, random);
            }
            Work::Execute(request) => self.execute(end, &request, random),
        }
    }

    fn confirm(&mut self, end: u64, upto: Position, root: RootRequest, random: &mut Random) {
        let replica = self.replica;
        if self.lies(&[Lie::Silent], random).is_some() {
            return;
        }
        if self.gives_up(end, random) {
            return;
        }
        let mut position = upto;
        if self.lies(&[Lie::Ahead], random).is_some() {
            position = Position(upto.0 + 7);
        }
        let root = self.root(root, random);
        let input = Input::Applied {
            replica,
            position,
            root,
        };
        if self.lies(&[Lie::Twice], random).is_some() {
            self.say(end, input.clone());
        }
        self.say(end, input);
    }

    fn root(&mut self, wanted: RootRequest, random: &mut Random) -> Option<Hash> {
        if wanted == RootRequest::No {
            return None;
        }
        self.roots += 1;
        if let Some(fault) = self.lies(&[Lie::Root], random) {
            let wrong = self.wrong(&self.state.root().0, fault);
            return Some(Hash::of(&wrong));
        }
        if self.lies(&[Lie::NoRoot], random).is_some() {
            return None;
        }
        if self.lies(&[Lie::Row], random).is_some() {
            self.state.registers[0] ^= 0x5555;
        }
        Some(match wanted {
            RootRequest::FullScan => self.state.scan(),
            _ => self.state.root(),
        })
    }

    /// Whether it ends its service instead of answering.
    fn gives_up(&mut self, end: u64, random: &mut Random) -> bool {
        let replica = self.replica;
        let Some(fault) = self.lies(&[Lie::Flood, Lie::Broken, Lie::Stop], random) else {
            return false;
        };
        let input = match fault.lie {
            Lie::Flood => Input::Violated {
                replica,
                reason: "it floods its channel".to_owned(),
            },
            Lie::Broken => Input::Failed {
                replica,
                reason: LossReason::Broken("its service ended".to_owned()),
            },
            _ => Input::Failed {
                replica,
                reason: LossReason::VmStopped("it stopped".to_owned()),
            },
        };
        self.say(end, input);
        self.dead = true;
        true
    }

    /// Its host is fast again: what it is at does not take as long as it looked.
    pub(crate) fn hurry(&mut self, now: u64) {
        self.schedule.hurry(now, 300);
    }

    /// Its VM stops now: what it had to say is lost.
    pub(crate) fn stop(&mut self) {
        self.dead = true;
        self.work.clear();
        self.schedule.clear();
    }

    fn execute(&mut self, end: u64, request: &Execute, random: &mut Random) {
        let replica = self.replica;
        let position = request.position;
        self.position = position;
        self.executions += 1;
        if request.class == Class::Write {
            self.wrote.insert(position);
        }
        let mut honest = self.state;
        let effect = honest.execute(
            request.class,
            &request.request,
            request.time_us,
            &request.seed,
            Executor::of(replica),
        );
        let treacherous =
            Operation::decode(&request.request).is_some_and(|o| o.kind == Kind::Treacherous);
        let dies = treacherous && random.permille(TREACHERY);
        let Some(effect) = effect.filter(|_| !dies) else {
            let reason = LossReason::Broken("its service died".to_owned());
            self.say(end, Input::Failed { replica, reason });
            self.dead = true;
            return;
        };
        let (mut outcome, mut update) = (effect.outcome, effect.update);
        let consistent = self.lies(&[Lie::ConsistentUpdate], random);
        match consistent.filter(|_| request.class == Class::Write) {
            Some(fault) => {
                update = self.wrong(&update, fault);
                self.state.apply(&update);
            }
            None => self.state = honest,
        }
        if self.lies(&[Lie::Silent], random).is_some() || self.gives_up(end, random) {
            return;
        }
        let mut late = 0;
        if let Some(fault) = self.lies(&[Lie::Reply], random) {
            outcome = match &outcome {
                Outcome::Reply(bytes) => Outcome::Reply(self.wrong(bytes, fault)),
                Outcome::WriteInRead => Outcome::Reply(self.wrong(b"", fault)),
            };
            late = fault.late;
        }
        if let Some(fault) = self.lies(&[Lie::Update], random) {
            update = self.wrong(&update, fault);
            late = fault.late;
        }
        if self.lies(&[Lie::WriteInRead], random).is_some() {
            outcome = Outcome::WriteInRead;
        }
        if let Some(fault) = self.lies(&[Lie::UpdateInRead], random) {
            update = self.wrong(&update, fault);
        }
        let root = self.root(request.root, random);
        let end = end.saturating_add(late);
        let answer = |position, outcome, update| Input::Executed {
            replica,
            position,
            outcome,
            update,
            root,
        };
        if let Some(fault) = self.lies(&[Lie::Twice], random) {
            let otherwise = Outcome::Reply(self.wrong(b"otherwise", fault));
            self.say(end, answer(position, otherwise, update.clone()));
        }
        if self.lies(&[Lie::Replay], random).is_some() {
            let old = Position(position.0.saturating_sub(3));
            self.say(end, answer(old, outcome.clone(), update.clone()));
        }
        self.say(end, answer(position, outcome, update));
        self.let_reads_overtake(request.class, random);
    }

    /// Reads between two writes run concurrently: their answers may change places.
    fn let_reads_overtake(&mut self, class: Class, random: &mut Random) {
        if class != Class::Read || !random.permille(150) {
            return;
        }
        self.schedule.overtake(|input| {
            let read = |u: &Bytes, r: &Option<Hash>| u.is_empty() && r.is_none();
            matches!(input, Input::Executed { update, root, .. } if read(update, root))
        });
    }
}
