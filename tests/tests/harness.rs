//! The harness keeps its own promises: servers keep what they stored when killed, and nothing outlives its test.

use std::io::BufRead as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::Connection as _;
use tests::{Cut, Durability, Line, Nats, NatsOptions, Postgres, Proxy, eventually, holds};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

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

/// The process id of the server with this data directory.
fn pid(data: &Path) -> anyhow::Result<String> {
    let file = std::fs::read_to_string(data.join("postmaster.pid"))?;
    Ok(file.lines().next().expect("a process id").to_owned())
}

/// The number of shared memory segments created by this process.
fn segments(pid: &str) -> anyhow::Result<usize> {
    let all = std::fs::read_to_string("/proc/sysvipc/shm")?;
    Ok(all
        .lines()
        .filter(|line| line.split_whitespace().nth(4) == Some(pid))
        .count())
}

/// A machine has room for some thousands of segments, and may run more tests than that in a day.
#[tokio::test]
async fn a_postgres_leaves_no_shared_memory_however_it_ends() -> anyhow::Result<()> {
    let mut postgres = Postgres::start().await?;
    let backup = postgres.backup()?;
    let mut first = pid(&postgres.data())?;
    assert_eq!(segments(&first)?, 1);
    postgres.restore(&backup).await?;
    assert_eq!(segments(&first)?, 0, "set back");
    first = pid(&postgres.data())?;
    postgres.stop().await?;
    assert_eq!(segments(&first)?, 0, "stopped");
    for (how, kill) in [("dropped", false), ("killed and dropped", true)] {
        postgres.start_again().await?;
        first = pid(&postgres.data())?;
        assert_eq!(segments(&first)?, 1);
        if kill {
            postgres.kill()?;
        }
        drop(std::mem::replace(&mut postgres, Postgres::start().await?));
        assert_eq!(segments(&first)?, 0, "{how}");
    }
    // The other kind of shared memory is in files in the server's own directory.
    assert_ne!(std::fs::read_dir(postgres.data().join("pg_dynshmem"))?.count(), 0);
    Ok(())
}

/// Nor does a test that fails while its standard error is closed.
#[tokio::test]
async fn a_test_that_fails_unheard_leaves_no_shared_memory() -> anyhow::Result<()> {
    const FAILS: &str = "DSYNC_TEST_FAILS_UNHEARD";
    if std::env::var_os(FAILS).is_some() {
        let postgres = Postgres::start().await?;
        println!("\n{}", pid(&postgres.data())?);
        panic!("as intended");
    }
    let (heard, said) = std::io::pipe()?;
    drop(heard);
    let output = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "a_test_that_fails_unheard_leaves_no_shared_memory",
            "--nocapture",
        ])
        .env(FAILS, "1")
        .stderr(said)
        .output()?;
    assert!(!output.status.success());
    let said = String::from_utf8(output.stdout)?;
    let server = said.lines().find(|line| line.parse::<u32>().is_ok());
    assert_eq!(segments(server.expect("the server's process id"))?, 0, "{said}");
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

/// Killed with SIGKILL, so that the test process itself cannot clean up.
#[tokio::test]
async fn servers_end_when_their_test_is_killed() -> anyhow::Result<()> {
    let mut test = Command::new(env!("CARGO_BIN_EXE_with-servers"))
        .args(["sh", "-c", "echo $DATABASE_URL; echo $NATS_URL; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufReader::new(test.stdout.take().expect("piped")).lines();
    let (database, nats) = (lines.next().expect("a line")?, lines.next().expect("a line")?);
    let mut connection = sqlx::PgConnection::connect(&database).await?;
    let data: String = sqlx::query_scalar("show data_directory")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    let server = pid(Path::new(&data))?;
    assert_eq!(segments(&server)?, 1);
    let mut addresses = Vec::new();
    for url in [database, nats] {
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
                "a server still listens on {address}"
            );
        }
        anyhow::ensure!(segments(&server)? == 0, "the server's shared memory is left");
        anyhow::ensure!(!Path::new(&data).exists(), "the server's data directory is left");
        Ok(())
    })
    .await?;
    // The command ends, too, and closes the pipe that it writes to.
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

/// The views are readable, and every row of the source that they lack is reported.
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
        .expect_err("the tables are empty")
        .to_string();
    assert!(
        complaint.contains("in the source, not in the tables"),
        "{complaint}"
    );
    Ok(())
}

