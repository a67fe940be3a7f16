//! All topics and partitions of one data folder.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use crate::{
    CommitError, GROUP_BYTES, MAX_PARTITIONS, OpenError, PartitionLog, Recovery, TopicError,
    checkpoint::{Checkpoint, LOG_STARTS, RECOVERY_POINTS},
    error::Damage,
    partition::folder,
    storage::{Lock, Storage, read_file, replace_file},
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
    /// Largest batch, in bytes, header included. At most [`GROUP_BYTES`].
    pub max_batch_bytes: usize,
    /// After so many bytes a partition's recovery point is moved: at most about so much is read at the next
    /// start after a crash.
    pub checkpoint_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            segment_bytes: 1 << 30,
            index_interval_bytes: 4096,
            max_pending_bytes: 64 << 20,
            max_batch_bytes: 1 << 20,
            checkpoint_bytes: 64 << 20,
        }
    }
}

impl StoreConfig {
    fn check(&self) -> Result<(), OpenError> {
        let wrong = if self.segment_bytes > i32::MAX as u64 {
            "segment_bytes is larger than 2 GiB - 1"
        } else if self.max_batch_bytes > GROUP_BYTES {
            "max_batch_bytes is larger than 8 MiB"
        } else if self.max_batch_bytes > self.max_pending_bytes {
            "max_batch_bytes is larger than max_pending_bytes"
        } else {
            return Ok(());
        };
        Err(OpenError::Config(wrong))
    }
}

/// What a store's partitions share.
pub(crate) struct Home {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) config: StoreConfig,
    pub(crate) recovery_points: Checkpoint,
    pub(crate) log_starts: Checkpoint,
    /// Held as long as any partition can write.
    lock: Mutex<Option<Lock>>,
}

/// A data folder, open in this process alone.
///
/// Dropping it without [`Store::close`] is safe and only makes the next start longer.
pub struct Store {
    home: Arc<Home>,
    topics: RwLock<BTreeMap<String, Vec<Arc<PartitionLog>>>>,
    recovery: Vec<Recovery>,
    /// Held while topics are made or deleted; whether the store is closed.
    changing: Mutex<bool>,
}

