//! The end of a large directory, and of a large group: how soon its people are no longer shown, how long its history
//! takes, and how soon another customer's removals are visible meanwhile, as a ratio to those before.
//!
//! Run: `ops/bench ends` (`USERS` sets another size; the directory has a hundredth as many groups, and five times as many
//! memberships; the group, in another directory, has as many members).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod removals;
#[expect(dead_code, reason = "positions are not needed")]
mod servers;
mod webhooks;

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::ensure;
use schema::timestamp::Timestamp;
use service::clock::Clock;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use removals::{Reader, Removal, told};
use servers::Servers;
use webhooks::{Client, request};

/// People of the other customer, whose removals are measured one after another.
const OTHERS: usize = 20_000;
/// Removals measured before anything ends.
const BEFORE: usize = 300;

/// The rows as events of long ago would have left them.
fn rows(users: usize) -> String {
    let groups = (users / 100).max(1);
    let user = |directory: &str, name: &str, count: usize| {
        format!(
            "insert into dsync.users (id, directory_id, organization_id, own_organization_id, idp_id, email, state, role,
                    roles, custom_attributes, raw_attributes, created_at, updated_at, seen_at)
                select 'directory_user_{name}' || u, 'directory_{directory}', 'org_{directory}', 'org_{directory}', 'idp_' || u,
                    'user' || u || '@{directory}.example.com', 'active', 'member', '{{member}}',
                    jsonb_build_object('department', 'd' || u % 7), jsonb_build_object('a', repeat('x', 400)),
                    '2025-01-01', '2025-01-01', '2025-01-01'
                from generate_series(0, {count} - 1) as u;"
        )
    };
    format!(
        "begin;
        set local dsync.history = off;
        insert into dsync.directories (id, organization_id, state, seen_at)
            select 'directory_' || d, 'org_' || d, 'active', '2025-01-01' from unnest(array['large', 'other', 'flat']) as d;
        {}{}{}
        insert into dsync.groups (id, directory_id, organization_id, own_organization_id, name, seen_at)
            select 'directory_group_' || g, 'directory_large', 'org_large', 'org_large', 'Group ' || g, '2025-01-01'
            from generate_series(0, {groups} - 1) as g;
        insert into dsync.groups (id, directory_id, organization_id, own_organization_id, name, seen_at)
            values ('directory_group_everyone', 'directory_flat', 'org_flat', 'org_flat', 'Everyone', '2025-01-01');
        insert into dsync.memberships (group_id, user_id, directory_id, organization_id, seen_at)
            select 'directory_group_' || (u / 5 + g * 7) % {groups}, 'directory_user_large' || u, 'directory_large', 'org_large',
                '2025-01-01'
            from generate_series(0, {users} - 1) as u, generate_series(0, 4) as g
            on conflict do nothing;
        insert into dsync.memberships (group_id, user_id, directory_id, organization_id, seen_at)
            select 'directory_group_everyone', 'directory_user_flat' || u, 'directory_flat', 'org_flat', '2025-01-01'
            from generate_series(0, {users} - 1) as u;
        commit;
        vacuum analyze",
        user("large", "large", users),
        user("other", "other", OTHERS),
        user("flat", "flat", users),
    )
}

fn event(id: &str, kind: &str, data: &str) -> String {
    let at = Timestamp::from(Clock::system().now());
    format!(r#"{{"object":"event","id":"event_{id}","event":"{kind}","created_at":"{at}","data":{data}}}"#)
}

/// The other customer's people, removed one after another.
struct Others {
    client: Client,
    reader: Reader,
    next: usize,
}

impl Others {
    async fn remove_one(&mut self) -> anyhow::Result<Removal> {
        let n = self.next;
        self.next += 1;
        ensure!(n < OTHERS, "nobody left to remove: set a smaller size");
        let id = format!("directory_user_other{n}");
        let data = format!(
            r#"{{"id":"{id}","directory_id":"directory_other","organization_id":"org_other","state":"active"}}"#
        );
        let event = event(&format!("other{n}"), "dsync.user.deleted", &data);
        Removal::by(&event, &id, &mut self.client, &mut self.reader).await
    }
}

/// What is still to be written of the history, in rows of the two backlogs.
async fn backlog(pool: &PgPool) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar(
        "select (select count(*) from dsync.history_backlog) + (select count(*) from dsync.group_history_backlog)",
    )
    .fetch_one(pool)
    .await?)
}

