//! A whole broker over a disk whose writes fail now and then: whatever an answer was, a transaction is seen whole or
//! not at all, and what was acknowledged is seen.

use std::{collections::BTreeMap, sync::Arc};

use dibs_log::{
    Aborted, AppendError, Call, Marker, MemoryStorage, ProducerError, Store, StoreConfig,
    batch::{Batch, BatchBuilder, Batches},
};
use kafka_protocol::ResponseError;

use super::Transactions;
use crate::{
    BrokerConfig,
    server::Broker,
    topics::Partition,
    txn::{EPOCH_BUMP, End, Producer},
    worlds,
};

const ID: &str = "pay";
const PARTITIONS: i32 = 2;

/// What became of a transaction, as far as its producer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    Aborted,
    Unknown,
}

struct Client {
    transactions: Arc<Transactions>,
    partitions: Vec<Partition>,
    second_form: bool,
    producer: Producer,
    sequences: [i32; PARTITIONS as usize],
}

impl Client {
    /// Asks until there is an answer: the disk does not fail for ever.
    async fn init(&mut self) {
        loop {
            let mut fresh = self.transactions.fresh();
            let init = self
                .transactions
                .with(ID, |shard, now, fx| shard.init(now, ID, 60_000, None, &mut fresh, fx));
            if let Ok(Ok(producer)) = init.await {
                (self.producer, self.sequences) = (producer, [0; PARTITIONS as usize]);
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Appends a value as the Produce handler does; true if it is durable.
    async fn produce(&mut self, p: usize, value: u64) -> bool {
        let (partition, producer) = (self.partitions[p].clone(), self.producer);
        let of = ("t".to_owned(), p as i32);
        let mut batch = BatchBuilder::new();
        batch.push(None, Some(&value.to_be_bytes()));
        batch.producer(producer.id, producer.epoch, self.sequences[p]);
        batch.transactional();
        let batch = batch.finish(crate::clock::wall_ms());
        if !self.second_form {
            let of = std::slice::from_ref(&of);
            if self.transactions.add(ID, producer, of, 0).await.is_err() {
                return false;
            }
        }
        let mut appended = partition.append(&batch);
        if let Err(AppendError::Producer(ProducerError::NotInTransaction { .. })) = appended {
            let version = self.second_form.then_some(EPOCH_BUMP);
            let append = || partition.append_verified(&batch);
            match self.transactions.within(ID, producer, &of, version, append).await {
                Ok(done) => appended = done,
                Err(_) => return false,
            }
        }
        self.sequences[p] += 1;
        match appended {
            Ok(appended) => partition.durable(appended).await.is_ok(),
            Err(_) => false,
        }
    }

    async fn end(&mut self, commit: bool) -> Fate {
        let mut fresh = self.transactions.fresh();
        let end = End { id: ID, producer: self.producer, commit, bumps: self.second_form };
        let ended = loop {
            let end = self.transactions.with(ID, |shard, now, fx| shard.end(now, end, &mut fresh, fx)).await;
            if end != Ok(Err(ResponseError::ConcurrentTransactions)) {
                break end;
            }
            tokio::task::yield_now().await;
        };
        match ended {
            Ok(Ok(next)) => {
                if next != self.producer {
                    (self.producer, self.sequences) = (next, [0; PARTITIONS as usize]);
                }
                if commit { Fate::Committed } else { Fate::Aborted }
            }
            Ok(Err(e)) => {
                assert_eq!(e, ResponseError::InvalidTxnState, "only an end of nothing is refused");
                Fate::Aborted
            }
            Err(_) => {
                self.init().await;
                Fate::Unknown
            }
        }
    }
}

/// The values that a reader of committed records sees.
fn seen(partition: &Partition) -> Vec<u64> {
    let end = partition.high_watermark();
    assert_eq!(partition.last_stable(), end, "a transaction is open for ever");
    let (mut at, mut values) = (0, Vec::new());
    let aborted = partition.aborted(0, end).unwrap();
    while at < end {
        let mut bytes = Vec::new();
        partition.read(at, end, 1 << 20, &mut bytes).unwrap();
        for batch in Batches::new(&bytes).map(Result::unwrap) {
            at = batch.header.next_offset();
            if Marker::of(&batch).is_none() && !aborted.iter().any(|a| holds(a, &batch)) {
                let value = batch.records().unwrap().next().unwrap().unwrap().value.unwrap();
                values.push(u64::from_be_bytes(value.try_into().unwrap()));
            }
        }
    }
    values
}

fn holds(aborted: &Aborted, batch: &Batch<'_>) -> bool {
    let at = batch.header.base_offset;
    aborted.producer_id == batch.header.producer_id
        && (aborted.first_offset..aborted.last_offset).contains(&at)
}

async fn world(seed: u64) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed);
    let storage = MemoryStorage::new(seed);
    let store = Arc::new(Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap());
    store.create_topic("t", PARTITIONS as u32).unwrap();
    let settings = [("listeners", "PLAINTEXT://127.0.0.1:0"), ("transaction.state.log.num.partitions", "1")];
    let broker = Broker::start(store.clone(), BrokerConfig::new(settings).unwrap()).await.unwrap();
    let topics = broker.shared().topics.clone();
    let mut client = Client {
        transactions: broker.shared().transactions.clone(),
        partitions: (0..PARTITIONS).map(|p| topics.partition("t", p).unwrap()).collect(),
        second_form: seed.is_multiple_of(2),
        producer: Producer { id: -1, epoch: -1 },
        sequences: [0; PARTITIONS as usize],
    };
    client.init().await;
    let (mut fates, mut written) = (Vec::new(), BTreeMap::<(usize, usize), Vec<u64>>::new());
    for transaction in 0..25 {
        if rng.u8(..3) == 0 {
            storage.fail(Call::Write, rng.u64(1..12), rng.u64(1..3), 28);
        }
        let mut whole = true;
        for i in 0..rng.u64(1..5) {
            let (p, value) = (rng.usize(..PARTITIONS as usize), transaction as u64 * 100 + i);
            if !client.produce(p, value).await {
                whole = false;
                break;
            }
            written.entry((p, transaction)).or_default().push(value);
        }
        let commit = whole && rng.u8(..4) > 0;
        fates.push(client.end(commit).await);
        if !whole {
            // What it has sent is lost, or may come yet: as clients do, it begins anew.
            client.init().await;
        }
    }
    storage.heal();
    client.init().await;
    for p in 0..PARTITIONS as usize {
        let found = seen(&client.partitions[p]);
        for (transaction, fate) in fates.iter_mut().enumerate() {
            let expected = written.get(&(p, transaction)).cloned().unwrap_or_default();
            let of = |value: &&u64| (**value / 100) as usize == transaction;
            let of: Vec<u64> = found.iter().filter(of).copied().collect();
            if *fate == Fate::Unknown && !(expected.is_empty() && of.is_empty()) {
                *fate = if of.is_empty() { Fate::Aborted } else { Fate::Committed };
            }
            match fate {
                Fate::Aborted => assert!(of.is_empty(), "{transaction} was aborted: {of:?}"),
                _ => assert_eq!(of, expected, "{transaction} in partition {p}"),
            }
        }
    }
    broker.stop().await;
    fates.iter().filter(|fate| **fate == Fate::Committed).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_writes_leave_every_transaction_whole() {
    let mut committed = 0;
    for seed in worlds::seeds(20) {
        let world = tokio::spawn(world(seed));
        committed += world.await.unwrap_or_else(|e| panic!("WORLD={seed} shows it again: {e}"));
    }
    assert!(committed > 0, "nothing was committed");
}
