//! All topics and partitions of one data folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use crate::{
    CommitError, MAX_MESSAGE_BYTES, MAX_PARTITIONS, OpenError, PartitionLog, Recovery, TopicError,
    checkpoint::{CLEANED, Checkpoint, GAPS, LOG_STARTS, RECOVERY_POINTS},
    clean::{CleanError, Cleaned},
    committer::{Committer, Queue},
    config::{self, TopicConfig},
    error::Damage,
    files::OpenFiles,
    partition::{PartitionOf, folder, topic_of},
    pending::Buffers,
    shutdown::{self, CLEAN},
    storage::{Lock, Storage, read_file, replace_file},
    topics::{Catalog, TOPICS_FILE, Topic, TopicId, TopicRecord, preset},
};

/// The file that is locked while a data folder is open.
const LOCK: &str = ".lock";
/// Ends the name of a partition's folder that is being deleted.
const DELETED: &str = "-delete";

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
    /// Topic configurations by Kafka's names, for topics that do not say otherwise.
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
    fn check(&self) -> Result<(), OpenError> {
        let wrong = if self.segment_bytes > i32::MAX as u64 {
            "segment_bytes is larger than 2 GiB - 1"
        } else if self.max_batch_bytes > MAX_MESSAGE_BYTES {
            "max_batch_bytes is larger than 100 MiB"
        } else if self.max_batch_bytes > self.max_pending_bytes {
            "max_batch_bytes is larger than max_pending_bytes"
        } else {
            return Ok(config::check(&self.defaults)?);
        };
        Err(OpenError::Config(wrong))
    }
}

/// Says by its name whether a topic's partitions are committed by a committer.
type Pooled = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What a store's partitions share.
pub(crate) struct Home {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) files: Arc<OpenFiles>,
    pub(crate) config: StoreConfig,
    pub(crate) recovery_points: Checkpoint,
    pub(crate) log_starts: Checkpoint,
    /// Up to where each partition is compacted.
    pub(crate) cleaned: Checkpoint,
    /// Up to where compaction may have left gaps in each partition's offsets.
    pub(crate) gaps: Checkpoint,
    pub(crate) buffers: Buffers,
    /// Partitions that a committer has to commit.
    pub(crate) queue: Arc<Queue>,
    /// Which topics a committer commits.
    pooled: RwLock<Option<Pooled>>,
    /// Held as long as any partition can write.
    lock: Mutex<Option<Lock>>,
}

/// A data folder, open in this process alone.
///
/// Dropping it without [`Store::close`] is safe and only makes the next start longer.
pub struct Store {
    home: Arc<Home>,
    topics: RwLock<Topics>,
    recovery: Vec<Recovery>,
    /// Held while topics are made, changed or deleted.
    changing: Mutex<Changing>,
}

#[derive(Default)]
struct Topics {
    by_name: BTreeMap<String, Arc<Topic>>,
    by_id: BTreeMap<TopicId, String>,
}

/// What there is to know while partitions are opened.
#[derive(Default)]
struct Opening {
    /// Topics that this program has not written.
    foreign: BTreeSet<String>,
    /// What a clean shutdown has said.
    left: shutdown::Partitions,
    recovery: Vec<Recovery>,
}

struct Changing {
    /// What the file says.
    catalog: Catalog,
    closed: bool,
}

