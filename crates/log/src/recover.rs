//! Opening a partition's files after whatever ended the last run.
//!
//! Everything below the recovery point was synced before the point was written. Behind it, every group but the
//! last was synced before the next was written, so a power cut can harm one group at the end of the last
//! segment and nothing else. That is what is cut off here (and kept aside); all other damage is an error.

use std::{io, sync::Arc};

use dibs_model::Offset;

use crate::{
    GROUP_BYTES,
    batch::{Batch, BatchHeader, HEADER_BYTES},
    clean::CLEANED,
    error::{Damage, OpenError, ReadError},
    files::{ENDINGS, OpenFiles, path},
    producers::Producers,
    scan::{Indexer, Scanner},
    segment::Segment,
    shutdown::Left,
    snapshot,
    storage::{Entry, Storage, write_file},
};

/// What opening a partition found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: u32,
    /// Segments that are there.
    pub segments: usize,
    /// Segments read from the recovery point on, or because an index was missing or not sane.
    pub segments_scanned: usize,
    /// Bytes whose CRC was checked.
    pub bytes_scanned: u64,
    /// Index entries made again for records below the recovery point.
    pub index_entries_rebuilt: usize,
    /// Bytes cut off the end: the group that was being written when the power went, and zeros, such as the room
    /// that a busy partition has for more.
    pub bytes_truncated: u64,
    /// File with the bytes that were cut off, if they were not only zeros.
    pub torn_file: Option<String>,
    /// The next offset.
    pub end: Offset,
}

/// A partition as it was found.
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Whether the last segment's files are there.
    pub(crate) made: bool,
    pub(crate) indexer: Indexer,
    /// The first segment's base.
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    /// Largest timestamp of all, in ms.
    pub(crate) last_time: i64,
    pub(crate) producers: Producers,
    /// Offsets of the snapshots that are there and whole.
    pub(crate) snapshots: Vec<Offset>,
    pub(crate) report: Recovery,
}

/// What there is to know before a partition is opened.
pub(crate) struct Finder<'a> {
    pub(crate) files: &'a Arc<OpenFiles>,
    /// The partition's folder.
    pub(crate) dir: &'a Arc<str>,
    /// Everything below is known to be durable, and so are its producers.
    pub(crate) recovery_point: Offset,
    /// First offset that is still wanted. What is below was durable too, but nobody wrote down its producers then.
    pub(crate) start: Offset,
    /// Bytes between index entries.
    pub(crate) interval: u64,
    /// Below this offset compaction may have left gaps; [`Offset::MAX`] for files that were not written here.
    pub(crate) gaps_before: Offset,
    /// Largest batch, in bytes. One that is larger than a group is a group of its own.
    pub(crate) largest: usize,
}

/// One segment as it was found.
struct Found {
    segment: Segment,
    indexer: Indexer,
    end: Offset,
}

/// The producers so far, while segments are read in order.
struct Replay {
    producers: Producers,
    /// What the state holds already: batches before are not news. 0 without a snapshot.
    from: Offset,
    /// Where reading has to begin to know all producers; without a snapshot there were none.
    needed_from: Offset,
    snapshots: Vec<Offset>,
}

