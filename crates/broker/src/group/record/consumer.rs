//! Records of groups with the consumer protocol (KIP-848), in Kafka's own formats: the `ConsumerGroup…Key`s and
//! `-Value`s. Keys are of the formats before flexible versions, values are flexible and begin with a version, 0.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};
use uuid::Uuid;

use super::Record;
use crate::{
    group::Protocol,
    wire::{Reader, put_compact, put_compact_nullable, put_text, put_varint},
};

const EPOCH_KEY: i16 = 3;
const MEMBER_KEY: i16 = 5;
const TARGET_EPOCH_KEY: i16 = 6;
const TARGET_KEY: i16 = 7;
const CURRENT_KEY: i16 = 8;
const REGEX_KEY: i16 = 16;
const VERSION: i16 = 0;

/// Partitions by topic's id; no topic without partitions.
pub(crate) type Partitions = BTreeMap<Uuid, BTreeSet<i32>>;

/// One change of a consumer group; no value removes what there was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Epoch(Option<Epoch>),
    Member(String, Option<Info>),
    TargetEpoch(Option<i32>),
    Target(String, Option<Partitions>),
    Current(String, Option<Current>),
    Regex(String, Option<Resolved>),
}

/// The group itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) epoch: i32,
    /// Over all topics that the group is subscribed to, their ids and partition counts.
    pub(crate) hash: i64,
}

/// What a member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) instance: Option<String>,
    pub(crate) rack: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) topics: BTreeSet<String>,
    pub(crate) regex: Option<String>,
    pub(crate) rebalance_ms: i32,
    pub(crate) assignor: Option<String>,
    /// There if it speaks the classic protocol.
    pub(crate) classic: Option<ClassicInfo>,
}

impl Default for Info {
    fn default() -> Info {
        Info {
            instance: None,
            rack: None,
            client_id: String::new(),
            client_host: String::new(),
            topics: BTreeSet::new(),
            regex: None,
            rebalance_ms: -1,
            assignor: None,
            classic: None,
        }
    }
}

/// What a member says that speaks the classic protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClassicInfo {
    pub(crate) session_ms: i32,
    pub(crate) protocols: Vec<Protocol>,
}

/// Where a member is on its way to its target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// It has what its epoch's target says.
    #[default]
    Stable,
    /// It has to give up partitions before it can go on to the next epoch.
    Unrevoked,
    /// It is in the newest epoch, and waits for partitions that others have not given up yet.
    Unreleased,
}

/// What a member has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Current {
    /// −2 while a static member is away.
    pub(crate) epoch: i32,
    /// The one before, which the member may still come with if the answer was lost.
    pub(crate) previous: i32,
    pub(crate) state: MemberState,
    pub(crate) assigned: Partitions,
    /// Still the member's, until it says that it has them no more.
    pub(crate) revoking: Partitions,
}

/// The topics that a regular expression matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) topics: BTreeSet<String>,
    pub(crate) version: i64,
    /// When it was looked for, in ms since the Unix epoch.
    pub(crate) at: i64,
}

impl Record {
    /// A change of a consumer group.
    pub(crate) fn consumer(group: &str, change: &Change) -> Record {
        let (kind, second, value) = match change {
            Change::Epoch(value) => (EPOCH_KEY, None, value.as_ref().map(write_epoch)),
            Change::Member(id, value) => (MEMBER_KEY, Some(id), value.as_ref().map(write_info)),
            Change::TargetEpoch(value) => (TARGET_EPOCH_KEY, None, value.as_ref().map(write_target_epoch)),
            Change::Target(id, value) => (TARGET_KEY, Some(id), value.as_ref().map(write_target)),
            Change::Current(id, value) => (CURRENT_KEY, Some(id), value.as_ref().map(write_current)),
            Change::Regex(regex, value) => (REGEX_KEY, Some(regex), value.as_ref().map(write_resolved)),
        };
        let mut key = Vec::new();
        key.put_i16(kind);
        put_text(&mut key, group);
        if let Some(second) = second {
            put_text(&mut key, second);
        }
        Record { key, value }
    }
}

/// Reads a record whose key is of one of these kinds: the group, and the change.
pub(super) fn parse(kind: i16, mut key: Reader<'_>, value: Option<&[u8]>) -> Option<(String, Change)> {
    let group = key.text()?;
    let second = match kind {
        MEMBER_KEY | TARGET_KEY | CURRENT_KEY | REGEX_KEY => key.text()?,
        EPOCH_KEY | TARGET_EPOCH_KEY => String::new(),
        _ => return None,
    };
    let mut reader = Reader(value.unwrap_or_default());
    if value.is_some() && reader.i16()? != VERSION {
        return None;
    }
    // No value is no error: it removes.
    macro_rules! read {
        ($read:expr) => {
            if value.is_some() { Some($read(&mut reader)?) } else { None }
        };
    }
    let change = match kind {
        EPOCH_KEY => Change::Epoch(read!(read_epoch)),
        MEMBER_KEY => Change::Member(second, read!(read_info)),
        TARGET_EPOCH_KEY => Change::TargetEpoch(read!(Reader::i32)),
        TARGET_KEY => Change::Target(second, read!(read_partitions)),
        CURRENT_KEY => Change::Current(second, read!(read_current)),
        _ => Change::Regex(second, read!(read_resolved)),
    };
    Some((group, change))
}

