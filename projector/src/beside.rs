//! Building the projection again beside the live one: the log from its first record to where the lanes stand, through
//! the fold and the statements that the lanes use, into temporary tables.
//!
//! ```text
//!   log ──► fold ──► temporary tables ──► at the lanes' own position: compare with the live ones
//!                                                      │
//!                        verify: names what differs ◄──┴──► rebuild: replaces what differs, writers waiting
//! ```
//!
//! What is compared is compared at one position: the live tables are the fold of the log as far as the lanes have read
//! it, so the build stops exactly there. Nothing live is written here, and nothing of it outlives the connection.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use journal::{Entry, Journal, Reader};
use schema::ids::{DirectoryId, GroupId, UserId};
use schema::picture::Picture;
use schema::timestamp::Timestamp;
use service::postgres::{Trouble, described};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use time::OffsetDateTime;

use crate::fold::{Outcome, Texts, fold};
use crate::holes::{self, EVERYTHING, Reading};
use crate::lane::Lane;
use crate::reach::Reach;
use crate::store;
use crate::store::differing;
use crate::store::shadow::{self, Seed, TABLES};
use crate::store::swap::{self, Stand};
use crate::watch::{Verdict, appended_at, judge};

/// Records written at once.
const RECORDS: usize = 2_000;
/// Bytes of bodies written at once.
const BYTES: usize = 8 << 20;
/// An answer that takes longer is asked for again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before asking again when the log's copies do not agree, and how often.
const PAUSE: Duration = Duration::from_millis(500);
const DOUBTS: u32 = 20;
/// So far behind the lanes the build may be when it is compared: what is left is read while others wait.
const NEAR: u64 = 2_000;

