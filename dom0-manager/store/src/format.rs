//! The version that every file of a store names in its first bytes, but the ordered log: it has one of its own.

/// Raised with every change that the release before cannot read; `docs/contributors/store.md` tells what else to do then.
pub const FORMAT_VERSION: u32 = 1;
