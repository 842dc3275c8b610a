//! The whole system as its users run it: the programs as processes, real servers, and a simulated WorkOS that delivers
//! signed webhooks. One module for each promise.

#![allow(clippy::unwrap_used, reason = "a test")]

mod bad_input;
mod cluster;
mod dead_letters;
mod fail_over;
mod faults;
mod foreign;
mod lying_broker;
mod overload;
mod pooled;
mod rebuilding;
mod schema;
mod soak;
mod spine;
mod stand;
mod status;
mod take_over;
