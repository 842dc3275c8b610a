//! The database schema: the result of all migrations; any number of programs may migrate at once, while others read and
//! write.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Row as _, Transaction};
use tests::{Nats, Postgres, Program, Running, eventually};

const GOLDEN: &str = "tests/e2e/schema.golden";
/// The major version of Postgres that made the golden description. Other versions print the same view differently.
const GOLDEN_POSTGRES: i32 = 15;

/// Lists everything in dsync's schemas, sorted, with one line for each object.
const THINGS: &str = r"
    with ours as (select oid, nspname from pg_namespace where nspname in ('dsync', 'directory'))
    select 'table ' || nspname || '.' || relname
            || case relkind when 'v' then ' (view)' when 'p' then ' (partitioned)' else '' end
            || case when relrowsecurity then ' (row security)' else '' end
            || coalesce(' ' || array_to_string(reloptions, ','), '') as thing
        from pg_class join ours on ours.oid = relnamespace where relkind in ('r', 'v', 'p') and not relispartition
    union all
    select 'column ' || nspname || '.' || relname || '.' || attname || ' ' || format_type(atttypid, atttypmod)
            || case when attnotnull then ' not null' else '' end
            || coalesce(' default ' || pg_get_expr(adbin, adrelid), '')
            || coalesce(' -- ' || col_description(attrelid, attnum), '')
        from pg_attribute
        join pg_class on pg_class.oid = attrelid
        join ours on ours.oid = relnamespace
        left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where attnum > 0 and not attisdropped and relkind in ('r', 'v', 'p') and not relispartition
    union all
    select 'index ' || indexdef from pg_indexes join pg_class on relname = indexname
        join ours on ours.oid = relnamespace and nspname = schemaname where not relispartition
    union all
    select 'constraint ' || conrelid::regclass || ' ' || pg_get_constraintdef(pg_constraint.oid)
        from pg_constraint join ours on ours.oid = connamespace
        join pg_class on pg_class.oid = conrelid where not relispartition and contype <> 'n'
    union all
    select 'view ' || nspname || '.' || relname || ' ' || md5(pg_get_viewdef(pg_class.oid))
        from pg_class join ours on ours.oid = relnamespace where relkind = 'v'
    union all
    select 'function ' || oid::regprocedure || ' ' || md5(prosrc) from pg_proc
        where pronamespace in (select oid from ours)
    union all
    select 'trigger ' || pg_get_triggerdef(pg_trigger.oid) from pg_trigger
        join pg_class on pg_class.oid = tgrelid join ours on ours.oid = relnamespace
        where not tgisinternal and not relispartition
    union all
    select 'policy ' || schemaname || '.' || tablename || ' ' || policyname || ' ' || roles::text || ' ' || coalesce(qual, '')
        from pg_policies where schemaname in ('dsync', 'directory')
    order by 1
";

/// The lines of a description that are comparable with the golden one on Postgres `major`. On other versions than the
/// golden one, views are compared by name only.
fn comparable(text: &str, major: i32) -> BTreeSet<&str> {
    text.lines()
        .map(|line| match line.rsplit_once(' ') {
            Some((view, _)) if major != GOLDEN_POSTGRES && line.starts_with("view ") => view,
            _ => line,
        })
        .collect()
}

async fn described(pool: &PgPool) -> anyhow::Result<String> {
    let mut text = String::new();
    for row in sqlx::query(THINGS).fetch_all(pool).await? {
        writeln!(text, "{}", row.get::<String, _>(0))?;
    }
    Ok(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_migrations_add_up_to_the_golden_schema() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let now = described(&pool).await?;
    let major: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int / 10000")
        .fetch_one(&pool)
        .await?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/schema.golden");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        ensure!(
            major == GOLDEN_POSTGRES,
            "the golden description must be made with Postgres {GOLDEN_POSTGRES}, this is {major}"
        );
        std::fs::write(&path, &now)?;
    }
    let golden = std::fs::read_to_string(&path).context(GOLDEN)?;
    let lines = |text| comparable(text, major);
    let missing: Vec<&str> = lines(&golden).difference(&lines(&now)).copied().collect();
    let extra: Vec<&str> = lines(&now).difference(&lines(&golden)).copied().collect();
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "the schema differs from {GOLDEN} (UPDATE_GOLDEN=1 rewrites it)\nmissing:\n{}\nnew:\n{}",
        missing.join("\n"),
        extra.join("\n")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_view_and_column_readers_see_is_documented() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let bare: Vec<String> = sqlx::query_scalar(
        r"
        select relname || coalesce('.' || attname, '') from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace and nspname = 'directory'
        join pg_attribute on attrelid = pg_class.oid and attnum > 0
        where relkind = 'v' and (obj_description(pg_class.oid) is null or col_description(pg_class.oid, attnum) is null)
        ",
    )
    .fetch_all(&postgres.pool().await?)
    .await?;
    ensure!(bare.is_empty(), "without a comment: {bare:?}");
    Ok(())
}

