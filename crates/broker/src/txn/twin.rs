//! Random schedules of transactional producers over real logs: two clients for each transactional id, of which one
//! does not know that it is fenced; answers that are lost, markers that are written one by one, time-outs, restarts.
//! The twin is dumb: it writes down what belongs to which transaction and what was told of its end. When all is
//! over, exactly the records and offsets of committed transactions may be seen.

use std::{collections::BTreeMap, sync::Arc};

use dibs_log::{
    AppendError, Marker, MemoryStorage, Origin, PartitionLog, ProducerError, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};

use super::{tests::rules, *};
use crate::{
    group::{Now, Rules as GroupRules, Shard as Groups, offsets::Committed},
    worlds,
};

const IDS: [&str; 2] = ["a", "b"];
/// The last one holds the offsets of groups.
const PARTITIONS: i32 = 3;
const OFFSETS: i32 = PARTITIONS - 1;
const GROUP: &str = "g";
const TIMEOUT_MS: i32 = 1_000;

/// What one client believes.
#[derive(Debug)]
struct Client {
    id: &'static str,
    /// Whether it knows KIP-890.
    v2: bool,
    producer: Option<Producer>,
    sequences: BTreeMap<i32, i32>,
    /// The transaction that it is in, by the twin's number.
    transaction: Option<usize>,
    added: Vec<i32>,
    /// It has asked for an end and not heard of it: only this may be asked again.
    asked: Option<bool>,
}

/// The twin's book.
#[derive(Debug, Default)]
struct Twin {
    /// Who produces under a transactional id; nobody after a fence.
    owners: BTreeMap<&'static str, Option<usize>>,
    /// Whether a transaction was committed.
    committed: Vec<bool>,
    /// Values in the order of their partition, each with its transaction.
    values: BTreeMap<i32, Vec<(u64, usize)>>,
    /// Offsets in the order of the log, each with its transaction, or none.
    offsets: Vec<(i64, Option<usize>)>,
}

struct World {
    rng: fastrand::Rng,
    now: i64,
    shard: Shard,
    records: Vec<Record>,
    /// Decisions that are being carried out, and the partitions that are left.
    decided: Vec<(Decision, Vec<TopicPartition>)>,
    store: Store,
    logs: Vec<Arc<PartitionLog>>,
    groups: Groups,
    clients: Vec<Client>,
    next_id: i64,
    next_value: u64,
    twin: Twin,
}

fn partition(number: i32) -> TopicPartition {
    ("t".into(), number)
}

