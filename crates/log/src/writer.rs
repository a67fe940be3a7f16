//! The side of a partition that writes: one group at a time, synced before the next.

use std::{io, sync::Arc};

use dibs_model::Offset;

use crate::{
    CommitError, GROUP_BYTES, PartitionLog,
    batch::{Batch, BatchHeader},
    config::TopicConfig,
    files::SegmentFiles,
    pending::{Group, Planned},
    producers::Producers,
    scan::Indexer,
    segment::Segment,
    shutdown::Left,
    snapshot,
    txn_index::Aborted,
};

/// How many snapshots are kept: the newest, and one more should it be damaged.
const SNAPSHOTS: usize = 2;
/// Bytes of room that are made at a time behind the last batch of a busy partition. A sync of bytes that were there
/// before, as zeros, has no new length to write: it takes two thirds of the time.
const ROOM_BYTES: u64 = 64 << 10;
/// The largest group for which room is made; the sync of a larger one costs what its bytes cost.
const ROOM_FOR: usize = 16 << 10;
/// A partition is busy whose last commit is at most so long ago, in ms.
const BUSY_MS: i64 = 20;
/// Room is given back when the last commit is so long ago, in ms: what is at rest ends with its last batch, before a
/// tool that somebody starts then has begun to read it.
const REST_MS: i64 = 50;

/// Owned by whoever commits.
pub(crate) struct Writer {
    /// The last segment. Its size is where the next group goes.
    active: Arc<Segment>,
    /// Whether its files are there. Those of a partition without records are not.
    made: bool,
    indexer: Indexer,
    /// The high watermark.
    next: Offset,
    /// The log's own time of the last group, in ms; the next is never earlier.
    last_time: i64,
    state: State,
    /// The producers up to the high watermark.
    producers: Producers,
    /// Offsets of the snapshots on disk, in order.
    snapshots: Vec<Offset>,
    /// A new segment was begun, perhaps only in part. The old one takes nothing any more, or the file left
    /// behind would contradict it.
    must_roll: bool,
    /// Rolled segments whose indexes are not durable yet.
    unsynced: Vec<Arc<Segment>>,
    /// Something was written, or tried to, since the files were as a clean shutdown leaves them.
    touched: bool,
    /// Bytes written since the recovery point.
    since_checkpoint: u64,
    /// Up to where the active segment's file has room: at least its size, and zeros from there on.
    room: u64,
    /// Room was given back and not synced since, perhaps by a run that ended somehow: after a power cut the file may be
    /// longer than the system says now.
    longer_on_disk: bool,
    /// A committer will come by to give room back.
    pub(crate) resting: bool,
}

enum State {
    Ready,
    Failed,
    Broken(Arc<io::Error>),
    Closed,
}

/// What a writer begins with.
pub(crate) struct Start {
    pub(crate) active: Arc<Segment>,
    pub(crate) made: bool,
    pub(crate) indexer: Indexer,
    pub(crate) next: Offset,
    pub(crate) last_time: i64,
    pub(crate) producers: Producers,
    pub(crate) snapshots: Vec<Offset>,
    /// The files may not be as a clean shutdown leaves them.
    pub(crate) touched: bool,
}

impl Writer {
    pub(crate) fn new(start: Start) -> Self {
        let Start { active, made, indexer, next, last_time, producers, snapshots, touched } = start;
        Writer {
            room: active.size(),
            // The last run may have cut it, and not have learned that the sync failed.
            longer_on_disk: touched,
            resting: false,
            active,
            made,
            indexer,
            next,
            last_time,
            state: State::Ready,
            producers,
            snapshots,
            touched,
            must_roll: false,
            unsynced: Vec::new(),
            since_checkpoint: 0,
        }
    }

    pub(crate) fn ready(&self) -> Result<(), CommitError> {
        match &self.state {
            State::Ready => Ok(()),
            State::Failed => Err(CommitError::Unavailable),
            State::Broken(e) => Err(CommitError::Broken(e.clone())),
            State::Closed => Err(CommitError::Closed),
        }
    }

