//! A history of events about a few objects: order, duplication and batching change nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| oracles::fold::check(input));
