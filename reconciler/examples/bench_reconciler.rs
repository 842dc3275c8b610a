//! What a sweep costs, measured against the simulator and a private Postgres and NATS.
//!
//! ```text
//! cargo run --release -p reconciler --example bench_reconciler -- requests   # 20,000 users, 300 groups: requests and rate
//! cargo run --release -p reconciler --example bench_reconciler -- database   # a million rows compared: CPU of the database
//! ```
//!
//! `requests` keeps `WorkOS`'s limits, so it takes minutes and reports the same on any machine. For a smaller
//! directory, run `requests 2000 30`. `database` reports how much CPU time the server's processes used; its second
//! argument is the number of rows to compare: `database 200000`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use journal::{Connection, Journal, Limits};
use projector::lane::Lane;
use projector::run::{Tuning, Worker};
use prometheus::Registry;
use reconciler::difference::Entity;
use reconciler::lease::Leases;
use reconciler::metrics::Metrics;
use reconciler::store::compared::{Comparison, compare};
use reconciler::store::memberships;
use reconciler::sweep::{Mode, sweep};
use reconciler::work::{Rules, Work};
use reconciler::workos::client::{Api, ClientSettings};
use schema::record::{Received, Record, Source};
use service::clock::Clock;
use service::postgres::PoolSettings;
use service::settings::{Secret, percent};
use sqlx::PgPool;
use tests::{Nats, Postgres, database_cpu_seconds};
use tokio_util::sync::CancellationToken;
use workos_sim::{DirectoryOptions, Endpoint, Options, RateLimits, Request, Seed, Sim, peak};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let mut number = |or: usize| args.next().and_then(|text| text.parse().ok()).unwrap_or(or);
    match what.as_str() {
        "requests" => requests(number(20_000), number(300)).await,
        "database" => database(number(1_000_000)).await,
        _ => anyhow::bail!("the first argument must be `requests` or `database`"),
    }
}

struct Servers {
    sim: Sim,
    work: Work,
    _nats: Nats,
    _postgres: Postgres,
}

async fn servers() -> anyhow::Result<Servers> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let sim = Sim::start(Options::default()).await?;
    let pool = service::postgres::pool(
        &Secret::from(postgres.url().as_str()),
        &PoolSettings {
            application_name: "bench",
            max_connections: 8,
            statement_timeout: Duration::from_mins(10),
        },
    )?;
    let journal = Journal::connect(&Connection {
        url: nats.url(),
        creds: None,
        ca: None,
        stream: "DSYNC".to_owned(),
        name: "bench".to_owned(),
    })
    .await?;
    let limits = Limits {
        replicas: 1,
        max_age: Duration::ZERO,
        max_bytes: 0,
        dedup_window: Duration::from_hours(1),
    };
    journal.ensure(&limits).await?;
    let (clock, metrics) = (Clock::system(), Metrics::new(&Registry::new()));
    let settings = ClientSettings::new(sim.url().parse()?, Secret::from(sim.api_key()));
    let work = Work {
        api: Api::new(settings, clock.clone(), metrics.clone())?,
        leases: Leases::new(pool.clone(), "bench"),
        rules: Rules {
            margin: Duration::from_secs(1),
            max_deletions: percent("10%")?,
            patience: Duration::from_mins(10),
        },
        pool,
        journal,
        clock,
        metrics,
    };
    tokio::spawn(work.leases.clone().keep(CancellationToken::new()));
    Ok(Servers {
        sim,
        work,
        _nats: nats,
        _postgres: postgres,
    })
}

/// Requests made ÷ the fewest possible, and rate used ÷ rate allowed, for each way memberships can be read.
async fn requests(users: usize, groups: usize) -> anyhow::Result<()> {
    let servers = servers().await?;
    let (sim, work) = (&servers.sim, &servers.work);
    project(work);
    println!("{users} users, {groups} groups");
    for (name, options) in [
        ("groups field filled", DirectoryOptions::default()),
        ("groups field empty", DirectoryOptions::newer()),
    ] {
        let directory = sim.create_directory(options)?;
        let seed = Seed {
            users,
            groups,
            groups_per_user: 2,
            with_roles: false,
        };
        sim.seed(&directory, &seed)?;
        log(sim, work).await?;
        work.applied(Duration::from_mins(20)).await?;
        sim.tune(|tuning| tuning.limits = RateLimits::published());
        sim.take_requests();
        let lease = work.leases.take(&directory, true).await?.context("no lease")?;
        let report = sweep(work, &lease, Mode::default()).await;
        lease.release().await;
        ensure!(report.complete && report.drift.is_empty(), "{:?}", report.error);
        tell(name, sim, &directory, &report);
    }
    Ok(())
}

