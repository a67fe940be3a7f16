//! Transactions: what is seen of them, what they carry, and who may not end them.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer};
use rdkafka::{Message, Offset};

use crate::kit::{
    PATIENCE, assigned, classic, fresh, list, modern, producer, read, send, take, text, texts, topic, values,
};

crate::checks![
    committed_and_aborted,
    in_many_partitions,
    what_is_open_is_not_seen,
    one_that_is_empty,
    what_was_not_sent_is_dropped,
    offsets_are_part_of_it,
    offsets_of_a_consumer_group,
    offsets_of_who_left_are_refused,
    open_offsets_are_waited_for,
    another_fences,
    another_goes_on,
    it_runs_out_of_time,
    it_takes_too_long_a_time,
    only_in_order,
];

/// A producer that has its transactional id to itself.
fn transactional(id: &str) -> BaseProducer {
    let producer: BaseProducer = producer(&[("transactional.id", id), ("transaction.timeout.ms", "30000")]);
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

fn write(producer: &BaseProducer, topic: &str, partition: i32, values: &[String]) {
    for value in values {
        let record = BaseRecord::<(), _>::to(topic).partition(partition).payload(value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// What is seen of a partition by one who waits for decisions.
fn committed(topic: &str, partition: i32) -> Vec<String> {
    let messages = read(topic, partition, &[("isolation.level", "read_committed")]);
    messages.iter().map(|m| text(m).to_owned()).collect()
}

fn all(topic: &str, partition: i32) -> usize {
    read(topic, partition, &[("isolation.level", "read_uncommitted")]).len()
}

fn code(error: &KafkaError) -> Code {
    error.rdkafka_error_code().expect("a code")
}

async fn committed_and_aborted() {
    let name = topic(1).await;
    let producer = transactional(&fresh("tx"));
    let mut wanted = Vec::new();
    for round in 0..9 {
        let values: Vec<_> = (0..10).map(|i| format!("{round} {i}")).collect();
        producer.begin_transaction().unwrap();
        write(&producer, &name, 0, &values);
        if round % 3 == 1 {
            producer.abort_transaction(PATIENCE).unwrap();
        } else {
            producer.commit_transaction(PATIENCE).unwrap();
            wanted.extend(values);
        }
    }
    assert_eq!(committed(&name, 0), wanted);
    assert_eq!(all(&name, 0), 90);
    // Every end of a transaction is a record of its own.
    assert_eq!(producer.client().fetch_watermarks(&name, 0, PATIENCE).unwrap(), (0, 99));
}

async fn in_many_partitions() {
    let names = [topic(3).await, topic(3).await];
    let producer = transactional(&fresh("tx"));
    for round in 0..4 {
        producer.begin_transaction().unwrap();
        for name in &names {
            for partition in 0..3 {
                write(&producer, name, partition, &[format!("{round}")]);
            }
        }
        if round % 2 == 0 {
            producer.commit_transaction(PATIENCE).unwrap();
        } else {
            producer.abort_transaction(PATIENCE).unwrap();
        }
    }
    for name in &names {
        for partition in 0..3 {
            assert_eq!(committed(name, partition), ["0", "2"]);
        }
    }
}

async fn what_is_open_is_not_seen() {
    let name = topic(1).await;
    send(&name, 0, &["before".into()]).await;
    let producer = transactional(&fresh("tx"));
    producer.begin_transaction().unwrap();
    write(&producer, &name, 0, &["inside".into()]);
    send(&name, 0, &["behind".into()]).await;
    let settings = [("isolation.level", "read_committed")];
    let waiting = assigned(&name, 0, Offset::Beginning, &settings);
    assert_eq!(texts(&take(&waiting, 1)), ["before"]);
    assert!(waiting.poll(Duration::from_millis(400)).is_none());
    assert_eq!(all(&name, 0), 3);
    // Where it ends for those who wait, and for the others.
    let uncommitted = assigned(&name, 0, Offset::End, &[("isolation.level", "read_uncommitted")]);
    assert_eq!(waiting.fetch_watermarks(&name, 0, PATIENCE).unwrap(), (0, 1));
    assert_eq!(uncommitted.fetch_watermarks(&name, 0, PATIENCE).unwrap(), (0, 3));
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(texts(&take(&waiting, 2)), ["inside", "behind"]);
    assert_eq!(waiting.fetch_watermarks(&name, 0, PATIENCE).unwrap(), (0, 4));
}

async fn one_that_is_empty() {
    let name = topic(1).await;
    let producer = transactional(&fresh("tx"));
    for _ in 0..3 {
        producer.begin_transaction().unwrap();
        producer.commit_transaction(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        producer.abort_transaction(PATIENCE).unwrap();
    }
    producer.begin_transaction().unwrap();
    write(&producer, &name, 0, &["v".into()]);
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(committed(&name, 0), ["v"]);
}

async fn what_was_not_sent_is_dropped() {
    let name = topic(1).await;
    let id = fresh("tx");
    let producer: FutureProducer = producer(&[("transactional.id", &id), ("linger.ms", "5000")]);
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    let record = |value| FutureRecord::<(), _>::to(&name).partition(0).payload(value);
    let dropped = producer.send_result(record("dropped")).map_err(|(error, _)| error).unwrap();
    producer.abort_transaction(PATIENCE).unwrap();
    let (error, _) = dropped.await.unwrap().unwrap_err();
    assert_eq!(code(&error), Code::PurgeQueue);
    producer.begin_transaction().unwrap();
    let kept = producer.send_result(record("kept")).map_err(|(error, _)| error).unwrap();
    // A commit does not wait for the time to linger.
    producer.commit_transaction(PATIENCE).unwrap();
    kept.await.unwrap().unwrap();
    assert_eq!(committed(&name, 0), ["kept"]);
}

/// Takes ten at a time from a topic to another, each time as a new process, and every other time in vain.
async fn copies(member: impl Fn(&str) -> BaseConsumer) {
    let (source, target, group, id) = (topic(1).await, topic(1).await, fresh("g"), fresh("tx"));
    let values = values(40);
    send(&source, 0, &values).await;
    let mut done = 0;
    for round in 0..8 {
        let consumer = member(&group);
        consumer.subscribe(&[&source]).unwrap();
        let producer = transactional(&id);
        let messages = take(&consumer, 10);
        assert_eq!(messages[0].offset(), done);
        producer.begin_transaction().unwrap();
        let copies: Vec<_> = messages.iter().map(|m| text(m).to_owned()).collect();
        write(&producer, &target, 0, &copies);
        let next = list(&source, 0, Offset::Offset(done + 10));
        let member = consumer.group_metadata().unwrap();
        producer.send_offsets_to_transaction(&next, &member, PATIENCE).unwrap();
        if round % 2 == 0 {
            producer.abort_transaction(PATIENCE).unwrap();
        } else {
            producer.commit_transaction(PATIENCE).unwrap();
            done += 10;
        }
        let stored = consumer.committed_offsets(list(&source, 0, Offset::Invalid), PATIENCE).unwrap();
        let wanted = if done == 0 { Offset::Invalid } else { Offset::Offset(done) };
        assert_eq!(stored.elements()[0].offset(), wanted);
    }
    assert_eq!(committed(&target, 0), values);
}

async fn offsets_are_part_of_it() {
    copies(|group| classic(group, &[]).create().unwrap()).await;
}

async fn offsets_of_a_consumer_group() {
    copies(|group| modern(group, &[]).create().unwrap()).await;
}

async fn offsets_of_who_left_are_refused() {
    let (source, group) = (topic(1).await, fresh("g"));
    send(&source, 0, &values(1)).await;
    for modern_group in [false, true] {
        let group = format!("{group}-{modern_group}");
        let config = if modern_group { modern(&group, &[]) } else { classic(&group, &[]) };
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&[&source]).unwrap();
        take(&consumer, 1);
        let gone = consumer.group_metadata().unwrap();
        drop(consumer);
        let producer = transactional(&fresh("tx"));
        producer.begin_transaction().unwrap();
        let next = list(&source, 0, Offset::Offset(1));
        let refused = producer.send_offsets_to_transaction(&next, &gone, PATIENCE).unwrap_err();
        let KafkaError::Transaction(error) = &refused else { panic!("{refused}") };
        assert!(error.txn_requires_abort() && !error.is_fatal(), "{refused}");
        producer.abort_transaction(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        producer.commit_transaction(PATIENCE).unwrap();
    }
}

async fn open_offsets_are_waited_for() {
    let (source, group) = (topic(1).await, fresh("g"));
    send(&source, 0, &values(10)).await;
    let consumer: BaseConsumer = classic(&group, &[]).create().unwrap();
    consumer.subscribe(&[&source]).unwrap();
    take(&consumer, 10);
    consumer.commit(&list(&source, 0, Offset::Offset(3)), CommitMode::Sync).unwrap();
    let producer = transactional(&fresh("tx"));
    producer.begin_transaction().unwrap();
    let next = list(&source, 0, Offset::Offset(7));
    producer.send_offsets_to_transaction(&next, &consumer.group_metadata().unwrap(), PATIENCE).unwrap();
    // A member asks for stable offsets, and there is none until it is decided.
    let asked = || consumer.committed_offsets(list(&source, 0, Offset::Invalid), Duration::from_secs(1));
    let error = asked().unwrap_err();
    assert!(
        matches!(code(&error), Code::UnstableOffsetCommit | Code::OperationTimedOut | Code::RequestTimedOut),
        "{error}"
    );
    producer.commit_transaction(PATIENCE).unwrap();
    let stable = consumer.committed_offsets(list(&source, 0, Offset::Invalid), PATIENCE).unwrap();
    assert_eq!(stable.elements()[0].offset(), Offset::Offset(7));
}

async fn another_fences() {
    let (name, id) = (topic(1).await, fresh("tx"));
    let old = transactional(&id);
    old.begin_transaction().unwrap();
    write(&old, &name, 0, &["zombie".into()]);
    let new = transactional(&id);
    let refused = old.commit_transaction(PATIENCE).unwrap_err();
    let KafkaError::Transaction(error) = &refused else { panic!("{refused}") };
    assert!(error.is_fatal() && matches!(error.code(), Code::Fenced | Code::ProducerFenced), "{refused}");
    assert!(old.client().fatal_error().is_some());
    new.begin_transaction().unwrap();
    write(&new, &name, 0, &["new".into()]);
    new.commit_transaction(PATIENCE).unwrap();
    assert_eq!(committed(&name, 0), ["new"]);
}

async fn another_goes_on() {
    let (name, id) = (topic(1).await, fresh("tx"));
    for round in 0..4 {
        let producer = transactional(&id);
        producer.begin_transaction().unwrap();
        write(&producer, &name, 0, &[format!("{round}")]);
        // Every other process ends before its transaction does.
        if round % 2 == 1 {
            producer.commit_transaction(PATIENCE).unwrap();
        }
    }
    assert_eq!(committed(&name, 0), ["1", "3"]);
}

async fn it_runs_out_of_time() {
    let (name, id) = (topic(1).await, fresh("tx"));
    let producer: BaseProducer = producer(&[
        ("transactional.id", &id),
        ("transaction.timeout.ms", "1000"),
        ("message.timeout.ms", "1000"),
    ]);
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    write(&producer, &name, 0, &["late".into()]);
    send(&name, 0, &["after".into()]).await;
    // It is seen as soon as the broker has given up what stands before it.
    let waiting = assigned(&name, 0, Offset::Beginning, &[("isolation.level", "read_committed")]);
    assert_eq!(texts(&take(&waiting, 1)), ["after"]);
    let refused = producer.commit_transaction(PATIENCE).unwrap_err();
    let KafkaError::Transaction(error) = &refused else { panic!("{refused}") };
    assert!(error.is_fatal() || error.txn_requires_abort(), "{refused}");
}

async fn it_takes_too_long_a_time() {
    // More than transaction.max.timeout.ms, which is 15 minutes.
    let settings = [("transactional.id", &*fresh("tx")), ("transaction.timeout.ms", "900001")];
    let producer: BaseProducer = producer(&settings);
    let refused = producer.init_transactions(PATIENCE).unwrap_err();
    assert_eq!(code(&refused), Code::InvalidTransactionTimeout);
}

async fn only_in_order() {
    let id = fresh("tx");
    let producer: FutureProducer = producer(&[("transactional.id", &id)]);
    assert_eq!(code(&producer.begin_transaction().unwrap_err()), Code::State);
    producer.init_transactions(PATIENCE).unwrap();
    assert_eq!(code(&producer.commit_transaction(PATIENCE).unwrap_err()), Code::State);
    producer.begin_transaction().unwrap();
    assert_eq!(code(&producer.begin_transaction().unwrap_err()), Code::State);
    producer.abort_transaction(PATIENCE).unwrap();
}
