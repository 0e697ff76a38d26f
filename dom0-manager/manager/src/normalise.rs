//! What differs between correct replicas is taken out of their replies here, before they are hashed:
//! by the manager, by the service's rules, never by the guest.

use crate::config::Normalise;
use bytes::Bytes;
use regex::bytes::{Captures, Regex, Replacer};
use spare_protocol::http::{is_connection_header, HttpReply};

/// The largest normalised body: the largest that a shim takes from its service. What a rule puts in
/// can be longer than what it takes out, and how often it matches is up to the guest.
const BODY_BYTES_MAX: usize = 16 << 20;

/// A rule that is not usable.
#[derive(Debug, thiserror::Error)]
#[error("normalise.body: the pattern {pattern:?} is no regular expression: {cause}")]
pub(crate) struct RuleError {
    pattern: String,
    cause: regex::Error,
}

/// A reply that is not HTTP.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error(transparent)]
    Encoding(#[from] spare_protocol::DecodeError),
    #[error("status {0}")]
    Status(u16),
    #[error("a header that HTTP does not allow")]
    Header,
}

struct BodyRule {
    content_type: String,
    pattern: Regex,
    replacement: Vec<u8>,
}

/// A service's rules, ready to use.
pub(crate) struct Normaliser {
    drop_headers: Vec<String>,
    body: Vec<BodyRule>,
}

impl Normaliser {
    pub(crate) fn new(rules: &Normalise) -> Result<Normaliser, RuleError> {
        let lower = |name: &String| name.to_ascii_lowercase();
        let body = rules.body.iter().map(|rule| {
            let pattern = Regex::new(&rule.pattern).map_err(|cause| RuleError {
                pattern: rule.pattern.clone(),
                cause,
            })?;
            Ok(BodyRule {
                content_type: rule.content_type.to_ascii_lowercase(),
                pattern,
                replacement: rule.replacement.clone().into_bytes(),
            })
        });
        Ok(Normaliser {
            drop_headers: rules.drop_headers.iter().map(lower).collect(),
            body: body.collect::<Result<_, RuleError>>()?,
        })
    }

    /// The normalised form of an encoded reply of a guest.
    pub(crate) fn normalise(&self, reply: &[u8]) -> Result<Bytes, ReplyError> {
        let mut reply: HttpReply = spare_protocol::decode(reply)?;
        if !(200..600).contains(&reply.status) {
            return Err(ReplyError::Status(reply.status));
        }
        for (name, value) in &reply.headers {
            let valid = hyper::header::HeaderName::from_lowercase(name.as_bytes()).is_ok()
                && hyper::header::HeaderValue::from_bytes(value).is_ok();
            if !valid {
                return Err(ReplyError::Header);
            }
        }
        reply.headers.retain(|(name, _)| {
            !is_connection_header(name)
                && !name.starts_with("spare-")
                && !self.drop_headers.contains(name)
        });
        // The order of headers with different names carries no meaning; of equal ones it does.
        reply.headers.sort_by(|a, b| a.0.cmp(&b.0));
        if self.normalise_body(&mut reply).is_err() {
            // Every replica with the same page gets the same answer: no correct one looks faulty.
            reply = HttpReply {
                status: 502,
                headers: vec![("content-type".into(), b"text/plain".to_vec())],
                body: b"The normalised page is larger than 16 MiB.\n".to_vec(),
            };
        }
        Ok(Bytes::from(spare_protocol::encode(&reply)))
    }

    fn normalise_body(&self, reply: &mut HttpReply) -> Result<(), TooLarge> {
        if self.body.is_empty() {
            return Ok(());
        }
        let content_type = reply.header("content-type").unwrap_or_default();
        let content_type = String::from_utf8_lossy(content_type).to_ascii_lowercase();
        for rule in &self.body {
            if content_type.starts_with(&rule.content_type) {
                reply.body = rule.replace_all(&reply.body)?;
            }
        }
        Ok(())
    }
}

