//! What retries are answered with: the keys of requests, and the replies to them. Both have budgets. A reply that
//! there is no room for is dropped, its key stays: the retry gets an error, and the request does not take effect
//! a second time.
//!
//! ```text
//! chunk of keys    = postcard of a list of RetainedKey, ascending by position
//! chunk of replies = the encoded outcomes that these keys name, one after the other
//! ```

use crate::chunks::{ChunkRef, ReadChunks, WriteChunks};
use crate::error::StoreError;
use crate::options::KeyWindow;
use serde::{Deserialize, Serialize};
use spare_protocol::channel::Outcome;
use spare_protocol::http::{credentials, essence};
use spare_protocol::messages::DecidedRequest;
use spare_protocol::{encode, Hash, Position};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// Keys and replies take no further one once they have so many bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// What a key takes, about.
const KEY_BYTES: usize = 120;

/// What a retry is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedReply {
    /// What a retry has in common with the request.
    pub key: Hash,
    /// The hash of the request, so that another one with the same key is refused.
    pub request: Hash,
    /// The request's place in the order.
    pub position: Position,
    /// The agreed time of the request, microseconds since the Unix epoch: retention counts from it.
    pub time_us: i64,
    /// What came of it; none if it was aborted.
    pub outcome: Option<Outcome>,
}

/// A reply that may be kept.
pub(crate) struct Candidate {
    /// Hash of the client's credentials: the budget of one client is no other one's.
    pub(crate) client: Hash,
    pub(crate) reply: RetainedReply,
}

impl Candidate {
    /// None without a key.
    pub(crate) fn of(record: DecidedRequest) -> Option<Candidate> {
        Some(Candidate {
            client: credentials(&record.request),
            reply: RetainedReply {
                key: record.key?,
                request: essence(&record.request),
                position: record.position,
                time_us: record.time_us,
                outcome: record.outcome,
            },
        })
    }
}

/// A request with a key, as a snapshot has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedKey {
    key: Hash,
    request: Hash,
    /// Hash of the client's credentials.
    client: Hash,
    position: Position,
    time_us: i64,
    reply: ReplyPlace,
}

/// Where the reply to a request with a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ReplyPlace {
    /// There is none, the request was aborted.
    Aborted,
    /// In the chunk of replies: from which byte on, and how many.
    Here(u32, u32),
    /// There was no room for it.
    Dropped,
}

impl ReplyPlace {
    fn bytes(self) -> u64 {
        match self {
            ReplyPlace::Here(_, length) => length.into(),
            ReplyPlace::Aborted | ReplyPlace::Dropped => 0,
        }
    }
}

/// Some neighbouring keys, and their replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplyChunk {
    first: Position,
    last: Position,
    keys: ChunkRef,
    /// None if no reply of them is kept.
    replies: Option<ChunkRef>,
}

impl ReplyChunk {
    pub(crate) fn chunks(&self) -> impl Iterator<Item = ChunkRef> {
        [Some(self.keys), self.replies].into_iter().flatten()
    }

    fn read_keys(&self, chunks: &impl ReadChunks) -> Result<Vec<RetainedKey>, StoreError> {
        let bytes = chunks.read(self.keys.hash)?;
        spare_protocol::decode(&bytes).map_err(|e| StoreError::undecodable(self.keys.hash, &e))
    }

    /// Key, hash of the request, position and agreed time of all its requests.
    pub(crate) fn keys(&self, chunks: &impl ReadChunks) -> Result<Vec<ClientKey>, StoreError> {
        let keys = self.read_keys(chunks)?.into_iter();
        let plain = |k: RetainedKey| ClientKey {
            key: (k.key, k.request, k.position, k.time_us),
            client: k.client,
        };
        Ok(keys.map(plain).collect())
    }
}

/// A key, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct ClientKey {
    pub(crate) key: (Hash, Hash, Position, i64),
    pub(crate) client: Hash,
}

