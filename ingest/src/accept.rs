//! Takes a verified webhook into the log: address it, append it, wait for the acknowledgement.
//!
//! Only the address is parsed, and nothing is remembered: the log decides whether an event is new.

use std::time::Instant;

use journal::{AppendError, Appended, Journal, Unavailable};
use schema::record::{Received, Record, Source};

use crate::answer::{Answer, ComeAgain};
use crate::metrics::Metrics;
use crate::signature::VerifiedWebhook;
use crate::stream::Stream;

/// Appends webhooks to the log.
pub struct Acceptor {
    /// The log.
    pub journal: Journal,
    /// Whether the log's stream is set up.
    pub stream: Stream,
    /// Records how long appends take.
    pub metrics: Metrics,
}

impl Acceptor {
    /// Stores a webhook and reports the outcome. Returns only after the broker has acknowledged it, refused it, or
    /// failed to answer within the journal's timeout (3 s). After a timeout the webhook may be stored; the retry is
    /// then a duplicate.
    pub async fn accept(&self, webhook: VerifiedWebhook) -> Answer {
        let (body, signature, received_at) = webhook.into_parts();
        let received = Record::receive(body, Source::Webhook, Some(signature), received_at.into());
        let (record, stored) = match &received {
            Received::NotOurs => return Answer::Ignored,
            Received::Event(record) => (record, Answer::Accepted),
            Received::Quarantined(record, why) => {
                let (event, kind) = (&record.id, &record.event_type);
                tracing::warn!(event, kind, %why, "quarantined: signed, but not an event that can be addressed");
                (record, Answer::Quarantined)
            }
        };
        match self.append(record).await {
            Ok(Appended::Duplicate { .. }) if stored == Answer::Accepted => Answer::Duplicate,
            Ok(Appended::Stored { .. } | Appended::Duplicate { .. }) => stored,
            Err(answer) => answer,
        }
    }

    async fn append(&self, record: &Record) -> Result<Appended, Answer> {
        let (event, kind) = (&record.id, &record.event_type);
        if let Err(error) = self.stream.ready() {
            tracing::warn!(event, kind, %error, "not stored");
            return Err(Answer::Unavailable(ComeAgain::Later));
        }
        let began = Instant::now();
        let appended = self.journal.append(record).await;
        self.metrics
            .publish_seconds
            .observe(began.elapsed().as_secs_f64());
        appended.map_err(|error| {
            tracing::warn!(event, kind, %error, "not confirmed as stored");
            // A limit that the log reached may be one that somebody set on the stream by hand.
            if matches!(
                error,
                AppendError::TooLarge
                    | AppendError::Full
                    | AppendError::Unavailable(Unavailable::NoResponders | Unavailable::Elsewhere)
            ) {
                self.stream.doubt();
            }
            match error {
                AppendError::TooLarge => Answer::TooLarge,
                AppendError::Full => Answer::Unavailable(ComeAgain::MuchLater),
                AppendError::Unavailable(_) => Answer::Unavailable(ComeAgain::Later),
            }
        })
    }
}
