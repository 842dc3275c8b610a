//! `status` of each program: what it shows of a system that is well, and of one whose servers are gone.

use anyhow::ensure;
use serde_json::{Value, json};
use tests::{Output, Program, Running};
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
        "no escapes in a pipe: {output:?}"
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

    // None needs more than it looks at: no key of WorkOS, no signing secret.
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
        "the most worrying first: {seen}"
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
    ensure!(seen["database"]["trouble"].is_string(), "{seen}");
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