/// The reply to the request at `position`; none if it is not kept.
pub(crate) fn find(
    retained: &[ReplyChunk],
    chunks: &impl ReadChunks,
    position: Position,
) -> Result<Option<RetainedReply>, StoreError> {
    let chunk = retained
        .iter()
        .find(|c| c.first <= position && position <= c.last);
    let Some(chunk) = chunk else {
        return Ok(None);
    };
    let keys = chunk.read_keys(chunks)?;
    let Some(key) = keys.into_iter().find(|k| k.position == position) else {
        return Ok(None);
    };
    let outcome = match (key.reply, chunk.replies) {
        (ReplyPlace::Aborted, _) => None,
        (ReplyPlace::Here(..), Some(replies)) => {
            let bytes = chunks.read(replies.hash)?;
            let encoded = slice(&bytes, key.reply);
            let outcome = spare_protocol::decode(encoded);
            Some(outcome.map_err(|e| StoreError::undecodable(replies.hash, &e))?)
        }
        (ReplyPlace::Dropped, _) | (ReplyPlace::Here(..), None) => return Ok(None),
    };
    Ok(Some(RetainedReply {
        key: key.key,
        request: key.request,
        position,
        time_us: key.time_us,
        outcome,
    }))
}

fn slice(replies: &[u8], place: ReplyPlace) -> &[u8] {
    let ReplyPlace::Here(offset, length) = place else {
        return &[];
    };
    let (begin, length) = (offset as usize, length as usize);
    replies.get(begin..begin + length).unwrap_or_default()
}

/// A request with a key since the last snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keyed {
    pub(crate) position: Position,
    pub(crate) time_us: i64,
    pub(crate) client: Hash,
    /// Bytes of its encoded outcome.
    pub(crate) bytes: u64,
}

/// What becomes of keys and replies.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Keys that go, with their replies.
    forgotten: BTreeSet<Position>,
    /// Replies that go, and their keys stay.
    dropped: BTreeSet<Position>,
}

/// Keys expire by age. If there are too many keys or bytes, the oldest of the client with the most go, so that no
/// client costs another one its own.
fn judge(all: &[Keyed], now_us: i64, window: &KeyWindow) -> Verdict {
    let mut verdict = Verdict::default();
    let mut clients: BTreeMap<Hash, VecDeque<Keyed>> = BTreeMap::new();
    for keyed in all {
        if keyed.time_us.saturating_add(window.lifetime_us) < now_us {
            verdict.forgotten.insert(keyed.position);
        } else {
            clients.entry(keyed.client).or_default().push_back(*keyed);
        }
    }
    let keys_max = u64::try_from(window.keys_max).unwrap_or(u64::MAX);
    let forgotten = thin_out(&mut clients, |_| 1, u64::MAX, keys_max);
    verdict.forgotten.extend(forgotten);
    let (own, all) = (window.client_reply_bytes_max, window.reply_bytes_max);
    verdict.dropped = thin_out(&mut clients, |k| k.bytes, own, all);
    verdict
}

/// Takes the oldest of a client that weighs more than `own_max`; then of the one that weighs most, until all
/// weigh no more than `all_max`. Returns what was taken and weighed something.
fn thin_out(
    clients: &mut BTreeMap<Hash, VecDeque<Keyed>>,
    weight: impl Fn(&Keyed) -> u64,
    own_max: u64,
    all_max: u64,
) -> BTreeSet<Position> {
    let mut taken = BTreeSet::new();
    let weights = clients
        .iter()
        .map(|(client, all)| (all.iter().map(&weight).sum(), *client));
    let mut heaviest: BinaryHeap<(u64, Hash)> = weights.collect();
    let mut total: u64 = heaviest.iter().map(|(w, _)| *w).sum();
    while let Some((own, client)) = heaviest.pop() {
        if own <= own_max && total <= all_max {
            break;
        }
        let Some(oldest) = clients.get_mut(&client).and_then(VecDeque::pop_front) else {
            continue;
        };
        let less = weight(&oldest);
        total -= less;
        if less > 0 {
            taken.insert(oldest.position);
        }
        heaviest.push((own - less, client));
    }
    taken
}

