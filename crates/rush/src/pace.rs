//! When each press is due.

use std::time::{Duration, Instant};

use crate::plan::Pace;

/// The timetable of one rush: early presses spread evenly until the opening, then the pace of the plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timetable {
    /// When the rush began.
    pub(crate) start: Instant,
    /// When the campaign opens, or `start` when it is open already.
    pub(crate) opening: Instant,
    /// How many presses come before the opening.
    pub(crate) early: usize,
    /// How those after it follow each other.
    pub(crate) pace: Pace,
}

impl Timetable {
    /// When the press with this place in the order is due.
    pub(crate) fn due(&self, index: usize) -> Instant {
        if index < self.early {
            let share = (index as f64 + 0.5) / self.early as f64;
            return self.start + self.opening.duration_since(self.start).mul_f64(share);
        }
        self.opening + after_opening(self.pace, index - self.early)
    }
}

/// How long after the opening the press number `index` is due.
fn after_opening(pace: Pace, index: usize) -> Duration {
    match pace {
        Pace::Closed => Duration::ZERO,
        Pace::Open { rate, ramp } => {
            let n = index as f64;
            // While it climbs, rate·t²/(2·ramp) presses are due by t; afterwards the line goes straight on.
            let climbing = rate * ramp / 2.0;
            let seconds =
                if n < climbing { (2.0 * n * ramp / rate).sqrt() } else { ramp + (n - climbing) / rate };
            Duration::from_secs_f64(seconds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_rate_is_a_straight_line() {
        let pace = Pace::Open { rate: 100.0, ramp: 0.0 };
        assert_eq!(after_opening(pace, 0), Duration::ZERO);
        assert_eq!(after_opening(pace, 250), Duration::from_millis(2_500));
    }

    #[test]
    fn a_ramp_reaches_its_rate() {
        let pace = Pace::Open { rate: 100.0, ramp: 2.0 };
        assert_eq!(after_opening(pace, 25), Duration::from_secs(1)); // 100 · 1² / (2 · 2)
        assert_eq!(after_opening(pace, 100), Duration::from_secs(2));
        assert_eq!(after_opening(pace, 200), Duration::from_secs(3));
    }

    #[test]
    fn early_presses_end_at_the_opening() {
        let start = Instant::now();
        let opening = start + Duration::from_secs(2);
        let table = Timetable { start, opening, early: 4, pace: Pace::Closed };
        let due: Vec<u128> = (0..6).map(|i| (table.due(i) - start).as_millis()).collect();
        assert_eq!(due, [250, 750, 1250, 1750, 2000, 2000]);
    }
}
