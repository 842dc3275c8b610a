//! Leaves a broker that is connected but does not serve the log, if its cluster has others.
//!
//! A broker that a network split has cut off from the rest of its cluster keeps its clients. It answers their pings, and
//! some requests from what it last knew, but stores nothing for them. Waiting there for the split to end would mean
//! refusing everything while most of the cluster works. So appends are watched separately, whatever else is answered.
//!
//! A broker that says nothing at all, not even to pings, is none of our business: the client gives it up by itself. It
//! must not be told to leave that one, because leaving waits, without limit, until everything unsent has been taken by a
//! peer that may take nothing any more, and while the client waits for that, it gives up nobody.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{ReconnectToServer, Server};

use crate::connection::Journal;
use crate::error::Unavailable;

/// How long everything must have gone unanswered. Longer than an election takes, and than two requests may take.
const LEAVES_AFTER: Duration = Duration::from_secs(7);

/// How long the broker may need to take what has been written to it before it is left.
const TAKES_WITHIN: Duration = Duration::from_secs(1);

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
pub(crate) struct Silence(Mutex<Option<Began>>);

/// How a silence began.
#[derive(Debug, Clone, Copy)]
struct Began {
    at: Instant,
    on: Line,
}

/// The connection as it is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    /// The number of connections made so far.
    connections: u64,
    /// How many bytes have arrived, over all connections.
    heard: u64,
}

impl Silence {
    /// Records that something was answered.
    fn broken(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Records that a request made at `asked` was not answered. Returns whether the silence has lasted too long although
    /// the broker sends something, and if so, starts it over.
    fn lasts(&self, asked: Instant, line: Line) -> bool {
        let mut began = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *began {
            Some(since) if since.on.connections == line.connections => since,
            // Another broker, perhaps: it has just as long.
            Some(_) => Began {
                at: Instant::now(),
                on: line,
            },
            None => Began { at: asked, on: line },
        };
        let leaves = since.at.elapsed() >= LEAVES_AFTER && since.on.heard != line.heard;
        *began = (!leaves).then_some(since);
        leaves
    }
}

impl Journal {
    /// Records the outcome of a request or an append made at `asked`. Connects to another broker of the cluster if this
    /// one has answered none, or stored none, for too long.
    pub(crate) fn heed(&self, silence: &Silence, asked: Instant, outcome: Result<(), Unavailable>) {
        match outcome {
            Ok(()) => silence.broken(),
            // The client is looking for a broker already.
            Err(Unavailable::Disconnected) => {}
            Err(_) if silence.lasts(asked, self.line()) && self.has_a_choice() => self.leave(),
            Err(_) => {}
        }
    }

    fn line(&self) -> Line {
        Line {
            connections: *self.connections().borrow(),
            heard: self.client.statistics().in_bytes.load(Ordering::Relaxed),
        }
    }

    /// Connects to another broker, unless that is under way. In the background: nobody's answer waits for this.
    fn leave(&self) {
        if self.turns.leaving.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            seconds = LEAVES_AFTER.as_secs(),
            "the log's broker is connected but does not serve the log; trying another one of its cluster"
        );
        let (client, turns) = (self.client.clone(), Arc::clone(&self.turns));
        tokio::spawn(async move {
            // The command to leave waits behind everything unsent. Once the broker has taken that, it is obeyed at once.
            let taken = tokio::time::timeout(TAKES_WITHIN, client.flush()).await;
            let is_taken = matches!(taken, Ok(Ok(())));
            // If the connection was lost meanwhile, the next broker was chosen, and is not to be left.
            let obeys =
                is_taken && turns.leaving.load(Ordering::Relaxed) && client.force_reconnect().await.is_ok();
            if !obeys {
                turns.leaving.store(false, Ordering::Relaxed);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn line(connections: u64, heard: u64) -> Line {
        Line { connections, heard }
    }

    fn long_ago() -> Instant {
        Instant::now()
            .checked_sub(LEAVES_AFTER)
            .expect("this machine has been up for longer")
    }

    #[test]
    fn only_unbroken_silence_is_too_long() {
        let silence = Silence::default();
        assert!(!silence.lasts(Instant::now(), line(1, 0)));
        silence.broken();
        assert!(!silence.lasts(long_ago(), line(1, 0)));
        assert!(silence.lasts(Instant::now(), line(1, 5)));
        // The silence started over.
        assert!(!silence.lasts(Instant::now(), line(1, 9)));
        assert!(!silence.lasts(long_ago(), line(1, 9)));
    }

    #[test]
    fn who_says_nothing_at_all_is_left_to_the_client() {
        let silence = Silence::default();
        for _ in 0..3 {
            assert!(!silence.lasts(long_ago(), line(1, 7)));
        }
        assert!(silence.lasts(long_ago(), line(1, 8)));
    }

    /// What the next broker says when it is connected to is no proof that it, too, serves nothing.
    #[test]
    fn the_next_broker_has_just_as_long() {
        let silence = Silence::default();
        assert!(!silence.lasts(long_ago(), line(1, 7)));
        assert!(!silence.lasts(long_ago(), line(2, 400)));
        assert!(!silence.lasts(long_ago(), line(2, 500)));
    }
}
