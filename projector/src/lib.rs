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
//! Any number of projectors may run. A lease decides which one works, and compare-and-set on the position decides whose
//! batch counts. The tables would be right without either, because applying a record twice changes nothing. There is no
//! state to lose here: whatever goes wrong, a lane returns to the position stored in Postgres and reads on from there.

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
pub mod sent_back;
pub mod status;
pub mod store;
pub mod upkeep;
pub mod watch;
