//! What must be read outside of sweeps: objects in doubt, which follow from the registers (the view `dsync.checks`),
//! and what a sweep found too young to judge (`dsync.rereads`).

use schema::timestamp::Timestamp;
use sqlx::PgPool;
use time::OffsetDateTime;

/// What to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// A directory.
    Directory,
    /// A user.
    User,
    /// A group.
    Group,
    /// The groups a user is in.
    MembershipsOfUser,
    /// The members of a group.
    MembershipsOfGroup,
}

impl What {
    const EVERY: [Self; 5] = [
        Self::Directory,
        Self::User,
        Self::Group,
        Self::MembershipsOfUser,
        Self::MembershipsOfGroup,
    ];

    /// The name used in the tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::User => "user",
            Self::Group => "group",
            Self::MembershipsOfUser => "memberships_of_user",
            Self::MembershipsOfGroup => "memberships_of_group",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|what| what.as_str() == text)
    }
}

/// What to read, and of which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The directory it is in.
    pub directory: String,
    /// What to read.
    pub what: What,
    /// The object's id.
    pub id: String,
}

/// An object in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What to read.
    pub target: Target,
    /// A reading that speaks for this time or later settles it.
    pub settled_at: Timestamp,
}

/// Objects in doubt about which a reading that speaks for `at` could say something. At most a thousand, taken from the
/// directories in turn, so that many of one do not hide those of another.
pub async fn in_doubt(pool: &PgPool, at: OffsetDateTime) -> sqlx::Result<Vec<Check>> {
    let mut transaction = pool.begin().await?;
    // The planner cannot know how few rows are in doubt, and would read whole tables, every second.
    sqlx::query!("set local enable_seqscan = off")
        .execute(&mut *transaction)
        .await?;
    let rows = sqlx::query!(
        r#"
        select
            target as "target!", id as "id!", directory_id as "directory_id!",
            -- Set by hand, it may be later than we can hold, which must not keep all others from being read.
            least(settled_at, '9999-01-01 00:00Z') as "settled_at!"
        from dsync.checks where after < $1
        order by row_number() over (partition by directory_id order by after), after limit 1000
        "#,
        at,
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            Some(Check {
                target: Target {
                    directory: row.directory_id,
                    what: What::parse(&row.target)?,
                    id: row.id,
                },
                settled_at: row.settled_at.into(),
            })
        })
        .collect())
}

/// What is due at `now` to be read again. At most a thousand, taken from the directories in turn. Because this is asked
/// every second, only the 10,000 that were due first are looked at, far more than one directory has.
pub async fn due(pool: &PgPool, now: OffsetDateTime) -> sqlx::Result<Vec<Target>> {
    let rows = sqlx::query!(
        r#"
        select target, id, directory_id
        from (
            select target, id, directory_id, due_at from dsync.rereads
            where due_at <= $1 order by due_at limit 10000
        ) as oldest
        order by row_number() over (partition by directory_id order by due_at), due_at limit 1000
        "#,
        now,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            Some(Target {
                directory: row.directory_id,
                what: What::parse(&row.target)?,
                id: row.id,
            })
        })
        .collect())
}

/// Has these read again, each when it is due. If one is there already, the later time counts.
pub async fn again(pool: &PgPool, targets: &[(Target, OffsetDateTime)]) -> sqlx::Result<()> {
    let whats: Vec<&str> = targets.iter().map(|(target, _)| target.what.as_str()).collect();
    let ids: Vec<&str> = targets.iter().map(|(target, _)| target.id.as_str()).collect();
    let directories: Vec<&str> = targets
        .iter()
        .map(|(target, _)| target.directory.as_str())
        .collect();
    let due: Vec<OffsetDateTime> = targets.iter().map(|(_, due)| *due).collect();
    sqlx::query!(
        r#"
        insert into dsync.rereads as r (target, id, directory_id, due_at)
        select target, id, directory_id, max(due_at)
        from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) as x (target, id, directory_id, due_at)
        group by target, id, directory_id
        order by target, id
        on conflict (target, id) do update set due_at = greatest(r.due_at, excluded.due_at)
        "#,
        &whats as &[&str],
        &ids as &[&str],
        &directories as &[&str],
        &due,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Records that a target was read: it is no longer due, unless it was put off meanwhile to a time after `now`.
pub async fn done(pool: &PgPool, target: &Target, now: OffsetDateTime) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from dsync.rereads where target = $1 and id = $2 and due_at <= $3",
        target.what.as_str(),
        target.id,
        now,
    )
    .execute(pool)
    .await?;
    Ok(())
}
