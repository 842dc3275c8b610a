//! The log as an operator sees it: how much it holds, how much it may hold, and how old its newest entry is.

use std::time::Duration;

use async_nats::jetstream::stream::Info;
use schema::timestamp::Timestamp;
use serde_json::Value;
use service::status::{Part, Told};
use time::OffsetDateTime;

use crate::connection::Journal;
use crate::error::Error;
use crate::stream::Identity;

/// What the broker says about the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// Its name.
    pub stream: String,
    /// What distinguishes it from another, and how far it reaches.
    pub identity: Identity,
    /// When its newest entry was stored, if there is one.
    pub newest: Option<Timestamp>,
    /// Copies in a cluster.
    pub replicas: usize,
    /// Entries older than this are removed; zero keeps all.
    pub max_age: Duration,
    /// A log of this many bytes refuses new entries; zero means no limit.
    pub max_bytes: u64,
    /// For how long a message id is remembered.
    pub dedup_window: Duration,
    /// How many entries ingest could not address.
    pub quarantined: u64,
}

impl Journal {
    /// What the broker says about the stream; `None` if there is none.
    pub async fn overview(&self) -> Result<Option<Overview>, Error> {
        let question = serde_json::json!({ "subjects_filter": "dsync.quarantine" });
        let answer: Value = match self.ask(format!("STREAM.INFO.{}", self.stream), &question).await {
            Ok(info) => info,
            Err(Error::NoStream) => return Ok(None),
            Err(error) => return Err(error),
        };
        let subjects = answer["state"]["subjects"].as_object().into_iter().flatten();
        let quarantined = subjects.filter_map(|(_, count)| count.as_u64()).sum();
        let info: Info = serde_json::from_value(answer).map_err(|_| Error::Unreadable)?;
        let identity = Identity::of(&info);
        // From the same answer, because a login that may only append cannot read an entry.
        let newest = (identity.messages > 0).then(|| info.state.last_timestamp.into());
        Ok(Some(Overview {
            stream: info.config.name.clone(),
            identity,
            newest,
            replicas: info.config.num_replicas,
            max_age: info.config.max_age,
            max_bytes: u64::try_from(info.config.max_bytes).unwrap_or(0),
            dedup_window: info.config.duplicate_window,
            quarantined,
        }))
    }
}

/// The log's part of a status screen.
pub async fn status(journal: &Journal, now: OffsetDateTime) -> Part {
    Part::gathered("log", async {
        let Some(log) = journal.overview().await? else {
            return Err(Error::NoStream);
        };
        let moment = |at: Option<Timestamp>| Told::moment(at.map(Into::into), now);
        let or_none = |zero: bool, told: Told| if zero { Told::text(None::<String>) } else { told };
        Ok(Part::new("log")
            .fact("stream", Told::text(Some(log.stream)))
            .fact("messages", Told::count(log.identity.messages))
            .fact("bytes", Told::bytes(log.identity.bytes))
            .fact("first_sequence", Told::count(log.identity.first_seq))
            .fact("last_sequence", Told::count(log.identity.last_seq))
            .fact("newest", moment(log.newest))
            .fact("made", moment(Some(log.identity.created)))
            .fact("quarantined", Told::count(log.quarantined))
            .fact("replicas", Told::count(log.replicas as u64))
            .fact(
                "max_age",
                or_none(log.max_age.is_zero(), Told::duration(log.max_age)),
            )
            .fact(
                "max_bytes",
                or_none(log.max_bytes == 0, Told::bytes(log.max_bytes)),
            )
            .fact("dedup_window", Told::duration(log.dedup_window)))
    })
    .await
}
