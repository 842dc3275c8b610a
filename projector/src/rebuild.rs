//! The subcommands `verify` and `rebuild`: check whether the projection is what the log says, and make it so.
//!
//! Both build the projection again beside the live one ([`crate::beside`]) and compare the two row by row. `rebuild` then
//! stops the writers for a moment, compares once more the rows that differed or have changed since, and replaces those that
//! still differ in one transaction. Readers see the rows before or the rows after, and never wait. The old rows are kept
//! for `rebuild --undo`.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use journal::Journal;
use schema::timestamp::Timestamp;
use service::clock::Clock;
use service::postgres::is_shared;
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::backlog;
use crate::beside::{Build, Error};
use crate::holes::EVERYTHING;
use crate::reach::Reach;
use crate::rebuild_report::{Older, Rebuilt, Undone, Verified};
use crate::sent_back;
use crate::store::differing;
use crate::store::shadow::{Seed, TABLES};
use crate::store::{swap, taken};

/// How many rows older than the log are named, per table.
const SOME: i64 = 20;
/// The maximum number of times to stop the writers. They are released again whenever too much has come in meanwhile.
const ATTEMPTS: usize = 10;
/// How often to look at the reconciler's progress.
const LOOK: Duration = Duration::from_secs(1);

/// What both subcommands work with. Their futures may be dropped at any moment, which rolls back whatever is not committed.
pub struct Tools {
    /// The projection. One connection is taken from it.
    pub pool: PgPool,
    /// The log.
    pub journal: Journal,
    /// The clock.
    pub clock: Clock,
    /// Maximum number of rows to name.
    pub limit: usize,
    /// Where progress is shown.
    pub bar: ProgressBar,
}

impl Tools {
    /// A connection with a session of its own: nobody else gets its temporary tables and settings.
    async fn connection(&self) -> Result<PgConnection, Error> {
        let mut connection = self.pool.acquire().await?.detach();
        if is_shared(&mut connection, &self.pool).await? {
            return Err(Error::Pooled);
        }
        Ok(connection)
    }

