//! The messages of logical decoding's `pgoutput` plugin, protocol version 1. Pure.
//!
//! Layout: PostgreSQL documentation, "Logical Replication Message Formats".

use bytes::{Buf, Bytes};

/// Bytes that are no message of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed change message: {0}")]
pub(super) struct ParseError(&'static str);

/// A message, as far as a write set needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A committed transaction ends.
    Commit {
        /// The log up to here need not be sent again.
        end: u64,
    },
    /// What the rows of a table look like; comes before the first change of that table.
    Relation(Relation),
    /// A row was inserted.
    Insert {
        /// OID of the table.
        relation: u32,
        new: Vec<Datum>,
    },
    /// A row was updated.
    Update {
        /// OID of the table.
        relation: u32,
        /// The whole row before, if the table's replica identity is FULL.
        old: Option<Vec<Datum>>,
        new: Vec<Datum>,
    },
    /// A row was deleted.
    Delete {
        /// OID of the table.
        relation: u32,
        /// The whole row before, if the table's replica identity is FULL.
        old: Option<Vec<Datum>>,
    },
    /// Tables were emptied.
    Truncate {
        /// OIDs of the tables.
        relations: Vec<u32>,
    },
    /// The beginning of a transaction, a message written with `pg_logical_emit_message`, an origin, a
    /// type: of no importance here.
    Other,
}

/// The shape of a table's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relation {
    /// OID of the table.
    pub(super) oid: u32,
    /// The schema that it is in.
    pub(super) namespace: String,
    pub(super) name: String,
    /// Name and type OID of each column.
    pub(super) columns: Vec<(String, u32)>,
}

/// A value of a row, as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Datum {
    /// SQL NULL.
    Null,
    /// Stored out of line and not changed by the update: the old row has it.
    Unchanged,
    /// The type's binary format.
    Binary(Bytes),
}

/// Decodes one message of the change stream.
///
/// # Errors
/// When the bytes are no such message.
pub(super) fn parse(bytes: Bytes) -> Result<Message, ParseError> {
    let mut input = Input(bytes);
    match input.u8()? {
        b'C' => commit(&mut input),
        b'R' => relation(&mut input),
        b'I' => insert(&mut input),
        b'U' => update(&mut input),
        b'D' => delete(&mut input),
        b'T' => truncate(&mut input),
        b'B' | b'M' | b'O' | b'Y' => Ok(Message::Other),
        _ => Err(ParseError("unknown kind")),
    }
}

fn commit(input: &mut Input) -> Result<Message, ParseError> {
    input.u8()?; // flags, none defined
    input.u64()?; // where the commit record begins
    Ok(Message::Commit { end: input.u64()? })
}

fn relation(input: &mut Input) -> Result<Message, ParseError> {
    let oid = input.u32()?;
    let namespace = input.text()?;
    let name = input.text()?;
    input.u8()?; // the replica identity: rows show whether it is FULL
    let count = input.u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        input.u8()?; // whether it is part of the key
        let name = input.text()?;
        let kind = input.u32()?;
        input.u32()?; // type modifier
        columns.push((name, kind));
    }
    Ok(Message::Relation(Relation {
        oid,
        namespace,
        name,
        columns,
    }))
}

fn insert(input: &mut Input) -> Result<Message, ParseError> {
    let relation = input.u32()?;
    match input.u8()? {
        b'N' => Ok(Message::Insert {
            relation,
            new: input.row()?,
        }),
        _ => Err(ParseError("an insert without its row")),
    }
}

fn update(input: &mut Input) -> Result<Message, ParseError> {
    let relation = input.u32()?;
    let (old, next) = match input.u8()? {
        b'O' => (Some(input.row()?), input.u8()?),
        b'K' => {
            input.row()?;
            (None, input.u8()?)
        }
        next => (None, next),
    };
    if next != b'N' {
        return Err(ParseError("an update without its row"));
    }
    Ok(Message::Update {
        relation,
        old,
        new: input.row()?,
    })
}

fn delete(input: &mut Input) -> Result<Message, ParseError> {
    let relation = input.u32()?;
    let old = match input.u8()? {
        b'O' => Some(input.row()?),
        b'K' => None,
        _ => return Err(ParseError("a delete without its row")),
    };
    Ok(Message::Delete { relation, old })
}

fn truncate(input: &mut Input) -> Result<Message, ParseError> {
    let count = input.u32()?;
    input.u8()?; // CASCADE and RESTART IDENTITY: all effects are in the stream or in the sequences
    let mut relations = Vec::new();
    for _ in 0..count {
        relations.push(input.u32()?);
    }
    Ok(Message::Truncate { relations })
}

/// The unread rest of a message.
struct Input(Bytes);

impl Input {
    fn take(&mut self, count: usize) -> Result<Bytes, ParseError> {
        if count > self.0.len() {
            return Err(ParseError("it ends early"));
        }
        Ok(self.0.split_to(count))
    }

    fn u8(&mut self) -> Result<u8, ParseError> {
        Ok(self.take(1)?.get_u8())
    }

    fn u16(&mut self) -> Result<u16, ParseError> {
        Ok(self.take(2)?.get_u16())
    }

    fn u32(&mut self) -> Result<u32, ParseError> {
        Ok(self.take(4)?.get_u32())
    }

    fn u64(&mut self) -> Result<u64, ParseError> {
        Ok(self.take(8)?.get_u64())
    }

    fn text(&mut self) -> Result<String, ParseError> {
        let end = self.0.iter().position(|b| *b == 0);
        let text = self.take(end.ok_or(ParseError("a text without its end"))?)?;
        self.u8()?;
        String::from_utf8(text.into()).map_err(|_| ParseError("a text not in UTF-8"))
    }

    fn row(&mut self) -> Result<Vec<Datum>, ParseError> {
        let count = self.u16()?;
        let mut row = Vec::new();
        for _ in 0..count {
            row.push(match self.u8()? {
                b'n' => Datum::Null,
                b'u' => Datum::Unchanged,
                b'b' => {
                    let length = self.u32()? as usize;
                    Datum::Binary(self.take(length)?)
                }
                b't' => return Err(ParseError("a value in text form")),
                _ => return Err(ParseError("a value of unknown form")),
            });
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_update_with_an_unchanged_value_is_read() {
        let mut bytes = b"U\0\0\0\x07O\0\x02b\0\0\0\x01xb\0\0\0\x02yy".to_vec();
        bytes.extend(b"N\0\x02nu");
        let binary = |b: &'static [u8]| Datum::Binary(Bytes::from_static(b));
        assert_eq!(
            parse(bytes.into()),
            Ok(Message::Update {
                relation: 7,
                old: Some(vec![binary(b"x"), binary(b"yy")]),
                new: vec![Datum::Null, Datum::Unchanged],
            })
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            kind in prop::sample::select(&b"BCRIUDTMOY"[..]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(&rest);
            let _ = parse(bytes.into());
            let _ = parse(rest.into());
        }

        #[test]
        fn rows_cut_short_are_errors(cut in 1usize..22) {
            let whole = Bytes::from_static(b"I\0\0\0\x07N\0\x02b\0\0\0\x04abcdb\0\0\0\x00");
            prop_assert!(parse(whole.clone()).is_ok());
            prop_assert!(parse(whole.slice(..whole.len() - cut)).is_err());
        }
    }
}
