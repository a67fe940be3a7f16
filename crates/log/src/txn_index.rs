//! The aborted transactions of a segment, in Kafka's `.txnindex` layout: what a reader of committed records has
//! to leave out.

use std::{io, sync::Arc};

use dibs_model::Offset;

use crate::{
    clean::CLEANED,
    files::{Part, SegmentFiles},
    storage::write_file,
};

/// Bytes of an entry: version, producer, first, last and last stable offset.
const ENTRY_BYTES: usize = 34;
/// The version of the layout.
const VERSION: i16 = 0;

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// The producer's id.
    pub producer_id: i64,
    /// Offset of its first record in the partition.
    pub first_offset: Offset,
    /// Offset of its abort marker.
    pub last_offset: Offset,
    /// The last stable offset when the marker was appended: no later entry is needed for offsets below.
    pub(crate) last_stable_offset: Offset,
}

impl Aborted {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&self.producer_id.to_be_bytes());
        for offset in [self.first_offset, self.last_offset, self.last_stable_offset] {
            out.extend_from_slice(&offset.to_be_bytes());
        }
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let long = |at: usize| {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(long)
        };
        let known = bytes[..2] == VERSION.to_be_bytes();
        known.then(|| Aborted {
            producer_id: long(2) as i64,
            first_offset: long(10),
            last_offset: long(18),
            last_stable_offset: long(26),
        })
    }
}

/// A segment's list, read when it is first asked for.
#[derive(Default)]
pub(crate) struct AbortedList {
    /// The whole truth, once it is there. The file may lack the newest while `unwritten`.
    known: Option<Arc<[Aborted]>>,
    unwritten: bool,
}

