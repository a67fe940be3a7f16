//! All topics and partitions of one data folder.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use crate::{
    CommitError, MAX_PARTITIONS, OpenError, PartitionLog, Recovery, StoreConfig, TopicError,
    checkpoint::{CLEANED, Checkpoint, GAPS, LOG_STARTS, RECOVERY_POINTS},
    clean::{CleanError, Cleaned},
    committer::Committer,
    config::{self, ConfigError},
    files::OpenFiles,
    home::{Home, Opening},
    partition::PartitionOf,
    pending::Buffers,
    shutdown::{self, CLEAN},
    storage::{Storage, read_file, replace_file},
    topics::{Catalog, TOPICS_FILE, Topic, TopicId, TopicRecord, preset},
};

/// The file that is locked while a data folder is open.
const LOCK: &str = ".lock";
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
            defaults: RwLock::new(config.defaults.clone()),
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
            topics.insert(home.open_topic(name, record, &mut opening)?);
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
        let topic = self.home.open_topic(name, &record, &mut Opening::default());
        let topic = topic.map_err(|e| topic_io(name, e))?;
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
        let topic = Topic::new(name_of, &record, topic.config().clone(), logs);
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
        self.change_catalog(&mut changing, name, Some(record.clone()))?;
        let altered = self.home.reconfigure(&topic, &record);
        self.topics_mut().insert(altered.clone());
        Ok(altered)
    }

    /// Has all topics go by other configurations where they do not say otherwise. Not durable: whoever opens the
    /// store says them. An invalid one changes nothing.
    pub fn set_defaults(&self, defaults: BTreeMap<String, String>) -> Result<(), ConfigError> {
        config::check(&defaults)?;
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut current = self.home.defaults.write().unwrap_or_else(PoisonError::into_inner);
            if *current == defaults {
                return Ok(());
            }
            *current = defaults;
        }
        for topic in self.all_topics() {
            let altered = self.home.reconfigure(&topic, &changing.record(topic.name()));
            self.topics_mut().insert(altered);
        }
        Ok(())
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

    /// The folder's name for people.
    pub fn describe(&self) -> String {
        self.home.storage.describe()
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

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.describe()).field(&self.topics()).finish()
    }
}

fn exists(topic: &Topic) -> TopicError {
    TopicError::Exists { name: topic.name().to_owned(), partitions: topic.partitions().len() as u32 }
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
