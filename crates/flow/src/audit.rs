//! Does the ledger say what the log says? The auditor recomputes every win from the first record and compares
//! it, row by row, with the ledger and with receipts. It changes nothing.

use std::sync::Arc;

use dibs_decide::{Campaign, Event, State, Status};
use dibs_ledger::{Coupon, CouponStatus, Ledger, LedgerError};
use dibs_log::{Store, batch::Batches};
use dibs_model::Offset;
use serde::Serialize;

use crate::{
    codes::Codes,
    flow::{CLAIMS_TOPIC, places},
    issuer::{coupon, fresh_state},
    receipt,
    records::{Place, entries},
};

/// Rows compared at a time.
const PAGE: u32 = 10_000;
/// Differences that are named; all are counted.
const NAMED: usize = 1_000;

/// What an audit found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Audit {
    /// Records read from the log.
    pub records: u64,
    /// Campaigns in the log.
    pub campaigns: u64,
    /// Coupons that the log says are issued.
    pub coupons: u64,
    /// Rows that the ledger has.
    pub rows: u64,
    /// Coupons decided after the point that the ledger has reached: not compared yet.
    pub not_yet_issued: u64,
    /// Receipts checked.
    pub receipts: u64,
    /// How many differences there are.
    pub differences: u64,
    /// The first thousand of them, for people.
    pub named: Vec<String>,
}

impl Audit {
    /// Whether log, ledger and receipts agree.
    pub fn is_exact(&self) -> bool {
        self.differences == 0
    }

    fn missing(&mut self, row: &Coupon) {
        self.coupons += 1;
        let Coupon { campaign, rank, user, .. } = row;
        self.differ(format!("{campaign} rank {rank}: the log has {user}, the ledger has no row"));
    }

    fn differ(&mut self, what: String) {
        self.differences += 1;
        if self.named.len() < NAMED {
            self.named.push(what);
        }
    }
}

/// Why there was no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log cannot be read.
    #[error("the log cannot be read: {0}")]
    Log(String),
    /// The ledger cannot be read.
    #[error("the ledger cannot be read: {0}")]
    Ledger(#[from] LedgerError),
}

/// Compares the whole log with a ledger. It may run while both are written to: each partition is compared as of
/// the point that the ledger had reached before the rows were read.
pub async fn audit<L: Ledger>(store: &Arc<Store>, ledger: &L, codes: &Codes) -> Result<Audit, AuditError> {
    let mut audit = Audit::default();
    for place in places(store) {
        let number = place.number;
        let before = ledger.next_offset(number).await?.unwrap_or(0);
        let log = store.clone();
        let replay = tokio::task::spawn_blocking(move || decide_log(&log, place, before));
        let replayed = replay.await.expect("replaying does not panic").map_err(AuditError::Log)?;
        audit.records += replayed.records;
        audit.not_yet_issued += replayed.later;
        for campaign in replayed.state.campaigns() {
            compare(campaign, number, ledger, codes, before, &mut audit).await?;
        }
        audit.campaigns += replayed.state.campaigns().len() as u64;
        strays(&replayed.state, number, ledger, before, &mut audit).await?;
    }
    Ok(audit)
}

