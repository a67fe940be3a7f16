//! How a topic is kept, in Kafka's own names and values.

use std::collections::BTreeMap;

use crate::{MAX_MESSAGE_BYTES, OpenError};

/// What a configuration's value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConfigKind {
    /// A 32-bit integer in a range, both ends included.
    Int(i32, i32),
    /// A 64-bit integer in a range, both ends included.
    Long(i64, i64),
    /// A number in a range, both ends included.
    Double(f64, f64),
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any of these words, separated by commas, at least one.
    Words(&'static [&'static str]),
    /// Anything, separated by commas.
    List,
}

/// One of Kafka's topic configurations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConfigKey {
    /// Its name, as in `retention.ms`.
    pub name: &'static str,
    /// What its value may be.
    pub kind: ConfigKind,
    /// Its value in Apache Kafka 4 where nobody says otherwise.
    pub default: &'static str,
    /// The broker setting that is its default there.
    pub server: &'static str,
    /// Whether it changes anything here. The others are taken and kept, for clients that set them.
    pub used: bool,
}

const fn key(
    name: &'static str,
    kind: ConfigKind,
    default: &'static str,
    server: &'static str,
    used: bool,
) -> ConfigKey {
    ConfigKey { name, kind, default, server, used }
}

const CODECS: &[&str] = &["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"];
const FOREVER: &str = "9223372036854775807";

/// All topic configurations of Apache Kafka 4, by name.
pub const TOPIC_CONFIGS: &[ConfigKey] = {
    use ConfigKind::*;
    const NATURAL: ConfigKind = Long(0, i64::MAX);
    const POSITIVE: ConfigKind = Long(1, i64::MAX);
    const ANY: ConfigKind = Long(i64::MIN, i64::MAX);
    &[
        key("cleanup.policy", Words(&["compact", "delete"]), "delete", "log.cleanup.policy", true),
        key("compression.gzip.level", Int(-1, 9), "-1", "compression.gzip.level", false),
        key("compression.lz4.level", Int(1, 17), "9", "compression.lz4.level", false),
        key("compression.type", Word(CODECS), "producer", "compression.type", true),
        key("compression.zstd.level", Int(-131_072, 22), "3", "compression.zstd.level", false),
        key("delete.retention.ms", NATURAL, "86400000", "log.cleaner.delete.retention.ms", true),
        key("file.delete.delay.ms", NATURAL, "60000", "log.segment.delete.delay.ms", false),
        key("flush.messages", POSITIVE, FOREVER, "log.flush.interval.messages", false),
        key("flush.ms", NATURAL, FOREVER, "log.flush.interval.ms", false),
        key("follower.replication.throttled.replicas", List, "", "", false),
        key("index.interval.bytes", Int(0, i32::MAX), "4096", "log.index.interval.bytes", true),
        key("leader.replication.throttled.replicas", List, "", "", false),
        key("local.retention.bytes", Long(-2, i64::MAX), "-2", "log.local.retention.bytes", false),
        key("local.retention.ms", Long(-2, i64::MAX), "-2", "log.local.retention.ms", false),
        key("max.compaction.lag.ms", POSITIVE, FOREVER, "log.cleaner.max.compaction.lag.ms", true),
        key("max.message.bytes", Int(0, MAX_MESSAGE_BYTES as i32), "1048588", "message.max.bytes", true),
        key("message.timestamp.after.max.ms", NATURAL, "3600000", "log.message.timestamp.after.max.ms", true),
        key("message.timestamp.before.max.ms", NATURAL, FOREVER, "log.message.timestamp.before.max.ms", true),
        key(
            "message.timestamp.type",
            Word(&["CreateTime", "LogAppendTime"]),
            "CreateTime",
            "log.message.timestamp.type",
            true,
        ),
        key("min.cleanable.dirty.ratio", Double(0.0, 1.0), "0.5", "log.cleaner.min.cleanable.ratio", true),
        key("min.compaction.lag.ms", NATURAL, "0", "log.cleaner.min.compaction.lag.ms", true),
        key("min.insync.replicas", Int(1, i32::MAX), "1", "min.insync.replicas", false),
        key("preallocate", Boolean, "false", "log.preallocate", false),
        key("remote.log.copy.disable", Boolean, "false", "", false),
        key("remote.log.delete.on.disable", Boolean, "false", "", false),
        key("remote.storage.enable", Boolean, "false", "", false),
        key("retention.bytes", ANY, "-1", "log.retention.bytes", true),
        key("retention.ms", Long(-1, i64::MAX), "604800000", "log.retention.ms", true),
        key("segment.bytes", Int(1 << 20, i32::MAX), "1073741824", "log.segment.bytes", true),
        key("segment.index.bytes", Int(4, i32::MAX), "10485760", "log.index.size.max.bytes", false),
        key("segment.jitter.ms", NATURAL, "0", "log.roll.jitter.ms", false),
        key("segment.ms", POSITIVE, "604800000", "log.roll.ms", true),
        key("unclean.leader.election.enable", Boolean, "false", "unclean.leader.election.enable", false),
    ]
};