impl Store {
    /// Locks the folder, and opens every partition in it after checking what a crash may have harmed. Folders of
    /// partitions that stand there and are not known yet, such as copies of Apache Kafka's, become topics.
    pub fn open(storage: Arc<dyn Storage>, config: StoreConfig) -> Result<Store, OpenError> {
        config.check()?;
        let io = |path: &'static str| {
            let folder = storage.describe();
            move |source| OpenError::Io { folder, path: path.to_owned(), source }
        };
        let lock = storage.try_lock(LOCK).map_err(io(LOCK))?;
        let lock = lock.ok_or_else(|| OpenError::Locked { folder: storage.describe() })?;
        let checkpoint = |name| Checkpoint::open(storage.clone(), name).map_err(io(name));
        let home = Arc::new(Home {
            recovery_points: checkpoint(RECOVERY_POINTS)??,
            log_starts: checkpoint(LOG_STARTS)??,
            cleaned: checkpoint(CLEANED)??,
            gaps: checkpoint(GAPS)??,
            files: Arc::new(OpenFiles::new(storage.clone(), config.max_open_segments)),
            config,
            buffers: Buffers::default(),
            queue: Arc::default(),
            pooled: RwLock::new(None),
            lock: Mutex::new(Some(lock)),
            storage: storage.clone(),
        });
        let mut catalog = Catalog::open(&*storage).map_err(io(TOPICS_FILE))??;
        let before = catalog.clone();
        home.finish_deleting(&mut catalog).map_err(io(""))?;
        let left = shutdown::take(&*storage).map_err(io(CLEAN))?;
        let clean = !left.is_empty();
        let foreign = home.adopt(&mut catalog)?;
        let mut opening = Opening { foreign, left, recovery: Vec::new() };
        let mut topics = Topics::default();
        for (name, record) in &catalog.topics {
            let logs = home.open_topic(name, record, &mut opening)?;
            topics.insert(Topic::new(name, record, &home.config, logs));
        }
        let Opening { foreign: adopted, recovery, .. } = opening;
        // A folder that was made just before a crash may have a name that is not durable yet.
        if !clean {
            storage.sync_dir("").map_err(io(""))?;
        }
        // All was read and synced: another crash need not lead to reading it again.
        let ends = |r: &Recovery| ((r.topic.clone(), r.partition), Some(r.end));
        let foreign = recovery.iter().filter(|r| adopted.contains(&r.topic) && r.end > 0);
        home.gaps.save_all(foreign.map(ends)).map_err(io(GAPS))?;
        if catalog != before {
            catalog.save(&*storage).map_err(io(TOPICS_FILE))?;
        }
        let used = recovery.iter().filter(|r| r.end > 0);
        home.recovery_points.save_all(used.map(ends)).map_err(io(RECOVERY_POINTS))?;
        let changing = Mutex::new(Changing { catalog, closed: false });
        Ok(Store { home, topics: RwLock::new(topics), recovery, changing })
    }

    /// What opening each partition found.
    pub fn recovery(&self) -> &[Recovery] {
        &self.recovery
    }

    /// Makes a topic with the store's default configuration, durably. One that exists with as many partitions is
    /// no error.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<(), TopicError> {
        match self.topic(name) {
            Some(topic) if topic.partitions().len() == partitions as usize => Ok(()),
            _ => self.create_topic_with(name, partitions, BTreeMap::new()).map(drop),
        }
    }

    /// Makes a topic, durably: after a crash it is there with all its partitions and this configuration, or not
    /// at all. Topics whose names begin with `dibs.` have the log's own time and are kept for ever unless
    /// `configs` says otherwise.
    pub fn create_topic_with(
        &self,
        name: &str,
        partitions: u32,
        configs: BTreeMap<String, String>,
    ) -> Result<Arc<Topic>, TopicError> {
        self.check_topic(name, partitions, &configs)?;
        let mut changing = self.change()?;
        if let Some(topic) = self.topic(name) {
            return Err(exists(&topic));
        }
        let deleting = changing.catalog.topics.get(name).is_some_and(|record| record.deleting);
        if deleting {
            let mut catalog = changing.catalog.clone();
            self.home.finish_deleting(&mut catalog).map_err(|e| topic_io(name, e))?;
            catalog.save(&*self.home.storage).map_err(|e| topic_io(name, e))?;
            changing.catalog = catalog;
        }
        let id = TopicId::random().map_err(|e| topic_io(name, e))?;
        let mut all = preset(name);
        all.extend(configs);
        let record = TopicRecord { id, partitions, configs: all, deleting: false };
        let logs = self.home.open_topic(name, &record, &mut Opening::default());
        let logs = logs.map_err(|e| topic_io(name, e))?;
        let topic = Topic::new(name, &record, &self.home.config, logs);
        self.change_catalog(&mut changing, name, Some(record))?;
        self.topics_mut().insert(topic.clone());
        Ok(topic)
    }

    /// What [`Store::create_topic_with`] would say to this name, number and configuration.
    pub fn check_topic(
        &self,
        name: &str,
        partitions: u32,
        configs: &BTreeMap<String, String>,
    ) -> Result<(), TopicError> {
        check_topic_name(name)?;
        if let Some(topic) = self.topic(name) {
            return Err(exists(&topic));
        }
        check_partitions(partitions)?;
        Ok(config::check(configs)?)
    }

    /// Adds partitions to a topic, durably, until it has `partitions`. As many as there are is no error, fewer
    /// are.
    pub fn add_partitions(&self, name: &str, partitions: u32) -> Result<(), TopicError> {
        let mut changing = self.change()?;
        let topic = self.topic(name).ok_or_else(|| TopicError::Unknown(name.to_owned()))?;
        check_partitions(partitions)?;
        let count = topic.partitions().len() as u32;
        if partitions < count {
            return Err(exists(&topic));
        }
        let mut logs = topic.partitions().to_vec();
        let (name_of, id) = (topic.name_of(), topic.id());
        for partition in count..partitions {
            let of = PartitionOf { topic: &name_of, id, partition };
            let opened = PartitionLog::open(self.home.clone(), &of, topic.config().clone(), false, None);
            logs.push(opened.map_err(|e| topic_io(name, e))?.0);
        }
        let record = TopicRecord { partitions, ..changing.record(name) };
        let topic = Topic::new(name, &record, &self.home.config, logs);
        self.change_catalog(&mut changing, name, Some(record))?;
        self.topics_mut().insert(topic);
        Ok(())
    }

    /// Changes a topic's own configurations, durably and in one step, and lets its partitions go by them. An
    /// invalid result changes nothing.
    pub fn alter_configs(
        &self,
        name: &str,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<Arc<Topic>, TopicError> {
        let mut changing = self.change()?;
        let topic = self.topic(name).ok_or_else(|| TopicError::Unknown(name.to_owned()))?;
        let mut record = changing.record(name);
        change(&mut record.configs);
        config::check(&record.configs)?;
        let altered = Topic::new(name, &record, &self.home.config, topic.partitions().to_vec());
        self.change_catalog(&mut changing, name, Some(record))?;
        altered.partitions().iter().for_each(|log| log.configure(altered.config()));
        self.topics_mut().insert(altered.clone());
        Ok(altered)
    }

    /// Closes a topic's partitions and deletes them. From the first durable step on the topic is gone, whatever
    /// fails later or crashes: the next open, or the next topic of that name, deletes what is left.
    pub fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let mut changing = self.change()?;
        let topic = self.topic(name).ok_or_else(|| TopicError::Unknown(name.to_owned()))?;
        let record = TopicRecord { deleting: true, ..changing.record(name) };
        self.change_catalog(&mut changing, name, Some(record))?;
        self.topics_mut().remove(name);
        // Broken or not, they are of no more use.
        topic.partitions().iter().for_each(|log| log.close().map(drop).unwrap_or_default());
        let mut catalog = changing.catalog.clone();
        self.home.finish_deleting(&mut catalog).map_err(|e| topic_io(name, e))?;
        catalog.save(&*self.home.storage).map_err(|e| topic_io(name, e))?;
        changing.catalog = catalog;
        Ok(())
    }

    /// All topics by name, with their numbers of partitions.
    pub fn topics(&self) -> Vec<(String, u32)> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.by_name.iter().map(|(name, topic)| (name.clone(), topic.partitions().len() as u32)).collect()
    }

    /// All topics by name, as they are now.
    pub fn all_topics(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.by_name.values().cloned().collect()
    }

    /// A topic, as it is now.
    pub fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name).cloned()
    }

    /// The topic with an id, as it is now.
    pub fn topic_by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.by_name.get(topics.by_id.get(&id)?).cloned()
    }

    /// How the store was opened.
    pub fn config(&self) -> &StoreConfig {
        &self.home.config
    }

    /// One partition.
    pub fn partition(&self, topic: &str, partition: u32) -> Option<Arc<PartitionLog>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.by_name.get(topic)?.partitions().get(partition as usize).cloned()
    }

    /// One round of cleaning: deletes segments by `retention.ms` and `retention.bytes`, compacts partitions that
    /// are dirty enough, and forgets producers that were idle for longer than `producer_idle_ms`. `now_ms` is
    /// ms since the Unix epoch. Every partition is cleaned even if one fails; the first error is returned.
    pub fn clean(&self, now_ms: i64, producer_idle_ms: i64) -> Result<Cleaned, CleanError> {
        let (mut total, mut result) = (Cleaned::default(), Ok(()));
        for log in self.all_topics().iter().flat_map(|topic| topic.partitions()) {
            log.expire_producers(now_ms, producer_idle_ms);
            match log.clean(now_ms) {
                Ok(cleaned) => total = total + cleaned,
                Err(e) => result = result.and(Err(e)),
            }
        }
        result.map(|()| total)
    }

    /// Starts threads that commit the partitions of all topics, present and future, whose names `pooled` accepts;
    /// the others are committed by hand, with [`PartitionLog::commit`]. Each append to an idle partition wakes a
    /// thread; while one commits a partition, what comes gathers for its next commit. `clock` gives ms since the
    /// Unix epoch. A commit mostly waits for the disk, which serves several at once: on two cores, eight threads
    /// commit a hundred partitions in a third of the time that one needs, and one partition as fast.
    pub fn start_committer(
        &self,
        threads: usize,
        clock: impl Fn() -> i64 + Send + Sync + 'static,
        pooled: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> io::Result<Committer> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let committer = Committer::spawn(self.home.queue.clone(), threads, clock)?;
        for topic in self.all_topics().iter().filter(|topic| pooled(topic.name())) {
            topic.partitions().iter().for_each(|log| log.pool());
        }
        *self.home.pooled.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(pooled));
        Ok(committer)
    }

    /// Replaces a small file beside the partitions, durably and in one step. Names are 1 to 200 ASCII letters,
    /// digits, `_`, `-` and `.`, not starting with `.` nor ending in `.tmp` or `checkpoint`, and not `topics` or
    /// `clean-shutdown`.
    pub fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        check_file_name(name)?;
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if changing.closed {
            return Err(io::Error::other("the log is closed"));
        }
        replace_file(&*self.home.storage, name, bytes)
    }

    /// Reads a small file; `None` if there is none of that name.
    pub fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        check_file_name(name)?;
        read_file(&*self.home.storage, name)
    }

    /// Removes a small file, durably. None of that name is no error.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        check_file_name(name)?;
        match self.home.storage.remove(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => self.home.storage.sync_dir(""),
        }
    }

    /// Names of the small files.
    pub fn files(&self) -> io::Result<Vec<String>> {
        let entries = self.home.storage.list("")?;
        let ours = entries.into_iter().filter(|e| !e.is_dir && check_file_name(&e.name).is_ok());
        Ok(ours.map(|e| e.name).collect())
    }

    /// Shuts down: takes no more appends, drops what no commit has taken, writes what makes the next start
    /// quick, and frees the folder. Every partition is closed even if one fails; the first error is returned.
    /// A second call does nothing.
    pub fn close(&self) -> Result<(), CommitError> {
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut changing.closed, true) {
            return Ok(());
        }
        let (mut points, mut result) = (Vec::new(), Ok(()));
        let mut left = shutdown::Partitions::new();
        for log in self.all_topics().iter().flat_map(|topic| topic.partitions()) {
            match log.close() {
                Ok(0) => {}
                Ok(end) => {
                    let key = (log.topic().to_owned(), log.partition());
                    points.push((key.clone(), Some(end)));
                    left.extend(log.leave_behind().map(|left| (key, left)));
                }
                Err(e) => result = result.and(Err(e)),
            }
        }
        let mut saved = self.home.recovery_points.save_all(points).map_err(CommitError::of_write);
        if result.is_ok() && saved.is_ok() {
            saved = shutdown::write(&*self.home.storage, &left).map_err(CommitError::of_write);
        }
        self.home.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.and(saved)
    }

    fn change(&self) -> Result<MutexGuard<'_, Changing>, TopicError> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if changing.closed { Err(TopicError::Closed) } else { Ok(changing) }
    }

    /// Says something else of a topic, durably. After an error the file says the old or the new.
    fn change_catalog(
        &self,
        changing: &mut Changing,
        name: &str,
        record: Option<TopicRecord>,
    ) -> Result<(), TopicError> {
        let mut catalog = changing.catalog.clone();
        match record {
            Some(record) => catalog.topics.insert(name.to_owned(), record),
            None => catalog.topics.remove(name),
        };
        catalog.save(&*self.home.storage).map_err(|e| topic_io(name, e))?;
        changing.catalog = catalog;
        Ok(())
    }

    fn topics_mut(&self) -> std::sync::RwLockWriteGuard<'_, Topics> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Topics {
    fn insert(&mut self, topic: Arc<Topic>) {
        self.by_id.insert(topic.id(), topic.name().to_owned());
        self.by_name.insert(topic.name().to_owned(), topic);
    }

    fn remove(&mut self, name: &str) {
        if let Some(topic) = self.by_name.remove(name) {
            self.by_id.remove(&topic.id());
        }
    }
}

