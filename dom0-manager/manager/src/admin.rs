//! The admin API: HTTP on a Unix socket (`spare_protocol::admin`). Who may use it is told in `operators`.

use crate::agent_link::AgentLink;
use crate::config::Config;
use crate::event_log::EventLog;
use crate::fencing::{ConfirmError, Fencing};
use crate::gateway::Clients;
use crate::handle::{CoreStatus, DriverHandle, NoSnapshot};
use crate::operators::{admit, Gate, Operators};
use crate::peers::Peers;
use crate::pending::Answer;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use spare_agent_client::AgentProxy;
use spare_core::{Input, ManagerState};
use spare_protocol::admin as calls;
use spare_protocol::admin::{
    Counters, DiskStatus, EventKind, HostStatus, Mode, ReplicaState, ReplicaStatus, ScrubReport,
    SeatStatus, Status,
};
use spare_protocol::{Class, SeatId};
use spare_store::Store;
use std::io::{BufWriter, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, Notify};

/// For a scrub: it reads every replica's whole database.
const SCRUB_LIMIT: Duration = Duration::from_secs(600);
/// For a snapshot to be written, before the backup begins.
const BACKUP_LIMIT: Duration = Duration::from_secs(600);
/// Pieces of a backup that wait for its receiver, and their length.
const BACKUP_PIECES: usize = 8;
const BACKUP_PIECE_BYTES: usize = 256 << 10;
/// For the agent to tell a VM's usage; status is shown without it rather than late.
const USAGE_LIMIT: Duration = Duration::from_millis(500);
/// The longest a client may ask to wait for events.
const WAIT_MS_MAX: u64 = 60_000;

/// The parts of the running manager, which the API tells about and hands requests to.
pub(crate) struct Deployment {
    pub(crate) config: Config,
    /// The drivers of the seats on this host.
    pub(crate) seats: Vec<DriverHandle>,
    pub(crate) peers: Arc<Peers>,
    /// None if all seats are here.
    pub(crate) fencing: Option<Arc<Fencing>>,
    /// The stores of `seats`, in the same order.
    pub(crate) stores: Vec<Arc<Store>>,
    pub(crate) event_log: Arc<EventLog>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) agent: AgentLink,
    /// Name and accelerator of this host, as the agent tells them.
    pub(crate) host: (String, String),
}

/// The state of the admin API. At first there is nothing behind it but what the manager waits for.
pub(crate) struct AdminApi {
    config: Config,
    host: (String, String),
    waits_for: Mutex<String>,
    deployment: OnceLock<Deployment>,
    /// Somebody wants the service to stop.
    pub(crate) stop: Notify,
}

impl AdminApi {
    pub(crate) fn new(config: Config, host: (String, String)) -> AdminApi {
        AdminApi {
            config,
            host,
            waits_for: Mutex::default(),
            deployment: OnceLock::new(),
            stop: Notify::new(),
        }
    }

