//! The deletion guard: decides whether this many deletions at once are believed. Pure.
//!
//! A provider that answers 200 with half the data looks like a mass deletion, whereas the genuine removal of a few
//! people must not wait for anybody. So a few deletions pass, and many are held until a person approves them.

use service::settings::Percent;

/// This many always pass, whatever share they are.
const ALWAYS: u64 = 10;

/// Whether `deletions` of `shown` objects of one kind are held back.
pub fn holds(deletions: usize, shown: usize, max: Percent) -> bool {
    let (deletions, shown) = (deletions as u64, shown as u64);
    deletions > ALWAYS && max.is_exceeded_by(deletions, shown)
}

#[cfg(test)]
mod tests {
    use service::settings::percent;

    use super::*;

    #[test]
    fn a_few_always_pass_and_many_only_if_they_are_a_small_share() {
        let ten = percent("10%").unwrap();
        for (deletions, shown, held) in [
            (0, 0, false),
            (10, 10, false),
            (11, 11, true),
            (11, 109, true),
            (11, 110, false),
            (1_000, 10_000, false),
            (1_001, 10_000, true),
        ] {
            assert_eq!(holds(deletions, shown, ten), held, "{deletions} of {shown}");
        }
        assert!(!holds(9, 9, percent("0%").unwrap()));
        assert!(!holds(500, 500, percent("100%").unwrap()));
    }
}