fn value() -> Vec<u8> {
    let mut out = Vec::new();
    out.put_i16(VERSION);
    out
}

fn write_epoch(epoch: &Epoch) -> Vec<u8> {
    let mut out = value();
    out.put_i32(epoch.epoch);
    if epoch.hash == 0 {
        out.put_u8(0);
    } else {
        // One tag: 0, the hash.
        out.put_slice(&[1, 0, 8]);
        out.put_i64(epoch.hash);
    }
    out
}

fn read_epoch(r: &mut Reader<'_>) -> Option<Epoch> {
    let mut epoch = Epoch { epoch: r.i32()?, hash: 0 };
    for _ in 0..r.varint()? {
        let (tag, bytes) = r.tag()?;
        if tag == 0 {
            epoch.hash = i64::from_be_bytes(bytes.try_into().ok()?);
        }
    }
    Some(epoch)
}

fn write_info(info: &Info) -> Vec<u8> {
    let mut out = value();
    put_compact_nullable(&mut out, info.instance.as_deref());
    put_compact_nullable(&mut out, info.rack.as_deref());
    put_compact(&mut out, &info.client_id);
    put_compact(&mut out, &info.client_host);
    put_texts(&mut out, &info.topics);
    put_compact_nullable(&mut out, info.regex.as_deref());
    out.put_i32(info.rebalance_ms);
    put_compact_nullable(&mut out, info.assignor.as_deref());
    match &info.classic {
        None => out.put_u8(0),
        Some(classic) => {
            let mut tagged = vec![1];
            tagged.put_i32(classic.session_ms);
            put_varint(&mut tagged, classic.protocols.len() + 1);
            for (name, metadata) in &classic.protocols {
                put_compact(&mut tagged, name);
                put_varint(&mut tagged, metadata.len() + 1);
                tagged.put_slice(metadata);
                tagged.put_u8(0);
            }
            tagged.put_u8(0);
            out.put_slice(&[1, 0]);
            put_varint(&mut out, tagged.len());
            out.put_slice(&tagged);
        }
    }
    out
}

fn read_info(r: &mut Reader<'_>) -> Option<Info> {
    let mut info = Info {
        instance: r.compact_nullable()?,
        rack: r.compact_nullable()?,
        client_id: r.compact_text()?,
        client_host: r.compact_text()?,
        topics: read_texts(r)?,
        regex: r.compact_nullable()?,
        rebalance_ms: r.i32()?,
        assignor: r.compact_nullable()?,
        classic: None,
    };
    for _ in 0..r.varint()? {
        let (tag, bytes) = r.tag()?;
        if tag == 0 {
            info.classic = read_classic(&mut Reader(bytes))?;
        }
    }
    Some(info)
}

fn read_classic(r: &mut Reader<'_>) -> Option<Option<ClassicInfo>> {
    // A nullable struct begins with a byte that says whether it is there.
    if r.take(1)? == [0xff] {
        return Some(None);
    }
    let mut classic = ClassicInfo { session_ms: r.i32()?, protocols: Vec::new() };
    for _ in 0..r.compact_length()? {
        let name = r.compact_text()?;
        let length = r.compact_length()?;
        classic.protocols.push((name, Bytes::copy_from_slice(r.take(length)?)));
        r.skip_tags()?;
    }
    Some(Some(classic))
}

fn write_target_epoch(epoch: &i32) -> Vec<u8> {
    let mut out = value();
    out.put_i32(*epoch);
    out.put_u8(0);
    out
}

fn write_target(partitions: &Partitions) -> Vec<u8> {
    let mut out = value();
    put_partitions(&mut out, partitions);
    out.put_u8(0);
    out
}

fn write_current(current: &Current) -> Vec<u8> {
    let mut out = value();
    out.put_i32(current.epoch);
    out.put_i32(current.previous);
    out.put_u8(match current.state {
        MemberState::Stable => 0,
        MemberState::Unrevoked => 1,
        MemberState::Unreleased => 2,
    });
    put_partitions(&mut out, &current.assigned);
    put_partitions(&mut out, &current.revoking);
    out.put_u8(0);
    out
}

fn read_current(r: &mut Reader<'_>) -> Option<Current> {
    Some(Current {
        epoch: r.i32()?,
        previous: r.i32()?,
        state: match r.take(1)?[0] {
            0 => MemberState::Stable,
            1 => MemberState::Unrevoked,
            2 => MemberState::Unreleased,
            _ => return None,
        },
        assigned: read_partitions(r)?,
        revoking: read_partitions(r)?,
    })
}

