//! Deterministic simulation: the real flow, log and ledger over a disk, a database and a clock that fail, driven
//! turn by turn by one seed. The same seed gives the same world, step for step.
//!
//! [`world`] is the schedule (who presses what, what fails when), [`ledger`] and [`storage`] the faults,
//! [`check`] what must hold after every restart and at the end. It deliberately knows nothing of HTTP, of threads
//! or of real time.

pub mod check;
pub mod ledger;
pub mod storage;
pub mod world;

use std::fmt;

/// What the world does wrong on purpose, to prove that the checks would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing: the world is honest.
    None,
    /// The disk says that it has synced and has not.
    FsyncIgnored,
    /// The ledger lets an issuer that was replaced write on.
    EpochIgnored,
}

/// What happened in a world in which everything held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Wins that a client was told of.
    pub wins: u64,
    /// Answers of any kind.
    pub answers: u64,
    /// Requests whose outcome a client never learned.
    pub unknown: u64,
    /// Times the process died, power cuts included.
    pub restarts: u64,
    /// Issuers that were killed or replaced.
    pub issuers: u64,
    /// Rows in the ledger at the end.
    pub rows: u64,
}

/// Something that must never happen did.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The world that it happened in.
    pub seed: u64,
    /// What happened.
    pub what: String,
    /// Everything that happened before.
    pub transcript: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.transcript {
            writeln!(f, "  {line}")?;
        }
        write!(f, "SEED={} {}", self.seed, self.what)
    }
}

impl std::error::Error for Violation {}

/// Lives through one world. The executor's clock should be paused, or back-offs are waited for.
pub async fn run(seed: u64, mutation: Mutation) -> Result<Summary, Violation> {
    let _named = NameOnPanic(seed);
    let mut world = world::World::new(seed, mutation);
    match world.live().await {
        Ok(summary) => Ok(summary),
        Err(what) => Err(Violation { seed, what, transcript: world.transcript }),
    }
}

/// A panic somewhere below must name the seed too.
struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SEED={}", self.0);
        }
    }
}
