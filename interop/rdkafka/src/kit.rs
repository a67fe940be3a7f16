//! What the checks share: clients, names that nobody else uses, sending and taking.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedMessage;
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

/// How long anything may take that is to succeed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Settings beside those that every client here has.
pub(crate) type Settings<'a> = &'a [(&'a str, &'a str)];

/// Milliseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(since.as_millis()).expect("milliseconds fit")
}

/// A name that no other check uses.
pub(crate) fn fresh(prefix: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}-{}-{}-{}", std::process::id(), now(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Where the broker is, and what else is said.
pub(crate) fn config(settings: Settings<'_>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", std::env::args().nth(1).unwrap_or("127.0.0.1:9092".into()));
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config
}

pub(crate) fn admin() -> AdminClient<DefaultClientContext> {
    config(&[]).create().unwrap()
}

/// Makes a topic.
pub(crate) async fn topic_with(partitions: i32, settings: Settings<'_>) -> String {
    let name = fresh("rd");
    let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for (setting, value) in settings {
        topic = topic.set(setting, value);
    }
    let made = admin().create_topics(&[topic], &AdminOptions::new()).await.unwrap();
    assert_eq!(made, [Ok(name.clone())]);
    name
}

pub(crate) async fn topic(partitions: i32) -> String {
    topic_with(partitions, &[]).await
}

pub(crate) fn producer<P: FromClientConfig>(settings: Settings<'_>) -> P {
    let mut all = config(&[("linger.ms", "0")]);
    all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    all.create().unwrap()
}

/// The settings of a member of a group with the classic protocol, in which clients assign.
pub(crate) fn classic(group: &str, settings: Settings<'_>) -> ClientConfig {
    let mut all = config(&[
        ("group.id", group),
        ("auto.offset.reset", "earliest"),
        ("enable.auto.commit", "false"),
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "300"),
        ("fetch.wait.max.ms", "100"),
    ]);
    all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    all
}

/// Those of a member of a group in which the broker assigns (KIP-848), and sets the times.
pub(crate) fn modern(group: &str, settings: Settings<'_>) -> ClientConfig {
    let mut all = config(&[
        ("group.id", group),
        ("group.protocol", "consumer"),
        ("auto.offset.reset", "earliest"),
        ("enable.auto.commit", "false"),
        ("fetch.wait.max.ms", "100"),
    ]);
    all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    all
}

/// A consumer of one partition from an offset on.
pub(crate) fn assigned(topic: &str, partition: i32, offset: Offset, settings: Settings<'_>) -> BaseConsumer {
    let consumer: BaseConsumer = classic(&fresh("g"), settings).create().unwrap();
    consumer.assign(&list(topic, partition, offset)).unwrap();
    consumer
}

pub(crate) fn list(topic: &str, partition: i32, offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, offset).unwrap();
    list
}

/// Sends values to a partition, all at once, and waits until all are acknowledged.
pub(crate) async fn send_by(
    producer: &FutureProducer,
    topic: &str,
    partition: i32,
    values: &[String],
) -> Vec<Delivery> {
    let records =
        values.iter().map(|value| FutureRecord::<str, _>::to(topic).partition(partition).payload(value));
    let sent = join_all(records.map(|record| producer.send(record, PATIENCE))).await;
    sent.into_iter().map(|delivery| delivery.unwrap()).collect()
}

pub(crate) async fn send(topic: &str, partition: i32, values: &[String]) -> Vec<Delivery> {
    send_by(&producer(&[]), topic, partition, values).await
}

/// `count` different values.
pub(crate) fn values(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("value {i}")).collect()
}

pub(crate) fn text(message: &OwnedMessage) -> &str {
    std::str::from_utf8(message.payload().unwrap_or_default()).unwrap()
}

pub(crate) fn texts(messages: &[OwnedMessage]) -> Vec<&str> {
    messages.iter().map(text).collect()
}

/// Polls until there are so many messages.
pub(crate) fn take<C: ConsumerContext>(consumer: &BaseConsumer<C>, count: usize) -> Vec<OwnedMessage> {
    let (mut messages, since) = (Vec::new(), Instant::now());
    while messages.len() < count {
        assert!(since.elapsed() < PATIENCE, "{} of {count} came", messages.len());
        if let Some(message) = consumer.poll(Duration::from_millis(200)) {
            messages.push(message.unwrap().detach());
        }
    }
    messages
}

/// Reads a partition to its end, as it is seen with the settings.
pub(crate) fn read(topic: &str, partition: i32, settings: Settings<'_>) -> Vec<OwnedMessage> {
    let all: Vec<_> = settings.iter().copied().chain([("enable.partition.eof", "true")]).collect();
    let consumer = assigned(topic, partition, Offset::Beginning, &all);
    let mut messages = Vec::new();
    loop {
        match consumer.poll(PATIENCE).expect("the end of the partition") {
            Ok(message) => messages.push(message.detach()),
            Err(KafkaError::PartitionEOF(_)) => return messages,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Tries until it holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < 2 * PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
