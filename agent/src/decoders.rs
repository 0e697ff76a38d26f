//! Every decoder of this crate that is not public otherwise, as a function of what it reads. For
//! `tests/fuzz`, which turns the feature `fuzzing` on; nothing else may use it.

use crate::qemu::Accelerator;

/// `image.toml`: command line, memory in MiB and virtual processors, if the text is one.
#[must_use]
pub fn image_description(text: &str) -> Option<(String, u32, u32)> {
    crate::image::described(text)
}

/// A line of the note of images' hashes, as it is written again, if it is one.
#[must_use]
pub fn hash_note(line: &str) -> Option<String> {
    crate::hashes::rewritten(line)
}

/// Number of user and group that QEMU runs as, in libvirt's capabilities.
#[must_use]
pub fn qemu_user(capabilities: &str) -> Option<(u32, u32)> {
    crate::qemu::user_in(capabilities)
}

/// What a guest's serial console says, in pieces of at most `piece_bytes` (1 or more): how it gets
/// into the log, and whether it contains a kernel's panic.
#[must_use]
pub fn console(output: &[u8], piece_bytes: usize) -> (Vec<u8>, bool) {
    crate::console::logged(output, piece_bytes)
}

/// The file in which the outcome of trying out KVM is kept: the answer for `key`.
#[must_use]
pub fn accelerator_note(text: &str, key: &str) -> Option<Accelerator> {
    crate::qemu::answer_for(text, key)
}
