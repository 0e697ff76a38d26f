//! A whole group in one thread: real cores, a group channel that delivers at once, and replicas that
//! behave as a test tells them to. Time moves only when nothing else is left to do.
#![allow(unreachable_pub, dead_code)] // a module of several test programs, each of which uses a part

use bytes::Bytes;
use spare_core::{Config, Core, Input, Micros, Notice, Now, Output, Resume, SurvivingReplica};
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::http::essence;
use spare_protocol::messages::{
    AbortReason, Envelope, LossReason, OrderedMessage, PeerMessage, PrimaryView, Request, RequestId,
};
use spare_protocol::versions::VersionRange;
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// How a replica misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    WrongReply,
    WrongReplyOnce,
    WrongUpdate,
    WrongRoot,
    Silent,
    /// A wrong reply this many milliseconds late.
    WrongAndLate(u64),
    /// Right replies this many milliseconds late.
    Slow(u64),
    /// Leaves out the roots that it is asked for.
    NoRoot,
    /// Does not answer requests whose position is a multiple of this.
    LeavesOut(u64),
}

/// One simulated virtual machine. Its state is the hash chain of all updates it saw.
#[derive(Clone, Debug)]
pub struct Guest {
    pub running: bool,
    pub position: Position,
    pub state: Hash,
    pub executed: Vec<Position>,
    pub fault: Option<Fault>,
    /// What arrived while it was paused.
    backlog: VecDeque<Work>,
    /// It executes one request after the other, and is done with those it was given then.
    busy_until: Micros,
}

#[derive(Clone, Debug)]
enum Work {
    Execute(Execute),
    Apply(Vec<(Position, Bytes)>, Position, RootRequest),
    Load(Hash, Position),
}

pub struct Cluster {
    pub cores: Vec<Core>,
    pub guests: BTreeMap<ReplicaId, Guest>,
    pub answers: BTreeMap<u64, (Position, Result<Outcome, AbortReason>)>,
    pub refused: BTreeMap<u64, spare_core::Refusal>,
    /// Each seat's log.
    pub logs: Vec<Vec<spare_core::DecidedRequest>>,
    pub notices: Vec<(SeatId, Notice)>,
    pub trace: String,
    /// How far the clock of seat 0 is ahead.
    pub clock_ahead_us: i64,
    /// What applying one update takes.
    pub apply_cost_ms: u64,
    /// What executing one request takes a replica of each seat; 1 if there is none. Replicas execute one at a time.
    pub execute_ms: BTreeMap<u16, u64>,
    /// Replicas begin a write only when they have answered all before it, and what follows only after it.
    pub hold_writes: bool,
    /// No virtual machine can be created.
    pub hypervisor_fails: bool,
    /// So many of the next virtual machines never get ready.
    pub hang_at_boot: u32,
    /// So many seconds pass with every load; a part of it is taken in each.
    pub load_s: u64,
    /// Whatever is multicast gets lost.
    pub multicasts_lost: bool,
    /// Messages beside the order do not reach these seats.
    pub deaf: Vec<u16>,
    /// Nothing moves on the hosts of these seats.
    pub hung: Vec<u16>,
    /// What the managers of these seats speak from their next start on, if not what all do.
    pub speak: BTreeMap<u16, VersionRange>,
    /// The managers of these seats are of before versions were negotiated: they neither say `SPEAKS` nor understand it.
    pub mute_of_versions: Vec<u16>,
    /// What was multicast, as it is encoded.
    pub encoded: Vec<Bytes>,
    pub now: Micros,
    /// The agreed state after each position, as each seat's log tells.
    pub agreed: BTreeMap<(SeatId, Position), Hash>,
    /// The settings of every core, but for its seat.
    settings: Config,
    /// The ring that each seat is in; none for one that crashed.
    rings: Vec<Option<u64>>,
    rings_formed: u64,
    disks: Vec<Resume>,
    stalled: Vec<bool>,
    /// Views that wait for a disk that stalls.
    unwritten: Vec<Option<PrimaryView>>,
    queues: Vec<VecDeque<Input>>,
    later: BinaryHeap<std::cmp::Reverse<(Micros, u64, usize, u64)>>,
    parked: BTreeMap<u64, Input>,
    next: u64,
}

