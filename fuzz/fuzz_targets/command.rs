//! Any bytes as values of `dibs.claims`: decoding never fails but by saying so, what is decoded is written and
//! read again to the same, and no order of commands breaks what `decide` asserts.

#![no_main]

use dibs_decide::State;
use dibs_model::{Command, Timestamp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut state = State::new(1);
    let mut events = Vec::new();
    let create = br#"{"type":"create","title":"t","stock":2,"per_user_limit":2,"hold_seconds":1,"waitlist":2}"#;
    let values = std::iter::once(&create[..]).chain(data.split(|b| *b == b'\n'));
    for (offset, value) in values.enumerate() {
        if let Ok(command) = Command::decode(value) {
            let json = command.to_json();
            assert_eq!(Command::decode(&json).as_ref(), Ok(&command));
        }
        // A byte of the value as the time lets holds expire and clocks go back.
        let time = Timestamp(value.last().map_or(0, |b| i64::from(*b) * 100));
        state.apply_record(offset as u64, time, Some(b"c"), Some(value), &mut events);
        for campaign in state.campaigns() {
            assert!(campaign.live() <= campaign.stock());
        }
    }
    assert!(State::restore(&state.snapshot(), 2).is_ok());
});
