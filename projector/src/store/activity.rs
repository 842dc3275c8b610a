//! When something of each directory was last applied. Not part of the projection: it says when, not what.

use std::collections::BTreeMap;

use schema::timestamp::Timestamp;
use sqlx::PgConnection;
use time::OffsetDateTime;

/// Notes, per directory, the time of the newest event applied (`created_at`, by WorkOS's clock) and that it is `now`.
pub async fn note(
    connection: &mut PgConnection,
    newest: &BTreeMap<&str, Timestamp>,
    now: OffsetDateTime,
) -> sqlx::Result<()> {
    if newest.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = newest.keys().copied().collect();
    let at: Vec<OffsetDateTime> = newest.values().map(|at| (*at).into()).collect();
    sqlx::query!(
        r#"
        insert into dsync.directory_activity as a (directory_id, last_event_at, last_applied_at)
        select x.id, x.at, $3 from unnest($1::text[], $2::timestamptz[]) as x (id, at)
        order by x.id collate "C"
        on conflict (directory_id) do update set
            last_event_at = greatest(a.last_event_at, excluded.last_event_at),
            last_applied_at = greatest(a.last_applied_at, excluded.last_applied_at)
        "#,
        &ids as &[&str],
        &at,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}