/// Why a configuration's value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No topic configuration of Kafka has that name.
    #[error("there is no topic configuration {0:?}")]
    Unknown(String),
    /// The value is not one for it.
    #[error("Invalid value {value} for configuration {name}: {what}")]
    Value {
        /// The name.
        name: &'static str,
        /// The value.
        value: String,
        /// What it must be.
        what: String,
    },
}

impl ConfigKey {
    /// The configuration of that name.
    pub fn find(name: &str) -> Option<&'static ConfigKey> {
        TOPIC_CONFIGS.binary_search_by(|key| key.name.cmp(name)).ok().map(|i| &TOPIC_CONFIGS[i])
    }

    /// Checks a value.
    pub fn check(&self, value: &str) -> Result<(), ConfigError> {
        fn number<T>(value: &str, low: T, high: T) -> Result<(), String>
        where
            T: std::str::FromStr + PartialOrd + std::fmt::Display,
        {
            match value.trim().parse::<T>() {
                Err(_) => Err("Not a number of the right size".to_owned()),
                Ok(n) if n < low => Err(format!("Value must be at least {low}")),
                Ok(n) if n > high => Err(format!("Value must be no more than {high}")),
                Ok(_) => Ok(()),
            }
        }
        let one_of = |value: &str, words: &[&str]| match words.contains(&value) {
            true => Ok(()),
            false => Err(format!("String must be one of: {}", words.join(", "))),
        };
        let done = match self.kind {
            ConfigKind::Int(low, high) => number(value, low, high),
            ConfigKind::Long(low, high) => number(value, low, high),
            ConfigKind::Double(low, high) => number(value, low, high),
            ConfigKind::Boolean => one_of(&value.trim().to_ascii_lowercase(), &["true", "false"]),
            ConfigKind::Word(words) => one_of(value, words),
            ConfigKind::Words(words) => value.split(',').try_for_each(|word| one_of(word.trim(), words)),
            ConfigKind::List if value.chars().any(char::is_control) => Err("No list".to_owned()),
            ConfigKind::List => Ok(()),
        };
        done.map_err(|what| ConfigError::Value { name: self.name, value: value.to_owned(), what })
    }
}

/// Whose time a record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Its producer's.
    CreateTime,
    /// The log's, when it is appended.
    LogAppendTime,
}

