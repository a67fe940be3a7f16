//! The fourth step: one more replica of `decide`, at the database's pace, which writes what was decided into the
//! ledger.
//!
//! It reads the log from where the ledger stands, decides for itself, and commits rows and position in one
//! transaction under an epoch: whatever crashes, each win ends as exactly one row, and an issuer that was
//! replaced changes nothing any more (ARCHITECTURE: invariants 6 and 7).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dibs_decide::{Campaign, Event, State};
use dibs_ledger::{
    CampaignState, Change, Coupon, CouponStatus, Lease, Ledger, LedgerBatch, LedgerError, Position,
};
use dibs_log::{PartitionLog, Store, batch::Batches};
use dibs_model::{CampaignId, CodeSource, Offset, Rank, Verdict};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    clock::Clock,
    codes::Codes,
    dead_letter::{Cause, DeadLetters},
    partition::Partition,
    records::{Entry, Place, entries},
};

/// Bytes of log read at a time.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Changes in one ledger transaction, at most.
const BATCH_CHANGES: usize = 5_000;
/// Log bytes between two snapshots.
const SNAPSHOT_BYTES: u64 = 256 * 1024 * 1024;
/// Waits between tries when the ledger is busy or away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Between two ledger transactions of an issuer that keeps up. A transaction costs two syncs however many coupons
/// it has; waiting a little makes few of many, and nobody waits for a coupon row as for a verdict.
const PACE: Duration = Duration::from_millis(50);
/// A rate-limited issuer writes about so many times a second.
const WRITES_PER_SECOND: u64 = 10;

/// How far the issuer is, for those who ask when their coupon will be there.
#[derive(Default)]
pub struct Issuance {
    /// Everything below this offset is in the ledger.
    next: AtomicU64,
    /// Coupons written in this process's life, and the milliseconds it took.
    written: AtomicU64,
    busy_ms: AtomicU64,
    /// Coupons that the ledger has, by campaign.
    by_campaign: Mutex<HashMap<CampaignId, u64>>,
    moved: Notify,
    fenced: AtomicBool,
}

impl Issuance {
    /// Everything below this offset is in the ledger.
    pub fn next_offset(&self) -> Offset {
        self.next.load(Ordering::Acquire)
    }

    /// Coupons that the ledger has for a campaign.
    pub fn issued(&self, campaign: &CampaignId) -> u64 {
        self.by_campaign.lock().expect("no panic while locked").get(campaign).copied().unwrap_or(0)
    }

    /// Coupons a second that the ledger takes at present, as far as is known.
    pub fn rate(&self) -> Option<u64> {
        let (written, busy) = (self.written.load(Ordering::Relaxed), self.busy_ms.load(Ordering::Relaxed));
        (written > 0).then(|| (written * 1_000 / busy.max(1)).max(1))
    }

    /// Whether another issuer has taken over.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Ends once everything below `offset` is in the ledger.
    pub async fn reached(&self, offset: Offset) {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            if self.next_offset() >= offset {
                return;
            }
            moved.await;
        }
    }

    fn publish(&self, next: Offset) {
        self.next.store(next, Ordering::Release);
        self.moved.notify_waiters();
    }
}

/// What the issuers of a process are told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Issuing {
    /// Go on.
    On,
    /// Write what is committed, and end.
    Finish,
    /// End as you are.
    Cut,
}

/// Why an issuer ends.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Another issuer holds the partition now.
    #[error("another issuer has taken over partition {0}")]
    Replaced(u32),
    /// The ledger will not take this, however often it is tried.
    #[error("the ledger refuses: {0}")]
    Ledger(#[source] LedgerError),
    /// The ledger has rows of records that the log does not have. To go on would give their offsets, and the
    /// ranks that were decided there, to others.
    #[error(
        "the ledger has written partition {partition} up to offset {ledger}, but the log ends at {log}: the log is \
         older than its ledger. Restore the newer log, or give this one a new ledger (`dibs replay`)"
    )]
    LogBehind {
        /// Which partition.
        partition: u32,
        /// Where the ledger stands.
        ledger: Offset,
        /// The log's high watermark.
        log: Offset,
    },
    /// The log cannot be read.
    #[error("the log cannot be read: {0}")]
    Log(String),
    /// What came to nothing can be kept nowhere, until a restart.
    #[error("{0}")]
    DeadLetter(String),
}

