//! The version that every file of a store names in its first bytes, but the ordered log: it has one of its own.

/// Raised with every change that the release before cannot read; `docs/contributors/store.md` tells what else to do then.
/// Since 2 the agreed state is a tree, replies have a budget, and records may be longer.
pub const FORMAT_VERSION: u32 = 2;
/// What is older has to be opened by a release in between.
pub(crate) const FORMAT_VERSION_OLDEST: u32 = 1;
