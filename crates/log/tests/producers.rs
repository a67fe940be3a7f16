//! What the log promises to producers, idempotent and transactional ones, and to readers of transactions.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use dibs_log::{
    AppendError, Call, Marker, MemoryStorage, Origin, PartitionLog, ProducerError, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};
use proptest::{collection::vec, prelude::*};

fn open(storage: &MemoryStorage, config: StoreConfig) -> (Store, Arc<PartitionLog>) {
    let store = Store::open(Arc::new(storage.clone()), config).unwrap();
    store.create_topic("t", 1).unwrap();
    let log = store.partition("t", 0).unwrap();
    (store, log)
}

fn batch(id: i64, epoch: i16, sequence: i32, records: usize, transactional: bool) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    (0..records).for_each(|_| builder.push(Some(b"k"), Some(b"v")));
    builder.producer(id, epoch, sequence);
    if transactional {
        builder.transactional();
    }
    builder.finish(1_000)
}

/// Sends a batch, and says its offset and whether it was there before.
fn send(log: &PartitionLog, id: i64, epoch: i16, sequence: i32) -> Result<(u64, bool), AppendError> {
    let sent = log.produce(&batch(id, epoch, sequence, 2, false), Some(1_000), Origin::Client)?;
    assert_eq!(sent.last_offset, sent.base_offset + 1);
    Ok((sent.base_offset, sent.duplicate))
}

fn end(id: i64, epoch: i16, commit: bool) -> Marker {
    Marker { producer_id: id, producer_epoch: epoch, coordinator_epoch: 0, commit }
}

#[test]
fn a_batch_that_is_sent_again_is_found_and_one_out_of_order_is_refused() {
    let storage = MemoryStorage::new(0);
    let (_store, log) = open(&storage, StoreConfig::default());
    for i in 0..7 {
        assert_eq!(send(&log, 7, 0, i * 2), Ok((i as u64 * 2, false)));
        if i == 3 {
            log.commit(1).unwrap();
        }
    }
    // Durable or still pending: the last five are known.
    for i in 2..7 {
        assert_eq!(send(&log, 7, 0, i * 2), Ok((i as u64 * 2, true)));
    }
    let refused = |sequence, epoch| match send(&log, 7, epoch, sequence) {
        Err(AppendError::Producer(e)) => e,
        other => panic!("{other:?}"),
    };
    let out_of_order = |found| ProducerError::OutOfOrderSequence { id: 7, found, expected: 14 };
    assert_eq!(refused(2, 0), out_of_order(2));
    assert_eq!(refused(16, 0), out_of_order(16));
    assert_eq!(refused(1, 1), ProducerError::OutOfOrderSequence { id: 7, found: 1, expected: 0 });
    assert_eq!(send(&log, 7, 1, 0), Ok((14, false)), "a new epoch begins at 0");
    assert_eq!(refused(14, 0), ProducerError::InvalidEpoch { id: 7, found: 0, current: 1 });
    assert_eq!(send(&log, 8, 3, 500), Ok((16, false)), "nothing is known of it: any number will do");
    let info: Vec<_> = log.producers().iter().map(|p| (p.id, p.epoch, p.last_sequence)).collect();
    assert_eq!(info, [(7, 1, 1), (8, 3, 501)]);
    log.expire_producers(100_000, 1_000);
    assert_eq!(log.producers(), []);
}

#[test]
fn sequence_numbers_begin_again_after_the_largest() {
    let (_store, log) = open(&MemoryStorage::new(0), StoreConfig::default());
    assert_eq!(send(&log, 7, 0, i32::MAX), Ok((0, false)));
    assert_eq!(send(&log, 7, 0, 1), Ok((2, false)));
    assert_eq!(send(&log, 7, 0, i32::MAX), Ok((0, true)));
}

