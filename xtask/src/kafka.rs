//! A Kafka client of a few requests, sent one after the other: it shares no code with the broker but the message
//! schemas, and keeps nothing between two requests.

mod group;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        add_offsets_to_txn_request::*, add_partitions_to_txn_request::*, create_topics_request::*,
        fetch_request::*, offset_fetch_request::*, produce_request::*, txn_offset_commit_request::*, *,
    },
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
    records::{
        Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
    },
};
use uuid::Uuid;

/// A broker that does not answer for so long is dead.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a fetch waits for records.
const FETCH_WAIT_MS: i32 = 20;
/// What a fetch brings at most.
const FETCH_BYTES: i32 = 1 << 20;

/// Who produces, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

/// What a fetch has brought.
pub(crate) struct Fetched {
    pub(crate) values: Vec<u64>,
    /// Where to go on.
    pub(crate) next: i64,
    /// Up to where transactions are decided.
    pub(crate) last_stable: i64,
}

/// A connection to a broker.
pub(crate) struct Kafka {
    stream: TcpStream,
}

/// Whether the broker has said this error.
pub(crate) fn is(error: &anyhow::Error, code: ResponseError) -> bool {
    error.downcast_ref::<ResponseError>() == Some(&code)
}

fn check(code: i16) -> anyhow::Result<()> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

fn text(s: &str) -> StrBytes {
    StrBytes::from_string(s.to_owned())
}

fn topic_name(s: &str) -> TopicName {
    TopicName(text(s))
}

