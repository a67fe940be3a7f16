//! What no verdict, or no row, can come of is kept aside and holds nobody up: the topic `<topic>-dlt`, the same
//! partition number, the record as it was, and Spring Kafka's `kafka_dlt-*` headers that say where it came from
//! and why it is here. Spring's listeners and tools read such topics as their own.

use std::{collections::HashSet, fmt::Display, sync::Arc};

use dibs_log::{
    AppendError, CommitError, PartitionLog, Store, TimestampType, Topic, TopicError,
    batch::{BatchBuilder, Batches, Header},
};
use dibs_model::{Offset, Verdict};

use crate::{clock::Clock, records::Entry};

/// What a dead-letter topic's name ends in.
pub const DEAD_LETTER_SUFFIX: &str = "-dlt";
/// Bytes of a dead-letter topic read at a time.
const CHUNK_BYTES: usize = 1024 * 1024;
/// What is kept is written as soon as it has so many bytes.
const FLUSH_BYTES: usize = 256 * 1024;
/// A record of more bytes is kept without what it says: a batch of dead letters may have 1 MiB.
const RECORD_BYTES: usize = 512 * 1024;

const TOPIC: &str = "kafka_dlt-original-topic";
const PARTITION: &str = "kafka_dlt-original-partition";
const OFFSET: &str = "kafka_dlt-original-offset";
const TIMESTAMP: &str = "kafka_dlt-original-timestamp";
const TIMESTAMP_TYPE: &str = "kafka_dlt-original-timestamp-type";
const CLASS: &str = "kafka_dlt-exception-fqcn";
const MESSAGE: &str = "kafka_dlt-exception-message";

/// Why a record is a dead letter. Its name stands where Spring has the class of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It is no command, or not one for this partition.
    Malformed,
    /// There is no such campaign.
    UnknownCampaign,
    /// The ledger will never take the row that follows from it.
    Ledger,
    /// It names no user.
    User,
}

impl Cause {
    /// Whether a command with this verdict is one.
    pub(crate) fn of(verdict: Verdict) -> Option<Cause> {
        match verdict {
            Verdict::Malformed => Some(Cause::Malformed),
            Verdict::UnknownCampaign => Some(Cause::UnknownCampaign),
            _ => None,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Cause::Malformed => "dibs.Malformed",
            Cause::UnknownCampaign => "dibs.UnknownCampaign",
            Cause::Ledger => "dibs.LedgerRefused",
            Cause::User => "dibs.MalformedUser",
        }
    }
}

/// A dead letter could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the dead letter cannot be written into {topic}: {why}")]
pub(crate) struct DeadLetterError {
    topic: String,
    why: String,
    /// Whether trying again may help. After a failed sync only a restart does.
    pub(crate) transient: bool,
}

impl DeadLetterError {
    fn new(topic: &str, why: &dyn Display, transient: bool) -> DeadLetterError {
        DeadLetterError { topic: topic.to_owned(), why: why.to_string(), transient }
    }
}

/// The dead letters of one partition of a topic.
pub(crate) struct DeadLetters {
    /// Whose dead letters they are, and whose times its records have.
    topic: String,
    timestamp_type: &'static str,
    log: Arc<PartitionLog>,
    clock: Clock,
    /// Original offsets of those that the caller may come to again, kept already or about to be.
    kept: HashSet<Offset>,
    /// Not written yet.
    open: BatchBuilder,
    /// What could not be written, to be tried again before anything else.
    unwritten: Option<Vec<u8>>,
}

impl DeadLetters {
    /// Opens the topic, which is made with so many partitions if need be. What `topic` had before the offset `from`
    /// does not come again.
    pub(crate) fn open(
        store: &Store,
        topic: &str,
        number: u32,
        partitions: u32,
        from: Offset,
        clock: Clock,
    ) -> Result<DeadLetters, DeadLetterError> {
        let name = format!("{topic}{DEAD_LETTER_SUFFIX}");
        let failed = |why: &dyn Display, transient| DeadLetterError::new(&name, why, transient);
        let not_made = |e: TopicError| failed(&e, matches!(e, TopicError::Io { .. }));
        match store.topic(&name).map_or(0, |t| t.partitions().len() as u32) {
            0 => store.create_topic(&name, partitions).map_err(not_made)?,
            n if n < partitions => store.add_partitions(&name, partitions).map_err(not_made)?,
            _ => {}
        }
        let log = store.partition(&name, number).ok_or_else(|| failed(&"it was deleted", false))?;
        let kept = originals(&log, from).map_err(|e| failed(&e, false))?;
        let append_time = |t: Arc<Topic>| t.config().timestamp_type == TimestampType::LogAppendTime;
        let timestamp_type =
            if store.topic(topic).is_some_and(append_time) { "LogAppendTime" } else { "CreateTime" };
        let (topic, open, unwritten) = (topic.to_owned(), BatchBuilder::new(), None);
        Ok(DeadLetters { topic, timestamp_type, log, clock, kept, open, unwritten })
    }

