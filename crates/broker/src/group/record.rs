//! What is kept in `__consumer_offsets`, in Kafka's own formats: `OffsetCommitKey` and `-Value`,
//! `GroupMetadataKey` and `-Value`. All are of the formats before flexible versions: lengths of 16 bits for text,
//! of 32 for bytes and arrays. Those of the consumer protocol are in [`consumer`].

pub(crate) mod consumer;

use bytes::{BufMut, Bytes};

use super::offsets::Committed;
use crate::wire::{Reader, put_bytes, put_nullable, put_text};
use consumer::Change;

const OFFSET_KEY: i16 = 1;
const GROUP_KEY: i16 = 2;
/// The value versions that are written.
const OFFSET_VALUE: i16 = 3;
const GROUP_VALUE: i16 = 3;

/// A record as it is appended; no value is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// A record as it was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Offset { group: String, topic: String, partition: i32, value: Option<Committed> },
    Group { group: String, value: Option<StoredGroup> },
    Consumer { group: String, change: Change },
}

/// A classic group between two rebalances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredGroup {
    pub(crate) protocol_type: String,
    pub(crate) generation: i32,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: Option<String>,
    /// Since when it is in its state, in ms since the Unix epoch.
    pub(crate) since: i64,
    pub(crate) members: Vec<StoredMember>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredMember {
    pub(crate) id: String,
    pub(crate) instance: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) rebalance_ms: i32,
    pub(crate) session_ms: i32,
    pub(crate) subscription: Bytes,
    pub(crate) assignment: Bytes,
}

impl Record {
    /// An offset that is committed, or removed.
    pub(crate) fn offset(group: &str, topic: &str, partition: i32, value: Option<&Committed>) -> Record {
        let mut key = Vec::new();
        key.put_i16(OFFSET_KEY);
        put_text(&mut key, group);
        put_text(&mut key, topic);
        key.put_i32(partition);
        let value = value.map(|committed| {
            let mut out = Vec::new();
            out.put_i16(OFFSET_VALUE);
            out.put_i64(committed.offset);
            out.put_i32(committed.leader_epoch);
            put_text(&mut out, &committed.metadata);
            out.put_i64(committed.at);
            out
        });
        Record { key, value }
    }

    /// A group's members and generation.
    pub(crate) fn group(group: &str, value: &StoredGroup) -> Record {
        let mut out = Vec::new();
        out.put_i16(GROUP_VALUE);
        put_text(&mut out, &value.protocol_type);
        out.put_i32(value.generation);
        put_nullable(&mut out, value.protocol.as_deref());
        put_nullable(&mut out, value.leader.as_deref());
        out.put_i64(value.since);
        out.put_i32(value.members.len() as i32);
        for member in &value.members {
            put_text(&mut out, &member.id);
            put_nullable(&mut out, member.instance.as_deref());
            put_text(&mut out, &member.client_id);
            put_text(&mut out, &member.client_host);
            out.put_i32(member.rebalance_ms);
            out.put_i32(member.session_ms);
            put_bytes(&mut out, &member.subscription);
            put_bytes(&mut out, &member.assignment);
        }
        Record { key: group_key(group), value: Some(out) }
    }

    /// A group that is no more.
    pub(crate) fn group_gone(group: &str) -> Record {
        Record { key: group_key(group), value: None }
    }
}

impl Stored {
    /// Reads a record; `None` if it is of a kind or version that is not known here.
    pub(crate) fn parse(key: &[u8], value: Option<&[u8]>) -> Option<Stored> {
        let mut key = Reader(key);
        match key.i16()? {
            0 | OFFSET_KEY => {
                let (group, topic, partition) = (key.text()?, key.text()?, key.i32()?);
                let value = match value {
                    Some(value) => Some(parse_offset(Reader(value))?),
                    None => None,
                };
                Some(Stored::Offset { group, topic, partition, value })
            }
            GROUP_KEY => {
                let group = key.text()?;
                let value = match value {
                    Some(value) => Some(parse_group(Reader(value))?),
                    None => None,
                };
                Some(Stored::Group { group, value })
            }
            kind => {
                let (group, change) = consumer::parse(kind, key, value)?;
                Some(Stored::Consumer { group, change })
            }
        }
    }
}

