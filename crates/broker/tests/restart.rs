//! Over a socket: what was acknowledged is there after the broker has been started anew.

use std::{path::Path, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dibs_broker::{Broker, BrokerConfig};
use dibs_log::{
    DiskStorage, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};
use kafka_protocol::{
    messages::{fetch_request::*, offset_commit_request::*, offset_fetch_request::*, produce_request::*, *},
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

async fn start(folder: &Path) -> (Arc<Store>, Broker, TcpStream) {
    let storage = Arc::new(DiskStorage::new(folder).unwrap());
    let store = Arc::new(Store::open(storage, StoreConfig::default()).unwrap());
    let settings = [("listeners", "PLAINTEXT://127.0.0.1:0"), ("offsets.topic.num.partitions", "1")];
    let broker = Broker::start(store.clone(), BrokerConfig::new(settings).unwrap()).await.unwrap();
    let stream = TcpStream::connect(broker.addresses()[0]).await.unwrap();
    (store, broker, stream)
}

async fn stop(store: Arc<Store>, broker: Broker) {
    broker.stop().await;
    store.close().unwrap();
}

fn frame<R: Request>(request: &R, version: i16, correlation: i32) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_i32(0);
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation);
    header.encode(&mut out, R::header_version(version)).unwrap();
    request.encode(&mut out, version).unwrap();
    let length = (out.len() - 4) as i32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

async fn receive<R: Request>(stream: &mut TcpStream, version: i16, correlation: i32) -> R::Response {
    let mut bytes = vec![0; stream.read_i32().await.unwrap() as usize];
    stream.read_exact(&mut bytes).await.unwrap();
    let mut bytes = Bytes::from(bytes);
    assert_eq!(bytes.get_i32(), correlation, "answers come in the order of the requests");
    if <R::Response as HeaderVersion>::header_version(version) >= 1 {
        assert_eq!(bytes.get_u8(), 0);
    }
    let response = <R::Response as Decodable>::decode(&mut bytes, version).unwrap();
    assert!(bytes.is_empty(), "bytes after the response");
    response
}

async fn call<R: Request>(stream: &mut TcpStream, request: &R, version: i16) -> R::Response {
    stream.write_all(&frame(request, version, 7)).await.unwrap();
    receive::<R>(stream, version, 7).await
}

fn topic() -> TopicName {
    TopicName(StrBytes::from_static_str("t"))
}

/// Makes the topic by asking for it, and says its id. Who causes it hears, as with Kafka, that there is none yet.
async fn ask_for_topic(stream: &mut TcpStream) -> Uuid {
    let wanted = metadata_request::MetadataRequestTopic::default().with_name(Some(topic()));
    let request =
        MetadataRequest::default().with_topics(Some(vec![wanted])).with_allow_auto_topic_creation(true);
    let before = call(stream, &request, 12).await.topics.remove(0);
    assert_eq!((before.error_code, before.partitions.len(), before.topic_id), (3, 0, Uuid::nil()));
    let made = call(stream, &request, 12).await.topics.remove(0);
    assert_eq!((made.error_code, made.partitions.len()), (0, 1));
    made.topic_id
}

fn group() -> GroupId {
    GroupId(StrBytes::from_static_str("g"))
}

fn produce(value: &str) -> ProduceRequest {
    let mut batch = BatchBuilder::new();
    batch.push(None, Some(value.as_bytes()));
    let records = Some(Bytes::from(batch.finish(1)));
    let partition = PartitionProduceData::default().with_records(records);
    let data = TopicProduceData::default().with_name(topic()).with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(-1).with_timeout_ms(1000).with_topic_data(vec![data])
}

async fn values(stream: &mut TcpStream) -> Vec<String> {
    let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
    let wanted = FetchTopic::default().with_topic(topic()).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(1 << 20).with_topics(vec![wanted]);
    let response = call(stream, &request, 12).await;
    let bytes = response.responses[0].partitions[0].records.clone().unwrap();
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let batches = Batches::new(&bytes).map(Result::unwrap);
    batches
        .flat_map(|b| b.records().unwrap().map(|r| text(r.unwrap().value.unwrap())).collect::<Vec<_>>())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, broker, mut stream) = start(folder.path()).await;
    let id = ask_for_topic(&mut stream).await;

    // Five at once on one connection: answered in order, at consecutive offsets.
    for i in 0..5 {
        stream.write_all(&frame(&produce(&format!("v{i}")), 9, i)).await.unwrap();
    }
    for i in 0..5 {
        let produced = receive::<ProduceRequest>(&mut stream, 9, i).await;
        let partition = &produced.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (0, i64::from(i)));
    }
    let partition = OffsetCommitRequestPartition::default()
        .with_committed_offset(3)
        .with_committed_metadata(Some(StrBytes::from_static_str("note")));
    let wanted = OffsetCommitRequestTopic::default().with_name(topic()).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(group())
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![wanted]);
    let committed = call(&mut stream, &request, 8).await;
    assert_eq!(committed.topics[0].partitions[0].error_code, 0);
    stop(store, broker).await;

    let (store, broker, mut stream) = start(folder.path()).await;
    assert_eq!(values(&mut stream).await, ["v0", "v1", "v2", "v3", "v4"]);
    let request = MetadataRequest::default().with_topics(None);
    let known = call(&mut stream, &request, 12).await;
    assert!(known.topics.iter().any(|t| t.topic_id == id));
    let wanted = OffsetFetchRequestTopics::default().with_name(topic()).with_partition_indexes(vec![0]);
    let wanted = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(Some(vec![wanted]));
    let fetched = call(&mut stream, &OffsetFetchRequest::default().with_groups(vec![wanted]), 8).await;
    let partition = &fetched.groups[0].topics[0].partitions[0];
    assert_eq!((partition.committed_offset, partition.metadata.as_deref()), (3, Some("note")));
    stop(store, broker).await;
}

