//! OffsetCommit, OffsetFetch, OffsetDelete: what groups have consumed.

use kafka_protocol::{
    ResponseError,
    messages::{
        OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
        OffsetFetchRequest, OffsetFetchResponse, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_commit_response::*,
        offset_delete_response::*,
        offset_fetch_request::OffsetFetchRequestTopics,
        offset_fetch_response::*,
    },
};
use uuid::Uuid;

use super::{
    Context,
    by_id::{BY_ID, ById},
    code, text, topic_name,
};
use crate::{
    clock,
    group::{Now, Shard, offsets::Committed},
    security::acl::Operation,
};

pub(crate) async fn commit(cx: Context, request: ById<OffsetCommitRequest>) -> ById<OffsetCommitResponse> {
    let ById { message: request, ids } = request;
    let group = &*request.group_id;
    let answer = |topics| OffsetCommitResponse::default().with_topics(topics);
    if let Err(e) = cx.group(Operation::Read, group) {
        return ById { message: answer(refuse_all(&request, e)), ids };
    }
    let at = clock::wall_ms();
    let find = |(i, topic): (usize, &OffsetCommitRequestTopic)| {
        cx.find_topic(Operation::Read, &topic.name, ids.get(i).copied())
    };
    let found: Vec<_> = request.topics.iter().enumerate().map(find).collect();
    let committed = cx.shared.groups.with(group, |shard, now, fx| {
        let allowed = may_commit(shard, cx.version, now, group, &request);
        let mut responses = Vec::with_capacity(request.topics.len());
        for (topic, found) in request.topics.iter().zip(&found) {
            let mut one = |p: &OffsetCommitRequestPartition| {
                let found = found.as_ref().map_err(|e| *e)?;
                if found.partition(p.partition_index).is_none() {
                    return Err(ResponseError::UnknownTopicOrPartition);
                }
                allowed?;
                let value = Committed {
                    offset: p.committed_offset,
                    leader_epoch: p.committed_leader_epoch,
                    metadata: p.committed_metadata.as_deref().unwrap_or_default().to_owned(),
                    at,
                };
                shard.commit(group, found.name(), p.partition_index, value, fx)
            };
            let partitions = topic.partitions.iter().map(|p| {
                OffsetCommitResponsePartition::default()
                    .with_partition_index(p.partition_index)
                    .with_error_code(code(&one(p)))
            });
            let partitions = partitions.collect();
            let response = OffsetCommitResponseTopic::default().with_name(topic.name.clone());
            responses.push(response.with_partitions(partitions));
        }
        responses
    });
    let topics = committed.await.unwrap_or_else(|e| refuse_all(&request, e));
    ById { message: answer(topics), ids }
}

/// Whether the member may commit. Before version 9, members with epochs are not known.
fn may_commit(
    shard: &mut Shard,
    version: i16,
    now: Now,
    group: &str,
    request: &OffsetCommitRequest,
) -> Result<(), ResponseError> {
    let instance = request.group_instance_id.as_deref();
    let generation = request.generation_id_or_member_epoch;
    match shard.may_commit(now, group, &request.member_id, instance, generation) {
        Err(ResponseError::IllegalGeneration) if version >= 9 && shard.get(group).is_none() => {
            Err(ResponseError::GroupIdNotFound)
        }
        Err(ResponseError::StaleMemberEpoch) | Ok(())
            if version < 9 && shard.has_epochs(group, &request.member_id) =>
        {
            Err(ResponseError::UnsupportedVersion)
        }
        allowed => allowed,
    }
}

fn refuse_all(request: &OffsetCommitRequest, error: ResponseError) -> Vec<OffsetCommitResponseTopic> {
    let refuse = |p: &OffsetCommitRequestPartition| {
        OffsetCommitResponsePartition::default()
            .with_partition_index(p.partition_index)
            .with_error_code(error.code())
    };
    let topics = request.topics.iter().map(|t| {
        OffsetCommitResponseTopic::default()
            .with_name(t.name.clone())
            .with_partitions(t.partitions.iter().map(refuse).collect())
    });
    topics.collect()
}

