//! Evidence: what the server shows after the rush, to be compared with what it said during the rush.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use tokio::task::JoinSet;

use crate::api::{Api, ApiError, CampaignJson, ShownClaim, ShownWin};
use crate::load::told;
use crate::plan::RushPlan;
use crate::tally::Win;

/// The check asks over this many connections at once.
const ASKERS: usize = 32;
/// So many of the users who were told "sold out" are asked about.
const REFUSED_SAMPLE: usize = 1_000;

/// Everything the judgement rests on.
pub(crate) struct Evidence {
    /// The campaign before the first claim.
    pub(crate) before: CampaignJson,
    /// The campaign once the ledger had caught up.
    pub(crate) after: CampaignJson,
    /// Every acknowledged win, once for each answer.
    pub(crate) wins: Vec<Win>,
    /// What each user was told ([`told`]).
    pub(crate) told: Vec<u8>,
    /// Each press had a key of its own and might win by itself.
    pub(crate) keys: bool,
    /// Presses of each user.
    pub(crate) press: u16,
    /// What the users' names start with.
    pub(crate) user_prefix: String,
    /// What the server shows of users.
    pub(crate) claims: BTreeMap<u32, ShownClaim>,
    /// What the server shows of coupon codes.
    pub(crate) coupons: BTreeMap<Box<str>, Option<ShownWin>>,
    /// Questions that have no answer, and why.
    pub(crate) unanswered: Vec<ApiError>,
}

impl Evidence {
    /// Asks about all winners, all users whose outcome is unknown and a sample of the refused ones; then about
    /// all coupon codes that were seen.
    pub(crate) async fn gather(&mut self, plan: &Arc<RushPlan>) {
        let users = users_to_ask(&self.told, plan.seed);
        self.ask(plan, users.into_iter().map(Question::Claim).collect()).await;

        let mut codes: BTreeSet<Box<str>> = self.wins.iter().filter_map(|win| win.code.clone()).collect();
        codes.extend(self.claims.values().filter_map(|claim| match claim {
            ShownClaim::Win(win) => win.code.clone(),
            ShownClaim::Waiting | ShownClaim::Nothing => None,
        }));
        self.ask(plan, codes.into_iter().map(Question::Coupon).collect()).await;

        // Numbers that are still out of step with the users' may only have been read too early.
        match Api::new(&plan.target, plan.patience).campaign(&plan.campaign).await {
            Ok(campaign) => self.after = campaign,
            Err(error) => self.unanswered.push(error),
        }
    }

    async fn ask(&mut self, plan: &Arc<RushPlan>, questions: Vec<Question>) {
        let round = Arc::new(Round {
            plan: plan.clone(),
            questions,
            next: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        });
        let mut askers = JoinSet::new();
        for _ in 0..ASKERS.min(round.questions.len()) {
            askers.spawn(asker(round.clone()));
        }
        while let Some(answers) = askers.join_next().await {
            for answer in answers.expect("an asker does not panic") {
                match answer {
                    Ok(Answer::Claim(user, claim)) => drop(self.claims.insert(user, claim)),
                    Ok(Answer::Coupon(code, coupon)) => drop(self.coupons.insert(code, coupon)),
                    Err(error) => self.unanswered.push(error),
                }
            }
        }
    }
}

enum Question {
    Claim(u32),
    Coupon(Box<str>),
}

enum Answer {
    Claim(u32, ShownClaim),
    Coupon(Box<str>, Option<ShownWin>),
}

/// One round of questions, shared by its askers.
struct Round {
    plan: Arc<RushPlan>,
    questions: Vec<Question>,
    next: AtomicUsize,
    /// The server is not there any more: further questions are in vain.
    gone: AtomicBool,
}

async fn asker(round: Arc<Round>) -> Vec<Result<Answer, ApiError>> {
    let plan = &round.plan;
    let mut api = Api::new(&plan.target, plan.patience);
    let mut answers = Vec::new();
    while !round.gone.load(Relaxed) {
        let Some(question) = round.questions.get(round.next.fetch_add(1, Relaxed)) else { break };
        let answer = match question {
            Question::Claim(user) => {
                let claim = api.claim_of(&plan.campaign, &plan.user(*user)).await;
                claim.map(|claim| Answer::Claim(*user, claim))
            }
            Question::Coupon(code) => {
                let coupon = api.coupon(&plan.campaign, code).await;
                coupon.map(|coupon| Answer::Coupon(code.clone(), coupon))
            }
        };
        if matches!(answer, Err(ApiError::Unreachable { .. })) {
            round.gone.store(true, Relaxed);
        }
        answers.push(answer);
    }
    answers
}

fn users_to_ask(told: &[u8], seed: u64) -> Vec<u32> {
    let mut users = Vec::new();
    let mut refused = Vec::new();
    for (user, &what) in (0u32..).zip(told) {
        if what & (told::WON | told::UNKNOWN) != 0 {
            users.push(user);
        } else if what & told::SOLD_OUT != 0 {
            refused.push(user);
        }
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    users.extend(rng.choose_multiple(refused, REFUSED_SAMPLE));
    users
}
