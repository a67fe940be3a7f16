//! What can go wrong, sorted by what the caller should do about it.

use std::{fmt, path::PathBuf};

use dibs_model::{Offset, Partition};

use crate::CouponStatus;

/// Why the ledger did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Somebody else writes this partition now, or this very batch has landed before. Nothing was changed.
    /// Acquire the partition and go on from where it is, or leave it to the other.
    #[error("partition {partition} is at {held}, the batch expected {expected}")]
    Fenced {
        /// Which partition.
        partition: Partition,
        /// What the batch was written for: its epoch and its `from`.
        expected: Position,
        /// What the ledger has. If it is the batch's own epoch and its `to`, the batch has landed before.
        held: Position,
    },
    /// It may work later. The outcome of a write is unknown: send the same batch again.
    #[error("{cause}: {detail}")]
    Transient {
        /// What kind of trouble.
        cause: TransientCause,
        /// In the database's words.
        detail: Box<str>,
    },
    /// One record of the batch can never be written. Nothing was changed. Make it a dead letter and send the
    /// batch again without it.
    #[error("the record at offset {offset} cannot be written: {reason}")]
    Permanent {
        /// The record at fault.
        offset: Offset,
        /// Why.
        reason: Poison,
    },
    /// The database is damaged, or is not what it was. No record is at fault and waiting does not help; a
    /// person has to look.
    #[error("the database is broken: {0}")]
    Broken(Box<str>),
    /// The ledger has been closed. Nothing was changed.
    #[error("the ledger is closed")]
    Closed,
}

/// Where a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// How often it was acquired.
    pub epoch: u64,
    /// What comes next.
    pub next_offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, offset {}", self.epoch, self.next_offset)
    }
}

/// Trouble that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransientCause {
    /// Another process is writing.
    Busy,
    /// The disk, or the space that the database may use, is full.
    DiskFull,
    /// Reading or writing failed, or the connection did.
    Io,
}

impl fmt::Display for TransientCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransientCause::Busy => "the database is busy",
            TransientCause::DiskFull => "the disk is full",
            TransientCause::Io => "the database cannot be reached",
        })
    }
}

/// Why a change can never be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Poison {
    /// The rank has a coupon already, or the claim has.
    #[error("there is such a coupon already ({0})")]
    Duplicate(Box<str>),
    /// The rank has no coupon.
    #[error("there is no such coupon")]
    NoSuchCoupon,
    /// The coupon is in another status than the change needs.
    #[error("the coupon is {}", .0.name())]
    Status(CouponStatus),
    /// The coupon has a code already.
    #[error("the coupon has a code already")]
    HasCode,
    /// The change contradicts itself or its batch.
    #[error("{0}")]
    Malformed(&'static str),
    /// The database will not take a value.
    #[error("{0}")]
    Refused(Box<str>),
}

/// Why a ledger cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The file is something else.
    #[error("{path} is not an SQLite database")]
    NotADatabase {
        /// Which file.
        path: PathBuf,
    },
    /// The file or its folder is not there or cannot be written.
    #[error("{path} cannot be opened for writing: {detail}")]
    NotWritable {
        /// Which file.
        path: PathBuf,
        /// In the database's words.
        detail: Box<str>,
    },
    /// A newer program has changed the tables. Use that one.
    #[error("{path} has tables of version {found}, this program knows versions up to {known}")]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// The version of its tables.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// The tables could not be read or made.
    #[error("{path} cannot be prepared: {error}")]
    Prepare {
        /// Which file.
        path: PathBuf,
        /// What happened.
        error: LedgerError,
    },
}
