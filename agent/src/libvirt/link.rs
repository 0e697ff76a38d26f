//! The one connection to libvirt: opened when needed, kept, and opened again when it broke.
//!
//! This is the boundary to the C library where the crate `virt` does not reach: it has no domain
//! events.

use crate::error::{Error, Result};
use std::ffi::{c_int, c_void, CStr};
use std::sync::{Arc, Mutex, Once, PoisonError};
use virt::connect::Connect;
use virt::sys;

/// libvirtd is asked whether it still lives this often, in seconds …
const KEEP_ALIVE_SECONDS: i32 = 5;
/// … and may leave so many questions unanswered before the connection counts as broken.
const KEEP_ALIVE_MISSED_MAX: u32 = 3;

/// What libvirt says about a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DomainEvent {
    Started,
    Suspended {
        by_io_error: bool,
    },
    Resumed,
    Panicked,
    /// The guest is about to end by its own doing.
    ShuttingDown,
    Stopped {
        reason: &'static str,
    },
}

/// Is told each event with its domain's name. It must not block: libvirt's event thread calls it.
pub(crate) type Listener = Arc<dyn Fn(&str, DomainEvent) + Send + Sync>;

/// The way to the one connection; it is opened when somebody asks for it.
pub(crate) struct Link {
    uri: String,
    listener: Listener,
    open: Mutex<Option<Open>>,
}

struct Open {
    connect: Connect,
    callback: c_int,
}

impl Link {
    /// A connection to `uri`, not yet opened.
    pub(crate) fn new(uri: &str, listener: Listener) -> Link {
        start_event_thread();
        Link {
            uri: uri.to_owned(),
            listener,
            open: Mutex::new(None),
        }
    }

    /// The connection, opened if need be.
    pub(crate) fn connect(&self) -> Result<Connect> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &*open {
            // Asks the library, not the daemon, so it doesn't block.
            if current.connect.is_alive().unwrap_or(false) {
                return Ok(current.connect.clone());
            }
            tracing::warn!("the connection to libvirt at {} broke", self.uri);
        }
        if let Some(broken) = open.take() {
            broken.close();
        }
        let opened = self.open_anew()?;
        let connect = opened.connect.clone();
        *open = Some(opened);
        Ok(connect)
    }

    fn open_anew(&self) -> Result<Open> {
        let down = |e: virt::error::Error| Error::HypervisorDown {
            uri: self.uri.clone(),
            why: e.message().to_owned(),
        };
        let connect = Connect::open(Some(&self.uri)).map_err(down)?;
        connect
            .set_keep_alive(KEEP_ALIVE_SECONDS, KEEP_ALIVE_MISSED_MAX)
            .map_err(down)?;
        let callback = register(&connect, &self.listener).map_err(down)?;
        Ok(Open { connect, callback })
    }
}

impl Open {
    /// Lets go of a broken connection.
    fn close(self) {
        // SAFETY: the connection is open as far as the library knows, and `callback` is the number
        // that registering on this connection returned. It fails if the daemon is gone; the library
        // forgets the callback all the same.
        unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), self.callback) };
    }
}

/// Starts libvirt's event loop, once a process.
fn start_event_thread() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // The library prints every error to standard error by default; ours are logged by callers.
        virt::error::clear_error_callback();
        if let Err(e) = virt::event::event_register_default_impl() {
            tracing::error!("libvirt has no event loop: {}", e.message());
            return;
        }
        let run = || loop {
            if let Err(e) = virt::event::event_run_default_impl() {
                tracing::error!("libvirt's event loop: {}", e.message());
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        };
        if let Err(e) = std::thread::Builder::new()
            .name("libvirt-events".to_owned())
            .spawn(run)
        {
            tracing::error!("cannot start the thread for libvirt's events: {e}");
        }
    });
}

type LifecycleCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type GenericCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// Asks for the events of all domains.
fn register(
    connect: &Connect,
    listener: &Listener,
) -> std::result::Result<c_int, virt::error::Error> {
    let opaque = Box::into_raw(Box::new(Arc::clone(listener)));
    // SAFETY: libvirt's interface asks for exactly this cast: it calls the function with the
    // signature that belongs to the event's number, here VIR_DOMAIN_EVENT_ID_LIFECYCLE.
    let generic =
        unsafe { std::mem::transmute::<LifecycleCallback, GenericCallback>(on_lifecycle_event) };
    // SAFETY: the connection is open; a null domain means all of them; `opaque` stays valid until
    // libvirt calls `free_listener` with it, which it does once it can't call `generic` any more.
    let callback = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            std::ptr::null_mut(),
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
            Some(generic),
            opaque.cast(),
            Some(free_listener),
        )
    };
    if callback >= 0 {
        return Ok(callback);
    }
    let error = virt::error::Error::last_error();
    // SAFETY: libvirt took no ownership, since it registered nothing.
    unsafe { free_listener(opaque.cast()) };
    Err(error)
}

/// Frees what [`register`] gave away.
unsafe extern "C" fn free_listener(opaque: *mut c_void) {
    // SAFETY: `opaque` came from `Box::into_raw` in `register` and is given back once.
    drop(unsafe { Box::from_raw(opaque.cast::<Listener>()) });
}

/// libvirt calls this on its event thread.
unsafe extern "C" fn on_lifecycle_event(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: `domain` is valid during the call; its name belongs to it.
    let name = unsafe { sys::virDomainGetName(domain) };
    if name.is_null() {
        return 0;
    }
    // SAFETY: a C string that lives as long as the domain.
    let name = unsafe { CStr::from_ptr(name) };
    // SAFETY: `register` gave this pointer away and `free_listener` has not been called yet.
    let listener = unsafe { &*opaque.cast::<Listener>() };
    tracing::debug!(domain = ?name, event, detail, "event");
    if let (Ok(name), Some(event)) = (name.to_str(), decode(event, detail)) {
        listener(name, event);
    }
    0
}

/// What libvirt's two numbers mean.
fn decode(event: c_int, detail: c_int) -> Option<DomainEvent> {
    // libvirt's enumerations are unsigned in the bindings and signed in the callback.
    let (event, detail) = (u32::try_from(event).ok()?, u32::try_from(detail).ok()?);
    Some(match event {
        sys::VIR_DOMAIN_EVENT_STARTED => DomainEvent::Started,
        sys::VIR_DOMAIN_EVENT_SUSPENDED => DomainEvent::Suspended {
            by_io_error: detail == sys::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR,
        },
        sys::VIR_DOMAIN_EVENT_RESUMED => DomainEvent::Resumed,
        sys::VIR_DOMAIN_EVENT_CRASHED => DomainEvent::Panicked,
        // Not if it was the host that asked QEMU to end.
        sys::VIR_DOMAIN_EVENT_SHUTDOWN if detail != sys::VIR_DOMAIN_EVENT_SHUTDOWN_HOST => {
            DomainEvent::ShuttingDown
        }
        sys::VIR_DOMAIN_EVENT_STOPPED => DomainEvent::Stopped {
            reason: match detail {
                sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => "shutdown",
                sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => "destroyed",
                _ => "crashed",
            },
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_stop_is_reported_as_stopped() {
        for detail in 0..16 {
            let event = decode(sys::VIR_DOMAIN_EVENT_STOPPED as c_int, detail);
            assert!(matches!(event, Some(DomainEvent::Stopped { .. })));
        }
        assert_eq!(decode(-1, 0), None);
        assert_eq!(decode(99, 0), None);
    }
}
