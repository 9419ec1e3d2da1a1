//! libFuzzer's door to `fuzz/targets/wire.rs`.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::check("wire", data));
