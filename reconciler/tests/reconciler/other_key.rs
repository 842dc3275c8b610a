//! The API key of another environment: it takes nobody's access away, lets nobody in, and what happened meanwhile is caught
//! up with once the right key is back. And people of directories that nobody knows.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reconciler::catch_up::{CatchUp, Settings};
use reconciler::checks::Checker;
use reconciler::command;
use reconciler::store::checks::{self, Target, What};
use reconciler::sweep::Mode;
use reconciler::work::{Failure, Work};
use reconciler::workos::client::{Api, ClientSettings};
use workos_sim::{Change, DirectoryOptions, Options, Seed, Sim};

use crate::catching_up::HOLDBACK;
use crate::checking::{doubt, reread};
use crate::guarding::directory_of;
use crate::scripted::{answering, client_bearing, failing};
use crate::stand::{Stand, sweep_with};

/// Some directories of ours, swept, and another environment.
struct Two {
    stand: Stand,
    directories: Vec<String>,
    users: Vec<String>,
    other: Sim,
}

async fn two_environments(directories: usize) -> anyhow::Result<Two> {
    let stand = Stand::up().await?;
    let mut two = Two {
        directories: Vec::new(),
        users: Vec::new(),
        other: Sim::start(Options::at(stand.sim.clock().now())).await?,
        stand,
    };
    for _ in 0..directories {
        let directory = two.stand.sim.create_directory(DirectoryOptions::newer())?;
        let seeded = two.stand.sim.seed(&directory, &Seed::default())?;
        two.users.extend(seeded.users);
        two.directories.push(directory);
    }
    two.stand.log_all().await?;
    two.stand.agrees().await?;
    two.stand.settle();
    two.stand.pass().await;
    two.advance(Duration::ZERO);
    Ok(two)
}

impl Two {
    fn wrong(&self) -> anyhow::Result<Work> {
        self.stand.with_key_of(&self.other)
    }

    fn wrong_catch_up(&self) -> anyhow::Result<CatchUp> {
        Ok(catch_up(self.wrong()?))
    }

    /// The same time passes in both environments.
    fn advance(&self, by: Duration) {
        self.stand.advance(by);
        let ahead = self.stand.sim.clock().now().0 - self.other.clock().now().0;
        self.other
            .clock()
            .advance(Duration::from_millis(u64::try_from(ahead).unwrap_or_default()));
    }

    /// How many users readers see, and whether all of them are ours.
    async fn shown(&self) -> anyhow::Result<(usize, bool)> {
        self.stand.applied().await?;
        let asked = "select count(*), coalesce(bool_and(id = any($1)), true) from directory.users";
        let (count, ours): (i64, bool) = sqlx::query_as(asked)
            .bind(&self.users)
            .fetch_one(&self.stand.pool)
            .await?;
        Ok((usize::try_from(count)?, ours))
    }
}

fn catch_up(work: Work) -> CatchUp {
    let settings = Settings {
        every: Duration::from_secs(1),
        holdback: HOLDBACK,
    };
    CatchUp::new(work, settings)
}

