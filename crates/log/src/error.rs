//! What can go wrong, one enum for each operation.

use std::{io, sync::Arc};

use dibs_model::Offset;

use crate::{batch::BatchError, config::ConfigError, files::SegmentFiles, producers::ProducerError};

/// Why a data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the folder open.
    #[error("{folder} is in use by another process")]
    Locked {
        /// The data folder.
        folder: String,
    },
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(&'static str),
    /// A default of the topics' configuration is none.
    #[error(transparent)]
    Default(#[from] ConfigError),
    /// Something stands in the folder that the log did not write so.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The storage failed.
    #[error("{folder}/{path}: {source}")]
    Io {
        /// The data folder.
        folder: String,
        /// File or folder in it.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

/// Damage inside a partition: bytes that were durable once and no longer are what was written. Nothing is cut
/// or repaired by itself, since that could lose acknowledged records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} is damaged at byte {position}, where offset {offset} belongs: {what}")]
pub struct Damage {
    /// The file, relative to the data folder.
    pub file: String,
    /// Where in the file, in bytes.
    pub position: u64,
    /// The first offset that is not readable.
    pub offset: Offset,
    /// What is wrong, and why it is no torn tail.
    pub what: String,
}

/// Why a topic cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// Not a name by Kafka's rules.
    #[error("{name:?} is no topic name: {what}")]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        what: &'static str,
    },
    /// It exists with another number of partitions.
    #[error("topic {name} has {partitions} partitions already")]
    Exists {
        /// The name.
        name: String,
        /// Its number of partitions.
        partitions: u32,
    },
    /// There is none of that name.
    #[error("there is no topic {0}")]
    Unknown(String),
    /// A configuration that there is not, or not with such a value.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A number of partitions out of range.
    #[error("{0} partitions, it must be 1 to {max}", max = crate::MAX_PARTITIONS)]
    Partitions(u32),
    /// The store is closed.
    #[error("the log is closed")]
    Closed,
    /// The storage failed. What was made in part is removed at the next open.
    #[error("topic {name}: {source}")]
    Io {
        /// The name.
        name: String,
        /// The cause.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a record was not taken. Nothing of it is in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// As many bytes wait for a commit as may. Try again after one.
    #[error("too much is waiting to be written")]
    Full,
    /// The record or batch alone is larger than a batch may be.
    #[error("{size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its size, in bytes, with the batch header.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// Not a valid batch.
    #[error(transparent)]
    Invalid(#[from] BatchError),
    /// Its producer may not write it.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// A timestamp is too far from now, or its type is not the producer's to say.
    #[error("timestamp {time} is out of range")]
    Timestamp {
        /// The first that is, in ms.
        time: i64,
        /// Where in the batch the records are that have such a time, from 0; at most
        /// [`NAMED_RECORDS`](crate::NAMED_RECORDS).
        records: Vec<u32>,
    },
    /// Records have no key, and compaction could not keep them.
    #[error("a record without a key in a compacted topic")]
    NoKey {
        /// Where in the batch they are, from 0; at most [`NAMED_RECORDS`](crate::NAMED_RECORDS).
        records: Vec<u32>,
    },
    /// A commit failed; see [`crate::PartitionLog::reset`].
    #[error("the last write failed")]
    Unavailable,
    /// The partition is closed.
    #[error("the log is closed")]
    Closed,
}

/// Why an append that was taken is not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Its commit failed, or so many did since that nobody remembers. After a failed sync, and only then, it may
    /// be found at the next start all the same.
    #[error("it could not be written")]
    Failed,
    /// The partition was closed before.
    #[error("the log was closed")]
    Closed,
}

/// Why a commit or reset failed. Everything below the high watermark is durable all the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// No space is left. Nothing of the failed group counts; go on with [`crate::PartitionLog::reset`].
    #[error("no space is left: {0}")]
    NoSpace(Arc<io::Error>),
    /// A write failed. Nothing of the failed group counts; go on with [`crate::PartitionLog::reset`].
    #[error("a write failed: {0}")]
    Write(Arc<io::Error>),
    /// An earlier commit failed and [`crate::PartitionLog::reset`] has not been called yet.
    #[error("an earlier write failed")]
    Unavailable,
    /// A sync failed, after which the system may take for written what is not. Only opening the store again
    /// helps, which reads what is there and writes it anew.
    #[error("a sync failed, the partition needs a restart: {0}")]
    Broken(Arc<io::Error>),
    /// The partition is closed.
    #[error("the log is closed")]
    Closed,
}

impl CommitError {
    /// The error of a write, by its kind.
    pub(crate) fn of_write(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                CommitError::NoSpace(Arc::new(error))
            }
            _ => CommitError::Write(Arc::new(error)),
        }
    }

    /// The error of a sync.
    pub(crate) fn of_sync(error: io::Error) -> Self {
        CommitError::Broken(Arc::new(error))
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No record is, or will be next, at this offset.
    #[error("offset is out of range {start}..={end}")]
    OutOfRange {
        /// The first offset that is there.
        start: Offset,
        /// The high watermark: the next one to come.
        end: Offset,
    },
    /// The bytes on the disk are not a batch.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The storage failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ReadError {
    /// Whether the segment was deleted or replaced while it was being read: look again.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, ReadError::Io(e) if SegmentFiles::is_gone(e))
    }
}
