//! One simulated virtual machine with its service: correct until a fault is switched on.
//!
//! Its channel is first in, first out. What it is given while it is paused waits; so does what it
//! says.

use crate::random::Random;
use crate::service::{Executor, Kind, Operation, State, ENDLESS};
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
    /// The writes and scrubs that it was given, whether it began with them or not.
    pub(crate) given_writes: BTreeSet<Position>,
    /// How many roots it reported.
    pub(crate) roots: u64,
    pub(crate) share: Share,
    /// It goes before all others: it was woken, and somebody waits for it.
    pub(crate) realtime: bool,
    pub(crate) fault: Option<Fault>,
    /// A fault was switched on at some time: whatever it says, now or later, may be wrong.
    pub(crate) faulty: bool,
    work: VecDeque<Work>,
    /// What it is going to say, by time.
    answers: VecDeque<Answer>,
    /// When everything that it was given so far will have ended.
    free_at: u64,
    /// When the last write, scrub or batch of updates will have ended: reads begin after that.
    exclusive_until: u64,
    /// When each of those that execute reads will be free.
    readers: Vec<u64>,
    pub(crate) speech_scheduled: bool,
}

/// Something that a guest is going to say.
#[derive(Clone, Debug)]
struct Answer {
    at: u64,
    /// Not before this, however fast its host is: a request takes so long by itself.
    earliest: u64,
    input: Input,
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
            given_writes: BTreeSet::new(),
            roots: 0,
            share: Share::Building,
            realtime: false,
            fault: None,
            faulty: false,
            work: VecDeque::new(),
            answers: VecDeque::new(),
            free_at: 0,
            exclusive_until: 0,
            readers: vec![0; readers],
            speech_scheduled: false,
        }
    }

    pub(crate) fn take(&mut self, work: Work, now: u64, speed: Speed, random: &mut Random) {
        if let Work::Execute(request) = &work {
            if request.class.is_exclusive() {
                self.given_writes.insert(request.position);
            }
        }
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
        if self.exclusive_until > now + HELLO_TIMEOUT {
            return None;
        }
        self.answers.clear();
        self.speech_scheduled = false;
        self.free_at = now;
        self.exclusive_until = self.exclusive_until.min(now);
        self.readers.fill(0);
        let lies = self.lies(&[Lie::Ahead], random).is_some();
        (!self.dead).then_some(Position(self.position.0 + 7 * u64::from(lies)))
    }

    pub(crate) fn next_answer_at(&self) -> Option<u64> {
        let running = self.running;
        let next = self.answers.front().filter(|_| running);
        next.map(|a| a.at).filter(|at| *at != ENDLESS)
    }

    pub(crate) fn next_answer(&mut self, now: u64) -> Option<Input> {
        self.next_answer_at().filter(|at| *at <= now)?;
        self.answers.pop_front().map(|a| a.input)
    }

    fn say(&mut self, at: u64, input: Input) {
        self.say_not_before(at, 0, input);
    }

    fn say_not_before(&mut self, at: u64, earliest: u64, input: Input) {
        let answer = Answer {
            at,
            earliest,
            input,
        };
        let later = self.answers.partition_point(|a| a.at <= at);
        self.answers.insert(later, answer);
    }

    /// Whatever it is at has ended by then, but for what never ends.
    fn be_free_by(&mut self, at: u64) {
        let own = [&mut self.free_at, &mut self.exclusive_until];
        for until in own.into_iter().chain(&mut self.readers) {
            if *until != ENDLESS {
                *until = (*until).min(at);
            }
        }
    }

    /// When it begins with something that it is given now, and how it is known when that ends: reads run together,
    /// everything else alone.
    fn occupy(&mut self, shared: bool, now: u64, span: u64) -> u64 {
        let reader = self.readers.iter_mut().min_by_key(|free| **free);
        let end = match reader.filter(|_| shared) {
            Some(reader) => {
                let begin = now.max(self.exclusive_until).max(*reader);
                *reader = begin.saturating_add(span);
                *reader
            }
            None => {
                let end = now.max(self.free_at).saturating_add(span);
                self.exclusive_until = end;
                end
            }
        };
        self.free_at = self.free_at.max(end);
        end
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
        if random.permille(4) && !speed.steady {
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
        let end = self.occupy(shared, now, span.saturating_add(takes));
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
            Work::Execute(request) => self.execute((end, takes), &request, random),
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
        let mut latest = now;
        for answer in &mut self.answers {
            latest += 300;
            answer.at = answer.at.min(latest.max(answer.earliest));
        }
        self.answers.make_contiguous().sort_by_key(|a| a.at);
        let ends = self.answers.iter().map(|a| a.at);
        let last = ends.filter(|at| *at != ENDLESS).max();
        self.be_free_by(latest.max(last.unwrap_or(0)));
    }

    /// Its VM stops now: what it had to say is lost.
    pub(crate) fn stop(&mut self) {
        self.dead = true;
        self.work.clear();
        self.answers.clear();
    }

    fn execute(&mut self, (end, takes): (u64, u64), request: &Execute, random: &mut Random) {
        let replica = self.replica;
        // It began so long before.
        let earliest = match takes {
            0 => 0,
            _ => end,
        };
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
        self.free_at = self.free_at.max(end);
        if request.class != Class::Read {
            self.exclusive_until = self.exclusive_until.max(end);
        }
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
        self.say_not_before(end, earliest, answer(position, outcome, update));
        self.let_reads_overtake(request.class, random);
    }

    /// Reads between two writes run concurrently: their answers may change places.
    fn let_reads_overtake(&mut self, class: Class, random: &mut Random) {
        if class != Class::Read || !random.permille(150) {
            return;
        }
        let last = self.answers.len().saturating_sub(1);
        let Some(before) = last.checked_sub(1) else {
            return;
        };
        let is_read = |a: &Answer| {
            let read = |u: &Bytes, r: &Option<Hash>| u.is_empty() && r.is_none();
            matches!(&a.input, Input::Executed { update, root, .. } if read(update, root))
        };
        let short = |a: &Answer| a.earliest == 0;
        if is_read(&self.answers[before]) && self.answers.range(before..).all(short) {
            let (at_before, at_last) = (self.answers[before].at, self.answers[last].at);
            self.answers.swap(before, last);
            self.answers[before].at = at_before;
            self.answers[last].at = at_last;
        }
    }
}
