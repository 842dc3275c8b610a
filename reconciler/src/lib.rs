//! The reconciler: completes the log when webhooks fail, and corrects the tables when the log missed something. It only
//! appends to the log; it never writes a projected row.
//!
//! ```text
//!              Events API ──► catch-up ──────┐ appends what the log lacks
//!   WorkOS ──┤                               ├──────────────────────────► log ──► projector ──► tables
//!              state API ───► sweeps ────────┘ appends what differs                               │
//!                               ▲                                                                 │
//!                               └─────────────── compares with what readers see ◄─────────────────┘
//! ```
//!
//! It appends observations like any others: each carries the time it speaks for, and the registers decide what it
//! changes. So a sweep cannot undo what an event reports meanwhile, two may overlap, and one may die at any point.

pub mod acknowledged;
pub mod catch_up;
pub mod checks;
pub mod command;
pub mod config;
pub mod deletions;
pub mod difference;
pub mod directories;
pub mod findings;
pub mod guard;
mod judge;
mod judge_memberships;
pub mod key;
pub mod lease;
pub mod memberships;
pub mod metrics;
pub mod plan;
pub mod read_target;
pub mod reading;
mod relist;
pub mod report;
pub mod run;
pub mod snapshot;
pub mod status;
pub mod store;
pub mod sweep;
mod walk;
pub mod work;
pub mod workos;
