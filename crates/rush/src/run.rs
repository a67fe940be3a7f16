//! One rush from beginning to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::api::{Api, ApiError, CampaignJson};
use crate::gather::Evidence;
use crate::judge::{Kind, judge};
use crate::load::{self, Rush, Tallies, lock};
use crate::order::presses;
use crate::outcome::Outcome;
use crate::pace::Timetable;
use crate::plan::{PlanError, RushPlan};
use crate::progress::{Phase, Progress, Snapshot};
use crate::report::{Latency, Report};
use crate::tally::{Tally, histogram};

/// The campaign is looked at this often: the grain of "sold out after" and "in the ledger after".
const LOOK: Duration = Duration::from_millis(25);
/// Every so many looks the display is renewed.
const LOOKS_PER_SHOW: u32 = 10;
/// One look during the load is given up after this long: the next one follows soon.
const LOOK_BOUND: Duration = Duration::from_secs(1);

/// Why a rush could not be run. That the server is not exact is no error but the report's word.
#[derive(Debug, thiserror::Error)]
pub enum RushError {
    /// The arguments make no rush.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Nobody listens there.
    #[error("no server at {url}: {why}")]
    NoServer {
        /// The address.
        url: String,
        /// What happened.
        why: String,
    },
    /// The campaign cannot be created, read or understood.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The campaign's opening is not a time.
    #[error("the campaign cannot be read: {0}")]
    Opening(String),
}

/// Runs the rush and checks it. Takes half of the machine's cores for the load, in threads of its own. Must be
/// called within a tokio runtime with I/O and time; dropping the future stops the load.
pub async fn run(plan: RushPlan, progress: &dyn Progress) -> Result<Report, RushError> {
    let plan = Arc::new(plan);
    let (before, opens_in) = prepare(&plan).await?;
    let keys = if plan.keys && before.per_user_limit > 1 { plan.press } else { 0 };
    let rush = Arc::new(make_rush(&plan, keys, opens_in));

    let (tallies, threads) = load::start(&rush);
    let guard = StopOnDrop(rush.clone());
    let mut watch = Watch::new(&rush, &tallies, before, progress);
    watch.until_sent(threads).await;
    drop(guard);
    watch.until_settled().await;
    watch.show(Phase::Checking);

    let tally = tallies.iter().map(|tally| std::mem::replace(&mut *lock(tally), Tally::new()));
    let tally = tally.reduce(|mut all, next| {
        all.absorb(next);
        all
    });
    let tally = tally.expect("there is at least one thread");
    let mut report = start_report(&rush, &watch, &tally);
    if plan.keys && keys == 0 {
        report.notes.push("--keys does nothing here: a user may hold one coupon".to_owned());
    }
    if plan.check {
        check(&plan, &rush, &watch, tally, &mut report).await;
    }
    progress.done();
    Ok(report)
}

/// Finds the server, creates the campaign if that is asked for, and reads it.
async fn prepare(plan: &RushPlan) -> Result<(CampaignJson, Duration), RushError> {
    let mut api = Api::new(&plan.target, plan.patience);
    if let Err(error) = api.connect().await {
        return Err(RushError::NoServer { url: plan.target.to_string(), why: error.to_string() });
    }
    if let Some(create) = plan.create {
        api.create(&plan.campaign, create.stock, SystemTime::now() + create.opens_in).await?;
    }
    let campaign = api.campaign(&plan.campaign).await?;
    let opens_in = campaign.opens_in().map_err(RushError::Opening)?;
    Ok((campaign, opens_in))
}

fn make_rush(plan: &RushPlan, keys: u16, opens_in: Duration) -> Rush {
    let read = Instant::now();
    // In a campaign that is open already nobody can be early.
    let share = if opens_in.is_zero() { 0.0 } else { plan.early };
    let (presses, early) = presses(plan.users, plan.press, share, plan.seed);
    let start = Instant::now();
    let opening = (read + opens_in).max(start);
    let table = Timetable { start, opening, early, pace: plan.pace };
    Rush::new(plan.clone(), table, presses, keys)
}

/// Ends the threads of the load when the future that waits for them is dropped.
struct StopOnDrop(Arc<Rush>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Follows the campaign during the rush: for the display, and for the times of two events.
struct Watch<'a> {
    rush: &'a Rush,
    tallies: &'a Tallies,
    progress: &'a dyn Progress,
    api: Api,
    before: CampaignJson,
    now: CampaignJson,
    sold_out_after: Option<Duration>,
    ledger_after: Option<Duration>,
    /// Verdicts at the last display, and when that was.
    shown: (u64, Instant),
}