/// Ingest, which creates the stream. No projector is ready without it.
pub(crate) fn ingest(nats: &Nats) -> Program {
    Program::new("dsync-ingest")
        .env("NATS_URL", nats.url())
        .env("WORKOS_WEBHOOK_SECRET", "whsec_x")
}

pub(crate) fn projector(postgres: &Postgres, nats: &Nats) -> Program {
    Program::new("dsync-projector")
        .env("NATS_URL", nats.url())
        .env("DATABASE_URL", postgres.url())
}

/// Starts three of `program` at once, and waits until all are ready.
pub(crate) async fn ready_at_once(program: impl Fn() -> Program) -> anyhow::Result<[Running; 3]> {
    let mut all = [program().spawn()?, program().spawn()?, program().spawn()?];
    for one in &mut all {
        one.ready().await?;
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_projectors_may_start_on_an_empty_database_at_once() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::start().await?, Nats::start().await?);
    let _ingest = ingest(&nats).start().await?;
    let projector = || projector(&postgres, &nats);
    let mut all = ready_at_once(projector).await?;
    let again = projector().arg("migrate").run().await?;
    ensure!(
        again.status.success() && again.stdout.contains("up to date"),
        "{}{}",
        again.stdout,
        again.stderr
    );
    for one in &mut all {
        one.terminate().await?;
    }
    Ok(())
}

/// How long a test waits for what must happen.
const BOUND: Duration = Duration::from_mins(1);

/// The last version before one that rewrites tables that others read and write.
const OLDER: i32 = 10;

async fn older() -> anyhow::Result<(Postgres, PgPool)> {
    let postgres = Postgres::start().await?;
    let pool = postgres.pool().await?;
    migrations::run_up_to(&pool, OLDER).await?;
    Ok((postgres, pool))
}

/// Waits for a backend of `program` that has waited for a lock for `span` and matches `is_meant`. Returns its process
/// id.
async fn waiting(
    pool: &PgPool,
    program: &str,
    span: Duration,
    is_meant: impl Fn(i32) -> bool,
) -> anyhow::Result<i32> {
    eventually(BOUND, async || {
        let pids: Vec<i32> = sqlx::query_scalar(
            "select pid from pg_stat_activity
            where application_name = $1 and wait_event_type = 'Lock' and clock_timestamp() - query_start >= $2",
        )
        .bind(program)
        .bind(span)
        .fetch_all(pool)
        .await?;
        let meant = pids.into_iter().find(|pid| is_meant(*pid));
        meant.context("no migration waits for a lock")
    })
    .await
}

async fn is_up_to_date(pool: &PgPool) -> anyhow::Result<()> {
    eventually(BOUND, async || {
        let pending = migrations::pending(&mut *pool.acquire().await?).await?;
        ensure!(pending == Some(0), "{pending:?} migrations are pending");
        Ok(())
    })
    .await
}

/// Begins a transaction that reads what migrations lock, and does not end by itself.
async fn long_query(pool: &PgPool) -> anyhow::Result<Transaction<'static, sqlx::Postgres>> {
    let mut long = pool.begin().await?;
    sqlx::query("select id from directory.users")
        .fetch_all(&mut *long)
        .await?;
    Ok(long)
}

