//! CreateTopics.

use std::{collections::BTreeMap, sync::Arc};

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, CreateTopicsRequest, CreateTopicsResponse, create_topics_request::*,
        create_topics_response::*,
    },
};

use super::{Context, Refusal, blocking, configs, refusal, text};
use crate::{
    config::TopicConfig,
    security::acl::Operation,
    server::Shared,
    topics::{Topic, check_config, is_internal},
};

pub(crate) async fn answer(cx: Context, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let mut times = BTreeMap::new();
    for topic in &request.topics {
        *times.entry(topic.name.clone()).or_insert(0) += 1;
    }
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let name = topic.name.clone();
        let done = if times[&name] > 1 {
            Err((ResponseError::InvalidRequest, "Duplicate topic name.".to_owned()))
        } else {
            create(&cx, topic, request.validate_only).await
        };
        results.push(match done {
            Ok(result) => result.with_name(name),
            Err((error, why)) => CreatableTopicResult::default()
                .with_name(name)
                .with_error_code(error.code())
                .with_error_message(Some(text(why)))
                // Kafka's own tools cannot read a null here.
                .with_configs(Some(Vec::new())),
        });
    }
    CreateTopicsResponse::default().with_throttle_time_ms(cx.throttle()).with_topics(results)
}

async fn create(
    cx: &Context,
    topic: CreatableTopic,
    validate_only: bool,
) -> Result<CreatableTopicResult, Refusal> {
    let may = cx.cluster(Operation::Create).or_else(|_| cx.topic(Operation::Create, &topic.name));
    may.map_err(|e| (e, "Authorization failed.".to_owned()))?;
    let (partitions, own) = check(cx, &topic)?;
    let result = match cx.topic(Operation::DescribeConfigs, &topic.name) {
        Ok(()) => CreatableTopicResult::default()
            .with_num_partitions(partitions as i32)
            .with_replication_factor(1)
            .with_configs(Some(configs::of_new_topic(&cx.shared.config(), &own))),
        Err(e) => CreatableTopicResult::default()
            .with_num_partitions(-1)
            .with_replication_factor(-1)
            .with_configs(Some(Vec::new()))
            .with_topic_config_error_code(e.code()),
    };
    if validate_only {
        return Ok(result);
    }
    cx.mutates(partitions as usize, cx.version >= 6).map_err(refusal)?;
    let name = topic.name.to_string();
    let made = make(&cx.shared, &name, partitions, own).await;
    let made = made.map_err(|e| (e, format!("Topic '{name}' could not be created.")))?;
    Ok(result.with_topic_id(made.id()))
}

/// Makes a topic off the async threads.
pub(crate) async fn make(
    shared: &Arc<Shared>,
    name: &str,
    partitions: u32,
    own: TopicConfig,
) -> Result<Topic, ResponseError> {
    let (shared, name) = (shared.clone(), name.to_owned());
    blocking(move || shared.topics.create(&name, partitions, own)).await
}

/// The number of partitions and the settings that the topic will have.
fn check(cx: &Context, topic: &CreatableTopic) -> Result<(u32, TopicConfig), Refusal> {
    let name = &*topic.name;
    let refuse = |error: ResponseError, why: String| Err((error, why));
    if let Err(e) = dibs_log::check_topic_name(name) {
        return refuse(ResponseError::InvalidTopicException, e.to_string());
    }
    if is_internal(name) {
        return refuse(ResponseError::InvalidTopicException, format!("Topic {name} is internal."));
    }
    if cx.shared.topics.get(name).is_some() {
        return refuse(ResponseError::TopicAlreadyExists, format!("Topic '{name}' already exists."));
    }
    let own = topic_config(topic)?;
    let partitions = if topic.assignments.is_empty() {
        if !matches!(topic.replication_factor, -1 | 1) {
            return refuse(ResponseError::InvalidReplicationFactor, factor(topic.replication_factor));
        }
        match topic.num_partitions {
            -1 => cx.shared.config().num_partitions,
            n if n > 0 && n as u32 <= dibs_log::MAX_PARTITIONS => n as u32,
            n if n > 0 => {
                let why = format!("{n} partitions are more than {}.", dibs_log::MAX_PARTITIONS);
                return refuse(ResponseError::InvalidPartitions, why);
            }
            _ => {
                let why = "Number of partitions must be larger than 0.".to_owned();
                return refuse(ResponseError::InvalidPartitions, why);
            }
        }
    } else {
        assigned(cx, topic)?
    };
    Ok((partitions, own))
}

pub(super) fn factor(wanted: i16) -> String {
    if wanted < 1 {
        "Replication factor must be larger than 0, or -1 to use the default value.".to_owned()
    } else {
        format!(
            "Unable to replicate the partition {wanted} time(s): The target replication factor of {wanted} cannot \
             be reached because only 1 broker(s) are registered."
        )
    }
}

fn topic_config(topic: &CreatableTopic) -> Result<TopicConfig, Refusal> {
    let mut own = TopicConfig::new();
    for config in &topic.configs {
        let Some(value) = &config.value else {
            let why = format!("Null value not supported for topic configs: {}", &*config.name);
            return Err((ResponseError::InvalidConfig, why));
        };
        own.insert(config.name.to_string(), value.to_string());
    }
    check_config(&own).map_err(|why| (ResponseError::InvalidConfig, why))?;
    Ok(own)
}

/// Partitions that are assigned by hand: numbered from 0, each to this one broker.
fn assigned(cx: &Context, topic: &CreatableTopic) -> Result<u32, Refusal> {
    let invalid = |why: &str| Err((ResponseError::InvalidReplicaAssignment, why.to_owned()));
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        let why = "Both numPartitions/replicationFactor and replicasAssignments are set; both cannot be used together.";
        return Err((ResponseError::InvalidRequest, why.to_owned()));
    }
    let mut indexes: Vec<i32> = topic.assignments.iter().map(|a| a.partition_index).collect();
    indexes.sort_unstable();
    if indexes.iter().enumerate().any(|(i, index)| *index != i as i32) {
        return invalid("Partitions should be a consecutive 0-based integer sequence.");
    }
    if topic.assignments.iter().any(|a| a.broker_ids[..] != [BrokerId(cx.shared.config().node_id)]) {
        return invalid("The manual partition assignment names a broker that is not registered.");
    }
    Ok(indexes.len() as u32)
}
