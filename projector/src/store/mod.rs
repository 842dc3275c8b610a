//! The projection in Postgres. Nothing else writes it.
//!
//! A picture (what a batch says, folded) is written with one statement per table, in the caller's transaction. The
//! statements keep the greater of every register, so writing twice, late or in another order changes nothing. Rows are
//! never read, compared here and written back: the comparison is in the statement.

pub mod backlog;
mod blanking;
mod columns;
pub mod dead_letters;
pub mod differing;
mod directories;
pub mod erase;
pub mod erased;
mod groups;
mod lock;
pub mod losses;
mod memberships;
mod organization;
pub mod overview;
pub mod progress;
pub mod roles;
pub mod shadow;
pub mod swap;
pub mod taken;
pub mod upkeep;
mod users;
mod written;

use std::collections::{BTreeSet, HashSet};

use schema::ids::{DirectoryId, GroupId, UserId};
use schema::picture::Picture;
use sqlx::PgConnection;

use backlog::Meant;
pub use written::Effects;

/// Writes `picture`, except what it says about erased people, and returns which events had an effect.
///
/// `connection` must be in a transaction, which from then on holds the locks of the directories touched. So writes within
/// one directory are serialized: exact history needs that, the registers do not.
pub async fn write(connection: &mut PgConnection, picture: &Picture<'_>) -> sqlx::Result<Effects> {
    let lock::Entered { erased, has_backlog } = lock::enter(
        connection,
        &touched(picture),
        &people(picture),
        &groups_of(picture),
    )
    .await?;
    if has_backlog {
        backlog::write_early(connection, &Meant::by(picture)).await?;
    }
    let mut effects = write_directories(connection, picture).await?;
    // A directory may have ended in this very batch.
    if !picture.directories.is_empty() {
        backlog::write_early(connection, &Meant::by(picture)).await?;
    }
    write_objects(connection, picture, &erased, &mut effects).await?;
    // A group may have ended in this batch, too; its memberships are not written yet.
    if !picture.memberships.is_empty() && picture.groups.values().any(|row| row.gone.is_some()) {
        backlog::write_early(connection, &Meant::by(picture)).await?;
    }
    write_memberships(connection, picture, erased, &mut effects).await?;
    Ok(effects)
}

/// Like [`write`], but into the temporary tables that [`shadow::create`] made: no locks, no history.
pub async fn write_beside(connection: &mut PgConnection, picture: &Picture<'_>) -> sqlx::Result<Effects> {
    lock::beside(connection).await?;
    let erased = erased::among(connection, &people(picture)).await?;
    let mut effects = write_directories(connection, picture).await?;
    write_objects(connection, picture, &erased, &mut effects).await?;
    write_memberships(connection, picture, erased, &mut effects).await?;
    Ok(effects)
}

async fn write_directories(connection: &mut PgConnection, picture: &Picture<'_>) -> sqlx::Result<Effects> {
    let mut effects = Effects::default();
    let before = organization::of(connection, picture.directories.keys()).await?;
    let directories = directories::write(connection, picture.directories.iter()).await?;
    organization::spread(connection, &before, &directories).await?;
    for row in directories {
        effects.add([row.version_event, row.seen_event, row.gone_event]);
    }
    Ok(effects)
}

async fn write_objects(
    connection: &mut PgConnection,
    picture: &Picture<'_>,
    erased: &HashSet<String>,
    effects: &mut Effects,
) -> sqlx::Result<()> {
    let users = picture
        .users
        .iter()
        .filter(|(id, _)| !erased.contains(id.as_str()));
    effects.add_rows(users::write(connection, users).await?);
    effects.add_rows(groups::write(connection, picture.groups.iter()).await?);
    Ok(())
}

async fn write_memberships(
    connection: &mut PgConnection,
    picture: &Picture<'_>,
    erased: HashSet<String>,
    effects: &mut Effects,
) -> sqlx::Result<()> {
    let memberships = picture
        .memberships
        .iter()
        .filter(|((_, user), _)| !erased.contains(user.as_str()));
    for row in memberships::write(connection, memberships).await? {
        effects.add([row.seen_event, row.gone_event]);
    }
    effects.erased = erased;
    Ok(())
}

/// Takes the locks that writing `picture` takes. For writing in parts: locks must always be taken in the same order, and
/// before the one that history takes with the first change.
pub async fn lock(connection: &mut PgConnection, picture: &Picture<'_>) -> sqlx::Result<()> {
    lock::enter(
        connection,
        &touched(picture),
        &people(picture),
        &groups_of(picture),
    )
    .await
    .map(drop)
}

/// The directories of everything in a picture, each once.
fn touched<'p>(picture: &'p Picture<'_>) -> Vec<&'p str> {
    let directories = picture.directories.keys();
    let users = picture.users.values().map(|row| &row.directory);
    let groups = picture.groups.values().map(|row| &row.directory);
    let memberships = picture.memberships.values().map(|row| &row.directory);
    let all: BTreeSet<&DirectoryId<'_>> = directories
        .chain(users)
        .chain(groups)
        .chain(memberships)
        .collect();
    all.into_iter().map(DirectoryId::as_str).collect()
}

/// The people in a picture, each once.
fn people<'p>(picture: &'p Picture<'_>) -> Vec<&'p str> {
    let members = picture.memberships.keys().map(|(_, user)| user);
    let people: HashSet<&UserId<'_>> = picture.users.keys().chain(members).collect();
    people.into_iter().map(UserId::as_str).collect()
}

/// The groups in a picture, including those of its memberships, each once.
fn groups_of<'p>(picture: &'p Picture<'_>) -> Vec<&'p str> {
    let joined = picture.memberships.keys().map(|(group, _)| group);
    let groups: HashSet<&GroupId<'_>> = picture.groups.keys().chain(joined).collect();
    groups.into_iter().map(GroupId::as_str).collect()
}

/// A sequence as Postgres stores it. No stream reaches the ones that do not fit.
fn seq(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// Sequences as Postgres stores them.
fn seqs(all: &[u64]) -> Vec<i64> {
    all.iter().copied().map(seq).collect()
}
