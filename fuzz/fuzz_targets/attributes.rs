#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pdsfs::fuzz_targets::attributes(data));
