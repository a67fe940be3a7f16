//! What is written: batches of changes, and the rows they make.

use std::sync::Arc;

use dibs_model::{Offset, Partition, Rank, Timestamp};

use crate::{WINDOW_OFFSETS, error::Poison};

/// The right to write a partition, until somebody else acquires it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which partition.
    pub partition: Partition,
    /// Goes into every batch; one above the former holder's.
    pub epoch: u64,
    /// Where to go on: the `from` of the next batch.
    pub next_offset: Offset,
}

/// What one transaction writes: everything that the records from `from` to before `to` have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerBatch {
    /// Which partition.
    pub partition: Partition,
    /// Of the lease.
    pub epoch: u64,
    /// The ledger's next offset before this batch.
    pub from: Offset,
    /// The ledger's next offset after it; not below `from`.
    pub to: Offset,
    /// The changes, each with the offset of the record that made it (which is within `from..to`), in order.
    /// One record makes at most one change of a kind to a coupon. A batch is held in memory, twice at worst:
    /// keep it to some thousand changes.
    pub changes: Vec<(Offset, Change)>,
}

/// One thing that is different from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A campaign is new, or has another stock or state. Replaces its row.
    Campaign(Campaign),
    /// A new coupon, in status `Issued`, of this partition.
    Issued(Coupon),
    /// An issued coupon was used.
    Redeemed {
        /// Whose coupon.
        campaign: Arc<str>,
        /// Which.
        rank: Rank,
        /// Who used it.
        by: Box<str>,
        /// When, by the log.
        at: Timestamp,
    },
    /// A use was taken back.
    Unredeemed {
        /// Whose coupon.
        campaign: Arc<str>,
        /// Which.
        rank: Rank,
    },
    /// An issued coupon was given up. Its row stays.
    Cancelled {
        /// Whose coupon.
        campaign: Arc<str>,
        /// Which.
        rank: Rank,
    },
    /// A coupon that had no code has one now: an imported code that came after the win.
    CodeAssigned {
        /// Whose coupon.
        campaign: Arc<str>,
        /// Which.
        rank: Rank,
        /// The code.
        code: Box<str>,
    },
}

/// A campaign's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    /// Its id.
    pub id: Arc<str>,
    /// For people.
    pub title: Box<str>,
    /// Coupons to give, restocks included.
    pub stock: u64,
    /// By what the log says, not by the clock.
    pub state: CampaignState,
    /// The first instant at which a claim can win.
    pub opens_at: Timestamp,
    /// The first instant at which a claim can no longer win; [`Timestamp::NEVER`] for none.
    pub closes_at: Timestamp,
    /// The partition that its claims are in; that of the batch.
    pub partition: Partition,
    /// Where its `create` stands.
    pub created_offset: Offset,
}

/// What the log says of a campaign. Whether it is open *now* also depends on the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignState {
    /// Neither paused nor closed.
    Active,
    /// Suspended until `resume`.
    Paused,
    /// Closed by hand.
    Closed,
}

/// A coupon's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coupon {
    /// Whose coupon.
    pub campaign: Arc<str>,
    /// The winner's number.
    pub rank: Rank,
    /// Who won it.
    pub user: Box<str>,
    /// None until an imported code comes.
    pub code: Option<Box<str>>,
    /// What became of it.
    pub status: CouponStatus,
    /// Where the claim stands.
    pub partition: Partition,
    /// Where the claim stands: not above the offset of the record that issued it, which is another one
    /// (a confirm, a cancel, a restock) when the claim was held or waited.
    pub offset: Offset,
    /// When the claim was appended, by the log.
    pub timestamp: Timestamp,
    /// Who used it; present exactly in status `Redeemed`.
    pub redeemed_by: Option<Box<str>>,
    /// When it was used, by the log; present exactly in status `Redeemed`.
    pub redeemed_at: Option<Timestamp>,
}

/// What became of a coupon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CouponStatus {
    /// It can be used.
    Issued,
    /// It has been used.
    Redeemed,
    /// It was given up and can never be used.
    Cancelled,
}

