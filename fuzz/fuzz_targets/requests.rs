#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| calico_fuzz::requests(bytes));
