//! One seed's world: a broker without sockets and threads over a disk that fails, clients around it, and chance.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use dibs_log::{
    Call, MemoryStorage, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};
use kafka_protocol::{
    ResponseError,
    messages::{
        DeleteRecordsRequest, FetchRequest, RequestHeader, TopicName, delete_records_request::*,
        fetch_request::*, fetch_response::PartitionData,
    },
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};
use tokio::task::{JoinHandle, yield_now};

use super::{
    checker::{self, Kind, Wrong},
    clients::{Idempotent, Plain, Producer, Transactional},
    history::{Batch, Event, Fetched, History, Item},
};
use crate::{
    BrokerConfig, api, clock, connection::Client, security::sasl::Auth, server::Shared, topics::Topics,
};

pub(super) const TOPIC: &str = "t";
pub(super) const PARTITIONS: usize = 2;
/// When each world begins, in ms.
const BEGINNING: i64 = 1_700_000_000_000;
/// How often the broker is asked to come to an end with everything, at the end.
const ENDING: usize = 10_000;

pub(super) fn text(s: &str) -> StrBytes {
    StrBytes::from_string(s.to_owned())
}

pub(super) fn topic_name(s: &str) -> TopicName {
    TopicName(text(s))
}

/// What happened in a world in which everything held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) batches: usize,
    pub(super) acked: usize,
    pub(super) committed: usize,
    pub(super) aborted: usize,
    pub(super) fetched: usize,
    pub(super) restarts: usize,
    /// Segments at the end.
    pub(super) segments: usize,
}

/// A life of the broker.
pub(super) struct Broker {
    shared: Arc<Shared>,
    client: Arc<Client>,
    store: Arc<Store>,
}

impl Broker {
    fn start(store: Store) -> Broker {
        let store = Arc::new(store);
        let settings =
            [("listeners", "PLAINTEXT://127.0.0.1:0"), ("transaction.state.log.num.partitions", "1")];
        let config = BrokerConfig::new(settings).expect("the settings are right");
        let topics = Arc::new(Topics::uncommitted(store.clone(), Vec::new()));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9092));
        let shared = Arc::new(Shared::open(&config, topics, vec![address]).expect("the files are whole"));
        let client = Arc::new(Client::new("/127.0.0.1".into(), 0, address, Auth::open(None)));
        Broker { shared, client, store }
    }

    /// Begins to answer a request as if it had come over a connection, and goes on with that beside the caller.
    pub(super) fn ask<R: Request, T: Send + 'static>(
        &self,
        request: &R,
        version: i16,
        read: impl FnOnce(R::Response) -> T + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        let mut frame = BytesMut::new();
        let header = RequestHeader::default().with_request_api_key(R::KEY).with_request_api_version(version);
        header.encode(&mut frame, R::header_version(version)).expect("a header can be written");
        request.encode(&mut frame, version).expect("a request can be written");
        let answering = api::begin(&self.shared, &self.client, frame.freeze());
        tokio::spawn(async move {
            let mut bytes = answering.ok()?.future.await.ok()??.flat();
            // Its length, the correlation id, and perhaps no tags.
            let tags = usize::from(<R::Response as HeaderVersion>::header_version(version) >= 1);
            let _ = bytes.split_to(8 + tags);
            Some(read(
                <R::Response as Decodable>::decode(&mut bytes, version).expect("an answer can be read"),
            ))
        })
    }

    async fn fetch(
        &self,
        partition: usize,
        from: u64,
        committed: bool,
        max_bytes: i32,
    ) -> Option<PartitionData> {
        let wanted = FetchPartition::default()
            .with_partition(partition as i32)
            .with_fetch_offset(from as i64)
            .with_partition_max_bytes(max_bytes);
        let wanted = FetchTopic::default().with_topic(topic_name(TOPIC)).with_partitions(vec![wanted]);
        let request = FetchRequest::default()
            .with_max_bytes(1 << 20)
            .with_isolation_level(i8::from(committed))
            .with_topics(vec![wanted]);
        let asked = self.ask(&request, 12, |mut r| r.responses.pop()?.partitions.pop());
        asked.await.ok().flatten().flatten()
    }

    fn partitions(&self) -> Vec<Arc<dibs_log::PartitionLog>> {
        self.store.all_topics().iter().flat_map(|topic| topic.partitions().to_vec()).collect()
    }

    fn commit(&self, log: &dibs_log::PartitionLog) {
        if log.commit(clock::wall_ms()).is_err() {
            // As the committer does.
            let _ = log.reset();
        }
    }

    fn log(&self, partition: usize) -> Arc<dibs_log::PartitionLog> {
        let topic = self.store.topic(TOPIC).expect("it was made");
        topic.partition(partition as u32).expect("it has so many").clone()
    }
}

