//! One flipped bit, anywhere: it is named or harmless, and never served; and a peer can put it right.

use crate::faulty_disk::{FaultyDisk, Random};
use crate::model::{open, record, Model, Opened};
use spare_protocol::Position;
use spare_store::{BackupError, Damage, DamagedPart, Event, StoreError};

/// Where the older of the two snapshots is.
const OLDER_SNAPSHOT: Position = Position(60);
/// A segment that has no record is not longer.
const HEAD_BYTES: usize = 72;

/// A store with two snapshots, a compacted log, and records above.
fn written() -> (FaultyDisk, Model) {
    let disk = FaultyDisk::new();
    let opened = open(&disk).expect("open");
    let mut model = Model::default();
    let mut append = |opened: &Opened, count: u64, safe: u64| {
        for _ in 0..count {
            let next = record(model.end() + 1, 0);
            opened.store.append(&next).expect("append");
            model.log.push(next);
            if model.end() % 5 == 0 {
                opened.store.wait().expect("wait");
            }
        }
        opened.store.safe(Position(safe)).expect("safe");
        opened.store.wait().expect("wait");
        model.safe = safe;
        if safe > 0 {
            opened.store.snapshot(Position(safe), None).expect("ask");
            let _ = opened.state_at(safe);
        }
    };
    append(&opened, 30, 30);
    append(&opened, 30, 60);
    append(&opened, 23, 80);
    opened.store.use_generation(5).expect("generation");
    opened.store.wait().expect("wait");
    model.generation = 5;
    let snapshots = opened.store.snapshots();
    let positions: Vec<u64> = snapshots.iter().map(|m| m.position.0).collect();
    assert_eq!(positions, [OLDER_SNAPSHOT.0, 80]);
    assert!(opened.store.record(Position(20)).is_err(), "compacted");
    drop(opened);
    (disk, model)
}

/// Names and lengths of the segments, the largest first. Old ones may be about to be removed: nobody needs
/// what is in them.
fn segments(disk: &FaultyDisk) -> Vec<(String, usize)> {
    let files = disk.files().into_iter();
    let segments = files.filter(|(folder, name, length)| {
        *folder == 1 && name.ends_with(".seg") && *length > HEAD_BYTES
    });
    let mut segments: Vec<_> = segments.map(|(_, name, length)| (name, length)).collect();
    segments.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    segments
}

/// Everything that can be asked for is right, or is refused. Returns whether something was refused.
fn honest(opened: &Opened, model: &Model) -> bool {
    let (start, end) = opened.resumed.log;
    let mut refused = !opened.resumed.damage.is_empty();
    assert!(end.0 == model.end() || refused, "the end is gone silently");
    assert!(end.0 <= model.end());
    for position in start.0 + 1..=end.0 {
        match opened.store.record(Position(position)) {
            Ok(found) => assert_eq!(found.as_ref(), model.log.get(position as usize - 1)),
            Err(StoreError::Damaged(damage)) => {
                assert!(damage.to_string().contains(&position.to_string()));
                refused = true;
            }
            Err(other) => panic!("{other}"),
        }
    }
    if let Some(last) = &opened.resumed.last {
        assert_eq!(Some(last), model.log.get(last.position.0 as usize - 1));
    }
    for (key, request, position, _) in &opened.resumed.keys {
        let there = &model.log[position.0 as usize - 1];
        assert_eq!(there.key.as_ref(), Some(key));
        assert_eq!(spare_protocol::Hash::of(&there.request), *request);
    }
    assert!(opened.resumed.generation == 5 || refused);
    match opened.state_at(end.0) {
        Ok(state) => assert_eq!(state, model.state_at(end.0)),
        Err(error) => {
            assert!(matches!(
                error,
                StoreError::Damaged(_) | StoreError::Refused(_)
            ));
            refused = true;
        }
    }
    refused
}

/// A peer has everything: afterwards nothing is damaged any more.
fn put_right(opened: &Opened, model: &Model, peer: &Opened) {
    let agreed = Position(model.end());
    opened
        .store
        .repair_records(&model.log, agreed)
        .expect("put back");
    opened.store.wait().expect("wait");
    for manifest in peer.store.snapshots() {
        let repaired = manifest.each_chunk(|chunk| {
            let bytes = peer.store.chunk(chunk.hash)?;
            // Refused where no snapshot names it.
            let _ = opened.store.repair_chunk(&bytes);
            Ok::<_, BackupError>(bytes)
        });
        repaired.expect("the peer's are whole");
    }
    assert_eq!(opened.store.verify().expect("verify"), []);
    let (start, end) = opened.resumed.log;
    for position in start.0 + 1..=end.0 {
        let found = opened
            .store
            .record(Position(position))
            .expect("whole again");
        assert_eq!(found.as_ref(), model.log.get(position as usize - 1));
    }
}

#[test]
fn a_flipped_bit_in_the_log_is_named_or_harmless_and_a_peer_puts_it_right() {
    let (disk, model) = written();
    let peer = open(&disk.after_kill()).expect("open");
    let step = match std::env::var("SPARE_SCALE").as_deref() {
        Ok("full") => 1,
        _ => 101,
    };
    let (mut flips, mut named) = (0, 0);
    for (folder, name, length) in disk.files() {
        if folder != 1 {
            continue;
        }
        for bit in (0..length * 8).step_by(step) {
            let flipped = disk.after_kill();
            flipped.flip(folder, &name, bit);
            let opened = match open(&flipped) {
                Ok(opened) => opened,
                Err(error) => panic!("{name}, bit {bit}: {error}"),
            };
            flips += 1;
            if !honest(&opened, &model) {
                continue;
            }
            named += 1;
            put_right(&opened, &model, &peer);
            // The repair must outlive the process, too.
            drop(opened);
            let again = open(&flipped.after_kill()).expect("open");
            assert_eq!(again.resumed.damage, [], "{name}, bit {bit}");
            assert!(!honest(&again, &model), "{name}, bit {bit}");
        }
    }
    println!("{flips} flips in the log, {named} of them mattered");
    assert!(named > flips / 2);
}

