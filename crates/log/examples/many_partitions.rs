//! What many partitions cost: `cargo run --release -p dibs-log --example many_partitions -- FOLDER`.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use dibs_log::{DiskStorage, PartitionLog, Store, StoreConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("a folder is missing")?;
    for threads in [1, 2, 4, 8] {
        for partitions in [1, 10, 100] {
            commits(
                &Path::new(&folder).join(format!("commits-{threads}-{partitions}")),
                threads,
                partitions,
            )?;
        }
    }
    for partitions in [1, 100, 10_000] {
        starts(&Path::new(&folder).join(format!("starts-{partitions}")), partitions)?;
    }
    Ok(())
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

fn all(store: &Store) -> Vec<Arc<PartitionLog>> {
    store.topic("t").map(|topic| topic.partitions().to_vec()).unwrap_or_default()
}

/// One record to each partition, and wait until all are durable: how long, with so many committing threads?
fn commits(folder: &Path, threads: usize, partitions: u32) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(Arc::new(DiskStorage::new(folder)?), StoreConfig::default())?;
    store.create_topic("t", partitions)?;
    let committer = store.start_committer(threads, now_ms, |_| true)?;
    let logs = all(&store);
    let mut times = Vec::new();
    for round in 0..(2_000 / partitions).clamp(30, 1_000) {
        let start = Instant::now();
        let sent: Vec<_> =
            logs.iter().map(|log| log.append(None, Some(&[7; 100]))).collect::<Result<_, _>>()?;
        for (log, offset) in logs.iter().zip(sent) {
            log.wait_committed(offset, None);
        }
        if round >= 5 {
            times.push(start.elapsed().as_micros());
        }
    }
    times.sort_unstable();
    let each = times[times.len() / 2] as f64 / f64::from(partitions);
    println!(
        "{threads} threads, {partitions:>3} partitions: p50 {} us, p99 {} us, {each:.0} us a partition",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
    drop(committer);
    Ok(store.close()?)
}

/// A record in each partition, then starts after a clean close and after none.
fn starts(folder: &Path, partitions: u32) -> Result<(), Box<dyn std::error::Error>> {
    let open = || -> Result<Store, Box<dyn std::error::Error>> {
        Ok(Store::open(Arc::new(DiskStorage::new(folder)?), StoreConfig::default())?)
    };
    let measure = |what: &str, start: Instant| {
        let (rss, files) = (rss_kib(), fs::read_dir("/proc/self/fd").map_or(0, Iterator::count));
        println!("{partitions:>6} partitions, {what}: {:?}, RSS {rss} KiB, {files} files", start.elapsed());
    };
    let start = Instant::now();
    let store = open()?;
    store.create_topic("t", partitions)?;
    measure("created", start);
    let start = Instant::now();
    drop(store);
    let store = open()?;
    measure("opened, empty, not closed", start);
    let start = Instant::now();
    for log in all(&store) {
        log.append(None, Some(&[7; 100]))?;
        log.commit(now_ms())?;
    }
    measure("a record in each", start);
    let start = Instant::now();
    store.close()?;
    drop(store);
    measure("closed", start);
    let start = Instant::now();
    let store = open()?;
    measure("opened after a clean close", start);
    drop(store);
    let start = Instant::now();
    let store = open()?;
    measure("opened after a crash", start);
    Ok(store.close()?)
}

fn rss_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}
