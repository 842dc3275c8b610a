//! Periodic work on the tables: scrubs the attributes of objects long gone, creates monthly partitions of history ahead,
//! and drops old ones.
//!
//! Scrubbing removes values and leaves every register. An old event that is read again still loses to the version that is
//! kept, so it cannot bring the values back. Scrubbed objects are not live, so no row that is shown changes. Their history
//! is blanked with them.

use service::postgres::answered;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use time::OffsetDateTime;

use super::blanking::{Blanked, CHANGES, blank};

/// Objects listed at once.
const LISTED: i64 = 500;

/// How many objects were scrubbed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Users.
    pub users: u64,
    /// Groups.
    pub groups: u64,
    /// Directories.
    pub directories: u64,
}

impl Scrubbed {
    /// Nothing was left to scrub.
    pub const NOTHING: Self = Self {
        users: 0,
        groups: 0,
        directories: 0,
    };
}

/// Deletes the rows kept from rebuilds done before `done_before`. Returns how many.
pub async fn forget_replaced(pool: &PgPool, done_before: OffsetDateTime) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        r#"
        delete from dsync.replaced as r using dsync.rebuilds as b
        where b.id = r.rebuild_id and b.done_at < $1
        "#,
        done_before,
    )
    .execute(pool)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Scrubs objects that have been gone since before `gone_before`. What fails for some of them keeps no others waiting; the
/// last such error is returned once all have been tried.
pub async fn scrub(pool: &PgPool, gone_before: OffsetDateTime) -> sqlx::Result<Scrubbed> {
    // Those of which there may be many come last.
    let directories = answered(directories(pool, gone_before)).await;
    let groups = contents(pool, Contents::Groups, gone_before).await;
    let users = contents(pool, Contents::Users, gone_before).await;
    Ok(Scrubbed {
        users: users?,
        groups: groups?,
        directories: directories?,
    })
}

/// What a directory contains and is scrubbed.
#[derive(Debug, Clone, Copy)]
enum Contents {
    Users,
    Groups,
}

impl Contents {
    /// What history calls one of them.
    const fn entity(self) -> &'static str {
        match self {
            Self::Users => "user",
            Self::Groups => "group",
        }
    }
}

/// An object to scrub.
struct Due {
    id: String,
    /// How many changes it has in history; [`CHANGES`] stands for that many or more.
    changes: i64,
}

/// Lists and scrubs until nothing is left. What takes the server too long is tried in halves, down to a single object,
/// which is left for the next time.
async fn contents(pool: &PgPool, what: Contents, gone_before: OffsetDateTime) -> sqlx::Result<u64> {
    let mut all = 0;
    let mut left: Vec<String> = Vec::new();
    let mut failed = None;
    loop {
        let mut connection = answered(pool.acquire()).await?;
        let mut due = match what {
            Contents::Users => answered(due_users(&mut connection, gone_before)).await?,
            Contents::Groups => answered(due_groups(&mut connection, gone_before)).await?,
        };
        due.retain(|due| !left.contains(&due.id));
        let mut done = 0;
        let mut parts = parts(&due);
        while let Some(part) = parts.pop() {
            match (scrub_part(&mut connection, what, part, gone_before).await, part) {
                (Ok(scrubbed), _) => done += scrubbed,
                (Err(error), [one]) if takes_too_long(&error) => {
                    left.push(one.id.clone());
                    failed = Some(error);
                }
                (Err(error), _) if takes_too_long(&error) => {
                    parts.extend(<[_; 2]>::from(part.split_at(part.len() / 2)));
                }
                (Err(error), _) => return Err(error),
            }
        }
        all += done;
        if done == 0 {
            return failed.map_or(Ok(all), Err);
        }
    }
}

async fn scrub_part(
    connection: &mut PgConnection,
    what: Contents,
    part: &[Due],
    gone_before: OffsetDateTime,
) -> sqlx::Result<u64> {
    let blanked = match part {
        [one] if one.changes >= CHANGES => blank(connection, what.entity(), &one.id).await?,
        _ => Blanked::NONE,
    };
    let ids: Vec<&str> = part.iter().map(|due| due.id.as_str()).collect();
    match what {
        Contents::Users => answered(users(connection, &ids, gone_before, blanked)).await,
        Contents::Groups => answered(groups(connection, &ids, gone_before, blanked)).await,
    }
}

