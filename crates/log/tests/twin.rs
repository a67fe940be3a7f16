//! The log against a dumb twin, a vector of records, through appends, commits, rolls, failures of every kind
//! and power cuts at any moment.

use std::sync::Arc;

use dibs_log::{
    AppendError, Call, CommitError, MemoryStorage, OpenError, PartitionLog, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};
use proptest::{collection::vec, prelude::*};

#[derive(Clone, Debug)]
enum Action {
    /// A record with a value of this many bytes.
    Append(usize),
    /// A batch of this many records.
    AppendBatch(usize),
    /// A commit so many ms later (or earlier: the log must keep its time monotone).
    Commit(i64),
    /// Close, and open again.
    Reopen,
    /// Open again without closing, as after a kill.
    Kill,
    /// A power cut now.
    Crash,
    /// A power cut at the n-th change from now, whatever that will be.
    CutPower(u64),
    /// A power cut now, and another at the n-th change of the start that follows.
    CrashTwice(u64),
    /// The n-th write from now finds no space.
    NoSpace(u64),
    /// The n-th sync from now fails.
    SyncFails(u64),
    /// The n-th opening or creation of a file from now fails.
    OpenFails(u64),
    /// The n-th cut of a file from now fails.
    CutFails(u64),
    /// Everything before this share (of 256) of the log goes.
    DeleteBefore(u8),
    /// The index at this place (modulo their number) vanishes while nobody has the folder open.
    LoseIndex(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => (0..200_usize).prop_map(Action::Append),
        3 => (1..9_usize).prop_map(Action::AppendBatch),
        12 => (-5..20_i64).prop_map(Action::Commit),
        1 => Just(Action::Reopen),
        1 => Just(Action::Kill),
        1 => Just(Action::Crash),
        2 => (1..40_u64).prop_map(Action::CutPower),
        1 => (1..30_u64).prop_map(Action::CrashTwice),
        2 => (1..4_u64).prop_map(Action::NoSpace),
        1 => (1..4_u64).prop_map(Action::SyncFails),
        1 => (1..5_u64).prop_map(Action::OpenFails),
        1 => (1..3_u64).prop_map(Action::CutFails),
        1 => any::<u8>().prop_map(Action::DeleteBefore),
        1 => any::<usize>().prop_map(Action::LoseIndex),
    ]
}

fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 2_500,
        index_interval_bytes: 150,
        max_batch_bytes: 600,
        max_pending_bytes: 4_000,
        checkpoint_bytes: 1_500,
        max_open_segments: 2,
        defaults: [("message.timestamp.type".to_owned(), "LogAppendTime".to_owned())].into(),
    }
}

struct World {
    storage: MemoryStorage,
    store: Option<Store>,
    log: Arc<PartitionLog>,
    /// What was committed, by offset.
    twin: Vec<Vec<u8>>,
    /// What was appended since.
    pending: Vec<Vec<u8>>,
    start: u64,
    serial: u64,
    now: i64,
}

impl World {
    fn new(seed: u64) -> World {
        let storage = MemoryStorage::new(seed);
        let store = Store::open(Arc::new(storage.clone()), config()).unwrap();
        store.create_topic("t", 1).unwrap();
        let log = store.partition("t", 0).unwrap();
        let (twin, pending) = (Vec::new(), Vec::new());
        World { storage, store: Some(store), log, twin, pending, start: 0, serial: 0, now: 1_000 }
    }

