//! DescribeLogDirs and AlterReplicaLogDirs: one folder, what each partition takes in it, and no other to move to.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterReplicaLogDirsRequest, AlterReplicaLogDirsResponse, DescribeLogDirsRequest,
        DescribeLogDirsResponse, alter_replica_log_dirs_response::*, describe_log_dirs_response::*,
    },
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
    let path = cx.shared.topics.folder();
    let (total, usable) = volume(&path).unwrap_or((-1, -1));
    let folder = DescribeLogDirsResult::default()
        .with_log_dir(text(path))
        .with_topics(topics)
        .with_total_bytes(total)
        .with_usable_bytes(usable);
    DescribeLogDirsResponse::default().with_results(vec![folder])
}

/// Bytes of the file system that holds a folder: all, and those that may still be written (KIP-827).
fn volume(path: &str) -> Option<(i64, i64)> {
    let is = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(is.f_frsize)).unwrap_or(i64::MAX);
    Some((bytes(is.f_blocks), bytes(is.f_bavail)))
}

pub(crate) async fn alter(cx: Context, request: AlterReplicaLogDirsRequest) -> AlterReplicaLogDirsResponse {
    let may = cx.cluster(Operation::Alter);
    let here = cx.shared.topics.folder();
    let mut results = Vec::new();
    for dir in &request.dirs {
        for topic in &dir.topics {
            let of = |&partition: &i32| {
                let known = cx.shared.topics.partition(&topic.name, partition).is_some();
                let done = match may {
                    Err(e) => Err(e),
                    Ok(()) if *dir.path != *here => Err(ResponseError::LogDirNotFound),
                    Ok(()) if !known => Err(ResponseError::UnknownTopicOrPartition),
                    Ok(()) => Ok(()),
                };
                AlterReplicaLogDirPartitionResult::default()
                    .with_partition_index(partition)
                    .with_error_code(done.map_or_else(|e| e.code(), |()| 0))
            };
            let partitions = topic.partitions.iter().map(of).collect();
            results.push(
                AlterReplicaLogDirTopicResult::default()
                    .with_topic_name(topic.name.clone())
                    .with_partitions(partitions),
            );
        }
    }
    AlterReplicaLogDirsResponse::default().with_results(results)
}
