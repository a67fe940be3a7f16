//! Records that wait for the next commit.

use std::sync::{Mutex, PoisonError};

use dibs_model::Offset;

use crate::{
    batch::{
        BatchHeader, HEADER_BYTES, Header, open_batch, put_record, record_size, seal_batch, stamp_batch,
    },
    config::{TimestampType, TopicConfig},
    error::AppendError,
    producers::{Marker, Origin, Producers},
};

/// Bytes of buffers that are kept for the next group, at most.
const SPARE_BYTES: usize = 16 << 20;

/// Batches that are committed together, as the bytes that are written.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) bytes: Vec<u8>,
    pub(crate) batches: Vec<Planned>,
}

/// One batch of a group.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    /// Where in the group's bytes.
    pub(crate) start: usize,
    /// Where it ends; of no meaning while it is open.
    pub(crate) end: usize,
    pub(crate) base: Offset,
    /// Offset of the last record; of no meaning while it is open.
    pub(crate) last: Offset,
    /// In ms; of no meaning before the group is stamped, unless it is a producer's.
    pub(crate) max_timestamp: i64,
    /// Encoded here, not by a producer.
    own: bool,
    log_append_time: bool,
    /// It has a producer's id.
    pub(crate) from_producer: bool,
}

impl Group {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.batches.clear();
    }

    /// Gives every batch that needs one the time of its append, in ms, and its CRC.
    pub(crate) fn stamp(&mut self, now: i64) {
        for batch in &mut self.batches {
            if batch.own || batch.log_append_time {
                batch.max_timestamp = now;
                let bytes = &mut self.bytes[batch.start..batch.end];
                stamp_batch(bytes, now, batch.log_append_time, batch.own);
            }
        }
    }
}

/// Empty buffers, shared by all partitions: one that is idle has none.
#[derive(Default)]
pub(crate) struct Buffers {
    spare: Mutex<Vec<Group>>,
}

impl Buffers {
    pub(crate) fn take(&self) -> Group {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, mut group: Group) {
        group.clear();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = spare.iter().map(|group| group.bytes.capacity()).sum();
        if group.bytes.capacity() > 0 && kept + group.bytes.capacity() <= SPARE_BYTES {
            spare.push(group);
        }
    }
}

/// Whether appends are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    /// A commit failed.
    Failed,
    Closed,
}

/// A batch that was taken from a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset of its last record.
    pub last_offset: Offset,
    /// It was there before, durable or on its way: its producer has sent it again.
    pub duplicate: bool,
    /// [`crate::PartitionLog::failures`] at the time of the append: the offsets are of this append only as long
    /// as it is the same.
    pub failures: u64,
}

/// What appenders share, behind one short mutex.
pub(crate) struct Pending {
    pub(crate) group: Group,
    /// Whether the group's last batch takes more records.
    open: bool,
    /// Records in the open batch.
    open_records: i32,
    /// Offset of the next record. The high watermark, plus the records being committed, plus those of the group.
    pub(crate) next: Offset,
    /// Bytes being committed.
    pub(crate) in_flight: usize,
    pub(crate) mode: Mode,
    /// Threads in `wait_pending`.
    pub(crate) waiting: usize,
    /// `wake` was called and nobody has woken from it yet.
    pub(crate) woken: bool,
    /// How many commits have failed.
    pub(crate) failures: u64,
    /// A [`crate::Committer`] commits what is pending.
    pub(crate) pooled: bool,
    /// It knows that there is something, or is at it.
    pub(crate) queued: bool,
    /// The producers as they will be when everything pending is committed.
    pub(crate) producers: Producers,
    max_batch: usize,
    max_pending: usize,
    log_append_time: bool,
}

impl Pending {
    pub(crate) fn new(next: Offset, producers: Producers, config: &TopicConfig, max_pending: usize) -> Self {
        let mut pending = Pending {
            group: Group::default(),
            open: false,
            open_records: 0,
            next,
            in_flight: 0,
            mode: Mode::Open,
            waiting: 0,
            woken: false,
            failures: 0,
            pooled: false,
            queued: false,
            producers,
            max_batch: 0,
            max_pending,
            log_append_time: false,
        };
        pending.configure(config);
        pending
    }

    /// Takes over what concerns appends. An open batch is closed: its records were taken under the old rules.
    pub(crate) fn configure(&mut self, config: &TopicConfig) {
        self.seal();
        self.max_batch = config.max_message_bytes;
        self.log_append_time = config.timestamp_type == TimestampType::LogAppendTime;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.group.bytes.is_empty()
    }