#[test]
fn what_a_failed_commit_drops_may_be_sent_again() {
    let storage = MemoryStorage::new(0);
    let (_store, log) = open(&storage, StoreConfig::default());
    send(&log, 7, 0, 0).unwrap();
    log.commit(1).unwrap();
    let lost = log.produce(&batch(7, 0, 2, 2, true), None, Origin::Verified).unwrap();
    assert!(log.has_open_transaction(7));
    storage.fail(Call::Write, 1, 1, 28);
    log.commit(2).unwrap_err();
    log.reset().unwrap();
    assert!(!log.has_open_transaction(7));
    assert_eq!(send(&log, 7, 0, 2), Ok((2, false)));
    assert_eq!((lost.base_offset, lost.failures, log.failures()), (2, 0, 1));
}

#[test]
fn what_was_aborted_is_known_after_any_power_cut() {
    let config = || StoreConfig { segment_bytes: 600, checkpoint_bytes: 500, ..StoreConfig::default() };
    for (seed, nth) in (0..20).flat_map(|seed| (1..30).map(move |nth| (seed, nth))) {
        let storage = MemoryStorage::new(seed);
        let (_store, log) = open(&storage, config());
        log.produce(&batch(7, 0, 0, 2, true), None, Origin::Verified).unwrap();
        log.append_marker(&end(7, 0, false), 5).unwrap();
        log.commit(5).unwrap();
        storage.cut_power_at(nth);
        for i in 0..8 {
            let _ = send(&log, 8, 0, i * 2).map(|_| log.commit(6));
        }
        storage.crash();
        let (_store, log) = open(&storage, config());
        let aborted = log.aborted(0, 3).unwrap();
        let found: Vec<_> = aborted.iter().map(|a| (a.first_offset, a.last_offset)).collect();
        assert_eq!(found, [(0, 2)], "seed {seed}, the power goes at change {nth}");
    }
}

#[test]
fn no_snapshot_goes_before_the_next_is_durable() {
    let config = || StoreConfig { index_interval_bytes: 100, checkpoint_bytes: 1, ..StoreConfig::default() };
    for seed in 0..50 {
        let storage = MemoryStorage::new(seed);
        let (_store, log) = open(&storage, config());
        send(&log, 7, 0, 0).unwrap();
        log.commit(1).unwrap();
        for i in 0..10 {
            if i == 6 {
                storage.fail(Call::SyncDir, 1, 100, 5);
            }
            send(&log, 8, 0, i * 2).unwrap();
            log.commit(1).unwrap();
        }
        storage.crash();
        let (_store, log) = open(&storage, config());
        let known: Vec<_> = log.producers().iter().map(|p| (p.id, p.last_sequence)).collect();
        assert_eq!((log.high_watermark(), &known[..]), (22, &[(7, 1), (8, 19)][..]), "seed {seed}");
    }
}

#[test]
fn a_producer_is_known_when_its_records_are_deleted() {
    let storage = MemoryStorage::new(3);
    let config = || StoreConfig { index_interval_bytes: 100, ..StoreConfig::default() };
    let (store, log) = open(&storage, config());
    for id in 1..20 {
        send(&log, id, 0, 0).unwrap();
        log.commit(id).unwrap();
    }
    log.delete_before(30).unwrap();
    // Killed: there is no snapshot of the producers.
    drop((store, log));
    let (_store, log) = open(&storage, config());
    assert_eq!(log.log_start_offset(), 30);
    assert_eq!(send(&log, 1, 0, 0), Ok((0, true)), "nobody heard the answer, and it is sent again");
}

#[test]
fn producers_are_known_after_a_restart_clean_or_not() {
    for crash in [false, true] {
        let storage = MemoryStorage::new(3);
        let config = || StoreConfig { segment_bytes: 1_000, ..StoreConfig::default() };
        let (store, log) = open(&storage, config());
        for i in 0..40 {
            send(&log, 7, 0, i * 2).unwrap();
            log.commit(i as i64).unwrap();
        }
        log.produce(&batch(9, 4, 0, 1, true), None, Origin::Verified).unwrap();
        log.commit(100).unwrap();
        assert!(log.segments().len() > 3);
        if !crash {
            store.close().unwrap();
        }
        drop((store, log));
        if crash {
            storage.crash();
        }
        for _ in 0..2 {
            let (store, log) = open(&storage, config());
            assert_eq!(send(&log, 7, 0, 78), Ok((78, true)));
            assert!(log.has_open_transaction(9));
            assert_eq!(log.last_stable_offset(), 80);
            assert!(matches!(send(&log, 7, 0, 90), Err(AppendError::Producer(_))));
            drop((store, log));
            storage.crash();
        }
    }
}

