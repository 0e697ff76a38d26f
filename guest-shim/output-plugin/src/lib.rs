//! The shim's part of the PostgreSQL 15 server. The server loads it into every session and into the process that
//! decodes the log: there it is an output plugin, in sessions it refuses commands whose effects no update carries.
//!
//! The output plugin is `pgoutput`, without the changes of sessions that carry a replication origin.
//!
//! The shim applies agreed updates under an origin. `pgoutput` of version 15 would decode, order and
//! send them all the same; this plugin makes the decoder drop each of their log records as it reads
//! it, so that a replica that was just brought up to date need not decode that again.
//!
//! The declarations follow `fmgr.h`, `replication/output_plugin.h`, `nodes/plannodes.h`, `tcop/utility.h` and
//! `utils/elog.h` of PostgreSQL 15. The server
//! checks the block that [`Pg_magic_func`] returns before it calls anything else here, so a server of
//! another version refuses the plugin by name.

mod commands;

use std::ffi::{c_char, c_int, c_void, CStr};
use std::mem::size_of;

/// The server's name of a replication origin inside log records (`RepOriginId`).
type OriginId = u16;
/// Records of sessions without an origin carry this one (`InvalidRepOriginId`).
const NO_ORIGIN: OriginId = 0;

/// What a library was built for (`Pg_magic_struct`).
#[repr(C)]
#[derive(Debug)]
pub struct Magic {
    len: c_int,
    version: c_int,
    func_max_args: c_int,
    index_max_keys: c_int,
    name_data_len: c_int,
    float8_by_value: c_int,
    abi_extra: [u8; 32],
}

static MAGIC: Magic = Magic {
    len: size_of::<Magic>() as c_int,
    version: 1500,
    func_max_args: 100,
    index_max_keys: 32,
    name_data_len: 64,
    float8_by_value: 1,
    abi_extra: *b"PostgreSQL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
};

/// A callback that this plugin takes over from `pgoutput` without calling it.
type Untouched = Option<unsafe extern "C" fn()>;
/// Whether changes of an origin are dropped; its first argument is the decoding context.
type FilterByOrigin = unsafe extern "C" fn(*mut c_void, OriginId) -> bool;
/// The entry point of an output plugin.
type PluginInit = unsafe extern "C" fn(*mut Callbacks);

/// The beginning of `OutputPluginCallbacks`; more callbacks follow, which are left as they are.
#[repr(C)]
#[derive(Debug)]
pub struct Callbacks {
    startup: Untouched,
    begin: Untouched,
    change: Untouched,
    truncate: Untouched,
    commit: Untouched,
    message: Untouched,
    filter_by_origin: Option<FilterByOrigin>,
}

extern "C" {
    /// Of the server: loads a library and finds a function in it; raises an error, which does not
    /// return, if there is none and `signal_not_found` is set.
    fn load_external_function(
        file: *const c_char,
        function: *const c_char,
        signal_not_found: bool,
        handle: *mut *mut c_void,
    ) -> *mut c_void;
}

const PGOUTPUT: &CStr = c"$libdir/pgoutput";
const INIT: &CStr = c"_PG_output_plugin_init";

/// Tells the server what this library was built for.
#[no_mangle]
pub extern "C" fn Pg_magic_func() -> *const Magic {
    &raw const MAGIC
}

/// Called once by every process of the server that loads this library.
///
/// # Safety
/// For the server alone.
#[no_mangle]
pub unsafe extern "C" fn _PG_init() {
    // SAFETY: the caller is the server, while it loads this library.
    unsafe { commands::guard() }
}

/// Fills in the callbacks: those of `pgoutput`, and this plugin's filter.
///
/// # Safety
/// For the server alone: `callbacks` points to its `OutputPluginCallbacks`.
#[no_mangle]
pub unsafe extern "C" fn _PG_output_plugin_init(callbacks: *mut Callbacks) {
    // SAFETY: the server is the process that loaded this library, and both names end with a zero.
    // Its error would jump over this frame, which holds nothing that has to be dropped.
    let function = unsafe {
        load_external_function(PGOUTPUT.as_ptr(), INIT.as_ptr(), true, std::ptr::null_mut())
    };
    // SAFETY: a function of that name has this signature in every output plugin. It is not null,
    // as its absence would have been raised as an error; `Option` holds either.
    let init = unsafe { std::mem::transmute::<*mut c_void, Option<PluginInit>>(function) };
    if let Some(init) = init {
        // SAFETY: the caller passes what pgoutput expects here, and begins with what is declared.
        unsafe {
            init(callbacks);
            (*callbacks).filter_by_origin = Some(has_origin);
        }
    }
}

/// Whether a change is to be dropped: it was made in the name of an origin.
unsafe extern "C" fn has_origin(_context: *mut c_void, origin: OriginId) -> bool {
    origin != NO_ORIGIN
}