/// The keys that the window has room for: as a manager is to remember them that begins with these.
pub(crate) fn within(keys: Vec<ClientKey>, window: &KeyWindow) -> Vec<ClientKey> {
    let Some(now_us) = keys.iter().map(|k| k.key.3).max() else {
        return keys;
    };
    let keyed = keys.iter().map(|k| Keyed {
        position: k.key.2,
        time_us: k.key.3,
        client: k.client,
        bytes: 0,
    });
    let forgotten = judge(&keyed.collect::<Vec<_>>(), now_us, window).forgotten;
    let kept = keys.into_iter().filter(|k| !forgotten.contains(&k.key.2));
    kept.collect()
}

/// What a snapshot is to retain: `old` is what the one before has, `fresh` are the requests with a key since then,
/// whose records `record` gives, and `now_us` is the agreed time. Chunks of which nothing goes stay as they are.
pub(crate) fn retain(
    chunks: &mut impl WriteChunks,
    old: &[ReplyChunk],
    (fresh, now_us): (&[Keyed], i64),
    window: &KeyWindow,
    mut record: impl FnMut(Position) -> Result<Option<Candidate>, StoreError>,
) -> Result<Vec<ReplyChunk>, StoreError> {
    let mut old_keys = Vec::with_capacity(old.len());
    for chunk in old {
        old_keys.push(chunk.read_keys(chunks)?);
    }
    let keyed = old_keys.iter().flatten().map(|k| Keyed {
        position: k.position,
        time_us: k.time_us,
        client: k.client,
        bytes: k.reply.bytes(),
    });
    let all: Vec<Keyed> = keyed.chain(fresh.iter().copied()).collect();
    let verdict = judge(&all, now_us, window);
    let mut writer = Writer::default();
    for (chunk, keys) in old.iter().zip(old_keys) {
        if writer.bytes() >= CHUNK_BYTES / 2 {
            writer.end(chunks)?;
        }
        let is_last = chunk.last == old.last().map_or(chunk.last, |c| c.last);
        let is_short = is_last && chunk.bytes() < CHUNK_BYTES / 2;
        let stays = |k: &RetainedKey| {
            let goes =
                verdict.forgotten.contains(&k.position) || verdict.dropped.contains(&k.position);
            !goes
        };
        if !writer.is_begun() && !is_short && keys.iter().all(stays) {
            writer.done.push(*chunk);
            continue;
        }
        writer.take_over(chunks, chunk, keys, &verdict)?;
    }
    for keyed in fresh {
        if verdict.forgotten.contains(&keyed.position) {
            continue;
        }
        if let Some(candidate) = record(keyed.position)? {
            let dropped = verdict.dropped.contains(&keyed.position);
            writer.add(chunks, candidate, dropped)?;
        }
    }
    writer.end(chunks)?;
    Ok(writer.done)
}

/// Chunks of replies that stood with their keys, as this release has them.
pub(crate) fn converted(
    chunks: &mut impl WriteChunks,
    old: impl Iterator<Item = Result<Vec<Candidate>, StoreError>>,
) -> Result<Vec<ReplyChunk>, StoreError> {
    let mut writer = Writer::default();
    for candidates in old {
        for candidate in candidates? {
            writer.add(chunks, candidate, false)?;
        }
    }
    writer.end(chunks)?;
    Ok(writer.done)
}

impl ReplyChunk {
    fn bytes(&self) -> usize {
        self.chunks().map(|c| c.bytes as usize).sum()
    }
}

/// Cuts keys and replies into chunks.
#[derive(Default)]
struct Writer {
    done: Vec<ReplyChunk>,
    keys: Vec<RetainedKey>,
    replies: Vec<u8>,
}