#[test]
fn a_client_alone_goes_on_with_a_transaction_and_begins_none() {
    let (_store, log) = open(&MemoryStorage::new(0), StoreConfig::default());
    let send = |epoch, sequence, origin| {
        log.produce(&batch(7, epoch, sequence, 1, true), None, origin).map(|a| (a.base_offset, a.duplicate))
    };
    let refused = Err(AppendError::Producer(ProducerError::NotInTransaction { id: 7 }));
    assert_eq!(send(0, 0, Origin::Client), refused, "nobody knows of it");
    assert_eq!(send(0, 0, Origin::Verified), Ok((0, false)));
    assert_eq!(send(0, 1, Origin::Client), Ok((1, false)));
    assert_eq!(send(1, 0, Origin::Client), refused, "that was another epoch's transaction");
    log.append_marker(&end(7, 0, true), 1).unwrap();
    assert_eq!(send(0, 2, Origin::Client), refused, "it has ended");
    assert_eq!(send(0, 1, Origin::Client), Ok((1, true)), "what was sent again was in it");
    assert_eq!(send(0, 2, Origin::Verified), Ok((3, false)));
    assert!(log.has_open_transaction(7));
}

#[test]
fn clients_write_no_markers_and_old_coordinators_neither() {
    let (_store, log) = open(&MemoryStorage::new(0), StoreConfig::default());
    log.append_marker(&Marker { coordinator_epoch: 5, ..end(7, 2, true) }, 1).unwrap();
    log.commit(1).unwrap();
    let mut marker = Vec::new();
    log.read(0, 1, &mut marker).unwrap();
    assert_eq!(log.append_batch(&marker), Err(AppendError::Producer(ProducerError::Control)));
    let fenced = log.append_marker(&Marker { coordinator_epoch: 4, ..end(7, 2, true) }, 1);
    let expected = ProducerError::CoordinatorFenced { id: 7, found: 4, current: 5 };
    assert_eq!(fenced, Err(AppendError::Producer(expected)));
    let old = log.append_marker(&Marker { coordinator_epoch: 6, ..end(7, 1, true) }, 1);
    assert_eq!(old, Err(AppendError::Producer(ProducerError::InvalidEpoch { id: 7, found: 1, current: 2 })));
    // A coordinator's own batches have no sequence numbers; a client's must have.
    let offsets = batch(7, 2, -1, 1, true);
    assert!(matches!(log.produce(&offsets, None, Origin::Client), Err(AppendError::Producer(_))));
    assert!(log.produce(&offsets, None, Origin::Coordinator).is_ok());
    assert!(log.produce(&offsets, None, Origin::Coordinator).is_ok());
    let outside = log.append_batch(&batch(7, 2, 0, 1, false));
    assert_eq!(outside, Err(AppendError::Producer(ProducerError::InvalidTransactionState { id: 7 })));
}

#[derive(Clone, Debug)]
enum Step {
    /// Producer, number of records, in a transaction, and how wrong its sequence is.
    Send(i64, usize, bool, i32),
    End(i64, bool, bool),
    Commit,
    Reopen(bool),
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4_i64, 1..4_usize, any::<bool>(), prop_oneof![8 => Just(0), 1 => -3..4_i32])
            .prop_map(|(p, n, t, wrong)| Step::Send(p, n, t, wrong)),
        4 => (0..4_i64, any::<bool>(), any::<bool>()).prop_map(|(p, commit, bump)| Step::End(p, commit, bump)),
        5 => Just(Step::Commit),
        1 => any::<bool>().prop_map(Step::Reopen),
        1 => Just(Step::Fail),
    ]
}

/// Offset, producer, epoch, sequence, records, in a transaction, marker.
type Sent = (u64, i64, i16, i32, usize, bool, Option<bool>);