impl Finder<'_> {
    /// Believes what a clean shutdown has left. Touches no file.
    pub(crate) fn believe(&self, left: Left) -> Recovered {
        let segments = left.segments.iter();
        let segments: Vec<_> = segments.map(|s| Arc::new(Segment::left(self.files, self.dir, s))).collect();
        let report = Recovery { segments: segments.len(), end: left.end, ..Recovery::default() };
        Recovered {
            start: segments[0].base,
            segments,
            made: true,
            indexer: Indexer::new(self.interval, left.last_entry),
            end: left.end,
            last_time: left.last_time,
            producers: left.producers,
            snapshots: left.snapshots,
            report,
        }
    }

    pub(crate) fn recover(&self) -> Result<Recovered, OpenError> {
        let mut report = Recovery::default();
        let names = match self.storage().list(self.dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(self.io(self.dir, e)),
        };
        let (bases, made) = self.bases(&names)?;
        let mut replay = self.replay(&names)?;
        let (mut segments, mut end, mut last_time) = (Vec::new(), bases[0], i64::MIN);
        let mut indexer = Indexer::new(self.interval, None);
        for (i, &base) in bases.iter().enumerate() {
            let gap = base > end && end < self.gaps_before;
            if base != end && !gap {
                let what = format!("the segment before ends at offset {end}, this one begins at {base}");
                return Err(
                    Damage { file: path(self.dir, base, "log"), position: 0, offset: end, what }.into()
                );
            }
            if !made {
                segments.push(Arc::new(Segment::new(self.files, self.dir, base)));
                break;
            }
            let found = self.segment(base, bases.get(i + 1).copied(), &mut replay, &mut report)?;
            (end, indexer) = (found.end, found.indexer);
            last_time = last_time.max(found.segment.max_timestamp());
            segments.push(Arc::new(found.segment));
        }
        if end < self.recovery_point.max(self.start) {
            let what = format!("the log ends here, but was durable up to offset {}", self.recovery_point);
            let last: &Segment = &segments[segments.len() - 1];
            return Err(last.damage(last.size(), end, &what).into());
        }
        if replay.from > end {
            let what =
                format!("the log ends here, but a snapshot of its producers is of offset {}", replay.from);
            let last: &Segment = &segments[segments.len() - 1];
            return Err(last.damage(last.size(), end, &what).into());
        }
        report.segments = segments.len();
        report.end = end;
        let Replay { producers, snapshots, .. } = replay;
        let start = bases[0];
        Ok(Recovered { segments, made, indexer, start, end, last_time, producers, snapshots, report })
    }

    fn storage(&self) -> &dyn Storage {
        &*self.files.storage
    }

    /// Base offsets of the segments that are still wanted, at least one, and whether it is there. Removes the
    /// others, and stray indexes.
    fn bases(&self, names: &[Entry]) -> Result<(Vec<Offset>, bool), OpenError> {
        let of = |ending: &str| {
            let base = |name: &str| {
                let (base, found) = name.split_once('.')?;
                (base.len() == 20 && found == ending).then(|| base.parse().ok()).flatten()
            };
            names.iter().filter(|e| !e.is_dir).filter_map(|e| base(&e.name)).collect::<Vec<Offset>>()
        };
        let all = of("log");
        let unwanted = all.windows(2).filter(|pair| pair[1] <= self.start).count();
        let bases = &all[unwanted..];
        for ending in ENDINGS {
            for base in of(ending).into_iter().filter(|base| !bases.contains(base)) {
                let path = path(self.dir, base, ending);
                self.storage().remove(&path).map_err(|e| self.io(&path, e))?;
            }
        }
        for left in names.iter().filter(|e| e.name.ends_with(CLEANED)) {
            let path = format!("{}/{}", self.dir, left.name);
            self.storage().remove(&path).map_err(|e| self.io(&path, e))?;
        }
        match bases.first() {
            Some(&first) if first > self.start && first >= self.gaps_before => {
                let what =
                    format!("the log starts at offset {}, the first segment here is later", self.start);
                Err(Damage { file: path(self.dir, first, "log"), position: 0, offset: self.start, what }
                    .into())
            }
            Some(_) => Ok((bases.to_vec(), true)),
            None => Ok((vec![self.start], false)),
        }
    }

    /// Begins with the newest snapshot that is whole, and removes those that are not.
    fn replay(&self, names: &[Entry]) -> Result<Replay, OpenError> {
        let mut snapshots: Vec<_> = names.iter().filter_map(|e| snapshot::offset_of(&e.name)).collect();
        let all = snapshots.len();
        while let Some(&newest) = snapshots.last() {
            let path = snapshot::path(self.dir, newest);
            match snapshot::read(self.storage(), self.dir, newest).map_err(|e| self.io(&path, e))? {
                Some(producers) => {
                    return Ok(Replay { producers, from: newest, needed_from: newest, snapshots });
                }
                None => {
                    self.storage().remove(&path).map_err(|e| self.io(&path, e))?;
                    snapshots.pop();
                }
            }
        }
        // If there were snapshots and all are damaged, everything that is there is read.
        let needed_from = if all > 0 { 0 } else { Offset::MAX };
        Ok(Replay { producers: Producers::default(), from: 0, needed_from, snapshots })
    }

    /// Opens one segment, checks what is in doubt, and brings its indexes up to date.
    fn segment(
        &self,
        base: Offset,
        next: Option<Offset>,
        replay: &mut Replay,
        report: &mut Recovery,
    ) -> Result<Found, OpenError> {
        let segment = Segment::new(self.files, self.dir, base);
        let log = segment.log_path();
        let mut found = self.scan(segment, next, replay, report).map_err(|e| match e {
            ScanError::Damaged(damage) => damage.into(),
            ScanError::Io(e) => self.io(&log, e),
        })?;
        let segment = &found.segment;
        let finish = |indexer: &mut Indexer| {
            if next.is_some() {
                indexer.finish(segment)?;
            }
            // Names first: a file that nobody finds need not be durable.
            self.storage().sync_dir(self.dir)?;
            segment.sync_indexes()
        };
        finish(&mut found.indexer).map_err(|e| self.io(&log, e))?;
        Ok(found)
    }

    fn scan(
        &self,
        segment: Segment,
        next: Option<Offset>,
        replay: &mut Replay,
        report: &mut Recovery,
    ) -> Result<Found, ScanError> {
        let log = segment.log()?;
        let len = log.len()?;
        let from = self.trusted(&segment, len, replay.needed_from)?;
        // What the scan will find again.
        segment.keep_aborted_before(from.1.max(replay.from), len)?;
        let pass = self.pass(&segment, len, from, replay)?;
        let Pass { start, position: end, offset, indexer, first_time, unproven, rebuilt, bad } = pass;
        report.segments_scanned += usize::from(start == 0 || unproven.is_some());
        report.bytes_scanned += end - start;
        report.index_entries_rebuilt += rebuilt;
        if let Some(bad) = bad {
            self.cut(Tear { segment: &segment, position: end, offset, len, bad }, next, report)?;
        }
        if next.is_none()
            && let Some(unproven) = unproven
        {
            let group = self.largest.max(GROUP_BYTES) as u64;
            write_anew(&segment, unproven.max(end.saturating_sub(group)), end)?;
        }
        if self.gaps_before == Offset::MAX {
            // Who copied it may not have waited for the disk.
            log.sync_data()?;
        }
        segment.publish(end, indexer.max_timestamp(), first_time);
        Ok(Found { segment, indexer, end: offset })
    }

    /// Reads a segment to its end or to a bad spot, and writes the index entries that are missing.
    fn pass(
        &self,
        segment: &Segment,
        len: u64,
        from: (u64, Offset, Indexer),
        replay: &mut Replay,
    ) -> io::Result<Pass> {
        let (start, offset, indexer) = from;
        let mut pass = Pass {
            start,
            position: start,
            offset,
            indexer,
            first_time: None,
            unproven: None,
            rebuilt: 0,
            bad: None,
        };
        let log = segment.log()?;
        let mut scanner = Scanner::new(&*log, len, start);
        let mut aborted = Vec::new();
        while let Some(batch) = scanner.next()? {
            let (position, header) = match batch {
                Ok((_, batch)) if !self.follows(batch.header.base_offset, pass.offset) => {
                    pass.bad = Some(format!("a batch with offset {}", batch.header.base_offset));
                    break;
                }
                Ok((position, batch)) => {
                    if batch.header.base_offset >= replay.from {
                        aborted.extend(replay.producers.replay(&batch));
                    }
                    (position, batch.header)
                }
                Err(e) => {
                    pass.bad = Some(e.to_string());
                    break;
                }
            };
            if position == 0 {
                pass.first_time = Some(header.max_timestamp);
            }
            pass.offset = header.next_offset();
            pass.position = scanner.position;
            pass.indexer.add(position, header.size() as u64, header.last_offset(), header.max_timestamp);
            let entries = pass.indexer.flush(segment)?;
            if pass.offset > self.recovery_point {
                pass.unproven.get_or_insert(position);
            } else {
                pass.rebuilt += entries;
            }
        }
        segment.add_aborted(&aborted)?;
        Ok(pass)
    }

    /// Whether a batch may have this base offset where `expected` is the next one.
    fn follows(&self, base: Offset, expected: Offset) -> bool {
        base == expected || (base > expected && expected < self.gaps_before)
    }

    /// Where a scan must begin, which offset is there, and the indexes so far. Only index entries of records
    /// below the recovery point are trusted, and only if they lead to the batches that they speak of; without
    /// any, all is scanned. So it is from `needed_from` on, whose producers are not known.
    fn trusted(
        &self,
        segment: &Segment,
        len: u64,
        needed_from: Offset,
    ) -> io::Result<(u64, Offset, Indexer)> {
        let end = self.recovery_point.min(needed_from);
        let sane =
            segment.sane_indexes(|e| e.offset < end && u64::from(e.position) < len, |e| e.offset < end)?;
        if let Some((offsets, times)) = sane
            && let (Some(last), Some(time)) = (offsets.last(), times.last())
            && let Some(Ok((_, batch))) =
                Scanner::new(&*segment.log()?, len, u64::from(last.position)).next()?
            && batch.header.last_offset() == last.offset
        {
            let base = batch.header.base_offset;
            segment.keep_indexes(offsets.len(), times.len())?;
            match segment.batch_ending_at(time.offset, len) {
                Ok(Some(header)) if header.max_timestamp == time.timestamp => {
                    let indexer = Indexer::new(self.interval, Some(*time));
                    return Ok((u64::from(last.position), base, indexer));
                }
                Err(ReadError::Io(e)) => return Err(e),
                // A time from nowhere would become the time of everything to come.
                _ => {}
            }
        }
        segment.keep_indexes(0, 0)?;
        Ok((0, segment.base, Indexer::new(self.interval, None)))
    }

    /// Cuts the file at a bad spot if only a power cut can have made it; else says what is damaged.
    fn cut(&self, tear: Tear<'_>, next: Option<Offset>, report: &mut Recovery) -> Result<(), ScanError> {
        let Tear { segment, position, offset, len, .. } = tear;
        let durable = self.recovery_point.max(self.start);
        if offset < durable {
            return Err(tear.damage(&format!("offset {} was durable", durable - 1)).into());
        }
        let used = last_nonzero(segment, position, len)?;
        if next.is_some_and(|next| next != offset || used > position) {
            return Err(tear.damage("a later segment follows").into());
        }
        if used > position {
            let group = self.largest.max(GROUP_BYTES) as u64;
            if used - position > group {
                return Err(tear.damage("more follows than is ever written at once").into());
            }
            // Zeros at the end may belong to a batch.
            let mut rest = Vec::new();
            segment.log()?.read_into(&mut rest, (len - position).min(group) as usize, position)?;
            if let Some(later) = second_group(&rest, offset) {
                let what = format!("batches of several writes follow, one with offset {later}");
                return Err(tear.damage(&what).into());
            }
            report.torn_file = Some(self.keep_aside(segment, position, &rest)?);
        }
        let log = segment.log()?;
        log.set_len(position)?;
        log.sync_data()?;
        report.bytes_truncated += len - position;
        Ok(())
    }

    /// Keeps bytes that are cut off in a file of their own, for whoever wants to look.
    fn keep_aside(&self, segment: &Segment, position: u64, bytes: &[u8]) -> io::Result<String> {
        let path = format!("{}.{position}.torn", segment.log_path());
        write_file(self.storage(), &path, bytes)?;
        self.storage().sync_dir(self.dir)?;
        Ok(path)
    }

    fn io(&self, path: &str, source: io::Error) -> OpenError {
        OpenError::Io { folder: self.storage().describe(), path: path.to_owned(), source }
    }
}

