//! A run with the simulated WorkOS: first sync, burst, check and summary, then a trickle of changes for as long as it
//! stays up.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use tests::Port;
use workos_sim::Truth;

use crate::examples::Cast;
use crate::flow::Stage;
use crate::programs::{Programs, Settings, WEBHOOK_PATH, WORDS};
use crate::screen::Screen;
use crate::servers::Servers;
use crate::service::given;
use crate::stay::stay;
use crate::summary::{self, count};
use crate::verdict::{self, Verdict};
use crate::world::{self, Burst, SECRET, Seeded, World};

/// Everything, running and in sync.
pub(crate) struct Up {
    stage: Stage,
    /// Keeps dsync-ingest's port reserved.
    _listen: Port,
    /// Whether the tables agreed with the source.
    pub verdict: Verdict,
}

impl Up {
    /// Runs everything up to the check, and prints the summary. `once` means that the run ends after that.
    pub(crate) async fn start(screen: &Screen, logs: &Path, once: bool) -> anyhow::Result<Up> {
        let start = Instant::now();
        let listen = Port::reserve()?;
        let webhooks = format!("http://{}{WEBHOOK_PATH}", listen.address());
        let (mut stage, seeded) = prepare(screen, logs, &listen, &webhooks).await?;
        first_sync(screen, &mut stage, seeded).await?;
        burst(screen, &mut stage).await?;
        let differences = verdict::check(screen, &mut stage).await?;
        let took = start.elapsed();

        let pool = stage.servers.pool.clone();
        summary::tables(&pool, screen).await?;
        let cast = Cast::choose(&pool).await?;
        for example in cast.examples() {
            example.show(&pool, screen).await?;
        }
        let (again, tense) = if once {
            ("; without --once it stays up", "listened")
        } else {
            (", until Ctrl-C", "listens")
        };
        screen.heading(&format!("Where everything {tense} (this machine only{again})"));
        let sim = &stage.world.sim;
        let first = vec![
            ("webhooks".to_owned(), webhooks),
            (
                "simulated WorkOS".to_owned(),
                format!("{}   (Authorization: Bearer {})", sim.url(), sim.api_key()),
            ),
        ];
        summary::places(screen, &stage.servers, &mut stage.programs, first, logs);
        if !once {
            let holder = summary::holder(&pool).await?;
            summary::suggestions(screen, &stage.servers, &sim.url(), &cast, holder.as_deref());
        }
        let verdict = verdict::tell(screen, &stage, &differences, took).await?;
        Ok(Up {
            stage,
            _listen: listen,
            verdict,
        })
    }

    /// Makes a few changes every two seconds, until this is dropped.
    pub(crate) async fn stay(&mut self, screen: &Screen) -> anyhow::Result<()> {
        screen.heading("Making a few changes every two seconds, with the same faults");
        let Stage {
            programs,
            world,
            servers,
            ..
        } = &mut self.stage;
        stay(screen, servers, programs, || {
            world.trickle()?;
            let counts = world.delivery.progress().counts;
            Ok(format!("webhooks {}  ", count(counts.acked)))
        })
        .await
    }
}

/// Starts everything, fills the simulated WorkOS and starts delivering its webhooks.
async fn prepare(
    screen: &Screen,
    logs: &Path,
    listen: &Port,
    webhooks: &str,
) -> anyhow::Result<(Stage, Seeded)> {
    let servers = Servers::prepare(screen).await?;
    let began = Instant::now();
    let bar = screen.spinner("starting the programs");
    let sim = world::simulator().await?;
    let settings = Settings {
        ingest: vec![
            ("LISTEN_ADDR", listen.address()),
            ("WEBHOOK_PATH", WEBHOOK_PATH.to_owned()),
            ("WORKOS_WEBHOOK_SECRET", SECRET.to_owned()),
        ],
        reconciler: vec![
            ("WORKOS_API_URL", sim.url()),
            ("WORKOS_API_KEY", sim.api_key().to_owned()),
            // The simulated Events API shows everything within two seconds.
            ("EVENTS_HOLDBACK", "10s".to_owned()),
            ("SWEEP_INTERVAL", "1m".to_owned()),
            ("SWEEP_CLOCK_MARGIN", "5s".to_owned()),
        ],
        all: given(&["RUST_LOG", "LOG_FORMAT"]),
    };
    let programs = Programs::start(&servers, settings, logs).await?;
    drop(bar);
    screen.done("programs", began, &[WORDS.to_owned()]);
    let (world, seeded) = World::fill(sim, webhooks)?;
    let stage = Stage::new(programs, world, servers);
    Ok((stage, seeded))
}

async fn first_sync(screen: &Screen, stage: &mut Stage, seeded: Seeded) -> anyhow::Result<()> {
    let began = Instant::now();
    let title = format!(
        "{} directories with {} users and {} groups",
        seeded.directories,
        count(seeded.users),
        seeded.groups
    );
    let bar = screen.spinner(format!("first sync: {title}"));
    let came = stage.follow(screen, |_| Ok(false)).await?;
    drop(bar);
    screen.done("first sync", began, &[title, came.to_string()]);
    Ok(())
}

async fn burst(screen: &Screen, stage: &mut Stage) -> anyhow::Result<()> {
    let began = Instant::now();
    let before = stage.world.sim.truth();
    stage.world.lose_webhooks();
    let title = format!("{} random changes", count(Burst::CHANGES));
    let bar = screen.spinner(format!("burst: {title}"));
    let mut burst = Burst::default();
    let came = stage.follow(screen, |world| burst.go_on(world)).await?;
    drop(bar);
    let lost = access_lost(&before, &stage.world.sim.truth());
    screen.done("burst", began, &[title, lost, came.to_string()]);
    Ok(())
}

/// Describes in words what existed before and is gone now.
fn access_lost(before: &Truth, after: &Truth) -> String {
    let users = |truth: &Truth, active: bool| -> BTreeSet<String> {
        let all = truth
            .directories
            .values()
            .flat_map(|directory| directory.users.values());
        all.filter(|user| user.active || !active)
            .map(|user| user.id.clone())
            .collect()
    };
    let groups = |truth: &Truth| -> BTreeSet<String> {
        let all = truth
            .directories
            .values()
            .flat_map(|directory| directory.groups.keys());
        all.cloned().collect()
    };
    let here = users(after, false);
    let inactive = users(before, true)
        .difference(&users(after, true))
        .filter(|user| here.contains(*user))
        .count();
    format!(
        "{} users no longer active; {} users, {} groups and {} directory gone",
        count(inactive),
        count(users(before, false).difference(&here).count()),
        count(groups(before).difference(&groups(after)).count()),
        before.directories.len() - after.directories.len()
    )
}
