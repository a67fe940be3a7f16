//! SQLite's result codes, sorted by what the caller should do.

use std::path::Path;

use rusqlite::{Error, ErrorCode};

use crate::{LedgerError, OpenError, TransientCause};

/// What an error of a statement means, when no record can be at fault.
pub(super) fn sql_error(error: Error) -> LedgerError {
    let cause = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => TransientCause::Busy,
        Some(ErrorCode::DiskFull) => TransientCause::DiskFull,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::OutOfMemory) => {
            TransientCause::Io
        }
        _ => return LedgerError::Broken(error.to_string().into()),
    };
    LedgerError::Transient { cause, detail: error.to_string().into() }
}

pub(super) fn open_error(path: &Path, error: Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase { path: path.into() },
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            OpenError::NotWritable { path: path.into(), detail: error.to_string().into() }
        }
        _ => OpenError::Prepare { path: path.into(), error: sql_error(error) },
    }
}
