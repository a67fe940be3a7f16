//! A writer that is killed at any moment leaves a ledger in which rows and progress agree.
//!
//! This does not show that a commit survives the loss of power (the page cache survives a kill): that rests on
//! `synchronous=FULL`, which a test of the connection checks.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use dibs_ledger::{
    Change, Ledger, LedgerBatch, SqliteLedger,
    conformance::{dump, history::coupon},
};

const FOLDER: &str = "DIBS_LEDGER_CRASH_TEST";

/// Not a test: the writer that the test below kills. Writes batches of growing size until then, and a line with
/// the next offset after each that was answered.
#[test]
fn writer() {
    let Ok(folder) = env::var(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let ledger = SqliteLedger::open(Path::new(&folder).join("ledger.db")).unwrap();
        let lease = ledger.acquire(0).await.unwrap();
        let mut from = lease.next_offset;
        for size in (1..200).cycle() {
            let to = from + size;
            let changes =
                (from..to).map(|o| (o, Change::Issued(coupon("summer", o as u32 + 1, 0, o)))).collect();
            ledger
                .commit(&LedgerBatch { partition: 0, epoch: lease.epoch, from, to, changes })
                .await
                .unwrap();
            from = to;
            // Past the test harness, which would keep what is printed.
            if writeln!(std::io::stderr(), "committed {to}").is_err() {
                return;
            }
        }
    });
}

#[tokio::test]
async fn killed_at_any_moment_rows_and_progress_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let mut epoch = 0;
    for lives in [1, 2, 5, 17, 40, 90] {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let answered =
            |line: std::io::Result<String>| line.unwrap().strip_prefix("committed ")?.parse::<u64>().ok();
        let mut last = lines.by_ref().filter_map(answered).nth(lives - 1).expect("the writer lives");
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died was answered too. Its last line may be torn: half a number is no
        // larger.
        last = last.max(lines.filter_map(answered).max().unwrap_or(0));

        let ledger = SqliteLedger::open(&path).unwrap();
        let dumped = dump(&ledger, &[0]).await;
        let next = dumped.next_offsets[0].unwrap();
        assert!(next >= last, "{last} was answered, {next} is there");
        let offsets: Vec<u64> = dumped.coupons.iter().map(|coupon| coupon.offset).collect();
        assert_eq!(offsets, (0..next).collect::<Vec<_>>());
        assert_eq!(dumped.outbox.len() as u64, next);
        assert_eq!(ledger.counts("summer").await.unwrap().issued, next);
        assert_eq!(dumped.windows, dumped.rehashed());
        // The killed one held an epoch of its own; this is another.
        let lease = ledger.acquire(0).await.unwrap();
        assert_eq!((lease.epoch, lease.next_offset), (epoch + 2, next));
        epoch = lease.epoch;
        ledger.close().await;
    }
}