/// Why nothing was built, compared or replaced. The live projection is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no log.
    #[error("there is no log yet: ingest or the reconciler makes it")]
    NoLog,
    /// Nothing was ever projected.
    #[error("nothing was ever projected into this database: start dsync-projector first")]
    NotBegun,
    /// There is no session of our own.
    #[error(
        "DATABASE_URL leads through a transaction pooler, which gives what is made in a session to others: connect to \
         Postgres directly, or through a session pooler, for this command"
    )]
    Pooled,
    /// The lanes stand in another log.
    #[error(
        "the log is not the one the projection stands in: a running dsync-projector notices within seconds and reads it \
         from the beginning; try again then"
    )]
    OtherLog,
    /// The lanes went back while we built.
    #[error(
        "the lanes were sent back while this was at work (the log lost its end, or a rebuild was undone): try again"
    )]
    SentBack,
    /// Who answers for the log does not know what was read.
    #[error(
        "what the log lacks cannot be told: it changes, or its copies differ (see `nats stream info`); nothing was changed, try \
         again"
    )]
    Unsettled,
    /// The log lost entries that were not known to be lost.
    #[error(
        "the log lost entries behind {0} while this was at work: built without them, what they said would be undone; nothing was \
         changed, try again. Should it come again, the copy of the log's leader is damaged: have another one lead (`nats stream \
         cluster step-down`)"
    )]
    Lost(u64),
    /// The lanes kept running ahead.
    #[error(
        "the projector runs ahead faster than the log can be read again: try again when there is less to do"
    )]
    Outrun,
    /// The log lacks its beginning, and nobody said what to do about it.
    #[error(
        "the log no longer reaches back to the beginning: it is complete since {0} only, so a rebuild from it alone would \
         lose what is older. `rebuild --sweep` has the reconciler list every directory into the log first; `verify` \
         compares what the log knows, and lists older rows apart"
    )]
    Cut(Timestamp),
    /// The directories cannot be listed.
    #[error(
        "no directory is known to the reconciler yet: start dsync-reconciler, and try again after its first sweep"
    )]
    NothingToList,
    /// Told to stop.
    #[error("stopped; nothing was changed")]
    Stopped,
    /// There is nothing to undo.
    #[error("there is no rebuild to undo: only the newest can be, once, within a week")]
    NothingToUndo,
    /// The log failed.
    #[error("the log: {0}; nothing was changed, run this again")]
    Log(#[from] journal::Error),
    /// Reading the log failed.
    #[error("the log: {0}; nothing was changed, run this again")]
    Read(#[from] journal::ReadError),
    /// The database failed.
    #[error("the database: {}; nothing was changed, run this again", described(.0))]
    Database(#[from] sqlx::Error),
}

impl From<holes::Error> for Error {
    fn from(error: holes::Error) -> Self {
        match error {
            holes::Error::Log(error) => error.into(),
            holes::Error::Database(error) => error.into(),
        }
    }
}

/// A build: where it is, what it met. Everything happens on the one connection it was begun on.
pub struct Build {
    journal: Journal,
    /// When the stream was made.
    created: Timestamp,
    /// How far the log was applied.
    seq: u64,
    /// How far its removals were applied.
    removals: u64,
    /// Whether the keys of what is applied are kept as candidates.
    noting: bool,
    reach: Reach,
    /// When it was begun.
    now: Timestamp,
    /// Records that could not be applied: they are the live projection's dead letters too.
    pub dead: u64,
    /// Records applied.
    pub records: u64,
}

impl Build {
    /// Begins one on `connection`, which is used for nothing else from here on.
    pub async fn begin(
        connection: &mut PgConnection,
        journal: &Journal,
        now: OffsetDateTime,
    ) -> Result<Self, Error> {
        // In this order: a lane that moves on between the two is not beyond an end that was asked for after.
        let stand = swap::stand(connection).await?;
        let log = journal.identity().await?.ok_or(Error::NoLog)?;
        let stand = stand.ok_or(Error::NotBegun)?;
        // Also one that was set back and has grown again since: built from it, who was removed in what it lost would be back.
        let there = appended_at(journal, stand.all.seq, log).await?;
        if judge(stand.all, log, there, Lane::All) == Verdict::Rewound {
            return Err(Error::OtherLog);
        }
        let reach = Reach::of(connection, journal, log, now.into()).await?;
        shadow::create(connection).await?;
        Ok(Self {
            journal: journal.clone(),
            created: log.created,
            seq: 0,
            removals: 0,
            noting: false,
            reach,
            now: now.into(),
            dead: 0,
            records: 0,
        })
    }

    /// How far back the log reaches.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// How far the log was applied.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The moment up to which the log may know less than the live rows.
    pub fn cut(&self) -> Option<OffsetDateTime> {
        self.reach.cut()
    }

    /// Puts in what the log no longer says, as far as the live rows know it. That takes its time with many rows, and what
    /// the log drops meanwhile (its max age) will be read by nobody: then it is done once more.
    pub async fn seed(&mut self, connection: &mut PgConnection, seed: Seed) -> Result<(), Error> {
        loop {
            let began = Instant::now();
            if let Some(cut) = self.cut() {
                shadow::seed(connection, cut, seed).await?;
            }
            let log = self.journal.identity().await?.ok_or(Error::NoLog)?;
            let now = Reach::of(connection, &self.journal, log, self.now).await?;
            match now.beyond(self.reach, began.elapsed()) {
                Some(further) => self.reach = further,
                None => return Ok(()),
            }
        }
    }

    /// Applies the log until the lanes are near.
    pub async fn catch_up(&mut self, connection: &mut PgConnection, bar: &ProgressBar) -> Result<(), Error> {
        loop {
            let stand = swap::stand(connection).await?.ok_or(Error::NotBegun)?;
            bar.set_length(stand.all.seq);
            if self.is_near(stand) {
                break;
            }
            self.follow(connection, stand, bar).await?;
        }
        // Nobody else does it for temporary tables, and what compares them is planned by it.
        for table in TABLES {
            let analyze = format!("analyze pg_temp.{}", table.name);
            sqlx::raw_sql(AssertSqlSafe(analyze))
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }

    /// Whether little is left to apply until `stand`.
    pub fn is_near(&self, stand: Stand) -> bool {
        let removals = stand
            .removals
            .seq
            .saturating_sub(self.removals.max(stand.all.seq));
        stand.all.seq.saturating_sub(self.seq) <= NEAR && removals <= NEAR
    }

    /// Finds the rows that differ from the live ones, at one position, in one snapshot. Answers how many rows each table
    /// has, and how many were scrubbed. With `note`, what differs and what changes from then on become candidates for being
    /// replaced.
    pub async fn compare(
        &mut self,
        connection: &mut PgConnection,
        note: bool,
        bar: &ProgressBar,
    ) -> Result<(Vec<(&'static str, u64)>, u64), Error> {
        let mut snapshot = connection
            .begin_with("begin isolation level repeatable read")
            .await?;
        let stand = swap::stand(&mut snapshot).await?.ok_or(Error::NotBegun)?;
        self.follow(&mut snapshot, stand, bar).await?;
        let (mut rows, mut scrubbed) = (Vec::new(), 0);
        for table in TABLES {
            scrubbed += differing::find(&mut snapshot, table).await?;
            rows.push((table.name, differing::rows(&mut snapshot, table).await?));
        }
        snapshot.commit().await?;
        if note {
            differing::into_candidates(connection).await?;
            self.noting = true;
        }
        Ok((rows, scrubbed))
    }

    /// Applies the log as far as the lanes have: up to `stand`, no further.
    pub async fn follow(
        &mut self,
        connection: &mut PgConnection,
        stand: Stand,
        bar: &ProgressBar,
    ) -> Result<(), Error> {
        if stand.all.stream_created != self.created || stand.all.seq < self.seq {
            return Err(Error::SentBack);
        }
        self.read(connection, (self.seq, stand.all.seq), None, bar)
            .await?;
        self.seq = stand.all.seq;
        let from = self.removals.max(self.seq);
        self.read(connection, (from, stand.removals.seq), Some(Lane::Removals), bar)
            .await?;
        self.removals = stand.removals.seq.max(from);
        Ok(())
    }

    /// Applies the records after `from` up to `to`: all, or those of a lane.
    async fn read(
        &mut self,
        connection: &mut PgConnection,
        (from, to): (u64, u64),
        lane: Option<Lane>,
        bar: &ProgressBar,
    ) -> Result<(), Error> {
        let mut at = from;
        let mut reader: Option<Reader> = None;
        let mut doubts = 0;
        while at < to {
            // What was purged since would be waited for.
            match self.journal.first_at(at + 1, EVERYTHING).await? {
                Some(next) if next.seq <= to => {}
                _ => break,
            }
            let open = match reader.take() {
                Some(open) => open,
                None => self.journal.read(at, &[]).await?,
            };
            let open = reader.insert(open);
            let Ok(entries) = tokio::time::timeout(PATIENCE, open.next_batch(RECORDS, BYTES)).await else {
                reader = None;
                continue;
            };
            let mut entries = entries?;
            let read_to = open.position();
            // A damaged copy of the log may lack somebody's removal, which the log has.
            let reading = Reading {
                created: self.created,
                position: at,
                over_dropped: true,
                records: RECORDS,
                bytes: BYTES,
            };
            let complete = holes::complete(connection, &self.journal, reading, &mut entries).await?;
            let Some(lost) = complete else {
                doubts += 1;
                if doubts > DOUBTS {
                    return Err(Error::Unsettled);
                }
                reader = None;
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            doubts = 0;
            // Live rows may have what it said.
            if let Some(hole) = lost.iter().rfind(|hole| hole.after < to)
                && let Some(behind) = entries.iter().find(|entry| entry.seq >= hole.before)
                && !self.reach.knows(behind.appended_at)
            {
                return Err(Error::Lost(hole.after));
            }
            if entries.last().is_some_and(|last| last.seq < read_to) {
                reader = None;
            }
            at = entries.last().map_or(at, |last| last.seq).min(to);
            entries.retain(|entry| {
                entry.seq <= to && (lane != Some(Lane::Removals) || entry.record.subject.is_removal())
            });
            self.apply(connection, &entries).await?;
            if lane.is_none() {
                bar.set_position(at);
            }
        }
        Ok(())
    }

    async fn apply(&mut self, connection: &mut PgConnection, entries: &[Entry]) -> Result<(), Error> {
        match self.write(connection, entries).await {
            Err(error) if Trouble::of(&error) == Trouble::Data => {
                for entry in entries {
                    match self.write(connection, std::slice::from_ref(entry)).await {
                        Err(error) if Trouble::of(&error) == Trouble::Data => self.dead += 1,
                        other => other?,
                    }
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Writes all of `entries` or nothing.
    async fn write(&mut self, connection: &mut PgConnection, entries: &[Entry]) -> sqlx::Result<()> {
        let texts = Texts::of(entries);
        let fold = fold(entries, &texts);
        let mut transaction = connection.begin().await?;
        store::write_beside(&mut transaction, &fold.picture).await?;
        if self.noting {
            note(&mut transaction, &fold.picture).await?;
        }
        transaction.commit().await?;
        let dead = fold
            .outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Dead(_)));
        self.dead += dead.count() as u64;
        self.records += entries.len() as u64;
        Ok(())
    }
}

/// Notes the keys of everything in `picture` as candidates.
async fn note(connection: &mut PgConnection, picture: &Picture<'_>) -> sqlx::Result<()> {
    let directories: Vec<&str> = picture.directories.keys().map(DirectoryId::as_str).collect();
    let users: Vec<&str> = picture.users.keys().map(UserId::as_str).collect();
    let groups: Vec<&str> = picture.groups.keys().map(GroupId::as_str).collect();
    for (entity, ids) in [("directory", directories), ("user", users), ("group", groups)] {
        differing::note_candidates(connection, entity, &ids, &vec![""; ids.len()]).await?;
    }
    let (of_groups, members): (Vec<&str>, Vec<&str>) = picture
        .memberships
        .keys()
        .map(|(group, user)| (group.as_str(), user.as_str()))
        .unzip();
    differing::note_candidates(connection, "membership", &of_groups, &members).await
}