    /// Compares the live projection with the log. Changes nothing, and keeps nobody waiting.
    pub async fn verify(&self) -> Result<Verified, Error> {
        let began = Instant::now();
        let mut connection = self.connection().await?;
        let mut build = Build::begin(&mut connection, &self.journal, self.clock.now()).await?;
        build.seed(&mut connection, Seed::Everything).await?;
        build.catch_up(&mut connection, &self.bar).await?;
        self.bar.set_message("comparing");
        let (rows, scrubbed) = build.compare(&mut connection, false, &self.bar).await?;
        let mut older = Vec::new();
        if let Some(cut) = build.cut() {
            for table in TABLES {
                let (count, some) = differing::older(&mut connection, table, cut, SOME).await?;
                older.push(Older {
                    entity: table.entity,
                    count,
                    some,
                });
            }
        }
        self.bar.finish_and_clear();
        Ok(Verified {
            differing: differing::count(&mut connection, false).await?,
            differences: differing::list(&mut connection, false, self.limit).await?,
            rows,
            scrubbed,
            older: older.into_iter().filter(|one| one.count > 0).collect(),
            complete_since: complete_since(&build),
            records: build.records,
            unreadable: build.dead,
            position: build.seq(),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Makes the live projection what the log says. If the log lacks its beginning, that requires `sweep`.
    pub async fn rebuild(&self, sweep: bool) -> Result<Rebuilt, Error> {
        let began = Instant::now();
        let mut connection = self.connection().await?;
        let mut build = Build::begin(&mut connection, &self.journal, self.clock.now()).await?;
        let mut asked = None;
        if let Reach::Since(cut) = build.reach() {
            if !sweep {
                return Err(Error::Cut(cut));
            }
            asked = Some(swap::ask_for_lists(&mut connection).await?);
            build.seed(&mut connection, Seed::Gone).await?;
        }
        build.catch_up(&mut connection, &self.bar).await?;
        let mut unlisted = Vec::new();
        if let Some(asked) = asked {
            unlisted = self.listed(&mut connection, asked).await?;
            build.catch_up(&mut connection, &self.bar).await?;
        }
        self.bar.set_message("comparing");
        build.compare(&mut connection, true, &self.bar).await?;
        let mut report = self.swap(&mut connection, &mut build, &unlisted).await?;
        self.bar.finish_and_clear();
        report.unlisted = unlisted;
        report.complete_since = complete_since(&build);
        report.records = build.records;
        report.unreadable = build.dead;
        report.seconds = began.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Waits until the reconciler has listed every directory into the log and the lanes have applied that. Returns the
    /// directories that were not listed: those whose own deletion is held back.
    async fn listed(&self, connection: &mut PgConnection, asked: Timestamp) -> Result<Vec<String>, Error> {
        loop {
            let (listed, all) = swap::listed(connection, asked).await?;
            if all == 0 {
                return Err(Error::NothingToList);
            }
            self.bar
                .set_message(format!("the reconciler has listed {listed} of {all} directories"));
            if listed == all {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let unlisted = swap::unlisted(connection, asked).await?;
        let end = self.journal.identity().await?.ok_or(Error::NoLog)?.last_seq;
        loop {
            let stand = swap::stand(connection).await?.ok_or(Error::NotBegun)?;
            // No lane reads what was erased from the end.
            let next = self.journal.first_at(stand.all.seq + 1, EVERYTHING).await?;
            if next.is_none_or(|next| next.seq > end) {
                return Ok(unlisted);
            }
            self.bar
                .set_message("waiting for a projector to apply what was listed");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Replaces the rows that differ, while every writer waits.
    async fn swap(
        &self,
        connection: &mut PgConnection,
        build: &mut Build,
        unlisted: &[String],
    ) -> Result<Rebuilt, Error> {
        // Whatever is left of the history backlog would have to be written while the writers wait.
        backlog::drain(&self.pool).await?;
        for _ in 0..ATTEMPTS {
            let mut transaction = connection.begin().await?;
            let stopped = Instant::now();
            let stand = swap::stop_writers(&mut transaction)
                .await?
                .ok_or(Error::NotBegun)?;
            if !build.is_near(stand) || sent_back::are_any(&mut transaction, &self.journal).await? {
                transaction.rollback().await?;
                build.catch_up(connection, &self.bar).await?;
                continue;
            }
            build.follow(&mut transaction, stand, &self.bar).await?;
            taken::add_beside(&mut transaction).await?;
            for table in TABLES {
                differing::find_among_candidates(&mut transaction, table).await?;
                if build.cut().is_some() {
                    differing::hold(&mut transaction, table, unlisted).await?;
                }
            }
            let replaced = differing::count(&mut transaction, false).await?;
            let id = swap::begin(&mut transaction, stand, replaced.all).await?;
            for table in TABLES {
                swap::replace(&mut transaction, table, id).await?;
            }
            transaction.commit().await?;
            let writers_waited = stopped.elapsed().as_secs_f64();
            swap::forget_earlier(connection, id).await?;
            return Ok(Rebuilt {
                rebuild: id,
                replaced,
                rows: differing::list(connection, false, self.limit).await?,
                held: differing::count(connection, true).await?,
                held_rows: differing::list(connection, true, self.limit).await?,
                writers_waited,
                position: stand.all.seq,
                ..Rebuilt::default()
            });
        }
        Err(Error::Outrun)
    }

    /// Restores what the newest rebuild replaced.
    pub async fn undo(&self) -> Result<Undone, Error> {
        backlog::drain(&self.pool).await?;
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql("set local statement_timeout = 0")
            .execute(&mut *transaction)
            .await?;
        swap::stop_writers(&mut transaction).await?;
        let newest = swap::newest(&mut transaction).await?;
        let newest = newest
            .filter(|one| one.kept == one.rows)
            .ok_or(Error::NothingToUndo)?;
        swap::undo(&mut transaction, newest.id).await?;
        transaction.commit().await?;
        Ok(Undone {
            rebuild: newest.id,
            done_at: newest.done_at,
            rows: newest.rows,
        })
    }
}

fn complete_since(build: &Build) -> Option<Timestamp> {
    match build.reach() {
        Reach::Beginning => None,
        Reach::Since(at) => Some(at),
    }
}
