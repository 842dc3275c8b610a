//! Sweeps that race with events: never a resurrection, never a wrong deletion, equal in the end. In each test, what was
//! read is no longer, or not yet, true in a different way (the ABA cases); the last one runs many at random.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use reconciler::directories;
use reconciler::report::DirectoryReport;
use reconciler::sweep::Mode;
use workos_sim::{Change, DirectoryOptions, Endpoint, Seed, Trigger};

use crate::stand::{Stand, drift, told};

struct Race {
    stand: Stand,
    directory: String,
    users: Vec<String>,
    groups: Vec<String>,
}

impl Race {
    /// A directory that source and tables agree on, all of it long ago. Memberships are read by group.
    async fn set() -> anyhow::Result<Self> {
        let stand = Stand::up().await?;
        let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
        let seed = Seed {
            users: 130,
            groups: 4,
            ..Seed::default()
        };
        let seeded = stand.sim.seed(&directory, &seed)?;
        stand.log_all().await?;
        stand.agrees().await?;
        stand.settle();
        Ok(Self {
            stand,
            directory,
            users: seeded.users,
            groups: seeded.groups,
        })
    }

    /// Sweeps. When the request of `trigger` comes, `changes` happen; if `told`, their events are applied before the
    /// answer leaves.
    async fn sweep_while(
        &self,
        trigger: Trigger,
        changes: Vec<Change>,
        told: bool,
    ) -> anyhow::Result<DirectoryReport> {
        let mut gate = self.stand.sim.gate(trigger);
        let happens = async {
            ensure!(gate.reached().await, "the gate was not reached");
            for change in changes {
                self.stand.sim.change(change)?;
            }
            if told {
                self.stand.log_all().await?;
                self.stand.applied().await?;
            } else {
                self.stand.log(|_, _| false).await?;
            }
            gate.release();
            Ok(())
        };
        let (report, ()) = tokio::try_join!(self.stand.sweep(&self.directory), happens)?;
        Ok(report)
    }

    /// A member of the first group who is in another one too.
    async fn member(&self) -> anyhow::Result<(String, String)> {
        let group = self.groups[0].clone();
        let user: String =
            sqlx::query_scalar("select user_id from directory.memberships where group_id = $1 order by 1")
                .bind(&group)
                .fetch_one(&self.stand.pool)
                .await?;
        Ok((group, user))
    }

    /// Once the margin has passed, what was too young is read again, and then nothing is left to find.
    async fn ends_equal(&self) -> anyhow::Result<()> {
        self.stand.settle();
        self.stand.check().await?;
        let report = self.stand.sweep(&self.directory).await?;
        drift(&report);
        self.stand.agrees().await?;
        self.stand.settle();
        let last = self.stand.sweep(&self.directory).await?;
        ensure!(drift(&last).is_empty() && last.too_young.is_empty(), "{last:?}");
        Ok(())
    }
}

fn deleted(user: &str) -> Change {
    Change::DeleteUser {
        user: user.to_owned(),
        removals: false,
    }
}

#[tokio::test]
async fn aba_removed_while_being_read_with_the_event() -> anyhow::Result<()> {
    let race = Race::set().await?;
    let user = race.users[129].clone();
    let report = race
        .sweep_while(Trigger::after(Endpoint::Users), vec![deleted(&user)], true)
        .await?;
    ensure!(drift(&report).is_empty(), "{report:?}");
    let young: Vec<String> = report.too_young.iter().map(told).collect();
    ensure!(young == [format!("user missing {user}")], "{young:?}");
    ensure!(!race.stand.shows_user(&user).await?, "resurrected");
    race.stand.agrees().await?;
    race.ends_equal().await
}

#[tokio::test]
async fn aba_removed_while_being_read_and_the_event_is_lost() -> anyhow::Result<()> {
    let race = Race::set().await?;
    let user = race.users[129].clone();
    let report = race
        .sweep_while(Trigger::after(Endpoint::Users), vec![deleted(&user)], false)
        .await?;
    ensure!(drift(&report).is_empty(), "{report:?}");
    race.stand.settle();
    let next = race.stand.sweep(&race.directory).await?;
    ensure!(drift(&next) == [format!("user extra {user}")], "{next:?}");
    race.ends_equal().await
}

