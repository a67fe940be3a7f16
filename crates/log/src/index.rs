//! The sparse indexes beside a segment, in Kafka's layouts. They only speed reads up: every entry can be made
//! again from the segment, and a missing one costs a longer walk.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::*},
};

use dibs_model::Offset;

use crate::storage::File;

/// What an index holds, sorted by [`Entry::key`].
pub(crate) trait Entry: Copy + PartialEq {
    /// Bytes of an entry.
    const SIZE: usize;
    /// Reads an entry; offsets are written relative to the segment's base.
    fn decode(bytes: &[u8], base: Offset) -> Self;
    /// Appends an entry.
    fn encode(&self, base: Offset, out: &mut Vec<u8>);
    /// Whether `self` may directly follow `before`.
    fn follows(&self, before: &Self) -> bool;
}

/// `.index`: the batch with this last offset begins at this position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetEntry {
    pub(crate) offset: Offset,
    pub(crate) position: u32,
}

impl Entry for OffsetEntry {
    const SIZE: usize = 8;

    fn decode(b: &[u8], base: Offset) -> Self {
        let relative = u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        OffsetEntry {
            offset: base + u64::from(relative),
            position: u32::from_be_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    fn encode(&self, base: Offset, out: &mut Vec<u8>) {
        out.extend_from_slice(&((self.offset - base) as u32).to_be_bytes());
        out.extend_from_slice(&self.position.to_be_bytes());
    }

    fn follows(&self, before: &Self) -> bool {
        self.offset > before.offset && self.position > before.position
    }
}

/// `.timeindex`: no batch up to the one with this last offset has a later timestamp (ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeEntry {
    pub(crate) timestamp: i64,
    pub(crate) offset: Offset,
}

impl Entry for TimeEntry {
    const SIZE: usize = 12;

    fn decode(b: &[u8], base: Offset) -> Self {
        let timestamp = i64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let relative = u32::from_be_bytes([b[8], b[9], b[10], b[11]]);
        TimeEntry { timestamp, offset: base + u64::from(relative) }
    }

    fn encode(&self, base: Offset, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&((self.offset - base) as u32).to_be_bytes());
    }

    fn follows(&self, before: &Self) -> bool {
        self.timestamp > before.timestamp && self.offset > before.offset
    }
}

/// What is known of an index file, which the caller opens. One thread appends while others look things up.
pub(crate) struct Index<E> {
    base: Offset,
    /// Entries that are written. Bytes behind them do not count.
    entries: AtomicU64,
    kind: std::marker::PhantomData<fn() -> E>,
}

impl<E: Entry> Index<E> {
    /// None of the file's entries counts yet; see [`Index::keep`].
    pub(crate) fn new(base: Offset) -> Self {
        Index { base, entries: AtomicU64::new(0), kind: std::marker::PhantomData }
    }

    /// The entries from the start of the file that `good` accepts; `None` if they are not in order. None counts
    /// yet.
    pub(crate) fn sane(&self, file: &dyn File, good: impl Fn(&E) -> bool) -> io::Result<Option<Vec<E>>> {
        let mut bytes = vec![0; file.len()? as usize];
        let n = file.read_at(&mut bytes, 0)?;
        let all = bytes[..n].chunks_exact(E::SIZE).map(|b| E::decode(b, self.base));
        let entries: Vec<E> = all.take_while(good).collect();
        let ordered = entries.windows(2).all(|pair| pair[1].follows(&pair[0]));
        Ok(ordered.then_some(entries))
    }

    /// Lets the first `entries` entries of the file count, and cuts the rest. Says whether there was any.
    pub(crate) fn keep(&self, file: &dyn File, entries: usize) -> io::Result<bool> {
        let len = (entries * E::SIZE) as u64;
        let cut = file.len()? != len;
        if cut {
            file.set_len(len)?;
        }
        self.entries.store(entries as u64, Release);
        Ok(cut)
    }

    /// Number of entries that count.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Acquire)
    }

    /// Appends entries. After an error none of them counts.
    pub(crate) fn append(&self, file: &dyn File, entries: &[E]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(entries.len() * E::SIZE);
        for entry in entries {
            entry.encode(self.base, &mut bytes);
        }
        let count = self.entries.load(Relaxed);
        file.write_at(&bytes, count * E::SIZE as u64)?;
        self.entries.store(count + entries.len() as u64, Release);
        Ok(())
    }

    /// The last entry for which `before` holds; it must hold for a prefix of the entries.
    pub(crate) fn last_where(&self, file: &dyn File, before: impl Fn(&E) -> bool) -> io::Result<Option<E>> {
        let (mut low, mut high) = (0, self.entries.load(Acquire));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let mut bytes = [0; 16];
            if file.read_at(&mut bytes[..E::SIZE], middle * E::SIZE as u64)? < E::SIZE {
                // Shorter than it was: as if the entry had never been made.
                high = middle;
                continue;
            }
            let entry = E::decode(&bytes, self.base);
            if before(&entry) {
                found = Some(entry);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, Storage};

    #[test]
    fn entries_are_found_and_nonsense_is_not_kept() {
        let storage = MemoryStorage::new(0);
        let file = || storage.open("00000000000000000100.index", true).unwrap();
        let index = Index::new(100);
        let entries: Vec<_> =
            (1..50).map(|i| OffsetEntry { offset: 100 + i * 10, position: i as u32 * 4096 }).collect();
        index.append(&*file(), &entries).unwrap();
        for target in 100..700 {
            let expected = entries.iter().rev().find(|e| e.offset <= target).copied();
            assert_eq!(index.last_where(&*file(), |e| e.offset <= target).unwrap(), expected);
        }
        file().write_at(&[0; 8], 20 * 8).unwrap();
        let again = Index::<OffsetEntry>::new(100);
        assert_eq!(again.sane(&*file(), |_| true).unwrap(), None);
        assert_eq!(again.sane(&*file(), |e| e.offset > 100).unwrap().unwrap(), entries[..20]);
        assert!(again.keep(&*file(), 20).unwrap());
        assert_eq!(file().len().unwrap(), 160);
    }

    #[test]
    fn layouts_are_kafkas() {
        let mut out = Vec::new();
        OffsetEntry { offset: 0x1_0000_0005, position: 0x0102_0304 }.encode(0x1_0000_0000, &mut out);
        assert_eq!(out, [0, 0, 0, 5, 1, 2, 3, 4]);
        out.clear();
        TimeEntry { timestamp: 0x0102, offset: 9 }.encode(7, &mut out);
        assert_eq!(out, [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 2]);
    }
}
