//! The header `WorkOS-Signature`: our verdict equals that of a second, plainer implementation.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| oracles::signature::check(input));
