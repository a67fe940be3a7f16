//! CreatePartitions: a topic can only grow.

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, CreatePartitionsRequest, CreatePartitionsResponse,
        create_partitions_request::CreatePartitionsTopic,
        create_partitions_response::CreatePartitionsTopicResult,
    },
};

use super::{Context, blocking, refusal, text};
use crate::security::acl::Operation;

pub(crate) async fn answer(cx: Context, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        results.push(match grow(&cx, &topic, request.validate_only).await {
            Ok(()) => result,
            Err((error, why)) => result.with_error_code(error.code()).with_error_message(Some(text(why))),
        });
    }
    CreatePartitionsResponse::default().with_throttle_time_ms(cx.throttle()).with_results(results)
}

async fn grow(
    cx: &Context,
    wanted: &CreatePartitionsTopic,
    validate_only: bool,
) -> Result<(), (ResponseError, String)> {
    let refuse = |error: ResponseError, why: String| Err((error, why));
    cx.topic(Operation::Alter, &wanted.name).map_err(|e| (e, "Authorization failed.".to_owned()))?;
    let Some(topic) = cx.shared.topics.get(&wanted.name) else {
        let why = "This server does not host this topic-partition.".to_owned();
        return refuse(ResponseError::UnknownTopicOrPartition, why);
    };
    let (have, count) = (topic.partition_count(), wanted.count);
    if count < have as i32 {
        let why = format!(
            "The topic {} currently has {have} partition(s); {count} would not be an increase.",
            topic.name()
        );
        return refuse(ResponseError::InvalidPartitions, why);
    }
    if count == have as i32 {
        let why = format!("Topic already has {have} partition(s).");
        return refuse(ResponseError::InvalidPartitions, why);
    }
    if count as u32 > dibs_log::MAX_PARTITIONS {
        let why = format!("{count} partitions are more than {}.", dibs_log::MAX_PARTITIONS);
        return refuse(ResponseError::InvalidPartitions, why);
    }
    if let Some(assignments) = &wanted.assignments {
        let more = count as usize - have;
        if assignments.len() != more {
            let why = format!(
                "Attempted to add {more} additional partition(s), but only {} assignment(s) were specified.",
                assignments.len()
            );
            return refuse(ResponseError::InvalidReplicaAssignment, why);
        }
        if assignments.iter().any(|a| a.broker_ids[..] != [BrokerId(cx.shared.config().node_id)]) {
            let why = "The manual partition assignment names a broker that is not registered.".to_owned();
            return refuse(ResponseError::InvalidReplicaAssignment, why);
        }
    }
    if validate_only {
        return Ok(());
    }
    cx.mutates(count as usize - have, cx.version >= 3).map_err(refusal)?;
    let (topics, name) = (cx.shared.topics.clone(), topic.name().to_owned());
    let done = blocking(move || topics.add_partitions(&name, count as u32)).await;
    done.map_err(refusal)
}
