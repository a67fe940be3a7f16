//! Many worlds. `SEEDS=100000` for more of them, `SEED=17` for one again, with its transcript.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use dibs_sim::{Mutation, Summary, Violation, run};

fn world(seed: u64, mutation: Mutation) -> Result<Summary, Violation> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime starts").block_on(run(seed, mutation))
}

fn from_env(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is a whole number")))
}

/// Runs seeds on every core until one fails or all are done.
fn worlds(seeds: u64, mutation: Mutation, mut each: impl FnMut(Result<Summary, Violation>) -> bool) {
    let (next, (results, inbox)) = (AtomicU64::new(0), std::sync::mpsc::sync_channel(64));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (next, results) = (&next, results.clone());
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds || results.send(world(seed, mutation)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        for result in inbox {
            if !each(result) {
                return;
            }
        }
    });
}

#[test]
fn nothing_acknowledged_is_ever_lost() {
    if let Some(seed) = from_env("SEED") {
        println!("{:?}", world(seed, Mutation::None).unwrap_or_else(|violation| panic!("\n{violation}")));
        return;
    }
    let (mut worlds_lived, mut total) = (0, Summary::default());
    worlds(from_env("SEEDS").unwrap_or(2_000), Mutation::None, |result| {
        let s = result.unwrap_or_else(|violation| panic!("\n{violation}"));
        worlds_lived += 1;
        total.wins += s.wins;
        total.answers += s.answers;
        total.unknown += s.unknown;
        total.restarts += s.restarts;
        total.issuers += s.issuers;
        total.rows += s.rows;
        true
    });
    println!("{worlds_lived} worlds: {total:?}");
    // A schedule in which nothing happens proves nothing.
    assert!(total.wins > worlds_lived && total.unknown > worlds_lived && total.restarts > worlds_lived);
}

/// The first violation that a mutation leads to.
fn found(mutation: Mutation) -> String {
    let mut found = None;
    worlds(500, mutation, |result| {
        found = result.err();
        found.is_none()
    });
    let violation = found.unwrap_or_else(|| panic!("500 worlds with {mutation:?} were all right"));
    println!("{mutation:?}: SEED={} {}", violation.seed, violation.what);
    violation.what
}

/// Proof that the simulation would notice: a disk that does not sync loses acknowledged wins.
#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let mut lost_win = None;
    worlds(500, Mutation::FsyncIgnored, |result| {
        lost_win = result.err().filter(|v| v.what.starts_with("lost: a client was told Won"));
        lost_win.is_none()
    });
    println!("{}", lost_win.expect("of 500 such worlds one loses an acknowledged win").what);
}

/// Proof that the simulation would notice: without epochs a replaced issuer writes rows a second time.
#[test]
fn a_ledger_without_fencing_is_found_out() {
    let what = found(Mutation::EpochIgnored);
    assert!(what.contains("ledger") || what.contains("gave up"), "{what}");
}

#[test]
fn a_seed_is_one_world() {
    for seed in 0..20 {
        let again = || world(seed, Mutation::None).unwrap_or_else(|violation| panic!("\n{violation}"));
        assert_eq!(again(), again());
    }
}
