//! The smallest program on top of `service`: it reads the shared settings, serves its admin endpoint, and waits until
//! it is told to stop. The tests in `tests/boot.rs` run it. Copy it to start a new program.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use service::boot::{self, Context};
use service::logging::LogArgs;
use service::settings::{Secret, SettingError, duration_or_off};

/// Does nothing, well.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    /// `/metrics`, `/livez`, `/readyz`
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:0")]
    admin_addr: SocketAddr,
    /// How long it takes to stop
    #[arg(long, env = "IDLE_DRAIN", default_value = "0", value_parser = duration_or_off)]
    idle_drain: Duration,
    /// A secret that is never used
    #[arg(long, env = "IDLE_SECRET", hide_env_values = true)]
    idle_secret: Option<Secret>,
    /// Exit with an error instead of waiting
    #[arg(long)]
    fail: bool,
}

impl boot::Program for Cli {
    fn log(&self) -> &LogArgs {
        &self.log
    }

    fn is_service(&self) -> bool {
        true
    }
}

fn main() -> ExitCode {
    boot::run("idle", env!("CARGO_PKG_VERSION"), idle)
}

async fn idle(cli: Cli, context: Context) -> anyhow::Result<ExitCode> {
    Secret::required("IDLE_SECRET", cli.idle_secret.as_ref(), None)?;
    if cli.idle_drain > Duration::from_hours(1) {
        return Err(SettingError::malformed("IDLE_DRAIN", "is longer than an hour").into());
    }
    if cli.fail {
        return Err(anyhow::anyhow!("the disk is full").context("cannot idle"));
    }
    let admin = service::admin::serve(cli.admin_addr, &context).await?;
    println!("{}", admin.addr());
    context.shutdown.cancelled().await;
    tokio::time::sleep(cli.idle_drain).await;
    Ok(ExitCode::SUCCESS)
}
