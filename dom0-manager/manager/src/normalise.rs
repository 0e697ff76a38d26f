//! What differs between correct replicas is taken out of their replies here, before they are hashed:
//! by the manager, by the service's rules, never by the guest.

use crate::config::Normalise;
use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use regex::bytes::{Captures, Regex, Replacer};
use spare_protocol::http::{is_connection_header, HttpReply};
use spare_protocol::DecodeError;

/// The largest normalised body: the largest that a shim takes from its service. What a rule puts in
/// can be longer than what it takes out, and how often it matches is up to the guest.
const BODY_BYTES_MAX: usize = 16 << 20;
/// The longest headers together: what a shim reads of its service's.
const HEAD_BYTES_MAX: usize = 256 << 10;
/// So much of a bad header's name is shown.
const NAME_SHOWN_MAX: usize = 40;

/// A rule that is not usable.
#[derive(Debug, thiserror::Error)]
#[error("normalise.body: the pattern {pattern:?} is no regular expression: {cause}")]
pub(crate) struct RuleError {
    pattern: String,
    cause: regex::Error,
}

/// Why a service's reply cannot be passed on. Correct replicas have the same reply, so each says the same.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("its status is {0}, and only 200 to 599 are a reply's")]
    Status(u16),
    #[error("its header {0:?} is none that HTTP allows")]
    Header(String),
    #[error("its headers are longer than 256 KiB")]
    Head,
    #[error("its body is larger than 16 MiB")]
    Body,
    #[error("the normalised page is larger than 16 MiB")]
    NormalisedBody,
}

impl Unfit {
    /// What the client gets instead. It is voted on like any reply.
    fn reply(&self) -> HttpReply {
        let text = format!("The service's reply cannot be passed on: {self}.\n");
        HttpReply {
            status: 502,
            headers: vec![("content-type".into(), b"text/plain".to_vec())],
            body: text.into_bytes(),
        }
    }
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

    /// The normalised form of an encoded reply of a guest. A reply that HTTP cannot carry becomes an error that is
    /// agreed on like any other reply: no correct replica looks faulty for what its service said.
    ///
    /// # Errors
    /// When the guest's bytes are no reply: no correct shim sends such.
    pub(crate) fn normalise(&self, reply: &[u8]) -> Result<Bytes, DecodeError> {
        let mut reply: HttpReply = spare_protocol::decode(reply)?;
        if let Err(unfit) = self.normalise_reply(&mut reply) {
            reply = unfit.reply();
        }
        Ok(Bytes::from(spare_protocol::encode(&reply)))
    }

    fn normalise_reply(&self, reply: &mut HttpReply) -> Result<(), Unfit> {
        check(reply)?;
        reply.headers.retain(|(name, _)| {
            !is_connection_header(name)
                && !name.starts_with("spare-")
                && !self.drop_headers.contains(name)
        });
        // The order of headers with different names carries no meaning; of equal ones it does.
        reply.headers.sort_by(|a, b| a.0.cmp(&b.0));
        self.normalise_body(reply)
    }

    fn normalise_body(&self, reply: &mut HttpReply) -> Result<(), Unfit> {
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

/// Whether it can be passed on as it is.
fn check(reply: &HttpReply) -> Result<(), Unfit> {
    if !(200..600).contains(&reply.status) {
        return Err(Unfit::Status(reply.status));
    }
    let mut bytes = 0;
    for (name, value) in &reply.headers {
        bytes += name.len() + value.len();
        if HeaderName::from_lowercase(name.as_bytes()).is_err()
            || HeaderValue::from_bytes(value).is_err()
        {
            let shown = name.chars().take(NAME_SHOWN_MAX).collect();
            return Err(Unfit::Header(shown));
        }
    }
    if bytes > HEAD_BYTES_MAX {
        return Err(Unfit::Head);
    }
    if reply.body.len() > BODY_BYTES_MAX {
        return Err(Unfit::Body);
    }
    Ok(())
}

impl BodyRule {
    fn replace_all(&self, body: &[u8]) -> Result<Vec<u8>, Unfit> {
        let mut bounded = Bounded {
            replacement: &self.replacement,
            exceeded: false,
        };
        let replaced = self
            .pattern
            .replace_all(body, bounded.by_ref())
            .into_owned();
        if bounded.exceeded || replaced.len() > BODY_BYTES_MAX {
            return Err(Unfit::NormalisedBody);
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
    fn a_reply_that_cannot_be_passed_on_becomes_the_same_error_for_every_replica() {
        let normaliser = Normaliser::new(&Normalise::default()).expect("valid");
        let answer = |reply: &HttpReply| {
            let bytes = normaliser.normalise(&spare_protocol::encode(reply));
            spare_protocol::decode::<HttpReply>(&bytes.expect("a reply")).expect("a reply")
        };
        let good = HttpReply {
            status: 299,
            headers: vec![("x".into(), vec![b'y'; HEAD_BYTES_MAX - 1])],
            body: b"page".to_vec(),
        };
        assert_eq!(answer(&good), good);
        let header = |name: &str, value: &str| HttpReply {
            headers: vec![(name.into(), value.into())],
            ..good.clone()
        };
        let status = |status| HttpReply {
            status,
            ..good.clone()
        };
        let (mut head, mut body) = (good.clone(), good.clone());
        head.headers[0].1.push(b'y');
        body.body = vec![0; BODY_BYTES_MAX + 1];
        for (unfit, named) in [
            (status(101), "101"),
            (status(700), "700"),
            (header("x", "a\r\nevil: 1"), "\"x\""),
            (header("X y", "a"), "X y"),
            (head, "256 KiB"),
            (body, "16 MiB"),
        ] {
            let answer = answer(&unfit);
            let text = String::from_utf8(answer.body).expect("text");
            assert_eq!(answer.status, 502, "{text}");
            assert!(text.contains(named), "{text}");
            assert_eq!(answer.headers.len(), 1);
        }
        assert!(normaliser.normalise(b"no reply").is_err());
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
