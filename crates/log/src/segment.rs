//! One segment of a partition: a file of batches and the two indexes beside it.

use std::{
    io,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::*},
};

use dibs_model::Offset;

use crate::{
    GROUP_BYTES,
    batch::{Batch, BatchError, BatchHeader, HEADER_BYTES, LENGTH_OFFSET},
    error::{Damage, ReadError},
    index::{Index, OffsetEntry, TimeEntry},
    storage::{File, Storage},
};

/// Endings of a segment's files, the log first.
pub(crate) const ENDINGS: [&str; 3] = ["log", "index", "timeindex"];
/// Bytes that a walk over batch headers reads at once.
const WALK_BYTES: usize = 4096;
/// Bytes that a scan reads at once.
const SCAN_BYTES: usize = 1 << 20;

/// A segment. One thread appends; any number read what is committed.
pub(crate) struct Segment {
    dir: String,
    /// Offset of its first record, and its file name.
    pub(crate) base: Offset,
    pub(crate) log: Box<dyn File>,
    pub(crate) offsets: Index<OffsetEntry>,
    pub(crate) times: Index<TimeEntry>,
    /// Committed bytes of the log file, always whole batches. Set before the high watermark moves over them.
    size: AtomicU64,
    /// Largest timestamp of the committed batches, in ms; `i64::MIN` without any.
    max_timestamp: AtomicI64,
}

impl Segment {
    /// Opens a segment's files, and makes those that are missing. Nothing counts as committed yet.
    pub(crate) fn open(storage: &dyn Storage, dir: &str, base: Offset) -> io::Result<Segment> {
        let open = |ending| storage.open(&path(dir, base, ending), true);
        Ok(Segment {
            dir: dir.to_owned(),
            base,
            log: open("log")?,
            offsets: Index::new(open("index")?, base),
            times: Index::new(open("timeindex")?, base),
            size: AtomicU64::new(0),
            max_timestamp: AtomicI64::new(i64::MIN),
        })
    }

    /// Committed bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Acquire)
    }

    /// Largest committed timestamp, in ms.
    pub(crate) fn max_timestamp(&self) -> i64 {
        self.max_timestamp.load(Acquire)
    }

    /// Lets readers see the file up to `size`.
    pub(crate) fn publish(&self, size: u64, max_timestamp: i64) {
        self.max_timestamp.fetch_max(max_timestamp, AcqRel);
        self.size.store(size, Release);
    }

    /// The log file's path in the data folder.
    pub(crate) fn log_path(&self) -> String {
        path(&self.dir, self.base, "log")
    }

    /// Makes the indexes durable.
    pub(crate) fn sync_indexes(&self) -> io::Result<()> {
        self.offsets.sync()?;
        self.times.sync()
    }

    /// Empties the files, which a roll that failed half-way may have left behind.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.log.set_len(0)?;
        self.offsets.keep(0)?;
        self.times.keep(0).map(drop)
    }

    /// Removes the files. Whoever reads them still may.
    pub(crate) fn remove(&self, storage: &dyn Storage) -> io::Result<()> {
        ENDINGS.iter().try_for_each(|ending| storage.remove(&path(&self.dir, self.base, ending)))
    }

    /// Appends whole batches to `out`, from the one that holds `from` (which must be committed here): at least
    /// one, and no more than `max_bytes` otherwise. Says how many bytes.
    pub(crate) fn read(&self, from: Offset, max_bytes: usize, out: &mut Vec<u8>) -> Result<usize, ReadError> {
        let size = self.size();
        let (position, first) = self.locate(from, size, |header| header.last_offset() >= from)?;
        let wanted = (max_bytes.max(first.size()) as u64).min(size - position) as usize;
        let start = out.len();
        out.resize(start + wanted, 0);
        let n = self.log.read_at(&mut out[start..], position)?;
        let whole = whole_batches(&out[start..start + n]);
        out.truncate(start + whole);
        if whole == 0 {
            return Err(self.damage(position, from, "the file ends inside a batch").into());
        }
        Ok(whole)
    }

    /// The first batch whose timestamp is not before `timestamp` (ms).
    pub(crate) fn find_time(&self, timestamp: i64) -> Result<BatchHeader, ReadError> {
        let before = self.times.last_where(|e| e.timestamp < timestamp)?;
        let from = before.map_or(self.base, |e| e.offset);
        Ok(self.locate(from, self.size(), |header| header.max_timestamp >= timestamp)?.1)
    }

    /// Walks to the first batch that `found` accepts, starting at or before the one that holds `from`.
    fn locate(
        &self,
        from: Offset,
        size: u64,
        found: impl Fn(&BatchHeader) -> bool,
    ) -> Result<(u64, BatchHeader), ReadError> {
        let near = self.offsets.last_where(|e| e.offset <= from)?.map_or(0, |e| u64::from(e.position));
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
    ) -> Result<(u64, BatchHeader), ReadError> {
        let mut window = [0; WALK_BYTES];
        let (mut at, mut have) = (position, 0);
        let mut expected = None;
        while position < size {
            let mut skip = (position - at) as usize;
            if skip + HEADER_BYTES > have {
                (at, skip) = (position, 0);
                have = self.log.read_at(&mut window, position)?;
            }
            let header = BatchHeader::parse(&window[skip..have])
                .map_err(|e| self.damage(position, expected.unwrap_or(from), &e.to_string()))?;
            let fits = expected.is_none_or(|e| e == header.base_offset) && header.base_offset >= self.base;
            if !fits || (expected.is_none() && header.base_offset > from) {
                return Err(self.damage(position, expected.unwrap_or(from), "another offset").into());
            }
            if found(&header) {
                return Ok((position, header));
            }
            expected = Some(header.next_offset());
            position += header.size() as u64;
        }
        Err(self.damage(size, from, "no such batch in the committed part").into())
    }

    pub(crate) fn damage(&self, position: u64, offset: Offset, what: &str) -> Damage {
        Damage { file: self.log_path(), position, offset, what: what.to_owned() }
    }
}

