//! How many coupons a second go into a ledger on disk: `cargo bench -p dibs-ledger`.
//!
//! Each coupon with its outbox row, its window, the counts and the progress, through the trait, one batch after
//! the other, every commit durable. `cargo bench -p dibs-ledger -- DIR COUPONS` takes another folder (the
//! default is the temporary one, which must be on a real disk to say anything) and another number.

use std::{env, path::PathBuf, sync::Arc, time::Instant};

use dibs_ledger::{Change, Coupon, CouponStatus, Ledger, LedgerBatch, SqliteLedger};
use dibs_model::Timestamp;

fn main() {
    let mut args = env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let dir = args.next().map_or_else(env::temp_dir, PathBuf::from);
    let coupons: u64 = args.next().map_or(1_000_000, |n| n.parse().expect("the number of coupons"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    for batch in [100, 1_000, 10_000] {
        let dir = tempfile::tempdir_in(&dir).expect("a folder to write in");
        // Small batches are slow: a tenth of the coupons says as much.
        let coupons = if batch < 1_000 { coupons / 10 } else { coupons };
        runtime.block_on(run(&dir.path().join("ledger.db"), coupons, batch));
    }
}

async fn run(path: &std::path::Path, coupons: u64, batch: u64) {
    let ledger = SqliteLedger::open(path).expect("a new ledger");
    let lease = ledger.acquire(0).await.expect("the partition");
    let batches: Vec<LedgerBatch> = (0..coupons / batch)
        .map(|n| LedgerBatch {
            partition: 0,
            epoch: lease.epoch,
            from: n * batch,
            to: (n + 1) * batch,
            changes: (n * batch..(n + 1) * batch).map(issued).collect(),
        })
        .collect();
    let start = Instant::now();
    let mut slowest = start.elapsed();
    for batch in &batches {
        let began = Instant::now();
        ledger.commit(batch).await.expect("a batch");
        slowest = slowest.max(began.elapsed());
    }
    let took = start.elapsed();
    ledger.close().await;
    println!(
        "batches of {batch:>6}: {:>7.0} coupons/s, {:.2} ms a batch, slowest {:.0} ms, {} bytes a coupon on disk",
        coupons as f64 / took.as_secs_f64(),
        took.as_secs_f64() * 1e3 / batches.len() as f64,
        slowest.as_secs_f64() * 1e3,
        std::fs::metadata(path).expect("the file").len() / coupons,
    );
}

/// A coupon with an unguessable user and code, as real ones have.
fn issued(offset: u64) -> (u64, Change) {
    let secret = scramble(offset);
    let code = format!("SUMMER-{:04X}-{:04X}", secret & 0xffff, secret >> 16 & 0xffff);
    let coupon = Coupon {
        campaign: Arc::from("summer"),
        rank: offset as u32 + 1,
        user: format!("user-{}", scramble(secret) % 100_000_000).into(),
        code: Some(code.into()),
        status: CouponStatus::Issued,
        partition: 0,
        offset,
        timestamp: Timestamp(1_785_000_000_000 + offset as i64 / 200),
        redeemed_by: None,
        redeemed_at: None,
    };
    (offset, Change::Issued(coupon))
}

/// SplitMix64.
fn scramble(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
