//! Builds the projection again beside the live one: reads the log from its first record to where the lanes stand, and
//! writes it into temporary tables, through the same fold and the same statements as the lanes.
//!
//! ```text
//!   log ──► fold ──► temporary tables ──► at the lanes' own position: compare with the live ones
//!                                                      │
//!                        verify: names what differs ◄──┴──► rebuild: replaces what differs, writers waiting
//! ```
//!
//! The two are compared at one position. The live tables are the fold of the log as far as the lanes have read it, so the
//! build stops exactly there. Nothing here writes the live tables, and nothing of a build outlives its connection.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use journal::{Entry, Journal, Reader};
use schema::ids::{DirectoryId, GroupId, UserId};
use schema::picture::Picture;
use schema::timestamp::Timestamp;
use service::postgres::{Trouble, described, is_missing_schema};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use time::OffsetDateTime;

use crate::fold::{Outcome, Texts, fold};
use crate::holes::{self, EVERYTHING, Hole, Reading};
use crate::lane::Lane;
use crate::reach::Reach;
use crate::sent_back;
use crate::store;
use crate::store::differing;
use crate::store::shadow::{self, Seed, TABLES};
use crate::store::swap::{self, Stand};
use crate::store::taken;
use crate::watch::{Verdict, appended_at, judge};

/// Maximum number of records written at once.
const RECORDS: usize = 2_000;
/// Maximum size of the bodies written at once, in bytes.
const BYTES: usize = 8 << 20;
/// A read that takes longer is started again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before reading again when the log's copies disagree, and how many times to do so.
const PAUSE: Duration = Duration::from_millis(500);
const DOUBTS: u32 = 20;
/// How many records behind the lanes the build may be when it is compared. The rest is read while others wait.
const NEAR: u64 = 2_000;
/// How many snapshots to take, one after the other, while people are erased.
const SNAPSHOTS: usize = 20;

