//! The projector: folds the log into Postgres. Nothing else writes the projection, and the projection is a pure function
//! of the log.
//!
//! ```text
//!            log                          per lane                               Postgres
//!   ┌──────────────────┐   batch   ┌──────────────────────┐   one transaction   ┌───────────────────┐
//!   │ records in order ├──────────►│ fold: greatest-of    ├────────────────────►│ registers, dead   │
//!   └──────────────────┘           │ per object (pure)    │                     │ letters, position │
//!            ▲                     └──────────────────────┘                     └─────────┬─────────┘
//!            └───────────────────────── starts after the position ────────────────────────┘
//! ```
//!
//! Any number of projectors may run. A lease decides who works, compare-and-set on the position decides who was right;
//! neither is needed for the tables to be right, because applying twice changes nothing. There is no state to lose
//! here: whatever goes wrong, a lane goes back to the position that Postgres holds and reads on from there.

pub mod apply;
pub mod backlog;
pub mod beside;
pub mod config;
pub mod dead_letters;
pub mod erase;
pub mod erase_marks;
pub mod fold;
pub mod holes;
pub mod lane;
pub mod metrics;
pub mod reach;
pub mod rebuild;
pub mod rebuild_report;
pub mod roles;
pub mod roles_file;
pub mod run;
pub mod scrub;
pub mod status;
pub mod store;
pub mod watch;
