//! More requests than can be stored, and more connections than can be served: memory stays bounded, senders are told to
//! retry, genuine deliveries get through in the end, and nothing is restarted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::{Line, Nats, Postgres, Program, Proxy, Running, agrees, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use workos_sim::{Counts, Delivery, DeliveryOptions, DirectoryOptions, Options, Seed, Sim};

use crate::stand::{BOUND, SECRET};

/// Bytes per second between ingest and the broker while the connection is slow.
const TRICKLE: u32 = 30_000;
/// The most memory that ingest may use above its idle state, in a debug build.
const MORE_MEMORY: u64 = 160 << 20;

struct Stage {
    ingest: Running,
    _projector: Running,
    postgres: Postgres,
    nats: Nats,
    to_broker: Proxy,
    sim: Sim,
}

impl Stage {
    async fn set() -> anyhow::Result<Stage> {
        let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
        let to_broker = Proxy::to(nats.address())?;
        let ingest = Program::new("dsync-ingest")
            .env("NATS_URL", to_broker.instead_of(&nats.url()))
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
            .start()
            .await?;
        let projector = Program::new("dsync-projector")
            .env("NATS_URL", nats.url())
            .env("DATABASE_URL", postgres.url())
            .start()
            .await?;
        let sim = Sim::start(Options::default()).await?;
        Ok(Stage {
            ingest,
            _projector: projector,
            postgres,
            nats,
            to_broker,
            sim,
        })
    }

    fn deliver(&self, options: impl FnOnce(DeliveryOptions) -> DeliveryOptions) -> anyhow::Result<Delivery> {
        let url = format!("{}/webhooks/workos", self.ingest.listen_url());
        Ok(self.sim.deliver(options(DeliveryOptions::new(url, SECRET)))?)
    }

    fn people(&self, users: usize) -> anyhow::Result<()> {
        let directory = self.sim.create_directory(DirectoryOptions::default())?;
        self.sim.seed(
            &directory,
            &Seed {
                users,
                groups: 10,
                ..Seed::default()
            },
        )?;
        Ok(())
    }

