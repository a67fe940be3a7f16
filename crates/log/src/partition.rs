//! One partition: appends gather, a caller's thread commits them, anybody reads.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, Weak,
        atomic::{AtomicU64, Ordering::*},
    },
    time::{Duration, Instant},
};

use dibs_model::Offset;

use crate::{
    AppendError, CommitError, Lost, OpenError, ReadError, Recovery, TopicId,
    accept::{accept, marker_batch},
    batch::Header,
    config::TopicConfig,
    home::Home,
    pending::{Appended, Group, Mode, Pending},
    producers::{Marker, Origin, ProducerInfo},
    recover::{Finder, Recovered},
    segment::Segment,
    shutdown::Left,
    storage::{read_file, write_file},
    tail::{Durable, Passed, Tail},
    writer::{Start, Writer},
};

/// The file in a partition's folder that says which topic it belongs to.
const METADATA: &str = "partition.metadata";
/// The first open transaction when there is none.
const NO_TRANSACTION: Offset = Offset::MAX;

/// One partition of a topic. All methods may be called from any thread; only [`PartitionLog::commit`],
/// [`PartitionLog::reset`] and closing exclude each other.
///
/// An append is not durable, and nobody reads it, before the high watermark is past its offset. After a failed
/// commit its offsets are given anew, so whoever waits for an offset must see the same
/// [`PartitionLog::failures`] before the append and after the wait.
pub struct PartitionLog {
    me: Weak<PartitionLog>,
    home: Arc<Home>,
    topic: Arc<str>,
    topic_id: TopicId,
    partition: u32,
    dir: Arc<str>,
    config: RwLock<Arc<TopicConfig>>,
    pending: Mutex<Pending>,
    /// Something is pending, or somebody called `wake`.
    something: Condvar,
    writer: Mutex<Writer>,
    /// In order of their offsets, without gaps; never empty; the last one is written to.
    pub(crate) segments: RwLock<Vec<Arc<Segment>>>,
    /// Set after the segments' sizes, so that what is below it can be read.
    high_watermark: AtomicU64,
    log_start: AtomicU64,
    /// Where the oldest open transaction begins, or [`NO_TRANSACTION`]. Set before the high watermark.
    pub(crate) first_open: AtomicU64,
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
    /// Opens a partition, and repairs what a crash has left. `foreign` says that its files were not written
    /// here, `left` what a clean shutdown has said of them.
    pub(crate) fn open(
        home: Arc<Home>,
        of: &PartitionOf<'_>,
        config: Arc<TopicConfig>,
        foreign: bool,
        left: Option<Left>,
    ) -> Result<(Arc<Self>, Recovery), OpenError> {
        let (topic, partition) = (of.topic, of.partition);
        let dir: Arc<str> = folder(topic, partition).into();
        let start = home.log_starts.get(topic, partition).unwrap_or(0);
        let recovery_point = home.recovery_points.get(topic, partition).unwrap_or(0);
        let gaps = home.gaps.get(topic, partition).unwrap_or(0);
        let finder = Finder {
            files: &home.files,
            dir: &dir,
            recovery_point,
            start,
            interval: config.index_interval_bytes,
            gaps_before: if foreign { Offset::MAX } else { gaps },
            largest: config.max_message_bytes,
        };
        let believed = left.is_some();
        let found = match left {
            Some(left) => finder.believe(left),
            None => finder.recover()?,
        };
        let report = Recovery { topic: topic.to_string(), partition, ..found.report.clone() };
        let log = PartitionLog::found(home, of, config, dir, start, found, !believed);
        if believed {
            return Ok((log, report));
        }
        // The next start will not read again what this one has read.
        log.writer().save_producers(&log).map_err(|source| OpenError::Io {
            folder: log.home.storage.describe(),
            path: log.dir.to_string(),
            source,
        })?;
        Ok((log, report))
    }

