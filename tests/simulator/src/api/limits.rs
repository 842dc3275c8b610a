//! WorkOS's rate limits, as sliding windows over real time; the simulated clock does not affect them. No I/O.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Which limits apply; all are off by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Lists of users per second and directory; WorkOS allows 4.
    pub users_per_second: Option<usize>,
    /// Whether reads of one user count towards that limit.
    pub count_single_users: bool,
    /// Requests per minute in all; WorkOS allows 6,000.
    pub per_minute: Option<usize>,
    /// Whether a refusal has a `Retry-After` header.
    pub retry_after: bool,
}

impl RateLimits {
    /// The limits WorkOS publishes.
    pub fn published() -> Self {
        Self {
            users_per_second: Some(4),
            per_minute: Some(6_000),
            ..Self::default()
        }
    }
}

/// Recent requests.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    all: VecDeque<Instant>,
    users: HashMap<String, VecDeque<Instant>>,
}

impl Windows {
    /// Lets a request pass, or returns how long until one could. Refused requests do not count.
    pub(crate) fn admit(
        &mut self,
        limits: &RateLimits,
        directory: Option<&str>,
        now: Instant,
    ) -> Result<(), Duration> {
        let window = directory.map(|id| self.users.entry(id.to_owned()).or_default());
        if let (Some(most), Some(window)) = (limits.users_per_second, &window) {
            room(window, most, Duration::from_secs(1), now)?;
        }
        if let Some(most) = limits.per_minute {
            room(&self.all, most, Duration::from_mins(1), now)?;
        }
        if let Some(window) = window {
            note(window, Duration::from_secs(1), now);
        }
        note(&mut self.all, Duration::from_mins(1), now);
        Ok(())
    }
}

fn room(window: &VecDeque<Instant>, most: usize, span: Duration, now: Instant) -> Result<(), Duration> {
    let mut recent = window.iter().filter(|at| now.duration_since(**at) < span);
    let oldest = recent.next();
    match oldest {
        Some(oldest) if recent.count() + 1 >= most => Err(span.saturating_sub(now.duration_since(*oldest))),
        None if most == 0 => Err(span),
        _ => Ok(()),
    }
}

fn note(window: &mut VecDeque<Instant>, span: Duration, now: Instant) {
    while window.front().is_some_and(|at| now.duration_since(*at) >= span) {
        window.pop_front();
    }
    window.push_back(now);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_in_any_second_and_directory() {
        let (mut windows, limits, start) = (Windows::default(), RateLimits::published(), Instant::now());
        let mut ask = |directory: &str, ms: u64| {
            windows
                .admit(&limits, Some(directory), start + Duration::from_millis(ms))
                .is_ok()
        };
        assert!((0..4).all(|index| ask("one", index * 100)));
        assert!(!ask("one", 500));
        assert!(ask("two", 500));
        assert!(!ask("one", 999));
        assert!(ask("one", 1_000));
        assert!(!ask("one", 1_050));
    }

    #[test]
    fn so_many_a_minute_in_all() {
        let limits = RateLimits {
            per_minute: Some(2),
            ..RateLimits::default()
        };
        let (mut windows, start) = (Windows::default(), Instant::now());
        let mut ask = |seconds: u64| windows.admit(&limits, None, start + Duration::from_secs(seconds));
        assert_eq!(ask(0), Ok(()));
        assert_eq!(ask(20), Ok(()));
        assert_eq!(ask(30), Err(Duration::from_secs(30)));
        assert_eq!(ask(60), Ok(()));
    }
}
