//! The recipes in `ops/queries.md`, as written there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use rand::prelude::*;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Postgres, eventually};
use workos_sim::{DirectoryOptions, Options, Seed, Sim};

use super::{BOUND, events, reader, rows, text, write};

/// The SQL of each recipe, by name.
fn recipes() -> BTreeMap<String, String> {
    let page = include_str!("../../../ops/queries.md");
    page.split("```sql\n-- recipe: ")
        .skip(1)
        .filter_map(|rest| {
            let (name, rest) = rest.split_once('\n')?;
            Some((name.to_owned(), rest.split_once("```")?.0.to_owned()))
        })
        .collect()
}

pub(super) async fn populated() -> anyhow::Result<(Postgres, PgPool, Sim)> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let sim = Sim::start(Options::default()).await?;
    for _ in 0..2 {
        let directory = sim.create_directory(DirectoryOptions::default())?;
        let seed = Seed {
            users: 30,
            groups: 4,
            ..Seed::default()
        };
        sim.seed(&directory, &seed)?;
    }
    write(&pool, &events(&sim, 0)).await?;
    Ok((postgres, pool, sim))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_runs_as_it_stands() -> anyhow::Result<()> {
    let (postgres, pool, _) = populated().await?;
    let recipes = recipes();
    ensure!(recipes.len() >= 7, "{:?}", recipes.keys());
    let someone = rows(
        &pool,
        "select id, email, organization_id from directory.users where active and email is not null",
    )
    .await?
    .remove(0);
    let word = |name: &str| someone[name].as_str().unwrap().to_owned();
    let tenant = reader(&postgres, "dsync_tenant", None).await?;
    let everyone = reader(&postgres, "dsync_reader", None).await?;
    for (name, pool) in [
        ("tenant", &tenant),
        ("login", &tenant),
        ("explain", &everyone),
        ("review", &everyone),
        ("past", &everyone),
    ] {
        let sql = recipes[name]
            .replace("org_01ACME", &word("organization_id"))
            .replace("2026-01-31T17:00:00Z", "now")
            .replace("ada@example.com", &word("email"))
            .replace("directory_user_01ADA", &word("id"));
        let mut results =
            futures_util::StreamExt::collect::<Vec<_>>(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_many(pool))
                .await;
        let errors: Vec<_> = results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .collect();
        ensure!(errors.is_empty(), "{name}: {errors:?}");
        results.retain(|result| matches!(result, Ok(sqlx::Either::Right(_))));
        let least = if ["tenant", "login"].contains(&name) { 2 } else { 1 };
        ensure!(results.len() >= least || name == "explain", "{name}: no rows");
    }
    Ok(())
}

/// Two consumers at once, while changes are made: every change is consumed once, and nobody without access keeps a
/// session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_consumer_hands_over_each_change_once() -> anyhow::Result<()> {
    let (_postgres, pool, sim) = populated().await?;
    let recipes = recipes();
    sqlx::raw_sql(AssertSqlSafe(recipes["consumer tables"].clone()))
        .execute(&pool)
        .await?;
    // Count the changes that the consumer gets, where it acts on them.
    sqlx::raw_sql(
        "create table audit (change_id bigint, at timestamptz default now());
         insert into sessions (user_id) select id from directory.users where active",
    )
    .execute(&pool)
    .await?;
    let counted = recipes["consumer"].replace(
        "), signed_out as (",
        "), counted as (insert into audit (change_id) select change_id from batch), signed_out as (",
    );
    ensure!(counted != recipes["consumer"]);
    let small = counted.replace("limit 500", "limit 7");
    let began = text(&pool, "select change_id from consumed").await?.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let consumers: Vec<_> = (0..2)
        .map(|_| {
            let (pool, done, sql) = (pool.clone(), done.clone(), small.clone());
            tokio::spawn(async move {
                loop {
                    let over = done.load(Ordering::SeqCst);
                    let consumed: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql.clone()))
                        .fetch_optional(&pool)
                        .await?;
                    if consumed.is_none() && over {
                        return anyhow::Ok(());
                    }
                }
            })
        })
        .collect();
    let mut told = sim.events().len();
    for _ in 0..10 {
        sim.burst(20)?;
        let mut new = events(&sim, told);
        told += new.len();
        new.shuffle(&mut rand::rng());
        for batch in new.chunks(5) {
            write(&pool, batch).await?;
        }
    }
    let last = text(&pool, "select max(change_id) from directory.changes")
        .await?
        .context("changes")?;
    eventually(BOUND, async || {
        ensure!(text(&pool, "select change_id from consumed").await?.as_ref() == Some(&last));
        Ok(())
    })
    .await?;
    done.store(true, Ordering::SeqCst);
    for consumer in consumers {
        consumer.await??;
    }
    let audited = rows(&pool, "select change_id from audit").await?;
    let all = rows(
        &pool,
        format!("select change_id from directory.changes where change_id > {began}"),
    )
    .await?;
    ensure!(
        audited == all && all.len() > 50,
        "consumed {} of {} changes",
        audited.len(),
        all.len()
    );
    let kept = "select count(*) from sessions as s where not exists (select from directory.users as u where u.id = s.user_id and u.active)";
    ensure!(
        text(&pool, kept).await?.as_deref() == Some("0"),
        "somebody without access has a session"
    );
    let left = text(&pool, "select count(*) from sessions")
        .await?
        .context("a count")?;
    ensure!(left != "0" && left != "60", "{left} sessions");
    Ok(())
}
