//! `status` of each program: what it shows of a healthy system, and of one whose servers are gone.

use anyhow::ensure;
use serde_json::{Value, json};
use tests::{Nats, Output, Postgres, Program, Running};
use workos_sim::Faults;

use crate::stand::Stand;

async fn status(program: &Program, args: &[&str]) -> anyhow::Result<Output> {
    let program = args
        .iter()
        .fold(program.clone().arg("status"), |program, arg| program.arg(*arg));
    let output = program.run().await?;
    for line in output.stdout.lines().filter(|line| !line.starts_with('{')) {
        ensure!(
            line.chars().count() <= 80,
            "{} columns: {line}",
            line.chars().count()
        );
    }
    ensure!(
        !output.stdout.contains('\x1b'),
        "escape sequences must not be printed to a pipe: {output:?}"
    );
    Ok(output)
}

async fn read(program: &Program, code: i32) -> anyhow::Result<Value> {
    let output = status(program, &["--json"]).await?;
    ensure!(output.status.code() == Some(code), "{output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_program_shows_what_is_and_what_cannot_be_reached() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let running = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    let directories = stand.populate(10, 2)?;
    delivery.drained().await;
    stand.agrees().await?;
    sqlx::query("insert into dsync.sweeps (directory_id, swept_at, drift) values ($1, now(), 4)")
        .bind(&directories[1])
        .execute(&stand.pool)
        .await?;
    sqlx::query("insert into dsync.held_deletions (directory_id, entity, user_id) values ($1, 'user', 'u')")
        .bind(&directories[2])
        .execute(&stand.pool)
        .await?;

    // None needs more settings than it uses: no WorkOS API key, no signing secret.
    let nats = |program: Program| program.env("NATS_URL", stand.nats.url());
    let projector = nats(Program::new("dsync-projector")).env("DATABASE_URL", stand.postgres.url());
    let reconciler = nats(Program::new("dsync-reconciler")).env("DATABASE_URL", stand.postgres.url());
    let admin = stand.ingest.admin_url().trim_start_matches("http://").to_owned();
    let ingest = nats(Program::new("dsync-ingest")).env("ADMIN_ADDR", admin);

    let seen = read(&projector, 0).await?;
    let database = &seen["database"];
    ensure!(
        database["schema"] == "up to date" && database["dead_letters"] == 0,
        "{seen}"
    );
    ensure!(
        database["lanes"][0]["lane"] == "all" && database["lanes"][0]["behind"] == 0,
        "{seen}"
    );
    ensure!(database["lanes"][0]["held_by"].is_string(), "{seen}");
    let first: Vec<_> = (0..3)
        .map(|n| database["directories"][n]["directory"].clone())
        .collect();
    ensure!(
        first[0] == directories[2] && first[1] == directories[1],
        "the most urgent must be first: {seen}"
    );
    ensure!(seen["log"]["messages"] == seen["log"]["last_sequence"], "{seen}");

    let seen = read(&reconciler, 0).await?;
    ensure!(seen["database"]["deletions_held"] == 1, "{seen}");
    let approve = format!("dsync-reconciler approve {}", directories[2]);
    ensure!(
        seen["database"]["held"][0]["to let deletions through"] == approve,
        "{seen}"
    );
    ensure!(seen["database"]["sweeps"][0]["drift"] == 4, "{seen}");

    let seen = read(&ingest, 0).await?;
    ensure!(seen["service"]["state"] == "ready", "{seen}");
    let accepted = seen["service"]["webhooks"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["outcome"] == "accepted");
    ensure!(
        accepted.is_some_and(|row| row["count"] == seen["log"]["messages"]),
        "{seen}"
    );
    let text = status(&ingest, &[]).await?;
    ensure!(
        text.stdout.contains("SERVICE") && text.stdout.contains("accepted"),
        "{text:?}"
    );
    ensure!(
        status(&projector, &[]).await?.stdout.contains(&directories[2]),
        "by name"
    );
    ensure!(status(&reconciler, &["--all"]).await?.status.success());

    and_of_what_is_gone(stand, running, [projector, reconciler, ingest]).await
}

async fn and_of_what_is_gone(
    mut stand: Stand,
    running: Running,
    programs: [Program; 3],
) -> anyhow::Result<()> {
    let [projector, reconciler, ingest] = programs;
    stand.nats.kill();
    let seen = read(&projector, 1).await?;
    ensure!(
        seen["log"]["trouble"].is_string() && seen["database"]["trouble"] == Value::Null,
        "{seen}"
    );
    drop(running);
    stand.postgres.kill()?;
    let seen = read(&reconciler, 1).await?;
    let trouble = seen["database"]["trouble"].as_str().unwrap_or_default();
    ensure!(
        trouble.contains("refused"),
        "the cause must be shown, not only that there was no answer: {seen}"
    );
    let text = status(&reconciler, &[]).await?;
    ensure!(text.stdout.contains("DATABASE  NOT REACHED"), "{text:?}");
    let elsewhere = ingest.env("ADMIN_ADDR", "127.0.0.1:1");
    let seen = read(&elsewhere, 1).await?;
    ensure!(
        seen["service"]["trouble"] == json!("nothing answers at 127.0.0.1:1"),
        "{seen}"
    );
    Ok(())
}

/// A failure has left more rows than `status` counts, and some tables cannot be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_or_counted_hides_nothing_else() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    let program = |name: &'static str| {
        Program::new(name)
            .env("DATABASE_URL", postgres.url())
            .env("NATS_URL", nats.url())
    };
    let (projector, reconciler) = (program("dsync-projector"), program("dsync-reconciler"));
    sqlx::raw_sql(OVERFLOWING).execute(&pool).await?;

    // The only problem with the log is that no stream was created.
    let seen = &read(&projector, 1).await?["database"];
    ensure!(seen["trouble"] == Value::Null, "{seen}");
    ensure!(seen["dead_letters"] == 10_001, "{seen}");
    let first = &seen["directories"][0];
    ensure!(
        first["directory"] == "directory_b" && first["held"] == 10_001,
        "{seen}"
    );
    let text = status(&projector, &[]).await?.stdout;
    ensure!(
        text.contains("dead letters over 10,000") && text.contains("over 10,000\n"),
        "{text}"
    );

    let seen = &read(&reconciler, 1).await?["database"];
    ensure!(seen["trouble"] == Value::Null, "{seen}");
    ensure!(
        seen["deletions_held"] == 10_001 && seen["to_be_read_again"] == 10_001 && seen["in_doubt"] == 1_001,
        "{seen}"
    );
    let held: Vec<_> = (0..3).map(|n| seen["held"][n]["count"].clone()).collect();
    ensure!(held == [json!(10_001), json!(2), Value::Null], "{seen}");
    ensure!(
        seen["oldest_sweep"] == "2026-02-02T00:00:00Z",
        "only directories that are not gone count: {seen}"
    );

    // One table is locked, another does not exist.
    let mut locking = pool.begin().await?;
    sqlx::raw_sql("lock table dsync.dead_letters")
        .execute(&mut *locking)
        .await?;
    let seen = &read(&projector, 1).await?["database"];
    let trouble = seen["trouble"].as_str().unwrap_or_default();
    ensure!(trouble.starts_with("dead letters: SQLSTATE 55P03"), "{seen}");
    ensure!(seen["directories"][0]["held"] == 10_001, "{seen}");
    locking.rollback().await?;
    sqlx::raw_sql("alter table dsync.rereads rename to elsewhere")
        .execute(&pool)
        .await?;
    let text = status(&reconciler, &[]).await?.stdout;
    ensure!(
        text.contains("what waits NOT READ: SQLSTATE 42P01") && text.contains("approve directory_b"),
        "{text}"
    );
    Ok(())
}

