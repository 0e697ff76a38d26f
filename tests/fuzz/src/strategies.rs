//! Generators of valid messages, files and answers.

pub mod group;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use spare_client::pages::RecordedPage;
use spare_protocol::admin::{
    Conviction, ConvictionReason, Counters, DiskStatus, Event, EventKind, FaultTimeline,
    HostStatus, Mode, ReplicaState, ReplicaStatus, ScrubReport, SeatStatus, Status, VoteStatus,
};
use spare_protocol::channel::{Execute, FromGuest, Outcome, RootRequest, ToGuest};
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::update::{Key, RowOp, SequenceState, TableUpdate, Update, Value};
use spare_protocol::{Class, Hash, Position, ReplicaId, SeatId};
use spare_store::LogRecord;
use std::collections::BTreeMap;

/// `count` values of a strategy, the same every time.
pub fn examples<S: Strategy>(strategy: &S, count: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    let example = |_| match strategy.new_tree(&mut runner) {
        Ok(tree) => tree.current(),
        Err(reason) => panic!("a strategy generates nothing: {reason}"),
    };
    (0..count).map(example).collect()
}

/// Any bytes.
pub fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

/// Any text.
pub fn text() -> impl Strategy<Value = String> {
    any::<String>()
}

/// Any hash.
pub fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

/// Any position.
pub fn position() -> impl Strategy<Value = Position> {
    prop_oneof![0u64..300, any::<u64>()].prop_map(Position)
}

/// Any replica.
pub fn replica() -> impl Strategy<Value = ReplicaId> {
    (any::<u16>(), any::<u32>()).prop_map(|(seat, generation)| ReplicaId {
        seat: SeatId(seat),
        generation,
    })
}

/// Any class.
pub fn class() -> impl Strategy<Value = Class> {
    prop::sample::select(&[Class::Read, Class::Write, Class::Scrub][..])
}

fn root_request() -> impl Strategy<Value = RootRequest> {
    let all = [
        RootRequest::No,
        RootRequest::Incremental,
        RootRequest::FullScan,
    ];
    prop::sample::select(all.to_vec())
}

/// What came of a request.
pub fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![bytes().prop_map(Outcome::Reply), Just(Outcome::WriteInRead),]
}

/// From the manager to a guest.
pub fn to_guest() -> impl Strategy<Value = ToGuest> {
    let execute = (
        position(),
        class(),
        any::<i64>(),
        any::<[u8; 32]>(),
        root_request(),
        bytes(),
    );
    let updates = prop::collection::vec((position(), bytes()), 0..4);
    prop_oneof![
        any::<u16>().prop_map(|version| ToGuest::Hello { version }),
        execute.prop_map(|(position, class, time_us, seed, root, request)| {
            ToGuest::Execute(Execute {
                position,
                class,
                time_us,
                seed,
                root,
                request,
            })
        }),
        (updates, position(), root_request()).prop_map(|(updates, upto, root)| ToGuest::Apply {
            updates,
            upto,
            root,
        }),
        (bytes(), prop::option::of(position()))
            .prop_map(|(part, last)| ToGuest::Load { part, last }),
        any::<u64>().prop_map(|update_bytes_max| ToGuest::Limits { update_bytes_max }),
        bytes().prop_map(ToGuest::Part),
        (bytes(), position()).prop_map(|(update, upto)| ToGuest::ApplyUnanswered { update, upto }),
    ]
}

/// From a guest to its manager.
pub fn from_guest() -> impl Strategy<Value = FromGuest> {
    let executed = (position(), outcome(), bytes(), prop::option::of(hash()));
    prop_oneof![
        (any::<u16>(), position())
            .prop_map(|(version, position)| FromGuest::Hello { version, position }),
        executed.prop_map(|(position, outcome, update, root)| FromGuest::Executed {
            position,
            outcome,
            update,
            root,
        }),
        (position(), prop::option::of(hash()))
            .prop_map(|(position, root)| FromGuest::Applied { position, root }),
        text().prop_map(|reason| FromGuest::Broken { reason }),
        bytes().prop_map(FromGuest::UpdatePart),
    ]
}

