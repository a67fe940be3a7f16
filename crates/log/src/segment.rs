//! One segment of a partition: a file of batches and the indexes beside it.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::*},
    },
};

use dibs_model::Offset;

use crate::{
    batch::{Batch, BatchHeader, HEADER_BYTES, LENGTH_OFFSET},
    error::{Damage, ReadError},
    files::{ENDINGS, OpenFiles, Part, SegmentFiles, path},
    index::{Index, OffsetEntry, TimeEntry},
    shutdown::LeftSegment,
    storage::File,
    txn_index::{Aborted, AbortedList},
};

/// Bytes that a walk over batch headers reads at once.
const WALK_BYTES: usize = 4096;

/// Whole batches in a segment's file.
#[derive(Clone)]
pub struct FileRange {
    /// The file, and with [`File::as_fd`] the operating system's.
    pub file: Arc<dyn File>,
    /// Where the first batch begins, in bytes.
    pub position: u64,
    /// Bytes.
    pub length: u64,
    /// All its records are before this offset.
    pub until: Offset,
}

impl fmt::Debug for FileRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}", self.length, self.position)
    }
}

/// A segment. One thread appends; any number read what is committed.
pub(crate) struct Segment {
    dir: Arc<str>,
    /// Offset of its first record or before, and its file name.
    pub(crate) base: Offset,
    files: Arc<SegmentFiles>,
    offsets: Index<OffsetEntry>,
    times: Index<TimeEntry>,
    aborted: Mutex<AbortedList>,
    /// Committed bytes of the log file, always whole batches. Set before the high watermark moves over them.
    size: AtomicU64,
    /// Largest timestamp of the committed batches, in ms; `i64::MIN` without any.
    max_timestamp: AtomicI64,
    /// The first batch's largest timestamp, in ms; `i64::MIN` while it is not known.
    first_timestamp: AtomicI64,
    /// The last run has said how long the log file is, and nobody has looked yet.
    unverified: AtomicBool,
}

impl Segment {
    /// A segment, of which nothing counts as committed yet. Touches no file.
    pub(crate) fn new(owner: &Arc<OpenFiles>, dir: &Arc<str>, base: Offset) -> Segment {
        Segment {
            dir: dir.clone(),
            base,
            files: SegmentFiles::new(owner.clone(), dir.clone(), base),
            offsets: Index::new(base),
            times: Index::new(base),
            aborted: Mutex::default(),
            size: AtomicU64::new(0),
            max_timestamp: AtomicI64::new(i64::MIN),
            first_timestamp: AtomicI64::new(i64::MIN),
            unverified: AtomicBool::new(false),
        }
    }

    /// A segment as a clean shutdown has left it. Touches no file.
    pub(crate) fn left(owner: &Arc<OpenFiles>, dir: &Arc<str>, left: &LeftSegment) -> Segment {
        let segment = Segment::new(owner, dir, left.base);
        segment.offsets.trust(left.offsets);
        segment.times.trust(left.times);
        segment.first_timestamp.store(left.first_timestamp, Release);
        segment.publish(left.size, left.max_timestamp, None);
        segment.unverified.store(true, Release);
        segment
    }

    /// What the files hold, for the next start.
    pub(crate) fn leave_behind(&self) -> LeftSegment {
        LeftSegment {
            base: self.base,
            size: self.size(),
            max_timestamp: self.max_timestamp(),
            first_timestamp: self.first_timestamp.load(Acquire),
            offsets: self.offsets.entries(),
            times: self.times.entries(),
        }
    }