fn tell(name: &str, sim: &Sim, directory: &str, report: &reconciler::report::DirectoryReport) {
    let made = sim.take_requests();
    let pages = |objects: usize| objects.div_ceil(100).max(1);
    let truth = sim.truth();
    let truth = &truth.directories[directory];
    let by_group: usize = truth
        .groups
        .keys()
        .map(|group| pages(truth.memberships.iter().filter(|(of, _)| of == group).count()))
        .sum();
    let filled = report.memberships_read == Some(reconciler::memberships::Way::Field);
    // The directory itself, its groups, its users, and their memberships in the cheaper way.
    let lists = 1 + pages(truth.groups.len()) + pages(truth.users.len());
    let fewest = lists
        + if filled {
            0
        } else {
            by_group.min(truth.users.len())
        };
    let limited = |request: &Request| request.endpoint == Endpoint::Users;
    let times: Vec<Duration> = made
        .iter()
        .filter(|request| limited(request))
        .map(|request| request.at)
        .collect();
    let span = times
        .last()
        .zip(times.first())
        .map(|(last, first)| last.abs_diff(*first));
    let rate = ratio(times.len() - 1, 1) / span.unwrap_or_default().as_secs_f64();
    println!("{name}: memberships read {:?}", report.memberships_read);
    println!(
        "  requests made ÷ fewest possible: {} ÷ {fewest} = {:.3}",
        made.len(),
        ratio(made.len(), fewest)
    );
    println!(
        "  rate used ÷ rate allowed: {rate:.2}/s ÷ 4/s = {:.3}; at most {} in any second; {} refused",
        rate / 4.0,
        peak(&made, Duration::from_secs(1), limited),
        made.iter().filter(|request| request.status == 429).count(),
    );
    println!("  {:.1} s", report.seconds);
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

fn project(work: &Work) {
    let worker = Worker {
        pool: work.pool.clone(),
        journal: work.journal.clone(),
        holder: "projector".to_owned(),
        clock: work.clock.clone(),
        metrics: projector::metrics::Metrics::new(&Registry::new()),
        tuning: Tuning::default(),
        shutdown: CancellationToken::new(),
    };
    for lane in Lane::EVERY {
        tokio::spawn(worker.clone().work(lane));
    }
}

/// Appends every event to the log.
async fn log(sim: &Sim, work: &Work) -> anyhow::Result<()> {
    let now = work.clock.now().into();
    stream::iter(sim.events())
        .map(|event| async move {
            let body = Bytes::copy_from_slice(event.body().as_bytes());
            if let Received::Event(record) = Record::receive(body, Source::Webhook, None, now) {
                work.append(&record).await?;
            }
            anyhow::Ok(())
        })
        .buffer_unordered(256)
        .try_collect()
        .await
}

/// CPU seconds of the database for comparing `rows` users of about 1.2 kB that do not differ, and as many memberships.
async fn database(rows: usize) -> anyhow::Result<()> {
    let servers = servers().await?;
    let pool = &servers.work.pool;
    fill(pool, rows).await?;
    let before = database_cpu_seconds(pool).await?;
    let began = Instant::now();
    let comparison = Comparison {
        entity: Entity::User,
        directory: "directory_1",
        values: false,
    };
    let suspects: usize = stream::iter(0..rows.div_ceil(500))
        .map(|page| async move {
            let objects: Vec<String> = (page * 500..((page + 1) * 500).min(rows)).map(object).collect();
            let texts: Vec<&str> = objects.iter().map(String::as_str).collect();
            Ok::<_, sqlx::Error>(compare(pool, comparison, &texts).await?.suspects.len())
        })
        .buffer_unordered(4)
        .try_fold(0, |sum, one| async move { Ok(sum + one) })
        .await?;
    let users = database_cpu_seconds(pool).await? - before;
    println!(
        "{rows} users compared: {users:.1} s of database CPU, {:.1} s; {suspects} differ",
        began.elapsed().as_secs_f64()
    );
    let (before, began) = (database_cpu_seconds(pool).await?, Instant::now());
    let shown = reconciler::store::users::shown(pool, "directory_1").await?.len();
    let listed = database_cpu_seconds(pool).await? - before;
    println!(
        "their ids: {listed:.1} s of database CPU, {:.1} s; {shown} shown",
        began.elapsed().as_secs_f64()
    );
    let (before, began, mut count) = (database_cpu_seconds(pool).await?, Instant::now(), 0);
    memberships::shown(pool, "directory_1", |_| count += 1).await?;
    let members = database_cpu_seconds(pool).await? - before;
    println!(
        "{count} memberships: {members:.1} s of database CPU, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let (before, began) = (database_cpu_seconds(pool).await?, Instant::now());
    for _ in 0..100 {
        let doubts = reconciler::store::checks::in_doubt(pool, servers.work.clock.now()).await?;
        ensure!(doubts.is_empty());
    }
    let checks = database_cpu_seconds(pool).await? - before;
    println!(
        "objects in doubt asked for 100 times: {checks:.2} s of database CPU, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A user as the API lists it, about 1.2 kB.
fn object(number: usize) -> String {
    format!(
        r#"{{"object":"directory_user","id":"directory_user_{number:08}","directory_id":"directory_1","organization_id":"org_1","idp_id":"idp-{number}","email":"person{number}@example.com","first_name":"First{number}","last_name":"Last{number}","name":"First{number} Last{number}","job_title":"Title {number}","state":"active","username":"person{number}","role":{{"slug":"member"}},"roles":[{{"slug":"member"}}],"groups":[],"created_at":"2026-01-01T00:00:00.000Z","updated_at":"2026-02-01T00:00:00.000Z","custom_attributes":{{"department":"Department {number}","employee_number":{number},"manager":"manager{number}@example.com"}},"raw_attributes":{raw}}}"#,
        raw = raw(number)
    )
}

fn raw(number: usize) -> String {
    let text = "x".repeat(40);
    format!(
        r#"{{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"person{number}","active":true,"emails":[{{"type":"work","primary":true,"value":"person{number}@example.com"}}],"name":{{"givenName":"First{number}","familyName":"Last{number}"}},"addresses":[{{"streetAddress":"{text}","locality":"{text}","country":"DE"}}],"note":"{text}"}}"#
    )
}

async fn fill(pool: &PgPool, rows: usize) -> anyhow::Result<()> {
    let rows = i64::try_from(rows)?;
    for sql in [
        "insert into dsync.directories (id, organization_id, seen_at) values ('directory_1', 'org_1', now())",
        "insert into dsync.users (id, directory_id, organization_id, own_organization_id, idp_id, email, username,
            first_name, last_name, name, job_title, state, role, roles, custom_attributes, raw_attributes, created_at,
            updated_at, seen_at, gone_at, version_updated_at, version_observed_at)
         select 'directory_user_' || lpad(n::text, 8, '0'), 'directory_1', 'org_1', 'org_1', 'idp-' || n,
            'person' || n || '@example.com', 'person' || n, 'First' || n, 'Last' || n,
            'First' || n || ' Last' || n, 'Title ' || n, 'active', 'member', '{member}',
            jsonb_build_object('department', 'Department ' || n, 'employee_number', n,
                'manager', 'manager' || n || '@example.com'),
            jsonb_build_object('schemas', array['urn:ietf:params:scim:schemas:core:2.0:User'],
                'userName', 'person' || n, 'active', true,
                'emails', array[jsonb_build_object('type', 'work', 'primary', true,
                    'value', 'person' || n || '@example.com')],
                'name', jsonb_build_object('givenName', 'First' || n, 'familyName', 'Last' || n),
                'addresses', array[jsonb_build_object('streetAddress', repeat('x', 40),
                    'locality', repeat('x', 40), 'country', 'DE')],
                'note', repeat('x', 40)),
            '2026-01-01Z', '2026-02-01Z', '2026-02-01Z', '-infinity', '2026-02-01Z', '2026-02-01Z'
         from generate_series(0, $1::bigint - 1) as n",
        "insert into dsync.groups (id, directory_id, organization_id, seen_at)
         select 'directory_group_' || n, 'directory_1', 'org_1', now() from generate_series(0, 299) as n
         where $1::bigint > 0",
        "insert into dsync.memberships (group_id, user_id, directory_id, organization_id, seen_at)
         select 'directory_group_' || n % 300, 'directory_user_' || lpad(n::text, 8, '0'), 'directory_1', 'org_1', now()
         from generate_series(0, $1::bigint - 1) as n",
    ] {
        let query = sqlx::query(sql);
        let query = if sql.contains("$1") { query.bind(rows) } else { query };
        query.execute(pool).await?;
    }
    sqlx::query("vacuum analyze").execute(pool).await?;
    Ok(())
}