/// Any value of a column.
pub fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (0i64..4).prop_map(Value::Int),
        any::<i64>().prop_map(Value::Int),
        any::<u64>().prop_map(Value::Float),
        "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,4})?".prop_map(Value::Decimal),
        text().prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
        any::<i64>().prop_map(Value::Timestamp),
        any::<i32>().prop_map(Value::Date),
        any::<i64>().prop_map(Value::Time),
        any::<[u8; 16]>().prop_map(Value::Uuid),
        (i64::MAX - 900_000_000_000_000..i64::MAX).prop_map(Value::timestamp_since_2000),
    ]
}

/// The changes of one table, canonical.
fn table_update(table: String) -> impl Strategy<Value = TableUpdate> {
    let shape = (1usize..5).prop_flat_map(|columns| {
        let all: Vec<u16> = (0..columns as u16).collect();
        let key = Just(all)
            .prop_shuffle()
            .prop_flat_map(move |all| (1..=columns).prop_map(move |length| all[..length].to_vec()));
        let row = prop::collection::vec(value(), columns);
        let rows = prop::collection::vec((row, prop::option::of(hash()), 0..3), 0..5);
        (Just(columns), key, any::<bool>(), rows)
    });
    shape.prop_map(move |(columns, key, truncated, rows)| {
        let mut ops: BTreeMap<Key, RowOp> = BTreeMap::new();
        for (row, before, what) in rows {
            let of: Key = key.iter().map(|&i| row[usize::from(i)].clone()).collect();
            let others = (0u16..).zip(row.clone()).filter(|(i, _)| !key.contains(i));
            let op = match before.filter(|_| !truncated) {
                Some(before) if what == 0 => RowOp::Delete {
                    key: of.clone(),
                    before,
                },
                Some(before) if what == 1 && key.len() < columns => RowOp::Change {
                    key: of.clone(),
                    values: others.collect(),
                    before,
                    after: Hash::of(b"after"),
                },
                before => RowOp::Put { row, before },
            };
            ops.insert(of, op);
        }
        TableUpdate {
            table: table.clone(),
            columns: (0..columns).map(|i| format!("c{i}")).collect(),
            key,
            truncated,
            ops: ops.into_values().collect(),
        }
    })
}

/// A canonical update.
pub fn update() -> impl Strategy<Value = Update> {
    let names = prop::collection::btree_set("public\\.[a-c]", 0..3);
    let tables =
        names.prop_flat_map(|names| names.into_iter().map(table_update).collect::<Vec<_>>());
    let state = (any::<i64>(), any::<bool>())
        .prop_map(|(last_value, called)| SequenceState { last_value, called });
    let sequences = prop::collection::btree_map("[a-c]{1,2}", state, 0..3);
    (tables, sequences).prop_map(|(tables, sequences)| Update {
        tables,
        sequences: sequences.into_iter().collect(),
    })
}

fn headers() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let value = prop::collection::vec(prop_oneof![Just(b'\t'), b' '..=b'~', 128..=255u8], 0..20);
    prop::collection::vec(("[a-z][a-z0-9-]{0,10}", value), 0..5)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..60)
}

/// A request that a gateway could have taken.
pub fn http_request() -> impl Strategy<Value = HttpRequest> {
    let method = prop::sample::select(&["GET", "POST", "PUT", "HEAD"][..]);
    (method, "/[a-z0-9/?=&%.]{0,20}", headers(), body()).prop_map(
        |(method, target, headers, body)| HttpRequest {
            method: method.to_owned(),
            target,
            headers,
            body,
        },
    )
}

/// A reply that a shim could have sent.
pub fn http_reply() -> impl Strategy<Value = HttpReply> {
    (200u16..600, headers(), body()).prop_map(|(status, headers, body)| HttpReply {
        status,
        headers,
        body,
    })
}

/// A record of the ordered log.
pub fn log_record() -> impl Strategy<Value = LogRecord> {
    let values = (position(), class(), any::<i64>(), any::<[u8; 32]>());
    (values, bytes(), hash(), hash()).prop_map(
        |((position, class, time_us, seed), request, reply_hash, update_hash)| LogRecord {
            position,
            class,
            time_us,
            seed,
            request,
            reply_hash,
            update_hash,
        },
    )
}

/// A page that a client received.
pub fn recorded_page() -> impl Strategy<Value = RecordedPage> {
    let position = prop::option::of(position());
    (position, text(), any::<u16>(), body(), body()).prop_map(
        |(position, request, status, content_type, body)| RecordedPage {
            position,
            request,
            status,
            content_type,
            body,
        },
    )
}