fn group_rules() -> GroupRules {
    GroupRules {
        min_session_ms: 1,
        max_session_ms: 1,
        initial_delay_ms: 0,
        max_size: 1,
        metadata_max: 1,
        retention_ms: i64::MAX,
        ..crate::group::tests::rules()
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let store = Store::open(Arc::new(MemoryStorage::new(seed)), StoreConfig::default()).unwrap();
        store.create_topic("t", PARTITIONS as u32).unwrap();
        let logs = (0..PARTITIONS).map(|p| store.partition("t", p as u32).unwrap()).collect();
        let client = |id: &'static str| Client {
            id,
            v2: rng.bool(),
            producer: None,
            sequences: BTreeMap::new(),
            transaction: None,
            added: Vec::new(),
            asked: None,
        };
        let clients = IDS.iter().flat_map(|id| [id, id]).copied().map(client).collect();
        World {
            rng,
            now: 1_000_000,
            shard: Shard::new(rules()),
            records: Vec::new(),
            decided: Vec::new(),
            store,
            logs,
            groups: Groups::new(group_rules()),
            clients,
            next_id: 0,
            next_value: 0,
            twin: Twin::default(),
        }
    }

    fn step(&mut self) {
        let i = self.rng.usize(..self.clients.len());
        match self.rng.u8(..20) {
            0 => self.init(i),
            1 => self.pass(),
            2 if self.rng.u8(..4) == 0 => self.restart(),
            2..=7 => self.mark(),
            8 => self.commit_plainly(),
            _ if self.clients[i].producer.is_none() => self.init(i),
            _ if self.clients[i].asked.is_some() => self.end(i),
            9..=12 if self.clients[i].transaction.is_some() => self.end(i),
            13..=14 => self.add(i),
            _ => self.produce(i),
        }
    }

    fn owns(&self, i: usize) -> bool {
        self.twin.owners.get(self.clients[i].id).copied().flatten() == Some(i)
    }

    /// Somebody's open transaction is aborted, and whoever is at it fenced.
    fn fenced(&mut self, id: &'static str) {
        self.twin.owners.insert(id, None);
    }

    fn is_ongoing(&self, id: &str) -> bool {
        self.shard.get(id).is_some_and(|t| t.state == State::Ongoing)
    }

    fn init(&mut self, i: usize) {
        let id = self.clients[i].id;
        let ongoing = self.is_ongoing(id);
        let known = self.clients[i].producer.filter(|_| self.rng.bool());
        let (mut fx, next_id) = (Effects::default(), &mut self.next_id);
        let mut fresh = || {
            *next_id += 1;
            Ok(*next_id)
        };
        let done = self.shard.init(self.now, id, TIMEOUT_MS, known, &mut fresh, &mut fx);
        match done {
            Ok(producer) => {
                assert!(!ongoing, "a producer began anew within a transaction");
                let client = &mut self.clients[i];
                client.producer = Some(producer);
                client.sequences.clear();
                (client.transaction, client.asked) = (None, None);
                client.added.clear();
                self.twin.owners.insert(id, Some(i));
            }
            Err(ResponseError::ConcurrentTransactions) if ongoing => self.fenced(id),
            Err(ResponseError::ConcurrentTransactions) => {
                assert!(self.shard.get(id).unwrap().state.is_prepared());
            }
            Err(e) => {
                assert_eq!(e, ResponseError::ProducerFenced);
                assert!(known.is_some() && !self.owns(i), "the newest producer was said to be fenced");
                self.clients[i].producer = None;
            }
        }
        self.take(fx);
    }

    /// Checks an error against what the twin says, and has who is fenced begin anew.
    fn refused(&mut self, i: usize, error: ResponseError) {
        match error {
            ResponseError::ConcurrentTransactions => {
                assert!(self.shard.get(self.clients[i].id).unwrap().state.is_prepared());
            }
            e => {
                assert!(!self.owns(i), "{e:?} to the newest producer: {:?}", self.clients[i]);
                if self.rng.bool() {
                    self.clients[i].producer = None;
                }
            }
        }
    }

    fn add(&mut self, i: usize) {
        let client = &self.clients[i];
        let (Some(producer), false) = (client.producer, client.v2) else { return };
        let p = self.rng.i32(0..PARTITIONS);
        let mut fx = Effects::default();
        let done = self.shard.add(self.now, client.id, producer, &[partition(p)], 0, &mut fx);
        self.take(fx);
        match done {
            Ok(()) => {
                assert!(self.owns(i), "a fenced producer went on");
                self.begun(i);
                self.clients[i].added.push(p);
            }
            Err(e) => self.refused(i, e),
        }
    }

    fn begun(&mut self, i: usize) -> usize {
        let next = self.twin.committed.len();
        let transaction = *self.clients[i].transaction.get_or_insert(next);
        if transaction == next {
            self.twin.committed.push(false);
        }
        transaction
    }

    fn produce(&mut self, i: usize) {
        let p = self.rng.i32(0..PARTITIONS);
        let client = &self.clients[i];
        let Some(producer) = client.producer else { return };
        if !client.v2 && !client.added.contains(&p) {
            return;
        }
        let sequence = if p == OFFSETS { -1 } else { client.sequences.get(&p).copied().unwrap_or(0) };
        self.next_value += 1;
        let value = self.next_value;
        let mut batch = BatchBuilder::new();
        batch.push(None, Some(&value.to_be_bytes()));
        batch.producer(producer.id, producer.epoch, sequence);
        batch.transactional();
        let batch = batch.finish(1);
        match self.send(i, p, producer, &batch) {
            Ok(()) => {
                let transaction = self.begun(i);
                let client = &mut self.clients[i];
                client.sequences.insert(p, sequence + 1);
                if p == OFFSETS {
                    let value = committed(value as i64);
                    self.groups.hold(producer.id, GROUP, "t", 0, value);
                    self.twin.offsets.push((self.next_value as i64, Some(transaction)));
                } else {
                    self.twin.values.entry(p).or_default().push((value, transaction));
                }
                self.logs[p as usize].commit(self.now).unwrap();
            }
            Err(Some(e)) => self.refused(i, e),
            Err(None) => assert!(!self.owns(i), "a partition refused the newest producer"),
        }
    }

    /// As the broker does it: at once if the transaction goes on there, else when its coordinator knows.
    fn send(
        &mut self,
        i: usize,
        p: i32,
        producer: Producer,
        batch: &[u8],
    ) -> Result<(), Option<ResponseError>> {
        let log = self.logs[p as usize].clone();
        let origin = if p == OFFSETS { Origin::Coordinator } else { Origin::Verified };
        if p != OFFSETS {
            match log.produce(batch, None, Origin::Client) {
                Err(AppendError::Producer(ProducerError::NotInTransaction { .. })) => {}
                done => return done.map(drop).map_err(|_| None),
            }
        }
        let client = &self.clients[i];
        let mut fx = Effects::default();
        let known = if client.v2 {
            self.shard.add(self.now, client.id, producer, &[partition(p)], EPOCH_BUMP, &mut fx)
        } else {
            self.shard.verify(client.id, producer, &partition(p))
        };
        self.take(fx);
        known.map_err(Some)?;
        assert!(self.owns(i), "a fenced producer began in a partition");
        log.produce(batch, None, origin).map(drop).map_err(|_| None)
    }

    fn end(&mut self, i: usize) {
        let commit = self.clients[i].asked.unwrap_or_else(|| self.rng.u8(..3) > 0);
        let client = &self.clients[i];
        let Some(producer) = client.producer else { return };
        let (mut fx, next_id) = (Effects::default(), &mut self.next_id);
        let mut fresh = || {
            *next_id += 1;
            Ok(*next_id)
        };
        let end = End { id: client.id, producer, commit, bumps: client.v2 };
        let done = self.shard.end(self.now, end, &mut fresh, &mut fx);
        let decided = !fx.decisions.is_empty();
        self.take(fx);
        if decided && let Some(transaction) = self.clients[i].transaction {
            self.twin.committed[transaction] = commit;
        }
        let lost = self.rng.u8(..6) == 0;
        match done {
            _ if lost => self.clients[i].asked = Some(commit),
            Ok(next) => {
                assert!(self.owns(i), "a fenced producer has ended a transaction");
                let client = &mut self.clients[i];
                if let Some(transaction) = client.transaction.take() {
                    assert_eq!(self.twin.committed[transaction], commit, "it was told of another end");
                }
                client.asked = None;
                client.added.clear();
                if next != producer {
                    client.producer = Some(next);
                    client.sequences.clear();
                }
            }
            Err(e) => {
                self.refused(i, e);
                if e != ResponseError::ConcurrentTransactions {
                    self.clients[i].asked = None;
                }
            }
        }
    }

    fn commit_plainly(&mut self) {
        self.next_value += 1;
        let value = committed(self.next_value as i64);
        let mut fx = crate::group::Effects::default();
        self.groups.commit(GROUP, "t", 0, value, &mut fx).unwrap();
        let mut batch = BatchBuilder::new();
        batch.push(None, Some(&self.next_value.to_be_bytes()));
        self.logs[OFFSETS as usize].append_batch(&batch.finish(1)).unwrap();
        self.logs[OFFSETS as usize].commit(self.now).unwrap();
        self.twin.offsets.push((self.next_value as i64, None));
    }

    fn pass(&mut self) {
        self.now += self.rng.i64(0..400);
        let ongoing: Vec<_> = IDS.into_iter().filter(|id| self.is_ongoing(id)).collect();
        let mut fx = Effects::default();
        self.shard.tick(self.now, &mut fx);
        for id in ongoing.into_iter().filter(|id| fx.decisions.iter().any(|d| d.id == *id)) {
            let state = self.shard.get(id).unwrap();
            assert!(self.now - state.started > i64::from(TIMEOUT_MS), "aborted too early");
            self.fenced(id);
        }
        self.take(fx);
    }

    /// Carries one decision on by one partition.
    fn mark(&mut self) {
        if self.decided.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.decided.len());
        let (decision, left) = &mut self.decided[at];
        if let Some((_, p)) = left.pop() {
            let marker = Marker {
                producer_id: decision.producer.id,
                producer_epoch: decision.producer.epoch,
                coordinator_epoch: 0,
                commit: decision.commit,
            };
            let log = &self.logs[p as usize];
            log.append_marker(&marker, self.now).expect("a coordinator is never fenced");
            log.commit(self.now).unwrap();
            if p == OFFSETS {
                self.groups.end_transaction(marker.producer_id, marker.commit);
                self.judge_offset();
            }
            return;
        }
        let (decision, _) = self.decided.swap_remove(at);
        let mut fx = Effects::default();
        self.shard.complete(self.now, &decision, &mut fx);
        self.take(fx);
    }

    /// Everything but the logs is gone.
    fn restart(&mut self) {
        let before = std::mem::replace(&mut self.shard, tests::replayed(&self.records));
        assert_eq!(
            before.all().map(|(id, t)| (id, t.producer(), t.state)).collect::<Vec<_>>(),
            self.shard.all().map(|(id, t)| (id, t.producer(), t.state)).collect::<Vec<_>>(),
        );
        self.decided.clear();
        let mut fx = Effects::default();
        self.shard.replayed(&mut fx);
        self.take(fx);
        self.groups = self.replayed_groups();
    }

    fn replayed_groups(&self) -> Groups {
        let mut groups = Groups::new(group_rules());
        for (value, producer, marker) in self.batches(OFFSETS) {
            match (marker, producer) {
                (Some(marker), _) => groups.end_transaction(marker.producer_id, marker.commit),
                (None, id) if id >= 0 => groups.hold(id, GROUP, "t", 0, committed(value)),
                (None, _) => groups
                    .commit(GROUP, "t", 0, committed(value), &mut crate::group::Effects::default())
                    .unwrap(),
            }
        }
        groups.replayed(Now { mono: 0, wall: self.now }, &crate::group::tests::NoTopics);
        groups
    }

    /// Every batch of a partition: its value, its producer, and the marker that it is instead.
    fn batches(&self, p: i32) -> Vec<(i64, i64, Option<Marker>)> {
        let (mut bytes, log) = (Vec::new(), &self.logs[p as usize]);
        if log.high_watermark() > 0 {
            log.read_until(0, log.high_watermark(), usize::MAX >> 1, &mut bytes).unwrap();
        }
        let one = |batch: Result<dibs_log::batch::Batch<'_>, _>| {
            let batch = batch.unwrap();
            let record = batch.records().unwrap().next().unwrap().unwrap();
            let value = record.value.and_then(|v| v.try_into().ok()).map_or(-1, i64::from_be_bytes);
            (value, batch.header.producer_id, Marker::of(&batch))
        };
        Batches::new(&bytes).map(one).collect()
    }

    fn take(&mut self, fx: Effects) {
        self.records.extend(fx.records);
        for decision in fx.decisions {
            let mut left = decision.partitions.clone();
            self.rng.shuffle(&mut left);
            self.decided.push((decision, left));
        }
    }

    /// The group's offset is the last one in the log of those that are committed by now.
    fn judge_offset(&self) {
        let batches = self.batches(OFFSETS);
        let counts = |(at, (_, producer, marker)): &(usize, &(i64, i64, Option<Marker>))| {
            let end = batches[at + 1..].iter().filter_map(|b| b.2).find(|m| m.producer_id == *producer);
            marker.is_none() && (*producer < 0 || end.is_some_and(|end| end.commit))
        };
        let expected = batches.iter().enumerate().rfind(counts).map(|(_, batch)| batch.0);
        let found = self.groups.get(GROUP).and_then(|g| g.offsets.get("t", 0)).map(|c| c.offset);
        assert_eq!(found, expected, "the group's offset");
    }

    /// Ends everything, and compares.
    fn judge(&mut self) {
        self.now += i64::from(TIMEOUT_MS) * 2;
        self.pass();
        while !self.decided.is_empty() {
            self.mark();
        }
        let at_work = |t: &Transaction| t.state == State::Ongoing || t.state.is_prepared();
        assert!(!self.shard.all().any(|(_, t)| at_work(t)), "a transaction is open for ever");
        for p in 0..OFFSETS {
            let log = &self.logs[p as usize];
            assert_eq!(log.last_stable_offset(), log.high_watermark(), "readers are held up for ever");
            let written = self.twin.values.remove(&p).unwrap_or_default();
            let counts = |(value, t): &(u64, usize)| self.twin.committed[*t].then_some(*value as i64);
            let expected: Vec<i64> = written.iter().filter_map(counts).collect();
            assert_eq!(self.seen(p), expected, "partition {p}");
        }
        let counts = |(_, t): &&(i64, Option<usize>)| t.is_none_or(|t| self.twin.committed[t]);
        let expected = self.twin.offsets.iter().rfind(counts).map(|(offset, _)| *offset);
        let of = |groups: &Groups| groups.get(GROUP).and_then(|g| g.offsets.get("t", 0)).map(|c| c.offset);
        assert_eq!(of(&self.groups), expected, "the group's offset");
        assert_eq!(of(&self.replayed_groups()), expected, "the group's offset after a restart");
        let unstable = self.groups.get(GROUP).is_some_and(|g| g.offsets.is_unstable("t", 0));
        assert!(!unstable, "an offset is held for ever");
    }

    /// What a reader of committed records sees: it leaves out what is in a list of aborted transactions.
    fn seen(&self, p: i32) -> Vec<i64> {
        let log = &self.logs[p as usize];
        let aborted = log.aborted(0, log.high_watermark()).unwrap();
        let mut seen = Vec::new();
        for (offset, (value, producer, marker)) in self.batches(p).into_iter().enumerate() {
            let inside = |a: &dibs_log::Aborted| (a.first_offset..=a.last_offset).contains(&(offset as u64));
            if marker.is_none() && !aborted.iter().any(|a| a.producer_id == producer && inside(a)) {
                seen.push(value);
            }
        }
        seen
    }
}

fn committed(offset: i64) -> Committed {
    Committed { offset, leader_epoch: -1, metadata: String::new(), at: 0 }
}

#[test]
fn exactly_what_was_committed_is_seen() {
    let seeds = worlds::seeds(300);
    let committed = worlds::each(seeds.clone(), |seed| {
        let mut world = World::new(seed);
        (0..400).for_each(|_| world.step());
        world.judge();
        let committed = world.twin.committed.iter().filter(|c| **c).count();
        world.store.close().unwrap();
        committed
    });
    let worlds = seeds.count();
    assert!(committed > 5 * worlds || worlds == 1, "only {committed} were committed");
}
