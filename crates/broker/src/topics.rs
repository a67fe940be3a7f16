//! The seam to the log: topics with their ids and settings, partitions that append, sync and are read.
//!
//! All of the broker speaks to `dibs-log` through this module.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::*},
    },
};

use dibs_log::{
    Aborted, AppendError, Appended, Committer, FileRange, Lost, Marker, Origin, PartitionLog, ProducerInfo,
    ReadError, Store, TimestampType, TopicError, TopicId,
    batch::{Batch, Batches},
};
use kafka_protocol::ResponseError;
use uuid::Uuid;

use crate::{
    clock,
    config::{BrokerConfig, ConfigError, TOPIC_SETTINGS, TopicConfig, topic_setting},
    group::consumer::Catalog,
};

/// Threads that commit. They wait for the disk nearly all of their time.
const COMMITTERS: usize = 2;

/// Bytes of a log that are replayed at a time.
const REPLAY_BYTES: usize = 1 << 20;

/// A topic that belongs to the program around the broker, which commits its partitions itself. Clients read it; they
/// cannot change, delete or shorten it.
#[derive(Clone, Debug)]
pub struct Owned {
    /// The topic's name.
    pub topic: String,
    /// Whether clients may append to it. Never within a transaction: the owner sees a record as soon as it is durable.
    pub produce: bool,
}

/// Every topic of the store.
pub(crate) struct Topics {
    store: Arc<Store>,
    owned: Arc<[Owned]>,
    committer: Mutex<Option<Committer>>,
    /// Grows when topics come, go or get more partitions.
    version: AtomicU64,
}

/// One topic, as it was when somebody asked.
#[derive(Clone)]
pub(crate) struct Topic(Arc<dibs_log::Topic>);

/// One partition of a topic.
#[derive(Clone)]
pub(crate) struct Partition(Arc<PartitionLog>);

impl Topics {
    /// Has the partitions committed, but for those of the owned topics.
    pub(crate) fn open(store: Arc<Store>, owned: Vec<Owned>) -> io::Result<Topics> {
        let topics = Topics::uncommitted(store, owned);
        let theirs = topics.owned.clone();
        let pooled = move |topic: &str| !theirs.iter().any(|o| o.topic == topic);
        let committer = topics.store.start_committer(COMMITTERS, clock::wall_ms, pooled)?;
        Ok(Topics { committer: Mutex::new(Some(committer)), ..topics })
    }

    /// Leaves all commits to whoever has the store.
    pub(crate) fn uncommitted(store: Arc<Store>, owned: Vec<Owned>) -> Topics {
        Topics { store, owned: owned.into(), committer: Mutex::new(None), version: AtomicU64::new(1) }
    }

    /// What the program around the broker says of a topic, if it is its own.
    pub(crate) fn owned(&self, name: &str) -> Option<&Owned> {
        self.owned.iter().find(|o| o.topic == name)
    }

