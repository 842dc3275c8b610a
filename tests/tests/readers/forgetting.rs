//! An erased person leaves no trace: not in a table, not in the log, not after late retries or a replay of the log.

use std::path::Path;

use anyhow::{Context as _, ensure};
use journal::{Appended, Entry, Journal};
use schema::record::{Record, Source};
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::{Nats, Postgres, Program, Running, eventually};

use super::bodies::{self, moment};
use super::{BOUND, append, log_on, record, rows, text};

/// Words about the person that must not be found anywhere afterwards.
const WORDS: [&str; 5] = [
    "Zebulon",
    "Quicksilver",
    "zebulon.q@example.com",
    "z.quicksilver",
    "idp-of-zebulon-0001",
];

struct Stage {
    postgres: Postgres,
    nats: Nats,
    pool: PgPool,
    journal: Journal,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
        let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
        Ok(Self {
            postgres,
            nats,
            pool,
            journal,
        })
    }

    fn program(&self) -> Program {
        Program::new("dsync-projector")
            .env("NATS_URL", self.nats.url())
            .env("DATABASE_URL", self.postgres.url())
            .env("RUST_LOG", "debug")
    }

    /// Appends and waits until the projector has applied all of it.
    async fn told(&self, records: &[Record]) -> anyhow::Result<u64> {
        let last = append(&self.journal, records).await?;
        eventually(BOUND, async || {
            let at = text(&self.pool, "select seq from dsync.progress where lane = 'all'").await?;
            ensure!(at.context("the lane has not begun")?.parse::<u64>()? >= last);
            Ok(())
        })
        .await?;
        Ok(last)
    }

    async fn erase(&self, more: &[&str]) -> anyhow::Result<tests::Output> {
        let program = self
            .program()
            .arg("erase")
            .arg("--user")
            .arg("user_z")
            .arg("--json");
        more.iter()
            .fold(program, |program, arg| program.arg(*arg))
            .run()
            .await
    }
}

fn zebulon(second: u32, more: &Value) -> Value {
    let mut user = json!({
        "id": "user_z", "directory_id": "d1", "organization_id": "org_1", "state": "active",
        "email": "Zebulon.Q@example.com", "username": "z.quicksilver", "first_name": "Zebulon", "last_name": "Quicksilver",
        "idp_id": "idp-of-zebulon-0001", "raw_attributes": {"displayName": "Zebulon Quicksilver"},
        "custom_attributes": {"nickname": "Zebulon"}, "updated_at": moment(second)
    });
    user.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    user
}

fn event(id: &str, kind: &str, second: u32, data: &Value) -> Record {
    let body = bodies::event(id, kind, second, data.clone());
    record(body.to_string().as_bytes(), Source::Webhook)
}

fn other(id: &str) -> Value {
    json!({"id": id, "directory_id": "d1", "organization_id": "org_1", "state": "active",
        "email": format!("{id}@example.com"), "updated_at": moment(1)})
}

