//! What one manager's part of a request costs (f = 1): its gateway's requests encoded and multicast, every
//! delivered message decoded, requests handed to its active replica, replies and updates hashed and voted
//! on, votes counted, records and answers handed out, the passive brought up to date, checkpoints compared.
//!
//! Two cores run in one thread, with the settings of a daemon; each takes its turns as a seat's task does
//! (up to 256 deliveries and inputs, then `Flush`). Only the turns of seat 0, whose gateway takes all
//! requests, are timed and have their allocations counted. What is no part of the core is simulated between
//! the turns and left out: clients (each sends a request, waits for its answer, sends the next), guests,
//! the other manager, the network and the log. Time is virtual, so every run does the same.
//!
//! Replies have 100 bytes, as requests do: that shows what the protocol costs. A reply of 2 KiB, a small page,
//! is measured beside it: most of the difference is its hash.
//!
//! After criterion's report follows a summary with a last line in JSON. With `SPARE_BENCH_ASSERT=1` the
//! program fails if the summary shows fewer than [`REQUESTS_PER_S_LEAST`], or a cost that grows.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use mimalloc::MiMalloc;
use spare_core::{Config, Core, Input, Micros, Notice, Now, Output, Resume};
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::messages::{Envelope, Request, RequestId};
use spare_protocol::versions::VersionRange;
use spare_protocol::{Class, Hash, ReplicaId, SeatId};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What is promised for 100-byte requests and replies, on one processor core.
const REQUESTS_PER_S_LEAST: f64 = 500_000.0;
/// A cost that is this many times that of a shorter run, or of fewer clients, has grown.
const GROWTH_MAX: f64 = 1.3;
/// Deliveries and inputs in one turn of a seat's task.
const BATCH_MAX: usize = 256;
const REQUEST_BYTES: usize = 100;
const UPDATE_BYTES: usize = 100;
const PAGE_BYTES: usize = 2048;
const CLIENTS: [usize; 4] = [10, 100, 1_000, 10_000];
/// Clients in the measurements that do not vary them.
const CLIENTS_USUAL: usize = 1_000;
/// 3 requests of 20 are writes.
const WRITES_OF_20: [u64; 3] = [3, 10, 16];
/// What a round of turns takes, in virtual time.
const ROUND: Micros = Micros(100);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The daemon's allocator, counting.
struct Counting;

// SAFETY: every call goes to the daemon's allocator with unchanged arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller keeps the rules of `realloc`.
        unsafe { MiMalloc.realloc(at, layout, size) }
    }
}

