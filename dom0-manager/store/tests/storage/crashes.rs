//! Crashes and failures at any moment.

use crate::faulty_disk::{FaultyDisk, Random};
use crate::model::{next_step, open, record, Life, Model, Step};
use spare_protocol::Position;
use spare_store::StoreError;

/// Every kind of step, in an order that leaves something to lose.
fn script() -> Vec<Step> {
    let mut random = Random::new(20);
    let mut model = Model::default();
    let mut steps = Vec::new();
    while steps.len() < 60 {
        let step = next_step(&model, &mut random);
        match &step {
            Step::Append(flavour) => model.log.push(record(model.end() + 1, *flavour)),
            Step::Truncate(after) => model.log.truncate(*after as usize),
            Step::Safe(position) => model.safe = *position,
            Step::View(epoch) => model.view.id.epoch = *epoch,
            Step::Generation(generation) => model.generation = *generation,
            _ => {}
        }
        steps.push(step);
        if steps.len() % 20 == 19 {
            steps.extend([Step::Safe(model.end()), Step::Snapshot(model.end())]);
            model.safe = model.end();
        }
    }
    steps
}

/// Follows the script until it ends or the store fails.
fn follow(disk: &FaultyDisk, steps: &[Step]) -> Life {
    let mut life = Life::from(Model::default());
    match open(disk) {
        Err(error) => life.failure = Some(error),
        Ok(opened) => {
            let _ = steps.iter().all(|step| life.live(&opened, step, true));
            life.calls = disk.calls();
        }
    }
    life
}

#[test]
fn every_write_and_fsync_in_turn_fails() {
    let steps = script();
    let disk = FaultyDisk::new();
    let life = follow(&disk, &steps);
    assert!(life.failure.is_none(), "{:?}", life.failure);
    let (alive, calls) = (life.calls, disk.calls());
    assert!(alive > 150, "{alive} calls");
    println!("{calls} calls that write or sync; each fails in turn");
    for call in 1..=calls {
        let disk = FaultyDisk::new();
        disk.fail_at(call, call % 2 == 0);
        let life = follow(&disk, &steps);
        // Afterwards it only makes it durable that it was closed, which nothing rests on.
        assert!(
            life.failure.is_some() || call > alive,
            "call {call} failed unnoticed"
        );
        let mut random = Random::new(call);
        // The process ends; then, perhaps, the power goes too.
        for (how, left) in [
            ("kill", disk.after_kill()),
            ("power loss", disk.after_crash(&mut random)),
        ] {
            let what = disk.what_was(call);
            println!("call {call} ({what}) fails, then {how}");
            let opened = open(&left).unwrap_or_else(|e| panic!("{e}"));
            let model = life.judge(&opened);
            // What an opened store shows counts as reported, and survives a loss of power.
            drop(opened);
            let again = open(&left.after_crash(&mut random)).unwrap_or_else(|e| panic!("{e}"));
            assert!(again.held().is(&model), "what was shown is gone");
        }
    }
}

#[test]
fn a_failing_call_while_the_store_opens_costs_nothing() {
    let steps = script();
    let mut random = Random::new(5);
    for cut in [25, 40, 55] {
        let disk = FaultyDisk::new();
        let mut life = Life::from(Model::default());
        let opened = open(&disk).expect("open");
        for step in &steps[..cut] {
            life.live(&opened, step, false);
        }
        let left = disk.after_crash(&mut random);
        drop(opened);
        for call in 1.. {
            let this = left.after_kill();
            this.fail_at(call, false);
            let opened = open(&this);
            let reached = this.calls() >= call;
            let refused = opened.is_err();
            drop(opened);
            assert_eq!(refused, reached, "call {call} ({})", this.what_was(call));
            let opened = open(&this.after_crash(&mut random)).unwrap_or_else(|e| panic!("{e}"));
            life.judge(&opened);
            if !reached {
                break;
            }
        }
    }
}

