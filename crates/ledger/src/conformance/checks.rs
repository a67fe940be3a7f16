//! The checks, each on an empty database.

use std::sync::Arc;

use dibs_model::{Offset, Partition, Rank, Timestamp};

use super::{
    Database, Dump, dump,
    history::{campaign, coupon, history},
};
use crate::{
    CampaignState, Change, Counts, CouponStatus, EventKind, Lease, Ledger, LedgerBatch, LedgerError,
    MAX_OFFSET, Poison, Position, WINDOW_OFFSETS, event_id,
};

fn batch(lease: Lease, from: Offset, to: Offset, changes: Vec<(Offset, Change)>) -> LedgerBatch {
    LedgerBatch { partition: lease.partition, epoch: lease.epoch, from, to, changes }
}

fn issued(campaign: &str, rank: Rank, partition: Partition, offset: Offset) -> (Offset, Change) {
    (offset, Change::Issued(coupon(campaign, rank, partition, offset)))
}

/// Ranks 1 to `n` of `summer` at offsets 0 to `n` of the partition.
fn first(n: u32, lease: Lease) -> LedgerBatch {
    let changes = (0..n).map(|i| issued("summer", i + 1, lease.partition, i.into())).collect();
    batch(lease, 0, n.into(), changes)
}

/// What there is after ten coupons, and the lease that wrote them.
async fn ten<L: Ledger>(ledger: &L) -> (Lease, Dump) {
    let lease = ledger.acquire(0).await.unwrap();
    let mut batch = first(10, lease);
    batch.changes.insert(0, (0, Change::Campaign(campaign("summer", 0, 0))));
    ledger.commit(&batch).await.unwrap();
    (lease, dump(ledger, &[0]).await)
}

/// Every acquire takes the partition one epoch further and keeps the offset.
pub async fn acquiring_bumps_the_epoch<D: Database>(database: &D) {
    let ledger = database.open().await;
    assert_eq!(ledger.next_offset(0).await.unwrap(), None);
    assert_eq!(ledger.acquire(0).await.unwrap(), Lease { partition: 0, epoch: 1, next_offset: 0 });
    assert_eq!(ledger.acquire(0).await.unwrap(), Lease { partition: 0, epoch: 2, next_offset: 0 });
    let lease = ledger.acquire(0).await.unwrap();
    ledger.commit(&first(5, lease)).await.unwrap();
    assert_eq!(ledger.acquire(0).await.unwrap(), Lease { partition: 0, epoch: 4, next_offset: 5 });
    assert_eq!(ledger.acquire(1).await.unwrap(), Lease { partition: 1, epoch: 1, next_offset: 0 });
    assert_eq!(ledger.next_offset(0).await.unwrap(), Some(5));
    ledger.close().await;
}

/// A former holder, and whoever never acquired, changes nothing.
pub async fn a_stale_epoch_changes_nothing<D: Database>(database: &D) {
    let ledger = database.open().await;
    let (old, before) = ten(&ledger).await;
    let new = ledger.acquire(0).await.unwrap();
    for epoch in [old.epoch, 0, new.epoch + 1] {
        let stale = Lease { epoch, ..new };
        let answer = ledger.commit(&batch(stale, 10, 11, vec![issued("summer", 11, 0, 10)])).await;
        let expected = Position { epoch, next_offset: 10 };
        let held = Position { epoch: new.epoch, next_offset: 10 };
        assert_eq!(answer, Err(LedgerError::Fenced { partition: 0, expected, held }));
        assert_eq!(dump(&ledger, &[0]).await, before);
    }
    // Nobody holds partition 9, not even epoch 0.
    let nobody = Lease { partition: 9, epoch: 0, next_offset: 0 };
    let answer = ledger.commit(&batch(nobody, 0, 1, vec![issued("x", 1, 9, 0)])).await;
    assert!(matches!(answer, Err(LedgerError::Fenced { .. })), "{answer:?}");
    ledger.commit(&batch(new, 10, 11, vec![issued("summer", 11, 0, 10)])).await.unwrap();
    ledger.close().await;
}

