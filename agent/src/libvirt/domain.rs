//! Domains: found by name, ended, and what their states mean.

use crate::error::{Error, Result};
use crate::hypervisor::State;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;

/// The domain of this name, if it has not ended.
pub(crate) fn find_domain(connect: &Connect, name: &str) -> Result<Option<Domain>> {
    match Domain::lookup_by_name(connect, name) {
        Ok(domain) => Ok(Some(domain)),
        Err(e) if e.code() == ErrorNumber::NoDomain => Ok(None),
        Err(e) => Err(failed(&format!("cannot look for {name}"), &e)),
    }
}

/// Ends the domain of this name, if there is one.
pub(crate) fn destroy_if_there(connect: &Connect, name: &str) -> Result<()> {
    match find_domain(connect, name)? {
        Some(domain) => end(&domain),
        None => Ok(()),
    }
}

/// Ends a domain; one that has ended by itself meanwhile is no error.
pub(crate) fn end(domain: &Domain) -> Result<()> {
    match domain.destroy() {
        Ok(()) => Ok(()),
        Err(e)
            if matches!(
                e.code(),
                ErrorNumber::NoDomain | ErrorNumber::OperationInvalid
            ) =>
        {
            Ok(())
        }
        Err(e) => Err(failed("cannot end a guest", &e)),
    }
}

/// Whether the domain is in this state.
pub(crate) fn is_in(domain: &Domain, state: State) -> bool {
    domain
        .get_state()
        .is_ok_and(|(now, _)| decode_state(now) == state)
}

/// libvirt's states, seen from outside the guest.
pub(crate) fn decode_state(state: sys::virDomainState) -> State {
    match state {
        sys::VIR_DOMAIN_PAUSED => State::Paused,
        sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_CRASHED | sys::VIR_DOMAIN_SHUTDOWN => {
            State::Stopped
        }
        _ => State::Running,
    }
}

/// What libvirt said when something was tried.
pub(crate) fn failed(what: &str, error: &virt::error::Error) -> Error {
    Error::failed(what, error.message())
}
