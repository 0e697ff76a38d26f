//! The calls of the replica manager's admin API, and what it answers to them, as JSON.

use serde::{Deserialize, Serialize};
use std::marker::PhantomData;

/// A call of the admin API that is answered with an `A`: an HTTP request without a body, whose parameters are
/// in its query. The manager's routes and its clients both go by these.
#[derive(Debug)]
pub struct Call<A> {
    /// `GET` if it changes nothing, `POST` if it does.
    pub method: &'static str,
    /// The path, without the query.
    pub path: &'static str,
    answer: PhantomData<fn() -> A>,
}

impl<A> Call<A> {
    const fn get(path: &'static str) -> Call<A> {
        Call {
            method: "GET",
            path,
            answer: PhantomData,
        }
    }

    const fn post(path: &'static str) -> Call<A> {
        Call {
            method: "POST",
            path,
            answer: PhantomData,
        }
    }
}

/// The state of the deployment.
pub const STATUS: Call<Status> = Call::get("/v1/status");
/// The events numbered above `after`, for the first of which it waits up to `wait_ms`.
pub const EVENTS: Call<Vec<Event>> = Call::get("/v1/events");
/// How every fault since the start was dealt with, bounded in number.
pub const FAULTS: Call<Vec<FaultTimeline>> = Call::get("/v1/faults");
/// Orders a scrub and waits for it.
pub const SCRUB: Call<ScrubReport> = Call::post("/v1/scrub");
/// Makes a snapshot of now, and is answered with the file, which is not JSON (`docs/contributors/store.md`).
pub const BACKUP: Call<Vec<u8>> = Call::post("/v1/backup");
/// An operator says that `host` is off.
pub const FENCE_CONFIRM: Call<Nothing> = Call::post("/v1/fence/confirm");
/// An operator says that the disk of `host` is gone for good.
pub const LOSS_ACCEPT: Call<Nothing> = Call::post("/v1/loss/accept");
/// Other hosts take the places of the replicas of `host`.
pub const HOST_DRAIN: Call<Nothing> = Call::post("/v1/host/drain");
/// `host` gets its share of the replicas again.
pub const HOST_FILL: Call<Nothing> = Call::post("/v1/host/fill");
/// Stops the service and destroys its replicas.
pub const STOP: Call<Nothing> = Call::post("/v1/stop");

/// `{}`: done, and there is nothing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

/// The state of one deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the service.
    pub service: String,
    /// What the group does at present.
    pub mode: Mode,
    /// The group engine in use.
    pub engine: String,
    /// `disk`, or `memory`: nothing survives a stop.
    #[serde(default)]
    pub durability: String,
    /// f: how many replicas may be faulty at once.
    pub faults: u16,
    /// The primary view's number.
    pub epoch: u64,
    /// The last position that was ordered.
    pub ordered: u64,
    /// Up to here every request is decided.
    pub decided: u64,
    /// k: a passive is brought up to date when this many updates wait for it.
    pub updates_max: u64,
    /// Where clients connect.
    pub gateway: String,
    /// How the manager that answers stands to the group.
    #[serde(default, alias = "standing")]
    pub state: String,
    /// What that manager does, or waits for, before it takes part; empty once it does.
    #[serde(default)]
    pub waits_for: String,
    /// The machines; the one whose manager answers first.
    pub hosts: Vec<HostStatus>,
    /// The seats with their replicas. Of those on other hosts only what all managers know is told.
    pub seats: Vec<SeatStatus>,
    /// Counts since the start.
    pub counters: Counters,
    /// The newest conviction.
    pub last_conviction: Option<Conviction>,
}

/// What the group does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The first replicas are being built.
    Starting,
    /// Requests are answered.
    Serving,
    /// Fewer than f+1 replicas can vote: requests get 503 until replicas return.
    DetectOnly,
    /// The manager that answers is not in the primary view: its clients get 503.
    Apart,
}

