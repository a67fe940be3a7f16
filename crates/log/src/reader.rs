//! Reading a partition: by offset, by time, and up to what transactions have decided.

use std::sync::{Arc, PoisonError, atomic::Ordering::*};

use dibs_model::Offset;

use crate::{
    PartitionLog, ReadError,
    segment::{FileRange, Segment},
    txn_index::Aborted,
};

/// How often a reader looks again for a segment that was deleted or replaced under its hands.
const LOOKS: usize = 16;

/// A segment, and where the next one begins.
type SegmentAndNext = (Arc<Segment>, Option<Offset>);

impl PartitionLog {
    /// Appends whole committed batches to `out`, from the one that holds `from`: at least one, whatever its
    /// size, and otherwise no more than `max_bytes`. Says how many bytes; 0 at the high watermark. Batches may
    /// begin before `from`; a read ends at the end of a segment, so less than `max_bytes` is not the end.
    pub fn read(&self, from: Offset, max_bytes: usize, out: &mut Vec<u8>) -> Result<usize, ReadError> {
        self.read_until(from, Offset::MAX, max_bytes, out)
    }

    /// Like [`PartitionLog::read`], but no batch that begins at `until` or later: with the last stable offset,
    /// what a reader of committed transactions gets.
    pub fn read_until(
        &self,
        from: Offset,
        until: Offset,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, ReadError> {
        let until = until.min(self.high_watermark());
        let read = |segment: &Segment, until| match segment.read(from, until, max_bytes, out)? {
            0 => Ok(None),
            n => Ok(Some(n)),
        };
        Ok(self.first_in(from, until, read)?.unwrap_or(0))
    }

    /// Like [`PartitionLog::read_until`], but says which bytes of which file that are. The file stays readable
    /// as long as somebody has it, even if the segment is deleted meanwhile.
    pub fn read_range(
        &self,
        from: Offset,
        until: Offset,
        max_bytes: usize,
    ) -> Result<Option<FileRange>, ReadError> {
        let until = until.min(self.high_watermark());
        self.first_in(from, until, |segment, until| segment.range(from, until, max_bytes))
    }

    /// What the first segment gives that has anything from an offset on: the one of that offset, unless what
    /// was there is gone by compaction. It is told where it ends, `until` at the latest.
    fn first_in<T>(
        &self,
        from: Offset,
        until: Offset,
        mut get: impl FnMut(&Segment, Offset) -> Result<Option<T>, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        for look in 1.. {
            let mut failed = None;
            let mut at = from;
            while let Some((segment, next)) = self.segment_of(at)? {
                match get(&segment, next.map_or(until, |next| next.min(until))) {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(e) => {
                        failed = Some(e);
                        break;
                    }
                }
                match next {
                    Some(next) if next < until => at = next,
                    _ => break,
                }
            }
            match failed {
                Some(e) if e.is_gone() && look < LOOKS => {}
                Some(e) => return Err(e),
                None => break,
            }
        }
        Ok(None)
    }

    /// The segment of a readable offset, and where the next one begins; `None` at the high watermark.
    fn segment_of(&self, from: Offset) -> Result<Option<SegmentAndNext>, ReadError> {
        let (start, end) = (self.log_start_offset(), self.high_watermark());
        if from < start || from > end {
            return Err(ReadError::OutOfRange { start, end });
        }
        if from == end {
            return Ok(None);
        }
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        match segments.partition_point(|s| s.base <= from).checked_sub(1) {
            Some(i) => Ok(Some((segments[i].clone(), segments.get(i + 1).map(|next| next.base)))),
            // Deleted since the first line.
            None => Err(ReadError::OutOfRange { start: segments[0].base, end }),
        }
    }

    /// The offset below which no transaction is open: what readers of committed transactions may read up to.
    pub fn last_stable_offset(&self) -> Offset {
        // In this order: see `advance`.
        let high_watermark = self.high_watermark();
        high_watermark.min(self.first_open.load(Acquire)).max(self.log_start_offset())
    }

    /// The aborted transactions with a record in `from..until`: a reader of committed transactions leaves out
    /// each one's records from its first offset up to its abort marker.
    pub fn aborted(&self, from: Offset, until: Offset) -> Result<Vec<Aborted>, ReadError> {
        let mut found = Vec::new();
        let segments = self.list();
        let first = segments.partition_point(|segment| segment.base <= from).max(1) - 1;
        for segment in &segments[first..] {
            for aborted in &*segment.aborted_transactions()? {
                if aborted.last_offset >= from && aborted.first_offset < until {
                    found.push(*aborted);
                }
                if aborted.last_stable_offset >= until {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    /// The first record that is not older than a time (ms): its offset and its timestamp.
    pub fn offset_for_timestamp(&self, timestamp: i64) -> Result<Option<(Offset, i64)>, ReadError> {
        self.look_again(|| {
            let start = self.log_start_offset();
            for segment in self.list() {
                if segment.max_timestamp() >= timestamp
                    && let Some(found) = segment.find_time(timestamp, start)?
                {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    /// The first record with the largest timestamp: its offset and its timestamp. `None` without records.
    pub fn max_timestamp(&self) -> Result<Option<(Offset, i64)>, ReadError> {
        self.look_again(|| {
            let start = self.log_start_offset();
            let mut largest: Option<(i64, Arc<Segment>)> = None;
            for segment in self.list().into_iter().filter(|s| s.size() > 0) {
                let max = match segment.base < start {
                    true => segment.max_timestamp_from(start)?,
                    false => segment.max_timestamp(),
                };
                if max > largest.as_ref().map_or(i64::MIN, |(max, _)| *max) {
                    largest = Some((max, segment));
                }
            }
            let Some((max, segment)) = largest else { return Ok(None) };
            segment.find_time(max, start)
        })
    }

    /// Runs a search anew if a segment was deleted or replaced under its hands.
    fn look_again<T>(&self, search: impl Fn() -> Result<T, ReadError>) -> Result<T, ReadError> {
        let mut looks = 1;
        loop {
            match search() {
                Err(e) if e.is_gone() && looks < LOOKS => looks += 1,
                done => return done,
            }
        }
    }
}