pub fn config(me: u16, faults: u16) -> Config {
    Config {
        me: SeatId(me),
        seats: (0..=faults).map(SeatId).collect(),
        faults,
        durable: false,
        updates_max: 10,
        activation_budget: Micros::from_ms(10_000),
        buffer_max: 10_000,
        checkpoint_writes: 10,
        vote_timeout: (Micros::from_ms(500), Micros::from_ms(500)),
        read_timeout: Micros::from_ms(10_000),
        read_patience: Micros::from_ms(1000),
        abort_timeout: Micros::from_ms(20_000),
        scrub_timeout: Micros::from_ms(60_000),
        executing_max: 32,
        executing_bytes_max: 1 << 20,
        help_timeout: Micros::from_ms(500),
        fetch_timeout: Micros::from_ms(100),
        apply_timeout: Micros::from_ms(5000),
        boot_timeout: Micros::from_ms(10_000),
        build_timeout: Micros::from_ms(60_000),
        recovery_timeout: Micros::from_ms(60_000),
        awake_min: Micros::from_ms(500),
        awake_max: Micros::from_ms(8000),
        suspicion_threshold: 20,
        suspicion_window: 1000,
        slow_factor: 20,
        slow_min: Micros::from_ms(200),
        announce_delay: Micros::from_ms(2),
        heartbeat: Micros::from_ms(1000),
        batch_delay: Micros(0),
        batch_requests_max: 64,
        batch_bytes_max: 1 << 20,
        undelivered_bytes_max: 1 << 20,
        in_flight_max: 1000,
        wait_max: Micros::from_ms(5000),
        clock_ahead_max_us: 10_000_000,
        key_lifetime_us: 3_600_000_000,
        keys_max: 1000,
        keys_of_owner_max: 1000,
        versions: VersionRange::OF_THIS_BUILD,
    }
}

/// Three seats for f = 1: two with replicas, one spare.
pub fn three_seats() -> Config {
    Config {
        seats: (0..3).map(SeatId).collect(),
        ..config(0, 1)
    }
}

/// Two seats for f = 1, which write to disk what they agree on.
pub fn durable() -> Cluster {
    Cluster::with(Config {
        durable: true,
        ..config(0, 1)
    })
}

/// Whether the client got its reply.
/// Three seats with disks. The third crashed after ten requests, and its host is back in the others' ring.
pub fn third_returns() -> Cluster {
    let mut cluster = Cluster::with(Config {
        durable: true,
        ..three_seats()
    });
    cluster.load(10);
    cluster.crash(2);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(1000);
    cluster.restart(2);
    cluster.form_ring(&[0, 1, 2], true);
    cluster
}

pub fn answered(cluster: &Cluster, number: u64) -> bool {
    cluster.answers.contains_key(&number)
}

fn chain(state: Hash, update: &[u8]) -> Hash {
    Hash::of(&[&state.0[..], update].concat())
}

impl Cluster {
    /// A group of f+1 seats whose replicas are all built.
    pub fn started(faults: u16) -> Cluster {
        Cluster::with(config(0, faults))
    }

