//! Bad input: what makes sense is kept, what does not is reported, and nothing else is affected.

use anyhow::{Context as _, ensure};
use tests::{Program, eventually};
use workos_sim::sign;

use crate::stand::{BOUND, SECRET, Stand};

async fn post(stand: &Stand, body: &str) -> anyhow::Result<String> {
    let now = stand.sim.clock().now();
    let answer = reqwest::Client::new()
        .post(stand.webhook_url())
        .header("WorkOS-Signature", sign(SECRET, now, body.as_bytes()))
        .body(body.to_owned())
        .send()
        .await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let answer: serde_json::Value = serde_json::from_str(&answer.text().await?)?;
    Ok(answer["status"].as_str().context("a status")?.to_owned())
}

fn user_event(id: &str, more: &str) -> String {
    format!(
        r#"{{"object":"event","id":"event_{id}","event":"dsync.user.created","created_at":"2024-01-01T00:00:00.000Z",
            "data":{{"id":"directory_user_{id}","directory_id":"directory_odd","state":"active",
            "updated_at":"2024-01-01T00:00:00.000Z"{more}}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(
    clippy::too_many_lines,
    reason = "a table of values, and a table of their results"
)]
async fn every_odd_value_is_stored_without_loss_of_anything_else() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let long = "x".repeat(300_000);
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let deepest = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let keys: Vec<String> = (0..60_000).map(|n| format!("\"k{n}\":{n}")).collect();
    for (id, more) in [
        (
            "nul",
            r#","first_name":"a\u0000b","raw_attributes":{"k\u0000":"\u0000","kept":1}"#.to_owned(),
        ),
        (
            "surrogate",
            r#","first_name":"a\ud800b","raw_attributes":{"x":"\udc00","ok":"\ud83d\ude00"}"#.to_owned(),
        ),
        (
            "huge",
            r#","raw_attributes":{"n":1e400,"m":1e999999,"p":12345678901234567890.123456789}"#.to_owned(),
        ),
        ("deep", format!(r#","raw_attributes":{deep}"#)),
        ("deepest", format!(r#","raw_attributes":{{"d":{deepest}}}"#)),
        (
            "long",
            format!(r#","email":"{long}@example.com","idp_id":"{long}","organization_id":"{long}""#),
        ),
        ("keys", format!(r#","custom_attributes":{{{}}}"#, keys.join(","))),
        (
            "types",
            r#","email":{"no":"text"},"role":7,"roles":{},"emails":3,"state":[],"custom_attributes":"s""#
                .to_owned(),
        ),
        ("bare", String::new()),
        (
            "twice",
            r#","email":"first@example.com","email":"last@example.com""#.to_owned(),
        ),
    ] {
        ensure!(post(&stand, &user_event(id, &more)).await? == "accepted", "{id}");
    }
    stand.applied().await?;
    ensure!(
        stand.count("select count(*) from dsync.dead_letters").await? == 0,
        "nothing is refused"
    );
    ensure!(
        stand.count("select count(*) from directory.users").await? == 10,
        "everyone is there"
    );
    for (check, sql) in [
        (
            "nul",
            "select first_name = E'a\\uFFFDb' and raw_attributes = jsonb_build_object(E'k\\uFFFD', E'\\uFFFD', 'kept', 1) from directory.users where id = 'directory_user_nul'",
        ),
        (
            "surrogate",
            "select first_name = E'a\\uFFFDb' and raw_attributes ->> 'ok' = E'\\U0001F600' from directory.users where id = 'directory_user_surrogate'",
        ),
        (
            "huge",
            "select (raw_attributes ->> 'n')::numeric = 1e400 and raw_attributes -> 'm' = '\"1e999999\"' and raw_attributes ->> 'p' = '12345678901234567890.123456789' from directory.users where id = 'directory_user_huge'",
        ),
        (
            "deep",
            "select length(raw_attributes::text) = 1001 from directory.users where id = 'directory_user_deep'",
        ),
        (
            "deepest",
            "select length(raw_attributes::text) > 190000 from directory.users where id = 'directory_user_deepest'",
        ),
        (
            "long",
            "select length(email) = 300012 and lower(email) = email from directory.users where id = 'directory_user_long'",
        ),
        (
            "keys",
            "select custom_attributes -> 'k59999' = '59999' from directory.users where id = 'directory_user_keys'",
        ),
        (
            "types",
            "select email is null and role = '7' and roles = '{}' and state is null and not active and custom_attributes = '\"s\"' from directory.users where id = 'directory_user_types'",
        ),
        (
            "bare",
            "select not (email is not null) and active from directory.users where id = 'directory_user_bare'",
        ),
        (
            "twice",
            "select email = 'last@example.com' from directory.users where id = 'directory_user_twice'",
        ),
    ] {
        ensure!(
            sqlx::query_scalar::<_, bool>(sql)
                .fetch_one(&stand.pool)
                .await
                .context(check)?,
            "{check}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_addressed_is_quarantined_and_shown_and_stops_nobody() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    for body in [
        "",
        "[]",
        "{",
        r#"{"event":"dsync.user.created"}"#,
        r#"{"id":"a b","event":"dsync.activated","data":{"id":"d"}}"#,
    ] {
        ensure!(post(&stand, body).await? == "quarantined", "{body}");
    }
    ensure!(post(&stand, r#"{"id":"event_1","event":"user.created","data":{}}"#).await? == "ignored");
    ensure!(
        post(
            &stand,
            r#"{"id":"event_2","event":"dsync.new.thing","data":{"directory_id":"d"}}"#
        )
        .await?
            == "accepted"
    );
    ensure!(post(&stand, &user_event("fine", "")).await? == "accepted");
    ensure!(post(&stand, &user_event("fine", "")).await? == "duplicate");
    stand.applied().await?;
    ensure!(stand.count("select count(*) from directory.users").await? == 1);
    ensure!(
        stand
            .count("select count(*) from dsync.dead_letters where subject = 'dsync.quarantine'")
            .await?
            == 5
    );
    ensure!(
        stand
            .count("select count(*) from dsync.dead_letters where length(body) = 0")
            .await?
            == 1,
        "bodies are kept"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_ends_a_program_with_one_line_that_names_it() -> anyhow::Result<()> {
    let ingest = || Program::new("dsync-ingest").env("WORKOS_WEBHOOK_SECRET", "s3cret-value");
    let projector = || Program::new("dsync-projector");
    for (program, setting) in [
        (Program::new("dsync-ingest"), "WORKOS_WEBHOOK_SECRET"),
        (ingest().env("WORKOS_WEBHOOK_SECRET", ""), "WORKOS_WEBHOOK_SECRET"),
        (
            ingest().env("WORKOS_WEBHOOK_SECRET", "s3cret-value,,"),
            "WORKOS_WEBHOOK_SECRET",
        ),
        (ingest().env("WEBHOOK_TOLERANCE", "soon"), "WEBHOOK_TOLERANCE"),
        (ingest().env("WEBHOOK_MAX_BODY", "-1"), "WEBHOOK_MAX_BODY"),
        (ingest().env("LISTEN_ADDR", "here"), "LISTEN_ADDR"),
        (
            ingest().env("WEBHOOK_ALLOWED_IPS", "10.0.0.0/99"),
            "WEBHOOK_ALLOWED_IPS",
        ),
        (
            ingest().env("WORKOS_WEBHOOK_SECRET_FILE", "/nowhere"),
            "WORKOS_WEBHOOK_SECRET",
        ),
        (ingest().env("LOG_FORMAT", "xml"), "LOG_FORMAT"),
        (projector(), "DATABASE_URL"),
        (
            projector().env("DATABASE_URL", "mysql://u:s3cret-value@h/d"),
            "DATABASE_URL",
        ),
        (projector().env("DATABASE_URL_FILE", "/nowhere"), "DATABASE_URL"),
        (
            projector()
                .env("DATABASE_URL", "postgres://h/d")
                .env("NATS_URL", "nats://"),
            "NATS_URL",
        ),
        (
            projector()
                .env("DATABASE_URL", "postgres://h/d")
                .env("DSYNC_STREAM", "a b"),
            "DSYNC_STREAM",
        ),
    ] {
        let output = program.env("ADMIN_ADDR", "127.0.0.1:0").run().await?;
        ensure!(
            output.status.code() == Some(2),
            "{setting}: {}\n{}",
            output.status,
            output.stderr
        );
        let lines: Vec<&str> = output.stderr.lines().collect();
        ensure!(
            lines.len() == 1 && lines[0].contains(setting),
            "{setting}: {lines:?}"
        );
        ensure!(
            !output.stderr.contains("s3cret-value"),
            "{setting}: shows the secret"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn help_documents_every_setting_and_shows_no_secret() -> anyhow::Result<()> {
    for (name, settings) in [
        (
            "dsync-ingest",
            &[
                "LISTEN_ADDR",
                "WORKOS_WEBHOOK_SECRET",
                "WEBHOOK_TOLERANCE",
                "NATS_URL",
                "DSYNC_DEDUP_WINDOW",
            ][..],
        ),
        (
            "dsync-projector",
            &[
                "DATABASE_URL",
                "DATABASE_URL_FILE",
                "ADMIN_ADDR",
                "NATS_CREDS",
                "RUST_LOG",
                "LOG_FORMAT",
            ][..],
        ),
    ] {
        let help = Program::new(name)
            .env("DATABASE_URL", "postgres://u:s3cret-value@h/d")
            .env("WORKOS_WEBHOOK_SECRET", "s3cret-value")
            .arg("--help")
            .run()
            .await?;
        ensure!(help.status.success(), "{name}");
        ensure!(!help.stdout.contains("s3cret-value"), "{name} shows a secret");
        for setting in settings {
            ensure!(
                help.stdout.contains(setting),
                "{name}: {setting} is not documented"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_later_is_waited_for() -> anyhow::Result<()> {
    let mut nats = tests::Nats::absent(tests::NatsOptions::default())?;
    let ingest = Program::new("dsync-ingest")
        .env("NATS_URL", nats.url())
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .spawn()?;
    eventually(BOUND, async || {
        ensure!(ingest.readiness().await? == 503, "ready without a log");
        Ok(())
    })
    .await?;
    nats.start_again().await?;
    eventually(BOUND, async || {
        ensure!(ingest.readiness().await? == 200, "not ready");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_keys_and_texts_of_a_mebibyte_are_stored() -> anyhow::Result<()> {
    let nats = tests::NatsOptions {
        max_payload: Some(32 << 20),
        ..tests::NatsOptions::default()
    };
    let stand = Stand::with(nats, &[("WEBHOOK_MAX_BODY", "31MiB")]).await?;
    let _projector = stand.projector().start().await?;
    let keys: Vec<String> = (0..1_000_000).map(|n| format!("\"k{n}\":{n}")).collect();
    let long = "é".repeat(1 << 19);
    for (id, more) in [
        ("keys", format!(r#","raw_attributes":{{{}}}"#, keys.join(","))),
        (
            "long",
            format!(
                r#","first_name":"{long}","email":"{long}","idp_id":"{long}","username":"{long}","state":"{long}","role":"{long}",
                    "roles":["{long}","{long}\\u0000"],"raw_attributes":{{"{long}":"{long}"}}"#
            ),
        ),
    ] {
        ensure!(post(&stand, &user_event(id, &more)).await? == "accepted", "{id}");
    }
    stand.applied().await?;
    ensure!(
        stand.count("select count(*) from dsync.dead_letters").await? == 0,
        "refused"
    );
    let kept = "select count(*) from directory.users where raw_attributes -> 'k999999' = '999999'
        or (octet_length(email) = 1048576 and octet_length(roles[1]) = 1048576 and email = idp_id)";
    ensure!(stand.count(kept).await? == 2, "not as it came");
    Ok(())
}
