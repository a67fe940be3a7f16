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
    error::{Damage, OpenError},
    segment::{ENDINGS, Indexer, Scanner, Segment, path},
    storage::Storage,
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
    /// Bytes cut off the end: the group that was being written when the power went. Zeros included.
    pub bytes_truncated: u64,
    /// File with the bytes that were cut off, if they were not only zeros.
    pub torn_file: Option<String>,
    /// The next offset.
    pub end: Offset,
}

/// A partition as it was found.
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) indexer: Indexer,
    pub(crate) end: Offset,
    /// Largest timestamp of all, in ms.
    pub(crate) last_time: i64,
    pub(crate) report: Recovery,
}

/// What there is to know before a partition is opened.
pub(crate) struct Finder<'a> {
    pub(crate) storage: &'a dyn Storage,
    /// The partition's folder.
    pub(crate) dir: &'a str,
    /// Everything below is known to be durable.
    pub(crate) recovery_point: Offset,
    /// First offset that is still wanted.
    pub(crate) start: Offset,
    /// Bytes between index entries.
    pub(crate) interval: u64,
}

/// One segment as it was found.
struct Found {
    segment: Segment,
    indexer: Indexer,
    end: Offset,
}

impl Finder<'_> {
    pub(crate) fn recover(&self) -> Result<Recovered, OpenError> {
        let mut report = Recovery::default();
        let bases = self.bases()?;
        let (mut segments, mut end, mut last_time) = (Vec::new(), bases[0], i64::MIN);
        let mut indexer = Indexer::new(self.interval, None);
        for (i, &base) in bases.iter().enumerate() {
            if base != end {
                let what = format!("the segment before ends at offset {end}, this one begins at {base}");
                return Err(
                    Damage { file: path(self.dir, base, "log"), position: 0, offset: end, what }.into()
                );
            }
            let found = self.segment(base, bases.get(i + 1).copied(), &mut report)?;
            (end, indexer) = (found.end, found.indexer);
            last_time = last_time.max(found.segment.max_timestamp());
            segments.push(Arc::new(found.segment));
        }
        if end < self.recovery_point.max(self.start) {
            let what = format!("the log ends here, but was durable up to offset {}", self.recovery_point);
            let last: &Segment = &segments[segments.len() - 1];
            return Err(last.damage(last.size(), end, &what).into());
        }
        report.segments = segments.len();
        report.end = end;
        Ok(Recovered { segments, indexer, end, last_time, report })
    }

    /// Base offsets of the segments that are still wanted, at least one. Removes the others, and stray indexes.
    fn bases(&self) -> Result<Vec<Offset>, OpenError> {
        let names = self.storage.list(self.dir).map_err(|e| self.io(self.dir, e))?;
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
                self.storage.remove(&path).map_err(|e| self.io(&path, e))?;
            }
        }
        match bases.first() {
            Some(&first) if first > self.start => {
                let what =
                    format!("the log starts at offset {}, the first segment here is later", self.start);
                Err(Damage { file: path(self.dir, first, "log"), position: 0, offset: self.start, what }
                    .into())
            }
            Some(_) => Ok(bases.to_vec()),
            None => Ok(vec![self.start]),
        }
    }

    /// Opens one segment, checks what is in doubt, and brings its indexes up to date.
    fn segment(&self, base: Offset, next: Option<Offset>, report: &mut Recovery) -> Result<Found, OpenError> {
        let segment = Segment::open(self.storage, self.dir, base).map_err(|e| self.io(self.dir, e))?;
        let log = segment.log_path();
        let mut found = self.scan(segment, next, report).map_err(|e| match e {
            ScanError::Damaged(damage) => damage.into(),
            ScanError::Io(e) => self.io(&log, e),
        })?;
        let segment = &found.segment;
        let finish = |indexer: &mut Indexer| {
            if next.is_some() {
                indexer.finish(segment)?;
            }
            // Names first: a file that nobody finds need not be durable.
            self.storage.sync_dir(self.dir)?;
            segment.sync_indexes()
        };
        finish(&mut found.indexer).map_err(|e| self.io(&log, e))?;
        Ok(found)
    }

    fn scan(
        &self,
        segment: Segment,
        next: Option<Offset>,
        report: &mut Recovery,
    ) -> Result<Found, ScanError> {
        let len = segment.log.len()?;
        let mut pass = self.pass(&segment, len, self.trusted(&segment, len)?)?;
        if !pass.indexer.times_fit() {
            // A time from nowhere would become the time of everything to come.
            pass = self.pass(&segment, len, self.anew(&segment)?)?;
        }
        let Pass { start, position: end, offset, indexer, unproven, rebuilt, bad } = pass;
        report.segments_scanned += usize::from(start == 0 || unproven.is_some());
        report.bytes_scanned += end - start;
        report.index_entries_rebuilt += rebuilt;
        if let Some(bad) = bad {
            self.cut(Tear { segment: &segment, position: end, offset, len, bad }, next, report)?;
        }
        if next.is_none()
            && let Some(unproven) = unproven
        {
            write_anew(&segment, unproven.max(end.saturating_sub(GROUP_BYTES as u64)), end)?;
        }
        segment.publish(end, indexer.max_timestamp());
        Ok(Found { segment, indexer, end: offset })
    }

    /// Reads a segment to its end or to a bad spot, and writes the index entries that are missing.
    fn pass(&self, segment: &Segment, len: u64, from: (u64, Offset, Indexer)) -> io::Result<Pass> {
        let (start, offset, indexer) = from;
        let mut pass =
            Pass { start, position: start, offset, indexer, unproven: None, rebuilt: 0, bad: None };
        let mut scanner = Scanner::new(&*segment.log, len, start);
        while let Some(batch) = scanner.next()? {
            let (position, header) = match batch {
                Ok((_, header)) if header.base_offset != pass.offset => {
                    pass.bad = Some(format!("a batch with offset {}", header.base_offset));
                    break;
                }
                Ok(batch) => batch,
                Err(e) => {
                    pass.bad = Some(e.to_string());
                    break;
                }
            };
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
        Ok(pass)
    }

    /// Where a scan must begin, which offset is there, and the indexes so far. Only index entries of records
    /// below the recovery point are trusted, and only if they lead to a batch; without any, all is scanned.
    fn trusted(&self, segment: &Segment, len: u64) -> io::Result<(u64, Offset, Indexer)> {
        let offsets =
            segment.offsets.sane(|e| e.offset < self.recovery_point && u64::from(e.position) < len)?;
        let times = segment.times.sane(|e| e.offset < self.recovery_point)?;
        if let (Some(last), Some(time)) = (offsets.last(), times.last()) {
            let position = u64::from(last.position);
            if let Some(Ok((_, header))) = Scanner::new(&*segment.log, len, position).next()?
                && header.last_offset() == last.offset
            {
                segment.offsets.keep(offsets.len())?;
                segment.times.keep(times.len())?;
                return Ok((position, header.base_offset, Indexer::new(self.interval, Some(*time))));
            }
        }
        self.anew(segment)
    }

    fn anew(&self, segment: &Segment) -> io::Result<(u64, Offset, Indexer)> {
        segment.offsets.keep(0)?;
        segment.times.keep(0)?;
        Ok((0, segment.base, Indexer::new(self.interval, None)))
    }

    /// Cuts the file at a bad spot if only a power cut can have made it; else says what is damaged.
    fn cut(&self, tear: Tear<'_>, next: Option<Offset>, report: &mut Recovery) -> Result<(), ScanError> {
        let Tear { segment, position, offset, len, .. } = tear;
        if offset < self.recovery_point {
            return Err(tear.damage(&format!("offset {} was durable", self.recovery_point - 1)).into());
        }
        let used = last_nonzero(segment, position, len)?;
        if next.is_some_and(|next| next != offset || used > position) {
            return Err(tear.damage("a later segment follows").into());
        }
        if used > position {
            if used - position > GROUP_BYTES as u64 {
                return Err(tear.damage("more follows than is ever written at once").into());
            }
            // Zeros at the end may belong to a batch.
            let mut rest = vec![0; (len - position).min(GROUP_BYTES as u64) as usize];
            let n = segment.log.read_at(&mut rest, position)?;
            rest.truncate(n);
            if let Some(later) = second_group(&rest, offset) {
                let what = format!("batches of several writes follow, one with offset {later}");
                return Err(tear.damage(&what).into());
            }
            report.torn_file = Some(self.keep_aside(segment, position, &rest)?);
        }
        segment.log.set_len(position)?;
        segment.log.sync_data()?;
        report.bytes_truncated += len - position;
        Ok(())
    }

    /// Keeps bytes that are cut off in a file of their own, for whoever wants to look.
    fn keep_aside(&self, segment: &Segment, position: u64, bytes: &[u8]) -> io::Result<String> {
        let path = format!("{}.{position}.torn", segment.log_path());
        let file = self.storage.open(&path, true)?;
        file.set_len(0)?;
        file.write_at(bytes, 0)?;
        file.sync_data()?;
        self.storage.sync_dir(self.dir)?;
        Ok(path)
    }

    fn io(&self, path: &str, source: io::Error) -> OpenError {
        OpenError::Io { folder: self.storage.describe(), path: path.to_owned(), source }
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
    let mut bytes = vec![0; (to - from) as usize];
    let n = segment.log.read_at(&mut bytes, from)?;
    segment.log.write_at(&bytes[..n], from)?;
    segment.log.sync_data()
}

/// The position behind the last byte that is not zero, or `from`.
fn last_nonzero(segment: &Segment, from: u64, len: u64) -> io::Result<u64> {
    let mut chunk = vec![0; 1 << 16];
    let mut end = len;
    while end > from {
        let begin = end.saturating_sub(chunk.len() as u64).max(from);
        let n = segment.log.read_at(&mut chunk[..(end - begin) as usize], begin)?;
        if let Some(last) = chunk[..n].iter().rposition(|&b| b != 0) {
            return Ok(begin + last as u64 + 1);
        }
        end = begin;
    }
    Ok(from)
}

/// Looks for whole batches from `offset` on, at any position. A power cut may leave some of one group, and a
/// group has one time of append: an offset is returned if there are two times, so two groups.
fn second_group(bytes: &[u8], offset: Offset) -> Option<Offset> {
    let (mut at, mut time) = (0, None);
    while at + HEADER_BYTES <= bytes.len() {
        let batch = plausible(&bytes[at..], offset).and_then(|_| Batch::parse(&bytes[at..]).ok());
        let Some(batch) = batch else {
            at += 1;
            continue;
        };
        if *time.get_or_insert(batch.header.max_timestamp) != batch.header.max_timestamp {
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