    /// What the manager waits for, or does, before it can take part.
    pub(crate) fn waits_for(&self, text: String) {
        *self
            .waits_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// The manager runs: from now on the API tells about `deployment`.
    pub(crate) fn open(&self, deployment: Deployment) {
        // Once only.
        let _ = self.deployment.set(deployment);
    }

    /// Who asked for what.
    fn note(&self, text: String) {
        match self.deployment.get() {
            Some(deployment) => deployment.event_log.event(EventKind::Operator, None, text),
            // There are no events yet; this is the log that keeps them all.
            None => tracing::info!("{text}"),
        }
    }

    fn waiting(&self) -> String {
        let text = self.waits_for.lock();
        text.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn deployment(&self) -> Result<&Deployment, Unavailable> {
        let there = self.deployment.get();
        there.ok_or_else(|| Unavailable::Starting(self.waiting()))
    }

    /// The status before there is a deployment.
    fn starting(&self) -> Status {
        let group = &self.config.group;
        let this = group.this_host().map(|h| h.name.clone());
        Status {
            service: self.config.service.name.clone(),
            mode: Mode::Starting,
            engine: group.engine.name().into(),
            durability: self.config.store.durability.name().into(),
            faults: group.faults,
            epoch: 0,
            ordered: 0,
            decided: 0,
            updates_max: self.config.replication.updates_max as u64,
            gateway: format!("http://{}", self.config.gateway.listen),
            state: "starting".into(),
            waits_for: self.waiting(),
            hosts: vec![HostStatus {
                name: this.unwrap_or_else(|| self.host.0.clone()),
                accelerator: self.host.1.clone(),
                agent: true,
                here: true,
                member: false,
                drained: false,
                connected: true,
            }],
            seats: Vec::new(),
            counters: Counters::default(),
            last_conviction: None,
        }
    }
}

/// Why nothing can be told at present: 503.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error("the replica manager starts: {0}")]
    Starting(String),
    #[error("the replica manager is stopping")]
    Stopping,
    #[error("the replicas did not execute the scrub in time")]
    ScrubTimeout,
    #[error("not all replicas reported their roots in time")]
    RootsTimeout,
    #[error("there are no seats")]
    NoSeats,
    #[error(transparent)]
    Snapshot(#[from] NoSnapshot),
    #[error("the snapshot took too long")]
    SnapshotTimeout,
}

impl IntoResponse for Unavailable {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response()
    }
}

/// Why something that an operator asks for is not done as things are: 409.
#[derive(Debug, thiserror::Error)]
enum Conflict {
    #[error("all seats are on this host")]
    OneHost,
    #[error(transparent)]
    Confirm(#[from] ConfirmError),
    #[error("there is no host {0} in group.hosts")]
    UnknownHost(String),
    #[error("this host waits for no other: there is nothing to give up")]
    WaitsForNobody,
    #[error("this host waits for {others}, not for {host}")]
    WaitsForOthers { others: String, host: String },
    #[error("this host is not in the primary view: ask one that is")]
    Apart,
    #[error("host {0} is not in the primary view: it has no replicas")]
    NotInView(String),
    #[error(
        "without host {host}, fewer than f + 1 = {needed} hosts would have replicas, and a faulty one would \
         not be masked; add a host first, or wait until one that is missing is back"
    )]
    Needed { host: String, needed: u16 },
    #[error("there are no seats")]
    NoSeats,
    #[error("the replica manager is stopping")]
    Stopping,
}

impl IntoResponse for Conflict {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, self.to_string()).into_response()
    }
}

/// Why what an operator asks for is not done.
enum Refused {
    Unavailable(Unavailable),
    Conflict(Conflict),
}

impl From<Unavailable> for Refused {
    fn from(why: Unavailable) -> Refused {
        Refused::Unavailable(why)
    }
}

impl From<Conflict> for Refused {
    fn from(why: Conflict) -> Refused {
        Refused::Conflict(why)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Refused::Unavailable(why) => why.into_response(),
            Refused::Conflict(why) => why.into_response(),
        }
    }
}

type Done = Result<Json<serde_json::Value>, Refused>;

type Answered = Result<Response, Unavailable>;

/// The API's routes.
pub(crate) fn router(api: &Arc<AdminApi>, operators: Operators) -> Router {
    let told = Arc::clone(api);
    let gate = Gate {
        operators,
        note: Arc::new(move |text| told.note(text)),
    };
    Router::new()
        .route(calls::STATUS.path, get(status))
        .route(calls::EVENTS.path, get(events))
        .route(calls::FAULTS.path, get(faults))
        .route(calls::SCRUB.path, post(scrub))
        .route(calls::BACKUP.path, post(backup))
        .route(calls::FENCE_CONFIRM.path, post(confirm_fence))
        .route(calls::LOSS_ACCEPT.path, post(accept_loss))
        .route(calls::HOST_DRAIN.path, post(drain))
        .route(calls::HOST_FILL.path, post(fill))
        .route(calls::STOP.path, post(stop))
        .layer(from_fn_with_state(gate, admit))
        .with_state(Arc::clone(api))
}

async fn status(State(api): State<Arc<AdminApi>>) -> Answered {
    let Ok(deployment) = api.deployment() else {
        return Ok(Json(api.starting()).into_response());
    };
    let status = deployment.status().await.ok_or(Unavailable::Stopping)?;
    Ok(Json(status).into_response())
}

/// Which events are asked for.
#[derive(Deserialize)]
pub(crate) struct Window {
    /// Only events with greater numbers; 0 is below all of them.
    #[serde(default)]
    pub(crate) after: u64,
    /// How long to wait for the first of them.
    #[serde(default)]
    pub(crate) wait_ms: u64,
}