#[tokio::test]
async fn another_environments_key_takes_nothing_away() -> anyhow::Result<()> {
    let guarded = directory_of(20).await?;
    guarded.stand.sim.create_directory(DirectoryOptions::default())?;
    guarded.stand.log_all().await?;
    guarded.stand.agrees().await?;
    guarded.stand.settle();
    let other = Sim::start(workos_sim::Options::at(guarded.stand.sim.clock().now())).await?;
    other.create_directory(DirectoryOptions::default())?;
    // However often it asks: the other environment's directories must not make ours look like a few among many.
    for _ in 0..2 {
        let sweep = guarded
            .stand
            .program()
            .env("WORKOS_API_URL", other.url())
            .env("WORKOS_API_KEY", other.api_key())
            .arg("sweep")
            .arg("--json")
            .run()
            .await?;
        ensure!(sweep.status.code() == Some(3), "{sweep:?}");
        ensure!(guarded.shown().await? == 20);
        let held = guarded
            .stand
            .count("select count(*) from dsync.held_deletions where entity = 'directory'")
            .await?;
        ensure!(held == 2, "{held} held: {sweep:?}");
        ensure!(
            guarded
                .stand
                .count("select count(*) from directory.directories")
                .await?
                == 2
        );
    }
    // Nor what a sweep left to be read again.
    let targets = [
        (What::Directory, guarded.directory.clone()),
        (What::User, guarded.users[0].clone()),
    ]
    .map(|(what, id)| Target {
        directory: guarded.directory.clone(),
        what,
        id,
    });
    let due = guarded.stand.work.clock.now();
    let due = targets.map(|target| (target, due));
    checks::again(&guarded.stand.pool, &due).await?;
    let mut checker = Checker::new(guarded.stand.with_key_of(&other)?);
    ensure!(checker.round().await? == 2);
    ensure!(guarded.shown().await? == 20);
    // With the right key again, nothing is held any more.
    let report = guarded.stand.pass().await;
    ensure!(!report.is_incomplete(), "{}", report.text());
    ensure!(guarded.held().await? == 0);
    Ok(())
}

#[tokio::test]
async fn the_catch_up_takes_nothing_from_another_environment_and_skips_nothing_of_ours() -> anyhow::Result<()>
{
    let two = two_environments(2).await?;
    let all = (two.users.len(), true);
    two.stand.catch_up(HOLDBACK).poll().await?.context("no lease")?;
    // One of theirs is connected, and one of ours removed, whose webhook is lost.
    let foreign = two.other.create_directory(DirectoryOptions::newer())?;
    two.other.seed(&foreign, &Seed::default())?;
    let user = two.users[0].clone();
    two.stand.sim.change(Change::DeleteUser {
        user: user.clone(),
        removals: false,
    })?;
    let end = two.stand.log_end().await?;
    let mut wrong = two.wrong_catch_up()?;
    for _ in 0..5 {
        let refused = wrong.poll().await;
        ensure!(matches!(refused, Err(Failure::OtherEnvironment)), "{refused:?}");
        two.advance(Duration::from_mins(1));
    }
    ensure!(two.stand.log_end().await? == end && two.shown().await? == all);
    // The list, which it now reads, takes nothing away either.
    command::pass(&two.wrong()?, None, Mode::default()).await;
    ensure!(two.shown().await? == all);
    // With the right key again, what happened meanwhile is still listed.
    let polled = two.stand.catch_up(HOLDBACK).poll().await?.context("no lease")?;
    ensure!(
        polled.recovered > 0 && !two.stand.shows_user(&user).await?,
        "{polled:?}"
    );
    Ok(())
}

#[tokio::test]
async fn who_has_another_environments_key_keeps_the_catch_up_from_nobody() -> anyhow::Result<()> {
    let two = two_environments(1).await?;
    ensure!(two.wrong_catch_up()?.poll().await.is_err());
    let mut right = catch_up(two.stand.another()?);
    right.poll().await?.context("the wrong one has the lease")?;
    Ok(())
}

/// The list could not be read, so it did not show that this is another environment.
#[tokio::test]
async fn another_environments_events_stay_out_though_its_directories_cannot_be_listed() -> anyhow::Result<()>
{
    let two = two_environments(1).await?;
    two.stand.catch_up(HOLDBACK).poll().await?.context("no lease")?;
    let foreign = two.other.create_directory(DirectoryOptions::newer())?;
    two.other.seed(&foreign, &Seed::default())?;
    let user = two.users[0].clone();
    two.stand.sim.change(Change::DeleteUser {
        user: user.clone(),
        removals: false,
    })?;
    let end = two.stand.log_end().await?;
    let blind = async |sim| {
        let (url, _) = failing(sim, |path| path.starts_with("/directories")).await?;
        anyhow::Ok(catch_up(Work {
            api: client_bearing(&url, Duration::from_millis(300))?,
            ..two.stand.work.clone()
        }))
    };
    let refused = blind(&two.other).await?.poll().await;
    ensure!(
        refused.is_err() && two.stand.log_end().await? == end,
        "{refused:?}"
    );
    command::pass(&two.wrong()?, None, Mode::default()).await;
    ensure!(two.shown().await? == (two.users.len(), true));
    // Of our own environment, the events themselves show that it is ours.
    let polled = blind(&two.stand.sim).await?.poll().await?.context("no lease")?;
    ensure!(
        polled.recovered > 0 && !two.stand.shows_user(&user).await?,
        "{polled:?}"
    );
    Ok(())
}