/// A dumb twin: everything is computed anew from the list of all batches.
#[derive(Clone, Default)]
struct Twin {
    batches: Vec<Sent>,
    next: u64,
}

impl Twin {
    fn expected(&self, id: i64) -> (i16, i32) {
        let (mut epoch, mut sequence) = (0, 0);
        for (_, p, e, s, n, _, marker) in &self.batches {
            if *p == id {
                if *e != epoch {
                    (epoch, sequence) = (*e, 0);
                }
                if marker.is_none() {
                    sequence = s + *n as i32;
                }
            }
        }
        (epoch, sequence)
    }

    fn is_open(&self, id: i64) -> Option<u64> {
        let mut open = None;
        for (offset, p, _, _, _, transactional, marker) in &self.batches {
            if *p == id {
                match marker {
                    Some(_) => open = None,
                    None if *transactional && open.is_none() => open = Some(*offset),
                    None => {}
                }
            }
        }
        open
    }

    fn stable(&self, end: u64) -> u64 {
        (0..4).filter_map(|id| self.is_open(id)).min().unwrap_or(end)
    }

    /// Offsets of data batches that a reader of committed transactions below the stable offset sees.
    fn committed(&self) -> Vec<u64> {
        let stable = self.stable(self.next);
        let mut seen = Vec::new();
        for (i, (offset, p, _, _, _, transactional, marker)) in self.batches.iter().enumerate() {
            let end = self.batches[i..].iter().find(|b| b.1 == *p && b.6.is_some());
            let counts = !transactional || end.is_some_and(|b| b.6 == Some(true));
            if marker.is_none() && *offset < stable && counts {
                seen.push(*offset);
            }
        }
        seen
    }
}

struct World {
    storage: MemoryStorage,
    store: Option<Store>,
    log: Arc<PartitionLog>,
    durable: Twin,
    ahead: Twin,
    epochs: HashMap<i64, i16>,
}

fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 700,
        index_interval_bytes: 100,
        checkpoint_bytes: 900,
        max_open_segments: 2,
        ..StoreConfig::default()
    }
}

impl World {
    fn new(seed: u64) -> World {
        let storage = MemoryStorage::new(seed);
        let (store, log) = open(&storage, config());
        let (durable, ahead, epochs) = (Twin::default(), Twin::default(), HashMap::new());
        World { storage, store: Some(store), log, durable, ahead, epochs }
    }

    fn act(&mut self, step: &Step) {
        match *step {
            Step::Send(id, records, transactional, wrong) => self.send(id, records, transactional, wrong),
            Step::End(id, commit, bump) => {
                let epoch = self.epochs.entry(id).or_default();
                *epoch += i16::from(bump);
                let appended = self.log.append_marker(&end(id, *epoch, commit), 5).unwrap();
                assert_eq!(appended.base_offset, self.ahead.next);
                self.ahead.batches.push((self.ahead.next, id, *epoch, 0, 1, true, Some(commit)));
                self.ahead.next += 1;
            }
            Step::Commit => {
                self.log.commit(9).unwrap();
                self.durable = self.ahead.clone();
            }
            Step::Fail => {
                self.storage.fail(Call::Write, 1, 1, 28);
                if self.log.commit(9).is_err() {
                    self.log.reset().unwrap();
                    self.fall_back();
                }
                self.storage.heal();
                // Of a large group some may be durable, but these are small; a roll may have failed, too.
                self.durable = self.ahead.clone();
                assert_eq!(self.log.high_watermark(), self.durable.next);
            }
            Step::Reopen(clean) => {
                if clean {
                    self.store.as_ref().unwrap().close().unwrap();
                }
                self.store = None;
                self.log = open(&MemoryStorage::new(0), config()).1;
                if !clean {
                    self.storage.crash();
                }
                let (store, log) = open(&self.storage, config());
                (self.store, self.log) = (Some(store), log);
                self.ahead = self.durable.clone();
                self.epochs = (0..4).map(|id| (id, self.ahead.expected(id).0)).collect();
            }
        }
    }

