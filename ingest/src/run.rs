//! Assembles the program from its settings and serves until it is told to stop.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use journal::Journal;
use service::boot::Context;
use service::http::{Limits, serve_with};
use service::settings::SettingError;
use service::tls::Tls;
use service::{admin, healthcheck, status};
use tokio::net::TcpListener;

use crate::accept::Acceptor;
use crate::config::{Cli, Command};
use crate::in_flight::{Bounds, InFlight};
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::routes::{Ingest, Webhooks};
use crate::sender::Senders;
use crate::sign;
use crate::signature::Verifier;
use crate::status::gather;
use crate::stream::Stream;

/// The connections fit comfortably within the 1,024 open files that many systems allow a process. There are more of
/// them than bodies that may be arriving, so that slow bodies do not take them all.
const LIMITS: Limits = Limits {
    connections: 768,
    header_read: Duration::from_secs(5),
    lifetime: Duration::from_mins(5),
    drain: Duration::from_secs(15),
};

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The program behind [`service::boot::run`].
pub async fn run(cli: Cli, context: Context) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Some(Command::Sign(args)) => sign::run(args, &cli.webhook, &context.clock),
        Some(Command::Healthcheck(args)) => healthcheck::run(cli.webhook.admin_addr, *args).await,
        Some(Command::Status(args)) => {
            let journal = connect(&cli, &context).await?;
            let admin = cli.webhook.admin_addr;
            Box::pin(status::show(*args, &context.shutdown, async || {
                gather(&context, &journal, admin).await
            }))
            .await
        }
        None => receive(&cli, &context).await,
    }
}

async fn connect(cli: &Cli, context: &Context) -> anyhow::Result<Journal> {
    Journal::connect(&cli.journal.connection(context.name)?)
        .await
        .map_err(|error| SettingError::found_later(error.setting(), error))
}

async fn receive(cli: &Cli, context: &Context) -> anyhow::Result<ExitCode> {
    let webhook = &cli.webhook;
    let tls = Tls::given(webhook.tls_cert.as_deref(), webhook.tls_key.as_deref())?;
    let ingest = assemble(cli, context).await?;
    let _admin = admin::serve(webhook.admin_addr, context).await?;
    let addr = webhook.listen_addr;
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("LISTEN_ADDR (--listen-addr): cannot listen on {addr}"))?;
    tracing::info!(addr = %listener.local_addr()?, path = ingest.path, tls = tls.is_some(), "receiving webhooks");
    if let Some(tls) = &tls {
        tokio::spawn(tls.clone().keep_fresh(context.shutdown.clone()));
    }
    serve_with(
        listener,
        tls,
        Webhooks::new(ingest),
        LIMITS,
        context.shutdown.clone(),
    )
    .await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Builds everything that handles a request from the settings, and registers the readiness check.
async fn assemble(cli: &Cli, context: &Context) -> anyhow::Result<Ingest> {
    let webhook = &cli.webhook;
    let verifier = Verifier::new(&webhook.secrets()?, webhook.webhook_tolerance)?;
    let metrics = Metrics::new(&context.metrics)?;
    let journal = connect(cli, context).await?;
    let stream = Stream::keep(journal.clone(), cli.limits.limits(), context.shutdown.clone());
    stream.report_to(&context.readiness);
    Ok(Ingest {
        path: webhook.webhook_path.clone(),
        senders: Senders::new(
            webhook.webhook_allowed_ips.clone(),
            webhook.trusted_proxies.clone(),
        ),
        max_body: webhook.webhook_max_body,
        body_time: BODY_TIME,
        in_flight: InFlight::new(Bounds::default(), metrics.inflight.clone()),
        refusals: Refusals::default(),
        verifier,
        acceptor: Acceptor {
            journal,
            stream,
            metrics: metrics.clone(),
        },
        clock: context.clock.clone(),
        metrics,
    })
}
