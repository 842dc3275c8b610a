//! The history backlog: history still to be written about what large directories and groups took along when they ended.
//!
//! The end itself is one row, and takes effect when that commits: what it takes along is hidden from then on. The changes
//! that record this follow in parts, so that nobody waits long for the lock under which change ids are drawn. See
//! `migrations/V15__history_backlog.sql`, and V19 for groups, for why rows that change meanwhile do not matter.

use std::collections::HashSet;

use schema::picture::Picture;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

/// What kind of rows a part consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entity {
    /// Users, which come first.
    User,
    /// Groups.
    Group,
    /// Memberships, which come last.
    Membership,
}

impl Entity {
    /// Its name in `dsync.history_backlog`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
            Self::Membership => "membership",
        }
    }

    /// The kind that comes next.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::User => Some(Self::Group),
            Self::Group => Some(Self::Membership),
            Self::Membership => None,
        }
    }
}

/// The key of a row: its id or, for a membership, the ids of the group and the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key {
    /// The object's id; for a membership, the group's.
    pub id: String,
    /// For a membership, the user's id.
    pub user: String,
}

/// How far a directory's backlog has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What is being written.
    pub entity: Entity,
    /// The last row of that kind that has been written; the empty key before the first.
    pub after: Key,
}

/// A directory whose history is still to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untold {
    /// The directory.
    pub directory: String,
    /// When it ended, according to history. It may have come back and ended again since.
    pub ended_at: OffsetDateTime,
    /// How far its history has been written.
    pub place: Place,
}

/// Of the directories whose history is still to be written, the one that ended first.
pub async fn oldest(pool: &PgPool) -> sqlx::Result<Option<Untold>> {
    let found = sqlx::query!(
        "select directory_id, recorded_at, entity, after_id, after_user_id from dsync.history_backlog
         order by recorded_at, directory_id limit 1",
    )
    .fetch_optional(pool)
    .await?;
    Ok(found.map(|row| Untold {
        directory: row.directory_id,
        ended_at: row.recorded_at,
        place: Place {
            entity: match row.entity.as_str() {
                "user" => Entity::User,
                "group" => Entity::Group,
                _ => Entity::Membership,
            },
            after: Key {
                id: row.after_id,
                user: row.after_user_id,
            },
        },
    }))
}

/// How many directories and groups have history that is still to be written.
pub async fn count(connection: impl sqlx::PgExecutor<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"
        select (select count(*) from dsync.history_backlog) + (select count(*) from dsync.group_history_backlog)
            as "count!"
        "#
    )
    .fetch_one(connection)
    .await
}

/// The next rows in the order in which they are written: `limit` of them, or fewer if no more of that entity follow. Which
/// of them have any history to write is decided when it is written.
pub async fn next_rows(pool: &PgPool, untold: &Untold, limit: i64) -> sqlx::Result<Vec<Key>> {
    let Untold { directory, place, .. } = untold;
    let only_ids = |ids: Vec<String>| ids.into_iter().map(|id| Key { id, ..Key::default() }).collect();
    match place.entity {
        Entity::User => sqlx::query_scalar!(
            "select id from dsync.users where directory_id = $1 and id > $2 order by id limit $3",
            directory,
            place.after.id,
            limit,
        )
        .fetch_all(pool)
        .await
        .map(only_ids),
        Entity::Group => sqlx::query_scalar!(
            "select id from dsync.groups where directory_id = $1 and id > $2 order by id limit $3",
            directory,
            place.after.id,
            limit,
        )
        .fetch_all(pool)
        .await
        .map(only_ids),
        // Group by group, in the order of the primary key, so that a large directory is not sorted whole for each part.
        Entity::Membership => {
            sqlx::query_as!(
                Key,
                r#"
                select m.group_id as "id!", m.user_id as "user!"
                from (
                    select g.id from dsync.groups as g where g.directory_id = $1 and g.id >= $2
                    -- One of these may be in another directory by now.
                    union select e.id from dsync.history_told_early as e
                    where e.directory_id = $1 and e.entity = 'group' and e.id >= $2
                    order by id
                ) as g
                cross join lateral (
                    select m.group_id, m.user_id from dsync.memberships as m
                    where m.group_id = g.id and m.directory_id = $1
                        and m.user_id > case when g.id = $2 then $3 else '' end
                    order by m.user_id limit $4
                ) as m
                order by g.id, m.user_id limit $4
                "#,
                directory,
                place.after.id,
                place.after.user,
                limit,
            )
            .fetch_all(pool)
            .await
        }
    }
}

