//! The replication protocol as a pure state machine: no I/O, no clock, no threads (`docs/protocol.md`).
//!
//! [`Core::step`] takes one [`Input`] and the time, and returns [`Output`]s for the daemon to carry
//! out. The same inputs give the same outputs. Nothing in an ordered message or from a guest trips an
//! assertion: what makes no sense is ignored or held against its sender.
//!
//! Two kinds of state: the group's (`group_state`), which is a function of the ordered messages and so the same at every
//! manager, and this manager's part. Each falls apart into owners. `step` tells how an input becomes outputs; the rules
//! of the paper stand in this order (a folder for each, with what is ordered and what one manager does about it side by
//! side):
//!
//! | module | what | SPARE |
//! |---|---|---|
//! | `clients`, `order` | normal case: a request is taken in, gets its position, is answered | §2.3 |
//! | `voting`, `log` | votes on replies and on updates (a mismatch asks for help); the agreed bytes, and their record | §2.3, §3.2, §4.1.2 |
//! | `replicas` | active and passive replicas: built, kept current, paused, unpaused | §2.2, §3.1, §3.2 |
//! | `activation` | `HELP_ME` and `I_DO`, sleep; the buffer of updates | §3.1, §3.2, §4.1.1 |
//! | `faults::detected` | conviction | §4.1.2 |
//! | `faults::timing` | silence, suspicion | §4.1.3 |
//! | `faults::crash` | loss, promotion, `COMPENSATE` | §4.1.4 |
//! | `faults::poison` | a request that brings down whoever executes it | |
//! | `recovery` | proactive recovery | §3.3, §4.2 |
//! | `checkpoints` | roots of replicas' states | |
//! | `membership` | which managers decide; taking over the group's state | §2.1, §5.3 |
//! | `clock` | deadlines, and what is learnt of latencies | |

mod activation;
mod ascending;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
mod bytes_held;
mod checkpoints;
mod clients;
mod clock;
mod config;
mod faults;
mod group_state;
mod io;
mod log;
mod membership;
mod order;
mod outputs;
mod recovery;
mod replicas;
mod step;
mod voting;

pub use bytes_held::BytesHeld;
pub use config::{Config, ConfigError, Resume, SurvivingReplica};
pub use io::{
    ConvictionBasis, Disagreement, Evidence, Input, ManagerState, Micros, Notice, Now, Output,
    Refusal,
};
pub use replicas::ReplicaStatus;
pub use spare_protocol::messages::{DecidedRequest, PrimaryView, ViewId};
pub use step::Core;
