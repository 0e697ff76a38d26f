//! One request as the pages see it: what was asked, the parameters, the agreed time and seed.

use hyper::HeaderMap;

use crate::money::{Money, CENTS_MAX};
use crate::refusal::Refusal;
use crate::time::Moment;
use spare_auction_interactions::Interaction;

/// The header with the agreed time, in microseconds since the Unix epoch.
pub const HEADER_TIME: &str = "spare-time";
/// The header with the agreed seed, 64 hexadecimal digits.
pub const HEADER_SEED: &str = "spare-seed";
/// The header with the class of the request: `read` or `write`.
pub const HEADER_CLASS: &str = "spare-class";
/// The header of a reply by which a request of class read that tried to write is told apart.
pub const HEADER_WRITE_IN_READ: &str = "spare-write-in-read";

/// The most characters that a nickname, a password or another one-line text may have.
pub const LINE_CHARS_MAX: usize = 100;
/// The most characters that a description or a comment may have.
pub const TEXT_CHARS_MAX: usize = 2000;

/// How a request was ordered; fixed before the service sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Runs beside other reads and may not write.
    Read,
    /// Runs alone.
    Write,
}

/// What the replicas agreed on for a request.
#[derive(Clone, Copy, Debug)]
pub struct Agreed {
    /// The time that counts as now.
    pub now: Moment,
    /// The only source of randomness.
    pub seed: [u8; 32],
    /// How the request was ordered.
    pub class: Class,
}

impl Agreed {
    /// Reads the three headers.
    ///
    /// # Errors
    /// Names the first header that is missing or malformed.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Refusal> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let now = text(HEADER_TIME)
            .and_then(|text| text.parse().ok())
            .and_then(Moment::from_us);
        let class = text(HEADER_CLASS).and_then(|text| match text {
            "read" => Some(Class::Read),
            "write" => Some(Class::Write),
            _ => None,
        });
        let seed = text(HEADER_SEED).and_then(seed_from_hex);
        Ok(Self {
            now: now.ok_or_else(|| {
                Refusal::header(HEADER_TIME, "the agreed time, in microseconds since 1970")
            })?,
            seed: seed.ok_or_else(|| {
                Refusal::header(HEADER_SEED, "the agreed seed, 64 hexadecimal digits")
            })?,
            class: class.ok_or_else(|| {
                Refusal::header(HEADER_CLASS, "the class of the request, read or write")
            })?,
        })
    }
}

fn seed_from_hex(text: &str) -> Option<[u8; 32]> {
    Some(*blake3::Hash::from_hex(text).ok()?.as_bytes())
}