#[tokio::test]
async fn aba_a_late_event_of_before_is_no_news_after_the_sweep() -> anyhow::Result<()> {
    let race = Race::set().await?;
    let user = race.stand.sim.create_user(&race.directory)?;
    race.stand.sim.change(deleted(&user))?;
    let late = race.stand.sim.events();
    race.stand.log(|_, _| false).await?;
    race.stand.settle();
    race.stand.sweep(&race.directory).await?;
    // The deletion arrives before the creation, and both after the sweep.
    for event in late[late.len() - 2..].iter().rev() {
        race.stand.append(event).await?;
        ensure!(!race.stand.shows_user(&user).await?, "resurrected");
    }
    race.ends_equal().await
}

#[tokio::test]
async fn aba_membership_removed_and_added_back_between_pages() -> anyhow::Result<()> {
    for told_at_once in [true, false] {
        let race = Race::set().await?;
        let (group, user) = race.member().await?;
        race.stand.sim.script(
            Trigger::before(Endpoint::Users).containing(format!("group={group}")),
            vec![Change::RemoveMember {
                group: group.clone(),
                user: user.clone(),
            }],
        );
        let back = vec![Change::AddMember {
            group: group.clone(),
            user: user.clone(),
        }];
        let trigger = Trigger::after(Endpoint::Users).containing(format!("group={group}"));
        let report = race.sweep_while(trigger, back, told_at_once).await?;
        ensure!(race.stand.sim.unfired() == 0, "the race was not raced");
        ensure!(drift(&report).is_empty(), "{report:?}");
        ensure!(race.stand.shows_member(&group, &user).await?, "wrongly deleted");
        race.stand.agrees().await?;
        race.ends_equal().await?;
    }
    Ok(())
}

#[tokio::test]
async fn aba_membership_added_and_removed_while_being_read() -> anyhow::Result<()> {
    let race = Race::set().await?;
    let group = race.groups[0].clone();
    let user = race.stand.sim.create_user(&race.directory)?;
    race.stand.log_all().await?;
    race.stand.settle();
    race.stand.sim.script(
        Trigger::before(Endpoint::Users).containing(format!("group={group}")),
        vec![Change::AddMember {
            group: group.clone(),
            user: user.clone(),
        }],
    );
    let away = vec![Change::RemoveMember {
        group: group.clone(),
        user: user.clone(),
    }];
    let trigger = Trigger::after(Endpoint::Users).containing(format!("group={group}"));
    let report = race.sweep_while(trigger, away, true).await?;
    ensure!(drift(&report).is_empty(), "{report:?}");
    ensure!(!race.stand.shows_member(&group, &user).await?, "resurrected");
    race.ends_equal().await
}

#[tokio::test]
async fn aba_user_deleted_while_its_group_is_walked() -> anyhow::Result<()> {
    for told_at_once in [true, false] {
        let race = Race::set().await?;
        let (group, user) = race.member().await?;
        let trigger = Trigger::before(Endpoint::Users).containing(format!("group={group}"));
        let report = race
            .sweep_while(trigger, vec![deleted(&user)], told_at_once)
            .await?;
        let found = drift(&report);
        ensure!(found.is_empty() || !told_at_once, "{report:?}");
        ensure!(!found.iter().any(|one| one.contains("membership")), "{report:?}");
        ensure!(
            !(told_at_once && race.stand.shows_user(&user).await?),
            "resurrected"
        );
        race.ends_equal().await?;
        ensure!(!race.stand.shows_user(&user).await?);
    }
    Ok(())
}

#[tokio::test]
async fn aba_group_deleted_while_its_members_are_walked() -> anyhow::Result<()> {
    for told_at_once in [true, false] {
        let race = Race::set().await?;
        let group = race.groups[1].clone();
        let trigger = Trigger::before(Endpoint::Users).containing(format!("group={group}"));
        let change = Change::DeleteGroup { group: group.clone() };
        race.sweep_while(trigger, vec![change], told_at_once).await?;
        let shown = race.stand.count("select count(*) from directory.groups").await?;
        ensure!(shown == if told_at_once { 3 } else { 4 }, "{shown} groups");
        race.ends_equal().await?;
    }
    Ok(())
}