/// How many coupons a campaign has in each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In status `Issued`.
    pub issued: u64,
    /// In status `Redeemed`.
    pub redeemed: u64,
    /// In status `Cancelled`.
    pub cancelled: u64,
}

impl Counts {
    /// All rows of the campaign.
    pub fn rows(&self) -> u64 {
        self.issued + self.redeemed + self.cancelled
    }
}

/// The largest `to` of a batch: with the end of its window it still fits the signed numbers of databases and of
/// Kafka.
pub const MAX_OFFSET: Offset = i64::MAX as u64 - WINDOW_OFFSETS;

impl LedgerBatch {
    /// Checks that the batch goes forward, and not beyond [`MAX_OFFSET`].
    pub fn check_range(&self) -> Result<(), Poison> {
        if self.from <= self.to && self.to <= MAX_OFFSET {
            Ok(())
        } else {
            Err(Poison::Malformed("the batch does not go forward"))
        }
    }

    /// Checks what must hold of the change at `index`, whatever the database holds: its offset is in range and
    /// not below the one before, and it belongs to this partition.
    pub fn check(&self, index: usize) -> Result<(), Poison> {
        let (offset, change) = &self.changes[index];
        let before = if index == 0 { self.from } else { self.changes[index - 1].0 };
        if *offset < before || *offset >= self.to {
            return Err(Poison::Malformed("its offset is out of order or outside the batch"));
        }
        match change {
            Change::Issued(coupon) if coupon.partition != self.partition => {
                Err(Poison::Malformed("the coupon's claim is in another partition"))
            }
            Change::Issued(coupon) if coupon.offset > *offset => {
                Err(Poison::Malformed("the coupon is issued before it is claimed"))
            }
            Change::Issued(Coupon {
                status: CouponStatus::Issued,
                redeemed_by: None,
                redeemed_at: None,
                ..
            }) => Ok(()),
            Change::Issued(_) => Err(Poison::Malformed("a new coupon is not in status issued")),
            Change::Campaign(campaign) if campaign.partition != self.partition => {
                Err(Poison::Malformed("the campaign is in another partition"))
            }
            _ => Ok(()),
        }
    }
}

impl Coupon {
    /// Does to the row what a change says. The one place where the life of a coupon is spelled out, for all
    /// databases.
    ///
    /// # Errors
    ///
    /// [`Poison::Status`] or [`Poison::HasCode`] if the row is in no state for it, and then the row is as it was.
    pub fn apply(&mut self, change: &Change) -> Result<(), Poison> {
        match (change, self.status) {
            (Change::Redeemed { by, at, .. }, CouponStatus::Issued) => {
                self.status = CouponStatus::Redeemed;
                self.redeemed_by = Some(by.clone());
                self.redeemed_at = Some(*at);
            }
            (Change::Unredeemed { .. }, CouponStatus::Redeemed) => {
                self.status = CouponStatus::Issued;
                self.redeemed_by = None;
                self.redeemed_at = None;
            }
            (Change::Cancelled { .. }, CouponStatus::Issued) => self.status = CouponStatus::Cancelled,
            (Change::CodeAssigned { .. }, _) if self.code.is_some() => return Err(Poison::HasCode),
            (Change::CodeAssigned { code, .. }, _) => self.code = Some(code.clone()),
            (Change::Campaign(_) | Change::Issued(_), _) => {
                return Err(Poison::Malformed("it does not change a coupon that is there"));
            }
            _ => return Err(Poison::Status(self.status)),
        }
        Ok(())
    }
}

impl CouponStatus {
    /// The stable name, as it stands in the column.
    pub fn name(self) -> &'static str {
        match self {
            CouponStatus::Issued => "issued",
            CouponStatus::Redeemed => "redeemed",
            CouponStatus::Cancelled => "cancelled",
        }
    }

    /// The status of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Issued, Self::Redeemed, Self::Cancelled].into_iter().find(|s| s.name() == name)
    }
}

impl CampaignState {
    /// The stable name, as it stands in the column.
    pub fn name(self) -> &'static str {
        match self {
            CampaignState::Active => "active",
            CampaignState::Paused => "paused",
            CampaignState::Closed => "closed",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Active, Self::Paused, Self::Closed].into_iter().find(|s| s.name() == name)
    }
}