/// Whether the server ended a statement because of the limit on its time.
fn takes_too_long(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("57014"))
}

/// Cuts `due` into parts that have no more than [`CHANGES`] together, or are a single object.
fn parts(mut due: &[Due]) -> Vec<&[Due]> {
    let mut parts = Vec::new();
    while !due.is_empty() {
        let mut changes = 0;
        let fit = due.iter().take_while(|due| {
            changes += due.changes;
            changes <= CHANGES
        });
        let (part, rest) = due.split_at(fit.count().max(1));
        parts.push(part);
        due = rest;
    }
    parts
}

/// Lists users to scrub: those that are gone, and those that went with their directory. Not those whose history is still to
/// be written, because it needs their values.
async fn due_users(connection: &mut PgConnection, gone_before: OffsetDateTime) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as!(
        Due,
        r#"
        with gone as materialized (
            select u.id from dsync.users as u
            where u.to_scrub and u.gone_at < $1 and u.version_observed_at < $1
            limit $2
        ), taken_along as materialized (
            select u.id from dsync.directories as d
            join dsync.users as u on u.directory_id = d.id
            where d.gone_at < $1 and u.seen_at <= d.gone_at and u.version_observed_at < $1
                and not exists (select from dsync.history_backlog as h where h.directory_id = d.id) and (
                u.idp_id is not null or u.email is not null or u.username is not null
                or u.first_name is not null or u.last_name is not null or u.name is not null
                or u.job_title is not null or u.state is not null or u.role is not null
                or u.roles <> '{}' or u.custom_attributes is not null or u.raw_attributes is not null
            )
            limit $2
        )
        select due.id as "id!", (
            select count(*) from (
                select from dsync.changes as c where c.entity = 'user' and c.entity_id = due.id limit $3
            ) as counted
        ) as "changes!"
        from (select id from gone union select id from taken_along) as due (id)
        "#,
        gone_before,
        LISTED,
        CHANGES,
    )
    .fetch_all(connection)
    .await
}

/// Scrubs those of the users `ids` that are still to be scrubbed, of whose history `blanked` was blanked before. They are
/// looked at again once they are locked, so one that came back meanwhile is left alone.
async fn users(
    connection: &mut PgConnection,
    ids: &[&str],
    gone_before: OffsetDateTime,
    blanked: Blanked,
) -> sqlx::Result<u64> {
    let row = sqlx::query!(
        r#"
        with gone as materialized (
            select u.id from dsync.users as u
            where u.id = any($2::text[]) and u.version_observed_at < $1 and (
                u.seen_at <= u.gone_at and u.gone_at < $1
                or exists (
                    select from dsync.directories as d
                    where d.id = u.directory_id and d.gone_at < $1 and u.seen_at <= d.gone_at
                        and not exists (select from dsync.history_backlog as h where h.directory_id = d.id)
                )
            )
            for update skip locked
        ), scrubbed as (
            update dsync.users as u
            set idp_id = null, email = null, username = null, first_name = null, last_name = null,
                name = null, job_title = null, state = null, role = null, roles = '{}',
                custom_attributes = null, raw_attributes = null
            where u.id in (select id from gone)
            returning u.id
        ), blanked as (
            update dsync.changes as c
            set before = dsync.blank(c.before), after = dsync.blank(c.after)
            where c.entity = 'user' and c.entity_id in (select id from scrubbed) and c.change_id > $3
        )
        select count(*) as "count!" from scrubbed
        "#,
        gone_before,
        ids as &[&str],
        blanked.last,
    )
    .fetch_one(connection)
    .await?;
    Ok(row.count.unsigned_abs())
}

/// As [`due_users`], for groups.
async fn due_groups(connection: &mut PgConnection, gone_before: OffsetDateTime) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as!(
        Due,
        r#"
        with gone as materialized (
            select g.id from dsync.groups as g
            where g.to_scrub and g.gone_at < $1 and g.version_observed_at < $1
            limit $2
        ), taken_along as materialized (
            select g.id from dsync.directories as d
            join dsync.groups as g on g.directory_id = d.id
            where d.gone_at < $1 and g.seen_at <= d.gone_at and g.version_observed_at < $1
                and not exists (select from dsync.history_backlog as h where h.directory_id = d.id)
                and (g.idp_id is not null or g.name is not null or g.raw_attributes is not null)
            limit $2
        )
        select due.id as "id!", (
            select count(*) from (
                select from dsync.changes as c where c.entity = 'group' and c.entity_id = due.id limit $3
            ) as counted
        ) as "changes!"
        from (select id from gone union select id from taken_along) as due (id)
        "#,
        gone_before,
        LISTED,
        CHANGES,
    )
    .fetch_all(connection)
    .await
}