async fn events(State(api): State<Arc<AdminApi>>, Query(window): Query<Window>) -> Answered {
    let wait = Duration::from_millis(window.wait_ms.min(WAIT_MS_MAX));
    let until = tokio::time::Instant::now() + wait;
    let event_log = &api.deployment()?.event_log;
    Ok(Json(event_log.events_after(window.after, until).await).into_response())
}

async fn faults(State(api): State<Arc<AdminApi>>) -> Answered {
    Ok(Json(api.deployment()?.event_log.faults()).into_response())
}

async fn scrub(State(api): State<Arc<AdminApi>>) -> Answered {
    let deployment = api.deployment()?;
    let answer = deployment.clients.submit(Class::Scrub, None, Bytes::new());
    let Some(Answer::Agreed(position, _)) = answer.await else {
        return Err(Unavailable::ScrubTimeout);
    };
    let until = tokio::time::Instant::now() + SCRUB_LIMIT;
    let roots = deployment.event_log.scrubbed(position, until).await;
    let roots = roots.ok_or(Unavailable::RootsTimeout)?;
    let equal = roots.windows(2).all(|w| w[0].1 == w[1].1);
    let report = ScrubReport {
        position: position.0,
        roots: roots
            .iter()
            .map(|(r, h)| (r.to_string(), h.to_string()))
            .collect(),
        equal,
    };
    Ok(Json(report).into_response())
}

/// A snapshot of now, as a file.
async fn backup(State(api): State<Arc<AdminApi>>) -> Answered {
    let deployment = api.deployment()?;
    let (Some(seat), Some(store)) = (deployment.seats.first(), deployment.stores.first()) else {
        return Err(Unavailable::NoSeats);
    };
    let stored = tokio::time::timeout(BACKUP_LIMIT, seat.store_snapshot()).await;
    stored.map_err(|_| Unavailable::SnapshotTimeout)??;
    Ok(exported(Arc::clone(store)))
}

