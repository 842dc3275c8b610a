//! History that is still to be written: of what large directories and groups took along when they ended.
//!
//! The end itself is one row, and in force with its commit. What it takes along is hidden from then on; the changes that
//! say so follow in parts, so that nobody waits long for the lock under which changes are numbered. See
//! `migrations/V15__history_backlog.sql`, and of groups V19, for why rows that are changed meanwhile do not matter.

use std::collections::HashSet;

use schema::picture::Picture;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

/// What a part is of.
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
    /// As it stands in `dsync.history_backlog`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
            Self::Membership => "membership",
        }
    }

    /// What comes after it.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::User => Some(Self::Group),
            Self::Group => Some(Self::Membership),
            Self::Membership => None,
        }
    }
}

/// The key of a row: its id; of a membership, the group's and the user's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key {
    /// The object's id; of a membership, the group's.
    pub id: String,
    /// Of a membership, the user's id.
    pub user: String,
}

/// How far a directory's backlog is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What is being written.
    pub entity: Entity,
    /// The last row of it that is written; before the first, the empty key.
    pub after: Key,
}

/// A directory whose history is still to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untold {
    /// The directory.
    pub directory: String,
    /// When it ended, as history has it. It may have come back and ended again since.
    pub ended_at: OffsetDateTime,
    /// How far it is written.
    pub place: Place,
}

/// The directory that ended first of those whose history is still to be written.
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

/// How many directories and groups there are whose history is still to be written.
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

/// The next rows in the order in which they are written, `limit` at most: fewer only where no more of that entity follow.
/// Which of them have something to be told is decided when it is written.
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
        // Group by group, in the order of the primary key: all of a large directory need not be sorted for each part.
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

/// Writes the history of `rows`, which follow upon where `untold` stands; from then on it stands at `next`, or is done.
/// `false`: it stands elsewhere, or is that of another end, or somebody else writes a part now.
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

/// Writes the next `part` rows of what a group took along, of the one that ended first. `false`: there was nothing to be
/// written, or somebody else writes a part now.
pub async fn write_part_of_group(pool: &PgPool, part: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select dsync.write_group_history_part($1) as "written!""#, part)
        .fetch_one(pool)
        .await
}

/// Writes all that is still to be written, in one go.
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

/// What a transaction is about to change: ids of people and groups, and beside each the directory in which it, or a
/// membership of it, is about to be written; and memberships.
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
    /// Everyone `picture` says something of.
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

    /// One person, wherever they are.
    pub(super) fn person(id: &'p str) -> Self {
        Self {
            people: vec![id],
            people_in: vec![""],
            ..Self::default()
        }
    }
}

/// Writes what is still to be written of those `meant`, and of their memberships, before they change.
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
