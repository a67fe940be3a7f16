//! One world: a server, its clients, its disk, its database and its clock, and a schedule drawn from a seed.

use std::{future::Future, pin::Pin, sync::Arc, task, time::Duration};

use dibs_flow::{Claimed, Clock, Decider, Flow, FlowConfig, IssueError, Issuer, Secret, Unanswered};
use dibs_ledger::Ledger;
use dibs_log::{Call, CommitError, MemoryStorage, Storage, Store, StoreConfig};
use dibs_model::{
    CampaignId, CampaignSpec, CodeSource, Command, Pattern, Timestamp, Verdict, limits::SKEW_MS,
};

use crate::{
    Mutation, Summary,
    check::{self, Answered, History, Refused},
    ledger::{Fault, FaultyLedger},
    storage::Unsynced,
};

/// When worlds begin, in milliseconds.
const BEGIN: i64 = 1_700_000_000_000;
const EIO: i32 = 5;
/// An issuer that has waited so many times in one step makes somebody restart the process. Each try is a wait.
const PATIENCE: u32 = 1_000;

type Outcome = Result<Claimed, Unanswered>;

/// See the module.
pub struct World {
    random: fastrand::Rng,
    mutation: Mutation,
    storage: MemoryStorage,
    config: StoreConfig,
    partitions: u32,
    clock: Clock,
    time: i64,
    ledger: Arc<FaultyLedger>,
    campaigns: Vec<(Arc<str>, CampaignSpec)>,
    users: u32,
    node: Option<Node>,
    /// What a client never learned and will ask again.
    retries: Vec<Request>,
    history: History,
    summary: Summary,
    /// What happened, for people.
    pub transcript: Vec<String>,
}

/// The process.
struct Node {
    flow: Flow,
    deciders: Vec<Decider>,
    issuers: Vec<Option<Issuer<FaultyLedger>>>,
    /// Issuers that were replaced and do not know it.
    zombies: Vec<(usize, Issuer<FaultyLedger>)>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    request: Request,
    answer: Pin<Box<dyn Future<Output = Outcome>>>,
}

#[derive(Clone, Debug)]
struct Request {
    campaign: Arc<str>,
    command: Command<'static>,
}

enum Turned {
    On,
    /// The process must end.
    Dead,
}