#[test]
fn a_flipped_bit_in_the_tables_is_named_or_harmless() {
    let (disk, model) = written();
    let flips = match std::env::var("SPARE_SCALE").as_deref() {
        Ok("full") => 100_000,
        _ => 1500,
    };
    let mut random = Random::new(3);
    let mut named = 0;
    let bytes = disk.bytes(0, "state.blocks");
    let used: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
    for _ in 0..flips {
        // Of a page that holds nothing a flipped bit costs nothing.
        let byte = used[random.below(used.len() as u64) as usize];
        let bit = byte * 8 + random.below(8) as usize;
        let flipped = disk.after_kill();
        flipped.flip(0, "state.blocks", bit);
        let Ok(opened) = open(&flipped) else {
            named += 1;
            continue;
        };
        if honest(&opened, &model) || !opened.store.verify().is_ok_and(|d| d.is_empty()) {
            named += 1;
        }
    }
    println!("{flips} flips in used bytes of the tables, {named} of them mattered");
}

#[test]
fn a_missing_segment_is_named() {
    let (disk, model) = written();
    for (folder, name, _) in disk.files() {
        if folder == 1 && name.ends_with(".seg") {
            let left = disk.after_kill();
            let empty = disk.bytes(1, &name).len() <= HEAD_BYTES;
            // Below the newest snapshot nobody needs it.
            let needed = |opened: &Opened| opened.resumed.log.0 > Position(80);
            left.remove(1, &name);
            let opened = open(&left).expect("open");
            let named = honest(&opened, &model);
            assert!(named || empty || !needed(&opened), "{name}");
        }
    }
}

#[test]
fn a_bit_that_flips_while_the_store_runs_is_never_served() {
    let (disk, model) = written();
    let opened = open(&disk).expect("open");
    let flipped = segments(&disk).into_iter().find(|(name, length)| {
        let bit = (length - 20) * 8;
        disk.flip(1, name, bit);
        let noticed = honest(&opened, &model);
        if !noticed {
            disk.flip(1, name, bit);
        }
        noticed
    });
    let (name, _) = flipped.expect("a read noticed");
    let damage = opened.store.verify().expect("verify");
    assert_eq!(damage.len(), 1);
    assert!(damage[0].path.ends_with(&name));
    put_right(&opened, &model, &opened);
    assert!(opened
        .events
        .try_iter()
        .all(|e| !matches!(e, Event::Failed(_))));
}

#[test]
fn a_record_of_another_history_is_not_put_back() {
    let (disk, _) = written();
    let damaged = segments(&disk).into_iter().find_map(|(name, length)| {
        let flipped = disk.after_kill();
        flipped.flip(1, &name, (length - 20) * 8);
        let opened = open(&flipped).expect("open");
        // One record, of which the length and the checksum are known.
        let first = opened.resumed.damage.iter().find_map(|d| match d.part {
            spare_store::DamagedPart::Records(range) if d.what == "checksum" => Some(range.first),
            _ => None,
        });
        // What is below the older snapshot goes, or is about to.
        let needed = first.filter(|first| *first > OLDER_SNAPSHOT);
        Some((needed?, opened))
    });
    let (first, opened) = damaged.expect("a segment that is needed");
    let error = opened
        .store
        .repair_records(&[record(first.0, 3)], Position(0));
    let text = error.expect_err("another history").to_string();
    assert!(text.contains("is not the one that stood"), "{text}");
}

/// Where a head is damaged, nothing tells which records stood behind it.
#[test]
fn where_a_head_is_damaged_only_what_is_agreed_is_put_back() {
    let (disk, model) = written();
    let flips = segments(&disk).into_iter().flat_map(|(name, length)| {
        let bytes = (HEAD_BYTES..length).step_by(4);
        bytes.map(move |byte| (name.clone(), byte * 8))
    });
    let not_safe = |damage: &Damage| match damage.part {
        DamagedPart::Records(range) => {
            damage.what != "checksum" && range.last > Position(model.safe)
        }
        _ => false,
    };
    let mut damaged = flips.filter_map(|(name, bit)| {
        let flipped = disk.after_kill();
        flipped.flip(1, &name, bit);
        let opened = open(&flipped).expect("open");
        let found = opened.resumed.damage.iter().any(not_safe);
        found.then_some(flipped)
    });
    let flipped = damaged.next().expect("a head of what is not safe");
    let opened = open(&flipped).expect("open");
    let other: Vec<_> = (model.safe + 1..=model.end())
        .map(|position| record(position, 3))
        .collect();
    let peers: Vec<_> = model.log[..model.safe as usize]
        .iter()
        .cloned()
        .chain(other)
        .collect();
    opened
        .store
        .repair_records(&peers, Position(0))
        .expect("put back");
    opened.store.wait().expect("wait");
    assert!(honest(&opened, &model), "another history is served");
    drop(opened);
    let left = flipped.after_kill();
    let opened = open(&left).expect("open");
    assert!(honest(&opened, &model), "another history is served");
    // The same records once they are agreed on.
    let agreed = Position(model.end());
    opened
        .store
        .repair_records(&model.log, agreed)
        .expect("put back");
    opened.store.wait().expect("wait");
    drop(opened);
    let opened = open(&left.after_kill()).expect("open");
    assert_eq!(opened.resumed.damage, []);
    assert!(!honest(&opened, &model));
}
