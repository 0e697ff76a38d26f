//! Fault handling (SPARE §4.1), in the paper's order. The basic mechanism (§4.1.1) is [`crate::activation`].
//!
//! - [`detected`]: §4.1.2, a replica lied
//! - [`timing`]: §4.1.3, a replica is silent or slow
//! - [`crash`]: §4.1.4, an active is missing
//! - [`poison`]: not in the paper, a request that brings down whoever executes it

mod crash;
mod detected;
mod poison;
mod timing;

pub(crate) use crash::Compensation;
pub(crate) use detected::Conviction;
pub(crate) use timing::{Suspicions, Timing};
