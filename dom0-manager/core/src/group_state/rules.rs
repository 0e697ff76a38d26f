//! The settings that the group's state depends on.

use crate::config::Config;
use serde::{Deserialize, Serialize};
use spare_protocol::versions::encode_as;

/// The settings that all managers must share, because the group's state depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) quorum: usize,
    pub(crate) checkpoint_writes: u64,
    pub(crate) suspicion_threshold: usize,
    pub(crate) suspicion_window: u64,
    pub(crate) clock_ahead_max_us: i64,
    pub(crate) key_lifetime_us: i64,
    pub(crate) keys_max: usize,
    pub(crate) keys_of_owner_max: usize,
}

impl From<&Config> for Rules {
    fn from(config: &Config) -> Rules {
        Rules {
            quorum: config.quorum(),
            checkpoint_writes: config.checkpoint_writes,
            suspicion_threshold: config.suspicion_threshold,
            suspicion_window: config.suspicion_window,
            clock_ahead_max_us: config.clock_ahead_max_us,
            key_lifetime_us: config.key_lifetime_us,
            keys_max: config.keys_max,
            keys_of_owner_max: config.keys_of_owner_max,
        }
    }
}

impl Rules {
    /// Whether these are the same in a group that speaks `version`: what came later is left aside.
    pub(crate) fn agree(&self, other: &Rules, version: u16) -> bool {
        encode_as(version, self) == encode_as(version, other)
    }
}
