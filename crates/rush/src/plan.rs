//! What will be done: the arguments, validated once.

use std::time::Duration;

use dibs_model::{CampaignId, IdError, UserId, limits};

use crate::args::{Mode, RushArgs};
use crate::wire::Target;

/// Most users of one rush; a user costs one byte and each press 20 while they are shuffled, 8 afterwards.
const USERS: u64 = 50_000_000;
/// Most presses of one user.
const PRESSES_EACH: u64 = 1_000;
/// Most presses altogether.
const PRESSES: u64 = 100_000_000;
/// Most connections: what one client address can have towards one server port.
const CONNECTIONS: u64 = 28_000;

/// Why the arguments make no rush. The message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The address cannot be used.
    #[error("--url {url}: {why}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The campaign id is none.
    #[error("--campaign: {0}")]
    Campaign(IdError),
    /// The users' names would not be valid.
    #[error("--user-prefix: {0}")]
    UserPrefix(IdError),
    /// A number is out of its range.
    #[error("--{what} is {given}, allowed are {least} to {most}")]
    Range {
        /// The argument.
        what: &'static str,
        /// As given.
        given: f64,
        /// The smallest that is allowed.
        least: f64,
        /// The largest that is allowed.
        most: f64,
    },
    /// Users times presses is more than memory is planned for.
    #[error("--users times --press is {0}, at most {PRESSES} presses are sent in one rush")]
    TooManyPresses(u64),
    /// Open mode needs a rate.
    #[error("--mode open needs --rate, the claims per second")]
    RateMissing,
    /// A rate makes no sense in closed mode.
    #[error("--rate and --ramp belong to --mode open")]
    RateInClosedMode,
    /// The admin key cannot stand in a header.
    #[error("--admin-key has a character that cannot be sent in a header")]
    AdminKey,
}

/// How claims follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// As fast as answers come back.
    Closed,
    /// `rate` claims a second, reached after `ramp` seconds.
    Open { rate: f64, ramp: f64 },
}

/// The campaign that is created before the rush.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Create {
    pub(crate) stock: u64,
    pub(crate) opens_in: Duration,
}

/// A rush that can be run: every value is in its range and the address is parsed. Made with `try_from` from
/// [`RushArgs`].
#[derive(Clone, Debug)]
pub struct RushPlan {
    pub(crate) target: Target,
    pub(crate) campaign: CampaignId,
    pub(crate) create: Option<Create>,
    pub(crate) users: u32,
    pub(crate) press: u16,
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
    pub(crate) early: f64,
    pub(crate) drop: f64,
    pub(crate) user_prefix: String,
    pub(crate) keys: bool,
    pub(crate) duration: Option<Duration>,
    pub(crate) patience: Duration,
    pub(crate) check: bool,
    pub(crate) seed: u64,
}

impl RushPlan {
    /// The name of a user of this rush.
    pub(crate) fn user(&self, number: u32) -> String {
        format!("{}{number}", self.user_prefix)
    }
}

impl TryFrom<RushArgs> for RushPlan {
    type Error = PlanError;

    fn try_from(args: RushArgs) -> Result<Self, PlanError> {
        let target = Target::parse(&args.url, args.admin_key.as_deref())?;
        let campaign = CampaignId::new(&args.campaign).map_err(PlanError::Campaign)?;
        let users = whole("users", args.users, USERS)?;
        let press = whole("press", args.press, PRESSES_EACH)?;
        if users * press > PRESSES {
            return Err(PlanError::TooManyPresses(users * press));
        }
        let longest = format!("{}{users}", args.user_prefix);
        UserId::check(&longest).map_err(PlanError::UserPrefix)?;
        let create = match args.create_stock {
            None => None,
            Some(stock) => {
                Some(Create { stock: whole("create-stock", stock, limits::STOCK)?, opens_in: args.opens_in })
            }
        };
        Ok(RushPlan {
            target,
            campaign,
            create,
            users: users as u32,
            press: press as u16,
            connections: whole("connections", args.connections, CONNECTIONS)? as usize,
            pace: pace(args.mode, args.rate, args.ramp)?,
            early: within("early", args.early, 0.0, 1.0)?,
            drop: within("drop", args.drop, 0.0, 1.0)?,
            user_prefix: args.user_prefix,
            keys: args.keys,
            duration: args.duration,
            patience: args.patience,
            check: !args.no_check,
            seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        })
    }
}

fn pace(mode: Mode, rate: Option<f64>, ramp: f64) -> Result<Pace, PlanError> {
    match (mode, rate) {
        (Mode::Closed, None) if ramp == 0.0 => Ok(Pace::Closed),
        (Mode::Closed, _) => Err(PlanError::RateInClosedMode),
        (Mode::Open, None) => Err(PlanError::RateMissing),
        (Mode::Open, Some(rate)) => Ok(Pace::Open {
            rate: within("rate", rate, 0.001, 10_000_000.0)?,
            ramp: within("ramp", ramp, 0.0, 86_400.0)?,
        }),
    }
}

fn whole(what: &'static str, given: u64, most: u64) -> Result<u64, PlanError> {
    if (1..=most).contains(&given) {
        Ok(given)
    } else {
        Err(PlanError::Range { what, given: given as f64, least: 1.0, most: most as f64 })
    }
}

fn within(what: &'static str, given: f64, least: f64, most: f64) -> Result<f64, PlanError> {
    if (least..=most).contains(&given) {
        Ok(given)
    } else {
        Err(PlanError::Range { what, given, least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        rush: RushArgs,
    }

    fn plan(extra: &[&str]) -> Result<RushPlan, PlanError> {
        let campaign = ["rush", "--campaign", "summer"];
        let line = campaign[..if extra[0].starts_with("--campaign") { 1 } else { 3 }].iter().chain(extra);
        RushPlan::try_from(Cli::parse_from(line).rush)
    }

    fn refusal(extra: &[&str]) -> String {
        plan(extra).unwrap_err().to_string()
    }

    #[test]
    fn the_arguments_become_a_plan() {
        let plan = plan(&["--users", "7", "--mode", "open", "--rate", "500", "--ramp", "2"]).unwrap();
        assert_eq!((plan.users, plan.press), (7, 1));
        assert_eq!(plan.pace, Pace::Open { rate: 500.0, ramp: 2.0 });
        assert_eq!(plan.user(3), "rush-3");
        assert!(plan.check);
    }

    #[test]
    fn each_mistake_is_named() {
        assert_eq!(refusal(&["--users", "0"]), "--users is 0, allowed are 1 to 50000000");
        assert_eq!(refusal(&["--drop", "1.5"]), "--drop is 1.5, allowed are 0 to 1");
        assert_eq!(refusal(&["--early=NaN"]), "--early is NaN, allowed are 0 to 1");
        assert_eq!(refusal(&["--mode", "open"]), "--mode open needs --rate, the claims per second");
        assert_eq!(refusal(&["--rate", "5"]), "--rate and --ramp belong to --mode open");
        assert_eq!(
            refusal(&["--users", "50000000", "--press", "5"]),
            "--users times --press is 250000000, at most 100000000 presses are sent in one rush"
        );
        assert!(refusal(&["--campaign=a b"]).starts_with("--campaign: campaign id has the character ' '"));
        assert!(refusal(&["--user-prefix", &"x".repeat(128)]).starts_with("--user-prefix: user id is"));
        assert!(refusal(&["--url", "https://a"]).starts_with("--url https://a: only http"));
        assert!(refusal(&["--url", "nonsense"]).starts_with("--url nonsense: "));
    }
}
