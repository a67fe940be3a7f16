//! Produce: batches are appended at once, in order, and answered when they are durable.

use bytes::Bytes;
use dibs_log::{
    AppendError, Appended, Lost, ProducerError,
    batch::{BatchError, BatchHeader},
};
use kafka_protocol::{
    ResponseError,
    messages::{ProduceRequest, ProduceResponse, TopicName, produce_request::*, produce_response::*},
};
use uuid::Uuid;

use super::{Answering, Call, Context, text, unencodable};
use crate::{
    connection::Hangup,
    quota::Quota,
    security::acl::Operation,
    topics::{Partition, Topic},
    txn::{EPOCH_BUMP, Producer, TopicPartition},
    wire::{Reply, Versions},
};

pub(crate) const KEY: i16 = 0;
/// What is taken.
pub(crate) const VERSIONS: Versions = Versions(3, 13);
/// What is said to be taken.
pub(crate) const ADVERTISED: Versions = Versions(0, 13);

/// One partition's batch on its way.
struct Item {
    index: i32,
    state: State,
}

enum State {
    /// Too much is waiting there; to be tried again.
    Full(Partition, Bytes),
    /// It would begin a transaction there, of which the coordinator has to know.
    Unverified(Partition, Bytes),
    Appended(Partition, Appended),
    Refused(Refusal),
}

/// Why a batch was not taken.
struct Refusal {
    error: ResponseError,
    /// In words, if there is more to say.
    why: String,
    /// Where in the batch the records are that are to blame, if not all of them (KIP-467).
    records: Vec<u32>,
}