impl Writer {
    fn bytes(&self) -> usize {
        self.replies.len() + self.keys.len() * KEY_BYTES
    }

    fn is_begun(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Adds what stays of an older chunk.
    fn take_over(
        &mut self,
        chunks: &impl ReadChunks,
        chunk: &ReplyChunk,
        keys: Vec<RetainedKey>,
        verdict: &Verdict,
    ) -> Result<(), StoreError> {
        let mut bodies: Option<Vec<u8>> = None;
        for mut key in keys {
            if verdict.forgotten.contains(&key.position) {
                continue;
            }
            if verdict.dropped.contains(&key.position) {
                key.reply = ReplyPlace::Dropped;
            }
            if let (ReplyPlace::Here(..), Some(replies)) = (key.reply, chunk.replies) {
                let bodies = match &mut bodies {
                    Some(bodies) => bodies,
                    none => none.insert(chunks.read(replies.hash)?),
                };
                key.reply = self.append(slice(bodies, key.reply));
            }
            self.keys.push(key);
        }
        Ok(())
    }

    fn append(&mut self, encoded: &[u8]) -> ReplyPlace {
        let place = |bytes: usize| u32::try_from(bytes).ok();
        match (place(self.replies.len()), place(encoded.len())) {
            (Some(offset), Some(length)) => {
                self.replies.extend_from_slice(encoded);
                ReplyPlace::Here(offset, length)
            }
            // Longer than a record can be.
            _ => ReplyPlace::Dropped,
        }
    }

    fn add(
        &mut self,
        chunks: &mut impl WriteChunks,
        candidate: Candidate,
        dropped: bool,
    ) -> Result<(), StoreError> {
        let Candidate { client, reply } = candidate;
        let place = match &reply.outcome {
            None => ReplyPlace::Aborted,
            Some(_) if dropped => ReplyPlace::Dropped,
            Some(outcome) => self.append(&encode(outcome)),
        };
        self.keys.push(RetainedKey {
            key: reply.key,
            request: reply.request,
            client,
            position: reply.position,
            time_us: reply.time_us,
            reply: place,
        });
        if self.bytes() >= CHUNK_BYTES {
            self.end(chunks)?;
        }
        Ok(())
    }

    fn end(&mut self, chunks: &mut impl WriteChunks) -> Result<(), StoreError> {
        let keys = std::mem::take(&mut self.keys);
        let replies = std::mem::take(&mut self.replies);
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
            return Ok(());
        };
        let (first, last) = (first.position, last.position);
        let replies = match replies.is_empty() {
            true => None,
            false => Some(chunks.write(replies)?),
        };
        self.done.push(ReplyChunk {
            first,
            last,
            keys: chunks.write(encode(&keys))?,
            replies,
        });
        Ok(())
    }
}

