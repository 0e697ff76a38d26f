//! Requests that are repeated, that bring replicas down, that try to write in a read, or that are too
//! many (`docs/protocol.md#votes`, `docs/protocol.md#exactly-once`).

mod cluster;

use cluster::{config, Cluster, Fault};
use spare_core::{Config, Micros, Notice, Refusal};
use spare_protocol::admin::ReplicaState;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::{AbortReason, Envelope, OrderedMessage};
use spare_protocol::{Class, Hash, SeatId};

fn key(text: &str) -> Option<Hash> {
    Some(Hash::of(text.as_bytes()))
}

fn executions(cluster: &Cluster, text: &str) -> usize {
    let log = &cluster.logs[0];
    log.iter().filter(|r| r.request == text.as_bytes()).count()
}

#[test]
fn a_retry_of_a_decided_request_gets_its_answer_and_takes_no_effect() {
    let mut cluster = Cluster::started(1);
    let first = cluster.submit_at(0, Class::Write, key("k"), "buy");
    cluster.run_for(100);
    let again = cluster.submit_at(1, Class::Write, key("k"), "buy");
    cluster.run_for(100);
    assert_eq!(cluster.answers[&first], cluster.answers[&again]);
    assert_eq!(executions(&cluster, "buy"), 1);
    cluster.load(90);
    let much_later = cluster.submit_at(1, Class::Write, key("k"), "buy");
    cluster.run_for(100);
    assert_eq!(cluster.answers[&first], cluster.answers[&much_later]);
}

#[test]
fn a_retry_of_an_undecided_request_attaches_to_it() {
    let mut cluster = Cluster::started(1);
    cluster.corrupt(1, 1, Fault::Silent);
    let first = cluster.submit_at(0, Class::Write, key("k"), "buy");
    cluster.run_for(10);
    let again = cluster.submit_at(1, Class::Write, key("k"), "buy");
    cluster.run_for(5000);
    assert_eq!(cluster.answers[&first], cluster.answers[&again]);
    assert_eq!(executions(&cluster, "buy"), 1);
}

#[test]
fn the_same_key_with_another_request_is_refused() {
    let mut cluster = Cluster::started(1);
    cluster.submit_at(0, Class::Write, key("k"), "buy");
    let other = cluster.submit_at(0, Class::Write, key("k"), "sell");
    cluster.run_for(100);
    assert_eq!(cluster.refused.get(&other), Some(&Refusal::KeyReused));
    assert_eq!(executions(&cluster, "sell"), 0);
}

#[test]
fn keys_expire_by_agreed_time_and_are_bounded_in_number() {
    let mut cluster = Cluster::with(Config {
        keys_max: 2,
        ..config(0, 1)
    });
    for name in ["a", "b", "c", "a"] {
        cluster.submit_at(0, Class::Write, key(name), name);
        cluster.run_for(50);
    }
    assert_eq!(executions(&cluster, "a"), 2, "only two keys are remembered");
    cluster.run_for(3_700_000);
    cluster.submit_at(0, Class::Write, key("a"), "a");
    cluster.run_for(50);
    cluster.submit_at(0, Class::Write, key("x"), "x");
    cluster.run_for(50);
    assert_eq!(
        executions(&cluster, "a"),
        2,
        "expiry follows what is ordered"
    );
}

/// A request that kills every replica that executes it must not eat the last clean passives.
#[test]
fn a_request_on_which_all_actives_die_is_aborted_and_the_passives_take_over() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let poison = cluster.submit_at(0, Class::Write, None, "poison");
    cluster.run_for(20_000);
    assert_eq!(cluster.answers[&poison].1, Err(AbortReason::Failed));
    let aborted = |n: &Notice| matches!(n, Notice::Aborted { .. });
    assert!(cluster.notices.iter().any(|(_, n)| aborted(n)));
    let passive_died = |n: &&(SeatId, Notice)| matches!(&n.1, Notice::Woken { .. });
    assert_eq!(cluster.notices.iter().filter(passive_died).count(), 0);
    cluster.load(60);
    assert_eq!(cluster.answers.len(), 92);
    let convicted = |n: &&(SeatId, Notice)| matches!(n.1, Notice::Convicted { .. });
    let convicted: Vec<_> = cluster.notices.iter().filter(convicted).collect();
    assert!(convicted.is_empty(), "{convicted:?}");
    let replicas = cluster.cores[0].replicas();
    let active = replicas.iter().filter(|r| r.state == ReplicaState::Active);
    assert_eq!(active.count(), 2);
}

#[test]
fn a_request_on_which_everybody_falls_silent_is_aborted_in_the_end() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    let stuck = cluster.submit_at(0, Class::Write, None, "hang");
    cluster.run_for(120_000);
    assert_eq!(cluster.answers[&stuck].1, Err(AbortReason::Failed));
    cluster.load(60);
    cluster.run_for(20_000);
    assert_eq!(cluster.answers.len(), 92);
    assert!(cluster.convicted().is_empty());
}

