//! A batch of records, good and bad: only the bad ones are set aside, and the good ones can be stored.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| oracles::letters::check(input));
