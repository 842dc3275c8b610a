//! The harness keeps its own promises: servers keep what they stored over a kill, and nothing outlives its test.

use std::io::BufRead as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::{Durability, Nats, NatsOptions, Postgres, eventually};

const BOUND: Duration = Duration::from_secs(20);

async fn count(postgres: &Postgres) -> anyhow::Result<i64> {
    let pool = postgres.pool().await?;
    let count = sqlx::query_scalar("select count(*) from t")
        .fetch_one(&pool)
        .await?;
    pool.close().await;
    Ok(count)
}

async fn insert(postgres: &Postgres) -> anyhow::Result<()> {
    let pool = postgres.pool().await?;
    sqlx::query("insert into t values (1)").execute(&pool).await?;
    pool.close().await;
    Ok(())
}

#[tokio::test]
async fn postgres_keeps_what_it_committed_over_kill_and_stop_and_can_be_set_back() -> anyhow::Result<()> {
    let mut postgres = Postgres::with(Durability::Full).await?;
    let pool = postgres.pool().await?;
    sqlx::query("create table t (n int)").execute(&pool).await?;
    pool.close().await;
    insert(&postgres).await?;
    postgres.kill()?;
    postgres.start_again().await?;
    assert_eq!(count(&postgres).await?, 1);

    let backup = postgres.backup()?;
    insert(&postgres).await?;
    postgres.stop().await?;
    postgres.start_again().await?;
    assert_eq!(count(&postgres).await?, 2);

    postgres.restore(&backup).await?;
    assert_eq!(count(&postgres).await?, 1);
    Ok(())
}

#[tokio::test]
async fn two_servers_share_nothing() -> anyhow::Result<()> {
    let (one, other) = tokio::try_join!(Postgres::start(), Postgres::start())?;
    let pool = one.pool().await?;
    sqlx::query("create table t (n int)").execute(&pool).await?;
    pool.close().await;
    insert(&one).await?;
    assert!(count(&other).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_frozen_postgres_answers_nothing_until_it_is_thawed() -> anyhow::Result<()> {
    let mut postgres = Postgres::start().await?;
    let pool = postgres.pool().await?;
    postgres.pause()?;
    let frozen =
        tokio::time::timeout(Duration::from_millis(300), sqlx::query("select 1").execute(&pool)).await;
    assert!(frozen.is_err());
    postgres.resume()?;
    eventually(BOUND, async || Ok(sqlx::query("select 1").execute(&pool).await?)).await?;
    Ok(())
}

#[tokio::test]
async fn nats_keeps_its_streams_over_a_kill_and_forgets_them_when_wiped() -> anyhow::Result<()> {
    let mut nats = Nats::with(NatsOptions {
        max_payload: Some(4096),
        ..NatsOptions::default()
    })
    .await?;
    {
        let client = async_nats::connect(nats.url()).await?;
        assert_eq!(client.server_info().max_payload, 4096);
        async_nats::jetstream::new(client).create_stream("kept").await?;
    }
    nats.kill();
    nats.start_again().await?;
    async_nats::jetstream::new(async_nats::connect(nats.url()).await?)
        .get_stream("kept")
        .await?;
    nats.wipe().await?;
    let gone = async_nats::jetstream::new(async_nats::connect(nats.url()).await?)
        .get_stream("kept")
        .await;
    assert!(gone.is_err());
    Ok(())
}

/// Killed outright, so that nothing of its own can clean up.
#[tokio::test]
async fn servers_end_when_their_test_is_killed() -> anyhow::Result<()> {
    let mut test = Command::new(env!("CARGO_BIN_EXE_with-servers"))
        .args(["sh", "-c", "echo $DATABASE_URL; echo $NATS_URL; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufReader::new(test.stdout.take().expect("piped")).lines();
    let mut addresses = Vec::new();
    for line in [lines.next(), lines.next()] {
        let url = line.expect("two lines")?;
        let (_, address) = url
            .rsplit_once('@')
            .or_else(|| url.rsplit_once("//"))
            .expect("a URL");
        addresses.push(address.trim_end_matches("/dsync").to_owned());
    }
    for address in &addresses {
        tokio::net::TcpStream::connect(address).await?;
    }
    test.kill()?;
    test.wait()?;
    eventually(BOUND, async || {
        for address in &addresses {
            anyhow::ensure!(
                tokio::net::TcpStream::connect(address).await.is_err(),
                "{address} still listens"
            );
        }
        Ok(())
    })
    .await?;
    // The command beside them ends too, and with it the pipe it writes to.
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(lines.next().is_none()));
    assert!(end.recv_timeout(BOUND)?);
    Ok(())
}

#[test]
fn with_servers_passes_on_the_exit_code() -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO_BIN_EXE_with-servers"))
        .args(["sh", "-c", "exit 7"])
        .status()?;
    assert_eq!(status.code(), Some(7));
    Ok(())
}

/// The views are readable and every row of a source they do not show is named.
#[tokio::test]
async fn an_empty_database_lacks_every_row_of_the_source() -> anyhow::Result<()> {
    let sim = workos_sim::Sim::start(workos_sim::Options::default()).await?;
    let directory = sim.create_directory(workos_sim::DirectoryOptions::default())?;
    sim.seed(
        &directory,
        &workos_sim::Seed {
            users: 20,
            groups: 3,
            ..workos_sim::Seed::default()
        },
    )?;
    let truth = sim.truth();
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let differences = tests::differences(&pool, &truth).await?;
    assert_eq!(differences.len(), truth.counts().iter().sum::<usize>());
    let complaint = tests::agrees(&pool, &truth)
        .await
        .expect_err("nothing is there")
        .to_string();
    assert!(
        complaint.contains("in the source, not in the tables"),
        "{complaint}"
    );
    Ok(())
}
