//! `dsync-projector`: from settings to running lanes, and its subcommands.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use journal::Journal;
use projector::config::{Cli, Command, Output};
use projector::lane::Lane;
use projector::metrics::Metrics;
use projector::rebuild::Tools;
use projector::run::{Tuning, Worker};
use projector::upkeep::Upkeep;
use projector::{backlog, beside, dead_letters, erase, roles, status, store, watch};
use service::boot::{self, Context};
use service::postgres::{self, PoolSettings, Trouble, described};
use service::retry::Backoff;
use service::settings::SettingError;
use service::{admin, healthcheck};
use sqlx::PgPool;
use tokio::task::JoinSet;

const NAME: &str = "dsync-projector";

fn main() -> ExitCode {
    boot::run(NAME, env!("CARGO_PKG_VERSION"), run)
}

async fn run(cli: Cli, context: Context) -> anyhow::Result<ExitCode> {
    match &cli.command {
        None => serve(&cli, context, pool(&cli)?).await,
        Some(Command::Healthcheck(args)) => healthcheck::run(cli.admin_addr, *args).await,
        Some(Command::Rebuild {
            sweep,
            undo,
            limit,
            output,
        }) => rebuild(&cli, &context, (*sweep, *undo), *limit, *output).await,
        Some(Command::Verify { limit, output }) => verify(&cli, &context, *limit, *output).await,
        Some(Command::Status(args)) => {
            let (pool, journal) = (pool(&cli)?, connect(&cli).await?);
            let gather = async || status::gather(&pool, &journal, context.clock.now(), args.all).await;
            Box::pin(service::status::show(*args, &context.shutdown, gather)).await
        }
        Some(Command::Migrate(output)) => migrate(&pool(&cli)?, *output).await,
        Some(Command::DeadLetters { action, output }) => {
            let pool = pool(&cli)?;
            let done = dead_letters::run(&pool, action.as_ref(), *output, &mut std::io::stdout()).await?;
            Ok(exit_code(done))
        }
        Some(Command::Roles { action, output }) => {
            let pool = pool(&cli)?;
            let done = roles::run(&pool, action.as_ref(), *output, &mut std::io::stdout()).await?;
            Ok(exit_code(done))
        }
        Some(Command::Erase { whom, output }) => {
            let (pool, journal) = (pool(&cli)?, connect(&cli).await?);
            let now = context.clock.now();
            let done = erase::run(&pool, &journal, whom, *output, now, &mut std::io::stdout()).await?;
            Ok(exit_code(done))
        }
    }
}

/// Exit code of `verify` when the projection is not what the log says.
const DIFFERS: u8 = 3;

async fn tools(cli: &Cli, context: &Context, limit: usize) -> anyhow::Result<Tools> {
    let journal = connect(cli).await?;
    Ok(Tools {
        pool: pool(cli)?,
        journal,
        clock: context.clock.clone(),
        limit,
        bar: service::progress::bar("records"),
    })
}

/// Runs `command` until it ends, or drops it when the program is told to stop.
async fn until_stopped<T>(
    context: &Context,
    command: impl Future<Output = Result<T, beside::Error>>,
) -> Result<T, beside::Error> {
    let done = context.shutdown.run_until_cancelled(command).await;
    done.unwrap_or(Err(beside::Error::Stopped))
}

async fn verify(cli: &Cli, context: &Context, limit: usize, output: Output) -> anyhow::Result<ExitCode> {
    let tools = tools(cli, context, limit).await?;
    let verified = until_stopped(context, Box::pin(tools.verify())).await?;
    print(output, &verified, &verified.text())?;
    Ok(if verified.differing.all == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DIFFERS)
    })
}

