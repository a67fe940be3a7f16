//! Reading without a group: positions, times, watermarks, pauses, and what goes wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message, Offset, Statistics, TopicPartitionList};

use crate::kit::{
    PATIENCE, assigned, classic, fresh, list, now, producer, read, send, send_by, take, text, texts, topic,
    until, values,
};

crate::checks![
    a_stream,
    a_stream_ends_with_its_partition,
    two_streams_of_one_consumer,
    seeking,
    seeking_in_many_partitions,
    from_the_end_and_the_tail,
    what_is_assigned_changes,
    pausing_and_resuming,
    offsets_by_time,
    watermarks,
    positions,
    an_offset_out_of_range,
    a_long_poll_wakes,
    what_nobody_sent_does_not_come,
    small_fetches_of_large_batches,
    many_partitions_at_once,
    a_topic_that_is_not_there,
    statistics,
];

/// Polls until the end of the partition is reached, where nothing is left to come.
fn until_the_end(consumer: &BaseConsumer) {
    let end = consumer.poll(PATIENCE).expect("the end of the partition").err();
    assert_eq!(end, Some(KafkaError::PartitionEOF(0)));
}

const WITH_ENDS: (&str, &str) = ("enable.partition.eof", "true");

async fn a_stream() {
    let name = topic(1).await;
    let consumer: StreamConsumer = classic(&fresh("g"), &[]).create().unwrap();
    consumer.assign(&list(&name, 0, Offset::Beginning)).unwrap();
    let all = values(300);
    send(&name, 0, &all[..200]).await;
    let first: Vec<_> = consumer.stream().take(200).map(|m| m.unwrap().detach()).collect().await;
    assert_eq!(texts(&first), all[..200]);
    // What comes later comes to one who waits.
    let rest = consumer.stream().take(100).map(|m| m.unwrap().detach()).collect::<Vec<_>>();
    let (rest, _) = join(rest, send(&name, 0, &all[200..])).await;
    assert_eq!(texts(&rest), all[200..]);
}

async fn a_stream_ends_with_its_partition() {
    let name = topic(1).await;
    send(&name, 0, &values(3)).await;
    let consumer: StreamConsumer =
        classic(&fresh("g"), &[("enable.partition.eof", "true")]).create().unwrap();
    consumer.assign(&list(&name, 0, Offset::Beginning)).unwrap();
    for offset in 0..3 {
        assert_eq!(consumer.recv().await.unwrap().offset(), offset);
    }
    assert_eq!(consumer.recv().await.unwrap_err(), KafkaError::PartitionEOF(0));
    send(&name, 0, &values(1)).await;
    assert_eq!(consumer.recv().await.unwrap().offset(), 3);
    assert_eq!(consumer.recv().await.unwrap_err(), KafkaError::PartitionEOF(0));
}

async fn two_streams_of_one_consumer() {
    let name = topic(2).await;
    let all = values(50);
    send(&name, 0, &all).await;
    send(&name, 1, &all).await;
    let consumer: Arc<StreamConsumer> = Arc::new(classic(&fresh("g"), &[]).create().unwrap());
    let mut both = list(&name, 0, Offset::Beginning);
    both.add_partition_offset(&name, 1, Offset::Beginning).unwrap();
    consumer.assign(&both).unwrap();
    let one = consumer.split_partition_queue(&name, 1).unwrap();
    let zero: Vec<_> = consumer.stream().take(50).map(|m| m.unwrap().partition()).collect().await;
    let one: Vec<_> = one.stream().take(50).map(|m| m.unwrap().partition()).collect().await;
    assert_eq!((zero, one), (vec![0; 50], vec![1; 50]));
}

