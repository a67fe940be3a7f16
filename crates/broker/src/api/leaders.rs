//! ElectLeaders and ListPartitionReassignments: with one replica, there is nothing to elect or move.

use kafka_protocol::{
    ResponseError,
    messages::{
        ElectLeadersRequest, ElectLeadersResponse, ListPartitionReassignmentsRequest,
        ListPartitionReassignmentsResponse, elect_leaders_response::*,
    },
};

use super::{Context, code, text};
use crate::security::acl::Operation;

pub(crate) async fn elect(cx: Context, request: ElectLeadersRequest) -> ElectLeadersResponse {
    if let Err(e) = cx.cluster(Operation::Alter) {
        return ElectLeadersResponse::default().with_error_code(e.code());
    }
    let mut results = Vec::new();
    for topic in request.topic_partitions.unwrap_or_default() {
        let elect = |&partition: &i32| {
            let known = cx.shared.topics.partition(&topic.topic, partition).is_some();
            let (error, why) = if known {
                (ResponseError::ElectionNotNeeded, "The partition has its preferred leader.")
            } else {
                (ResponseError::UnknownTopicOrPartition, "No such topic as this, or no such partition.")
            };
            PartitionResult::default()
                .with_partition_id(partition)
                .with_error_code(error.code())
                .with_error_message(Some(text(why)))
        };
        let partitions = topic.partitions.iter().map(elect).collect();
        results.push(
            ReplicaElectionResult::default()
                .with_topic(topic.topic.clone())
                .with_partition_result(partitions),
        );
    }
    ElectLeadersResponse::default().with_replica_election_results(results)
}

pub(crate) async fn reassignments(
    cx: Context,
    _: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let may = cx.cluster(Operation::Describe);
    ListPartitionReassignmentsResponse::default().with_error_code(code(&may))
}
