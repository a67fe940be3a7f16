//! What members of consumer groups ask, in both protocols.

use anyhow::ensure;
use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        consumer_group_heartbeat_request::TopicPartitions, consumer_protocol_assignment::TopicPartition,
        join_group_request::*, leave_group_request::*, offset_commit_request::*, sync_group_request::*, *,
    },
    protocol::{Decodable, Encodable},
};
use uuid::Uuid;

use super::{Kafka, check, text, topic_name};

const PROTOCOL: &str = "consumer";
const ASSIGNOR: &str = "turns";
/// The version of what members tell each other.
const SAID: i16 = 1;

/// Of a group in the classic protocol: who is in it, as of some generation.
pub(crate) struct Joined {
    pub(crate) generation: i32,
    /// The members, if it is for this one to say who reads what.
    to_assign: Option<Vec<String>>,
}

/// What a heartbeat in the newer protocol was answered with.
pub(crate) struct Beaten {
    pub(crate) epoch: i32,
    /// The partitions that should be the member's, if that is news.
    pub(crate) partitions: Option<Vec<i32>>,
}

impl Kafka {
    /// Joins a group, or joins again. The member's id is set first, if it has none.
    pub(crate) fn join(
        &mut self,
        group: &str,
        member: &mut String,
        topic: &str,
        (session_ms, rebalance_ms): (i32, i32),
    ) -> anyhow::Result<Joined> {
        let mut subscription = BytesMut::new();
        subscription.extend_from_slice(&SAID.to_be_bytes());
        ConsumerProtocolSubscription::default()
            .with_topics(vec![text(topic)])
            .encode(&mut subscription, SAID)?;
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(text(ASSIGNOR))
            .with_metadata(subscription.freeze());
        let request = JoinGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text(member))
            .with_session_timeout_ms(session_ms)
            .with_rebalance_timeout_ms(rebalance_ms)
            .with_protocol_type(text(PROTOCOL))
            .with_protocols(vec![protocol]);
        let response = self.call(&request, 7)?;
        if !response.member_id.is_empty() {
            *member = response.member_id.to_string();
        }
        check(response.error_code)?;
        let members = || response.members.iter().map(|m| m.member_id.to_string()).collect();
        let to_assign = (response.leader == response.member_id).then(members);
        Ok(Joined { generation: response.generation_id, to_assign })
    }

    /// Which of a topic's partitions are the member's; its leader deals them out in turns.
    pub(crate) fn sync(
        &mut self,
        group: &str,
        member: &str,
        joined: &Joined,
        (topic, partitions): (&str, i32),
    ) -> anyhow::Result<Vec<i32>> {
        let mut assignments = Vec::new();
        let members = joined.to_assign.iter().flatten();
        for (i, id) in members.clone().enumerate() {
            let theirs = (0..partitions).skip(i).step_by(members.clone().count()).collect();
            let theirs = TopicPartition::default().with_topic(topic_name(topic)).with_partitions(theirs);
            let mut assignment = BytesMut::new();
            assignment.extend_from_slice(&SAID.to_be_bytes());
            ConsumerProtocolAssignment::default()
                .with_assigned_partitions(vec![theirs])
                .encode(&mut assignment, SAID)?;
            assignments.push(
                SyncGroupRequestAssignment::default()
                    .with_member_id(text(id))
                    .with_assignment(assignment.freeze()),
            );
        }
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text(member))
            .with_generation_id(joined.generation)
            .with_protocol_type(Some(text(PROTOCOL)))
            .with_protocol_name(Some(text(ASSIGNOR)))
            .with_assignments(assignments);
        let response = self.call(&request, 5)?;
        check(response.error_code)?;
        let mut bytes: Bytes = response.assignment;
        ensure!(bytes.len() > 2, "an assignment that says nothing");
        let assignment = ConsumerProtocolAssignment::decode(&mut bytes.split_off(2), SAID)?;
        Ok(assignment.assigned_partitions.into_iter().flat_map(|t| t.partitions).collect())
    }

    /// A heartbeat in the classic protocol.
    pub(crate) fn heartbeat(&mut self, group: &str, member: &str, generation: i32) -> anyhow::Result<()> {
        let request = HeartbeatRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text(member))
            .with_generation_id(generation);
        check(self.call(&request, 4)?.error_code)
    }

    /// Leaves a group of the classic protocol.
    pub(crate) fn leave(&mut self, group: &str, member: &str) -> anyhow::Result<()> {
        let member = MemberIdentity::default().with_member_id(text(member));
        let request =
            LeaveGroupRequest::default().with_group_id(GroupId(text(group))).with_members(vec![member]);
        check(self.call(&request, 4)?.error_code)
    }

    /// A heartbeat in the newer protocol (KIP-848): joins with epoch 0, leaves with −1. `owned` is what the member
    /// reads, if that is news.
    pub(crate) fn beat(
        &mut self,
        (group, member): (&str, &str),
        epoch: i32,
        (topic, id): (&str, Uuid),
        owned: Option<&[i32]>,
        rebalance_ms: i32,
    ) -> anyhow::Result<Beaten> {
        let of_topic = |partitions: &[i32]| {
            vec![TopicPartitions::default().with_topic_id(id).with_partitions(partitions.to_vec())]
        };
        let mut request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text(member))
            .with_member_epoch(epoch)
            .with_topic_partitions(owned.map(of_topic));
        if epoch == 0 {
            request = request
                .with_rebalance_timeout_ms(rebalance_ms)
                .with_subscribed_topic_names(Some(vec![topic_name(topic)]))
                .with_topic_partitions(Some(Vec::new()));
        }
        let response = self.call(&request, 1)?;
        check(response.error_code)?;
        let partitions = |a: consumer_group_heartbeat_response::Assignment| {
            a.topic_partitions.into_iter().flat_map(|t| t.partitions).collect()
        };
        Ok(Beaten { epoch: response.member_epoch, partitions: response.assignment.map(partitions) })
    }

    /// Commits a member's offset, in its generation or epoch.
    pub(crate) fn commit_as(
        &mut self,
        (group, member, epoch): (&str, &str, i32),
        (topic, partition): (&str, i32),
        offset: i64,
    ) -> anyhow::Result<()> {
        let committed = OffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(offset);
        let topic =
            OffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![committed]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text(member))
            .with_generation_id_or_member_epoch(epoch)
            .with_topics(vec![topic]);
        check(self.call(&request, 9)?.topics[0].partitions[0].error_code)
    }
}
