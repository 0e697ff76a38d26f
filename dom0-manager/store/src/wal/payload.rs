//! A record's encoding on its way to the disk. What is long in it is shared with whoever handed the record in, not
//! copied.

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use spare_protocol::channel::Outcome;
use spare_protocol::messages::DecidedRequest;

/// What is at least so long is shared. (What is shorter is copied, or a page of it would keep all of the frame in
/// memory that it arrived in.)
const SHARED_BYTES: usize = 64 << 10;

/// An encoded record.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pieces: Vec<Bytes>,
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        Payload {
            pieces: vec![bytes],
        }
    }
}

impl Payload {
    pub(crate) fn of(record: &DecidedRequest) -> Payload {
        let reply = match &record.outcome {
            Some(Outcome::Reply(reply)) => Some(reply),
            _ => None,
        };
        let parts = [Some(&record.request), Some(&record.update), reply];
        let long = parts.into_iter().flatten();
        let long: Vec<&Bytes> = long.filter(|b| b.len() >= SHARED_BYTES).collect();
        if long.is_empty() {
            return Bytes::from(spare_protocol::encode(record)).into();
        }
        let sharing = Sharing {
            long: &long,
            pieces: Vec::new(),
            begun: Vec::new(),
        };
        // No type of ours refuses to be serialised (`spare_protocol::encode`).
        let pieces = postcard::serialize_with_flavor(record, sharing).unwrap_or_default();
        Payload { pieces }
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// One behind the other they are the encoding.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(Bytes::as_ref)
    }

    /// The encoding in one piece.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self.pieces.as_slice() {
            [whole] => whole.clone(),
            pieces => Bytes::from(pieces.concat()),
        }
    }
}

/// Takes an encoding apart where something long is in it.
struct Sharing<'a> {
    long: &'a [&'a Bytes],
    pieces: Vec<Bytes>,
    begun: Vec<u8>,
}

impl Sharing<'_> {
    fn end_piece(&mut self) {
        if !self.begun.is_empty() {
            self.pieces.push(std::mem::take(&mut self.begun).into());
        }
    }
}

impl Flavor for Sharing<'_> {
    type Output = Vec<Bytes>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.begun.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let is_it = |long: &&&Bytes| long.as_ptr() == bytes.as_ptr() && long.len() == bytes.len();
        match self.long.iter().find(is_it) {
            Some(long) => {
                self.end_piece();
                self.pieces.push(Bytes::clone(long));
            }
            None => self.begun.extend_from_slice(bytes),
        }
        Ok(())
    }

    fn finalize(mut self) -> postcard::Result<Vec<Bytes>> {
        self.end_piece();
        Ok(self.pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::messages::RequestId;
    use spare_protocol::{Class, Hash, Position, SeatId};

    fn record(request: usize, reply: usize, update: usize) -> DecidedRequest {
        DecidedRequest {
            position: Position(7),
            epoch: 1,
            id: RequestId {
                seat: SeatId(0),
                number: 300,
            },
            class: Class::Write,
            key: None,
            time_us: 5,
            seed: [1; 32],
            request: Bytes::from(vec![1; request]),
            reply_hash: Hash([2; 32]),
            update_hash: Hash([3; 32]),
            outcome: Some(Outcome::Reply(Bytes::from(vec![4; reply]))),
            update: Bytes::from(vec![5; update]),
        }
    }

    #[test]
    fn it_is_the_record_s_encoding_and_what_is_long_is_not_copied() {
        for (request, reply, update, pieces) in [
            (10, 10, 10, 1),
            (SHARED_BYTES, 10, 0, 3),
            (10, SHARED_BYTES, 3 * SHARED_BYTES, 4),
            (1 << 20, 1 << 20, 1 << 20, 6),
        ] {
            let record = record(request, reply, update);
            let payload = Payload::of(&record);
            let encoded = spare_protocol::encode(&record);
            assert_eq!(payload.to_bytes(), encoded);
            assert_eq!(payload.len(), encoded.len());
            assert_eq!(payload.pieces.len(), pieces);
            let shared = |b: &Bytes| payload.pieces.iter().any(|p| p.as_ptr() == b.as_ptr());
            assert_eq!(shared(&record.update), update >= SHARED_BYTES);
        }
    }
}