    /// A group with these settings whose replicas are all built.
    pub fn with(settings: Config) -> Cluster {
        let of_seat = |me: SeatId| Config {
            me,
            ..settings.clone()
        };
        let core = |me: &SeatId| Core::new(of_seat(*me), Resume::default()).expect("it can work");
        let cores: Vec<Core> = settings.seats.iter().map(core).collect();
        let mut cluster = Cluster {
            queues: cores.iter().map(|_| VecDeque::new()).collect(),
            rings: cores.iter().map(|_| None).collect(),
            disks: cores.iter().map(|_| Resume::default()).collect(),
            stalled: cores.iter().map(|_| false).collect(),
            unwritten: cores.iter().map(|_| None).collect(),
            logs: cores.iter().map(|_| Vec::new()).collect(),
            rings_formed: 0,
            settings,
            cores,
            guests: BTreeMap::new(),
            answers: BTreeMap::new(),
            refused: BTreeMap::new(),
            notices: Vec::new(),
            trace: String::new(),
            clock_ahead_us: 0,
            apply_cost_ms: 0,
            execute_ms: BTreeMap::new(),
            hold_writes: false,
            hypervisor_fails: false,
            hang_at_boot: 0,
            load_s: 0,
            multicasts_lost: false,
            deaf: Vec::new(),
            hung: Vec::new(),
            speak: BTreeMap::new(),
            mute_of_versions: Vec::new(),
            encoded: Vec::new(),
            now: Micros(1_000_000),
            agreed: BTreeMap::new(),
            later: BinaryHeap::new(),
            parked: BTreeMap::new(),
            next: 0,
        };
        let all: Vec<u16> = (0..cluster.cores.len() as u16).collect();
        cluster.form_ring(&all, true);
        cluster.run_for(1000);
        assert!(cluster.cores.iter().all(Core::is_staffed));
        cluster
    }

    /// These seats hear each other, and nobody else, from here on.
    pub fn form_ring(&mut self, seats: &[u16], primary: bool) {
        self.rings_formed += 1;
        let ring = self.rings_formed;
        for seat in seats {
            self.rings[usize::from(*seat)] = Some(ring);
            self.queues[usize::from(*seat)].push_back(Input::Ring {
                ring,
                members: seats.iter().map(|s| SeatId(*s)).collect(),
                primary,
            });
        }
    }

    /// These seats hear each other, and nobody else; nobody can decide.
    pub fn suspend(&mut self, seats: &[u16]) {
        self.rings_formed += 1;
        let ring = self.rings_formed;
        for seat in seats {
            self.rings[usize::from(*seat)] = Some(ring);
            let members = seats.iter().map(|s| SeatId(*s)).collect();
            self.input(*seat, Input::Suspended { ring, members });
        }
    }

    /// Hands a core the next of what waits for it, and nothing more but what is said of versions before it.
    pub fn one(&mut self, seat: u16) {
        while let Some(input) = self.queues[usize::from(seat)].pop_front() {
            let is_of_versions = matches!(
                &input,
                Input::Delivered { envelope, .. }
                    if matches!(envelope.message, OrderedMessage::Speaks { .. })
            );
            self.step(usize::from(seat), input);
            if !is_of_versions {
                return;
            }
        }
    }

    /// What waits for a seat in the order gets lost with its ring.
    pub fn forget_queue(&mut self, seat: u16) {
        self.queues[usize::from(seat)].clear();
    }

    fn hangs(&self, seat: usize) -> bool {
        self.hung.iter().any(|s| usize::from(*s) == seat)
    }

    /// Hands an input to the core of a seat.
    pub fn input(&mut self, seat: u16, input: Input) {
        self.queues[usize::from(seat)].push_back(input);
    }

    /// The disk of a seat writes nothing for a while.
    pub fn disk_stalls(&mut self, seat: u16, stalls: bool) {
        self.stalled[usize::from(seat)] = stalls;
        if let (false, Some(view)) = (stalls, self.unwritten[usize::from(seat)].take()) {
            self.disks[usize::from(seat)].view = view.clone();
            self.input(seat, Input::ViewStored(view.id));
        }
        if let (false, Some(last)) = (stalls, self.logs[usize::from(seat)].last()) {
            let position = last.position;
            self.input(seat, Input::Stored { position });
        }
    }

    /// The host of a seat fails: its guests are gone, and what its manager had in memory.
    pub fn crash(&mut self, seat: u16) {
        let index = usize::from(seat);
        self.rings[index] = None;
        self.queues[index].clear();
        self.unwritten[index] = None;
        self.guests.retain(|r, _| r.seat != SeatId(seat));
    }