impl AbortedList {
    pub(crate) fn get(&mut self, files: &Arc<SegmentFiles>) -> io::Result<Arc<[Aborted]>> {
        if let Some(known) = &self.known {
            return Ok(known.clone());
        }
        let mut bytes = Vec::new();
        match files.get(Part::TxnIndex, false) {
            Ok(file) => {
                file.read_into(&mut bytes, file.len()? as usize, 0)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        let known: Arc<[Aborted]> = entries.iter().map_while(Aborted::decode).collect();
        self.known = Some(known.clone());
        Ok(known)
    }

    /// Adds entries to the list and, if it can, to the file.
    pub(crate) fn add(&mut self, files: &Arc<SegmentFiles>, new: &[Aborted]) -> io::Result<()> {
        let before = self.get(files)?;
        self.known = Some(before.iter().chain(new).copied().collect());
        if self.unwritten {
            return Ok(());
        }
        self.unwritten = true;
        let mut bytes = Vec::with_capacity(new.len() * ENTRY_BYTES);
        new.iter().for_each(|entry| entry.encode(&mut bytes));
        let at = (before.len() * ENTRY_BYTES) as u64;
        let written = files.get(Part::TxnIndex, true).and_then(|file| file.write_at(&bytes, at));
        self.unwritten = written.is_err();
        Ok(())
    }

    /// Keeps the first `kept` entries. They are not touched in the file, so a power cut cannot harm them.
    pub(crate) fn keep(&mut self, files: &Arc<SegmentFiles>, kept: usize) -> io::Result<()> {
        self.known = Some(self.get(files)?[..kept].into());
        match files.get(Part::TxnIndex, false) {
            Ok(file) if file.len()? != (kept * ENTRY_BYTES) as u64 => {
                file.set_len((kept * ENTRY_BYTES) as u64)
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Keeps what `kept` says, durably and in one step. The file under the name is another one then.
    pub(crate) fn replace(
        &mut self,
        files: &Arc<SegmentFiles>,
        kept: impl Fn(&Aborted) -> bool,
    ) -> io::Result<()> {
        let all = self.get(files)?;
        let kept: Arc<[Aborted]> = all.iter().copied().filter(kept).collect();
        if kept.len() == all.len() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        kept.iter().for_each(|entry| entry.encode(&mut bytes));
        let (path, storage) = (files.path(Part::TxnIndex), files.storage());
        let temporary = format!("{path}{CLEANED}");
        write_file(storage, &temporary, &bytes)?;
        storage.rename(&temporary, &path)?;
        self.known = Some(kept);
        storage.sync_dir(files.dir())
    }

    /// Makes the file durable, and complete if it was not.
    pub(crate) fn sync(&mut self, files: &Arc<SegmentFiles>) -> io::Result<()> {
        if self.unwritten {
            self.rewrite(files)?;
        }
        let synced = match files.get(Part::TxnIndex, false) {
            Ok(file) => file.sync_data(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        // What a failed sync was about is durable only if it is written again.
        self.unwritten |= synced.is_err();
        synced
    }

    fn rewrite(&mut self, files: &Arc<SegmentFiles>) -> io::Result<()> {
        self.unwritten = true;
        let mut bytes = Vec::new();
        self.get(files)?.iter().for_each(|entry| entry.encode(&mut bytes));
        let file = files.get(Part::TxnIndex, true)?;
        file.set_len(bytes.len() as u64)?;
        file.write_at(&bytes, 0)?;
        self.unwritten = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        files::OpenFiles,
        storage::{Call, MemoryStorage, Storage},
    };

    #[test]
    fn the_layout_is_kafkas() {
        let entry = Aborted { producer_id: 1, first_offset: 2, last_offset: 3, last_stable_offset: 4 };
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        let expected: Vec<u8> = [0_u64, 1, 2, 3, 4].iter().flat_map(|n| n.to_be_bytes()).collect();
        assert_eq!(bytes, expected[6..]);
        assert_eq!(Aborted::decode(bytes.as_array().unwrap()), Some(entry));
    }

    #[test]
    fn after_a_failed_sync_it_is_written_again() {
        let storage = MemoryStorage::new(0);
        storage.create_dir("t-0").unwrap();
        let files = || {
            let owner = Arc::new(OpenFiles::new(Arc::new(storage.clone()), 9));
            SegmentFiles::new(owner, "t-0".into(), 0)
        };
        let (before, mut list) = (files(), AbortedList::default());
        let entry = Aborted { producer_id: 7, first_offset: 1, last_offset: 6, last_stable_offset: 7 };
        list.add(&before, &[entry]).unwrap();
        ["", "t-0"].iter().for_each(|dir| storage.sync_dir(dir).unwrap());
        storage.fail(Call::Sync, 1, 1, 5);
        list.sync(&before).unwrap_err();
        list.sync(&before).unwrap();
        storage.crash();
        assert_eq!(*AbortedList::default().get(&files()).unwrap(), [entry]);
    }

    #[test]
    fn what_cannot_be_written_counts_and_is_written_later() {
        let storage = MemoryStorage::new(0);
        storage.create_dir("t-0").unwrap();
        let owner = Arc::new(OpenFiles::new(Arc::new(storage.clone()), 9));
        let files = SegmentFiles::new(owner, "t-0".into(), 0);
        let entry =
            |i| Aborted { producer_id: 7, first_offset: i, last_offset: i + 5, last_stable_offset: i };
        let mut list = AbortedList::default();
        assert!(list.get(&files).unwrap().is_empty());
        assert_eq!(storage.list("t-0").unwrap(), [], "no file without an entry");
        list.add(&files, &[entry(1)]).unwrap();
        storage.fail(Call::Write, 1, 1, 28);
        list.add(&files, &[entry(2)]).unwrap();
        list.add(&files, &[entry(3)]).unwrap();
        assert_eq!(*list.get(&files).unwrap(), [entry(1), entry(2), entry(3)]);
        assert_ne!(AbortedList::default().get(&files).unwrap().len(), 3);
        list.sync(&files).unwrap();
        assert_eq!(*AbortedList::default().get(&files).unwrap(), [entry(1), entry(2), entry(3)]);
        list.keep(&files, 2).unwrap();
        assert_eq!(*AbortedList::default().get(&files).unwrap(), [entry(1), entry(2)]);
        list.replace(&files, |entry| entry.first_offset > 1).unwrap();
        let again = SegmentFiles::new(Arc::new(OpenFiles::new(Arc::new(storage), 9)), "t-0".into(), 0);
        assert_eq!(*AbortedList::default().get(&again).unwrap(), [entry(2)]);
    }
}