/// Starts a projector whose migration waits for such a transaction. Returns it with the process id of its backend.
async fn held_up(postgres: &Postgres, nats: &Nats, pool: &PgPool) -> anyhow::Result<(Running, i32)> {
    let running = projector(postgres, nats).spawn()?;
    let backend = waiting(pool, "dsync-projector", Duration::ZERO, |_| true).await?;
    Ok((running, backend))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_behind_a_migration_that_waits_for_a_long_query() -> anyhow::Result<()> {
    let ((postgres, pool), nats) = (older().await?, Nats::start().await?);
    let _ingest = ingest(&nats).start().await?;
    let long = long_query(&pool).await?;
    let (mut projector, _) = held_up(&postgres, &nats, &pool).await?;
    let login = sqlx::query("select id from directory.users").fetch_all(&pool);
    tokio::time::timeout(BOUND, login)
        .await
        .context("a query waits behind the migration")??;
    let pending = migrations::pending(&mut *pool.acquire().await?).await?;
    ensure!(pending != Some(0), "the migration did not have to wait");
    ensure!(projector.readiness().await? == 503, "ready on an old schema");
    long.commit().await?;
    is_up_to_date(&pool).await?;
    projector.ready().await?;
    let said = projector.output();
    ensure!(
        said.contains("others hold locks") && !said.contains("alter table"),
        "a waiting migration must be logged, without pages of SQL:\n{said}"
    );
    projector.terminate().await?;
    Ok(())
}

/// A transaction pooler would give a session-level lock to others along with the session, and nobody would release it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_migrates_holds_a_lock_of_a_transaction() -> anyhow::Result<()> {
    let ((postgres, pool), nats) = (older().await?, Nats::start().await?);
    let _long = long_query(&pool).await?;
    let (mut projector, migrating) = held_up(&postgres, &nats, &pool).await?;
    let holders: Vec<(i32, String)> = sqlx::query_as(
        "select a.pid, a.state from pg_stat_activity as a join pg_locks as l on l.pid = a.pid
        where a.application_name = 'dsync-projector' and l.locktype = 'advisory' and l.granted",
    )
    .fetch_all(&pool)
    .await?;
    ensure!(
        matches!(&holders[..], [(holder, state)] if *holder != migrating && state == "idle in transaction"),
        "{holders:?}"
    );
    projector.terminate().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_goes_on_after_the_server_ended_its_migration() -> anyhow::Result<()> {
    let ((postgres, pool), nats) = (older().await?, Nats::start().await?);
    let long = long_query(&pool).await?;
    let (mut projector, first) = held_up(&postgres, &nats, &pool).await?;
    sqlx::query("select pg_terminate_backend($1)")
        .bind(first)
        .execute(&pool)
        .await?;
    waiting(&pool, "dsync-projector", Duration::ZERO, |pid| pid != first).await?;
    long.commit().await?;
    is_up_to_date(&pool).await?;
    projector.terminate().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_told_to_stop_does_not_wait_for_its_migration() -> anyhow::Result<()> {
    let ((postgres, pool), nats) = (older().await?, Nats::start().await?);
    let _long = long_query(&pool).await?;
    let (mut projector, _) = held_up(&postgres, &nats, &pool).await?;
    projector.terminate().await?;
    Ok(())
}

/// Migrates on connections whose statements may run for a second.
async fn hurried(postgres: &Postgres) -> anyhow::Result<migrations::Applied> {
    let options: PgConnectOptions = postgres.url().parse()?;
    let pool = PgPoolOptions::new()
        .connect_with(
            options
                .application_name("hurried")
                .options([("statement_timeout", "1s")]),
        )
        .await?;
    Ok(migrations::run(&pool).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_takes_longer_than_a_statement_may() -> anyhow::Result<()> {
    let (postgres, pool) = older().await?;
    let long = long_query(&pool).await?;
    let (applied, ()) = tokio::try_join!(hurried(&postgres), async {
        waiting(&pool, "hurried", Duration::from_millis(1500), |_| true).await?;
        Ok(long.commit().await?)
    })?;
    ensure!(applied.first().is_some_and(|(version, _)| *version == OLDER + 1));
    is_up_to_date(&pool).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_deadlocks_with_a_query_is_tried_again() -> anyhow::Result<()> {
    let (postgres, pool) = older().await?;
    // The migration locks users first; this query locks them last. Only the migration looks for the deadlock.
    let mut query = pool.begin().await?;
    sqlx::raw_sql("set local deadlock_timeout = '10min'; select id from dsync.groups")
        .execute(&mut *query)
        .await?;
    let (applied, ()) = tokio::try_join!(hurried(&postgres), async {
        waiting(&pool, "hurried", Duration::ZERO, |_| true).await?;
        tokio::time::timeout(
            BOUND,
            sqlx::query("select id from dsync.users").fetch_all(&mut *query),
        )
        .await
        .context("the migration and the query wait for each other")??;
        // The migration's next attempt waits for the query, too.
        waiting(&pool, "hurried", Duration::ZERO, |_| true).await?;
        Ok(query.commit().await?)
    })?;
    ensure!(applied.first().is_some_and(|(version, _)| *version == OLDER + 1));
    is_up_to_date(&pool).await
}

/// The version before the newest that the reconciler needs, and the number of versions after it.
const NEEDED_BUT_ONE: (i32, usize) = (14, 8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconciler_begins_nothing_before_the_newest_migration_it_needs() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::start().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    migrations::run_up_to(&pool, NEEDED_BUT_ONE.0).await?;
    let pending = migrations::pending(&mut *pool.acquire().await?).await?;
    ensure!(
        pending == Some(NEEDED_BUT_ONE.1),
        "there is a new migration; does the reconciler need it?"
    );
    let sweep = Program::new("dsync-reconciler")
        .env("NATS_URL", nats.url())
        .env("DATABASE_URL", postgres.url())
        .env("WORKOS_API_KEY", "sk_x")
        .arg("sweep")
        .run()
        .await?;
    ensure!(
        !sweep.status.success() && sweep.stderr.contains("schema is missing or too old"),
        "{}{}",
        sweep.stdout,
        sweep.stderr
    );
    Ok(())
}

/// A command that needs the schema, on a database without it, says what to do. To run it again would not help.
#[tokio::test]
async fn a_command_on_a_database_without_the_schema_says_what_to_do() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::start(), Nats::start())?;
    for arguments in [
        &["verify"][..],
        &["rebuild"],
        &["dead-letters"],
        &["roles"],
        &["erase", "--user", "user_1"],
    ] {
        let program = Program::new("dsync-projector")
            .env("NATS_URL", nats.url())
            .env("DATABASE_URL", postgres.url());
        let program = arguments
            .iter()
            .fold(program, |program, argument| program.arg(*argument));
        let output = program.run().await?;
        ensure!(
            output.status.code() == Some(1)
                && output.stderr.matches("run `dsync-projector migrate`").count() == 1
                && !output.stderr.contains("again"),
            "{arguments:?}: {}",
            output.stderr
        );
    }
    Ok(())
}