fn write_resolved(resolved: &Resolved) -> Vec<u8> {
    let mut out = value();
    put_texts(&mut out, &resolved.topics);
    out.put_i64(resolved.version);
    out.put_i64(resolved.at);
    out.put_u8(0);
    out
}

fn read_resolved(r: &mut Reader<'_>) -> Option<Resolved> {
    Some(Resolved { topics: read_texts(r)?, version: r.i64()?, at: r.i64()? })
}

fn put_partitions(out: &mut Vec<u8>, partitions: &Partitions) {
    put_varint(out, partitions.len() + 1);
    for (topic, partitions) in partitions {
        out.put_slice(topic.as_bytes());
        put_varint(out, partitions.len() + 1);
        partitions.iter().for_each(|p| out.put_i32(*p));
        out.put_u8(0);
    }
}

fn read_partitions(r: &mut Reader<'_>) -> Option<Partitions> {
    let mut all = Partitions::new();
    for _ in 0..r.compact_length()? {
        let topic = Uuid::from_bytes(r.take(16)?.try_into().ok()?);
        let count = r.compact_length()?;
        let partitions: BTreeSet<i32> = (0..count).map(|_| r.i32()).collect::<Option<_>>()?;
        r.skip_tags()?;
        if !partitions.is_empty() {
            all.insert(topic, partitions);
        }
    }
    Some(all)
}

fn put_texts(out: &mut Vec<u8>, texts: &BTreeSet<String>) {
    put_varint(out, texts.len() + 1);
    texts.iter().for_each(|t| put_compact(out, t));
}

fn read_texts(r: &mut Reader<'_>) -> Option<BTreeSet<String>> {
    (0..r.compact_length()?).map(|_| r.compact_text()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::record::Stored;

    fn partitions() -> Partitions {
        Partitions::from([
            (Uuid::from_u128(1), BTreeSet::from([0, 2])),
            (Uuid::from_u128(2), BTreeSet::from([7])),
        ])
    }

    fn changes() -> Vec<Change> {
        let classic =
            ClassicInfo { session_ms: 6, protocols: vec![("range".into(), Bytes::from_static(b"m"))] };
        let info = Info {
            instance: Some("i".into()),
            topics: BTreeSet::from(["a".into(), "b".into()]),
            regex: Some("x.*".into()),
            assignor: Some("uniform".into()),
            rebalance_ms: 5,
            ..Info::default()
        };
        let current = Current {
            epoch: 3,
            previous: 2,
            state: MemberState::Unrevoked,
            assigned: partitions(),
            revoking: partitions(),
        };
        vec![
            Change::Epoch(Some(Epoch { epoch: 4, hash: 0 })),
            Change::Epoch(Some(Epoch { epoch: 4, hash: -9 })),
            Change::Member("m".into(), Some(info.clone())),
            Change::Member("m".into(), Some(Info { classic: Some(classic), ..info })),
            Change::TargetEpoch(Some(4)),
            Change::Target("m".into(), Some(partitions())),
            Change::Current("m".into(), Some(current)),
            Change::Regex(
                "x.*".into(),
                Some(Resolved { topics: BTreeSet::from(["xy".into()]), version: 1, at: 2 }),
            ),
            Change::Epoch(None),
            Change::Member("m".into(), None),
            Change::TargetEpoch(None),
            Change::Target("m".into(), None),
            Change::Current("m".into(), None),
            Change::Regex("x.*".into(), None),
        ]
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_off_is_nothing() {
        for change in changes() {
            let record = Record::consumer("g", &change);
            let stored = Stored::parse(&record.key, record.value.as_deref());
            assert_eq!(stored, Some(Stored::Consumer { group: "g".into(), change }));
            // The last byte says that there are no tags; a reader that stops before it has read everything.
            for cut in 0..record.value.as_ref().map_or(0, |v| v.len() - 1) {
                assert_eq!(Stored::parse(&record.key, record.value.as_ref().map(|v| &v[..cut])), None);
            }
        }
    }

    #[test]
    fn records_are_kafkas_bit_for_bit() {
        let record = Record::consumer(
            "g",
            &Change::Current("m".into(), Some(Current { epoch: 2, ..Current::default() })),
        );
        assert_eq!(record.key, b"\x00\x08\x00\x01g\x00\x01m");
        assert_eq!(record.value.unwrap(), b"\0\0\0\0\0\x02\0\0\0\0\0\x01\x01\0");
        let target = Partitions::from([(Uuid::from_u128(1), BTreeSet::from([3]))]);
        let record = Record::consumer("g", &Change::Target("m".into(), Some(target)));
        let value = b"\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02\0\0\0\x03\0\0";
        assert_eq!((&record.key[..2], record.value.as_deref()), (&b"\0\x07"[..], Some(&value[..])));
    }
}