impl Changing {
    fn record(&self, name: &str) -> TopicRecord {
        self.catalog.topics.get(name).cloned().unwrap_or_default()
    }
}

impl Home {
    pub(crate) fn is_pooled(&self, topic: &str) -> bool {
        let pooled = self.pooled.read().unwrap_or_else(PoisonError::into_inner);
        pooled.as_ref().is_some_and(|pooled| pooled(topic))
    }

    fn open_topic(
        self: &Arc<Self>,
        name: &str,
        record: &TopicRecord,
        opening: &mut Opening,
    ) -> Result<Vec<Arc<PartitionLog>>, OpenError> {
        let topic: Arc<str> = name.into();
        let config = Arc::new(TopicConfig::resolve(&record.configs, &self.config));
        let mut logs = Vec::with_capacity(record.partitions as usize);
        let foreign = opening.foreign.contains(name);
        for partition in 0..record.partitions {
            let of = PartitionOf { topic: &topic, id: record.id, partition };
            let left = opening.left.remove(&(name.to_owned(), partition));
            let (log, report) = PartitionLog::open(self.clone(), &of, config.clone(), foreign, left)?;
            logs.push(log);
            opening.recovery.push(report);
        }
        Ok(logs)
    }

    /// Deletes what is left of topics that are being deleted, and forgets them.
    fn finish_deleting(&self, catalog: &mut Catalog) -> io::Result<()> {
        let storage = &*self.storage;
        let entries = storage.list("")?;
        let mut gone: Vec<_> = entries.iter().filter(|e| e.is_dir && e.name.ends_with(DELETED)).collect();
        let mut serial = 0;
        let mut renamed = Vec::new();
        let mut keys = Vec::new();
        for (name, record) in catalog.topics.iter().filter(|(_, record)| record.deleting) {
            for partition in 0..record.partitions {
                let dir = folder(name, partition);
                keys.push(((name.clone(), partition), None));
                if entries.binary_search_by(|e| e.name.cmp(&dir)).is_err() {
                    continue;
                }
                let free = |to: &String| entries.iter().all(|e| e.name != *to);
                let to = std::iter::repeat_with(|| {
                    serial += 1;
                    format!("{dir}.{serial}{DELETED}")
                });
                let to = to.into_iter().find(free).unwrap_or_default();
                storage.rename(&dir, &to)?;
                renamed.push(to);
            }
        }
        if !keys.is_empty() {
            storage.sync_dir("")?;
            self.recovery_points.save_all(keys.clone())?;
            self.log_starts.save_all(keys.clone())?;
            self.cleaned.save_all(keys.clone())?;
            self.gaps.save_all(keys)?;
        }
        catalog.topics.retain(|_, record| !record.deleting);
        let all = gone.drain(..).map(|e| &e.name).chain(&renamed);
        all.into_iter().try_for_each(|dir| storage.remove(dir))
    }

