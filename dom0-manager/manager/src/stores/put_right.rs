//! A damaged store is put right from a sound one of this host, or is put aside and begins anew with what that one
//! has.

use super::{Opening, SeatStore};
use anyhow::{bail, Result};
use spare_protocol::SeatId;
use spare_store::{DamagedPart, Range, Store, StoreError};
use std::collections::BTreeMap;

impl Opening<'_> {
    /// Has what is damaged in one store written over from another, or puts the store aside.
    pub(super) fn put_right(&mut self, opened: &mut BTreeMap<SeatId, SeatStore>) -> Result<()> {
        let damaged: Vec<SeatId> = opened
            .iter()
            .filter(|(_, store)| !store.is_sound())
            .map(|(seat, _)| *seat)
            .collect();
        for seat in damaged {
            let Some(store) = opened.remove(&seat) else {
                continue;
            };
            let found = store.found();
            self.remarks
                .extend(found.iter().map(|text| format!("seat {seat}: {text}")));
            let sound = |(_, s): &(&SeatId, &SeatStore)| s.is_sound() && !s.is_fresh();
            let Some((source, sound)) = opened.iter().find(sound) else {
                bail!(
                    "the store of seat {seat} is damaged, and there is no sound one to put it right from:\n  {}\n\
                     Restore a backup (spare-manager --restore FILE) into an empty store.directory",
                    found.join("\n  ")
                );
            };
            repair(&store, &sound.store);
            // Opened anew: what it resumes from must not be what was damaged.
            drop(store);
            let mut store = self.one(seat)?;
            let mut how = "was put right";
            if !store.is_sound() {
                drop(store);
                self.put_aside(seat)?;
                self.rebuild(seat, &sound.store)?;
                store = self.one(seat)?;
                how = "was put aside, and begins anew";
            }
            self.remarks.push(format!(
                "the store of seat {seat} {how} with what seat {source} has"
            ));
            opened.insert(seat, store);
        }
        Ok(())
    }
}

/// Writes over what is damaged, as far as the other store has it.
fn repair(damaged: &SeatStore, sound: &Store) {
    for damage in &damaged.resumed.damage {
        let done: Result<(), StoreError> = match &damage.part {
            DamagedPart::Records(range) => put_back_records(damaged, sound, range),
            DamagedPart::Chunk(hash) => sound
                .chunk(*hash)
                .and_then(|bytes| damaged.store.put_back_chunk(&bytes)),
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

fn put_back_records(damaged: &SeatStore, sound: &Store, range: &Range) -> Result<(), StoreError> {
    let mut after = range.first.previous();
    while after < range.last {
        let mut records = sound.records_after(after, PORTION, PORTION_BYTES)?;
        records.retain(|r| r.position <= range.last);
        let Some(last) = records.last() else { break };
        after = last.position;
        damaged.store.put_back(&records)?;
    }
    Ok(())
}
