//! Counters of one partition, registered once so that counting is one atomic addition.

use dibs_model::Verdict;
use metrics::{Counter, counter};

/// See the module. Names are documented in docs/operations.md.
pub(crate) struct Counters {
    /// By the verdict's number.
    verdicts: Vec<Counter>,
    refusals: Vec<Counter>,
    pub(crate) held: Counter,
    pub(crate) failed_commits: Counter,
    pub(crate) issued: Counter,
    pub(crate) ledger_retries: Counter,
    pub(crate) dead_letters: Counter,
}

const NAMES: [(u8, &str); 25] = [
    (1, "malformed"),
    (2, "unknown_campaign"),
    (3, "already_won"),
    (4, "not_open"),
    (5, "paused"),
    (6, "closed"),
    (7, "won"),
    (8, "waitlisted"),
    (9, "sold_out"),
    (20, "created"),
    (21, "conflict"),
    (22, "confirmed"),
    (23, "cancelled"),
    (24, "expired"),
    (25, "not_expired"),
    (26, "redeemed"),
    (27, "already_redeemed"),
    (28, "unredeemed"),
    (29, "not_redeemed"),
    (30, "restocked"),
    (31, "stock_limit"),
    (32, "done"),
    (33, "no_such_win"),
    (34, "unconfirmed"),
    (35, "in_use"),
];

impl Counters {
    pub(crate) fn new(partition: u32) -> Counters {
        let p = partition.to_string();
        let table = |metric: &'static str| {
            let mut all = vec![Counter::noop(); 36];
            for (number, name) in NAMES {
                all[number as usize] = counter!(metric, "verdict" => name, "partition" => p.clone());
            }
            all
        };
        Counters {
            verdicts: table("dibs_verdicts_total"),
            refusals: table("dibs_gate_refusals_total"),
            held: counter!("dibs_gate_holds_total", "partition" => p.clone()),
            failed_commits: counter!("dibs_log_failed_commits_total", "partition" => p.clone()),
            issued: counter!("dibs_coupons_issued_total", "partition" => p.clone()),
            ledger_retries: counter!("dibs_ledger_retries_total", "partition" => p.clone()),
            dead_letters: counter!("dibs_dead_letters_total", "partition" => p),
        }
    }

    pub(crate) fn count(&self, verdict: Verdict) {
        self.verdicts[verdict.number() as usize].increment(1);
    }

    pub(crate) fn refused(&self, verdict: Verdict) {
        self.refusals[verdict.number() as usize].increment(1);
    }
}
