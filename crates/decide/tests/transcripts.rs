//! Transcripts a person can read: a record in, its verdict and events out. `UPDATE=1 cargo test -p dibs-decide`
//! writes them anew; read the difference before you commit it.
//!
//! A line is `TIME COMMAND-JSON` (campaign `c`), `TIME @KEY COMMAND-JSON` for another key, `snapshot`, or a
//! comment with `#`; the answer follows it, indented.

use std::{fmt::Write, fs, path::Path};

use dibs_decide::State;
use dibs_model::Timestamp;

fn run(script: &str) -> String {
    let mut state = State::new(1);
    let mut offset = 0;
    let mut out = String::new();
    for line in script.lines().filter(|l| !l.starts_with(' ')) {
        out.push_str(line);
        out.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line == "snapshot" {
            state = State::restore(&state.snapshot(), 2).unwrap();
            continue;
        }
        let (time, rest) = line.split_once(' ').expect("TIME COMMAND");
        let (key, json) = match rest.strip_prefix('@') {
            Some(rest) => rest.split_once(' ').expect("@KEY COMMAND"),
            None => ("c", rest),
        };
        let mut events = Vec::new();
        let time = Timestamp(time.parse().expect("milliseconds"));
        let verdict =
            state.apply_record(offset, time, Some(key.as_bytes()), Some(json.as_bytes()), &mut events);
        offset += 1;
        writeln!(out, "  {} {verdict:?}", verdict.number()).unwrap();
        for (_, event) in events {
            writeln!(out, "  + {event:?}").unwrap();
        }
    }
    out
}

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let script = fs::read_to_string(&file).unwrap();
        let got = run(&script);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, &got).unwrap();
        }
        assert_eq!(got, fs::read_to_string(&file).unwrap(), "{}", file.display());
    }
}
