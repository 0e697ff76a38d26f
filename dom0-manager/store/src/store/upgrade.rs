//! A store that the release before this one wrote: its snapshots are converted when it is opened, each with one
//! commit; what a crash interrupts begins anew. Nothing of them is in memory as a whole.

use crate::chunks::ReadChunks;
use crate::error::{Damage, StoreError};
use crate::previous_format::FlatChunks;
use crate::replies;
use crate::snapshot::{Manifest, State};
use crate::state_tree::build;
use crate::tables::{Commit, Tables};
use crate::working_state::NewChunks;
use spare_protocol::Hash;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The snapshots as this release has them; those with a damaged chunk stay as they are.
pub(super) fn upgrade(
    tables: &Tables,
    manifests: Vec<Arc<Manifest>>,
    damage: &mut Vec<Damage>,
) -> Result<Vec<Arc<Manifest>>, StoreError> {
    let is_flat = |m: &Arc<Manifest>| matches!(m.state, State::Flat(_));
    if manifests.iter().any(is_flat) {
        tables.discard_fresh()?;
    }
    let mut upgraded = Vec::with_capacity(manifests.len());
    let mut manifests = manifests.into_iter();
    while let Some(manifest) = manifests.next() {
        let State::Flat(flat) = &manifest.state else {
            upgraded.push(manifest);
            continue;
        };
        match converted(tables, &manifest, flat, manifests.as_slice()) {
            Ok(new) => upgraded.push(Arc::new(new)),
            Err(StoreError::Damaged(found)) => {
                tables.discard_fresh()?;
                damage.push(found);
                upgraded.push(manifest);
            }
            Err(other) => return Err(other),
        }
    }
    if !upgraded.iter().any(is_flat) {
        tables.note_version()?;
    }
    Ok(upgraded)
}

/// Writes what `manifest` names as this release has it, and removes what no other snapshot needs: `others` are those
/// that are still to be converted.
fn converted(
    tables: &Tables,
    manifest: &Manifest,
    flat: &FlatChunks,
    others: &[Arc<Manifest>],
) -> Result<Manifest, StoreError> {
    let reader = tables.reader()?;
    let mut fresh = BTreeSet::new();
    let mut chunks = NewChunks::begin(tables, &mut fresh)?;
    let root = build(&mut chunks, flat.updates(|hash| reader.read(hash)))?;
    let replies = replies::converted(&mut chunks, flat.replies(|hash| reader.read(hash)))?;
    let written = chunks.end()?;
    let new = Manifest {
        state: State::Tree(root),
        replies,
        ..manifest.clone()
    };
    let needed: BTreeSet<Hash> = others
        .iter()
        .flat_map(|m| m.chunks())
        .map(|(chunk, _)| chunk.hash)
        .collect();
    let old = flat.chunks().map(|c| c.hash);
    let old = old.filter(|hash| !written.contains(hash) && !needed.contains(hash));
    tables.commit(&Commit {
        manifests: vec![(new.position, new.to_bytes())],
        removed: Vec::new(),
        garbage: old.collect(),
    })?;
    Ok(new)
}
