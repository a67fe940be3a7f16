//! Claims in batches straight into the log, no HTTP: durable and decided. The generator runs on the same cores.
//! `cargo bench -p dibs-flow`. Then the start of a server from that history, with and without its snapshot.

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use dibs_flow::{Flow, FlowConfig, Secret};
use dibs_ledger::SqliteLedger;
use dibs_log::{DiskStorage, Store, StoreConfig, batch::BatchBuilder};
use dibs_model::Command;

const CLAIMS: u64 = 10_000_000;
const BATCH: u64 = 8_000;

fn main() {
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
    let mut value = Vec::new();
    for first in (0..CLAIMS).step_by(BATCH as usize) {
        let mut batch = BatchBuilder::new();
        for user in first..(first + BATCH).min(CLAIMS) {
            value.clear();
            Command::Claim { user: format!("user-{user:08}").into(), key: "".into() }.encode(&mut value);
            batch.push(Some(b"bench"), Some(&value));
        }
        let bytes = batch.finish(0);
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