    /// Whether clients may change a topic.
    fn changeable(&self, name: &str) -> Result<(), ResponseError> {
        if self.owned(name).is_some() { Err(ResponseError::PolicyViolation) } else { Ok(()) }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Topic> {
        self.store.topic(name).map(Topic)
    }

    pub(crate) fn by_id(&self, id: Uuid) -> Option<Topic> {
        self.store.topic_by_id(TopicId(*id.as_bytes())).map(Topic)
    }

    /// All topics, sorted by name.
    pub(crate) fn all(&self) -> Vec<Topic> {
        self.store.all_topics().into_iter().map(Topic).collect()
    }

    pub(crate) fn partition(&self, topic: &str, partition: i32) -> Option<Partition> {
        self.get(topic)?.partition(partition)
    }

    /// Makes a topic, durably.
    pub(crate) fn create(
        &self,
        name: &str,
        partitions: u32,
        own: TopicConfig,
    ) -> Result<Topic, ResponseError> {
        let made = self.store.create_topic_with(name, partitions, own).map(Topic);
        self.version.fetch_add(1, AcqRel);
        made.map_err(|e| topic_error(&e))
    }

    /// Makes one of the broker's own topics, of which the newest record of each key is kept, if it is not there.
    pub(crate) fn make_internal(
        &self,
        name: &str,
        partitions: u32,
        own: [(&str, &str); 2],
    ) -> Result<(), ResponseError> {
        let all = own.into_iter().chain([("cleanup.policy", "compact")]);
        match self.create(name, partitions, all.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()) {
            Ok(_) | Err(ResponseError::TopicAlreadyExists) => Ok(()),
            Err(e) => {
                tracing::error!("{name} cannot be made: {e}");
                Err(ResponseError::CoordinatorNotAvailable)
            }
        }
    }

    /// Adds partitions, durably, until there are `count`.
    pub(crate) fn add_partitions(&self, name: &str, count: u32) -> Result<(), ResponseError> {
        self.changeable(name)?;
        let added = self.store.add_partitions(name, count);
        self.version.fetch_add(1, AcqRel);
        added.map_err(|e| topic_error(&e))
    }

    pub(crate) fn delete(&self, name: &str) -> Result<(), ResponseError> {
        self.changeable(name)?;
        let deleted = self.store.delete_topic(name);
        self.version.fetch_add(1, AcqRel);
        deleted.map_err(|e| topic_error(&e))
    }

    /// Replaces what a topic says itself of its settings, durably.
    pub(crate) fn configure(&self, name: &str, own: TopicConfig) -> Result<(), ResponseError> {
        self.changeable(name)?;
        self.store.alter_configs(name, |configs| *configs = own).map(drop).map_err(|e| topic_error(&e))
    }

    /// Has topics that say nothing else go by these.
    pub(crate) fn set_defaults(&self, defaults: TopicConfig) -> Result<(), ConfigError> {
        self.store.set_defaults(defaults).map_err(|e| ConfigError::Value(e.to_string()))
    }

    /// Replaces a small file of the data folder, durably.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.store.put(name, bytes)
    }

