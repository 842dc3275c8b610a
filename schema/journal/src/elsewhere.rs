//! Leaves a broker that is connected but does not answer, if its cluster has others.
//!
//! A broker that a network split has cut off from the rest of its cluster keeps its clients. It answers their pings, and
//! some requests from what it last knew, but stores nothing for them. Waiting there for the split to end would mean
//! refusing everything while most of the cluster works. So appends are watched separately, whatever else is answered.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{ReconnectToServer, Server};

use crate::connection::Journal;
use crate::error::Unavailable;

/// How long everything must have gone unanswered. Longer than an election takes, and than two requests may take.
const LEAVES_AFTER: Duration = Duration::from_secs(7);

/// Which server to connect to when a broker is left: each in turn, so that none is tried again before all others were.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    leaving: AtomicBool,
    turn: AtomicUsize,
}

impl Turns {
    /// The server to connect to now, if a broker is being left; otherwise `None`, and the client chooses.
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
    /// Records that something was answered.
    fn broken(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Records that a request made at `asked` was not answered. Returns whether the silence has lasted too long, and if
    /// so, starts it over.
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
    /// Records the outcome of a request or an append made at `asked`. Connects to another broker of the cluster if this
    /// one has answered none, or stored none, for too long.
    pub(crate) async fn heed(&self, silence: &Silence, asked: Instant, outcome: Result<(), Unavailable>) {
        match outcome {
            Ok(()) => silence.broken(),
            // The client is looking for a broker already.
            Err(Unavailable::Disconnected) => {}
            Err(_) if silence.lasts(asked) && self.has_a_choice() => {
                tracing::warn!(
                    seconds = LEAVES_AFTER.as_secs(),
                    "the log's broker is connected but does not serve the log; trying another one of its cluster"
                );
                self.turns.leaving.store(true, Ordering::Relaxed);
                // This fails only if the client has shut down.
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
        // The silence started over: the next broker has just as long.
        assert!(!silence.lasts(now));
        assert!(!silence.lasts(long_ago));
    }
}
