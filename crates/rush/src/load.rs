//! The load itself: few threads, each with many connections, each connection one task.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::api::{excerpt, pause};
use crate::order::Press;
use crate::outcome::Outcome;
use crate::pace::Timetable;
use crate::plan::{Pace, RushPlan};
use crate::tally::{Tally, Win};
use crate::wire::{Caller, Claims, Reply, WinJson, outcome_of};

/// A worker with this many presses waiting to be tried again takes no new one.
const WAITING_AGAIN: usize = 64;
/// A sleeping worker looks this often whether the rush was stopped.
const LOOK_UP: Duration = Duration::from_millis(250);
/// The timer's grain: in open mode a claim may go out this much early, never late because of the timer.
const GRAIN: Duration = Duration::from_millis(1);
/// A connection that is dropped on purpose lives at most this long after its claim was sent.
const DROP_WITHIN_US: u64 = 2_000;

/// What one user was told so far: bits, because there may be millions of users.
pub(crate) mod told {
    /// A win was acknowledged.
    pub(crate) const WON: u8 = 1;
    pub(crate) const SOLD_OUT: u8 = 2;
    pub(crate) const WAITING: u8 = 4;
    /// A press ended without a verdict: it may have won all the same.
    pub(crate) const UNKNOWN: u8 = 8;
}

/// Everything that the workers of one rush share.
pub(crate) struct Rush {
    pub(crate) plan: RushPlan,
    pub(crate) table: Timetable,
    pub(crate) presses: Vec<Press>,
    /// How many idempotency keys there are; 0 when none are sent.
    pub(crate) keys: u16,
    /// What each user was told.
    pub(crate) told: Box<[AtomicU8]>,
    /// Index of the next press to be taken.
    next: AtomicUsize,
    /// Milliseconds from the start to the last answer of any kind.
    heard: AtomicU64,
    /// Nothing more is to be sent.
    stop: AtomicBool,
}

impl Rush {
    pub(crate) fn new(plan: RushPlan, table: Timetable, presses: Vec<Press>, keys: u16) -> Rush {
        let told = (0..plan.users).map(|_| AtomicU8::new(0)).collect();
        let (next, heard, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Rush { plan, table, presses, keys, told, next, heard, stop }
    }

    /// Ends the rush after the claims in flight.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Past the end of `--duration`.
    fn over(&self, now: Instant) -> bool {
        self.plan.duration.is_some_and(|d| now >= self.table.opening + d)
    }

    fn take(&self) -> Option<Job> {
        let index = self.next.fetch_add(1, Relaxed);
        let press = *self.presses.get(index)?;
        let due = self.table.due(index);
        Some(Job { due, press, attempt: 0, since: due })
    }

    fn since_start(&self, at: Instant) -> u64 {
        at.duration_since(self.table.start).as_millis() as u64
    }

    fn tell(&self, user: u32, what: u8) {
        let mine = &self.told[user as usize];
        if mine.load(Relaxed) & what == 0 {
            mine.fetch_or(what, Relaxed);
        }
    }
}

/// A press on its way. Ordered by when it is due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    due: Instant,
    press: Press,
    attempt: u32,
    /// When it was sent first.
    since: Instant,
}

/// The tallies of all threads, one each. A thread's own lock is free but for the moment of a snapshot.
pub(crate) type Tallies = Vec<Arc<Mutex<Tally>>>;

/// A poisoned tally is as good as before: every update of it is a plain addition.
pub(crate) fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the threads of the load. The load shares its cores with the server: it takes half of them.
pub(crate) fn start(rush: &Arc<Rush>) -> (Tallies, JoinSet<()>) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / 2).clamp(1, 8).min(rush.plan.connections);
    let mut running = JoinSet::new();
    let tallies: Tallies = (0..threads).map(|_| Arc::new(Mutex::new(Tally::new()))).collect();
    for (thread, tally) in tallies.iter().enumerate() {
        let (rush, tally) = (rush.clone(), tally.clone());
        let workers = (thread..rush.plan.connections).step_by(threads);
        running.spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            // Without a runtime there is no rush at all; the caller sees the panic as its own.
            runtime.expect("epoll and a timer can be had").block_on(run_workers(rush, tally, workers));
        });
    }
    (tallies, running)
}

async fn run_workers(rush: Arc<Rush>, tally: Arc<Mutex<Tally>>, workers: impl Iterator<Item = usize>) {
    let mut tasks = JoinSet::new();
    for number in workers {
        tasks.spawn(Worker::new(rush.clone(), tally.clone(), number as u64).run());
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a worker does not panic");
    }
}

/// One connection and the presses that go over it.
struct Worker {
    rush: Arc<Rush>,
    tally: Arc<Mutex<Tally>>,
    caller: Caller,
    claims: Claims,
    rng: fastrand::Rng,
    again: BinaryHeap<Reverse<Job>>,
    upcoming: Option<Job>,
}

impl Worker {
    fn new(rush: Arc<Rush>, tally: Arc<Mutex<Tally>>, number: u64) -> Worker {
        let plan = &rush.plan;
        Worker {
            caller: Caller::new(&plan.target),
            claims: Claims::new(&plan.target, &plan.campaign, &plan.user_prefix, rush.keys),
            rng: fastrand::Rng::with_seed(
                plan.seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ),
            again: BinaryHeap::new(),
            upcoming: None,
            rush,
            tally,
        }
    }

    async fn run(mut self) {
        // Connected before the opening; a failure shows itself, and is tried again, with the first press.
        let _ = self.caller.connect().await;
        while let Some(job) = self.next_job() {
            self.wait_until(job.due).await;
            if job.attempt == 0 && (self.rush.stopped() || self.rush.over(Instant::now())) {
                continue;
            }
            self.press(job).await;
        }
    }