/// The clients, and what they have seen.
pub(super) struct World {
    pub(super) random: fastrand::Rng,
    pub(super) history: History,
    /// Each batch as it is sent.
    pub(super) bytes: Vec<Bytes>,
    producers: usize,
    transactions: usize,
    storage: MemoryStorage,
    config: StoreConfig,
    restarts: usize,
}

#[derive(Default)]
struct Clients {
    plain: Vec<Plain>,
    idempotent: Vec<Idempotent>,
    transactional: Vec<Transactional>,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The power goes: what was not synced is lost, kept or torn.
    Power,
    /// The process dies: what was written is there.
    Kill,
    /// The process is told to stop.
    Stop,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        clock::SET.set(Some(BEGINNING));
        let config = StoreConfig {
            segment_bytes: random.u64(300..4000),
            index_interval_bytes: random.u64(64..1000),
            max_pending_bytes: if random.bool() { 2000 } else { 1 << 20 },
            max_batch_bytes: 1500,
            checkpoint_bytes: random.u64(500..5000),
            max_open_segments: random.usize(2..10),
            ..StoreConfig::default()
        };
        World {
            random,
            history: History::default(),
            bytes: Vec::new(),
            producers: 0,
            transactions: 0,
            storage: MemoryStorage::new(seed),
            config,
            restarts: 0,
        }
    }

    pub(super) fn record(&mut self, event: Event) {
        self.history.events.push(event);
    }

    /// A new producer, or the same in another epoch.
    pub(super) fn producer(&mut self) -> usize {
        self.producers += 1;
        self.producers
    }

    pub(super) fn transaction(&mut self) -> usize {
        self.transactions += 1;
        self.transactions
    }

    /// Makes a batch of new values, numbered by its producer if it has one.
    pub(super) fn batch(
        &mut self,
        partition: usize,
        numbered: Option<(usize, Producer, i32)>,
        transaction: Option<usize>,
    ) -> usize {
        let first = self.history.batches.last().map_or(0, |batch| batch.values.end);
        let values = first..first + self.random.u64(1..6);
        let mut batch = BatchBuilder::new();
        for value in values.clone() {
            let padding = vec![b'.'; self.random.usize(..40)];
            batch.push(Some(&padding), Some(&value.to_be_bytes()));
        }
        if let Some((_, (id, epoch), sequence)) = numbered {
            batch.producer(id, epoch, sequence);
        }
        if transaction.is_some() {
            batch.transactional();
        }
        self.bytes.push(batch.finish(clock::wall_ms()).into());
        let producer = numbered.map(|(name, ..)| name);
        self.history.batches.push(Batch { partition, values, producer, transaction });
        self.history.batches.len() - 1
    }

    /// Records in a batch.
    pub(super) fn len(&self, batch: usize) -> usize {
        let values = &self.history.batches[batch].values;
        (values.end - values.start) as usize
    }

    /// Lives through all of it.
    pub(super) fn live(&mut self) -> Result<Summary, Wrong> {
        let mut clients = Clients::default();
        for i in 0..2 {
            clients.plain.push(Plain::default());
            clients.idempotent.push(Idempotent::default());
            clients.transactional.push(Transactional::new(format!("x{i}"), i == 0));
        }
        self.alive(async |world, broker| world.begin(broker).await);
        for _ in 0..self.random.u8(1..6) {
            let end = [End::Power, End::Power, End::Kill, End::Stop][self.random.usize(..4)];
            self.alive(async |world, broker| world.some_life(broker, &mut clients, end).await);
            clients.plain.iter_mut().for_each(Plain::died);
            clients.idempotent.iter_mut().for_each(Idempotent::died);
            clients.transactional.iter_mut().for_each(Transactional::died);
            self.restart(end);
        }
        let segments = self.alive(async |world, broker| world.finish(broker, &mut clients).await)?;
        checker::check(&self.history)?;
        Ok(self.summary(segments))
    }

    /// Starts the broker, in an executor of its own: whatever it was at ends with it.
    fn alive<T>(&mut self, life: impl AsyncFnOnce(&mut World, &Broker) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("an executor starts");
        let done = runtime.block_on(async {
            let store = Store::open(Arc::new(self.storage.clone()), self.config.clone());
            let broker = Broker::start(store.unwrap_or_else(|e| panic!("the log does not open: {e}")));
            life(self, &broker).await
        });
        drop(runtime);
        done
    }

    /// The power is cut, or not, and perhaps again while the log is being opened.
    fn restart(&mut self, end: End) {
        self.restarts += 1;
        match end {
            End::Power => self.storage.crash(),
            End::Kill | End::Stop => self.storage.heal(),
        }
        while end == End::Power && self.random.u8(..4) == 0 {
            self.storage.cut_power_at(self.random.u64(1..20));
            drop(Store::open(Arc::new(self.storage.clone()), self.config.clone()));
            self.storage.crash();
        }
    }

    async fn begin(&mut self, broker: &Broker) {
        let mut settings = BTreeMap::new();
        if self.random.bool() {
            settings.insert("message.timestamp.type".to_owned(), "LogAppendTime".to_owned());
        }
        broker.shared.topics.create(TOPIC, PARTITIONS as u32, settings).expect("a topic is made");
        // The first use of a transactional id makes the topic for it.
        let mut first = Transactional::new("first".into(), false);
        while !first.finish(broker).await {
            broker.partitions().iter().for_each(|log| broker.commit(log));
            yield_now().await;
        }
    }

    async fn some_life(&mut self, broker: &Broker, clients: &mut Clients, end: End) {
        let steps = self.random.usize(20..250);
        let fails_at = if self.random.bool() { self.random.usize(..steps) } else { steps };
        for step in 0..steps {
            clock::SET.set(Some(clock::wall_ms() + self.random.i64(0..3)));
            if step == fails_at {
                self.fault(end);
            }
            match self.random.u8(..100) {
                0..45 => self.press(broker, clients).await,
                45..75 => {
                    let all = broker.partitions();
                    broker.commit(&all[self.random.usize(..all.len())]);
                }
                75..95 => self.fetch(broker).await,
                95 => self.delete(broker).await,
                96 => {
                    let _ = broker.store.clean(clock::wall_ms(), i64::MAX);
                }
                97 => tokio::time::advance(Duration::from_millis(100)).await,
                _ => broker.partitions().iter().for_each(|log| broker.commit(log)),
            }
            for _ in 0..self.random.u8(..4) {
                yield_now().await;
            }
        }
        if end == End::Stop {
            broker.partitions().iter().for_each(|log| broker.commit(log));
            let _ = broker.store.close();
        }
    }

    /// Something of the disk fails now and then, or for good.
    fn fault(&mut self, end: End) {
        let call = [Call::Write, Call::Sync, Call::Open, Call::SyncDir][self.random.usize(..4)];
        match self.random.u8(..3) {
            0 if end == End::Power => self.storage.cut_power_at(self.random.u64(1..12)),
            _ => self.storage.fail(call, self.random.u64(1..12), self.random.u64(1..4), 28),
        }
    }

    async fn press(&mut self, broker: &Broker, clients: &mut Clients) {
        let i = self.random.usize(..2);
        match self.random.u8(..3) {
            0 => clients.plain[i].step(self, broker).await,
            1 => clients.idempotent[i].step(self, broker).await,
            _ => clients.transactional[i].step(self, broker).await,
        }
    }

    /// Reads from anywhere, perhaps from within a batch, perhaps from where nothing is.
    async fn fetch(&mut self, broker: &Broker) {
        let partition = self.random.usize(..PARTITIONS);
        let log = broker.log(partition);
        let (start, end) = (log.log_start_offset(), log.high_watermark());
        let from = self.random.u64(start.saturating_sub(2)..=end + 1);
        let (committed, max_bytes) = (self.random.bool(), self.random.i32(1..600));
        let Some(data) = broker.fetch(partition, from, committed, max_bytes).await else { return };
        if data.error_code == ResponseError::OffsetOutOfRange.code() {
            self.record(Event::OutOfRange { partition, from });
        } else if data.error_code == 0 {
            let fetched = seen(partition, from, committed, &data);
            self.record(Event::Fetched(fetched));
        }
    }

    async fn delete(&mut self, broker: &Broker) {
        let partition = self.random.usize(..PARTITIONS);
        let log = broker.log(partition);
        let before = self.random.u64(log.log_start_offset()..=log.high_watermark());
        self.record(Event::Deleting { partition, before });
        let wanted = DeleteRecordsPartition::default()
            .with_partition_index(partition as i32)
            .with_offset(before as i64);
        let topic = DeleteRecordsTopic::default().with_name(topic_name(TOPIC)).with_partitions(vec![wanted]);
        let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000);
        let asked = broker.ask(&request, 2, |r| {
            let of = &r.topics[0].partitions[0];
            (of.error_code == 0).then_some(of.low_watermark as u64)
        });
        if let Some(start) = asked.await.ok().flatten().flatten() {
            self.record(Event::Deleted { partition, start });
        }
    }

    /// Ends every transaction, and reads everything. Says how many segments there are.
    async fn finish(&mut self, broker: &Broker, clients: &mut Clients) -> Result<usize, Wrong> {
        let mut left: Vec<_> = clients.transactional.iter_mut().collect();
        let all: Vec<_> = (0..PARTITIONS).map(|partition| broker.log(partition)).collect();
        let mut turns = 0;
        while !left.is_empty() || all.iter().any(|log| log.last_stable_offset() < log.high_watermark()) {
            broker.partitions().iter().for_each(|log| broker.commit(log));
            let mut still = Vec::new();
            for client in left {
                if !client.finish(broker).await {
                    still.push(client);
                }
            }
            left = still;
            tokio::time::advance(Duration::from_millis(10)).await;
            turns += 1;
            if turns > ENDING {
                let what = "a transaction is open for ever".to_owned();
                return Err(Wrong { kind: Kind::Uncommitted, what });
            }
        }
        for partition in 0..PARTITIONS {
            let _ = self.read_all(broker, partition, false).await?;
            let end = self.read_all(broker, partition, true).await?;
            self.history.end.push(end);
        }
        Ok(all.iter().map(|log| log.segments().len()).sum())
    }

    async fn read_all(
        &mut self,
        broker: &Broker,
        partition: usize,
        committed: bool,
    ) -> Result<Vec<(u64, Item)>, Wrong> {
        let (mut items, mut from) = (Vec::new(), broker.log(partition).log_start_offset());
        loop {
            let data = broker.fetch(partition, from, committed, 1000).await;
            let Some(data) = data.filter(|data| data.error_code == 0) else {
                let what = format!("partition {partition} cannot be read from offset {from} on");
                return Err(Wrong { kind: Kind::Lost, what });
            };
            let fetched = seen(partition, from, committed, &data);
            let new = fetched.items.iter().filter(|(offset, _)| *offset >= from).copied();
            items.extend(new);
            let (end, next) = (fetched.high_watermark, fetched.items.last().map_or(from, |(o, _)| o + 1));
            self.record(Event::Fetched(fetched));
            if next >= end || next == from {
                return Ok(items);
            }
            from = next;
        }
    }

    fn summary(&self, segments: usize) -> Summary {
        let count = |is: fn(&Event) -> bool| self.history.events.iter().filter(|event| is(event)).count();
        Summary {
            batches: self.history.batches.len(),
            acked: count(|e| matches!(e, Event::Acked { .. })),
            committed: count(|e| matches!(e, Event::Ended { commit: true, .. })),
            aborted: count(|e| matches!(e, Event::Ended { commit: false, .. })),
            fetched: count(|e| matches!(e, Event::Fetched(_))),
            restarts: self.restarts,
            segments,
        }
    }
}

