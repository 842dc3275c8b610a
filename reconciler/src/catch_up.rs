//! The catch-up: reads the Events API and appends what it lists. The log drops what it already has as duplicates;
//! whatever it lacked counts as recovered. So webhooks may be lost, late or absent altogether, and the log still gets
//! every event.
//!
//! A cursor would lose events, because the API lists some of them late: an event older than the newest one seen may
//! still appear. So the position is a time, every poll begins `EVENTS_HOLDBACK` before it, and cursors are used only
//! within one poll. The position moves after the log has acknowledged: page by page to the last event read, and at the
//! end of the poll to the server's time of its first answer. So after a crash, the next reconciler continues where this
//! one was, even in the middle of months of events.
//!
//! ```text
//!   lease ─► position ─► ranges (pure) ─► page ─► append, await acknowledgements ─► next page … ─► move the position
//!              ▲                                                                                        │
//!              └── first start: now · log lost entries, or away for longer than retention: as far back as possible
//! ```

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use journal::{AppendError, Appended};
use schema::event::label;
use schema::json;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use service::postgres::answered;
use tokio_util::sync::CancellationToken;

use crate::acknowledged::Acknowledged;
use crate::directories;
use crate::lease::LEASE;
use crate::store::duties::{self, Duty, Position};
use crate::store::{self, sweeps};
use crate::work::{Failure, IN_FLIGHT, Work, stored};
use crate::workos::client::ApiError;
use crate::workos::events::{Listed, Range, Ways};
use crate::workos::pages::{List, Pages};

/// How far back `WorkOS` lists events, less a little. The catch-up cannot read anything older.
const RETENTION: Duration = Duration::from_hours(24 * 90 - 12);
/// How far back it starts over. Less than [`RETENTION`], because the position stands still until the first page
/// arrives.
const ANEW: Duration = Duration::from_hours(24 * 89);
/// The longest range that the API accepts in one request, less a little.
const LONGEST_RANGE: Duration = Duration::from_hours(24 * 29);
/// How much ranges overlap: it is not documented whether a range includes its bounds.
const OVERLAP: Duration = Duration::from_secs(1);
/// How many pages of a range are read in search of an event about one of our directories.
const HEARD: usize = 20;
/// How many recovered events of a poll are logged one by one at level info; the rest are logged at level debug.
const TOLD: usize = 20;

/// How the catch-up reads.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often it polls.
    pub every: Duration,
    /// How far before its position each poll begins.
    pub holdback: Duration,
}

/// The catch-up.
pub struct CatchUp {
    work: Work,
    settings: Settings,
    ways: Ways,
    acknowledged: Acknowledged,
    /// Whether the API key was seen to be this environment's. It does not change while the process runs.
    recognised: bool,
    /// The position as this process last read or wrote it.
    stands: Position,
}

/// What a poll did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Polled {
    /// Events listed.
    pub listed: usize,
    /// Of those, the events that the log did not have.
    pub recovered: usize,
}

impl CatchUp {
    /// Creates a catch-up that has read nothing yet.
    pub fn new(work: Work, settings: Settings) -> Self {
        Self {
            work,
            settings,
            ways: Ways::default(),
            acknowledged: Acknowledged::default(),
            recognised: false,
            stands: Position::default(),
        }
    }