impl Kafka {
    pub(crate) fn open(address: SocketAddr) -> anyhow::Result<Kafka> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Kafka { stream })
    }

    fn call<R: Request>(&mut self, request: &R, version: i16) -> anyhow::Result<R::Response> {
        let mut out = BytesMut::new();
        out.put_i32(0);
        let header = RequestHeader::default().with_request_api_key(R::KEY).with_request_api_version(version);
        header.encode(&mut out, R::header_version(version))?;
        request.encode(&mut out, version)?;
        let length = (out.len() - 4) as i32;
        out[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&out)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut bytes)?;
        let mut bytes = Bytes::from(bytes);
        let tags = usize::from(<R::Response as HeaderVersion>::header_version(version) >= 1);
        ensure!(bytes.len() > 4 + tags, "an answer that is cut off");
        bytes.advance(4 + tags);
        <R::Response as Decodable>::decode(&mut bytes, version).context("an answer that cannot be read")
    }

    /// Makes a topic, and says which id it has.
    pub(crate) fn create_topic(&mut self, name: &str, partitions: i32) -> anyhow::Result<Uuid> {
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(partitions)
            .with_replication_factor(1);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
        let response = self.call(&request, 7)?;
        check(response.topics[0].error_code)?;
        Ok(response.topics[0].topic_id)
    }

    /// Who an idempotent producer is, or with a name a transactional one.
    pub(crate) fn init(&mut self, transactional: Option<&str>) -> anyhow::Result<Producer> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(transactional.map(|t| TransactionalId(text(t))))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        loop {
            let response = self.call(&request, 4)?;
            match check(response.error_code) {
                // The transaction of the one before is being aborted.
                Err(e) if is(&e, ResponseError::ConcurrentTransactions) => {}
                done => {
                    done?;
                    return Ok(Producer { id: response.producer_id.0, epoch: response.producer_epoch });
                }
            }
        }
    }

    /// Sends values as one batch, whose first has the given sequence number.
    pub(crate) fn produce(
        &mut self,
        (topic, partition): (&str, i32),
        transactional: Option<&str>,
        producer: Producer,
        sequence: i32,
        values: &[u64],
        version: i16,
    ) -> anyhow::Result<()> {
        let record = |(i, value): (usize, &u64)| Record {
            transactional: transactional.is_some(),
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            timestamp_type: TimestampType::Creation,
            offset: i as i64,
            sequence: sequence + i as i32,
            timestamp: 1_700_000_000_000,
            key: None,
            value: Some(Bytes::copy_from_slice(&value.to_be_bytes())),
            headers: Default::default(),
        };
        let records: Vec<Record> = values.iter().enumerate().map(record).collect();
        let options = RecordEncodeOptions { version: 2, compression: Compression::None };
        let mut batch = BytesMut::new();
        RecordBatchEncoder::encode(&mut batch, &records, &options)?;
        let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch.freeze()));
        let data = TopicProduceData::default().with_name(topic_name(topic)).with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_transactional_id(transactional.map(|t| TransactionalId(text(t))))
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![data]);
        let response = self.call(&request, version)?;
        check(response.responses[0].partition_responses[0].error_code)
    }

    pub(crate) fn add_partition(
        &mut self,
        name: &str,
        producer: Producer,
        (topic, partition): (&str, i32),
    ) -> anyhow::Result<()> {
        let topic =
            AddPartitionsToTxnTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(text(name)))
            .with_v3_and_below_producer_id(ProducerId(producer.id))
            .with_v3_and_below_producer_epoch(producer.epoch)
            .with_v3_and_below_topics(vec![topic]);
        let response = self.call(&request, 3)?;
        check(response.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code)
    }

    pub(crate) fn add_offsets(&mut self, name: &str, producer: Producer, group: &str) -> anyhow::Result<()> {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(text(name)))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_group_id(GroupId(text(group)));
        check(self.call(&request, 3)?.error_code)
    }

    pub(crate) fn commit_offset(
        &mut self,
        name: &str,
        producer: Producer,
        group: &str,
        (topic, partition): (&str, i32),
        offset: i64,
        version: i16,
    ) -> anyhow::Result<()> {
        let committed = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![committed]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(text(name)))
            .with_group_id(GroupId(text(group)))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_generation_id(-1)
            .with_topics(vec![topic]);
        check(self.call(&request, version)?.topics[0].partitions[0].error_code)
    }

    /// Ends a transaction. From version 5 on the producer has another epoch from then on.
    pub(crate) fn end(
        &mut self,
        name: &str,
        producer: Producer,
        commit: bool,
        version: i16,
    ) -> anyhow::Result<Producer> {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(name)))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_committed(commit);
        let response = self.call(&request, version)?;
        check(response.error_code)?;
        let next = Producer { id: response.producer_id.0, epoch: response.producer_epoch };
        Ok(if version >= 5 { next } else { producer })
    }

    /// A group's offset, when no open transaction can change it any more; 0 if there is none.
    pub(crate) fn committed(&mut self, group: &str, (topic, partition): (&str, i32)) -> anyhow::Result<i64> {
        let wanted = OffsetFetchRequestTopics::default()
            .with_name(topic_name(topic))
            .with_partition_indexes(vec![partition]);
        let wanted = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text(group)))
            .with_topics(Some(vec![wanted]));
        let request = OffsetFetchRequest::default().with_groups(vec![wanted]).with_require_stable(true);
        loop {
            let response = self.call(&request, 8)?;
            check(response.groups[0].error_code)?;
            let found = &response.groups[0].topics[0].partitions[0];
            match check(found.error_code) {
                Err(e) if is(&e, ResponseError::UnstableOffsetCommit) => {}
                done => {
                    done?;
                    return Ok(found.committed_offset.max(0));
                }
            }
        }
    }

    /// Committed records from an offset on, waiting for some.
    pub(crate) fn fetch(&mut self, (topic, partition): (&str, i32), from: i64) -> anyhow::Result<Fetched> {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(from)
            .with_partition_max_bytes(FETCH_BYTES);
        let wanted = FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![wanted]);
        let request = FetchRequest::default()
            .with_max_wait_ms(FETCH_WAIT_MS)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            .with_isolation_level(1)
            .with_topics(vec![wanted]);
        let response = self.call(&request, 12)?;
        check(response.error_code)?;
        let data = &response.responses[0].partitions[0];
        check(data.error_code)?;
        let mut aborted: Vec<(i64, i64)> =
            data.aborted_transactions.iter().flatten().map(|a| (a.first_offset, a.producer_id.0)).collect();
        aborted.sort_unstable();
        let (mut aborted, mut inside) = (aborted.into_iter().peekable(), Vec::new());
        let mut fetched = Fetched { values: Vec::new(), next: from, last_stable: data.last_stable_offset };
        for batch in RecordBatchDecoder::decode_all(&mut data.records.clone().unwrap_or_default())? {
            for record in batch.records {
                while let Some((_, id)) = aborted.next_if(|(first, _)| *first <= record.offset) {
                    inside.push(id);
                }
                fetched.next = fetched.next.max(record.offset + 1);
                if record.control {
                    inside.retain(|id| *id != record.producer_id);
                } else if record.offset >= from && !inside.contains(&record.producer_id) {
                    let Some(value) = record.value.as_deref().and_then(|v| v.try_into().ok()) else {
                        bail!("a record of another form at offset {}", record.offset);
                    };
                    fetched.values.push(u64::from_be_bytes(value));
                }
            }
        }
        Ok(fetched)
    }
}