#[test]
fn after_a_failed_sync_nothing_more_is_written_or_reported() {
    let disk = FaultyDisk::new();
    let opened = open(&disk).expect("open");
    opened.store.append(&record(1, 0)).expect("append");
    opened.store.wait().expect("wait");
    // A write, and its sync.
    disk.fail_at(2, false);
    opened.store.append(&record(2, 0)).expect("queued");
    let failure = opened.store.wait().expect_err("the sync failed");
    let text = failure.to_string();
    assert!(matches!(failure, StoreError::Stopped(_)));
    assert!(text.contains("/seat/log/00000001.seg") && text.contains("restart this manager"));
    let calls = disk.calls();
    assert!(opened.store.append(&record(3, 0)).is_err());
    assert!(opened.store.safe(Position(1)).is_err());
    assert_eq!(opened.store.progress().stored, Position(1));
    assert_eq!(disk.calls(), calls, "nothing was tried again");
}

#[test]
fn a_full_disk_says_what_to_do() {
    let disk = FaultyDisk::new();
    let opened = open(&disk).expect("open");
    disk.fail_at(1, true);
    opened.store.append(&record(1, 0)).expect("queued");
    let text = opened.store.wait().expect_err("full").to_string();
    assert!(text.contains("make room on this disk"), "{text}");
}

#[test]
fn rounds_on_storage_that_drops_tears_and_reorders_what_was_not_synced() {
    let rounds = match std::env::var("SPARE_SCALE").as_deref() {
        Ok("full") => 2000,
        _ => 40,
    };
    let seed = std::env::var("SPARE_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let first: u64 = seed.unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(1, |d| d.as_nanos() as u64 >> 8)
    });
    let rounds = if seed.is_some() { 1 } else { rounds };
    for round in 0..rounds {
        let seed = first + round;
        println!("round with SPARE_SEED={seed}");
        let mut random = Random::new(seed);
        let mut disk = FaultyDisk::new();
        let mut model = Model::default();
        for _ in 0..4 {
            (disk, model) = one_life(&disk, model, &mut random);
        }
    }
}

/// One life on `disk`, which ends with the power; returns what is left, and what that is.
fn one_life(disk: &FaultyDisk, model: Model, random: &mut Random) -> (FaultyDisk, Model) {
    let opened = open(disk).unwrap_or_else(|e| panic!("{e}"));
    let mut life = Life::from(model);
    life.judge(&opened);
    disk.die_at(1 + random.below(120));
    for _ in 0..200 {
        let step = next_step(life.model(), random);
        if !life.live(&opened, &step, false) {
            break;
        }
    }
    let left = disk.after_crash(random);
    drop(opened);
    // Judged on a copy, so that the next life begins on what the crash left.
    let copy = left.after_kill();
    let again = open(&copy).unwrap_or_else(|e| panic!("{e}"));
    let model = life.judge(&again);
    (left, model)
}

#[test]
fn every_prefix_of_the_last_record_survives() {
    let disk = FaultyDisk::new();
    let opened = open(&disk).expect("open");
    let mut model = Model::default();
    for position in 1..=9 {
        let next = record(position, 0);
        opened.store.append(&next).expect("append");
        opened.store.wait().expect("wait");
        model.log.push(next);
    }
    let name = "00000001.seg";
    let (before, synced_before) = (disk.bytes(1, name), disk.bytes(1, "synced"));
    opened.store.append(&record(10, 0)).expect("append");
    opened.store.wait().expect("wait");
    let (after, synced_after) = (disk.bytes(1, name), disk.bytes(1, "synced"));
    drop(opened);
    for length in before.len()..=after.len() {
        let torn = disk.after_kill();
        torn.set_bytes(1, name, after[..length].to_vec());
        // The crash came before the sync had returned: nobody was told.
        torn.set_bytes(1, "synced", synced_before.clone());
        let opened = open(&torn).unwrap_or_else(|e| panic!("{e}"));
        let expected = if length == after.len() { 10 } else { 9 };
        assert_eq!(opened.resumed.log, (Position(0), Position(expected)));
        assert_eq!(opened.resumed.damage, []);
        assert_eq!(opened.held().records[..9], model.log);
        drop(opened);
        // The sync had returned, and the record was reported: it is missed.
        let cut = disk.after_kill();
        cut.set_bytes(1, name, after[..length].to_vec());
        cut.set_bytes(1, "synced", synced_after.clone());
        let opened = open(&cut).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(opened.resumed.log, (Position(0), Position(10)));
        assert_eq!(opened.resumed.damage.is_empty(), length == after.len());
        assert_eq!(opened.resumed.last.is_none(), length < after.len());
    }
}
