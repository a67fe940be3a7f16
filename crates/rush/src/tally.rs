//! What one thread of the load has seen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::outcome::Outcome;

/// Latencies from a microsecond to two minutes, with three significant digits.
const LONGEST_US: u64 = 120_000_000;
/// Answers outside the contract that are kept word for word.
const ODD_KEPT: usize = 10;

/// A win that was acknowledged to a client. One for each such answer: the same win comes again when its user
/// presses again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Win {
    pub(crate) user: u32,
    pub(crate) nth: u16,
    pub(crate) rank: u32,
    pub(crate) offset: u64,
    /// Absent while the win is only held.
    pub(crate) code: Option<Box<str>>,
}

pub(crate) struct Tally {
    /// Latencies of every request by what came of it, in microseconds; its length is the count.
    pub(crate) by_outcome: Vec<Histogram<u64>>,
    /// Latencies of the verdicts after the opening, in microseconds.
    pub(crate) verdicts: Histogram<u64>,
    /// Answers by HTTP status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Every acknowledged win.
    pub(crate) wins: Vec<Win>,
    /// Presses that were sent at least once.
    pub(crate) pressed: u64,
    /// Requests that were sent again.
    pub(crate) retries: u64,
    /// Connections dropped on purpose.
    pub(crate) drops: u64,
    /// Presses without a verdict in the end.
    pub(crate) given_up: u64,
    /// Answers outside the contract, the first few word for word.
    pub(crate) odd: Vec<String>,
    /// How many of them there were.
    pub(crate) odd_count: u64,
    /// Why a request had no answer, the latest reason.
    pub(crate) lost_why: Option<String>,
    /// When the last verdict came.
    pub(crate) last: Option<Instant>,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally {
            by_outcome: (0..Outcome::COUNT).map(|_| histogram()).collect(),
            verdicts: histogram(),
            statuses: BTreeMap::new(),
            wins: Vec::new(),
            pressed: 0,
            retries: 0,
            drops: 0,
            given_up: 0,
            odd: Vec::new(),
            odd_count: 0,
            lost_why: None,
            last: None,
        }
    }

    /// Notes one answer, or none (`status` absent). `opened`: it was sent after the opening.
    pub(crate) fn note(
        &mut self,
        outcome: Outcome,
        status: Option<u16>,
        took: Duration,
        now: Instant,
        opened: bool,
    ) {
        let micros = (took.as_micros() as u64).clamp(1, LONGEST_US);
        self.by_outcome[outcome as usize].saturating_record(micros);
        if let Some(status) = status {
            *self.statuses.entry(status).or_default() += 1;
        }
        if opened && outcome.is_verdict() {
            self.verdicts.saturating_record(micros);
            self.last = Some(now);
        }
    }

    pub(crate) fn odd(&mut self, text: impl FnOnce() -> String) {
        self.odd_count += 1;
        if self.odd.len() < ODD_KEPT {
            self.odd.push(text());
        }
    }

    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.by_outcome[outcome as usize].len()
    }

    /// Adds what another thread has seen.
    pub(crate) fn absorb(&mut self, other: Tally) {
        for (mine, theirs) in self.by_outcome.iter_mut().zip(&other.by_outcome) {
            *mine += theirs;
        }
        self.verdicts += &other.verdicts;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.wins.extend(other.wins);
        self.pressed += other.pressed;
        self.retries += other.retries;
        self.drops += other.drops;
        self.given_up += other.given_up;
        self.odd.extend(other.odd);
        self.odd.truncate(ODD_KEPT);
        self.odd_count += other.odd_count;
        self.lost_why = other.lost_why.or(self.lost_why.take());
        self.last = self.last.max(other.last);
    }
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are constants that fit")
}