    /// The manager of a seat fails; its guests do not.
    pub fn manager_crashes(&mut self, seat: u16) {
        let index = usize::from(seat);
        self.rings[index] = None;
        self.queues[index].clear();
        self.later.retain(|entry| entry.0 .2 != index);
    }

    /// The host or the manager of a seat is back, with what is on its disk and the guests that are there.
    pub fn restart(&mut self, seat: u16) {
        let index = usize::from(seat);
        let log = &self.logs[index];
        let mut survivors = self.disks[index].survivors.clone();
        survivors.retain_mut(|k| match self.guests.get_mut(&k.replica) {
            Some(guest) => {
                guest.running = true;
                k.position = guest.position;
                true
            }
            None => false,
        });
        let resume = Resume {
            survivors,
            last: log.last().cloned(),
            keys: log
                .iter()
                .filter_map(|r| Some((r.key?, essence(&r.request), r.position, r.time_us)))
                .collect(),
            numbers: log.iter().map(|r| r.id).collect(),
            ..self.disks[index].clone()
        };
        let spoken = self.speak.get(&seat).copied();
        let config = Config {
            me: SeatId(seat),
            versions: spoken.unwrap_or(self.settings.versions),
            ..self.settings.clone()
        };
        self.cores[index] = Core::new(config, resume).expect("it can work");
    }

    /// Managers that restart from here on have these seats in their configuration.
    pub fn configure(&mut self, seats: &[u16]) {
        self.settings.seats = seats.iter().map(|s| SeatId(*s)).collect();
    }

    /// The host of a seat that crashed gets a new disk.
    pub fn lose_disk(&mut self, seat: u16) {
        let index = usize::from(seat);
        self.disks[index] = Resume::default();
        self.logs[index].clear();
        self.agreed.retain(|(s, _), _| *s != SeatId(seat));
    }

    /// Submits `count` requests at seat 0, every third of them a write, and lets them end.
    pub fn load(&mut self, count: u64) {
        for i in 0..count {
            let class = if i % 3 == 0 {
                Class::Write
            } else {
                Class::Read
            };
            self.submit(class);
            self.run_for(20);
        }
    }

    pub fn submit(&mut self, class: Class) -> u64 {
        let number = self.next + 1;
        self.submit_at(0, class, None, &format!("request {number}"))
    }

    pub fn submit_at(&mut self, seat: u16, class: Class, key: Option<Hash>, text: &str) -> u64 {
        let owner = u64::from(key.is_some());
        self.submit_owned(seat, class, (key, owner), text)
    }

    /// As [`Cluster::submit_at`], with a key of this owner.
    pub fn submit_owned(
        &mut self,
        seat: u16,
        class: Class,
        (key, key_owner): (Option<Hash>, u64),
        text: &str,
    ) -> u64 {
        self.next += 1;
        let number = self.next;
        let request = Request {
            id: RequestId {
                seat: SeatId(seat),
                number,
            },
            class,
            key,
            key_owner,
            proposed_time_us: i64::try_from(self.now.0).expect("small") + self.clock_ahead_us,
            seed: [7; 32],
            request: Bytes::copy_from_slice(text.as_bytes()),
        };
        self.queues[usize::from(seat)].push_back(Input::Submit(request));
        number
    }

    pub fn replica(seat: u16, generation: u32) -> ReplicaId {
        ReplicaId {
            seat: SeatId(seat),
            generation,
        }
    }

    pub fn corrupt(&mut self, seat: u16, generation: u32, fault: Fault) {
        let replica = Self::replica(seat, generation);
        self.guests.get_mut(&replica).expect("exists").fault = Some(fault);
    }

    pub fn guest(&mut self, seat: u16, generation: u32) -> &mut Guest {
        let replica = Self::replica(seat, generation);
        self.guests.get_mut(&replica).expect("exists")
    }