/// What a consumer makes of an answer.
fn seen(partition: usize, from: u64, committed: bool, data: &PartitionData) -> Fetched {
    let mut aborted: Vec<(i64, i64)> =
        data.aborted_transactions.iter().flatten().map(|a| (a.first_offset, a.producer_id.0)).collect();
    aborted.sort_unstable();
    let (mut aborted, mut inside, mut items) = (aborted.into_iter().peekable(), Vec::new(), Vec::new());
    let bytes = data.records.clone().unwrap_or_default();
    for batch in Batches::new(&bytes).map(|batch| batch.expect("what is fetched is whole batches")) {
        let (header, id) = (&batch.header, batch.header.producer_id);
        while let Some((_, id)) = aborted.next_if(|(first, _)| *first <= header.last_offset() as i64) {
            inside.push(id);
        }
        if header.is_control() {
            inside.retain(|other| *other != id);
            items.push((header.base_offset, Item::Control));
            continue;
        }
        let is_aborted = header.is_transactional() && inside.contains(&id);
        for record in batch.records().expect("nothing is compressed") {
            let record = record.expect("a record can be read");
            let value =
                record.value.and_then(|value| value.try_into().ok()).map_or(u64::MAX, u64::from_be_bytes);
            items.push((record.offset, if is_aborted { Item::Aborted(value) } else { Item::Record(value) }));
        }
    }
    Fetched {
        partition,
        from,
        committed,
        start: data.log_start_offset as u64,
        high_watermark: data.high_watermark as u64,
        last_stable: data.last_stable_offset as u64,
        items,
    }
}
