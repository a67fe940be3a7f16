//! Random but repeatable histories: everything that can happen to coupons, and what must have become of them.

use std::{collections::BTreeMap, sync::Arc};

use dibs_model::{Offset, Partition, Rank, Timestamp};

use super::{Database, dump};
use crate::{
    Campaign, CampaignState, Change, Counts, Coupon, CouponStatus, Ledger, LedgerBatch, WINDOW_OFFSETS,
};

/// The changes of one partition from offset 0 to before `to`, and the rows that they make.
#[derive(Debug)]
pub struct History {
    /// Which partition.
    pub partition: Partition,
    /// The changes, in the order of the log.
    pub changes: Vec<(Offset, Change)>,
    /// The next offset after them.
    pub to: Offset,
    /// What every campaign must be.
    pub campaigns: BTreeMap<Arc<str>, Campaign>,
    /// What every coupon must be, by campaign and rank.
    pub coupons: BTreeMap<(Arc<str>, Rank), Coupon>,
}

/// A campaign as the checks write it.
pub fn campaign(id: &str, partition: Partition, created_offset: Offset) -> Campaign {
    Campaign {
        id: id.into(),
        title: format!("{id} — 여름 'sale'").into(),
        stock: 1_000,
        state: CampaignState::Active,
        opens_at: Timestamp(1_785_000_000_000),
        closes_at: Timestamp::NEVER,
        partition,
        created_offset,
    }
}

/// A new coupon as the checks write it, claimed at `offset`.
pub fn coupon(campaign: &str, rank: Rank, partition: Partition, offset: Offset) -> Coupon {
    Coupon {
        campaign: campaign.into(),
        rank,
        user: format!("user \"{}\" 김철수 {rank}", offset * 7).into(),
        code: Some(format!("{campaign}-{rank}").into()),
        status: CouponStatus::Issued,
        partition,
        offset,
        timestamp: Timestamp(1_785_000_000_000 + offset as i64),
        redeemed_by: None,
        redeemed_at: None,
    }
}

/// The history of that seed, with about `records` records that change something. Offsets jump, so that it
/// crosses several windows.
pub fn history(seed: u64, partition: Partition, records: u32) -> History {
    let mut random = Random(seed);
    let ids = ["autumn", "summer"];
    let mut history = History {
        partition,
        changes: Vec::new(),
        to: 0,
        campaigns: BTreeMap::new(),
        coupons: BTreeMap::new(),
    };
    // Claims that have not won yet and may be let in later, from the waitlist.
    let mut waiting = Vec::new();
    let mut ranks = [0; 2];
    let mut offset = 0;
    for record in 0..records {
        let which = random.below(2) as usize;
        let id: Arc<str> = ids[which].into();
        match random.below(10) {
            0 => history.campaign(&mut random, &id, offset),
            1 => waiting.push(offset),
            2..=6 => {
                let late = !waiting.is_empty() && random.below(4) == 0;
                let claim = if late {
                    waiting.swap_remove(random.below(waiting.len() as u64) as usize)
                } else {
                    offset
                };
                ranks[which] += 1;
                let mut coupon = coupon(&id, ranks[which], partition, claim);
                coupon.code = coupon.code.filter(|_| record % 3 != 0);
                history.coupons.insert((id, ranks[which]), coupon.clone());
                history.changes.push((offset, Change::Issued(coupon)));
            }
            _ => history.alter(&mut random, offset),
        }
        offset += if random.below(8) == 0 { random.below(WINDOW_OFFSETS) + 1 } else { 1 + random.below(2) };
    }
    history.to = offset;
    history
}

impl History {
    fn campaign(&mut self, random: &mut Random, id: &Arc<str>, offset: Offset) {
        let partition = self.partition;
        let row = self.campaigns.entry(id.clone()).or_insert_with(|| campaign(id, partition, offset));
        row.stock += 10;
        row.state =
            [CampaignState::Active, CampaignState::Paused, CampaignState::Closed][random.below(3) as usize];
        row.closes_at = if random.below(2) == 0 { Timestamp::NEVER } else { Timestamp(1_785_000_100_000) };
        self.changes.push((offset, Change::Campaign(row.clone())));
    }