impl World {
    /// A world that has not begun.
    pub fn new(seed: u64, mutation: Mutation) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let config = StoreConfig {
            segment_bytes: [700, 3_000, 1 << 20][random.usize(..3)],
            index_interval_bytes: [1, 200, 4_096][random.usize(..3)],
            checkpoint_bytes: [1, 1_000, 1 << 20][random.usize(..3)],
            ..StoreConfig::default()
        };
        let campaigns = (0..random.u32(1..4)).map(|i| (format!("c{i}").into(), spec(&mut random))).collect();
        World {
            storage: MemoryStorage::new(random.u64(..)),
            config,
            partitions: random.u32(1..3),
            clock: Clock::by_hand(Timestamp(BEGIN)),
            time: BEGIN,
            ledger: Arc::new(FaultyLedger::new(mutation == Mutation::EpochIgnored)),
            campaigns,
            users: random.u32(2..16),
            node: None,
            retries: Vec::new(),
            history: History::default(),
            summary: Summary::default(),
            transcript: Vec::new(),
            mutation,
            random,
        }
    }

    /// From the first start to the last check.
    pub async fn live(&mut self) -> Result<Summary, String> {
        self.restart().await?;
        for _ in 0..self.random.u32(40..250) {
            self.step().await?;
        }
        self.end().await?;
        Ok(self.summary)
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.random.u32(..100) {
            0..38 => self.press_claim(),
            38..40 => self.import_codes(),
            40..52 => self.press_other(),
            52..74 => {
                let which = self.random.usize(..self.partitions as usize);
                self.turn(which).await?;
            }
            74..86 => self.issue().await?,
            86..90 => self.move_clock(),
            90..93 => self.fail_storage(),
            93 => self.die(true).await?,
            94 => self.die(false).await?,
            95 | 96 => self.replace_issuer().await?,
            97 => self.zombie().await?,
            98 => {
                if let Some(taken) = self.ledger.deliver().await {
                    self.note(format!("a late batch arrives: {:?}", taken.map_err(|e| e.to_string())));
                }
            }
            _ => {
                let node = self.node.as_mut().expect("runs");
                node.issuers.iter_mut().flatten().for_each(|issuer| issuer.snapshot(0));
                self.note("snapshots".into());
            }
        }
        Ok(())
    }

    fn press_claim(&mut self) {
        if !self.retries.is_empty() && self.random.u32(..3) == 0 {
            let request = self.retries.swap_remove(self.random.usize(..self.retries.len()));
            return self.press(request);
        }
        let user = format!("u{}", self.random.u32(..self.users));
        let key = ["", "", "k1", "k2"][self.random.usize(..4)];
        let campaign = self.campaign();
        self.press(Request { campaign, command: Command::Claim { user: user.into(), key: key.into() } });
    }

    fn press_other(&mut self) {
        let (which, campaign) = (self.random.u32(..20), self.campaign());
        let user = format!("u{}", self.random.u32(..self.users)).into();
        let rank = self.random.u32(1..12);
        let command = match which {
            0..5 => Command::Confirm { user, rank: None },
            5..9 => Command::Cancel { user, rank: self.random.bool().then_some(rank) },
            9..13 => {
                Command::Redeem { rank, by: user, key: if rank.is_multiple_of(2) { "t" } else { "" }.into() }
            }
            13 => Command::Unredeem { rank },
            14 | 15 => {
                let key = format!("r{}", self.random.u32(..3)).into();
                Command::Restock { units: self.random.u64(1..4), key }
            }
            16 => Command::Pause,
            17 | 18 => Command::Resume,
            _ if self.random.u32(..4) == 0 => Command::Close,
            _ => Command::Expire { rank },
        };
        self.press(Request { campaign, command });
    }

    /// Codes come before and after the wins that they are for.
    fn import_codes(&mut self) {
        let (campaign, first) = (self.campaign(), self.random.u32(..20));
        let list: Vec<String> =
            (first..first + self.random.u32(1..6)).map(|n| format!("{campaign}-{n}")).collect();
        let id = CampaignId::new(&campaign).expect("valid");
        let imported =
            self.node.as_ref().expect("runs").flow.import_codes(&id, list.iter().map(String::as_str));
        self.note(format!("import {list:?}: {:?}", imported.as_ref().map_err(|e| e.to_string())));
        if let Ok(imported) = imported {
            self.press(Request { campaign, command: Command::Codes { imported } });
        }
    }

    fn press(&mut self, request: Request) {
        self.note(format!("press {} {:?}", request.campaign, request.command));
        let node = self.node.as_mut().expect("runs");
        let partition = node.flow.partition(&request.campaign).clone();
        let Request { campaign, command } = request.clone();
        let answer: Pin<Box<dyn Future<Output = Outcome>>> = Box::pin(async move {
            match &command {
                Command::Claim { user, key } => partition.claim(&campaign, user, key).await,
                other => partition.command(&campaign, other).await.map(Claimed::Answered),
            }
        });
        node.waiting.push(Waiting { request, answer });
        self.collect();
    }

    /// Looks who has an answer.
    fn collect(&mut self) {
        let mut node = self.node.take().expect("runs");
        let mut context = task::Context::from_waker(task::Waker::noop());
        let mut waiting = std::mem::take(&mut node.waiting);
        waiting.retain_mut(|w| match w.answer.as_mut().poll(&mut context) {
            task::Poll::Pending => true,
            task::Poll::Ready(outcome) => {
                self.told(&node.flow, &w.request, outcome);
                false
            }
        });
        node.waiting = waiting;
        self.node = Some(node);
    }

    /// A client reads its answer.
    fn told(&mut self, flow: &Flow, request: &Request, outcome: Outcome) {
        let partition = flow.partition(&request.campaign);
        let claim = match &request.command {
            Command::Claim { user, key } => Some((user.to_string(), key.to_string())),
            _ => None,
        };
        let campaign = request.campaign.clone();
        match outcome {
            Err(why) => {
                self.note(format!("{} {:?}: {why}", campaign, request.command));
                self.summary.unknown += u64::from(why == Unanswered::Unknown);
                self.retries.push(request.clone());
            }
            Ok(Claimed::Refused(verdict)) => {
                self.summary.answers += 1;
                let (user, key) = claim.expect("only claims pass the gate");
                let at = partition.state().next_offset();
                self.note(format!("{campaign} {user} {key:?} is refused at {at}: {verdict:?}"));
                let (partition, clock) = (partition.number, self.clock.now());
                self.history.refused.push(Refused { partition, at, clock, verdict, campaign, user, key });
            }
            Ok(Claimed::Answered(answer)) => {
                self.summary.answers += 1;
                let (verdict, offset) = (answer.verdict, answer.offset);
                self.note(format!("{campaign} offset {offset}: {verdict:?} for {:?}", request.command));
                let code = match verdict {
                    Verdict::Won { rank } => {
                        self.summary.wins += 1;
                        let state = partition.state();
                        flow.codes().code(state.campaign(&campaign).expect("decided"), rank)
                    }
                    _ => None,
                };
                // Signing is slow where nothing is optimised: every eighth will do.
                let signed = answer.receipt.filter(|_| self.random.u32(..8) == 0);
                let receipt = signed.map(|(group, i)| group.receipt(i, flow.signatory()));
                let partition = partition.number;
                let told = Answered { partition, offset, verdict, campaign, claim, code, receipt };
                self.history.answered.push(told);
            }
        }
    }

    async fn turn(&mut self, which: usize) -> Result<(), String> {
        if let Turned::Dead = self.try_turn(which) { self.die_somehow().await } else { Ok(()) }
    }

    fn try_turn(&mut self, which: usize) -> Turned {
        use dibs_flow::decider::TurnError;
        let node = self.node.as_mut().expect("runs");
        let turned = node.deciders[which].turn();
        let dead = match &turned {
            Ok(_) => false,
            Err(TurnError::Commit(CommitError::Broken(_)) | TurnError::Read(_)) => true,
            Err(TurnError::Commit(_)) => false,
        };
        self.note(format!("turn {which}: {turned:?}"));
        self.collect();
        if dead { Turned::Dead } else { Turned::On }
    }

    async fn issue(&mut self) -> Result<(), String> {
        let which = self.random.usize(..self.partitions as usize);
        let faults: Vec<Fault> = match self.random.u32(..10) {
            0 => vec![Fault::Fails; self.random.usize(1..4)],
            1 => vec![Fault::FailsAfter],
            2 => vec![Fault::FailsAfter, Fault::Fails, Fault::FailsAfter],
            3 => vec![[Fault::DiesBefore, Fault::DiesAfter][self.random.usize(..2)]],
            4 => vec![Fault::Fails, Fault::DiesBefore],
            _ => Vec::new(),
        };
        self.ledger.plan(faults.iter().copied());
        let node = self.node.as_mut().expect("runs");
        let Some(mut issuer) = node.issuers[which].take() else { return self.replace_issuer().await };
        let partition = node.flow.partitions()[which].clone();
        let step = tokio::select! {
            biased;
            step = patient(issuer.step(Some(&partition))) => Some(step),
            () = self.ledger.killed.notified() => None,
        };
        self.ledger.plan([]);
        let shown = step.as_ref().map(|s| s.as_ref().map_err(|e| e.to_string()));
        self.note(format!("issuer {which} with {faults:?}: {shown:?}"));
        match step {
            None => self.summary.issuers += 1,
            Some(Ok(_)) => self.node.as_mut().expect("runs").issuers[which] = Some(issuer),
            Some(Err(IssueError::Log(_))) => {}
            Some(Err(IssueError::DeadLetter(_))) => {
                drop((issuer, partition));
                self.die_somehow().await?;
            }
            Some(Err(error)) => return Err(format!("issuer {which} gave up: {error}")),
        }
        Ok(())
    }

    /// Starts an issuer where none is, or in the place of one that goes on as a zombie.
    async fn replace_issuer(&mut self) -> Result<(), String> {
        let which = self.random.usize(..self.partitions as usize);
        self.note(format!("another issuer {which}"));
        match self.start_issuer(which).await {
            Ok(()) => Ok(()),
            Err(IssueError::DeadLetter(_)) => self.die_somehow().await,
            Err(error) => Err(error.to_string()),
        }
    }

    async fn start_issuer(&mut self, which: usize) -> Result<(), IssueError> {
        if self.random.u32(..6) == 0 {
            self.ledger.plan([[Fault::Fails, Fault::FailsAfter][self.random.usize(..2)]]);
        }
        let node = self.node.as_mut().expect("runs");
        let partition = node.flow.partitions()[which].clone();
        let issuer = patient(node.flow.issuer(&partition, &self.ledger)).await?;
        if let Some(old) = node.issuers[which].replace(issuer) {
            node.zombies.push((which, old));
        }
        self.summary.issuers += 1;
        Ok(())
    }

    async fn zombie(&mut self) -> Result<(), String> {
        let node = self.node.as_mut().expect("runs");
        if node.zombies.is_empty() {
            return Ok(());
        }
        let (which, mut zombie) = node.zombies.swap_remove(self.random.usize(..node.zombies.len()));
        let step = patient(zombie.step(None)).await;
        self.note(format!("zombie issuer {which}: {:?}", step.as_ref().map_err(|e| e.to_string())));
        match step {
            Ok(_) => self.node.as_mut().expect("runs").zombies.push((which, zombie)),
            Err(IssueError::Replaced(_) | IssueError::Log(_) | IssueError::DeadLetter(_)) => {}
            Err(error) => return Err(format!("zombie {which} gave up: {error}")),
        }
        Ok(())
    }

    fn move_clock(&mut self) {
        self.time += match self.random.u32(..8) {
            0..5 => self.random.i64(0..1_500),
            5 => self.random.i64(0..10_000),
            6 => -self.random.i64(0..5_000),
            _ => [-100_000, 40_000][self.random.usize(..2)],
        };
        self.clock.set(Timestamp(self.time));
        self.note(format!("the clock shows {}", self.time - BEGIN));
    }

    fn fail_storage(&mut self) {
        let nth = self.random.u64(1..6);
        match self.random.u32(..9) {
            0 | 1 => {
                let room = self.random.u64(..400);
                self.storage.set_capacity(Some(self.storage.used() + room));
                self.note(format!("the disk has {room} bytes left"));
            }
            2 | 3 => {
                self.storage.set_capacity(None);
                self.storage.heal();
                self.note("the disk is well".into());
            }
            4 => {
                self.storage.cut_power_at(nth);
                self.note(format!("the power goes at the {nth}th change"));
            }
            n => {
                let call = [Call::Write, Call::Sync, Call::SetLen, Call::Open, Call::SyncDir][n as usize % 5];
                let times = self.random.u64(1..4);
                self.storage.fail(call, nth, times, EIO);
                self.note(format!("{call:?} fails {times} times from the {nth}th on"));
            }
        }
    }

    /// The process ends, with the power or without, and comes back.
    async fn die(&mut self, power: bool) -> Result<(), String> {
        self.stop_node();
        if power {
            self.storage.crash();
        } else {
            self.storage.heal();
        }
        self.note(if power { "the power is cut" } else { "the process is killed" }.into());
        self.restart().await
    }

    async fn die_somehow(&mut self) -> Result<(), String> {
        let power = self.random.bool();
        self.die(power).await
    }

    fn stop_node(&mut self) {
        if let Some(node) = self.node.take() {
            self.summary.restarts += 1;
            self.summary.unknown += node.waiting.len() as u64;
            self.retries.extend(node.waiting.iter().map(|w| w.request.clone()));
        }
    }

    /// Starts the process, through power cuts while it recovers, and checks everything.
    async fn restart(&mut self) -> Result<(), String> {
        while self.random.u32(..5) == 0 {
            let nth = self.random.u64(1..12);
            self.storage.cut_power_at(nth);
            let opened = self.open();
            self.note(format!("the power is cut at the {nth}th change of a start ({})", opened.is_ok()));
            drop(opened);
            self.storage.crash();
        }
        // Operators make room before they start again.
        self.storage.set_capacity(None);
        let flow = self.open().map_err(|e| format!("lost: the server does not start: {e}"))?;
        let deciders = flow.partitions().iter().cloned().map(Decider::new).collect();
        let issuers = flow.partitions().iter().map(|_| None).collect();
        self.node = Some(Node { flow, deciders, issuers, zombies: Vec::new(), waiting: Vec::new() });
        for which in 0..self.partitions as usize {
            if let Turned::Dead = self.try_turn(which) {
                return Err("a healthy start fails".into());
            }
        }
        self.check(false).await?;
        for which in 0..self.partitions as usize {
            if self.random.u32(..4) > 0 {
                self.start_issuer(which).await.map_err(|e| e.to_string())?;
            }
        }
        for (campaign, spec) in self.campaigns.clone() {
            let node = self.node.as_ref().expect("runs");
            if node.flow.partition(&campaign).state().campaign(&campaign).is_none() {
                self.press(Request { campaign, command: Command::Create(Box::new(spec)) });
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<Flow, String> {
        let storage: Arc<dyn Storage> = match self.mutation {
            Mutation::FsyncIgnored => Arc::new(Unsynced(self.storage.clone())),
            _ => Arc::new(self.storage.clone()),
        };
        let store = Store::open(storage, self.config.clone()).map_err(|e| e.to_string())?;
        let config = FlowConfig {
            partitions: self.partitions,
            hold: Duration::from_secs(3_600),
            clock: self.clock.clone(),
            ..FlowConfig::default()
        };
        Flow::open(Arc::new(store), &Secret::new([7; 32]), &config).map_err(|e| e.to_string())
    }

    async fn check(&mut self, whole: bool) -> Result<(), String> {
        let node = self.node.as_ref().expect("runs");
        self.summary.rows = check::check(&mut self.history, &node.flow, &self.ledger, whole).await?;
        Ok(())
    }

    /// Everything heals, everything is written, everything is checked.
    async fn end(&mut self) -> Result<(), String> {
        self.storage.set_capacity(None);
        self.die_somehow().await?;
        while self.ledger.deliver().await.is_some() {}
        for which in 0..self.partitions as usize {
            // Twice: what the first turn lets expire, the second decides.
            for _ in 0..2 {
                self.try_turn(which);
            }
            self.start_issuer(which).await.map_err(|e| e.to_string())?;
            let node = self.node.as_mut().expect("runs");
            let partition = node.flow.partitions()[which].clone();
            let issuer = node.issuers[which].take().expect("just started");
            issuer.run_to_end().await.map_err(|e| e.to_string())?;
            let reached = self.ledger.next_offset(partition.number).await.map_err(|e| e.to_string())?;
            let end = partition.log().high_watermark();
            if reached != Some(end) {
                return Err(format!("partition {which}: the ledger is at {reached:?}, the log at {end}"));
            }
        }
        self.check(true).await
    }

    fn campaign(&mut self) -> Arc<str> {
        self.campaigns[self.random.usize(..self.campaigns.len())].0.clone()
    }

    fn note(&mut self, what: String) {
        self.transcript.push(what);
    }
}

/// Waits for an issuer, but not for ever: it may wait for the disk, which nothing else here would make well.
async fn patient<T>(what: impl Future<Output = Result<T, IssueError>>) -> Result<T, IssueError> {
    let (mut what, mut polls) = (std::pin::pin!(what), 0);
    std::future::poll_fn(|context| {
        polls += 1;
        if polls > PATIENCE {
            return task::Poll::Ready(Err(IssueError::DeadLetter("it tries without end".into())));
        }
        what.as_mut().poll(context)
    })
    .await
}

fn spec(random: &mut fastrand::Rng) -> CampaignSpec {
    let opens_at = Timestamp(BEGIN + [-SKEW_MS, 0, 3_000][random.usize(..3)]);
    CampaignSpec {
        title: "t".into(),
        stock: random.u64(1..12),
        opens_at,
        closes_at: if random.u32(..4) == 0 { Timestamp(BEGIN + 30_000) } else { Timestamp::NEVER },
        per_user_limit: random.u32(1..4),
        codes: match random.u32(..3) {
            0 => CodeSource::Imported,
            _ => CodeSource::Pattern(Pattern::default()),
        },
        hold_seconds: [0, 0, 1, 4][random.usize(..4)],
        waitlist: [0, 0, 1, 4][random.usize(..4)],
        intake: None,
    }
}