/// A machine with a manager and an agent, as the manager that answers sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The name that `group.hosts` gives it, or its agent where there is no group.
    pub name: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Whether its agent answers.
    pub agent: bool,
    /// The manager that answers is on this one; of the others neither accelerator nor agent are known.
    #[serde(default = "yes")]
    pub here: bool,
    /// Its seats are in the primary view.
    #[serde(default = "yes")]
    pub member: bool,
    /// It is to have no replicas (`spare host drain`); known of members only.
    #[serde(default)]
    pub drained: bool,
    /// Messages get through to its manager.
    #[serde(default = "yes")]
    pub connected: bool,
}

fn yes() -> bool {
    true
}

/// One replica manager's part in the group, with its store and its replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeatStatus {
    /// Number of the seat, with which the names of its replicas (`seat.generation`) begin.
    pub seat: u16,
    /// The host it is on.
    pub host: String,
    /// Its replicas, oldest first.
    pub replicas: Vec<ReplicaStatus>,
    /// The manager that answers has this seat. Of the others neither positions nor stores are known.
    #[serde(default = "yes")]
    pub here: bool,
    /// How far its store is, and what it takes; zeros where the store is another host's or cannot be read.
    #[serde(default)]
    pub disk: DiskStatus,
}

/// A seat's store, and the bytes that it takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskStatus {
    /// Everything up to here is durable.
    pub stored: u64,
    /// The position of the newest snapshot.
    pub snapshot: Option<u64>,
    /// All segments of the ordered log.
    pub log_bytes: u64,
    /// The agreed state in snapshots.
    pub snapshot_bytes: u64,
    /// Replies to requests with a key.
    pub reply_bytes: u64,
    /// The file that holds snapshots and replies, with what is free in it.
    pub table_bytes: u64,
    /// Evidence of convictions.
    pub evidence_bytes: u64,
}

impl DiskStatus {
    /// All that it takes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.log_bytes + self.table_bytes + self.evidence_bytes
    }
}

/// A replica, as the manager that answers sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// `seat.generation`.
    pub replica: String,
    /// Its state in the life cycle.
    pub state: ReplicaState,
    /// The last request whose effects its state contains.
    pub position: u64,
    /// Whether it never executed a request.
    pub clean: bool,
    /// Agreed updates that wait for it.
    pub updates_waiting: u64,
    /// Distinct requests within the window on which it was silent.
    pub suspicions: u32,
    /// CPU time its virtual machine used, in milliseconds, if the agent could tell.
    pub cpu_ms: Option<u64>,
    /// Memory of its virtual machine, in KiB, if the agent could tell.
    pub memory_kib: Option<u64>,
}

/// The state of a replica; the diagram is in `docs/protocol.md#life-of-a-replica`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// The VM boots or its state is loaded.
    Building,
    /// Paused, kept current by agreed updates.
    Passive,
    /// Being unpaused, brought up to date and asked to execute.
    Activating,
    /// Executes every request and votes.
    Active,
    /// Silent too often: votes no longer, counts as passive, not clean; replaced if it does not catch up.
    Suspected,
    /// Built by proactive recovery: takes over at the hand-over.
    Successor,
    /// A fresh one took over: votes on what was ordered before, then is destroyed.
    Retiring,
    /// Convicted: kept for forensics until it is destroyed.
    Quarantined,
    /// Its VM died or was given up.
    Lost,
    /// Its VM no longer exists; the group does not count on it any more.
    Destroyed,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Requests ordered, of every class.
    pub requests: u64,
    /// Requests of class write that were ordered.
    pub writes: u64,
    /// Positions on which the active replicas' votes differed.
    pub mismatches: u64,
    /// Times a passive was woken to vote.
    pub wakes: u64,
    /// Times a passive was brought up to date.
    pub passive_updates: u64,
    /// Replicas convicted.
    pub convictions: u64,
    /// `SUSPECTED` messages counted.
    pub suspicions: u64,
    /// Replicas paused because of too many suspicions.
    pub suspicion_pauses: u64,
    /// Replicas whose VM died or was given up.
    pub losses: u64,
    /// Checkpoints that became stable.
    pub checkpoints: u64,
}