    /// Something that can happen to one of the coupons, if there is one and anything can.
    fn alter(&mut self, random: &mut Random, offset: Offset) {
        let nth = random.below(self.coupons.len().max(1) as u64) as usize;
        let Some(((campaign, rank), coupon)) = self.coupons.iter_mut().nth(nth) else { return };
        let (campaign, rank) = (campaign.clone(), *rank);
        let change = match coupon.status {
            _ if coupon.code.is_none() && random.below(2) == 0 => {
                let code: Box<str> = format!("late-{offset}").into();
                coupon.code = Some(code.clone());
                Change::CodeAssigned { campaign, rank, code }
            }
            CouponStatus::Issued if random.below(3) == 0 => {
                coupon.status = CouponStatus::Cancelled;
                Change::Cancelled { campaign, rank }
            }
            CouponStatus::Issued => {
                let (by, at) = (Box::<str>::from("till \\7\""), Timestamp(1_785_000_000_000 + offset as i64));
                coupon.status = CouponStatus::Redeemed;
                coupon.redeemed_by = Some(by.clone());
                coupon.redeemed_at = Some(at);
                Change::Redeemed { campaign, rank, by, at }
            }
            CouponStatus::Redeemed => {
                coupon.status = CouponStatus::Issued;
                coupon.redeemed_by = None;
                coupon.redeemed_at = None;
                Change::Unredeemed { campaign, rank }
            }
            CouponStatus::Cancelled => return,
        };
        self.changes.push((offset, change));
    }

    /// The part from `from` to before `to` as a batch.
    pub fn batch(&self, epoch: u64, from: Offset, to: Offset) -> LedgerBatch {
        let changes =
            self.changes.iter().filter(|(offset, _)| (from..to).contains(offset)).cloned().collect();
        LedgerBatch { partition: self.partition, epoch, from, to, changes }
    }

    /// How many coupons a campaign must have in each status.
    pub fn counts(&self, campaign: &str) -> Counts {
        let mut counts = Counts::default();
        for coupon in self.coupons.values().filter(|coupon| *coupon.campaign == *campaign) {
            match coupon.status {
                CouponStatus::Issued => counts.issued += 1,
                CouponStatus::Redeemed => counts.redeemed += 1,
                CouponStatus::Cancelled => counts.cancelled += 1,
            }
        }
        counts
    }
}

/// Writes the history of `seed` in one batch, and cut at `cuts` (each modulo its length), into two empty
/// databases: the tables must be the same, and the history's.
pub async fn any_split<D: Database>(whole: &D, split: &D, seed: u64, cuts: &[Offset]) {
    let history = history(seed, 5, 120);
    let mut borders: Vec<Offset> = cuts.iter().map(|cut| cut % history.to).collect();
    borders.extend([0, history.to]);
    borders.sort_unstable();

    let (whole, split) = (whole.open().await, split.open().await);
    let lease = whole.acquire(5).await.expect("the partition");
    whole.commit(&history.batch(lease.epoch, 0, history.to)).await.expect("all at once");
    for border in borders.windows(2) {
        // A takeover between two batches must leave no trace either.
        let lease = split.acquire(5).await.expect("the partition");
        assert_eq!(lease.next_offset, border[0]);
        split.commit(&history.batch(lease.epoch, border[0], border[1])).await.expect("a part");
    }

    let dumped = dump(&whole, &[5]).await;
    assert_eq!(dumped, dump(&split, &[5]).await, "the tables depend on how the log was cut");
    assert_eq!(dumped.windows, dumped.rehashed(), "the windows are not the sums of their rows");
    let mut expected: Vec<Coupon> = history.coupons.values().cloned().collect();
    expected.sort_by_key(|coupon| coupon.offset);
    assert_eq!(dumped.coupons, expected);
    assert_eq!(dumped.outbox.len(), events(&history));
    for (campaign, counts) in &dumped.campaigns {
        assert_eq!(campaign, &history.campaigns[&campaign.id]);
        assert_eq!(*counts, history.counts(&campaign.id));
    }
    assert_eq!(dumped.campaigns.len(), history.campaigns.len());
    whole.close().await;
    split.close().await;
}

fn events(history: &History) -> usize {
    history.changes.iter().filter(|(_, change)| !matches!(change, Change::Campaign(_))).count()
}

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31) % n
    }
}
