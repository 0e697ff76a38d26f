//! Holds what clients received and what was agreed on against what a trusted replica answered.

use crate::replica::Executed;
use spare_client::pages::RecordedPage;
use spare_protocol::channel::Outcome;
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::{Class, Hash};
use spare_store::LogRecord;

/// How many bytes around the first difference of two bodies are shown.
const CONTEXT_BYTES: usize = 60;

/// Whether the update is the one that was agreed on; if not, how it differs.
pub(crate) fn update_difference(record: &LogRecord, executed: &Executed) -> Option<String> {
    let found = Hash::of(&executed.update);
    (found != record.update_hash).then(|| {
        format!(
            "the agreed update has the hash {}, the replica's ({} bytes) {}",
            record.update_hash.short(),
            executed.update.len(),
            found.short()
        )
    })
}

/// Whether a page is the one that the replica answered with; if not, how it differs.
pub(crate) fn page_difference(
    record: &LogRecord,
    page: &RecordedPage,
    executed: &Executed,
) -> Option<String> {
    let logged = logged_request(record);
    if page.request != logged {
        return Some(format!(
            "the client asked {}, but the log has {logged}",
            page.request
        ));
    }
    let reply: HttpReply = match &executed.outcome {
        Outcome::WriteInRead => return Some("the replica refused to write in a read".to_owned()),
        Outcome::Reply(bytes) => match spare_protocol::decode(bytes) {
            Ok(reply) => reply,
            Err(e) => return Some(format!("the replica's reply is not HTTP: {e}")),
        },
    };
    reply_difference(page, &reply)
}

fn reply_difference(page: &RecordedPage, reply: &HttpReply) -> Option<String> {
    if page.status != reply.status {
        return Some(format!(
            "status {} instead of {}",
            page.status, reply.status
        ));
    }
    let content_type = reply.header("content-type").unwrap_or_default();
    if page.content_type != content_type {
        return Some(format!(
            "content type {} instead of {}",
            String::from_utf8_lossy(&page.content_type),
            String::from_utf8_lossy(content_type)
        ));
    }
    body_difference(&page.body, &reply.body)
}

fn body_difference(received: &[u8], right: &[u8]) -> Option<String> {
    if received == right {
        return None;
    }
    let same = received
        .iter()
        .zip(right)
        .take_while(|(a, b)| a == b)
        .count();
    let around = |bytes: &[u8]| {
        let start = same.saturating_sub(CONTEXT_BYTES).min(bytes.len());
        let end = (same + CONTEXT_BYTES).min(bytes.len());
        String::from_utf8_lossy(&bytes[start..end]).into_owned()
    };
    Some(format!(
        "the bodies ({} and {} bytes) differ from byte {same} on:\n      received {:?}\n      right    {:?}",
        received.len(),
        right.len(),
        around(received),
        around(right)
    ))
}

/// A record's request in one line.
pub(crate) fn logged_request(record: &LogRecord) -> String {
    if record.class == Class::Scrub {
        return "scrub".to_owned();
    }
    match spare_protocol::decode::<HttpRequest>(&record.request) {
        Ok(request) => format!("{} {}", request.method, request.target),
        Err(e) => format!("something that is not HTTP ({e})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use spare_protocol::Position;

    fn record() -> LogRecord {
        let request = HttpRequest {
            method: "GET".into(),
            target: "/item?id=3".into(),
            headers: vec![],
            body: vec![],
        };
        LogRecord {
            position: Position(7),
            class: Class::Read,
            time_us: 1,
            seed: [0; 32],
            request: spare_protocol::encode(&request).into(),
            reply_hash: Hash::default(),
            update_hash: Hash::of(b""),
        }
    }

    fn executed(body: &str) -> Executed {
        let reply = HttpReply {
            status: 200,
            headers: vec![("content-type".into(), b"text/html".to_vec())],
            body: body.as_bytes().to_vec(),
        };
        Executed {
            outcome: Outcome::Reply(spare_protocol::encode(&reply).into()),
            update: Bytes::new(),
        }
    }

    fn page(body: &str) -> RecordedPage {
        RecordedPage {
            position: Some(Position(7)),
            request: "GET /item?id=3".into(),
            status: 200,
            content_type: b"text/html".to_vec(),
            body: body.as_bytes().to_vec(),
        }
    }

    fn difference(page: &RecordedPage) -> Option<String> {
        page_difference(&record(), page, &executed("price 12.50"))
    }

    #[test]
    fn the_same_page_does_not_differ() {
        assert_eq!(difference(&page("price 12.50")), None);
        assert_eq!(update_difference(&record(), &executed("")), None);
    }

    #[test]
    fn a_wrong_price_is_shown_beside_the_right_one() {
        let text = difference(&page("price 11.50")).expect("another price");
        assert!(
            text.contains("price 11.50") && text.contains("price 12.50"),
            "{text}"
        );
        assert!(text.contains("byte 7"), "{text}");
        difference(&page("price")).expect("a page that breaks off");
    }

    #[test]
    fn status_content_type_and_request_count_too() {
        let right = page("price 12.50");
        let status = RecordedPage {
            status: 404,
            ..right.clone()
        };
        let content_type = RecordedPage {
            content_type: vec![],
            ..right.clone()
        };
        let request = RecordedPage {
            request: "GET /item?id=4".into(),
            ..right
        };
        for wrong in [status, content_type, request] {
            assert!(difference(&wrong).is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn another_update_differs() {
        let mut executed = executed("");
        executed.update = Bytes::from_static(b"update");
        assert!(update_difference(&record(), &executed).is_some());
    }
}