fn parse_offset(mut r: Reader<'_>) -> Option<Committed> {
    let version = r.i16()?;
    let flexible = match version {
        0..=3 => false,
        4 => true,
        _ => return None,
    };
    let offset = r.i64()?;
    let leader_epoch = if version >= 3 { r.i32()? } else { -1 };
    let metadata = if flexible { r.compact_text()? } else { r.text()? };
    Some(Committed { offset, leader_epoch, metadata, at: r.i64()? })
}

fn parse_group(mut r: Reader<'_>) -> Option<StoredGroup> {
    let version = r.i16()?;
    if !(0..=3).contains(&version) {
        return None;
    }
    let mut group = StoredGroup {
        protocol_type: r.text()?,
        generation: r.i32()?,
        protocol: r.nullable()?,
        leader: r.nullable()?,
        since: if version >= 2 { r.i64()? } else { -1 },
        members: Vec::new(),
    };
    for _ in 0..r.i32()? {
        let id = r.text()?;
        let instance = if version >= 3 { r.nullable()? } else { None };
        let (client_id, client_host) = (r.text()?, r.text()?);
        let rebalance_ms = if version >= 1 { r.i32()? } else { -1 };
        let session_ms = r.i32()?;
        let (subscription, assignment) = (r.bytes()?, r.bytes()?);
        let rebalance_ms = if rebalance_ms < 0 { session_ms } else { rebalance_ms };
        group.members.push(StoredMember {
            id,
            instance,
            client_id,
            client_host,
            rebalance_ms,
            session_ms,
            subscription,
            assignment,
        });
    }
    Some(group)
}

fn group_key(group: &str) -> Vec<u8> {
    let mut key = Vec::new();
    key.put_i16(GROUP_KEY);
    put_text(&mut key, group);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let committed = Committed { offset: 7, leader_epoch: -1, metadata: "m".into(), at: 9 };
        let record = Record::offset("g", "t", 3, Some(&committed));
        let stored = Stored::parse(&record.key, record.value.as_deref()).unwrap();
        let (group, topic) = ("g".to_owned(), "t".to_owned());
        assert_eq!(stored, Stored::Offset { group, topic, partition: 3, value: Some(committed) });
        let member = StoredMember {
            id: "m-1".into(),
            instance: Some("i".into()),
            session_ms: 10,
            rebalance_ms: 20,
            subscription: Bytes::from_static(b"sub"),
            assignment: Bytes::from_static(b"ass"),
            ..StoredMember::default()
        };
        let value = StoredGroup {
            protocol_type: "consumer".into(),
            generation: 4,
            protocol: Some("range".into()),
            leader: None,
            since: 5,
            members: vec![member],
        };
        let record = Record::group("g", &value);
        let stored = Stored::parse(&record.key, record.value.as_deref()).unwrap();
        assert_eq!(stored, Stored::Group { group: "g".into(), value: Some(value) });
        let gone = Record::group_gone("g");
        assert_eq!(Stored::parse(&gone.key, None), Some(Stored::Group { group: "g".into(), value: None }));
    }

    #[test]
    fn offsets_are_kafkas_bit_for_bit() {
        let committed = Committed { offset: 258, leader_epoch: 1, metadata: "x".into(), at: 2 };
        let record = Record::offset("g", "t", 3, Some(&committed));
        assert_eq!(record.key, b"\x00\x01\x00\x01g\x00\x01t\x00\x00\x00\x03");
        let value = b"\x00\x03\0\0\0\0\0\0\x01\x02\0\0\0\x01\x00\x01x\0\0\0\0\0\0\0\x02";
        assert_eq!(record.value.as_deref(), Some(&value[..]));
    }

    #[test]
    fn what_is_cut_off_is_no_record() {
        let record =
            Record::group("g", &StoredGroup { members: vec![StoredMember::default()], ..Default::default() });
        let value = record.value.unwrap();
        for cut in 0..value.len() {
            assert_eq!(Stored::parse(&record.key, Some(&value[..cut])), None);
        }
    }
}
