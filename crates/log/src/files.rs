//! The files of segments, opened when they are needed and closed when too many are.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::*},
    },
};

use dibs_model::Offset;

use crate::storage::{File, Storage};

/// Endings of a segment's files, by [`Part`].
pub(crate) const ENDINGS: [&str; 4] = ["log", "index", "timeindex", "txnindex"];

/// One of a segment's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Log,
    Index,
    TimeIndex,
    TxnIndex,
}

/// Which segments have open files, in the order of their opening.
pub(crate) struct OpenFiles {
    pub(crate) storage: Arc<dyn Storage>,
    /// How many segments may have open files at a time, at least 1. More may while many are in use.
    max: usize,
    open: Mutex<VecDeque<Weak<SegmentFiles>>>,
}

impl OpenFiles {
    pub(crate) fn new(storage: Arc<dyn Storage>, max: usize) -> Self {
        OpenFiles { storage, max: max.max(1), open: Mutex::new(VecDeque::new()) }
    }

    /// Remembers a segment that has opened its first file, and closes those of another that nobody has used
    /// since it was looked at last.
    fn opened(&self, files: &Arc<SegmentFiles>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(Arc::downgrade(files));
        let mut closing = Vec::new();
        for _ in 0..open.len() {
            if open.len() <= self.max {
                break;
            }
            let Some(oldest) = open.pop_front() else { break };
            match oldest.upgrade() {
                None => {}
                Some(other) if Arc::ptr_eq(&other, files) || other.used.swap(false, Relaxed) => {
                    open.push_back(oldest);
                }
                Some(other) => closing.push(other),
            }
        }
        drop(open);
        // Not under the lock: whoever opens holds a segment's lock first.
        for other in closing {
            other.close();
        }
    }
}

/// The files of one segment.
pub(crate) struct SegmentFiles {
    owner: Arc<OpenFiles>,
    dir: Arc<str>,
    base: Offset,
    slots: Mutex<Slots>,
    /// Since eviction last looked.
    used: AtomicBool,
}

#[derive(Default)]
struct Slots {
    files: [Option<Arc<dyn File>>; 4],
    /// The names are other files' now, or nobody's. What is open may be read on.
    gone: bool,
}

impl SegmentFiles {
    pub(crate) fn new(owner: Arc<OpenFiles>, dir: Arc<str>, base: Offset) -> Arc<Self> {
        Arc::new(SegmentFiles { owner, dir, base, slots: Mutex::default(), used: AtomicBool::new(false) })
    }

    /// A file, opened if need be. `create` makes one that is missing.
    pub(crate) fn get(self: &Arc<Self>, part: Part, create: bool) -> io::Result<Arc<dyn File>> {
        self.used.store(true, Relaxed);
        let mut slots = self.slots();
        if let Some(file) = &slots.files[part as usize] {
            return Ok(file.clone());
        }
        if slots.gone {
            return Err(io::ErrorKind::StaleNetworkFileHandle.into());
        }
        let file: Arc<dyn File> = self.owner.storage.open(&self.path(part), create)?.into();
        let first = slots.files.iter().all(Option::is_none);
        slots.files[part as usize] = Some(file.clone());
        drop(slots);
        if first {
            self.owner.opened(self);
        }
        Ok(file)
    }

    /// Whether an error of [`SegmentFiles::get`] says that the segment was deleted or replaced meanwhile.
    pub(crate) fn is_gone(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::StaleNetworkFileHandle
    }

    /// The names will be other files', or nobody's. Open files stay open for whoever reads them.
    pub(crate) fn leave(&self) {
        let mut slots = self.slots();
        slots.gone = true;
        slots.files = Default::default();
    }

    /// A file's path in the data folder.
    pub(crate) fn path(&self, part: Part) -> String {
        path(&self.dir, self.base, ENDINGS[part as usize])
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.owner.storage
    }

    fn close(&self) {
        self.slots().files = Default::default();
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path of a segment's file.
pub(crate) fn path(dir: &str, base: Offset, ending: &str) -> String {
    format!("{dir}/{base:020}.{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn few_segments_have_open_files_and_those_in_use_stay_open() {
        let storage = Arc::new(MemoryStorage::new(0));
        storage.create_dir("t-0").unwrap();
        let owner = Arc::new(OpenFiles::new(storage, 3));
        let all: Vec<_> = (0..10).map(|i| SegmentFiles::new(owner.clone(), "t-0".into(), i)).collect();
        let is_open = |i: usize| all[i].slots().files.iter().any(Option::is_some);
        for round in 0..3 {
            for i in 1..10 {
                all[0].get(Part::Log, true).unwrap();
                let file = all[i].get(Part::Log, true).unwrap();
                if round == 0 {
                    file.write_at(&[i as u8], 0).unwrap();
                }
                let mut byte = [0];
                assert_eq!(file.read_at(&mut byte, 0).unwrap(), 1);
                assert_eq!(byte, [i as u8]);
                assert!(is_open(0) && is_open(i));
                assert!((0..10).filter(|i| is_open(*i)).count() <= 4);
            }
        }
        let kept = all[5].get(Part::Log, false).unwrap();
        all[5].leave();
        assert!(SegmentFiles::is_gone(&all[5].get(Part::Log, false).err().unwrap()));
        assert_eq!(kept.len().unwrap(), 1);
    }
}
