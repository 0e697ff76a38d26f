//! Versions of what managers tell each other: members that run different builds speak one that all of them know
//! (`docs/protocol.md#versions`).
//!
//! A value says itself in which version it is encoded, so it is understood also if the group goes on to another one
//! while it is under way:
//!
//! ```text
//! version 8:   the value                      managers of before this module know no other, and no header
//! later ones:  0x80 0x00, version, value      no integer's shortest encoding begins with 0x80 0x00
//! ```
//!
//! What is new in a version is said where it is declared, and nowhere else:
//! - a field: `#[serde(with = "spare_protocol::versions::since_9")]`. An earlier encoding leaves it out, and has its
//!   default for it: before the version is active it must have no other value where that matters;
//! - a message: its line in [`crate::messages::OrderedMessage::since`].

use crate::codec::{decode, encode_into, DecodeError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::Cell;

/// The layout without a header. What is said before a version is agreed on is encoded so for ever, whether this
/// version is spoken or not: its fields never change.
pub const FIRST_VERSION: u16 = 8;
/// The newest that this build speaks.
pub const PROTOCOL_VERSION: u16 = 9;

const MARK: [u8; 2] = [0x80, 0x00];
const HEADER_BYTES: usize = MARK.len() + 2;

/// The versions that a manager speaks: these two and those in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub lowest: u16,
    /// The newest.
    pub highest: u16,
}

impl VersionRange {
    /// Those that this build speaks. Not version 8: with it decisions are made by other rules, and managers of one group
    /// would draw different conclusions from the same messages.
    pub const OF_THIS_BUILD: VersionRange = VersionRange {
        lowest: 9,
        highest: PROTOCOL_VERSION,
    };

    /// No version but this one.
    #[must_use]
    pub fn only(version: u16) -> VersionRange {
        VersionRange {
            lowest: version,
            highest: version,
        }
    }

    /// Whether this version is among them.
    #[must_use]
    pub fn contains(self, version: u16) -> bool {
        (self.lowest..=self.highest).contains(&version)
    }

    /// The newest version that is in all of these; none if there is no such.
    pub fn newest_of_all(all: impl IntoIterator<Item = VersionRange>) -> Option<u16> {
        let both = |a: VersionRange, b: VersionRange| VersionRange {
            lowest: a.lowest.max(b.lowest),
            highest: a.highest.min(b.highest),
        };
        let common = all.into_iter().reduce(both)?;
        common.contains(common.highest).then_some(common.highest)
    }
}

impl std::fmt::Display for VersionRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let VersionRange { lowest, highest } = self;
        if lowest == highest {
            write!(f, "version {lowest}")
        } else {
            write!(f, "versions {lowest} to {highest}")
        }
    }
}

thread_local! {
    /// The version in which this thread encodes or decodes a value just now. Serde hands nothing down to the
    /// fields of a value, which is why it stands here.
    static LAYOUT: Cell<u16> = const { Cell::new(PROTOCOL_VERSION) };
}

/// Encodes or decodes in a version until it is dropped.
struct InLayout {
    before: u16,
}

impl InLayout {
    fn of(version: u16) -> InLayout {
        InLayout {
            before: LAYOUT.replace(version),
        }
    }
}

impl Drop for InLayout {
    fn drop(&mut self) {
        LAYOUT.set(self.before);
    }
}

/// The encoding of `value` in a version.
pub fn encode_as<T: Serialize + ?Sized>(version: u16, value: &T) -> Vec<u8> {
    encode_as_into(Vec::new(), version, value)
}

/// Appends the encoding of `value` in a version.
pub(crate) fn encode_as_into<T: Serialize + ?Sized>(
    mut bytes: Vec<u8>,
    version: u16,
    value: &T,
) -> Vec<u8> {
    if version != FIRST_VERSION {
        bytes.extend_from_slice(&MARK);
        bytes.extend_from_slice(&version.to_le_bytes());
    }
    let _layout = InLayout::of(version);
    encode_into(bytes, value)
}

/// The value that `bytes` encode, in whatever version.
///
/// # Errors
/// As [`crate::decode`], and when the version is not known here.
pub fn decode_any<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_with(bytes, |content| decode(content))
}

