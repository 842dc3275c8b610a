//! What must be true for any input, one module for each fuzz target (`fuzz/fuzz_targets`).
//!
//! Each `check` takes an input, panics if the programs break a promise, and is deterministic. Inputs that once failed
//! are kept in `fuzz/corpus` and run with every `ops/test` (`tests/corpora.rs`). Nothing here is part of the programs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "failing is what an oracle is for"
)]

pub mod bytes;
pub mod event;
pub mod fold;
pub mod letters;
pub mod postgres;
pub mod signature;
