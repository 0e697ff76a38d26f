//! Decoders of `spare-store`: what it reads from a disk, and backups.

use crate::meter::{within, Limit, KIB, MIB};
use crate::script::parts;
use spare_protocol::encode;
use spare_store::decoders;

/// Of a batch's head: a record's length and checksum take eight bytes of memory, twice while the list
/// moves. What a list claims to have is taken at once, up to a MiB.
pub const SEGMENT: Limit = Limit::new(16, 4 * MIB);
/// Of manifests, nodes, keys and notes: as [`crate::protocol::GROUP_MESSAGE`].
pub const VALUES: Limit = Limit::new(16, 4 * MIB);
/// Of a backup: its manifest, and a chunk at a time.
pub const BACKUP: Limit = Limit::new(16, 4 * MIB + 16 * KIB);

/// A segment of the log: raw, and as a script whose parts are, by turns, heads of batches under checksums
/// that are right, and what follows them.
pub fn store_segment(bytes: &[u8]) {
    let all: Vec<&[u8]> = parts(bytes).map(|(_, part)| part).collect();
    let batches = all
        .chunks(2)
        .map(|c| (c[0], c.get(1).copied().unwrap_or_default()));
    let sealed = decoders::sealed(batches);
    for segment in [bytes, &sealed] {
        let (whole, damaged, length) =
            within(SEGMENT, segment.len(), || decoders::segment(segment));
        assert!(length <= segment.len());
        assert!(whole + damaged <= segment.len());
    }
}

/// What stands in the tables, and beside the log.
pub fn store_values(bytes: &[u8]) {
    if let Some(manifest) = within(VALUES, bytes.len(), || decoders::manifest(bytes)) {
        let again = spare_store::Manifest::from_bytes(&manifest.to_bytes());
        assert_eq!(again.as_ref(), Some(&manifest));
    }
    if let Some(keys) = within(VALUES, bytes.len(), || decoders::keys(bytes)) {
        assert_eq!(decoders::keys(&encode(&keys)), Some(keys));
    }
    within(VALUES, bytes.len(), || decoders::node(bytes));
    if let Some(note) = within(VALUES, bytes.len(), || decoders::note(bytes)) {
        assert_eq!(decoders::note(&encode(&note)), Some(note));
    }
    within(VALUES, bytes.len(), || decoders::synced(bytes));
}

/// The file that `spare backup` writes.
pub fn store_backup(bytes: &[u8]) {
    let mut chunks = 0;
    let read = within(BACKUP, bytes.len(), || {
        spare_store::read_backup(bytes, None, |reference, chunk| {
            assert_eq!(chunk.len(), reference.bytes as usize);
            chunks += chunk.len();
        })
    });
    assert!(chunks <= bytes.len());
    if let Err(error) = read {
        assert!(!error.to_string().is_empty());
    }
}