/// Writes one partition's decisions into a ledger.
pub struct Issuer<L> {
    place: Place,
    log: Arc<PartitionLog>,
    ledger: Arc<L>,
    codes: Arc<Codes>,
    throttle: Arc<Throttle>,
    state: State,
    /// What is read from the log.
    buffer: Vec<u8>,
    /// What a compressed batch unpacks to.
    unpacked: Vec<u8>,
    lease: Lease,
    keeping: Option<Keeping>,
}

/// What an issuer keeps beside the ledger; a replay keeps nothing.
struct Keeping {
    store: Arc<Store>,
    /// Bytes of log since the last snapshot.
    since: u64,
    dead: DeadLetters,
}

/// Whether a log can be the one that a ledger was written from.
pub(crate) fn check_log(partition: u32, log: &PartitionLog, ledger: Offset) -> Result<(), IssueError> {
    match log.high_watermark() {
        log if log < ledger => Err(IssueError::LogBehind { partition, ledger, log }),
        _ => Ok(()),
    }
}

/// Nothing decided yet, under a seed of its own.
pub(crate) fn fresh_state() -> State {
    State::new(std::hash::BuildHasher::hash_one(&foldhash::fast::RandomState::default(), 0))
}

/// The name of a partition's snapshot in the data folder.
pub fn snapshot_name(partition: u32) -> String {
    format!("decider-{partition}.snapshot")
}

