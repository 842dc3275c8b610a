//! Memberships as readers see them, and the rows of single ones.

use futures_util::TryStreamExt as _;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::key::ObjectKey;
use crate::plan::RowState;

/// A membership that readers see.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The group.
    pub group_id: String,
    /// The user.
    pub user_id: String,
    /// When it was last seen.
    pub seen_at: OffsetDateTime,
}

impl From<Shown> for ObjectKey {
    fn from(shown: Shown) -> Self {
        Self {
            group_id: shown.group_id,
            user_id: shown.user_id,
        }
    }
}

/// Calls `each` with every membership of a directory that readers see, in no particular order.
pub async fn shown(pool: &PgPool, directory: &str, mut each: impl FnMut(Shown)) -> sqlx::Result<()> {
    let mut rows = sqlx::query_as!(
        Shown,
        r#"
        select group_id as "group_id!", user_id as "user_id!", seen_at as "seen_at!"
        from directory.memberships where directory_id = $1
        "#,
        directory,
    )
    .fetch(pool);
    while let Some(row) = rows.try_next().await? {
        each(row);
    }
    Ok(())
}

/// How many members readers see in each group of a directory.
pub async fn counts(pool: &PgPool, directory: &str) -> sqlx::Result<Vec<(String, usize)>> {
    let rows = sqlx::query!(
        r#"
        select group_id as "group_id!", count(*) as "members!"
        from directory.memberships where directory_id = $1 group by group_id
        "#,
        directory,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.group_id, usize::try_from(row.members).unwrap_or_default()))
        .collect())
}

/// The rows of these memberships (group, user) of a directory, in the same order.
pub async fn rows(pool: &PgPool, directory: &str, pairs: &[(&str, &str)]) -> sqlx::Result<Vec<RowState>> {
    let groups: Vec<&str> = pairs.iter().map(|(group, _)| *group).collect();
    let users: Vec<&str> = pairs.iter().map(|(_, user)| *user).collect();
    let rows = sqlx::query!(
        r#"
        select
            -- Of who is erased there is nothing to show.
            v.group_id is not null
                or exists (select from dsync.erased as e where e.user_id = x.user_id) as "shown!",
            nullif(greatest(m.gone_at, u.gone_at, g.gone_at, d.gone_at), '-infinity') as void_at
        from unnest($1::text[], $2::text[]) with ordinality as x (group_id, user_id, place)
        left join lateral (
            select * from dsync.memberships as m
            where m.group_id = x.group_id and m.user_id = x.user_id limit 1
        ) as m on true
        left join lateral (select * from dsync.users as u where u.id = x.user_id limit 1) as u on true
        left join lateral (select * from dsync.groups as g where g.id = x.group_id limit 1) as g on true
        left join dsync.directories as d on d.id = $3
        left join lateral (
            select * from directory.memberships as v
            where v.group_id = x.group_id and v.user_id = x.user_id limit 1
        ) as v on true
        order by x.place
        "#,
        &groups as &[&str],
        &users as &[&str],
        directory,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| RowState {
            shown: row.shown,
            void_at: row.void_at.map(Into::into),
            version: None,
        })
        .collect())
}

/// A membership of one user or group that was not removed since it was last seen. Readers do not
/// see it if its user or its group was gone after that.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The other side: the group of a user's membership, the user of a group's.
    pub other: String,
    /// Whether readers see it.
    pub shown: bool,
    /// When it was last seen.
    pub seen_at: OffsetDateTime,
}

/// A user's memberships that were not removed.
pub async fn of_user(pool: &PgPool, user: &str) -> sqlx::Result<Vec<Seen>> {
    sqlx::query_as!(
        Seen,
        r#"
        select m.group_id as other, v.group_id is not null as "shown!", m.seen_at
        from dsync.memberships as m
        left join directory.memberships as v on v.group_id = m.group_id and v.user_id = m.user_id
        where m.user_id = $1 and m.seen_at > m.gone_at
        "#,
        user,
    )
    .fetch_all(pool)
    .await
}

/// A group's memberships that were not removed.
pub async fn of_group(pool: &PgPool, group: &str) -> sqlx::Result<Vec<Seen>> {
    sqlx::query_as!(
        Seen,
        r#"
        select m.user_id as other, v.user_id is not null as "shown!", m.seen_at
        from dsync.memberships as m
        left join directory.memberships as v on v.group_id = m.group_id and v.user_id = m.user_id
        where m.group_id = $1 and m.seen_at > m.gone_at
        "#,
        group,
    )
    .fetch_all(pool)
    .await
}
