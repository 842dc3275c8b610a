//! Bounds how many requests, and how many bytes of their bodies, are in flight at once. The excess is told to retry.
//!
//! Bytes are counted as they arrive, so a sender that announces a large body takes up room only for the bytes it really
//! sends. Nothing waits here: a queue would only hide that ingest has fallen behind.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most that may be in flight at once.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests.
    pub requests: usize,
    /// Bytes of bodies, over all requests.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            requests: 512,
            bytes: 64 << 20,
        }
    }
}

/// The bounds are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests or bytes in flight")]
pub struct NoRoom;

/// Counts what is in flight.
pub struct InFlight {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    gauge: IntGauge,
}

impl InFlight {
    /// Nothing in flight yet; `gauge` shows the number of requests.
    pub fn new(bounds: Bounds, gauge: IntGauge) -> Self {
        let (requests, bytes) = (Semaphore::new(bounds.requests), Semaphore::new(bounds.bytes));
        Self {
            requests: Arc::new(requests),
            bytes: Arc::new(bytes),
            gauge,
        }
    }

    /// Admits one request, not yet its body.
    pub fn enter(&self) -> Result<Slot, NoRoom> {
        let request = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| NoRoom)?;
        let bytes = Arc::clone(&self.bytes)
            .try_acquire_many_owned(0)
            .map_err(|_| NoRoom)?;
        self.gauge.inc();
        Ok(Slot {
            _request: request,
            bytes,
            gauge: self.gauge.clone(),
        })
    }
}

/// One request in flight, until this is dropped.
pub struct Slot {
    _request: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
    gauge: IntGauge,
}

impl Slot {
    /// Counts `bytes` more of its body.
    pub fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let bytes = u32::try_from(bytes).map_err(|_| NoRoom)?;
        let more = Arc::clone(self.bytes.semaphore())
            .try_acquire_many_owned(bytes)
            .map_err(|_| NoRoom)?;
        self.bytes.merge(more);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(requests: usize, bytes: usize) -> InFlight {
        InFlight::new(
            Bounds { requests, bytes },
            IntGauge::new("in_flight", "in flight").unwrap(),
        )
    }

    #[test]
    fn requests_are_bounded_and_leave() {
        let in_flight = in_flight(2, 10);
        let (one, _two) = (in_flight.enter().unwrap(), in_flight.enter().unwrap());
        assert_eq!(in_flight.enter().err(), Some(NoRoom));
        assert_eq!(in_flight.gauge.get(), 2);
        drop(one);
        assert!(in_flight.enter().is_ok());
        assert_eq!(in_flight.gauge.get(), 1);
    }

    #[test]
    fn bytes_are_bounded_over_all_requests_and_given_back() {
        let in_flight = in_flight(3, 10);
        let (mut one, mut two) = (in_flight.enter().unwrap(), in_flight.enter().unwrap());
        one.grow(4).unwrap();
        one.grow(3).unwrap();
        assert_eq!(two.grow(4), Err(NoRoom));
        two.grow(3).unwrap();
        drop(one);
        two.grow(7).unwrap();
        assert_eq!(two.grow(1), Err(NoRoom));
        assert_eq!(two.grow(usize::MAX), Err(NoRoom));
    }
}
