//! A request's body, read whole: within a size, within a time, and copied only where it came in pieces.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::in_flight::{NoRoom, Slot};

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Larger than the limit; said as soon as it is known, by its announced length or by what came.
    #[error("the body is too large")]
    TooLarge,
    /// It did not arrive in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// The sender broke off, or what came was no HTTP.
    #[error("the body broke off")]
    Broken,
    /// Too many bytes in flight.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// Whether the body is announced as larger than `limit` bytes.
pub fn is_announced_above(limit: usize, body: &Incoming) -> bool {
    body.size_hint().lower() > limit as u64
}

/// Reads `body`, `limit` bytes at most, within `time`. Its bytes are counted in `slot`.
pub async fn read(body: Incoming, limit: usize, time: Duration, slot: &mut Slot) -> Result<Bytes, BodyError> {
    tokio::time::timeout(time, collect(body, limit, slot))
        .await
        .unwrap_or(Err(BodyError::TooSlow))
}

async fn collect(mut body: Incoming, limit: usize, slot: &mut Slot) -> Result<Bytes, BodyError> {
    // Nearly always there is one chunk: the bytes as they came from the socket.
    let (mut only, mut pieces, mut length) = (Bytes::new(), BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        // The other frames are trailers.
        let Ok(chunk) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
            continue;
        };
        length += chunk.len();
        if length > limit {
            return Err(BodyError::TooLarge);
        }
        slot.grow(chunk.len())?;
        if only.is_empty() {
            only = chunk;
            continue;
        }
        // Put together as they come: a list of chunks would take far more than they do, where each is a byte.
        if pieces.is_empty() {
            pieces.extend_from_slice(&only);
        }
        pieces.extend_from_slice(&chunk);
    }
    Ok(if pieces.is_empty() { only } else { pieces.freeze() })
}
