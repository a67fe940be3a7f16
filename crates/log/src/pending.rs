//! Records that wait for the next commit.

use dibs_model::Offset;

use crate::{
    batch::{Header, open_batch, put_record, record_size, seal_batch, stamp_batch},
    error::AppendError,
};

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
    pub(crate) records: i32,
    /// Encoded here, not by a producer.
    own: bool,
}

impl Planned {
    pub(crate) fn last_offset(&self) -> Offset {
        self.base + self.records as u64 - 1
    }
}

impl Group {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.batches.clear();
    }

    /// Gives every batch the time of its append, in ms, and its CRC.
    pub(crate) fn stamp(&mut self, now: i64) {
        for batch in &self.batches {
            stamp_batch(&mut self.bytes[batch.start..batch.end], now, batch.own);
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

/// What appenders share, behind one short mutex.
pub(crate) struct Pending {
    pub(crate) group: Group,
    /// Whether the group's last batch takes more records.
    open: bool,
    /// Offset of the next record. The high watermark, plus the records being committed, plus those of the group.
    pub(crate) next: Offset,
    /// Bytes being committed.
    pub(crate) in_flight: usize,
    pub(crate) mode: Mode,
    /// Threads in `wait_pending`.
    pub(crate) waiting: usize,
    /// `wake` was called and nobody has woken from it yet.
    pub(crate) woken: bool,
    max_batch: usize,
    max_pending: usize,
}

impl Pending {
    pub(crate) fn new(next: Offset, max_batch: usize, max_pending: usize) -> Self {
        Pending {
            group: Group::default(),
            open: false,
            next,
            in_flight: 0,
            mode: Mode::Open,
            waiting: 0,
            woken: false,
            max_batch,
            max_pending,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.group.batches.is_empty()
    }

    /// Encodes one record into the open batch, or into a new one if it no longer fits.
    pub(crate) fn append(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<Offset, AppendError> {
        self.ready()?;
        let delta = if self.open { self.group.batches.last().map_or(0, |b| b.records) } else { 0 };
        let size = record_size(delta, key, value, headers);
        let in_batch = match self.group.batches.last() {
            Some(batch) if self.open => self.group.bytes.len() - batch.start,
            _ => 0,
        };
        let fits = self.open && in_batch + size <= self.max_batch;
        let needed = if fits { size } else { size + crate::batch::HEADER_BYTES };
        if needed > self.max_batch {
            return Err(AppendError::TooLarge { size: needed, max: self.max_batch });
        }
        self.room(needed)?;
        if !fits {
            self.seal();
            let start = self.group.bytes.len();
            open_batch(&mut self.group.bytes);
            self.group.batches.push(Planned { start, end: start, base: self.next, records: 0, own: true });
            self.open = true;
        }
        let Group { bytes, batches } = &mut self.group;
        if let Some(batch) = batches.last_mut() {
            put_record(bytes, batch.records, key, value, headers);
            batch.records += 1;
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Takes a valid batch of `records` records as it is, but for its base offset.
    pub(crate) fn append_batch(&mut self, batch: &[u8], records: i32) -> Result<Offset, AppendError> {
        self.ready()?;
        if batch.len() > self.max_batch {
            return Err(AppendError::TooLarge { size: batch.len(), max: self.max_batch });
        }
        self.room(batch.len())?;
        self.seal();
        let base = self.next;
        let start = self.group.bytes.len();
        self.group.bytes.extend_from_slice(batch);
        let end = self.group.bytes.len();
        self.group.bytes[start..start + 8].copy_from_slice(&base.to_be_bytes());
        // The epoch of the leader is the log's own to say.
        self.group.bytes[start + 12..start + 16].fill(0);
        self.group.batches.push(Planned { start, end, base, records, own: false });
        self.next += records as u64;
        Ok(base)
    }

    /// Gives away what is pending, sealed, and takes an empty group in its place. Returns its bytes.
    pub(crate) fn swap(&mut self, group: &mut Group) {
        self.seal();
        std::mem::swap(&mut self.group, group);
        self.in_flight = group.bytes.len();
    }

    /// Drops what is pending, and goes on at `next`.
    pub(crate) fn drop_all(&mut self, next: Offset) {
        self.group.clear();
        self.open = false;
        self.in_flight = 0;
        self.next = next;
    }

    fn seal(&mut self) {
        if std::mem::take(&mut self.open)
            && let Some(batch) = self.group.batches.last_mut()
        {
            batch.end = self.group.bytes.len();
            seal_batch(&mut self.group.bytes[batch.start..], batch.base, batch.records);
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
        if used + bytes > self.max_pending { Err(AppendError::Full) } else { Ok(()) }
    }
}