    /// A silent replica goes on where it stopped: it does what it was given meanwhile.
    pub fn recover(&mut self, seat: u16, generation: u32) {
        let replica = Self::replica(seat, generation);
        let guest = self.guests.get_mut(&replica).expect("exists");
        guest.fault = None;
        let running = guest.running;
        let backlog = std::mem::take(&mut guest.backlog);
        for work in backlog {
            if running {
                self.work(usize::from(seat), replica, work);
            } else if let Some(guest) = self.guests.get_mut(&replica) {
                guest.backlog.push_back(work);
            }
        }
    }

    /// The virtual machine of a replica dies.
    pub fn kill(&mut self, seat: u16, generation: u32) {
        let replica = Self::replica(seat, generation);
        self.guests.remove(&replica);
        self.queues[usize::from(seat)].push_back(Input::Failed {
            replica,
            reason: LossReason::VmStopped("killed".into()),
        });
    }

    pub fn convicted(&self) -> Vec<ReplicaId> {
        let mut all: Vec<_> = self
            .notices
            .iter()
            .filter_map(|(seat, n)| match n {
                Notice::Convicted { replica, .. } if *seat == SeatId(0) => Some(*replica),
                _ => None,
            })
            .collect();
        all.sort();
        all
    }

    /// Lets everything happen that happens within the next `ms` milliseconds.
    pub fn run_for(&mut self, ms: u64) {
        let end = self.now.after(Micros::from_ms(ms));
        loop {
            self.settle();
            let up = self
                .cores
                .iter()
                .enumerate()
                .filter(|(seat, _)| self.rings[*seat].is_some() && !self.hangs(*seat));
            let ticks = up.filter_map(|(_, c)| c.next_deadline()).min();
            let parked = self.later.peek().map(|r| r.0 .0);
            let Some(next) = ticks.into_iter().chain(parked).min().filter(|t| *t <= end) else {
                break;
            };
            self.now = self.now.max(next);
            while self.later.peek().is_some_and(|r| r.0 .0 <= self.now) {
                let Some(std::cmp::Reverse((_, _, seat, key))) = self.later.pop() else {
                    break;
                };
                let input = self.parked.remove(&key);
                if let Some(input) = input.filter(|_| self.rings[seat].is_some()) {
                    self.queues[seat].push_back(input);
                }
            }
            for seat in 0..self.cores.len() {
                if self.rings[seat].is_none() || self.hangs(seat) {
                    continue; // it crashed
                }
                if self.cores[seat]
                    .next_deadline()
                    .is_some_and(|t| t <= self.now)
                {
                    self.step(seat, Input::Tick);
                }
            }
        }
        self.now = end;
    }

    fn settle(&mut self) {
        while let Some(seat) =
            (0..self.queues.len()).find(|s| !self.queues[*s].is_empty() && !self.hangs(*s))
        {
            while let Some(input) = self.queues[seat].pop_front() {
                self.step(seat, input);
            }
            self.step(seat, Input::Flush);
        }
    }

    fn after(&mut self, ms: u64, seat: usize, input: Input) {
        self.next += 1;
        self.parked.insert(self.next, input);
        let at = self.now.after(Micros::from_ms(ms));
        self.later
            .push(std::cmp::Reverse((at, self.next, seat, self.next)));
    }

    fn step(&mut self, seat: usize, input: Input) {
        let ahead = if seat == 0 { self.clock_ahead_us } else { 0 };
        let now = Now {
            monotonic: self.now,
            clock_us: i64::try_from(self.now.0).expect("small") + ahead,
        };
        for output in self.cores[seat].step(now, input) {
            self.trace
                .push_str(&format!("{} {seat} {output:?}\n", self.now.0));
            self.perform(seat, output);
        }
    }