#[tokio::test]
async fn aba_lagging_reads_after_a_delete() -> anyhow::Result<()> {
    let race = Race::set().await?;
    let (group, member) = race.member().await?;
    let user = race.users[3].clone();
    race.stand.sim.change(deleted(&user))?;
    race.stand.sim.remove_member(&group, &member)?;
    race.stand.log_all().await?;
    race.stand.agrees().await?;
    race.stand.advance(Duration::from_secs(5));
    race.stand.sim.tune(|tuning| {
        tuning.faults.lagging = 100;
        tuning.faults.lag = Duration::from_secs(20);
    });
    let report = race.stand.sweep(&race.directory).await?;
    ensure!(drift(&report).is_empty(), "{report:?}");
    ensure!(report.too_young.len() >= 2, "{report:?}");
    race.stand.agrees().await?;
    race.stand.sim.tune(|tuning| tuning.faults.lagging = 0);
    race.ends_equal().await
}

#[tokio::test]
async fn aba_lagging_reads_after_a_create() -> anyhow::Result<()> {
    let race = Race::set().await?;
    let user = race.stand.sim.create_user(&race.directory)?;
    let group = race.stand.sim.create_group(&race.directory, "New")?;
    race.stand.sim.add_member(&group, &user)?;
    race.stand.sim.add_member(&race.groups[0], &user)?;
    race.stand.log_all().await?;
    race.stand.agrees().await?;
    race.stand.advance(Duration::from_secs(5));
    race.stand.sim.tune(|tuning| {
        tuning.faults.lagging = 100;
        tuning.faults.lag = Duration::from_secs(20);
    });
    let report = race.stand.sweep(&race.directory).await?;
    ensure!(drift(&report).is_empty(), "{report:?}");
    let young: Vec<String> = report.too_young.iter().map(told).collect();
    ensure!(young.contains(&format!("user extra {user}")), "{young:?}");
    race.stand.agrees().await?;
    race.stand.sim.tune(|tuning| tuning.faults.lagging = 0);
    race.ends_equal().await
}

#[tokio::test]
async fn aba_made_between_pages_and_the_event_is_lost() -> anyhow::Result<()> {
    let race = Race::set().await?;
    let trigger = Trigger::after(Endpoint::Users).nth(2);
    let change = Change::CreateUser {
        directory: race.directory.clone(),
        set: serde_json::Map::new(),
    };
    let report = race.sweep_while(trigger, vec![change], false).await?;
    ensure!(report.error.is_none(), "{report:?}");
    race.ends_equal().await
}

/// Twenty changes at random places of a sweep, reads that lag, and half of the events delivered only after it.
/// Everything that happened long ago and was lost is repaired, and nothing that happens now is undone.
#[tokio::test]
async fn aba_directories_changed_and_removed_while_the_list_is_read() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let changed = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    // Seen a moment ago, and deleted since without an event.
    let removed = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.log_all().await?;
    let directory = removed.clone();
    stand.sim.change(Change::DeleteDirectory { directory })?;
    stand.log(|_, _| false).await?;
    let mut gate = stand.sim.gate(Trigger::after(Endpoint::Directories));
    let happens = async {
        ensure!(gate.reached().await, "the gate was not reached");
        let directory = changed.clone();
        stand.sim.change(Change::DeactivateDirectory { directory })?;
        stand.log_all().await?;
        stand.applied().await?;
        gate.release();
        Ok(())
    };
    let pass = async { Ok(directories::pass(&stand.work, Mode::default()).await?) };
    let (pass, ()) = tokio::try_join!(pass, happens)?;
    ensure!(
        pass.findings.drift.is_empty() && pass.findings.young.len() == 2,
        "{pass:?}"
    );
    ensure!(
        stand
            .count("select count(*) from dsync.rereads where directory_id = id")
            .await?
            == 2,
        "each is in itself"
    );
    stand.settle();
    ensure!(stand.check().await? == 2);
    ensure!(stand.count("select count(*) from dsync.rereads").await? == 0);
    // No lease was taken of anything but directories.
    ensure!(
        stand
            .count("select count(*) from dsync.sweeps where directory_id = ''")
            .await?
            == 0
    );
    stand.pass().await;
    stand.agrees().await
}