/// As [`users`], for groups.
async fn groups(
    connection: &mut PgConnection,
    ids: &[&str],
    gone_before: OffsetDateTime,
    blanked: Blanked,
) -> sqlx::Result<u64> {
    let row = sqlx::query!(
        r#"
        with gone as materialized (
            select g.id from dsync.groups as g
            where g.id = any($2::text[]) and g.version_observed_at < $1 and (
                g.seen_at <= g.gone_at and g.gone_at < $1
                or exists (
                    select from dsync.directories as d
                    where d.id = g.directory_id and d.gone_at < $1 and g.seen_at <= d.gone_at
                        and not exists (select from dsync.history_backlog as h where h.directory_id = d.id)
                )
            )
            for update skip locked
        ), scrubbed as (
            update dsync.groups as g
            set idp_id = null, name = null, raw_attributes = null
            where g.id in (select id from gone)
            returning g.id
        ), blanked as (
            update dsync.changes as c
            set before = dsync.blank(c.before), after = dsync.blank(c.after)
            where c.entity = 'group' and c.entity_id in (select id from scrubbed) and c.change_id > $3
        )
        select count(*) as "count!" from scrubbed
        "#,
        gone_before,
        ids as &[&str],
        blanked.last,
    )
    .fetch_one(connection)
    .await?;
    Ok(row.count.unsigned_abs())
}

async fn directories(pool: &PgPool, gone_before: OffsetDateTime) -> sqlx::Result<u64> {
    let row = sqlx::query!(
        r#"
        with scrubbed as (
            update dsync.directories as d
            set name = null, type = null, state = null, external_key = null
            where d.to_scrub and d.gone_at < $1 and d.version_observed_at < $1
            returning d.id
        ), blanked as (
            update dsync.changes as c
            set before = dsync.blank(c.before), after = dsync.blank(c.after)
            where c.entity = 'directory' and c.entity_id in (select id from scrubbed)
        )
        select count(*) as "count!" from scrubbed
        "#,
        gone_before,
    )
    .fetch_one(pool)
    .await?;
    Ok(row.count.unsigned_abs())
}

/// Creates the partitions of history up to `until`. Returns the names of those created.
pub async fn make_partitions(pool: &PgPool, until: OffsetDateTime) -> sqlx::Result<Vec<String>> {
    let Some(mut transaction) = alone(pool).await? else {
        return Ok(Vec::new());
    };
    let made = sqlx::query_scalar!(r#"select dsync.prepare_history($1) as "names!""#, until)
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(made)
}

/// Drops the partitions of history that end before `before`. Returns the names of those dropped.
pub async fn drop_partitions(pool: &PgPool, before: OffsetDateTime) -> sqlx::Result<Vec<String>> {
    let Some(mut transaction) = alone(pool).await? else {
        return Ok(Vec::new());
    };
    let dropped = sqlx::query_scalar!(r#"select dsync.drop_history($1) as "names!""#, before)
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(dropped)
}

/// A transaction for changing partitions; `None` if another projector is at it. It waits at most two seconds for readers
/// that are in the way, and is tried again later. One transaction creates or drops partitions, never both: it would hold
/// the lock on one partition while it waits for all readers, who may be waiting for that partition.
async fn alone(pool: &PgPool) -> sqlx::Result<Option<Transaction<'static, Postgres>>> {
    let mut transaction = pool.begin().await?;
    super::lock::limit(&mut transaction).await?;
    let alone = sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtext('dsync partitions'), 0) as "alone!""#
    )
    .fetch_one(&mut *transaction)
    .await?;
    if !alone {
        return Ok(None);
    }
    sqlx::query!("set local lock_timeout = '2s'")
        .execute(&mut *transaction)
        .await?;
    Ok(Some(transaction))
}

/// Grants the reader roles their privileges. Returns the statements that an administrator must run first, if any.
pub async fn grant_readers(pool: &PgPool) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(r#"select dsync.grant_readers() as "statements!""#)
        .fetch_one(pool)
        .await
}
