//! Record batches of Kafka's format, version 2 (KIP-98): the 61-byte header, and the records behind it.
//!
//! ```text
//!  0 base offset       i64    17 CRC-32C of 21..  u32    43 producer id     i64
//!  8 length of 12..    i32    21 attributes       i16    51 producer epoch  i16
//! 12 leader epoch      i32    23 last offset delta i32   53 base sequence   i32
//! 16 magic = 2         i8     27 base timestamp   i64    57 records         i32
//!                             35 max timestamp    i64    61 records…
//! ```

mod build;
mod codec;
mod read;

#[cfg(test)]
pub(crate) use build::set_crc;
pub use build::{BatchBuilder, set_producer};
pub(crate) use build::{
    open_batch, put_record, rebuild, recompress, record_size, retime, seal_batch, stamp_batch,
};
pub use codec::MAX_UNPACKED_BYTES;
pub use read::{Batch, Batches, Header, Headers, Record, Records};

use dibs_model::Offset;

/// Bytes of a batch before its records.
pub const HEADER_BYTES: usize = 61;
/// Bytes before those that the length field counts.
pub const LENGTH_OFFSET: usize = 12;
/// Where the bytes that the CRC covers begin.
const CRC_FROM: usize = 21;
/// Attribute bit: timestamps are those of the append, not of the producer.
const LOG_APPEND_TIME: i16 = 1 << 3;
/// Attribute bit: the batch belongs to a transaction.
const TRANSACTIONAL: i16 = 1 << 4;
/// Attribute bit: the batch is a marker.
const CONTROL: i16 = 1 << 5;
/// Attribute bit: the base timestamp says when tombstones may go (KIP-534).
const DELETE_HORIZON: i16 = 1 << 6;

/// Why bytes are not a record batch, or a batch's records cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end inside the batch.
    #[error("{have} bytes where a batch needs {need}")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// A format other than version 2.
    #[error("magic {0}, only 2 is known")]
    Magic(i8),
    /// The length field is too small for a header.
    #[error("a length of {0}")]
    Length(i32),
    /// The bytes are not those that were written.
    #[error("CRC-32C {found:08x}, its header says {expected:08x}")]
    Crc {
        /// The header's.
        expected: u32,
        /// The bytes'.
        found: u32,
    },
    /// A negative offset, or offsets that do not go with the number of records.
    #[error("{0}")]
    Header(&'static str),
    /// The records are compressed, so they cannot be borrowed from the batch; see [`Batch::records_in`]. Their
    /// codec's number in Kafka's attributes (1 gzip, 2 snappy, 3 lz4, 4 zstd).
    #[error("the records are compressed with codec {0}")]
    Compressed(u8),
    /// A number that is no codec's.
    #[error("there is no codec {0}")]
    Codec(u8),
    /// The compressed bytes are not what their codec (its number) writes, or unpack to more than
    /// [`MAX_UNPACKED_BYTES`].
    #[error("the compressed records cannot be unpacked with codec {0}")]
    Packed(u8),
    /// A record's bytes do not follow the format.
    #[error("record {index}: {what}")]
    Record {
        /// The record's number in the batch, from 0.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// The fields of a batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Bytes after the length field, so 12 less than the whole batch.
    pub batch_length: i32,
    /// Epoch of the leader that appended the batch; Dibs writes 0.
    pub partition_leader_epoch: i32,
    /// Version of the format, 2.
    pub magic: i8,
    /// CRC-32C of the bytes from the attributes on.
    pub crc: u32,
    /// Bits 0–2 compression, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon.
    pub attributes: i16,
    /// Offset of the last record, less that of the first.
    pub last_offset_delta: i32,
    /// Timestamp that the records' deltas are relative to, in ms; see [`BatchHeader::delete_horizon`].
    pub base_timestamp: i64,
    /// Largest timestamp, in ms; the time of the append if the timestamp type says so.
    pub max_timestamp: i64,
    /// Id of an idempotent producer, or −1.
    pub producer_id: i64,
    /// Its epoch, or −1.
    pub producer_epoch: i16,
    /// Its sequence number of the first record, or −1.
    pub base_sequence: i32,
    /// Number of records. Compaction may leave fewer than the offsets, even none.
    pub records_count: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes` and checks that it can be one: magic, length, offsets, count.
    /// Not the CRC, which needs the whole batch.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BatchError::Truncated { need: HEADER_BYTES, have: bytes.len() });
        }
        let header = BatchHeader {
            base_offset: u64::from_be_bytes(array(bytes, 0)),
            batch_length: i32::from_be_bytes(array(bytes, 8)),
            partition_leader_epoch: i32::from_be_bytes(array(bytes, 12)),
            magic: bytes[16] as i8,
            crc: u32::from_be_bytes(array(bytes, 17)),
            attributes: i16::from_be_bytes(array(bytes, 21)),
            last_offset_delta: i32::from_be_bytes(array(bytes, 23)),
            base_timestamp: i64::from_be_bytes(array(bytes, 27)),
            max_timestamp: i64::from_be_bytes(array(bytes, 35)),
            producer_id: i64::from_be_bytes(array(bytes, 43)),
            producer_epoch: i16::from_be_bytes(array(bytes, 51)),
            base_sequence: i32::from_be_bytes(array(bytes, 53)),
            records_count: i32::from_be_bytes(array(bytes, 57)),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), BatchError> {
        if self.magic != 2 {
            return Err(BatchError::Magic(self.magic));
        }
        if self.batch_length < (HEADER_BYTES - LENGTH_OFFSET) as i32 {
            return Err(BatchError::Length(self.batch_length));
        }
        if self.base_offset > i64::MAX as u64 - i32::MAX as u64 {
            return Err(BatchError::Header("a negative base offset"));
        }
        if self.records_count < 0 || self.last_offset_delta < 0 {
            return Err(BatchError::Header("a negative number of records"));
        }
        if self.last_offset_delta < self.records_count - 1 {
            return Err(BatchError::Header("a last offset that does not go with the number of records"));
        }
        Ok(())
    }

    /// Whether there is a record for every offset, as every producer writes it.
    pub fn is_dense(&self) -> bool {
        self.records_count == self.last_offset_delta + 1
    }

    /// Bytes of the whole batch, header included.
    pub fn size(&self) -> usize {
        self.batch_length as usize + LENGTH_OFFSET
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> Offset {
        self.base_offset + self.last_offset_delta as u64
    }

    /// Offset of the record after the batch.
    pub fn next_offset(&self) -> Offset {
        self.last_offset() + 1
    }

    /// Codec of the records: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
    pub fn compression(&self) -> u8 {
        (self.attributes & 0x07) as u8
    }

    /// Whether the timestamps are those of the append.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch is a marker for consumers rather than data.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// When (ms) compaction may drop the batch's tombstones or marker, if it has said so (KIP-534).
    pub fn delete_horizon(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }

    /// The producer's sequence number of the last record, or −1. After `i32::MAX` comes 0.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 { -1 } else { add_sequence(self.base_sequence, self.last_offset_delta) }
    }
}

/// The sequence number so many records later.
pub(crate) fn add_sequence(sequence: i32, records: i32) -> i32 {
    ((i64::from(sequence) + i64::from(records)) & i64::from(i32::MAX)) as i32
}

/// The CRC-32C that belongs into the header of a whole batch.
pub(crate) fn crc_of(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[CRC_FROM..])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
