//! Several reconcilers: they share the directories, none is swept twice at once, and one that dies or freezes is
//! replaced.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reconciler::catch_up::Settings;
use reconciler::lease::{LEASE, Leases};
use reconciler::run;
use reconciler::store::duties;
use reconciler::work::Work;
use reconciler::workos::client::{Api, ClientSettings};
use service::settings::Secret;
use tests::{Line, Proxy, eventually};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use workos_sim::{DirectoryOptions, Endpoint, RateLimits, Request, Seed};

use crate::stand::{BOUND, LIMITS, Stand, service_pool, sweep_with};

/// For each directory, the requests that began a sweep of it, and those that walked its users.
fn by_directory(requests: &[Request]) -> BTreeMap<String, Vec<&Request>> {
    let mut all: BTreeMap<String, Vec<&Request>> = BTreeMap::new();
    for request in requests {
        if let (Endpoint::Users | Endpoint::Directory, Some(directory)) =
            (request.endpoint, &request.directory)
        {
            all.entry(directory.clone()).or_default().push(request);
        }
    }
    all
}

/// The process that is reading the users of a directory, and that directory.
async fn in_the_middle(stand: &Stand) -> anyhow::Result<(u32, String)> {
    let swept: Vec<(i32, String)> = sqlx::query_as(
        "select split_part(holder, '-', 1)::integer, directory_id from dsync.sweeps
        where holder is not null and held_until > now() and swept_at is null",
    )
    .fetch_all(&stand.pool)
    .await?;
    let requests = stand.sim.requests();
    let begun = by_directory(&requests);
    let walked = |directory: &String| {
        let requests = begun.get(directory).into_iter().flatten();
        requests
            .map(|request| request.endpoint)
            .any(|endpoint| endpoint == Endpoint::Users)
    };
    let none = format!("of {swept:?} none was begun");
    let (pid, directory) = swept
        .into_iter()
        .find(|(_, directory)| walked(directory))
        .context(none)?;
    Ok((pid.unsigned_abs(), directory))
}

#[tokio::test]
async fn one_of_two_is_killed_in_the_middle_and_all_are_swept_none_twice_at_once() -> anyhow::Result<()> {
    let stand = Stand::in_real_time().await?;
    stand.sim.tune(|tuning| tuning.limits = RateLimits::published());
    for _ in 0..8 {
        let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
        stand.sim.seed(
            &directory,
            &Seed {
                users: 350,
                groups: 20,
                ..Seed::default()
            },
        )?;
    }
    stand.log_all().await?;
    stand.agrees().await?;
    let program = || {
        stand
            .program()
            .env("SWEEP_CLOCK_MARGIN", "1s")
            .env("EVENTS_POLL_INTERVAL", "0")
            .env("SWEEP_INTERVAL", "1h")
    };
    let (one, two) = (program().start().await?, program().start().await?);
    let (mut pid, mut orphan) = Default::default();
    eventually(BOUND, async || {
        (pid, orphan) = in_the_middle(&stand).await?;
        Ok(())
    })
    .await?;
    // Either may have been the first to take everything that is due.
    let (mut killed, mut left) = if one.pid() == Some(pid) {
        (one, two)
    } else {
        (two, one)
    };
    ensure!(killed.pid() == Some(pid), "{pid} is neither");
    killed.kill();
    eventually(BOUND, async || {
        let swept = stand.count("select count(swept_at) from dsync.sweeps").await?;
        ensure!(swept == 8, "{swept} of 8");
        Ok(())
    })
    .await?;
    stand.agrees().await?;
    let requests = stand.sim.requests();
    for (directory, requests) in by_directory(&requests) {
        // A sweep begins with the directory itself. A second one may begin only after the lease of the killed one
        // has expired.
        let starts: Vec<Duration> = requests
            .iter()
            .filter(|request| request.endpoint == Endpoint::Directory)
            .map(|request| request.at)
            .collect();
        let times = if directory == orphan { 2..=2 } else { 1..=2 };
        ensure!(
            times.contains(&starts.len()),
            "{directory} was swept {} times",
            starts.len()
        );
        if let [first, second] = starts[..] {
            ensure!(
                second.abs_diff(first) > Duration::from_secs(10),
                "{directory}: {first:?} and {second:?}"
            );
        }
    }
    left.terminate().await
}