/// Of three directories, one is gone. More rows wait than are counted.
const OVERFLOWING: &str = "
    insert into dsync.directories (id, seen_at, gone_at) values
        ('directory_a', '2026-01-01', '-infinity'),
        ('directory_b', '2026-01-01', '-infinity'),
        ('directory_gone', '2025-01-01', '2026-01-01');
    insert into dsync.sweeps (directory_id, swept_at) values
        ('directory_a', '2026-02-02'), ('directory_b', '2026-02-03'), ('directory_gone', '2025-01-01');
    insert into dsync.held_deletions (directory_id, entity, user_id)
        select 'directory_b', 'user', n::text from generate_series(1, 12000) as n;
    insert into dsync.held_deletions (directory_id, entity, user_id) values
        ('directory_a', 'user', 'one'), ('directory_a', 'user', 'two');
    insert into dsync.rereads (target, id, directory_id, due_at)
        select 'user', n::text, 'directory_b', now() from generate_series(1, 12000) as n;
    insert into dsync.users (id, directory_id, seen_at, gone_at, version_observed_at)
        select n::text, 'directory_b', '2026-01-01', '2026-01-02', '2026-01-03' from generate_series(1, 1200) as n;
    insert into dsync.dead_letters (stream_created, seq, subject, event_type, source, received_at, reason)
        select now(), n, 'dsync.x', 'x', 'webhook', now(), 'x' from generate_series(1, 12000) as n;
";