/// A topic's configuration, ready to be used.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    /// Whose time a record has.
    pub timestamp_type: TimestampType,
    /// How much later (ms) than now a producer's timestamp may be.
    pub timestamp_after_max_ms: i64,
    /// How much earlier (ms) than now a producer's timestamp may be.
    pub timestamp_before_max_ms: i64,
    /// Largest batch, in bytes, header included.
    pub max_message_bytes: usize,
    /// Codec (0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd) that all batches must have; else the producer's.
    pub codec: Option<u8>,
    /// A segment that would grow beyond this many bytes is followed by a new one.
    pub segment_bytes: u64,
    /// So does one whose records' times differ by more than this, in ms. Where the topic is compacted, at most
    /// `max_compaction_lag_ms`: compaction leaves the newest segment alone (KIP-354).
    pub segment_ms: i64,
    /// About one index entry for so many bytes of a segment.
    pub index_interval_bytes: u64,
    /// Whether old segments are deleted.
    pub delete: bool,
    /// Whether only the last record of each key is kept.
    pub compact: bool,
    /// Age (ms) from which a segment is deleted; none is never.
    pub retention_ms: Option<i64>,
    /// Bytes beyond which old segments are deleted; none is no limit.
    pub retention_bytes: Option<u64>,
    /// How long (ms) compaction leaves a tombstone, from when it first sees it.
    pub delete_retention_ms: i64,
    /// How long (ms) a record is safe from compaction.
    pub min_compaction_lag_ms: i64,
    /// After how long (ms) a record is compacted whatever the ratio says.
    pub max_compaction_lag_ms: i64,
    /// Share of bytes not compacted yet from which compaction is worth while.
    pub min_cleanable_ratio: f64,
}

impl TopicConfig {
    /// What the values come to that are set for the topic and, behind them, for all. They are checked.
    pub(crate) fn resolve(
        set: &BTreeMap<String, String>,
        defaults: &BTreeMap<String, String>,
        store: &StoreConfig,
    ) -> TopicConfig {
        let said = |name: &str| set.get(name).or_else(|| defaults.get(name));
        let value = |name: &str| {
            said(name)
                .map_or_else(|| ConfigKey::find(name).map_or("", |key| key.default), String::as_str)
                .trim()
        };
        let long = |name: &str| value(name).parse::<i64>().unwrap_or(0);
        let own = |name: &str, own: u64| said(name).map_or(own, |_| long(name) as u64);
        let compact = value("cleanup.policy").contains("compact");
        let max_compaction_lag_ms = long("max.compaction.lag.ms");
        let latest = if compact { max_compaction_lag_ms } else { i64::MAX };
        TopicConfig {
            timestamp_type: match value("message.timestamp.type") {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            timestamp_after_max_ms: long("message.timestamp.after.max.ms"),
            timestamp_before_max_ms: long("message.timestamp.before.max.ms"),
            max_message_bytes: own("max.message.bytes", store.max_batch_bytes as u64) as usize,
            codec: match value("compression.type") {
                "uncompressed" => Some(0),
                "gzip" => Some(1),
                "snappy" => Some(2),
                "lz4" => Some(3),
                "zstd" => Some(4),
                _ => None,
            },
            segment_bytes: own("segment.bytes", store.segment_bytes),
            segment_ms: long("segment.ms").min(latest),
            index_interval_bytes: own("index.interval.bytes", store.index_interval_bytes),
            delete: value("cleanup.policy").contains("delete"),
            compact,
            retention_ms: Some(long("retention.ms")).filter(|&ms| ms >= 0),
            retention_bytes: u64::try_from(long("retention.bytes")).ok(),
            delete_retention_ms: long("delete.retention.ms"),
            min_compaction_lag_ms: long("min.compaction.lag.ms"),
            max_compaction_lag_ms,
            min_cleanable_ratio: value("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
        }
    }
}

/// How a store writes. The defaults are right for nearly everybody.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// A segment that would grow beyond this many bytes is followed by a new one. At most `i32::MAX`.
    pub segment_bytes: u64,
    /// About one index entry for so many bytes of a segment.
    pub index_interval_bytes: u64,
    /// Bytes of a partition that may wait for a commit; more is refused with `Full`.
    pub max_pending_bytes: usize,
    /// Largest batch of a topic that does not say otherwise, in bytes, header included. At most
    /// [`MAX_MESSAGE_BYTES`].
    pub max_batch_bytes: usize,
    /// After so many bytes a partition's recovery point is moved: at most about so much is read at the next
    /// start after a crash.
    pub checkpoint_bytes: u64,
    /// How many segments may have open files while nobody uses them, at most 4 files each.
    pub max_open_segments: usize,
    /// Topic configurations by Kafka's names, for topics that do not say otherwise, until [`Store::set_defaults`](crate::Store::set_defaults).
    pub defaults: BTreeMap<String, String>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            segment_bytes: 1 << 30,
            index_interval_bytes: 4096,
            max_pending_bytes: 64 << 20,
            max_batch_bytes: 1_048_588,
            checkpoint_bytes: 64 << 20,
            max_open_segments: 256,
            defaults: BTreeMap::new(),
        }
    }
}

