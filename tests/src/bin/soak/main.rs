//! The soak: traffic from a simulated WorkOS while one random fault after the other strikes, and a verdict at the end.
//!
//!     cargo build --workspace --bins && target/debug/soak --seed 7 --strikes 100 --minutes 10
//!
//! Everything it does follows from the seed: what strikes where, in which order and for how long (what the machine does
//! meanwhile does not). Exit code 0: nothing acknowledged was lost, the tables show the truth, the history tells each change
//! once, and nobody had to help. 1: something of that does not hold.
//!
//! Disks can only be filled by root: it then goes on in a mount namespace of its own, where they are made of memory.

#![allow(clippy::print_stdout, reason = "its report")]

mod disk;
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

use crate::plan::{Means, plan};
use crate::report::Report;
use crate::stage::{Setting, Stage};

/// Set once it runs in a mount namespace of its own.
const APART: &str = "DSYNC_SOAK_APART";
/// How long until everything told is delivered at the end, and then until it is in the tables.
const ARRIVES_WITHIN: Duration = Duration::from_mins(3);
/// The same where it is known that not all of it will come.
const CONTROLLED_WITHIN: Duration = Duration::from_secs(10);

/// Faults strike while webhooks come in; then everything is compared.
#[derive(Parser, Debug)]
struct Cli {
    /// What everything follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many strikes
    #[arg(long, default_value_t = 100)]
    strikes: usize,
    /// No new strike after so many minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seconds that the longest strikes last (a share of freezes and black holes): 65 is longer than every time-out
    #[arg(long, default_value_t = 65.0)]
    longest: f64,
    /// Append the report as a line of JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Say every strike as it comes
    #[arg(long)]
    tell: bool,
    /// Instead of strikes: no reconciler, and a broker that loses what it acknowledged, as its default setting does when
    /// the power goes. The verdict must be that something was lost
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
        // Comes back only if it failed.
        eprintln!("no disks are filled: {}", apart.exec());
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
    conclude(cli, stage, &report, ARRIVES_WITHIN).await
}

/// The negative control.
async fn power_loss(cli: &Cli) -> anyhow::Result<bool> {
    println!(
        "seed {}: a broker that loses what it acknowledged, and nothing that would bring it back",
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
    conclude(cli, stage, &Report::new(cli.seed), CONTROLLED_WITHIN).await
}

async fn conclude(cli: &Cli, mut stage: Stage, report: &Report, patience: Duration) -> anyhow::Result<bool> {
    let verdict = stage.verdict(patience).await?;
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
