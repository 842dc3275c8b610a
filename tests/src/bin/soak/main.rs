//! The soak: traffic from a simulated WorkOS while one random fault after another strikes and an operator verifies,
//! rebuilds, sweeps and erases, and a verdict at the end.
//!
//!     cargo build --workspace --bins && target/debug/soak --seed 7 --strikes 100 --minutes 10
//!
//! The seed decides which faults strike where, in which order and for how long. (Timing still depends on the machine.)
//! Exit code 0 means that nothing acknowledged was lost, the tables show the truth, the history has each change once,
//! and nobody had to intervene. Otherwise the exit code is 1.
//!
//! Only root can fill disks. If run as root, the soak moves to a mount namespace of its own, where disks are in memory.

#![allow(clippy::print_stdout, reason = "prints its report")]

mod disk;
mod operator;
mod plan;
mod report;
mod stage;
mod strikes;
mod verdict;
mod world;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;

use crate::operator::{Deeds, Operator};
use crate::plan::{Means, plan};
use crate::report::Report;
use crate::stage::{Setting, Stage};

/// Set once it runs in a mount namespace of its own.
const APART: &str = "DSYNC_SOAK_APART";
/// At the end, how long everything may take to be delivered, and then to be in the tables.
const ARRIVES_WITHIN: Duration = Duration::from_mins(3);
/// The same for the control, where not everything will arrive.
const CONTROLLED_WITHIN: Duration = Duration::from_secs(10);

/// Runs dsync while random faults strike, then compares everything with the source.
#[derive(Parser, Debug)]
struct Cli {
    /// Seed that decides all faults; the same seed strikes in the same way
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of strikes
    #[arg(long, default_value_t = 100)]
    strikes: usize,
    /// Minutes after which no new strike begins
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seconds that the longest strikes last (a share of freezes and black holes): 65 is longer than every timeout
    #[arg(long, default_value_t = 65.0)]
    longest: f64,
    /// Append the report to this file, as a line of JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print each round of strikes and the time to recover from it
    #[arg(long)]
    tell: bool,
    /// Run the negative control instead of strikes: no reconciler, and a broker that loses acknowledged messages, as
    /// with its default sync setting in a power cut. The verdict must be that something was lost
    #[arg(long)]
    power_loss: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if rustix::process::geteuid().is_root() && std::env::var_os(APART).is_none() && !cli.power_loss {
        let mut apart = Command::new("unshare");
        apart.args(["--mount", "--propagation", "private"]);
        apart
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(APART, "1");
        // Returns only on failure.
        eprintln!(
            "cannot run in a mount namespace, so no disks will be filled: {}",
            apart.exec()
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let good = if cli.power_loss {
            power_loss(&cli).await?
        } else {
            soak(&cli).await?
        };
        Ok(ExitCode::from(u8::from(!good)))
    })
}

async fn soak(cli: &Cli) -> anyhow::Result<bool> {
    let means = Means {
        disks: std::env::var_os(APART).is_some() && disk::possible(),
        longest: Duration::from_secs_f64(cli.longest),
    };
    let rounds = plan(cli.seed, cli.strikes, means);
    println!(
        "seed {}: {} strikes in {} rounds; {means:?}",
        cli.seed,
        cli.strikes,
        rounds.len()
    );
    let mut stage = Stage::set(Setting {
        seed: cli.seed,
        disks: means.disks,
        reconciler: true,
        lost: 3,
    })
    .await?;
    let traffic = stage.world.traffic(cli.seed)?;
    let mut report = Report::new(cli.seed);
    let until = Instant::now() + Duration::from_secs_f64(cli.minutes * 60.0);
    stage.recovered(true).await.context("before the first strike")?;
    let operator = Operator::hire(&stage, cli.seed);
    for round in rounds {
        if Instant::now() > until {
            break;
        }
        let recovered = stage
            .round(&round)
            .await
            .inspect_err(|_| eprintln!("{}", stage.words(40)));
        let took =
            recovered.with_context(|| format!("seed {}, after {} strikes", cli.seed, report.strikes()))?;
        if cli.tell {
            let blows: Vec<String> = round.iter().map(|blow| format!("{blow:?}")).collect();
            println!("{:>6.2} s after {}", took.as_secs_f64(), blows.join(" + "));
        }
        report.count(&round, took);
    }
    drop(traffic);
    let deeds = operator.dismiss().await?;
    conclude(cli, stage, &report, deeds, ARRIVES_WITHIN).await
}

/// The negative control.
async fn power_loss(cli: &Cli) -> anyhow::Result<bool> {
    println!(
        "seed {}: the broker loses acknowledged messages, and no reconciler recovers them",
        cli.seed
    );
    let mut stage = Stage::set(Setting {
        seed: cli.seed,
        disks: false,
        reconciler: false,
        lost: 0,
    })
    .await?;
    stage.lose_power(cli.seed).await?;
    let (report, deeds) = (Report::new(cli.seed), Deeds::default());
    conclude(cli, stage, &report, deeds, CONTROLLED_WITHIN).await
}

async fn conclude(
    cli: &Cli,
    mut stage: Stage,
    report: &Report,
    deeds: Deeds,
    patience: Duration,
) -> anyhow::Result<bool> {
    let verdict = stage.verdict(deeds, patience).await?;
    report.show(&verdict, &stage.supervision);
    if let Some(file) = &cli.json {
        let mut lines = File::options().create(true).append(true).open(file)?;
        writeln!(lines, "{}", report.json(&verdict, &stage.supervision))?;
    }
    let good = verdict.is_good() && stage.supervision.ended.is_empty();
    if !good {
        eprintln!("{}", stage.words(40));
    }
    println!("{}", if good { "GOOD" } else { "NOT GOOD" });
    Ok(good)
}
