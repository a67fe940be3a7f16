//! The offsets that a group has committed.

use std::collections::{BTreeMap, BTreeSet};

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

/// A topic's name and a partition's number.
type TopicPartition = (String, i32);

/// What a group has committed, and what is held for transactions that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// By topic, then partition.
    committed: BTreeMap<String, BTreeMap<i32, Committed>>,
    /// By producer id. An offset that was committed later, in a transaction that has ended or in none, takes the
    /// place of one that is held: it is dropped then.
    held: BTreeMap<TopicPartition, BTreeMap<i64, Held>>,
}

/// An offset that counts when its producer's transaction is committed.
#[derive(Debug)]
struct Held {
    /// Its place in the order of all commits of the shard.
    order: u64,
    value: Committed,
}

impl Offsets {
    pub(crate) fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.held.is_empty()
    }

    /// Whether a transaction that has not ended may still change the offset (KIP-447).
    pub(crate) fn is_unstable(&self, topic: &str, partition: i32) -> bool {
        self.held.contains_key(&(topic.to_owned(), partition))
    }

    /// Holds an offset until its producer's transaction ends.
    pub(super) fn hold(
        &mut self,
        producer: i64,
        order: u64,
        topic: String,
        partition: i32,
        value: Committed,
    ) {
        self.held.entry((topic, partition)).or_default().insert(producer, Held { order, value });
    }

    /// Ends a producer's transaction.
    pub(super) fn end_transaction(&mut self, producer: i64, commit: bool) {
        let mut ended = Vec::new();
        self.held.retain(|(topic, partition), held| {
            if let Some(offset) = held.remove(&producer).filter(|_| commit) {
                held.retain(|_, other| other.order > offset.order);
                ended.push((topic.clone(), *partition, offset.value));
            }
            !held.is_empty()
        });
        for (topic, partition, value) in ended {
            self.committed.entry(topic).or_default().insert(partition, value);
        }
    }

    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.committed.get(topic)?.get(&partition)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &BTreeMap<i32, Committed>)> {
        self.committed.iter().map(|(topic, partitions)| (topic.as_str(), partitions))
    }

    /// All partitions of which anything is known.
    pub(crate) fn keys(&self) -> Vec<TopicPartition> {
        let committed = self.committed.iter().flat_map(|(t, ps)| ps.keys().map(|p| (t.clone(), *p)));
        committed.chain(self.held.keys().cloned()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub(crate) fn put(&mut self, topic: String, partition: i32, value: Committed) {
        self.held.remove(&(topic.clone(), partition));
        self.committed.entry(topic).or_default().insert(partition, value);
    }

    /// Says whether there was one.
    pub(crate) fn remove(&mut self, topic: &str, partition: i32) -> bool {
        let held = self.held.remove(&(topic.to_owned(), partition)).is_some();
        let Some(partitions) = self.committed.get_mut(topic) else { return held };
        let had = partitions.remove(&partition).is_some();
        if partitions.is_empty() {
            self.committed.remove(topic);
        }
        had || held
    }

    /// Removes what was committed before `limit`, in a group that has been empty since before it.
    pub(super) fn expire(&mut self, group: &str, empty_since: i64, limit: i64, fx: &mut Effects) {
        if empty_since > limit {
            return;
        }
        for (topic, partition) in self.keys() {
            let old = self.get(&topic, partition).is_some_and(|c| c.at <= limit);
            if old && !self.is_unstable(&topic, partition) {
                self.remove(&topic, partition);
                fx.records.push(Record::offset(group, &topic, partition, None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Committed {
        Committed { offset, leader_epoch: -1, metadata: String::new(), at: 0 }
    }

    #[test]
    fn what_is_held_counts_from_its_end_on_unless_something_came_later() {
        let mut offsets = Offsets::default();
        let of =
            |offsets: &Offsets| (offsets.get("t", 0).map_or(-1, |c| c.offset), offsets.is_unstable("t", 0));
        offsets.hold(7, 1, "t".into(), 0, at(10));
        assert_eq!((of(&offsets), offsets.is_empty()), ((-1, true), false));
        offsets.end_transaction(7, false);
        assert_eq!((of(&offsets), offsets.is_empty()), ((-1, false), true));
        offsets.hold(7, 2, "t".into(), 0, at(20));
        offsets.end_transaction(7, true);
        assert_eq!(of(&offsets), (20, false));
        // Of two producers the later commit counts, whoever ends first.
        offsets.hold(7, 3, "t".into(), 0, at(30));
        offsets.hold(8, 4, "t".into(), 0, at(40));
        offsets.end_transaction(8, true);
        assert_eq!(of(&offsets), (40, false));
        offsets.end_transaction(7, true);
        assert_eq!(of(&offsets), (40, false));
        // And what is committed outside of transactions counts at once.
        offsets.hold(7, 5, "t".into(), 0, at(50));
        offsets.put("t".into(), 0, at(60));
        assert_eq!(of(&offsets), (60, false));
        offsets.end_transaction(7, true);
        assert_eq!(of(&offsets), (60, false));
        offsets.hold(7, 6, "t".into(), 0, at(70));
        assert!(offsets.remove("t", 0));
        assert!(offsets.is_empty(), "what is removed is not held either");
    }
}
