//! The seam to the log: topics with their ids and settings, partitions that append, sync and are read.
//!
//! All of the broker speaks to `dibs-log` through this module.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    io,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use dibs_log::{AppendError, PartitionLog, ReadError, Store, TopicError, batch::BatchHeader};
use kafka_protocol::ResponseError;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    committer::{Committer, Queue, Queued},
    config::{BrokerConfig, TOPIC_SETTINGS, TopicConfig, topic_setting},
};

/// The small file that holds topics' ids and settings.
const CATALOG: &str = "topics";

/// Every topic of the store.
pub(crate) struct Topics {
    store: Arc<Store>,
    config: Arc<BrokerConfig>,
    committer: Committer,
    index: RwLock<Index>,
    /// Held while topics are made, changed or deleted.
    changing: std::sync::Mutex<()>,
}

#[derive(Default)]
struct Index {
    by_name: BTreeMap<String, Arc<Topic>>,
    by_id: HashMap<Uuid, Arc<Topic>>,
}

/// One topic.
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) id: Uuid,
    state: RwLock<TopicState>,
}

struct TopicState {
    own: TopicConfig,
    max_message_bytes: usize,
    compacted: bool,
    only_compacts: bool,
    partitions: Vec<Arc<Partition>>,
}

/// One partition of a topic.
pub(crate) struct Partition {
    pub(crate) log: Arc<PartitionLog>,
    pub(crate) queued: Queued,
    /// Told when a commit has failed.
    pub(crate) failed: Notify,
    queue: Arc<Queue>,
}

/// Records that were appended, and are durable once the high watermark is past `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) base: u64,
    pub(crate) last: u64,
    failures: u64,
}

impl Topics {
    pub(crate) fn open(store: Arc<Store>, config: Arc<BrokerConfig>) -> io::Result<Topics> {
        let topics = Topics {
            store,
            config,
            committer: Committer::start(),
            index: RwLock::default(),
            changing: std::sync::Mutex::new(()),
        };
        let mut known = topics.read_catalog()?;
        for (name, count) in topics.store.topics() {
            let (id, own) = known.remove(&name).unwrap_or_else(|| (random_uuid(), TopicConfig::new()));
            topics.insert(&name, id, own, count);
        }
        topics.write_catalog()?;
        Ok(topics)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.index().by_name.get(name).cloned()
    }

    pub(crate) fn by_id(&self, id: Uuid) -> Option<Arc<Topic>> {
        self.index().by_id.get(&id).cloned()
    }

