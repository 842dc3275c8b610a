//! The header `WorkOS-Signature`: our verdict is the one a second, plainer implementation gives.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| oracles::signature::check(input));