/// Names campaigns of a partition that the ledger has and the log does not.
async fn strays<L: Ledger>(
    state: &State,
    number: u32,
    ledger: &L,
    reached: Offset,
    audit: &mut Audit,
) -> Result<(), AuditError> {
    let mut after = Arc::from("");
    loop {
        let page = ledger.campaigns(&after, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = last.id.clone();
        for (row, counts) in page.iter().filter(|(row, _)| row.partition == number) {
            // One that was created while the audit ran is not the auditor's business yet.
            if row.created_offset < reached && state.campaign(&row.id).is_none() {
                let rows = counts.rows();
                audit.rows += rows;
                audit.differ(format!(
                    "{}: the ledger has this campaign with {rows} coupons, the log does not",
                    row.id
                ));
            }
        }
    }
}

struct Replayed {
    state: State,
    records: u64,
    /// Coupons decided at or after the offset where `state` ends.
    later: u64,
}

/// Decides the partition from the first record up to `to`, and counts what lies beyond.
fn decide_log(store: &Store, place: Place, to: Offset) -> Result<Replayed, String> {
    let log = store.partition(CLAIMS_TOPIC, place.number).expect("the topic has this partition");
    let mut replayed = Replayed { state: fresh_state(), records: 0, later: 0 };
    let mut beyond = None;
    let (mut buffer, mut unpacked, mut events) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = log.log_start_offset();
    while next < log.high_watermark() {
        buffer.clear();
        log.read(next, 1024 * 1024, &mut buffer).map_err(|e| e.to_string())?;
        for batch in Batches::new(&buffer) {
            for entry in entries(&batch.map_err(|e| e.to_string())?, &mut unpacked) {
                if entry.offset < next {
                    continue;
                }
                if entry.offset >= to && beyond.is_none() {
                    let (copy, seed) = (replayed.state.snapshot(), replayed.records);
                    beyond = Some(State::restore(&copy, seed).expect("what was just written can be read"));
                }
                let state = beyond.as_mut().unwrap_or(&mut replayed.state);
                place.apply(state, &entry, &mut events);
                if entry.offset >= to {
                    replayed.later +=
                        events.iter().filter(|(_, e)| matches!(e, Event::Issue { .. })).count() as u64;
                }
                events.clear();
                replayed.records += 1;
                next = entry.offset + 1;
            }
        }
    }
    Ok(replayed)
}

async fn compare<L: Ledger>(
    campaign: &Campaign,
    number: u32,
    ledger: &L,
    codes: &Codes,
    reached: Offset,
    audit: &mut Audit,
) -> Result<(), AuditError> {
    let id = campaign.id().as_str();
    let mut expected = (1..=campaign.ranks())
        .filter(|r| campaign.win_at(*r).is_some_and(|w| w.issued))
        .map(|r| final_row(campaign, r, number, codes))
        .peekable();
    let mut after = 0;
    loop {
        let page = ledger.coupons(id, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.rank;
        // What the issuer wrote while the page was read is newer than the state it is compared with.
        let moved = ledger.next_offset(number).await?.unwrap_or(0) > reached;
        for row in &page {
            audit.rows += 1;
            while let Some(missing) = expected.next_if(|e| e.rank < row.rank) {
                audit.missing(&missing);
            }
            match expected.next_if(|e| e.rank == row.rank) {
                Some(want) => {
                    audit.coupons += 1;
                    if let Some(what) = difference(&want, row, moved) {
                        audit.differ(format!("{id} rank {}: {what}", row.rank));
                    }
                }
                // A row decided while the audit ran is not an extra row.
                None if moved => {}
                None => audit.differ(format!(
                    "{id} rank {}: the ledger has {}, the log has no such win",
                    row.rank, row.user
                )),
            }
        }
    }
    for missing in expected {
        audit.missing(&missing);
    }
    Ok(())
}

/// The row as the log says it should be by now.
fn final_row(campaign: &Campaign, rank: u32, number: u32, codes: &Codes) -> Coupon {
    let mut row = coupon(campaign, rank, number, codes);
    row.status = match campaign.win_at(rank).map(|w| w.status) {
        Some(Status::Redeemed) => CouponStatus::Redeemed,
        Some(Status::Cancelled | Status::Expired) => CouponStatus::Cancelled,
        _ => CouponStatus::Issued,
    };
    if let Some(redemption) = campaign.redemption(rank) {
        row.redeemed_by = Some(redemption.by.clone());
        row.redeemed_at = Some(redemption.at);
    }
    row
}

fn difference(want: &Coupon, have: &Coupon, moved: bool) -> Option<String> {
    let fixed = |c: &Coupon| (c.user.clone(), c.code.clone(), c.partition, c.offset, c.timestamp);
    let fate = |c: &Coupon| (c.status, c.redeemed_by.clone(), c.redeemed_at);
    if fixed(want) != fixed(have) {
        return Some(format!("the log says {:?}, the ledger {:?}", fixed(want), fixed(have)));
    }
    (!moved && fate(want) != fate(have))
        .then(|| format!("the log says {:?}, the ledger {:?}", fate(want), fate(have)))
}

/// Checks receipts against the public key and against the log.
pub fn check_receipts<'r>(
    store: &Arc<Store>,
    receipts: impl Iterator<Item = &'r str>,
    public_key: &str,
    audit: &mut Audit,
) -> Result<(), AuditError> {
    let states: Result<Vec<State>, String> =
        places(store).map(|p| decide_log(store, p, Offset::MAX).map(|r| r.state)).collect();
    let states = states.map_err(AuditError::Log)?;
    for text in receipts.filter(|r| !r.trim().is_empty()) {
        audit.receipts += 1;
        let number = audit.receipts;
        match receipt::verify(text, public_key) {
            Err(error) => audit.differ(format!("receipt {number}: {error}")),
            Ok(claimed) => {
                let state = states.get(claimed.partition as usize);
                let win = state.and_then(|s| s.campaign(&claimed.campaign)?.win_at(claimed.rank));
                let stands = win.is_some_and(|w| {
                    (w.user, w.offset, w.timestamp.0) == (&*claimed.user, claimed.offset, claimed.timestamp)
                });
                if !stands {
                    audit.differ(format!(
                        "receipt {number}: it says {} rank {} for {} at offset {}, the log does not",
                        claimed.campaign, claimed.rank, claimed.user, claimed.offset
                    ));
                }
            }
        }
    }
    Ok(())
}