pub(crate) async fn fetch(cx: Context, request: ById<OffsetFetchRequest>) -> ById<OffsetFetchResponse> {
    let ById { message: request, ids: asked } = request;
    let stable = request.require_stable;
    if cx.version < 8 {
        let wanted = request.topics.map(|topics| {
            topics.into_iter().map(|t| (Ok(t.name), t.partition_indexes)).collect::<Vec<Wanted>>()
        });
        let message = match fetch_group(&cx, &request.group_id, None, wanted, stable).await {
            Ok(topics) => {
                OffsetFetchResponse::default().with_topics(topics.into_iter().map(single).collect())
            }
            Err(e) => OffsetFetchResponse::default().with_error_code(e.code()),
        };
        return ById { message, ids: Vec::new() };
    }
    let (mut groups, mut ids, mut asked) = (Vec::new(), Vec::new(), asked.into_iter());
    for group in request.groups {
        let response = OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone());
        let member = group.member_id.filter(|_| cx.version >= 9).map(|m| (m.to_string(), group.member_epoch));
        let of: Vec<Uuid> = asked.by_ref().take(group.topics.as_ref().map_or(0, Vec::len)).collect();
        let all = group.topics.is_none();
        let wanted = group.topics.map(|topics| wanted(&cx, topics, &of));
        groups.push(match fetch_group(&cx, &group.group_id, member, wanted, stable).await {
            Ok(mut topics) => {
                ids.extend(if all { ids_of(&cx, &mut topics) } else { of });
                response.with_topics(topics)
            }
            Err(e) => response.with_error_code(e.code()),
        });
    }
    ById { message: OffsetFetchResponse::default().with_groups(groups), ids }
}

/// A topic's name, or why it has none, and partitions of it.
type Wanted = (Result<TopicName, ResponseError>, Vec<i32>);

/// What is asked for, by names from here on.
fn wanted(cx: &Context, topics: Vec<OffsetFetchRequestTopics>, ids: &[Uuid]) -> Vec<Wanted> {
    let named = |(i, topic): (usize, OffsetFetchRequestTopics)| {
        let name = match ids.get(i) {
            Some(id) => match cx.shared.topics.by_id(*id) {
                Some(found) => Ok(topic_name(found.name())),
                None => Err(ResponseError::UnknownTopicId),
            },
            None => Ok(topic.name),
        };
        (name, topic.partition_indexes)
    };
    topics.into_iter().enumerate().map(named).collect()
}

/// The ids by which topics are called, if they are. Those that are gone have none, and are left out.
fn ids_of(cx: &Context, topics: &mut Vec<OffsetFetchResponseTopics>) -> Vec<Uuid> {
    if cx.version < BY_ID {
        return Vec::new();
    }
    let id = |t: &OffsetFetchResponseTopics| cx.shared.topics.get(&t.name).map(|topic| topic.id());
    let ids: Vec<_> = topics.iter().map(id).collect();
    let mut each = ids.iter();
    topics.retain(|_| each.next().is_some_and(Option::is_some));
    ids.into_iter().flatten().collect()
}

/// A topic's offsets in the form of the versions before 8.
fn single(topic: OffsetFetchResponseTopics) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|p| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(p.partition_index)
            .with_committed_offset(p.committed_offset)
            .with_committed_leader_epoch(p.committed_leader_epoch)
            .with_metadata(p.metadata)
            .with_error_code(p.error_code)
    });
    let partitions = partitions.collect();
    OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions)
}

fn failed(partition: i32, error: ResponseError) -> OffsetFetchResponsePartitions {
    OffsetFetchResponsePartitions::default()
        .with_partition_index(partition)
        .with_committed_offset(-1)
        .with_metadata(Some(text("")))
        .with_error_code(error.code())
}