    /// Polls until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(self.settings.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => {}
            }
            let polled = tokio::select! {
                () = shutdown.cancelled() => break,
                polled = self.poll() => polled,
            };
            match polled {
                Ok(Some(polled)) if polled.recovered > 0 => {
                    tracing::info!(
                        recovered = polled.recovered,
                        listed = polled.listed,
                        "recovered events that the log did not have"
                    );
                }
                Ok(_) => {}
                Err(error @ Failure::OtherEnvironment) => {
                    tracing::error!(%error, "the catch-up reads no events; looking again");
                }
                Err(error) => tracing::warn!(%error, "the catch-up failed; trying again"),
            }
        }
        let holder = self.work.leases.holder();
        if let Err(error) = stored(duties::release(&self.work.pool, Duty::CatchUp, holder)).await {
            tracing::debug!(%error, "cannot release the lease; it expires on its own");
        }
    }

    /// Polls once. `None` while another reconciler holds the lease.
    pub async fn poll(&mut self) -> Result<Option<Polled>, Failure> {
        // Before the lease is taken: who has another environment's key must keep it from nobody.
        self.recognise().await?;
        if !self.hold().await? {
            self.acknowledged.clear();
            return Ok(None);
        }
        let (position, rewound) = answered(duties::position(&self.work.pool)).await?;
        if position != self.stands {
            // Another reconciler moved it, perhaps because the log lost events that are known here.
            self.acknowledged.clear();
            self.stands = position;
        }
        let now = Timestamp::from(self.work.clock.now());
        let anew = now.minus(ANEW);
        let start = match (position.at, rewound) {
            (_, Some(_)) => {
                tracing::warn!("the log lost entries; reading every event again that WorkOS still lists");
                self.acknowledged.clear();
                self.move_to(anew, rewound).await?;
                anew
            }
            (None, None) => self.begin().await?.minus(self.settings.holdback),
            (Some(at), None) if at < now.minus(RETENTION) => {
                tracing::error!(since = %at, "away for longer than events are kept; every directory is due for a sweep");
                answered(sweeps::all_again(&self.work.pool)).await?;
                self.move_to(anew, None).await?;
                anew
            }
            (Some(at), None) => at.minus(self.settings.holdback).max(now.minus(RETENTION)),
        };
        let mut polled = Polled::default();
        let mut reached = None;
        // Reading a page again must not move the position back.
        let mut place = start.plus(self.settings.holdback);
        for range in ranges(start, now) {
            let first_at = self.read(range, &mut place, &mut polled).await?;
            reached.get_or_insert(first_at);
        }
        if let Some(reached) = reached {
            self.move_to(reached, None).await?;
            self.acknowledged
                .forget_before(reached.minus(self.settings.holdback * 2));
        }
        Ok(Some(polled))
    }

    /// Fails if the API key may be another environment's: with its events, its directories would come in and make ours look
    /// like a few among many, and ours would not be read later.
    async fn recognise(&mut self) -> Result<(), Failure> {
        if !self.recognised {
            let listed = directories::recognise(&self.work).await;
            match listed {
                // None of ours may be left to list, or the list cannot be read. Events about ours are no other environment's.
                Err(Failure::OtherEnvironment | Failure::Api(_)) if self.hears_of_ours().await? => {}
                listed => listed?,
            }
            self.recognised = true;
        }
        Ok(())
    }

    /// Whether events since the position, of which only the first pages are read, speak of a directory that readers see.
    async fn hears_of_ours(&mut self) -> Result<bool, Failure> {
        let (position, _) = answered(duties::position(&self.work.pool)).await?;
        let Some(at) = position.at else {
            return Ok(false);
        };
        let ours = stored(store::directories::shown(&self.work.pool)).await?;
        let now = Timestamp::from(self.work.clock.now());
        let start = at.minus(self.settings.holdback).max(now.minus(RETENTION));
        for range in ranges(start, now) {
            let mut after = None;
            for _ in 0..HEARD {
                let listed = self
                    .work
                    .api
                    .events(&mut self.ways, &range, after.as_deref())
                    .await?;
                let Listed::Page(page) = listed else { break };
                let mut records = page.objects.iter().filter_map(|event| record(event, now));
                if records.any(|record| record.subject.directory().is_some_and(|id| ours.contains_key(id))) {
                    return Ok(true);
                }
                after = page.after;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(false)
    }

    /// Reads one range to its end and appends what it lists. Returns the server's time of the first answer.
    async fn read(
        &mut self,
        range: Range,
        place: &mut Timestamp,
        polled: &mut Polled,
    ) -> Result<Timestamp, Failure> {
        let (earliest, mut from) = (range.start, range.start);
        let (mut range, mut after) = (range, None::<String>);
        let (mut first_at, mut last_seen) = (None, None);
        let mut given = HashSet::new();
        loop {
            let page = match self
                .work
                .api
                .events(&mut self.ways, &range, after.as_deref())
                .await?
            {
                Listed::Page(page) => page,
                Listed::CursorRefused => {
                    // The event that the cursor names is no longer kept, and perhaps others are not either.
                    tracing::error!(
                        "an event passed WorkOS's retention limit while the catch-up was reading; every directory is due for a sweep"
                    );
                    answered(sweeps::all_again(&self.work.pool)).await?;
                    // Continue from the last event read. If that makes no progress, every cursor is refused: give up.
                    from = last_seen.take().ok_or(ApiError::Refused(400))?;
                    range.start = from.minus(OVERLAP).max(earliest);
                    after = None;
                    given.clear();
                    continue;
                }
            };
            first_at.get_or_insert(page.at);
            let last = self.append(&page.objects, polled).await?;
            if let Some(last) = last.filter(|last| *last > from) {
                last_seen = Some(last);
                let reached = last.min(page.at);
                if reached > *place {
                    // If this process dies, the next one begins here.
                    self.move_to(reached, None).await?;
                    *place = reached;
                }
            }
            match page.after {
                Some(next) if !given.insert(next.clone()) => return Err(ApiError::Circle.into()),
                Some(next) => after = Some(next),
                None => return Ok(first_at.unwrap_or(page.at)),
            }
        }
    }

    /// Appends a page of events and awaits every acknowledgement. Returns the time of the last event, if the page is in
    /// order.
    async fn append(&mut self, events: &[String], polled: &mut Polled) -> Result<Option<Timestamp>, Failure> {
        if !self.hold().await? {
            return Err(Failure::LeaseLost);
        }
        polled.listed += events.len();
        let now = Timestamp::from(self.work.clock.now());
        let times: Vec<Option<Timestamp>> = events.iter().map(|event| created_at(event)).collect();
        let records: Vec<(Record, Timestamp)> = events
            .iter()
            .zip(&times)
            .filter_map(|(event, at)| Some((record(event, now)?, at.unwrap_or(now))))
            .filter(|(record, _)| !self.acknowledged.has(&record.id))
            .collect();
        let work = &self.work;
        let appended: Vec<(Record, Timestamp, bool)> = stream::iter(records)
            .map(|(record, at)| async move {
                match work.append(&record).await {
                    Ok(appended) => Ok((record, at, matches!(appended, Appended::Stored { .. }))),
                    // The log will never accept it, and it must not keep all the others waiting.
                    Err(AppendError::TooLarge) => Ok((record, at, false)),
                    Err(error) => Err(error),
                }
            })
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        for (record, at, is_new) in appended {
            if is_new {
                self.count(&record, at, now, polled.recovered);
                polled.recovered += 1;
            }
            self.acknowledged.add(record.id, at);
        }
        Ok(last_in_order(&times))
    }

    fn count(&self, record: &Record, at: Timestamp, now: Timestamp, before: usize) {
        self.work
            .metrics
            .events_recovered
            .with_label_values(&[label(&record.event_type)])
            .inc();
        let age_seconds = now.since(at).as_secs();
        let (event, id) = (record.event_type.as_str(), record.id.as_str());
        if before < TOLD {
            tracing::info!(event, id, age_seconds, "the log did not have this event");
        } else {
            tracing::debug!(event, id, age_seconds, "the log did not have this event");
        }
    }

    /// Sets the very first position: now, by the server's clock, which is also the clock that dates events.
    async fn begin(&mut self) -> Result<Timestamp, Failure> {
        let page = Pages::of(&self.work.api, List::directories()).next().await?;
        let now = page.map_or_else(|| self.work.clock.now().into(), |page| page.at);
        tracing::info!(from = %now.minus(self.settings.holdback), "the catch-up starts for the first time");
        self.move_to(now, None).await?;
        Ok(now)
    }

    async fn move_to(&mut self, at: Timestamp, rewound: Option<i64>) -> Result<(), Failure> {
        let to = Position {
            at: Some(at),
            rewind: rewound.unwrap_or(self.stands.rewind),
        };
        let holder = self.work.leases.holder();
        if answered(duties::advance(&self.work.pool, holder, self.stands, to)).await? {
            self.stands = to;
            Ok(())
        } else {
            Err(Failure::LeaseLost)
        }
    }

    async fn hold(&self) -> sqlx::Result<bool> {
        answered(duties::hold(
            &self.work.pool,
            Duty::CatchUp,
            self.work.leases.holder(),
            LEASE,
        ))
        .await
    }
}

fn record(event: &str, now: Timestamp) -> Option<Record> {
    let body = Bytes::copy_from_slice(event.as_bytes());
    match Record::receive(body, Source::EventsApi, None, now) {
        Received::Event(record) | Received::Quarantined(record, _) => Some(record),
        Received::NotOurs => None,
    }
}

fn created_at(event: &str) -> Option<Timestamp> {
    let text = json::storable(event.as_bytes()).ok()?;
    let [created_at] = json::members(&text, &["created_at"]).ok()?;
    created_at
        .and_then(json::string)
        .and_then(|text| Timestamp::parse(&text))
}

/// The last of `times`, if they ascend. A page in descending order says nothing about what comes after it, and neither
/// does a page of a single moment, which may be in either order.
fn last_in_order(times: &[Option<Timestamp>]) -> Option<Timestamp> {
    let first = times.first().copied().flatten()?;
    times.last().copied().flatten().filter(|last| *last > first)
}

/// Splits the time from `start` to `now` into ranges that the API accepts. The last one is open-ended.
fn ranges(start: Timestamp, now: Timestamp) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut start = start;
    while now.since(start) > LONGEST_RANGE {
        let end = start.plus(LONGEST_RANGE);
        ranges.push(Range {
            start,
            end: Some(end),
        });
        start = end.minus(OVERLAP);
    }
    ranges.push(Range { start, end: None });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_absence_is_read_in_ranges_without_a_gap() {
        let at = |days: u64| Timestamp::from_micros(0).plus(Duration::from_hours(24 * days));
        let range = |start, end| Range { start, end };
        assert_eq!(ranges(at(1), at(20)), [range(at(1), None)]);
        // Each begins a second before the previous one ends, so that an event at the bound is in at least one of them.
        let bound = |number: u32| at(29 * u64::from(number)).minus(OVERLAP * (number - 1));
        let from = |number: u32| bound(number).minus(OVERLAP);
        assert_eq!(
            ranges(at(0), at(89)),
            [
                range(at(0), Some(bound(1))),
                range(from(1), Some(bound(2))),
                range(from(2), Some(bound(3))),
                range(from(3), None)
            ]
        );
        assert_eq!(ranges(at(5), at(4)), [range(at(5), None)]);
    }

    #[test]
    fn only_a_page_in_order_moves_the_position() {
        let at = |micros| Some(Timestamp::from_micros(micros));
        assert_eq!(last_in_order(&[at(1), at(5), at(9)]), at(9));
        assert_eq!(last_in_order(&[at(9), at(5)]), None);
        assert_eq!(last_in_order(&[at(9), at(9)]), None);
        assert_eq!(last_in_order(&[at(9)]), None);
        assert_eq!(last_in_order(&[at(9), None]), None);
        assert_eq!(last_in_order(&[]), None);
    }
}
