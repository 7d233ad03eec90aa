//! Whatever a configuration file may hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(problems) = config::read(bytes) {
        assert!(!problems.is_empty(), "a file that cannot be read has something wrong with it");
    }
});
