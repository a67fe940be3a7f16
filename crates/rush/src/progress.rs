//! What a person sees while it runs.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::table::{count, millis};

/// Where the rush is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connected, the campaign is not open yet.
    Waiting,
    /// Claims are on their way.
    Rushing,
    /// All claims are answered; coupons are still on their way into the ledger.
    Settling,
    /// Every acknowledged win is looked up again.
    Checking,
}

/// The state of a running rush, some times a second.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where it is.
    pub phase: Phase,
    /// Since the start.
    pub elapsed: Duration,
    /// Until the opening; zero afterwards.
    pub opens_in: Duration,
    /// Presses sent so far.
    pub pressed: u64,
    /// Presses to be sent altogether.
    pub presses: u64,
    /// Verdicts a second, since the last snapshot.
    pub rate: f64,
    /// Coupons of the campaign.
    pub stock: u64,
    /// Coupons left.
    pub remaining: u64,
    /// Coupons in the ledger.
    pub issued: u64,
    /// Half of the verdicts so far came within this, in microseconds.
    pub p50_us: u64,
    /// 99 % of the verdicts so far came within this, in microseconds.
    pub p99_us: u64,
}

impl Snapshot {
    fn line(&self) -> String {
        let numbers = format!(
            "{} claims/s  {} of {} left, {} in the ledger  p50 {} p99 {}  {} of {} pressed",
            count(self.rate as u64),
            count(self.remaining),
            count(self.stock),
            count(self.issued),
            millis(self.p50_us),
            millis(self.p99_us),
            count(self.pressed),
            count(self.presses),
        );
        match self.phase {
            Phase::Waiting => format!("opens in {:.1} s  {numbers}", self.opens_in.as_secs_f64()),
            Phase::Rushing => numbers,
            Phase::Settling => format!("waiting for the ledger  {numbers}"),
            Phase::Checking => "checking every acknowledged win".to_owned(),
        }
    }
}

/// Shows a running rush. Called from one task, about four times a second.
pub trait Progress: Send + Sync {
    /// The state now.
    fn show(&self, now: &Snapshot);
    /// The rush has ended: nothing of the display may remain in the way.
    fn done(&self);
}

/// A live line with a bar, on a terminal (standard error).
pub struct Bar(ProgressBar);

impl Bar {
    /// An empty bar, drawn with the first snapshot.
    pub fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        let style = ProgressStyle::with_template("{bar:8} {wide_msg}").expect("the template is a constant");
        bar.set_style(style);
        Bar(bar)
    }
}

impl Default for Bar {
    fn default() -> Self {
        Bar::new()
    }
}

impl Progress for Bar {
    fn show(&self, now: &Snapshot) {
        self.0.set_length(now.presses);
        self.0.set_position(now.pressed);
        self.0.set_message(now.line());
    }

    fn done(&self) {
        self.0.finish_and_clear();
    }
}

/// A plain line a second on standard error, where there is no terminal.
#[derive(Default)]
pub struct Lines {
    /// The last second and phase that were written.
    last: Mutex<Option<(u64, Phase)>>,
}

impl Progress for Lines {
    fn show(&self, now: &Snapshot) {
        let this = Some((now.elapsed.as_secs(), now.phase));
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *last != this {
            *last = this;
            let _ = writeln!(std::io::stderr(), "{:>4} s  {}", now.elapsed.as_secs(), now.line());
        }
    }

    fn done(&self) {}
}

/// Nothing at all.
pub struct Silent;

impl Progress for Silent {
    fn show(&self, _now: &Snapshot) {}
    fn done(&self) {}
}

/// The display that fits: none beside JSON, a live line on a terminal, a plain line a second elsewhere.
pub fn progress_for(json: bool) -> Box<dyn Progress> {
    if json {
        Box::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar::new())
    } else {
        Box::new(Lines::default())
    }
}
