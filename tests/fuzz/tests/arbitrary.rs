//! Arbitrary bytes, and files of the corpus with arbitrary changes, through every target.

use proptest::prelude::*;
use proptest::sample::Index;
use spare_fuzz::meter::Meter;
use spare_fuzz::{seeds, TARGETS};

#[global_allocator]
static METER: Meter = Meter;

/// For each target; a second's work for all together.
const CASES: u32 = 2000;

/// One change of a file.
#[derive(Clone, Debug)]
enum Edit {
    /// Another byte.
    Set(Index, u8),
    /// More bytes.
    Insert(Index, Vec<u8>),
    /// So many bytes less.
    Cut(Index, u8),
    /// So many bytes from the index on, once more.
    Repeat(Index, u8),
}

/// Bytes that mean something to one decoder or another.
const TELLING: &[&[u8]] = &[
    &[0xff; 4],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0x80, 0x80, 0x80, 0x80, 0x04],
    &[0; 8],
    b"[[[[",
    b"\"",
    b"\r\n",
    b"%",
];

fn edit() -> impl Strategy<Value = Edit> {
    let telling = prop::sample::select(TELLING);
    let inserted = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        telling.prop_map(<[u8]>::to_vec),
    ];
    let at = any::<Index>();
    prop_oneof![
        (at.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at.clone(), inserted).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at.clone(), 1u8..40).prop_map(|(at, count)| Edit::Cut(at, count)),
        (at, 1u8..40).prop_map(|(at, count)| Edit::Repeat(at, count)),
    ]
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let at = |index: &Index| index.index(bytes.len() + 1);
        let end = |from: usize, count: u8| (from + usize::from(count)).min(bytes.len());
        match edit {
            Edit::Set(index, byte) => {
                let at = at(index);
                if let Some(there) = bytes.get_mut(at) {
                    *there = *byte;
                }
            }
            Edit::Insert(index, more) => {
                let at = at(index);
                bytes.splice(at..at, more.iter().copied());
            }
            Edit::Cut(index, count) => {
                let at = at(index);
                bytes.drain(at..end(at, *count));
            }
            Edit::Repeat(index, count) => {
                let at = at(index);
                let part = bytes[at..end(at, *count)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// Arbitrary bytes, or a changed seed of the target.
fn input(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<Vec<u8>> = seeds::of(target).into_iter().map(|(_, s)| s).collect();
    let changed = (
        prop::sample::select(seeds),
        prop::collection::vec(edit(), 1..6),
    );
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..300),
        3 => changed.prop_map(|(seed, edits)| edited(seed, &edits)),
    ]
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(CASES))]

            $(#[test]
            fn $name(bytes in input(stringify!($name))) {
                run(stringify!($name), &bytes);
            })*
        }
    };
}

fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target").run)(bytes);
}

targets!(
    guest_frames,
    guest_channel,
    guest_reply,
    guest_console,
    client_connection,
    http_messages,
    auction_form,
    agreed_headers,
    group_message,
    peer_message,
    peer_link,
    peer_snapshot,
    ring_packets,
    corosync_conf,
    manager_frames,
    update,
    agreed_state,
    ordered_log,
    store_segment,
    store_values,
    store_backup,
    leaves_file,
    change_stream,
    database_value,
    table_copy,
    service_reply,
    guest_config,
    agent_config,
    manager_config,
    normalise_rules,
    image_description,
    agent_names,
    addresses,
    events_query,
    admin_answer,
    server_reply,
    pages_file,
    replay_difference,
    auction_page,
);

#[test]
fn every_target_is_tested_here() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(TESTED, names);
}
