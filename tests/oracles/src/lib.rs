//! What must hold for any bytes whatever, one module a fuzz target (`fuzz/fuzz_targets`).
//!
//! Each `check` takes an input, panics where the programs break a promise, and is deterministic: an input that once
//! failed is kept in `fuzz/corpus` and runs with every `ops/test` (`tests/corpora.rs`). Nothing here is part of the programs.

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
