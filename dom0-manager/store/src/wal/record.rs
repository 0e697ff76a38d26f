//! A record of the log, decoded.

use crate::error::{Damage, DamagedPart, Range, StoreError};
use serde::Deserialize;
use spare_protocol::messages::{DecidedRequest, RequestId};
use spare_protocol::{Class, Hash, Position};
use std::path::PathBuf;

/// The record that `payload` encodes. Its checksum was right: another version wrote it, or nobody did.
pub(crate) fn decode_record(
    position: Position,
    payload: &[u8],
) -> Result<DecidedRequest, StoreError> {
    let what = match spare_protocol::decode::<DecidedRequest>(payload) {
        Ok(record) if record.position == position => return Ok(record),
        Ok(record) => format!("it says to be {}", record.position),
        Err(error) => error.to_string(),
    };
    Err(undecodable(position, what))
}

/// A record as it stands in its encoding, nothing copied.
#[derive(Deserialize)]
pub(crate) struct RecordIn<'a> {
    pub(crate) position: Position,
    _epoch: u64,
    pub(crate) id: RequestId,
    pub(crate) class: Class,
    pub(crate) key: Option<Hash>,
    pub(crate) time_us: i64,
    _seed: [u8; 32],
    #[serde(borrow)]
    pub(crate) request: &'a [u8],
    _reply_hash: Hash,
    _update_hash: Hash,
    #[serde(borrow)]
    pub(crate) outcome: Option<OutcomeIn<'a>>,
    #[serde(borrow)]
    pub(crate) update: &'a [u8],
}

/// [`spare_protocol::channel::Outcome`], nothing copied.
#[derive(Deserialize)]
pub(crate) enum OutcomeIn<'a> {
    Reply(#[serde(borrow)] &'a [u8]),
    WriteInRead,
}

impl<'a> RecordIn<'a> {
    pub(crate) fn decode(position: Position, payload: &'a [u8]) -> Result<Self, StoreError> {
        let what = match spare_protocol::decode::<RecordIn<'a>>(payload) {
            Ok(record) if record.position == position => return Ok(record),
            Ok(record) => format!("it says to be {}", record.position),
            Err(error) => error.to_string(),
        };
        Err(undecodable(position, what))
    }

    /// About how many bytes its encoded outcome has.
    pub(crate) fn outcome_bytes(&self) -> u64 {
        match self.outcome {
            Some(OutcomeIn::Reply(reply)) => reply.len() as u64 + 8,
            Some(OutcomeIn::WriteInRead) => 1,
            None => 0,
        }
    }

    /// Whether a retry of this request is answered from here. A read that tried to write is ordered again:
    /// only then its key counts.
    pub(crate) fn retry_key(&self) -> Option<Hash> {
        // What the reply is does not matter here.
        let moved = match self.outcome {
            Some(OutcomeIn::WriteInRead) => self.class == Class::Read,
            Some(OutcomeIn::Reply(_)) | None => false,
        };
        self.key.filter(|_| !moved)
    }
}

fn undecodable(position: Position, what: String) -> StoreError {
    StoreError::Damaged(Damage {
        path: PathBuf::from("the log"),
        part: DamagedPart::Records(Range {
            first: position,
            last: position,
        }),
        what,
    })
}
