//! Consumer groups from outside: who is there, what was committed, and changes of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use kafka_protocol::{
    ResponseError,
    messages::{
        ConsumerGroupDescribeRequest, DeleteGroupsRequest, DescribeGroupsRequest, GroupId, ListGroupsRequest,
        OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest,
        consumer_group_describe_response as modern, describe_groups_response as classic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_fetch_request::OffsetFetchRequestTopic,
    },
};

use crate::{
    ClientError, Cluster, TopicPartition,
    cluster::{text, topic_name},
    error::KafkaError,
};

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedGroup {
    /// Its name.
    pub group: String,
    /// What it is for: `consumer`, or empty if it only has offsets.
    pub protocol_type: String,
    /// `Stable`, `Empty`, …; empty if the broker does not say.
    pub state: String,
    /// `Classic` or `Consumer` (KIP-848); empty if the broker does not say.
    pub kind: String,
}

/// A group and who is in it.
#[derive(Clone, Debug, Default)]
pub struct GroupDescription {
    /// Its name.
    pub group: String,
    /// `Stable`, `Empty`, `Dead`, …
    pub state: String,
    /// How partitions are assigned, such as `range`.
    pub assignor: String,
    /// The broker that coordinates it.
    pub coordinator: i32,
    /// Its members.
    pub members: Vec<MemberDescription>,
}

/// A member of a group.
#[derive(Clone, Debug, Default)]
pub struct MemberDescription {
    /// Its id, made by the broker or by itself.
    pub id: String,
    /// Its `group.instance.id`.
    pub instance_id: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// Where it connects from.
    pub host: String,
    /// What it reads.
    pub assignment: BTreeSet<TopicPartition>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub offset: i64,
    /// Whatever the one who committed wrote beside it.
    pub metadata: String,
}

impl Cluster {
    /// All groups, of all brokers.
    pub async fn list_groups(&self) -> Result<Vec<ListedGroup>, ClientError> {
        let mut all = BTreeSet::new();
        for node in self.nodes() {
            let answer = self
                .retry(async || {
                    let answer = self.call_node(node.id, &ListGroupsRequest::default()).await?;
                    ClientError::check("list of groups", answer.error_code, None)?;
                    Ok(answer)
                })
                .await?;
            all.extend(answer.groups.iter().map(|g| ListedGroup {
                group: g.group_id.0.to_string(),
                protocol_type: g.protocol_type.to_string(),
                state: g.group_state.to_string(),
                kind: g.group_type.to_string(),
            }));
        }
        Ok(all.into_iter().collect())
    }

