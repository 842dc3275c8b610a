//! `ops/nats/accounts.conf` as shipped: the three programs work with it, and a program's login can do nothing but that
//! program's own work.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{self, consumer};
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use tempfile::TempDir;
use tests::{Nats, NatsOptions, Postgres, Program, eventually};

use crate::pipeline::{BOUND, Pipeline, SECRET, Settings};

const PASSWORDS: [(&str, &str); 3] = [
    ("ingest", "of-ingest-0123456789"),
    ("projector", "of-projector-0123456789"),
    ("reconciler", "of-reconciler-0123456789"),
];

/// Starts a broker with the shipped logins. Returns it with the paths of the files that contain the three programs'
/// URLs and logins, and the directory, which is deleted with the files when dropped.
async fn broker() -> anyhow::Result<(Nats, [String; 3], TempDir)> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/nats/accounts.conf");
    let dir = tempfile::Builder::new().prefix("dsync-logins-").tempdir()?;
    let file = |name: String| dir.path().join(name);
    std::fs::copy(shipped, file("accounts.conf".to_owned()))?;
    let passwords = PASSWORDS.map(|(user, password)| format!("{user}_password: \"{password}\"\n"));
    std::fs::write(file("passwords.conf".to_owned()), passwords.concat())?;
    // The directory is beside that of the broker's own configuration, to which includes are relative.
    let name = dir
        .path()
        .file_name()
        .context("no name")?
        .to_string_lossy()
        .into_owned();
    let nats = Nats::with(NatsOptions {
        more: vec![format!("include ../{name}/accounts.conf")],
        ..NatsOptions::default()
    })
    .await?;
    for (user, password) in PASSWORDS {
        std::fs::write(file(format!("nats_url_{user}")), nats.url_as(user, password))?;
    }
    let urls = PASSWORDS.map(|(user, _)| file(format!("nats_url_{user}")).to_string_lossy().into_owned());
    Ok((nats, urls, dir))
}

/// Connects as somebody who has a program's login.
async fn intruder(nats: &Nats, login: usize) -> anyhow::Result<Client> {
    let (user, password) = PASSWORDS[login];
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        .custom_inbox_prefix(format!("_INBOX.dsync-{user}"))
        .request_timeout(Some(Duration::from_secs(1)));
    Ok(options.connect(nats.url_at("127.0.0.1")).await?)
}

