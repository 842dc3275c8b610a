//! Forgetting: removing entries from the log. The entries that remain keep their sequences, and the last sequence never
//! decreases.

use std::collections::BTreeMap;

use async_nats::jetstream::stream::{DeleteStatus, PurgeRequest, PurgeResponse};

use crate::connection::Journal;
use crate::error::Error;

impl Journal {
    /// Removes every entry whose subject matches the filter (`*` is one word, `>` the rest) and returns how many there
    /// were. They can no longer be read, but their bytes stay on the broker's disk until it compacts the block. Use
    /// [`Journal::erase`] for what must not be found there.
    pub async fn purge(&self, subject_filter: &str) -> Result<u64, Error> {
        let request = PurgeRequest {
            filter: Some(subject_filter.to_owned()),
            ..PurgeRequest::default()
        };
        let answer: PurgeResponse = self
            .ask(format!("STREAM.PURGE.{}", self.stream), &request)
            .await?;
        Ok(answer.purged)
    }

    /// Removes one entry and overwrites its bytes on the broker's disk. Returns whether the entry was there.
    pub async fn erase(&self, seq: u64) -> Result<bool, Error> {
        let question = BTreeMap::from([("seq", seq)]);
        match self
            .ask::<_, DeleteStatus>(format!("STREAM.MSG.DELETE.{}", self.stream), &question)
            .await
        {
            Ok(answer) => Ok(answer.success),
            Err(Error::Refused { code, .. }) if is_absent(code) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The broker's ways of saying that there is no such message: not found, sequence not found, could not delete it.
fn is_absent(code: u64) -> bool {
    matches!(code, 10037 | 10043 | 10057)
}