    fn perform(&mut self, seat: usize, output: Output) {
        let from = SeatId(u16::try_from(seat).expect("small"));
        match output {
            Output::Multicast(envelope) => self.multicast(from, &envelope),
            Output::SendLog { to, after } => {
                let above = self.logs[seat].iter().filter(|r| r.position > after);
                let records = above.cloned().collect();
                let message = PeerMessage::Log { records };
                self.send_peer(from, to, message);
            }
            Output::StoreView(view) if self.stalled[seat] => self.unwritten[seat] = Some(view),
            Output::StoreView(view) => {
                self.queues[seat].push_back(Input::ViewStored(view.id));
                self.disks[seat].view = view;
            }
            Output::StoreDrained(drained) => self.disks[seat].drained = drained,
            Output::Truncate { after } => self.logs[seat].retain(|r| r.position <= after),
            Output::Safe { position } => self.disks[seat].safe = position,
            Output::Refuse { id, reason } => {
                self.refused.insert(id.number, reason);
            }
            Output::AnswerAgain { id, position } => {
                let record = self.logs[seat].iter().find(|r| r.position == position);
                let record = record.expect("it is in the log");
                let aborted = AbortReason::of(record.reply_hash);
                let outcome = record.outcome.clone().ok_or(aborted);
                self.answers.insert(id.number, (position, outcome));
            }
            Output::SendPeer { to, message } => {
                self.send_peer(from, to, message);
            }
            Output::Create(replica) if self.hypervisor_fails => {
                let reason = LossReason::Hypervisor("no memory".into());
                self.after(10, seat, Input::Failed { replica, reason });
            }
            Output::Create(replica) => {
                self.disks[seat].generation = replica.generation;
                let guest = Guest {
                    running: true,
                    position: Position(0),
                    state: Hash::default(),
                    executed: Vec::new(),
                    fault: None,
                    backlog: VecDeque::new(),
                    busy_until: Micros(0),
                };
                self.guests.insert(replica, guest);
                if self.hang_at_boot > 0 {
                    self.hang_at_boot -= 1;
                    return;
                }
                self.after(300, seat, Input::Booted(replica));
            }
            Output::PutInService { replica, clean } => {
                let survivors = &mut self.disks[seat].survivors;
                survivors.retain(|k| k.replica != replica);
                survivors.push(SurvivingReplica {
                    replica,
                    position: Position(0),
                    clean,
                });
            }
            Output::TakeOutOfService(replica) => {
                self.disks[seat].survivors.retain(|k| k.replica != replica)
            }
            Output::Load { replica, upto } => {
                let state = self.agreed[&(from, upto)];
                self.work(seat, replica, Work::Load(state, upto));
            }
            Output::Execute { replica, request } => {
                self.work(seat, replica, Work::Execute(request));
            }
            Output::Cancel { replica, position } => self.stop(seat, replica, position),
            Output::Apply {
                replica,
                updates,
                upto,
                root,
            } => self.work(seat, replica, Work::Apply(updates, upto, root)),
            Output::Unpause(replica) => {
                if let Some(guest) = self.guests.get_mut(&replica) {
                    guest.running = true;
                    let silent = guest.fault == Some(Fault::Silent);
                    let backlog = if silent {
                        VecDeque::new()
                    } else {
                        std::mem::take(&mut guest.backlog)
                    };
                    self.after(5, seat, Input::Unpaused(replica));
                    backlog
                        .into_iter()
                        .for_each(|w| self.work(seat, replica, w));
                }
            }
            Output::Pause(replica) => {
                if let Some(guest) = self.guests.get_mut(&replica) {
                    guest.running = false;
                    self.after(2, seat, Input::Paused(replica));
                }
            }
            Output::StoreConviction { replica, .. } => {
                self.disks[seat].survivors.retain(|k| k.replica != replica);
            }
            // Processors are not simulated here, nor snapshots, nor the comparison of states at a start.
            Output::Prioritise(_)
            | Output::EndRealtime(_)
            | Output::StoreRoot { .. }
            | Output::ScrubEnded { .. }
            | Output::CaughtUp => {}
            Output::Quarantine(replica) | Output::Destroy(replica) => {
                self.guests.remove(&replica);
                self.disks[seat].survivors.retain(|k| k.replica != replica);
            }
            Output::Answer {
                id,
                position,
                outcome,
                ..
            } => {
                let before = self.answers.insert(id.number, (position, outcome));
                assert!(before.is_none(), "request {id:?} was answered twice");
            }
            Output::Decided(decided) => {
                let before = self.agreed.get(&(from, decided.position.previous()));
                let before = before.copied().unwrap_or_default();
                let after = if decided.class == Class::Write && decided.outcome.is_some() {
                    chain(before, &decided.update)
                } else {
                    before
                };
                self.agreed.insert((from, decided.position), after);
                let position = decided.position;
                self.logs[seat].push(*decided);
                if !self.stalled[seat] {
                    self.queues[seat].push_back(Input::Stored { position });
                }
            }
            Output::Notice(notice) => self.notices.push((from, notice)),
        }
    }

