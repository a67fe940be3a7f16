//! Claims a second on one core, from the JSON of their records: `cargo bench -p dibs-decide`. Decoding from the
//! record batch is measured with the log, in dibs-flow's bench.

use std::time::Instant;

use dibs_decide::State;
use dibs_model::{Command, Timestamp};

const CLAIMS: u64 = 4_000_000;

fn main() {
    for (name, stock, users) in [
        ("sold out after 1,000", 1_000, CLAIMS),
        ("every claim wins", CLAIMS, CLAIMS),
        ("every claim repeats a win", 100_000, 100_000),
    ] {
        let values: Vec<Vec<u8>> = (0..users)
            .map(|u| Command::Claim { user: format!("user-{u:08}").into(), key: "".into() }.to_json())
            .collect();
        let create = format!(r#"{{"type":"create","title":"bench","stock":{stock}}}"#);
        let mut state = State::new(1);
        let mut events = Vec::new();
        state.apply_record(0, Timestamp(1), Some(b"c"), Some(create.as_bytes()), &mut events);
        let start = Instant::now();
        for i in 0..CLAIMS {
            let value = &values[(i % users) as usize];
            state.apply_record(i + 1, Timestamp(1), Some(b"c"), Some(value), &mut events);
            events.clear();
        }
        let rate = CLAIMS as f64 / start.elapsed().as_secs_f64() / 1e6;
        let start = Instant::now();
        let bytes = state.snapshot();
        let written = start.elapsed();
        let start = Instant::now();
        State::restore(&bytes, 1).expect("just written");
        println!(
            "{name:<28} {rate:6.2} M claims/s   snapshot {:.1} MB, written in {written:.0?}, read in {:.0?}",
            bytes.len() as f64 / 1e6,
            start.elapsed()
        );
    }
}