    fn value(&mut self, len: usize) -> Vec<u8> {
        self.serial += 1;
        let mut value = self.serial.to_be_bytes().to_vec();
        // Bytes that look like the start of a batch, too.
        value.extend((0..len).map(|i| [0, 0, 2, 61, i as u8][i % 5]));
        value
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Append(len) => {
                let value = self.value(len);
                let result = self.log.append(Some(b"k"), Some(&value));
                self.appended(result, vec![value]);
            }
            Action::AppendBatch(records) => {
                let mut builder = BatchBuilder::new();
                let values: Vec<_> = (0..records).map(|_| self.value(20)).collect();
                values.iter().for_each(|v| builder.push(Some(b"k"), Some(v)));
                let result = self.log.append_batch(&builder.finish(-1));
                self.appended(result, values);
            }
            Action::Commit(ms) => self.commit(ms),
            Action::Reopen => {
                self.pending.clear();
                match self.store.as_ref().unwrap().close() {
                    Ok(()) => self.reopen(false),
                    Err(_) => self.crash(),
                }
            }
            Action::Kill => self.reopen(false),
            Action::Crash => self.crash(),
            Action::CutPower(at) => self.storage.cut_power_at(at),
            Action::CrashTwice(at) => {
                self.close_by_crash();
                self.storage.cut_power_at(at);
                if let Err(e) = Store::open(Arc::new(self.storage.clone()), config()) {
                    assert!(matches!(e, OpenError::Io { .. }), "{e}");
                }
                self.crash();
            }
            Action::NoSpace(nth) => self.storage.fail(Call::Write, nth, 1, 28),
            Action::SyncFails(nth) => self.storage.fail(Call::Sync, nth, 1, 5),
            Action::OpenFails(nth) => self.storage.fail(Call::Open, nth, 1, 28),
            Action::CutFails(nth) => self.storage.fail(Call::SetLen, nth, 1, 5),
            Action::DeleteBefore(share) => {
                let offset = self.twin.len() as u64 * u64::from(share) / 256;
                if self.log.delete_before(offset).is_ok() {
                    self.start = self.start.max(offset);
                }
                // After a failure the new start may or may not be durable.
                self.start = self.start.max(self.log.log_start_offset());
            }
            Action::LoseIndex(which) => {
                self.crash();
                self.store = None;
                self.log = World::dummy();
                // The folder is made with the first record.
                let all = dibs_log::Storage::list(&self.storage, "t-0").unwrap_or_default();
                let indexes: Vec<_> = all.iter().filter(|e| e.name.contains("index")).collect();
                if !indexes.is_empty() {
                    let name = &indexes[which % indexes.len()].name;
                    dibs_log::Storage::remove(&self.storage, &format!("t-0/{name}")).unwrap();
                }
                self.reopen(false);
            }
        }
    }

    fn appended(&mut self, result: Result<u64, AppendError>, values: Vec<Vec<u8>>) {
        match result {
            Ok(offset) => {
                assert_eq!(offset, (self.twin.len() + self.pending.len()) as u64);
                self.pending.extend(values);
            }
            Err(AppendError::Full) => assert!(self.log.pending_bytes() > 3_000),
            Err(e) => panic!("{e}"),
        }
    }

    fn commit(&mut self, ms: i64) {
        let (from, failures) = (self.twin.len() as u64, self.log.failures());
        self.now += ms;
        let result = self.log.commit(self.now);
        let passed = (self.log.high_watermark() - from) as usize;
        let dropped = self.pending.split_off(passed);
        let committed = std::mem::take(&mut self.pending);
        self.twin.extend(committed);
        match result {
            Ok(done) => {
                assert!(dropped.is_empty());
                assert_eq!(done.map(|c| (c.from, c.to)), (passed > 0).then(|| (from, from + passed as u64)));
            }
            Err(e) => {
                assert_eq!(self.log.append(None, None), Err(AppendError::Unavailable), "{e}");
                assert_eq!(self.log.failures(), failures + 1);
                // What was dropped may still be found at the next start, since it may be on the disk.
                self.pending = dropped;
                match self.log.reset().or_else(|_| self.log.reset()) {
                    Ok(()) => self.pending.clear(),
                    Err(CommitError::Broken(_)) => self.reopen(false),
                    Err(_) => self.crash(),
                }
            }
        }
    }

    fn crash(&mut self) {
        self.close_by_crash();
        self.reopen(true);
    }

    fn close_by_crash(&mut self) {
        self.store = None;
        self.storage.crash();
    }

    /// Opens the folder again, and takes over what of the pending records is there: any number, from the first.
    fn reopen(&mut self, crashed: bool) {
        self.store = None;
        // The old handle would hold the lock.
        self.log = World::dummy();
        let store = match Store::open(Arc::new(self.storage.clone()), config()) {
            Ok(store) => store,
            // A planned failure, or the power. No damage, ever.
            Err(OpenError::Io { .. }) if !crashed => return self.crash(),
            Err(e) => panic!("{e}"),
        };
        self.log = store.partition("t", 0).expect("the topic is durable");
        assert_eq!(store.recovery()[0].end, self.log.high_watermark());
        self.store = Some(store);
        assert!(self.log.log_start_offset() >= self.start);
        self.start = self.log.log_start_offset();
        let found = self.log.high_watermark() as usize;
        assert!(found >= self.twin.len(), "{} records are lost", self.twin.len() - found);
        let kept = found - self.twin.len();
        assert!(kept <= self.pending.len());
        self.twin.extend(self.pending.drain(..kept));
        self.pending.clear();
        self.check();
    }

    /// A log that nobody uses.
    fn dummy() -> Arc<PartitionLog> {
        World::new(0).log
    }

    /// Reads everything, in every way, and compares.
    fn check(&self) {
        if dibs_log::Storage::list(&self.storage, "").is_err() {
            // The power is off.
            return;
        }
        let end = self.twin.len() as u64;
        let (mut at, mut time) = (self.log.log_start_offset(), i64::MIN);
        assert_eq!(self.log.high_watermark(), end);
        assert!(at <= end);
        while at < end {
            let mut bytes = Vec::new();
            self.log.read(at, 300, &mut bytes).unwrap();
            let mut next = None;
            for batch in Batches::new(&bytes) {
                let batch = batch.unwrap();
                assert!(next.is_none_or(|n| n == batch.header.base_offset));
                assert!(batch.header.max_timestamp >= time, "time went back");
                time = batch.header.max_timestamp;
                next = Some(batch.header.next_offset());
                for record in batch.records().unwrap() {
                    let record = record.unwrap();
                    assert_eq!(record.value.unwrap(), self.twin[record.offset as usize]);
                    assert_eq!(record.timestamp, time);
                }
            }
            let next = next.expect("at least one batch");
            assert!(next > at, "a read must contain what it was asked for");
            let (found, _) = self.log.offset_for_timestamp(time).unwrap().expect("the time is there");
            assert!(found < next);
            at = next;
        }
        assert_eq!(self.log.offset_for_timestamp(i64::MAX).unwrap(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_committed_is_there(seed in any::<u64>(), actions in vec(action(), 1..80)) {
        let mut world = World::new(seed);
        for action in &actions {
            world.act(action);
            if !matches!(action, Action::Append(_) | Action::AppendBatch(_) | Action::CutPower(_)) {
                world.check();
            }
        }
        world.crash();
        world.crash();
    }
}
