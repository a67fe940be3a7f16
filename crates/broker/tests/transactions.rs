//! Over a socket: transactions, with requests as clients send them, through a restart of the broker and a crash.

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dibs_broker::{Broker, BrokerConfig};
use dibs_log::{
    DiskStorage, Store, StoreConfig,
    batch::{BatchBuilder, Batches},
};
use kafka_protocol::{
    ResponseError,
    messages::{
        add_partitions_to_txn_request::*, fetch_request::*, offset_fetch_request::*, produce_request::*,
        txn_offset_commit_request::*, *,
    },
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A broker over a folder, and a connection to it.
struct Running {
    store: Arc<Store>,
    broker: Broker,
    stream: TcpStream,
}

async fn start(folder: &Path) -> Running {
    let storage = Arc::new(DiskStorage::new(folder).unwrap());
    let store = Arc::new(Store::open(storage, StoreConfig::default()).unwrap());
    let settings = [
        ("listeners", "PLAINTEXT://127.0.0.1:0"),
        ("offsets.topic.num.partitions", "1"),
        ("transaction.state.log.num.partitions", "2"),
        ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "5"),
    ];
    let broker = Broker::start(store.clone(), BrokerConfig::new(settings).unwrap()).await.unwrap();
    let stream = TcpStream::connect(broker.addresses()[0]).await.unwrap();
    Running { store, broker, stream }
}

impl Running {
    async fn stop(self) {
        self.broker.stop().await;
        self.store.close().unwrap();
    }

    async fn call<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        send(&mut self.stream, request, version).await;
        receive::<R>(&mut self.stream, version).await
    }

    /// InitProducerId, asked again as long as another transaction is being ended.
    async fn init(&mut self, timeout_ms: i32) -> (i64, i16) {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(id()))
            .with_transaction_timeout_ms(timeout_ms)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        loop {
            let response = self.call(&request, 4).await;
            if response.error_code != ResponseError::ConcurrentTransactions.code() {
                assert_eq!(response.error_code, 0);
                return (response.producer_id.0, response.producer_epoch);
            }
        }
    }

    async fn add(&mut self, producer: (i64, i16)) -> i16 {
        let topic = AddPartitionsToTxnTopic::default().with_name(topic()).with_partitions(vec![0]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id())
            .with_v3_and_below_producer_id(ProducerId(producer.0))
            .with_v3_and_below_producer_epoch(producer.1)
            .with_v3_and_below_topics(vec![topic]);
        let response = self.call(&request, 3).await;
        response.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code
    }

    /// Sends one record with the sequence number 0.
    async fn produce(&mut self, value: &str, producer: (i64, i16), version: i16) -> i16 {
        let mut batch = BatchBuilder::new();
        batch.push(None, Some(value.as_bytes()));
        batch.producer(producer.0, producer.1, 0);
        batch.transactional();
        // Another time than the markers' would begin another segment, at whose end a read ends.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let partition = PartitionProduceData::default().with_records(Some(Bytes::from(batch.finish(now))));
        let data = TopicProduceData::default().with_name(topic()).with_partition_data(vec![partition]);
        let request = ProduceRequest::default()
            .with_transactional_id(Some(id()))
            .with_acks(-1)
            .with_timeout_ms(1000)
            .with_topic_data(vec![data]);
        self.call(&request, version).await.responses[0].partition_responses[0].error_code
    }

    async fn commit_offset(&mut self, offset: i64, producer: (i64, i16), version: i16) -> i16 {
        let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(offset);
        let topic =
            TxnOffsetCommitRequestTopic::default().with_name(topic()).with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id())
            .with_group_id(group())
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_generation_id(-1)
            .with_topics(vec![topic]);
        self.call(&request, version).await.topics[0].partitions[0].error_code
    }

    /// EndTxn, asked again as long as another transaction is being ended.
    async fn end(&mut self, producer: (i64, i16), commit: bool, version: i16) -> (i16, (i64, i16)) {
        let request = EndTxnRequest::default()
            .with_transactional_id(id())
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_committed(commit);
        loop {
            let response = self.call(&request, version).await;
            if response.error_code != ResponseError::ConcurrentTransactions.code() {
                return (response.error_code, (response.producer_id.0, response.producer_epoch));
            }
        }
    }

    /// The group's offset, and the error if it has to be a stable one.
    async fn offset(&mut self) -> (i64, i16) {
        let wanted = OffsetFetchRequestTopics::default().with_name(topic()).with_partition_indexes(vec![0]);
        let wanted =
            OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(Some(vec![wanted]));
        let request = OffsetFetchRequest::default().with_groups(vec![wanted]);
        let any = self.call(&request, 8).await.groups[0].topics[0].partitions[0].committed_offset;
        let stable = self.call(&request.with_require_stable(true), 8).await;
        (any, stable.groups[0].topics[0].partitions[0].error_code)
    }

    /// The committed values, waiting until there are no open transactions before `end`.
    async fn committed(&mut self, end: i64) -> Vec<String> {
        let request = fetch_committed(0, 0);
        loop {
            let response = self.call(&request, 12).await;
            let data = &response.responses[0].partitions[0];
            if data.last_stable_offset < end {
                continue;
            }
            let aborted = data.aborted_transactions.clone().unwrap_or_default();
            let (bytes, mut values) = (data.records.clone().unwrap(), Vec::new());
            for batch in Batches::new(&bytes).map(Result::unwrap) {
                // One record in each batch, and every aborted transaction has one batch here.
                let gone = aborted.iter().any(|a| a.first_offset == batch.header.base_offset as i64);
                let record = batch.records().unwrap().next().unwrap().unwrap();
                if !gone && !batch.header.is_control() {
                    values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
                }
            }
            return values;
        }
    }
}