    fn found(
        home: Arc<Home>,
        of: &PartitionOf<'_>,
        config: Arc<TopicConfig>,
        dir: Arc<str>,
        start: Offset,
        found: Recovered,
        touched: bool,
    ) -> Arc<Self> {
        let (max_pending, start_offset, end) = (home.config.max_pending_bytes, found.start, found.end);
        let active = found.segments[found.segments.len() - 1].clone();
        let first_open = found.producers.first_open().unwrap_or(NO_TRANSACTION);
        let mut pending = Pending::new(end, found.producers.clone(), &config, max_pending);
        pending.pooled = home.is_pooled(of.topic);
        let writer = Writer::new(Start {
            active,
            made: found.made,
            indexer: found.indexer,
            next: end,
            last_time: found.last_time,
            producers: found.producers,
            snapshots: found.snapshots,
            touched,
        });
        Arc::new_cyclic(|me| PartitionLog {
            me: me.clone(),
            home,
            topic: of.topic.clone(),
            topic_id: of.id,
            partition: of.partition,
            dir,
            config: RwLock::new(config),
            pending: Mutex::new(pending),
            something: Condvar::new(),
            writer: Mutex::new(writer),
            segments: RwLock::new(found.segments),
            high_watermark: AtomicU64::new(end),
            log_start: AtomicU64::new(start.max(start_offset)),
            first_open: AtomicU64::new(first_open),
            tail: Tail::new(end),
            deleting: Mutex::new(()),
        })
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition's number in the topic.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// The topic's configuration, as it is now.
    pub fn config(&self) -> Arc<TopicConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes by another configuration from the next append, commit and cleaning on.
    pub(crate) fn configure(&self, config: &Arc<TopicConfig>) {
        let mut current = self.config.write().unwrap_or_else(PoisonError::into_inner);
        self.pending().configure(config);
        *current = config.clone();
    }

    /// Adds a record without headers to what is pending, and returns the offset it has if the next commit
    /// succeeds. Its time will be the commit's, whatever the topic's timestamp type.
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

    /// Adds a producer's batch, compressed or not, to what is pending, and returns its first record's offset.
    /// Like [`PartitionLog::produce`] without a clock: no timestamp is too far from now.
    pub fn append_batch(&self, batch: &[u8]) -> Result<Offset, AppendError> {
        self.produce(batch, None, Origin::Client).map(|appended| appended.base_offset)
    }

    /// Adds a producer's batch, compressed or not, to what is pending.
    ///
    /// Its base offset becomes the returned one; in a topic with `LogAppendTime` its timestamps become the
    /// commit's; all else is kept as it is, unless the topic demands another `compression.type`. Checked are
    /// magic, length, CRC, the number of records, and, if they are not compressed, the records' form; the
    /// distance of its timestamps from `now_ms`; keys in a compacted topic; and its producer's epoch and
    /// sequence, if it has one: a batch that was sent before is found, not appended again.
    pub fn produce(
        &self,
        batch: &[u8],
        now_ms: Option<i64>,
        origin: Origin,
    ) -> Result<Appended, AppendError> {
        let (batch, header) = accept(batch, &self.config(), now_ms)?;
        let batch: Cow<'_, [u8]> = batch;
        self.add(|pending| pending.append_batch(&batch, &header, origin))
    }

    /// Adds a transaction's end to what is pending. `now_ms` is its time.
    pub fn append_marker(&self, marker: &Marker, now_ms: i64) -> Result<Appended, AppendError> {
        let (batch, header) = marker_batch(marker, now_ms);
        self.add(|pending| pending.append_marker(&batch, &header, marker))
    }

    fn add<T>(&self, append: impl FnOnce(&mut Pending) -> Result<T, AppendError>) -> Result<T, AppendError> {
        let mut pending = self.pending();
        let was_empty = pending.is_empty();
        if was_empty && pending.group.bytes.capacity() == 0 {
            pending.group = self.home.buffers.take();
        }
        let done = append(&mut pending);
        let wake = was_empty && !pending.is_empty() && pending.waiting > 0;
        // After a failure nothing is pending, but there is something to mend.
        let work = !pending.is_empty() || pending.mode == Mode::Failed;
        let enqueue = work && pending.pooled && !std::mem::replace(&mut pending.queued, true);
        drop(pending);
        if wake {
            self.something.notify_all();
        }
        if enqueue && let Some(me) = self.me.upgrade() {
            self.home.queue.push(me);
        }
        done
    }

    /// Leaves commits to the store's committer from now on.
    pub(crate) fn pool(&self) {
        let mut pending = self.pending();
        pending.pooled = true;
        let enqueue = !pending.is_empty() && !std::mem::replace(&mut pending.queued, true);
        drop(pending);
        if enqueue && let Some(me) = self.me.upgrade() {
            self.home.queue.push(me);
        }
    }

    /// Called by a committer: commits, and goes on after a failure as soon as that is possible. Says whether
    /// there is more to commit.
    pub(crate) fn commit_pooled(&self, now_ms: i64) -> bool {
        if self.commit(now_ms).is_err() {
            // Who appended has been told. If this fails, the next append leads here again.
            let _ = self.reset();
        }
        let mut writer = self.writer();
        if !writer.resting {
            self.rest_in(&mut writer, now_ms);
        }
        drop(writer);
        let mut pending = self.pending();
        pending.queued = !pending.is_empty();
        pending.queued
    }

    /// Called by a committer some time after a commit: gives back the room behind the last batch, or comes again.
    pub(crate) fn rest(&self, now_ms: i64) {
        self.rest_in(&mut self.writer(), now_ms);
    }

    fn rest_in(&self, writer: &mut Writer, now_ms: i64) {
        let again = writer.rest(now_ms).zip(self.me.upgrade());
        writer.resting = again.is_some_and(|(at, me)| {
            let comes = self.home.queue.push_later(at, me);
            if !comes {
                // The committers are ending; whatever they leave the close cuts.
                writer.rest(i64::MAX);
            }
            comes
        });
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
        let mut group = Group::default();
        {
            let mut pending = self.pending();
            if pending.is_empty() {
                drop(pending);
                writer.rest(now_ms);
                return Ok(None);
            }
            pending.swap(&mut group);
        }
        let from = self.high_watermark();
        let done = writer.write(self, &mut group, now_ms);
        self.home.buffers.give(group);
        let mut pending = self.pending();
        pending.in_flight = 0;
        if let Err(e) = done {
            pending.drop_all(self.high_watermark());
            pending.producers = writer.producers().clone();
            pending.mode = Mode::Failed;
            pending.failures += 1;
            drop(pending);
            self.tail.fail();
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
            pending.producers = writer.producers().clone();
            pending.mode = Mode::Open;
        }
        Ok(())
    }

    /// How many commits have failed; what was pending then is not in the log.
    pub fn failures(&self) -> u64 {
        self.pending().failures
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

    /// The producers that have written here of late, by id, as of the newest append.
    pub fn producers(&self) -> Vec<ProducerInfo> {
        self.pending().producers.list()
    }

    /// Whether a producer has a transaction open here, as of the newest append.
    pub fn has_open_transaction(&self, producer_id: i64) -> bool {
        self.pending().producers.known.get(&producer_id).is_some_and(|p| p.transaction.is_some())
    }

    /// Forgets producers that were not heard of for so long (ms) and have no open transaction.
    pub fn expire_producers(&self, now_ms: i64, idle_ms: i64) {
        let before = now_ms.saturating_sub(idle_ms);
        let mut writer = self.writer();
        writer.expire_producers(before);
        self.pending().producers.expire(before);
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

    /// What becomes of an append: the time (ms) of its commit once it is durable (−1 if that is too long ago to
    /// tell), or that it is lost. Registers a waker, never polls, and needs no particular executor.
    pub fn durable(&self, appended: Appended) -> impl Future<Output = Result<i64, Lost>> + Send + '_ {
        Durable::new(&self.tail, appended)
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
        let _one_at_a_time = self.deleting();
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
        gone.iter().try_for_each(|segment| segment.remove())?;
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
        writer.close(self)?;
        Ok(self.high_watermark())
    }

    /// What the files hold after [`PartitionLog::close`]; `None` if there are none.
    pub(crate) fn leave_behind(&self) -> Option<Left> {
        self.writer().leave_behind(&self.list())
    }

    /// Called by the writer: the batches up to `high_watermark` are durable and readable, the oldest open
    /// transaction begins at `first_open`, and the commit has the time `now`.
    pub(crate) fn advance(&self, high_watermark: Offset, first_open: Option<Offset>, now: i64) {
        // The high watermark last: whoever sees it sees a transaction that begins before it.
        self.first_open.store(first_open.unwrap_or(NO_TRANSACTION), Release);
        self.high_watermark.store(high_watermark, Release);
        self.tail.advance(high_watermark, now);
    }

    /// Called by the writer: makes the partition's folder and says in it whose it is.
    pub(crate) fn make_folder(&self) -> io::Result<()> {
        self.home.storage.create_dir(&self.dir)?;
        let text = format!("version: 0\ntopic_id: {}", self.topic_id);
        write_file(&*self.home.storage, &format!("{}/{METADATA}", self.dir), text.as_bytes())
    }

    /// Called by the writer: a new segment is written to from now on.
    pub(crate) fn add_segment(&self, segment: Arc<Segment>) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).push(segment);
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    pub(crate) fn dir(&self) -> &Arc<str> {
        &self.dir
    }

    pub(crate) fn list(&self) -> Vec<Arc<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds deletions and compactions off.
    pub(crate) fn deleting(&self) -> MutexGuard<'_, ()> {
        self.deleting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the list of segments change while nobody looks a segment up.
    pub(crate) fn segments_mut(&self) -> RwLockWriteGuard<'_, Vec<Arc<Segment>>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PartitionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} up to {}", self.topic, self.partition, self.high_watermark())
    }
}

/// Which partition of which topic.
pub(crate) struct PartitionOf<'a> {
    pub(crate) topic: &'a Arc<str>,
    pub(crate) id: TopicId,
    pub(crate) partition: u32,
}

/// The topic that a partition's folder says it belongs to.
pub(crate) fn topic_of(storage: &dyn crate::Storage, dir: &str) -> io::Result<Option<TopicId>> {
    let text = read_file(storage, &format!("{dir}/{METADATA}"))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(text.lines().find_map(|line| TopicId::parse(line.strip_prefix("topic_id: ")?.trim())))
}

/// A partition's folder, named as Kafka names it.
pub(crate) fn folder(topic: &str, partition: u32) -> String {
    format!("{topic}-{partition}")
}
