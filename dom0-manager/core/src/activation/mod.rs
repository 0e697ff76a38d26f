//! Activation of passive replicas (SPARE §3.1, §4.1.1), and the state updates that keep them current (§3.2).
//!
//! What a woken replica is given to do, and that it is paused again, comes out of `replicas/driving.rs`.
//!
//! - [`help`]: `HELP_ME` and `I_DO` as this manager says and hears them
//! - [`sleep`]: woken passives go back to sleep
//! - [`buffer`]: agreed updates that wait for passives

mod buffer;
mod help;
mod sleep;

pub(crate) use buffer::UpdateBuffer;
pub(crate) use help::{ask, ask_others, follow_for_late, help_me, may_help, want_help};
pub(crate) use sleep::Wakefulness;

use crate::clock::Clock;
use crate::config::Config;
use crate::group_state::GroupState;
use crate::outputs::Outputs;
use crate::replicas::Replicas;

/// Wakes passives and lets them sleep: changes for how long local ones stay awake, and timers.
pub(crate) struct Activation<'a> {
    pub(crate) config: &'a Config,
    pub(crate) group: &'a GroupState,
    pub(crate) replicas: &'a mut Replicas,
    pub(crate) clock: &'a mut Clock,
    pub(crate) out: &'a mut Outputs,
}