    /// Encodes a record into the open batch, or a new one.
    pub(crate) fn append(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<Offset, AppendError> {
        self.ready()?;
        let delta = if self.open { self.open_records } else { 0 };
        let size = record_size(delta, key, value, headers);
        let in_batch = match self.group.batches.last() {
            Some(batch) if self.open => self.group.bytes.len() - batch.start,
            _ => 0,
        };
        let fits = self.open && in_batch + size <= self.max_batch;
        let needed = if fits { size } else { size + HEADER_BYTES };
        if needed > self.max_batch {
            return Err(AppendError::TooLarge { size: needed, max: self.max_batch });
        }
        self.room(needed)?;
        if !fits {
            self.seal();
            let (start, base) = (self.group.bytes.len(), self.next);
            open_batch(&mut self.group.bytes);
            self.group.batches.push(Planned {
                start,
                end: start,
                base,
                last: base,
                max_timestamp: i64::MIN,
                own: true,
                log_append_time: self.log_append_time,
                from_producer: false,
            });
            self.open = true;
            self.open_records = 0;
        }
        put_record(&mut self.group.bytes, self.open_records, 0, key, value, headers);
        self.open_records += 1;
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Takes a valid batch as it is, but for its base offset, if its producer may write it.
    pub(crate) fn append_batch(
        &mut self,
        batch: &[u8],
        header: &BatchHeader,
        origin: Origin,
    ) -> Result<Appended, AppendError> {
        self.ready()?;
        if batch.len() > self.max_batch {
            return Err(AppendError::TooLarge { size: batch.len(), max: self.max_batch });
        }
        let from_producer = header.producer_id >= 0;
        if from_producer && let Some(known) = self.producers.check(header, origin)? {
            return Ok(Appended {
                base_offset: known.first_offset,
                last_offset: known.last_offset,
                duplicate: true,
                failures: self.failures,
            });
        }
        let appended = self.take(batch, header)?;
        if from_producer {
            let (first, last) = (appended.base_offset, appended.last_offset);
            self.producers.data(header, first, last, header.max_timestamp);
        }
        Ok(appended)
    }

    /// Takes a control batch with a transaction's end, if its coordinator may write it.
    pub(crate) fn append_marker(
        &mut self,
        batch: &[u8],
        header: &BatchHeader,
        marker: &Marker,
    ) -> Result<Appended, AppendError> {
        self.ready()?;
        self.producers.check_marker(marker)?;
        let appended = self.take(batch, header)?;
        self.producers.marker(marker, appended.base_offset, header.max_timestamp);
        Ok(appended)
    }

    fn take(&mut self, batch: &[u8], header: &BatchHeader) -> Result<Appended, AppendError> {
        self.room(batch.len())?;
        self.seal();
        let base = self.next;
        let start = self.group.bytes.len();
        self.group.bytes.extend_from_slice(batch);
        self.group.bytes[start..start + 8].copy_from_slice(&base.to_be_bytes());
        // The epoch of the leader is the log's own to say.
        self.group.bytes[start + 12..start + 16].fill(0);
        let last = base + header.last_offset_delta as u64;
        self.next = last + 1;
        self.group.batches.push(Planned {
            start,
            end: self.group.bytes.len(),
            base,
            last,
            max_timestamp: header.max_timestamp,
            own: false,
            log_append_time: self.log_append_time,
            from_producer: header.producer_id >= 0,
        });
        Ok(Appended { base_offset: base, last_offset: last, duplicate: false, failures: self.failures })
    }

    /// Gives away what is pending, sealed, and takes an empty group in its place. Returns its bytes.
    pub(crate) fn swap(&mut self, group: &mut Group) {
        self.seal();
        std::mem::swap(&mut self.group, group);
        self.in_flight = group.bytes.len();
    }

    /// Drops what is pending, and goes on at `next`.
    pub(crate) fn drop_all(&mut self, next: Offset) {
        self.group = Group::default();
        self.open = false;
        self.in_flight = 0;
        self.next = next;
    }

    fn seal(&mut self) {
        if std::mem::take(&mut self.open)
            && let Some(batch) = self.group.batches.last_mut()
        {
            batch.end = self.group.bytes.len();
            batch.last = self.next - 1;
            seal_batch(&mut self.group.bytes[batch.start..], batch.base, self.open_records);
        }
    }

    fn ready(&self) -> Result<(), AppendError> {
        match self.mode {
            Mode::Open => Ok(()),
            Mode::Failed => Err(AppendError::Unavailable),
            Mode::Closed => Err(AppendError::Closed),
        }
    }

    fn room(&self, bytes: usize) -> Result<(), AppendError> {
        let used = self.in_flight + self.group.bytes.len();
        if used > 0 && used + bytes > self.max_pending { Err(AppendError::Full) } else { Ok(()) }
    }
}