    /// Makes the files, empty; a roll that failed half-way may have left others.
    pub(crate) fn create(&self) -> io::Result<()> {
        for part in [Part::Log, Part::Index, Part::TimeIndex] {
            let file = self.files.get(part, true)?;
            if !file.is_empty()? {
                file.set_len(0)?;
            }
        }
        let txn_index = self.files.path(Part::TxnIndex);
        match self.files.storage().remove(&txn_index) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The log file.
    pub(crate) fn log(&self) -> io::Result<Arc<dyn File>> {
        let log = self.files.get(Part::Log, false)?;
        if self.unverified.load(Acquire) {
            let len = log.len()?;
            if len != self.size() {
                let what = format!("{len} bytes, where a clean shutdown has left {}", self.size());
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            self.unverified.store(false, Release);
        }
        Ok(log)
    }

    fn index_file(&self) -> io::Result<Arc<dyn File>> {
        self.files.get(Part::Index, true)
    }

    fn times_file(&self) -> io::Result<Arc<dyn File>> {
        self.files.get(Part::TimeIndex, true)
    }

    /// Committed bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Acquire)
    }

    /// Largest committed timestamp, in ms.
    pub(crate) fn max_timestamp(&self) -> i64 {
        self.max_timestamp.load(Acquire)
    }

    /// The first batch's largest timestamp, in ms.
    pub(crate) fn first_timestamp(&self) -> Result<Option<i64>, ReadError> {
        let known = self.first_timestamp.load(Acquire);
        if known != i64::MIN || self.size() == 0 {
            return Ok((known != i64::MIN).then_some(known));
        }
        let found = self.walk(0, self.base, self.size(), &|_| true)?;
        let time = found.map(|(_, header)| header.max_timestamp);
        self.first_timestamp.store(time.unwrap_or(i64::MIN), Release);
        Ok(time)
    }

    /// Lets readers see the file up to `size`, in which the last bytes begin with a batch of time `first`.
    pub(crate) fn publish(&self, size: u64, max_timestamp: i64, first: Option<i64>) {
        if let Some(first) = first
            && self.size() == 0
        {
            self.first_timestamp.store(first, Release);
        }
        self.max_timestamp.fetch_max(max_timestamp, AcqRel);
        self.size.store(size, Release);
    }

    /// The log file's path in the data folder.
    pub(crate) fn log_path(&self) -> String {
        self.files.path(Part::Log)
    }

    /// Entries of the offset and the time index that are trusted if `good`, after a look at their order. `None`
    /// if one of them is not in order.
    pub(crate) fn sane_indexes(
        &self,
        good_offset: impl Fn(&OffsetEntry) -> bool,
        good_time: impl Fn(&TimeEntry) -> bool,
    ) -> io::Result<Option<(Vec<OffsetEntry>, Vec<TimeEntry>)>> {
        let offsets = self.offsets.sane(&*self.index_file()?, good_offset)?;
        let times = self.times.sane(&*self.times_file()?, good_time)?;
        Ok(offsets.zip(times))
    }

    /// Lets so many entries of the indexes count, and cuts the rest.
    pub(crate) fn keep_indexes(&self, offsets: usize, times: usize) -> io::Result<()> {
        self.offsets.keep(&*self.index_file()?, offsets)?;
        self.times.keep(&*self.times_file()?, times).map(drop)
    }

    pub(crate) fn append_offsets(&self, entries: &[OffsetEntry]) -> io::Result<()> {
        if entries.is_empty() { Ok(()) } else { self.offsets.append(&*self.index_file()?, entries) }
    }

    pub(crate) fn append_times(&self, entries: &[TimeEntry]) -> io::Result<()> {
        if entries.is_empty() { Ok(()) } else { self.times.append(&*self.times_file()?, entries) }
    }

    /// Makes the indexes durable.
    pub(crate) fn sync_indexes(&self) -> io::Result<()> {
        self.index_file()?.sync_data()?;
        self.times_file()?.sync_data()?;
        self.sync_aborted()
    }

    /// Makes the list of aborted transactions durable.
    pub(crate) fn sync_aborted(&self) -> io::Result<()> {
        self.aborted().sync(&self.files)
    }

    /// Transactions whose abort marker is in this segment, in the order of the markers.
    pub(crate) fn aborted_transactions(&self) -> io::Result<Arc<[Aborted]>> {
        self.aborted().get(&self.files)
    }

    /// Adds transactions whose abort marker is in this segment. They count even if the file cannot be written.
    pub(crate) fn add_aborted(&self, new: &[Aborted]) -> io::Result<()> {
        if new.is_empty() { Ok(()) } else { self.aborted().add(&self.files, new) }
    }

    /// Forgets aborted transactions that end at `from` or later; a scan will find them again. What was durable
    /// before a power cut comes first, in order, and each has its marker in the log (of `len` bytes); behind it
    /// may stand anything, zeros and halves of entries too.
    pub(crate) fn keep_aborted_before(&self, from: Offset, len: u64) -> io::Result<()> {
        let (all, mut last) = (self.aborted_transactions()?, None);
        let mut kept = 0;
        for entry in &*all {
            let offset = entry.last_offset;
            let in_order = entry.first_offset < offset && last.is_none_or(|last| offset > last);
            if !in_order || offset >= from || offset < self.base {
                break;
            }
            match self.batch_ending_at(offset, len) {
                Ok(Some(m)) if m.is_control() && m.producer_id == entry.producer_id => {}
                Err(ReadError::Io(e)) => return Err(e),
                _ => break,
            }
            last = Some(offset);
            kept += 1;
        }
        self.aborted().keep(&self.files, kept)
    }

    /// Forgets aborted transactions that `kept` does not want, durably and in one step.
    pub(crate) fn replace_aborted(&self, kept: impl Fn(&Aborted) -> bool) -> io::Result<()> {
        self.aborted().replace(&self.files, kept)
    }

    fn aborted(&self) -> MutexGuard<'_, AbortedList> {
        self.aborted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the files. Whoever reads them still may.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.files.leave();
        for ending in ENDINGS {
            match self.files.storage().remove(&path(&self.dir, self.base, ending)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// The names will be another segment's. Whoever reads the files still may.
    pub(crate) fn leave(&self) {
        self.files.leave();
    }

    /// Makes the log file of another segment's content, which stands under a name of its own, this one's, and
    /// leaves no index of the old one. After a crash it is the old log or the new one, and indexes are made
    /// again.
    pub(crate) fn swap_in(&self, cleaned: &str) -> io::Result<()> {
        let storage = self.files.storage();
        for part in [Part::Index, Part::TimeIndex] {
            match storage.remove(&self.files.path(part)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        storage.sync_dir(&self.dir)?;
        storage.rename(cleaned, &self.log_path())?;
        storage.sync_dir(&self.dir)
    }

    /// Appends whole batches to `out`, from the first one that ends at `from` or later: at least one, and no
    /// more than `max_bytes` otherwise, none that begins at `until` or later. Says how many bytes.
    pub(crate) fn read(
        &self,
        from: Offset,
        until: Offset,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, ReadError> {
        let size = self.size();
        let Some((position, first)) = self.locate(from, size, |h| h.last_offset() >= from)? else {
            return Ok(0);
        };
        if first.base_offset >= until {
            return Ok(0);
        }
        let wanted = (max_bytes.max(first.size()) as u64).min(size - position) as usize;
        let start = out.len();
        self.log()?.read_into(out, wanted, position)?;
        let whole = whole_batches(&out[start..], until);
        out.truncate(start + whole);
        if whole == 0 {
            return Err(self.damage(position, from, "the file ends inside a batch").into());
        }
        Ok(whole)
    }

    /// Like [`Segment::read`], but says where in the file the bytes are instead of reading them.
    pub(crate) fn range(
        &self,
        from: Offset,
        until: Offset,
        max_bytes: usize,
    ) -> Result<Option<FileRange>, ReadError> {
        let size = self.size();
        let Some((position, first)) = self.locate(from, size, |h| h.last_offset() >= from)? else {
            return Ok(None);
        };
        if first.base_offset >= until {
            return Ok(None);
        }
        let limit = position + max_bytes.max(first.size()) as u64;
        let end = match self.locate(until, size, |h| h.base_offset >= until)? {
            Some((end, _)) => end,
            None => size,
        };
        let (end, until) = match limit >= end {
            true => (end, until),
            false => self.boundary(position, limit, size)?.unwrap_or((size, until)),
        };
        Ok(Some(FileRange { file: self.log()?, position, length: end - position, until }))
    }

    /// The last end of a batch that is not behind `limit`, and the offset there; `None` at the end of the log. A
    /// batch begins at `position`.
    fn boundary(&self, position: u64, limit: u64, size: u64) -> Result<Option<(u64, Offset)>, ReadError> {
        let near = self.near(|e| u64::from(e.position) <= limit)?.filter(|&near| near > position);
        let begin = near.unwrap_or(position);
        let over = |begin| {
            let at = std::cell::Cell::new(begin);
            let found = self.walk(begin, Offset::MAX, size, &|header| {
                at.set(at.get() + header.size() as u64);
                at.get() > limit
            })?;
            Ok(found.map(|(position, header)| (position, header.base_offset)))
        };
        match over(begin) {
            // As in `locate`.
            Err(ReadError::Damaged(_)) if begin > position => over(position),
            done => done,
        }
    }

    /// The first record from the offset `from` on that is not older than `timestamp` (ms), as offset and time.
    pub(crate) fn find_time(&self, timestamp: i64, from: Offset) -> Result<Option<(Offset, i64)>, ReadError> {
        let before = match self.times.entries() {
            0 => None,
            _ => self.times.last_where(&*self.times_file()?, |e| e.timestamp < timestamp)?,
        };
        let mut next = before.map_or(self.base, |e| e.offset).max(from);
        let (mut bytes, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let late = |h: &BatchHeader| h.last_offset() >= next && h.max_timestamp >= timestamp;
            let Some((position, header)) = self.locate(next, self.size(), late)? else {
                return Ok(None);
            };
            next = header.next_offset();
            if header.records_count == 0 {
                continue;
            }
            bytes.clear();
            if !(header.is_log_append_time() && header.is_dense()) {
                self.log()?.read_into(&mut bytes, header.size(), position)?;
                let batch = Batch::parse(&bytes)
                    .map_err(|e| self.damage(position, header.base_offset, &e.to_string()))?;
                match batch.find_time(timestamp, from, &mut buffer) {
                    Ok(None) => continue,
                    Ok(found) => return Ok(found),
                    // Its producer wrote what nobody can unpack: then the batch is all there is to point at.
                    Err(_) => {}
                }
            }
            return Ok(Some((header.base_offset.max(from), header.max_timestamp)));
        }
    }

    /// The largest timestamp from the offset `from` on.
    pub(crate) fn max_timestamp_from(&self, from: Offset) -> Result<i64, ReadError> {
        let size = self.size();
        let Some((position, first)) = self.locate(from, size, |h| h.last_offset() >= from)? else {
            return Ok(i64::MIN);
        };
        let mut max = i64::MIN;
        if first.base_offset < from && !first.is_log_append_time() {
            let (mut bytes, mut buffer) = (Vec::new(), Vec::new());
            self.log()?.read_into(&mut bytes, first.size(), position)?;
            let batch = Batch::parse(&bytes).ok();
            let records = batch.as_ref().and_then(|batch| batch.records_in(&mut buffer).ok());
            let late = records.into_iter().flatten().flatten().filter(|record| record.offset >= from);
            max = late.map(|record| record.timestamp).max().unwrap_or(max);
        } else if first.records_count > 0 {
            max = first.max_timestamp;
        }
        let largest = std::cell::Cell::new(max);
        self.locate(first.next_offset(), size, |header| {
            if header.base_offset >= first.next_offset() && header.records_count > 0 {
                largest.set(largest.get().max(header.max_timestamp));
            }
            false
        })?;
        Ok(largest.get())
    }

    /// The position that the index gives for the last entry for which `before` holds.
    fn near(&self, before: impl Fn(&OffsetEntry) -> bool) -> Result<Option<u64>, ReadError> {
        if self.offsets.entries() == 0 {
            return Ok(None);
        }
        let entry = self.offsets.last_where(&*self.index_file()?, before)?;
        Ok(entry.map(|e| u64::from(e.position)))
    }

    /// Walks to the first batch that `found` accepts, starting at or before the one that holds `from`.
    fn locate(
        &self,
        from: Offset,
        size: u64,
        found: impl Fn(&BatchHeader) -> bool,
    ) -> Result<Option<(u64, BatchHeader)>, ReadError> {
        let near = self.near(|e| e.offset <= from)?.unwrap_or(0);
        match self.walk(near, from, size, &found) {
            // An entry that leads astray costs a walk from the start, no more.
            Err(ReadError::Damaged(_)) if near > 0 => self.walk(0, from, size, &found),
            done => done,
        }
    }

    fn walk(
        &self,
        mut position: u64,
        from: Offset,
        size: u64,
        found: &impl Fn(&BatchHeader) -> bool,
    ) -> Result<Option<(u64, BatchHeader)>, ReadError> {
        if position >= size {
            return Ok(None);
        }
        let log = self.log().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => self.damage(0, from, "the file is missing").into(),
            io::ErrorKind::InvalidData => self.damage(self.size(), from, &e.to_string()).into(),
            _ => ReadError::Io(e),
        })?;
        let begin = position;
        let mut window = [0; WALK_BYTES];
        let (mut at, mut have) = (position, 0);
        let mut expected = self.base;
        while position < size {
            let mut skip = (position - at) as usize;
            if skip + HEADER_BYTES > have {
                (at, skip) = (position, 0);
                have = log.read_at(&mut window, position)?;
            }
            let header = BatchHeader::parse(&window[skip..have])
                .map_err(|e| self.damage(position, expected, &e.to_string()))?;
            let astray = position == begin && begin > 0 && header.base_offset > from;
            if header.base_offset < expected || astray {
                return Err(self.damage(position, expected, "another offset").into());
            }
            if found(&header) {
                return Ok(Some((position, header)));
            }
            expected = header.next_offset();
            position += header.size() as u64;
        }
        if position > size {
            return Err(self.damage(position, expected, "a batch longer than the file").into());
        }
        Ok(None)
    }

    /// The batch whose last offset this is, in the first `len` bytes.
    pub(crate) fn batch_ending_at(&self, offset: Offset, len: u64) -> Result<Option<BatchHeader>, ReadError> {
        let found = self.locate(offset, len, |header| header.last_offset() >= offset)?;
        Ok(found.map(|(_, header)| header).filter(|header| header.last_offset() == offset))
    }

    pub(crate) fn damage(&self, position: u64, offset: Offset, what: &str) -> Damage {
        Damage { file: self.log_path(), position, offset, what: what.to_owned() }
    }
}

/// Length of the whole batches at the start of bytes that begin with a batch, up to one that begins at `until`
/// or later.
fn whole_batches(bytes: &[u8], until: Offset) -> usize {
    let mut at = 0;
    while let Some(start) = bytes[at..].first_chunk::<LENGTH_OFFSET>() {
        let base = u64::from_be_bytes([
            start[0], start[1], start[2], start[3], start[4], start[5], start[6], start[7],
        ]);
        let length = u32::from_be_bytes([start[8], start[9], start[10], start[11]]) as usize;
        if base >= until || length == 0 || length + LENGTH_OFFSET > bytes.len() - at {
            break;
        }
        at += length + LENGTH_OFFSET;
    }
    at
}