/// The parameters of a query or of a form.
#[derive(Debug, Default)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Decodes `application/x-www-form-urlencoded` bytes.
    #[must_use]
    pub fn decode(encoded: &[u8]) -> Self {
        Self(form_urlencoded::parse(encoded).into_owned().collect())
    }

    /// The first value of that name, without space around it; `None` if there is none or if it is
    /// empty, as an unfilled field of a form is.
    fn find(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.trim())
            .filter(|value| !value.is_empty())
    }

    /// A text, or `None` if it was not given.
    ///
    /// # Errors
    /// [`Refusal::bad`] for more than `chars_max` characters and for a zero character, which the
    /// database cannot store.
    pub fn optional_text(&self, name: &str, chars_max: usize) -> Result<Option<&str>, Refusal> {
        match self.find(name) {
            Some(text) if text.contains('\0') || text.chars().nth(chars_max).is_some() => {
                let expected =
                    format!("a text of at most {chars_max} characters, none of them zero");
                Err(Refusal::bad(name, &expected))
            }
            found => Ok(found),
        }
    }

    /// A text of at least one character.
    ///
    /// # Errors
    /// Like [`Parameters::optional_text`], and [`Refusal::missing`].
    pub fn text(&self, name: &str, chars_max: usize) -> Result<&str, Refusal> {
        self.optional_text(name, chars_max)?
            .ok_or_else(|| Refusal::missing(name))
    }

    /// A whole number from `least` to `most`, or `None` if it was not given.
    ///
    /// # Errors
    /// [`Refusal::bad`] for anything else.
    pub fn optional_number(
        &self,
        name: &str,
        least: i64,
        most: i64,
    ) -> Result<Option<i64>, Refusal> {
        let Some(text) = self.find(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ if most == i64::MAX => Err(Refusal::bad(name, "a whole number, 1 or more")),
            _ => {
                let expected = format!("a whole number from {least} to {most}");
                Err(Refusal::bad(name, &expected))
            }
        }
    }

    /// A whole number from `least` to `most`.
    ///
    /// # Errors
    /// Like [`Parameters::optional_number`], and [`Refusal::missing`].
    pub fn number(&self, name: &str, least: i64, most: i64) -> Result<i64, Refusal> {
        self.optional_number(name, least, most)?
            .ok_or_else(|| Refusal::missing(name))
    }

    /// The number of a category, region, item or user.
    ///
    /// # Errors
    /// [`Refusal::missing`] and [`Refusal::bad`].
    pub fn id(&self, name: &str) -> Result<i64, Refusal> {
        self.number(name, 1, i64::MAX)
    }

    /// An amount of money, or `None` if it was not given.
    ///
    /// # Errors
    /// [`Refusal::bad`] for anything else.
    pub fn optional_money(&self, name: &str) -> Result<Option<Money>, Refusal> {
        let Some(text) = self.find(name) else {
            return Ok(None);
        };
        Money::parse(text).map(Some).ok_or_else(|| {
            let most = Money(CENTS_MAX);
            Refusal::bad(name, &format!("an amount like 12 or 12.34, at most {most}"))
        })
    }

    /// An amount of money.
    ///
    /// # Errors
    /// [`Refusal::missing`] and [`Refusal::bad`].
    pub fn money(&self, name: &str) -> Result<Money, Refusal> {
        self.optional_money(name)?
            .ok_or_else(|| Refusal::missing(name))
    }
}

/// One request, as the pages see it.
#[derive(Debug)]
pub struct Request {
    /// The page that is asked for.
    pub interaction: Interaction,
    /// The parameters of the query or the form, not checked yet.
    pub parameters: Parameters,
    /// When, and with which seed.
    pub agreed: Agreed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_those_that_the_shim_adds() {
        use spare_protocol::http;
        assert_eq!(HEADER_TIME, http::HEADER_TIME);
        assert_eq!(HEADER_SEED, http::HEADER_SEED);
        assert_eq!(HEADER_CLASS, http::HEADER_CLASS);
        assert_eq!(HEADER_WRITE_IN_READ, http::HEADER_WRITE_IN_READ);
    }

    #[test]
    fn the_first_value_counts_and_blanks_count_as_missing() {
        let parameters = Parameters::decode(b"a=1&a=2&b=+&c=%C3%BC%26");
        assert_eq!(parameters.text("a", 9).unwrap(), "1");
        assert_eq!(parameters.text("b", 9).unwrap_err().status, 400);
        assert_eq!(parameters.text("c", 9).unwrap(), "ü&");
        assert_eq!(parameters.optional_text("d", 9).unwrap(), None);
    }

    #[test]
    fn long_texts_and_zero_characters_are_refused() {
        let parameters = Parameters::decode("long=äöü&zero=a%00b".as_bytes());
        assert!(parameters.text("long", 3).is_ok());
        assert!(parameters.text("long", 2).is_err());
        assert!(parameters.text("zero", 9).is_err());
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        let parameters = Parameters::decode(b"n=0&m=9223372036854775808&x=1x&y=7");
        for name in ["n", "m", "x", "z"] {
            assert!(parameters.id(name).is_err(), "{name}");
        }
        assert_eq!(parameters.id("y").unwrap(), 7);
    }

    #[test]
    fn each_missing_header_is_named() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (HEADER_TIME, "1".to_owned()),
            (HEADER_SEED, "ab".repeat(32)),
            (HEADER_CLASS, "read".to_owned()),
        ] {
            let refusal = Agreed::from_headers(&headers).unwrap_err();
            assert_eq!(refusal.status, 500);
            assert!(refusal.page().contains(name));
            headers.insert(name, value.parse().unwrap());
        }
        let agreed = Agreed::from_headers(&headers).unwrap();
        assert_eq!(agreed.seed, [0xab; 32]);
        assert_eq!(agreed.class, Class::Read);
    }
}
