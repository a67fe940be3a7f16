//! What the log takes: the time until an append is durable at offered rates, unthrottled batches, and a start
//! after a crash. `cargo bench -p dibs-log` (the folder is `$DIBS_BENCH_DIR`, or a new one in the temporary
//! folder; give it a real disk).

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::*},
    thread,
    time::{Duration, Instant, SystemTime},
};

use dibs_log::{
    AppendError, DiskStorage, PartitionLog, Store, StoreConfig, batch::BatchBuilder, batch::Batches,
};
use hdrhistogram::Histogram;

const VALUE: &[u8] =
    br#"{"type":"claim","user":"u-00001234567","key":"b7c1e0a2-5d4f-4a3b-9e8d-112233445566"}"#;
const SECONDS: u64 = 5;

fn main() {
    // `cargo test --all-targets` runs this, too; only `cargo bench` says so.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let folder =
        tempfile::tempdir_in(std::env::var_os("DIBS_BENCH_DIR").map_or(std::env::temp_dir(), PathBuf::from))
            .expect("a folder");
    let fresh = |name: &str| DiskStorage::new(folder.path().join(name)).expect("a folder");
    append_alone();
    for rate in [10_000, 100_000, 1_000_000] {
        offered(fresh(&rate.to_string()), rate);
    }
    unthrottled(fresh("batches"));
    recovery(fresh("recovery"));
}

fn open(disk: DiskStorage) -> (Store, Arc<PartitionLog>) {
    let store = Store::open(Arc::new(disk), StoreConfig::default()).expect("opens");
    store.create_topic("t", 1).expect("a topic");
    let log = store.partition("t", 0).expect("just made");
    (store, log)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// Encoding and its lock, without a disk.
fn append_alone() {
    let (_store, log) = open_memory();
    let (mut count, mut spent) = (0_u64, Duration::ZERO);
    while count < 10_000_000 {
        let start = Instant::now();
        while log.append(Some(b"summer"), Some(VALUE)).is_ok() {
            count += 1;
        }
        spent += start.elapsed();
        log.commit(1).expect("memory");
        log.delete_before(log.high_watermark()).expect("memory");
    }
    println!("append alone: {:.1} ns", spent.as_nanos() as f64 / count as f64);
}

fn open_memory() -> (Store, Arc<PartitionLog>) {
    let config = StoreConfig { max_pending_bytes: 4 << 20, segment_bytes: 1, ..StoreConfig::default() };
    let store = Store::open(Arc::new(dibs_log::MemoryStorage::new(0)), config).expect("opens");
    store.create_topic("t", 1).expect("a topic");
    let log = store.partition("t", 0).expect("just made");
    (store, log)
}

/// One thread appends records when they are due, another commits; a record's time runs from when it was due.
fn offered(disk: DiskStorage, rate: u64) {
    let (store, log) = open(disk);
    let start = Instant::now();
    let due = |i: u64| Duration::from_nanos(i * 1_000_000_000 / rate);
    let total = rate * SECONDS;
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds");
    let (mut commits, full) = (0_u64, AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 0;
            while next < total {
                let until = (start.elapsed().as_nanos() as u64 * rate / 1_000_000_000).min(total);
                if next == until {
                    thread::sleep(due(next + 1).saturating_sub(start.elapsed()));
                }
                while next < until {
                    match log.append(Some(b"summer"), Some(VALUE)) {
                        Ok(_) => next += 1,
                        Err(AppendError::Full) => {
                            full.store(true, Relaxed);
                            thread::yield_now();
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        });
        while log.high_watermark() < total {
            log.wait_pending(None);
            if let Some(done) = log.commit(now_ms()).expect("commits") {
                let now = start.elapsed();
                commits += 1;
                (done.from..done.to).for_each(|i| times.saturating_record((now - due(i)).as_nanos() as u64));
            }
        }
    });
    let us = |q| times.value_at_quantile(q) as f64 / 1000.0;
    println!(
        "{rate:>7}/s offered: p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, max {:.0} us; {:.1} records a commit{}",
        us(0.5),
        us(0.99),
        us(0.999),
        us(1.0),
        total as f64 / commits as f64,
        if full.into_inner() { "; fell behind" } else { "" },
    );
    store.close().expect("closes");
}

/// As many encoded batches as one thread can append and commit.
fn unthrottled(disk: DiskStorage) {
    let (store, log) = open(disk);
    let mut builder = BatchBuilder::new();
    (0..1000).for_each(|_| builder.push(Some(b"summer"), Some(VALUE)));
    let batch = builder.finish(1);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(SECONDS) {
        for _ in 0..(4 << 20) / batch.len() {
            log.append_batch(&batch).expect("fits");
        }
        log.commit(now_ms()).expect("commits");
    }
    let seconds = start.elapsed().as_secs_f64();
    let records = log.high_watermark() as f64;
    let bytes: u64 = log.segments().iter().map(|s| s.bytes).sum();
    println!(
        "batches of 1000: {:.2} M records/s, {:.0} MB/s",
        records / seconds / 1e6,
        bytes as f64 / seconds / 1e6
    );
    let (start, mut at, mut out, mut read) = (Instant::now(), log.log_start_offset(), Vec::new(), 0_u64);
    while log.read(at, 1 << 20, &mut out).expect("reads") > 0 {
        for batch in Batches::new(&out) {
            let batch = batch.expect("whole");
            read += batch.records().expect("plain").inspect(|r| assert!(r.is_ok())).count() as u64;
            at = batch.header.next_offset();
        }
        out.clear();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("read and decoded: {:.2} M records/s", read as f64 / seconds / 1e6);
    store.close().expect("closes");
}

/// A start that has to check 1 GiB, and one after a clean close.
fn recovery(disk: DiskStorage) {
    let never =
        StoreConfig { checkpoint_bytes: u64::MAX, segment_bytes: i32::MAX as u64, ..StoreConfig::default() };
    let store = Store::open(Arc::new(disk.clone()), never).expect("opens");
    store.create_topic("t", 1).expect("a topic");
    let log = store.partition("t", 0).expect("just made");
    while log.segments()[0].bytes < 1 << 30 {
        while log.append(Some(b"summer"), Some(VALUE)).is_ok() && log.pending_bytes() < 8 << 20 {}
        log.commit(now_ms()).expect("commits");
    }
    drop((store, log));
    for kind in ["after a crash", "after a clean close"] {
        let start = Instant::now();
        let (store, _log) = open(disk.clone());
        let report = &store.recovery()[0];
        println!(
            "open {kind}: {:.0} ms, {} MiB checked",
            start.elapsed().as_secs_f64() * 1e3,
            report.bytes_scanned >> 20
        );
        store.close().expect("closes");
    }
}
