//! WorkOS's ids: a prefix and a ULID (`event_01…`), strictly increasing in the order of creation, so that they sort by
//! time even within one millisecond.

use rand::{RngExt, rngs::StdRng};

use crate::clock::Millis;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const RANDOM_BITS: u32 = 80;

/// Makes ids. The caller provides the randomness, so that the same seed gives the same sequence.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    last: u128,
}

impl Ids {
    /// The next id. Greater than every id made before, whatever `at` is.
    pub(crate) fn next(&mut self, prefix: &str, at: Millis, rng: &mut StdRng) -> String {
        let time = u128::from(u64::try_from(at.0).unwrap_or(0)) << RANDOM_BITS;
        // One bit fewer than there is room for, so that steps within a millisecond do not overflow into the time.
        let fresh = time | (rng.random::<u128>() >> (128 - RANDOM_BITS + 1));
        self.last = if fresh >> RANDOM_BITS > self.last >> RANDOM_BITS {
            fresh
        } else {
            self.last + u128::from(rng.random_range(1..1_u64 << 40))
        };
        format!("{prefix}_{}", ulid(self.last))
    }
}

fn ulid(value: u128) -> String {
    (0..26)
        .rev()
        .map(|position| char::from(ALPHABET[((value >> (position * 5)) & 31) as usize]))
        .collect()
}

/// A stable hash (FNV-1a, then mixed), for choices that must depend only on an id and a seed.
pub(crate) fn hash(seed: u64, text: &str) -> u64 {
    let folded = text.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (folded ^ (folded >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn ids_increase_within_and_across_milliseconds() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut ids = Ids::default();
        let made: Vec<String> = [5_000, 5_000, 5_001, 4_000, 5_001, 6_000]
            .iter()
            .map(|ms| ids.next("event", Millis(*ms), &mut rng))
            .collect();
        assert!(made.windows(2).all(|pair| pair[0] < pair[1]), "{made:?}");
        assert!(made.iter().all(|id| id.len() == "event_".len() + 26));
    }

    #[test]
    fn the_time_is_in_front() {
        let mut rng = StdRng::seed_from_u64(1);
        let id = Ids::default().next("org", Millis(1_469_918_176_385), &mut rng);
        assert!(id.starts_with("org_01ARYZ6S41"), "{id}");
    }
}