async fn send<R: Request>(stream: &mut TcpStream, request: &R, version: i16) {
    let mut out = BytesMut::new();
    out.put_i32(0);
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(7);
    header.encode(&mut out, R::header_version(version)).unwrap();
    request.encode(&mut out, version).unwrap();
    let length = (out.len() - 4) as i32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&out).await.unwrap();
}

async fn receive<R: Request>(stream: &mut TcpStream, version: i16) -> R::Response {
    let mut bytes = vec![0; stream.read_i32().await.unwrap() as usize];
    stream.read_exact(&mut bytes).await.unwrap();
    let mut bytes = Bytes::from(bytes);
    assert_eq!(bytes.get_i32(), 7);
    if <R::Response as HeaderVersion>::header_version(version) >= 1 {
        assert_eq!(bytes.get_u8(), 0);
    }
    <R::Response as Decodable>::decode(&mut bytes, version).unwrap()
}

/// Fetches committed records from an offset on, and waits for the first one.
fn fetch_committed(offset: i64, max_wait_ms: i32) -> FetchRequest {
    let partition = FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(1 << 20);
    let wanted = FetchTopic::default().with_topic(topic()).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_isolation_level(1)
        .with_topics(vec![wanted])
}

fn topic() -> TopicName {
    TopicName(StrBytes::from_static_str("t"))
}

fn group() -> GroupId {
    GroupId(StrBytes::from_static_str("g"))
}

fn id() -> TransactionalId {
    TransactionalId(StrBytes::from_static_str("pay"))
}