/// Records about the person, in every way in which a record can mention somebody, and about people who are not erased.
fn life() -> Vec<Record> {
    let group = json!({"id": "g1", "directory_id": "d1", "organization_id": "org_1", "name": "Staff", "updated_at": moment(1)});
    let joined = |user: Value| json!({"directory_id": "d1", "user": user, "group": group});
    let quarantined = |body: String| record(body.as_bytes(), Source::Webhook);
    vec![
        event("e1", "dsync.activated", 1, &json!({"id": "d1", "organization_id": "org_1", "updated_at": moment(1)})),
        event("e2", "dsync.user.created", 2, &zebulon(2, &json!({}))),
        event("e3", "dsync.user.created", 2, &other("user_ann")),
        event("e4", "dsync.group.user_added", 3, &joined(zebulon(2, &json!({})))),
        event("e5", "dsync.group.user_added", 3, &joined(other("user_ann"))),
        event("e6", "dsync.user.updated", 4, &zebulon(4, &json!({"email": "zebulon.q@example.com", "job_title": "Cook"}))),
        // An event of an unknown kind, and ones that cannot be addressed.
        event("e7", "dsync.user.merged", 5, &json!({"id": "x", "directory_id": "d1", "into": zebulon(4, &json!({}))})),
        quarantined(json!({"id": "e8", "event": "dsync.user.updated", "data": zebulon(4, &json!({"id": "not an id"}))}).to_string()),
        quarantined(r#"{"id": "e9", "event": "dsync.user.updated", "data": {"mail": "zebulon.q\u0040example.com""#.to_owned()),
        quarantined(r#"{"id": "e10", "event": "dsync.user.updated", "data": {"mail": "user_ann@example.com"}}"#.to_owned()),
        // An addressed record whose body cannot be read: a dead letter.
        {
            let mut dead = event("e11", "dsync.user.updated", 6, &zebulon(6, &json!({})));
            dead.body = bytes::Bytes::from_static(b"{\"data\": \"Zebulon\"");
            dead
        },
    ]
}

fn goodbye() -> Record {
    event("e20", "dsync.user.deleted", 20, &zebulon(6, &json!({})))
}

/// The rows of all of dsync's tables that contain one of the words in a text, JSON or binary column.
async fn found_in_tables(pool: &PgPool) -> anyhow::Result<Vec<String>> {
    let tables = rows(
        pool,
        "select c.oid::regclass::text as name from pg_class as c
         where relnamespace in ('dsync'::regnamespace, 'directory'::regnamespace) and relkind in ('r', 'p', 'v')",
    )
    .await?;
    ensure!(tables.len() > 20, "{tables:?}");
    let mut found = Vec::new();
    for table in tables {
        let table = table["name"].as_str().unwrap();
        for row in rows(pool, format!("select * from {table}")).await? {
            let mut row = row.to_string().to_lowercase();
            if let Some(start) = row.find("\"\\\\x") {
                let hex: String = row[start + 4..]
                    .chars()
                    .take_while(char::is_ascii_hexdigit)
                    .collect();
                row += &String::from_utf8_lossy(&hex::decode(hex)?).to_lowercase();
            }
            if WORDS.iter().any(|word| row.contains(&word.to_lowercase())) {
                found.push(format!("{table}: {row}"));
            }
        }
    }
    Ok(found)
}

async fn messages(journal: &Journal) -> anyhow::Result<Vec<Entry>> {
    let (mut seq, mut all) = (1, Vec::new());
    while let Some(entry) = journal.first_at(seq, "dsync.>").await? {
        seq = entry.seq + 1;
        all.push(entry);
    }
    Ok(all)
}

fn holds_a_word(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes)
        .to_lowercase()
        .replace("\\u0040", "@");
    WORDS.iter().any(|word| text.contains(&word.to_lowercase()))
}

fn found_in_files(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(found_in_files(&path)?);
        } else if holds_a_word(&std::fs::read(&path)?) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

async fn no_trace(stage: &Stage) -> anyhow::Result<()> {
    let found = found_in_tables(&stage.pool).await?;
    ensure!(found.is_empty(), "in tables: {found:#?}");
    for entry in messages(&stage.journal).await? {
        ensure!(!holds_a_word(&entry.record.body), "in the log: {entry:?}");
    }
    let files = found_in_files(&stage.nats.store())?;
    ensure!(files.is_empty(), "on the broker's disk: {files:?}");
    Ok(())
}

/// Fills an empty database from the log alone.
async fn replayed(nats: &Nats, last: u64) -> anyhow::Result<(Postgres, PgPool, Running)> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let projector = Program::new("dsync-projector")
        .env("NATS_URL", nats.url())
        .env("DATABASE_URL", postgres.url())
        .start()
        .await?;
    eventually(BOUND, async || {
        let at = text(&pool, "select seq from dsync.progress where lane = 'all'").await?;
        ensure!(at.context("the lane has not begun")?.parse::<u64>()? >= last);
        Ok(())
    })
    .await?;
    Ok((postgres, pool, projector))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_erased_leaves_no_trace() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let projector = stage.program().start().await?;
    stage.told(&life()).await?;
    ensure!(found_in_tables(&stage.pool).await?.len() > 5, "nothing to erase");

    let refused = stage.erase(&[]).await?;
    ensure!(
        refused.status.code() == Some(1) && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    ensure!(rows(&stage.pool, "select * from directory.users").await?.len() == 2);

    stage.told(&[goodbye()]).await?;
    let done = stage.erase(&[]).await?;
    ensure!(done.status.success(), "{done:?}");
    let receipt: Value = serde_json::from_str(&done.stdout)?;
    ensure!(receipt["row"] == true && receipt["memberships"] == 1, "{receipt}");
    ensure!(
        receipt["log_messages"] == 5 && receipt["other_messages"] == 3,
        "{receipt}"
    );
    ensure!(receipt["dead_letters"] == 3, "{receipt}");
    ensure!(receipt["namesakes"] == json!([]), "{receipt}");
    // The history's rows stay, with ids and times. Their number depends on how the events fell into batches.
    let history = rows(
        &stage.pool,
        "select after from directory.changes where entity_id = 'user_z'",
    )
    .await?;
    ensure!(
        history.len() >= 2 && receipt["history"] == history.len(),
        "{receipt} {history:?}"
    );
    no_trace(&stage).await?;

    // Nobody else has lost anything.
    let left = rows(&stage.pool, "select id, email from directory.users").await?;
    ensure!(
        left == [json!({"id": "user_ann", "email": "user_ann@example.com"})],
        "{left:?}"
    );
    let letters = rows(&stage.pool, "select event_id from dsync.dead_letters").await?;
    ensure!(letters == [json!({"event_id": "e10"})], "{letters:?}");

    // Late retries of all of them, once the log no longer knows their ids.
    let late: Vec<Record> = life()
        .into_iter()
        .filter(|record| holds_a_word(&record.body) && !record.subject.is_quarantine())
        .collect();
    ensure!(late.len() == 5, "{}", late.len());
    let mut last = 0;
    for record in &late {
        last = eventually(BOUND, async || match stage.journal.append(record).await? {
            Appended::Stored { seq } => Ok(seq),
            Appended::Duplicate { .. } => anyhow::bail!("the log still knows it"),
        })
        .await?;
    }
    stage
        .told(&[event("e30", "dsync.user.created", 30, &other("user_bob"))])
        .await?;
    eventually(BOUND, async || no_trace(&stage).await).await?;
    // Both lanes may record the same message. The last to purge it deletes the record.
    eventually(BOUND, async || {
        ensure!(
            text(&stage.pool, "select count(*) from dsync.purges")
                .await?
                .as_deref()
                == Some("0")
        );
        Ok(())
    })
    .await?;
    ensure!(
        stage.journal.entry(last).await?.is_none(),
        "a late retry is still in the log"
    );

    // Rebuild a database from the log.
    let (_again, pool, _projector) = replayed(&stage.nats, last + 1).await?;
    let found = found_in_tables(&pool).await?;
    ensure!(found.is_empty(), "a replay brought back {found:#?}");
    ensure!(rows(&pool, "select id from directory.users").await?.len() == 2);

    let output = projector.output().to_lowercase();
    ensure!(
        WORDS.iter().all(|word| !output.contains(&word.to_lowercase())),
        "the projector's output contains a word about the person"
    );
    Ok(())
}

/// The broker is down at the first attempt, and the person's own messages have aged out of the log. When the command is
/// run again, messages with only the person's email address are still recognised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_could_not_be_erased_whole_is_so_by_the_next_attempt() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    let projector = stage.program().start().await?;
    stage.told(&life()).await?;
    stage.told(&[goodbye()]).await?;
    drop(projector);
    for entry in messages(&stage.journal).await? {
        if entry.record.subject.as_str().contains(".user_z.") {
            stage.journal.erase(entry.seq).await?;
        }
    }
    stage.nats.stop().await?;
    let half = stage.erase(&[]).await?;
    ensure!(
        half.status.code() == Some(1) && half.stderr.contains("run this again"),
        "{half:?}"
    );
    stage.nats.start_again().await?;
    let done = stage.erase(&[]).await?;
    ensure!(done.status.success(), "{done:?}");
    let receipt: Value = serde_json::from_str(&done.stdout)?;
    ensure!(
        receipt["other_messages"] == 3 && receipt["dead_letters"] == 3,
        "{receipt}"
    );
    no_trace(&stage).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasing_someone_live_takes_force_and_can_be_lifted() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let _projector = stage.program().start().await?;
    stage.told(&life()).await?;
    // The same person under another id.
    stage
        .told(&[event(
            "n1",
            "dsync.user.created",
            7,
            &zebulon(7, &json!({"id": "user_z2"})),
        )])
        .await?;
    let done = stage.erase(&["--force"]).await?;
    let receipt: Value = serde_json::from_str(&done.stdout)?;
    ensure!(receipt["namesakes"] == json!(["user_z2"]), "{receipt}");
    ensure!(
        rows(&stage.pool, "select * from directory.users where id = 'user_z'")
            .await?
            .is_empty()
    );
    let last = "select operation || ' ' || source from directory.changes where entity_id = 'user_z' order by change_id desc limit 1";
    ensure!(text(&stage.pool, last).await?.as_deref() == Some("deleted erase"));
    let gone = "select count(*) from directory.changes where entity_id = 'g1/user_z' and operation = 'deleted' and source = 'erase'";
    ensure!(
        text(&stage.pool, gone).await?.as_deref() == Some("1"),
        "history lacks the membership's end"
    );

    stage
        .told(&[event("n2", "dsync.user.updated", 8, &zebulon(8, &json!({})))])
        .await?;
    ensure!(
        rows(&stage.pool, "select * from directory.users where id = 'user_z'")
            .await?
            .is_empty()
    );
    ensure!(stage.erase(&["--undo"]).await?.status.success());
    ensure!(
        stage.erase(&["--undo"]).await?.status.code() == Some(1),
        "undone twice"
    );
    stage
        .told(&[event("n3", "dsync.user.updated", 9, &zebulon(9, &json!({})))])
        .await?;
    ensure!(
        rows(&stage.pool, "select * from directory.users where id = 'user_z'")
            .await?
            .len()
            == 1
    );
    let nobody = stage
        .program()
        .arg("erase")
        .arg("--user")
        .arg("no id")
        .run()
        .await?;
    ensure!(nobody.status.code() == Some(1), "{nobody:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_first_messages_to_an_erasure_still_reaches_back_to_its_beginning()
-> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let running = stage.program().start().await?;
    let hired = [
        event("e1", "dsync.user.created", 2, &zebulon(2, &json!({}))),
        event("e2", "dsync.user.created", 3, &other("user_ann")),
    ];
    stage.told(&hired).await?;
    let erased = stage.erase(&["--force"]).await?;
    ensure!(erased.status.success(), "{erased:?}");
    let first = stage.journal.identity().await?.context("the stream")?.first_seq;
    ensure!(first == 2, "the log begins at {first}");
    let verify = stage.program().arg("verify").arg("--json").run().await?;
    let told: Value = serde_json::from_str(&verify.stdout)?;
    ensure!(
        told["complete_since"].is_null() && verify.status.success(),
        "{verify:?}"
    );
    stage.journal.erase(2).await?;
    stage
        .told(&[event("e3", "dsync.user.updated", 4, &other("user_ann"))])
        .await?;
    let rebuild = stage.program().arg("rebuild").run().await?;
    ensure!(rebuild.stderr.contains("no longer reaches back"), "{rebuild:?}");
    drop(running);
    Ok(())
}

/// A manager's address among somebody else's attributes, say, belongs to that person. That person's removal must not get lost with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_applied_about_others_outlives_whom_it_mentions() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let _projector = stage.program().start().await?;
    stage.told(&life()).await?;
    let of_bob = |id: &str| {
        let mut dead = event(id, "dsync.user.deleted", 6, &other("user_bob"));
        dead.body =
            bytes::Bytes::from_static(br#"{"data": {"manager": "user_z", "mail": "zebulon.q@example.com""#);
        dead
    };
    let before = stage.told(&[of_bob("b1")]).await?;
    ensure!(stage.erase(&["--force"]).await?.status.success());
    let after = stage.told(&[of_bob("b2")]).await?;
    let letters = rows(
        &stage.pool,
        "select event_id from dsync.dead_letters where subject like '%user_bob%'",
    )
    .await?;
    ensure!(
        letters == [json!({"event_id": "b1"}), json!({"event_id": "b2"})],
        "{letters:?}"
    );
    for seq in [before, after] {
        ensure!(stage.journal.entry(seq).await?.is_some(), "{seq} is gone");
    }
    Ok(())
}
