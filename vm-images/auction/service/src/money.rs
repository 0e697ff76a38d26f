//! Amounts of money: whole cents inside, decimal text outside.

use std::fmt;

/// The largest amount that a form may name: 1,000,000.00.
pub const CENTS_MAX: i64 = 100_000_000;

/// An amount of money in whole cents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(pub i64);

impl Money {
    /// Reads `12`, `12.5` or `12.34`; `None` for anything else and for more than [`CENTS_MAX`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole, 7) || !digits(fraction, 2) {
            return None;
        }
        let scale = if fraction.len() == 1 { 10 } else { 1 };
        let cents = whole.parse::<i64>().ok()? * 100 + fraction.parse::<i64>().ok()? * scale;
        (cents <= CENTS_MAX).then_some(Self(cents))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let cents = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_amounts_are_read() {
        for (text, cents) in [
            ("12", 1200),
            ("12.5", 1250),
            ("12.34", 1234),
            ("0.01", 1),
            ("1000000", CENTS_MAX),
        ] {
            assert_eq!(Money::parse(text), Some(Money(cents)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_amount() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1.234",
            "1000000.01",
            "99999999",
            "1,5",
            " 1",
        ] {
            assert_eq!(Money::parse(text), None, "{text}");
        }
    }

    #[test]
    fn amounts_have_two_decimals() {
        assert_eq!(Money(1205).to_string(), "12.05");
        assert_eq!(Money(-7).to_string(), "-0.07");
    }
}