impl Store {
    /// Locks the folder, and opens every partition in it after checking what a crash may have harmed.
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
            config,
            lock: Mutex::new(Some(lock)),
            storage: storage.clone(),
        });
        let (mut topics, mut recovery) = (BTreeMap::new(), Vec::new());
        for (topic, partitions) in folders(&*storage).map_err(io(""))? {
            if is_unfinished(&*storage, &topic, &partitions).map_err(io(""))? {
                for partition in partitions {
                    storage.remove(&folder(&topic, partition)).map_err(io(""))?;
                }
                continue;
            }
            let mut logs = Vec::new();
            for (i, &partition) in partitions.iter().enumerate() {
                if partition != i as u32 {
                    let what = format!("there is a partition {partition}, but no partition {i}");
                    return Err(
                        Damage { file: folder(&topic, i as u32), position: 0, offset: 0, what }.into()
                    );
                }
                let (log, report) = PartitionLog::open(home.clone(), &topic, partition)?;
                logs.push(Arc::new(log));
                recovery.push(report);
            }
            topics.insert(topic, logs);
        }
        // All was read and synced: another crash need not lead to reading it again.
        let points = recovery.iter().map(|r| ((r.topic.clone(), r.partition), Some(r.end)));
        home.recovery_points.save_all(points).map_err(io(RECOVERY_POINTS))?;
        Ok(Store { home, topics: RwLock::new(topics), recovery, changing: Mutex::new(false) })
    }

    /// What opening each partition found.
    pub fn recovery(&self) -> &[Recovery] {
        &self.recovery
    }

    /// Makes a topic, durably. One that exists with as many partitions is no error.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<(), TopicError> {
        check_topic_name(name)?;
        let _changing = self.change()?;
        match self.count(name) {
            Some(count) if count == partitions => return Ok(()),
            Some(count) => return Err(TopicError::Exists { name: name.to_owned(), partitions: count }),
            None => {}
        }
        check_partitions(partitions)?;
        // Partition 0 comes last, and durably after the others: a topic without it is unfinished.
        let mut logs = Vec::new();
        for partition in (1..partitions).rev() {
            logs.push(self.make(name, partition)?);
        }
        self.home.storage.sync_dir("").map_err(|e| topic_io(name, e))?;
        logs.push(self.make(name, 0)?);
        self.home.storage.sync_dir("").map_err(|e| topic_io(name, e))?;
        logs.reverse();
        self.topics_mut().insert(name.to_owned(), logs);
        Ok(())
    }

    /// Adds partitions to a topic, durably, until it has `partitions`. As many as there are is no error, fewer
    /// are.
    pub fn add_partitions(&self, name: &str, partitions: u32) -> Result<(), TopicError> {
        let _changing = self.change()?;
        let count = self.count(name).ok_or_else(|| TopicError::Unknown(name.to_owned()))?;
        check_partitions(partitions)?;
        if partitions < count {
            return Err(TopicError::Exists { name: name.to_owned(), partitions: count });
        }
        for partition in count..partitions {
            let log = self.make(name, partition)?;
            self.home.storage.sync_dir("").map_err(|e| topic_io(name, e))?;
            self.topics_mut().entry(name.to_owned()).or_default().push(log);
        }
        Ok(())
    }

    /// Closes a topic's partitions and deletes them. If it fails, or a crash comes between, some may be left:
    /// delete again.
    pub fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let _changing = self.change()?;
        let logs = self.topics_mut().remove(name).ok_or_else(|| TopicError::Unknown(name.to_owned()))?;
        let storage = &*self.home.storage;
        let delete = || {
            let taken = storage.list("")?;
            let mut gone = Vec::new();
            for log in logs.iter().rev() {
                // Broken or not, it is of no more use.
                let _ = log.close();
                let name = |n| format!("{}.{n}{DELETED}", log.dir());
                let free = (0_u64..).map(name).find(|name| taken.iter().all(|e| e.name != *name));
                let to = free.unwrap_or_default();
                storage.rename(log.dir(), &to)?;
                gone.push(to);
            }
            storage.sync_dir("")?;
            let keys: Vec<_> = logs.iter().map(|l| ((l.topic().to_owned(), l.partition()), None)).collect();
            self.home.recovery_points.save_all(keys.clone())?;
            self.home.log_starts.save_all(keys)?;
            gone.iter().try_for_each(|dir| storage.remove(dir))
        };
        delete().map_err(|e| topic_io(name, e))
    }

    /// All topics by name, with their numbers of partitions.
    pub fn topics(&self) -> Vec<(String, u32)> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.iter().map(|(name, logs)| (name.clone(), logs.len() as u32)).collect()
    }

    /// One partition.
    pub fn partition(&self, topic: &str, partition: u32) -> Option<Arc<PartitionLog>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(topic)?.get(partition as usize).cloned()
    }

    /// Replaces a small file beside the partitions, durably and in one step. Names are 1 to 200 ASCII letters,
    /// digits, `_`, `-` and `.`, not starting with `.` nor ending in `.tmp` or `checkpoint`.
    pub fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        check_file_name(name)?;
        let closed = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
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
        let mut closed = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        let (mut points, mut result) = (Vec::new(), Ok(()));
        for log in self.topics_mut().values().flatten() {
            match log.close() {
                Ok(end) => points.push(((log.topic().to_owned(), log.partition()), Some(end))),
                Err(e) => result = result.and(Err(e)),
            }
        }
        let saved = self.home.recovery_points.save_all(points).map_err(CommitError::of_write);
        self.home.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.and(saved)
    }

    fn make(&self, topic: &str, partition: u32) -> Result<Arc<PartitionLog>, TopicError> {
        self.home.storage.create_dir(&folder(topic, partition)).map_err(|e| topic_io(topic, e))?;
        match PartitionLog::open(self.home.clone(), topic, partition) {
            Ok((log, _)) => Ok(Arc::new(log)),
            Err(e) => Err(topic_io(topic, e)),
        }
    }

    fn change(&self) -> Result<MutexGuard<'_, bool>, TopicError> {
        let closed = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed { Err(TopicError::Closed) } else { Ok(closed) }
    }

    fn count(&self, topic: &str) -> Option<u32> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(topic).map(|logs| logs.len() as u32)
    }

    fn topics_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Vec<Arc<PartitionLog>>>> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.home.storage.describe()).field(&self.topics()).finish()
    }
}

/// The partitions' folders by topic, each topic's sorted by number. Removes those whose deletion a crash cut
/// short.
fn folders(storage: &dyn Storage) -> io::Result<BTreeMap<String, Vec<u32>>> {
    let mut topics: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for entry in storage.list("")?.into_iter().filter(|e| e.is_dir) {
        if entry.name.ends_with(DELETED) {
            storage.remove(&entry.name)?;
        } else if let Some((topic, partition)) = entry.name.rsplit_once('-')
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
    let reserved = name.starts_with('.') || name.ends_with(".tmp") || name.ends_with("checkpoint");
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
