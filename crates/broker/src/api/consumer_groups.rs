//! ConsumerGroupHeartbeat, ConsumerGroupDescribe: the consumer group protocol (KIP-848).

use std::collections::BTreeSet;

use kafka_protocol::{
    ResponseError,
    messages::{
        ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatRequest,
        ConsumerGroupHeartbeatResponse, consumer_group_describe_response as described,
        consumer_group_heartbeat_response as beaten,
    },
};

use super::{Context, text, topic_name};
use crate::{
    config::{HEARTBEAT, SESSION},
    group::{
        Group, Members,
        consumer::{Beat, Member},
        record::consumer::Partitions,
    },
    security::acl::{Kind, Operation},
    server::base64url,
    topics::{Topics, random_uuid},
};

/// From this version on, members make their ids themselves.
const OWN_ID: i16 = 1;

pub(crate) async fn heartbeat(
    cx: Context,
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    let group = request.group_id.to_string();
    let names = request.subscribed_topic_names.iter().flatten();
    let may = names.fold(cx.group(Operation::Read, &group), |may, name| {
        may.and_then(|()| cx.topic(Operation::Describe, name))
    });
    if let Err(e) = may {
        return ConsumerGroupHeartbeatResponse::default().with_error_code(e.code());
    }
    let mut beat = beat(&cx, request);
    if beat.member.is_empty() && beat.epoch == 0 && cx.version < OWN_ID {
        beat.member = base64url(random_uuid().as_bytes());
    }
    let (topics, settings) = (&cx.shared.topics, &cx.shared.settings);
    let consumer = &settings.now().consumer;
    beat.session_ms = settings.of_group(&group, SESSION, consumer.session_bounds).map(|ms| ms as u64);
    let interval = settings.of_group(&group, HEARTBEAT, consumer.heartbeat_bounds).map(|ms| ms as i32);
    let beaten = cx
        .shared
        .groups
        .with(&group, |shard, now, fx| shard.beat(now, beat, cx.version >= OWN_ID, &**topics, fx));
    let response = ConsumerGroupHeartbeatResponse::default();
    match beaten.await {
        Ok(Ok(beaten)) => response
            .with_member_id(Some(text(beaten.member)))
            .with_member_epoch(beaten.epoch)
            .with_heartbeat_interval_ms(interval.unwrap_or(consumer.heartbeat_ms))
            .with_assignment(beaten.assignment.map(assignment)),
        Ok(Err((error, why))) => response.with_error_code(error.code()).with_error_message(Some(text(why))),
        Err(error) => response.with_error_code(error.code()),
    }
}

fn beat(cx: &Context, request: ConsumerGroupHeartbeatRequest) -> Beat {
    let owned = request.topic_partitions.map(|topics| {
        let mut owned = Partitions::new();
        for topic in topics.into_iter().filter(|t| !t.partitions.is_empty()) {
            owned.entry(topic.topic_id).or_default().extend(topic.partitions);
        }
        owned
    });
    Beat {
        group: request.group_id.to_string(),
        member: request.member_id.to_string(),
        epoch: request.member_epoch,
        instance: request.instance_id.map(|t| t.to_string()),
        rack: request.rack_id.map(|t| t.to_string()),
        rebalance_ms: Some(request.rebalance_timeout_ms).filter(|ms| *ms != -1),
        topics: request.subscribed_topic_names.map(|names| names.iter().map(|n| n.to_string()).collect()),
        regex: request.subscribed_topic_regex.map(|t| t.to_string()),
        assignor: request.server_assignor.map(|t| t.to_string()),
        owned,
        session_ms: None,
        client_id: cx.client_id.clone(),
        client_host: cx.client.host.clone(),
    }
}

fn assignment(partitions: Partitions) -> beaten::Assignment {
    let topics = partitions.into_iter().map(|(topic, partitions)| {
        beaten::TopicPartitions::default()
            .with_topic_id(topic)
            .with_partitions(partitions.into_iter().collect())
    });
    beaten::Assignment::default().with_topic_partitions(topics.collect())
}

pub(crate) async fn describe(
    cx: Context,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let mut groups = Vec::with_capacity(request.group_ids.len());
    for id in request.group_ids {
        let refuse = |error: ResponseError, why: String| {
            described::DescribedGroup::default()
                .with_error_code(error.code())
                .with_error_message(Some(text(why)))
        };
        if let Err(e) = cx.group(Operation::Describe, &id) {
            groups.push(refuse(e, String::new()).with_group_id(id));
            continue;
        }
        let topics = &cx.shared.topics;
        let found = cx.shared.groups.with(&id, |shard, _, _| match shard.get(&id) {
            None => refuse(ResponseError::GroupIdNotFound, format!("Group {} not found.", &**id)),
            Some(group) => describe_one(group, &cx, topics).unwrap_or_else(|| {
                refuse(ResponseError::GroupIdNotFound, format!("Group {} is not a consumer group.", &**id))
            }),
        });
        let group = found.await.unwrap_or_else(|e| refuse(e, String::new()));
        let operations = cx.operations(request.include_authorized_operations, Kind::Group, &id);
        groups.push(group.with_group_id(id).with_authorized_operations(operations));
    }
    ConsumerGroupDescribeResponse::default().with_groups(groups)
}

fn describe_one(group: &Group, cx: &Context, topics: &Topics) -> Option<described::DescribedGroup> {
    let Members::Consumer(consumer) = &group.members else { return None };
    let none = Partitions::new();
    let members = consumer.members().map(|(id, member, target)| {
        describe_member(id, member, cx.version)
            .with_assignment(described_assignment(&member.current.assigned, topics))
            .with_target_assignment(described_assignment(target.unwrap_or(&none), topics))
    });
    let group = described::DescribedGroup::default()
        .with_group_state(text(consumer.state()))
        .with_group_epoch(consumer.epoch())
        .with_assignment_epoch(consumer.target_epoch())
        .with_assignor_name(text(consumer.assignor(&cx.shared.config().consumer.assignors).name()))
        .with_members(members.collect());
    Some(group)
}

fn describe_member(id: &str, member: &Member, version: i16) -> described::Member {
    let info = &member.info;
    let names: BTreeSet<&String> = info.topics.iter().collect();
    let described = described::Member::default()
        .with_member_id(text(id))
        .with_instance_id(info.instance.clone().map(text))
        .with_rack_id(info.rack.clone().map(text))
        .with_member_epoch(member.current.epoch)
        .with_client_id(text(&info.client_id))
        .with_client_host(text(&info.client_host))
        .with_subscribed_topic_names(names.into_iter().map(|n| topic_name(n)).collect())
        .with_subscribed_topic_regex(info.regex.clone().map(text));
    let kind = if info.classic.is_some() { 0 } else { 1 };
    if version >= 1 { described.with_member_type(kind) } else { described }
}

/// Partitions of topics that there are.
fn described_assignment(partitions: &Partitions, topics: &Topics) -> described::Assignment {
    let topic = |(id, partitions): (&uuid::Uuid, &BTreeSet<i32>)| {
        let topic = topics.by_id(*id)?;
        let described = described::TopicPartitions::default()
            .with_topic_id(*id)
            .with_topic_name(topic_name(topic.name()))
            .with_partitions(partitions.iter().copied().collect());
        Some(described)
    };
    described::Assignment::default().with_topic_partitions(partitions.iter().filter_map(topic).collect())
}
