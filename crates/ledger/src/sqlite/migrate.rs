//! Brings the tables up to this program's version, one step after the other, each in a transaction of its own
//! together with the version that it makes.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

/// The steps, oldest first. A step that was released is never edited; a change of the tables is a new one.
const STEPS: &[&str] = &[include_str!("../../migrations/sqlite/0001_tables.sql")];

pub(super) enum MigrateError {
    TooNew { found: u32, known: u32 },
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for MigrateError {
    fn from(error: rusqlite::Error) -> Self {
        MigrateError::Sql(error)
    }
}

pub(super) fn migrate(db: &mut Connection) -> Result<(), MigrateError> {
    let known = STEPS.len() as u32;
    loop {
        // The version is read under the lock: of two programs that start at once, one finds the work done.
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT")?;
        let found =
            tx.query_row("SELECT max(version) FROM schema_version", [], |row| row.get(0)).optional()?;
        let found: u32 = found.flatten().unwrap_or(0);
        if found > known {
            return Err(MigrateError::TooNew { found, known });
        }
        let Some(step) = STEPS.get(found as usize) else { return Ok(()) };
        tx.execute_batch(step)?;
        tx.execute("DELETE FROM schema_version", [])?;
        tx.execute("INSERT INTO schema_version (version) VALUES (?1)", [found + 1])?;
        tx.commit()?;
    }
}