/// Writes the history of `rows`, which follow the place of `untold`. The backlog then stands at `next`; if there is none,
/// the directory is done. `false` if the backlog stands elsewhere or belongs to another end of the directory, or if somebody
/// else is writing a part.
pub async fn write_part(
    pool: &PgPool,
    untold: &Untold,
    rows: &[Key],
    next: Option<&Place>,
) -> sqlx::Result<bool> {
    let Untold {
        directory,
        ended_at,
        place,
    } = untold;
    let ids: Vec<&str> = rows.iter().map(|key| key.id.as_str()).collect();
    let users: Vec<&str> = rows.iter().map(|key| key.user.as_str()).collect();
    sqlx::query_scalar!(
        r#"
        select dsync.write_history_part($1, $2, $3, $4, $5, $6::text[], $7::text[], $8, $9, $10) as "written!"
        "#,
        directory,
        ended_at,
        place.entity.as_str(),
        place.after.id,
        place.after.user,
        &ids as &[&str],
        &users as &[&str],
        next.map(|next| next.entity.as_str()),
        next.map(|next| next.after.id.as_str()),
        next.map(|next| next.after.user.as_str()),
    )
    .fetch_one(pool)
    .await
}

/// Writes the history of the next `part` rows that the group that ended first took along. `false` if there was nothing to
/// write, or somebody else is writing a part.
pub async fn write_part_of_group(pool: &PgPool, part: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select dsync.write_group_history_part($1) as "written!""#, part)
        .fetch_one(pool)
        .await
}

/// Writes the whole backlog at once.
pub(super) async fn write_all(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        select dsync.write_backlog(directory_id) as "written: ()"
        from (select directory_id from dsync.history_backlog order by directory_id) as b
        union all
        select dsync.write_group_backlog(group_id)
        from (select group_id from dsync.group_history_backlog order by group_id) as b
        "#
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// What a transaction is about to change: people and groups, each with the directory in which they, or a membership of
/// theirs, are about to be written; and memberships.
#[derive(Debug, Default)]
pub(super) struct Meant<'p> {
    people: Vec<&'p str>,
    people_in: Vec<&'p str>,
    groups: Vec<&'p str>,
    groups_in: Vec<&'p str>,
    of_groups: Vec<&'p str>,
    of_users: Vec<&'p str>,
}

impl<'p> Meant<'p> {
    /// Everything in `picture`.
    pub(super) fn by(picture: &'p Picture<'_>) -> Self {
        let users = picture.users.iter().map(|(user, row)| (user, &row.directory));
        let members = picture
            .memberships
            .iter()
            .map(|((_, user), row)| (user, &row.directory));
        let people: HashSet<(&str, &str)> = users
            .chain(members)
            .map(|(user, directory)| (user.as_str(), directory.as_str()))
            .collect();
        let (people, people_in) = people.into_iter().unzip();
        let (groups, groups_in) = picture
            .groups
            .iter()
            .map(|(group, row)| (group.as_str(), row.directory.as_str()))
            .unzip();
        let (of_groups, of_users) = picture
            .memberships
            .keys()
            .map(|(group, user)| (group.as_str(), user.as_str()))
            .unzip();
        Self {
            people,
            people_in,
            groups,
            groups_in,
            of_groups,
            of_users,
        }
    }

    /// One person, in whatever directory they are.
    pub(super) fn person(id: &'p str) -> Self {
        Self {
            people: vec![id],
            people_in: vec![""],
            ..Self::default()
        }
    }
}

/// Writes the outstanding history of everything `meant` before it changes: people with their memberships, groups, and
/// memberships.
pub(super) async fn write_early(connection: &mut PgConnection, meant: &Meant<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        select dsync.write_history_early($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
            as "written: ()"
        "#,
        &meant.people as &[&str],
        &meant.people_in as &[&str],
        &meant.groups as &[&str],
        &meant.groups_in as &[&str],
        &meant.of_groups as &[&str],
        &meant.of_users as &[&str],
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
