//! `cargo bench -p dibs-flow`: first `decide` alone on one core, from record batches in memory. Then claims in
//! batches straight into the log, no HTTP: durable and decided; the generator runs on the same cores. Then the
//! start of a server from that history, with and without its snapshot.

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use dibs_decide::State;
use dibs_flow::{Flow, FlowConfig, Secret};
use dibs_ledger::SqliteLedger;
use dibs_log::{
    DiskStorage, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};
use dibs_model::{Command, Timestamp};

const CLAIMS: u64 = 10_000_000;
const IN_MEMORY: u64 = 4_000_000;
const BATCH: u64 = 8_000;
const _: () = assert!(CLAIMS.is_multiple_of(BATCH) && IN_MEMORY.is_multiple_of(BATCH));

fn main() {
    decide_alone("most refused (stock 1,000)", 1_000);
    decide_alone("every claim wins", IN_MEMORY);
    for (name, stock) in [("most refused (stock 1,000)", 1_000), ("every claim wins", CLAIMS)] {
        let folder = tempfile::Builder::new().prefix("dibs-bench-").tempdir_in(".").expect("a folder");
        let before = resident();
        let (flow, took) = fill(folder.path(), stock);
        let rate = CLAIMS as f64 / took.as_secs_f64() / 1e6;
        let grown = resident().saturating_sub(before);
        println!("{name:<28} {rate:5.2} M claims/s durable and decided   RSS +{:.0} MiB", mib(grown));
        if stock == CLAIMS {
            println!("{:<28} {:.0} bytes a winner, 13 of them its id", "", grown as f64 / CLAIMS as f64);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let ledger = Arc::new(SqliteLedger::open(folder.path().join("ledger.db")).expect("a ledger"));
            if stock < CLAIMS {
                // Leaves a snapshot behind when it ends.
                flow.issue_into(&ledger).unwrap();
                flow.partitions()[0].issuance.reached(CLAIMS + 1).await;
            }
            flow.stop().await;
        });
        drop(flow);
        let start = Instant::now();
        let again = open(folder.path());
        wait(&again, CLAIMS + 1);
        let with = if stock < CLAIMS { "with its snapshot" } else { "by replay" };
        println!("{:<28} start after {CLAIMS} claims {with}: {:.0?}", "", start.elapsed());
        runtime.block_on(again.stop());
    }
}

/// One thread, no disk: batches, records, JSON, verdicts.
fn decide_alone(name: &str, stock: u64) {
    let batches: Vec<Vec<u8>> = (0..IN_MEMORY).step_by(BATCH as usize).map(batch).collect();
    let create = format!(r#"{{"type":"create","title":"bench","stock":{stock}}}"#);
    let (mut state, mut events) = (State::new(1), Vec::new());
    state.apply_record(0, Timestamp(1), Some(b"bench"), Some(create.as_bytes()), &mut events);
    let start = Instant::now();
    let mut offset = 1;
    for bytes in &batches {
        for batch in Batches::new(bytes) {
            for record in batch.expect("just built").records().expect("just built") {
                let record = record.expect("just built");
                let time = Timestamp(record.timestamp);
                state.apply_record(offset, time, record.key, record.value, &mut events);
                events.clear();
                offset += 1;
            }
        }
    }
    let rate = IN_MEMORY as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{name:<28} {rate:5.2} M claims/s decided on one core, from record batches");
}

/// One batch of claims, the first by user `first`.
fn batch(first: u64) -> Vec<u8> {
    let (mut batch, mut value) = (BatchBuilder::new(), Vec::new());
    for user in first..first + BATCH {
        value.clear();
        Command::Claim { user: format!("user-{user:08}").into(), key: "".into() }.encode(&mut value);
        batch.push(Some(b"bench"), Some(&value));
    }
    batch.finish(0)
}

fn open(folder: &Path) -> Flow {
    let storage = Arc::new(DiskStorage::new(folder).expect("a folder"));
    let store = Arc::new(Store::open(storage, StoreConfig::default()).expect("a store"));
    Flow::start(store, &Secret::new([1; 32]), &FlowConfig::default()).expect("a flow")
}

fn fill(folder: &Path, stock: u64) -> (Flow, Duration) {
    let flow = open(folder);
    let log = flow.partitions()[0].log().clone();
    let create = format!(r#"{{"type":"create","title":"bench","stock":{stock}}}"#);
    log.append(Some(b"bench"), Some(create.as_bytes())).expect("room");
    let start = Instant::now();
    for first in (0..CLAIMS).step_by(BATCH as usize) {
        let bytes = batch(first);
        while let Err(dibs_log::AppendError::Full) = log.append_batch(&bytes) {
            thread::yield_now();
        }
    }
    wait(&flow, CLAIMS + 1);
    (flow, start.elapsed())
}

fn wait(flow: &Flow, offset: u64) {
    while flow.partitions()[0].state().next_offset() < offset {
        thread::sleep(Duration::from_micros(200));
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