async fn seeking() {
    let name = topic(1).await;
    send(&name, 0, &values(100)).await;
    let consumer = assigned(&name, 0, Offset::Beginning, &[]);
    take(&consumer, 100);
    for (to, offset) in [(Offset::Offset(57), 57), (Offset::Beginning, 0), (Offset::Offset(99), 99)] {
        consumer.seek(&name, 0, to, PATIENCE).unwrap();
        assert_eq!(take(&consumer, 1)[0].offset(), offset);
    }
    let consumer = assigned(&name, 0, Offset::Offset(99), &[WITH_ENDS]);
    take(&consumer, 1);
    until_the_end(&consumer);
    consumer.seek(&name, 0, Offset::End, PATIENCE).unwrap();
    until_the_end(&consumer);
    send(&name, 0, &values(1)).await;
    assert_eq!(take(&consumer, 1)[0].offset(), 100);
}

async fn seeking_in_many_partitions() {
    let name = topic(3).await;
    let mut all = TopicPartitionList::new();
    for partition in 0..3 {
        send(&name, partition, &values(10)).await;
        all.add_partition_offset(&name, partition, Offset::Beginning).unwrap();
    }
    let consumer: BaseConsumer = classic(&fresh("g"), &[]).create().unwrap();
    consumer.assign(&all).unwrap();
    take(&consumer, 30);
    all.set_all_offsets(Offset::Offset(8)).unwrap();
    let sought = consumer.seek_partitions(all, PATIENCE).unwrap();
    assert!(sought.elements().iter().all(|e| e.error().is_ok()));
    let mut got: Vec<_> = take(&consumer, 6).iter().map(|m| (m.partition(), m.offset())).collect();
    got.sort_unstable();
    assert_eq!(got, [(0, 8), (0, 9), (1, 8), (1, 9), (2, 8), (2, 9)]);
}

async fn from_the_end_and_the_tail() {
    let name = topic(1).await;
    send(&name, 0, &values(10)).await;
    let tail = assigned(&name, 0, Offset::OffsetTail(3), &[]);
    assert_eq!(take(&tail, 3)[0].offset(), 7);
    let end = assigned(&name, 0, Offset::End, &[WITH_ENDS]);
    until_the_end(&end);
    send(&name, 0, &values(1)).await;
    assert_eq!(take(&end, 1)[0].offset(), 10);
}

async fn what_is_assigned_changes() {
    let name = topic(2).await;
    send(&name, 0, &values(3)).await;
    send(&name, 1, &values(3)).await;
    let consumer: BaseConsumer = classic(&fresh("g"), &[]).create().unwrap();
    consumer.incremental_assign(&list(&name, 0, Offset::Beginning)).unwrap();
    assert!(take(&consumer, 3).iter().all(|m| m.partition() == 0));
    consumer.incremental_assign(&list(&name, 1, Offset::Offset(1))).unwrap();
    assert!(take(&consumer, 2).iter().all(|m| m.partition() == 1));
    consumer.incremental_unassign(&list(&name, 0, Offset::Invalid)).unwrap();
    assert_eq!(consumer.assignment().unwrap().count(), 1);
    send(&name, 0, &values(1)).await;
    send(&name, 1, &values(1)).await;
    assert_eq!(take(&consumer, 1)[0].partition(), 1);
    assert!(consumer.poll(Duration::from_millis(300)).is_none());
    consumer.unassign().unwrap();
    assert_eq!(consumer.assignment().unwrap().count(), 0);
}

async fn pausing_and_resuming() {
    let name = topic(2).await;
    let mut both = list(&name, 0, Offset::Beginning);
    both.add_partition_offset(&name, 1, Offset::Beginning).unwrap();
    let consumer: BaseConsumer = classic(&fresh("g"), &[]).create().unwrap();
    consumer.assign(&both).unwrap();
    let zero = list(&name, 0, Offset::Invalid);
    consumer.pause(&zero).unwrap();
    send(&name, 0, &values(5)).await;
    send(&name, 1, &values(5)).await;
    assert!(take(&consumer, 5).iter().all(|m| m.partition() == 1));
    assert!(consumer.poll(Duration::from_millis(300)).is_none());
    consumer.resume(&zero).unwrap();
    assert!(
        take(&consumer, 5)
            .iter()
            .enumerate()
            .all(|(i, m)| m.partition() == 0 && usize::try_from(m.offset()) == Ok(i))
    );
}

