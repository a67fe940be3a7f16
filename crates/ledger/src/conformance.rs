//! The suite that every implementation of [`Ledger`] must pass. Feature `conformance`.
//!
//! Each check takes a [`Database`] that is empty, and panics with what does not hold. [`conformance_tests!`] makes
//! a test of each.
//!
//! [`conformance_tests!`]: crate::conformance_tests

pub mod checks;
pub mod history;

use std::future::Future;

use dibs_model::{Offset, Partition};

use crate::{Campaign, Counts, Coupon, Ledger, OutboxRow, Window, window_start};

/// A database for one check.
pub trait Database {
    /// What is checked.
    type Ledger: Ledger;

    /// Opens the database: empty the first time, afterwards with what was committed before.
    fn open(&self) -> impl Future<Output = Self::Ledger>;

    /// Whether what was committed is still there after a close.
    fn survives_close(&self) -> bool;
}

/// Makes one test of every check that takes one empty database. The argument is an expression that makes a
/// [`Database`](crate::conformance::Database), evaluated in each test.
#[macro_export]
macro_rules! conformance_tests {
    ($database:expr) => {
        $crate::conformance_tests! { $database =>
            acquiring_bumps_the_epoch
            a_stale_epoch_changes_nothing
            a_wrong_offset_changes_nothing
            a_batch_that_landed_is_fenced
            poison_takes_the_whole_batch_back
            one_among_many_is_found
            ranks_and_claims_are_unique
            a_coupon_lives_and_tells
            windows_match_their_rows
            pages_are_complete
            partitions_are_apart
            the_outbox_is_trimmed
            usurpers_lose_nothing
            what_is_committed_stays
            closed_is_closed
        }
    };
    ($database:expr => $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                let runtime = ::tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                runtime.block_on($crate::conformance::checks::$check(&$database));
            }
        )*
    };
}

/// All that a ledger shows of some partitions.
#[derive(Debug, PartialEq, Eq)]
pub struct Dump {
    /// Every campaign and its counts.
    pub campaigns: Vec<(Campaign, Counts)>,
    /// Every coupon, by partition and claim.
    pub coupons: Vec<Coupon>,
    /// Every window.
    pub windows: Vec<Window>,
    /// Every event.
    pub outbox: Vec<OutboxRow>,
    /// The next offset of each partition.
    pub next_offsets: Vec<Option<Offset>>,
}

/// Reads all that there is, in small pages.
pub async fn dump<L: Ledger>(ledger: &L, partitions: &[Partition]) -> Dump {
    const PAGE: u32 = 7;
    let mut dump =
        Dump { campaigns: vec![], coupons: vec![], windows: vec![], outbox: vec![], next_offsets: vec![] };
    loop {
        let after = dump.campaigns.last().map_or("".into(), |(campaign, _)| campaign.id.clone());
        let page = ledger.campaigns(&after, PAGE).await.expect("campaigns");
        dump.campaigns.extend_from_slice(&page);
        if page.is_empty() {
            break;
        }
    }
    for &partition in partitions {
        let mut from = 0;
        loop {
            let page = ledger.coupons_claimed(partition, from, Offset::MAX, PAGE).await.expect("coupons");
            let Some(last) = page.last() else { break };
            from = last.offset + 1;
            dump.coupons.extend(page);
        }
        from = 0;
        loop {
            let page = ledger.windows(partition, from, PAGE).await.expect("windows");
            let Some(last) = page.last() else { break };
            from = last.to;
            dump.windows.extend(page);
        }
        let mut after: Box<str> = "".into();
        loop {
            let page = ledger.outbox(partition, &after, PAGE).await.expect("outbox");
            let Some(last) = page.last() else { break };
            after = last.id.clone();
            dump.outbox.extend(page);
        }
        dump.next_offsets.push(ledger.next_offset(partition).await.expect("the next offset"));
    }
    dump
}

impl Dump {
    /// The windows that the coupons make, by hashing them again.
    pub fn rehashed(&self) -> Vec<Window> {
        let mut windows = std::collections::BTreeMap::<(Partition, Offset), (u64, u64)>::new();
        for coupon in &self.coupons {
            let sum = windows.entry((coupon.partition, window_start(coupon.offset))).or_default();
            *sum = (sum.0 + 1, sum.1.wrapping_add(coupon.hash()));
        }
        let window = |((partition, from), (count, hash))| Window {
            partition,
            from,
            to: from + crate::WINDOW_OFFSETS,
            count,
            hash,
        };
        windows.into_iter().map(window).collect()
    }
}
