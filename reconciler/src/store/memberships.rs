//! Memberships as readers see them, and what is known of single ones.

use futures_util::TryStreamExt as _;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::plan::Known;
use crate::store::held::Held;

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

impl Shown {
    /// What is known of it.
    pub fn known(&self) -> Known {
        Known {
            shown: true,
            seen_at: Some(self.seen_at.into()),
            ..Known::default()
        }
    }
}

impl From<Shown> for Held {
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

/// What is known of these memberships (group, user) of a directory, in the same order.
pub async fn known(pool: &PgPool, directory: &str, pairs: &[(&str, &str)]) -> sqlx::Result<Vec<Known>> {
    let groups: Vec<&str> = pairs.iter().map(|(group, _)| *group).collect();
    let users: Vec<&str> = pairs.iter().map(|(_, user)| *user).collect();
    let rows = sqlx::query!(
        r#"
        select
            -- Of who is erased there is nothing to show.
            v.group_id is not null
                or exists (select from dsync.erased as e where e.user_id = x.user_id) as "shown!",
            nullif(m.seen_at, '-infinity') as seen_at,
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
        .map(|row| Known {
            shown: row.shown,
            seen_at: row.seen_at.map(Into::into),
            void_at: row.void_at.map(Into::into),
            version: None,
        })
        .collect())
}

/// What is known of a user's memberships: those that readers see, and those in doubt because the user, or the group,
/// was gone after they were last seen.
pub async fn of_user(pool: &PgPool, user: &str) -> sqlx::Result<Vec<(String, Known)>> {
    let rows = sqlx::query!(
        r#"
        select
            m.group_id, v.group_id is not null as "shown!", m.seen_at,
            nullif(greatest(m.gone_at, u.gone_at, g.gone_at), '-infinity') as void_at
        from dsync.memberships as m
        left join dsync.users as u on u.id = m.user_id
        left join dsync.groups as g on g.id = m.group_id
        left join directory.memberships as v on v.group_id = m.group_id and v.user_id = m.user_id
        where m.user_id = $1 and m.seen_at > m.gone_at
        "#,
        user,
    )
    .fetch_all(pool)
    .await?;
    let known = rows.into_iter().map(|row| {
        let known = Known {
            shown: row.shown,
            seen_at: Some(row.seen_at.into()),
            void_at: row.void_at.map(Into::into),
            version: None,
        };
        (row.group_id, known)
    });
    Ok(known.collect())
}

/// The same for a group's memberships, by user.
pub async fn of_group(pool: &PgPool, group: &str) -> sqlx::Result<Vec<(String, Known)>> {
    let rows = sqlx::query!(
        r#"
        select
            m.user_id, v.user_id is not null as "shown!", m.seen_at,
            nullif(greatest(m.gone_at, u.gone_at, g.gone_at), '-infinity') as void_at
        from dsync.memberships as m
        left join dsync.users as u on u.id = m.user_id
        left join dsync.groups as g on g.id = m.group_id
        left join directory.memberships as v on v.group_id = m.group_id and v.user_id = m.user_id
        where m.group_id = $1 and m.seen_at > m.gone_at
        "#,
        group,
    )
    .fetch_all(pool)
    .await?;
    let known = rows.into_iter().map(|row| {
        let known = Known {
            shown: row.shown,
            seen_at: Some(row.seen_at.into()),
            void_at: row.void_at.map(Into::into),
            version: None,
        };
        (row.user_id, known)
    });
    Ok(known.collect())
}