/// Starts a server that sends back whatever it receives, after `name`.
async fn parrot(name: u8) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                client.write_all(&[name]).await?;
                let (mut from, mut to) = client.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Ok(address)
}

async fn says(client: &mut TcpStream, word: &[u8]) -> anyhow::Result<()> {
    client.write_all(word).await?;
    hears(client, word).await
}

async fn hears(client: &mut TcpStream, word: &[u8]) -> anyhow::Result<()> {
    let mut heard = vec![0; word.len()];
    tokio::time::timeout(BOUND, client.read_exact(&mut heard)).await??;
    anyhow::ensure!(heard == word, "heard {heard:?}");
    Ok(())
}

async fn nobody_is_left(proxy: &Proxy) -> anyhow::Result<()> {
    eventually(BOUND, async || {
        anyhow::ensure!(proxy.open() == 0, "{} are open", proxy.open());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_proxy_passes_on_and_cuts_in_two_ways() -> anyhow::Result<()> {
    let proxy = Proxy::to(parrot(b'a').await?)?;
    for (how, kind) in [
        (Cut::Finish, None),
        (Cut::Reset, Some(std::io::ErrorKind::ConnectionReset)),
    ] {
        let mut client = TcpStream::connect(proxy.address()).await?;
        hears(&mut client, b"a").await?;
        says(&mut client, b"hello").await?;
        proxy.cut(how);
        let end = tokio::time::timeout(BOUND, client.read(&mut [0; 9])).await?;
        assert_eq!(end.as_ref().err().map(std::io::Error::kind), kind, "{end:?}");
    }
    nobody_is_left(&proxy).await?;
    // The proxy itself goes on.
    hears(&mut TcpStream::connect(proxy.address()).await?, b"a").await
}

#[tokio::test]
async fn what_a_silent_line_swallowed_comes_when_it_speaks_again() -> anyhow::Result<()> {
    let proxy = Proxy::to(parrot(b'a').await?)?;
    let mut client = TcpStream::connect(proxy.address()).await?;
    hears(&mut client, b"a").await?;
    proxy.set(Line::Silent);
    let passed = proxy.passed();
    client.write_all(b"swallowed").await?;
    let mut late = TcpStream::connect(proxy.address()).await?;
    holds(Duration::from_millis(300), async || {
        anyhow::ensure!(proxy.passed() == passed, "something passed");
        Ok(())
    })
    .await?;
    proxy.set(Line::Open);
    hears(&mut client, b"swallowed").await?;
    hears(&mut late, b"a").await?;
    // The closing of a side does not pass, either.
    proxy.set(Line::Silent);
    drop(client);
    drop(late);
    holds(Duration::from_millis(300), async || {
        anyhow::ensure!(proxy.open() == 2, "the close reached the server");
        Ok(())
    })
    .await?;
    proxy.set(Line::Open);
    nobody_is_left(&proxy).await
}

#[tokio::test]
async fn a_slow_line_passes_so_many_bytes_a_second() -> anyhow::Result<()> {
    let proxy = Proxy::to(parrot(b'a').await?)?;
    let mut client = TcpStream::connect(proxy.address()).await?;
    hears(&mut client, b"a").await?;
    proxy.set(Line::Slow { bytes: 2_000 });
    let began = std::time::Instant::now();
    says(&mut client, &[7; 1_000]).await?;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400), "1,000 bytes in {took:?}");
    proxy.set(Line::Open);
    says(&mut client, &vec![8; 100_000]).await
}

#[tokio::test]
async fn a_line_that_refuses_lets_go_on_what_there_is_and_can_be_turned_to_another_server()
-> anyhow::Result<()> {
    let proxy = Proxy::to(parrot(b'a').await?)?;
    let mut client = TcpStream::connect(proxy.address()).await?;
    hears(&mut client, b"a").await?;
    proxy.set(Line::Refused);
    eventually(BOUND, async || {
        let refused = TcpStream::connect(proxy.address())
            .await
            .err()
            .map(|error| error.kind());
        anyhow::ensure!(
            refused == Some(std::io::ErrorKind::ConnectionRefused),
            "{refused:?}"
        );
        Ok(())
    })
    .await?;
    says(&mut client, b"still here").await?;
    proxy.turn_to(parrot(b'b').await?);
    proxy.set(Line::Open);
    let mut other = eventually(BOUND, async || Ok(TcpStream::connect(proxy.address()).await?)).await?;
    hears(&mut other, b"b").await?;
    says(&mut client, b"and still").await
}
