//! Any bytes as record batches: never a panic, and never more records than bytes.

#![no_main]

use dibs_log::batch::{Batch, BatchHeader, Batches};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = BatchHeader::parse(data);
    let _ = Batch::parse(data).map(|batch| batch.check_records());
    for batch in Batches::new(data).map_while(Result::ok) {
        let Ok(records) = batch.records() else { continue };
        let read = records.map_while(Result::ok).map(|r| r.headers.iter().count()).count();
        assert!(read <= data.len());
    }
});
