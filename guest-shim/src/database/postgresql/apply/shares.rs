//! A large update in parts that are applied beside each other.

use spare_protocol::update::{RowOp, SequenceState, TableUpdate, Update};
use std::cmp::Reverse;

/// What costs less is applied sooner on one connection than several connections agree to commit
/// ([`Piece::cost`]).
const SHARED_COST_MIN: usize = 60;
/// New rows of one table that are not shared out any further.
const CHUNK_ROWS: usize = 8;

/// A part of an update, for one connection.
#[derive(Debug, Default)]
pub(super) struct Share<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) sequences: &'a [(String, SequenceState)],
}

/// Some operations of a table's update, or all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) table: &'a TableUpdate,
    pub(super) ops: &'a [RowOp],
}

impl<'a> From<&'a TableUpdate> for Piece<'a> {
    fn from(table: &'a TableUpdate) -> Piece<'a> {
        let ops = &table.ops;
        Piece { table, ops }
    }
}

impl<'a> From<&'a Update> for Share<'a> {
    fn from(update: &'a Update) -> Share<'a> {
        Share {
            pieces: update.tables.iter().map(Piece::from).collect(),
            sequences: &update.sequences,
        }
    }
}

impl Piece<'_> {
    /// What it costs, in changed rows. A new row goes into every index.
    fn cost(&self) -> usize {
        let new = |op: &&RowOp| matches!(op, RowOp::Put { .. });
        self.ops.len() + self.ops.iter().filter(new).count()
    }

    /// Whether any part of it can be applied before, after or beside any other: nothing that was there makes
    /// room for something new.
    fn is_divisible(&self) -> bool {
        let new = |op: &RowOp| matches!(op, RowOp::Put { before: None, .. });
        !self.table.truncated && self.ops.iter().all(new)
    }
}

impl Share<'_> {
    fn cost(&self) -> usize {
        self.pieces.iter().map(Piece::cost).sum()
    }
}

/// The update in as many parts as are worth being applied beside each other, about equally costly: each has
/// tables of its own, and of those that only got new rows a part.
pub(super) fn shares(update: &Update, connections: usize) -> Vec<Share<'_>> {
    let whole = Share::from(update);
    if connections < 2 || whole.cost() < SHARED_COST_MIN {
        return vec![whole];
    }
    let mut pieces = whole.pieces;
    pieces.sort_by_cached_key(|piece| (piece.is_divisible(), Reverse(piece.cost())));
    let mut costs = vec![0; connections];
    let mut take = |cost: usize| {
        let least = (0..connections)
            .min_by_key(|connection| costs[*connection])
            .unwrap_or(0);
        costs[least] += cost;
        least
    };
    let mut shares: Vec<Share> = (0..connections).map(|_| Share::default()).collect();
    for Piece { table, ops } in pieces {
        let whole = Piece { table, ops };
        if !whole.is_divisible() {
            shares[take(whole.cost())].pieces.push(whole);
            continue;
        }
        let mut rows = vec![0; connections];
        for ops in ops.chunks(CHUNK_ROWS) {
            rows[take(Piece { table, ops }.cost())] += ops.len();
        }
        let mut rest = ops;
        for (share, rows) in shares.iter_mut().zip(rows) {
            let (ops, others) = rest.split_at(rows);
            rest = others;
            if !ops.is_empty() {
                share.pieces.push(Piece { table, ops });
            }
        }
    }
    shares[take(0)].sequences = &update.sequences;
    shares.retain(|share| !share.pieces.is_empty() || !share.sequences.is_empty());
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::update::Value;
    use spare_protocol::Hash;

    #[test]
    fn large_updates_are_shared_out() {
        let table = |name: &str, rows: i64| TableUpdate {
            table: name.into(),
            columns: vec!["id".into()],
            key: vec![0],
            truncated: false,
            ops: (0..rows)
                .map(|id| RowOp::Put {
                    row: [Value::Int(id)].into_iter().collect(),
                    before: None,
                })
                .collect(),
        };
        let mut update = Update {
            tables: vec![table("bids", 40), table("items", 25), table("users", 10)],
            ..Update::default()
        };
        let shared = |update: &Update, connections: usize| -> Vec<Vec<(String, usize)>> {
            let rows = |p: &Piece| (p.table.table.clone(), p.ops.len());
            let pieces = |s: &Share| s.pieces.iter().map(rows).collect();
            shares(update, connections).iter().map(pieces).collect()
        };
        let part = |table: &str, rows: usize| (table.to_owned(), rows);
        let whole = vec![part("bids", 40), part("items", 25), part("users", 10)];
        assert_eq!(shared(&update, 1), std::slice::from_ref(&whole));
        let expected = [
            vec![part("bids", 24), part("items", 9), part("users", 2)],
            vec![part("bids", 16), part("items", 16), part("users", 8)],
        ];
        assert_eq!(shared(&update, 2), expected);
        // Rows that take others' places stay together.
        for op in &mut update.tables[0].ops {
            let RowOp::Put { before, .. } = op else {
                continue;
            };
            *before = Some(Hash::of(b"the row that was there"));
        }
        let parts = shared(&update, 2);
        assert!(
            parts.iter().any(|p| p.contains(&part("bids", 40))),
            "{parts:?}"
        );
        update.tables[0].ops.truncate(2);
        update.tables[1].ops.truncate(2);
        assert_eq!(shared(&update, 2).len(), 1);
    }
}