impl<L: Ledger> Issuer<L> {
    /// Takes the partition over from whoever had it, and starts where the ledger stands. `state` spares it the
    /// log before that, unless it is newer than the ledger.
    ///
    /// With a store, snapshots and dead letters are kept in it, the latter stamped by the clock.
    pub async fn start(
        place: Place,
        log: Arc<PartitionLog>,
        ledger: Arc<L>,
        codes: Arc<Codes>,
        throttle: Arc<Throttle>,
        state: Option<State>,
        keep: Option<(Arc<Store>, Clock)>,
    ) -> Result<Self, IssueError> {
        let number = place.number;
        let mut wait = BACKOFF.0;
        let lease = loop {
            match ledger.acquire(number).await {
                Ok(lease) => break lease,
                Err(error @ LedgerError::Transient { .. }) => {
                    tracing::warn!(partition = number, %error, "the ledger is not available, trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF.1);
                }
                Err(error) => return Err(IssueError::Ledger(error)),
            }
        };
        check_log(number, &log, lease.next_offset)?;
        let state = state.filter(|s| s.next_offset() <= lease.next_offset).unwrap_or_else(fresh_state);
        let keeping = match keep {
            Some((store, clock)) => {
                let dead = Self::open_dead(&store, &place, &log, lease.next_offset, &clock).await?;
                Some(Keeping { store, since: 0, dead })
            }
            None => None,
        };
        let (buffer, unpacked) = (Vec::new(), Vec::new());
        Ok(Issuer { place, log, ledger, codes, throttle, state, buffer, unpacked, lease, keeping })
    }

    /// Where dead letters go; tried until there is room for it.
    async fn open_dead(
        store: &Store,
        place: &Place,
        log: &PartitionLog,
        from: Offset,
        clock: &Clock,
    ) -> Result<DeadLetters, IssueError> {
        let mut wait = BACKOFF.0;
        loop {
            match DeadLetters::open(store, log.topic(), place.number, place.partitions, from, clock.clone()) {
                Ok(dead) => return Ok(dead),
                Err(error) if error.transient => {
                    tracing::warn!(partition = place.number, %error, "trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF.1);
                }
                Err(error) => return Err(IssueError::DeadLetter(error.to_string())),
            }
        }
    }

    /// Writes until it is told to finish; then everything that is committed is written.
    pub(crate) async fn run(
        mut self,
        partition: &Partition,
        issuing: &mut watch::Receiver<Issuing>,
    ) -> Result<(), IssueError> {
        let issuance = &partition.issuance;
        self.seed_counts(issuance).await?;
        let mut paced = Instant::now();
        loop {
            if self.state.next_offset() >= self.log.high_watermark() {
                let more = async {
                    self.log.committed(self.state.next_offset()).await;
                    tokio::time::sleep_until(paced).await;
                };
                let finish = async { drop(issuing.wait_for(|i| *i != Issuing::On).await) };
                tokio::select! {
                    () = more => {}
                    () = finish => {
                        while self.state.next_offset() < self.log.high_watermark() {
                            self.step(Some(partition)).await?;
                        }
                        self.snapshot(0);
                        return Ok(());
                    }
                }
            }
            paced = Instant::now() + PACE;
            let written = self.step(Some(partition)).await;
            if let Err(IssueError::Replaced(_)) = written {
                issuance.fenced.store(true, Ordering::Release);
            }
            self.snapshot(written? as u64);
        }
    }

    /// Writes everything that is committed, and ends. Returns how many coupons there are, cancelled ones included.
    pub async fn run_to_end(mut self) -> Result<u64, IssueError> {
        while self.state.next_offset() < self.log.high_watermark() {
            self.step(None).await?;
        }
        Ok(self.state.campaigns().iter().map(rows).sum())
    }

    /// Reads a chunk, decides it, writes it. Returns its bytes; 0 when all that is committed is written. The
    /// partition, if given, is told how far the issuer is. After an error, or if the future is dropped, the
    /// issuer is of no more use: start another.
    pub async fn step(&mut self, partition: Option<&Partition>) -> Result<usize, IssueError> {
        let (mut buffer, mut unpacked) =
            (std::mem::take(&mut self.buffer), std::mem::take(&mut self.unpacked));
        buffer.clear();
        let read = self.log.read(self.state.next_offset(), CHUNK_BYTES, &mut buffer);
        read.map_err(|e| IssueError::Log(e.to_string()))?;
        let batch_limit = self.throttle.batch(BATCH_CHANGES);
        let mut changes = Vec::new();
        let mut events = Vec::new();
        for batch in Batches::new(&buffer) {
            let batch = batch.map_err(|e| IssueError::Log(e.to_string()))?;
            for entry in entries(&batch, &mut unpacked) {
                if entry.offset < self.state.next_offset() {
                    continue;
                }
                let verdict = self.place.apply(&mut self.state, &entry, &mut events);
                if entry.offset >= self.lease.next_offset {
                    self.bury(&entry, verdict, partition).await?;
                    for (index, event) in events.drain(..) {
                        self.changes(index, event, |change| changes.push((entry.offset, change)));
                    }
                }
                events.clear();
                if changes.len() >= batch_limit {
                    self.write(&mut changes, partition).await?;
                }
            }
        }
        self.write(&mut changes, partition).await?;
        let bytes = buffer.len();
        (self.buffer, self.unpacked) = (buffer, unpacked);
        Ok(bytes)
    }

    /// Keeps a record that came to nothing as a dead letter.
    async fn bury(
        &mut self,
        entry: &Entry<'_>,
        verdict: Verdict,
        partition: Option<&Partition>,
    ) -> Result<(), IssueError> {
        let (Some(keeping), Some(cause)) = (&mut self.keeping, Cause::of(verdict)) else { return Ok(()) };
        keeping.dead.keep(entry, cause, &self.place.reason(entry, cause));
        if let Some(p) = partition {
            p.counters.dead_letters.increment(1);
        }
        if keeping.dead.is_full() { self.flush_dead().await } else { Ok(()) }
    }

    /// Makes the dead letters durable, tried until they are: the ledger must not go past what is kept nowhere.
    async fn flush_dead(&mut self) -> Result<(), IssueError> {
        let Some(keeping) = &mut self.keeping else { return Ok(()) };
        let mut wait = BACKOFF.0;
        while let Err(error) = keeping.dead.flush() {
            if !error.transient {
                return Err(IssueError::DeadLetter(error.to_string()));
            }
            tracing::warn!(partition = self.place.number, %error, "trying again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
        Ok(())
    }

    /// What an event means to the ledger.
    fn changes(&self, index: u32, event: Event, mut put: impl FnMut(Change)) {
        let campaign = self.state.at(index);
        let id = || Arc::from(campaign.id().as_str());
        match event {
            Event::Campaign => put(Change::Campaign(campaign_row(campaign, self.place.number))),
            Event::Issue { rank } => {
                put(Change::Issued(coupon(campaign, rank, self.place.number, &self.codes)))
            }
            Event::Release { rank, issued: true } => put(Change::Cancelled { campaign: id(), rank }),
            Event::Hold { .. } | Event::Release { .. } => {}
            Event::Redeem { rank, redemption } => {
                put(Change::Redeemed { campaign: id(), rank, by: redemption.by, at: redemption.at });
            }
            Event::Unredeem { rank } => put(Change::Unredeemed { campaign: id(), rank }),
            Event::Codes { from, to } => {
                let issued = (from..=to).filter(|r| campaign.win_at(*r).is_some_and(|w| w.issued));
                for rank in issued {
                    if let Some(code) = written_code(campaign, rank, &self.codes) {
                        put(Change::CodeAssigned { campaign: id(), rank, code });
                    }
                }
            }
        }
    }

    /// One ledger transaction, tried until it stands.
    async fn write(
        &mut self,
        changes: &mut Vec<(Offset, Change)>,
        partition: Option<&Partition>,
    ) -> Result<(), IssueError> {
        let to = self.state.next_offset();
        if to <= self.lease.next_offset {
            return Ok(());
        }
        let coupons = changes.iter().filter(|c| matches!(c.1, Change::Issued(_))).count() as u64;
        let start = Instant::now();
        self.throttle.take(coupons).await;
        self.flush_dead().await?;
        let (from, epoch) = (self.lease.next_offset, self.lease.epoch);
        let changes = std::mem::take(changes);
        let mut batch = LedgerBatch { partition: self.place.number, epoch, from, to, changes };
        self.commit(&mut batch, partition).await?;
        self.lease.next_offset = to;
        if let Some(keeping) = &mut self.keeping {
            keeping.dead.forget_before(to);
        }
        if let Some(p) = partition {
            p.counters.issued.increment(coupons);
            let mut counts = p.issuance.by_campaign.lock().expect("no panic while locked");
            for (_, change) in &batch.changes {
                if let Change::Issued(coupon) = change {
                    let id = CampaignId::new(&coupon.campaign).expect("decided campaigns have valid ids");
                    *counts.entry(id).or_default() += 1;
                }
            }
            drop(counts);
            p.issuance.written.fetch_add(coupons, Ordering::Relaxed);
            p.issuance.busy_ms.fetch_add(start.elapsed().as_millis() as u64, Ordering::Relaxed);
            p.issuance.publish(to);
        }
        Ok(())
    }

    async fn commit(
        &mut self,
        batch: &mut LedgerBatch,
        partition: Option<&Partition>,
    ) -> Result<(), IssueError> {
        let mut wait = BACKOFF.0;
        loop {
            match self.ledger.commit(batch).await {
                Ok(()) => return Ok(()),
                // A commit whose outcome was unknown had landed.
                Err(LedgerError::Fenced { held, .. })
                    if held == (Position { epoch: batch.epoch, next_offset: batch.to }) =>
                {
                    return Ok(());
                }
                Err(LedgerError::Fenced { .. }) => return Err(IssueError::Replaced(self.place.number)),
                Err(error @ LedgerError::Transient { .. }) => {
                    tracing::warn!(partition = self.place.number, %error, "the ledger is not available, trying again");
                    if let Some(p) = partition {
                        p.counters.ledger_retries.increment(1);
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF.1);
                }
                Err(error @ LedgerError::Permanent { offset, .. }) => {
                    // One row that the database will never take must not hold up all others.
                    tracing::error!(partition = self.place.number, %error, "left out; `dibs audit` names it");
                    self.bury_at(offset, &error).await?;
                    if let Some(p) = partition {
                        p.counters.dead_letters.increment(1);
                    }
                    let before = batch.changes.len();
                    batch.changes.retain(|(at, _)| *at != offset);
                    if batch.changes.len() == before {
                        // Not one change is at fault but the batch: sending it again would never end.
                        return Err(IssueError::Ledger(error));
                    }
                }
                Err(error) => return Err(IssueError::Ledger(error)),
            }
        }
    }

    /// Keeps the record that a row followed from.
    async fn bury_at(&mut self, offset: Offset, error: &LedgerError) -> Result<(), IssueError> {
        let Some(keeping) = &mut self.keeping else { return Ok(()) };
        let (mut buffer, mut unpacked) = (Vec::new(), Vec::new());
        self.log.read(offset, 1, &mut buffer).map_err(|e| IssueError::Log(e.to_string()))?;
        for batch in Batches::new(&buffer) {
            let batch = batch.map_err(|e| IssueError::Log(e.to_string()))?;
            if let Some(entry) = entries(&batch, &mut unpacked).find(|e| e.offset == offset) {
                keeping.dead.keep(&entry, Cause::Ledger, &error.to_string());
            }
        }
        self.flush_dead().await
    }

    /// What the ledger has already is counted once, from the state, up to where the ledger stands.
    async fn seed_counts(&mut self, issuance: &Issuance) -> Result<(), IssueError> {
        while self.state.next_offset() < self.lease.next_offset {
            // Nothing is written below the lease: `step` only decides, until it passes the lease.
            self.catch_up_chunk()?;
        }
        let mut counts = issuance.by_campaign.lock().expect("no panic while locked");
        for campaign in self.state.campaigns() {
            counts.insert(campaign.id().clone(), rows(campaign));
        }
        drop(counts);
        issuance.publish(self.lease.next_offset);
        Ok(())
    }

    /// Decides up to the lease without writing.
    fn catch_up_chunk(&mut self) -> Result<(), IssueError> {
        let mut events = Vec::new();
        let log = |e: &dyn std::fmt::Display| IssueError::Log(e.to_string());
        self.buffer.clear();
        self.log.read(self.state.next_offset(), CHUNK_BYTES, &mut self.buffer).map_err(|e| log(&e))?;
        for batch in Batches::new(&self.buffer) {
            for entry in entries(&batch.map_err(|e| log(&e))?, &mut self.unpacked) {
                if (self.state.next_offset()..self.lease.next_offset).contains(&entry.offset) {
                    self.place.apply(&mut self.state, &entry, &mut events);
                    events.clear();
                }
            }
        }
        Ok(())
    }

    /// Keeps the state for the next start, now and then (at once if `read` is 0, as at the end). It never runs ahead
    /// of the ledger, so both the decider and the issuer can start from it.
    pub fn snapshot(&mut self, read: u64) {
        let Some(keeping) = &mut self.keeping else { return };
        keeping.since += read;
        if read > 0 && keeping.since < SNAPSHOT_BYTES {
            return;
        }
        keeping.since = 0;
        let name = snapshot_name(self.place.number);
        if let Err(error) = keeping.store.put(&name, &self.state.snapshot()) {
            // Costs a longer replay at the next start and nothing else.
            tracing::warn!(partition = self.place.number, %error, "cannot keep a snapshot");
        }
    }
}

/// Coupons that a campaign has in the ledger, once everything decided is written.
fn rows(campaign: &Campaign) -> u64 {
    (1..=campaign.ranks()).filter_map(|r| campaign.win_at(r)).filter(|w| w.issued).count() as u64
}

/// The row of a campaign.
pub(crate) fn campaign_row(campaign: &Campaign, partition: u32) -> dibs_ledger::Campaign {
    let state = match (campaign.is_closed(), campaign.is_paused()) {
        (true, _) => CampaignState::Closed,
        (false, true) => CampaignState::Paused,
        (false, false) => CampaignState::Active,
    };
    dibs_ledger::Campaign {
        id: campaign.id().as_str().into(),
        title: campaign.spec().title.clone(),
        stock: campaign.stock(),
        state,
        opens_at: campaign.spec().opens_at,
        closes_at: campaign.spec().closes_at,
        partition,
        created_offset: campaign.created(),
    }
}

/// The row of a coupon, as it is when it is issued.
pub(crate) fn coupon(campaign: &Campaign, rank: Rank, partition: u32, codes: &Codes) -> Coupon {
    let win = campaign.win_at(rank).expect("an issued win exists");
    Coupon {
        campaign: campaign.id().as_str().into(),
        rank,
        user: win.user.into(),
        code: written_code(campaign, rank, codes),
        status: CouponStatus::Issued,
        partition,
        offset: win.offset,
        timestamp: win.timestamp,
        redeemed_by: None,
        redeemed_at: None,
    }
}

/// The code that the ledger has at this point of the log. An imported one is written once the log has said that
/// it is there, so that a replay writes the same rows and events, however long the list has become since.
fn written_code(campaign: &Campaign, rank: Rank, codes: &Codes) -> Option<Box<str>> {
    let imported = campaign.spec().codes == CodeSource::Imported;
    let told = !imported || u64::from(rank) <= campaign.imported_codes();
    codes.code(campaign, rank).filter(|_| told).map(Into::into)
}

/// Coupons a second for all partitions of the process together.
pub struct Throttle {
    /// 0 for no limit.
    rate: u64,
    /// When the next coupon may be written.
    next: tokio::sync::Mutex<Option<Instant>>,
}

impl Throttle {
    /// At most so many coupons a second; `None` for as many as the ledger takes.
    pub fn new(rate: Option<u64>) -> Throttle {
        Throttle { rate: rate.unwrap_or(0), next: tokio::sync::Mutex::new(None) }
    }

    /// Coupons a second, if limited.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate).filter(|r| *r > 0)
    }

    fn batch(&self, most: usize) -> usize {
        self.rate().map_or(most, |r| (r.div_ceil(WRITES_PER_SECOND) as usize).min(most))
    }

    /// Waits until `n` coupons may be written.
    async fn take(&self, n: u64) {
        let (Some(rate), true) = (self.rate(), n > 0) else { return };
        let mut next = self.next.lock().await;
        let now = Instant::now();
        let at = next.map_or(now, |t| t.max(now));
        *next = Some(at + Duration::from_secs_f64(n as f64 / rate as f64));
        drop(next);
        tokio::time::sleep_until(at).await;
    }
}
