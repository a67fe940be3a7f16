//! The side of a partition that writes: one group at a time, synced before the next.

use std::{io, sync::Arc};

use dibs_model::Offset;

use crate::{
    CommitError, GROUP_BYTES, PartitionLog,
    pending::{Group, Planned},
    segment::{Indexer, Segment},
};

/// Owned by whoever commits.
pub(crate) struct Writer {
    /// The last segment. Its size is where the next group goes.
    active: Arc<Segment>,
    indexer: Indexer,
    /// The high watermark.
    next: Offset,
    /// Time of the last group, in ms; the next is never earlier.
    last_time: i64,
    state: State,
    /// The second of the two buffers, empty.
    spare: Group,
    /// A new segment was begun, perhaps only in part. The old one takes nothing any more, or the file left
    /// behind would contradict it.
    must_roll: bool,
    /// Rolled segments whose indexes are not durable yet.
    unsynced: Vec<Arc<Segment>>,
    /// Bytes written since the recovery point.
    since_checkpoint: u64,
}

enum State {
    Ready,
    Failed,
    Broken(Arc<io::Error>),
    Closed,
}

impl Writer {
    pub(crate) fn new(active: Arc<Segment>, indexer: Indexer, next: Offset, last_time: i64) -> Self {
        Writer {
            active,
            indexer,
            next,
            last_time,
            state: State::Ready,
            spare: Group::default(),
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

    pub(crate) fn take_spare(&mut self) -> Group {
        std::mem::take(&mut self.spare)
    }

    pub(crate) fn give_spare(&mut self, mut group: Group) {
        group.clear();
        self.spare = group;
    }

    /// Writes a sealed group, in as many writes as [`GROUP_BYTES`] and the segments' size demand, each synced
    /// and published before the next.
    pub(crate) fn write(
        &mut self,
        log: &PartitionLog,
        group: &mut Group,
        now: i64,
    ) -> Result<(), CommitError> {
        self.last_time = self.last_time.max(now);
        group.stamp(self.last_time);
        let done = self.write_all(log, group);
        if let Err(e) = &done {
            self.state = match e {
                CommitError::Broken(e) => State::Broken(e.clone()),
                _ => State::Failed,
            };
        }
        done
    }

    fn write_all(&mut self, log: &PartitionLog, group: &Group) -> Result<(), CommitError> {
        let segment_bytes = log.home().config.segment_bytes;
        let mut rest = &group.batches[..];
        while let Some(first) = rest.first() {
            let size = self.active.size();
            let fits = |batch: &Planned| {
                let end = size + (batch.end - first.start) as u64;
                end <= segment_bytes && batch.last_offset() - self.active.base <= i32::MAX as u64
            };
            if self.must_roll || (size > 0 && !fits(first)) {
                self.roll(log)?;
                continue;
            }
            // A batch larger than a segment gets one for itself.
            let more = |batch: &&Planned| fits(batch) && batch.end - first.start <= GROUP_BYTES;
            let count = 1 + rest[1..].iter().take_while(more).count();
            let (run, later) = rest.split_at(count);
            self.write_run(log, group, run)?;
            rest = later;
        }
        Ok(())
    }

    fn write_run(&mut self, log: &PartitionLog, group: &Group, run: &[Planned]) -> Result<(), CommitError> {
        let (first, last) = (run[0], run[run.len() - 1]);
        let position = self.active.size();
        let bytes = &group.bytes[first.start..last.end];
        self.active.log.write_at(bytes, position).map_err(CommitError::of_write)?;
        self.active.log.sync_data().map_err(CommitError::of_sync)?;
        self.next = last.last_offset() + 1;
        self.active.publish(position + bytes.len() as u64, self.last_time);
        log.advance(self.next);
        // Readers are on their way; what is left only makes later reads and the next start quicker.
        for batch in run {
            let at = position + (batch.start - first.start) as u64;
            self.indexer.add(at, (batch.end - batch.start) as u64, batch.last_offset(), self.last_time);
        }
        let _ = self.indexer.flush(&self.active);
        self.since_checkpoint += bytes.len() as u64;
        Ok(())
    }

    /// Ends the active segment and begins the next one, durably.
    fn roll(&mut self, log: &PartitionLog) -> Result<(), CommitError> {
        self.must_roll = true;
        let _ = self.indexer.finish(&self.active);
        let storage = &*log.home().storage;
        let segment = Segment::open(storage, log.dir(), self.next).map_err(CommitError::of_write)?;
        segment.clear().map_err(CommitError::of_write)?;
        storage.sync_dir(log.dir()).map_err(CommitError::of_sync)?;
        let segment = Arc::new(segment);
        self.unsynced.push(std::mem::replace(&mut self.active, segment.clone()));
        self.indexer = Indexer::new(log.home().config.index_interval_bytes, None);
        log.add_segment(segment);
        self.must_roll = false;
        // The old segment will not change: nobody need read it at the next start.
        self.since_checkpoint = u64::MAX / 2;
        Ok(())
    }

    /// Moves the recovery point to the high watermark if a segment was rolled or much was written. A failure
    /// costs a longer start, and the next commit tries again.
    pub(crate) fn checkpoint_if_due(&mut self, log: &PartitionLog) {
        if self.since_checkpoint < log.home().config.checkpoint_bytes {
            return;
        }
        let synced = self.unsynced.iter().chain([&self.active]).try_for_each(|s| s.sync_indexes());
        let points = &log.home().recovery_points;
        if synced.and_then(|()| points.save(log.topic(), log.partition(), self.next)).is_ok() {
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
        self.active.log.set_len(self.active.size()).map_err(CommitError::of_write)?;
        if let Err(e) = self.active.log.sync_data() {
            let e = Arc::new(e);
            self.state = State::Broken(e.clone());
            return Err(CommitError::Broken(e));
        }
        self.state = State::Ready;
        Ok(())
    }

    /// Leaves the files as a clean shutdown does: nothing behind the last batch, indexes complete and durable.
    pub(crate) fn close(&mut self) -> Result<(), CommitError> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Ready | State::Failed => {}
            State::Broken(e) => return Err(CommitError::Broken(e)),
            State::Closed => return Err(CommitError::Closed),
        }
        self.finish().map_err(CommitError::of_write)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.indexer.finish(&self.active)?;
        self.active.log.set_len(self.active.size())?;
        self.active.log.sync_data()?;
        self.unsynced.iter().chain([&self.active]).try_for_each(|s| s.sync_indexes())
    }
}
