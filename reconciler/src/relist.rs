//! Sweeps that append everything they read, for a rebuild from a log that no longer reaches back to its beginning.
//!
//! What such a sweep reads is appended whether it differs from the tables or not, page by page as it comes: each
//! observation is true by itself, at the time its own page was made. What is missing is judged as in any sweep.

use schema::timestamp::Timestamp;

use crate::difference::Entity;
use crate::reading::{Pair, Reading};
use crate::snapshot::Snapshot;
use crate::work::{Failure, Work};

/// How many memberships are appended together.
const TOGETHER: usize = 500;

/// Appends objects of a list, given by id and JSON text, as they looked at `at`. Returns how many could not be written.
pub(crate) async fn objects(
    work: &Work,
    (entity, directory): (Entity, &str),
    objects: &[(String, String)],
    at: Timestamp,
) -> Result<usize, Failure> {
    let readings = objects
        .iter()
        .map(|(id, object)| Reading::listed(entity, directory, id, object, at));
    work.append_readings(readings.collect()).await
}

/// Appends every membership that was read. Returns how many could not be written.
pub(crate) async fn memberships(
    work: &Work,
    directory: &str,
    organization: Option<&str>,
    snapshot: &Snapshot,
) -> Result<usize, Failure> {
    let read = &snapshot.memberships;
    let mut unwritten = 0;
    let mut readings = Vec::new();
    for (group, members) in read.members() {
        for user in members {
            let Some(at) = read.at(group, user) else { continue };
            let pair = Pair {
                directory,
                organization,
                group,
                user,
            };
            readings.push(Reading::membership(pair, true, at));
            if readings.len() >= TOGETHER {
                unwritten += work.append_readings(std::mem::take(&mut readings)).await?;
            }
        }
    }
    Ok(unwritten + work.append_readings(readings).await?)
}