    fn multicast(&mut self, from: SeatId, envelope: &Envelope) {
        let ring = self.rings[usize::from(from.0)].filter(|_| !self.multicasts_lost);
        let is_of_versions = matches!(envelope.message, OrderedMessage::Speaks { .. });
        let mute = |seat: u16| is_of_versions && self.mute_of_versions.contains(&seat);
        let version = self.cores[usize::from(from.0)].version();
        let bytes = Bytes::from(envelope.to_bytes(version));
        let decoded = Envelope::from_bytes(&bytes);
        assert_eq!(
            decoded.as_ref(),
            Ok(envelope),
            "as it is encoded in version {version}"
        );
        self.encoded.push(bytes);
        for (seat, (queue, of_queue)) in (0..).zip(self.queues.iter_mut().zip(&self.rings)) {
            if ring.is_some() && *of_queue == ring && !mute(from.0) && !mute(seat) {
                queue.push_back(Input::Delivered {
                    from,
                    envelope: envelope.clone(),
                });
            }
        }
    }

    fn send_peer(&mut self, from: SeatId, to: SeatId, message: PeerMessage) {
        let ring = |s: SeatId| self.rings[usize::from(s.0)];
        let heard = !self.deaf.contains(&to.0);
        if heard && ring(from).is_some() && ring(from) == ring(to) {
            self.queues[usize::from(to.0)].push_back(Input::Peer { from, message });
        }
    }

    /// What a replica is in the middle of ends soon, and what it does after that.
    fn stop(&mut self, seat: usize, replica: ReplicaId, position: Position) {
        let at = |input: &Input| match input {
            Input::Executed {
                replica: r,
                position,
                ..
            } if *r == replica => Some(*position),
            _ => None,
        };
        let held = self.hold_writes;
        let ends =
            |input: &Input| at(input).is_some_and(|p| p == position || (held && p > position));
        let found = self.parked.iter().filter(|(_, input)| ends(input));
        let keys: Vec<u64> = found.map(|(key, _)| *key).collect();
        for (key, ms) in keys.into_iter().zip(1..) {
            if let Some(input) = self.parked.remove(&key) {
                self.after(ms, seat, input);
            }
        }
    }

    /// When a replica has answered all that it is in the middle of.
    fn done_at(&self, replica: ReplicaId) -> Option<Micros> {
        let of_it = |key: &u64| matches!(self.parked.get(key), Some(Input::Executed { replica: r, .. }) if *r == replica);
        let due = self.later.iter().filter(|entry| of_it(&entry.0 .3));
        due.map(|entry| entry.0 .0).max()
    }

