//! TLS to the broker and the database with a private authority, and TLS served by ingest. Servers that prove their
//! identity are trusted. Others are refused, with one line that names the setting to check.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::Certificate;
use tests::{Authority, Nats, NatsOptions, Postgres, Program, Running, eventually};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::pipeline::{BOUND, Pipeline, SECRET, Settings};

async fn broker(authority: &Authority, names: &[&str]) -> anyhow::Result<Nats> {
    Nats::with(NatsOptions {
        tls: Some(authority.certify(names)?),
        ..NatsOptions::default()
    })
    .await
}

fn text(path: impl AsRef<std::path::Path>) -> String {
    path.as_ref().display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_over_tls_with_a_private_authority() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let own = authority.certify(&["localhost", "127.0.0.1"])?;
    let (nats, postgres) = tokio::try_join!(broker(&authority, &["localhost"]), Postgres::over_tls(&own))?;
    let ca = text(authority.certificate());
    let verified = format!("sslmode=verify-full&sslrootcert={ca}");
    let url = nats.url_at("localhost");
    let settings = Settings {
        nats: std::array::from_fn(|_| ("NATS_URL", url.clone())),
        nats_ca: Some(&ca),
        database: postgres.url_at("localhost", &verified),
        ingest: &[
            ("TLS_CERT", text(own.cert.clone())),
            ("TLS_KEY", text(own.key.clone())),
        ],
    };
    let pipeline = Pipeline::up(&settings).await?;
    let pool = postgres.pool().await?;
    let base = pipeline.ingest.listen_url().replace("http://", "https://");
    let pem = std::fs::read_to_string(&ca)?;
    pipeline.burst(&base, Some(pem), &pool).await?;
    let plain: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity join pg_stat_ssl using (pid) where application_name like 'dsync%' and not ssl",
    )
    .fetch_one(&pool)
    .await?;
    ensure!(plain == 0, "{plain} connections without TLS");
    // The TLS port does not accept plain HTTP.
    ensure!(reqwest::get(pipeline.ingest.listen_url()).await.is_err());
    Ok(())
}

