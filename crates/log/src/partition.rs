//! One partition: appends gather, a caller's thread commits them, anybody reads.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::*},
    },
    time::{Duration, Instant},
};

use dibs_model::Offset;

use crate::{
    AppendError, CommitError, OpenError, ReadError, Recovery,
    batch::{Batch, BatchError, Header},
    pending::{Mode, Pending},
    recover::Finder,
    segment::Segment,
    store::Home,
    tail::{Passed, Tail},
    writer::Writer,
};

/// One partition of a topic. All methods may be called from any thread; only [`PartitionLog::commit`],
/// [`PartitionLog::reset`] and closing exclude each other.
///
/// An append is not durable, and nobody reads it, before the high watermark is past its offset. After a failed
/// commit its offsets are given anew, so whoever waits for an offset must see the same
/// [`PartitionLog::failures`] before the append and after the wait.
pub struct PartitionLog {
    home: Arc<Home>,
    topic: String,
    partition: u32,
    dir: String,
    pending: Mutex<Pending>,
    /// Something is pending, or somebody called `wake`.
    something: Condvar,
    writer: Mutex<Writer>,
    /// In order of their offsets, without gaps; never empty; the last one is written to.
    segments: RwLock<Vec<Arc<Segment>>>,
    /// Set after the segments' sizes, so that what is below it can be read.
    high_watermark: AtomicU64,
    log_start: AtomicU64,
    failures: AtomicU64,
    tail: Tail,
    /// Held while old segments are deleted.
    deleting: Mutex<()>,
}

/// What a commit made durable: the offsets `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The first one.
    pub from: Offset,
    /// The one after the last: the new high watermark.
    pub to: Offset,
}

/// One segment, for those who decide what is kept for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Offset of its first record.
    pub base: Offset,
    /// Committed bytes.
    pub bytes: u64,
    /// Largest timestamp, in ms; `i64::MIN` without records.
    pub max_timestamp: i64,
}

