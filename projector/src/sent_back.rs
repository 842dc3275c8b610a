//! Lanes that `rebuild --undo` sent back. Until they stand where they stood before, the tables know more than the log says
//! up to their positions. Compared with that, they would seem wrong, and a rebuild would bring back people who were
//! removed since.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use journal::Journal;
use sqlx::PgConnection;

use crate::beside::Error;
use crate::holes::EVERYTHING;
use crate::store::swap::{self, SentBack};

/// How often to look where they stand.
const LOOK: Duration = Duration::from_millis(500);
/// How long to wait for lanes that do not move.
const STAND_STILL: Duration = Duration::from_secs(15);

/// Whether there are any that still have something to apply again.
pub async fn are_any(connection: &mut PgConnection, journal: &Journal) -> Result<bool, Error> {
    for lane in swap::sent_back(connection).await? {
        if has_entries(journal, lane).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until there are none any more, for as long as they come forward.
pub async fn wait(connection: &mut PgConnection, journal: &Journal, bar: &ProgressBar) -> Result<(), Error> {
    bar.set_message("waiting for a projector to apply again what came after the undone rebuild");
    let (mut before, mut since) = (Vec::new(), Instant::now());
    while are_any(connection, journal).await? {
        let lanes = swap::sent_back(connection).await?;
        if lanes != before {
            (before, since) = (lanes, Instant::now());
        } else if since.elapsed() > STAND_STILL {
            return Err(Error::NotThereAgain);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Whether the log has entries for this lane up to where it stood. The last of them may have been erased.
async fn has_entries(journal: &Journal, lane: SentBack) -> Result<bool, journal::Error> {
    let subjects = match lane.lane.subjects() {
        [] => &[EVERYTHING],
        subjects => subjects,
    };
    for subject in subjects {
        let next = journal.first_at(lane.seq + 1, subject).await?;
        if next.is_some_and(|next| next.seq <= lane.stood_at) {
            return Ok(true);
        }
    }
    Ok(false)
}
