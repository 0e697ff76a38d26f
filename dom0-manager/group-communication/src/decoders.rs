//! Every decoder of this crate as a function of the bytes that it reads. For `tests/fuzz`, which turns the
//! feature `fuzzing` on; nothing else may use it.

pub use crate::corosync::decoders::ring_packets;
