//! Walking over the batches of a log file, and making its index entries.

use std::{collections::VecDeque, io};

use dibs_model::Offset;

use crate::{
    MAX_MESSAGE_BYTES,
    batch::{Batch, BatchError, BatchHeader, HEADER_BYTES},
    index::{OffsetEntry, TimeEntry},
    segment::Segment,
    storage::File,
};

/// Bytes that a scan reads at once.
const SCAN_BYTES: usize = 1 << 20;

/// Decides which batches of a segment get index entries, by Kafka's rule.
pub(crate) struct Indexer {
    /// Bytes between index entries.
    pub(crate) interval: u64,
    /// Bytes since the batch of the last entry, that batch included.
    since: u64,
    /// Largest timestamp so far, and the last offset of the first batch that has it.
    max: Option<TimeEntry>,
    /// The last time entry made.
    last: Option<TimeEntry>,
    offsets: VecDeque<OffsetEntry>,
    times: VecDeque<TimeEntry>,
}

impl Indexer {
    /// For a segment whose last time entry is `last`; the next batch is the first one, or the one of the last
    /// offset entry.
    pub(crate) fn new(interval: u64, last: Option<TimeEntry>) -> Self {
        Indexer { interval, since: 0, max: last, last, offsets: VecDeque::new(), times: VecDeque::new() }
    }

    /// Takes a batch that begins at `position`.
    pub(crate) fn add(&mut self, position: u64, size: u64, last_offset: Offset, timestamp: i64) {
        if self.max.is_none_or(|max| timestamp > max.timestamp) {
            self.max = Some(TimeEntry { timestamp, offset: last_offset });
        }
        if self.since > self.interval {
            self.offsets.push_back(OffsetEntry { offset: last_offset, position: position as u32 });
            self.time_entry();
            self.since = 0;
        }
        self.since += size;
    }

    fn time_entry(&mut self) {
        if let Some(max) = self.max
            && self.last.is_none_or(|last| max.timestamp > last.timestamp)
        {
            self.times.push_back(max);
            self.last = Some(max);
        }
    }

    /// Writes new entries. Those that cannot be written wait for the next time. An offset entry is never
    /// written before the time entry made with it: where the offsets end, the largest time so far is known.
    /// Returns how many offset entries there were.
    pub(crate) fn flush(&mut self, segment: &Segment) -> io::Result<usize> {
        segment.append_times(self.times.make_contiguous())?;
        self.times.clear();
        segment.append_offsets(self.offsets.make_contiguous())?;
        let count = self.offsets.len();
        self.offsets.clear();
        Ok(count)
    }

    /// Writes what is left when a segment is rolled or closed: its largest timestamp ends the time index.
    pub(crate) fn finish(&mut self, segment: &Segment) -> io::Result<()> {
        self.time_entry();
        self.flush(segment).map(drop)
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

    /// The next batch and its position; `None` at the end. After an error the position stands still.
    pub(crate) fn next(&mut self) -> io::Result<Option<Result<(u64, Batch<'_>), BatchError>>> {
        if self.position >= self.len {
            return Ok(None);
        }
        let header = match BatchHeader::parse(self.view(HEADER_BYTES)?) {
            Ok(header) if header.size() > MAX_MESSAGE_BYTES => {
                return Ok(Some(Err(BatchError::Length(header.batch_length))));
            }
            Ok(header) => header,
            Err(e) => return Ok(Some(Err(e))),
        };
        self.view(header.size())?;
        let at = self.position;
        match Batch::parse(&self.window[(at - self.window_at) as usize..]) {
            Ok(batch) => {
                self.position += header.size() as u64;
                Ok(Some(Ok((at, batch))))
            }
            Err(e) => Ok(Some(Err(e))),
        }
    }

    /// At least `need` bytes from the position on, or all there are.
    fn view(&mut self, need: usize) -> io::Result<&[u8]> {
        let mut skip = (self.position - self.window_at) as usize;
        if self.window.len() < skip + need {
            let wanted = (need.max(SCAN_BYTES) as u64).min(self.len - self.position) as usize;
            self.window.clear();
            self.window_at = self.position;
            skip = 0;
            self.file.read_into(&mut self.window, wanted, self.position)?;
        }
        Ok(&self.window[skip..])
    }
}
