//! Appending: one record, one message, one acknowledgement. Nothing is ever said to be stored before the broker said so.

use std::time::Instant;

use schema::record::Record;

use crate::connection::{Journal, REQUEST_TIMEOUT};
use crate::entry::headers_of;
use crate::error::{AppendError, Unavailable};

/// Where a record is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Stored now, as entry `seq`.
    Stored {
        /// The entry's sequence.
        seq: u64,
    },
    /// Known already: a record with this id is in the log.
    Duplicate {
        /// The sequence of the entry stored first.
        seq: u64,
    },
}

impl Journal {
    /// Appends a record and waits for the acknowledgement, 3 seconds at most. Any number of tasks may append at once, on
    /// clones or on the same handle: their acknowledgements are awaited side by side, in no particular order. While the
    /// broker is away nothing is queued for it: the call waits for the connection, within the same 3 seconds, and when
    /// the connection breaks it writes again on the next one.
    ///
    /// After `Unavailable` the record may or may not be stored; appending it again is safe and tells. `Duplicate` means
    /// "stored before": by this very call's first attempt, perhaps.
    pub async fn append(&self, record: &Record) -> Result<Appended, AppendError> {
        let attempts = async {
            loop {
                self.connected().await?;
                // Lost on the way? The next attempt tells whether it was stored.
                if let Ok(outcome) = self.while_connected(self.publish(record)).await {
                    return outcome;
                }
            }
        };
        let asked = Instant::now();
        let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Unavailable::TimedOut.into()),
        };
        let answered = match &outcome {
            Err(AppendError::Unavailable(why)) => Err(*why),
            _ => Ok(()),
        };
        self.heed(&self.unstored, asked, answered).await;
        outcome
    }

    async fn publish(&self, record: &Record) -> Result<Appended, AppendError> {
        let (subject, headers) = (record.subject.as_str().to_owned(), headers_of(record));
        let ack = self
            .context
            .publish_with_headers(subject, headers, record.body.clone())
            .await?
            .await?;
        Ok(match (ack.sequence, ack.duplicate) {
            (seq, false) => Appended::Stored { seq },
            (seq, true) => Appended::Duplicate { seq },
        })
    }
}