/// How far reading a segment came.
struct Pass {
    start: u64,
    /// Behind the last good batch.
    position: u64,
    /// The offset that belongs there.
    offset: Offset,
    indexer: Indexer,
    /// The first batch's time, in ms, if it was read.
    first_time: Option<i64>,
    /// Where the records from the recovery point on begin.
    unproven: Option<u64>,
    /// Index entries made for records before it.
    rebuilt: usize,
    /// What is wrong behind the last good batch, if that is not the end.
    bad: Option<String>,
}

/// A spot where no batch is though bytes are.
struct Tear<'a> {
    segment: &'a Segment,
    position: u64,
    /// The offset that belongs here.
    offset: Offset,
    len: u64,
    bad: String,
}

impl Tear<'_> {
    fn damage(&self, why: &str) -> Damage {
        self.segment.damage(self.position, self.offset, &format!("{}; this is no torn tail: {why}", self.bad))
    }
}

#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error(transparent)]
    Damaged(#[from] Damage),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes and syncs the bytes between two positions once more. If the last run ended because a sync failed,
/// the system shows bytes that it no longer means to write; after this they are either durable or an error.
fn write_anew(segment: &Segment, from: u64, to: u64) -> io::Result<()> {
    let (log, mut bytes) = (segment.log()?, Vec::new());
    log.read_into(&mut bytes, (to - from) as usize, from)?;
    log.write_at(&bytes, from)?;
    log.sync_data()
}

/// The position behind the last byte that is not zero, or `from`.
fn last_nonzero(segment: &Segment, from: u64, len: u64) -> io::Result<u64> {
    let (log, mut chunk) = (segment.log()?, vec![0; 1 << 16]);
    let mut end = len;
    while end > from {
        let begin = end.saturating_sub(chunk.len() as u64).max(from);
        let n = log.read_at(&mut chunk[..(end - begin) as usize], begin)?;
        if let Some(last) = chunk[..n].iter().rposition(|&b| b != 0) {
            return Ok(begin + last as u64 + 1);
        }
        end = begin;
    }
    Ok(from)
}

/// Looks for whole batches from `offset` on, at any position. A power cut may leave some of one group, and a
/// group has one time of append: an offset is returned if there are two times, so two groups. Of batches with
/// their producers' times nobody can tell.
fn second_group(bytes: &[u8], offset: Offset) -> Option<Offset> {
    let (mut at, mut time) = (0, None);
    while at + HEADER_BYTES <= bytes.len() {
        let batch = plausible(&bytes[at..], offset).and_then(|_| Batch::parse(&bytes[at..]).ok());
        let Some(batch) = batch else {
            at += 1;
            continue;
        };
        let of_log = batch.header.is_log_append_time();
        if of_log && *time.get_or_insert(batch.header.max_timestamp) != batch.header.max_timestamp {
            return Some(batch.header.base_offset);
        }
        at += batch.bytes.len();
    }
    None
}

/// Sorts out cheaply nearly all bytes that begin no batch.
fn plausible(bytes: &[u8], offset: Offset) -> Option<BatchHeader> {
    let header = (bytes[16] == 2).then(|| BatchHeader::parse(bytes).ok()).flatten()?;
    (header.base_offset >= offset && header.size() <= bytes.len()).then_some(header)
}