/// Seed 500316: a replica that came later executed it after all, was held against the abort, and convicted.
#[test]
fn a_replica_that_is_built_after_an_abort_does_not_execute_the_aborted_request() {
    let mut cluster = Cluster::started(1);
    cluster.load(31);
    // Only the actives are left, and one of them is silent.
    cluster.hypervisor_fails = true;
    cluster.kill(0, 2);
    cluster.kill(1, 2);
    cluster.run_for(100);
    cluster.corrupt(1, 1, Fault::Silent);
    let undecided = cluster.submit(Class::Read);
    cluster.run_for(10);
    let aborted = cluster.submit_at(0, Class::Write, None, "hang");
    cluster.run_for(60_000);
    assert!(!cluster.answers.contains_key(&undecided));
    let abort = |n: &Notice| matches!(n, Notice::Aborted { .. });
    assert!(cluster.notices.iter().any(|(_, n)| abort(n)));
    let handed_out = |cluster: &Cluster| {
        let lines = cluster.trace.lines();
        let executes = |l: &&str| l.contains(" Execute {") && l.contains("b\"hang\"");
        lines.filter(executes).count()
    };
    let before = handed_out(&cluster);
    assert!(before > 0);
    cluster.hypervisor_fails = false;
    cluster.run_for(60_000);
    assert_eq!(handed_out(&cluster), before);
    assert!(cluster.answers[&undecided].1.is_ok());
    assert_eq!(cluster.answers[&aborted].1, Err(AbortReason::Failed));
    cluster.load(60);
    cluster.run_for(10_000);
    assert!(cluster.convicted().is_empty());
    assert_eq!(cluster.answers.len(), 93);
}

#[test]
fn a_read_that_tries_to_write_is_ordered_again_as_a_write() {
    let mut cluster = Cluster::started(1);
    let number = cluster.submit_at(0, Class::Read, None, "writes in a read");
    cluster.run_for(100);
    let (position, outcome) = &cluster.answers[&number];
    assert!(matches!(outcome, Ok(Outcome::Reply(_))));
    let record = &cluster.logs[0][usize::try_from(position.0).expect("small") - 1];
    assert_eq!(record.class, Class::Write);
    assert_eq!(executions(&cluster, "writes in a read"), 2);
}

#[test]
fn more_requests_than_allowed_are_refused_and_nothing_grows() {
    let mut cluster = Cluster::with(Config {
        in_flight_max: 100,
        ..config(0, 1)
    });
    cluster.corrupt(0, 1, Fault::Silent);
    cluster.corrupt(1, 1, Fault::Silent);
    let numbers: Vec<u64> = (0..500).map(|_| cluster.submit(Class::Read)).collect();
    cluster.run_for(50);
    let busy = numbers
        .iter()
        .filter(|n| cluster.refused.get(n) == Some(&Refusal::Busy));
    assert_eq!(busy.count(), 400);
    assert!(cluster.cores[0].footprint()[0] <= 100);
    cluster.run_for(60_000);
    assert_eq!(cluster.answers.len(), 100);
}

#[test]
fn requests_that_arrive_together_travel_together() {
    let mut cluster = Cluster::started(1);
    for _ in 0..50 {
        cluster.submit(Class::Read);
    }
    cluster.run_for(100);
    let batches = cluster.trace.matches("message: Requests(").count();
    assert_eq!(batches, 1);
    assert_eq!(cluster.answers.len(), 50);
}

/// A gateway whose clock runs a year ahead does not take the service there.
#[test]
fn a_proposed_time_far_ahead_of_the_other_clocks_is_cut_back() {
    let mut cluster = Cluster::started(1);
    cluster.load(5);
    cluster.run_for(3000);
    cluster.clock_ahead_us = 365 * 24 * 3600 * 1_000_000;
    cluster.submit(Class::Write);
    cluster.run_for(100);
    cluster.clock_ahead_us = 0;
    let last = cluster.logs[0].last().expect("a log");
    let now = i64::try_from(cluster.now.0).expect("small");
    assert!(last.time_us < now + 20_000_000, "{} {now}", last.time_us);
    cluster.submit(Class::Write);
    cluster.run_for(100);
    let next = cluster.logs[0].last().expect("a log");
    assert!(next.time_us > last_before(&cluster));
}

fn last_before(cluster: &Cluster) -> i64 {
    let log = &cluster.logs[0];
    log[log.len() - 2].time_us
}

#[test]
fn a_vote_that_is_always_just_in_time_is_noticed_and_its_replica_replaced_as_active() {
    let mut cluster = Cluster::with(Config {
        vote_timeout: (Micros::from_ms(500), Micros::from_ms(500)),
        ..config(0, 1)
    });
    cluster.load(31);
    cluster.corrupt(1, 1, Fault::Slow(300));
    for _ in 0..60 {
        cluster.submit(Class::Read);
        cluster.run_for(400);
    }
    let suspected = |n: &Notice| matches!(n, Notice::Suspected { replica, .. } if *replica == Cluster::replica(1, 1));
    assert!(cluster.notices.iter().any(|(_, n)| suspected(n)));
    assert!(cluster.convicted().is_empty());
    assert_eq!(cluster.answers.len(), 91);
}

