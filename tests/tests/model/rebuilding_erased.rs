//! Verifying and rebuilding while people are erased, and after it. What the records of erased people said of groups is then in
//! the groups' rows only.

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use journal::Journal;
use projector::beside::Build;
use projector::erase::erase;
use projector::lane::Lane;
use projector::store::differing;
use schema::record::{Record, Source};
use serde_json::{Value, json};
use service::clock::Clock;
use sqlx::PgPool;
use tests::{Nats, Postgres};
use time::OffsetDateTime;

use crate::rebuilding::work;
use crate::{log_on, record, somebody_waits};

fn moment(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}.000Z")
}

fn event(id: &str, event: &str, at: u32, data: &Value) -> Record {
    let body = json!({"id": id, "event": event, "created_at": moment(at), "data": data});
    record(body.to_string().as_bytes(), Source::Webhook)
}

fn directory(id: &str, organization: &str) -> Record {
    let data = json!({"id": id, "organization_id": organization, "updated_at": moment(1), "state": "active"});
    event(id, "dsync.activated", 1, &data)
}

fn user(id: &str) -> Value {
    json!({"id": id, "directory_id": "d1", "updated_at": moment(2), "state": "active"})
}

fn group(second: u32) -> Value {
    json!({"id": "g", "directory_id": "d1", "name": format!("as of {second}"), "updated_at": moment(second)})
}

fn joins(id: &str, at: u32, who: &str, group: &Value) -> Record {
    let data = json!({"directory_id": "d1", "user": user(who), "group": group});
    event(id, "dsync.group.user_added", at, &data)
}

struct World {
    _postgres: Postgres,
    nats: Nats,
    pool: PgPool,
    journal: Journal,
}

impl World {
    /// A log of these records, applied to the tables.
    async fn of(records: &[Record]) -> anyhow::Result<Self> {
        let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
        let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
        let world = Self {
            _postgres: postgres,
            nats,
            pool,
            journal,
        };
        world.more(records).await?;
        Ok(world)
    }

    async fn more(&self, records: &[Record]) -> anyhow::Result<()> {
        for record in records {
            self.journal.append(record).await?;
        }
        let last = self.journal.identity().await?.context("no log")?.last_seq;
        work(&self.pool, &self.nats, Lane::Removals, 0).await?;
        work(&self.pool, &self.nats, Lane::All, last).await?;
        Ok(())
    }

    async fn erase(&self, who: &str) -> anyhow::Result<()> {
        erase(&self.pool, &self.journal, who, true, OffsetDateTime::UNIX_EPOCH).await?;
        Ok(())
    }
}

/// Only the events of memberships describe the group, `u`'s best.
fn two_members() -> [Record; 5] {
    [
        directory("d1", "o1"),
        event("e1", "dsync.user.created", 2, &user("v")),
        event("e2", "dsync.user.created", 2, &user("u")),
        joins("e3", 5, "u", &group(4)),
        joins("e4", 6, "v", &json!({"id": "g", "directory_id": "d1"})),
    ]
}

/// The erasure is not in the comparison's snapshot, but what it takes is not in the log any more: from its middle, or from
/// its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_while_rows_are_compared_is_neither_a_loss_nor_a_difference() -> anyhow::Result<()> {
    let newest = joins("e5", 7, "w", &json!({"id": "g", "directory_id": "d1"}));
    for people in [&["w"][..], &["u"], &["u", "v", "w"]] {
        let world = World::of(&two_members()).await?;
        world.more(std::slice::from_ref(&newest)).await?;
        let (pool, bar) = (&world.pool, ProgressBar::hidden());
        let mut connection = pool.acquire().await?.detach();
        let mut build = Build::begin(&mut connection, &world.journal, Clock::system().now()).await?;
        let mut lane = pool.begin().await?;
        sqlx::query("lock table dsync.progress")
            .execute(&mut *lane)
            .await?;
        let comparing = async {
            build.compare(&mut connection, false, &bar).await?;
            anyhow::Ok(differing::list(&mut connection, false, 10).await?)
        };
        let erasing = async {
            somebody_waits(pool, "relation = 'dsync.progress'::regclass").await?;
            for person in people {
                world.erase(person).await?;
            }
            anyhow::Ok(lane.commit().await?)
        };
        let (found, erased) = tokio::join!(comparing, erasing);
        erased?;
        let found = found.with_context(|| format!("{people:?}"))?;
        ensure!(found.is_empty(), "{people:?}: {found:?}");
    }
    Ok(())
}
