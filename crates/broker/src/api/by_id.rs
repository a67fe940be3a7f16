//! OffsetCommit and OffsetFetch of version 10, which name topics by their ids (KIP-848). The codec ends at version 9,
//! so they are read and written here.

use bytes::{BufMut, Bytes};
use kafka_protocol::{
    messages::{
        OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
        offset_commit_request::*, offset_fetch_request::*,
    },
    protocol::{Decodable, StrBytes},
};
use uuid::Uuid;

use super::text;
use crate::wire::{Reader, Reply, Request, Response, put_compact, put_compact_nullable, put_varint};

/// The first version that names topics by their ids.
pub(super) const BY_ID: i16 = 10;

/// A message of the codec, and its topics' ids in their order. Before version 10 there are none, from then on no
/// names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ById<T> {
    pub(super) message: T,
    pub(super) ids: Vec<Uuid>,
}

impl Request for ById<OffsetCommitRequest> {
    fn read(body: &mut Bytes, version: i16) -> Result<Self, String> {
        read(body, version, commit)
    }
}

impl Request for ById<OffsetFetchRequest> {
    fn read(body: &mut Bytes, version: i16) -> Result<Self, String> {
        read(body, version, fetch)
    }
}

fn read<T: Decodable>(
    body: &mut Bytes,
    version: i16,
    by_hand: impl Fn(&mut Reader<'_>, &mut Vec<Uuid>) -> Option<T>,
) -> Result<ById<T>, String> {
    let mut ids = Vec::new();
    let message = match version {
        BY_ID.. => by_hand(&mut Reader(body), &mut ids).ok_or("a malformed request")?,
        _ => T::decode(body, version).map_err(|e| e.to_string())?,
    };
    Ok(ById { message, ids })
}

/// The elements of an array that is there.
fn array<T>(r: &mut Reader<'_>, mut element: impl FnMut(&mut Reader<'_>) -> Option<T>) -> Option<Vec<T>> {
    (0..r.compact_length()?).map(|_| element(r)).collect()
}

fn commit(r: &mut Reader<'_>, ids: &mut Vec<Uuid>) -> Option<OffsetCommitRequest> {
    let partition = |r: &mut Reader<'_>| {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(r.i32()?)
            .with_committed_offset(r.i64()?)
            .with_committed_leader_epoch(r.i32()?)
            .with_committed_metadata(r.compact_nullable()?.map(StrBytes::from_string));
        r.skip_tags()?;
        Some(partition)
    };
    let request = OffsetCommitRequest::default()
        .with_group_id(text(r.compact_text()?).into())
        .with_generation_id_or_member_epoch(r.i32()?)
        .with_member_id(text(r.compact_text()?))
        .with_group_instance_id(r.compact_nullable()?.map(StrBytes::from_string))
        .with_topics(array(r, |r| {
            ids.push(r.uuid()?);
            let topic = OffsetCommitRequestTopic::default().with_partitions(array(r, partition)?);
            r.skip_tags()?;
            Some(topic)
        })?);
    r.skip_tags()?;
    Some(request)
}

fn fetch(r: &mut Reader<'_>, ids: &mut Vec<Uuid>) -> Option<OffsetFetchRequest> {
    let mut topic = |r: &mut Reader<'_>| {
        ids.push(r.uuid()?);
        let topic = OffsetFetchRequestTopics::default().with_partition_indexes(array(r, |r| r.i32())?);
        r.skip_tags()?;
        Some(topic)
    };
    let group = |r: &mut Reader<'_>| {
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(text(r.compact_text()?).into())
            .with_member_id(r.compact_nullable()?.map(StrBytes::from_string))
            .with_member_epoch(r.i32()?)
            .with_topics(if r.take_null()? { None } else { Some(array(r, &mut topic)?) });
        r.skip_tags()?;
        Some(group)
    };
    let request =
        OffsetFetchRequest::default().with_groups(array(r, group)?).with_require_stable(r.take(1)? != [0]);
    r.skip_tags()?;
    Some(request)
}

impl Response for ById<OffsetCommitResponse> {
    fn has_tags(version: i16) -> bool {
        OffsetCommitResponse::has_tags(version)
    }

    fn write(&self, out: &mut Reply, version: i16) -> Result<(), String> {
        if version < BY_ID {
            return self.message.write(out, version);
        }
        let out = &mut out.bytes;
        out.put_i32(self.message.throttle_time_ms);
        put_varint(out, self.message.topics.len() + 1);
        for (topic, id) in self.message.topics.iter().zip(&self.ids) {
            out.put_slice(id.as_bytes());
            put_varint(out, topic.partitions.len() + 1);
            for partition in &topic.partitions {
                out.put_i32(partition.partition_index);
                out.put_i16(partition.error_code);
                out.put_u8(0);
            }
            out.put_u8(0);
        }
        out.put_u8(0);
        Ok(())
    }
}

impl Response for ById<OffsetFetchResponse> {
    fn has_tags(version: i16) -> bool {
        OffsetFetchResponse::has_tags(version)
    }

