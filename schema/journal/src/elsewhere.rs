//! Leaving a broker that is connected and does not answer, where the cluster has others.
//!
//! One that a network split has cut off from the rest of its cluster keeps its clients: it answers their pings, and some
//! questions from what it last knew, and stores nothing for them. To wait there for the split to end would be to refuse
//! everything while most of the cluster works. So appends are watched by themselves, whatever else is answered.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{ReconnectToServer, Server};

use crate::connection::Journal;
use crate::error::Unavailable;

/// For so long everything must have gone unanswered. Longer than an election takes, and than two requests may.
const LEAVES_AFTER: Duration = Duration::from_secs(7);

/// Whose turn it is to be connected to, when a broker is left: each in turn, so that none is tried again before all were.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    leaving: AtomicBool,
    turn: AtomicUsize,
}

impl Turns {
    /// The server to connect to now, if one is being left; else whichever the client likes.
    pub(crate) fn choose(&self, mut servers: Vec<Server>) -> Option<ReconnectToServer> {
        if !self.leaving.swap(false, Ordering::Relaxed) {
            return None;
        }
        servers.sort_by(|a, b| a.addr.as_url_str().cmp(b.addr.as_url_str()));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let next = servers.get(turn.checked_rem(servers.len())?)?;
        Some(ReconnectToServer {
            addr: next.addr.clone(),
            delay: Some(Duration::ZERO),
        })
    }
}

/// Since when nothing has been answered, or nothing stored.
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
    /// Takes note of what became of a question asked at `asked`, or of an append: connects to another broker of the cluster
    /// when this one has not answered any, or not stored any, for long.
    pub(crate) async fn heed(&self, silence: &Silence, asked: Instant, outcome: Result<(), Unavailable>) {
        match outcome {
            Ok(()) => silence.broken(),
            // The client is looking for a broker already.
            Err(Unavailable::Disconnected) => {}
            Err(_) if silence.lasts(asked) && self.has_a_choice() => {
                tracing::warn!(
                    seconds = LEAVES_AFTER.as_secs(),
                    "the log's broker is connected and answers nothing; trying another of its cluster"
                );
                self.turns.leaving.store(true, Ordering::Relaxed);
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
