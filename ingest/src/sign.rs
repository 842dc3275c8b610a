//! `dsync-ingest sign`: prints a valid signature header for the body on standard input, for testing by hand.

use std::io::{self, Read as _};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use service::clock::Clock;
use service::settings::Secret;

use crate::config::WebhookArgs;
use crate::signature::{HEADER, sign};

/// Options of `sign`.
#[derive(Args, Debug)]
pub struct SignArgs {
    /// Secret to sign with; by default, the first one in `WORKOS_WEBHOOK_SECRET`
    #[arg(long, value_name = "SECRET")]
    secret: Option<Secret>,
    /// Print JSON: `{"header": …, "value": …}`
    #[arg(long)]
    json: bool,
}

/// Prints the header in the form that `curl --header` expects.
pub fn run(args: &SignArgs, webhook: &WebhookArgs, clock: &Clock) -> anyhow::Result<ExitCode> {
    let secret = match &args.secret {
        Some(secret) => secret.clone(),
        None => webhook.secrets()?,
    };
    let mut body = Vec::new();
    io::stdin().lock().read_to_end(&mut body)?;
    let value = sign(&secret, clock.now(), &body)?;
    if args.json {
        println!("{}", json!({"header": HEADER, "value": value}));
    } else {
        println!("{HEADER}: {value}");
    }
    Ok(ExitCode::SUCCESS)
}
