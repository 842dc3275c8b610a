//! Leaving a broker that is connected and does not answer, where the cluster has others.
//!
//! One that a network split has cut off from the rest of its cluster keeps its clients: it answers their pings and stores
//! nothing for them. To wait there for the split to end would be to refuse everything while most of the cluster works.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::Journal;
use crate::error::Unavailable;

/// For so long everything must have gone unanswered. Longer than an election takes, and than two requests may.
const LEAVES_AFTER: Duration = Duration::from_secs(7);

/// Since when nothing has been answered.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<Option<Instant>>);

impl Silence {
    /// Something was answered.
    fn broken(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Something asked at `asked` was not; whether that has been so for too long. Then it begins anew.
    fn lasts(&self, asked: Instant) -> bool {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let began = *since.get_or_insert(asked);
        let too_long = began.elapsed() >= LEAVES_AFTER;
        if too_long {
            *since = None;
        }
        too_long
    }
}

impl Journal {
    /// Takes note of what became of a question asked at `asked`: connects to another broker of the cluster when this one
    /// has not answered anything for long.
    pub(crate) async fn heed(&self, asked: Instant, outcome: Result<(), Unavailable>) {
        match outcome {
            Ok(()) => self.silence.broken(),
            // The client is looking for a broker already.
            Err(Unavailable::Disconnected) => {}
            Err(_) if self.silence.lasts(asked) && self.has_a_choice() => {
                tracing::warn!(
                    seconds = LEAVES_AFTER.as_secs(),
                    "the log's broker is connected and answers nothing; trying another of its cluster"
                );
                // It fails only when the client has ended.
                let _ = self.client.force_reconnect().await;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unbroken_silence_is_too_long() {
        let (silence, now) = (Silence::default(), Instant::now());
        let Some(long_ago) = now.checked_sub(LEAVES_AFTER) else {
            return;
        };
        assert!(!silence.lasts(now));
        silence.broken();
        assert!(silence.lasts(long_ago));
        // It began anew: the next broker has as long.
        assert!(!silence.lasts(now));
        assert!(!silence.lasts(long_ago));
    }
}
