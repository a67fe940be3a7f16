//! Deleting and compacting old segments, one round at a time, at a time that the caller says.

use std::{io, ops::Add, sync::Arc};

use dibs_model::Offset;

use crate::{
    CommitError, PartitionLog, ReadError,
    batch::BatchHeader,
    compact::{Fate, Newest, Round, Transactions},
    config::TopicConfig,
    scan::{Indexer, Scanner},
    segment::Segment,
    storage::File,
};

/// Ends the name of a segment that is being made from another one.
pub(crate) const CLEANED: &str = ".cleaned";
/// Keys that a round of compaction looks at, at most, but for those of one segment: about 100 MB of memory.
const KEYS: usize = 2_000_000;
/// Bytes that are written at once.
const WRITE_BYTES: usize = 1 << 20;

/// What a round of cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Segments that were deleted.
    pub segments_deleted: usize,
    /// Segments that were compacted to something else.
    pub segments_compacted: usize,
    /// Bytes that are gone from the log files.
    pub bytes_freed: u64,
}

impl Add for Cleaned {
    type Output = Cleaned;

    fn add(self, other: Cleaned) -> Cleaned {
        Cleaned {
            segments_deleted: self.segments_deleted + other.segments_deleted,
            segments_compacted: self.segments_compacted + other.segments_compacted,
            bytes_freed: self.bytes_freed + other.bytes_freed,
        }
    }
}

/// Why a partition could not be cleaned. It is whole all the same, and the next round tries again.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// A segment could not be read, or files not written, renamed or removed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A new segment could not be begun.
    #[error(transparent)]
    Roll(#[from] CommitError),
}

/// Segments to compact, each with the offset behind it, oldest first.
type Plan = Vec<(Arc<Segment>, Offset)>;

impl From<io::Error> for CleanError {
    fn from(error: io::Error) -> Self {
        CleanError::Read(error.into())
    }
}

impl PartitionLog {
    /// One round of cleaning of this partition; see [`crate::Store::clean`].
    pub fn clean(&self, now_ms: i64) -> Result<Cleaned, CleanError> {
        let config = self.config();
        let mut cleaned = Cleaned::default();
        if config.delete {
            cleaned = cleaned + self.delete_old(&config, now_ms)?;
        }
        if config.compact {
            cleaned = cleaned + self.compact(&config, now_ms)?;
        }
        Ok(cleaned)
    }

    /// Deletes segments from the oldest on, as long as they are too old or the others alone are large enough.
    /// If all are too old, so is the one that is written to, which is ended first.
    fn delete_old(&self, config: &TopicConfig, now: i64) -> Result<Cleaned, CleanError> {
        let mut segments = self.list();
        let is_old = |s: &Arc<Segment>| match (config.retention_ms, s.max_timestamp()) {
            // Nobody knows its time: then by its neighbours' only.
            (Some(_), i64::MIN) => s.size() == 0,
            (Some(_), time) if time < 0 => false,
            (Some(ms), time) => now.saturating_sub(time) > ms,
            (None, _) => false,
        };
        let used = segments.last().is_some_and(|active| active.size() > 0);
        if used && segments.iter().all(is_old) {
            self.writer().roll_if_used(self)?;
            segments = self.list();
        }
        let mut left: u64 = segments.iter().map(|s| s.size()).sum();
        let mut cleaned = Cleaned::default();
        let mut start = self.log_start_offset();
        for pair in segments.windows(2) {
            let size = pair[0].size();
            let too_large = config.retention_bytes.is_some_and(|bytes| left.saturating_sub(size) >= bytes);
            if !(is_old(&pair[0]) || too_large) {
                break;
            }
            left -= size;
            start = pair[1].base;
            cleaned.segments_deleted += 1;
            cleaned.bytes_freed += size;
        }
        if cleaned.segments_deleted > 0 {
            self.delete_before(start)?;
        }
        Ok(cleaned)
    }

    /// Keeps the newest record of each key, in segments that are not written to any more.
    fn compact(&self, config: &TopicConfig, now: i64) -> Result<Cleaned, CleanError> {
        let _one_at_a_time = self.deleting();
        let key = (self.topic(), self.partition());
        let dirty_from = self.home().cleaned.get(key.0, key.1).unwrap_or(0);
        let Some(mut plan) = self.plan(config, now, dirty_from)? else {
            return Ok(Cleaned::default());
        };
        let (start, end) = (plan[0].0.base, plan[plan.len() - 1].1);
        let aborted = || self.aborted(start, end);
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
        let mut newest = Newest::new(seed);
        let mut transactions = Transactions::new(aborted()?);
        let mut buffer = Vec::new();
        let mut looked = 0;
        for (segment, _) in &plan {
            // Enough for one round: what follows is dirty still.
            if newest.len() >= KEYS {
                break;
            }
            each_batch(segment, |batch| {
                let counts = !transactions.is_void(batch) && !batch.header.is_control();
                if counts && batch.header.base_offset >= dirty_from {
                    newest.take(batch, &mut buffer);
                }
                Ok(())
            })?;
            looked += 1;
        }
        plan.truncate(looked);
        let end = plan[plan.len() - 1].1;
        let producers = self.writer().producers().clone();
        let transactions = Transactions::new(aborted()?);
        let delete_retention_ms = config.delete_retention_ms;
        let mut round =
            Round { newest: &newest, transactions, producers: &producers, now, delete_retention_ms };
        // Before there can be any.
        let gaps = self.home().gaps.get(key.0, key.1).unwrap_or(0).max(end);
        self.home().gaps.save(key.0, key.1, gaps)?;
        let mut cleaned = Cleaned::default();
        for (segment, _) in &plan {
            cleaned = cleaned + self.compact_segment(segment, &mut round, config)?;
        }
        self.home().cleaned.save(key.0, key.1, end)?;
        Ok(cleaned)
    }

