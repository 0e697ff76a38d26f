//! How much memory a decoder takes: an allocator that counts, and the limit that each decoder keeps.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt;

/// In bytes.
pub const KIB: usize = 1 << 10;
/// In bytes.
pub const MIB: usize = 1 << 20;
/// What nothing here ever needs. A decoder that wants more is refused, which ends the program before
/// it drags the machine down.
const REFUSED_BYTES: usize = 4 << 30;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread. A program that wants [`within`] to hold limits
/// makes it its global one.
#[derive(Debug)]
pub struct Meter;

// SAFETY: every call goes to the system's allocator with the arguments that came in; counting touches
// only two cells of the thread, which need no memory and are never dropped.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !took(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps to the rules of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        gave_back(layout.size());
        // SAFETY: the caller keeps to the rules of this very function.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !took(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps to the rules of this very function.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // The old and the new place may be there at once while the content is moved.
        if !took(bytes) {
            return std::ptr::null_mut();
        }
        gave_back(layout.size());
        // SAFETY: the caller keeps to the rules of this very function.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

/// Counts; whether the memory may be had.
fn took(bytes: usize) -> bool {
    // A thread that is ending has no cells any more; what it takes does not count.
    let now = NOW.try_with(|now| {
        now.set(now.get().saturating_add(bytes));
        now.get()
    });
    let now = now.unwrap_or_default();
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    now < REFUSED_BYTES
}

fn gave_back(bytes: usize) {
    // What was taken before the measurement began may be given back within it.
    let _ = NOW.try_with(|now| now.set(now.get().saturating_sub(bytes)));
}

/// The most memory that a decoder may take for an input, beyond the input itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// For each byte of input.
    pub per_byte: usize,
    /// What may be taken whatever the input; bytes.
    pub fixed: usize,
}

impl Limit {
    /// So many bytes for each byte of input, and so many more.
    #[must_use]
    pub const fn new(per_byte: usize, fixed: usize) -> Limit {
        Limit { per_byte, fixed }
    }

    /// The limit for an input of that length.
    #[must_use]
    pub fn bytes(self, input: usize) -> usize {
        self.per_byte * input + self.fixed
    }
}

/// As it stands in the table of decoders.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fixed >= MIB {
            write!(f, "{} × + {} MiB", self.per_byte, self.fixed / MIB)
        } else {
            write!(f, "{} × + {} KiB", self.per_byte, self.fixed / KIB)
        }
    }
}

/// What `work` returns, and the most memory that it held at once.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    NOW.set(0);
    PEAK.set(0);
    let result = work();
    (result, PEAK.get())
}

/// Runs a decoder over `input` bytes; panics when it took more memory than `limit`. Without [`Meter`]
/// as the global allocator nothing is counted.
#[track_caller]
pub fn within<T>(limit: Limit, input: usize, decode: impl FnOnce() -> T) -> T {
    let (result, peak) = measured(decode);
    let bytes = limit.bytes(input);
    assert!(
        peak <= bytes,
        "{peak} bytes were taken for {input} bytes of input; the limit is {bytes} ({limit})"
    );
    result
}