impl<'a> Watch<'a> {
    fn new(
        rush: &'a Rush,
        tallies: &'a Tallies,
        before: CampaignJson,
        progress: &'a dyn Progress,
    ) -> Watch<'a> {
        let api = Api::new(&rush.plan.target, LOOK_BOUND);
        let shown = (0, rush.table.start);
        let now = before.clone();
        Watch { rush, tallies, progress, api, before, now, sold_out_after: None, ledger_after: None, shown }
    }

    /// Looks and shows until all threads have ended.
    async fn until_sent(&mut self, mut threads: JoinSet<()>) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for look in 0u32.. {
            tokio::select! {
                ended = threads.join_next() => match ended {
                    None => return,
                    Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                    Some(Ok(())) => continue,
                },
                _ = ticks.tick() => {}
            }
            let rushing = Instant::now() >= self.rush.table.opening;
            // Once the last coupon is in the ledger there is nothing more to see.
            if rushing && self.ledger_after.is_none() {
                self.look(false).await;
            }
            if look.is_multiple_of(LOOKS_PER_SHOW) {
                self.show(if rushing { Phase::Rushing } else { Phase::Waiting });
            }
        }
    }

    /// Looks until the ledger has every coupon, or stands still for as long as patience lasts.
    async fn until_settled(&mut self) {
        let (mut last, mut moved) = (u64::MAX, Instant::now());
        for look in 0u32.. {
            let seen = self.look(true).await;
            if seen && self.now.issued >= self.now.issuable() {
                return;
            }
            if self.now.issued != last {
                (last, moved) = (self.now.issued, Instant::now());
            }
            if moved.elapsed() > self.rush.plan.patience {
                return;
            }
            if look.is_multiple_of(LOOKS_PER_SHOW) {
                self.show(Phase::Settling);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads the campaign; false if that failed, which is not worth a word: the next look follows.
    async fn look(&mut self, all_sent: bool) -> bool {
        let Ok(Ok(campaign)) = timeout(LOOK_BOUND, self.api.campaign(&self.rush.plan.campaign)).await else {
            return false;
        };
        let after = self.rush.table.opening.elapsed();
        if campaign.remaining == 0 && self.sold_out_after.is_none() {
            self.sold_out_after = Some(after);
        }
        let last_won = campaign.remaining == 0 || all_sent;
        if last_won && campaign.issued >= campaign.issuable() && self.ledger_after.is_none() {
            self.ledger_after = Some(after);
        }
        self.now = campaign;
        true
    }

    fn show(&mut self, phase: Phase) {
        let mut verdicts = histogram();
        let mut pressed = 0;
        for tally in self.tallies {
            let tally = lock(tally);
            pressed += tally.pressed;
            verdicts += &tally.verdicts;
        }
        let now = Instant::now();
        let latency = Latency::of(&verdicts);
        let (before, at) = std::mem::replace(&mut self.shown, (latency.count, now));
        let seconds = now.duration_since(at).as_secs_f64().max(0.001);
        let table = &self.rush.table;
        self.progress.show(&Snapshot {
            phase,
            elapsed: now.duration_since(table.start),
            opens_in: table.opening.saturating_duration_since(now),
            pressed,
            presses: self.rush.presses.len() as u64,
            rate: latency.count.saturating_sub(before) as f64 / seconds,
            stock: self.now.stock,
            remaining: self.now.remaining,
            issued: self.now.issued,
            p50_us: latency.p50_us,
            p99_us: latency.p99_us,
        });
    }
}

fn start_report(rush: &Rush, watch: &Watch<'_>, tally: &Tally) -> Report {
    let ms = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
    let opening = rush.table.opening;
    let mut report = Report {
        campaign: rush.plan.campaign.to_string(),
        seed: rush.plan.seed,
        users: u64::from(rush.plan.users),
        presses: rush.presses.len() as u64,
        early: rush.table.early as u64,
        connections: rush.plan.connections as u64,
        stock: watch.now.stock,
        won: watch.now.won,
        issued: watch.now.issued,
        remaining: watch.now.remaining,
        sold_out_after_ms: ms(watch.sold_out_after),
        ledger_after_ms: ms(watch.ledger_after),
        ..Report::default()
    };
    if let Some(why) = &tally.lost_why {
        let lost = tally.count(Outcome::Lost);
        report.notes.push(format!("{lost} requests had no answer, the last because: {why}"));
    }
    report
        .fill_load(tally, tally.last.map_or(Duration::ZERO, |last| last.saturating_duration_since(opening)));
    report
}

/// Asks the server about everything it acknowledged, and judges.
async fn check(plan: &Arc<RushPlan>, rush: &Rush, watch: &Watch<'_>, tally: Tally, report: &mut Report) {
    let mut evidence = Evidence {
        before: watch.before.clone(),
        after: watch.now.clone(),
        wins: tally.wins,
        told: rush.told.iter().map(|told| told.load(Relaxed)).collect(),
        keys: rush.keys > 0,
        press: plan.press,
        user_prefix: plan.user_prefix.clone(),
        claims: BTreeMap::new(),
        coupons: BTreeMap::new(),
        unanswered: Vec::new(),
    };
    evidence.gather(plan).await;
    let mut found = judge(&evidence);
    found.add(Kind::Unexpected, tally.odd_count, || tally.odd.join("; "));
    let silent = tally.pressed > 0 && tally.verdicts.is_empty();
    found.add(Kind::Unverified, u64::from(silent), || {
        format!("not one verdict for {} presses", tally.pressed)
    });
    if tally.given_up > 0 {
        let note = format!("{} presses had no verdict; what became of them was asked", tally.given_up);
        found.notes.push(note);
    }
    report.fill_findings(found);
}
