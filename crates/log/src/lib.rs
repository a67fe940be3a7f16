//! The durable log of Dibs: topics of partitions, in Apache Kafka's own files.
//!
//! A [`Store`] is a data folder, a [`PartitionLog`] one partition in it. Appends gather in memory; a thread of
//! the caller's commits them as one group, with one write and one sync; readers see committed batches only.
//! There are no threads of its own here, and no clock.
//!
//! ```
//! # use std::sync::Arc;
//! # use dibs_log::{MemoryStorage, Store, StoreConfig, batch::Batches};
//! let store = Store::open(Arc::new(MemoryStorage::new(0)), StoreConfig::default())?;
//! store.create_topic("dibs.claims", 1)?;
//! let log = store.partition("dibs.claims", 0).expect("just made");
//! log.append(Some(b"summer"), Some(b"{}"))?;
//! log.commit(1_700_000_000_000)?;
//! let mut bytes = Vec::new();
//! log.read(0, 1 << 20, &mut bytes)?;
//! for batch in Batches::new(&bytes) {
//!     for record in batch?.records()? {
//!         println!("{:?}", record?);
//!     }
//! }
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In reading order: [`batch`] (the bytes), [`Storage`] (the disk), `config` and `topics` (what topics there
//! are), `accept` and `producers` (what is taken from whom), `pending` (what waits), `writer` (the commit), `tail`
//! (who waits for it), `committer` (who commits what nobody commits by hand), `segment`, `files`, `index`,
//! `txn_index` and `snapshot` (the files), `scan` and `recover` (after a crash), `shutdown` (after none),
//! [`PartitionLog`] and `reader`, `compact` and `clean` (what goes), [`Store`].

mod accept;
pub mod batch;
mod checkpoint;
mod clean;
mod committer;
mod compact;
mod config;
mod error;
mod files;
mod home;
mod index;
mod partition;
mod pending;
mod producers;
mod reader;
mod recover;
mod scan;
mod segment;
mod shutdown;
mod snapshot;
mod storage;
mod store;
mod tail;
mod topics;
mod txn_index;
mod writer;

pub use accept::NAMED_RECORDS;
pub use clean::{CleanError, Cleaned};
pub use committer::Committer;
pub use config::{
    ConfigError, ConfigKey, ConfigKind, StoreConfig, TOPIC_CONFIGS, TimestampType, TopicConfig,
};
pub use dibs_model::Offset;
pub use error::{AppendError, CommitError, Damage, Lost, OpenError, ReadError, TopicError};
pub use partition::{Committed, PartitionLog, SegmentInfo};
pub use pending::Appended;
pub use producers::{Marker, Origin, ProducerError, ProducerInfo};
pub use recover::Recovery;
pub use segment::FileRange;
pub use storage::{Call, DiskStorage, Entry, File, Lock, MemoryStorage, Storage};
pub use store::{Store, check_topic_name};
pub use topics::{TOPICS_FILE, Topic, TopicId};
pub use txn_index::Aborted;

/// The most bytes that are written before a sync, so the most that a power cut can harm, but for a single batch
/// that is larger. Recovery rests on it: a folder must not be opened by a program with a smaller one.
pub const GROUP_BYTES: usize = 8 << 20;

/// The largest batch that any topic may allow, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 100 << 20;

/// The most partitions of a topic.
pub const MAX_PARTITIONS: u32 = 10_000;
