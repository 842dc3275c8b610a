//! Nothing secret or personal is printed: not in logs, not in answers, not on the admin port, not in help texts.

use anyhow::ensure;
use tests::{Nats, NatsOptions, Postgres, Program, eventually};

use crate::pipeline::{BOUND, Pipeline, SECRET, Settings, post};

const PASSWORD: &str = "of-the-broker-0123456789";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_the_programs_say_gives_anything_away() -> anyhow::Result<()> {
    let options = NatsOptions {
        login: Some(("dsync".to_owned(), PASSWORD.to_owned())),
        ..NatsOptions::default()
    };
    let (postgres, nats) = tokio::try_join!(Postgres::start(), Nats::with(options))?;
    let settings = Settings {
        nats: std::array::from_fn(|_| ("NATS_URL", nats.url())),
        nats_ca: None,
        database: postgres.url(),
        ingest: &[("RUST_LOG", "trace,async_nats=trace".to_owned())],
    };
    let pipeline = Pipeline::up(&settings).await?;
    let pool = postgres.pool().await?;
    let url = pipeline.ingest.listen_url();
    pipeline.burst(&url, None, &pool).await?;
    let people: Vec<String> = sqlx::query_scalar(
        "select unnest(array[email, first_name || ' ' || last_name, id]) from directory.users where email is not null",
    )
    .fetch_all(&pool)
    .await?;
    ensure!(people.len() > 20, "{people:?}");
    let database = postgres.url();
    let password = database.split([':', '@']).nth(2).unwrap_or_default().to_owned();
    let mut secrets = vec![
        SECRET.to_owned(),
        PASSWORD.to_owned(),
        password,
        pipeline.sim.api_key().to_owned(),
    ];
    let mut said = Vec::new();
    for program in [&pipeline.ingest, &pipeline.projector, &pipeline.reconciler] {
        for path in [
            "metrics",
            "livez",
            "readyz",
            "",
            "debug",
            "env",
            "metrics?verbose=1",
        ] {
            let answer = reqwest::get(format!("{}/{path}", program.admin_url())).await?;
            said.push(format!("{:?}{}", answer.headers().clone(), answer.text().await?));
        }
        let help = Program::new(program.name())
            .env("DATABASE_URL", postgres.url())
            .env("NATS_URL", nats.url())
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
            .env("WORKOS_API_KEY", pipeline.sim.api_key())
            .arg("--help")
            .run()
            .await?;
        said.push(help.stdout + &help.stderr);
    }
    for (header, body) in [(None, "{}"), (Some("t=1, v1=00"), "{}"), (Some(""), "x")] {
        let answer = post(&url, header, body).await?;
        said.push(format!("{:?}{}", answer.headers().clone(), answer.text().await?));
    }
    secrets.extend(people);
    for text in &said {
        for (index, secret) in secrets.iter().enumerate() {
            ensure!(!text.contains(secret), "secret {index} is in an answer: {text}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_changes_nothing_while_fresh_and_is_refused_when_stale() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::start(), Nats::start())?;
    let settings = Settings {
        nats: std::array::from_fn(|_| ("NATS_URL", nats.url())),
        nats_ca: None,
        database: postgres.url(),
        ingest: &[],
    };
    let pipeline = Pipeline::up(&settings).await?;
    let (url, pool) = (pipeline.ingest.listen_url(), postgres.pool().await?);
    let event = |verb: &str, second: u8| {
        format!(
            r#"{{"id":"event_{verb}","event":"dsync.user.{verb}","created_at":"2026-01-01T00:00:0{second}Z","data":{{"id":"u1",
                "directory_id":"d1","state":"active","updated_at":"2026-01-01T00:00:00Z"}}}}"#
        )
    };
    let (created, deleted) = (event("created", 1), event("deleted", 2));
    let now = pipeline.sim.clock().now();
    let sign = |at, body: &str| workos_sim::sign(SECRET, at, body.as_bytes());
    let (fresh, gone) = (sign(now, &created), sign(now, &deleted));
    ensure!(
        post(&url, Some(&fresh), &created)
            .await?
            .text()
            .await?
            .contains("accepted")
    );
    ensure!(
        post(&url, Some(&gone), &deleted)
            .await?
            .text()
            .await?
            .contains("accepted")
    );
    let tables = async || -> anyhow::Result<(i64, i64, i64)> {
        let users = "select (select count(*) from directory.users), (select count(*) from directory.changes),
            (select seq from dsync.progress where lane = 'all')";
        Ok(sqlx::query_as(users).fetch_one(&pool).await?)
    };
    eventually(BOUND, async || {
        ensure!(tables().await?.2 == 2);
        Ok(())
    })
    .await?;
    let before = tables().await?;
    // Somebody who intercepted the first webhook replays it again and again. The user must not come back.
    for _ in 0..20 {
        let answer = post(&url, Some(&fresh), &created).await?;
        ensure!(answer.status() == 200 && answer.text().await?.contains("duplicate"));
    }
    ensure!(
        tables().await? == before && before.0 == 0,
        "{:?}",
        tables().await?
    );
    // Signatures an hour old and from tomorrow, and the fresh one with its time replaced.
    let stale = sign(workos_sim::Millis(now.0 - 3_600_000), &created);
    let early = sign(workos_sim::Millis(now.0 + 86_400_000), &created);
    let (_, mac) = fresh.split_once("v1=").unwrap_or_default();
    let retimed = format!("t={}, v1={mac}", now.0 + 1_000);
    for header in [stale, early, retimed] {
        ensure!(
            post(&url, Some(&header), &created).await?.status() == 401,
            "{header}"
        );
    }
    Ok(())
}
