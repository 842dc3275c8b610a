//! A batch of records, good and bad: the bad ones are set aside alone, the good ones can be stored.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| oracles::letters::check(input));