fn next((id, epoch): (i64, i16)) -> (i64, i16) {
    (id, epoch + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_both_forms_outlive_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = start(folder.path()).await;
    broker.store.create_topic("t", 1).unwrap();
    // Nobody has said that this partition is part of the transaction: older versions do not say so by sending.
    let old = broker.init(60_000).await;
    let refused = ResponseError::InvalidTxnState.code();
    assert_eq!(broker.produce("unknown", old, 9).await, refused);
    assert_eq!(broker.commit_offset(1, old, 3).await, refused);
    assert_eq!(broker.produce("unknown", old, 11).await, ResponseError::TransactionAbortable.code());
    assert_eq!(broker.add(old).await, 0);
    assert_eq!(broker.produce("first", old, 9).await, 0);
    assert_eq!(broker.end(old, true, 3).await.0, 0);
    assert_eq!(broker.committed(2).await, ["first"]);
    // The newer form: a batch or an offset says it all, and the end brings a new epoch.
    let new = broker.init(60_000).await;
    assert_eq!(new, next(old));
    assert_eq!(broker.produce("second", new, 12).await, 0);
    assert_eq!(broker.commit_offset(7, new, 5).await, 0);
    assert_eq!(broker.offset().await, (-1, ResponseError::UnstableOffsetCommit.code()));
    broker.stop().await;

    let mut broker = start(folder.path()).await;
    assert_eq!(broker.offset().await, (-1, ResponseError::UnstableOffsetCommit.code()));
    assert_eq!(broker.end(new, true, 5).await, (0, next(new)));
    assert_eq!(broker.committed(4).await, ["first", "second"]);
    broker.stop().await;

    let mut broker = start(folder.path()).await;
    assert_eq!(broker.offset().await, (7, 0));
    // The answer to the end was lost, and so is asked for again.
    assert_eq!(broker.end(new, true, 5).await, (0, next(new)));
    assert_eq!(broker.produce("zombie", new, 12).await, ResponseError::InvalidProducerEpoch.code());
    assert_eq!(broker.end(new, false, 5).await.0, ResponseError::InvalidTxnState.code());
    let newest = broker.init(60_000).await;
    assert_eq!(newest, next(next(new)));
    assert_eq!(broker.end(next(new), true, 2).await.0, ResponseError::ProducerFenced.code());
    assert_eq!(broker.end(next(new), true, 1).await.0, ResponseError::InvalidProducerEpoch.code());
    assert_eq!(broker.committed(4).await, ["first", "second"]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_transaction_open_for_ever() {
    let (folder, decided, open) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = start(folder.path()).await;
    broker.store.create_topic("t", 1).unwrap();
    let first = broker.init(300_000).await;
    assert_eq!(broker.produce("kept", first, 12).await, 0);
    assert_eq!(broker.commit_offset(5, first, 5).await, 0);
    let (error, second) = broker.end(first, true, 5).await;
    assert_eq!(error, 0);
    // The markers may be there or not.
    copy_all(folder.path(), decided.path());
    assert_eq!(broker.produce("open", second, 12).await, 0);
    assert_eq!(broker.commit_offset(9, second, 5).await, 0);
    copy_all(folder.path(), open.path());
    broker.stop().await;

    let mut broker = start(decided.path()).await;
    assert_eq!(broker.committed(2).await, ["kept"]);
    while broker.offset().await != (5, 0) {}
    assert_eq!(broker.init(300_000).await, next(second));
    broker.stop().await;

    let mut broker = start(open.path()).await;
    assert_eq!(broker.offset().await, (5, ResponseError::UnstableOffsetCommit.code()));
    // Whoever comes next waits until nothing is open any more, and fences who was there before.
    let third = broker.init(1).await;
    assert_eq!(broker.committed(4).await, ["kept"]);
    assert_eq!(broker.offset().await, (5, 0));
    assert_eq!(broker.produce("zombie", second, 12).await, ResponseError::InvalidProducerEpoch.code());
    assert_eq!(broker.end(second, true, 5).await.0, ResponseError::ProducerFenced.code());
    // And what is left alone is aborted when its time is over, which is at once, before this or after it.
    let produced = broker.produce("late", third, 12).await;
    let end = if produced == 0 { 6 } else { 4 };
    assert_eq!(broker.committed(end).await, ["kept"]);
    broker.stop().await;
}

/// One thread does everything here: a reader that looked again and again would leave no time to the others.
#[tokio::test]
async fn who_reads_committed_records_sleeps_until_a_transaction_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = start(folder.path()).await;
    broker.store.create_topic("t", 1).unwrap();
    let producer = broker.init(60_000).await;
    assert_eq!(broker.produce("held", producer, 12).await, 0);
    let mut reader = TcpStream::connect(broker.broker.addresses()[0]).await.unwrap();
    send(&mut reader, &fetch_committed(0, 60_000), 12).await;
    assert_eq!(broker.end(producer, true, 5).await.0, 0);
    let fetched = receive::<FetchRequest>(&mut reader, 12).await;
    let data = &fetched.responses[0].partitions[0];
    assert_eq!((data.last_stable_offset, data.records.as_ref().is_some_and(|r| !r.is_empty())), (2, true));
    broker.stop().await;
}

/// What a crash of the process leaves: the files as they are. The broker goes on meanwhile, so what is written last
/// is copied first: the copy has no end of a transaction without the markers before it.
fn copy_all(from: &Path, to: &Path) {
    let mut entries: Vec<_> = std::fs::read_dir(from).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(|e| !e.file_name().to_string_lossy().starts_with("__transaction_state"));
    for entry in entries {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_all(&path, &target);
        } else if entry.file_name() != ".lock" {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
