//! DescribeTopicPartitions: like Metadata, a page at a time.

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse,
        describe_topic_partitions_response::*,
    },
};

use super::{Context, topic_name};
use crate::security::acl::{Kind, Operation};

pub(crate) async fn answer(
    cx: Context,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let limit = cx.shared.config().request_partitions;
    let mut left = (request.response_partition_limit.max(1) as usize).min(limit);
    let all = request.topics.is_empty();
    let mut names: Vec<String> = if all {
        let all = cx.shared.topics.all();
        let mine = all.iter().filter(|t| cx.topic(Operation::Describe, t.name()).is_ok());
        mine.map(|t| t.name().to_owned()).collect()
    } else {
        request.topics.iter().map(|t| t.name.to_string()).collect()
    };
    names.sort_unstable();
    names.dedup();
    let (first, first_partition) =
        request.cursor.map_or((String::new(), 0), |c| (c.topic_name.to_string(), c.partition_index));
    let node = BrokerId(cx.shared.config().node_id);
    let mut topics = Vec::new();
    for name in names.into_iter().filter(|n| *n >= first) {
        let response = DescribeTopicPartitionsResponseTopic::default().with_name(Some(topic_name(&name)));
        if let Err(error) = cx.topic(Operation::Describe, &name) {
            topics.push(response.with_error_code(error.code()));
            continue;
        }
        let Some(topic) = cx.shared.topics.get(&name) else {
            let error = match dibs_log::check_topic_name(&name) {
                Ok(()) => ResponseError::UnknownTopicOrPartition,
                Err(_) => ResponseError::InvalidTopicException,
            };
            topics.push(response.with_error_code(error.code()));
            continue;
        };
        let from = if name == first { first_partition.max(0) } else { 0 };
        let end = topic.partition_count() as i32;
        let to = from.saturating_add(left as i32).min(end);
        if left == 0 && from < end {
            return page(topics, Some((&name, from)));
        }
        let partitions: Vec<_> = (from..to)
            .map(|i| {
                DescribeTopicPartitionsResponsePartition::default()
                    .with_partition_index(i)
                    .with_leader_id(node)
                    .with_leader_epoch(0)
                    .with_replica_nodes(vec![node])
                    .with_isr_nodes(vec![node])
                    .with_eligible_leader_replicas(Some(Vec::new()))
                    .with_last_known_elr(Some(Vec::new()))
            })
            .collect();
        left -= partitions.len();
        topics.push(
            response
                .with_topic_id(topic.id())
                .with_is_internal(topic.is_internal())
                .with_topic_authorized_operations(cx.operations(true, Kind::Topic, &name))
                .with_partitions(partitions),
        );
        if to < end {
            return page(topics, Some((&name, to)));
        }
    }
    page(topics, None)
}

fn page(
    topics: Vec<DescribeTopicPartitionsResponseTopic>,
    next: Option<(&str, i32)>,
) -> DescribeTopicPartitionsResponse {
    let cursor =
        next.map(|(name, i)| Cursor::default().with_topic_name(topic_name(name)).with_partition_index(i));
    DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(cursor)
}
