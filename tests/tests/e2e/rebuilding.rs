//! `rebuild` and `verify` as users run them: under load, while readers read, and with people erased.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sqlx::PgPool;
use tests::{Output, eventually};
use workos_sim::{Change, DirectoryOptions, Faults, Seed};

use crate::stand::{BOUND, Stand, a_bad_day};

const DIFFERS: i32 = 3;

pub(crate) async fn projector(stand: &Stand, args: &[&str]) -> anyhow::Result<Output> {
    let mut program = stand.projector();
    for arg in args {
        program = program.arg(*arg);
    }
    program.run().await
}

async fn json(stand: &Stand, args: &[&str], code: i32) -> anyhow::Result<Value> {
    let output = projector(stand, &[args, &["--json"]].concat()).await?;
    ensure!(output.status.code() == Some(code), "{args:?}: {output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

/// A reader that counts a directory's people every 10 ms on one connection, until it is stopped.
struct Reader {
    stop: Arc<AtomicBool>,
    counts: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Reader {
    fn start(pool: &PgPool, directory: String, expected: i64) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (pool, stopped, counted) = (pool.clone(), stop.clone(), counts.clone());
        let task = tokio::spawn(async move {
            let mut connection = pool.acquire().await?;
            let mut every = tokio::time::interval(Duration::from_millis(10));
            while !stopped.load(Ordering::Relaxed) {
                every.tick().await;
                let count: i64 = sqlx::query_scalar(
                    "select count(*) from directory.users as u
                     join directory.memberships as m on m.user_id = u.id where u.directory_id = $1",
                )
                .bind(&directory)
                .fetch_one(&mut *connection)
                .await?;
                ensure!(count == expected, "a reader saw {count} of {expected}");
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, counts, task }
    }

    async fn looked(&self, times: usize) -> anyhow::Result<()> {
        eventually(BOUND, async || {
            let counts = self.counts.load(Ordering::Relaxed);
            ensure!(counts >= times || self.task.is_finished(), "{counts} looks");
            Ok(())
        })
        .await
    }

    async fn end(self) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.counts.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_in_the_middle_of_a_burst_is_seen_by_nobody() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let delivery = stand.deliver(a_bad_day(11))?;
    let directories = stand.populate(60, 6)?;
    delivery.hurry();
    delivery.drained().await;
    stand.agrees().await?;
    // From here on, nothing changes in this directory.
    let quiet = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(
        &quiet,
        &Seed {
            users: 80,
            groups: 4,
            ..Seed::default()
        },
    )?;
    delivery.hurry();
    delivery.drained().await;
    stand.agrees().await?;
    let expected: i64 = sqlx::query_scalar(
        "select count(*) from directory.users as u
         join directory.memberships as m on m.user_id = u.id where u.directory_id = $1",
    )
    .bind(&quiet)
    .fetch_one(&stand.pool)
    .await?;
    ensure!(expected > 20, "too few people to show anything");

    let reader = Reader::start(&stand.pool, quiet.clone(), expected);
    reader.looked(3).await?;
    let tampered =
        sqlx::query("update dsync.users set email = 'tampered@example.com' where directory_id = $1")
            .bind(&quiet)
            .execute(&stand.pool)
            .await?
            .rows_affected();
    let bursts = async {
        let mut hired = Vec::new();
        for _ in 0..150 {
            for directory in &directories {
                hired.push(stand.sim.create_user(directory)?);
            }
            if hired.len() % 2 == 0 {
                let user = hired.swap_remove(hired.len() / 2);
                stand.sim.change(Change::DeleteUser {
                    user,
                    removals: false,
                })?;
            }
            delivery.hurry();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    let (rebuilt, burst) = tokio::join!(json(&stand, &["rebuild"], 0), bursts);
    burst?;
    let rebuilt = rebuilt?;
    ensure!(rebuilt["replaced"]["differs"] == tampered, "{rebuilt}");
    delivery.hurry();
    delivery.drained().await;
    stand.agrees().await?;
    reader.looked(20).await?;
    let looks = reader.end().await?;
    ensure!(looks >= 20, "{looks} looks");
    let verified = json(&stand, &["verify"], 0).await?;
    ensure!(verified["differences"] == serde_json::json!([]), "{verified}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_the_row_and_its_columns_and_undo_brings_it_back() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let projector_running = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 3)?;
    delivery.drained().await;
    stand.agrees().await?;
    let output = projector(&stand, &["verify"]).await?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        output.stdout.contains("the projection is what the log says"),
        "{output:?}"
    );
    ensure!(output.stderr.is_empty(), "progress in a pipe: {output:?}");

    let history = stand.count("select count(*) from dsync.changes").await?;
    let user: String = sqlx::query_scalar("select min(id) from directory.users where active")
        .fetch_one(&stand.pool)
        .await?;
    sqlx::query("update dsync.users set job_title = 'Secret of ours', role = 'owner' where id = $1")
        .bind(&user)
        .execute(&stand.pool)
        .await?;
    let recorded = stand.count("select count(*) from dsync.changes").await? - history;
    ensure!(recorded == 1, "tampering must leave a trace in the history");
    let output = projector(&stand, &["verify"]).await?;
    ensure!(output.status.code() == Some(DIFFERS), "{output:?}");
    ensure!(
        output.stdout.contains(&format!("user {user}: job_title, role")),
        "{output:?}"
    );
    ensure!(
        !output.stdout.contains("Secret of ours"),
        "`verify` must not print values"
    );

    let rebuilt = json(&stand, &["rebuild"], 0).await?;
    ensure!(rebuilt["rows"][0]["id"] == *user, "{rebuilt}");
    let history = history + recorded;
    ensure!(
        stand.count("select count(*) from dsync.changes").await? == history,
        "rebuilds must write no history"
    );
    stand.agrees().await?;

    // Later changes to other rows survive when the rebuild is undone.
    let directories: Vec<String> = stand.sim.truth().directories.into_keys().collect();
    let mut hired = Vec::new();
    for directory in directories.iter().cycle().take(12) {
        hired.push(stand.sim.create_user(directory)?);
    }
    delivery.drained().await;
    stand.agrees().await?;
    let output = projector(&stand, &["rebuild", "--undo"]).await?;
    ensure!(output.status.success(), "{output:?}");
    stand.applied().await?;
    let told = json(&stand, &["verify"], DIFFERS).await?;
    ensure!(
        told["differing"]["all"] == 1 && told["differences"][0]["id"] == *user,
        "{told}"
    );
    ensure!(
        told["differences"][0]["columns"] == serde_json::json!(["job_title", "role"]),
        "{told}"
    );
    let shown: i64 = sqlx::query_scalar("select count(*) from directory.users where id = any($1)")
        .bind(&hired)
        .fetch_one(&stand.pool)
        .await?;
    ensure!(shown == 12, "only {shown} of the 12 new users are there");
    let output = projector(&stand, &["rebuild", "--undo"]).await?;
    ensure!(
        output.status.code() == Some(1) && output.stderr.contains("no rebuild to undo"),
        "{output:?}"
    );
    json(&stand, &["rebuild"], 0).await?;
    stand.agrees().await?;
    drop(projector_running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_erased_or_scrubbed_is_no_difference_and_does_not_come_back() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(12, 3)?;
    delivery.drained().await;
    stand.agrees().await?;
    let users: Vec<String> = sqlx::query_scalar("select id from directory.users order by id limit 2")
        .fetch_all(&stand.pool)
        .await?;
    let [erased, deleted] = &users[..] else {
        anyhow::bail!("fewer than two people")
    };
    let output = projector(&stand, &["erase", "--user", erased, "--force"]).await?;
    ensure!(output.status.success(), "{output:?}");
    let user = deleted.clone();
    stand.sim.change(Change::DeleteUser {
        user,
        removals: false,
    })?;
    delivery.drained().await;
    stand.applied().await?;
    // Scrub as upkeep does every ten minutes.
    sqlx::query(
        "update dsync.users set idp_id = null, email = null, username = null, first_name = null, last_name = null,
             name = null, job_title = null, state = null, role = null, roles = '{}', custom_attributes = null,
             raw_attributes = null where id = $1",
    )
    .bind(deleted)
    .execute(&stand.pool)
    .await?;
    let verified = json(&stand, &["verify"], 0).await?;
    ensure!(verified["scrubbed"] == 1, "{verified}");
    sqlx::query("update dsync.users set email = 'x' where id not in ($1, $2)")
        .bind(erased)
        .bind(deleted)
        .execute(&stand.pool)
        .await?;
    json(&stand, &["rebuild"], 0).await?;
    let of_them: i64 =
        sqlx::query_scalar("select count(*) from dsync.users where id = $1 or (id = $2 and email <> '')")
            .bind(erased)
            .bind(deleted)
            .fetch_one(&stand.pool)
            .await?;
    ensure!(of_them == 0, "an erased or scrubbed user is back");
    let kept: String = sqlx::query_scalar("select min(id) from dsync.replaced where entity = 'user'")
        .fetch_one(&stand.pool)
        .await?;
    let output = projector(&stand, &["erase", "--user", &kept, "--force"]).await?;
    ensure!(output.status.success(), "{output:?}");
    let images: i64 = sqlx::query_scalar("select count(image) from dsync.replaced where user_id = $1")
        .bind(&kept)
        .fetch_one(&stand.pool)
        .await?;
    ensure!(images == 0, "replaced rows must be erased, too");
    // The replaced rows of all others can still be restored.
    json(&stand, &["rebuild", "--undo"], 0).await?;
    let undone: (i64, i64) = sqlx::query_as(
        "select count(*) filter (where id = $1), count(*) filter (where email = 'x') from dsync.users",
    )
    .bind(&kept)
    .fetch_one(&stand.pool)
    .await?;
    ensure!(undone.0 == 0 && undone.1 > 0, "{undone:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_without_servers_or_projection_says_what_is_missing() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let output = projector(&stand, &["verify"]).await?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(
        output.stderr.contains("start dsync-projector first"),
        "{output:?}"
    );
    let output = projector(&stand, &["rebuild", "--undo"]).await?;
    ensure!(output.stderr.contains("no rebuild to undo"), "{output:?}");
    let running = stand.projector().start().await?;
    stand.populate(3, 1)?;
    drop(running);
    let unreachable = stand
        .projector()
        .env("NATS_URL", "nats://127.0.0.1:1")
        .arg("verify")
        .run()
        .await?;
    ensure!(unreachable.status.code() == Some(1), "{unreachable:?}");
    let told = unreachable.stderr.lines().last().context("no error")?;
    ensure!(told.contains("the log"), "{told}");
    Ok(())
}
