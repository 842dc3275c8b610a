//! Postgres: what the tables show (read only), and the reconciler's own tables. Nothing here writes a projected row.

pub mod applied;
pub mod checks;
pub mod compared;
pub mod directories;
pub mod duties;
pub mod groups;
pub mod held;
pub mod memberships;
pub mod overview;
pub mod sweeps;
mod unchanged;
pub mod users;

use std::time::Duration;

use sqlx::postgres::types::PgInterval;

fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}
