//! The producers: what they send, how it is acknowledged, and what is refused.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, FutureProducer, FutureRecord, Partitioner, Producer,
    ProducerContext, PurgeConfig, ThreadedProducer,
};
use rdkafka::{Message, Offset, Statistics, Timestamp};

use crate::kit::{
    PATIENCE, Settings, assigned, config, fresh, now, producer, read, send, send_by, take, text, texts,
    topic, topic_with, until, values,
};

crate::checks![
    compression_none,
    compression_gzip,
    compression_snappy,
    compression_lz4,
    compression_zstd,
    compression_by_the_topic,
    acks_none,
    acks_one,
    acks_all,
    an_idempotent_producer_keeps_order,
    keys_headers_and_nulls,
    timestamps,
    partitioners_agree_with_java,
    a_partitioner_of_ones_own,
    deliveries_are_called_back,
    what_is_purged_is_not_sent,
    large_records,
    too_large_is_refused,
    as_many_replicas_as_there_are,
    no_key_in_a_compacted_topic_is_refused,
    a_partition_that_is_not_there,
    a_topic_that_is_not_there,
    topics_are_made_automatically,
    statistics,
];

async fn compressed(codec: &str) {
    let name = topic(1).await;
    let all: Vec<_> = (0..500).map(|i| format!("value {i} ").repeat(20)).collect();
    let producer: FutureProducer = producer(&[("compression.type", codec), ("linger.ms", "20")]);
    send_by(&producer, &name, 0, &all).await;
    assert_eq!(texts(&read(&name, 0, &[("check.crcs", "true")])), all);
    // From the middle of a batch.
    assert_eq!(text(&take(&assigned(&name, 0, Offset::Offset(257), &[]), 1)[0]), all[257]);
}

async fn compression_none() {
    compressed("none").await;
}

async fn compression_gzip() {
    compressed("gzip").await;
}

async fn compression_snappy() {
    compressed("snappy").await;
}

async fn compression_lz4() {
    compressed("lz4").await;
}

async fn compression_zstd() {
    compressed("zstd").await;
}

async fn compression_by_the_topic() {
    for codec in ["gzip", "zstd", "uncompressed"] {
        let name = topic_with(1, &[("compression.type", codec)]).await;
        let all = values(50);
        send_by(&producer(&[("compression.type", "lz4")]), &name, 0, &all).await;
        assert_eq!(texts(&read(&name, 0, &[("check.crcs", "true")])), all);
    }
}

async fn acknowledged(acks: &str) {
    let name = topic(1).await;
    let all = values(20);
    let sent = send_by(&producer(&[("acks", acks)]), &name, 0, &all).await;
    // Without an answer nobody knows the offsets.
    if acks != "0" {
        let mut offsets: Vec<_> = sent.iter().map(|delivery| delivery.offset).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, (0..20).collect::<Vec<_>>());
    }
    let consumer = assigned(&name, 0, Offset::Beginning, &[]);
    assert_eq!(texts(&take(&consumer, 20)), all);
}

async fn acks_none() {
    acknowledged("0").await;
}

async fn acks_one() {
    acknowledged("1").await;
}

async fn acks_all() {
    acknowledged("all").await;
}

