//! Refuses commands in the service's sessions. Logical decoding tells of rows alone: a table that the service
//! created, a role that it changed or a large object would be at the replicas that executed the request, and not at
//! those that applied its update.
//!
//! What is allowed is listed, not what is refused: whatever this server knows besides is refused by it, too. `SELECT`,
//! `INSERT`, `UPDATE`, `DELETE` and `MERGE` do not come here. The sessions of superusers, the shim's among them, may
//! do everything.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::OnceLock;

/// Commands that change nothing, change rows, or end with their session.
const ALLOWED: [&CStr; 32] = [
    c"ANALYZE",
    c"BEGIN",
    c"CALL",
    c"CLOSE CURSOR",
    c"CLOSE CURSOR ALL",
    c"COMMIT",
    c"COPY",
    c"DEALLOCATE",
    c"DEALLOCATE ALL",
    c"DECLARE CURSOR",
    c"DISCARD",
    c"DISCARD ALL",
    c"DISCARD PLANS",
    c"DISCARD SEQUENCES",
    c"DISCARD TEMP",
    c"DO",
    c"EXECUTE",
    c"FETCH",
    c"LOCK TABLE",
    c"MOVE",
    c"PREPARE",
    c"RELEASE",
    c"RESET",
    c"ROLLBACK",
    c"SAVEPOINT",
    c"SET",
    c"SET CONSTRAINTS",
    c"SHOW",
    c"START TRANSACTION",
    c"TRUNCATE TABLE",
    c"UNLISTEN",
    c"VACUUM",
];

/// An error that ends the transaction (`ERROR`).
const ERROR: c_int = 21;
/// `insufficient_privilege`, 42501, six bits a digit.
const INSUFFICIENT_PRIVILEGE: c_int = 4 | 2 << 6 | 5 << 12 | 1 << 24;

/// A statement with its plan. What follows is not read.
#[repr(C)]
struct PlannedStmt {
    kind: c_uint,
    command: c_uint,
    query_id: u64,
    flags: [bool; 6],
    jit_flags: c_int,
    /// The plan, and what it depends on.
    plan: [*mut c_void; 10],
    /// The command, if it is none that has a plan.
    utility: *mut c_void,
}

/// Executes a command that has no plan: statement, its text, whether it must not be changed, where it comes from,
/// parameters, environment, where results go, what was done.
type ProcessUtility = unsafe extern "C" fn(
    *mut PlannedStmt,
    *const c_char,
    bool,
    c_int,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
);

extern "C" {
    #[link_name = "ProcessUtility_hook"]
    static mut HOOK: Option<ProcessUtility>;
    fn standard_ProcessUtility(
        statement: *mut PlannedStmt,
        text: *const c_char,
        read_only: bool,
        context: c_int,
        parameters: *mut c_void,
        environment: *mut c_void,
        destination: *mut c_void,
        completion: *mut c_void,
    );
    /// The number of a command's kind, and its name.
    fn CreateCommandTag(command: *mut c_void) -> c_int;
    fn GetCommandTagName(tag: c_int) -> *const c_char;
    fn GetSessionUserId() -> c_uint;
    fn superuser_arg(role: c_uint) -> bool;
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(code: c_int) -> c_int;
    fn errmsg(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    /// Does not return from an error.
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// What was to execute commands before this library was loaded.
static NEXT: OnceLock<Option<ProcessUtility>> = OnceLock::new();

/// Has every command of this session looked at.
///
/// # Safety
/// For the server alone, once, while it loads this library.
pub(crate) unsafe fn guard() {
    // SAFETY: a process of the server has one thread when it loads libraries.
    unsafe {
        let _ = NEXT.set(HOOK);
        HOOK = Some(process);
    }
}

/// The server's way to every command that has no plan.
///
/// Nothing in its frame has to be dropped: errors of the server jump over it.
unsafe extern "C" fn process(
    statement: *mut PlannedStmt,
    text: *const c_char,
    read_only: bool,
    context: c_int,
    parameters: *mut c_void,
    environment: *mut c_void,
    destination: *mut c_void,
    completion: *mut c_void,
) {
    // SAFETY: the server passes a statement without a plan, whose command is there, and names its kinds with
    // constants. In a transaction that failed only allowed commands come here, so roles can be looked up.
    unsafe {
        let name = GetCommandTagName(CreateCommandTag((*statement).utility));
        if !is_allowed(CStr::from_ptr(name)) && !superuser_arg(GetSessionUserId()) {
            refuse(name);
        }
    }
    let next = NEXT.get().copied().flatten();
    let next = next.unwrap_or(standard_ProcessUtility);
    // SAFETY: both have this signature, and get what the server passed.
    unsafe {
        next(
            statement,
            text,
            read_only,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
    }
}

fn is_allowed(name: &CStr) -> bool {
    ALLOWED.contains(&name)
}

/// Raises the error that the service gets.
unsafe fn refuse(name: *const c_char) {
    // SAFETY: the texts end with a zero and have as many parameters as are passed.
    unsafe {
        if errstart(ERROR, std::ptr::null()) {
            errcode(INSUFFICIENT_PRIVILEGE);
            errmsg(
                c"%s is refused: a replica that is brought up to date would not have its effect"
                    .as_ptr(),
                name,
            );
            errhint(c"Make it part of the image.".as_ptr());
            errfinish(c"commands.rs".as_ptr(), 0, c"refuse".as_ptr());
        }
    }
}
