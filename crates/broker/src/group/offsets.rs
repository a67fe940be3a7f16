//! The offsets that a group has committed.

use std::collections::BTreeMap;

use super::{Effects, record::Record};

/// One committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    /// Epoch of the leader that the consumer knew; −1 if none.
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
    /// When it was committed, in ms since the Unix epoch.
    pub(crate) at: i64,
}

/// By topic, then partition.
#[derive(Debug, Default)]
pub(crate) struct Offsets(BTreeMap<String, BTreeMap<i32, Committed>>);

impl Offsets {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.0.get(topic)?.get(&partition)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &BTreeMap<i32, Committed>)> {
        self.0.iter().map(|(topic, partitions)| (topic.as_str(), partitions))
    }

    pub(crate) fn keys(&self) -> Vec<(String, i32)> {
        self.0.iter().flat_map(|(t, ps)| ps.keys().map(|p| (t.clone(), *p))).collect()
    }

    pub(crate) fn put(&mut self, topic: String, partition: i32, value: Committed) {
        self.0.entry(topic).or_default().insert(partition, value);
    }

    /// Says whether there was one.
    pub(crate) fn remove(&mut self, topic: &str, partition: i32) -> bool {
        let Some(partitions) = self.0.get_mut(topic) else { return false };
        let had = partitions.remove(&partition).is_some();
        if partitions.is_empty() {
            self.0.remove(topic);
        }
        had
    }

    /// Removes what was committed before `limit`, in a group that has been empty since before it.
    pub(super) fn expire(&mut self, group: &str, empty_since: i64, limit: i64, fx: &mut Effects) {
        if empty_since > limit {
            return;
        }
        for (topic, partition) in self.keys() {
            if self.get(&topic, partition).is_some_and(|c| c.at <= limit) {
                self.remove(&topic, partition);
                fx.records.push(Record::offset(group, &topic, partition, None));
            }
        }
    }
}
