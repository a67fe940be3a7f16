//! What clients did and were told, and nothing else.

use std::ops::Range;

/// Each record ever sent has a number of its own.
pub(super) type Value = u64;

/// Everything that happened, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// In the order of their values, which leave nothing out.
    pub(super) batches: Vec<Batch>,
    pub(super) events: Vec<Event>,
    /// What each partition holds in the end, read by somebody who reads committed records.
    pub(super) end: Vec<Vec<(u64, Item)>>,
}

/// Records that are sent together, once or again and again.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) partition: usize,
    pub(super) values: Range<Value>,
    /// Who has numbered it, for whom each batch counts once: a producer in one epoch. Its batches to a partition
    /// are numbered in the order of their values.
    pub(super) producer: Option<usize>,
    pub(super) transaction: Option<usize>,
}

/// One step of a client.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A batch is sent, for the first time or again.
    Sent(usize),
    /// A batch is said to stand in the log from this offset on.
    Acked { batch: usize, base: u64 },
    /// A transaction's end is asked for.
    Ending { transaction: usize, commit: bool },
    /// It is said to have ended so.
    Ended { transaction: usize, commit: bool },
    /// What is before an offset may be deleted.
    Deleting { partition: usize, before: u64 },
    /// Everything before an offset is said to be gone.
    Deleted { partition: usize, start: u64 },
    /// Records were read.
    Fetched(Fetched),
    /// There is said to be nothing at an offset.
    OutOfRange { partition: usize, from: u64 },
}

/// What a fetch has shown.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) partition: usize,
    pub(super) from: u64,
    /// Whether it was about committed records alone.
    pub(super) committed: bool,
    pub(super) start: u64,
    pub(super) high_watermark: u64,
    pub(super) last_stable: u64,
    /// By offset, with what stands before `from` in the same batch.
    pub(super) items: Vec<(u64, Item)>,
}

/// What stands at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Record(Value),
    /// A record of which the reader was told that its transaction was aborted.
    Aborted(Value),
    /// A transaction's end.
    Control,
}