    /// Reads a small file of the data folder.
    pub(crate) fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.store.get(name)
    }

    /// Reads a small file of lines, none if it is not there. A line that cannot be understood is an error: to begin
    /// without it would let in, or lock out, whom it is about.
    pub(crate) fn read_lines<L, T: FromIterator<L>>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Option<L>,
    ) -> io::Result<T> {
        let bytes = self.read_file(name)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let wrong = |line| io::Error::other(format!("{name}: {line:?} cannot be understood"));
        text.lines().map(|line| parse(line).ok_or_else(|| wrong(line))).collect()
    }

    /// The data folder, for people.
    pub(crate) fn folder(&self) -> String {
        self.store.describe()
    }

    /// Deletes and compacts what the topics' settings say, and forgets producers that were silent for so long
    /// (ms). Reads and writes a good deal.
    pub(crate) fn clean(&self, producer_idle_ms: i64) {
        if let Err(e) = self.store.clean(clock::wall_ms(), producer_idle_ms) {
            tracing::error!("old records could not be cleaned away: {e}");
        }
    }

    /// Commits what is pending and ends the threads.
    pub(crate) fn stop(&self) {
        drop(self.committer.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Catalog for Topics {
    fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    fn topic(&self, name: &str) -> Option<(Uuid, i32)> {
        let topic = self.get(name)?;
        Some((topic.id(), topic.partition_count() as i32))
    }

    fn names(&self) -> Vec<String> {
        self.all().iter().map(|topic| topic.name().to_owned()).collect()
    }
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Topic {
    pub(crate) fn name(&self) -> &str {
        self.0.name()
    }

    pub(crate) fn id(&self) -> Uuid {
        Uuid::from_bytes(self.0.id().0)
    }

    pub(crate) fn partition(&self, partition: i32) -> Option<Partition> {
        self.0.partition(u32::try_from(partition).ok()?).cloned().map(Partition)
    }

    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.0.partitions().iter().cloned().map(Partition).collect()
    }

    pub(crate) fn partition_count(&self) -> usize {
        self.0.partitions().len()
    }

    /// What the topic says itself of its settings.
    pub(crate) fn config(&self) -> TopicConfig {
        self.0.configs().clone()
    }

    /// Whether its records go only when a newer one with the same key comes.
    pub(crate) fn only_compacts(&self) -> bool {
        self.0.config().compact && !self.0.config().delete
    }

    /// Whether the broker's own records and offsets are kept in it.
    pub(crate) fn is_internal(&self) -> bool {
        is_internal(self.name())
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Partition {
    /// Takes a batch of a client, gives it offsets, and has it committed soon.
    pub(crate) fn append(&self, batch: &[u8]) -> Result<Appended, AppendError> {
        self.0.produce(batch, Some(clock::wall_ms()), Origin::Client)
    }

    /// Takes a batch of a client whose transaction this partition is known to be part of.
    pub(crate) fn append_verified(&self, batch: &[u8]) -> Result<Appended, AppendError> {
        self.0.produce(batch, Some(clock::wall_ms()), Origin::Verified)
    }

    /// Takes a batch of one of the broker's coordinators.
    pub(crate) fn append_own(&self, batch: &[u8]) -> Result<Appended, AppendError> {
        self.0.produce(batch, None, Origin::Coordinator)
    }

    /// Ends a transaction here.
    pub(crate) fn append_marker(&self, marker: &Marker) -> Result<Appended, AppendError> {
        self.0.append_marker(marker, clock::wall_ms())
    }

    /// The producers that have written here of late, by id.
    pub(crate) fn producers(&self) -> Vec<ProducerInfo> {
        self.0.producers()
    }

    /// Resolves when what was appended is durable, with the time of its commit (ms, −1 if not known), or will
    /// never be.
    pub(crate) async fn durable(&self, appended: Appended) -> Result<i64, Lost> {
        self.0.durable(appended).await
    }

    /// Resolves when a commit has made room, or failed.
    pub(crate) async fn room(&self, waiting: Appended) {
        // Whatever came of it: it no longer waits.
        let _ = self.0.durable(waiting).await;
    }

    /// Resolves when there are durable records behind an offset.
    pub(crate) async fn grown(self, past: u64) {
        self.0.committed(past).await;
    }

    /// Appends whole batches from the one that holds `from`, none that begins at `until` or later; at least one
    /// if there is any, and otherwise no more than `max_bytes`.
    pub(crate) fn read(
        &self,
        from: u64,
        until: u64,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, ReadError> {
        self.0.read_until(from, until, max_bytes, out)
    }

    /// Like [`Partition::read`], but says where the bytes are.
    pub(crate) fn range(
        &self,
        from: u64,
        until: u64,
        max_bytes: usize,
    ) -> Result<Option<FileRange>, ReadError> {
        self.0.read_range(from, until, max_bytes)
    }

    /// Goes through all that is durable, batch by batch. False if that is not possible; the log says why.
    pub(crate) fn replay(&self, mut each: impl FnMut(&Batch<'_>)) -> bool {
        let (mut at, end) = (self.start(), self.high_watermark());
        let mut bytes = Vec::new();
        while at < end {
            bytes.clear();
            let read = self.read(at, end, REPLAY_BYTES, &mut bytes).map_err(|e| e.to_string());
            let all = read.and_then(|_| {
                Batches::new(&bytes).try_for_each(|batch| {
                    let batch = batch.map_err(|e| e.to_string())?;
                    at = batch.header.next_offset();
                    each(&batch);
                    Ok(())
                })
            });
            match all {
                Err(e) => {
                    tracing::error!(partition = ?self, "it cannot be read from offset {at}: {e}");
                    return false;
                }
                Ok(()) if bytes.is_empty() => break,
                Ok(()) => {}
            }
        }
        true
    }

    /// Transactions that were aborted, of those with records between two offsets.
    pub(crate) fn aborted(&self, from: u64, until: u64) -> Result<Vec<Aborted>, ReadError> {
        self.0.aborted(from, until)
    }

    /// The first record that is not older than a time (ms): its offset and timestamp.
    pub(crate) fn by_time(&self, timestamp: i64) -> Result<Option<(u64, i64)>, ReadError> {
        self.0.offset_for_timestamp(timestamp)
    }

    /// The first record with the largest timestamp: its offset and timestamp.
    pub(crate) fn newest(&self) -> Result<Option<(u64, i64)>, ReadError> {
        self.0.max_timestamp()
    }

    /// Deletes what is before an offset, durably.
    pub(crate) fn delete_before(&self, offset: u64) -> Result<(), ReadError> {
        self.0.delete_before(offset)
    }

    /// The first offset that can be read.
    pub(crate) fn start(&self) -> u64 {
        self.0.log_start_offset()
    }

    /// The offset after the last durable record.
    pub(crate) fn high_watermark(&self) -> u64 {
        self.0.high_watermark()
    }

    /// The first offset that is part of a transaction without an end, else the high watermark.
    pub(crate) fn last_stable(&self) -> u64 {
        self.0.last_stable_offset()
    }

    /// The partition's bytes on the disk.
    pub(crate) fn size(&self) -> u64 {
        self.0.segments().iter().map(|s| s.bytes).sum()
    }

    /// Whether records have the time of their append.
    pub(crate) fn has_append_time(&self) -> bool {
        self.0.config().timestamp_type == TimestampType::LogAppendTime
    }

    /// Whether nothing waits for a commit: what is durable is all there is.
    pub(crate) fn is_settled(&self) -> bool {
        self.0.log_end_offset() == self.0.high_watermark()
    }

    /// How many commits have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.0.failures()
    }

    /// The largest batch that is taken, in bytes.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.0.config().max_message_bytes
    }

    /// Something that waits for the next commit, to be waited for.
    pub(crate) fn newest_pending(&self) -> Option<Appended> {
        let last_offset = self.0.log_end_offset().checked_sub(1)?;
        let failures = self.0.failures();
        Some(Appended { base_offset: last_offset, last_offset, duplicate: false, failures })
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a topic is the broker's own.
pub(crate) fn is_internal(name: &str) -> bool {
    name == "__consumer_offsets" || name == "__transaction_state"
}

/// What a topic's setting is: its own, else the broker's, else the default.
pub(crate) fn effective(broker: &BrokerConfig, own: &TopicConfig, name: &str) -> String {
    let Some(setting) = topic_setting(name) else { return String::new() };
    let of_broker = || setting.broker.and_then(|b| broker.get(b));
    own.get(name).map(String::as_str).or_else(of_broker).unwrap_or(setting.default).to_owned()
}

/// Checks settings that somebody wants for a topic; the error is Kafka's sentence.
pub(crate) fn check_config(own: &TopicConfig) -> Result<(), String> {
    for (name, value) in own {
        let Some(setting) = TOPIC_SETTINGS.iter().find(|s| s.name == name) else {
            return Err(format!("Unknown topic config name: {name}"));
        };
        crate::config::check(name, setting.kind, value)?;
        if let Some(key) = dibs_log::ConfigKey::find(name) {
            key.check(value).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

fn topic_error(error: &TopicError) -> ResponseError {
    match error {
        TopicError::Name { .. } => ResponseError::InvalidTopicException,
        TopicError::Exists { .. } => ResponseError::TopicAlreadyExists,
        TopicError::Unknown(_) => ResponseError::UnknownTopicOrPartition,
        TopicError::Partitions(_) => ResponseError::InvalidPartitions,
        TopicError::Closed => ResponseError::BrokerNotAvailable,
        TopicError::Config(_) => ResponseError::InvalidConfig,
        TopicError::Io { .. } => {
            tracing::error!("{error}");
            ResponseError::KafkaStorageError
        }
    }
}

/// A random id, of version 4.
pub(crate) fn random_uuid() -> Uuid {
    let mut bytes = [0; 16];
    if let Err(e) = getrandom::fill(&mut bytes) {
        tracing::error!("no randomness: {e}");
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
