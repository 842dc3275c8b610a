//! Deletions that the guard holds back, until someone approves them or a later pass no longer finds them.

use sqlx::PgPool;

use crate::difference::Entity;
use crate::key::ObjectKey;

/// Replaces what was held of this kind in this directory by `held`. Deletions that were held already keep their time.
pub async fn replace(pool: &PgPool, directory: &str, entity: Entity, held: &[ObjectKey]) -> sqlx::Result<()> {
    let groups: Vec<&str> = held.iter().map(|held| held.group_id.as_str()).collect();
    let users: Vec<&str> = held.iter().map(|held| held.user_id.as_str()).collect();
    let mut transaction = pool.begin().await?;
    // The planner cannot know that very many may be held, and would compare each with each.
    sqlx::query!("set local enable_nestloop = off")
        .execute(&mut *transaction)
        .await?;
    sqlx::query!(
        r#"
        with these as (
            select group_id, user_id from unnest($3::text[], $4::text[]) as x (group_id, user_id)
        ), no_longer as (
            delete from dsync.held_deletions as h
            where h.directory_id = $1 and h.entity = $2
                and not exists (
                    select from these as t where t.group_id = h.group_id and t.user_id = h.user_id
                )
        )
        insert into dsync.held_deletions (directory_id, entity, group_id, user_id)
        select $1, $2, group_id, user_id from these
        order by group_id, user_id
        on conflict do nothing
        "#,
        directory,
        entity.as_str(),
        &groups as &[&str],
        &users as &[&str],
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

/// What is held of this kind in this directory.
pub async fn of(pool: &PgPool, directory: &str, entity: Entity) -> sqlx::Result<Vec<ObjectKey>> {
    sqlx::query_as!(
        ObjectKey,
        r#"
        select group_id, user_id from dsync.held_deletions
        where directory_id = $1 and entity = $2
        order by group_id, user_id
        "#,
        directory,
        entity.as_str(),
    )
    .fetch_all(pool)
    .await
}

/// Whether the deletion of this object is held. For a directory's own deletion, `key` is that of the directory.
pub async fn is_held(pool: &PgPool, directory: &str, entity: Entity, key: &ObjectKey) -> sqlx::Result<bool> {
    // In the table, a directory's own deletion names nothing but the directory.
    let user = if entity == Entity::Directory {
        ""
    } else {
        key.user_id.as_str()
    };
    let held = sqlx::query_scalar!(
        r#"
        select exists (
            select from dsync.held_deletions
            where directory_id = $1 and entity = $2 and group_id = $3 and user_id = $4
        ) as "held!"
        "#,
        directory,
        entity.as_str(),
        key.group_id,
        user,
    )
    .fetch_one(pool)
    .await?;
    Ok(held)
}

/// What is held already of what a list of this kind lacks. For the list of directories, `directory` is empty.
pub async fn already(pool: &PgPool, directory: &str, entity: Entity) -> sqlx::Result<Vec<ObjectKey>> {
    if entity != Entity::Directory {
        return of(pool, directory, entity).await;
    }
    // In the table, a directory's own deletion names nothing but the directory.
    sqlx::query_as!(
        ObjectKey,
        r#"
        select group_id, directory_id as user_id from dsync.held_deletions
        where entity = 'directory'
        order by directory_id
        "#,
    )
    .fetch_all(pool)
    .await
}

/// Removes these from the held deletions.
pub async fn remove(pool: &PgPool, directory: &str, entity: Entity, held: &[ObjectKey]) -> sqlx::Result<()> {
    let groups: Vec<&str> = held.iter().map(|held| held.group_id.as_str()).collect();
    let users: Vec<&str> = held.iter().map(|held| held.user_id.as_str()).collect();
    sqlx::query!(
        r#"
        delete from dsync.held_deletions
        where directory_id = $1 and entity = $2
            and (group_id, user_id) in (select * from unnest($3::text[], $4::text[]))
        "#,
        directory,
        entity.as_str(),
        &groups as &[&str],
        &users as &[&str],
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Removes all held deletions of a directory.
pub async fn clear(pool: &PgPool, directory: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from dsync.held_deletions where directory_id = $1",
        directory
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Holds the deletions of these directories themselves, and no longer those of any others. Not of one that ended
/// meanwhile, because its deletion was approved, or an event reported it.
pub async fn replace_directories(pool: &PgPool, directories: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        with no_longer as (
            delete from dsync.held_deletions
            where entity = 'directory' and directory_id <> all($1)
        )
        insert into dsync.held_deletions (directory_id, entity)
        select x.id, 'directory' from unnest($1::text[]) as x (id)
        -- One of which the tables have only users or groups has no row.
        where not exists (select from dsync.directories as d where d.id = x.id and d.seen_at <= d.gone_at)
        order by x.id
        on conflict do nothing
        "#,
        directories,
    )
    .execute(pool)
    .await?;
    Ok(())
}