impl StoreConfig {
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let wrong = if self.segment_bytes > i32::MAX as u64 {
            "segment_bytes is larger than 2 GiB - 1"
        } else if self.max_batch_bytes > MAX_MESSAGE_BYTES {
            "max_batch_bytes is larger than 100 MiB"
        } else if self.max_batch_bytes > self.max_pending_bytes {
            "max_batch_bytes is larger than max_pending_bytes"
        } else {
            return Ok(check(&self.defaults)?);
        };
        Err(OpenError::Config(wrong))
    }
}

/// Checks a set of configurations.
pub(crate) fn check(configs: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    configs.iter().try_for_each(|(name, value)| match ConfigKey::find(name) {
        Some(key) => key.check(value),
        None => Err(ConfigError::Unknown(name.clone())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_defaults_are_valid() {
        assert!(TOPIC_CONFIGS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for key in TOPIC_CONFIGS {
            assert_eq!(ConfigKey::find(key.name), Some(key));
            assert_eq!(key.check(key.default), Ok(()));
        }
    }

    #[test]
    fn values_are_checked() {
        let check = |name: &str, value: &str| check(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        for (name, value) in [
            ("retention.ms", "-1"),
            ("cleanup.policy", "compact, delete"),
            ("min.cleanable.dirty.ratio", "0.01"),
            ("segment.bytes", "1048576"),
            ("preallocate", "TRUE"),
            ("leader.replication.throttled.replicas", "*"),
        ] {
            assert_eq!(check(name, value), Ok(()), "{name}");
        }
        for (name, value) in [
            ("retention.ms", "-2"),
            ("retention.ms", "soon"),
            ("cleanup.policy", "compact,forget"),
            ("cleanup.policy", ""),
            ("min.cleanable.dirty.ratio", "1.1"),
            ("segment.bytes", "14"),
            ("segment.bytes", "3000000000"),
            ("compression.type", "brotli"),
            ("preallocate", "maybe"),
        ] {
            assert!(matches!(check(name, value), Err(ConfigError::Value { .. })), "{name}={value}");
        }
        assert_eq!(check("retention.hours", "1"), Err(ConfigError::Unknown("retention.hours".to_owned())));
    }

    #[test]
    fn the_topic_says_it_before_the_store_and_the_store_before_kafka() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let store = StoreConfig { segment_bytes: 5_000, ..StoreConfig::default() };
        let config = TopicConfig::resolve(&map(&[]), &map(&[]), &store);
        assert_eq!((config.segment_bytes, config.retention_ms), (5_000, Some(604_800_000)));
        assert_eq!((config.delete, config.compact, config.retention_bytes), (true, false, None));
        assert_eq!((config.timestamp_type, config.codec), (TimestampType::CreateTime, None));
        let defaults = map(&[("segment.bytes", "2000000"), ("retention.ms", "7")]);
        let set = map(&[("retention.ms", "-1"), ("cleanup.policy", "compact"), ("compression.type", "zstd")]);
        let config = TopicConfig::resolve(&set, &defaults, &store);
        assert_eq!((config.segment_bytes, config.retention_ms), (2_000_000, None));
        assert_eq!((config.delete, config.compact, config.codec), (false, true, Some(4)));
    }
}
