//! Random requests of every API in every version, whole and broken ones.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use dibs_log::{MemoryStorage, Store, StoreConfig, batch::BatchBuilder};
use kafka_protocol::{
    messages::{
        OffsetCommitRequest, OffsetFetchRequest, ProduceRequest,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::Encodable,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use uuid::Uuid;

use super::{Context, SERVED, begin, by_id::ById, offsets, produce, text, topic_name};
use crate::{
    BrokerConfig,
    connection::{Client, Hangup},
    group::offsets::Committed,
    quota::{Entity, EntityKind, Quota, Rates},
    security::{acl::Filter, sasl::Auth},
    server::{Broker, Shared},
    wire::{Reply, Versions, samples, shape},
};

async fn broker() -> (Broker, Arc<Client>) {
    broker_with(&[]).await
}

pub(super) async fn broker_with(more: &[(&str, &str)]) -> (Broker, Arc<Client>) {
    let store = Store::open(Arc::new(MemoryStorage::new(0)), StoreConfig::default()).unwrap();
    broker_on(Arc::new(store), more).await
}

pub(super) async fn broker_on(store: Arc<Store>, more: &[(&str, &str)]) -> (Broker, Arc<Client>) {
    let settings = [
        ("listeners", "PLAINTEXT://127.0.0.1:0"),
        ("num.partitions", "3"),
        ("offsets.topic.num.partitions", "2"),
    ];
    let config = BrokerConfig::new([&settings, more].concat()).unwrap();
    let broker = Broker::start(store, config).await.unwrap();
    let client = client(&broker, None);
    (broker, client)
}

fn client(broker: &Broker, principal: Option<&str>) -> Arc<Client> {
    let auth = Auth::open(principal.map(str::to_owned));
    Arc::new(Client::new("/127.0.0.1".into(), 0, broker.addresses()[0], auth))
}

fn apis() -> impl Iterator<Item = (i16, i16)> {
    let all = std::iter::once((produce::KEY, produce::VERSIONS)).chain(SERVED.iter().copied());
    all.flat_map(|(key, Versions(min, max))| (min..=max).map(move |version| (key, version)))
}

fn frame(rng: &mut fastrand::Rng, key: i16, version: i16) -> Vec<u8> {
    let mut records = BatchBuilder::new();
    records.push(Some(b"k"), Some(b"v"));
    let shape = shape(key).unwrap();
    let body = samples::request(rng, shape, version, &records.finish(7));
    let mut frame = Vec::new();
    frame.put_i16(key);
    frame.put_i16(version);
    frame.put_i32(1);
    frame.put_i16(-1);
    if shape.is_flexible(version) {
        frame.put_u8(0);
    }
    frame.extend(body);
    frame
}

/// Begins to answer, and waits for the answer for a moment: some wait for other members or more records.
async fn answer(shared: &Arc<Shared>, client: &Arc<Client>, frame: Vec<u8>) -> Result<Option<Reply>, Hangup> {
    let answering = begin(shared, client, Bytes::from(frame))?;
    tokio::time::timeout(Duration::from_millis(2), answering.future).await.unwrap_or(Ok(None))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_every_api_is_answered() {
    let (broker, client) = broker().await;
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..40 {
        for (key, version) in apis() {
            let frame = frame(&mut rng, key, version);
            match answer(broker.shared(), &client, frame.clone()).await {
                Ok(_) => {}
                // The one request that ends a connection though it is well-formed.
                Err(Hangup::Refused(why)) if why.contains("acks=0") => {}
                Err(e) => panic!("API {key} version {version}, round {round}: {e}\n{frame:?}"),
            }
        }
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_crash_nothing() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let (broker, client) = broker().await;
    let mut rng = fastrand::Rng::with_seed(2);
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..rounds {
        for (key, version) in apis() {
            let mut frame = frame(&mut rng, key, version);
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..frame.len());
                match rng.u8(..4) {
                    0 => frame[at] = rng.u8(..),
                    1 => frame[at] ^= 1 << rng.u8(..8),
                    2 => frame.truncate(at.max(1)),
                    _ => frame.insert(at, [0xff, 0x7f, 0x80, 0][rng.usize(..4)]),
                }
            }
            match answer(broker.shared(), &client, frame.clone()).await {
                Err(Hangup::Unencodable(why)) => panic!("{why}\n{frame:?}"),
                Err(_) => refused += 1,
                Ok(_) => taken += 1,
            }
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
    broker.stop().await;
}

/// What a client could change or learn, of a topic with a record and a group with an offset.
#[derive(Debug, PartialEq)]
struct Seen {
    topics: Vec<(String, usize, u64, u64)>,
    configs: Vec<String>,
    groups: Vec<String>,
    transactions: usize,
    users: usize,
    acls: usize,
    quotas: usize,
}

async fn seen(shared: &Shared) -> Seen {
    let all = shared.topics.all();
    let own: Vec<_> = all.iter().filter(|t| !t.is_internal()).collect();
    let (mut groups, mut transactions) = (Vec::new(), 0);
    shared.groups.each(|id, group| groups.push(format!("{id} {:?}", group.offsets))).await.unwrap();
    shared.transactions.each(|shard, _| transactions += shard.all().count()).await.unwrap();
    groups.sort();
    let state = |t: &&crate::topics::Topic| {
        let first = t.partition(0).unwrap();
        (t.name().to_owned(), t.partition_count(), first.high_watermark(), first.start())
    };
    Seen {
        topics: own.iter().map(state).collect(),
        configs: own.iter().map(|t| format!("{:?}", t.config())).collect(),
        groups,
        transactions,
        users: shared.users.described().len(),
        acls: shared.acls.as_ref().unwrap().find(&Filter::default()).len(),
        quotas: shared.quotas.all().len(),
    }
}

const SECRETS: [&[u8]; 3] = [b"secret-record", b"secret-metadata", b"123454321"];

/// What only reads, and needs no offset to be right.
const READING: [i16; 3] = [2, 9, 32];

/// Random requests by somebody: how often they show a secret.
async fn press(broker: &Broker, principal: &str, apis: &[(i16, i16)]) -> usize {
    let (shared, client) = (broker.shared(), client(broker, Some(principal)));
    let mut rng = fastrand::Rng::with_seed(4);
    let mut shown = 0;
    for _ in 0..60 {
        for &(key, version) in apis {
            if let Ok(Some(answer)) = answer(shared, &client, frame(&mut rng, key, version)).await {
                let answer = answer.flat();
                shown += SECRETS.iter().filter(|s| answer.windows(s.len()).any(|w| w == **s)).count();
            }
        }
    }
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_no_list_permits_anything_learns_and_changes_nothing() {
    let (broker, _) = broker_with(&[
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("super.users", "User:root"),
    ])
    .await;
    let shared = broker.shared();
    let config = [("retention.ms".to_owned(), "123454321".to_owned())].into();
    let topic = shared.topics.create("t", 3, config).unwrap();
    let mut records = BatchBuilder::new();
    records.push(Some(b"k"), Some(b"secret-record"));
    let partition = topic.partition(0).unwrap();
    let appended = partition.append(&records.finish(7)).unwrap();
    partition.durable(appended).await.unwrap();
    let value = Committed { offset: 1, leader_epoch: -1, metadata: "secret-metadata".into(), at: 0 };
    let committed = shared.groups.with("g", |shard, _, fx| shard.commit("g", "t", 0, value, fx));
    committed.await.unwrap().unwrap();
    let before = seen(shared).await;
    assert_eq!((before.topics.len(), before.groups.len()), (1, 1));
    let all: Vec<_> = apis().collect();
    let reading: Vec<_> = apis().filter(|(key, _)| READING.contains(key)).collect();
    assert_eq!(press(&broker, "User:kim", &all).await + press(&broker, "User:kim", &reading).await, 0);
    assert_eq!(seen(shared).await, before);
    // The same requests, by somebody who may.
    assert!(press(&broker, "User:root", &reading).await > 0);
    assert_eq!(seen(shared).await, before);
    press(&broker, "User:root", &all).await;
    assert_ne!(seen(shared).await, before);
    broker.stop().await;
}

/// From version 10 on, topics are called by their ids; of all there are, only those that have one are told.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_kept_by_topic_id() {
    let (broker, client) = broker().await;
    let shared = broker.shared();
    let (kept, gone) = (
        shared.topics.create("kept", 1, Default::default()).unwrap(),
        shared.topics.create("gone", 1, Default::default()).unwrap(),
    );
    let cx = Context { shared: shared.clone(), client, client_id: String::new(), version: 10 };
    let partition = |i: i32| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(i)
            .with_committed_offset(40 + i64::from(i))
    };
    let topic = OffsetCommitRequestTopic::default().with_partitions(vec![partition(0), partition(1)]);
    let message = OffsetCommitRequest::default()
        .with_group_id(text("g").into())
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic; 3]);
    let ids = vec![kept.id(), Uuid::from_u128(1), gone.id()];
    let answer = offsets::commit(cx.clone(), ById { message, ids: ids.clone() }).await;
    let told: Vec<i16> =
        answer.message.topics.iter().flat_map(|t| t.partitions.iter().map(|p| p.error_code)).collect();
    assert_eq!((&told[..], answer.ids), (&[0, 3, 100, 100, 0, 3][..], ids));

    shared.topics.delete("gone").unwrap();
    let group =
        |topics| OffsetFetchRequestGroup::default().with_group_id(text("g").into()).with_topics(topics);
    let some = vec![OffsetFetchRequestTopics::default().with_partition_indexes(vec![0]); 2];
    let message = OffsetFetchRequest::default().with_groups(vec![group(None), group(Some(some))]);
    let ids = vec![Uuid::from_u128(1), kept.id()];
    let answer = offsets::fetch(cx, ById { message, ids }).await;
    let of = |i: usize| answer.message.groups[i].topics.iter().flat_map(|t| &t.partitions);
    let told = |i| of(i).map(|p| (p.committed_offset, p.error_code)).collect::<Vec<_>>();
    assert_eq!((told(0), told(1)), (vec![(40, 0)], vec![(-1, 100), (40, 0)]));
    assert_eq!(answer.ids, [kept.id(), Uuid::from_u128(1), kept.id()]);
    broker.stop().await;
}

async fn send(stream: &mut TcpStream, key: i16, version: i16, body: &[u8]) {
    let mut frame = Vec::new();
    frame.put_i32(10 + body.len() as i32);
    frame.put_i16(key);
    frame.put_i16(version);
    frame.put_i32(7);
    frame.put_i16(-1);
    frame.extend(body);
    stream.write_all(&frame).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let size = stream.read_i32().await.unwrap();
    let mut answer = vec![0; size as usize];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

/// Who has used up a quota is told how long to wait, and is not listened to meanwhile; others are.
#[tokio::test(flavor = "multi_thread")]
async fn who_owes_is_told_and_waits() {
    let (broker, _) = broker().await;
    let shared = broker.shared();
    shared.topics.create("t", 1, Default::default()).unwrap();
    // A byte a second: a batch is worth a minute.
    let of_all = Entity::from([(EntityKind::ClientId, None)]);
    let set = |rates: &mut Rates| drop(rates.insert(of_all, [(Quota::Produce, 1.0)].into()));
    shared.quotas.change(&shared.topics, set).unwrap();
    let mut records = BatchBuilder::new();
    records.push(None, Some(&[b'x'; 100]));
    let partition = PartitionProduceData::default().with_records(Some(records.finish(7).into()));
    let topic = TopicProduceData::default().with_name(topic_name("t")).with_partition_data(vec![partition]);
    let request = ProduceRequest::default().with_acks(1).with_topic_data(vec![topic]);
    let mut body = BytesMut::new();
    request.encode(&mut body, 3).unwrap();
    let (mut stream, mut other) = (
        TcpStream::connect(broker.addresses()[0]).await.unwrap(),
        TcpStream::connect(broker.addresses()[0]).await.unwrap(),
    );
    send(&mut stream, 0, 3, &body).await;
    let answer = receive(&mut stream).await;
    let throttle = i32::from_be_bytes(answer[answer.len() - 4..].try_into().unwrap());
    assert!(throttle > 10_000, "{throttle}");
    assert_eq!(shared.topics.partition("t", 0).unwrap().high_watermark(), 1);
    send(&mut stream, 18, 0, &[]).await;
    send(&mut other, 18, 0, &[]).await;
    receive(&mut other).await;
    let silent = tokio::time::timeout(Duration::from_millis(100), receive(&mut stream)).await;
    assert!(silent.is_err(), "it was listened to");
    broker.stop().await;
}

/// Samples of every request in every version, for `tests/hostile.rs` and as a start for fuzzing; UPDATE=1 writes
/// them anew.
#[test]
fn samples_are_requests() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/requests.hex");
    if std::env::var("UPDATE").is_ok() {
        let mut rng = fastrand::Rng::with_seed(3);
        let hex = |frame: Vec<u8>| frame.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
        let all: String = apis().map(|(key, version)| hex(frame(&mut rng, key, version))).collect();
        std::fs::write(path, all).unwrap();
    }
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let byte = |i| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
        let frame: Vec<u8> = (0..line.len()).step_by(2).map(byte).collect();
        let mut stream = (frame.len() as u32).to_be_bytes().to_vec();
        stream.extend(frame);
        assert_eq!(crate::read_requests(&stream), Ok(1), "{line}");
    }
}
