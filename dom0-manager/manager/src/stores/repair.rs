//! A damaged store is repaired from a sound one of this host.

use super::seat_store::SeatStore;
use spare_store::{DamagedPart, Range, Store, StoreError};

/// Writes over what is damaged, as far as the other store has it.
pub(super) fn repair(damaged: &SeatStore, sound: &Store) {
    for damage in &damaged.resumed.damage {
        let done: Result<(), StoreError> = match &damage.part {
            DamagedPart::Records(range) => repair_records(damaged, sound, range),
            DamagedPart::Chunk(hash) => sound
                .chunk(*hash)
                .and_then(|bytes| damaged.store.repair_chunk(&bytes)),
            DamagedPart::Snapshot(_) | DamagedPart::File => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!("{damage}: cannot be put right: {error}");
        }
    }
    let _ = damaged.store.wait();
}

/// Records that are handed on at once.
const PORTION: usize = 256;
const PORTION_BYTES: usize = 16 << 20;

fn repair_records(damaged: &SeatStore, sound: &Store, range: &Range) -> Result<(), StoreError> {
    let mut after = range.first.previous();
    while after < range.last {
        let mut records = sound.records_after(after, PORTION, PORTION_BYTES)?;
        records.retain(|r| r.position <= range.last);
        let Some(last) = records.last() else { break };
        after = last.position;
        damaged
            .store
            .repair_records(&records, sound.progress().safe)?;
    }
    Ok(())
}