#[tokio::test]
async fn ten_seeded_races_end_equal_and_undo_nothing() -> anyhow::Result<()> {
    let races =
        (0..10).map(|seed| async move { race_at_random(seed).await.with_context(|| format!("seed {seed}")) });
    let races = futures_util::stream::iter(races).buffer_unordered(5);
    races.try_collect::<Vec<()>>().await.map(drop)
}

#[expect(clippy::too_many_lines, reason = "one story")]
async fn race_at_random(seed: u64) -> anyhow::Result<()> {
    let race = Race::set().await?;
    let (stand, mut rng) = (&race.stand, StdRng::seed_from_u64(seed));
    // Long ago, and lost.
    stand.sim.burst(40)?;
    stand.log(|_, _| false).await?;
    stand.settle();
    stand.sim.tune(|tuning| {
        tuning.faults.seed = seed;
        tuning.faults.lagging = 30;
        tuning.faults.lag = Duration::from_secs(8);
    });
    let truth = stand.sim.truth().directories[&race.directory].clone();
    let users: Vec<String> = truth.users.into_keys().collect();
    let groups: Vec<String> = truth.groups.into_keys().collect();
    let pick = |rng: &mut StdRng, from: &[String]| from.choose(rng).cloned().context("empty");
    for _ in 0..20 {
        let (user, group) = (pick(&mut rng, &users)?, pick(&mut rng, &groups)?);
        let change = match rng.random_range(0..8) {
            0 | 1 => deleted(&user),
            2 => Change::RemoveMember { group, user },
            3 | 4 => Change::AddMember { group, user },
            5 => Change::DeactivateUser { user },
            6 => Change::CreateUser {
                directory: race.directory.clone(),
                set: serde_json::Map::new(),
            },
            _ => Change::RenameGroup {
                group,
                name: format!("renamed {seed}"),
            },
        };
        let endpoint = if rng.random_bool(0.8) {
            Endpoint::Users
        } else {
            Endpoint::Groups
        };
        let trigger = if rng.random_bool(0.5) {
            Trigger::after(endpoint)
        } else {
            Trigger::before(endpoint)
        };
        stand
            .sim
            .script(trigger.nth(rng.random_range(1..5)), vec![change]);
    }
    stand.advance(Duration::from_secs(3));
    let before = stand.sim.events().len();
    // Half of the events are delivered while the sweep goes on.
    let courier = async {
        let mut told = before;
        loop {
            let events = stand.sim.events();
            for (number, event) in events.iter().enumerate().skip(told) {
                if number.is_multiple_of(2) {
                    stand.append(event).await?;
                }
            }
            told = events.len();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        #[expect(unreachable_code, reason = "names the type of an endless loop's error")]
        anyhow::Ok(())
    };
    let report = tokio::select! {
        report = stand.sweep(&race.directory) => report?,
        stopped = courier => { stopped?; anyhow::bail!("the courier stopped") }
    };
    ensure!(report.error.is_none(), "{report:?}");
    for event in &stand.sim.events()[before..] {
        stand.append(event).await?;
    }
    stand.agrees().await.context("right after the race")?;
    let resurrected = stand
        .count(
            "select count(*) from directory.changes as gone join directory.changes as back using (entity, entity_id)
             where entity in ('user', 'group') and gone.operation = 'deleted' and back.operation = 'created'
                and back.change_id > gone.change_id",
        )
        .await?;
    ensure!(resurrected == 0, "{resurrected} objects were gone and came back");
    stand.sim.tune(|tuning| tuning.faults.lagging = 0);
    race.ends_equal().await
}
