//! Reads a request's whole body, within a size and a time limit. It is copied only if it arrives in several chunks.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::in_flight::{NoRoom, Slot};

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Larger than the limit. Reported as soon as it is known, from the announced length or from the bytes received.
    #[error("the body is too large")]
    TooLarge,
    /// It did not arrive in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// It had been arriving for so long that a newer one was given its room.
    #[error("the body was cut off to make room for others")]
    CutOff,
    /// The sender broke off, or what it sent was not valid HTTP.
    #[error("the body ended early")]
    Broken,
    /// Too many bytes in flight.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// Whether the announced length of the body exceeds `limit` bytes.
pub fn is_announced_above(limit: usize, body: &Incoming) -> bool {
    body.size_hint().lower() > limit as u64
}

/// Reads `body`, at most `limit` bytes, within `time`. Its bytes are counted in `slot`, as long as there is a copy of
/// them.
pub async fn read(body: Incoming, limit: usize, time: Duration, slot: &mut Slot) -> Result<Bytes, BodyError> {
    let cut_off = slot.cut_off();
    let body = tokio::select! {
        // Nearly always, all of it has arrived with the head: then there is nothing to wait for.
        biased;
        body = collect(body, limit, slot) => body?,
        () = cut_off.cancelled() => return Err(BodyError::CutOff),
        () = tokio::time::sleep(time) => return Err(BodyError::TooSlow),
    };
    Ok(slot.arrived(body))
}

async fn collect(mut body: Incoming, limit: usize, slot: &mut Slot) -> Result<Bytes, BodyError> {
    // There is nearly always just one chunk: the bytes as they came from the socket.
    let (mut only, mut pieces, mut length) = (Bytes::new(), BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        // Frames that are not data are trailers.
        let Ok(chunk) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
            continue;
        };
        length += chunk.len();
        if length > limit {
            return Err(BodyError::TooLarge);
        }
        slot.grow(chunk.len()).await?;
        if only.is_empty() {
            only = chunk;
            continue;
        }
        // Joined as they arrive: with chunks of one byte, a list of them would take far more memory than the bytes.
        if pieces.is_empty() {
            pieces.extend_from_slice(&only);
        }
        pieces.extend_from_slice(&chunk);
    }
    Ok(if pieces.is_empty() { only } else { pieces.freeze() })
}
