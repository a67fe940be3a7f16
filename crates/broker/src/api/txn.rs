//! AddPartitionsToTxn, AddOffsetsToTxn, EndTxn: a transaction from its producer's side.

use kafka_protocol::{
    ResponseError,
    messages::{
        AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest,
        AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse, ProducerId,
        add_partitions_to_txn_request::*, add_partitions_to_txn_response::*,
    },
};

use super::{Context, code};
use crate::{
    coordinator::OFFSETS_TOPIC,
    security::acl::Operation,
    topics::is_internal,
    txn::{EPOCH_BUMP, End, Producer, TopicPartition},
};

/// The first version of these requests that knows `PRODUCER_FENCED`.
const FENCED: i16 = 2;
/// The first version of EndTxn whose answer has the producer's new epoch.
const BUMPS: i16 = 5;

/// Older versions have one error for all that is fenced.
pub(super) fn fenced(error: ResponseError, knows_fenced: bool) -> ResponseError {
    match error {
        ResponseError::ProducerFenced if !knows_fenced => ResponseError::InvalidProducerEpoch,
        error => error,
    }
}

/// AddPartitionsToTxn. From version 4 on it is for many transactions, and may only ask.
pub(crate) async fn add_partitions(
    cx: Context,
    request: AddPartitionsToTxnRequest,
) -> AddPartitionsToTxnResponse {
    let response = AddPartitionsToTxnResponse::default();
    if cx.version < 4 {
        let one = AddPartitionsToTxnTransaction::default()
            .with_transactional_id(request.v3_and_below_transactional_id)
            .with_producer_id(request.v3_and_below_producer_id)
            .with_producer_epoch(request.v3_and_below_producer_epoch)
            .with_topics(request.v3_and_below_topics);
        return response.with_results_by_topic_v3_and_below(add_to_one(&cx, one).await.topic_results);
    }
    let mut results = Vec::with_capacity(request.transactions.len());
    for one in request.transactions {
        results.push(add_to_one(&cx, one).await);
    }
    response.with_results_by_transaction(results)
}

async fn add_to_one(cx: &Context, one: AddPartitionsToTxnTransaction) -> AddPartitionsToTxnResult {
    let id = &*one.transactional_id;
    let producer = Producer { id: one.producer_id.0, epoch: one.producer_epoch };
    let all: Vec<TopicPartition> =
        one.topics.iter().flat_map(|t| t.partitions.iter().map(|p| (t.name.to_string(), *p))).collect();
    let owned = cx.transaction(Operation::Write, id);
    let known = |(topic, partition): &TopicPartition| {
        owned?;
        cx.topic(Operation::Write, topic)?;
        if is_internal(topic) && !one.verify_only {
            return Err(ResponseError::TopicAuthorizationFailed);
        }
        let there = cx.shared.topics.partition(topic, *partition).is_some();
        if there { Ok(()) } else { Err(ResponseError::UnknownTopicOrPartition) }
    };
    let checked: Vec<_> = all.iter().map(known).collect();
    let results: Vec<i16> = if checked.iter().any(Result::is_err) {
        // All or none.
        let left = ResponseError::OperationNotAttempted.code();
        checked.iter().map(|c| if c.is_err() { code(c) } else { left }).collect()
    } else if one.verify_only {
        let done = cx.shared.transactions.with(id, |shard, _, _| {
            all.iter().map(|p| code(&shard.verify(id, producer, p))).collect::<Vec<_>>()
        });
        done.await.unwrap_or_else(|e| vec![e.code(); all.len()])
    } else {
        let version = if cx.version < 4 { 0 } else { EPOCH_BUMP };
        let added = cx.shared.transactions.add(id, producer, &all, version).await;
        let done = added.map_err(|e| fenced(e, cx.version >= FENCED));
        vec![code(&done); all.len()]
    };
    let mut results = results.into_iter();
    let topics = one.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().zip(&mut results).map(|(partition, error)| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*partition)
                .with_partition_error_code(error)
        });
        let partitions = partitions.collect();
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions)
    });
    let topics = topics.collect();
    AddPartitionsToTxnResult::default().with_transactional_id(one.transactional_id).with_topic_results(topics)
}

/// AddOffsetsToTxn: the partition of a group's offsets becomes part of the transaction.
pub(crate) async fn add_offsets(cx: Context, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let id = &*request.transactional_id;
    let producer = Producer { id: request.producer_id.0, epoch: request.producer_epoch };
    let added = async {
        cx.transaction(Operation::Write, id)?;
        cx.group(Operation::Read, &request.group_id)?;
        let partition = cx.shared.groups.partition(&request.group_id).await?;
        let offsets = [(OFFSETS_TOPIC.to_owned(), partition)];
        cx.shared.transactions.add(id, producer, &offsets, 0).await
    };
    let done = added.await.map_err(|e| fenced(e, cx.version >= FENCED));
    AddOffsetsToTxnResponse::default().with_error_code(code(&done))
}

/// EndTxn: answered as soon as it is sure that all partitions will learn of it.
pub(crate) async fn end(cx: Context, request: EndTxnRequest) -> EndTxnResponse {
    let transactions = &cx.shared.transactions;
    let id = &*request.transactional_id;
    let end = End {
        id,
        producer: Producer { id: request.producer_id.0, epoch: request.producer_epoch },
        commit: request.committed,
        bumps: cx.version >= BUMPS,
    };
    let mut fresh = transactions.fresh();
    let ended = async {
        cx.transaction(Operation::Write, id)?;
        transactions.with(id, |shard, now, fx| shard.end(now, end, &mut fresh, fx)).await?
    };
    let ended = ended.await.map_err(|e| fenced(e, cx.version >= FENCED));
    let response = EndTxnResponse::default().with_error_code(code(&ended));
    match ended {
        Ok(producer) if end.bumps => {
            response.with_producer_id(ProducerId(producer.id)).with_producer_epoch(producer.epoch)
        }
        _ => response.with_producer_id(ProducerId(-1)).with_producer_epoch(-1),
    }
}
