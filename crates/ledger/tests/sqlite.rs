//! The suite, on SQLite in memory and on disk.

use dibs_ledger::{
    SqliteLedger,
    conformance::{Database, history::any_split},
    conformance_tests,
};
use proptest::prelude::*;

struct Memory;

impl Database for Memory {
    type Ledger = SqliteLedger;

    async fn open(&self) -> SqliteLedger {
        SqliteLedger::open_in_memory().expect("memory")
    }

    fn survives_close(&self) -> bool {
        false
    }
}

struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Disk(tempfile::tempdir().expect("a folder"))
    }
}

impl Database for Disk {
    type Ledger = SqliteLedger;

    async fn open(&self) -> SqliteLedger {
        SqliteLedger::open(self.0.path().join("ledger.db")).expect("a file")
    }

    fn survives_close(&self) -> bool {
        true
    }
}

mod memory {
    use super::*;
    conformance_tests!(Memory);
}

mod disk {
    use super::*;
    conformance_tests!(Disk::new());

    #[test]
    fn any_split_makes_the_same_tables() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(any_split(&Disk::new(), &Disk::new(), 11, &[1, 40, 41, 70_000, 70_001, 300_000]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the log is cut into batches, the tables come out the same.
    #[test]
    fn any_split_makes_the_same_tables(seed: u64, cuts in prop::collection::vec(any::<u64>(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(any_split(&Memory, &Memory, seed, &cuts));
    }
}
