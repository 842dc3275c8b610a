//! What an event writes besides its rows: no index, as long as it changes no indexed column.

use anyhow::ensure;
use schema::record::{Record, Source};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tests::Postgres;

use super::bodies::{event, user};
use super::{record, write, write_within};

const USERS: u32 = 1_000;
const GROUPS: u32 = 10;

fn told(nth: u32, second: u32, kind: &str, data: Value) -> Record {
    let told = event(&format!("e{second}_{nth}"), kind, second, data);
    record(told.to_string().as_bytes(), Source::Webhook)
}

fn hired(nth: u32) -> Record {
    told(nth, 1, "dsync.user.created", person(nth, 1))
}

fn person(nth: u32, second: u32) -> Value {
    let more = json!({
        "email": format!("{nth}@example.com"), "idp_id": format!("idp_{nth}"), "job_title": second.to_string(),
        "raw_attributes": {"title": second, "filler": "x".repeat(400)}
    });
    user(&format!("u{nth}"), second, more)
}

fn promoted(nth: u32, second: u32) -> Record {
    told(nth, second, "dsync.user.updated", person(nth, second))
}

/// The user's attributes are those of `known`, as in WorkOS's membership events. So the user counts as seen again.
fn joined(nth: u32, known: u32, second: u32) -> Record {
    let group = json!({
        "id": format!("g{}", nth % GROUPS), "directory_id": "d1", "organization_id": "org_1", "name": "Staff",
        "updated_at": "2026-01-01T00:00:01.000Z"
    });
    let data = json!({"directory_id": "d1", "user": person(nth, known), "group": group});
    told(nth, second, "dsync.group.user_added", data)
}

/// The numbers of rows updated so far, and of those that wrote no index. Earlier transactions of the session are
/// included until it flushes its statistics, which it does now and then, but never within a transaction.
async fn counted(transaction: &mut PgConnection) -> anyhow::Result<(i64, i64)> {
    let counted = sqlx::query_as(
        "select sum(n_tup_upd)::bigint, sum(n_tup_hot_upd)::bigint from pg_stat_xact_user_tables
         where schemaname = 'dsync' and relname in ('directories', 'users', 'groups', 'memberships')",
    );
    Ok(counted.fetch_one(transaction).await?)
}

/// The numbers of rows updated by these records, and of those that wrote no index.
async fn updated(session: &mut PgConnection, records: &[Record]) -> anyhow::Result<(i64, i64)> {
    let mut transaction = session.begin().await?;
    let before = counted(&mut transaction).await?;
    write_within(&mut transaction, records).await?;
    let after = counted(&mut transaction).await?;
    transaction.commit().await?;
    Ok((after.0 - before.0, after.1 - before.1))
}

#[tokio::test]
async fn an_event_writes_no_index_that_it_does_not_concern() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let mut session = PgConnection::connect(&postgres.url()).await?;
    write(
        &postgres.pool().await?,
        &(0..USERS).map(hired).collect::<Vec<_>>(),
    )
    .await?;
    // One user in twenty, because updates of several rows on one page are untypical.
    let some = |second: u32| (0..USERS).filter(move |nth| nth % 20 == second % 20);
    for second in 2..10 {
        for records in [
            some(second)
                .map(|nth| promoted(nth, 2 * second))
                .collect::<Vec<_>>(),
            some(second)
                .map(|nth| joined(nth, 2 * second, 2 * second + 1))
                .collect(),
        ] {
            let (rows, alone) = updated(&mut session, &records).await?;
            ensure!(
                rows >= 50,
                "only {rows} rows were updated in second {second}, of {}",
                records.len()
            );
            ensure!(
                alone * 20 >= rows * 19,
                "only {alone} of {rows} updated rows wrote no index"
            );
        }
    }
    Ok(())
}
