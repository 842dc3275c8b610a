//! `dsync-reconciler`: starts the loops from the settings, or runs a subcommand.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use journal::Journal;
use reconciler::catch_up::Settings;
use reconciler::config::{Cli, Command};
use reconciler::lease::Leases;
use reconciler::metrics::Metrics;
use reconciler::store::applied;
use reconciler::work::{Rules, Work};
use reconciler::workos::client::{Api, ClientSettings};
use reconciler::workos::pages::{List, Pages};
use reconciler::{command, run, status};
use service::boot::{self, Context};
use service::postgres::{self, PoolSettings, answered, described};
use service::retry::Backoff;
use service::settings::SettingError;
use service::{admin, healthcheck};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;

const NAME: &str = "dsync-reconciler";
/// How long a sweep waits for the projector.
const PATIENCE: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    boot::run(NAME, env!("CARGO_PKG_VERSION"), main_async)
}

async fn main_async(cli: Cli, context: Context) -> anyhow::Result<ExitCode> {
    match &cli.command {
        None => serve(&cli, context.clone(), work(&cli, &context).await?).await,
        Some(Command::Healthcheck(args)) => healthcheck::run(cli.admin_addr, *args).await,
        Some(Command::Status(args)) => {
            let (pool, journal) = (pool(&cli)?, journal(&cli).await?);
            let gather = async || status::gather(&pool, &journal, context.clock.now(), args.all).await;
            Box::pin(service::status::show(*args, &context.shutdown, gather)).await
        }
        Some(Command::Sweep(args)) => {
            attended(&cli, &context, async |work| {
                command::run_sweep(work, args, &mut std::io::stdout()).await
            })
            .await
        }
        Some(Command::Approve { directory_id, json }) => {
            attended(&cli, &context, async |work| {
                command::run_approve(work, directory_id, *json, &mut std::io::stdout()).await
            })
            .await
        }
    }
}

/// Runs a subcommand, renewing its leases meanwhile, until it ends or is told to stop.
async fn attended(
    cli: &Cli,
    context: &Context,
    command: impl AsyncFnOnce(&Work) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let work = work(cli, context).await?;
    let keeper = tokio::spawn(work.leases.clone().keep(context.shutdown.clone()));
    let ready = async {
        let schema = applied::has_schema(&work.pool).await;
        let schema = schema.map_err(|error| anyhow::anyhow!("the database: {}", described(&error)))?;
        anyhow::ensure!(
            schema,
            "the database's schema is missing or too old: run `dsync-projector migrate`"
        );
        // Not created here: a subcommand is rarely run with the limits that the service has.
        let log = work.journal.identity().await;
        log.context("cannot reach the log")?
            .context("the log's stream does not exist yet: dsync-ingest creates it")?;
        command(&work).await
    };
    let code = tokio::select! {
        code = ready => code,
        () = context.shutdown.cancelled() => Err(anyhow::anyhow!("stopped")),
    };
    keeper.abort();
    code
}

fn pool(cli: &Cli) -> anyhow::Result<PgPool> {
    let settings = PoolSettings {
        application_name: NAME,
        max_connections: 16,
        statement_timeout: Duration::from_mins(1),
    };
    Ok(postgres::pool(&cli.database.url()?, &settings)?)
}

async fn journal(cli: &Cli) -> anyhow::Result<Journal> {
    Journal::connect(&cli.journal.connection(NAME)?)
        .await
        .map_err(|error| SettingError::found_later(error.setting(), error))
}

async fn work(cli: &Cli, context: &Context) -> anyhow::Result<Work> {
    let pool = pool(cli)?;
    let metrics = Metrics::new(&context.metrics);
    let settings = ClientSettings::new(cli.workos.workos_api_url.clone(), cli.workos.key()?);
    let journal = journal(cli).await?;
    let holder = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
    Ok(Work {
        leases: Leases::new(pool.clone(), &holder),
        pool,
        journal,
        api: Api::new(settings, context.clock.clone(), metrics.clone())?,
        clock: context.clock.clone(),
        metrics,
        rules: Rules {
            margin: cli.sweep_clock_margin,
            max_deletions: cli.sweep_max_deletions,
            patience: PATIENCE,
        },
    })
}

async fn serve(cli: &Cli, context: Context, work: Work) -> anyhow::Result<ExitCode> {
    ready_checks(&context, &work);
    let _admin = admin::serve(cli.admin_addr, &context).await?;
    if !prepared(cli, &context, &work).await {
        return Ok(ExitCode::SUCCESS);
    }
    let catch_up = Settings {
        every: cli.events_poll_interval,
        holdback: cli.events_holdback,
    };
    let keeper = tokio::spawn(work.leases.clone().keep(context.shutdown.clone()));
    let mut tasks = JoinSet::new();
    run::start(
        &mut tasks,
        &work,
        cli.limits.limits(),
        catch_up,
        cli.sweep_interval,
        &context.shutdown,
    );
    while let Some(ended) = tasks.join_next().await {
        // A task ends only at shutdown or by a panic. A panic ends the whole process, so that it starts over.
        ended.context("a reconciler task failed")?;
    }
    keeper.abort();
    work.pool.close().await;
    Ok(ExitCode::SUCCESS)
}

fn ready_checks(context: &Context, work: &Work) {
    const LIMIT: Duration = Duration::from_secs(2);
    let pool = work.pool.clone();
    context.readiness.check("database", LIMIT, move || {
        let pool = pool.clone();
        async move {
            match applied::has_schema(&pool).await {
                Ok(true) => Ok(()),
                Ok(false) => {
                    Err("the schema is missing or too old; the projector brings it up to date".to_owned())
                }
                Err(error) => Err(described(&error).to_string()),
            }
        }
    });
    let log = work.journal.clone();
    context.readiness.check("log", LIMIT, move || {
        let log = log.clone();
        async move { log.ready().await }
    });
    let api = work.api.clone();
    context.readiness.check("workos", LIMIT, move || {
        let api = api.clone();
        async move { reachable(&api).await }
    });
}

/// Whether `WorkOS` answers, judged by the last request or, if that was too long ago, by a new one.
async fn reachable(api: &Api) -> Result<(), String> {
    const FRESH: Duration = Duration::from_secs(30);
    if let Some(health) = api.health().filter(|health| Instant::now() - health.at < FRESH) {
        return health.answered;
    }
    let asked = Pages::of(api, List::directories()).next().await;
    asked.map(|_| ()).map_err(|error| error.to_string())
}

/// Waits for the schema, then creates the stream if there is none, however long that takes. `false`: told to stop
/// meanwhile.
async fn prepared(cli: &Cli, context: &Context, work: &Work) -> bool {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        match answered(applied::has_schema(&work.pool)).await {
            Ok(true) => match work.journal.create_missing(&cli.limits.limits()).await {
                Ok(_) => return true,
                Err(error) => tracing::warn!(%error, "waiting for the log"),
            },
            Ok(false) => tracing::warn!("waiting for the projector to bring the schema up to date"),
            Err(error) => tracing::warn!(error = %described(&error), "waiting for the database"),
        }
        if !backoff.wait(&context.shutdown).await {
            return false;
        }
    }
}
