//! What the replica manager remembers outside of the protocol's state: the ordered log, and the
//! agreed state as a difference to the pristine image.

pub mod agreed_state;
pub mod ordered_log;

pub use agreed_state::AgreedState;
pub use ordered_log::{LogError, LogReader, LogRecord, LogWriter};
