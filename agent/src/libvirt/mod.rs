//! libvirt: what every hypervisor under it needs, whichever it is: the connection with its events, and domains.

mod domain;
mod link;

pub(crate) use domain::{decode_state, destroy_if_there, end, failed, find_domain, is_in};
pub(crate) use link::{DomainEvent, Link, Listener};