    /// Ingest's current memory in bytes.
    fn memory(&self) -> anyhow::Result<u64> {
        let pid = self.ingest.pid().context("ingest is not running")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.context("no VmRSS")? << 10)
    }

    async fn stored(&self) -> anyhow::Result<u64> {
        let nats = async_nats::connect(self.nats.url()).await?;
        let stream = async_nats::jetstream::new(nats).get_stream("DSYNC").await?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Waits until everything is delivered and in the tables.
    async fn arrives(&self, delivery: &Delivery) -> anyhow::Result<Counts> {
        let counts = tokio::time::timeout(BOUND, delivery.drained()).await;
        let counts = counts.with_context(|| format!("{:?}", delivery.progress()))?;
        ensure!(counts.gave_up == 0, "{counts:?}");
        let pool = self.postgres.pool().await?;
        eventually(BOUND, async || agrees(&pool, &self.sim.truth()).await).await?;
        Ok(counts)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_what_can_be_stored_is_refused_politely_and_gets_through_later() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let idle = stage.memory()?;
    stage.to_broker.set(Line::Slow { bytes: TRICKLE });
    stage.people(1_200)?;
    let delivery = stage.deliver(|options| DeliveryOptions {
        concurrency: 700,
        rate: Some(500.0),
        backoff_max: Duration::from_secs(1),
        timeout: Duration::from_secs(10),
        ..options
    })?;
    let (began, mut most) = (Instant::now(), idle);
    while began.elapsed() < Duration::from_secs(15) {
        most = most.max(stage.memory()?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counts = delivery.progress().counts;
    let stored = stage.stored().await?.max(1);
    println!(
        "{} sent, {stored} stored in {:?}: {counts:?}",
        counts.sent,
        began.elapsed()
    );
    ensure!(
        counts.sent > 10 * stored,
        "{} is not ten times {stored}",
        counts.sent
    );
    ensure!(
        counts.answers.get(&503).copied().unwrap_or(0) > 0,
        "nobody was refused: {counts:?}"
    );
    // The answer to one more webhook that is refused.
    let told = eventually(BOUND, async || {
        let event = stage.sim.events().pop().context("no events")?;
        let signature = workos_sim::sign(SECRET, workos_sim::Clock::system().now(), event.body().as_bytes());
        let asking = reqwest::Client::new()
            .post(format!("{}/webhooks/workos", stage.ingest.listen_url()))
            .header("WorkOS-Signature", signature)
            .body(event.body().to_owned());
        let answer = asking.send().await?;
        ensure!(answer.status() == 503, "{}", answer.status());
        let after = answer.headers().get("Retry-After").context("no Retry-After")?;
        Ok(after.to_str()?.parse::<u32>()?)
    })
    .await?;
    ensure!(told > 0, "`Retry-After` asks for an immediate retry");
    stage.to_broker.set(Line::Open);
    delivery.hurry();
    let freed = Instant::now();
    let counts = stage.arrives(&delivery).await?;
    most = most.max(stage.memory()?);
    println!(
        "all {} events arrived {:?} after the broker was fast again: {counts:?}",
        counts.events,
        freed.elapsed()
    );
    println!(
        "memory of ingest: {} KiB idle, {} KiB at most",
        idle >> 10,
        most >> 10
    );
    ensure!(counts.unanswered == 0, "timeouts: {counts:?}");
    ensure!(most < idle + MORE_MEMORY, "{most} bytes, {idle} when idle");
    Ok(())
}

/// Raises this process's limit of open files towards `wanted`, and returns the limit in effect.
fn files(wanted: u64) -> u64 {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(u64::MAX);
    let new = Rlimit {
        current: Some(wanted.min(most)),
        maximum: now.maximum,
    };
    setrlimit(Resource::Nofile, new).ok();
    getrlimit(Resource::Nofile).current.unwrap_or(wanted)
}

/// Keeps `count` connections that send `what` once, and then nothing or, if `drips`, a byte per second of a header or
/// body that never ends. Connections that are closed are opened again. Returns the number of open ones.
fn besiege(
    siege: &mut JoinSet<()>,
    address: &str,
    count: usize,
    what: &'static [u8],
    drips: bool,
) -> Arc<AtomicUsize> {
    let open = Arc::new(AtomicUsize::new(0));
    for _ in 0..count {
        let (address, open) = (address.to_owned(), Arc::clone(&open));
        siege.spawn(async move {
            loop {
                if let Ok(Ok(stream)) =
                    tokio::time::timeout(Duration::from_secs(20), TcpStream::connect(&address)).await
                {
                    open.fetch_add(1, Ordering::Relaxed);
                    stay(stream, what, drips).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    open
}

async fn stay(mut stream: TcpStream, what: &[u8], drips: bool) {
    if stream.write_all(what).await.is_err() {
        return;
    }
    let mut answer = [0; 512];
    loop {
        tokio::select! {
            read = stream.read(&mut answer) => if !matches!(read, Ok(1..)) { return },
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if drips && stream.write_all(b"x").await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_and_slow_senders_do_not_keep_honest_ones_out() -> anyhow::Result<()> {
    let files = files(24_000);
    let stage = Stage::set().await?;
    let before = stage.memory()?;
    let address = stage.ingest.listen_url().trim_start_matches("http://").to_owned();
    let mut siege = JoinSet::new();
    let idlers = usize::try_from(files.saturating_sub(2_000))?.min(10_000);
    let headers = besiege(
        &mut siege,
        &address,
        300,
        b"POST /webhooks/workos HTTP/1.1\r\nHost: x\r\nX-Y: ",
        true,
    );
    let body = b"POST /webhooks/workos HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{";
    let bodies = besiege(&mut siege, &address, 300, body, true);
    eventually(BOUND, async || {
        let slow = [&headers, &bodies].map(|open| open.load(Ordering::Relaxed));
        ensure!(
            slow.iter().all(|open| *open > 100),
            "only {slow:?} slow senders are connected"
        );
        Ok(())
    })
    .await?;
    let idle = besiege(&mut siege, &address, idlers, b"", false);
    eventually(BOUND, async || {
        let open = idle.load(Ordering::Relaxed);
        ensure!(open > 1_500.min(idlers / 2), "only {open} connections are open");
        Ok(())
    })
    .await?;
    stage.people(30)?;
    let began = Instant::now();
    let delivery = stage.deliver(|options| DeliveryOptions {
        backoff_max: Duration::from_secs(1),
        timeout: Duration::from_secs(30),
        ..options
    })?;
    let counts = stage.arrives(&delivery).await?;
    let (idle, headers, bodies) = [idle, headers, bodies]
        .map(|open| open.load(Ordering::Relaxed))
        .into();
    println!(
        "connected: {idle} of {idlers} idle, {headers} of 300 with slow headers, {bodies} of 300 with slow bodies"
    );
    println!(
        "{} genuine deliveries took {:?}: {counts:?}",
        counts.acked,
        began.elapsed()
    );
    let besieged = stage.memory()?;
    println!(
        "memory of ingest: {} KiB before, {} KiB besieged",
        before >> 10,
        besieged >> 10
    );
    ensure!(
        besieged < before + MORE_MEMORY,
        "{besieged} bytes, {before} before"
    );
    siege.shutdown().await;
    // Afterwards, everything works as before.
    let began = Instant::now();
    stage.sim.burst(30)?;
    stage.arrives(&delivery).await?;
    println!("after the siege: {:?}", began.elapsed());
    Ok(())
}

/// More bodies than may be arriving at once, and more than there are connections, none of which ever ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_bodies_without_number_do_not_keep_honest_ones_out() -> anyhow::Result<()> {
    files(4_000);
    let stage = Stage::set().await?;
    let address = stage.ingest.listen_url().trim_start_matches("http://").to_owned();
    let mut siege = JoinSet::new();
    let body = b"POST /webhooks/workos HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{";
    let _open = besiege(&mut siege, &address, 900, body, true);
    eventually(BOUND, async || {
        let arriving = stage.ingest.metrics().await?.get("dsync_ingest_inflight", &[])?;
        ensure!(arriving > 500.0, "only {arriving} bodies are arriving");
        Ok(())
    })
    .await?;
    stage.people(30)?;
    let delivery = stage.deliver(|options| DeliveryOptions {
        timeout: Duration::from_secs(30),
        ..options
    })?;
    let began = Instant::now();
    let counts = stage.arrives(&delivery).await?;
    println!(
        "{} genuine deliveries took {:?}: {counts:?}",
        counts.acked,
        began.elapsed()
    );
    ensure!(
        counts.answers.keys().all(|status| *status == 200),
        "honest deliveries were refused: {counts:?}"
    );
    siege.shutdown().await;
    Ok(())
}
