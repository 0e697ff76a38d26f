//! The one encoding of all messages: postcard, with nothing left over.

use serde::de::DeserializeOwned;
use serde::Serialize;

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
}

/// The encoding of `value`. The same value always gives the same bytes.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    // Serialising into a growing vector fails only for types that refuse to be serialised
    // (a map of unknown length); none of ours does, which the round-trip tests show.
    postcard::to_stdvec(value).unwrap_or_default()
}

/// The value that `bytes` encode.
///
/// # Errors
/// When the bytes are not exactly one encoded value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(DecodeError::TrailingBytes(rest.len()))
    }
}