    /// Keeps a record from the next [`DeadLetters::flush`] on. One that is there already is not kept twice.
    pub(crate) fn keep(&mut self, entry: &Entry<'_>, cause: Cause, why: &str) {
        if !self.kept.insert(entry.offset) {
            return;
        }
        let partition = (self.log.partition() as i32).to_be_bytes();
        let (offset, timestamp) = (entry.offset.to_be_bytes(), entry.timestamp.0.to_be_bytes());
        let header = |name, value| Header { name, value: Some(value) };
        let own = [
            header(TOPIC, self.topic.as_bytes()),
            header(PARTITION, &partition),
            header(OFFSET, &offset),
            header(TIMESTAMP, &timestamp),
            header(TIMESTAMP_TYPE, self.timestamp_type.as_bytes()),
            header(CLASS, cause.class().as_bytes()),
            header(MESSAGE, why.as_bytes()),
        ];
        let size = |b: Option<&[u8]>| b.map_or(0, <[u8]>::len);
        let bytes = size(entry.key) + size(entry.value) + entry.headers.map_or(0, |h| h.as_bytes().len());
        if bytes > RECORD_BYTES {
            // Where it came from still says which it was.
            self.open.push_with(None, None, &own);
        } else {
            let theirs = entry.headers.iter().flat_map(|h| h.iter());
            let headers: Vec<Header<'_>> = theirs.chain(own).collect();
            self.open.push_with(entry.key, entry.value, &headers);
        }
    }

    /// Whether so much is kept that it should be flushed.
    pub(crate) fn is_full(&self) -> bool {
        self.open.size() >= FLUSH_BYTES
    }

    /// Makes all that is kept durable. What could not be written is tried again at the next call.
    pub(crate) fn flush(&mut self) -> Result<(), DeadLetterError> {
        loop {
            if self.unwritten.is_none() && !self.open.is_empty() {
                self.unwritten = Some(std::mem::take(&mut self.open).finish(self.clock.now().0));
            }
            let Some(batch) = &self.unwritten else { return Ok(()) };
            self.write(batch)?;
            self.unwritten = None;
        }
    }

    fn write(&self, batch: &[u8]) -> Result<(), DeadLetterError> {
        let failed = |why: &dyn Display, transient| DeadLetterError::new(self.log.topic(), why, transient);
        let uncommitted =
            |e: CommitError| failed(&e, !matches!(e, CommitError::Broken(_) | CommitError::Closed));
        // An earlier try may have failed.
        self.log.reset().map_err(uncommitted)?;
        let appended = self.log.append_batch(batch);
        let offset =
            appended.map_err(|e| failed(&e, matches!(e, AppendError::Full | AppendError::Unavailable)))?;
        self.log.commit(self.clock.now().0).map_err(uncommitted)?;
        // A committer may have taken it first, and failed.
        let durable = self.log.high_watermark() > offset;
        if durable { Ok(()) } else { Err(failed(&"the write failed", true)) }
    }

    /// What the caller has left behind for good does not come again.
    pub(crate) fn forget_before(&mut self, offset: Offset) {
        if !self.kept.is_empty() {
            self.kept.retain(|kept| *kept >= offset);
        }
    }
}

/// The original offsets, from one on, of all dead letters in a partition.
fn originals(log: &PartitionLog, from: Offset) -> Result<HashSet<Offset>, String> {
    let mut found = HashSet::new();
    let (mut next, mut buffer) = (log.log_start_offset(), Vec::new());
    while next < log.high_watermark() {
        buffer.clear();
        log.read(next, CHUNK_BYTES, &mut buffer).map_err(|e| e.to_string())?;
        for batch in Batches::new(&buffer) {
            let batch = batch.map_err(|e| e.to_string())?;
            for record in batch.records().into_iter().flatten().flatten() {
                let original = record.headers.iter().filter(|h| h.name == OFFSET).last();
                let offset = original.and_then(|h| h.value?.try_into().ok()).map(u64::from_be_bytes);
                found.extend(offset.filter(|offset| *offset >= from));
            }
            next = batch.header.next_offset();
        }
    }
    Ok(found)
}