    /// Makes topics of partitions' folders that the catalog does not know. Returns those of them that this
    /// program has not written.
    fn adopt(&self, catalog: &mut Catalog) -> Result<BTreeSet<String>, OpenError> {
        let io = |source| OpenError::Io { folder: self.storage.describe(), path: String::new(), source };
        let storage = &*self.storage;
        let mut foreign = BTreeSet::new();
        for (topic, partitions) in folders(storage).map_err(io)? {
            if catalog.topics.contains_key(&topic) {
                continue;
            }
            if is_unfinished(storage, &topic, &partitions).map_err(io)? {
                for partition in partitions {
                    storage.remove(&folder(&topic, partition)).map_err(io)?;
                }
                continue;
            }
            if let Some(missing) = (0..partitions.len() as u32).find(|i| partitions[*i as usize] != *i) {
                let what = format!("there is a partition {}, but no partition {missing}", partitions.len());
                return Err(Damage { file: folder(&topic, missing), position: 0, offset: 0, what }.into());
            }
            let id = match topic_of(storage, &folder(&topic, 0)).map_err(io)? {
                Some(id) => id,
                None => TopicId::random().map_err(io)?,
            };
            if (0..partitions.len() as u32).all(|i| self.recovery_points.get(&topic, i).is_none()) {
                foreign.insert(topic.clone());
            }
            let (partitions, configs) = (partitions.len() as u32, preset(&topic));
            catalog.topics.insert(topic, TopicRecord { id, partitions, configs, deleting: false });
        }
        Ok(foreign)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.home.storage.describe()).field(&self.topics()).finish()
    }
}

