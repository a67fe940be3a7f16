//! Random worlds for the tests: each comes from a seed, so that one which fails can be looked at again.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// The seeds to try: `WORLD` alone if it is set, else as many as `WORLDS` says, or so many.
pub(crate) fn seeds(worlds: u64) -> Range<u64> {
    let set = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    set("WORLD").map_or(0..set("WORLDS").unwrap_or(worlds), |seed| seed..seed + 1)
}

/// Runs a world for each seed, and names one that panics. Returns the sum of what they return.
pub(crate) fn each(seeds: Range<u64>, run: impl Fn(u64) -> usize) -> usize {
    let run = |seed| {
        let done = catch_unwind(AssertUnwindSafe(|| run(seed)));
        done.unwrap_or_else(|_| panic!("WORLD={seed} shows it again"))
    };
    seeds.map(run).sum()
}