#[tokio::test]
async fn a_frozen_one_is_replaced_within_a_minute_and_does_no_harm_when_it_wakes() -> anyhow::Result<()> {
    let stand = Stand::in_real_time().await?;
    stand.sim.tune(|tuning| tuning.limits = RateLimits::published());
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.sim.seed(
        &directory,
        &Seed {
            users: 900,
            groups: 12,
            ..Seed::default()
        },
    )?;
    stand.log_all().await?;
    stand.agrees().await?;
    let program = || {
        stand
            .program()
            .env("SWEEP_CLOCK_MARGIN", "1s")
            .env("EVENTS_POLL_INTERVAL", "0")
    };
    let mut one = program().start().await?;
    eventually(BOUND, async || {
        ensure!(
            stand
                .sim
                .requests()
                .iter()
                .any(|request| request.endpoint == Endpoint::Users),
            "not begun"
        );
        Ok(())
    })
    .await?;
    one.pause()?;
    let mut two = program().start().await?;
    let began = std::time::Instant::now();
    eventually(BOUND, async || {
        ensure!(
            stand.count("select count(swept_at) from dsync.sweeps").await? == 1,
            "not swept"
        );
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_mins(1), "{took:?}");
    let end = stand.log_end().await?;
    one.resume()?;
    eventually(BOUND, async || {
        ensure!(one.output().contains("lost the lease"), "it does not know");
        Ok(())
    })
    .await?;
    ensure!(stand.log_end().await? == end);
    stand.agrees().await?;
    one.terminate().await?;
    two.terminate().await
}

#[tokio::test]
async fn who_no_longer_reaches_the_database_stops_before_another_begins() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    let proxy = Proxy::to(format!("127.0.0.1:{}", stand.pool.connect_options().get_port()))?;
    let leases = Leases::new(
        service_pool(&proxy.instead_of(stand.postgres.url().as_str()))?,
        "silent",
    );
    tokio::spawn(leases.clone().keep(CancellationToken::new()));
    let lease = leases.take(&directory, true).await?.context("not free")?;
    proxy.set(Line::Silent);
    let other = stand.another()?;
    eventually(BOUND, async || {
        other.leases.take(&directory, true).await?.context("still held")
    })
    .await?;
    ensure!(lease.lost().is_cancelled(), "two hold it");
    Ok(())
}

#[tokio::test]
async fn who_reads_the_list_and_no_longer_reaches_the_database_stops_before_another_begins()
-> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let proxy = Proxy::to(format!("127.0.0.1:{}", stand.pool.connect_options().get_port()))?;
    let pool = service_pool(&proxy.instead_of(stand.postgres.url().as_str()))?;
    // WorkOS never answers. Whoever stops asking closes the connection.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (tell, mut asked) = watch::channel((false, None));
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await?;
        let mut request = vec![0; 8192];
        ensure!(socket.read(&mut request).await? > 0, "nothing asked");
        tell.send_replace((true, None));
        ensure!(socket.read(&mut request).await? == 0, "asked twice");
        tell.send_replace((true, Some(Instant::now())));
        anyhow::Ok(())
    });
    let settings = ClientSettings {
        timeout: BOUND,
        ..ClientSettings::new(url.parse()?, Secret::from("sk_test"))
    };
    let work = Work {
        api: Api::new(settings, stand.clock.clone(), stand.work.metrics.clone())?,
        leases: Leases::new(pool.clone(), "silent"),
        pool,
        ..stand.work.clone()
    };
    let off = Settings {
        every: Duration::ZERO,
        holdback: Duration::ZERO,
    };
    let (mut tasks, shutdown, hour) = (JoinSet::new(), CancellationToken::new(), Duration::from_hours(1));
    run::start(&mut tasks, &work, LIMITS, off, hour, &shutdown);
    tokio::time::timeout(BOUND, asked.wait_for(|(asked, _)| *asked)).await??;
    proxy.set(Line::Silent);
    eventually(BOUND, async || {
        let claimed = duties::claim_directories(&stand.pool, "other", LEASE, hour).await?;
        claimed.context("still held")
    })
    .await?;
    // What was sent a moment ago still counts against the rate limit.
    let stopped = asked.borrow().1.context("two read the list")?;
    ensure!(
        stopped.elapsed() > Duration::from_millis(500),
        "only just stopped"
    );
    Ok(())
}

#[tokio::test]
async fn a_lease_is_one_processs_at_a_time() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.sim.seed(&directory, &Seed::default())?;
    stand.log_all().await?;
    stand.applied().await?;
    let other = stand.another()?;
    let lease = stand.work.leases.take(&directory, true).await?.expect("free");
    ensure!(
        other.leases.take(&directory, true).await?.is_none(),
        "two hold it"
    );
    ensure!(
        other.leases.take(&directory, false).await?.is_none(),
        "two hold it"
    );
    ensure!(
        stand.work.leases.take(&directory, true).await?.is_none(),
        "swept twice by one"
    );
    let share = stand
        .work
        .leases
        .take(&directory, false)
        .await?
        .expect("shared within a process");
    share.release().await;
    ensure!(lease.is_held().await?);
    ensure!(
        other.leases.take(&directory, false).await?.is_none(),
        "given back too early"
    );
    lease.release().await;
    // Requests of the last second still count against the limit; only after that may another process continue.
    ensure!(
        other.leases.take(&directory, false).await?.is_none(),
        "taken too early"
    );
    eventually(BOUND, async || sweep_with(&other, &directory).await).await?;
    Ok(())
}
