//! What the log promises when it deletes and compacts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use dibs_log::{
    Marker, MemoryStorage, Origin, PartitionLog, Storage, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};
use proptest::{collection::vec, prelude::*};

const DAY: i64 = 86_400_000;

fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 600,
        index_interval_bytes: 100,
        checkpoint_bytes: 900,
        max_open_segments: 2,
        ..StoreConfig::default()
    }
}

fn open(storage: &MemoryStorage, configs: &[(&str, &str)]) -> (Store, Arc<PartitionLog>) {
    let store = Store::open(Arc::new(storage.clone()), config()).unwrap();
    if store.topic("t").is_none() {
        let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        store.create_topic_with("t", 1, configs).unwrap();
    }
    let log = store.partition("t", 0).unwrap();
    (store, log)
}

fn put(log: &PartitionLog, time: i64, key: &str, value: Option<&[u8]>, codec: u8) {
    let mut builder = BatchBuilder::new();
    builder.push_at(time, Some(key.as_bytes()), value);
    log.append_batch(&builder.finish_with(codec).unwrap()).unwrap();
    log.commit(time).unwrap();
}

/// Offset, key and value of every record.
fn all(log: &PartitionLog) -> Vec<(u64, String, Option<Vec<u8>>)> {
    let (mut at, mut found, mut buffer) = (log.log_start_offset(), Vec::new(), Vec::new());
    while at < log.high_watermark() {
        let mut bytes = Vec::new();
        if log.read(at, 1_000, &mut bytes).unwrap() == 0 {
            break;
        }
        for batch in Batches::new(&bytes) {
            let batch = batch.unwrap();
            at = batch.header.next_offset();
            if batch.header.is_control() {
                continue;
            }
            for record in batch.records_in(&mut buffer).unwrap() {
                let record = record.unwrap();
                let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
                found.push((record.offset, key, record.value.map(<[u8]>::to_vec)));
            }
        }
    }
    found
}

#[test]
fn old_segments_go_by_time_and_by_size() {
    let storage = MemoryStorage::new(0);
    let (store, log) = open(&storage, &[("retention.ms", "1000")]);
    for i in 0..40 {
        put(&log, i * 100, "k", Some(&[7; 60]), 0);
    }
    let before = log.segments();
    assert_eq!(store.clean(1_000, DAY).unwrap().segments_deleted, 0);
    let done = store.clean(3_000, DAY).unwrap();
    let first = log.segments()[0];
    assert!(first.max_timestamp >= 2_000 && done.segments_deleted > 2);
    assert_eq!(log.log_start_offset(), first.base);
    assert_eq!(before.len() - done.segments_deleted, log.segments().len());
    store.alter_configs("t", |c| drop(c.insert("retention.bytes".into(), "1500".into()))).unwrap();
    store.clean(3_000, DAY).unwrap();
    let bytes: u64 = log.segments().iter().map(|s| s.bytes).sum();
    assert!((1_500..1_500 + 600).contains(&bytes), "{bytes}");
    // At last the one that is written to.
    store.clean(10_000, DAY).unwrap();
    assert_eq!((log.log_start_offset(), log.high_watermark()), (40, 40));
    put(&log, 10_000, "k", None, 0);
    drop((store, log));
    storage.crash();
    let (_store, log) = open(&storage, &[]);
    assert_eq!((log.log_start_offset(), log.high_watermark(), all(&log).len()), (40, 41, 1));
}

#[test]
fn whoever_reads_a_deleted_segment_still_can() {
    let (store, log) = open(&MemoryStorage::new(0), &[("retention.ms", "1")]);
    (0..20).for_each(|i| put(&log, i, "k", Some(&[7; 60]), 0));
    let range = log.read_range(0, 20, 300).unwrap().unwrap();
    let mut before = Vec::new();
    log.read(0, 300, &mut before).unwrap();
    store.clean(1_000_000, DAY).unwrap();
    let mut after = Vec::new();
    range.file.read_into(&mut after, range.length as usize, range.position).unwrap();
    assert_eq!(after, before);
}