async fn offsets_by_time() {
    let name = topic(2).await;
    let producer: FutureProducer = producer(&[]);
    let start = now() - 100_000;
    for i in 0..10 {
        let record = FutureRecord::<(), _>::to(&name).payload("v").partition(0).timestamp(start + i * 1000);
        producer.send(record, PATIENCE).await.unwrap();
    }
    let consumer: BaseConsumer = classic(&fresh("g"), &[]).create().unwrap();
    for (time, offset) in [
        (start - 1, Offset::Offset(0)),
        (start, Offset::Offset(0)),
        (start + 4500, Offset::Offset(5)),
        (start + 9000, Offset::Offset(9)),
        (start + 9001, Offset::End),
    ] {
        let found = consumer.offsets_for_times(list(&name, 0, Offset::Offset(time)), PATIENCE).unwrap();
        assert_eq!(found.elements()[0].offset(), offset, "at {time}");
    }
    // For all that is assigned; an empty partition has nothing of any time.
    let mut both = list(&name, 0, Offset::Beginning);
    both.add_partition_offset(&name, 1, Offset::Beginning).unwrap();
    consumer.assign(&both).unwrap();
    let found = consumer.offsets_for_timestamp(start + 2000, PATIENCE).unwrap();
    let offset = |partition| found.find_partition(&name, partition).unwrap().offset();
    assert_eq!((offset(0), offset(1)), (Offset::Offset(2), Offset::End));
}

async fn watermarks() {
    let name = topic(1).await;
    let consumer: BaseConsumer = classic(&fresh("g"), &[]).create().unwrap();
    assert_eq!(consumer.fetch_watermarks(&name, 0, PATIENCE).unwrap(), (0, 0));
    send(&name, 0, &values(7)).await;
    assert_eq!(consumer.fetch_watermarks(&name, 0, PATIENCE).unwrap(), (0, 7));
    let missing = consumer.fetch_watermarks(&name, 5, PATIENCE).unwrap_err();
    assert!(
        matches!(missing.rdkafka_error_code(), Some(Code::UnknownPartition | Code::UnknownTopicOrPartition)),
        "{missing}"
    );
}

async fn positions() {
    let name = topic(1).await;
    send(&name, 0, &values(5)).await;
    let consumer = assigned(&name, 0, Offset::Offset(2), &[]);
    let position = || consumer.position().unwrap().elements()[0].offset();
    assert_eq!(position(), Offset::Invalid);
    take(&consumer, 2);
    assert_eq!(position(), Offset::Offset(4));
    // Nothing was committed.
    let committed = consumer.committed(PATIENCE).unwrap();
    assert_eq!(committed.elements()[0].offset(), Offset::Invalid);
}

async fn an_offset_out_of_range() {
    let name = topic(1).await;
    send(&name, 0, &values(5)).await;
    assert_eq!(take(&assigned(&name, 0, Offset::Offset(1000), &[]), 1)[0].offset(), 0);
    let latest = assigned(&name, 0, Offset::Offset(1000), &[("auto.offset.reset", "latest"), WITH_ENDS]);
    until_the_end(&latest);
    send(&name, 0, &values(1)).await;
    assert_eq!(take(&latest, 1)[0].offset(), 5);
    let strict = assigned(&name, 0, Offset::Offset(1000), &[("auto.offset.reset", "error")]);
    let error = strict.poll(PATIENCE).unwrap().err().unwrap();
    assert_eq!(error.rdkafka_error_code(), Some(Code::AutoOffsetReset));
}

