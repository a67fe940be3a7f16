//! TxnOffsetCommit: offsets that count when the transaction is committed.

use kafka_protocol::{
    ResponseError,
    messages::{
        TxnOffsetCommitRequest, TxnOffsetCommitResponse, txn_offset_commit_request::*,
        txn_offset_commit_response::*,
    },
};

use super::{Context, code};
use crate::{
    clock,
    coordinator::OFFSETS_TOPIC,
    group::offsets::Committed,
    security::acl::Operation,
    txn::{EPOCH_BUMP, Producer},
};

/// The first version that knows `TRANSACTION_ABORTABLE`.
const ABORTABLE: i16 = 4;
/// The first version that makes the offsets' partition part of the transaction (KIP-890).
const ADDS: i16 = 5;

pub(crate) async fn answer(cx: Context, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let owned = cx.transaction(Operation::Write, &request.transactional_id);
    let owned = owned.and_then(|()| cx.group(Operation::Read, &request.group_id));
    let check = |topic: &str, p: &TxnOffsetCommitRequestPartition| {
        owned?;
        cx.topic(Operation::Read, topic)?;
        if cx.shared.topics.partition(topic, p.partition_index).is_none() {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        let size = p.committed_metadata.as_ref().map_or(0, |m| m.len());
        let fits = size <= cx.shared.config().offset_metadata_max.min(i16::MAX as usize);
        if fits { Ok(()) } else { Err(ResponseError::OffsetMetadataTooLarge) }
    };
    let at = clock::wall_ms();
    let mut offsets = Vec::new();
    for topic in &request.topics {
        for p in topic.partitions.iter().filter(|p| check(&topic.name, p).is_ok()) {
            let value = Committed {
                offset: p.committed_offset,
                leader_epoch: p.committed_leader_epoch,
                metadata: p.committed_metadata.as_deref().unwrap_or_default().to_owned(),
                at,
            };
            offsets.push((topic.name.to_string(), p.partition_index, value));
        }
    }
    let done = if offsets.is_empty() { Ok(()) } else { hold(&cx, &request, offsets).await };
    let done = done.map_err(|e| told(e, cx.version));
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|p| {
            let result = check(&topic.name, p).and(done);
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(p.partition_index)
                .with_error_code(code(&result))
        });
        let partitions = partitions.collect();
        TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions)
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

async fn hold(
    cx: &Context,
    request: &TxnOffsetCommitRequest,
    offsets: Vec<(String, i32, Committed)>,
) -> Result<(), ResponseError> {
    let group = &*request.group_id;
    if group.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    let producer = Producer { id: request.producer_id.0, epoch: request.producer_epoch };
    let groups = &cx.shared.groups;
    let partition = (OFFSETS_TOPIC.to_owned(), groups.partition(group).await?);
    let adds = (cx.version >= ADDS).then_some(EPOCH_BUMP);
    let append = || {
        groups.hold(group, producer, offsets, |shard, now| {
            let instance = request.group_instance_id.as_deref();
            shard.may_commit_in_transaction(now, group, &request.member_id, instance, request.generation_id)
        })
    };
    let id = &*request.transactional_id;
    let (log, appended) = cx.shared.transactions.within(id, producer, &partition, adds, append).await??;
    log.durable(appended).await.map(drop).map_err(|_| ResponseError::CoordinatorNotAvailable)
}

/// The error as a version knows it.
fn told(error: ResponseError, version: i16) -> ResponseError {
    match error {
        ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
        ResponseError::TransactionAbortable if version < ABORTABLE => ResponseError::InvalidTxnState,
        // Older clients try again after this one only.
        ResponseError::ConcurrentTransactions if version < ADDS => ResponseError::CoordinatorLoadInProgress,
        error => error,
    }
}
