//! The projection in Postgres: the only place that writes it.
//!
//! A picture (what a batch knows, folded) is written with one statement a table, inside the caller's transaction. The
//! statements keep the greater of every register, so that writing twice, late or in another order changes nothing.
//! Nothing is read, compared here and written back: the comparison is in the statement.

pub mod activity;
mod columns;
pub mod dead_letters;
mod directories;
mod groups;
mod lock;
mod memberships;
mod organization;
pub mod progress;
mod users;
mod written;

use std::collections::BTreeSet;

use schema::ids::DirectoryId;
use schema::picture::Picture;
use sqlx::PgConnection;

pub use written::Effects;

/// Writes `picture` and answers which events had an effect.
///
/// `connection` must be in a transaction. It is left holding the locks of the directories touched, so that writes
/// within one directory are serial: exact history needs that, the registers do not.
pub async fn write(connection: &mut PgConnection, picture: &Picture<'_>) -> sqlx::Result<Effects> {
    lock::directories(connection, &touched(picture)).await?;
    let mut effects = Effects::default();
    let before = organization::of(connection, picture.directories.keys()).await?;
    let directories = directories::write(connection, picture.directories.iter()).await?;
    organization::spread(connection, &before, &directories).await?;
    for row in directories {
        effects.add([row.version_event, row.seen_event, row.gone_event]);
    }
    effects.add_rows(users::write(connection, picture.users.iter()).await?);
    effects.add_rows(groups::write(connection, picture.groups.iter()).await?);
    for row in memberships::write(connection, picture.memberships.iter()).await? {
        effects.add([row.seen_event, row.gone_event]);
    }
    Ok(effects)
}

/// The directories a picture says something of or in.
fn touched<'p, 'a>(picture: &'p Picture<'a>) -> BTreeSet<&'p DirectoryId<'a>> {
    let directories = picture.directories.keys();
    let users = picture.users.values().map(|row| &row.directory);
    let groups = picture.groups.values().map(|row| &row.directory);
    let memberships = picture.memberships.values().map(|row| &row.directory);
    directories
        .chain(users)
        .chain(groups)
        .chain(memberships)
        .collect()
}
