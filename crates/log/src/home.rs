//! What a store's partitions share: the folder, and what is opened, adopted and deleted in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{
    OpenError, PartitionLog, Recovery, StoreConfig, check_topic_name,
    checkpoint::Checkpoint,
    committer::Queue,
    config::TopicConfig,
    error::Damage,
    files::OpenFiles,
    partition::{PartitionOf, folder, topic_of},
    pending::Buffers,
    shutdown,
    storage::{Lock, Storage},
    topics::{Catalog, Topic, TopicId, TopicRecord, preset},
};

/// Ends the name of a partition's folder that is being deleted.
const DELETED: &str = "-delete";

/// Says by its name whether a topic's partitions are committed by a committer.
pub(crate) type Pooled = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What a store's partitions share.
pub(crate) struct Home {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) files: Arc<OpenFiles>,
    pub(crate) config: StoreConfig,
    /// What topics go by that do not say otherwise.
    pub(crate) defaults: RwLock<BTreeMap<String, String>>,
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
    pub(crate) pooled: RwLock<Option<Pooled>>,
    /// Held as long as any partition can write.
    pub(crate) lock: Mutex<Option<Lock>>,
}

/// What there is to know while partitions are opened.
#[derive(Default)]
pub(crate) struct Opening {
    /// Topics that this program has not written.
    pub(crate) foreign: BTreeSet<String>,
    /// What a clean shutdown has said.
    pub(crate) left: shutdown::Partitions,
    pub(crate) recovery: Vec<Recovery>,
}

impl Home {
    pub(crate) fn is_pooled(&self, topic: &str) -> bool {
        let pooled = self.pooled.read().unwrap_or_else(PoisonError::into_inner);
        pooled.as_ref().is_some_and(|pooled| pooled(topic))
    }

    /// What a topic's configurations come to.
    pub(crate) fn resolve(&self, record: &TopicRecord) -> Arc<TopicConfig> {
        let defaults = self.defaults.read().unwrap_or_else(PoisonError::into_inner);
        Arc::new(TopicConfig::resolve(&record.configs, &defaults, &self.config))
    }

    /// A topic with other configurations, by which its partitions go from now on.
    pub(crate) fn reconfigure(&self, topic: &Topic, record: &TopicRecord) -> Arc<Topic> {
        let config = self.resolve(record);
        topic.partitions().iter().for_each(|log| log.configure(&config));
        Topic::new(topic.name_of(), record, config, topic.partitions().to_vec())
    }

    pub(crate) fn open_topic(
        self: &Arc<Self>,
        name: &str,
        record: &TopicRecord,
        opening: &mut Opening,
    ) -> Result<Arc<Topic>, OpenError> {
        let topic: Arc<str> = name.into();
        let config = self.resolve(record);
        let mut logs = Vec::with_capacity(record.partitions as usize);
        let foreign = opening.foreign.contains(name);
        for partition in 0..record.partitions {
            let of = PartitionOf { topic: &topic, id: record.id, partition };
            let left = opening.left.remove(&(name.to_owned(), partition));
            let (log, report) = PartitionLog::open(self.clone(), &of, config.clone(), foreign, left)?;
            logs.push(log);
            opening.recovery.push(report);
        }
        Ok(Topic::new(topic, record, config, logs))
    }

    /// Deletes what is left of topics that are being deleted, and forgets them.
    pub(crate) fn finish_deleting(&self, catalog: &mut Catalog) -> io::Result<()> {
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
    pub(crate) fn adopt(&self, catalog: &mut Catalog) -> Result<BTreeSet<String>, OpenError> {
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