#[test]
fn compaction_keeps_the_newest_of_each_key_and_tombstones_for_a_while() {
    let compact = [("cleanup.policy", "compact"), ("delete.retention.ms", "1000"), ("segment.ms", "1000000")];
    for codec in 0..5 {
        let storage = MemoryStorage::new(codec);
        let (store, log) = open(&storage, &compact);
        for i in 0..60 {
            let value = [i as u8; 20];
            let tombstone = i % 6 == 5;
            put(&log, i, &format!("key {}", i % 6), (!tombstone).then_some(&value[..]), codec as u8);
        }
        let untouched = all(&log);
        let done = store.clean(100, DAY).unwrap();
        assert!(done.segments_compacted > 2 && done.bytes_freed > 1_000, "{done:?}");
        let active = log.segments().last().unwrap().base;
        let left = all(&log);
        let newest = |key: &str| {
            let cleaned = untouched.iter().filter(|(offset, k, _)| k == key && *offset < active);
            cleaned.map(|(offset, ..)| *offset).max().unwrap()
        };
        for (offset, key, value) in &left {
            assert_eq!(untouched[*offset as usize], (*offset, key.clone(), value.clone()));
            assert!(*offset >= newest(key), "{offset} is superseded");
        }
        assert!(
            left.iter().any(|(offset, key, value)| *offset < active && key == "key 5" && value.is_none())
        );
        assert_eq!(store.clean(200, DAY).unwrap().segments_compacted, 0, "nothing is dirty");
        for i in 60..120 {
            put(&log, i, "other", Some(&[1; 20]), codec as u8);
        }
        store.clean(1_200, DAY).unwrap();
        let left = all(&log);
        assert!(!left.iter().any(|(offset, key, _)| *offset < active && key == "key 5"), "its time is up");
        for key in 0..5 {
            assert!(left.iter().any(|(_, k, _)| *k == format!("key {key}")), "{key}");
        }
        drop((store, log));
        storage.crash();
        let (_store, log) = open(&storage, &compact);
        assert_eq!(all(&log), left);
        for (offset, ..) in &left {
            assert!(log.offset_for_timestamp(*offset as i64).unwrap().unwrap().0 == *offset);
        }
    }
}

#[test]
fn compaction_waits_for_dirt_and_for_lag() {
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.6"),
        ("min.compaction.lag.ms", "500"),
        ("max.compaction.lag.ms", "5000"),
    ];
    let (store, log) = open(&MemoryStorage::new(0), &settings);
    (0..20).for_each(|i| put(&log, i, "k", Some(&[7; 60]), 0));
    assert_eq!(store.clean(400, DAY).unwrap().segments_compacted, 0, "too young");
    assert!(store.clean(600, DAY).unwrap().segments_compacted > 0);
    (20..40).for_each(|i| put(&log, i, &format!("{i}"), Some(&[7; 60]), 0));
    store.clean(700, DAY).unwrap();
    (40..46).for_each(|i| put(&log, i, "k", Some(&[7; 60]), 0));
    assert_eq!(store.clean(1_000, DAY).unwrap().segments_compacted, 0, "not dirty enough");
    assert!(store.clean(6_000, DAY).unwrap().segments_compacted > 0, "overdue");
}

#[derive(Clone, Debug)]
enum Step {
    /// Producer (0 is none), key, tombstone, codec.
    Put(i64, u8, bool, u8),
    End(i64, bool),
    Clean(i64),
    Reopen(bool),
    /// The power goes at the n-th change from now, in a round of cleaning.
    CleanAndCut(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..3_i64, 0..6_u8, prop::bool::weighted(0.2), 0..5_u8).prop_map(|(p, k, t, c)| Step::Put(p, k, t, c)),
        4 => (1..3_i64, any::<bool>()).prop_map(|(p, commit)| Step::End(p, commit)),
        2 => (0..3_000_i64).prop_map(Step::Clean),
        1 => any::<bool>().prop_map(Step::Reopen),
        2 => (1..40_u64).prop_map(Step::CleanAndCut),
    ]
}

struct World {
    storage: MemoryStorage,
    store: Option<Store>,
    log: Arc<PartitionLog>,
    /// Every record that was written: key, value, and its producer if it is in a transaction.
    written: BTreeMap<u64, (String, Option<Vec<u8>>, i64)>,
    /// How each producer's transactions ended: offset of the marker, and whether committed.
    ends: HashMap<i64, Vec<(u64, bool)>>,
    sequences: HashMap<i64, i32>,
    now: i64,
}

const COMPACT: &[(&str, &str)] =
    &[("cleanup.policy", "compact"), ("delete.retention.ms", "1000"), ("min.cleanable.dirty.ratio", "0.1")];

impl World {
    fn new(seed: u64) -> World {
        let storage = MemoryStorage::new(seed);
        let (store, log) = open(&storage, COMPACT);
        let (written, ends, sequences) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        World { storage, store: Some(store), log, written, ends, sequences, now: 1_000 }
    }

