//! What must hold. Everything is judged from the log's bytes by a fresh replay, never from the memory of the
//! process that is judged.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use dibs_decide::State;
use dibs_flow::{CLAIMS_TOPIC, Codes, Flow, audit::audit, receipt};
use dibs_ledger::Ledger;
use dibs_log::{PartitionLog, Store, batch::Batches};
use dibs_model::{Command, Offset, Rank, Timestamp, Verdict, limits::SKEW_MS};

use crate::ledger::FaultyLedger;

/// A verdict that a client has from the log.
pub struct Answered {
    pub(crate) partition: u32,
    pub(crate) offset: Offset,
    pub(crate) verdict: Verdict,
    pub(crate) campaign: Arc<str>,
    /// User and key of a claim.
    pub(crate) claim: Option<(String, String)>,
    /// Of a win whose coupon is issued at once.
    pub(crate) code: Option<String>,
    pub(crate) receipt: Option<String>,
}

/// A verdict that a client has from the gate.
pub struct Refused {
    pub(crate) partition: u32,
    /// Everything before this offset was decided when the gate spoke.
    pub(crate) at: Offset,
    /// What the node's clock said.
    pub(crate) clock: Timestamp,
    pub(crate) verdict: Verdict,
    pub(crate) campaign: Arc<str>,
    pub(crate) user: String,
    pub(crate) key: String,
}

/// What clients know, and what earlier checks found in the log.
#[derive(Default)]
pub struct History {
    pub(crate) answered: Vec<Answered>,
    pub(crate) refused: Vec<Refused>,
    /// How many of both were looked at by an earlier check.
    seen: (usize, usize),
    /// Hash and verdict of each record by partition: committed records never change.
    records: BTreeMap<u32, Vec<(u64, Verdict)>>,
}

macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => { if !$holds { return Err(format!($($what)*)); } };
}

/// Checks everything, as of what is committed now. At the end (`whole`) the ledger must have all of it.
pub async fn check(
    history: &mut History,
    flow: &Flow,
    ledger: &FaultyLedger,
    whole: bool,
) -> Result<u64, String> {
    let store = flow.store();
    for partition in flow.partitions() {
        let log = partition.log();
        let state = replay(history, partition.number, log)?;
        ensure!(
            partition.state().next_offset() == state.next_offset()
                && partition.state().snapshot() == state.snapshot(),
            "the decider of partition {} is not what the log says",
            partition.number
        );
        winners(&state)?;
        clients(history, partition.number, &state, flow)?;
    }
    history.seen = (history.answered.len(), history.refused.len());
    in_ledger(store, ledger, flow.codes(), whole).await
}

/// Decides the log afresh; on the way compares it with earlier replays and judges what the gate said.
fn replay(history: &mut History, number: u32, log: &PartitionLog) -> Result<State, String> {
    let mut state = State::new(number.into());
    let known = history.records.remove(&number).unwrap_or_default();
    let mut records = Vec::with_capacity(known.len());
    let new = &history.refused[history.seen.1..];
    let mut refusals: Vec<&Refused> = new.iter().filter(|r| r.partition == number).collect();
    refusals.sort_by_key(|r| r.at);
    let mut refusals = refusals.into_iter().peekable();
    let (mut buffer, mut events) = (Vec::new(), Vec::new());
    loop {
        while let Some(refused) = refusals.next_if(|r| r.at == state.next_offset()) {
            gate_was_right(&state, refused)?;
        }
        let next = state.next_offset();
        if next >= log.high_watermark() {
            break;
        }
        // One batch at a time would do; a chunk may hold several, and refusals lie between any two records.
        buffer.clear();
        log.read(next, 1 << 16, &mut buffer).map_err(|e| e.to_string())?;
        for batch in Batches::new(&buffer) {
            for record in batch.map_err(|e| e.to_string())?.records().map_err(|e| e.to_string())? {
                let record = record.map_err(|e| e.to_string())?;
                if record.offset < state.next_offset() {
                    continue;
                }
                while let Some(refused) = refusals.next_if(|r| r.at == record.offset) {
                    gate_was_right(&state, refused)?;
                }
                let time = Timestamp(record.timestamp);
                let verdict = state.apply_record(record.offset, time, record.key, record.value, &mut events);
                events.clear();
                let mut hasher = DefaultHasher::new();
                (record.offset, record.timestamp, record.key, record.value).hash(&mut hasher);
                records.push((hasher.finish(), verdict));
            }
        }
    }
    if let Some(refused) = refusals.next() {
        return Err(format!("the gate refused at offset {}, the log has lost it", refused.at));
    }
    ensure!(records.len() >= known.len(), "the log had {} records and has {}", known.len(), records.len());
    if let Some(offset) = (0..known.len()).find(|&i| records[i] != known[i]) {
        return Err(format!("the record at offset {offset} has changed"));
    }
    history.records.insert(number, records);
    Ok(state)
}