/// Why a replica was convicted, with everything that shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conviction {
    /// The convicted replica.
    pub replica: String,
    /// The request on which it voted wrongly.
    pub position: u64,
    /// When: microseconds since the Unix epoch.
    pub at_us: i64,
    /// What shows that it is faulty.
    pub reason: ConvictionReason,
    /// The request in one line, for HTTP `GET /item?id=3`.
    pub request: String,
    /// The votes on that request, the convicted replica's too.
    pub votes: Vec<VoteStatus>,
    /// Hash of the reply that was agreed on.
    pub agreed_reply: String,
    /// Hash of the update that was agreed on.
    pub agreed_update: String,
    /// Folder with the request, the agreed and the wrong reply in full.
    pub evidence: Option<String>,
}

/// What shows that a convicted replica is faulty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvictionReason {
    /// The reply differed from the agreed one.
    Reply,
    /// The state update differed from the agreed one.
    Update,
    /// The root of its state differed from the agreed one.
    Root,
    /// It broke the rules of its channel: garbage, a false checksum, a giant length, an answer to
    /// nothing.
    Channel,
}

/// One replica's vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteStatus {
    /// The replica that voted: `seat.generation`.
    pub replica: String,
    /// Hash of its reply.
    pub reply: String,
    /// Hash of its update.
    pub update: String,
}

/// Something that happened, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1.
    pub number: u64,
    /// When: microseconds since the Unix epoch.
    pub at_us: i64,
    /// By what programs tell events apart; `text` is for people.
    pub kind: EventKind,
    /// Where in the order, if it has to do with one request.
    pub position: Option<u64>,
    /// Which replica, if it has to do with one.
    pub replica: Option<String>,
    /// The whole of it in one sentence.
    pub text: String,
}

/// Kinds of [`Event`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The gateway answers clients from now on.
    Serving,
    /// A replica's VM is being created.
    Creating,
    /// A replica is built: booted, its state loaded.
    Built,
    /// A replica executes requests from now on.
    Active,
    /// The votes on a request differ.
    Mismatch,
    /// A vote did not arrive in time.
    Silent,
    /// A passive was chosen to vote (`HELP_ME`, `I_DO`).
    Woken,
    /// Its VM runs.
    Unpaused,
    /// The waiting updates are applied.
    Applied,
    /// It executed the request it was woken for.
    Executed,
    /// A request that needed help is decided.
    Agreed,
    /// A replica voted otherwise than decided.
    Convicted,
    /// A passive takes the place of an active that was convicted, suspected or lost.
    Promoted,
    /// A woken passive, or a suspected replica that has caught up, was put to sleep.
    Slept,
    /// A replica was silent too often and votes no longer.
    Suspected,
    /// A replica's VM died or was given up.
    Lost,
    /// A convicted replica's disk and memory were kept.
    Quarantined,
    /// A replica's VM is gone.
    Destroyed,
    /// A checkpoint's root was agreed on.
    CheckpointStable,
    /// The primary view changed.
    View,
    /// A seat's replicas are being replaced by fresh ones, or were.
    Recovery,
    /// A host is known to be off.
    Fenced,
    /// Somebody asked for something that changes something, or was refused it: who, and what.
    Operator,
    /// Something needs an operator.
    Alarm,
}

/// How one mismatch or silence was dealt with. Times are milliseconds since the arrival of the first
/// reply that turned out to be wrong (or, if a reply was missing, since its timer expired).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultTimeline {
    /// The position of the request on which the votes differed, or one was missing.
    pub position: u64,
    /// The replica that was woken.
    pub woken: String,
    /// The replica that was found faulty, if any was.
    pub faulty: Option<String>,
    /// Updates that waited for the woken replica.
    pub updates_waiting: u64,
    /// The votes differed.
    pub detected_ms: f64,
    /// The woken replica's VM ran.
    pub unpaused_ms: f64,
    /// The waiting updates were applied.
    pub applied_ms: f64,
    /// The request was executed.
    pub executed_ms: f64,
    /// The agreed reply went to the client.
    pub agreed_ms: f64,
}

/// The outcome of a scrub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Its place in the order: every root is that of the state up to here.
    pub position: u64,
    /// Replica and root (hexadecimal) of every replica that reported.
    pub roots: Vec<(String, String)>,
    /// Whether all usable replicas reported, and all the same.
    pub equal: bool,
}
