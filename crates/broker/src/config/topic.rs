//! Settings of a topic: what it says itself, else what the broker says, else Kafka's default.

use std::collections::BTreeMap;

use super::value::Type;

/// One setting that a topic can have.
#[derive(Debug)]
pub(crate) struct TopicSetting {
    pub(crate) name: &'static str,
    /// The broker's setting that gives its default.
    pub(crate) broker: Option<&'static str>,
    pub(crate) kind: Type,
    pub(crate) default: &'static str,
    pub(crate) doc: &'static str,
}

const MAX: i64 = i64::MAX;
const INT: i64 = i32::MAX as i64;

macro_rules! settings {
    ($($name:literal, $broker:expr, $kind:expr, $default:literal, $doc:literal;)*) => {
        /// All settings of a topic, by name.
        pub(crate) const TOPIC_SETTINGS: &[TopicSetting] = &[
            $(TopicSetting { name: $name, broker: $broker, kind: $kind, default: $default, doc: $doc },)*
        ];
    };
}

const CODECS: &[&str] = &["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"];

settings! {
    "cleanup.policy", Some("log.cleanup.policy"), Type::SomeOf(&["compact", "delete"]), "delete",
        "What becomes of old segments: deleted by age or size, compacted by key, or both.";
    "compression.gzip.level", Some("compression.gzip.level"), Type::Int(-1, 9), "-1",
        "The level if compression.type is gzip. Batches are kept as producers compressed them.";
    "compression.lz4.level", Some("compression.lz4.level"), Type::Int(1, 17), "9",
        "The level if compression.type is lz4. Batches are kept as producers compressed them.";
    "compression.type", Some("compression.type"), Type::OneOf(CODECS), "producer",
        "The final compression of the topic's batches; producer keeps each as it was sent.";
    "compression.zstd.level", Some("compression.zstd.level"), Type::Int(-131072, 22), "3",
        "The level if compression.type is zstd. Batches are kept as producers compressed them.";
    "delete.retention.ms", Some("log.cleaner.delete.retention.ms"), Type::Long(0, MAX), "86400000",
        "How long a tombstone of a compacted topic is kept, in ms.";
    "file.delete.delay.ms", Some("log.segment.delete.delay.ms"), Type::Long(0, MAX), "60000",
        "How long to wait before a file is removed, in ms.";
    "flush.messages", Some("log.flush.interval.messages"), Type::Long(1, MAX), "1",
        "After how many records the log is synced. Here every acknowledged record is synced first.";
    "flush.ms", Some("log.flush.interval.ms"), Type::Long(0, MAX), "0",
        "After how many ms the log is synced. Here every acknowledged record is synced first.";
    "follower.replication.throttled.replicas", None, Type::List, "",
        "Replicas whose replication is throttled on the follower's side.";
    "index.interval.bytes", Some("log.index.interval.bytes"), Type::Int(0, INT), "4096",
        "About one index entry for so many bytes.";
    "leader.replication.throttled.replicas", None, Type::List, "",
        "Replicas whose replication is throttled on the leader's side.";
    "local.retention.bytes", Some("log.local.retention.bytes"), Type::Long(-2, MAX), "-2",
        "Bytes kept locally with tiered storage; -2 means retention.bytes.";
    "local.retention.ms", Some("log.local.retention.ms"), Type::Long(-2, MAX), "-2",
        "Time kept locally with tiered storage; -2 means retention.ms.";
    "max.compaction.lag.ms", Some("log.cleaner.max.compaction.lag.ms"), Type::Long(1, MAX),
        "9223372036854775807", "The longest time that a record stays uncompacted, in ms.";
    "max.message.bytes", Some("message.max.bytes"), Type::Int(0, INT), "1048588",
        "The largest record batch that is taken, in bytes, as sent (after compression).";
    "message.timestamp.after.max.ms", Some("log.message.timestamp.after.max.ms"), Type::Long(0, MAX), "3600000",
        "How far a producer's timestamp may lie after the broker's clock, in ms.";
    "message.timestamp.before.max.ms", Some("log.message.timestamp.before.max.ms"), Type::Long(0, MAX),
        "9223372036854775807", "How far a producer's timestamp may lie before the broker's clock, in ms.";
    "message.timestamp.type", Some("log.message.timestamp.type"),
        Type::OneOf(&["CreateTime", "LogAppendTime"]), "CreateTime",
        "Whether a record's timestamp is its producer's or that of the append.";
    "min.cleanable.dirty.ratio", Some("log.cleaner.min.cleanable.ratio"), Type::Double, "0.5",
        "How much of a compacted log has to be uncompacted before it is worth compacting.";
    "min.compaction.lag.ms", Some("log.cleaner.min.compaction.lag.ms"), Type::Long(0, MAX), "0",
        "The shortest time that a record stays uncompacted, in ms.";
    "min.insync.replicas", Some("min.insync.replicas"), Type::Int(1, INT), "1",
        "How many replicas acks=all asks for. There is one here.";
    "preallocate", Some("log.preallocate"), Type::Bool, "false", "Whether new segments are preallocated.";
    "remote.log.copy.disable", None, Type::Bool, "false", "With tiered storage: whether copying is off.";
    "remote.log.delete.on.disable", None, Type::Bool, "false",
        "With tiered storage: whether remote data goes when it is switched off.";
    "remote.storage.enable", None, Type::Bool, "false", "Whether storage is tiered. It is not here.";
    "retention.bytes", Some("log.retention.bytes"), Type::Long(-1, MAX), "-1",
        "Segments beyond so many bytes of a partition are deleted; -1 is no limit.";
    "retention.ms", Some("log.retention.ms"), Type::Long(-1, MAX), "604800000",
        "Segments older than so many ms are deleted; -1 is no limit.";
    "segment.bytes", Some("log.segment.bytes"), Type::Int(1_048_576, INT), "1073741824",
        "The size at which a segment is followed by a new one, in bytes.";
    "segment.index.bytes", Some("log.index.size.max.bytes"), Type::Int(4, INT), "10485760",
        "The largest index of a segment, in bytes.";
    "segment.jitter.ms", Some("log.roll.jitter.ms"), Type::Long(0, MAX), "0",
        "A random time taken off segment.ms, at most, in ms.";
    "segment.ms", Some("log.roll.ms"), Type::Long(1, MAX), "604800000",
        "The age at which a segment is followed by a new one, in ms.";
    "unclean.leader.election.enable", Some("unclean.leader.election.enable"), Type::Bool, "false",
        "Whether a replica that is behind may lead. There is one replica here.";
}

/// A topic's setting by its name.
pub(crate) fn topic_setting(name: &str) -> Option<&'static TopicSetting> {
    TOPIC_SETTINGS.iter().find(|setting| setting.name == name)
}

/// What a topic says itself, by name.
pub(crate) type TopicConfig = BTreeMap<String, String>;
