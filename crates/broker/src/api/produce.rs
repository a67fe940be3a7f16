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
    topics::{Partition, Topic},
    wire::{Versions, respond},
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
    Appended(Partition, Appended),
    Refused(ResponseError, String),
}

struct Batches {
    name: TopicName,
    id: Uuid,
    items: Vec<Item>,
}

pub(crate) fn begin(mut call: Call) -> Result<Answering, Hangup> {
    let request: ProduceRequest = call.decode()?;
    let (acks, version, correlation) = (request.acks, call.cx.version, call.correlation);
    let mut topics: Vec<Batches> =
        request.topic_data.into_iter().map(|topic| append_all(&call.cx, topic, acks)).collect();
    let items = || topics.iter().flat_map(|t| &t.items);
    let full = items().any(|i| matches!(i.state, State::Full(..)));
    if acks == 0 {
        if items().any(|i| matches!(i.state, State::Refused(..))) {
            // There is no answer that could carry the error.
            return Err(Hangup::Refused("a batch of a request with acks=0 was refused".into()));
        }
        let future = async move {
            retry_full(&mut topics).await;
            Ok(None)
        };
        return Ok(Answering { future: Box::pin(future), pipelined: !full });
    }
    let future = async move {
        if full {
            retry_full(&mut topics).await;
        }
        let response = finish(topics).await;
        respond(correlation, version, &response).map(Some).map_err(unencodable)
    };
    // What had no room is appended later: until then nothing behind it may be.
    Ok(Answering { future: Box::pin(future), pipelined: !full })
}

fn append_all(cx: &Context, data: TopicProduceData, acks: i16) -> Batches {
    let topics = &cx.shared.topics;
    let by_id = cx.version >= 13;
    let topic = if by_id { topics.by_id(data.topic_id) } else { topics.get(&data.name) };
    let missing = if by_id { ResponseError::UnknownTopicId } else { ResponseError::UnknownTopicOrPartition };
    let append = |partition: PartitionProduceData| {
        let index = partition.index;
        let state = if matches!(acks, -1..=1) {
            match &topic {
                Some(topic) => append(cx, topic, partition),
                None => State::Refused(missing, String::new()),
            }
        } else {
            State::Refused(ResponseError::InvalidRequiredAcks, String::new())
        };
        Item { index, state }
    };
    let items = data.partition_data.into_iter().map(append).collect();
    Batches { name: data.name, id: data.topic_id, items }
}

fn append(cx: &Context, topic: &Topic, data: PartitionProduceData) -> State {
    let refused = |e: ResponseError, why: &str| State::Refused(e, why.to_owned());
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
    if let Err((error, why)) = check(cx, &batch) {
        return State::Refused(error, why);
    }
    try_append(partition, batch)
}

/// What the log does not look at: whether a client may send such a batch to such a topic.
fn check(cx: &Context, bytes: &[u8]) -> Result<(), (ResponseError, String)> {
    let invalid = |why: &str| Err((ResponseError::InvalidRecord, why.to_owned()));
    let Ok(header) = BatchHeader::parse(bytes) else { return Ok(()) };
    if header.is_control() {
        return invalid("Clients are not allowed to write control records");
    }
    if header.compression() > 4 {
        return Err((ResponseError::UnsupportedCompressionType, String::new()));
    }
    if header.compression() == 4 && cx.version < 7 {
        let why = "Produce requests with version below 7 are not allowed to use ZStandard compression";
        return Err((ResponseError::UnsupportedCompressionType, why.to_owned()));
    }
    if header.size() != bytes.len() {
        return invalid("Produce requests are allowed to contain exactly one record batch per partition");
    }
    if header.is_transactional() {
        let why = "There are no transactions here yet";
        return Err((ResponseError::InvalidTxnState, why.to_owned()));
    }
    Ok(())
}

fn try_append(partition: Partition, batch: Bytes) -> State {
    match partition.append(&batch) {
        Ok(appended) => State::Appended(partition, appended),
        Err(AppendError::Full) => State::Full(partition, batch),
        Err(e) => State::Refused(error_of(&e), e.to_string()),
    }
}

async fn retry_full(topics: &mut [Batches]) {
    for item in topics.iter_mut().flat_map(|t| &mut t.items) {
        while let State::Full(partition, batch) = &item.state {
            let (partition, batch) = (partition.clone(), batch.clone());
            if let Some(waiting) = partition.newest_pending() {
                partition.room(waiting).await;
            }
            item.state = try_append(partition, batch);
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
    let refused = |error: ResponseError, why: String| {
        let why = (!why.is_empty()).then(|| text(why));
        response.clone().with_error_code(error.code()).with_base_offset(-1).with_error_message(why)
    };
    match item.state {
        State::Appended(partition, appended) => match partition.durable(appended).await {
            Ok(time) => response
                .with_log_append_time_ms(if partition.has_append_time() { time } else { -1 })
                .with_base_offset(appended.base_offset as i64)
                .with_log_start_offset(partition.start() as i64),
            Err(e @ Lost::Failed) => refused(ResponseError::KafkaStorageError, e.to_string()),
            Err(e @ Lost::Closed) => refused(ResponseError::NotLeaderOrFollower, e.to_string()),
        },
        State::Refused(error, why) => refused(error, why),
        State::Full(..) => refused(ResponseError::KafkaStorageError, String::new()),
    }
}

/// What a client is told about an append that failed.
fn error_of(error: &AppendError) -> ResponseError {
    match error {
        AppendError::TooLarge { .. } => ResponseError::MessageTooLarge,
        AppendError::Invalid(BatchError::Magic(_)) => ResponseError::UnsupportedForMessageFormat,
        AppendError::Invalid(BatchError::Crc { .. } | BatchError::Truncated { .. }) => {
            ResponseError::CorruptMessage
        }
        AppendError::Invalid(_) | AppendError::NoKey => ResponseError::InvalidRecord,
        AppendError::Timestamp(_) => ResponseError::InvalidTimestamp,
        AppendError::Producer(e) => match e {
            ProducerError::OutOfOrderSequence { .. } => ResponseError::OutOfOrderSequenceNumber,
            ProducerError::InvalidEpoch { .. } => ResponseError::InvalidProducerEpoch,
            ProducerError::InvalidTransactionState { .. } => ResponseError::InvalidTxnState,
            ProducerError::CoordinatorFenced { .. } => ResponseError::TransactionCoordinatorFenced,
            ProducerError::Control => ResponseError::InvalidRecord,
        },
        AppendError::Full | AppendError::Unavailable => ResponseError::KafkaStorageError,
        AppendError::Closed => ResponseError::NotLeaderOrFollower,
    }
}