impl Refusal {
    fn new(error: ResponseError, why: impl Into<String>) -> Refusal {
        Refusal { error, why: why.into(), records: Vec::new() }
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Refusal {
        let (told, why) = (error_of(&error), error.to_string());
        let records = match error {
            AppendError::NoKey { records } | AppendError::Timestamp { records, .. } => records,
            _ => Vec::new(),
        };
        Refusal { error: told, why, records }
    }
}

/// What all batches of a request share.
struct Of {
    acks: i16,
    /// Whether the request names a transaction.
    is_named: bool,
    /// Whether that transaction is the client's to write.
    may: Result<(), ResponseError>,
}

struct Batches {
    name: TopicName,
    id: Uuid,
    /// The topic's name, however the request calls it.
    topic: String,
    items: Vec<Item>,
}

pub(crate) fn begin(mut call: Call) -> Result<Answering, Hangup> {
    let request: ProduceRequest = call.decode()?;
    let (acks, version, correlation) = (request.acks, call.cx.version, call.correlation);
    let transaction = request.transactional_id.map(|id| id.to_string());
    let may = transaction.as_deref().map_or(Ok(()), |id| call.cx.transaction(Operation::Write, id));
    let of = Of { acks, is_named: transaction.is_some(), may };
    let parts = request.topic_data.iter().flat_map(|t| &t.partition_data);
    let bytes: usize = parts.filter_map(|p| p.records.as_ref()).map(Bytes::len).sum();
    let append = |topic| append_all(&call.cx, topic, &of);
    let mut topics: Vec<Batches> = request.topic_data.into_iter().map(append).collect();
    let items = || topics.iter().flat_map(|t| &t.items);
    let waits = items().any(|i| matches!(i.state, State::Full(..) | State::Unverified(..)));
    let cx = call.cx;
    let throttle = cx.takes(Quota::Produce, bytes as f64);
    if acks == 0 {
        if items().any(|i| matches!(i.state, State::Refused(..))) {
            // There is no answer that could carry the error.
            return Err(Hangup::Refused("a batch of a request with acks=0 was refused".into()));
        }
        let future = async move {
            settle(&cx, transaction.as_deref(), &mut topics).await;
            Ok(None)
        };
        return Ok(Answering { future: Box::pin(future), pipelined: !waits });
    }
    let future = async move {
        if waits {
            settle(&cx, transaction.as_deref(), &mut topics).await;
        }
        let response = finish(topics).await.with_throttle_time_ms(throttle);
        Reply::frame(correlation, version, &response).map(Some).map_err(unencodable)
    };
    // What has to wait is appended later: until then nothing behind it may be.
    Ok(Answering { future: Box::pin(future), pipelined: !waits })
}

fn append_all(cx: &Context, data: TopicProduceData, of: &Of) -> Batches {
    let id = (cx.version >= 13).then_some(data.topic_id);
    let topic = of.may.and_then(|()| cx.find_topic(Operation::Write, &data.name, id));
    let append = |partition: PartitionProduceData| {
        let index = partition.index;
        let state = match &topic {
            _ if !matches!(of.acks, -1..=1) => {
                State::Refused(Refusal::new(ResponseError::InvalidRequiredAcks, ""))
            }
            Ok(topic) => append(cx, topic, partition, of.is_named),
            Err(error) => State::Refused(Refusal::new(*error, "")),
        };
        Item { index, state }
    };
    let items = data.partition_data.into_iter().map(append).collect();
    let name = topic.as_ref().map_or_else(|_| String::new(), |t| t.name().to_owned());
    Batches { name: data.name, id: data.topic_id, topic: name, items }
}

fn append(cx: &Context, topic: &Topic, data: PartitionProduceData, is_named: bool) -> State {
    let refused = |e: ResponseError, why: &str| State::Refused(Refusal::new(e, why));
    let Some(partition) = topic.partition(data.index) else {
        return refused(ResponseError::UnknownTopicOrPartition, "");
    };
    if topic.is_internal() {
        return refused(ResponseError::InvalidTopicException, "The broker writes this topic itself.");
    }
    let owned = cx.shared.topics.owned(topic.name());
    if owned.is_some_and(|o| !o.produce) {
        return refused(ResponseError::TopicAuthorizationFailed, "This topic is for reading.");
    }
    let batch = data.records.unwrap_or_default();
    if owned.is_some() && BatchHeader::parse(&batch).is_ok_and(|header| header.is_transactional()) {
        let why = "This topic takes no transactions: a record counts as soon as it is durable.";
        return refused(ResponseError::InvalidRecord, why);
    }
    if batch.is_empty() {
        return refused(ResponseError::InvalidRecord, "Produce request has no record batches");
    }
    if batch.len() > partition.max_message_bytes() {
        return refused(ResponseError::MessageTooLarge, "");
    }
    match check(cx, &batch, is_named) {
        Ok(()) => try_append(partition, batch),
        Err(refusal) => State::Refused(refusal),
    }
}

/// What the log does not look at: whether a client may send such a batch to such a topic.
fn check(cx: &Context, bytes: &[u8], is_named: bool) -> Result<(), Refusal> {
    let refused = |error: ResponseError, why: &str| Err(Refusal::new(error, why));
    let invalid = |why: &str| refused(ResponseError::InvalidRecord, why);
    let Ok(header) = BatchHeader::parse(bytes) else { return Ok(()) };
    if header.is_control() {
        return invalid("Clients are not allowed to write control records");
    }
    if header.compression() > 4 {
        return refused(ResponseError::UnsupportedCompressionType, "");
    }
    if header.compression() == 4 && cx.version < 7 {
        let why = "Produce requests with version below 7 are not allowed to use ZStandard compression";
        return refused(ResponseError::UnsupportedCompressionType, why);
    }
    if header.size() != bytes.len() {
        return invalid("Produce requests are allowed to contain exactly one record batch per partition");
    }
    if header.is_transactional() && !is_named {
        return refused(ResponseError::TransactionalIdAuthorizationFailed, "");
    }
    Ok(())
}

fn try_append(partition: Partition, batch: Bytes) -> State {
    match partition.append(&batch) {
        Ok(appended) => State::Appended(partition, appended),
        Err(AppendError::Full) => State::Full(partition, batch),
        Err(AppendError::Producer(ProducerError::NotInTransaction { .. })) => {
            State::Unverified(partition, batch)
        }
        Err(e) => State::Refused(e.into()),
    }
}

/// Appends what could not be appended at once.
async fn settle(cx: &Context, transaction: Option<&str>, topics: &mut [Batches]) {
    for topic in topics {
        for item in &mut topic.items {
            loop {
                item.state = match &item.state {
                    State::Full(partition, batch) => {
                        let (partition, batch) = (partition.clone(), batch.clone());
                        if let Some(waiting) = partition.newest_pending() {
                            partition.room(waiting).await;
                        }
                        try_append(partition, batch)
                    }
                    State::Unverified(partition, batch) => {
                        let (partition, batch) = (partition.clone(), batch.clone());
                        let of = (topic.topic.clone(), item.index);
                        verify(cx, transaction.unwrap_or_default(), of, partition, batch).await
                    }
                    State::Appended(..) | State::Refused(..) => break,
                };
            }
        }
    }
}

/// Appends the first batch of a transaction to a partition, if the transaction's coordinator knows that it is part
/// of it. From version 12 on, sending the batch makes it so (KIP-890).
async fn verify(
    cx: &Context,
    transaction: &str,
    of: TopicPartition,
    partition: Partition,
    batch: Bytes,
) -> State {
    let Ok(header) = BatchHeader::parse(&batch) else {
        return State::Refused(Refusal::new(ResponseError::CorruptMessage, ""));
    };
    let producer = Producer { id: header.producer_id, epoch: header.producer_epoch };
    let adds = (cx.version >= 12).then_some(EPOCH_BUMP);
    let append = || partition.append_verified(&batch);
    match cx.shared.transactions.within(transaction, producer, &of, adds, append).await {
        Ok(Ok(appended)) => State::Appended(partition, appended),
        Ok(Err(AppendError::Full)) => State::Full(partition, batch),
        Ok(Err(e)) => State::Refused(e.into()),
        Err(e) => {
            let told = match e {
                ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
                ResponseError::TransactionAbortable if cx.version < 11 => ResponseError::InvalidTxnState,
                // Older clients try again after this one only.
                ResponseError::ConcurrentTransactions if cx.version < 12 => ResponseError::NotEnoughReplicas,
                ResponseError::CoordinatorNotAvailable => ResponseError::NotEnoughReplicas,
                e => e,
            };
            let why = format!("the partition is not known to be part of the transaction: {e}");
            State::Refused(Refusal::new(told, why))
        }
    }
}

async fn finish(topics: Vec<Batches>) -> ProduceResponse {
    let mut responses = Vec::with_capacity(topics.len());
    for topic in topics {
        let mut partitions = Vec::with_capacity(topic.items.len());
        for item in topic.items {
            partitions.push(finish_one(item).await);
        }
        responses.push(
            TopicProduceResponse::default()
                .with_name(topic.name)
                .with_topic_id(topic.id)
                .with_partition_responses(partitions),
        );
    }
    ProduceResponse::default().with_responses(responses)
}

async fn finish_one(item: Item) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(item.index).with_log_append_time_ms(-1);
    let refused = |refusal: Refusal| {
        let why = (!refusal.why.is_empty()).then(|| text(refusal.why));
        let record = |index| BatchIndexAndErrorMessage::default().with_batch_index(index as i32);
        let records = refusal.records.into_iter().map(record).collect();
        let response = response.clone().with_error_code(refusal.error.code()).with_base_offset(-1);
        response.with_error_message(why).with_record_errors(records)
    };
    match item.state {
        State::Appended(partition, appended) => match partition.durable(appended).await {
            Ok(time) => response
                .with_log_append_time_ms(if partition.has_append_time() { time } else { -1 })
                .with_base_offset(appended.base_offset as i64)
                .with_log_start_offset(partition.start() as i64),
            Err(e @ Lost::Failed) => refused(Refusal::new(ResponseError::KafkaStorageError, e.to_string())),
            Err(e @ Lost::Closed) => refused(Refusal::new(ResponseError::NotLeaderOrFollower, e.to_string())),
        },
        State::Refused(refusal) => refused(refusal),
        State::Full(..) | State::Unverified(..) => {
            refused(Refusal::new(ResponseError::KafkaStorageError, ""))
        }
    }
}

