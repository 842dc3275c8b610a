//! Appending: one record, one message, one acknowledgement. Nothing is ever said to be stored before the broker said so.

use std::time::{Duration, Instant};

use schema::record::Record;

use crate::connection::{Journal, REQUEST_TIMEOUT};
use crate::entry::headers_of;
use crate::error::{AppendError, Unavailable, is_undecided};
use crate::naming::Naming;

/// How long to wait before asking a broker again that has not decided yet.
const ASKS_AGAIN: Duration = Duration::from_millis(50);

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
            let mut naming = Naming::FIRST;
            loop {
                self.connected().await?;
                let message_id = naming.of(&record.id);
                match self.while_connected(self.publish(record, &message_id)).await {
                    // Lost on the way? The next attempt tells whether it was stored.
                    Err(_) => {}
                    Ok(Ok(None)) => {
                        if naming.undecided(Instant::now()) {
                            let event = &record.id;
                            tracing::info!(
                                event,
                                "the log's broker does not decide on this id: storing it under another"
                            );
                        }
                        tokio::time::sleep(ASKS_AGAIN).await;
                    }
                    Ok(Ok(Some(appended))) => return Ok(appended),
                    Ok(Err(error)) => return Err(error),
                }
            }
        };
        let asked = Instant::now();
        let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Unavailable::TimedOut.into()),
        };
        let answered = match &outcome {
            Err(AppendError::Unavailable(why)) if *why != Unavailable::Elsewhere => Err(*why),
            _ => Ok(()),
        };
        self.heed(&self.unstored, asked, answered).await;
        outcome
    }

    /// `None` when the broker has not decided yet on an earlier message of this id.
    async fn publish(&self, record: &Record, message_id: &str) -> Result<Option<Appended>, AppendError> {
        let subject = record.subject.as_str().to_owned();
        let headers = headers_of(record, message_id);
        let sent = self
            .context
            .publish_with_headers(subject, headers, record.body.clone())
            .await?;
        match sent.await {
            // It answers for the subject, whosever it is: our stream was deleted, say, and one of another name made.
            Ok(ack) if ack.stream != *self.stream => Err(Unavailable::Elsewhere.into()),
            Ok(ack) => Ok(acknowledged(ack.sequence, ack.duplicate)),
            Err(error) if is_undecided(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What an acknowledgement says. `None`: nothing yet. A broker of 2.10 that leads a cluster calls a message a duplicate of
/// entry 0, which is none, while an earlier one of its id is in process, and may be lost; newer ones refuse it (10158).
fn acknowledged(seq: u64, is_duplicate: bool) -> Option<Appended> {
    match (seq, is_duplicate) {
        (0, _) => None,
        (seq, true) => Some(Appended::Duplicate { seq }),
        (seq, false) => Some(Appended::Stored { seq }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_entry_acknowledges() {
        assert_eq!(acknowledged(7, false), Some(Appended::Stored { seq: 7 }));
        assert_eq!(acknowledged(7, true), Some(Appended::Duplicate { seq: 7 }));
        assert_eq!(acknowledged(0, true), None);
        assert_eq!(acknowledged(0, false), None);
    }
}