    fn write(&self, out: &mut Reply, version: i16) -> Result<(), String> {
        if version < BY_ID {
            return self.message.write(out, version);
        }
        let (out, mut ids) = (&mut out.bytes, self.ids.iter());
        out.put_i32(self.message.throttle_time_ms);
        put_varint(out, self.message.groups.len() + 1);
        for group in &self.message.groups {
            put_compact(out, &group.group_id);
            put_varint(out, group.topics.len() + 1);
            for (topic, id) in group.topics.iter().zip(&mut ids) {
                out.put_slice(id.as_bytes());
                put_varint(out, topic.partitions.len() + 1);
                for partition in &topic.partitions {
                    out.put_i32(partition.partition_index);
                    out.put_i64(partition.committed_offset);
                    out.put_i32(partition.committed_leader_epoch);
                    put_compact_nullable(out, partition.metadata.as_deref());
                    out.put_i16(partition.error_code);
                    out.put_u8(0);
                }
                out.put_u8(0);
            }
            out.put_i16(group.error_code);
            out.put_u8(0);
        }
        out.put_u8(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{TopicName, offset_commit_response::*, offset_fetch_response::*},
        protocol::Encodable,
    };

    use super::*;

    /// A name of 15 bytes with its length before it takes what an id takes: so version 9, which the codec knows,
    /// is version 10 with these ids.
    const NAMES: [&str; 2] = ["a-topic-of-0015", "another-of-0015"];

    fn id(name: &str) -> Uuid {
        let mut bytes = [16; 16];
        bytes[1..].copy_from_slice(name.as_bytes());
        Uuid::from_bytes(bytes)
    }

    fn name(name: &'static str) -> TopicName {
        TopicName(StrBytes::from_static_str(name))
    }

    fn version_9(message: &impl Encodable) -> Bytes {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes, 9).unwrap();
        bytes.freeze()
    }

    fn written<T>(message: T) -> Bytes
    where
        ById<T>: Response,
    {
        let mut reply = Reply::default();
        ById { message, ids: NAMES.map(id).to_vec() }.write(&mut reply, 10).unwrap();
        reply.bytes.into()
    }

    #[test]
    fn a_commit_is_read() {
        let partition = |index, metadata| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(index)
                .with_committed_offset(1 << 40)
                .with_committed_leader_epoch(3)
                .with_committed_metadata(metadata)
        };
        let topics = |named: bool| {
            let topic = |n| {
                OffsetCommitRequestTopic::default()
                    .with_name(if named { name(n) } else { TopicName::default() })
                    .with_partitions(vec![partition(7, Some(text("m"))), partition(8, None)])
            };
            let request = OffsetCommitRequest::default()
                .with_group_id(text("g").into())
                .with_generation_id_or_member_epoch(5)
                .with_member_id(text("member"))
                .with_group_instance_id(Some(text("instance")));
            request.with_topics(NAMES.map(topic).to_vec())
        };
        let read = ById::<OffsetCommitRequest>::read(&mut version_9(&topics(true)), 10).unwrap();
        assert_eq!(read, ById { message: topics(false), ids: NAMES.map(id).to_vec() });
        let mut bytes = version_9(&topics(true));
        while !bytes.is_empty() {
            bytes.truncate(bytes.len() - 1);
            ById::<OffsetCommitRequest>::read(&mut bytes.clone(), 10).unwrap_err();
        }
    }

    #[test]
    fn a_fetch_is_read() {
        let request = |named: bool| {
            let topic = |n| {
                OffsetFetchRequestTopics::default()
                    .with_name(if named { name(n) } else { TopicName::default() })
                    .with_partition_indexes(vec![3, 4])
            };
            let group = |id: &str, topics| {
                OffsetFetchRequestGroup::default()
                    .with_group_id(text(id).into())
                    .with_member_id(Some(text("member")))
                    .with_member_epoch(5)
                    .with_topics(topics)
            };
            let groups = vec![
                group("one", Some(vec![topic(NAMES[0])])),
                group("all", None),
                group("two", Some(vec![topic(NAMES[1])])),
            ];
            OffsetFetchRequest::default().with_groups(groups).with_require_stable(true)
        };
        let read = ById::<OffsetFetchRequest>::read(&mut version_9(&request(true)), 10).unwrap();
        assert_eq!(read, ById { message: request(false), ids: NAMES.map(id).to_vec() });
    }

    #[test]
    fn answers_are_written() {
        let partition =
            |index| OffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(100);
        let topic = |n| {
            OffsetCommitResponseTopic::default()
                .with_name(name(n))
                .with_partitions(vec![partition(0), partition(1)])
        };
        let commit = OffsetCommitResponse::default().with_throttle_time_ms(9);
        let commit = commit.with_topics(NAMES.map(topic).to_vec());
        assert_eq!(version_9(&commit), written(commit));
        let partition = |metadata| {
            OffsetFetchResponsePartitions::default()
                .with_partition_index(3)
                .with_committed_offset(1 << 40)
                .with_committed_leader_epoch(6)
                .with_metadata(metadata)
                .with_error_code(100)
        };
        let group = |n| {
            let topic = OffsetFetchResponseTopics::default()
                .with_name(name(n))
                .with_partitions(vec![partition(Some(text("m"))), partition(None)]);
            OffsetFetchResponseGroup::default()
                .with_group_id(text("g").into())
                .with_topics(vec![topic])
                .with_error_code(16)
        };
        let fetch = OffsetFetchResponse::default().with_throttle_time_ms(9);
        let fetch = fetch.with_groups(NAMES.map(group).to_vec());
        assert_eq!(version_9(&fetch), written(fetch));
    }
}
