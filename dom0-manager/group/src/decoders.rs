//! Every decoder of this crate as a function of the bytes that it reads. For `tests/fuzz`, and for nobody else.

pub use crate::corosync::taken_apart as ring_packets;
