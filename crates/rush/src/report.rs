//! What came out, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::judge::{Findings, Kind};
use crate::outcome::Outcome;
use crate::tally::Tally;

/// Quantiles of one kind of answer, in microseconds. In open mode they count from when a claim was due.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// How many answers.
    pub count: u64,
    /// Half of them came within this.
    pub p50_us: u64,
    /// 90 % came within this.
    pub p90_us: u64,
    /// 99 % came within this.
    pub p99_us: u64,
    /// 99.9 % came within this.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Latency {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Latency {
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max(),
        }
    }
}

/// Memory of the server's process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Resident at most, since it started.
    pub peak: u64,
}

/// The result of a rush. Serialises to JSON; times are milliseconds, latencies microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The campaign.
    pub campaign: String,
    /// Decides the order of users: the same seed sends the same rush.
    pub seed: u64,
    /// Different users.
    pub users: u64,
    /// Presses that were planned, early ones included.
    pub presses: u64,
    /// Presses that were sent at least once.
    pub pressed: u64,
    /// Presses before the opening.
    pub early: u64,
    /// Open connections.
    pub connections: u64,
    /// From the opening (or the start, if it was open) to the last verdict.
    pub elapsed_ms: u64,
    /// Verdicts after the opening, a second.
    pub claims_per_s: f64,
    /// Every request by what came of it, retries included. Verdicts have their stable names; `throttled` is
    /// 429, `unavailable` 5xx, `lost` no answer, `unexpected` outside the contract.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Answers by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests that were sent again.
    pub retries: u64,
    /// Connections that were dropped on purpose, a claim in flight.
    pub drops: u64,
    /// Presses that had no verdict when patience ended.
    pub given_up: u64,
    /// Latency of the verdicts after the opening.
    pub latency: Latency,
    /// Latency of every request by what came of it.
    pub latency_by_outcome: BTreeMap<&'static str, Latency>,

    /// Coupons of the campaign.
    pub stock: u64,
    /// Wins by the server's own count.
    pub won: u64,
    /// Coupon rows in the ledger.
    pub issued: u64,
    /// Coupons left.
    pub remaining: u64,
    /// From the opening until nothing was left, as far as it was seen, to about 25 ms.
    pub sold_out_after_ms: Option<u64>,
    /// From the opening until the last coupon was in the ledger, to about 25 ms.
    pub ledger_after_ms: Option<u64>,
    /// The server's memory, where it is known.
    pub server_memory: Option<Memory>,

    /// The result was checked.
    pub checked: bool,
    /// It was checked, and nothing is wrong.
    pub exact: bool,
    /// Wins beyond the stock.
    pub oversold: u64,
    /// Ranks or codes held by two users, and coupons of a user beyond the limit.
    pub issued_twice: u64,
    /// Acknowledged wins that the server no longer shows as they were.
    pub acknowledged_but_missing: u64,
    /// All problems by kind.
    pub problem_kinds: BTreeMap<&'static str, u64>,
    /// How many problems there are.
    pub problem_count: u64,
    /// The first of them in words.
    pub problems: Vec<String>,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
}

impl Report {
    /// How many requests had this outcome.
    pub(crate) fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome.name()).copied().unwrap_or(0)
    }

    /// Takes over what the load has counted. `opening_to_last` is the time of the load.
    pub(crate) fn fill_load(&mut self, tally: &Tally, opening_to_last: Duration) {
        let seconds = opening_to_last.as_secs_f64();
        self.elapsed_ms = opening_to_last.as_millis() as u64;
        self.claims_per_s = if seconds > 0.0 { tally.verdicts.len() as f64 / seconds } else { 0.0 };
        self.latency = Latency::of(&tally.verdicts);
        self.statuses = tally.statuses.clone();
        (self.pressed, self.retries, self.drops, self.given_up) =
            (tally.pressed, tally.retries, tally.drops, tally.given_up);
        for outcome in Outcome::ALL.into_iter().filter(|outcome| tally.count(*outcome) > 0) {
            self.outcomes.insert(outcome.name(), tally.count(outcome));
            let latency = Latency::of(&tally.by_outcome[outcome as usize]);
            self.latency_by_outcome.insert(outcome.name(), latency);
        }
    }

    /// Takes over what the check has found.
    pub(crate) fn fill_findings(&mut self, found: Findings) {
        self.checked = true;
        self.exact = found.total() == 0;
        self.oversold = found.count(Kind::Oversold);
        self.issued_twice = found.count(Kind::IssuedTwice);
        self.acknowledged_but_missing = found.count(Kind::Missing);
        self.problem_kinds = found.by_kind();
        self.problem_count = found.total();
        self.problems = found.problems;
        self.notes.extend(found.notes);
    }
}
