//! What compaction keeps of a batch (KIP-98, KIP-534): a pure decision, batch by batch in the order of the log.

use std::collections::{BTreeMap, HashMap, HashSet};

use dibs_model::Offset;

use crate::{
    batch::{Batch, BatchError, Header, Record, rebuild},
    producers::{Producers, read_marker},
    txn_index::Aborted,
};

/// The newest offset of each key, in the part of the log that was not compacted before.
#[derive(Default)]
pub(crate) struct Newest {
    /// A key is known by a keyed hash of 128 bits.
    offsets: HashMap<u128, Offset>,
    key: [u8; 16],
}

impl Newest {
    /// With a key that nobody can guess, so that nobody can make two record keys look alike.
    pub(crate) fn new(key: [u8; 16]) -> Self {
        Newest { offsets: HashMap::new(), key }
    }

    fn hash(&self, key: &[u8]) -> u128 {
        use siphasher::sip128::{Hasher128, SipHasher13};
        let mut hasher = SipHasher13::new_with_key(&self.key);
        std::hash::Hasher::write(&mut hasher, key);
        hasher.finish128().as_u128()
    }

    fn put(&mut self, key: &[u8], offset: Offset) {
        let hash = self.hash(key);
        self.offsets.insert(hash, offset);
    }

    fn is_newest(&self, key: &[u8], offset: Offset) -> bool {
        self.offsets.get(&self.hash(key)).is_none_or(|newest| offset >= *newest)
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Takes the keys of a batch that counts.
    pub(crate) fn take(&mut self, batch: &Batch<'_>, buffer: &mut Vec<u8>) {
        // A batch that cannot be unpacked is kept whole, and says nothing of its keys.
        for record in batch.records_in(buffer).into_iter().flatten().flatten() {
            if let Some(key) = record.key {
                self.put(key, record.offset);
            }
        }
    }
}

/// Which transactions a walk over the log is in.
pub(crate) struct Transactions {
    /// Aborted ones whose first record is still to come, by its offset.
    coming: BTreeMap<Offset, Vec<Aborted>>,
    /// Aborted ones by producer, and whether any batch of theirs is still there.
    aborted: HashMap<i64, (Aborted, bool)>,
    /// Producers of committed ones of which a batch is still there.
    committed: HashSet<i64>,
    /// Aborted ones that readers still have to know of.
    pub(crate) kept: HashSet<(i64, Offset)>,
}

impl Transactions {
    pub(crate) fn new(aborted: Vec<Aborted>) -> Self {
        let mut coming: BTreeMap<Offset, Vec<Aborted>> = BTreeMap::new();
        for aborted in aborted {
            coming.entry(aborted.first_offset).or_default().push(aborted);
        }
        let (aborted, committed, kept) = (HashMap::new(), HashSet::new(), HashSet::new());
        Transactions { coming, aborted, committed, kept }
    }

    /// Whether the batch means nothing any more: records that were aborted, or the marker of a transaction of
    /// which nothing else is there.
    pub(crate) fn is_void(&mut self, batch: &Batch<'_>) -> bool {
        let (header, id) = (&batch.header, batch.header.producer_id);
        while let Some(entry) = self.coming.first_entry().filter(|e| *e.key() <= header.last_offset()) {
            self.aborted.extend(entry.remove().into_iter().map(|a| (a.producer_id, (a, false))));
        }
        if header.is_control() {
            return match read_marker(batch).map(|marker| marker.commit) {
                None => true,
                Some(true) => !self.committed.remove(&id),
                Some(false) => match self.aborted.remove(&id) {
                    Some((aborted, true)) => {
                        self.kept.insert((id, aborted.last_offset));
                        false
                    }
                    _ => true,
                },
            };
        }
        if !header.is_transactional() {
            return false;
        }
        match self.aborted.get_mut(&id).filter(|(aborted, _)| header.base_offset < aborted.last_offset) {
            Some((_, seen)) => {
                *seen = true;
                true
            }
            None => {
                self.committed.insert(id);
                false
            }
        }
    }
}

/// What becomes of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept,
    Changed(Vec<u8>),
    Gone,
}

/// One round of compaction.
pub(crate) struct Round<'a> {
    pub(crate) newest: &'a Newest,
    pub(crate) transactions: Transactions,
    /// As of now: the last batch of each stays, even if it is empty, and with it sequence and epoch.
    pub(crate) producers: &'a Producers,
    pub(crate) now: i64,
    pub(crate) delete_retention_ms: i64,
}

impl Round<'_> {
    /// Decides on the next batch.
    pub(crate) fn next(&mut self, batch: &Batch<'_>, buffer: &mut Vec<u8>) -> Fate {
        let header = &batch.header;
        let void = self.transactions.is_void(batch);
        let horizon = header.delete_horizon();
        let past = horizon.is_some_and(|horizon| horizon <= self.now);
        let all_go = void && (!header.is_control() || past);
        let Ok(records) = batch.records_in(buffer).and_then(|r| r.collect::<Result<Vec<_>, _>>()) else {
            return Fate::Kept;
        };
        let keep = |record: &&Record<'_>| {
            let newest = record.key.is_some_and(|key| self.newest.is_newest(key, record.offset));
            header.is_control() || (newest && (record.value.is_some() || !past))
        };
        let kept: Vec<_> = if all_go { Vec::new() } else { records.iter().filter(keep).collect() };
        if kept.is_empty() && (!self.is_last_of_producer(batch) || header.producer_id < 0) {
            return Fate::Gone;
        }
        let tombstones = !header.is_control() && kept.iter().any(|record| record.value.is_none());
        let waits = tombstones || (void && header.is_control());
        let set_horizon = waits && horizon.is_none() && !kept.is_empty();
        if kept.len() == records.len() && !set_horizon {
            return Fate::Kept;
        }
        let horizon = horizon.or(set_horizon.then(|| self.now.saturating_add(self.delete_retention_ms)));
        rewritten(batch, &kept, horizon).map_or(Fate::Kept, Fate::Changed)
    }

    fn is_last_of_producer(&self, batch: &Batch<'_>) -> bool {
        let header = &batch.header;
        self.producers.known.get(&header.producer_id).is_some_and(|producer| match producer.batches.back() {
            Some(last) => last.last_offset == header.last_offset(),
            None => header.is_control() && header.producer_epoch == producer.epoch,
        })
    }
}

fn rewritten(batch: &Batch<'_>, kept: &[&Record<'_>], horizon: Option<i64>) -> Result<Vec<u8>, BatchError> {
    let mut headers: Vec<Header<'_>> = Vec::new();
    rebuild(batch, horizon, kept.len(), |put| {
        for record in kept {
            headers.clear();
            headers.extend(record.headers.iter());
            put(record, &headers);
        }
    })
}
