//! Forgetting: removing single entries from the log. The entries that remain keep their sequences, and the last sequence
//! never decreases.

use std::collections::BTreeMap;

use async_nats::jetstream::stream::DeleteStatus;

use crate::connection::Journal;
use crate::entry::NO_MESSAGE;
use crate::error::Error;

impl Journal {
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

/// The broker's error codes for "sequence not found" and "could not delete the message".
const NO_SEQUENCE: u64 = 10043;
const NOT_DELETED: u64 = 10057;

/// Whether the broker's refusal to delete a message says that there is no such message.
fn is_absent(code: u64) -> bool {
    matches!(code, NO_MESSAGE | NO_SEQUENCE | NOT_DELETED)
}