/// The newest snapshot of a store, as it is read.
fn exported(store: Arc<Store>) -> Response {
    let (sender, receiver) = mpsc::channel(BACKUP_PIECES);
    tokio::task::spawn_blocking(move || {
        let mut pieces = BufWriter::with_capacity(BACKUP_PIECE_BYTES, Pieces(sender.clone()));
        let exported = store.export_snapshot(&mut pieces);
        let done = match exported {
            Ok(_) => pieces.flush(),
            Err(error) => Err(std::io::Error::other(error.to_string())),
        };
        if let Err(error) = done {
            tracing::warn!("a backup ended early: {error}");
            // So that the receiver does not take it for the whole.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Body::from_stream(pieces).into_response()
}

/// Hands what is written to a task.
struct Pieces(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        match self.0.blocking_send(Ok(piece)) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Deserialize)]
struct Named {
    host: String,
}

/// An operator says that a host is off.
async fn confirm_fence(State(api): State<Arc<AdminApi>>, Query(named): Query<Named>) -> Done {
    let deployment = api.deployment()?;
    let fencing = deployment.fencing.as_ref().ok_or(Conflict::OneHost)?;
    let confirmed = fencing.confirm(&named.host);
    confirmed.map_err(Conflict::Confirm)?;
    Ok(nothing())
}

/// An operator says that a host's disk is gone for good.
async fn accept_loss(State(api): State<Arc<AdminApi>>, Query(named): Query<Named>) -> Done {
    let deployment = api.deployment()?;
    deployment.accept_loss(&named.host).await?;
    Ok(nothing())
}

/// A host is to have no replicas.
async fn drain(State(api): State<Arc<AdminApi>>, Query(named): Query<Named>) -> Done {
    let deployment = api.deployment()?;
    deployment.drain(&named.host, true).await?;
    Ok(nothing())
}

/// A host that was drained is to have its share again.
async fn fill(State(api): State<Arc<AdminApi>>, Query(named): Query<Named>) -> Done {
    let deployment = api.deployment()?;
    deployment.drain(&named.host, false).await?;
    Ok(nothing())
}

/// It is done, and there is nothing to tell.
fn nothing() -> Json<serde_json::Value> {
    Json(serde_json::json!({}))
}

async fn stop(State(api): State<Arc<AdminApi>>) -> Response {
    api.stop.notify_one();
    nothing().into_response()
}

impl Deployment {
    async fn status(&self) -> Option<Status> {
        let mut seats = Vec::new();
        let mut first: Option<CoreStatus> = None;
        for (handle, store) in self.seats.iter().zip(&self.stores) {
            let core = handle.core_status().await?;
            seats.push(self.seat(handle.seat, &core, Some(store)).await);
            first.get_or_insert(core);
        }
        let first = first?;
        for seat in self.config.group.seats() {
            if self.seats.iter().all(|s| s.seat != seat) {
                seats.push(self.seat(seat, &first, None).await);
            }
        }
        seats.sort_by_key(|s| s.seat);
        let serving = self
            .clients
            .serving
            .load(std::sync::atomic::Ordering::Relaxed);
        let counters = self.event_log.counters();
        let apart = first.state != ManagerState::Serving;
        let mode = match (serving, first.staffed || counters.requests > 0) {
            (true, _) => Mode::Serving,
            (false, _) if apart && self.config.group.this_host().is_some() => Mode::Apart,
            (false, true) if !first.can_decide => Mode::DetectOnly,
            _ => Mode::Starting,
        };
        Some(Status {
            service: self.config.service.name.clone(),
            mode,
            engine: self.config.group.engine.name().into(),
            durability: self.config.store.durability.name().into(),
            faults: self.config.group.faults,
            epoch: first.epoch,
            ordered: first.ordered.0,
            decided: first.agreed.0,
            updates_max: self.config.replication.updates_max as u64,
            gateway: format!("http://{}", self.clients.limits.listen),
            state: format!("{:?}", first.state).to_lowercase(),
            waits_for: self.waits_for(&first),
            hosts: self.hosts(&first).await,
            seats,
            counters,
            last_conviction: self.event_log.last_conviction(),
        })
    }

    /// Nothing that only `host` had on disk is waited for any longer.
    async fn accept_loss(&self, host: &str) -> Result<(), Conflict> {
        let seat = self.seat_of(host)?;
        let awaits = self.core_status().await?.awaits;
        if !awaits.contains(&seat) {
            return Err(match self.names(&awaits).as_str() {
                "" => Conflict::WaitsForNobody,
                others => Conflict::WaitsForOthers {
                    others: others.to_owned(),
                    host: host.to_owned(),
                },
            });
        }
        self.input(Input::AcceptLoss { seats: vec![seat] }).await
    }

    /// Others take the places of a host's replicas, or it gets its share again. Returns before that is done.
    async fn drain(&self, host: &str, drained: bool) -> Result<(), Conflict> {
        let seat = self.seat_of(host)?;
        let now = self.core_status().await?;
        if now.state != ManagerState::Serving {
            return Err(Conflict::Apart);
        }
        if !now.view.contains(&seat) {
            return Err(Conflict::NotInView(host.to_owned()));
        }
        if now.drained.contains(&seat) == drained {
            return Ok(());
        }
        if drained && !now.spared.contains(&seat) {
            return Err(Conflict::Needed {
                host: host.to_owned(),
                needed: self.config.group.faults + 1,
            });
        }
        self.input(Input::Drain { seat, drained }).await
    }

    fn seat_of(&self, host: &str) -> Result<SeatId, Conflict> {
        let named = self.config.group.hosts.iter().find(|h| h.name == host);
        let named = named.ok_or_else(|| Conflict::UnknownHost(host.to_owned()))?;
        Ok(SeatId(named.seat))
    }

    async fn core_status(&self) -> Result<CoreStatus, Conflict> {
        let handle = self.seats.first().ok_or(Conflict::NoSeats)?;
        let status = handle.core_status().await;
        status.ok_or(Conflict::Stopping)
    }

    async fn input(&self, input: Input) -> Result<(), Conflict> {
        let handle = self.seats.first().ok_or(Conflict::NoSeats)?;
        let sent = handle.inputs.send(input).await;
        sent.map_err(|_| Conflict::Stopping)
    }

    /// The names of the hosts with these seats.
    fn names(&self, seats: &[SeatId]) -> String {
        let hosts = self.config.group.hosts.iter();
        let these = hosts.filter(|h| seats.contains(&SeatId(h.seat)));
        let names: Vec<&str> = these.map(|h| h.name.as_str()).collect();
        names.join(", ")
    }

    /// Why this host does not take part, in words.
    fn waits_for(&self, first: &CoreStatus) -> String {
        let alone = self.fencing.as_ref().and_then(|f| f.without_quorum());
        match first.state {
            ManagerState::Serving => String::new(),
            ManagerState::Apart | ManagerState::Suspended => {
                alone.unwrap_or_else(|| "the group forms".to_owned())
            }
            ManagerState::Waiting => format!(
                "{}. If the disk of {} is gone for good: spare accept-loss HOST",
                first.waits_for,
                self.names(&first.awaits)
            ),
            ManagerState::Syncing | ManagerState::Joining | ManagerState::CatchingUp => {
                "it takes over what the others agreed on".to_owned()
            }
        }
    }

    /// This host, then the others.
    async fn hosts(&self, core: &CoreStatus) -> Vec<HostStatus> {
        let group = &self.config.group;
        let this = group.this_host();
        let member = |seat: u16| core.view.contains(&SeatId(seat));
        let drained = |seat: u16| core.drained.contains(&SeatId(seat));
        let mut hosts = vec![HostStatus {
            name: self.host_name().to_owned(),
            accelerator: self.host.1.clone(),
            agent: self.agent_answers().await,
            here: true,
            member: this.is_none_or(|host| member(host.seat)),
            drained: this.is_some_and(|host| drained(host.seat)),
            connected: true,
        }];
        let others = group.hosts.iter().filter(|h| Some(*h) != this);
        hosts.extend(others.map(|host| HostStatus {
            name: host.name.clone(),
            accelerator: String::new(),
            agent: false,
            here: false,
            member: member(host.seat),
            drained: drained(host.seat),
            connected: self.peers.reaches(SeatId(host.seat)),
        }));
        hosts
    }

    fn host_name(&self) -> &str {
        let this = self.config.group.this_host();
        this.map_or(&self.host.0, |host| &host.name)
    }

    async fn agent_answers(&self) -> bool {
        let call = |agent: AgentProxy<'static>| async move { agent.host().await };
        self.agent.call_now(USAGE_LIMIT, call).await.is_some()
    }

    /// `store` is none for a seat on another host.
    async fn seat(
        &self,
        seat: SeatId,
        core: &CoreStatus,
        store: Option<&Arc<Store>>,
    ) -> SeatStatus {
        let mut replicas = Vec::new();
        for view in core.replicas.iter().filter(|v| v.replica.seat == seat) {
            let usage = match view.state {
                ReplicaState::Quarantined | ReplicaState::Lost | ReplicaState::Destroyed => None,
                _ if store.is_none() => None,
                _ => self.usage(&view.replica.to_string()).await,
            };
            replicas.push(ReplicaStatus {
                replica: view.replica.to_string(),
                state: view.state,
                position: view.position.map_or(0, |p| p.0),
                clean: view.clean,
                updates_waiting: view.updates_waiting.unwrap_or(0) as u64,
                suspicions: u32::try_from(view.suspicions).unwrap_or(u32::MAX),
                cpu_ms: usage.map(|(cpu_ns, _)| cpu_ns / 1_000_000),
                memory_kib: usage.map(|(_, memory)| memory),
            });
        }
        let mut hosts = self.config.group.hosts.iter();
        let host = hosts.find(|h| h.seat == seat.0);
        SeatStatus {
            seat: seat.0,
            host: host.map_or(self.host_name(), |h| &h.name).to_owned(),
            replicas,
            here: store.is_some(),
            disk: match store {
                Some(store) => self.disk(store).await,
                None => DiskStatus::default(),
            },
        }
    }

    /// What a seat's store takes; reads folders.
    async fn disk(&self, store: &Arc<Store>) -> DiskStatus {
        let store = Arc::clone(store);
        let read = move || {
            let newest = store.snapshots().last().map(|m| m.position.0);
            (store.disk_use(), store.progress(), newest)
        };
        let Ok((used, progress, newest)) = tokio::task::spawn_blocking(read).await else {
            return DiskStatus::default();
        };
        DiskStatus {
            stored: progress.stored.0,
            snapshot: newest,
            log_bytes: used.log,
            snapshot_bytes: used.snapshots,
            reply_bytes: used.replies,
            table_bytes: used.tables,
            evidence_bytes: used.evidence,
        }
    }

    async fn usage(&self, replica: &str) -> Option<(u64, u64)> {
        let call = |agent: AgentProxy<'static>| async move { agent.usage(replica).await };
        self.agent.call_now(USAGE_LIMIT, call).await
    }
}
