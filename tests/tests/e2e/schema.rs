//! The database schema: what the migrations add up to, and that any number of programs may migrate at once.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use sqlx::{PgPool, Row as _};
use tests::{Nats, Postgres, Program};

const GOLDEN: &str = "tests/e2e/schema.golden";

/// Everything in our schemas, one line a thing, in an order of its own.
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
    let now = described(&postgres.pool().await?).await?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/schema.golden");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now)?;
    }
    let golden = std::fs::read_to_string(&path).context(GOLDEN)?;
    let missing: Vec<&str> = golden
        .lines()
        .filter(|line| !now.lines().any(|other| other == *line))
        .collect();
    let extra: Vec<&str> = now
        .lines()
        .filter(|line| !golden.lines().any(|other| other == *line))
        .collect();
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "the schema is not {GOLDEN} (UPDATE_GOLDEN=1 rewrites it)\nmissing:\n{}\nnew:\n{}",
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_projectors_may_start_on_an_empty_database_at_once() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::start().await?, Nats::start().await?);
    let projector = || {
        Program::new("dsync-projector")
            .env("NATS_URL", nats.url())
            .env("DATABASE_URL", postgres.url())
    };
    let _ingest = Program::new("dsync-ingest")
        .env("NATS_URL", nats.url())
        .env("WORKOS_WEBHOOK_SECRET", "whsec_x")
        .start()
        .await?;
    let mut all = [projector().spawn()?, projector().spawn()?, projector().spawn()?];
    for one in &mut all {
        one.ready().await?;
    }
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