async fn a_long_poll_wakes() {
    let name = topic(1).await;
    let consumer = assigned(
        &name,
        0,
        Offset::Beginning,
        &[("fetch.wait.max.ms", "60000"), ("socket.timeout.ms", "70000")],
    );
    assert!(consumer.poll(Duration::from_millis(500)).is_none());
    // The fetch waits for three times as long as anything here may take.
    for i in 0..20 {
        send(&name, 0, &values(1)).await;
        assert_eq!(take(&consumer, 1)[0].offset(), i);
    }
}

async fn what_nobody_sent_does_not_come() {
    let name = topic(1).await;
    let consumer =
        assigned(&name, 0, Offset::Beginning, &[("fetch.min.bytes", "100000"), ("fetch.wait.max.ms", "300")]);
    assert!(consumer.poll(Duration::from_millis(700)).is_none());
    // Too little to be worth an answer, until the time is over.
    send(&name, 0, &values(1)).await;
    assert_eq!(take(&consumer, 1)[0].offset(), 0);
}

async fn small_fetches_of_large_batches() {
    let name = topic(1).await;
    let all: Vec<_> = values(400).iter().map(|value| value.repeat(30)).collect();
    send_by(&producer(&[("linger.ms", "50")]), &name, 0, &all).await;
    let messages = read(
        &name,
        0,
        &[("fetch.message.max.bytes", "100"), ("fetch.max.bytes", "1000"), ("message.max.bytes", "1000")],
    );
    assert_eq!(texts(&messages), all);
}

async fn many_partitions_at_once() {
    let name = topic(50).await;
    let producer: FutureProducer = producer(&[]);
    for partition in 0..50 {
        send_by(&producer, &name, partition, &values(4)).await;
    }
    let consumer: BaseConsumer =
        classic(&fresh("g"), &[("fetch.message.max.bytes", "500")]).create().unwrap();
    consumer.subscribe(&[&name]).unwrap();
    let mut got: Vec<_> = take(&consumer, 200).iter().map(|m| (m.partition(), m.offset())).collect();
    got.sort_unstable();
    let wanted: Vec<_> =
        (0..50).flat_map(|partition| (0..4).map(move |offset| (partition, offset))).collect();
    assert_eq!(got, wanted);
}

async fn a_topic_that_is_not_there() {
    let consumer: BaseConsumer = classic(&fresh("g"), &[]).create().unwrap();
    consumer.subscribe(&[&fresh("nowhere")]).unwrap();
    let error = consumer.poll(PATIENCE).unwrap().err().unwrap();
    assert_eq!(error, KafkaError::MessageConsumption(Code::UnknownTopicOrPartition));
}

/// Keeps the latest statistics.
#[derive(Default)]
struct Latest(Mutex<Option<Statistics>>);

impl ClientContext for Latest {
    fn stats(&self, statistics: Statistics) {
        *self.0.lock().unwrap() = Some(statistics);
    }
}

impl ConsumerContext for Latest {}

async fn statistics() {
    let name = topic(1).await;
    send(&name, 0, &values(10)).await;
    let settings = [("statistics.interval.ms", "100")];
    let consumer: BaseConsumer<Latest> =
        classic(&fresh("g"), &settings).create_with_context(Latest::default()).unwrap();
    consumer.subscribe(&[&name]).unwrap();
    assert_eq!(text(&take(&consumer, 10)[9]), "value 9");
    until("what was read is counted", || {
        consumer.poll(Duration::from_millis(50));
        let latest = consumer.context().0.lock().unwrap();
        let Some(statistics) = &*latest else { return false };
        let partition = statistics.topics.get(&name).and_then(|topic| topic.partitions.get(&0));
        let read = partition.is_some_and(|p| p.rxmsgs == 10 && p.hi_offset == 10 && p.lo_offset <= 0);
        let joined =
            statistics.cgrp.as_ref().is_some_and(|group| group.state == "up" && group.assignment_size == 1);
        read && joined
    });
}