/// Waits for a line of the program's log that contains all of `words`.
async fn says(program: &Running, words: &[&str]) -> anyhow::Result<()> {
    eventually(Duration::from_secs(40), async || {
        let output = program.output();
        let found = output
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(found, "no line with {words:?} in:\n{output}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_does_not_prove_who_it_is_gets_nothing() -> anyhow::Result<()> {
    let (authority, other) = (Authority::new()?, Authority::new()?);
    let (right, wrong) = (text(authority.certificate()), text(other.certificate()));
    let nats = broker(&authority, &["localhost"]).await?;
    let plain = Nats::start().await?;
    let ingest = |url: String, ca: Option<&String>| {
        let program = Program::new("dsync-ingest")
            .env("NATS_URL", url)
            .env("WORKOS_WEBHOOK_SECRET", SECRET);
        match ca {
            Some(ca) => program.env("NATS_CA", ca),
            None => program,
        }
    };
    for (url, ca, words) in [
        // Trust in another authority; in the system's; a certificate for another name; a server without TLS.
        (
            nats.url_at("localhost"),
            Some(&wrong),
            &["NATS_CA", "prove who it is"][..],
        ),
        (nats.url_at("localhost"), None, &["NATS_CA", "prove who it is"]),
        (
            nats.url_at("127.0.0.1"),
            Some(&right),
            &["NATS_URL", "prove who it is"],
        ),
        (plain.url_at("localhost"), Some(&right), &["broker"]),
    ] {
        let mut program = ingest(url, ca).spawn()?;
        says(&program, words).await?;
        ensure!(
            program.readiness().await? == 503,
            "ready with an untrusted broker"
        );
        program.terminate().await?;
    }
    for ca in ["/nowhere/ca.pem", "/dev/null"] {
        let output = ingest(nats.url_at("localhost"), Some(&ca.to_owned()))
            .run()
            .await?;
        ensure!(
            output.status.code() == Some(2) && output.stderr.lines().count() == 1,
            "{output:?}"
        );
        ensure!(output.stderr.contains("NATS_CA"), "{}", output.stderr);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_prove_who_it_is_gets_nothing() -> anyhow::Result<()> {
    let (authority, other) = (Authority::new()?, Authority::new()?);
    let postgres = Postgres::over_tls(&authority.certify(&["localhost"])?).await?;
    let plain = Postgres::start().await?;
    let verified = |authority: &Authority| {
        format!(
            "sslmode=verify-full&sslrootcert={}",
            text(authority.certificate())
        )
    };
    for (url, reason) in [
        (postgres.url_at("localhost", &verified(&other)), "UnknownIssuer"),
        (
            postgres.url_at("127.0.0.1", &verified(&authority)),
            "not valid for name",
        ),
        (
            plain.url_at("localhost", &verified(&authority)),
            "does not support TLS",
        ),
    ] {
        let migrate = Program::new("dsync-projector")
            .env("DATABASE_URL", &url)
            .arg("migrate");
        let output = migrate.run().await?;
        ensure!(output.status.code() == Some(1), "{reason}: {output:?}");
        let lines: Vec<&str> = output.stderr.lines().collect();
        ensure!(
            lines.len() == 1 && lines[0].contains("DATABASE_URL") && lines[0].contains(reason),
            "{reason}: {lines:?}"
        );
    }
    let nowhere = postgres.url_at("localhost", "sslmode=verify-full&sslrootcert=/nowhere/ca.pem");
    let output = Program::new("dsync-projector")
        .env("DATABASE_URL", nowhere)
        .arg("migrate")
        .run()
        .await?;
    ensure!(
        output.status.code() == Some(2) && output.stderr.contains("DATABASE_URL"),
        "{output:?}"
    );
    let right = postgres.url_at("localhost", &verified(&authority));
    let output = Program::new("dsync-projector")
        .env("DATABASE_URL", right)
        .arg("migrate")
        .run()
        .await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

async fn over_tls(authority: &Authority, nats: &Nats) -> anyhow::Result<(Running, tests::Identity)> {
    let own = authority.certify(&["127.0.0.1"])?;
    let ingest = Program::new("dsync-ingest")
        .env("NATS_URL", nats.url())
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .env("TLS_CERT", text(own.cert.clone()))
        .env("TLS_KEY", text(own.key.clone()))
        .start()
        .await?;
    Ok((ingest, own))
}

/// The status of a request from a new client, whose new connection sees the current certificate.
async fn status(authority: &Authority, ingest: &Running) -> anyhow::Result<u16> {
    let pem = std::fs::read(authority.certificate())?;
    let client = reqwest::Client::builder()
        .tls_certs_only([Certificate::from_pem(&pem)?])
        .build()?;
    let url = ingest.listen_url().replace("http://", "https://");
    let answer = client
        .post(format!("{url}/webhooks/workos"))
        .body("{}")
        .send()
        .await?;
    Ok(answer.status().as_u16())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_taken_up_and_a_broken_one_is_not() -> anyhow::Result<()> {
    let (authority, other) = (Authority::new()?, Authority::new()?);
    let nats = Nats::start().await?;
    let (ingest, own) = over_tls(&authority, &nats).await?;
    ensure!(status(&authority, &ingest).await? == 401);
    ensure!(
        status(&other, &ingest).await.is_err(),
        "a client with another authority trusts it"
    );
    std::fs::write(&own.cert, "half a certif")?;
    says(&ingest, &["cannot be renewed", "TLS_CERT"]).await?;
    ensure!(status(&authority, &ingest).await? == 401, "the old one must stay");
    other.renew(&own, &["127.0.0.1"])?;
    says(&ingest, &["renewed"]).await?;
    eventually(BOUND, async || {
        ensure!(status(&other, &ingest).await? == 401);
        Ok(())
    })
    .await?;
    let mut key = String::new();
    std::fs::File::open(&own.key)?.read_to_string(&mut key)?;
    let secret = key.lines().nth(1).context("the key file has no second line")?;
    ingest.keeps_secrets(&[secret])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_shakes_hands_is_let_go_and_leaves_room_for_others() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let nats = Nats::start().await?;
    let (ingest, _own) = over_tls(&authority, &nats).await?;
    let address = ingest.listen_url().replace("http://", "");
    // As many connections as are served at once. One of them makes room for the next.
    let mut silent = Vec::new();
    for _ in 0..768 {
        silent.push(TcpStream::connect(&address).await?);
    }
    let answered = tokio::time::timeout(Duration::from_secs(30), status(&authority, &ingest)).await;
    ensure!(answered.context("the next client was not served")?? == 401);
    for stream in &mut silent {
        let closed = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut [0; 1])).await;
        ensure!(
            matches!(closed, Ok(Ok(0) | Err(_))),
            "a silent connection is still open: {closed:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_be_served_ends_ingest_at_once() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let (own, another) = (
        authority.certify(&["a.example"])?,
        authority.certify(&["b.example"])?,
    );
    let (cert, key) = (text(own.cert), text(own.key));
    for (cert, key, setting) in [
        (Some(cert.clone()), None, "TLS_KEY"),
        (None, Some(key.clone()), "TLS_CERT"),
        (Some("/nowhere".to_owned()), Some(key.clone()), "TLS_CERT"),
        (Some(key.clone()), Some(key.clone()), "TLS_CERT"),
        (Some(cert.clone()), Some(cert.clone()), "TLS_KEY"),
        (Some(cert), Some(text(another.key)), "TLS_KEY"),
    ] {
        let program = Program::new("dsync-ingest")
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
            .env("ADMIN_ADDR", "127.0.0.1:0")
            .env("LISTEN_ADDR", "127.0.0.1:0");
        let program = [("TLS_CERT", cert), ("TLS_KEY", key)]
            .into_iter()
            .filter_map(|(name, path)| Some((name, path?)))
            .fold(program, |program, (name, path)| program.env(name, path));
        let output = program.run().await?;
        ensure!(
            output.status.code() == Some(2) && output.stderr.lines().count() == 1,
            "{setting}: {output:?}"
        );
        ensure!(
            output.stderr.starts_with(&format!("dsync-ingest: {setting} ")),
            "{}",
            output.stderr
        );
    }
    Ok(())
}
