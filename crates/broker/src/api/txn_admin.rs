//! ListTransactions, DescribeTransactions, DescribeProducers, WriteTxnMarkers: transactions from their operator's
//! side (KIP-664).

use dibs_log::{Appended, Marker};
use kafka_protocol::{
    ResponseError,
    messages::{
        DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest,
        DescribeTransactionsResponse, ListTransactionsRequest, ListTransactionsResponse, TransactionalId,
        WriteTxnMarkersRequest, WriteTxnMarkersResponse,
        describe_producers_response::{PartitionResponse, ProducerState, TopicResponse},
        describe_transactions_response as described, list_transactions_response as listed,
        write_txn_markers_request::WritableTxnMarker,
        write_txn_markers_response::*,
    },
};
use regex::{Regex, RegexBuilder};

use super::{Context, produce::error_of, text, topic_name};
use crate::{
    security::acl::Operation,
    topics::Partition,
    txn::{State, Transaction},
};

/// A pattern may take so many bytes when compiled.
const PATTERN_BYTES: usize = 1 << 20;

pub(crate) async fn list(cx: Context, request: ListTransactionsRequest) -> ListTransactionsResponse {
    let unknown = request.state_filters.iter().filter(|s| !State::is_name(s)).cloned().collect();
    let response = ListTransactionsResponse::default().with_unknown_state_filters(unknown);
    let pattern = match request.transactional_id_pattern.as_deref().filter(|p| !p.is_empty()).map(whole) {
        None => None,
        Some(Ok(pattern)) => Some(pattern),
        Some(Err(e)) => return response.with_error_code(e.code()),
    };
    let duration = if cx.version >= 1 { request.duration_filter } else { -1 };
    let wanted = |id: &str, transaction: &Transaction, now: i64| {
        let (ids, states) = (&request.producer_id_filters, &request.state_filters);
        (ids.is_empty() || ids.iter().any(|p| p.0 == transaction.producer_id))
            && (states.is_empty() || states.iter().any(|s| **s == *transaction.state.name()))
            && (duration < 0 || now.saturating_sub(transaction.started) > duration)
            && pattern.as_ref().is_none_or(|p| p.is_match(id))
    };
    let mine = |id: &str| cx.transaction(Operation::Describe, id).is_ok();
    let mut states = Vec::new();
    let done = cx.shared.transactions.each(|shard, now| {
        for (id, transaction) in shard.all().filter(|(id, t)| wanted(id, t, now) && mine(id)) {
            states.push(
                listed::TransactionState::default()
                    .with_transactional_id(TransactionalId(text(id)))
                    .with_producer_id(transaction.producer_id.into())
                    .with_transaction_state(text(transaction.state.name())),
            );
        }
    });
    match done.await {
        Ok(()) => response.with_transaction_states(states),
        Err(e) => response.with_error_code(e.code()),
    }
}

/// A pattern that whole texts have to match.
fn whole(pattern: &str) -> Result<Regex, ResponseError> {
    let build = |pattern: &str| RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build();
    // By itself first, so that no bracket of it closes ours.
    let built = build(pattern).and_then(|_| build(&format!("^(?:{pattern})$")));
    built.map_err(|_| ResponseError::InvalidRegularExpression)
}

pub(crate) async fn describe(
    cx: Context,
    request: DescribeTransactionsRequest,
) -> DescribeTransactionsResponse {
    let mut states = Vec::with_capacity(request.transactional_ids.len());
    for id in request.transactional_ids {
        let found = if id.is_empty() {
            Err(ResponseError::InvalidRequest)
        } else {
            let describe = async {
                cx.transaction(Operation::Describe, &id)?;
                let find = |t: Option<&Transaction>| t.map(|t| describe_one(&cx, t));
                let found = cx.shared.transactions.with(&id, |shard, _, _| find(shard.get(&id)));
                found.await?.ok_or(ResponseError::TransactionalIdNotFound)
            };
            describe.await
        };
        let state =
            found.unwrap_or_else(|e| described::TransactionState::default().with_error_code(e.code()));
        states.push(state.with_transactional_id(id));
    }
    DescribeTransactionsResponse::default().with_transaction_states(states)
}