/// The path of a segment's file.
pub(crate) fn path(dir: &str, base: Offset, ending: &str) -> String {
    format!("{dir}/{base:020}.{ending}")
}

/// Length of the whole batches at the start of bytes that begin with a batch.
fn whole_batches(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(length) = bytes[at..].get(8..LENGTH_OFFSET) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length == 0 || length + LENGTH_OFFSET > bytes.len() - at {
            break;
        }
        at += length + LENGTH_OFFSET;
    }
    at
}

/// Decides which batches of a segment get index entries, by Kafka's rule.
pub(crate) struct Indexer {
    /// Bytes between index entries.
    interval: u64,
    /// Bytes since the batch of the last entry, that batch included.
    since: u64,
    /// Largest timestamp so far, and the last offset of the first batch that has it.
    max: Option<TimeEntry>,
    /// The last time entry made.
    last: Option<TimeEntry>,
    /// Largest timestamp among the batches taken, in ms.
    seen: i64,
    offsets: Vec<OffsetEntry>,
    times: Vec<TimeEntry>,
}

impl Indexer {
    /// For a segment whose last time entry is `last`; the next batch is the first one, or the one of the last
    /// offset entry.
    pub(crate) fn new(interval: u64, last: Option<TimeEntry>) -> Self {
        Indexer {
            interval,
            since: 0,
            max: last,
            last,
            seen: i64::MIN,
            offsets: Vec::new(),
            times: Vec::new(),
        }
    }

    /// Takes a batch that begins at `position`.
    pub(crate) fn add(&mut self, position: u64, size: u64, last_offset: Offset, timestamp: i64) {
        self.seen = self.seen.max(timestamp);
        if self.max.is_none_or(|max| timestamp > max.timestamp) {
            self.max = Some(TimeEntry { timestamp, offset: last_offset });
        }
        if self.since > self.interval {
            self.offsets.push(OffsetEntry { offset: last_offset, position: position as u32 });
            self.time_entry();
            self.since = 0;
        }
        self.since += size;
    }

    fn time_entry(&mut self) {
        if let Some(max) = self.max
            && self.last.is_none_or(|last| max.timestamp > last.timestamp)
        {
            self.times.push(max);
            self.last = Some(max);
        }
    }

    /// Writes new entries. One that cannot be written is forgotten: the index is then sparser, not wrong.
    /// Returns how many offset entries there were.
    pub(crate) fn flush(&mut self, segment: &Segment) -> io::Result<usize> {
        let count = self.offsets.len();
        let done = segment.offsets.append(&self.offsets).and(segment.times.append(&self.times));
        self.offsets.clear();
        self.times.clear();
        done.map(|()| count)
    }

    /// Writes what is left when a segment is rolled or closed: its largest timestamp ends the time index.
    pub(crate) fn finish(&mut self, segment: &Segment) -> io::Result<()> {
        self.time_entry();
        self.flush(segment).map(drop)
    }

    /// Whether the time entry that this began with is one of the batches': time only grows, so the last batches
    /// have the largest.
    pub(crate) fn times_fit(&self) -> bool {
        self.max_timestamp() == self.seen
    }

    /// Largest timestamp so far, in ms.
    pub(crate) fn max_timestamp(&self) -> i64 {
        self.max.map_or(i64::MIN, |max| max.timestamp)
    }
}

/// Reads a log file batch by batch and checks every CRC.
pub(crate) struct Scanner<'f> {
    file: &'f dyn File,
    len: u64,
    /// Where the next batch begins.
    pub(crate) position: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'f> Scanner<'f> {
    pub(crate) fn new(file: &'f dyn File, len: u64, position: u64) -> Self {
        Scanner { file, len, position, window: Vec::new(), window_at: position }
    }

    /// The next batch's position and header; `None` at the end. After an error the position stands still.
    pub(crate) fn next(&mut self) -> io::Result<Option<Result<(u64, BatchHeader), BatchError>>> {
        if self.position >= self.len {
            return Ok(None);
        }
        let header = match BatchHeader::parse(self.view(HEADER_BYTES)?) {
            Ok(header) if header.size() > GROUP_BYTES => {
                return Ok(Some(Err(BatchError::Length(header.batch_length))));
            }
            Ok(header) => header,
            Err(e) => return Ok(Some(Err(e))),
        };
        if let Err(e) = Batch::parse(self.view(header.size())?) {
            return Ok(Some(Err(e)));
        }
        let at = self.position;
        self.position += header.size() as u64;
        Ok(Some(Ok((at, header))))
    }

    /// At least `need` bytes from the position on, or all there are.
    fn view(&mut self, need: usize) -> io::Result<&[u8]> {
        let mut skip = (self.position - self.window_at) as usize;
        if self.window.len() < skip + need {
            let wanted = (need.max(SCAN_BYTES) as u64).min(self.len - self.position) as usize;
            self.window.resize(wanted, 0);
            self.window_at = self.position;
            skip = 0;
            let n = self.file.read_at(&mut self.window, self.position)?;
            self.window.truncate(n);
        }
        Ok(&self.window[skip..])
    }
}