/// Takes the header off, and has the rest decoded in the version that it names.
pub(crate) fn decode_with<'de, T>(
    bytes: &'de [u8],
    decode: impl FnOnce(&'de [u8]) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let (version, content) = match bytes.split_first_chunk::<HEADER_BYTES>() {
        Some(([0x80, 0x00, low, high], content)) => (u16::from_le_bytes([*low, *high]), content),
        _ => (FIRST_VERSION, bytes),
    };
    if !(FIRST_VERSION..=PROTOCOL_VERSION).contains(&version) {
        return Err(DecodeError::Version(version));
    }
    let _layout = InLayout::of(version);
    decode(content)
}

fn put_since<T: Serialize, S: Serializer>(
    since: u16,
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if LAYOUT.get() < since {
        // Postcard writes nothing for it.
        serializer.serialize_unit()
    } else {
        value.serialize(serializer)
    }
}

fn take_since<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    since: u16,
    deserializer: D,
) -> Result<T, D::Error> {
    if LAYOUT.get() < since {
        Ok(T::default())
    } else {
        T::deserialize(deserializer)
    }
}

/// For a field's `#[serde(with = …)]`: it is there since version 9.
pub mod since_9 {
    use super::{put_since, take_since};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes it, unless the encoding is of an earlier version.
    ///
    /// # Errors
    /// Those of `serializer`.
    pub fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        put_since(9, value, serializer)
    }

    /// Reads it; its default if the encoding is of an earlier version.
    ///
    /// # Errors
    /// Those of `deserializer`.
    pub fn deserialize<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        take_since(9, deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A value of version 8, and what became of it in version 9.
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Old {
        first: u64,
        last: String,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct New {
        first: u64,
        #[serde(with = "since_9")]
        middle: Vec<u16>,
        last: String,
    }

    fn news() -> impl Strategy<Value = New> {
        let middle = proptest::collection::vec(any::<u16>(), 0..4);
        (any::<u64>(), middle, ".{0,9}").prop_map(|(first, middle, last)| New {
            first,
            middle,
            last,
        })
    }

    proptest! {
        #[test]
        fn a_value_comes_back_in_the_newest_version(value in news()) {
            let bytes = encode_as(PROTOCOL_VERSION, &value);
            prop_assert_eq!(decode_any::<New>(&bytes), Ok(value));
        }

        #[test]
        fn the_first_version_is_what_older_builds_write_and_read(value in news()) {
            let New { first, last, .. } = value.clone();
            let old = Old { first, last };
            let bytes = encode_as(FIRST_VERSION, &value);
            prop_assert_eq!(crate::decode::<Old>(&bytes), Ok(old.clone()));
            let without = New { middle: Vec::new(), ..value };
            prop_assert_eq!(decode_any::<New>(&crate::encode(&old)), Ok(without));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            version in proptest::option::of(7u16..11),
        ) {
            let mut marked = Vec::new();
            if let Some(version) = version {
                marked.extend(MARK);
                marked.extend(version.to_le_bytes());
            }
            marked.extend(bytes);
            let _ = decode_any::<New>(&marked);
            prop_assert_eq!(LAYOUT.get(), PROTOCOL_VERSION, "and leave no layout behind");
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_named() {
        let bytes = encode_as(PROTOCOL_VERSION + 1, &7u64);
        let found = decode_any::<u64>(&bytes);
        assert_eq!(found, Err(DecodeError::Version(PROTOCOL_VERSION + 1)));
    }

    #[test]
    fn the_newest_version_of_all_is_one_that_each_speaks() {
        let range = |lowest, highest| VersionRange { lowest, highest };
        let newest = |all: &[VersionRange]| VersionRange::newest_of_all(all.iter().copied());
        assert_eq!(newest(&[range(8, 9), range(8, 8)]), Some(8));
        assert_eq!(newest(&[range(8, 9), range(9, 11), range(8, 10)]), Some(9));
        assert_eq!(newest(&[range(8, 9), range(10, 11)]), None);
        assert_eq!(newest(&[]), None);
    }
}