    /// What was appended since the high watermark is gone.
    fn fall_back(&mut self) {
        let end = self.log.high_watermark();
        self.ahead.batches.retain(|b| b.0 < end);
        self.ahead.next = end;
        self.epochs = (0..4).map(|id| (id, self.ahead.expected(id).0)).collect();
    }

    fn send(&mut self, id: i64, records: usize, transactional: bool, wrong: i32) {
        let epoch = *self.epochs.entry(id).or_default();
        let (known_epoch, next) = self.ahead.expected(id);
        let known = self.ahead.batches.iter().any(|b| b.1 == id);
        let right = if known && known_epoch != epoch { 0 } else { next };
        let sequence = (right + wrong).max(0);
        let sent =
            self.log.produce(&batch(id, epoch, sequence, records, transactional), Some(9), Origin::Verified);
        let open = self.ahead.is_open(id).is_some();
        match sent {
            Ok(sent) if sent.duplicate => {
                let same = |b: &&Sent| (b.1, b.2, b.3, b.4, b.6) == (id, epoch, sequence, records, None);
                let original = self.ahead.batches.iter().rev().find(same).expect("it was sent before");
                assert_eq!(sent.base_offset, original.0);
            }
            Ok(sent) => {
                assert_eq!(sent.base_offset, self.ahead.next);
                assert!(sequence == right || !known, "{sequence} instead of {right}");
                assert!(transactional || !open);
                let new = (self.ahead.next, id, epoch, sequence, records, transactional, None);
                self.ahead.batches.push(new);
                self.ahead.next += records as u64;
            }
            Err(AppendError::Producer(ProducerError::InvalidTransactionState { .. })) => {
                assert!(open && !transactional);
            }
            Err(AppendError::Producer(ProducerError::OutOfOrderSequence { .. })) => {
                assert_ne!(sequence, right)
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn check(&self) {
        let end = self.log.high_watermark();
        assert_eq!((end, self.log.log_end_offset()), (self.durable.next, self.ahead.next));
        assert_eq!(self.log.last_stable_offset(), self.durable.stable(end));
        for id in 0..4 {
            assert_eq!(self.log.has_open_transaction(id), self.ahead.is_open(id).is_some());
        }
        // Read as a consumer does: in pieces, with the aborted transactions of each.
        let (stable, mut at, mut seen) = (self.log.last_stable_offset(), 0, Vec::new());
        while at < stable {
            let mut bytes = Vec::new();
            self.log.read_until(at, stable, 150, &mut bytes).unwrap();
            let headers: Vec<_> = Batches::new(&bytes).map(|b| b.unwrap().header).collect();
            let next = headers.last().expect("something is there").next_offset();
            assert!(next <= stable);
            let range = self.log.read_range(at, stable, 150).unwrap().unwrap();
            assert_eq!(range.length as usize, bytes.len());
            let mut same = Vec::new();
            range.file.read_into(&mut same, bytes.len(), range.position).unwrap();
            assert_eq!(same, bytes);
            assert!((next..=stable).contains(&range.until), "{} is not in {next}..={stable}", range.until);
            let mut starts: BTreeMap<u64, i64> = BTreeMap::new();
            for aborted in self.log.aborted(at, range.until).unwrap() {
                starts.insert(aborted.first_offset, aborted.producer_id);
            }
            let mut open: Vec<i64> = Vec::new();
            for header in headers {
                while let Some((&first, &id)) =
                    starts.first_key_value().filter(|(f, _)| **f <= header.last_offset())
                {
                    open.push(id);
                    starts.remove(&first);
                }
                if header.is_control() {
                    open.retain(|id| *id != header.producer_id);
                } else if !(header.is_transactional() && open.contains(&header.producer_id)) {
                    seen.push(header.base_offset);
                }
            }
            at = next;
        }
        assert_eq!(seen, self.durable.committed());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn producers_and_transactions_equal_their_twin(seed in any::<u64>(), steps in vec(step(), 1..60)) {
        let mut world = World::new(seed);
        for step in &steps {
            world.act(step);
            world.check();
        }
    }
}
