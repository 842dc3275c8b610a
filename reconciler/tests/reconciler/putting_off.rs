//! What is put off until it can be read, or until the next turn, is put off and not dropped.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::ensure;
use reconciler::checks::Checker;
use reconciler::store::duties::{self, Duty};
use reconciler::store::sweeps::{self, Cadence};
use reconciler::work::Work;
use workos_sim::Change;

use crate::checking::{reread, seeded};
use crate::scripted::{client_bearing, failing};
use crate::stand::{BOUND, MARGIN, Stand};

#[tokio::test]
async fn with_a_clock_of_ours_that_is_ahead_what_is_too_young_still_is_read_again() -> anyhow::Result<()> {
    let (stand, directory, ..) = seeded().await?;
    stand.clock.advance(time::Duration::hours(2));
    // Seen a moment ago, and deleted since without an event.
    let fresh = stand.sim.create_user(&directory)?;
    stand.log_all().await?;
    stand.sim.change(Change::DeleteUser {
        user: fresh.clone(),
        removals: false,
    })?;
    stand.log(|_, _| false).await?;
    stand.sweep(&directory).await?;
    // By our clock a reading can tell by now, by WorkOS's clock it cannot.
    ensure!(stand.check().await? == 1);
    ensure!(stand.shows_user(&fresh).await?);
    ensure!(
        stand.count("select count(*) from dsync.rereads").await? == 1,
        "dropped"
    );
    ensure!(stand.check().await? == 0, "read again and again");
    stand.advance(MARGIN + Duration::from_secs(2));
    ensure!(stand.check().await? == 1);
    ensure!(!stand.shows_user(&fresh).await?);
    ensure!(stand.count("select count(*) from dsync.rereads").await? == 0);
    stand.agrees().await
}

#[tokio::test]
async fn with_a_clock_of_ours_that_is_ahead_sweeps_do_not_follow_each_other_at_once() -> anyhow::Result<()> {
    let (stand, directory, ..) = seeded().await?;
    stand.clock.advance(time::Duration::minutes(5));
    let fresh = (0..15).map(|_| stand.sim.create_user(&directory));
    let fresh: Vec<String> = fresh.collect::<Result<_, _>>()?;
    stand.log_all().await?;
    for user in fresh {
        stand.sim.change(Change::DeleteUser {
            user,
            removals: false,
        })?;
    }
    stand.log(|_, _| false).await?;
    let report = stand.sweep(&directory).await?;
    ensure!(report.complete && report.too_young.len() == 15, "{report:?}");
    let later = "select count(*) from dsync.sweeps where again_at >= swept_at + interval '10 seconds'";
    ensure!(stand.count(later).await? == 1, "due at once");
    Ok(())
}

#[tokio::test]
async fn after_the_databases_clock_was_ahead_all_is_due() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let hour = Duration::from_hours(1);
    let cadence = Cadence {
        every: hour,
        margin: MARGIN,
    };
    let set = async |sql: &'static str| sqlx::query(sql).execute(&stand.pool).await;
    let claim = async || sweeps::claim(&stand.pool, "other", hour, cadence, &[]).await;
    let claim_list = async || {
        let claimed = duties::claim_directories(&stand.pool, "other", hour, hour).await;
        claimed.map(|began| began.is_some())
    };
    set("insert into dsync.sweeps (directory_id, swept_at) values ('d1', now())").await?;
    set("update dsync.duties set done_at = now()").await?;
    ensure!(claim().await?.is_none() && !claim_list().await?, "due already");
    // As a day earlier, when the clock was a day ahead.
    for sql in [
        "update dsync.sweeps set holder = null, held_until = null, swept_at = now() + interval '1 day'",
        "update dsync.sweeps set holder = null, held_until = null, swept_at = null, retry_at = now() + interval '1 day'",
        "update dsync.sweeps set holder = 'gone', held_until = now() + interval '1 day', retry_at = null",
    ] {
        set(sql).await?;
        ensure!(claim().await?.is_some(), "{sql}");
    }
    for sql in [
        "update dsync.duties set holder = null, held_until = null, done_at = now() + interval '1 day'",
        "update dsync.duties set holder = 'gone', held_until = now() + interval '1 day', done_at = null",
    ] {
        set(sql).await?;
        ensure!(claim_list().await?, "{sql}");
    }
    set("update dsync.sweeps set holder = 'gone', held_until = now() + interval '1 day'").await?;
    set("update dsync.duties set holder = 'gone', held_until = now() + interval '1 day'").await?;
    ensure!(sweeps::take(&stand.pool, "d1", "other", hour).await?, "leased");
    ensure!(
        duties::hold(&stand.pool, Duty::CatchUp, "other", hour).await?,
        "leased"
    );
    ensure!(
        !sweeps::take(&stand.pool, "d1", "third", hour).await?,
        "two hold it"
    );
    ensure!(
        !duties::hold(&stand.pool, Duty::CatchUp, "third", hour).await?,
        "two hold it"
    );
    Ok(())
}

#[tokio::test]
async fn a_turn_whose_reads_take_long_ends_and_the_next_goes_on() -> anyhow::Result<()> {
    let (stand, directory, users, _) = seeded().await?;
    reread(&stand, "user", &users[..4], &directory, 1.0).await?;
    let clock = stand.clock.clone();
    let (url, asked) = failing(&stand.sim, move |_| {
        clock.advance(time::Duration::seconds(20));
        false
    })
    .await?;
    let mut checker = Checker::new(Work {
        api: client_bearing(&url, BOUND)?,
        ..stand.work.clone()
    });
    for read in [2, 4] {
        checker.round().await?;
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let different: BTreeSet<&String> = asked.iter().collect();
        ensure!(asked.len() == read && different.len() == read, "{asked:?}");
    }
    Ok(())
}