/// The offsets of some topics' partitions, or of all; for a member, if it is in the epoch that it says.
async fn fetch_group(
    cx: &Context,
    id: &str,
    member: Option<(String, i32)>,
    wanted: Option<Vec<Wanted>>,
    stable: bool,
) -> Result<Vec<OffsetFetchResponseTopics>, ResponseError> {
    cx.group(Operation::Describe, id)?;
    let version = cx.version;
    let found = cx.shared.groups.with(id, |shard, _, _| {
        if let Some((member, epoch)) = member {
            shard.may_fetch(id, &member, epoch)?;
        }
        let offsets = shard.get(id).map(|group| &group.offsets);
        let entry = |topic: &str, partition: i32, committed: Option<&Committed>| {
            let unstable = stable && offsets.is_some_and(|o| o.is_unstable(topic, partition));
            let hidden = cx.topic(Operation::Describe, topic);
            let committed = committed.filter(|_| !unstable && hidden.is_ok());
            let error = if unstable { Err(ResponseError::UnstableOffsetCommit) } else { Ok(()) };
            let error = code(&hidden.and(error));
            let response = OffsetFetchResponsePartitions::default().with_partition_index(partition);
            let response = response.with_error_code(error);
            let epoch = committed.filter(|_| version >= 5).map_or(-1, |c| c.leader_epoch);
            response
                .with_committed_offset(committed.map_or(-1, |c| c.offset))
                .with_committed_leader_epoch(epoch)
                .with_metadata(Some(text(committed.map_or("", |c| &c.metadata))))
        };
        let topic = |name: TopicName, partitions| {
            OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions)
        };
        Ok(match wanted {
            Some(wanted) => {
                let of = |(name, partitions): Wanted| match name {
                    Ok(name) => {
                        let get = |p: &i32| entry(&name, *p, offsets.and_then(|o| o.get(&name, *p)));
                        let partitions = partitions.iter().map(get).collect();
                        topic(name, partitions)
                    }
                    Err(e) => topic(TopicName::default(), partitions.iter().map(|p| failed(*p, e)).collect()),
                };
                wanted.into_iter().map(of).collect()
            }
            None => {
                let all = offsets.into_iter().flat_map(|o| o.iter());
                let mine = all.filter(|(name, _)| cx.topic(Operation::Describe, name).is_ok());
                mine.map(|(name, ps)| {
                    topic(topic_name(name), ps.iter().map(|(p, c)| entry(name, *p, Some(c))).collect())
                })
                .collect()
            }
        })
    });
    found.await.and_then(|f| f)
}

pub(crate) async fn delete(cx: Context, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let group = &*request.group_id;
    if let Err(e) = cx.group(Operation::Delete, group) {
        return OffsetDeleteResponse::default().with_error_code(e.code());
    }
    let deleted = cx.shared.groups.with(group, |shard, _, fx| {
        if shard.get(group).is_none() {
            return Err(ResponseError::GroupIdNotFound);
        }
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let partitions = topic.partitions.iter().map(|p| {
                let known = cx.shared.topics.partition(&topic.name, p.partition_index).is_some();
                let done = match cx.topic(Operation::Read, &topic.name) {
                    Err(e) => Err(e),
                    Ok(()) if known => shard.delete_offset(group, &topic.name, p.partition_index, fx),
                    Ok(()) => Err(ResponseError::UnknownTopicOrPartition),
                };
                OffsetDeleteResponsePartition::default()
                    .with_partition_index(p.partition_index)
                    .with_error_code(code(&done))
            });
            let partitions = partitions.collect();
            let response = OffsetDeleteResponseTopic::default().with_name(topic.name.clone());
            topics.push(response.with_partitions(partitions));
        }
        Ok(topics)
    });
    match deleted.await.and_then(|d| d) {
        Ok(topics) => OffsetDeleteResponse::default().with_topics(topics),
        Err(e) => OffsetDeleteResponse::default().with_error_code(e.code()),
    }
}