async fn rebuild(
    cli: &Cli,
    context: &Context,
    (sweep, undo): (bool, bool),
    limit: usize,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let tools = tools(cli, context, limit).await?;
    if undo {
        let undone = until_stopped(context, tools.undo()).await?;
        print(output, &undone, &undone.text())?;
    } else {
        let rebuilt = until_stopped(context, Box::pin(tools.rebuild(sweep))).await?;
        print(output, &rebuilt, &rebuilt.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(output: Output, report: &impl serde::Serialize, text: &str) -> anyhow::Result<()> {
    if output.json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        print!("{text}");
    }
    Ok(())
}

fn exit_code(done: bool) -> ExitCode {
    if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn connect(cli: &Cli) -> anyhow::Result<Journal> {
    Journal::connect(&cli.journal.connection(NAME)?)
        .await
        .map_err(|error| SettingError::found_later(error.setting(), error))
}

fn pool(cli: &Cli) -> anyhow::Result<PgPool> {
    let settings = PoolSettings {
        application_name: NAME,
        max_connections: 8,
        statement_timeout: Duration::from_secs(30),
    };
    Ok(postgres::pool(&cli.database.url()?, &settings)?)
}

async fn migrate(pool: &PgPool, output: Output) -> anyhow::Result<ExitCode> {
    let applied = migrations::run(pool)
        .await
        .context("cannot bring the schema up to date")?;
    let missing = store::upkeep::grant_readers(pool).await?;
    if output.json {
        let applied: Vec<_> = applied
            .iter()
            .map(|(version, name)| serde_json::json!({"version": version, "name": name}))
            .collect();
        println!(
            "{}",
            serde_json::json!({ "applied": applied, "administrator": missing })
        );
    } else if applied.is_empty() {
        println!("the schema is up to date");
    } else {
        for (version, name) in applied {
            println!("applied V{version} {name}");
        }
    }
    if !output.json && !missing.is_empty() {
        println!("{NO_READERS}:");
        for statement in missing {
            println!("  {statement}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

const NO_READERS: &str = "readers have no access: this login may not create roles. \
    Have an administrator run these statements, then run `dsync-projector migrate` again";

async fn serve(cli: &Cli, context: Context, pool: PgPool) -> anyhow::Result<ExitCode> {
    let metrics = Metrics::new(&context.metrics);
    let journal = connect(cli).await?;
    let is_migrated = Arc::new(AtomicBool::new(false));
    ready_checks(&context, &pool, &journal, is_migrated.clone());
    let _admin = admin::serve(cli.admin_addr, &context).await?;
    if !migrated(&pool, &context).await? {
        return Ok(ExitCode::SUCCESS);
    }
    is_migrated.store(true, Ordering::Relaxed);
    let worker = Worker {
        pool: pool.clone(),
        journal: journal.clone(),
        holder: format!("{}-{:016x}", std::process::id(), rand::random::<u64>()),
        clock: context.clock.clone(),
        metrics: metrics.clone(),
        tuning: Tuning::default(),
        shutdown: context.shutdown.clone(),
    };
    let upkeep = Upkeep {
        pool: pool.clone(),
        journal: journal.clone(),
        clock: context.clock.clone(),
        tombstone_retention: cli.tombstone_retention,
        history_retention: cli.history_retention,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(upkeep.work(context.shutdown.clone()));
    tasks.spawn(backlog::work(pool.clone(), context.shutdown.clone()));
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
        // A task ends only at shutdown or by a panic. A panic ends the whole process.
        ended.context("a projector task failed")?;
    }
    pool.close().await;
    Ok(ExitCode::SUCCESS)
}

fn ready_checks(context: &Context, pool: &PgPool, journal: &Journal, is_migrated: Arc<AtomicBool>) {
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
    // Until the schema is up to date nothing is applied: a rolling upgrade must not stop the last old projector yet.
    context.readiness.check("schema", PATIENCE, move || {
        let is_migrated = is_migrated.load(Ordering::Relaxed);
        async move {
            is_migrated
                .then_some(())
                .ok_or("not up to date yet: see the projector's log")
        }
    });
    let log = journal.clone();
    context.readiness.check("log", PATIENCE, move || {
        let log = log.clone();
        async move { log.ready().await }
    });
}

/// Grants the reader roles their privileges if the roles exist: an administrator may have created them since the last
/// start. A failure affects only readers.
async fn grant_readers(pool: &PgPool) {
    match store::upkeep::grant_readers(pool).await {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => tracing::warn!(statements = missing.join(" "), "{NO_READERS}"),
        Err(error) => {
            tracing::warn!(error = %described(&error), "readers may lack access: cannot grant them privileges");
        }
    }
}

/// Brings the schema up to date, waiting for the database as long as it takes. `false` if shut down meanwhile.
async fn migrated(pool: &PgPool, context: &Context) -> anyhow::Result<bool> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        // Migrating a large table may take minutes, which is longer than a program has once it is told to stop.
        let Some(migrated) = context.shutdown.run_until_cancelled(migrations::run(pool)).await else {
            return Ok(false);
        };
        match migrated {
            Ok(applied) => {
                for (version, name) in applied {
                    tracing::info!(version, name, "applied a migration");
                }
                grant_readers(pool).await;
                return Ok(true);
            }
            Err(error) => match error
                .database()
                .filter(|error| Trouble::of(error) == Trouble::Transient)
            {
                Some(error) => tracing::warn!(error = %described(error), "waiting for the database"),
                None => return Err(error).context("cannot bring the schema up to date"),
            },
        }
        if !backoff.wait(&context.shutdown).await {
            return Ok(false);
        }
    }
}
