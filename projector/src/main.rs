//! `dsync-projector`: from settings to running lanes, and its subcommands.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use journal::{Connection, Journal};
use projector::config::{Cli, Command, Output};
use projector::lane::Lane;
use projector::metrics::Metrics;
use projector::run::{Tuning, Worker};
use projector::{dead_letters, watch};
use service::admin;
use service::boot::{self, Context};
use service::postgres::{self, PoolSettings, Trouble, described};
use service::retry::Backoff;
use sqlx::PgPool;
use tokio::task::JoinSet;

const NAME: &str = "dsync-projector";

fn main() -> ExitCode {
    boot::run(NAME, env!("CARGO_PKG_VERSION"), run)
}

async fn run(cli: Cli, context: Context) -> anyhow::Result<ExitCode> {
    let pool = postgres::pool(
        &cli.database.url()?,
        &PoolSettings {
            application_name: NAME,
            max_connections: 8,
            statement_timeout: Duration::from_secs(30),
        },
    )?;
    match &cli.command {
        None => serve(&cli, context, pool).await,
        Some(Command::Migrate(output)) => migrate(&pool, *output).await,
        Some(Command::DeadLetters { action, output }) => {
            let done = dead_letters::run(&pool, action.as_ref(), *output, &mut std::io::stdout()).await?;
            Ok(if done {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

async fn migrate(pool: &PgPool, output: Output) -> anyhow::Result<ExitCode> {
    let applied = migrations::run(pool)
        .await
        .context("the schema cannot be brought up to date")?;
    if output.json {
        let applied: Vec<_> = applied
            .iter()
            .map(|(version, name)| serde_json::json!({"version": version, "name": name}))
            .collect();
        println!("{}", serde_json::json!({ "applied": applied }));
    } else if applied.is_empty() {
        println!("the schema is up to date");
    } else {
        for (version, name) in applied {
            println!("applied V{version} {name}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(cli: &Cli, context: Context, pool: PgPool) -> anyhow::Result<ExitCode> {
    let metrics = Metrics::new(&context.metrics);
    let stream = cli.journal.dsync_stream.clone();
    let journal = Journal::connect(&Connection {
        url: cli.journal.nats_url.expose().to_owned(),
        creds: cli.journal.nats_creds.clone(),
        stream: stream.clone(),
        name: NAME.to_owned(),
    })
    .await?;
    ready_checks(&context, &pool, &journal);
    let _admin = admin::serve(cli.admin_addr, &context).await?;
    if !migrated(&pool, &context).await? {
        return Ok(ExitCode::SUCCESS);
    }
    let worker = Worker {
        pool: pool.clone(),
        journal: journal.clone(),
        stream,
        holder: format!("{}-{:016x}", std::process::id(), rand::random::<u64>()),
        clock: context.clock.clone(),
        metrics: metrics.clone(),
        tuning: Tuning::default(),
        shutdown: context.shutdown.clone(),
    };
    let mut tasks = JoinSet::new();
    for lane in Lane::EVERY {
        tasks.spawn(worker.clone().work(lane));
    }
    tasks.spawn(watch::gauges(
        pool.clone(),
        journal,
        metrics,
        context.shutdown.clone(),
    ));
    while let Some(ended) = tasks.join_next().await {
        // A task ends only at shutdown, or by a panic: then the whole process starts over.
        ended.context("a task of the projector failed")?;
    }
    pool.close().await;
    Ok(ExitCode::SUCCESS)
}

fn ready_checks(context: &Context, pool: &PgPool, journal: &Journal) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let database = pool.clone();
    context.readiness.check("database", PATIENCE, move || {
        let pool = database.clone();
        async move {
            let seen = sqlx::query_scalar!(r#"select 1 as "one!""#)
                .fetch_one(&pool)
                .await;
            seen.map(|_| ()).map_err(|error| described(&error).to_string())
        }
    });
    let log = journal.clone();
    context.readiness.check("log", PATIENCE, move || {
        let log = log.clone();
        async move { log.ready().await }
    });
}

/// Brings the schema up to date, waiting for the database as long as it takes. `false`: told to stop meanwhile.
async fn migrated(pool: &PgPool, context: &Context) -> anyhow::Result<bool> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        match migrations::run(pool).await {
            Ok(applied) => {
                for (version, name) in applied {
                    tracing::info!(version, name, "applied a migration");
                }
                return Ok(true);
            }
            Err(migrations::Error::Database(error)) if Trouble::of(&error) == Trouble::Transient => {
                tracing::warn!(error = %described(&error), "waiting for the database");
            }
            Err(error) => return Err(error).context("the schema cannot be brought up to date"),
        }
        if !backoff.wait(&context.shutdown).await {
            return Ok(false);
        }
    }
}
