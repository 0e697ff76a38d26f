//! What was written is what is read.

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::Serialize;
use spare_auction::request::Parameters;
use spare_client::decoders::Answer;
use spare_client::http::form_encode;
use spare_client::pages::{Pages, PagesWriter};
use spare_fuzz::database::{change, relation_u, row, server_message, Datum};
use spare_fuzz::strategies::{self as valid, examples, group};
use spare_protocol::channel::{Decoded, Frame, FrameDecoder};
use spare_protocol::messages::{OrderedMessage, PeerMessage};
use spare_protocol::update::{RowOp, Update, Value};
use spare_protocol::{decode, encode, DecodeError, Position};
use spare_shim::database::postgresql::decoders as postgres;
use spare_shim::root::{leaves_to_bytes, parse_leaves, StateRoot};
use spare_store::{AgreedState, LogReader, LogWriter};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;

fn survives<T>(message: T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = encode(&message);
    assert_eq!(decode(&bytes), Ok(message));
    for cut in 0..bytes.len() {
        assert!(decode::<T>(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

/// A file of this test alone, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("spare-fuzz-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

proptest! {
    #[test]
    fn messages_of_the_channel(to in valid::to_guest(), from in valid::from_guest()) {
        survives(to);
        survives(from);
    }

    #[test]
    fn messages_between_managers(group in group::envelope(), peer in group::peer_message()) {
        survives(group);
        survives(peer);
    }

    #[test]
    fn requests_and_replies(request in valid::http_request(), reply in valid::http_reply()) {
        survives(request);
        survives(reply);
    }

    #[test]
    fn frames(
        payloads in prop::collection::vec(valid::bytes(), 1..5),
        session in 1u32..,
        cut in 1usize..40,
    ) {
        let frame = |(payload, sequence)| Frame { session, sequence, payload };
        let frames: Vec<Frame> = payloads.into_iter().zip(1..).map(frame).collect();
        let stream: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let mut decoder = FrameDecoder::new();
        let mut found = Vec::new();
        for piece in stream.chunks(cut) {
            decoder.push(piece);
            while let Some(Decoded::Frame(frame)) = decoder.next() {
                found.push(frame);
            }
        }
        prop_assert_eq!(found, frames);
    }

    #[test]
    fn updates(update in valid::update()) {
        let bytes = update.to_bytes();
        prop_assert_eq!(Update::from_bytes(&bytes), Ok(update.clone()));
        for cut in 0..bytes.len() {
            prop_assert!(Update::from_bytes(&bytes[..cut]).is_err());
        }
        let mut state = AgreedState::new();
        prop_assert!(state.apply(Position(1), &bytes).is_ok());
        prop_assert_eq!(state.into_update(), update);
    }

    #[test]
    fn the_ordered_log(records in prop::collection::vec(valid::log_record(), 0..4)) {
        let file = Scratch::new("log");
        let mut log = LogWriter::create(&file.0).expect("created");
        for record in &records {
            log.append(record).expect("appended");
        }
        log.flush().expect("flushed");
        let read: Result<Vec<_>, _> = LogReader::open(&file.0).expect("a log").collect();
        prop_assert_eq!(read.expect("no damage"), records);
    }

    #[test]
    fn a_record_of_pages(pages in prop::collection::vec(valid::recorded_page(), 0..4)) {
        let file = Scratch::new("pages");
        let mut writer = PagesWriter::create(&file.0).expect("created");
        for page in &pages {
            writer.append(page).expect("appended");
        }
        writer.finish().expect("written");
        let mut read = Pages::open(&file.0).expect("pages");
        prop_assert_eq!(read.total(), pages.len() as u64);
        for page in &pages {
            if let Some(position) = page.position {
                prop_assert!(read.at(position).expect("readable").contains(page));
            }
        }
    }

    #[test]
    fn leaves_of_a_state(update in valid::update()) {
        let mut root = StateRoot::default();
        for table in &update.tables {
            for op in &table.ops {
                let hash = spare_protocol::Hash::of(&encode(op));
                root.add_row(&table.table, &table.key_of(op), &hash);
            }
        }
        let mut read = parse_leaves(&leaves_to_bytes(&mut root)).expect("leaves");
        let sequences = BTreeMap::new();
        prop_assert_eq!(read.root(&sequences), root.root(&sequences));
    }

    #[test]
    fn answers_of_the_admin_api(
        status in valid::status(),
        events in prop::collection::vec(valid::event(), 0..3),
        faults in prop::collection::vec(valid::fault(), 0..3),
        scrub in valid::scrub_report(),
    ) {
        let answers = [
            Answer::Status(Box::new(status)),
            Answer::Events(events),
            Answer::Faults(faults),
            Answer::Scrub(scrub),
        ];
        for (call, answer) in answers.into_iter().enumerate() {
            let json = answer.to_json().expect("JSON");
            prop_assert_eq!(Answer::parse(call, &json), Some(answer));
        }
    }

    #[test]
    fn names_of_replicas(replica in valid::replica()) {
        prop_assert_eq!(replica.to_string().parse(), Ok(replica));
        prop_assert_eq!(spare_agent::names::parse_replica(&replica.to_string()).ok(), Some(replica));
    }

    #[test]
    fn forms(pairs in prop::collection::vec(("[a-z]{1,5}", ".{0,20}"), 0..5)) {
        let borrowed: Vec<(&str, &str)> =
            pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let form = Parameters::decode(form_encode(&borrowed).as_bytes());
        for (name, _) in &pairs {
            // The first value of a name counts, without space around it; an empty one is none.
            let sent = pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.trim());
            let wanted = sent.filter(|value| !value.is_empty() && !value.contains('\0'));
            prop_assert_eq!(form.optional_text(name, 20).ok().flatten(), wanted);
        }
    }

    #[test]
    fn values_of_the_database(values in prop::collection::vec(valid::value(), 0..9)) {
        for value in values {
            for kind in 0..postgres::TYPES {
                let Some(bytes) = postgres::value_to_bytes(kind, &value) else { continue };
                // Decimal numbers go to the database as text; a float that does not fit `real`, and a
                // NaN, are not what a database would have handed out.
                let exact = !matches!(value, Value::Decimal(_) | Value::Float(_));
                if exact {
                    prop_assert_eq!(postgres::value(kind, &bytes), Some(value.clone()));
                }
            }
        }
    }

    #[test]
    fn rows_that_the_database_reports(
        id in any::<i64>(),
        text in "[^\0]{0,9}",
        flag in any::<bool>(),
        number in any::<i32>(),
    ) {
        let (id_bytes, number_bytes) = (id.to_be_bytes(), number.to_be_bytes());
        let mut values = vec![Datum::Null; postgres::TYPES];
        let flag_byte = [u8::from(flag)];
        values[0] = Datum::Binary(&flag_byte);
        values[2] = Datum::Binary(&number_bytes);
        values[3] = Datum::Binary(&id_bytes);
        values[7] = Datum::Binary(text.as_bytes());
        let insert = change(b'I', postgres::TABLES[1], &[(b'N', row(&values))]);
        let mut stream = Vec::new();
        for message in [relation_u(), insert] {
            stream.extend(server_message(b'd', &[&[b'w'; 25], &message[..]].concat()));
        }
        let (update, understood) = postgres::change_stream(&stream, 11);
        prop_assert!(understood);
        let [RowOp::Put { row, before: None }] = &update.tables[0].ops[..] else {
            panic!("one new row: {update:?}");
        };
        prop_assert_eq!(&row[0], &Value::Bool(flag));
        prop_assert_eq!(&row[2], &Value::Int(number.into()));
        prop_assert_eq!(&row[3], &Value::Int(id));
        prop_assert_eq!(&row[7], &Value::Text(text));
    }
}

/// How many variants an enumeration has. An encoding begins with the variant's number, and zeros go on
/// with every one that there is.
fn variants<T: DeserializeOwned>() -> u8 {
    let mut bytes = [0; 512];
    let exists = |variant: &u8| {
        bytes[0] = *variant;
        matches!(
            decode::<T>(&bytes),
            Ok(_) | Err(DecodeError::TrailingBytes(_))
        )
    };
    (0..100).take_while(exists).count() as u8
}

fn generated<S: Strategy>(strategy: &S) -> BTreeSet<u8>
where
    S::Value: Serialize,
{
    let messages = examples(strategy, 300);
    messages.iter().map(|message| encode(message)[0]).collect()
}

#[test]
fn group_messages_of_every_variant_are_generated() {
    let hint = "a variant is missing in tests/fuzz/src/strategies/group.rs";
    let all = |count: u8| (0..count).collect::<BTreeSet<u8>>();
    let group = generated(&group::group_message());
    assert_eq!(group, all(variants::<OrderedMessage>()), "{hint}");
    let peer = generated(&group::peer_message());
    assert_eq!(peer, all(variants::<PeerMessage>()), "{hint}");
}
