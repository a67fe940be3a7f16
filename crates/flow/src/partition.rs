//! One partition of `dibs.claims` in this process: its log, what has been decided, and who waits.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dibs_decide::State;
use dibs_log::PartitionLog;
use dibs_model::{Command, Verdict};
use tokio::{sync::Notify, time::Instant};

use crate::{
    clock::Clock,
    counters::Counters,
    flow::FlowConfig,
    gate::{self, Gate},
    intake::{Answer, Intake, Unanswered, Waiter},
    issuer::Issuance,
    records::Place,
};

/// See the module.
pub struct Partition {
    /// Its number.
    pub number: u32,
    pub(crate) place: Place,
    pub(crate) log: Arc<PartitionLog>,
    /// Written by the decider alone, a chunk of log at a time.
    pub(crate) state: RwLock<State>,
    intake: Mutex<Intake>,
    /// Told after each group that was decided.
    pub(crate) moved: Notify,
    pub(crate) caught_up: AtomicBool,
    pub(crate) stopping: AtomicBool,
    /// The log takes nothing more: a failed sync cannot be tried again.
    pub(crate) broken: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) clock: Clock,
    /// How far the issuer is.
    pub issuance: Issuance,
    hold_limit: Duration,
}

/// What becomes of a claim.
pub enum Claimed {
    /// The gate knew the verdict.
    Refused(Verdict),
    /// It was appended and decided.
    Answered(Answer),
}

impl Partition {
    pub(crate) fn new(place: Place, log: Arc<PartitionLog>, state: State, config: &FlowConfig) -> Self {
        Partition {
            number: place.number,
            place,
            log,
            state: RwLock::new(state),
            intake: Mutex::new(Intake::new(config.in_flight)),
            moved: Notify::new(),
            caught_up: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            counters: Counters::new(place.number),
            clock: config.clock.clone(),
            issuance: Issuance::default(),
            hold_limit: config.hold,
        }
    }

    /// What has been decided so far.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no panic while locked")
    }

    pub(crate) fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().expect("no panic while locked")
    }

    /// Commands appended and not decided.
    pub fn in_flight(&self) -> u64 {
        self.intake().len() as u64
    }

    /// Whether everything that stood in the log at the start has been decided.
    pub fn is_ready(&self) -> bool {
        self.caught_up.load(Ordering::Acquire)
    }

    /// Whether the log can be written no more until a restart has verified it.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The log that this partition is decided from.
    pub fn log(&self) -> &Arc<PartitionLog> {
        &self.log
    }

    /// What the gate says now, without appending anything.
    pub fn peek(&self, campaign: &str, user: &str, key: &str) -> Gate {
        let state = self.state();
        match state.campaign(campaign) {
            None if self.is_ready() => Gate::Refuse(Verdict::UnknownCampaign),
            None => Gate::Hold,
            Some(c) => {
                // The intake is asked only where it matters: a refusal takes no lock but the state's.
                match gate::judge(c, user, key, self.clock.now(), state.now(), 0) {
                    Gate::Admit => {
                        let in_flight = self.intake().in_flight(campaign);
                        gate::judge(c, user, key, self.clock.now(), state.now(), in_flight)
                    }
                    other => other,
                }
            }
        }
    }

    /// One user's claim: gate, log, verdict.
    pub async fn claim(&self, campaign: &str, user: &str, key: &str) -> Result<Claimed, Unanswered> {
        match self.submit(campaign, user, key).await? {
            Err(verdict) => Ok(Claimed::Refused(verdict)),
            Ok(waiter) => waiter.await.unwrap_or(Err(Unanswered::Unknown)).map(Claimed::Answered),
        }
    }

    /// The first half of a claim: what the gate refuses it with, or where its answer will be. Claims that one task
    /// submits are in the log in that order.
    pub(crate) async fn submit(
        &self,
        campaign: &str,
        user: &str,
        key: &str,
    ) -> Result<Result<Waiter, Verdict>, Unanswered> {
        if let Some(verdict) = self.admit(campaign, user, key).await? {
            self.counters.refused(verdict);
            return Ok(Err(verdict));
        }
        let mut intake = self.intake();
        SCRATCH.with_borrow_mut(|s| intake.claim(&self.log, s, &campaign.into(), user, key)).map(Ok)
    }

    /// Waits at the gate until it knows the verdict, or admits the claim (`None`).
    async fn admit(&self, campaign: &str, user: &str, key: &str) -> Result<Option<Verdict>, Unanswered> {
        match self.peek(campaign, user, key) {
            Gate::Refuse(verdict) => return Ok(Some(verdict)),
            Gate::Admit => return Ok(None),
            Gate::Hold => self.counters.held.increment(1),
        }
        let deadline = Instant::now() + self.hold_limit;
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            // Registered before the gate looks again, so that no move between the two is missed.
            moved.as_mut().enable();
            match self.peek(campaign, user, key) {
                Gate::Refuse(verdict) => return Ok(Some(verdict)),
                Gate::Admit => return Ok(None),
                Gate::Hold if tokio::time::timeout_at(deadline, moved).await.is_err() => {
                    return Err(Unanswered::Overloaded);
                }
                Gate::Hold => {}
            }
        }
    }

    /// Any other command: log, verdict.
    pub async fn command(&self, campaign: &str, command: &Command<'_>) -> Result<Answer, Unanswered> {
        let waiter = self.intake().command(&self.log, &campaign.into(), command)?;
        waiter.await.unwrap_or(Err(Unanswered::Unknown))
    }

    /// Tells the decider to answer what is in flight and end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.log.wake();
    }
}

thread_local! {
    static SCRATCH: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}