    /// A group and its members. One that is not there has the state `Dead`.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, ClientError> {
        match self.describe_modern(group).await {
            Err(ClientError::Unsupported { .. }) => {}
            Err(error)
                if matches!(
                    error.kafka(),
                    Some(ResponseError::GroupIdNotFound | ResponseError::UnsupportedVersion)
                ) => {}
            done => return done,
        }
        let request = DescribeGroupsRequest::default().with_groups(vec![group_id(group)]);
        let found = self
            .call_coordinator(group, &request, |answer| {
                let found = answer.groups.into_iter().next().ok_or_else(empty)?;
                ClientError::check(about(group), found.error_code, found.error_message.as_deref())?;
                Ok(found)
            })
            .await;
        let found = match found {
            Err(error) if error.kafka() == Some(ResponseError::GroupIdNotFound) => {
                classic::DescribedGroup::default().with_group_state(text("Dead"))
            }
            found => found?,
        };
        Ok(GroupDescription {
            group: group.to_owned(),
            state: found.group_state.to_string(),
            assignor: found.protocol_data.to_string(),
            coordinator: self.coordinator(group).await?,
            members: found.members.iter().map(classic_member).collect(),
        })
    }

    /// Groups of the protocol of KIP-848, which DescribeGroups does not show.
    async fn describe_modern(&self, group: &str) -> Result<GroupDescription, ClientError> {
        let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id(group)]);
        let found = self
            .call_coordinator(group, &request, |answer| {
                let found = answer.groups.into_iter().next().ok_or_else(empty)?;
                ClientError::check(about(group), found.error_code, found.error_message.as_deref())?;
                Ok(found)
            })
            .await?;
        Ok(GroupDescription {
            group: group.to_owned(),
            state: found.group_state.to_string(),
            assignor: found.assignor_name.to_string(),
            coordinator: self.coordinator(group).await?,
            members: found.members.iter().map(modern_member).collect(),
        })
    }

    /// What a group has committed, for some topics' partitions or for all that it has.
    pub async fn committed(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, Committed>, ClientError> {
        let topics = partitions.map(|partitions| {
            let topic = |(name, partitions): (&str, Vec<i32>)| {
                OffsetFetchRequestTopic::default()
                    .with_name(topic_name(name))
                    .with_partition_indexes(partitions)
            };
            by_topic(partitions).into_iter().map(topic).collect()
        });
        let request = OffsetFetchRequest::default().with_group_id(group_id(group)).with_topics(topics);
        self.call_coordinator(group, &request, |answer| {
            ClientError::check(about(group), answer.error_code, None)?;
            let mut committed = BTreeMap::new();
            for topic in &answer.topics {
                for p in &topic.partitions {
                    let tp = TopicPartition::new(topic.name.0.as_str(), p.partition_index);
                    ClientError::check(format!("group {group}, {tp}"), p.error_code, None)?;
                    if p.committed_offset >= 0 {
                        let metadata = p.metadata.as_ref().map(|m| m.to_string()).unwrap_or_default();
                        committed.insert(tp, Committed { offset: p.committed_offset, metadata });
                    }
                }
            }
            Ok(committed)
        })
        .await
    }

    /// Commits offsets for a group. From outside (`member` is `None`) that works while nobody is in it.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] with `UNKNOWN_MEMBER_ID` if somebody is; with `ILLEGAL_GENERATION` or
    /// `REBALANCE_IN_PROGRESS` if the member has to join again first.
    pub async fn commit(
        &self,
        group: &str,
        member: Option<(&str, i32)>,
        offsets: &BTreeMap<TopicPartition, i64>,
    ) -> Result<(), ClientError> {
        let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for (tp, offset) in offsets {
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(tp.partition)
                .with_committed_offset(*offset)
                .with_committed_metadata(Some(text("")));
            topics.entry(&tp.topic).or_default().push(partition);
        }
        let topic = |(name, partitions): (&str, _)| {
            OffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(partitions)
        };
        let (member, generation) = member.unwrap_or(("", -1));
        let request = OffsetCommitRequest::default()
            .with_group_id(group_id(group))
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(text(member))
            .with_topics(topics.into_iter().map(topic).collect());
        self.call_coordinator(group, &request, |answer| {
            for topic in &answer.topics {
                for p in &topic.partitions {
                    ClientError::check(
                        format!("group {group}, {}-{}", &*topic.name.0, p.partition_index),
                        p.error_code,
                        None,
                    )?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Deletes a group and all it has committed.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] with `NON_EMPTY_GROUP` or `GROUP_ID_NOT_FOUND`.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        let request = DeleteGroupsRequest::default().with_groups_names(vec![group_id(group)]);
        self.call_coordinator(group, &request, |answer| {
            let result = answer.results.first().ok_or_else(empty)?;
            ClientError::check(about(group), result.error_code, None)
        })
        .await
    }

    /// Deletes what a group has committed for some partitions; an error for each that stays.
    pub async fn delete_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, Result<(), KafkaError>>, ClientError> {
        let topic = |(name, partitions): (&str, Vec<i32>)| {
            let partition = |index| OffsetDeleteRequestPartition::default().with_partition_index(index);
            OffsetDeleteRequestTopic::default()
                .with_name(topic_name(name))
                .with_partitions(partitions.into_iter().map(partition).collect())
        };
        let request = OffsetDeleteRequest::default()
            .with_group_id(group_id(group))
            .with_topics(by_topic(partitions).into_iter().map(topic).collect());
        self.call_coordinator(group, &request, |answer| {
            ClientError::check(about(group), answer.error_code, None)?;
            let mut results = BTreeMap::new();
            for topic in &answer.topics {
                for p in &topic.partitions {
                    let tp = TopicPartition::new(topic.name.0.as_str(), p.partition_index);
                    results.insert(tp, KafkaError::check(p.error_code, None));
                }
            }
            Ok(results)
        })
        .await
    }
}

fn classic_member(member: &classic::DescribedGroupMember) -> MemberDescription {
    MemberDescription {
        id: member.member_id.to_string(),
        instance_id: member.group_instance_id.as_ref().map(|i| i.to_string()),
        client_id: member.client_id.to_string(),
        host: member.client_host.to_string(),
        assignment: read_assignment(member.member_assignment.clone())
            .unwrap_or_default()
            .into_iter()
            .collect(),
    }
}

fn modern_member(member: &modern::Member) -> MemberDescription {
    let partitions = |t: &modern::TopicPartitions| {
        let topic = t.topic_name.0.to_string();
        t.partitions.iter().map(move |p| TopicPartition::new(topic.clone(), *p)).collect::<Vec<_>>()
    };
    MemberDescription {
        id: member.member_id.to_string(),
        instance_id: member.instance_id.as_ref().map(|i| i.to_string()),
        client_id: member.client_id.to_string(),
        host: member.client_host.to_string(),
        assignment: member.assignment.topic_partitions.iter().flat_map(partitions).collect(),
    }
}

/// The partitions in an assignment of the consumer protocol; none if it is not one.
pub(crate) fn read_assignment(bytes: Bytes) -> Option<Vec<TopicPartition>> {
    let mut rest = &bytes[..];
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let version = rest.try_get_i16().ok()?;
    let mut all = Vec::new();
    if version < 0 {
        return None;
    }
    for _ in 0..rest.try_get_i32().ok()? {
        let length = usize::try_from(rest.try_get_i16().ok()?).ok()?;
        let (name, after) = rest.split_at_checked(length)?;
        let name = std::str::from_utf8(name).ok()?;
        rest = after;
        for _ in 0..rest.try_get_i32().ok()? {
            all.push(TopicPartition::new(name, rest.try_get_i32().ok()?));
        }
    }
    Some(all)
}

/// Partitions gathered under their topics.
pub(crate) fn by_topic(partitions: &[TopicPartition]) -> BTreeMap<&str, Vec<i32>> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for tp in partitions {
        topics.entry(&tp.topic).or_default().push(tp.partition);
    }
    topics
}

pub(crate) fn group_id(group: &str) -> GroupId {
    GroupId(text(group))
}

fn about(group: &str) -> String {
    format!("group {group}")
}

fn empty() -> ClientError {
    ClientError::Malformed("an answer without a result".into())
}
