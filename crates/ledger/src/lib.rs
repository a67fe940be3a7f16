//! The seam "a database". A ledger keeps what the log has decided in tables that a shop's own SQL can read:
//! one row for each coupon, an outbox, checksummed windows, and how far each partition has come. It decides
//! nothing: everything in it can be deleted and rebuilt from the log, to the same rows.
//!
//! # Fencing
//!
//! A partition has one writer. [`Ledger::acquire`] gives it a new epoch, which the database owns, and fences
//! the writer before it. [`Ledger::commit`] is one transaction that requires the epoch *and* the offset it
//! goes on from; otherwise it changes nothing. So a batch whose outcome is unknown can be sent again as it
//! is: either it lands now, or the answer is [`LedgerError::Fenced`] and
//! [`held`](LedgerError::Fenced::held) says whether it had landed before.
//!
//! # For a shop's own SQL
//!
//! `coupons` has its primary key (campaign_id, rank_no) and one index (log_partition, log_offset); both grow
//! at their end, which costs next to nothing. There is deliberately no index by `user_id` or by `code`: both
//! are random, so that every batch would touch pages all over the index. Measured on a million coupons, each
//! of them halves the rate of issuing, and both together leave a quarter (docs/decisions/0002). Dibs itself
//! finds users and codes in its memory. Create them once the rush is over if you query by them; that takes
//! about a second for a million rows:
//!
//! ```sql
//! CREATE INDEX coupons_by_user ON coupons (user_id);
//! CREATE INDEX coupons_by_code ON coupons (code);
//! ```
//!
//! A code is unique within its campaign by the way it is made (a permutation of the rank, or a list whose
//! repetitions are dropped on import), so no index has to check that.

pub mod audit;
pub mod change;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod outbox;
pub mod sqlite;

use std::future::Future;

use dibs_model::{Offset, Partition, Rank};

pub use audit::{WINDOW_OFFSETS, Window, coupon_hash, window_start};
pub use change::{
    Campaign, CampaignState, Change, Counts, Coupon, CouponStatus, Lease, LedgerBatch, MAX_OFFSET,
};
pub use error::{LedgerError, OpenError, Poison, Position, TransientCause};
pub use outbox::{EventKind, OutboxRow, event_id};
pub use sqlite::SqliteLedger;

/// A database that keeps coupons. Safe to share between tasks; calls may run at the same time.
///
/// Every method may fail with [`LedgerError::Transient`], [`LedgerError::Broken`] or [`LedgerError::Closed`].
/// A future that is dropped before it is ready leaves the outcome of a write unknown, as a lost connection
/// would.
pub trait Ledger: Send + Sync + 'static {
    /// Takes the partition over: a new epoch, one above the last (the first is 1). Whoever held it can no
    /// longer commit. A partition that was never acquired goes on from offset 0.
    fn acquire(&self, partition: Partition) -> impl Future<Output = Result<Lease, LedgerError>> + Send;

    /// Writes one batch in one transaction: its changes, their outbox rows, the windows' sums, the counts and
    /// the next offset. All of it or nothing.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Fenced`] when the epoch or `from` is not what the ledger holds; [`LedgerError::Permanent`]
    /// with the offset of the record at fault when a change cannot be written, now or ever. After
    /// [`LedgerError::Transient`] the outcome is unknown: send the same batch again.
    fn commit(&self, batch: &LedgerBatch) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// The offset that the partition goes on from, without taking it over; none if it was never acquired.
    fn next_offset(
        &self,
        partition: Partition,
    ) -> impl Future<Output = Result<Option<Offset>, LedgerError>> + Send;

    /// Up to `limit` coupons of a campaign with a rank above `after`, by rank. Ranks start at 1: begin with 0.
    fn coupons(
        &self,
        campaign: &str,
        after: Rank,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Coupon>, LedgerError>> + Send;

    /// Up to `limit` coupons whose claim stands at an offset from `from` to before `to`, by offset. A claim wins
    /// at most one coupon: go on with the last one's offset plus 1.
    fn coupons_claimed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Coupon>, LedgerError>> + Send;

    /// Up to `limit` campaigns with an id above `after` and how many coupons each has, by id. Begin with "".
    fn campaigns(
        &self,
        after: &str,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(Campaign, Counts)>, LedgerError>> + Send;

    /// How many coupons a campaign has in each status; zeros for one that the ledger does not know.
    fn counts(&self, campaign: &str) -> impl Future<Output = Result<Counts, LedgerError>> + Send;

    /// Up to `limit` windows of a partition that start at `from` or later, in order. A window without a coupon
    /// may have no row. Go on with the last one's `to`.
    fn windows(
        &self,
        partition: Partition,
        from: Offset,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Window>, LedgerError>> + Send;

    /// Up to `limit` outbox rows of a partition with an id above `after`, in the order of the log. Begin with "".
    ///
    /// Within a partition this order is also the order of commits, in any database, because a partition has one
    /// writer that goes forward: a row that appears later never sorts before one that was read.
    fn outbox(
        &self,
        partition: Partition,
        after: &str,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<OutboxRow>, LedgerError>> + Send;

    /// Deletes the partition's outbox rows with an id up to and including `through`, and says how many there
    /// were. For the relay, once they are in the log. Without it the outbox grows for ever.
    fn trim_outbox(
        &self,
        partition: Partition,
        through: &str,
    ) -> impl Future<Output = Result<u64, LedgerError>> + Send;

    /// Lets the database go, after what was asked before. Every later call is answered [`LedgerError::Closed`].
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Lets the calling thread give way to those that answer claims when there is more to do than processors: a
/// coupon's row may come later, a verdict may not. Linux counts niceness by thread; elsewhere nothing happens.
pub fn give_way() {
    // A process may always lower its own priority; if it may not, it is only less polite.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICENESS);
}

/// About a tenth of the share that another thread has where both want the same processor.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
