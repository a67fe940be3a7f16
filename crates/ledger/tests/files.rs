//! What can be wrong with a file, and what others may do to it.

use std::{fs, path::Path};

use dibs_ledger::{
    Change, Ledger, LedgerBatch, LedgerError, OpenError, SqliteLedger, TransientCause,
    conformance::{dump, history::coupon},
};
use rusqlite::Connection;

fn coupons(epoch: u64, from: u64, to: u64) -> LedgerBatch {
    let changes = (from..to).map(|o| (o, Change::Issued(coupon("summer", o as u32 + 1, 0, o)))).collect();
    LedgerBatch { partition: 0, epoch, from, to, changes }
}

/// A ledger with ten coupons, closed.
async fn ten(path: &Path) {
    let ledger = SqliteLedger::open(path).unwrap();
    let lease = ledger.acquire(0).await.unwrap();
    ledger.commit(&coupons(lease.epoch, 0, 10)).await.unwrap();
    ledger.close().await;
}

#[test]
fn a_file_that_is_something_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let text = "rank,user\n".repeat(1_000);
    fs::write(&path, &text).unwrap();
    let refused = SqliteLedger::open(&path).unwrap_err();
    assert_eq!(refused, OpenError::NotADatabase { path: path.clone() });
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    // A database in which the names are taken: nothing of ours is left in it.
    let other = dir.path().join("shop.db");
    let db = Connection::open(&other).unwrap();
    db.execute_batch("CREATE TABLE coupons (id INTEGER)").unwrap();
    let refused = SqliteLedger::open(&other).unwrap_err();
    assert!(matches!(refused, OpenError::Prepare { error: LedgerError::Broken(_), .. }), "{refused}");
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("missing/ledger.db"), dir.path().into()] {
        let refused = SqliteLedger::open(&path).unwrap_err();
        assert!(matches!(&refused, OpenError::NotWritable { path: p, .. } if *p == path), "{refused}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_read_only_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    ten(&path).await;
    let allow = |mode| {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o100 | mode)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(0o400);
    // Root may write everywhere: then there is nothing to refuse.
    if fs::write(dir.path().join("probe"), "").is_err() {
        for path in [&path, &dir.path().join("new.db")] {
            let refused = SqliteLedger::open(path).unwrap_err();
            assert!(matches!(refused, OpenError::NotWritable { .. }), "{refused}");
        }
    }
    allow(0o600);
    SqliteLedger::open(&path).unwrap();
}

#[tokio::test]
async fn tables_of_a_newer_program_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    ten(&path).await;
    let db = Connection::open(&path).unwrap();
    let known: u32 = db.query_row("SELECT version FROM schema_version", [], |row| row.get(0)).unwrap();
    db.execute("UPDATE schema_version SET version = version + 1", []).unwrap();
    let refused = SqliteLedger::open(&path).unwrap_err();
    assert_eq!(refused, OpenError::TooNew { path: path.clone(), found: known + 1, known });
    db.execute("UPDATE schema_version SET version = version - 1", []).unwrap();
    let ledger = SqliteLedger::open(&path).unwrap();
    assert_eq!(ledger.next_offset(0).await.unwrap(), Some(10));
}

#[tokio::test]
async fn another_writer_makes_a_batch_wait_and_not_fail_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    ten(&path).await;
    let ledger = SqliteLedger::open(&path).unwrap();
    let lease = ledger.acquire(0).await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let batch = coupons(lease.epoch, 10, 20);
    let answer = ledger.commit(&batch).await;
    assert!(matches!(answer, Err(LedgerError::Transient { cause: TransientCause::Busy, .. })), "{answer:?}");
    // Readers do not wait for it.
    assert_eq!(ledger.coupons("summer", 0, 100).await.unwrap().len(), 10);
    other.execute_batch("ROLLBACK").unwrap();
    ledger.commit(&batch).await.unwrap();
}

#[tokio::test]
async fn of_two_processes_the_second_fences_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let (one, two) = (SqliteLedger::open(&path).unwrap(), SqliteLedger::open(&path).unwrap());
    let old = one.acquire(0).await.unwrap();
    one.commit(&coupons(old.epoch, 0, 10)).await.unwrap();
    let new = two.acquire(0).await.unwrap();
    assert_eq!(new.next_offset, 10);
    let answer = one.commit(&coupons(old.epoch, 10, 20)).await;
    assert!(matches!(answer, Err(LedgerError::Fenced { .. })), "{answer:?}");
    two.commit(&coupons(new.epoch, 10, 20)).await.unwrap();
    assert_eq!(one.coupons("summer", 0, 100).await.unwrap().len(), 20);
}

#[tokio::test]
async fn a_full_disk_is_transient_and_nothing_of_the_batch_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let ledger = SqliteLedger::open(&path).unwrap();
    let lease = ledger.acquire(0).await.unwrap();
    ledger.commit(&coupons(lease.epoch, 0, 10)).await.unwrap();
    let before = dump(&ledger, &[0]).await;
    ledger.limit_bytes(200_000).await.unwrap();
    let batch = coupons(lease.epoch, 10, 5_000);
    let answer = ledger.commit(&batch).await;
    assert!(
        matches!(answer, Err(LedgerError::Transient { cause: TransientCause::DiskFull, .. })),
        "{answer:?}"
    );
    assert_eq!(dump(&ledger, &[0]).await, before);
    ledger.limit_bytes(u64::MAX).await.unwrap();
    ledger.commit(&batch).await.unwrap();
    ledger.close().await;
}

#[tokio::test]
async fn a_window_tells_when_a_row_was_altered_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    ten(&path).await;
    let ledger = SqliteLedger::open(&path).unwrap();
    let honest = dump(&ledger, &[0]).await;
    assert_eq!(honest.windows, honest.rehashed());
    let db = Connection::open(&path).unwrap();
    for altered in [
        "UPDATE coupons SET user_id = 'mallory' WHERE rank_no = 3",
        "UPDATE coupons SET code = 'stolen' WHERE rank_no = 3",
        "UPDATE coupons SET code = NULL WHERE rank_no = 3",
        "UPDATE coupons SET rank_no = 999 WHERE rank_no = 3",
        "UPDATE coupons SET campaign_id = 'winter' WHERE rank_no = 3",
        "UPDATE coupons SET log_offset = 999 WHERE rank_no = 3",
        "DELETE FROM coupons WHERE rank_no = 3",
        // Two users who change places: XOR over the parts would not see it.
        "UPDATE coupons SET user_id = (SELECT user_id FROM coupons c WHERE c.rank_no = 7 - coupons.rank_no) \
         WHERE rank_no IN (3, 4)",
    ] {
        assert!(db.execute(altered, []).unwrap() > 0, "{altered}");
        let found = dump(&ledger, &[0]).await;
        assert_ne!(found.windows, found.rehashed(), "{altered}");
        for rank in [3, 4] {
            restore(&db, rank);
        }
        assert_eq!(dump(&ledger, &[0]).await, honest);
    }
}

/// Puts a row of [`ten`] back.
fn restore(db: &Connection, rank: u32) {
    let honest = coupon("summer", rank, 0, u64::from(rank) - 1);
    db.execute("DELETE FROM coupons WHERE rank_no IN (?1, 999) OR log_offset = ?2", (rank, honest.offset))
        .unwrap();
    db.execute(
        "INSERT INTO coupons (campaign_id, rank_no, user_id, code, status, log_partition, log_offset, claimed_at) \
         VALUES ('summer', ?1, ?2, ?3, 'issued', 0, ?4, ?5)",
        (rank, honest.user, honest.code, honest.offset, honest.timestamp.0),
    )
    .unwrap();
}
