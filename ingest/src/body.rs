//! A request's body, read whole: within a size, within a time, and copied at most once.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

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
pub fn is_announced_above(limit: usize, body: &Body) -> bool {
    body.size_hint().lower() > limit as u64
}

/// Reads `body`, `limit` bytes at most, within `time`. Its bytes are counted in `slot`.
pub async fn read(body: Body, limit: usize, time: Duration, slot: &mut Slot) -> Result<Bytes, BodyError> {
    tokio::time::timeout(time, collect(body, limit, slot))
        .await
        .unwrap_or(Err(BodyError::TooSlow))
}

async fn collect(body: Body, limit: usize, slot: &mut Slot) -> Result<Bytes, BodyError> {
    let mut stream = body.into_data_stream();
    let (mut chunks, mut length) = (Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| BodyError::Broken)?;
        length += chunk.len();
        if length > limit {
            return Err(BodyError::TooLarge);
        }
        slot.grow(chunk.len())?;
        chunks.push(chunk);
    }
    // Nearly always there is one chunk: the bytes as they came from the socket.
    if chunks.len() == 1 {
        return Ok(chunks.swap_remove(0));
    }
    let mut whole = BytesMut::with_capacity(length);
    for chunk in chunks {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}