    /// The producers up to the high watermark.
    pub(crate) fn producers(&self) -> &Producers {
        &self.producers
    }

    /// Forgets producers that were not heard of since `before` (ms).
    pub(crate) fn expire_producers(&mut self, before: i64) -> bool {
        self.producers.expire(before)
    }

    /// Writes a sealed group, in as many writes as [`GROUP_BYTES`] and the segments' size demand, each synced
    /// and published before the next.
    pub(crate) fn write(
        &mut self,
        log: &PartitionLog,
        group: &mut Group,
        now: i64,
    ) -> Result<(), CommitError> {
        self.touched = true;
        let busy = now.saturating_sub(self.last_time) <= BUSY_MS;
        self.last_time = self.last_time.max(now);
        group.stamp(self.last_time);
        let done = self.write_all(log, group, busy);
        if let Err(e) = &done {
            self.state = State::Failed;
            self.heed(e);
        }
        done
    }

    fn write_all(&mut self, log: &PartitionLog, group: &Group, busy: bool) -> Result<(), CommitError> {
        let config = log.config();
        self.indexer.interval = config.index_interval_bytes;
        if !self.made {
            self.make(log)?;
        }
        let mut rest = &group.batches[..];
        while let Some(first) = rest.first() {
            let size = self.active.size();
            let fits = |batch: &Planned| {
                let end = size + (batch.end - first.start) as u64;
                end <= config.segment_bytes && batch.last - self.active.base <= i32::MAX as u64
            };
            if self.must_roll || (size > 0 && (!fits(first) || self.is_old(&config, first))) {
                self.roll(log)?;
                continue;
            }
            // A batch larger than a segment gets one for itself.
            let more = |batch: &&Planned| fits(batch) && batch.end - first.start <= GROUP_BYTES;
            let count = 1 + rest[1..].iter().take_while(more).count();
            let (run, later) = rest.split_at(count);
            if busy {
                self.make_room(&config, (run[count - 1].end - first.start) as u64);
            }
            self.write_run(log, group, run)?;
            rest = later;
        }
        Ok(())
    }

    /// Makes room for many small groups at once where there is none for the next, of so many bytes.
    fn make_room(&mut self, config: &TopicConfig, bytes: u64) {
        let end = self.active.size() + bytes;
        let room = (end + ROOM_BYTES).min(config.segment_bytes);
        if end <= self.room || bytes > ROOM_FOR as u64 || room <= end {
            return;
        }
        // If it fails the write makes the file longer, or says what is wrong; some room there may be all the same.
        let _ = self.active.log().and_then(|file| file.allocate(room));
        self.room = room;
    }

    /// Gives back the room behind the last batch if nothing was committed for a while, `now` being the time. Says when
    /// (ms) to come again if that is still to be done.
    pub(crate) fn rest(&mut self, now: i64) -> Option<i64> {
        // After a failure the file is cut by whoever mends it.
        if self.ready().is_err() || !self.has_room() {
            return None;
        }
        let due = self.last_time.saturating_add(REST_MS);
        if now < due {
            return Some(due);
        }
        self.give_back().err().map(|_| now.saturating_add(REST_MS))
    }

    /// Whether zeros may stand behind the last batch.
    fn has_room(&self) -> bool {
        self.room > self.active.size()
    }

    /// Ends the active segment's file with its last batch.
    fn give_back(&mut self) -> io::Result<()> {
        self.active.log()?.set_len(self.active.size())?;
        self.room = self.active.size();
        self.longer_on_disk = true;
        Ok(())
    }

    /// Like [`Writer::give_back`], of whatever stands there, and durably.
    fn cut(&mut self) -> Result<(), CommitError> {
        self.give_back().map_err(CommitError::of_write)?;
        let file = self.active.log().map_err(CommitError::of_write)?;
        file.sync_data().map_err(CommitError::of_sync)?;
        self.longer_on_disk = false;
        Ok(())
    }

    /// Whether a batch is so much later than the segment's first that it belongs into the next one.
    fn is_old(&self, config: &TopicConfig, batch: &Planned) -> bool {
        let first = self.active.first_timestamp().ok().flatten();
        first.is_some_and(|first| batch.max_timestamp.saturating_sub(first) > config.segment_ms)
    }