/// Why nothing was built, compared or replaced. The live projection is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no log.
    #[error("there is no log yet: dsync-ingest or dsync-reconciler creates it")]
    NoLog,
    /// Nothing has been projected yet.
    #[error("nothing has been projected into this database yet: start dsync-projector first")]
    NotBegun,
    /// The connection has no session of its own.
    #[error(
        "DATABASE_URL leads through a transaction pooler, which shares sessions between clients, but this command needs one \
         of its own: connect to Postgres directly or through a session pooler"
    )]
    Pooled,
    /// The lanes stand in a different log.
    #[error(
        "the log is not the one that the projection was built from: a running dsync-projector notices this within seconds \
         and reads the log from its beginning; try again then"
    )]
    OtherLog,
    /// The lanes were moved back during the build.
    #[error(
        "the lanes were moved back while this command ran (the log lost its end, or a rebuild was undone): try again"
    )]
    SentBack,
    /// The lanes were sent back and do not come forward.
    #[error(
        "an undone rebuild sent the lanes back, and no projector is applying again what came after it: start dsync-projector, \
         and try again when it has caught up"
    )]
    NotThereAgain,
    /// A broker that answers for the log does not know what was already read.
    #[error(
        "cannot determine what the log lacks: it is changing, or its copies differ (see `nats stream info`); nothing was \
         changed, try again"
    )]
    Unsettled,
    /// The log lost entries, and that was not known before.
    #[error(
        "the log lost entries after sequence {0}, which was not known when this command began, and building without them \
         would undo what they said; nothing was changed, try again. If this happens again, the leader's copy of the log is damaged: have another \
         server lead (`nats stream cluster step-down`)"
    )]
    Lost(u64),
    /// The lanes kept moving ahead.
    #[error(
        "the projector applies new records faster than the log can be read again: try again when there is less to do"
    )]
    Outrun,
    /// The log lacks its beginning, and `--sweep` was not given.
    #[error(
        "the log no longer reaches back to its beginning: it is complete only since {0}, so a rebuild from it alone would \
         lose what is older. `rebuild --sweep` has the reconciler list every directory into the log first; `verify` \
         compares what the log knows, and lists older rows separately"
    )]
    Cut(Timestamp),
    /// There are no directories to list.
    #[error(
        "the reconciler does not know any directory yet: start dsync-reconciler, and try again after its first sweep"
    )]
    NothingToList,
    /// Shutdown was requested.
    #[error("stopped; nothing was changed")]
    Stopped,
    /// There is nothing to undo.
    #[error("there is no rebuild to undo: only the newest can be undone, once, within a week")]
    NothingToUndo,
    /// The log failed.
    #[error("the log: {0}; nothing was changed, run this again")]
    Log(#[from] journal::Error),
    /// Reading the log failed.
    #[error("the log: {0}; nothing was changed, run this again")]
    Read(#[from] journal::ReadError),
    /// The database failed.
    #[error("the database: {}; nothing was changed{}", described(.0), if is_missing_schema(.0) { "" } else { ", run this again" })]
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

/// A build: how far it is, and what it has found. Everything happens on the one connection on which it began.
pub struct Build {
    journal: Journal,
    /// When the stream was created.
    created: Timestamp,
    /// The sequence up to which the log is applied.
    seq: u64,
    /// The sequence up to which its removals are applied.
    removals: u64,
    /// Whether the keys of rows being written are recorded as candidates for replacement.
    noting: bool,
    reach: Reach,
    /// When the build began.
    now: Timestamp,
    /// Records that could not be applied. They are dead letters of the live projection, too.
    pub dead: u64,
    /// Records applied.
    pub records: u64,
}

impl Build {
    /// Begins a build on `connection`, which must be used for nothing else from here on.
    pub async fn begin(
        connection: &mut PgConnection,
        journal: &Journal,
        now: OffsetDateTime,
    ) -> Result<Self, Error> {
        // In this order, so that a lane that moves on between the two is not beyond the end of the log seen here.
        let stand = swap::stand(connection).await?;
        let log = journal.identity().await?.ok_or(Error::NoLog)?;
        let stand = stand.ok_or(Error::NotBegun)?;
        // Also notices a log that was set back and has grown since. A build from it would bring back people whose removal
        // was lost.
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

    /// The sequence up to which the log is applied.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The moment up to which the log may know less than the live rows.
    pub fn cut(&self) -> Option<OffsetDateTime> {
        self.reach.cut()
    }

    /// Seeds the tables with what the log no longer says, as far as the live rows know it. With many rows that takes a
    /// while. Whatever the log drops meanwhile (by its max age) would be missed, so it is then done once more.
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

    /// Applies the log until the build is close behind the lanes.
    pub async fn catch_up(&mut self, connection: &mut PgConnection, bar: &ProgressBar) -> Result<(), Error> {
        loop {
            let stand = swap::stand(connection).await?.ok_or(Error::NotBegun)?;
            bar.set_length(stand.all.seq);
            if !self.is_near(stand) {
                self.follow(connection, stand, bar).await?;
            } else if sent_back::are_any(connection, &self.journal).await? {
                sent_back::wait(connection, &self.journal, bar).await?;
            } else if self.is_near(swap::stand(connection).await?.ok_or(Error::NotBegun)?) {
                break;
            }
        }
        // Autovacuum does not visit temporary tables, and the plans of the comparison depend on these statistics.
        for table in TABLES {
            let analyze = format!("analyze pg_temp.{}", table.name);
            sqlx::raw_sql(AssertSqlSafe(analyze))
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }

    /// Whether little is left to apply before the build reaches `stand`.
    pub fn is_near(&self, stand: Stand) -> bool {
        let removals = stand
            .removals
            .seq
            .saturating_sub(self.removals.max(stand.all.seq));
        stand.all.seq.saturating_sub(self.seq) <= NEAR && removals <= NEAR
    }

    /// Finds the rows that differ from the live ones, at one position, in one snapshot. Returns how many rows each table
    /// has, and how many were scrubbed. With `note`, the rows that differ, and those that change from then on, become
    /// candidates for replacement.
    pub async fn compare(
        &mut self,
        connection: &mut PgConnection,
        note: bool,
        bar: &ProgressBar,
    ) -> Result<(Vec<(&'static str, u64)>, u64), Error> {
        for _ in 0..SNAPSHOTS {
            let Some(found) = self.find_differences(connection, bar).await? else {
                continue;
            };
            if note {
                differing::into_candidates(connection).await?;
                self.noting = true;
            }
            return Ok(found);
        }
        Err(Error::Unsettled)
    }

    /// As [`Self::compare`]. `None` if somebody was erased since the snapshot began: what the log lacks by now is still in
    /// the snapshot's rows, so the two cannot be compared.
    async fn find_differences(
        &mut self,
        connection: &mut PgConnection,
        bar: &ProgressBar,
    ) -> Result<Option<(Vec<(&'static str, u64)>, u64)>, Error> {
        let before = (self.seq, self.removals, self.dead, self.records);
        let mut snapshot = connection
            .begin_with("begin isolation level repeatable read")
            .await?;
        let stand = swap::stand(&mut snapshot).await?.ok_or(Error::NotBegun)?;
        if sent_back::are_any(&mut snapshot, &self.journal).await? {
            return Err(Error::SentBack);
        }
        match self.follow(&mut snapshot, stand, bar).await {
            Err(Error::Lost(_)) => {
                snapshot.rollback().await?;
                (self.seq, self.removals, self.dead, self.records) = before;
                // If they were lost after all, and not erased, this fails in the same way.
                self.follow(connection, stand, bar).await?;
                return Ok(None);
            }
            followed => followed?,
        }
        taken::add_beside(&mut snapshot).await?;
        let (mut rows, mut scrubbed) = (Vec::new(), 0);
        for table in TABLES {
            scrubbed += differing::find(&mut snapshot, table).await?;
            rows.push((table.name, differing::rows(&mut snapshot, table).await?));
        }
        snapshot.commit().await?;
        Ok(Some((rows, scrubbed)))
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

    /// Applies the records after `from` up to `to`: all of them, or those of a lane.
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
            // Otherwise the reader would wait for records that were purged since.
            match self.journal.first_at(at + 1, EVERYTHING).await? {
                Some(next) if next.seq <= to => {}
                next => {
                    let rest = Hole {
                        after: at,
                        before: to + 1,
                    };
                    let lost = holes::at_end(connection, &self.journal, self.created, rest).await?;
                    let known_at = next.map_or(self.now, |next| next.appended_at);
                    return match lost.last() {
                        Some(hole) if !self.reach.knows(known_at) => Err(Error::Lost(hole.after)),
                        _ => Ok(()),
                    };
                }
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
            // A damaged copy of the log may lack somebody's removal, although the log has it.
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
            // The live rows may contain what a lost entry said.
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

    /// Writes all of `entries`, or none.
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

/// Records the keys of everything in `picture` as candidates.
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
