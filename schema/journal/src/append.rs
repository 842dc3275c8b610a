//! Appending: one record, one message, one acknowledgement. Nothing is reported as stored before the broker has said so.

use std::time::{Duration, Instant};

use schema::record::Record;

use crate::connection::{Journal, REQUEST_TIMEOUT};
use crate::entry::headers_of;
use crate::error::{AppendError, Unavailable, is_undecided};
use crate::naming::Naming;

/// How long to wait before asking again when the broker has not decided yet.
const ASKS_AGAIN: Duration = Duration::from_millis(50);

/// Where a record is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Stored now, as entry `seq`.
    Stored {
        /// The entry's sequence.
        seq: u64,
    },
    /// Already known: a record with this id is in the log.
    Duplicate {
        /// The sequence of the entry stored first.
        seq: u64,
    },
}

impl Journal {
    /// Appends a record and waits for the acknowledgement, for at most 3 seconds.
    ///
    /// Any number of tasks may append at once, on clones or on the same handle. Their acknowledgements are awaited
    /// concurrently, in no particular order. Nothing is queued for a broker that is away: the call waits for the
    /// connection, within the same 3 seconds. If the connection breaks, the call writes again on the next one.
    ///
    /// After `Unavailable` the record may or may not be stored. Appending it again is safe, and shows which. `Duplicate`
    /// means "stored before", perhaps by the first attempt of this very call.
    pub async fn append(&self, record: &Record) -> Result<Appended, AppendError> {
        let attempts = async {
            let mut naming = Naming::FIRST;
            loop {
                self.connected().await?;
                let message_id = naming.of(&record.id);
                match self.while_connected(self.publish(record, &message_id)).await {
                    // Perhaps lost on the way. The next attempt shows whether it was stored.
                    Err(_) => {}
                    Ok(Ok(None)) => {
                        if naming.undecided(Instant::now()) {
                            let event = &record.id;
                            tracing::info!(
                                event,
                                "the log's broker has not decided on this id; storing the record under another"
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
        self.heed(&self.unstored, asked, answered);
        outcome
    }

    /// `None` if the broker has not yet decided on an earlier message with this id.
    async fn publish(&self, record: &Record, message_id: &str) -> Result<Option<Appended>, AppendError> {
        let subject = record.subject.as_str().to_owned();
        let headers = headers_of(record, message_id);
        let sent = self
            .context
            .publish_with_headers(subject, headers, record.body.clone())
            .await?;
        match sent.await {
            // Whichever stream takes the subject acknowledges. Ours may have been deleted, and another created.
            Ok(ack) if ack.stream != *self.stream => Err(Unavailable::Elsewhere.into()),
            Ok(ack) => Ok(acknowledged(ack.sequence, ack.duplicate)),
            Err(error) if is_undecided(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What an acknowledgement says; `None` if nothing yet. While an earlier message with the same id is in process, and
/// may yet be lost, a 2.10 broker that leads a cluster calls a message a duplicate of entry 0, which does not exist.
/// Newer brokers refuse it (10158).
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
