//! Reading what was agreed on: records, and what retries are answered with.

use super::handle::Store;
use crate::error::StoreError;
use crate::replies::{self, Candidate, RetainedReply};
use crate::wal::decode_record;
use spare_protocol::messages::DecidedRequest;
use spare_protocol::Position;

impl Store {
    /// The record of `position`, durable or not; none above the last one. Reads the disk.
    ///
    /// # Errors
    /// When it is damaged, or below the log's beginning.
    pub fn record(&self, position: Position) -> Result<Option<DecidedRequest>, StoreError> {
        let (start, _) = self.reader.bounds();
        if position <= start {
            return Err(StoreError::Compacted {
                asked: position,
                start,
            });
        }
        let payload = self.writer.payload(position)?;
        payload.map(|p| decode_record(position, &p)).transpose()
    }

    /// Records above `after`: at most so many, and once there is one, at most so many bytes of them. Reads
    /// the disk.
    ///
    /// # Errors
    /// When the first of them is damaged, or below the log's beginning.
    pub fn records_after(
        &self,
        after: Position,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<DecidedRequest>, StoreError> {
        let mut records: Vec<DecidedRequest> = Vec::new();
        let mut bytes = 0;
        let mut position = after.next();
        while records.len() < records_max && bytes < bytes_max {
            match self.record(position) {
                Ok(Some(record)) => {
                    bytes += record.request.len() + record.update.len();
                    if let Some(spare_protocol::channel::Outcome::Reply(reply)) = &record.outcome {
                        bytes += reply.len();
                    }
                    records.push(record);
                }
                Ok(None) => break,
                Err(error) if records.is_empty() => return Err(error),
                Err(_) => break,
            }
            position = position.next();
        }
        Ok(records)
    }

    /// What a retry of the request at `position` is answered with, from the log or from the newest
    /// snapshot; none if it is not retained, or was dropped for want of room. Reads the disk.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn retained_reply(&self, position: Position) -> Result<Option<RetainedReply>, StoreError> {
        match self.record(position) {
            Ok(Some(record)) => return Ok(Candidate::of(record).map(|c| c.reply)),
            Ok(None) => return Ok(None),
            Err(StoreError::Compacted { .. }) => {}
            Err(other) => return Err(other),
        }
        let Some(newest) = self.newest() else {
            return Ok(None);
        };
        replies::find(&newest.replies, &self.tables.reader()?, position)
    }
}
