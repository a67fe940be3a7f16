//! A small Kafka client for the command line tools: it speaks to any Kafka from 2.4 on, one broker or many.
//!
//! In reading order: [`Properties`] and [`ClientConfig`] (what was asked for), `connection` (one socket: frames,
//! versions, TLS, SASL), [`Cluster`] (who leads what, routing, retries), `admin`, `offsets` and `groups` (one
//! question, one answer), [`Producer`] (batches, idempotence, retries in order), [`Fetcher`] (records of
//! assigned partitions), [`GroupMember`] (the classic consumer group protocol).
//!
//! Nothing here has a thread: all runs on the caller's tokio runtime, best a `current_thread` one. Producer and
//! fetcher are driven by their caller, so that nothing happens behind its back.
//!
//! Batches are built and read with `dibs-log`'s `batch` module: there is one record codec in Dibs.

mod admin;
mod cluster;
mod config;
mod connection;
mod error;
mod fetcher;
mod groups;
mod member;
mod offsets;
mod partitioner;
mod producer;
mod queue;
mod sasl;
mod tls;
mod versions;

pub use admin::{ConfigChange, ConfigEntry, NewTopic};
pub use cluster::{Cluster, Node, Partition, Topic, TopicPartition};
pub use config::{Acks, ClientConfig, Codec, Isolation, ProducerConfig, Properties};
pub use dibs_log::batch;
pub use error::{ClientError, KafkaError};
pub use fetcher::{Fetched, Fetcher, FetcherConfig, Reset};
pub use groups::{Committed, GroupDescription, ListedGroup, MemberDescription};
pub use kafka_protocol::ResponseError;
pub use member::{GroupMember, MemberConfig, Rebalance};
pub use offsets::{At, FoundOffset};
pub use partitioner::{murmur2, partition_for_key};
pub use producer::{Delivery, Producer, ProducerRecord};