impl PartitionLog {
    pub(crate) fn open(home: Arc<Home>, topic: &str, partition: u32) -> Result<(Self, Recovery), OpenError> {
        let dir = folder(topic, partition);
        let start = home.log_starts.get(topic, partition).unwrap_or(0);
        let recovery_point = home.recovery_points.get(topic, partition).unwrap_or(0).max(start);
        let interval = home.config.index_interval_bytes;
        let finder = Finder { storage: &*home.storage, dir: &dir, recovery_point, start, interval };
        let found = finder.recover()?;
        let active = found.segments[found.segments.len() - 1].clone();
        let (max_batch, max_pending) = (home.config.max_batch_bytes, home.config.max_pending_bytes);
        let log = PartitionLog {
            topic: topic.to_owned(),
            partition,
            pending: Mutex::new(Pending::new(found.end, max_batch, max_pending)),
            something: Condvar::new(),
            writer: Mutex::new(Writer::new(active, found.indexer, found.end, found.last_time)),
            segments: RwLock::new(found.segments),
            high_watermark: AtomicU64::new(found.end),
            log_start: AtomicU64::new(start),
            failures: AtomicU64::new(0),
            tail: Tail::new(found.end),
            deleting: Mutex::new(()),
            dir,
            home,
        };
        Ok((log, Recovery { topic: topic.to_owned(), partition, ..found.report }))
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition's number in the topic.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Adds a record without headers to what is pending, and returns the offset it has if the next commit
    /// succeeds.
    pub fn append(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Offset, AppendError> {
        self.append_with(key, value, &[])
    }

    /// Like [`PartitionLog::append`], with headers.
    pub fn append_with(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<Offset, AppendError> {
        self.add(|pending| pending.append(key, value, headers))
    }

    /// Adds a whole batch, compressed or not, to what is pending. Its base offset becomes the returned one and
    /// its timestamp type the log's; all else is kept as it is. Checked are magic, length, CRC, the number of
    /// records, and, if they are not compressed, the records' form.
    pub fn append_batch(&self, batch: &[u8]) -> Result<Offset, AppendError> {
        let max = self.home.config.max_batch_bytes;
        if batch.len() > max {
            return Err(AppendError::TooLarge { size: batch.len(), max });
        }
        let parsed = Batch::parse(batch)?;
        if parsed.bytes.len() != batch.len() {
            return Err(BatchError::Truncated { need: parsed.bytes.len(), have: batch.len() }.into());
        }
        parsed.check_records()?;
        self.add(|pending| pending.append_batch(batch, parsed.header.records_count))
    }

    fn add(
        &self,
        append: impl FnOnce(&mut Pending) -> Result<Offset, AppendError>,
    ) -> Result<Offset, AppendError> {
        let mut pending = self.pending();
        let was_empty = pending.is_empty();
        let offset = append(&mut pending)?;
        let wake = was_empty && pending.waiting > 0;
        drop(pending);
        if wake {
            self.something.notify_all();
        }
        Ok(offset)
    }

    /// Blocks until something is pending, somebody calls [`PartitionLog::wake`], the partition is closed, or
    /// the time is over. Says whether something is pending.
    pub fn wait_pending(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut pending = self.pending();
        pending.waiting += 1;
        while pending.is_empty() && !pending.woken && pending.mode != Mode::Closed {
            pending = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => self.something.wait(pending).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.something.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        pending.waiting -= 1;
        pending.woken = false;
        !pending.is_empty()
    }

    /// Lets one [`PartitionLog::wait_pending`], the present or the next, return.
    pub fn wake(&self) {
        self.pending().woken = true;
        self.something.notify_all();
    }

    /// Makes everything that is pending durable, with `now_ms` (milliseconds since the Unix epoch, made
    /// monotone) as its time, moves the high watermark and wakes who waits for it. `None` if nothing was
    /// pending. After an error, what of it the high watermark has passed is durable and the rest is dropped.
    pub fn commit(&self, now_ms: i64) -> Result<Option<Committed>, CommitError> {
        let mut writer = self.writer();
        writer.ready()?;
        let mut group = writer.take_spare();
        {
            let mut pending = self.pending();
            if pending.is_empty() {
                drop(pending);
                writer.give_spare(group);
                return Ok(None);
            }
            pending.swap(&mut group);
        }
        let from = self.high_watermark();
        let done = writer.write(self, &mut group, now_ms);
        writer.give_spare(group);
        let mut pending = self.pending();
        pending.in_flight = 0;
        if let Err(e) = done {
            pending.drop_all(self.high_watermark());
            pending.mode = Mode::Failed;
            self.failures.fetch_add(1, AcqRel);
            return Err(e);
        }
        drop(pending);
        writer.checkpoint_if_due(self);
        Ok(Some(Committed { from, to: self.high_watermark() }))
    }

    /// Goes on after a failed commit: cuts off what it may have written, and takes appends again, from the high
    /// watermark on. Does nothing if no commit failed. May fail itself, and be tried again then, unless the
    /// partition is [`CommitError::Broken`].
    pub fn reset(&self) -> Result<(), CommitError> {
        let mut writer = self.writer();
        writer.reset()?;
        let mut pending = self.pending();
        if pending.mode == Mode::Failed {
            pending.drop_all(self.high_watermark());
            pending.mode = Mode::Open;
        }
        Ok(())
    }

    /// How many commits have failed; what was pending then is not in the log.
    pub fn failures(&self) -> u64 {
        self.failures.load(Acquire)
    }

    /// The offset after the last committed record. What is below can be read and is durable.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark.load(Acquire)
    }

    /// The offset that the next appended record gets, if what is pending before it is committed.
    pub fn log_end_offset(&self) -> Offset {
        self.pending().next
    }

    /// The first offset that can be read.
    pub fn log_start_offset(&self) -> Offset {
        self.log_start.load(Acquire)
    }

    /// Bytes that wait for a commit or are being committed.
    pub fn pending_bytes(&self) -> usize {
        let pending = self.pending();
        pending.in_flight + pending.group.bytes.len()
    }

    /// Appends whole committed batches to `out`, from the one that holds `from`: at least one, whatever its
    /// size, and otherwise no more than `max_bytes`. Says how many bytes; 0 at the high watermark. Batches may
    /// begin before `from`; a read ends at the end of a segment, so less than `max_bytes` is not the end.
    pub fn read(&self, from: Offset, max_bytes: usize, out: &mut Vec<u8>) -> Result<usize, ReadError> {
        match self.segment_of(from)? {
            None => Ok(0),
            Some(segment) => segment.read(from, max_bytes, out),
        }
    }

    /// The segment of a readable offset; `None` at the high watermark.
    fn segment_of(&self, from: Offset) -> Result<Option<Arc<Segment>>, ReadError> {
        let (start, end) = (self.log_start_offset(), self.high_watermark());
        if from < start || from > end {
            return Err(ReadError::OutOfRange { start, end });
        }
        if from == end {
            return Ok(None);
        }
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        match segments.partition_point(|s| s.base <= from).checked_sub(1) {
            Some(i) => Ok(Some(segments[i].clone())),
            // Deleted since the first line.
            None => Err(ReadError::OutOfRange { start: segments[0].base, end }),
        }
    }

    /// Blocks until the high watermark is past an offset, the partition is closed, or the time is over. Says
    /// whether it is past.
    pub fn wait_committed(&self, past: Offset, timeout: Option<Duration>) -> bool {
        self.high_watermark() > past || self.tail.wait(past, timeout)
    }

    /// Resolves when the high watermark is past an offset, or the partition is closed. Registers a waker, never
    /// polls, and needs no particular executor.
    pub fn committed(&self, past: Offset) -> impl Future<Output = ()> + Send + '_ {
        Passed::new(&self.tail, past)
    }

    /// The first batch that is not older than a time (ms): its first readable offset and its timestamp.
    pub fn offset_for_timestamp(&self, timestamp: i64) -> Result<Option<(Offset, i64)>, ReadError> {
        let start = self.log_start_offset();
        for segment in self.list() {
            if segment.max_timestamp() < timestamp || segment.size() == 0 {
                continue;
            }
            let header = segment.find_time(timestamp)?;
            if header.last_offset() >= start {
                return Ok(Some((header.base_offset.max(start), header.max_timestamp)));
            }
            // Only a log start inside this segment leads here: what comes first there is late enough.
            let mut bytes = Vec::new();
            if self.read(start, 0, &mut bytes)? == 0 {
                return Ok(None);
            }
            let header = Batch::parse(&bytes).map_err(|e| segment.damage(0, start, &e.to_string()))?.header;
            return Ok(Some((start, header.max_timestamp)));
        }
        Ok(None)
    }

    /// The segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let info = |s: &Arc<Segment>| SegmentInfo {
            base: s.base,
            bytes: s.size(),
            max_timestamp: s.max_timestamp(),
        };
        self.list().iter().map(info).collect()
    }

