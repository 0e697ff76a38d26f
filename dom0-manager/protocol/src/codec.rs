//! The one encoding of all messages: postcard, with nothing left over.

use postcard::ser_flavors::Flavor;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;

/// Bytes that are not an encoding of the expected type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end early, or hold a value that the type does not have.
    #[error("malformed encoding: {0}")]
    Malformed(String),
    /// A complete value is followed by more bytes.
    #[error("{0} bytes left over after the value")]
    TrailingBytes(usize),
    /// The value is well formed but breaks a rule of its type.
    #[error("not canonical: {0}")]
    NotCanonical(&'static str),
    /// The value is of a version of the encoding that this build does not know.
    #[error("it is in version {0} of the group protocol, which this build does not know: upgrade this host")]
    Version(u16),
}

/// The encoding of `value`. The same value always gives the same bytes.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    encode_into(Vec::new(), value)
}

/// Appends the encoding of `value`.
pub(crate) fn encode_into<T: Serialize + ?Sized>(bytes: Vec<u8>, value: &T) -> Vec<u8> {
    // Serialising into a growing vector fails only for types that refuse to be serialised
    // (a map of unknown length); none of ours does, which the round-trip tests show.
    postcard::serialize_with_flavor(value, Growing(bytes)).unwrap_or_default()
}

/// How many bytes the encoding of `value` has. Takes no memory.
pub fn encoded_length<T: Serialize + ?Sized>(value: &T) -> usize {
    // As in [`encode_into`], none of our types refuses.
    postcard::serialize_with_flavor(value, Counting(0)).unwrap_or_default()
}

/// Counts what would be appended.
struct Counting(usize);

impl Flavor for Counting {
    type Output = usize;

    fn try_push(&mut self, _: u8) -> postcard::Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0 += bytes.len();
        Ok(())
    }

    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.0)
    }
}

/// A vector that is appended to. (Postcard's own begins empty, or takes bytes one by one.)
struct Growing(Vec<u8>);

impl Flavor for Growing {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// The value that `bytes` encode.
///
/// # Errors
/// When the bytes are not exactly one encoded value.
pub fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DecodeError> {
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(DecodeError::TrailingBytes(rest.len()))
    }
}

/// Reads a list of at most `MAX` elements, for a field's `deserialize_with`. A longer one is refused
/// before memory is taken for it: an element in memory can be many times as large as its encoding.
pub(crate) fn at_most<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(AtMost::<T, MAX>(PhantomData))
}

struct AtMost<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for AtMost<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(element);
        }
        Ok(list)
    }
}

/// Reads bytes in one piece, for a field's `deserialize_with`. The encoding is that of a list of
/// bytes, which serde alone would read one by one into a vector that it lets grow.
pub(crate) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_bytes(Whole)
}

struct Whole;

impl Visitor<'_> for Whole {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Bounded {
        #[serde(deserialize_with = "at_most::<_, _, 2>")]
        list: Vec<Vec<u8>>,
        #[serde(deserialize_with = "bytes")]
        bytes: Vec<u8>,
    }

    fn bounded(count: usize) -> Bounded {
        Bounded {
            list: vec![Vec::new(); count],
            bytes: vec![7; 300],
        }
    }

    #[test]
    fn a_list_may_have_its_limit_and_not_one_more() {
        assert_eq!(decode(&encode(&bounded(2))), Ok(bounded(2)));
        assert!(decode::<Bounded>(&encode(&bounded(3))).is_err());
    }

    #[test]
    fn the_length_of_an_encoding_is_known_without_it() {
        for value in [bounded(0), bounded(2)] {
            assert_eq!(encoded_length(&value), encode(&value).len());
        }
    }

    #[test]
    fn bytes_in_one_piece_are_encoded_as_a_list_of_bytes() {
        let bytes = encode(&bounded(0));
        assert_eq!(bytes, encode(&(Vec::<Vec<u8>>::new(), vec![7u8; 300])));
    }
}