/// Whether the broker answers a request without an error.
async fn may(client: &Client, subject: &str, question: &str) -> bool {
    match client
        .request(subject.to_owned(), question.to_owned().into())
        .await
    {
        Ok(answer) => !String::from_utf8_lossy(&answer.payload).contains("\"error\""),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_three_programs_work_with_the_logins_that_are_shipped() -> anyhow::Result<()> {
    let (postgres, (_nats, nats, _files)) = tokio::try_join!(Postgres::start(), broker())?;
    let settings = Settings {
        nats: nats.map(|file| ("NATS_URL_FILE", file)),
        nats_ca: None,
        database: postgres.url(),
        ingest: &[],
    };
    let pipeline = Pipeline::up(&settings).await?;
    let pool = postgres.pool().await?;
    pipeline.burst(&pipeline.ingest.listen_url(), None, &pool).await?;
    for program in [&pipeline.ingest, &pipeline.projector, &pipeline.reconciler] {
        let output = program.output();
        ensure!(
            !output.to_lowercase().contains("violation"),
            "the broker refused something:\n{output}"
        );
        program.keeps_secrets(&PASSWORDS.map(|(_, password)| password))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_not_taken_is_told_once_with_the_setting() -> anyhow::Result<()> {
    let (_nats, [ingest, ..], _files) = broker().await?;
    let url = std::fs::read_to_string(&ingest)?;
    std::fs::write(&ingest, url.replace(PASSWORDS[0].1, "of-nobody-0123456789"))?;
    let ingest = Program::new("dsync-ingest")
        .env("NATS_URL_FILE", &ingest)
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .spawn()?;
    // By the time of this message, it has tried some ten times.
    eventually(BOUND, async || {
        ensure!(ingest.output().contains("stream cannot be set up"), "not yet");
        Ok(())
    })
    .await?;
    let output = ingest.output();
    let told: Vec<&str> = output.lines().filter(|line| line.contains("violation")).collect();
    ensure!(
        matches!(told[..], [line] if line.contains("rejects this login") && line.contains("NATS_URL")),
        "{output}"
    );
    Ok(())
}

/// Ingest's login may not change the stream. If its limits differ from the stream's, webhooks are stored anyway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_a_login_may_not_change_stop_nobody() -> anyhow::Result<()> {
    let (_nats, [ingest, ..], _files) = broker().await?;
    let receiver = || {
        Program::new("dsync-ingest")
            .env("NATS_URL_FILE", &ingest)
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
    };
    receiver().start().await?.terminate().await?;
    let changed = receiver().env("DSYNC_LOG_MAX_BYTES", "1GiB").start().await?;
    ensure!(
        changed.output().contains("using it as it is"),
        "{}",
        changed.output()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_programs_login_is_refused_what_is_not_its_own() -> anyhow::Result<()> {
    let (nats, ..) = broker().await?;
    ensure!(
        async_nats::connect(nats.url_at("127.0.0.1")).await.is_err(),
        "a client without a login was admitted"
    );
    let ingest = intruder(&nats, 0).await?;
    let create = r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"file","allow_direct":true}"#;
    ensure!(may(&ingest, "$JS.API.STREAM.CREATE.DSYNC", create).await);
    ensure!(
        may(&ingest, "dsync.d.user.u.updated", "{}").await,
        "ingest must be able to append"
    );
    let own = r#"{"stream_name":"DSYNC","config":{"name":"x","ack_policy":"none","mem_storage":true}}"#;
    let push =
        r#"{"stream_name":"DSYNC","config":{"ack_policy":"none","deliver_subject":"_INBOX.dsync-ingest.x"}}"#;
    for (login, refused) in [
        (
            0,
            &[
                ("$JS.API.STREAM.PURGE.DSYNC", "{}"),
                ("$JS.API.STREAM.DELETE.DSYNC", ""),
                ("$JS.API.STREAM.UPDATE.DSYNC", create),
                ("$JS.API.STREAM.MSG.DELETE.DSYNC", r#"{"seq":1}"#),
                ("$JS.API.STREAM.MSG.GET.DSYNC", r#"{"seq":1}"#),
                ("$JS.API.DIRECT.GET.DSYNC", r#"{"seq":1}"#),
                ("$JS.API.CONSUMER.CREATE.DSYNC.x", own),
                ("$JS.API.CONSUMER.CREATE.DSYNC", push),
                (
                    "$JS.API.STREAM.CREATE.OTHER",
                    r#"{"name":"OTHER","sources":[{"name":"DSYNC"}]}"#,
                ),
            ][..],
        ),
        (
            1,
            &[
                ("dsync.d.user.u.deleted", "{}"),
                ("$JS.API.STREAM.PURGE.DSYNC", "{}"),
                ("$JS.API.STREAM.DELETE.DSYNC", ""),
                ("$JS.API.STREAM.UPDATE.DSYNC", create),
                ("$JS.API.STREAM.CREATE.OTHER", r#"{"name":"OTHER"}"#),
            ],
        ),
        (
            2,
            &[
                ("$JS.API.STREAM.PURGE.DSYNC", "{}"),
                ("$JS.API.STREAM.DELETE.DSYNC", ""),
                ("$JS.API.STREAM.UPDATE.DSYNC", create),
                ("$JS.API.STREAM.MSG.DELETE.DSYNC", r#"{"seq":1}"#),
                ("$JS.API.STREAM.CREATE.OTHER", r#"{"name":"OTHER"}"#),
            ],
        ),
    ] {
        let intruder = intruder(&nats, login).await?;
        ensure!(
            may(&intruder, "$JS.API.STREAM.INFO.DSYNC", "").await,
            "login {login} must be able to ask for the log's state"
        );
        for (subject, question) in refused {
            ensure!(!may(&intruder, subject, question).await, "{login} may {subject}");
        }
    }
    let projector = intruder(&nats, 1).await?;
    ensure!(
        may(&projector, "$JS.API.STREAM.MSG.GET.DSYNC", r#"{"seq":1}"#).await,
        "the projector must be able to read"
    );
    ensure!(
        may(&projector, "$JS.API.STREAM.MSG.DELETE.DSYNC", r#"{"seq":1}"#).await,
        "the projector must be able to erase"
    );
    Ok(())
}

/// The broker answers an append wherever it is asked to, with more rights than the login has. The answer names a sequence, as
/// these requests do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_an_append_is_no_request() -> anyhow::Result<()> {
    let (nats, ..) = broker().await?;
    let ingest = intruder(&nats, 0).await?;
    let create = r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"file"}"#;
    ensure!(may(&ingest, "$JS.API.STREAM.CREATE.DSYNC", create).await);
    let requests = [
        "STREAM.PURGE",
        "STREAM.MSG.DELETE",
        "STREAM.DELETE",
        "STREAM.UPDATE",
    ];
    for request in requests {
        let answer_to = format!("$JS.API.{request}.DSYNC");
        ingest
            .publish_with_reply("dsync.d.user.u.updated", answer_to, "{}".into())
            .await?;
    }
    // Their answers follow those requests.
    ensure!(may(&ingest, "dsync.d.user.u.updated", "{}").await);
    let info = ingest.request("$JS.API.STREAM.INFO.DSYNC", "".into()).await?;
    let info: serde_json::Value = serde_json::from_slice(&info.payload)?;
    ensure!(info["state"]["messages"] == requests.len() + 1, "{info}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_program_is_sent_no_other_can_listen_to() -> anyhow::Result<()> {
    let (nats, ..) = broker().await?;
    let (ingest, projector) = (intruder(&nats, 0).await?, intruder(&nats, 1).await?);
    let mut heard = Vec::new();
    for subject in [">", "_INBOX.>", "_INBOX.dsync-projector.>", "dsync.>", "$JS.>"] {
        heard.push(ingest.subscribe(subject).await?);
    }
    ingest.flush().await?;
    let create = r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"file"}"#;
    ensure!(may(&ingest, "$JS.API.STREAM.CREATE.DSYNC", create).await);
    let reconciler = intruder(&nats, 2).await?;
    ensure!(may(&reconciler, "dsync.d.user.u.updated", "{}").await);
    let log = jetstream::new(projector).get_stream_no_info("DSYNC").await?;
    let reader = log
        .create_consumer(consumer::pull::OrderedConfig::default())
        .await?;
    let first = reader.messages().await?.next().await.context("no message")??;
    ensure!(first.payload.as_ref() == b"{}", "the projector must read it");
    ingest.flush().await?;
    for mut listener in heard {
        let word = tokio::time::timeout(Duration::from_millis(50), listener.next()).await;
        ensure!(!matches!(word, Ok(Some(_))), "{word:?}");
    }
    Ok(())
}
