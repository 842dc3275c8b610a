//! `dsync-workos-sim`: the simulated WorkOS as a program, for experiments by hand. Only its flags and its output are
//! here; everything else is in the library.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use workos_sim::{
    Clock, Delivery, DeliveryOptions, DirectoryOptions, EventsOptions, Faults, Options, RateLimits, Seed,
    Sim, Tuning,
};

const EXAMPLES: &str = r#"Examples:
  Start a WorkOS with two directories, and list them:
    dsync-workos-sim --directories 2 --users 100
    curl -H 'Authorization: Bearer sk_test_simulated' 'http://127.0.0.1:8090/directories'

  Make 20 changes every five seconds; duplicate 20 % of the webhooks, hold back 20 % and lose 10 %:
    dsync-workos-sim --users 2000 --groups 60 --deliver-to http://127.0.0.1:8080/webhooks/workos \
        --secret whsec_1 --doubled 20 --shuffled 20 --lost 10 --burst 20 --every 5s

  Query and change it by hand, while it runs:
    curl -s http://127.0.0.1:8090/_sim/stats
    curl -s http://127.0.0.1:8090/_sim/truth
    curl -s http://127.0.0.1:8090/_sim/changes --json '{"burst": 100}'
    curl -s http://127.0.0.1:8090/_sim/changes \
        --json '{"change": "update_user", "user": "directory_user_…", "set": {"job_title": "Cook"}}'
    curl -s http://127.0.0.1:8090/_sim/changes \
        --json '{"change": "silently", "inner": {"change": "delete_user", "user": "directory_user_…"}}'"#;

/// A simulated WorkOS: directories that change, signed webhooks with faults, the state API and the Events API.
#[derive(Parser)]
#[command(name = "dsync-workos-sim", version, after_long_help = EXAMPLES)]
struct Cli {
    /// Port of the API and of /_sim/; 0 picks a free one.
    #[arg(long, default_value_t = 8090)]
    port: u16,
    /// Address to listen on. Anybody who can reach it can change the simulated world.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// API key that clients must send.
    #[arg(long, default_value = "sk_test_simulated")]
    api_key: String,
    /// Seed for random choices; the same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    delivery: DeliveryArgs,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Args)]
#[command(next_help_heading = "The world")]
struct WorldArgs {
    /// Number of directories, each in an organization of its own.
    #[arg(long, default_value_t = 1)]
    directories: usize,
    /// Users per directory.
    #[arg(long, default_value_t = 50)]
    users: usize,
    /// Groups per directory.
    #[arg(long, default_value_t = 5)]
    groups: usize,
    /// Kind of WorkOS environment that the directories imitate.
    #[arg(long, value_enum, default_value_t = Kind::Older)]
    kind: Kind,
    /// Random changes per burst; 0 makes none.
    #[arg(long, default_value_t = 0)]
    burst: usize,
    /// Interval between bursts.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    every: Duration,
}

/// What directories look like on the wire.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Attributes at the top level, `groups` filled.
    Older,
    /// Attributes in `custom_attributes`, `groups: []`.
    Newer,
    /// As newer, with missing fields, odd timestamps and values that are hard to store.
    Awkward,
}

#[derive(Args)]
#[command(next_help_heading = "Webhooks")]
struct DeliveryArgs {
    /// URL to post webhooks to; without it, none are sent.
    #[arg(long, requires = "secret")]
    deliver_to: Option<String>,
    /// Secret with which webhooks are signed.
    #[arg(long, env = "WORKOS_WEBHOOK_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Most webhooks per second; unlimited by default.
    #[arg(long)]
    rate: Option<f64>,
    /// Most webhooks in flight at once.
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// Percentage of events never delivered.
    #[arg(long, default_value_t = 0)]
    lost: u8,
    /// Percentage of events delivered twice.
    #[arg(long, default_value_t = 0)]
    doubled: u8,
    /// Percentage of events held back, so that later ones overtake them.
    #[arg(long, default_value_t = 0)]
    shuffled: u8,
    /// Longest time that an event is held back.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    shuffle_within: Duration,
    /// Percentage of events delivered again later.
    #[arg(long, default_value_t = 0)]
    stale: u8,
    /// How much later.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    stale_after: Duration,
}