/// A body became larger than [`BODY_BYTES_MAX`].
struct TooLarge;

impl BodyRule {
    fn replace_all(&self, body: &[u8]) -> Result<Vec<u8>, TooLarge> {
        let mut bounded = Bounded {
            replacement: &self.replacement,
            exceeded: false,
        };
        let replaced = self
            .pattern
            .replace_all(body, bounded.by_ref())
            .into_owned();
        if bounded.exceeded || replaced.len() > BODY_BYTES_MAX {
            return Err(TooLarge);
        }
        Ok(replaced)
    }
}

/// Puts nothing more in when the result is too large.
struct Bounded<'a> {
    replacement: &'a [u8],
    exceeded: bool,
}

impl Replacer for Bounded<'_> {
    fn replace_append(&mut self, found: &Captures<'_>, result: &mut Vec<u8>) {
        self.exceeded |= result.len() > BODY_BYTES_MAX;
        if !self.exceeded {
            found.expand(self.replacement, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(headers: &[(&str, &str)], body: &str) -> Vec<u8> {
        let header = |(n, v): &(&str, &str)| ((*n).to_owned(), v.as_bytes().to_vec());
        spare_protocol::encode(&HttpReply {
            status: 200,
            headers: headers.iter().map(header).collect(),
            body: body.as_bytes().to_vec(),
        })
    }

    #[test]
    fn replies_that_differ_only_where_the_rules_say_become_equal() {
        let rules = Normalise {
            body: vec![crate::config::BodyRule {
                content_type: "text/html".into(),
                pattern: "took [0-9]+ ms".into(),
                replacement: "took some ms".into(),
            }],
            ..Normalise::default()
        };
        let normaliser = Normaliser::new(&rules).expect("valid");
        let one = reply(
            &[("date", "Mon"), ("content-type", "text/html"), ("x", "1")],
            "page, took 5 ms",
        );
        let two = reply(
            &[("x", "1"), ("content-type", "text/html"), ("date", "Tue")],
            "page, took 77 ms",
        );
        let normal = |r: &[u8]| normaliser.normalise(r).expect("http");
        assert_eq!(normal(&one), normal(&two));
        let other = reply(
            &[("content-type", "text/html"), ("x", "2")],
            "page, took 5 ms",
        );
        assert_ne!(normal(&one), normal(&other));
    }

    #[test]
    fn a_page_that_the_rules_make_too_large_becomes_the_same_error_for_every_replica() {
        let rules = Normalise {
            body: vec![crate::config::BodyRule {
                content_type: String::new(),
                pattern: "x".into(),
                replacement: "y".repeat(1000),
            }],
            ..Normalise::default()
        };
        let normaliser = Normaliser::new(&rules).expect("valid");
        let normal = |body: &str| {
            let bytes = normaliser.normalise(&reply(&[], body)).expect("http");
            spare_protocol::decode::<HttpReply>(&bytes).expect("a reply")
        };
        assert_eq!(normal(&"x".repeat(1000)).body.len(), 1_000_000);
        assert_eq!(normal(&"x".repeat(1 << 20)).status, 502);
    }

    #[test]
    fn headers_that_could_split_a_reply_are_refused() {
        let normaliser = Normaliser::new(&Normalise::default()).expect("valid");
        assert!(normaliser
            .normalise(&reply(&[("x", "a\r\nevil: 1")], ""))
            .is_err());
        assert!(normaliser.normalise(&reply(&[("X y", "a")], "")).is_err());
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let rules = Normalise {
            body: vec![crate::config::BodyRule {
                content_type: String::new(),
                pattern: "(".into(),
                replacement: String::new(),
            }],
            ..Normalise::default()
        };
        assert!(Normaliser::new(&rules)
            .err()
            .is_some_and(|e| e.to_string().contains("\"(\"")));
    }
}
