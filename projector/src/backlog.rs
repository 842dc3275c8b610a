//! Writes the history that was deferred when a large directory or group ended: part by part, beside the lanes.
//!
//! Every projector does this, one at a time. Each part is a transaction of its own that says where it began, so a crash
//! between two parts costs nothing, and no part is written twice.

use std::time::Duration;

use service::postgres::{answered, described};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::store::backlog::{self, Entity, Key, Place, Untold};

/// How often to check whether there is history to write.
const LOOK: Duration = Duration::from_secs(1);
/// Rows listed at once: keys of a few dozen bytes.
const LISTED: usize = 10_000;
/// Rows in a part: about 20 ms during which others wait for the lock under which change ids are drawn.
const PART: usize = 1_000;

/// Writes deferred history until shutdown. Whatever fails is tried again.
pub async fn work(pool: PgPool, shutdown: CancellationToken) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {}
        }
        loop {
            let listed = shutdown
                .run_until_cancelled(write_listed(&pool, LISTED, PART))
                .await;
            match listed {
                None => return,
                Some(Ok(true)) => {}
                Some(Ok(false)) => break,
                Some(Err(error)) => {
                    tracing::warn!(
                        error = %described(&error),
                        "cannot look for, or write, history of deleted directories and groups; retrying"
                    );
                    break;
                }
            }
        }
    }
}

/// Writes all deferred history, or waits until others have.
pub async fn drain(pool: &PgPool) -> sqlx::Result<()> {
    while answered(backlog::count(pool)).await? > 0 {
        if !write_listed(pool, LISTED, PART).await? {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Lists the next `listed` rows of a directory whose history is deferred, and writes it in parts of `part` rows. Deferred
/// history of groups comes first, one part at a time. `false` if there was nothing to write, or somebody else is at it.
pub async fn write_listed(pool: &PgPool, listed: usize, part: usize) -> sqlx::Result<bool> {
    let bound = i64::try_from(part).unwrap_or(i64::MAX);
    if answered(backlog::write_part_of_group(pool, bound)).await? {
        return Ok(true);
    }
    let Some(mut untold) = answered(backlog::oldest(pool)).await? else {
        return Ok(false);
    };
    let limit = i64::try_from(listed).unwrap_or(i64::MAX);
    let rows = answered(backlog::next_rows(pool, &untold, limit)).await?;
    for step in steps(untold.place.entity, &rows, listed, part) {
        if !answered(backlog::write_part(pool, &untold, step.rows, step.next.as_ref())).await? {
            return Ok(false);
        }
        let Some(next) = step.next else {
            tracing::info!(
                directory = untold.directory,
                "wrote the history of a deleted directory"
            );
            break;
        };
        untold = Untold {
            place: next,
            ..untold
        };
    }
    Ok(true)
}

/// A part, and where the backlog stands after it: `None` after the last part.
#[derive(Debug, PartialEq, Eq)]
struct Step<'r> {
    rows: &'r [Key],
    next: Option<Place>,
}

/// Cuts `rows` of an entity into parts. If there are fewer than `listed`, no more of that entity are left, and the last
/// part moves on to the next entity.
fn steps(entity: Entity, rows: &[Key], listed: usize, part: usize) -> Vec<Step<'_>> {
    let at = |after: &Key| Place {
        entity,
        after: after.clone(),
    };
    let mut steps: Vec<Step<'_>> = rows
        .chunks(part)
        .map(|rows| Step {
            rows,
            next: rows.last().map(at),
        })
        .collect();
    if rows.len() < listed {
        let next = entity.next().map(|entity| Place {
            entity,
            after: Key::default(),
        });
        match steps.last_mut() {
            Some(last) => last.next = next,
            None => steps.push(Step { rows, next }),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(range: std::ops::Range<usize>) -> Vec<Key> {
        let id = |number| Key {
            id: format!("user_{number}"),
            ..Key::default()
        };
        range.map(id).collect()
    }

    fn shape(entity: Entity, count: usize) -> Vec<(usize, Option<(Entity, String)>)> {
        let rows = keys(0..count);
        let place = |next: Place| (next.entity, next.after.id);
        steps(entity, &rows, 6, 2)
            .into_iter()
            .map(|step| (step.rows.len(), step.next.map(place)))
            .collect()
    }

    #[test]
    fn a_full_list_stops_at_its_last_row() {
        let at = |id: &str| Some((Entity::User, id.to_owned()));
        assert_eq!(
            shape(Entity::User, 6),
            [(2, at("user_1")), (2, at("user_3")), (2, at("user_5"))]
        );
    }

    #[test]
    fn a_list_that_is_not_full_goes_on_to_what_comes_next() {
        let next = |entity| Some((entity, String::new()));
        assert_eq!(
            shape(Entity::User, 3),
            [
                (2, Some((Entity::User, "user_1".to_owned()))),
                (1, next(Entity::Group))
            ]
        );
        assert_eq!(shape(Entity::User, 0), [(0, next(Entity::Group))]);
        assert_eq!(shape(Entity::Group, 2), [(2, next(Entity::Membership))]);
        assert_eq!(shape(Entity::Membership, 1), [(1, None)]);
        assert_eq!(shape(Entity::Membership, 0), [(0, None)]);
    }
}