/// What a client is told about an append that failed.
pub(super) fn error_of(error: &AppendError) -> ResponseError {
    match error {
        AppendError::TooLarge { .. } => ResponseError::MessageTooLarge,
        AppendError::Invalid(BatchError::Magic(_)) => ResponseError::UnsupportedForMessageFormat,
        AppendError::Invalid(BatchError::Crc { .. } | BatchError::Truncated { .. }) => {
            ResponseError::CorruptMessage
        }
        AppendError::Invalid(_) | AppendError::NoKey { .. } => ResponseError::InvalidRecord,
        AppendError::Timestamp { .. } => ResponseError::InvalidTimestamp,
        AppendError::Producer(e) => match e {
            ProducerError::OutOfOrderSequence { .. } => ResponseError::OutOfOrderSequenceNumber,
            ProducerError::InvalidEpoch { .. } => ResponseError::InvalidProducerEpoch,
            ProducerError::InvalidTransactionState { .. } | ProducerError::NotInTransaction { .. } => {
                ResponseError::InvalidTxnState
            }
            ProducerError::CoordinatorFenced { .. } => ResponseError::TransactionCoordinatorFenced,
            ProducerError::Control => ResponseError::InvalidRecord,
        },
        AppendError::Full | AppendError::Unavailable => ResponseError::KafkaStorageError,
        AppendError::Closed => ResponseError::NotLeaderOrFollower,
    }
}