    fn write_run(&mut self, log: &PartitionLog, group: &Group, run: &[Planned]) -> Result<(), CommitError> {
        let (first, last) = (run[0], run[run.len() - 1]);
        let position = self.active.size();
        let bytes = &group.bytes[first.start..last.end];
        let file = self.active.log().map_err(CommitError::of_write)?;
        file.write_at(bytes, position).map_err(CommitError::of_write)?;
        file.sync_data().map_err(CommitError::of_sync)?;
        self.longer_on_disk = false;
        let aborted = self.take_producers(group, run);
        // Before anybody can read the marker.
        self.active.add_aborted(&aborted).map_err(CommitError::of_sync)?;
        self.next = last.last + 1;
        let max_timestamp = run.iter().map(|batch| batch.max_timestamp).max().unwrap_or(i64::MIN);
        self.active.publish(position + bytes.len() as u64, max_timestamp, Some(first.max_timestamp));
        log.advance(self.next, self.producers.first_open(), self.last_time);
        // Readers are on their way; what is left only makes later reads and the next start quicker.
        for batch in run {
            let at = position + (batch.start - first.start) as u64;
            self.indexer.add(at, (batch.end - batch.start) as u64, batch.last, batch.max_timestamp);
        }
        let _ = self.indexer.flush(&self.active);
        self.since_checkpoint += bytes.len() as u64;
        Ok(())
    }

    /// Lets the producers' state follow what is written. Returns the transactions that were aborted.
    fn take_producers(&mut self, group: &Group, run: &[Planned]) -> Vec<Aborted> {
        let batches = run.iter().filter(|batch| batch.from_producer);
        batches
            .filter_map(|planned| {
                let bytes = &group.bytes[planned.start..planned.end];
                let header = BatchHeader::parse(bytes).ok()?;
                self.producers.replay(&Batch { header, bytes })
            })
            .collect()
    }

    /// Makes the partition's folder and its first segment's files, durably.
    fn make(&mut self, log: &PartitionLog) -> Result<(), CommitError> {
        let storage = &*log.home().storage;
        let make = || {
            log.make_folder()?;
            self.active.create()
        };
        make().map_err(CommitError::of_write)?;
        storage.sync_dir(log.dir()).map_err(CommitError::of_sync)?;
        storage.sync_dir("").map_err(CommitError::of_sync)?;
        self.made = true;
        Ok(())
    }

    /// Ends the active segment and begins the next one, durably.
    fn roll(&mut self, log: &PartitionLog) -> Result<(), CommitError> {
        self.touched = true;
        self.must_roll = true;
        let _ = self.indexer.finish(&self.active);
        let home = log.home();
        if self.has_room() || self.longer_on_disk {
            // From the next recovery point on, zeros here would be damage.
            self.cut()?;
        }
        self.save_producers(log).map_err(CommitError::of_write)?;
        let segment = Segment::new(&home.files, log.dir(), self.next);
        segment.create().map_err(CommitError::of_write)?;
        home.storage.sync_dir(log.dir()).map_err(CommitError::of_sync)?;
        let segment = Arc::new(segment);
        self.unsynced.push(std::mem::replace(&mut self.active, segment.clone()));
        (self.room, self.longer_on_disk) = (0, false);
        self.indexer = Indexer::new(log.config().index_interval_bytes, None);
        log.add_segment(segment);
        self.must_roll = false;
        // The old segment will not change: nobody need read it at the next start.
        self.since_checkpoint = u64::MAX / 2;
        Ok(())
    }

    /// Rolls the active segment if it has any records.
    pub(crate) fn roll_if_used(&mut self, log: &PartitionLog) -> Result<(), CommitError> {
        self.ready()?;
        if self.active.size() == 0 {
            return Ok(());
        }
        self.roll(log).inspect_err(|e| self.heed(e))
    }

    /// Believes nothing any more after an error that says so.
    fn heed(&mut self, error: &CommitError) {
        if let CommitError::Broken(e) = error {
            self.state = State::Broken(e.clone());
        }
    }