    fn work(&mut self, seat: usize, replica: ReplicaId, work: Work) {
        let after_others = self.done_at(replica).filter(|_| self.hold_writes);
        let Some(guest) = self.guests.get_mut(&replica) else {
            return;
        };
        if !guest.running {
            guest.backlog.push_back(work);
            return;
        }
        if guest.fault == Some(Fault::Silent) {
            guest.backlog.push_back(work);
            return;
        }
        let mut delay = 1;
        let mut loading = Vec::new();
        let input = match work {
            Work::Load(state, upto) => {
                delay += self.load_s * 1000;
                let advances = (1..=self.load_s).map(|s| (s * 1000, Input::LoadAdvanced(replica)));
                loading.extend(advances);
                guest.state = state;
                guest.position = upto;
                Input::Applied {
                    replica,
                    position: upto,
                    root: None,
                }
            }
            Work::Apply(updates, upto, root) => {
                delay += updates.len() as u64 * self.apply_cost_ms;
                for (position, update) in updates {
                    assert!(
                        position > guest.position,
                        "update {position} is applied twice"
                    );
                    guest.state = chain(guest.state, &update);
                }
                guest.position = upto;
                Input::Applied {
                    replica,
                    position: upto,
                    root: guest.root(root),
                }
            }
            Work::Execute(request) if &request.request[..] == b"poison" => {
                self.kill(replica.seat.0, replica.generation);
                return;
            }
            Work::Execute(request) if &request.request[..] == b"hang" => {
                guest.fault = Some(Fault::Silent);
                return;
            }
            Work::Execute(request) => {
                assert_eq!(request.position, guest.position.next(), "{replica}");
                guest.position = request.position;
                guest.executed.push(request.position);
                if let Some(Fault::WrongAndLate(ms) | Fault::Slow(ms)) = guest.fault {
                    delay = ms;
                }
                if let Some(ms) = request.request.strip_prefix(b"takes ms ") {
                    let ms = std::str::from_utf8(ms).expect("digits");
                    delay = ms.parse().expect("a number");
                }
                if let Some(ms) = self.execute_ms.get(&replica.seat.0) {
                    guest.busy_until = guest.busy_until.max(self.now).after(Micros::from_ms(*ms));
                    delay = guest.busy_until.since(self.now).0 / 1000;
                }
                if let Some(done_at) = after_others {
                    delay += done_at.since(self.now).0 / 1000;
                }
                if let Some(Fault::LeavesOut(nth)) = guest.fault {
                    if request.position.0.is_multiple_of(nth) {
                        guest.execute(replica, &request);
                        return;
                    }
                }
                guest.execute(replica, &request)
            }
        };
        for (ms, advance) in loading {
            self.after(ms, seat, advance);
        }
        self.after(delay, seat, input);
    }
}

impl Guest {
    fn root(&self, wanted: RootRequest) -> Option<Hash> {
        match (wanted, self.fault) {
            (RootRequest::No, _) | (_, Some(Fault::NoRoot)) => None,
            (_, Some(Fault::WrongRoot)) => Some(Hash::of(b"wrong")),
            _ => Some(self.state),
        }
    }

    fn execute(&mut self, replica: ReplicaId, request: &Execute) -> Input {
        let mut update = Bytes::new();
        if request.class == Class::Read && &request.request[..] == b"writes in a read" {
            return Input::Executed {
                replica,
                position: request.position,
                outcome: Outcome::WriteInRead,
                update,
                root: None,
            };
        }
        if request.class == Class::Write {
            let mut bytes = [b"update of ", &request.request[..]].concat();
            if self.fault == Some(Fault::WrongUpdate) {
                bytes.push(b'!');
            }
            if request.request.starts_with(b"differs") {
                bytes.extend_from_slice(replica.to_string().as_bytes());
            }
            update = Bytes::from(bytes);
            self.state = chain(self.state, &update);
        }
        let mut page = format!("page of {} at {}", request.position, request.time_us);
        if request.request.starts_with(b"differs") {
            page.push_str(&replica.to_string());
        }
        match self.fault {
            Some(Fault::WrongReply | Fault::WrongAndLate(_)) => page.push('!'),
            Some(Fault::WrongReplyOnce) => {
                page.push('!');
                self.fault = None;
            }
            _ => {}
        }
        Input::Executed {
            replica,
            position: request.position,
            outcome: Outcome::Reply(Bytes::from(page)),
            update,
            root: self.root(request.root),
        }
    }
}
