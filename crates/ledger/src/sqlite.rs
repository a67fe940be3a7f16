//! The ledger in one SQLite file: nothing to install, and fast enough for a rush on one machine.
//!
//! One thread owns the connection that writes, another the one that reads, so that a page of coupons for a
//! person never waits behind a batch and the other way round; more connections would only wait for each other.
//! The journal is a write-ahead log with `synchronous=FULL`: a commit that was answered survives the loss of
//! power (`NORMAL`, the usual advice, may lose the last ones).
//!
//! Other programs may read the file at any time. Whoever writes to it makes batches wait, for [`BUSY_MS`] and
//! then with [`TransientCause::Busy`](crate::TransientCause::Busy).

mod faults;
mod migrate;
mod read;
mod worker;
mod write;

use std::path::{Path, PathBuf};

use dibs_model::{Offset, Partition, Rank};
use rusqlite::{Connection, OpenFlags};

use crate::{
    Campaign, Counts, Coupon, Lease, Ledger, LedgerBatch, LedgerError, OpenError, OutboxRow, Window,
};
use faults::{open_error, sql_error};
use worker::Worker;

/// How long a batch waits for another process that is writing, in milliseconds.
pub const BUSY_MS: u32 = 1_000;

/// Bytes of a database page. Of 4, 8 and 16 KiB the fastest to fill (docs/decisions/0002).
const PAGE_BYTES: u32 = 8_192;
/// Pages that the write-ahead log may have before they are copied into the database: 64 MiB. Rarer copying
/// writes a page that has changed several times only once.
const CHECKPOINT_PAGES: u32 = 8_192;
/// Memory for pages, in KiB, of the connection that writes and of the one that reads.
const WRITE_CACHE_KIB: u32 = 32_768;
const READ_CACHE_KIB: u32 = 8_192;

/// A [`Ledger`] in an SQLite file, or in memory.
#[derive(Debug)]
pub struct SqliteLedger {
    writer: Worker,
    /// The writer itself when the database is in memory, where a second connection would see nothing.
    reader: Worker,
}

impl SqliteLedger {
    /// Opens the file, or makes it, and brings its tables up to this program's version. Blocks while it does.
    ///
    /// # Errors
    ///
    /// One [`OpenError`] each for a file that is no database, a place that cannot be written, and tables that
    /// a newer program has made.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let writer = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
            .and_then(|mut db| {
                prepare_file(&db)?;
                Ok((migrate::migrate(&mut db), db))
            })
            .map_err(|e| open_error(path, e))?;
        let db = match writer {
            (Ok(()), db) => db,
            (Err(migrate::MigrateError::TooNew { found, known }), _) => {
                return Err(OpenError::TooNew { path: path.into(), found, known });
            }
            (Err(migrate::MigrateError::Sql(e)), _) => return Err(open_error(path, e)),
        };
        let reads = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .and_then(|db| {
                db.pragma_update(None, "cache_size", -i64::from(READ_CACHE_KIB))?;
                Ok(db)
            })
            .map_err(|e| open_error(path, e))?;
        Ok(SqliteLedger {
            writer: Worker::start("ledger-write", db),
            reader: Worker::start("ledger-read", reads),
        })
    }

    /// Lets the file grow to about that many bytes and no further (the write-ahead log comes on top). A batch
    /// that would go beyond is answered with [`TransientCause::DiskFull`](crate::TransientCause::DiskFull).
    /// Holds until the ledger is closed.
    ///
    /// # Errors
    ///
    /// As every call.
    pub async fn limit_bytes(&self, bytes: u64) -> Result<(), LedgerError> {
        // SQLite counts pages, in 32 bits.
        let set = move |db: &mut Connection| {
            let page: u64 = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            let pages = (bytes / page).clamp(1, u64::from(u32::MAX - 1));
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
        };
        self.writer.run(move |db| set(db).map_err(sql_error)).await
    }

    /// A ledger that is gone when it is closed. For tests and for trying things out.
    ///
    /// # Errors
    ///
    /// [`OpenError::Prepare`] when there is no memory for it.
    pub fn open_in_memory() -> Result<Self, OpenError> {
        let path = PathBuf::from(":memory:");
        let mut db = Connection::open_in_memory().map_err(|e| open_error(&path, e))?;
        match migrate::migrate(&mut db) {
            Ok(()) => {}
            Err(migrate::MigrateError::Sql(e)) => return Err(open_error(&path, e)),
            Err(migrate::MigrateError::TooNew { found, known }) => {
                return Err(OpenError::TooNew { path, found, known });
            }
        }
        let writer = Worker::start("ledger", db);
        Ok(SqliteLedger { reader: writer.clone(), writer })
    }
}