async fn changes(pool: &PgPool) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar("select count(*) from dsync.changes")
        .fetch_one(pool)
        .await?)
}

/// Something large that ends.
struct End {
    what: &'static str,
    event: String,
    /// Counts what is still shown of it, and asks the same of one person or membership, which is quick.
    all: &'static str,
    one: &'static str,
}

async fn measure(servers: &Servers, end: End, others: &mut Others, before: Duration) -> anyhow::Result<()> {
    let pool = &servers.pool;
    let (rows, mut client) = (changes(pool).await?, Client::to(&servers.address()).await?);
    let shown: i64 = sqlx::query_scalar(end.all).fetch_one(pool).await?;
    ensure!(shown > 0, "nothing is shown");
    let (began, has_ended) = (Instant::now(), Cell::new(false));
    let ends = async {
        client.send(&request(&end.event)).await?;
        let mut reader = PgConnection::connect(&servers.postgres.url()).await?;
        while sqlx::query_scalar::<_, bool>(end.one)
            .fetch_one(&mut reader)
            .await?
        {}
        has_ended.set(true);
        anyhow::Ok(began.elapsed())
    };
    let meanwhile = async {
        let mut removals = Vec::new();
        loop {
            removals.push(others.remove_one().await?);
            if has_ended.get() && backlog(pool).await? == 0 {
                return anyhow::Ok((removals, began.elapsed()));
            }
        }
    };
    let (ended, (removals, written)) = tokio::try_join!(ends, meanwhile)?;
    let left: i64 = sqlx::query_scalar(end.all).fetch_one(pool).await?;
    ensure!(left == 0, "{left} are still shown");
    println!(
        "\n{}: {shown} shown, none {:.0} ms after the webhook was sent; {} rows of history after {:.1} s",
        end.what,
        ended.as_secs_f64() * 1e3,
        changes(pool).await? - rows,
        written.as_secs_f64()
    );
    told("another customer meanwhile", &removals);
    println!(
        "  p50 ÷ that before: {:.1}",
        middle(&removals).as_secs_f64() / before.as_secs_f64()
    );
    Ok(())
}

fn middle(removals: &[Removal]) -> Duration {
    let mut times: Vec<Duration> = removals.iter().map(|one| one.visible).collect();
    times.sort();
    times[times.len() / 2]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let users: usize = std::env::var("USERS").map_or(Ok(100_000), |text| text.parse())?;
    let servers = Servers::up().await?;
    // One connection, because the statements form one transaction, which vacuum must follow.
    let mut connection = servers.pool.acquire().await?;
    for statement in rows(users).split(';') {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut *connection)
            .await?;
    }
    drop(connection);
    let _projector = servers.projector().start().await?;
    let mut others = Others {
        client: Client::to(&servers.address()).await?,
        reader: Reader::to(&servers.postgres.url()).await?,
        next: 0,
    };
    let mut before = Vec::new();
    for _ in 0..BEFORE {
        before.push(others.remove_one().await?);
    }
    println!("ends: a directory of {users} users, and a group of as many members\n");
    told("before", &before);
    let before = middle(&before);
    let group = r#"{"id":"directory_group_everyone","directory_id":"directory_flat","organization_id":"org_flat","name":"Everyone"}"#;
    let directory = r#"{"id":"directory_large","organization_id":"org_large","name":"Customer","type":"okta scim v2.0","state":"deleting"}"#;
    let ends = [
        End {
            what: "a group",
            event: event("group", "dsync.group.deleted", group),
            all: "select count(*) from directory.memberships where group_id = 'directory_group_everyone'",
            one: "select exists (select from directory.memberships
                where group_id = 'directory_group_everyone' and user_id = 'directory_user_flat0')",
        },
        End {
            what: "a directory",
            event: event("directory", "dsync.deleted", directory),
            all: "select count(*) from directory.users where directory_id = 'directory_large'",
            one: "select exists (select from directory.users where id = 'directory_user_large0')",
        },
    ];
    for end in ends {
        measure(&servers, end, &mut others, before).await?;
    }
    Ok(())
}