    /// Writes the producers' state if there is any, durably, and removes what is older than needed.
    pub(crate) fn save_producers(&mut self, log: &PartitionLog) -> io::Result<()> {
        let none = self.producers.is_empty() && self.snapshots.is_empty();
        if none || !self.made || self.snapshots.last() == Some(&self.next) {
            return Ok(());
        }
        let storage = &*log.home().storage;
        if !self.active.aborted_transactions()?.is_empty() {
            // A scan from the snapshot on would not find them again: first their file is durable, and its name.
            self.active.sync_aborted()?;
            storage.sync_dir(log.dir())?;
        }
        snapshot::write(storage, log.dir(), self.next, &self.producers)?;
        // Before an older one goes: without any, a start believes that there were no producers.
        storage.sync_dir(log.dir())?;
        self.snapshots.push(self.next);
        while self.snapshots.len() > SNAPSHOTS {
            match storage.remove(&snapshot::path(log.dir(), self.snapshots[0])) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => self.snapshots.remove(0),
            };
        }
        Ok(())
    }

    /// Moves the recovery point to the high watermark if a segment was rolled or much was written. A failure
    /// costs a longer start, and the next commit tries again.
    pub(crate) fn checkpoint_if_due(&mut self, log: &PartitionLog) {
        if self.since_checkpoint < log.home().config.checkpoint_bytes {
            return;
        }
        // No index may lack an entry that the recovery point says is there.
        let done = self.indexer.flush(&self.active).and_then(|_| {
            self.save_producers(log)?;
            self.sync_indexes()?;
            log.home().recovery_points.save(log.topic(), log.partition(), self.next)
        });
        if done.is_ok() {
            self.unsynced.clear();
            self.since_checkpoint = 0;
        }
    }

    /// Cuts off what a failed commit may have written.
    pub(crate) fn reset(&mut self) -> Result<(), CommitError> {
        match self.ready() {
            Ok(()) => return Ok(()),
            Err(CommitError::Unavailable) => {}
            Err(e) => return Err(e),
        }
        if self.made {
            self.cut().inspect_err(|e| self.heed(e))?;
        }
        self.state = State::Ready;
        Ok(())
    }

    /// Leaves the files as a clean shutdown does: nothing behind the last batch, indexes complete and durable.
    pub(crate) fn close(&mut self, log: &PartitionLog) -> Result<(), CommitError> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Ready | State::Failed => {}
            State::Broken(e) => return Err(CommitError::Broken(e)),
            State::Closed => return Err(CommitError::Closed),
        }
        self.finish(log).map_err(CommitError::of_write)
    }

    fn finish(&mut self, log: &PartitionLog) -> io::Result<()> {
        if !self.made || !self.touched {
            return Ok(());
        }
        self.indexer.finish(&self.active)?;
        let file = self.active.log()?;
        if self.longer_on_disk || file.len()? != self.active.size() {
            file.set_len(self.active.size())?;
            file.sync_data()?;
        }
        self.save_producers(log)?;
        self.sync_indexes()
    }

    /// Makes the indexes of all segments that were written to durable.
    fn sync_indexes(&self) -> io::Result<()> {
        let mut segments = self.unsynced.iter().chain([&self.active]);
        segments.try_for_each(|segment| match segment.sync_indexes() {
            // It was deleted, or compacted into one whose indexes are durable.
            Err(e) if SegmentFiles::is_gone(&e) => Ok(()),
            done => done,
        })
    }

    /// What the files hold after a clean close; `None` if there are none, or files of a segment that was begun
    /// in part.
    pub(crate) fn leave_behind(&self, segments: &[Arc<Segment>]) -> Option<Left> {
        (self.made && !self.must_roll).then(|| Left {
            end: self.next,
            last_time: self.last_time,
            last_entry: self.indexer.last_entry(),
            snapshots: self.snapshots.clone(),
            producers: self.producers.clone(),
            segments: segments.iter().map(|segment| segment.leave_behind()).collect(),
        })
    }
}
