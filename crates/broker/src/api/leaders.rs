//! ElectLeaders, AlterPartitionReassignments and ListPartitionReassignments: with one replica, there is nothing to
//! elect or move.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ElectLeadersRequest,
        ElectLeadersResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
        alter_partition_reassignments_request::ReassignablePartition,
        alter_partition_reassignments_response::*, elect_leaders_response::*,
    },
};

use super::{Context, Refusal, code, refusal, text};
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

pub(crate) async fn reassign(
    cx: Context,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let response = AlterPartitionReassignmentsResponse::default();
    if let Err(e) = cx.cluster(Operation::Alter) {
        return response.with_error_code(e.code());
    }
    let topics = request.topics.into_iter().map(|topic| {
        let of = |p: &ReassignablePartition| {
            let response = ReassignablePartitionResponse::default().with_partition_index(p.partition_index);
            match move_to(&cx, &topic.name, p) {
                Ok(()) => response,
                Err((e, why)) => response.with_error_code(e.code()).with_error_message(Some(text(why))),
            }
        };
        let partitions = topic.partitions.iter().map(of).collect();
        ReassignableTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions)
    });
    response.with_responses(topics.collect())
}

/// A partition is here, and stays.
fn move_to(cx: &Context, topic: &str, to: &ReassignablePartition) -> Result<(), Refusal> {
    if cx.shared.topics.partition(topic, to.partition_index).is_none() {
        return Err(refusal(ResponseError::UnknownTopicOrPartition));
    }
    let Some(replicas) = &to.replicas else {
        return Err(refusal(ResponseError::NoReassignmentInProgress));
    };
    let here = cx.shared.config().node_id;
    let invalid = |why: String| Err((ResponseError::InvalidReplicaAssignment, why));
    match &replicas[..] {
        [] => invalid("The manual partition assignment includes an empty replica list.".into()),
        all => match all.iter().find(|id| id.0 != here) {
            Some(other) => invalid(format!(
                "The manual partition assignment includes broker {}, but no such broker is registered.",
                other.0
            )),
            None if all.len() > 1 => {
                invalid(format!("The manual partition assignment includes the broker {here} more than once."))
            }
            None => Ok(()),
        },
    }
}

pub(crate) async fn reassignments(
    cx: Context,
    _: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let may = cx.cluster(Operation::Describe);
    ListPartitionReassignmentsResponse::default().with_error_code(code(&may))
}