fn exists(topic: &Topic) -> TopicError {
    TopicError::Exists { name: topic.name().to_owned(), partitions: topic.partitions().len() as u32 }
}

/// The partitions' folders by topic, each topic's sorted by number.
fn folders(storage: &dyn Storage) -> io::Result<BTreeMap<String, Vec<u32>>> {
    let mut topics: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for entry in storage.list("")?.into_iter().filter(|e| e.is_dir) {
        if let Some((topic, partition)) = entry.name.rsplit_once('-')
            && let Ok(partition) = partition.parse()
            && folder(topic, partition) == entry.name
            && check_topic_name(topic).is_ok()
        {
            topics.entry(topic.to_owned()).or_default().push(partition);
        }
    }
    topics.values_mut().for_each(|partitions| partitions.sort_unstable());
    Ok(topics)
}

/// Whether a crash cut the creation of a topic short: partition 0 is missing and no other has any record.
fn is_unfinished(storage: &dyn Storage, topic: &str, partitions: &[u32]) -> io::Result<bool> {
    if partitions.first() == Some(&0) {
        return Ok(false);
    }
    for &partition in partitions {
        let dir = folder(topic, partition);
        for entry in storage.list(&dir)? {
            if !storage.open(&format!("{dir}/{}", entry.name), false)?.is_empty()? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Checks a topic's name by Kafka's rules: 1 to 249 ASCII letters, digits, `.`, `_` and `-`, not `.` or `..`.
pub fn check_topic_name(name: &str) -> Result<(), TopicError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let what = match name {
        "" => "it is empty",
        "." | ".." => "it is '.' or '..'",
        _ if name.len() > 249 => "it is longer than 249 characters",
        _ if !name.bytes().all(good) => "only ASCII letters, digits, '.', '_' and '-' are allowed",
        _ => return Ok(()),
    };
    Err(TopicError::Name { name: name.to_owned(), what })
}

fn check_partitions(partitions: u32) -> Result<(), TopicError> {
    if (1..=MAX_PARTITIONS).contains(&partitions) { Ok(()) } else { Err(TopicError::Partitions(partitions)) }
}

fn check_file_name(name: &str) -> io::Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let reserved = name == TOPICS_FILE
        || name.starts_with('.')
        || name.ends_with(".tmp")
        || name.ends_with("checkpoint");
    if name.is_empty() || name.len() > 200 || reserved || !name.bytes().all(good) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no name for a file here"),
        ));
    }
    Ok(())
}

fn topic_io(name: &str, source: impl std::error::Error + Send + Sync + 'static) -> TopicError {
    TopicError::Io { name: name.to_owned(), source: Arc::new(source) }
}