fn heartbeat(epoch: i32) -> ConsumerGroupHeartbeatRequest {
    let beat = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group())
        .with_member_id(StrBytes::from_static_str("m"))
        .with_member_epoch(epoch)
        .with_rebalance_timeout_ms(-1)
        .with_subscribed_topic_names(None)
        .with_topic_partitions(None);
    if epoch != 0 {
        return beat;
    }
    beat.with_rebalance_timeout_ms(1000)
        .with_subscribed_topic_names(Some(vec![topic()]))
        .with_topic_partitions(Some(Vec::new()))
}

fn commit(epoch: i32, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let wanted = OffsetCommitRequestTopic::default().with_name(topic()).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group())
        .with_member_id(StrBytes::from_static_str("m"))
        .with_generation_id_or_member_epoch(epoch)
        .with_topics(vec![wanted])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_group_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, broker, mut stream) = start(folder.path()).await;
    let id = ask_for_topic(&mut stream).await;
    let joined = call(&mut stream, &heartbeat(0), 1).await;
    assert_eq!((joined.error_code, joined.member_epoch), (0, 1));
    let assigned = joined.assignment.unwrap().topic_partitions;
    assert_eq!((assigned[0].topic_id, &assigned[0].partitions[..]), (id, &[0][..]));
    let error = |committed: OffsetCommitResponse| committed.topics[0].partitions[0].error_code;
    assert_eq!(error(call(&mut stream, &commit(1, 5), 9).await), 0);
    stop(store, broker).await;

    let (store, broker, mut stream) = start(folder.path()).await;
    // The member does not notice: the same epoch, and nothing new.
    let beaten = call(&mut stream, &heartbeat(1), 1).await;
    assert_eq!((beaten.error_code, beaten.member_epoch, beaten.assignment), (0, 1, None));
    // An epoch that it is not in, and a version that knows no epochs.
    assert_eq!(error(call(&mut stream, &commit(2, 6), 9).await), 113);
    assert_eq!(error(call(&mut stream, &commit(1, 6), 8).await), 35);
    assert_eq!(error(call(&mut stream, &commit(1, 6), 9).await), 0);
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group()]);
    let described = call(&mut stream, &request, 1).await;
    let described = &described.groups[0];
    assert_eq!((&*described.group_state, described.group_epoch), ("Stable", 1));
    assert_eq!(&*described.members[0].assignment.topic_partitions[0].topic_name.0, "t");
    // It leaves, and the group can go.
    assert_eq!(call(&mut stream, &heartbeat(-1), 1).await.error_code, 0);
    let request = DeleteGroupsRequest::default().with_groups_names(vec![group()]);
    assert_eq!(call(&mut stream, &request, 2).await.results[0].error_code, 0);
    stop(store, broker).await;
    let (store, broker, mut stream) = start(folder.path()).await;
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group()]);
    assert_eq!(call(&mut stream, &request, 1).await.groups[0].error_code, 69);
    stop(store, broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_session_tells_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let (store, broker, mut stream) = start(folder.path()).await;
    let id = ask_for_topic(&mut stream).await;
    let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
    let wanted = FetchTopic::default().with_topic_id(id).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_bytes(1 << 20);
    let full = request.clone().with_session_epoch(0).with_topics(vec![wanted]);
    let first = call(&mut stream, &full, 17).await;
    assert!(first.session_id > 0 && first.responses[0].partitions[0].error_code == 0);
    let next = |epoch| request.clone().with_session_id(first.session_id).with_session_epoch(epoch);
    assert_eq!(call(&mut stream, &next(1), 17).await.responses, []);
    call(&mut stream, &produce("v"), 9).await;
    let second = call(&mut stream, &next(2), 17).await;
    assert_eq!(second.session_id, first.session_id);
    assert!(second.responses[0].partitions[0].records.as_ref().is_some_and(|r| !r.is_empty()));
    // Out of step, as after a lost answer; then a session that is none.
    assert_eq!(call(&mut stream, &next(2), 17).await.error_code, 71);
    assert_eq!(call(&mut stream, &next(3).with_session_id(1), 17).await.error_code, 70);
    stop(store, broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_negotiated_as_kafka_does() {
    let folder = tempfile::tempdir().unwrap();
    let (store, broker, mut stream) = start(folder.path()).await;
    // A version that nobody knows yet is answered with version 0 and error 35.
    let mut unknown = frame(&ApiVersionsRequest::default(), 3, 9);
    unknown[6..8].copy_from_slice(&99_i16.to_be_bytes());
    stream.write_all(&unknown).await.unwrap();
    let answer = receive::<ApiVersionsRequest>(&mut stream, 0, 9).await;
    assert_eq!(answer.error_code, 35);
    assert_eq!((answer.api_keys[0].api_key, answer.api_keys[0].min_version), (18, 0));
    // Produce is said to begin at 0, for the sake of older librdkafka, and below 3 it ends the connection.
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("test"))
        .with_client_software_version(StrBytes::from_static_str("1"));
    let answer = call(&mut stream, &request, 3).await;
    let of = |key| answer.api_keys.iter().find(|k| k.api_key == key).map(|k| (k.min_version, k.max_version));
    assert_eq!((of(0), of(1)), (Some((0, 13)), Some((4, 18))));
    let mut old = frame(&produce("v"), 3, 1);
    old[6..8].copy_from_slice(&2_i16.to_be_bytes());
    stream.write_all(&old).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    stop(store, broker).await;
}
