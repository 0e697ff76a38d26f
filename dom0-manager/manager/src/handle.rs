//! The driver of a seat as others have it: its queues, and what it tells about the core.

use spare_core::{Input, ManagerState};
use spare_protocol::{Position, SeatId};
use tokio::sync::{mpsc, oneshot};

/// There is no snapshot of the agreed state.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoSnapshot {
    #[error("nothing was agreed on yet: there is nothing to keep")]
    Nothing,
    /// In the store's words.
    #[error("{0}")]
    Store(String),
    #[error("the replica manager is stopping")]
    Ending,
}

/// Gets the position of a snapshot once it is on disk.
pub(crate) type SnapshotAsker = oneshot::Sender<Result<Position, NoSnapshot>>;

/// A question to the driver.
pub(crate) enum Query {
    Status(oneshot::Sender<CoreStatus>),
    /// A snapshot of what is agreed now, on disk.
    StoreSnapshot(SnapshotAsker),
}

/// What the driver of a seat tells about its core.
#[derive(Clone, Debug)]
pub(crate) struct CoreStatus {
    pub(crate) epoch: u64,
    pub(crate) ordered: Position,
    pub(crate) agreed: Position,
    pub(crate) staffed: bool,
    pub(crate) can_decide: bool,
    pub(crate) replicas: Vec<spare_core::ReplicaStatus>,
    pub(crate) state: ManagerState,
    /// Whom it waits for, in words.
    pub(crate) waits_for: String,
    pub(crate) awaits: Vec<SeatId>,
    /// The members of the primary view.
    pub(crate) view: Vec<SeatId>,
    /// Members of the view that are to have no replicas, by an operator's word.
    pub(crate) drained: Vec<SeatId>,
    /// Members of the view without whose replicas the others are enough, so that they may be drained.
    pub(crate) spared: Vec<SeatId>,
    /// Every seat has everything up to here, and it is on disk here that it does.
    pub(crate) safe: Position,
}

/// The ends of a seat's queues that others hold.
#[derive(Clone)]
pub(crate) struct DriverHandle {
    pub(crate) seat: SeatId,
    pub(crate) inputs: mpsc::Sender<Input>,
    queries: mpsc::Sender<Query>,
}

impl DriverHandle {
    /// How the core is; `None` when its task has ended.
    pub(crate) async fn core_status(&self) -> Option<CoreStatus> {
        let (sender, receiver) = oneshot::channel();
        self.queries.send(Query::Status(sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Has the agreed state of now written to disk as a snapshot; returns its position.
    pub(crate) async fn store_snapshot(&self) -> Result<Position, NoSnapshot> {
        let (sender, receiver) = oneshot::channel();
        let asked = self.queries.send(Query::StoreSnapshot(sender)).await;
        asked.map_err(|_| NoSnapshot::Ending)?;
        receiver.await.unwrap_or(Err(NoSnapshot::Ending))
    }
}

/// The queues of one seat, before its task runs.
pub(crate) struct Queues {
    pub(crate) handle: DriverHandle,
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) queries: mpsc::Receiver<Query>,
}

impl Queues {
    pub(crate) fn new(seat: SeatId) -> Queues {
        let (inputs, received) = mpsc::channel(4096);
        let (queries, asked) = mpsc::channel(16);
        Queues {
            handle: DriverHandle {
                seat,
                inputs,
                queries,
            },
            inputs: received,
            queries: asked,
        }
    }
}
