//! Decoders of the command `spare`: the manager's answers, records of pages, pages, addresses.

use crate::meter::{within, Limit, KIB, MIB};
use crate::protocol::RECORDS;
use crate::script::{parts, records};
use bytes::Bytes;
use spare_client::decoders::{self, Answer, CALLS};
use spare_client::http::Address;
use spare_client::pages::{Pages, RecordedPage};
use spare_protocol::{decode, encode, Class, Hash, Position};
use spare_store::LogRecord;
use std::io::Cursor;
use std::path::Path;

/// Of JSON: the densest is a list of pairs of empty texts.
pub const ANSWER: Limit = Limit::new(24, 4 * KIB);
/// Of HTTP: the connection's buffers, and a body that is put together of its pieces.
pub const SERVER_REPLY: Limit = Limit::new(8, MIB);
/// Of a page: its text is borrowed; a row of four bytes takes 56, three times that while it moves.
pub const PAGE: Limit = Limit::new(64, 16 * KIB);
/// Of an address: the address again, its words, and an error that quotes it.
pub const ADDRESS: Limit = Limit::new(32, KIB);

/// The manager's answer to the call that the first byte says, and what an operator reads of it.
pub fn admin_answer(bytes: &[u8]) {
    let Some((call, body)) = bytes.split_first() else {
        return;
    };
    let call = usize::from(*call) % CALLS;
    let Some(answer) = within(ANSWER, body.len(), || Answer::parse(call, body)) else {
        return;
    };
    let text = answer.render();
    let commands = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(commands), "{text:?}");
    let json = answer.to_json().unwrap_or_else(|e| panic!("{e}"));
    let Some(again) = Answer::parse(call, &json) else {
        panic!("an answer that was read is refused when it is written again");
    };
    // JSON's decimal numbers are read to the nearest but one.
    assert!(again == answer || matches!(answer, Answer::Faults(_)));
}

/// What a server answers to a client of the command.
pub fn server_reply(bytes: &[u8]) {
    let reply = within(SERVER_REPLY, bytes.len(), || decoders::server_reply(bytes));
    if let Some((status, body)) = reply {
        assert!((100..1000).contains(&status) && body.len() <= bytes.len());
    }
}

/// What a record of pages begins with.
pub const PAGES_HEAD: &[u8] = b"SPAREPGS\x01\0\0\0";

/// A record of pages: raw, and as a script of records.
pub fn pages_file(bytes: &[u8]) {
    let whole = records(PAGES_HEAD, parts(bytes).map(|(_, part)| part));
    for file in [bytes, whole.as_slice()] {
        let path = Path::new("pages");
        let pages = within(RECORDS, file.len(), || Pages::new(path, Cursor::new(file)));
        let Ok(mut pages) = pages else { continue };
        assert!(pages.ordered() <= pages.total() && pages.total() <= file.len() as u64);
        let positions: Vec<Position> = pages.positions_above(Position(0)).collect();
        for position in positions {
            let read = pages.at(position);
            let read = read.unwrap_or_else(|e| panic!("{e}"));
            assert!(!read.is_empty());
            assert!(read.iter().all(|page| page.position == Some(position)));
        }
    }
}

/// A script of a logged request, a recorded page and a replica's reply: how they differ.
pub fn replay_difference(bytes: &[u8]) {
    let mut parts = parts(bytes).map(|(_, part)| part);
    let mut next = || parts.next().unwrap_or_default();
    let record = LogRecord {
        position: Position(1),
        class: Class::Read,
        time_us: 0,
        seed: [0; 32],
        request: Bytes::copy_from_slice(next()),
        reply_hash: Hash::default(),
        update_hash: Hash::default(),
    };
    let page: Result<RecordedPage, _> = within(RECORDS, bytes.len(), || decode(next()));
    let Ok(page) = page else { return };
    assert_eq!(decode(&encode(&page)).as_ref(), Ok(&page));
    let reply = Bytes::copy_from_slice(next());
    if let Some(text) = spare_replay::decoders::difference(&record, &page, reply) {
        assert!(!text.is_empty());
    }
}

/// A page of the auction, as an emulated client checks it.
pub fn auction_page(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(bytes);
    within(PAGE, bytes.len(), || {
        spare_auction_clients::decoders::auction_page(200, body)
    });
    let main = b"<title>x \xc2\xb7 Auction</title><main data-page=\"AboutMe\" ".as_slice();
    let whole = [main, bytes, b"</html>"].concat();
    for status in [200, 409] {
        // Whether it is a page does not matter here, only that it is read.
        let _ =
            spare_auction_clients::decoders::auction_page(status, Bytes::copy_from_slice(&whole));
    }
}

/// Addresses that an operator writes: a gateway's URL, a service's address, a request of the warm-up.
pub fn addresses(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    within(ADDRESS, text.len(), || {
        if let Ok(Address::Tcp(authority)) = Address::from_url(&text) {
            assert!(authority.contains(':') && !authority.contains('/'));
        }
        let address = text.parse::<spare_shim::config::Address>();
        assert!(address.is_err() || text.contains(':'));
        let warm_up = spare_shim::config::WarmUp::try_from(text.clone().into_owned());
        assert!(warm_up.is_err() || warm_up.is_ok_and(|w| w.target.starts_with('/')));
    });
}
