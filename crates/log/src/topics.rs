//! What topics there are: ids, numbers of partitions and configurations, in one small file.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use data_encoding::BASE64URL_NOPAD;

use crate::{
    PartitionLog,
    config::{self, TopicConfig},
    error::Damage,
    storage::{Storage, read_file, replace_file},
};

/// The file's name in the data folder. A folder with it is one of a [`Store`](crate::Store).
pub const TOPICS_FILE: &str = "topics";
/// Its first line.
const VERSION: &str = "0";
/// Names of topics that Dibs itself rests on begin so.
const OWN: &str = "dibs.";

/// A topic's id: a random UUID, written as Kafka writes it, in 22 characters of base64.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub [u8; 16]);

impl TopicId {
    /// A new one.
    pub fn random() -> io::Result<TopicId> {
        loop {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
            bytes[6] = bytes[6] & 0x0f | 0x40;
            bytes[8] = bytes[8] & 0x3f | 0x80;
            let id = TopicId(bytes);
            // Kafka has none that a command line would take for an option.
            if !id.to_string().starts_with('-') {
                return Ok(id);
            }
        }
    }

    /// Reads the 22 characters.
    pub fn parse(text: &str) -> Option<TopicId> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(TopicId)
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A topic as it was when somebody asked.
pub struct Topic {
    name: Arc<str>,
    id: TopicId,
    configs: BTreeMap<String, String>,
    config: Arc<TopicConfig>,
    partitions: Vec<Arc<PartitionLog>>,
}

impl Topic {
    pub(crate) fn new(
        name: Arc<str>,
        record: &TopicRecord,
        config: Arc<TopicConfig>,
        partitions: Vec<Arc<PartitionLog>>,
    ) -> Arc<Topic> {
        Arc::new(Topic { name, id: record.id, configs: record.configs.clone(), config, partitions })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn name_of(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Its id.
    pub fn id(&self) -> TopicId {
        self.id
    }

    /// The configurations that are set for it, by Kafka's names.
    pub fn configs(&self) -> &BTreeMap<String, String> {
        &self.configs
    }

    /// What they come to, with the store's defaults and Kafka's.
    pub fn config(&self) -> &Arc<TopicConfig> {
        &self.config
    }

    /// Its partitions by number.
    pub fn partitions(&self) -> &[Arc<PartitionLog>] {
        &self.partitions
    }

    /// One of them.
    pub fn partition(&self, partition: u32) -> Option<&Arc<PartitionLog>> {
        self.partitions.get(partition as usize)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} with {} partitions", self.name, self.id, self.partitions.len())
    }
}

/// What a new topic's configuration begins with. The topics that Dibs decides by have the log's own time, and
/// nothing of them is ever deleted.
pub(crate) fn preset(name: &str) -> BTreeMap<String, String> {
    let own: &[_] = match name.starts_with(OWN) {
        true => &[("message.timestamp.type", "LogAppendTime"), ("retention.ms", "-1")],
        false => &[],
    };
    own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What the file says of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicRecord {
    pub(crate) id: TopicId,
    pub(crate) partitions: u32,
    pub(crate) configs: BTreeMap<String, String>,
    /// It does not exist any more; files of it may.
    pub(crate) deleting: bool,
}

/// The file's contents: one line `topic name id partitions` each, followed by its configurations, one line
/// `config name value` each, and by `deleting` while its files are being deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub(crate) topics: BTreeMap<String, TopicRecord>,
}

impl Catalog {
    /// Reads the file; without one there are no topics.
    pub(crate) fn open(storage: &dyn Storage) -> io::Result<Result<Catalog, Damage>> {
        let Some(bytes) = read_file(storage, TOPICS_FILE)? else { return Ok(Ok(Catalog::default())) };
        Ok(Catalog::parse(&bytes).map_err(|line| Damage {
            file: TOPICS_FILE.to_owned(),
            position: 0,
            offset: 0,
            what: format!("line {line} does not follow the format"),
        }))
    }

    /// Replaces the file, durably and in one step.
    pub(crate) fn save(&self, storage: &dyn Storage) -> io::Result<()> {
        replace_file(storage, TOPICS_FILE, self.format().as_bytes())
    }

    fn format(&self) -> String {
        let mut text = format!("{VERSION}\n");
        for (name, record) in &self.topics {
            text.push_str(&format!("topic {name} {} {}\n", record.id, record.partitions));
            for (name, value) in &record.configs {
                text.push_str(&format!("config {name} {value}\n"));
            }
            if record.deleting {
                text.push_str("deleting\n");
            }
        }
        text
    }

    /// The topics, or the number of the line that is wrong.
    fn parse(bytes: &[u8]) -> Result<Catalog, usize> {
        let text = std::str::from_utf8(bytes).map_err(|_| 1_usize)?;
        let mut lines = text.lines();
        if lines.next() != Some(VERSION) {
            return Err(1);
        }
        let mut topics = BTreeMap::new();
        let mut current = String::new();
        for (i, line) in lines.enumerate() {
            let take = |topics: &mut BTreeMap<String, TopicRecord>, current: &mut String| {
                let mut words = line.splitn(3, ' ');
                match (words.next()?, words.next(), words.next()) {
                    ("topic", Some(name), Some(rest)) => {
                        let (id, partitions) = rest.split_once(' ')?;
                        let (id, partitions) = (TopicId::parse(id)?, partitions.parse().ok()?);
                        let record = TopicRecord { id, partitions, ..TopicRecord::default() };
                        *current = name.to_owned();
                        topics.insert(current.clone(), record).is_none().then_some(())
                    }
                    ("config", Some(name), Some(value)) => {
                        let configs = &mut topics.get_mut(current)?.configs;
                        configs.insert(name.to_owned(), value.to_owned());
                        Some(())
                    }
                    ("deleting", None, None) => {
                        topics.get_mut(current)?.deleting = true;
                        Some(())
                    }
                    _ => None,
                }
            };
            take(&mut topics, &mut current).ok_or(i + 2)?;
        }
        let valid = topics.values().all(|record: &TopicRecord| config::check(&record.configs).is_ok());
        if valid { Ok(Catalog { topics }) } else { Err(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let record = TopicRecord {
            id: TopicId::random().unwrap(),
            partitions: 3,
            configs: BTreeMap::from([
                ("cleanup.policy".to_owned(), "compact, delete".to_owned()),
                ("leader.replication.throttled.replicas".to_owned(), String::new()),
            ]),
            deleting: true,
        };
        let plain = TopicRecord { id: TopicId::random().unwrap(), partitions: 1, ..TopicRecord::default() };
        let topics = BTreeMap::from([("a.b".to_owned(), record), ("c".to_owned(), plain)]);
        let catalog = Catalog { topics };
        let text = catalog.format();
        assert_eq!(Catalog::parse(text.as_bytes()), Ok(catalog));
        assert_eq!(Catalog::parse(b"1\n"), Err(1));
        assert_eq!(Catalog::parse(b"0\ntopic a x 1\n"), Err(2));
        assert_eq!(Catalog::parse(b"0\ndeleting\n"), Err(2));
    }

    #[test]
    fn ids_are_random_uuids_in_kafkas_spelling() {
        let id = TopicId::random().unwrap();
        assert_eq!((id.0[6] >> 4, id.0[8] >> 6, id.to_string().len()), (4, 2, 22));
        assert_eq!(TopicId::parse(&id.to_string()), Some(id));
        assert_eq!(TopicId::parse("short"), None);
        assert_ne!(id, TopicId::random().unwrap());
    }
}