fn describe_one(cx: &Context, transaction: &Transaction) -> described::TransactionState {
    let mine = |topic: &str| cx.topic(Operation::Describe, topic).is_ok();
    let all: Vec<_> = transaction.partitions.iter().filter(|p| mine(&p.0)).collect();
    let topics = all.chunk_by(|a, b| a.0 == b.0).map(|partitions| {
        described::TopicData::default()
            .with_topic(topic_name(&partitions[0].0))
            .with_partitions(partitions.iter().map(|p| p.1).collect())
    });
    described::TransactionState::default()
        .with_transaction_state(text(transaction.state.name()))
        .with_transaction_timeout_ms(transaction.timeout_ms)
        .with_transaction_start_time_ms(transaction.started)
        .with_producer_id(transaction.producer_id.into())
        .with_producer_epoch(transaction.epoch)
        .with_topics(topics.collect())
}

pub(crate) async fn describe_producers(
    cx: Context,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|index| {
            let response = PartitionResponse::default().with_partition_index(*index);
            match cx.shared.topics.partition(&topic.name, *index) {
                _ if cx.topic(Operation::Read, &topic.name).is_err() => {
                    response.with_error_code(ResponseError::TopicAuthorizationFailed.code())
                }
                Some(partition) => response.with_active_producers(producers(&partition)),
                None => response.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
            }
        });
        let partitions = partitions.collect();
        TopicResponse::default().with_name(topic.name).with_partitions(partitions)
    });
    DescribeProducersResponse::default().with_topics(topics.collect())
}

fn producers(partition: &Partition) -> Vec<ProducerState> {
    let state = |p: dibs_log::ProducerInfo| {
        ProducerState::default()
            .with_producer_id(p.id.into())
            .with_producer_epoch(p.epoch.into())
            .with_last_sequence(p.last_sequence)
            .with_last_timestamp(p.last_timestamp)
            .with_coordinator_epoch(p.coordinator_epoch)
            .with_current_txn_start_offset(p.transaction_start.map_or(-1, |start| start as i64))
    };
    partition.producers().into_iter().map(state).collect()
}

pub(crate) async fn write_markers(cx: Context, request: WriteTxnMarkersRequest) -> WriteTxnMarkersResponse {
    let mut results = Vec::with_capacity(request.markers.len());
    for marker in request.markers {
        results.push(write_one(&cx, marker).await);
    }
    WriteTxnMarkersResponse::default().with_markers(results)
}

async fn write_one(cx: &Context, wanted: WritableTxnMarker) -> WritableTxnMarkerResult {
    let marker = Marker {
        producer_id: wanted.producer_id.0,
        producer_epoch: wanted.producer_epoch,
        coordinator_epoch: wanted.coordinator_epoch,
        commit: wanted.transaction_result,
    };
    // All are appended before the first is waited for.
    let may = cx.cluster(Operation::ClusterAction).or_else(|_| cx.cluster(Operation::Alter));
    let append = |topic: &str, partition: i32| -> Result<(Partition, Appended), ResponseError> {
        may?;
        match cx.shared.transactions.append_marker(&(topic.to_owned(), partition), &marker) {
            None => Err(ResponseError::UnknownTopicOrPartition),
            Some(written) => written.map_err(|e| error_of(&e)),
        }
    };
    let written: Vec<Vec<_>> = wanted
        .topics
        .iter()
        .map(|t| t.partition_indexes.iter().map(|p| (*p, append(&t.name, *p))).collect())
        .collect();
    let mut topics = Vec::with_capacity(written.len());
    for (topic, written) in wanted.topics.into_iter().zip(written) {
        let mut partitions = Vec::with_capacity(written.len());
        for (partition, written) in written {
            let error = match written {
                Ok((log, appended)) if log.durable(appended).await.is_ok() => 0,
                Ok(_) => ResponseError::KafkaStorageError.code(),
                Err(e) => e.code(),
            };
            partitions.push(
                WritableTxnMarkerPartitionResult::default()
                    .with_partition_index(partition)
                    .with_error_code(error),
            );
        }
        topics
            .push(WritableTxnMarkerTopicResult::default().with_name(topic.name).with_partitions(partitions));
    }
    WritableTxnMarkerResult::default().with_producer_id(wanted.producer_id).with_topics(topics)
}