    /// The segments to compact, each with the offset behind it, oldest first; `None` if it is not worth while.
    fn plan(&self, config: &TopicConfig, now: i64, dirty_from: Offset) -> Result<Option<Plan>, CleanError> {
        let segments = self.list();
        // An open transaction may yet be aborted.
        let stable = self.last_stable_offset();
        let young = |s: &Segment| {
            config.min_compaction_lag_ms > 0
                && s.max_timestamp() > now.saturating_sub(config.min_compaction_lag_ms)
        };
        let pairs = segments.windows(2).map(|pair| (pair[0].clone(), pair[1].base));
        let plan: Vec<_> = pairs.take_while(|(s, end)| *end <= stable && !young(s)).collect();
        let is_dirty = |entry: &&(Arc<Segment>, Offset)| entry.0.base >= dirty_from;
        let size = |(segment, _): &(Arc<Segment>, Offset)| segment.size();
        let (all, dirty) =
            (plan.iter().map(size).sum::<u64>(), plan.iter().filter(is_dirty).map(size).sum::<u64>());
        let Some((oldest, _)) = plan.iter().find(is_dirty) else { return Ok(None) };
        let since = oldest.first_timestamp()?.unwrap_or(now);
        let overdue = now.saturating_sub(since) > config.max_compaction_lag_ms;
        let enough = dirty > 0 && dirty as f64 > config.min_cleanable_ratio * all as f64;
        // A ratio of 1 cannot be exceeded where everything is dirty, and means as late as can be.
        let full = dirty > 0 && dirty == all && config.min_cleanable_ratio >= 1.0;
        Ok((enough || overdue || full).then_some(plan))
    }

    fn compact_segment(
        &self,
        old: &Arc<Segment>,
        round: &mut Round<'_>,
        config: &TopicConfig,
    ) -> Result<Cleaned, CleanError> {
        let storage = &*self.home().storage;
        let path = format!("{}{CLEANED}", old.log_path());
        let file = storage.open(&path, true)?;
        file.set_len(0)?;
        let new = Segment::new(&self.home().files, self.dir(), old.base);
        let mut copy = Copy { file: &*file, written: 0, waiting: Vec::new(), batches: Vec::new() };
        let (mut same, mut buffer) = (true, Vec::new());
        each_batch(old, |batch| match round.next(batch, &mut buffer) {
            Fate::Kept => copy.put(batch.bytes, &batch.header),
            Fate::Gone => {
                same = false;
                Ok(())
            }
            Fate::Changed(bytes) => {
                same = false;
                copy.put(&bytes, &BatchHeader::parse(&bytes).unwrap_or(batch.header))
            }
        })?;
        if same {
            storage.remove(&path)?;
            return Ok(Cleaned::default());
        }
        copy.flush()?;
        file.sync_data()?;
        storage.sync_dir(self.dir())?;
        // First, for it fits the old log as well: nobody may wait for a marker that is gone.
        let kept = &round.transactions.kept;
        old.retain_aborted(|a| kept.contains(&(a.producer_id, a.last_offset)))?;
        old.sync_indexes()?;
        let mut indexer = Indexer::new(config.index_interval_bytes, None);
        let Copy { written: size, batches, .. } = copy;
        drop(file);
        {
            let mut segments = self.segments_mut();
            let Ok(place) = segments.binary_search_by_key(&old.base, |s| s.base) else {
                return Ok(Cleaned::default());
            };
            old.leave();
            let swapped = old.swap_in(&path);
            // Whatever came of it, the file under the name is looked at with new eyes; an error leaves the old.
            let now = if swapped.is_ok() { size } else { old.size() };
            let first = batches.first().map(|(_, header)| header.max_timestamp).filter(|_| swapped.is_ok());
            let max = match swapped {
                Ok(()) => batches.iter().map(|(_, h)| h.max_timestamp).max().unwrap_or(i64::MIN),
                Err(_) => old.max_timestamp(),
            };
            new.publish(now, max, first);
            let new = Arc::new(new);
            segments[place] = new.clone();
            drop(segments);
            swapped?;
            // Readers walk without an index meanwhile.
            for (position, header) in &batches {
                indexer.add(*position, header.size() as u64, header.last_offset(), header.max_timestamp);
            }
            indexer.finish(&new)?;
            new.sync_indexes()?;
            storage.sync_dir(self.dir())?;
        }
        Ok(Cleaned {
            segments_deleted: 0,
            segments_compacted: 1,
            bytes_freed: old.size().saturating_sub(size),
        })
    }
}

/// The log file of a segment that is being made.
struct Copy<'f> {
    file: &'f dyn File,
    written: u64,
    waiting: Vec<u8>,
    batches: Vec<(u64, BatchHeader)>,
}

impl Copy<'_> {
    fn put(&mut self, bytes: &[u8], header: &BatchHeader) -> Result<(), CleanError> {
        self.batches.push((self.written + self.waiting.len() as u64, *header));
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CleanError> {
        self.file.write_at(&self.waiting, self.written)?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

/// Calls back for every batch of a segment.
fn each_batch(
    segment: &Segment,
    mut each: impl FnMut(&crate::batch::Batch<'_>) -> Result<(), CleanError>,
) -> Result<(), CleanError> {
    let log = segment.log()?;
    let mut scanner = Scanner::new(&*log, segment.size(), 0);
    while let Some(batch) = scanner.next()? {
        match batch {
            Ok((_, batch)) => each(&batch)?,
            Err(e) => {
                let damage = segment.damage(scanner.position, segment.base, &e.to_string());
                return Err(ReadError::from(damage).into());
            }
        }
    }
    Ok(())
}