    /// What is due first: a press to be tried again, or a new one.
    fn next_job(&mut self) -> Option<Job> {
        if self.rush.stopped() {
            return self.give_up_waiting();
        }
        if self.upcoming.is_none() {
            self.upcoming = self.rush.take();
        }
        let now = Instant::now();
        let again = self.again.peek().map(|job| job.0.due.max(now));
        match (self.upcoming, again) {
            (Some(new), None) => self.taken(new),
            (Some(new), Some(at)) if new.due.max(now) < at && self.again.len() < WAITING_AGAIN => {
                self.taken(new)
            }
            _ => self.again.pop().map(|job| job.0),
        }
    }

    fn taken(&mut self, job: Job) -> Option<Job> {
        self.upcoming = None;
        Some(job)
    }

    fn give_up_waiting(&mut self) -> Option<Job> {
        while let Some(Reverse(job)) = self.again.pop() {
            self.give_up(&job);
        }
        None
    }

    async fn wait_until(&self, due: Instant) {
        let ahead = if self.rush.plan.pace == Pace::Closed { Duration::ZERO } else { GRAIN };
        while !self.rush.stopped() {
            let left = due.saturating_duration_since(Instant::now()).saturating_sub(ahead);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_UP)).await;
        }
    }

    /// Sends one claim and deals with its answer.
    async fn press(&mut self, mut job: Job) {
        let request = self.claims.request(job.press.user, job.press.nth);
        let sent = Instant::now();
        if job.attempt == 0 {
            job.since = sent;
            lock(&self.tally).pressed += 1;
            if !job.press.early && self.rng.f64() < self.rush.plan.drop {
                let wait = Duration::from_micros(self.rng.u64(0..DROP_WITHIN_US));
                self.caller.send_and_drop(request, wait).await;
                lock(&self.tally).drops += 1;
                return self.try_again(job, Outcome::Lost, Some(Duration::ZERO));
            }
        }
        // In open mode a claim that had to wait for its connection is late already.
        let began = match self.rush.plan.pace {
            Pace::Open { .. } if job.attempt == 0 => sent.min(job.due),
            _ => sent,
        };
        let reply = self.caller.exchange(request).await;
        let now = Instant::now();
        let (outcome, status, retry_after) = match &reply {
            Ok(reply) => {
                self.rush.heard.store(self.rush.since_start(now), Relaxed);
                (self.learn(&job, reply), Some(reply.status), reply.retry_after)
            }
            Err(why) => {
                lock(&self.tally).lost_why = Some(why.to_string());
                (Outcome::Lost, None, None)
            }
        };
        lock(&self.tally).note(outcome, status, now - began, now, !job.press.early);
        if outcome.asks_again() {
            self.try_again(job, outcome, retry_after);
        }
    }

    /// Remembers what the answer tells the user.
    fn learn(&self, job: &Job, reply: &Reply) -> Outcome {
        let user = job.press.user;
        let outcome = outcome_of(reply);
        match outcome {
            Outcome::Won | Outcome::AlreadyWon => match self.win(job, reply) {
                Ok(win) => {
                    self.rush.tell(user, told::WON);
                    lock(&self.tally).wins.push(win);
                }
                Err(why) => {
                    lock(&self.tally).odd(|| format!("{why}: {} {}", reply.status, excerpt(&reply.body)));
                    return Outcome::Unexpected;
                }
            },
            Outcome::SoldOut => self.rush.tell(user, told::SOLD_OUT),
            Outcome::Waitlisted => self.rush.tell(user, told::WAITING),
            Outcome::Unexpected | Outcome::UnknownCampaign => {
                lock(&self.tally)
                    .odd(|| format!("not an answer to a claim: {} {}", reply.status, excerpt(&reply.body)));
            }
            _ => {}
        }
        outcome
    }

    fn win(&self, job: &Job, reply: &Reply) -> Result<Win, String> {
        let json: WinJson<'_> =
            serde_json::from_slice(&reply.body).map_err(|e| format!("a win that cannot be read ({e})"))?;
        let number = json.user.strip_prefix(self.rush.plan.user_prefix.as_str()).map(str::parse);
        if number != Some(Ok(job.press.user)) {
            let asked = self.rush.plan.user(job.press.user);
            return Err(format!("the win of another user was shown to {asked}"));
        }
        Ok(Win {
            user: job.press.user,
            nth: job.press.nth,
            rank: json.rank,
            offset: json.claim.offset,
            code: json.code.map(|code| code.into()),
        })
    }

    fn try_again(&mut self, mut job: Job, outcome: Outcome, retry_after: Option<Duration>) {
        if job.press.early {
            // Too early is what was expected; and whatever else it was, the same user presses again.
            if outcome != Outcome::NotOpen {
                self.rush.tell(job.press.user, told::UNKNOWN);
            }
            return;
        }
        let now = Instant::now();
        job.due = now + pause(job.attempt, retry_after, self.rng.f64());
        job.attempt += 1;
        if job.due > job.since + self.rush.plan.patience {
            return self.give_up(&job);
        }
        lock(&self.tally).retries += 1;
        self.again.push(Reverse(job));
    }

    fn give_up(&self, job: &Job) {
        self.rush.tell(job.press.user, told::UNKNOWN);
        lock(&self.tally).given_up += 1;
        // Nobody heard anything for as long as this press was tried: the server is gone for good.
        if self.rush.heard.load(Relaxed) < self.rush.since_start(job.since) {
            self.rush.stop();
        }
    }
}