fn replica_status() -> impl Strategy<Value = ReplicaStatus> {
    let state = prop::sample::select(
        &[
            ReplicaState::Building,
            ReplicaState::Passive,
            ReplicaState::Active,
            ReplicaState::Destroyed,
        ][..],
    );
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>());
    let usage = prop::option::of(any::<u64>());
    (text(), state, numbers, any::<bool>(), usage.clone(), usage).prop_map(
        |(replica, state, (position, updates_waiting, suspicions), clean, cpu_ms, memory_kib)| {
            ReplicaStatus {
                replica,
                state,
                position,
                clean,
                updates_waiting,
                suspicions,
                cpu_ms,
                memory_kib,
            }
        },
    )
}

fn conviction() -> impl Strategy<Value = Conviction> {
    let vote = (text(), text(), text()).prop_map(|(replica, reply, update)| VoteStatus {
        replica,
        reply,
        update,
    });
    let votes = prop::collection::vec(vote, 0..3);
    let texts = (text(), text(), text(), text(), prop::option::of(text()));
    (texts, votes, any::<u64>(), any::<i64>()).prop_map(
        |((replica, request, agreed_reply, agreed_update, evidence), votes, position, at_us)| {
            Conviction {
                replica,
                position,
                at_us,
                reason: ConvictionReason::Channel,
                request,
                votes,
                agreed_reply,
                agreed_update,
                evidence,
            }
        },
    )
}

/// The state of a deployment.
pub fn status() -> impl Strategy<Value = Status> {
    let host = (text(), text(), any::<bool>()).prop_map(|(name, accelerator, agent)| HostStatus {
        name,
        accelerator,
        agent,
        here: agent,
        member: true,
        drained: !agent,
        connected: true,
    });
    let replicas = prop::collection::vec(replica_status(), 0..3);
    let seat = (any::<u16>(), text(), replicas).prop_map(|(seat, host, replicas)| SeatStatus {
        seat,
        host,
        replicas,
        here: seat % 2 == 0,
        disk: DiskStatus::default(),
    });
    let lists = (
        prop::collection::vec(host, 0..3),
        prop::collection::vec(seat, 0..3),
        prop::option::of(conviction()),
    );
    let texts = (text(), text(), text());
    (texts, any::<[u64; 6]>(), any::<u16>(), lists).prop_map(
        |((service, engine, gateway), n, faults, (hosts, seats, last_conviction))| Status {
            service,
            mode: Mode::DetectOnly,
            engine,
            durability: "disk".into(),
            faults,
            epoch: n[0],
            ordered: n[1],
            decided: n[2],
            updates_max: n[3],
            gateway,
            state: "serving".into(),
            waits_for: String::new(),
            hosts,
            seats,
            counters: Counters {
                requests: n[4],
                losses: n[5],
                ..Counters::default()
            },
            last_conviction,
        },
    )
}

/// Something that happened.
pub fn event() -> impl Strategy<Value = Event> {
    let of = (prop::option::of(any::<u64>()), prop::option::of(text()));
    (any::<u64>(), any::<i64>(), of, text()).prop_map(
        |(number, at_us, (position, replica), text)| Event {
            number,
            at_us,
            kind: EventKind::Alarm,
            position,
            replica,
            text,
        },
    )
}

/// How a fault was dealt with, in times that decimal text can carry.
pub fn fault() -> impl Strategy<Value = FaultTimeline> {
    (
        any::<u64>(),
        text(),
        prop::option::of(text()),
        any::<[i32; 5]>(),
    )
        .prop_map(|(position, woken, faulty, ms)| FaultTimeline {
            position,
            woken,
            faulty,
            updates_waiting: position,
            detected_ms: ms[0].into(),
            unpaused_ms: ms[1].into(),
            applied_ms: ms[2].into(),
            executed_ms: ms[3].into(),
            agreed_ms: ms[4].into(),
        })
}

/// The outcome of a scrub.
pub fn scrub_report() -> impl Strategy<Value = ScrubReport> {
    let roots = prop::collection::vec((text(), text()), 0..4);
    (any::<u64>(), roots, any::<bool>()).prop_map(|(position, roots, equal)| ScrubReport {
        position,
        roots,
        equal,
    })
}