#[derive(Args)]
#[command(next_help_heading = "The API")]
struct ApiArgs {
    /// Enforce WorkOS's limits: 4 lists of users per second and directory, 6,000 requests per minute.
    #[arg(long)]
    rate_limits: bool,
    /// Longest delay before the Events API shows an event.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    holdback: Duration,
    /// Percentage of requests answered with 500.
    #[arg(long, default_value_t = 0)]
    errors: u8,
    /// Percentage of requests that read the world as it was `--lag` ago.
    #[arg(long, default_value_t = 0)]
    lagging: u8,
    /// How old a lagging read is.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    lag: Duration,
}

impl Cli {
    fn options(&self) -> Options {
        let mut tuning = Tuning::default();
        if self.api.rate_limits {
            tuning.limits = RateLimits::published();
        }
        tuning.events = EventsOptions {
            holdback: self.api.holdback,
            ..EventsOptions::default()
        };
        tuning.faults.seed = self.seed;
        tuning.faults.errors = self.api.errors;
        tuning.faults.lagging = self.api.lagging;
        tuning.faults.lag = self.api.lag;
        Options {
            clock: Clock::system(),
            seed: self.seed,
            listen: SocketAddr::from((self.host, self.port)),
            api_key: self.api_key.clone(),
            tuning,
        }
    }

    fn deliver(&self, sim: &Sim) -> anyhow::Result<Option<Delivery>> {
        let args = &self.delivery;
        let (Some(url), Some(secret)) = (&args.deliver_to, &args.secret) else {
            return Ok(None);
        };
        let faults = Faults {
            seed: self.seed,
            lost: args.lost,
            doubled: args.doubled,
            shuffled: args.shuffled,
            shuffle_within: args.shuffle_within,
            stale: args.stale,
            stale_after: args.stale_after,
            ..Faults::none()
        };
        let options = DeliveryOptions {
            faults,
            rate: args.rate,
            concurrency: args.concurrency,
            ..DeliveryOptions::new(url, secret)
        };
        Ok(Some(sim.deliver(options)?))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let sim = Sim::start(cli.options()).await?;
    fill(&sim, &cli.world)?;
    let delivery = cli.deliver(&sim).context("cannot start delivering webhooks")?;
    println!("API     {}  (Authorization: Bearer {})", sim.url(), sim.api_key());
    println!(
        "control {}/_sim/stats, /_sim/truth, /_sim/events, POST /_sim/changes",
        sim.url()
    );
    tokio::select! {
        result = live(&sim, &cli.world, delivery.as_ref()) => result?,
        result = asked_to_stop() => result?,
    }
    report(&sim, delivery.as_ref());
    Ok(())
}

fn fill(sim: &Sim, args: &WorldArgs) -> anyhow::Result<()> {
    let options = match args.kind {
        Kind::Older => DirectoryOptions::default(),
        Kind::Newer => DirectoryOptions::newer(),
        Kind::Awkward => DirectoryOptions::awkward(),
    };
    let seed = Seed {
        users: args.users,
        groups: args.groups,
        ..Seed::default()
    };
    for _ in 0..args.directories {
        let directory = sim.create_directory(options.clone())?;
        sim.seed(&directory, &seed)?;
        println!("{directory}: {} users, {} groups", args.users, args.groups);
    }
    Ok(())
}

/// Makes a burst of changes at every interval, forever.
async fn live(sim: &Sim, args: &WorldArgs, delivery: Option<&Delivery>) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(args.every.max(Duration::from_millis(1)));
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if args.burst > 0 {
            sim.burst(args.burst)?;
            report(sim, delivery);
        }
    }
}

fn report(sim: &Sim, delivery: Option<&Delivery>) {
    let events = sim.world().events().len();
    match delivery.map(Delivery::progress) {
        None => println!("{events} events"),
        Some(progress) => println!(
            "{events} events, {} webhooks sent, {} acknowledged, {} retried, {} lost, {} pending",
            progress.counts.sent,
            progress.counts.acked,
            progress.counts.retried,
            progress.counts.lost,
            progress.pending
        ),
    }
}

async fn asked_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
    }
    Ok(())
}
