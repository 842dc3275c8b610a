//! Erases one person from the database: their rows, and the values in their history. Their dead letters are found and
//! deleted by [`crate::erase`].

use sqlx::postgres::PgExecutor;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::backlog;
use super::blanking::{CHANGES, blank};

/// What the database knew about a person and has erased.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Whether the user had a row.
    pub row: bool,
    /// Membership rows.
    pub memberships: u64,
    /// History rows whose values were blanked.
    pub history: u64,
    /// Texts by which records without an id are recognised as this person's: addresses, user names, the provider's ids.
    pub marks: Vec<String>,
}

/// The result of [`forget`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The person is live: nothing was done.
    Live,
    /// The person is erased.
    Forgotten(Forgotten),
}

/// Erases the user `id`: from now on records about the user are left out, and what is there is removed. A live user is
/// erased only if `force`. Writers of the projection wait meanwhile, so none of them can bring back what it read before.
pub async fn forget(pool: &PgPool, id: &str, force: bool, now: OffsetDateTime) -> sqlx::Result<Outcome> {
    let mut transaction = pool.begin().await?;
    super::lock::limit(&mut transaction).await?;
    super::lock::erasures(&mut transaction).await?;
    let live = sqlx::query_scalar!(
        r#"select exists (select from directory.users where id = $1) as "live!""#,
        id
    )
    .fetch_one(&mut *transaction)
    .await?;
    if live && !force {
        return Ok(Outcome::Live);
    }
    sqlx::query!(
        "insert into dsync.erased (user_id, erased_at) values ($1, $2) on conflict do nothing",
        id,
        now,
    )
    .execute(&mut *transaction)
    .await?;
    backlog::write_early(&mut transaction, &backlog::Meant::person(id)).await?;
    let marks = marks(&mut transaction, id).await?;
    keep_marks(&mut *transaction, id, &marks).await?;
    let memberships = sqlx::query!("delete from dsync.memberships where user_id = $1", id)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    let row = sqlx::query!("delete from dsync.users where id = $1", id)
        .execute(&mut *transaction)
        .await?
        .rows_affected()
        == 1;
    let (newest, are_older) = blank_newest(&mut transaction, id).await?;
    sqlx::query!(
        "delete from dsync.rereads where target in ('user', 'memberships_of_user') and id = $1",
        id
    )
    .execute(&mut *transaction)
    .await?;
    // Undoing a rebuild requires every row that it replaced, so this one stays, with nothing to restore.
    // The entities are named because the index is only on those rows.
    sqlx::query!(
        "update dsync.replaced set image = null where user_id = $1 and entity in ('user', 'membership')",
        id
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!("delete from dsync.held_deletions where user_id = $1", id)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    // Writers need not wait for the rest of a very long history. Should this fail, it is done when the command is run again.
    let history = if are_older {
        blank(&mut *pool.acquire().await?, "user", id).await?.count
    } else {
        newest
    };
    Ok(Outcome::Forgotten(Forgotten {
        row,
        memberships,
        history,
        marks,
    }))
}

/// Stores the texts by which the person is recognised, until they are completely erased; then stores none.
pub async fn keep_marks(executor: impl PgExecutor<'_>, id: &str, marks: &[String]) -> sqlx::Result<()> {
    sqlx::query!("update dsync.erased set marks = $2 where user_id = $1", id, marks)
        .execute(executor)
        .await?;
    Ok(())
}

/// Texts that identify this person, from the row, from history, and from an earlier attempt.
async fn marks(connection: &mut PgConnection, id: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"
        select distinct m.mark as "mark!" from (
            select unnest(array[u.email, u.idp_id, u.username]) as mark
            from dsync.users as u where u.id = $1
            union all
            select unnest(array[v.shown ->> 'email', v.shown ->> 'idp_id', v.shown ->> 'username'])
            from dsync.changes as c
            cross join lateral (values (c.before), (c.after)) as v (shown)
            where c.entity = 'user' and c.entity_id = $1
            union all
            select unnest(e.marks) from dsync.erased as e where e.user_id = $1
        ) as m
        where m.mark <> ''
        "#,
        id,
    )
    .fetch_all(connection)
    .await
}

/// Blanks the person's newest [`CHANGES`] changes, with those that this erasure has just made. Returns how many, and whether
/// there are older ones.
async fn blank_newest(connection: &mut PgConnection, id: &str) -> sqlx::Result<(u64, bool)> {
    let row = sqlx::query!(
        r#"
        with older as materialized (
            select c.change_id from dsync.changes as c
            where c.entity = 'user' and c.entity_id = $1
            order by c.change_id desc offset $2 limit 1
        ), blanked as (
            update dsync.changes as c
            set before = dsync.blank(c.before), after = dsync.blank(c.after)
            where c.entity = 'user' and c.entity_id = $1
                and c.change_id > coalesce((select change_id from older), -9223372036854775808)
            returning c.change_id
        )
        select (select count(*) from blanked) as "count!", exists (select from older) as "are_older!"
        "#,
        id,
        CHANGES,
    )
    .fetch_one(connection)
    .await?;
    Ok((row.count.unsigned_abs(), row.are_older))
}

/// Other directory users with one of these email addresses or provider's ids: probably the same person, earlier or later.
/// Only an array is looked up in the index.
pub async fn namesakes(pool: &PgPool, marks: &[String]) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"
        select u.id from dsync.users as u
        where u.email_key = any(array(select lower(m) from unnest($1::text[]) as m)) or u.idp_id = any($1::text[])
        order by u.id
        "#,
        marks,
    )
    .fetch_all(pool)
    .await
}

/// Lets records about the user `id` be applied again. `false` if the user was not erased.
pub async fn undo(pool: &PgPool, id: &str) -> sqlx::Result<bool> {
    let mut transaction = pool.begin().await?;
    super::lock::limit(&mut transaction).await?;
    // No batch is half way: each left its records about this person out, or applies them.
    super::lock::erasures(&mut transaction).await?;
    let undone = sqlx::query!("delete from dsync.erased where user_id = $1", id)
        .execute(&mut *transaction)
        .await?
        .rows_affected()
        == 1;
    if undone {
        super::erased::keep_unread(&mut transaction).await?;
    }
    transaction.commit().await?;
    Ok(undone)
}