/// Its deletion's event is listed, which no other environment lists.
#[tokio::test]
async fn the_only_directorys_deletion_is_caught_up_by_a_process_that_never_saw_it_listed()
-> anyhow::Result<()> {
    let two = two_environments(1).await?;
    two.stand.catch_up(HOLDBACK).poll().await?.context("no lease")?;
    // Another one takes its place, of which very much is told before.
    let new = two.stand.sim.create_directory(DirectoryOptions::newer())?;
    let seed = Seed {
        users: 300,
        ..Seed::default()
    };
    two.stand.sim.seed(&new, &seed)?;
    two.stand.sim.change(Change::DeleteDirectory {
        directory: two.directories[0].clone(),
    })?;
    two.stand.log(|_, _| false).await?;
    two.stand.advance(Duration::from_mins(5));
    command::pass(&two.stand.work, None, Mode::default()).await;
    ensure!(
        two.shown().await? == (two.users.len(), true),
        "nobody approved it"
    );
    let polled = two.stand.catch_up(HOLDBACK).poll().await?.context("no lease")?;
    ensure!(polled.recovered > 300, "{polled:?}");
    two.stand.agrees().await
}

/// For what it does not see, its lists may be empty instead of not found.
#[tokio::test]
async fn another_environments_empty_lists_end_no_membership() -> anyhow::Result<()> {
    let two = two_environments(2).await?;
    let members = "select count(*) from directory.memberships";
    let before = two.stand.count(members).await?;
    let ids = async |sql| -> anyhow::Result<Vec<String>> {
        Ok(sqlx::query_scalar(sql).fetch_all(&two.stand.pool).await?)
    };
    let users = ids("select distinct user_id from directory.memberships").await?;
    let groups = ids("select distinct group_id from directory.memberships").await?;
    ensure!(before > 0);
    for (what, ids) in [("memberships_of_user", users), ("memberships_of_group", groups)] {
        reread(&two.stand, what, &ids, &two.directories[0], 1.0).await?;
    }
    let url = answering(&two.other, |path| {
        let filtered = path.contains("?user=") || path.contains("?group=");
        filtered.then_some((200, r#"{"data":[],"list_metadata":{"before":null,"after":null}}"#))
    })
    .await?;
    let (settings, work) = (
        ClientSettings::new(url.parse()?, "sk_test".into()),
        &two.stand.work,
    );
    let mut checker = Checker::new(Work {
        api: Api::new(settings, work.clock.clone(), work.metrics.clone())?,
        ..work.clone()
    });
    while checker.round().await? > 0 {}
    two.stand.applied().await?;
    let again = two.stand.count("select count(*) from dsync.rereads").await?;
    let after = two.stand.count(members).await?;
    ensure!(
        after == before && again == 0,
        "{after} of {before}, {again} rereads"
    );
    Ok(())
}

#[tokio::test]
async fn the_only_directory_waits_for_approval_if_there_is_none_at_all() -> anyhow::Result<()> {
    let two = two_environments(1).await?;
    let report = command::pass(&two.wrong()?, None, Mode::default()).await;
    ensure!(two.shown().await? == (two.users.len(), true), "{}", report.text());
    ensure!(
        two.stand
            .count("select count(*) from dsync.held_deletions")
            .await?
            == 1
    );
    // If it is really gone, somebody can say so.
    let directory = two.directories[0].clone();
    two.stand.sim.change(Change::DeleteDirectory {
        directory: directory.clone(),
    })?;
    two.stand.log(|_, _| false).await?;
    two.stand.settle();
    ensure!(two.stand.pass().await.has_drift() && two.shown().await?.0 == two.users.len());
    let approve = two.stand.program().arg("approve").arg(&directory).run().await?;
    ensure!(approve.status.success(), "{approve:?}");
    ensure!(two.shown().await?.0 == 0);
    Ok(())
}

#[tokio::test]
async fn another_environment_settles_no_doubt() -> anyhow::Result<()> {
    let two = two_environments(2).await?;
    let user = &two.users[0];
    doubt(&two.stand, user).await?;
    two.advance(Duration::ZERO);
    let doubts = "select count(*) from dsync.checks";
    ensure!(two.stand.count(doubts).await? == 1);
    Checker::new(two.wrong()?).round().await?;
    two.stand.applied().await?;
    ensure!(two.stand.count(doubts).await? == 1);
    two.stand.settle();
    two.stand.check().await?;
    ensure!(two.stand.count(doubts).await? == 0 && two.stand.shows_user(user).await?);
    Ok(())
}

/// A held directory's own sweep asks only for the directory; and finding it there is enough to end the hold.
#[tokio::test]
async fn sweeps_of_held_directories_cost_little_and_lift_their_own_hold() -> anyhow::Result<()> {
    let two = two_environments(12).await?;
    two.other.create_directory(DirectoryOptions::newer())?;
    let wrong = two.wrong()?;
    command::pass(&wrong, None, Mode::default()).await;
    let held = "select count(*) from dsync.held_deletions where entity = 'directory'";
    ensure!(two.stand.count(held).await? == 12);
    two.other.take_requests();
    let counted = wrong
        .metrics
        .drift
        .with_label_values(&["directory", "extra"])
        .get();
    for directory in &two.directories {
        let report = sweep_with(&wrong, directory).await?;
        ensure!(report.held.len() == 1, "{report:?}");
    }
    let requests = two.other.take_requests().len();
    ensure!(requests == 12, "{requests} requests for twelve directories");
    ensure!(
        wrong
            .metrics
            .drift
            .with_label_values(&["directory", "extra"])
            .get()
            == counted
    );
    ensure!(two.stand.count(held).await? == 12);
    for directory in &two.directories[..3] {
        ensure!(sweep_with(&two.stand.work, directory).await?.complete);
    }
    ensure!(two.stand.count(held).await? == 9);
    Ok(())
}

/// Nobody needs to approve what an event has already ended.
#[tokio::test]
async fn a_held_directory_that_an_event_ends_is_held_no_longer() -> anyhow::Result<()> {
    let two = two_environments(2).await?;
    command::pass(&two.wrong()?, None, Mode::default()).await;
    let held = "select count(*) from dsync.held_deletions";
    ensure!(two.stand.count(held).await? == 2);
    let directory = two.directories[0].clone();
    two.stand.sim.change(Change::DeleteDirectory {
        directory: directory.clone(),
    })?;
    two.stand.log_all().await?;
    two.stand.applied().await?;
    two.stand.settle();
    sweep_with(&two.stand.work, &directory).await?;
    // The other one is listed again.
    ensure!(
        two.stand.count(held).await? == 0,
        "its own sweep did not clear it"
    );
    Ok(())
}

/// Events about its users arrived, but none about the directory itself.
#[tokio::test]
async fn people_of_a_directory_that_the_tables_never_knew_go_with_it() -> anyhow::Result<()> {
    let two = two_environments(1).await?;
    let options = DirectoryOptions {
        state: "validating".to_owned(),
        ..DirectoryOptions::newer()
    };
    let unknown = two.stand.sim.create_directory(options)?;
    let people = two.stand.sim.seed(&unknown, &Seed::default())?.users;
    two.stand.log_all().await?;
    let (ours, all) = (two.users.len(), two.users.len() + people.len());
    ensure!(two.shown().await?.0 == all);
    ensure!(two.stand.count("select count(*) from dsync.directories").await? == 1);
    two.stand
        .sim
        .change(Change::DeleteDirectory { directory: unknown })?;
    two.stand.log(|_, _| false).await?;
    two.stand.settle();
    let report = two.stand.pass().await;
    ensure!(two.shown().await? == (ours, true), "{}", report.text());
    ensure!(!two.stand.pass().await.has_drift());
    Ok(())
}