    /// All topics, sorted by name.
    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        self.index().by_name.values().cloned().collect()
    }

    pub(crate) fn partition(&self, topic: &str, partition: i32) -> Option<Arc<Partition>> {
        self.get(topic)?.partition(partition)
    }

    /// Makes a topic, durably.
    pub(crate) fn create(
        &self,
        name: &str,
        partitions: u32,
        own: TopicConfig,
    ) -> Result<Arc<Topic>, ResponseError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.get(name).is_some() {
            return Err(ResponseError::TopicAlreadyExists);
        }
        self.store.create_topic(name, partitions).map_err(|e| topic_error(&e))?;
        let topic = self.insert(name, random_uuid(), own, partitions);
        self.write_catalog().map_err(|_| ResponseError::KafkaStorageError)?;
        Ok(topic)
    }

    /// Adds partitions, durably, until there are `count`.
    pub(crate) fn add_partitions(&self, name: &str, count: u32) -> Result<(), ResponseError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = self.get(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
        self.store.add_partitions(name, count).map_err(|e| topic_error(&e))?;
        let logs = self.logs(name, count);
        let mut state = topic.state.write().unwrap_or_else(PoisonError::into_inner);
        let had = state.partitions.len();
        state.partitions.extend(logs.into_iter().skip(had));
        Ok(())
    }

    pub(crate) fn delete(&self, name: &str) -> Result<(), ResponseError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            let topic = index.by_name.remove(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
            index.by_id.remove(&topic.id);
            topic
        };
        for partition in topic.partitions() {
            partition.failed.notify_waiters();
        }
        self.store.delete_topic(name).map_err(|e| topic_error(&e))?;
        self.write_catalog().map_err(|_| ResponseError::KafkaStorageError)
    }

    /// Replaces what a topic says itself of its settings, durably.
    pub(crate) fn configure(&self, name: &str, own: TopicConfig) -> Result<(), ResponseError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = self.get(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
        topic.apply(&self.config, own);
        self.write_catalog().map_err(|_| ResponseError::KafkaStorageError)
    }

    /// Replaces a small file of the data folder, durably.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.store.put(name, bytes)
    }

    /// Reads a small file of the data folder.
    pub(crate) fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.store.get(name)
    }

    /// The data folder, for people.
    pub(crate) fn folder(&self) -> String {
        format!("{:?}", self.store).split('"').nth(1).unwrap_or_default().to_owned()
    }

    /// Commits what is pending and ends the threads.
    pub(crate) fn stop(&self) {
        self.committer.stop();
    }

    fn insert(&self, name: &str, id: Uuid, own: TopicConfig, count: u32) -> Arc<Topic> {
        let state = TopicState {
            own: TopicConfig::new(),
            max_message_bytes: 0,
            compacted: false,
            only_compacts: false,
            partitions: self.logs(name, count),
        };
        let topic = Arc::new(Topic { name: name.to_owned(), id, state: RwLock::new(state) });
        topic.apply(&self.config, own);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.by_name.insert(name.to_owned(), topic.clone());
        index.by_id.insert(id, topic.clone());
        topic
    }

    fn logs(&self, name: &str, count: u32) -> Vec<Arc<Partition>> {
        let logs = (0..count).filter_map(|p| self.store.partition(name, p));
        logs.map(|log| {
            Arc::new(Partition {
                log,
                queued: Queued::default(),
                failed: Notify::new(),
                queue: self.committer.queue(),
            })
        })
        .collect()
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_catalog(&self) -> io::Result<HashMap<String, (Uuid, TopicConfig)>> {
        let text = self.store.get(CATALOG)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let parse = |line: &str| {
            let mut words = line.split('\t');
            let (name, id) = (words.next()?.to_owned(), Uuid::try_parse(words.next()?).ok()?);
            let pair = |word: &str| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
            Some((name, (id, words.filter_map(pair).collect())))
        };
        Ok(text.lines().filter_map(parse).collect())
    }

    fn write_catalog(&self) -> io::Result<()> {
        let mut text = String::new();
        for topic in self.all() {
            text.push_str(&format!("{}\t{}", topic.name, topic.id));
            for (name, value) in topic.config() {
                text.push_str(&format!("\t{name}={value}"));
            }
            text.push('\n');
        }
        self.store.put(CATALOG, text.as_bytes())
    }
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Topic {
    pub(crate) fn partition(&self, partition: i32) -> Option<Arc<Partition>> {
        self.state().partitions.get(usize::try_from(partition).ok()?).cloned()
    }

    pub(crate) fn partitions(&self) -> Vec<Arc<Partition>> {
        self.state().partitions.clone()
    }

    pub(crate) fn partition_count(&self) -> usize {
        self.state().partitions.len()
    }

    /// What the topic says itself of its settings.
    pub(crate) fn config(&self) -> TopicConfig {
        self.state().own.clone()
    }

    /// The largest batch that is taken, in bytes.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.state().max_message_bytes
    }

    /// Whether records need a key.
    pub(crate) fn is_compacted(&self) -> bool {
        self.state().compacted
    }

    /// Whether its records go only when a newer one with the same key comes.
    pub(crate) fn only_compacts(&self) -> bool {
        self.state().only_compacts
    }

    /// Whether the broker's own records and offsets are kept in it.
    pub(crate) fn is_internal(&self) -> bool {
        is_internal(&self.name)
    }

    fn apply(&self, broker: &BrokerConfig, own: TopicConfig) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let text = |name: &str| effective(broker, &own, name);
        state.max_message_bytes = text("max.message.bytes").parse().unwrap_or(usize::MAX);
        let policy = text("cleanup.policy");
        state.compacted = policy.split(',').any(|p| p.trim() == "compact");
        state.only_compacts = policy.trim() == "compact";
        state.own = own;
    }

    fn state(&self) -> RwLockReadGuard<'_, TopicState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Partition {
    /// Takes a batch, gives it offsets, and has it committed soon.
    pub(crate) fn append(self: &Arc<Self>, batch: &[u8]) -> Result<Appended, AppendError> {
        let failures = self.log.failures();
        let base = self.log.append_batch(batch)?;
        self.queue.push(self);
        // Appending has checked the header.
        let records = BatchHeader::parse(batch).map_or(1, |h| h.records_count as u64);
        Ok(Appended { base, last: base + records - 1, failures })
    }

    /// Resolves when what was appended is durable, or will never be.
    pub(crate) fn durable(
        self: Arc<Self>,
        appended: Appended,
    ) -> impl Future<Output = Result<(), AppendError>> + Send {
        async move {
            let failed = self.failed.notified();
            tokio::pin!(failed);
            // Registered before the failures are counted, so that none falls in between.
            failed.as_mut().enable();
            if self.log.failures() == appended.failures {
                tokio::select! {
                    () = self.log.committed(appended.last) => {}
                    () = failed => {}
                }
            }
            if self.log.failures() != appended.failures {
                return Err(AppendError::Unavailable);
            }
            if self.log.high_watermark() > appended.last { Ok(()) } else { Err(AppendError::Closed) }
        }
    }

    /// Resolves when a commit has made room, or failed.
    pub(crate) async fn room(&self) {
        let failed = self.failed.notified();
        let past = self.log.high_watermark();
        if self.log.pending_bytes() > 0 {
            tokio::select! {
                () = self.log.committed(past) => {}
                () = failed => {}
            }
        }
    }

    /// Resolves when there are durable records behind an offset.
    pub(crate) fn grown(self: Arc<Self>, past: u64) -> impl Future<Output = ()> + Send {
        async move { self.log.committed(past).await }
    }

    /// Appends whole batches from the one that holds `from`; see [`PartitionLog::read`].
    pub(crate) fn read(&self, from: u64, max_bytes: usize, out: &mut Vec<u8>) -> Result<usize, ReadError> {
        self.log.read(from, max_bytes, out)
    }

    /// The first offset that can be read.
    pub(crate) fn start(&self) -> u64 {
        self.log.log_start_offset()
    }

    /// The offset after the last durable record.
    pub(crate) fn high_watermark(&self) -> u64 {
        self.log.high_watermark()
    }

    /// The first offset that is part of a transaction without an end, else the high watermark.
    pub(crate) fn last_stable(&self) -> u64 {
        self.high_watermark()
    }

    /// The partition's bytes on the disk.
    pub(crate) fn size(&self) -> u64 {
        self.log.segments().iter().map(|s| s.bytes).sum()
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.log.fmt(f)
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
        if value.contains(['\n', '\t', '\r']) {
            return Err(format!("Invalid value for configuration {name}: it has control characters"));
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
