//! `Idempotency-Key`: what a retry has in common with the request that it repeats.

use super::addresses;
use spare_protocol::http::HttpRequest;
use spare_protocol::{Class, Hash};
use std::net::IpAddr;

/// The header's name.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What a retry of this request has in common with it: the client's `Idempotency-Key`, within the
/// scope of its credentials (docs/protocol.md#exactly-once). A read needs none.
pub(crate) fn key(class: Class, http: &HttpRequest) -> Option<Hash> {
    if class == Class::Read {
        return None;
    }
    let values = |wanted: &str| {
        let all = http.headers.iter().filter(|(name, _)| name == wanted);
        all.map(|(_, value)| value.as_slice()).collect::<Vec<_>>()
    };
    let key = *values(IDEMPOTENCY_KEY).first()?;
    let scope = ["authorization", "cookie"].map(values);
    Some(Hash::of(&spare_protocol::encode(&(scope, key))))
}

/// Whose key it is, of those so many are remembered: of whoever calls from there, since credentials can be made up.
pub(crate) fn key_owner(address: IpAddr) -> u64 {
    let client = addresses::client(address).to_string();
    let hash = Hash::of(client.as_bytes());
    hash.0.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &str)]) -> Option<Hash> {
        let header = |(n, v): &(&str, &str)| ((*n).to_owned(), v.as_bytes().to_vec());
        let http = HttpRequest {
            method: "POST".to_owned(),
            target: "/bid".to_owned(),
            headers: headers.iter().map(header).collect(),
            body: Vec::new(),
        };
        assert_eq!(key(Class::Read, &http), None);
        key(Class::Write, &http)
    }

    #[test]
    fn the_same_key_of_another_client_is_another_key() {
        let mine = of(&[(IDEMPOTENCY_KEY, "1"), ("cookie", "me")]);
        assert!(mine.is_some());
        assert_eq!(
            mine,
            of(&[("host", "h2"), ("cookie", "me"), (IDEMPOTENCY_KEY, "1")])
        );
        for other in [
            vec![(IDEMPOTENCY_KEY, "1")],
            vec![(IDEMPOTENCY_KEY, "1"), ("cookie", "you")],
            vec![(IDEMPOTENCY_KEY, "1"), ("authorization", "me")],
            vec![
                (IDEMPOTENCY_KEY, "1"),
                ("cookie", "me"),
                ("authorization", "x"),
            ],
            vec![
                (IDEMPOTENCY_KEY, "1"),
                ("cookie", "me"),
                ("cookie", "session=2"),
            ],
            vec![(IDEMPOTENCY_KEY, "2"), ("cookie", "me")],
        ] {
            assert_ne!(mine, of(&other), "{other:?}");
        }
        assert_eq!(of(&[("cookie", "me")]), None);
    }
}