fn count_allocation() {
    // Fails only while a thread ends, when nothing is measured.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One manager: its core, and what waits for it.
struct Seat {
    me: SeatId,
    core: Core,
    /// Encoded messages in their order.
    delivered: VecDeque<(SeatId, Bytes)>,
    inputs: VecDeque<Input>,
    outputs: Vec<Output>,
    /// Multicast in this turn.
    sent: Vec<Bytes>,
    /// Everything else that is to be done because of this turn.
    effects: Vec<Output>,
}

impl Seat {
    fn new(config: Config) -> Seat {
        Seat {
            me: config.me,
            core: Core::new(config, Resume::default()).expect("it can work"),
            delivered: VecDeque::new(),
            inputs: VecDeque::new(),
            outputs: Vec::new(),
            sent: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Whether the seat's task would wake up.
    fn has_work(&self, now: Now) -> bool {
        let due = self.core.next_deadline();
        !self.delivered.is_empty()
            || !self.inputs.is_empty()
            || due.is_some_and(|at| at <= now.monotonic)
    }

    /// What the seat's task in the daemon does before it looks at its other sources again.
    fn turn(&mut self, now: Now) {
        let due = self.core.next_deadline();
        if due.is_some_and(|at| at <= now.monotonic) {
            self.step(now, Input::Tick);
        }
        for _ in 0..BATCH_MAX {
            let mut found = false;
            if let Some((from, bytes)) = self.delivered.pop_front() {
                let envelope = Envelope::from_bytes(&bytes).expect("it was encoded");
                self.step(now, Input::Delivered { from, envelope });
                found = true;
            }
            if let Some(input) = self.inputs.pop_front() {
                self.step(now, input);
                found = true;
            }
            if !found {
                break;
            }
        }
        self.step(now, Input::Flush);
    }

    fn step(&mut self, now: Now, input: Input) {
        self.core.step_into(now, input, &mut self.outputs);
        for output in self.outputs.drain(..) {
            match output {
                Output::Multicast(envelope) => {
                    let bytes = envelope.to_bytes(self.core.version());
                    self.sent.push(Bytes::from(bytes));
                }
                // For the store and the hypervisor, which are no part of the core.
                Output::Decided(_)
                | Output::Safe { .. }
                | Output::PutInService { .. }
                | Output::StoreRoot { .. }
                | Output::CaughtUp
                | Output::Prioritise(_) => {}
                output => self.effects.push(output),
            }
        }
    }
}

/// What a run costs, and how many requests it answered.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    requests: u64,
    elapsed: Duration,
    allocations: u64,
}

impl Cost {
    fn requests_per_s(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    fn allocations_per_request(&self) -> f64 {
        self.allocations as f64 / self.requests as f64
    }
}

/// Both managers, and everything around them.
struct Group {
    seats: [Seat; 2],
    now: Micros,
    reply_bytes: usize,
    submitted: u64,
    cost: Cost,
}

fn config(me: SeatId, clients: usize) -> Config {
    Config {
        me,
        seats: vec![SeatId(0), SeatId(1)],
        faults: 1,
        durable: false,
        updates_max: 200,
        activation_budget: Micros::from_ms(500),
        buffer_max: 100_000,
        checkpoint_writes: 200,
        vote_timeout: (Micros::from_ms(2000), Micros::from_ms(5000)),
        read_timeout: Micros::from_ms(30_000),
        read_patience: Micros::from_ms(500),
        abort_timeout: Micros::from_ms(60_000),
        scrub_timeout: Micros::from_ms(600_000),
        executing_max: 64,
        executing_bytes_max: 32 << 20,
        help_timeout: Micros::from_ms(2000),
        fetch_timeout: Micros::from_ms(500),
        apply_timeout: Micros::from_ms(15_000),
        boot_timeout: Micros::from_ms(60_000),
        build_timeout: Micros::from_ms(180_000),
        recovery_timeout: Micros::from_ms(540_000),
        awake_min: Micros::from_ms(1000),
        awake_max: Micros::from_ms(30_000),
        suspicion_threshold: 100,
        suspicion_window: 1000,
        slow_factor: 20,
        slow_min: Micros::from_ms(1000),
        announce_delay: Micros::from_ms(2),
        heartbeat: Micros::from_ms(1000),
        batch_delay: Micros(0),
        batch_requests_max: 256,
        batch_bytes_max: 256 << 10,
        undelivered_bytes_max: 128 << 20,
        in_flight_max: clients,
        wait_max: Micros::from_ms(600_000),
        clock_ahead_max_us: 10_000_000,
        key_lifetime_us: 24 * 3600 * 1_000_000,
        keys_max: 100_000,
        keys_of_owner_max: 1000,
        versions: VersionRange::OF_THIS_BUILD,
    }
}

impl Group {
    /// A group whose replicas are all built, with this many clients that sent their first request.
    fn started(clients: usize, reply_bytes: usize) -> Group {
        let mut group = Group {
            seats: [0, 1].map(|s| Seat::new(config(SeatId(s), clients))),
            now: Micros::from_ms(1000),
            reply_bytes,
            submitted: 0,
            cost: Cost::default(),
        };
        for seat in &mut group.seats {
            seat.inputs.push_back(Input::Ring {
                ring: 1,
                members: vec![SeatId(0), SeatId(1)],
                primary: true,
            });
        }
        while !group.seats.iter().all(|s| s.core.is_staffed()) {
            group.round();
        }
        for _ in 0..clients {
            group.submit();
        }
        group
    }

    /// What it costs seat 0 to get this many requests answered.
    fn run(&mut self, requests: u64) -> Cost {
        self.cost = Cost::default();
        while self.cost.requests < requests {
            self.round();
        }
        self.cost
    }

    /// Every seat takes a turn; then what they want done is done.
    fn round(&mut self) {
        self.now = self.now.after(ROUND);
        let now = Now {
            monotonic: self.now,
            clock_us: i64::try_from(self.now.0).expect("small"),
        };
        let [first, second] = &mut self.seats;
        if first.has_work(now) {
            let before = ALLOCATIONS.get();
            let began = Instant::now();
            first.turn(now);
            self.cost.elapsed += began.elapsed();
            self.cost.allocations += ALLOCATIONS.get() - before;
        }
        if second.has_work(now) {
            second.turn(now);
        }
        for index in 0..self.seats.len() {
            self.perform(index);
        }
    }

    fn perform(&mut self, index: usize) {
        let from = self.seats[index].me;
        for bytes in std::mem::take(&mut self.seats[index].sent) {
            for seat in &mut self.seats {
                seat.delivered.push_back((from, bytes.clone()));
            }
        }
        let mut effects = std::mem::take(&mut self.seats[index].effects);
        for effect in effects.drain(..) {
            let input = match effect {
                Output::Execute { replica, request } => self.execute(replica, &request),
                Output::Apply {
                    replica,
                    upto: position,
                    root,
                    ..
                } => Input::Applied {
                    replica,
                    position,
                    root: (root != RootRequest::No).then(|| root_at(position.0)),
                },
                Output::Answer { outcome, .. } => {
                    assert!(outcome.is_ok(), "a request was aborted");
                    self.cost.requests += 1;
                    self.submit();
                    continue;
                }
                Output::Create(replica) => Input::Booted(replica),
                Output::Pause(replica) => Input::Paused(replica),
                Output::Unpause(replica) => Input::Unpaused(replica),
                Output::StoreView(view) => Input::ViewStored(view.id),
                Output::SendPeer { to, message } => {
                    let input = Input::Peer { from, message };
                    self.seats[usize::from(to.0)].inputs.push_back(input);
                    continue;
                }
                Output::Notice(notice) => {
                    assert_is_ordinary(&notice);
                    continue;
                }
                output => panic!("not in a run without faults: {output:?}"),
            };
            self.seats[index].inputs.push_back(input);
        }
        self.seats[index].effects = effects;
    }

    /// A client sends its next request.
    fn submit(&mut self) {
        self.submitted += 1;
        let number = self.submitted;
        let class = if WRITES_OF_20.contains(&(number % 20)) {
            Class::Write
        } else {
            Class::Read
        };
        self.seats[0].inputs.push_back(Input::Submit(Request {
            id: RequestId {
                seat: SeatId(0),
                number,
            },
            class,
            key: None,
            key_owner: 0,
            proposed_time_us: i64::try_from(self.now.0).expect("small"),
            seed: seed(number),
            request: text(number, REQUEST_BYTES),
        }));
    }

    fn execute(&self, replica: ReplicaId, request: &Execute) -> Input {
        let position = request.position;
        Input::Executed {
            replica,
            position,
            outcome: Outcome::Reply(text(position.0, self.reply_bytes)),
            update: match request.class {
                Class::Write => text(position.0, UPDATE_BYTES),
                _ => Bytes::new(),
            },
            root: (request.root != RootRequest::No).then(|| root_at(position.0)),
        }
    }
}

fn assert_is_ordinary(notice: &Notice) {
    let ordinary = matches!(
        notice,
        Notice::Replica { .. }
            | Notice::ManagerState { .. }
            | Notice::View { .. }
            | Notice::Unpaused { .. }
            | Notice::Applied { .. }
            | Notice::CheckpointStable { .. }
    );
    assert!(ordinary, "not in a run without faults: {notice:?}");
}

/// Bytes that differ with the number.
fn text(number: u64, length: usize) -> Bytes {
    let mut bytes = vec![b'.'; length];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Bytes::from(bytes)
}

fn seed(number: u64) -> [u8; 32] {
    let mut seed = [0; 32];
    for (i, part) in seed.chunks_exact_mut(8).enumerate() {
        let mixed = (number * 4 + i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        part.copy_from_slice(&(mixed ^ mixed >> 29).to_le_bytes());
    }
    seed
}

fn root_at(position: u64) -> Hash {
    Hash(seed(position))
}

/// Requests in one of criterion's iterations: several times as many as are ever under way, because with many
/// clients answers come in bursts.
const ITERATION_REQUESTS: u64 = 50_000;

fn measure_with_criterion(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("one_manager");
    benches.throughput(Throughput::Elements(ITERATION_REQUESTS));
    benches.sampling_mode(SamplingMode::Flat);
    let of_clients = CLIENTS.map(|clients| (clients, REQUEST_BYTES));
    for (clients, reply_bytes) in of_clients.into_iter().chain([(CLIENTS_USUAL, PAGE_BYTES)]) {
        let name = format!("reply of {reply_bytes} bytes");
        benches.bench_function(BenchmarkId::new(name, clients), |bencher| {
            let mut group = Group::started(clients, reply_bytes);
            bencher.iter_custom(|iterations| {
                let requests = iterations * ITERATION_REQUESTS;
                let cost = group.run(requests);
                // A turn may answer more than were asked for.
                cost.elapsed.mul_f64(requests as f64 / cost.requests as f64)
            });
        });
    }
    benches.finish();
}

/// Requests in one part of a measurement.
const PART_REQUESTS: u64 = 100_000;
/// How often each measurement gets a part, in turn with all others, so that a machine that is slower for
/// a while is so for all of them. The median counts.
const ROUNDS: usize = 15;
/// How long a run is "long".
const LONG_RUN_REQUESTS: u64 = 5_000_000;

/// One line of the summary.
struct Line {
    what: String,
    clients: usize,
    reply_bytes: usize,
    /// How many requests came before the first part.
    after_requests: u64,
    /// The lines whose cost this one must not exceed by much: those of fewer clients, or of a short run.
    compared: Vec<usize>,
    /// One a round.
    parts: Vec<Cost>,
}

impl Line {
    fn requests_per_s(&self) -> f64 {
        median(self.parts.iter().map(Cost::requests_per_s))
    }

    fn allocations_per_request(&self) -> f64 {
        median(self.parts.iter().map(Cost::allocations_per_request))
    }

    /// How many times the other line's cost, in the same round, is this one's.
    fn times_the_cost_of(&self, other: &Line) -> f64 {
        let pairs = self.parts.iter().zip(&other.parts);
        median(pairs.map(|(one, other)| other.requests_per_s() / one.requests_per_s()))
    }

    /// How many times the least cost that it is compared with; none if with none.
    fn growth(&self, lines: &[Line]) -> Option<f64> {
        let others = self.compared.iter().map(|i| &lines[*i]);
        others
            .map(|other| self.times_the_cost_of(other))
            .reduce(f64::max)
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn summarise() -> Vec<Line> {
    let line = |what: String, clients, reply_bytes, after_requests, compared| Line {
        what,
        clients,
        reply_bytes,
        after_requests,
        compared,
        parts: Vec::new(),
    };
    let mut lines = Vec::new();
    for (i, clients) in CLIENTS.into_iter().enumerate() {
        let what = format!("{clients} clients");
        lines.push(line(
            what,
            clients,
            REQUEST_BYTES,
            PART_REQUESTS,
            (0..i).collect(),
        ));
    }
    let usual = CLIENTS
        .iter()
        .position(|c| *c == CLIENTS_USUAL)
        .into_iter()
        .collect();
    let what = format!("{CLIENTS_USUAL} clients, after {LONG_RUN_REQUESTS} requests");
    lines.push(line(
        what,
        CLIENTS_USUAL,
        REQUEST_BYTES,
        LONG_RUN_REQUESTS,
        usual,
    ));
    let what = format!("{CLIENTS_USUAL} clients, replies of {PAGE_BYTES} bytes");
    lines.push(line(
        what,
        CLIENTS_USUAL,
        PAGE_BYTES,
        PART_REQUESTS,
        Vec::new(),
    ));

    let mut groups: Vec<Group> = (lines.iter())
        .map(|line| Group::started(line.clients, line.reply_bytes))
        .collect();
    for (group, line) in groups.iter_mut().zip(&lines) {
        group.run(line.after_requests);
    }
    for _ in 0..ROUNDS {
        for (group, line) in groups.iter_mut().zip(&mut lines) {
            line.parts.push(group.run(PART_REQUESTS));
        }
    }
    for line in &lines {
        print!(
            "{:<36} {:>10.0} requests/s {:>7.0} ns and {:>5.2} allocations per request",
            line.what,
            line.requests_per_s(),
            1e9 / line.requests_per_s(),
            line.allocations_per_request()
        );
        match line.growth(&lines) {
            Some(growth) => println!(", {growth:.2} times the least cost above"),
            None => println!(),
        }
    }
    println!("{}", to_json(&lines));
    lines
}

fn to_json(lines: &[Line]) -> String {
    let mut json = String::from("{\"benchmark\":\"one_manager\",\"results\":[");
    for (i, line) in lines.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // Writing into a string does not fail.
        let _ = write!(
            json,
            "{comma}{{\"clients\":{},\"reply_bytes\":{},\"after_requests\":{},\
             \"requests_per_s\":{:.0},\"allocations_per_request\":{:.3}}}",
            line.clients,
            line.reply_bytes,
            line.after_requests,
            line.requests_per_s(),
            line.allocations_per_request()
        );
    }
    json + "]}"
}

/// What is wrong with these figures.
fn complaints(lines: &[Line]) -> Vec<String> {
    let mut complaints = Vec::new();
    let small: Vec<&Line> = lines
        .iter()
        .filter(|l| l.reply_bytes == REQUEST_BYTES)
        .collect();
    for line in small {
        let speed = line.requests_per_s();
        if speed < REQUESTS_PER_S_LEAST {
            complaints.push(format!("{}: only {speed:.0} requests/s", line.what));
        }
        if let Some(growth) = line.growth(lines).filter(|g| *g > GROWTH_MAX) {
            complaints.push(format!(
                "{}: {growth:.2} times the cost of fewer clients or a shorter run",
                line.what
            ));
        }
    }
    complaints
}

fn main() -> ExitCode {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    measure_with_criterion(&mut criterion);
    criterion.final_summary();
    if std::env::args().any(|a| a == "--test" || a == "--list") {
        return ExitCode::SUCCESS;
    }
    let complaints = complaints(&summarise());
    let asserted = std::env::var_os("SPARE_BENCH_ASSERT").is_some_and(|v| v == "1");
    for complaint in &complaints {
        eprintln!("one_manager: {complaint}");
    }
    if asserted && !complaints.is_empty() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