    /// Moves the log start to an offset, durably, and deletes the segments that lie wholly before it. The one
    /// being written to is never deleted. An earlier offset than the log start does nothing.
    pub fn delete_before(&self, offset: Offset) -> Result<(), ReadError> {
        let _one_at_a_time = self.deleting.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (self.log_start_offset(), self.high_watermark());
        if offset > end {
            return Err(ReadError::OutOfRange { start, end });
        }
        if offset <= start {
            return Ok(());
        }
        // The new start is durable before any file goes, so that a crash leaves no gap to wonder about.
        self.home.log_starts.save(&self.topic, self.partition, offset)?;
        self.log_start.store(offset, Release);
        let gone: Vec<_> = {
            let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
            let count = segments.windows(2).filter(|pair| pair[1].base <= offset).count();
            segments.drain(..count).collect()
        };
        for segment in &gone {
            segment.remove(&*self.home.storage)?;
        }
        if !gone.is_empty() {
            self.home.storage.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Takes no more appends, drops what is pending, and makes the files as a clean shutdown leaves them.
    /// Returns the high watermark.
    pub(crate) fn close(&self) -> Result<Offset, CommitError> {
        let mut writer = self.writer();
        {
            let mut pending = self.pending();
            pending.mode = Mode::Closed;
            pending.drop_all(self.high_watermark());
        }
        self.something.notify_all();
        self.tail.close();
        writer.close()?;
        Ok(self.high_watermark())
    }

    /// Called by the writer: the batches up to `high_watermark` are durable and readable.
    pub(crate) fn advance(&self, high_watermark: Offset) {
        self.high_watermark.store(high_watermark, Release);
        self.tail.advance(high_watermark);
    }

    /// Called by the writer: a new segment is written to from now on.
    pub(crate) fn add_segment(&self, segment: Arc<Segment>) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).push(segment);
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    pub(crate) fn dir(&self) -> &str {
        &self.dir
    }

    fn list(&self) -> Vec<Arc<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PartitionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} up to {}", self.topic, self.partition, self.high_watermark())
    }
}

/// A partition's folder, named as Kafka names it.
pub(crate) fn folder(topic: &str, partition: u32) -> String {
    format!("{topic}-{partition}")
}