fn connect(path: &Path, how: OpenFlags) -> rusqlite::Result<Connection> {
    // No mutex: each connection is used by one thread. No URI: a path is a path.
    let db = Connection::open_with_flags(path, how | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // All that one connection ever runs.
    db.set_prepared_statement_cache_capacity(32);
    db.busy_timeout(std::time::Duration::from_millis(u64::from(BUSY_MS)))?;
    Ok(db)
}

fn prepare_file(db: &Connection) -> rusqlite::Result<()> {
    // Only a new file takes the page size, and only before it has a journal.
    db.pragma_update(None, "page_size", PAGE_BYTES)?;
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.query_row(&format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"), [], |_| Ok(()))?;
    db.pragma_update(None, "cache_size", -i64::from(WRITE_CACHE_KIB))
}

impl Ledger for SqliteLedger {
    async fn acquire(&self, partition: Partition) -> Result<Lease, LedgerError> {
        self.writer.run(move |db| write::acquire(db, partition)).await
    }

    async fn commit(&self, batch: &LedgerBatch) -> Result<(), LedgerError> {
        // The copy costs a fiftieth of the writing, and lets the caller keep the batch to send it again.
        let batch = batch.clone();
        self.writer.run(move |db| write::commit(db, &batch)).await
    }

    async fn next_offset(&self, partition: Partition) -> Result<Option<Offset>, LedgerError> {
        self.reader.run(move |db| read::next_offset(db, partition).map_err(sql_error)).await
    }

    async fn coupons(&self, campaign: &str, after: Rank, limit: u32) -> Result<Vec<Coupon>, LedgerError> {
        let campaign: Box<str> = campaign.into();
        self.reader.run(move |db| read::coupons(db, &campaign, after, limit).map_err(sql_error)).await
    }

    async fn coupons_claimed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
        limit: u32,
    ) -> Result<Vec<Coupon>, LedgerError> {
        self.reader
            .run(move |db| read::coupons_claimed(db, partition, from, to, limit).map_err(sql_error))
            .await
    }

    async fn campaigns(&self, after: &str, limit: u32) -> Result<Vec<(Campaign, Counts)>, LedgerError> {
        let after: Box<str> = after.into();
        self.reader.run(move |db| read::campaigns(db, &after, limit).map_err(sql_error)).await
    }

    async fn counts(&self, campaign: &str) -> Result<Counts, LedgerError> {
        let campaign: Box<str> = campaign.into();
        self.reader.run(move |db| read::counts(db, &campaign).map_err(sql_error)).await
    }

    async fn windows(
        &self,
        partition: Partition,
        from: Offset,
        limit: u32,
    ) -> Result<Vec<Window>, LedgerError> {
        self.reader.run(move |db| read::windows(db, partition, from, limit).map_err(sql_error)).await
    }

    async fn outbox(
        &self,
        partition: Partition,
        after: &str,
        limit: u32,
    ) -> Result<Vec<OutboxRow>, LedgerError> {
        let after: Box<str> = after.into();
        self.reader.run(move |db| read::outbox(db, partition, &after, limit).map_err(sql_error)).await
    }

    async fn trim_outbox(&self, partition: Partition, through: &str) -> Result<u64, LedgerError> {
        let through: Box<str> = through.into();
        self.writer.run(move |db| write::trim_outbox(db, partition, &through).map_err(sql_error)).await
    }

    async fn close(&self) {
        // The reader first: the last connection to close copies the write-ahead log into the database.
        self.reader.close().await;
        self.writer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings that a durable commit rests on; a kill does not show their absence.
    #[tokio::test]
    async fn commits_are_synced() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(dir.path().join("ledger.db")).unwrap();
        let settings = |db: &mut Connection| {
            let journal: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
            let synchronous: i64 = db.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
            Ok((journal, synchronous))
        };
        let found = ledger.writer.run(move |db| settings(db).map_err(sql_error)).await.unwrap();
        assert_eq!(found, ("wal".into(), 2), "2 is FULL");
    }
}
