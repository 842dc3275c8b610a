//! One body: made storable, addressed, decoded, observed.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| oracles::event::check(input));