/// A batch that does not go on from the ledger's offset changes nothing, be it ahead or behind.
pub async fn a_wrong_offset_changes_nothing<D: Database>(database: &D) {
    let ledger = database.open().await;
    let (lease, before) = ten(&ledger).await;
    for from in [0, 9, 11] {
        let answer = ledger.commit(&batch(lease, from, 20, vec![issued("summer", 11, 0, 15)])).await;
        assert!(matches!(answer, Err(LedgerError::Fenced { .. })), "from {from}: {answer:?}");
        assert_eq!(dump(&ledger, &[0]).await, before);
    }
    // Records that change nothing move the offset all the same.
    ledger.commit(&batch(lease, 10, 50, vec![])).await.unwrap();
    ledger.commit(&batch(lease, 50, 50, vec![])).await.unwrap();
    assert_eq!(ledger.next_offset(0).await.unwrap(), Some(50));
    ledger.close().await;
}

/// After an unknown outcome the same batch again is answered with where the ledger is: at its end.
pub async fn a_batch_that_landed_is_fenced<D: Database>(database: &D) {
    let ledger = database.open().await;
    let lease = ledger.acquire(0).await.unwrap();
    let again = first(10, lease);
    ledger.commit(&again).await.unwrap();
    let before = dump(&ledger, &[0]).await;
    let answer = ledger.commit(&again).await;
    let Err(LedgerError::Fenced { held, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!(held, Position { epoch: again.epoch, next_offset: again.to });
    assert_eq!(dump(&ledger, &[0]).await, before);
    ledger.close().await;
}

/// One record that cannot be written takes back all others of its batch, and is named.
pub async fn poison_takes_the_whole_batch_back<D: Database>(database: &D) {
    let ledger = database.open().await;
    let (lease, before) = ten(&ledger).await;
    let summer: Arc<str> = "summer".into();
    let late = |rank, code: &str| Change::CodeAssigned { campaign: summer.clone(), rank, code: code.into() };
    let redeemed = |rank| Change::Redeemed {
        campaign: summer.clone(),
        rank,
        by: "till".into(),
        at: Timestamp(1_785_000_000_000),
    };
    let mut no_new = coupon("summer", 99, 0, 15);
    no_new.status = CouponStatus::Redeemed;
    let mut elsewhere = coupon("summer", 99, 1, 15);
    elsewhere.user = "u".into();
    type Matches = fn(&Poison) -> bool;
    let duplicate: Matches = |p| matches!(p, Poison::Duplicate(_));
    let missing: Matches = |p| *p == Poison::NoSuchCoupon;
    let malformed: Matches = |p| matches!(p, Poison::Malformed(_));
    let poisons: [(Change, Matches); 12] = [
        (Change::Issued(coupon("summer", 3, 0, 15)), duplicate),
        (Change::Issued(coupon("summer", 99, 0, 3)), duplicate),
        (redeemed(77), missing),
        (Change::Cancelled { campaign: "winter".into(), rank: 1 }, missing),
        (redeemed(1), |p| *p == Poison::Status(CouponStatus::Redeemed)),
        (Change::Unredeemed { campaign: summer.clone(), rank: 2 }, |p| {
            *p == Poison::Status(CouponStatus::Issued)
        }),
        (late(4, "again"), |p| *p == Poison::HasCode),
        (Change::Issued(no_new), malformed),
        (Change::Issued(elsewhere), malformed),
        (Change::Issued(coupon("summer", 99, 0, 16)), malformed),
        (Change::Campaign(campaign("x", 1, 15)), malformed),
        (Change::Issued(coupon("summer", 11, 0, 15)), duplicate),
    ];
    let mut good =
        vec![issued("summer", 11, 0, 10), (11, redeemed(1)), issued("autumn", 1, 0, WINDOW_OFFSETS)];
    good.insert(0, (10, Change::Campaign(campaign("autumn", 0, 10))));
    for (poison, expected) in poisons {
        let mut changes = good.clone();
        changes.insert(3, (15, poison.clone()));
        let answer = ledger.commit(&batch(lease, 10, WINDOW_OFFSETS + 1, changes)).await;
        match answer {
            Err(LedgerError::Permanent { offset: 15, ref reason }) if expected(reason) => {}
            other => panic!("{poison:?}: {other:?}"),
        }
        assert_eq!(dump(&ledger, &[0]).await, before, "{poison:?}");
    }
    for outside in [9, 12] {
        // Before the batch, and before the change in front of it.
        let changes =
            vec![issued("summer", 11, 0, if outside == 9 { 9 } else { 13 }), issued("summer", 12, 0, 12)];
        let answer = ledger.commit(&batch(lease, 10, 20, changes)).await;
        assert!(matches!(answer, Err(LedgerError::Permanent { .. })), "{answer:?}");
    }
    let answer = ledger.commit(&batch(lease, 10, 12, vec![issued("summer", 11, 0, 12)])).await;
    assert!(matches!(answer, Err(LedgerError::Permanent { .. })), "{answer:?}");
    let answer = ledger.commit(&batch(lease, 10, 9, vec![])).await;
    assert!(matches!(answer, Err(LedgerError::Permanent { .. })), "{answer:?}");
    assert_eq!(dump(&ledger, &[0]).await, before);
    // Without the poison the same batch lands.
    ledger.commit(&batch(lease, 10, WINDOW_OFFSETS + 1, good)).await.unwrap();
    assert_eq!(ledger.counts("summer").await.unwrap(), Counts { issued: 10, redeemed: 1, cancelled: 0 });
    ledger.close().await;
}

/// One coupon that cannot be written among many that can is found, wherever it stands; and many at once make the
/// same rows as one by one.
pub async fn one_among_many_is_found<D: Database>(database: &D) {
    const COUPONS: u64 = 230;
    let ledger = database.open().await;
    let lease = ledger.acquire(0).await.unwrap();
    let good: Vec<_> = (0..COUPONS).map(|o| issued("summer", o as Rank + 1, 0, o)).collect();
    for bad in [1, 49, 50, 75, 199, 229] {
        let mut changes = good.clone();
        changes[bad as usize] = issued("summer", 1, 0, bad);
        let duplicate = ledger.commit(&batch(lease, 0, COUPONS, changes.clone())).await;
        assert!(
            matches!(duplicate, Err(LedgerError::Permanent { offset, reason: Poison::Duplicate(_) }) if offset == bad),
            "{bad}: {duplicate:?}"
        );
        changes[bad as usize] = (bad, Change::Issued(coupon("summer", 999, 0, bad + 1)));
        let malformed = ledger.commit(&batch(lease, 0, COUPONS, changes)).await;
        assert!(
            matches!(malformed, Err(LedgerError::Permanent { offset, reason: Poison::Malformed(_) }) if offset == bad),
            "{bad}: {malformed:?}"
        );
        assert_eq!(ledger.counts("summer").await.unwrap(), Counts::default());
    }
    ledger.commit(&batch(lease, 0, COUPONS, good.clone())).await.unwrap();
    // The same in another partition, one by one.
    let lease = ledger.acquire(1).await.unwrap();
    for o in 0..COUPONS {
        let one = issued("winter", o as Rank + 1, 1, o);
        ledger.commit(&batch(lease, o, o + 1, vec![one])).await.unwrap();
    }
    let (many, single) = (dump(&ledger, &[0]).await, dump(&ledger, &[1]).await);
    let rows: Vec<_> = many.coupons.iter().map(|row| (row.offset, Change::Issued(row.clone()))).collect();
    assert_eq!(rows, good);
    assert_eq!(many.windows, many.rehashed());
    assert_eq!(single.windows, single.rehashed());
    let ids = |dump: &Dump| dump.outbox.iter().map(|row| row.id[9..].to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&many), ids(&single));
    assert_eq!(ledger.counts("summer").await.unwrap(), ledger.counts("winter").await.unwrap());
    ledger.close().await;
}

/// A rank never becomes two rows, nor does a claim: within a batch, across batches, across partitions.
pub async fn ranks_and_claims_are_unique<D: Database>(database: &D) {
    let ledger = database.open().await;
    let (lease, before) = ten(&ledger).await;
    let other = ledger.acquire(1).await.unwrap();
    let cases = [
        batch(lease, 10, 20, vec![issued("summer", 10, 0, 10)]),
        batch(lease, 10, 20, vec![issued("summer", 11, 0, 10), issued("summer", 11, 0, 11)]),
        batch(lease, 10, 20, vec![issued("summer", 11, 0, 10), issued("autumn", 1, 0, 10)]),
        batch(other, 0, 20, vec![issued("summer", 10, 1, 10)]),
    ];
    for case in cases {
        let answer = ledger.commit(&case).await;
        let duplicate = matches!(answer, Err(LedgerError::Permanent { reason: Poison::Duplicate(_), .. }));
        assert!(duplicate, "{case:?}: {answer:?}");
    }
    assert_eq!(dump(&ledger, &[0]).await, before);
    ledger.close().await;
}

/// What can happen to a coupon, in its row, in the counts, and in what other services hear.
pub async fn a_coupon_lives_and_tells<D: Database>(database: &D) {
    let ledger = database.open().await;
    let lease = ledger.acquire(3).await.unwrap();
    let id: Arc<str> = "summer".into();
    let mut new = coupon("summer", 1, 3, 10);
    new.user = "u-1".into();
    new.code = None;
    let mut held = coupon("summer", 2, 3, 11);
    held.user = "u-2".into();
    let steps = vec![
        (20, Change::Issued(new.clone())),
        (20, Change::Issued(held)),
        (21, Change::CodeAssigned { campaign: id.clone(), rank: 1, code: "C-1".into() }),
        (22, Change::Redeemed { campaign: id.clone(), rank: 1, by: "a".into(), at: Timestamp(5) }),
        (23, Change::Unredeemed { campaign: id.clone(), rank: 1 }),
        (24, Change::Redeemed { campaign: id.clone(), rank: 1, by: "b".into(), at: Timestamp(6) }),
        (25, Change::Cancelled { campaign: id.clone(), rank: 2 }),
    ];
    ledger.commit(&batch(lease, 0, 30, steps)).await.unwrap();

    let rows = ledger.coupons("summer", 0, 10).await.unwrap();
    assert_eq!(rows[0].code.as_deref(), Some("C-1"));
    assert_eq!((rows[0].status, rows[0].redeemed_by.as_deref()), (CouponStatus::Redeemed, Some("b")));
    assert_eq!(rows[0].redeemed_at, Some(Timestamp(6)));
    assert_eq!((rows[0].offset, rows[0].timestamp), (10, new.timestamp));
    assert_eq!((rows[1].status, rows[1].redeemed_at), (CouponStatus::Cancelled, None));
    assert_eq!(ledger.counts("summer").await.unwrap(), Counts { issued: 0, redeemed: 1, cancelled: 1 });
    assert_eq!(ledger.counts("nothing").await.unwrap(), Counts::default());

    let events = ledger.outbox(3, "", 100).await.unwrap();
    let told: Vec<(&str, &str)> = events.iter().map(|e| (&*e.kind, &*e.aggregateid)).collect();
    assert_eq!(
        told,
        [
            ("coupon_issued", "summer/1"),
            ("coupon_issued", "summer/2"),
            ("coupon_code_assigned", "summer/1"),
            ("coupon_redeemed", "summer/1"),
            ("coupon_unredeemed", "summer/1"),
            ("coupon_redeemed", "summer/1"),
            ("coupon_cancelled", "summer/2"),
        ]
    );
    assert_eq!(events[0].id, event_id(3, 20, EventKind::Issued, 1));
    assert!(events.iter().all(|e| &*e.aggregatetype == "coupon"));
    assert_eq!(
        &*events[5].payload,
        r#"{"campaign":"summer","rank":1,"user":"u-1","code":"C-1","status":"redeemed","partition":3,"offset":10,"claimed_at":1785000000010,"redeemed_by":"b","redeemed_at":6}"#
    );

    // A campaign's row is replaced as a whole.
    let mut row = campaign("summer", 3, 4);
    ledger.commit(&batch(lease, 30, 31, vec![(30, Change::Campaign(row.clone()))])).await.unwrap();
    row.stock = 7;
    row.state = CampaignState::Paused;
    row.closes_at = Timestamp(9);
    ledger.commit(&batch(lease, 31, 32, vec![(31, Change::Campaign(row.clone()))])).await.unwrap();
    let counts = Counts { issued: 0, redeemed: 1, cancelled: 1 };
    assert_eq!(ledger.campaigns("", 10).await.unwrap(), [(row, counts)]);
    ledger.close().await;
}

/// Sums over the borders of windows, of batches, and of what overflows; old claims go into their old window.
pub async fn windows_match_their_rows<D: Database>(database: &D) {
    let ledger = database.open().await;
    let lease = ledger.acquire(0).await.unwrap();
    let mut from = 0;
    for (to, claims) in [
        (WINDOW_OFFSETS - 1, vec![0, 5, WINDOW_OFFSETS - 2]),
        (WINDOW_OFFSETS + 2, vec![WINDOW_OFFSETS - 1, WINDOW_OFFSETS, WINDOW_OFFSETS + 1]),
        (3 * WINDOW_OFFSETS, vec![2, 3, 3 * WINDOW_OFFSETS - 1]),
    ] {
        let changes = claims.iter().map(|&claim| {
            let rank = claim as Rank + 1;
            (to - 1, Change::Issued(coupon("summer", rank, 0, claim)))
        });
        ledger.commit(&batch(lease, from, to, changes.collect())).await.unwrap();
        from = to;
    }
    let dumped = dump(&ledger, &[0]).await;
    assert_eq!(dumped.windows, dumped.rehashed());
    let shape: Vec<_> = dumped.windows.iter().map(|w| (w.from, w.to, w.count)).collect();
    let w = WINDOW_OFFSETS;
    assert_eq!(shape, [(0, w, 6), (w, 2 * w, 2), (2 * w, 3 * w, 1)]);
    let page = ledger.windows(0, 1, 1).await.unwrap();
    assert_eq!(page, dumped.windows[1..2]);
    ledger.close().await;
}

/// Pages of any size together are everything, once and in order.
pub async fn pages_are_complete<D: Database>(database: &D) {
    let ledger = database.open().await;
    let history = history(1, 0, 400);
    let lease = ledger.acquire(0).await.unwrap();
    ledger.commit(&history.batch(lease.epoch, 0, history.to)).await.unwrap();
    for limit in [1, 3, 1_000] {
        for campaign in ["autumn", "summer"] {
            let expected: Vec<_> =
                history.coupons.values().filter(|coupon| &*coupon.campaign == campaign).cloned().collect();
            let mut found = Vec::new();
            loop {
                let after = found.last().map_or(0, |coupon: &crate::Coupon| coupon.rank);
                let page = ledger.coupons(campaign, after, limit).await.unwrap();
                assert!(page.len() <= limit as usize);
                if page.is_empty() {
                    break;
                }
                found.extend(page);
            }
            assert_eq!(found, expected);
        }
        let events = ledger.outbox(0, "", u32::MAX).await.unwrap();
        assert!(events.is_sorted_by(|a, b| a.id < b.id));
        let page = ledger.outbox(0, &events[4].id, limit).await.unwrap();
        assert_eq!(page[0], events[5]);
    }
    let claimed = ledger.coupons_claimed(0, 0, u64::MAX, u32::MAX).await.unwrap();
    assert_eq!(claimed.len(), history.coupons.len());
    let (from, to) = (claimed[3].offset, claimed[6].offset);
    assert_eq!(ledger.coupons_claimed(0, from, to, 100).await.unwrap(), claimed[3..6]);
    assert_eq!(ledger.coupons("nothing", 0, 10).await.unwrap(), []);
    ledger.close().await;
}

/// What one partition writes shows nowhere in another, not even with the largest numbers.
pub async fn partitions_are_apart<D: Database>(database: &D) {
    let ledger = database.open().await;
    let partitions = [0, 1, 255, Partition::MAX];
    for partition in partitions {
        let lease = ledger.acquire(partition).await.unwrap();
        let last = MAX_OFFSET - 1;
        let id = format!("c{partition}");
        let mut far = coupon(&id, Rank::MAX, partition, 1);
        far.offset = last;
        let changes = vec![issued(&id, 1, partition, 0), (last, Change::Issued(far))];
        ledger.commit(&batch(lease, 0, last + 1, changes)).await.unwrap();
        // One further than any log goes.
        let answer = ledger.commit(&batch(lease, last + 1, last + 2, vec![])).await;
        assert!(matches!(answer, Err(LedgerError::Permanent { .. })), "{answer:?}");
    }
    for partition in partitions {
        assert_eq!(ledger.coupons_claimed(partition, 0, u64::MAX, 9).await.unwrap().len(), 2);
        assert_eq!(ledger.windows(partition, 0, 9).await.unwrap().len(), 2);
        assert_eq!(ledger.outbox(partition, "", 9).await.unwrap().len(), 2);
        assert_eq!(ledger.next_offset(partition).await.unwrap(), Some(MAX_OFFSET));
    }
    ledger.close().await;
}

/// Trimming takes this partition's events up to and including the given one, once.
pub async fn the_outbox_is_trimmed<D: Database>(database: &D) {
    let ledger = database.open().await;
    for partition in [0, 1] {
        let lease = ledger.acquire(partition).await.unwrap();
        let changes = (0..10).map(|i| issued(&format!("c{partition}"), i + 1, partition, i.into()));
        ledger.commit(&batch(lease, 0, 10, changes.collect())).await.unwrap();
    }
    let events = ledger.outbox(1, "", 100).await.unwrap();
    assert_eq!(ledger.trim_outbox(1, &events[3].id).await.unwrap(), 4);
    assert_eq!(ledger.trim_outbox(1, &events[3].id).await.unwrap(), 0);
    assert_eq!(ledger.outbox(1, "", 100).await.unwrap(), events[4..]);
    // An id of another partition, or none, takes nothing.
    assert_eq!(ledger.trim_outbox(0, &events[9].id).await.unwrap(), 0);
    assert_eq!(ledger.trim_outbox(1, "").await.unwrap(), 0);
    assert_eq!(ledger.outbox(0, "", 100).await.unwrap().len(), 10);
    ledger.close().await;
}

/// Two writers of one partition that take it from each other all the time write each coupon once.
pub async fn usurpers_lose_nothing<D: Database>(database: &D) {
    const COUPONS: u64 = 300;
    let ledger = database.open().await;
    let write = |takeovers: u32| {
        let ledger = &ledger;
        async move {
            for _ in 0..takeovers {
                let mut lease = ledger.acquire(0).await.unwrap();
                while lease.next_offset < COUPONS {
                    let (from, to) = (lease.next_offset, lease.next_offset + 3);
                    let changes = (from..to).map(|o| issued("summer", o as Rank + 1, 0, o)).collect();
                    match ledger.commit(&batch(lease, from, to, changes)).await {
                        Ok(()) => lease.next_offset = to,
                        Err(LedgerError::Fenced { .. }) => break,
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        }
    };
    tokio::join!(write(1_000), write(20), write(20));
    let rows = ledger.coupons("summer", 0, u32::MAX).await.unwrap();
    assert_eq!(rows.len() as u64, COUPONS);
    let dumped = dump(&ledger, &[0]).await;
    assert_eq!(dumped.windows, dumped.rehashed());
    assert_eq!(dumped.next_offsets, [Some(COUPONS)]);
    ledger.close().await;
}

/// What was answered is there after closing and opening again, and the epoch goes on.
pub async fn what_is_committed_stays<D: Database>(database: &D) {
    if !database.survives_close() {
        return;
    }
    let ledger = database.open().await;
    let (lease, before) = ten(&ledger).await;
    ledger.close().await;
    let ledger = database.open().await;
    assert_eq!(dump(&ledger, &[0]).await, before);
    let again = ledger.acquire(0).await.unwrap();
    assert_eq!((again.epoch, again.next_offset), (lease.epoch + 1, 10));
    let answer = ledger.commit(&batch(lease, 10, 11, vec![])).await;
    assert!(matches!(answer, Err(LedgerError::Fenced { .. })), "{answer:?}");
    ledger.close().await;
}

/// Every call after a close says so, and closing twice is harmless.
pub async fn closed_is_closed<D: Database>(database: &D) {
    let ledger = database.open().await;
    let lease = ledger.acquire(0).await.unwrap();
    ledger.close().await;
    ledger.close().await;
    assert_eq!(ledger.acquire(0).await, Err(LedgerError::Closed));
    assert_eq!(ledger.commit(&first(1, lease)).await, Err(LedgerError::Closed));
    assert_eq!(ledger.next_offset(0).await, Err(LedgerError::Closed));
    assert_eq!(ledger.coupons("summer", 0, 1).await, Err(LedgerError::Closed));
}