/// A chunk of keys.
///
/// # Errors
/// When the bytes are none.
#[cfg(feature = "fuzzing")]
pub(crate) fn keys_of(bytes: &[u8]) -> Result<Vec<RetainedKey>, spare_protocol::DecodeError> {
    spare_protocol::decode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_tree::MemoryChunks;
    use bytes::Bytes;

    const WINDOW: KeyWindow = KeyWindow {
        lifetime_us: 1000,
        keys_max: 100,
        reply_bytes_max: 1000,
        client_reply_bytes_max: 600,
    };

    fn keyed(position: u64, client: u8, bytes: u64) -> Keyed {
        Keyed {
            position: Position(position),
            time_us: position as i64,
            client: Hash([client; 32]),
            bytes,
        }
    }

    fn positions(range: impl Iterator<Item = u64>) -> BTreeSet<Position> {
        range.map(Position).collect()
    }

    #[test]
    fn a_client_with_many_keys_costs_the_others_none_of_theirs() {
        let others = (1..=20).map(|p| keyed(p, p as u8, 0));
        let many = (21..=520).map(|p| keyed(p, 100, 0));
        let verdict = judge(&others.chain(many).collect::<Vec<_>>(), 520, &WINDOW);
        assert_eq!(verdict.forgotten, positions(21..=440));
    }

    #[test]
    fn a_client_with_long_replies_loses_its_own_oldest_ones() {
        let all: Vec<_> = (1..=20)
            .map(|p| keyed(p, if p % 4 == 0 { 1 } else { 2 }, 50))
            .collect();
        // 250 bytes of one client, 750 of the other.
        let verdict = judge(&all, 20, &WINDOW);
        assert_eq!(verdict.dropped, positions([1, 2, 3].into_iter()));
        assert!(verdict.forgotten.is_empty());
        let less = KeyWindow {
            reply_bytes_max: 500,
            ..WINDOW
        };
        let verdict = judge(&all, 20, &less);
        let of_the_heavy: Vec<_> = (1..=20).filter(|p| p % 4 != 0).collect();
        assert!(
            verdict.dropped.len() == 10
                && verdict.dropped.iter().all(|p| of_the_heavy.contains(&p.0))
        );
    }

    #[test]
    fn keys_expire_by_age() {
        let all = [keyed(1, 1, 1), keyed(1500, 1, 1)];
        let verdict = judge(&all, 1600, &WINDOW);
        assert_eq!(verdict.forgotten, positions([1].into_iter()));
    }

    fn candidate(position: u64, client: u8, length: usize) -> Candidate {
        Candidate {
            client: Hash([client; 32]),
            reply: RetainedReply {
                key: Hash::of(&position.to_le_bytes()),
                request: Hash([1; 32]),
                position: Position(position),
                time_us: position as i64,
                outcome: (length > 0)
                    .then(|| Outcome::Reply(Bytes::from(vec![position as u8; length]))),
            },
        }
    }

    /// Each snapshot finds what it should of all requests so far, and no more bytes than there may be.
    #[test]
    fn what_was_dropped_keeps_its_key_and_what_was_kept_is_found() {
        let window = KeyWindow {
            lifetime_us: i64::MAX,
            keys_max: 400,
            reply_bytes_max: 3 << 20,
            client_reply_bytes_max: 1 << 20,
        };
        let mut chunks = MemoryChunks::default();
        let mut retained: Vec<ReplyChunk> = Vec::new();
        let client = |p: u64| if p.is_multiple_of(5) { 1 } else { 2 };
        let length = |p: u64| if p.is_multiple_of(7) { 0 } else { 20_000 };
        for snapshot in 0..8u64 {
            let fresh: Vec<_> = (snapshot * 50 + 1..=snapshot * 50 + 50)
                .map(|p| {
                    keyed(
                        p,
                        client(p),
                        encode(&candidate(p, 1, length(p)).reply.outcome).len() as u64,
                    )
                })
                .collect();
            let record = |p: Position| Ok(Some(candidate(p.0, client(p.0), length(p.0))));
            let now = (snapshot as i64 + 1) * 50;
            retained = retain(&mut chunks, &retained, (&fresh, now), &window, record)
                .unwrap_or_else(|e| panic!("{e}"));
        }
        let keys: usize = retained
            .iter()
            .map(|c| c.read_keys(&chunks).expect("keys").len())
            .sum();
        assert_eq!(keys, 400);
        let bytes: u64 = retained
            .iter()
            .filter_map(|c| c.replies)
            .map(|c| u64::from(c.bytes))
            .sum();
        assert!(bytes <= 2 << 20, "{bytes}");
        let found = |p| find(&retained, &chunks, Position(p)).expect("whole");
        // The newest of each client, the aborted ones, and nothing of what had no room.
        for p in 1..=400 {
            let expected = candidate(p, client(p), length(p)).reply;
            match found(p) {
                Some(reply) => assert_eq!(reply, expected),
                None => assert!(p <= 380 && length(p) > 0, "{p}"),
            }
        }
        assert!(found(1).is_none() && found(400).is_some() && found(7).is_some());
    }
}
