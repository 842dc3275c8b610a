//! Bounds how many requests, and how many bytes of their bodies, are in flight at once. The excess is told to retry.
//!
//! Bodies that are still arriving are bounded apart from requests being stored, because anybody may send half a body.
//! Honest bodies arrive within milliseconds. So where there is no room for a newcomer, the bodies that have been arriving
//! for longest are cut off: half a body, or a thousand of them, keep nobody else out.
//!
//! Bytes are counted as they arrive, so a sender that announces a large body takes up room only for the bytes it really
//! sends. They count until the last copy of the body is gone, which may be long after the answer: the broker's client
//! holds what it could not send yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The most that may be in flight at once.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bodies that are arriving, and again as many requests being stored.
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
    most_arriving: usize,
    arriving: Arc<Mutex<Arriving>>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    gauge: IntGauge,
}

/// The bodies that are arriving now.
#[derive(Default)]
struct Arriving {
    next: u64,
    /// By their turn: first the one that has been arriving for longest.
    bodies: BTreeMap<u64, Body>,
}

#[derive(Default)]
struct Body {
    cut_off: CancellationToken,
    bytes: usize,
}

impl InFlight {
    /// Nothing in flight yet; `gauge` shows the number of requests.
    pub fn new(bounds: Bounds, gauge: IntGauge) -> Self {
        let (requests, bytes) = (Semaphore::new(bounds.requests), Semaphore::new(bounds.bytes));
        Self {
            most_arriving: bounds.requests,
            arriving: Arc::default(),
            requests: Arc::new(requests),
            bytes: Arc::new(bytes),
            gauge,
        }
    }

    /// Admits one request whose body is about to arrive. If there are too many of those, the one that has been arriving
    /// for longest is cut off.
    pub fn enter(&self) -> Slot {
        let mut arriving = locked(&self.arriving);
        while arriving.bodies.len() >= self.most_arriving
            && let Some((_, oldest)) = arriving.bodies.pop_first()
        {
            oldest.cut_off.cancel();
        }
        let (turn, body) = (arriving.next, Body::default());
        let cut_off = body.cut_off.clone();
        arriving.next += 1;
        arriving.bodies.insert(turn, body);
        drop(arriving);
        self.gauge.inc();
        Slot {
            turn,
            cut_off,
            arriving: Arc::clone(&self.arriving),
            request: None,
            requests: Arc::clone(&self.requests),
            held: None,
            bytes: Arc::clone(&self.bytes),
            gauge: self.gauge.clone(),
        }
    }
}

/// One request in flight, until this is dropped.
pub struct Slot {
    turn: u64,
    cut_off: CancellationToken,
    arriving: Arc<Mutex<Arriving>>,
    request: Option<OwnedSemaphorePermit>,
    requests: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    bytes: Arc<Semaphore>,
    gauge: IntGauge,
}

impl Slot {
    /// Is cancelled when the body is to be given up, to make room for a newer one.
    pub fn cut_off(&self) -> CancellationToken {
        self.cut_off.clone()
    }

