//! Metadata: brokers, topics, partitions. Asking for a topic makes it, if that is configured.

use kafka_protocol::{
    ResponseError,
    messages::{BrokerId, MetadataRequest, MetadataResponse, metadata_request::*, metadata_response::*},
};
use uuid::Uuid;

use super::{Context, blocking, text, topic_name};
use crate::{
    security::acl::{CLUSTER, Kind, Operation},
    topics::{Topic, is_internal},
};

pub(crate) async fn answer(cx: Context, request: MetadataRequest) -> MetadataResponse {
    let shared = &cx.shared;
    let all = match &request.topics {
        None => true,
        Some(topics) => cx.version == 0 && topics.is_empty(),
    };
    let operations = request.include_topic_authorized_operations;
    let of_cluster = cx.operations(request.include_cluster_authorized_operations, Kind::Cluster, CLUSTER);
    let mut topics = Vec::new();
    if all {
        let all = shared.topics.all();
        let mine = all.iter().filter(|t| cx.topic(Operation::Describe, t.name()).is_ok());
        topics.extend(mine.map(|t| describe(&cx, t, operations)));
    } else {
        let create = shared.config().auto_create && (cx.version < 4 || request.allow_auto_topic_creation);
        for wanted in request.topics.unwrap_or_default() {
            topics.push(find(&cx, wanted, create, operations).await);
        }
    }
    let (host, port) = shared.advertised(&cx.client);
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(shared.config().node_id))
        .with_host(text(host))
        .with_port(port);
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(text(&shared.cluster_id)))
        .with_controller_id(BrokerId(shared.config().node_id))
        .with_topics(topics)
        .with_cluster_authorized_operations(of_cluster)
}

async fn find(
    cx: &Context,
    wanted: MetadataRequestTopic,
    create: bool,
    operations: bool,
) -> MetadataResponseTopic {
    let error = |e: ResponseError| MetadataResponseTopic::default().with_error_code(e.code());
    // An id counts more than a name, and Java's consumer sends an empty name with it.
    let name = wanted.name.filter(|_| wanted.topic_id == Uuid::nil());
    let Some(name) = name else {
        return match cx.find_topic(Operation::Describe, "", Some(wanted.topic_id)) {
            Ok(topic) => describe(cx, &topic, operations),
            Err(e) => error(e).with_topic_id(wanted.topic_id),
        };
    };
    match find_or_create(cx, &name, create).await {
        Ok(topic) => describe(cx, &topic, operations),
        Err(e) => error(e).with_name(Some(name)),
    }
}

async fn find_or_create(cx: &Context, name: &str, create: bool) -> Result<Topic, ResponseError> {
    let shared = &cx.shared;
    cx.topic(Operation::Describe, name)?;
    if let Some(topic) = shared.topics.get(name) {
        return Ok(topic);
    }
    if dibs_log::check_topic_name(name).is_err() {
        return Err(ResponseError::InvalidTopicException);
    }
    if !create || is_internal(name) {
        return Err(ResponseError::UnknownTopicOrPartition);
    }
    cx.cluster(Operation::Create).or_else(|_| cx.topic(Operation::Create, name))?;
    let (shared, name) = (shared.clone(), name.to_owned());
    let made = blocking(move || {
        match shared.topics.create(&name, shared.config().num_partitions, Default::default()) {
            // Somebody else was quicker.
            Err(ResponseError::TopicAlreadyExists) => Ok(()),
            done => done.map(drop),
        }
    });
    made.await?;
    // Whoever caused it is told of it by the next answer, as with Kafka: some clients take a topic that is there at
    // once for one that was there before.
    Err(ResponseError::UnknownTopicOrPartition)
}

fn describe(cx: &Context, topic: &Topic, operations: bool) -> MetadataResponseTopic {
    let node = BrokerId(cx.shared.config().node_id);
    let operations = cx.operations(operations, Kind::Topic, topic.name());
    let partitions = (0..topic.partition_count() as i32).map(|i| {
        MetadataResponsePartition::default()
            .with_partition_index(i)
            .with_leader_id(node)
            .with_leader_epoch(0)
            .with_replica_nodes(vec![node])
            .with_isr_nodes(vec![node])
    });
    MetadataResponseTopic::default()
        .with_name(Some(topic_name(topic.name())))
        .with_topic_id(topic.id())
        .with_is_internal(topic.is_internal())
        .with_topic_authorized_operations(operations)
        .with_partitions(partitions.collect())
}
