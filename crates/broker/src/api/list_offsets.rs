//! ListOffsets and OffsetForLeaderEpoch: offsets by time, by name, and by epoch.

use kafka_protocol::{
    ResponseError,
    messages::{
        ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
        list_offsets_request::ListOffsetsPartition, list_offsets_response::*,
        offset_for_leader_epoch_request::OffsetForLeaderPartition, offset_for_leader_epoch_response::*,
    },
};

use super::{Context, fetch};
use crate::{security::acl::Operation, topics::Partition};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

pub(crate) async fn answer(cx: Context, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let committed = request.isolation_level == 1;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let may = cx.topic(Operation::Describe, &topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in topic.partitions {
            let response =
                ListOffsetsPartitionResponse::default().with_partition_index(wanted.partition_index);
            let partition = cx.shared.topics.partition(&topic.name, wanted.partition_index);
            let found = may.and(partition.ok_or(ResponseError::UnknownTopicOrPartition));
            let found = found.and_then(|partition| find(&cx, &partition, &wanted, committed));
            partitions.push(match found {
                Ok(Some((offset, timestamp))) => response
                    .with_offset(offset as i64)
                    .with_timestamp(timestamp)
                    .with_leader_epoch(if cx.version >= 4 { 0 } else { -1 }),
                Ok(None) => response.with_offset(-1).with_timestamp(-1),
                Err(e) => response.with_offset(-1).with_timestamp(-1).with_error_code(e.code()),
            });
        }
        topics.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

/// An offset and its timestamp.
type Found = Option<(u64, i64)>;

fn find(
    cx: &Context,
    partition: &Partition,
    wanted: &ListOffsetsPartition,
    committed: bool,
) -> Result<Found, ResponseError> {
    fetch::check_epoch(wanted.current_leader_epoch)?;
    match wanted.timestamp {
        LATEST if committed => Ok(Some((partition.last_stable(), -1))),
        LATEST => Ok(Some((partition.high_watermark(), -1))),
        EARLIEST => Ok(Some((partition.start(), -1))),
        EARLIEST_LOCAL if cx.version >= 8 => Ok(Some((partition.start(), -1))),
        MAX_TIMESTAMP if cx.version >= 7 => partition.newest().map_err(|e| fetch::error_of(&e)),
        LATEST_TIERED if cx.version >= 9 => Ok(None),
        timestamp if timestamp >= 0 => {
            let end = if committed { partition.last_stable() } else { partition.high_watermark() };
            let found = partition.by_time(timestamp).map_err(|e| fetch::error_of(&e))?;
            Ok(found.filter(|(offset, _)| *offset < end))
        }
        _ => Err(ResponseError::UnsupportedVersion),
    }
}

pub(crate) async fn answer_epochs(
    cx: Context,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let ends = topic.partitions.iter().map(|wanted| {
            let response = EpochEndOffset::default().with_partition(wanted.partition);
            match end_of_epoch(&cx, &topic.topic, wanted) {
                Ok(Some(end)) => response.with_leader_epoch(0).with_end_offset(end as i64),
                Ok(None) => response,
                Err(e) => response.with_error_code(e.code()),
            }
        });
        let partitions = ends.collect();
        topics
            .push(OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions));
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

fn end_of_epoch(
    cx: &Context,
    topic: &str,
    wanted: &OffsetForLeaderPartition,
) -> Result<Option<u64>, ResponseError> {
    cx.topic(Operation::Describe, topic)?;
    let partition = cx.shared.topics.partition(topic, wanted.partition);
    let partition = partition.ok_or(ResponseError::UnknownTopicOrPartition)?;
    fetch::check_epoch(wanted.current_leader_epoch)?;
    Ok((wanted.leader_epoch == 0).then(|| partition.high_watermark()))
}