/// Whoever sends many keys had those of others forgotten, and their retries took effect twice.
#[test]
fn who_sends_many_keys_is_refused_and_others_retries_are_recognised() {
    let mut cluster = Cluster::with(Config {
        keys_max: 100,
        keys_of_owner_max: 50,
        ..config(0, 1)
    });
    let key = |name: &str| Some(Hash::of(name.as_bytes()));
    cluster.submit_owned(0, Class::Write, (key("paid"), 1), "pay");
    cluster.run_for(50);
    let mut flood = Vec::new();
    for i in 0..200 {
        let name = format!("flood {i}");
        flood.push(cluster.submit_owned(0, Class::Write, (key(&name), 2), &name));
        cluster.run_for(10);
    }
    let retry = cluster.submit_owned(1, Class::Write, (key("paid"), 1), "pay");
    cluster.run_for(50);
    assert!(cluster.answers.contains_key(&retry));
    assert_eq!(executions(&cluster, "pay"), 1);
    let refused = flood
        .iter()
        .filter(|number| cluster.refused.get(number) == Some(&Refusal::KeysExhausted));
    assert_eq!(refused.count(), 150);
}

/// How many requests are in each message of requests that was multicast since, and its bytes.
fn batches(cluster: &Cluster, begun: usize) -> Vec<(usize, usize)> {
    let decoded = cluster.encoded[begun..].iter();
    let decoded = decoded.map(|bytes| (Envelope::from_bytes(bytes).expect("one"), bytes.len()));
    let batches = decoded.filter_map(|(envelope, bytes)| match envelope.message {
        OrderedMessage::Requests(requests) => Some((requests.len(), bytes)),
        _ => None,
    });
    batches.collect()
}

#[test]
fn what_is_said_again_in_a_new_ring_is_cut_into_messages_by_its_bytes() {
    let mut cluster = Cluster::with(Config {
        batch_bytes_max: 1 << 10,
        ..config(0, 1)
    });
    let upload = "x".repeat(1 << 9);
    // Not one is delivered before the other host is lost; some come while the ring changes.
    cluster.multicasts_lost = true;
    let mut submitted: Vec<u64> = (0..70)
        .map(|_| cluster.submit_at(0, Class::Write, None, &upload))
        .collect();
    cluster.run_for(10);
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.one(0);
    for _ in 0..30 {
        submitted.push(cluster.submit_at(0, Class::Write, None, &upload));
        cluster.one(0);
    }
    cluster.multicasts_lost = false;
    let begun = cluster.encoded.len();
    cluster.form_ring(&[0], true);
    cluster.run_for(5000);
    let batches = batches(&cluster, begun);
    assert_eq!(batches.iter().map(|(count, _)| count).sum::<usize>(), 100);
    assert!(
        batches.iter().all(|(_, bytes)| *bytes < 2 << 10),
        "{batches:?}"
    );
    for number in submitted {
        assert!(cluster.answers.contains_key(&number), "{number}");
    }
}

#[test]
fn a_request_that_is_longer_than_a_message_may_be_goes_alone() {
    let mut cluster = Cluster::with(Config {
        batch_bytes_max: 1 << 10,
        ..config(0, 1)
    });
    let begun = cluster.encoded.len();
    let numbers = [10, 5 << 10, 10].map(|length| {
        let text = "x".repeat(length);
        cluster.submit_at(0, Class::Write, None, &text)
    });
    cluster.run_for(1000);
    let counts: Vec<usize> = (batches(&cluster, begun).iter().map(|(count, _)| *count)).collect();
    assert_eq!(counts, [1, 1, 1]);
    assert!(numbers.iter().all(|n| cluster.answers.contains_key(n)));
}

#[test]
fn what_waits_for_a_ring_has_a_budget_in_bytes_and_more_is_refused_as_busy() {
    let mut cluster = Cluster::with(Config {
        undelivered_bytes_max: 8 << 10,
        ..config(0, 1)
    });
    let upload = "x".repeat(1 << 10);
    cluster.multicasts_lost = true;
    let submitted: Vec<u64> = (0..12)
        .map(|_| cluster.submit_at(0, Class::Write, None, &upload))
        .collect();
    cluster.run_for(10);
    let refused = |cluster: &Cluster| -> Vec<u64> {
        let busy = cluster.refused.iter().filter(|(_, r)| **r == Refusal::Busy);
        busy.map(|(number, _)| *number).collect()
    };
    assert_eq!(refused(&cluster), submitted[8..]);
    cluster.multicasts_lost = false;
    cluster.crash(1);
    cluster.form_ring(&[0], true);
    cluster.run_for(5000);
    assert!(submitted[..8]
        .iter()
        .all(|n| cluster.answers.contains_key(n)));
    // What was delivered waits no more.
    let later = cluster.submit_at(0, Class::Write, None, &upload);
    cluster.run_for(1000);
    assert!(
        cluster.answers.contains_key(&later),
        "{:?}",
        cluster.refused
    );
}