    /// Counts `bytes` more of its body. If there is no room for them, bodies that have been arriving for longer are cut
    /// off, and this waits until they are gone.
    pub async fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let wanted = u32::try_from(bytes).map_err(|_| NoRoom)?;
        let semaphore = Arc::clone(&self.bytes);
        let more = if let Ok(more) = Arc::clone(&semaphore).try_acquire_many_owned(wanted) {
            more
        } else {
            self.make_room(bytes)?;
            semaphore.acquire_many_owned(wanted).await.map_err(|_| NoRoom)?
        };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        if let Some(body) = locked(&self.arriving).bodies.get_mut(&self.turn) {
            body.bytes += bytes;
        }
        Ok(())
    }

    /// Cuts off as many older bodies as `bytes` need; none if all together would not do.
    fn make_room(&self, bytes: usize) -> Result<(), NoRoom> {
        let mut arriving = locked(&self.arriving);
        let mut room = self.bytes.available_permits();
        let mut last = None;
        for (turn, body) in arriving.bodies.range(..self.turn) {
            if room >= bytes {
                break;
            }
            room += body.bytes;
            last = Some(*turn);
        }
        if room < bytes {
            return Err(NoRoom);
        }
        if let Some(last) = last {
            let newer = arriving.bodies.split_off(&(last + 1));
            for body in std::mem::replace(&mut arriving.bodies, newer).into_values() {
                body.cut_off.cancel();
            }
        }
        Ok(())
    }

    /// The whole body has arrived: it is not cut off any more. Its bytes count as long as there is a copy of what this
    /// returns.
    pub fn arrived(&mut self, body: Bytes) -> Bytes {
        locked(&self.arriving).bodies.remove(&self.turn);
        match self.held.take() {
            Some(held) => Bytes::from_owner(Counted { body, _held: held }),
            None => body,
        }
    }

    /// Counts it as one being stored.
    pub fn store(&mut self) -> Result<(), NoRoom> {
        let request = Arc::clone(&self.requests).try_acquire_owned();
        self.request = Some(request.map_err(|_| NoRoom)?);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        locked(&self.arriving).bodies.remove(&self.turn);
        self.gauge.dec();
    }
}

/// A body together with the room it takes up.
struct Counted {
    body: Bytes,
    _held: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

fn locked(arriving: &Mutex<Arriving>) -> MutexGuard<'_, Arriving> {
    arriving.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn bodies_that_arrive_are_bounded_and_the_oldest_makes_room() {
        let in_flight = in_flight(2, 10);
        let (one, two) = (in_flight.enter(), in_flight.enter());
        assert!(!one.cut_off.is_cancelled());
        let mut three = in_flight.enter();
        assert!(one.cut_off.is_cancelled() && !two.cut_off.is_cancelled());
        assert_eq!(in_flight.gauge.get(), 3);
        drop(one);
        assert_eq!(in_flight.gauge.get(), 2);
        // What has arrived is not cut off, and takes up no place.
        three.arrived(Bytes::new());
        let four = in_flight.enter();
        assert!(!two.cut_off.is_cancelled());
        let _five = in_flight.enter();
        assert!(two.cut_off.is_cancelled() && !three.cut_off.is_cancelled() && !four.cut_off.is_cancelled());
    }

    #[test]
    fn requests_being_stored_are_bounded_and_leave() {
        let in_flight = in_flight(2, 10);
        let [mut one, mut two, mut three] = [(); 3].map(|()| in_flight.enter());
        one.store().unwrap();
        two.store().unwrap();
        assert_eq!(three.store(), Err(NoRoom));
        drop(one);
        three.store().unwrap();
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_come_from_those_who_have_been_arriving_for_longer() {
        let in_flight = in_flight(4, 10);
        let [mut one, mut two, mut three] = [(); 3].map(|()| in_flight.enter());
        one.grow(3).await.unwrap();
        two.grow(3).await.unwrap();
        two.grow(2).await.unwrap();
        // Nobody is cut off in vain, or for an older one.
        assert_eq!(three.grow(11).await, Err(NoRoom));
        assert_eq!(three.grow(usize::MAX).await, Err(NoRoom));
        assert_eq!(one.grow(3).await, Err(NoRoom));
        assert!(!one.cut_off.is_cancelled() && !two.cut_off.is_cancelled());
        let (grown, ()) = tokio::join!(three.grow(5), async {
            assert!(one.cut_off.is_cancelled() && !two.cut_off.is_cancelled());
            drop(one);
        });
        grown.unwrap();
        assert_eq!(in_flight.bytes.available_permits(), 0);
    }

    #[tokio::test]
    async fn bytes_count_until_the_last_copy_is_gone() {
        let in_flight = in_flight(2, 10);
        let mut one = in_flight.enter();
        one.grow(7).await.unwrap();
        let body = one.arrived(Bytes::from_static(b"1234567"));
        assert_eq!(body, "1234567");
        let copy = body.clone();
        drop((one, body));
        assert_eq!(in_flight.enter().grow(4).await, Err(NoRoom));
        drop(copy);
        in_flight.enter().grow(10).await.unwrap();
    }
}