async fn an_idempotent_producer_keeps_order() {
    let name = topic(1).await;
    let all = values(5000);
    let settings: Settings<'_> = &[("enable.idempotence", "true"), ("batch.num.messages", "50")];
    let producer: ThreadedProducer<_> = producer(settings);
    for value in &all {
        producer.send(BaseRecord::<(), _>::to(&name).payload(value)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    assert_eq!(producer.in_flight_count(), 0);
    let messages = read(&name, 0, &[]);
    assert_eq!(texts(&messages), all);
    assert!(messages.iter().map(Message::offset).eq(0..5000));
}

async fn keys_headers_and_nulls() {
    let name = topic(1).await;
    let producer: FutureProducer = producer(&[]);
    let pairs: [(&str, Option<&[u8]>); 4] =
        [("a", Some(b"1")), ("a", Some(b"2")), ("empty", Some(b"")), ("none", None)];
    let headers =
        pairs.iter().fold(OwnedHeaders::new(), |all, &(key, value)| all.insert(Header { key, value }));
    let record = FutureRecord::to(&name).key("k").payload("v").headers(headers);
    producer.send(record, PATIENCE).await.unwrap();
    producer.send(FutureRecord::<_, str>::to(&name).key("gone"), PATIENCE).await.unwrap();
    producer.send(FutureRecord::<str, str>::to(&name).payload(""), PATIENCE).await.unwrap();
    producer.send(FutureRecord::to(&name).key("").payload("v"), PATIENCE).await.unwrap();

    let messages = read(&name, 0, &[]);
    let shape: Vec<_> = messages.iter().map(|m| (m.key(), m.payload())).collect();
    let v: Option<&[u8]> = Some(b"v");
    assert_eq!(shape, [(Some(&b"k"[..]), v), (Some(b"gone"), None), (None, Some(b"")), (Some(b""), v)]);
    let got: Vec<_> = messages[0].headers().unwrap().iter().collect();
    assert_eq!(got, pairs.map(|(key, value)| Header { key, value }));
    assert!(messages[1].headers().is_none_or(|headers| headers.count() == 0));
}

async fn timestamps() {
    let by_client = topic(1).await;
    let by_log = topic_with(1, &[("message.timestamp.type", "LogAppendTime")]).await;
    let producer: FutureProducer = producer(&[]);
    let before = now();
    for name in [&by_client, &by_log] {
        let record = FutureRecord::<(), _>::to(name).payload("v").timestamp(1_700_000_000_123);
        let sent = producer.send(record, PATIENCE).await.unwrap();
        if name == &by_client {
            assert_eq!(sent.timestamp, Timestamp::CreateTime(1_700_000_000_123));
        }
    }
    assert_eq!(read(&by_client, 0, &[])[0].timestamp(), Timestamp::CreateTime(1_700_000_000_123));
    let Timestamp::LogAppendTime(at) = read(&by_log, 0, &[])[0].timestamp() else { panic!("not the log's") };
    assert!((before - 1000..=now() + 1000).contains(&at), "{at}");
    // One from the far future is refused.
    let name = topic_with(1, &[("message.timestamp.after.max.ms", "1000")]).await;
    let record = FutureRecord::<(), _>::to(&name).payload("v").timestamp(now() + 3_600_000);
    let (error, _) = producer.send(record, PATIENCE).await.unwrap_err();
    assert_eq!(error, KafkaError::MessageProduction(Code::InvalidTimestamp));
}

/// Keys and what Java's client makes of them: Kafka's own examples of murmur2.
const MURMUR2: [(&str, i32); 6] = [
    ("21", -973_932_308),
    ("foobar", -790_332_482),
    ("a-little-bit-long-string", -985_981_536),
    ("a-little-bit-longer-string", -1_486_304_829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ("abc", 479_470_107),
];

async fn partitioners_agree_with_java() {
    let name = topic(7).await;
    for partitioner in ["murmur2", "murmur2_random"] {
        let producer: FutureProducer = producer(&[("partitioner", partitioner)]);
        for (key, hash) in MURMUR2 {
            let sent = producer.send(FutureRecord::to(&name).key(key).payload("v"), PATIENCE).await.unwrap();
            assert_eq!(sent.partition, (hash & i32::MAX) % 7, "{key} by {partitioner}");
        }
    }
    // The others keep a key together, and spread what has none.
    for partitioner in ["consistent_random", "fnv1a_random", "random"] {
        let settings = [("partitioner", partitioner), ("sticky.partitioning.linger.ms", "0")];
        let producer: FutureProducer = producer(&settings);
        let mut alone = HashSet::new();
        let mut together = HashSet::new();
        for _ in 0..50 {
            let keyless = FutureRecord::<(), _>::to(&name).payload("v");
            alone.insert(producer.send(keyless, PATIENCE).await.unwrap().partition);
            let keyed = FutureRecord::to(&name).key("k").payload("v");
            together.insert(producer.send(keyed, PATIENCE).await.unwrap().partition);
        }
        assert!(
            alone.len() > 1 && (partitioner == "random" || together.len() == 1),
            "{partitioner}: {together:?}"
        );
    }
}

/// Counts deliveries, and sends keys to the partition that they name.
#[derive(Default)]
struct Deliveries {
    done: Mutex<Vec<(usize, i32, i64)>>,
    failed: Mutex<Vec<KafkaError>>,
    partitioner: ByKey,
}

#[derive(Default)]
struct ByKey;

impl Partitioner for ByKey {
    fn partition(&self, _: &str, key: Option<&[u8]>, count: i32, _: impl Fn(i32) -> bool) -> i32 {
        let wanted = key.and_then(|k| std::str::from_utf8(k).ok()).and_then(|k| k.parse().ok()).unwrap_or(0);
        if wanted < count { wanted } else { 0 }
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext<ByKey> for Deliveries {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Box<usize>) {
        match result {
            Ok(message) => self.done.lock().unwrap().push((*number, message.partition(), message.offset())),
            Err((error, _)) => self.failed.lock().unwrap().push(error.clone()),
        }
    }

    fn get_custom_partitioner(&self) -> Option<&ByKey> {
        Some(&self.partitioner)
    }
}

fn deliveries<P: FromClientConfigAndContext<Deliveries>>(linger: &str) -> P {
    // Without any setting of topics the crate has nowhere to put the partitioner, and crashes.
    config(&[("linger.ms", linger), ("acks", "all")]).create_with_context(Deliveries::default()).unwrap()
}

async fn a_partitioner_of_ones_own() {
    let name = topic(4).await;
    let producer: ThreadedProducer<Deliveries, ByKey> = deliveries("0");
    for number in 0..8 {
        let key = (number % 4).to_string();
        let record = BaseRecord::with_opaque_to(&name, Box::new(number)).key(&key).payload("v");
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let mut done = producer.context().done.lock().unwrap().clone();
    done.sort_unstable();
    assert_eq!(
        done,
        [(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 0, 1), (5, 1, 1), (6, 2, 1), (7, 3, 1)]
    );
}

async fn deliveries_are_called_back() {
    let name = topic(1).await;
    let producer: BaseProducer<Deliveries, ByKey> = deliveries("5");
    for number in 0..100 {
        let record = BaseRecord::with_opaque_to(&name, Box::new(number)).key("0").payload("v");
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    until("all are called back", || {
        producer.poll(Duration::from_millis(50));
        producer.context().done.lock().unwrap().len() == 100
    });
    let done = producer.context().done.lock().unwrap();
    assert!(
        done.iter()
            .enumerate()
            .all(|(i, &(number, _, offset))| number == i && usize::try_from(offset) == Ok(i))
    );
}

async fn what_is_purged_is_not_sent() {
    let name = topic(1).await;
    let producer: BaseProducer<Deliveries, ByKey> = deliveries("10000");
    for number in 0..10 {
        let record = BaseRecord::with_opaque_to(&name, Box::new(number)).partition(0).key("0").payload("v");
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.purge(PurgeConfig::default().queue());
    until("all are given back", || {
        producer.poll(Duration::from_millis(50));
        producer.context().failed.lock().unwrap().len() == 10
    });
    let failed = producer.context().failed.lock().unwrap();
    assert!(
        failed.iter().all(|error| error == &KafkaError::MessageProduction(Code::PurgeQueue)),
        "{failed:?}"
    );
    assert!(read(&name, 0, &[]).is_empty());
}

async fn large_records() {
    let name = topic_with(1, &[("max.message.bytes", "8000000")]).await;
    let all: Vec<_> = (0..3).map(|i| i.to_string().repeat(3_000_000)).collect();
    send_by(&producer(&[("message.max.bytes", "8000000")]), &name, 0, &all).await;
    // A consumer that wants little at a time still gets on.
    let messages = read(&name, 0, &[("fetch.message.max.bytes", "1000")]);
    assert!(texts(&messages) == all);
}

async fn too_large_is_refused() {
    let name = topic_with(1, &[("max.message.bytes", "1000")]).await;
    for idempotent in ["false", "true"] {
        let producer: FutureProducer = producer(&[("enable.idempotence", idempotent)]);
        let long = "x".repeat(5000);
        let (error, given_back) =
            producer.send(FutureRecord::<(), _>::to(&name).payload(&long), PATIENCE).await.unwrap_err();
        assert_eq!(error, KafkaError::MessageProduction(Code::MessageSizeTooLarge));
        assert_eq!(text(&given_back), long);
    }
    // The client refuses by itself what it may not send to anybody.
    let producer: FutureProducer = producer(&[("message.max.bytes", "2000")]);
    let (error, _) = producer
        .send(FutureRecord::<(), _>::to(&name).payload(&"x".repeat(5000)), PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(error, KafkaError::MessageProduction(Code::MessageSizeTooLarge));
    send(&name, 0, &values(1)).await;
    assert_eq!(read(&name, 0, &[]).len(), 1);
}

/// More replicas than there are cannot be asked for: all that there are is enough (KIP-966).
async fn as_many_replicas_as_there_are() {
    let name = topic_with(1, &[("min.insync.replicas", "2")]).await;
    send_by(&producer(&[("acks", "all"), ("retries", "0")]), &name, 0, &values(1)).await;
    assert_eq!(read(&name, 0, &[]).len(), 1);
}

async fn no_key_in_a_compacted_topic_is_refused() {
    let name = topic_with(1, &[("cleanup.policy", "compact")]).await;
    let producer: FutureProducer = producer(&[]);
    let (error, _) =
        producer.send(FutureRecord::<(), _>::to(&name).payload("v"), PATIENCE).await.unwrap_err();
    assert_eq!(error, KafkaError::MessageProduction(Code::InvalidRecord));
    producer.send(FutureRecord::to(&name).key("k").payload("v"), PATIENCE).await.unwrap();
}

async fn a_partition_that_is_not_there() {
    let name = topic(2).await;
    let producer: FutureProducer = producer(&[]);
    let record = FutureRecord::<(), _>::to(&name).payload("v").partition(9);
    let (error, _) = producer.send(record, PATIENCE).await.unwrap_err();
    assert_eq!(error, KafkaError::MessageProduction(Code::UnknownPartition));
}

async fn a_topic_that_is_not_there() {
    let settings = [("allow.auto.create.topics", "false"), ("topic.metadata.propagation.max.ms", "500")];
    let producer: FutureProducer = producer(&settings);
    let record = FutureRecord::<(), _>::to("nowhere-rd").payload("v");
    let (error, _) = producer.send(record, PATIENCE).await.unwrap_err();
    let KafkaError::MessageProduction(code) = error else { panic!("{error}") };
    assert!(matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition), "{code}");
}

async fn topics_are_made_automatically() {
    let name = fresh("auto");
    let producer: FutureProducer = producer(&[]);
    let sent = (0..4).map(|i| FutureRecord::<(), _>::to(&name).payload("v").partition(i % 2));
    for delivery in join_all(sent.map(|record| producer.send(record, PATIENCE))).await {
        delivery.unwrap();
    }
    // As many partitions as the broker's settings say.
    let metadata = producer.client().fetch_metadata(Some(&name), PATIENCE).unwrap();
    assert_eq!(metadata.topics()[0].partitions().len(), 2);
}

/// Keeps the latest statistics.
#[derive(Default)]
struct Latest(Mutex<Option<Statistics>>);

impl ClientContext for Latest {
    fn stats(&self, statistics: Statistics) {
        *self.0.lock().unwrap() = Some(statistics);
    }
}

impl ProducerContext for Latest {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

async fn statistics() {
    let name = topic(1).await;
    let settings = [("statistics.interval.ms", "100"), ("linger.ms", "0")];
    let producer: ThreadedProducer<Latest> =
        config(&settings).create_with_context(Latest::default()).unwrap();
    for value in values(10) {
        producer.send(BaseRecord::<(), _>::to(&name).payload(&value)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    until("what was sent is counted", || {
        let latest = producer.context().0.lock().unwrap();
        let Some(statistics) = &*latest else { return false };
        let topic = statistics.topics.get(&name);
        let sent = topic.and_then(|t| t.partitions.get(&0)).map(|p| p.txmsgs);
        let up = statistics.brokers.values().any(|b| b.nodeid >= 0 && b.state == "UP" && b.rxerrs == 0);
        sent == Some(10) && up
    });
}