/// The gate may say only what the log would have said to this claim just then, by a clock within the skew.
fn gate_was_right(state: &State, refused: &Refused) -> Result<(), String> {
    let said = |skew: i64| {
        let mut copy = State::restore(&state.snapshot(), 0).expect("a snapshot can be read");
        let claim = Command::Claim { user: (&*refused.user).into(), key: (&*refused.key).into() };
        let time = Timestamp(refused.clock.0 + skew);
        copy.apply(copy.next_offset(), time, &refused.campaign, &claim, &mut Vec::new())
    };
    let right = [0, -SKEW_MS, SKEW_MS].into_iter().any(|skew| said(skew) == refused.verdict);
    ensure!(
        right,
        "the gate told {} {:?} in {} at offset {}, the log says {:?}",
        refused.user,
        refused.verdict,
        refused.campaign,
        refused.at,
        said(0)
    );
    Ok(())
}

/// Never more than the stock, never more than the limit, no rank left out.
fn winners(state: &State) -> Result<(), String> {
    for campaign in state.campaigns() {
        let id = campaign.id().as_str();
        let (mut live, mut users) = (0, BTreeMap::<&str, u32>::new());
        for rank in 1..=campaign.ranks() {
            let win = campaign.win_at(rank).ok_or_else(|| format!("{id} has no rank {rank}"))?;
            live += u64::from(win.status.is_live());
            *users.entry(win.user).or_default() += 1;
        }
        ensure!(live <= campaign.stock(), "{id} has {live} live wins of {}", campaign.stock());
        let limit = campaign.spec().per_user_limit;
        let most = users.iter().find(|(_, wins)| **wins > limit);
        ensure!(most.is_none(), "{id}: {most:?} wins, the limit is {limit}");
    }
    Ok(())
}

/// Every answer stands in the log as it was given.
fn clients(history: &History, number: u32, state: &State, flow: &Flow) -> Result<(), String> {
    let records = &history.records[&number];
    let (mut ranks, mut presses) = (BTreeMap::<(&str, Rank), Offset>::new(), BTreeMap::new());
    for (i, told) in history.answered.iter().enumerate().filter(|(_, a)| a.partition == number) {
        let (id, offset) = (&told.campaign, told.offset);
        let stands = records.get(offset as usize).map(|r| r.1);
        ensure!(
            stands == Some(told.verdict),
            "lost: a client was told {:?} in {id} at offset {offset}, the log says {stands:?}",
            told.verdict
        );
        let (Verdict::Won { rank }, Some((user, key))) = (told.verdict, &told.claim) else { continue };
        let twice = *ranks.entry((id, rank)).or_insert(offset) != offset
            || *presses.entry((id, user, key)).or_insert(rank) != rank;
        ensure!(!twice, "{id} rank {rank} or {user}'s press {key:?} was won twice");
        if i < history.seen.0 {
            continue;
        }
        let campaign = state.campaign(id).ok_or_else(|| format!("lost: there is no campaign {id}"))?;
        let win = campaign.win_at(rank).ok_or_else(|| format!("lost: {id} rank {rank}"))?;
        ensure!((win.user, win.key, win.offset) == (user, key, offset), "{id} rank {rank} is another's");
        ensure!(
            told.code.is_none() || told.code == flow.codes().code(campaign, rank),
            "{id} rank {rank} has another code"
        );
        if let Some(text) = &told.receipt {
            let signed = receipt::verify(text, &flow.signatory().public_key()).map_err(|e| e.to_string())?;
            let as_told = (signed.rank, signed.offset, &*signed.user) == (rank, offset, user);
            ensure!(as_told, "the receipt of {id} rank {rank} says something else");
        }
    }
    Ok(())
}

/// The ledger has what the log says and nothing else; sums and outbox fit the rows. Says how many rows.
async fn in_ledger(
    store: &Arc<Store>,
    ledger: &FaultyLedger,
    codes: &Codes,
    whole: bool,
) -> Result<u64, String> {
    let found = audit(store, ledger, codes).await.map_err(|e| e.to_string())?;
    ensure!(found.is_exact(), "the ledger differs from the log: {:?}", found.named);
    ensure!(!whole || found.not_yet_issued == 0, "{} coupons were never issued", found.not_yet_issued);
    if let Some(refused) = ledger.refused() {
        return Err(format!("the ledger refused a decided change: {refused}"));
    }
    let partitions = store.topics().into_iter().find(|(name, _)| name == CLAIMS_TOPIC).map_or(0, |t| t.1);
    let mut rows = 0;
    for number in 0..partitions {
        let error = |e: dibs_ledger::LedgerError| e.to_string();
        let windows = ledger.windows(number, 0, u32::MAX >> 1).await.map_err(error)?;
        let coupons = ledger.coupons_claimed(number, 0, 1 << 40, u32::MAX >> 1).await.map_err(error)?;
        let sum = coupons.iter().fold(0u64, |sum, c| sum.wrapping_add(c.hash()));
        let sums = windows.iter().fold((0, 0u64), |s, w| (s.0 + w.count, s.1.wrapping_add(w.hash)));
        ensure!(sums == (coupons.len() as u64, sum), "the windows of partition {number} do not add up");
        let events = ledger.outbox(number, "", u32::MAX >> 1).await.map_err(error)?;
        let mut issued = HashSet::new();
        for event in events.iter().filter(|e| &*e.kind == "coupon_issued") {
            ensure!(issued.insert(&event.aggregateid), "{} is in the outbox twice", event.aggregateid);
        }
        ensure!(issued.len() == coupons.len(), "the outbox of partition {number} differs from its rows");
        rows += coupons.len() as u64;
    }
    ensure!(rows == found.rows, "{rows} coupons by offset, {} by campaign", found.rows);
    Ok(rows)
}
