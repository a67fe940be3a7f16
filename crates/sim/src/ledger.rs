//! A database that is away, answers too late or not at all, and keeps batches on their way.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{Mutex, MutexGuard},
};

use dibs_ledger::{
    Campaign, Counts, Coupon, Lease, Ledger, LedgerBatch, LedgerError, OutboxRow, SqliteLedger,
    TransientCause, Window,
};
use dibs_model::{Offset, Partition, Rank};
use tokio::sync::Notify;

/// What becomes of one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is written, the caller learns of trouble.
    Fails,
    /// All is written, the caller learns of trouble: the outcome is unknown.
    FailsAfter,
    /// The caller dies before the database has it; the batch stays on its way and may arrive later.
    DiesBefore,
    /// The caller dies after it is written.
    DiesAfter,
}

/// SQLite in memory behind those faults.
pub struct FaultyLedger {
    inner: SqliteLedger,
    /// For the next commits, or acquisitions.
    faults: Mutex<VecDeque<Fault>>,
    /// Batches whose sender died.
    on_the_way: Mutex<Vec<LedgerBatch>>,
    /// Told when a caller is to die.
    pub killed: Notify,
    /// What the database refused for good: in an honest world nothing.
    refused: Mutex<Vec<String>>,
    ignore_epochs: bool,
}

impl FaultyLedger {
    /// An empty database. `ignore_epochs` makes every writer welcome, as without fencing.
    pub fn new(ignore_epochs: bool) -> FaultyLedger {
        FaultyLedger {
            inner: SqliteLedger::open_in_memory().expect("there is memory"),
            faults: Mutex::default(),
            on_the_way: Mutex::default(),
            killed: Notify::new(),
            refused: Mutex::default(),
            ignore_epochs,
        }
    }

    /// Plans what becomes of the commits to come, the first of them first.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut planned = lock(&self.faults);
        planned.clear();
        planned.extend(faults);
    }

    /// Lets one batch arrive whose sender has died. Says whether there was one and whether it was taken.
    pub async fn deliver(&self) -> Option<Result<(), LedgerError>> {
        let batch = lock(&self.on_the_way).pop()?;
        Some(self.write(&batch).await)
    }

    /// What the database has refused for good so far.
    pub fn refused(&self) -> Option<String> {
        lock(&self.refused).first().cloned()
    }

    async fn write(&self, batch: &LedgerBatch) -> Result<(), LedgerError> {
        let mut result = self.inner.commit(batch).await;
        if let Err(LedgerError::Fenced { held, .. }) = &result
            && self.ignore_epochs
            && held.epoch != batch.epoch
        {
            let Lease { epoch, next_offset, .. } = self.inner.acquire(batch.partition).await?;
            let to = batch.to.max(next_offset);
            let unfenced = LedgerBatch { epoch, from: next_offset, to, ..batch.clone() };
            result = self.inner.commit(&unfenced).await;
        }
        if let Err(error @ (LedgerError::Permanent { .. } | LedgerError::Broken(_))) = &result {
            lock(&self.refused).push(error.to_string());
        }
        result
    }

    fn fault(&self) -> Option<Fault> {
        lock(&self.faults).pop_front()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while locked")
}

fn trouble() -> LedgerError {
    LedgerError::Transient { cause: TransientCause::Io, detail: "simulated".into() }
}

impl Ledger for FaultyLedger {
    async fn acquire(&self, partition: Partition) -> Result<Lease, LedgerError> {
        match self.fault() {
            None => self.inner.acquire(partition).await,
            Some(Fault::Fails | Fault::DiesBefore) => Err(trouble()),
            Some(Fault::FailsAfter | Fault::DiesAfter) => {
                self.inner.acquire(partition).await?;
                Err(trouble())
            }
        }
    }

    async fn commit(&self, batch: &LedgerBatch) -> Result<(), LedgerError> {
        let fault = self.fault();
        match fault {
            None => self.write(batch).await,
            Some(Fault::Fails) => Err(trouble()),
            Some(Fault::FailsAfter) => {
                self.write(batch).await?;
                Err(trouble())
            }
            Some(Fault::DiesBefore) => {
                lock(&self.on_the_way).push(batch.clone());
                self.killed.notify_one();
                pending().await
            }
            Some(Fault::DiesAfter) => {
                self.write(batch).await?;
                self.killed.notify_one();
                pending().await
            }
        }
    }

    async fn next_offset(&self, partition: Partition) -> Result<Option<Offset>, LedgerError> {
        self.inner.next_offset(partition).await
    }

    async fn coupons(&self, campaign: &str, after: Rank, limit: u32) -> Result<Vec<Coupon>, LedgerError> {
        self.inner.coupons(campaign, after, limit).await
    }

    async fn coupons_claimed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
        limit: u32,
    ) -> Result<Vec<Coupon>, LedgerError> {
        self.inner.coupons_claimed(partition, from, to, limit).await
    }

    async fn campaigns(&self, after: &str, limit: u32) -> Result<Vec<(Campaign, Counts)>, LedgerError> {
        self.inner.campaigns(after, limit).await
    }

    async fn counts(&self, campaign: &str) -> Result<Counts, LedgerError> {
        self.inner.counts(campaign).await
    }

    async fn windows(
        &self,
        partition: Partition,
        from: Offset,
        limit: u32,
    ) -> Result<Vec<Window>, LedgerError> {
        self.inner.windows(partition, from, limit).await
    }

    async fn outbox(
        &self,
        partition: Partition,
        after: &str,
        limit: u32,
    ) -> Result<Vec<OutboxRow>, LedgerError> {
        self.inner.outbox(partition, after, limit).await
    }

    async fn trim_outbox(&self, partition: Partition, through: &str) -> Result<u64, LedgerError> {
        self.inner.trim_outbox(partition, through).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
