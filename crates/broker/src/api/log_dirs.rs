//! DescribeLogDirs: one folder, and what each partition takes in it.

use kafka_protocol::messages::{
    DescribeLogDirsRequest, DescribeLogDirsResponse, describe_log_dirs_response::*,
};

use super::{Context, text, topic_name};
use crate::security::acl::Operation;

pub(crate) async fn answer(cx: Context, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    if let Err(e) = cx.cluster(Operation::Describe) {
        return DescribeLogDirsResponse::default().with_error_code(e.code());
    }
    let wanted = |topic: &str, partition: i32| {
        let topics = request.topics.as_ref();
        topics.is_none_or(|t| t.iter().any(|t| &*t.topic == topic && t.partitions.contains(&partition)))
    };
    let mut topics = Vec::new();
    for topic in cx.shared.topics.all() {
        let all = topic.partitions();
        let all = all.iter().enumerate().filter(|(i, _)| wanted(topic.name(), *i as i32));
        let partitions: Vec<_> = all
            .map(|(i, partition)| {
                DescribeLogDirsPartition::default()
                    .with_partition_index(i as i32)
                    .with_partition_size(partition.size() as i64)
            })
            .collect();
        if !partitions.is_empty() {
            topics.push(
                DescribeLogDirsTopic::default()
                    .with_name(topic_name(topic.name()))
                    .with_partitions(partitions),
            );
        }
    }
    let folder = DescribeLogDirsResult::default()
        .with_log_dir(text(cx.shared.topics.folder()))
        .with_topics(topics)
        .with_total_bytes(-1)
        .with_usable_bytes(-1);
    DescribeLogDirsResponse::default().with_results(vec![folder])
}