    fn act(&mut self, step: &Step) {
        self.now += 1;
        match *step {
            Step::Put(producer, key, tombstone, codec) => {
                let (key, value) = (format!("key {key}"), self.now.to_be_bytes());
                let value = (!tombstone).then_some(&value[..]);
                let mut builder = BatchBuilder::new();
                builder.push_at(self.now, Some(key.as_bytes()), value);
                if producer > 0 {
                    let sequence = self.sequences.entry(producer).or_default();
                    builder.producer(producer, 0, *sequence);
                    builder.transactional();
                    *sequence += 1;
                }
                let sent =
                    self.log.produce(&builder.finish_with(codec).unwrap(), None, Origin::Verified).unwrap();
                assert!(!sent.duplicate);
                self.log.commit(self.now).unwrap();
                self.written.insert(sent.base_offset, (key, value.map(<[u8]>::to_vec), producer));
            }
            Step::End(producer_id, commit) => {
                let marker = Marker { producer_id, producer_epoch: 0, coordinator_epoch: 0, commit };
                let at = self.log.append_marker(&marker, self.now).unwrap().base_offset;
                self.log.commit(self.now).unwrap();
                self.ends.entry(producer_id).or_default().push((at, commit));
            }
            Step::Clean(later) => {
                self.now += later;
                self.store.as_ref().unwrap().clean(self.now, DAY).unwrap();
            }
            Step::Reopen(clean) => {
                if clean {
                    self.store.as_ref().unwrap().close().unwrap();
                }
                self.reopen(!clean);
            }
            Step::CleanAndCut(at) => {
                self.now += 600;
                self.storage.cut_power_at(at);
                let _ = self.store.as_ref().unwrap().clean(self.now, DAY);
                self.reopen(true);
            }
        }
    }

    fn reopen(&mut self, crash: bool) {
        self.store = None;
        self.log = open(&MemoryStorage::new(0), &[]).1;
        if crash {
            self.storage.crash();
        }
        let (store, log) = open(&self.storage, COMPACT);
        (self.store, self.log) = (Some(store), log);
        let left: Vec<_> = self.storage.list("t-0").unwrap_or_default();
        assert!(left.iter().all(|e| !e.name.ends_with(".cleaned")));
    }

    /// Whether a record counts; `None` while its transaction is open.
    fn counts(&self, offset: u64, producer: i64) -> Option<bool> {
        match producer {
            0 => Some(true),
            _ => self.ends.get(&producer)?.iter().find(|(end, _)| *end > offset).map(|(_, commit)| *commit),
        }
    }

    fn check(&self) {
        let stable = self.log.last_stable_offset();
        // What a reader of committed transactions makes of the log, in small steps.
        let (mut at, mut table, mut buffer) = (0, HashMap::new(), Vec::new());
        let mut last = None;
        while at < stable {
            let mut bytes = Vec::new();
            if self.log.read_until(at, stable, 200, &mut bytes).unwrap() == 0 {
                break;
            }
            let end = Batches::new(&bytes).last().unwrap().unwrap().header.next_offset();
            let aborted = self.log.aborted(at, end).unwrap();
            for batch in Batches::new(&bytes) {
                let batch = batch.unwrap();
                at = batch.header.next_offset();
                if batch.header.is_control() {
                    continue;
                }
                let id = batch.header.producer_id;
                let gone = |offset: u64| {
                    let mut of_producer = aborted.iter().filter(|a| a.producer_id == id);
                    of_producer.any(|a| a.first_offset <= offset && offset < a.last_offset)
                };
                for record in batch.records_in(&mut buffer).unwrap() {
                    let record = record.unwrap();
                    let (key, value, producer) = &self.written[&record.offset];
                    assert_eq!(Some(key.as_bytes()), record.key);
                    assert_eq!(value.as_deref(), record.value);
                    assert!(last.is_none_or(|last| record.offset > last));
                    last = Some(record.offset);
                    let counts = !(batch.header.is_transactional() && gone(record.offset));
                    assert_eq!(
                        Some(counts),
                        self.counts(record.offset, *producer),
                        "offset {}",
                        record.offset
                    );
                    if counts {
                        table.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        let mut expected = HashMap::new();
        for (offset, (key, value, producer)) in self.written.range(..stable) {
            if self.counts(*offset, *producer) == Some(true) {
                expected.insert(key.clone(), value.clone());
            }
        }
        // A tombstone and no record at all mean the same.
        table.retain(|_, value| value.is_some());
        expected.retain(|_, value| value.is_some());
        assert_eq!(table, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_compacted_log_means_what_it_meant(seed in any::<u64>(), steps in vec(step(), 1..120)) {
        let mut world = World::new(seed);
        for step in &steps {
            world.act(step);
            if !matches!(step, Step::Put(..)) {
                world.check();
            }
        }
        world.check();
    }
}
