//! Any bytes as what a client sends: frames, headers and bodies of every API in every version. Never a panic. Begin
//! with the lines of `crates/broker/testdata/requests.hex`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let read = dibs_broker::read_requests(data);
    // A frame has at least its length and a header of eight bytes.
    assert!(read.is_err() || read.is_ok_and(|count| count * 12 <= data.len()));
    // The same as the content of one frame, which the mutator need not count.
    let mut framed = (data.len() as u32).to_be_bytes().to_vec();
    framed.extend(data);
    let _ = dibs_broker::read_requests(&framed);
});
