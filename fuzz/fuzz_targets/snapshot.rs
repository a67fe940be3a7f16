//! Any bytes as a snapshot with a right checksum: refused, or a state that writes itself.

#![no_main]

use dibs_decide::State;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Behind the magic and the version, under a checksum that fits, so that the fuzzer gets past both.
    let mut bytes = [b"DIBSSNAP", &1u32.to_be_bytes()[..], data].concat();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    let _ = State::restore(&bytes, 1).map(|state| state.snapshot());
});
