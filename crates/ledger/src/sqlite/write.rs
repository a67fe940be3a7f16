//! The transactions. [`commit`] is the one that matters.

use std::{collections::BTreeMap, sync::Arc};

use dibs_model::{Offset, Partition, Rank, Timestamp};
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OptionalExtension, Result, Statement, ToSql, Transaction,
    TransactionBehavior, params,
    types::{ToSqlOutput, ValueRef},
};

use super::{faults::sql_error, read};
use crate::{
    Campaign, Change, Coupon, CouponStatus, EventKind, Lease, LedgerBatch, LedgerError, Poison, Position,
    audit::{WINDOW_OFFSETS, window_start},
    outbox::{id_range, write_aggregate_id, write_event_id, write_payload},
};

pub(super) fn acquire(db: &mut Connection, partition: Partition) -> Result<Lease, LedgerError> {
    let take = |db: &mut Connection| {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let lease = tx
            .prepare_cached(
                "INSERT INTO progress (log_partition, epoch, next_offset) VALUES (?1, 1, 0) \
                 ON CONFLICT (log_partition) DO UPDATE SET epoch = epoch + 1 RETURNING epoch, next_offset",
            )?
            .query_row([partition], |row| {
                Ok(Lease { partition, epoch: row.get(0)?, next_offset: row.get(1)? })
            })?;
        tx.commit()?;
        Ok(lease)
    };
    take(db).map_err(sql_error)
}

pub(super) fn trim_outbox(db: &mut Connection, partition: Partition, through: &str) -> Result<u64> {
    let (low, _) = id_range(partition);
    // Never into the next partition's rows.
    if !through.starts_with(&low) {
        return Ok(0);
    }
    let gone = db
        .prepare_cached("DELETE FROM outbox WHERE id > ?1 AND id <= ?2")?
        .execute([low.as_str(), through])?;
    Ok(gone as u64)
}

pub(super) fn commit(db: &mut Connection, batch: &LedgerBatch) -> Result<(), LedgerError> {
    let outcome = match attempt(db, batch, true) {
        // One coupon of a run is refused. One by one they show which.
        Err(Stop::Run) => attempt(db, batch, false),
        outcome => outcome,
    };
    outcome.map_err(|stop| match stop {
        Stop::Error(error) => error,
        Stop::Run => unreachable!("the second attempt has no runs"),
    })
}

/// What ended a transaction.
enum Stop {
    Error(LedgerError),
    /// A coupon of a run cannot be written; which one is not known.
    Run,
}

fn attempt(db: &mut Connection, batch: &LedgerBatch, runs: bool) -> Result<(), Stop> {
    let sql = |error| Stop::Error(sql_error(error));
    // The write lock comes first: what is read after it stays true until the commit. Leaving early rolls back.
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    check_fence(&tx, batch).map_err(Stop::Error)?;
    let sums = write_changes(&tx, batch, runs)?;
    write_sums(&tx, batch.partition, &sums).and_then(|()| advance(&tx, batch)).map_err(sql)?;
    tx.commit().map_err(sql)
}

fn write_changes(tx: &Transaction<'_>, batch: &LedgerBatch, runs: bool) -> Result<Sums, Stop> {
    let mut sums = Sums::default();
    let mut rows = Rows::prepare(tx, batch.partition).map_err(|error| Stop::Error(sql_error(error)))?;
    let mut left = &batch.changes[..];
    while let Some((offset, change)) = left.first() {
        let index = batch.changes.len() - left.len();
        if let Some(run) = left.first_chunk::<RUN>().filter(|run| runs && run.iter().all(is_issued)) {
            (index..index + RUN).try_for_each(|index| batch.check(index)).map_err(|_| Stop::Run)?;
            rows.write_run(run, &mut sums).map_err(|fault| fault.in_run())?;
            left = &left[RUN..];
        } else {
            batch
                .check(index)
                .map_err(Fault::Poison)
                .and_then(|()| rows.write(*offset, change, &mut sums))
                .map_err(|fault| Stop::Error(fault.at(*offset)))?;
            left = &left[1..];
        }
    }
    Ok(sums)
}

fn is_issued((_, change): &(Offset, Change)) -> bool {
    matches!(change, Change::Issued(_))
}

fn check_fence(tx: &Transaction<'_>, batch: &LedgerBatch) -> Result<(), LedgerError> {
    let held = tx
        .prepare_cached("SELECT epoch, next_offset FROM progress WHERE log_partition = ?1")
        .and_then(|mut select| {
            select
                .query_row([batch.partition], |row| {
                    Ok(Position { epoch: row.get(0)?, next_offset: row.get(1)? })
                })
                .optional()
        })
        .map_err(sql_error)?
        .unwrap_or(Position { epoch: 0, next_offset: 0 });
    let expected = Position { epoch: batch.epoch, next_offset: batch.from };
    // Epoch 0 is nobody's.
    if held != expected || held.epoch == 0 {
        return Err(LedgerError::Fenced { partition: batch.partition, expected, held });
    }
    batch.check_range().map_err(|reason| LedgerError::Permanent { offset: batch.from, reason })
}

fn advance(tx: &Transaction<'_>, batch: &LedgerBatch) -> Result<()> {
    tx.prepare_cached("UPDATE progress SET next_offset = ?2 WHERE log_partition = ?1")?
        .execute(params![batch.partition, batch.to])
        .map(drop)
}

/// What a batch adds to the windows and to the counts: written once, at its end.
#[derive(Default)]
struct Sums {
    /// By the window's first offset: coupons more, and what the hash grows by (wrapping).
    windows: BTreeMap<Offset, (u64, u64)>,
    /// By campaign: rows more, or fewer, in each status.
    counts: BTreeMap<Arc<str>, [i64; 3]>,
}

impl Sums {
    fn issue(&mut self, coupon: &Coupon) {
        self.hash(coupon, 1, coupon.hash());
        self.count(&coupon.campaign, CouponStatus::Issued, 1);
    }

    fn hash(&mut self, coupon: &Coupon, coupons: u64, hash: u64) {
        let window = self.windows.entry(window_start(coupon.offset)).or_default();
        window.0 += coupons;
        window.1 = window.1.wrapping_add(hash);
    }

    fn count(&mut self, campaign: &Arc<str>, status: CouponStatus, rows: i64) {
        if let Some(counts) = self.counts.get_mut(campaign) {
            counts[status as usize] += rows;
        } else {
            self.counts.entry(campaign.clone()).or_default()[status as usize] += rows;
        }
    }
}

fn write_sums(tx: &Transaction<'_>, partition: Partition, sums: &Sums) -> Result<()> {
    let mut old =
        tx.prepare_cached("SELECT hash FROM windows WHERE log_partition = ?1 AND from_offset = ?2")?;
    let mut new = tx.prepare_cached(
        "INSERT INTO windows (log_partition, from_offset, to_offset, coupons, hash) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (log_partition, from_offset) DO UPDATE SET coupons = coupons + ?4, hash = ?5",
    )?;
    for (from, (coupons, hash)) in &sums.windows {
        // Added here and not in SQL: SQLite turns a sum that overflows into a float, others into an error.
        let old: Option<i64> = old.query_row(params![partition, from], |row| row.get(0)).optional()?;
        let sum = old.unwrap_or(0).wrapping_add(hash.cast_signed());
        new.execute(params![partition, from, from + WINDOW_OFFSETS, coupons, sum])?;
    }
    let mut add = tx.prepare_cached(
        "INSERT INTO campaign_counts (campaign_id, issued, redeemed, cancelled) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (campaign_id) DO UPDATE \
         SET issued = issued + ?2, redeemed = redeemed + ?3, cancelled = cancelled + ?4",
    )?;
    for (campaign, counts) in &sums.counts {
        add.execute(params![campaign, counts[0], counts[1], counts[2]])?;
    }
    Ok(())
}

/// What stopped a change.
enum Fault {
    Poison(Poison),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Fault::Sql(error)
    }
}

impl Fault {
    /// The fault of the one change at that offset.
    fn at(self, offset: Offset) -> LedgerError {
        match self {
            Fault::Poison(reason) => LedgerError::Permanent { offset, reason },
            Fault::Sql(e) if is_about_values(&e) => {
                LedgerError::Permanent { offset, reason: Poison::Refused(e.to_string().into()) }
            }
            Fault::Sql(e) => sql_error(e),
        }
    }

    /// The fault of some change of a run.
    fn in_run(self) -> Stop {
        match self {
            Fault::Sql(e) if !is_about_values(&e) => Stop::Error(sql_error(e)),
            Fault::Sql(_) | Fault::Poison(_) => Stop::Run,
        }
    }
}

/// Whether the row that was being written is at fault.
fn is_about_values(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig))
        || matches!(error, rusqlite::Error::ToSqlConversionFailure(_))
}

/// The statements that write rows: one row, and a run of them.
struct Rows<'t> {
    tx: &'t Transaction<'t>,
    coupon: CachedStatement<'t>,
    coupons: CachedStatement<'t>,
    event: CachedStatement<'t>,
    events: CachedStatement<'t>,
    encoder: Encoder,
}

/// Coupons that one statement writes where so many come in a row. The statement keeps its place at the end of the
/// table and of the index: a quarter fewer instructions than one by one (docs/decisions/0002).
const RUN: usize = 50;
const COUPON_VALUES: &str = "(?, ?, ?, ?, 'issued', ?, ?, ?)";
const EVENT_VALUES: &str = "(?, 'coupon', ?, ?, ?)";

fn insert_coupons(rows: usize) -> String {
    "INSERT INTO coupons (campaign_id, rank_no, user_id, code, status, log_partition, log_offset, claimed_at) \
     VALUES "
        .to_owned()
        + &vec![COUPON_VALUES; rows].join(", ")
}

fn insert_events(rows: usize) -> String {
    "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ".to_owned()
        + &vec![EVENT_VALUES; rows].join(", ")
}

impl<'t> Rows<'t> {
    fn prepare(tx: &'t Transaction<'t>, partition: Partition) -> Result<Self> {
        Ok(Rows {
            tx,
            coupon: tx.prepare_cached(&insert_coupons(1))?,
            coupons: tx.prepare_cached(&insert_coupons(RUN))?,
            event: tx.prepare_cached(&insert_events(1))?,
            events: tx.prepare_cached(&insert_events(RUN))?,
            encoder: Encoder { partition, id: String::new(), aggregate: String::new(), payload: Vec::new() },
        })
    }

    /// Writes coupons that are new, all at once, and their events.
    fn write_run(&mut self, run: &[(Offset, Change); RUN], sums: &mut Sums) -> Result<(), Fault> {
        let new =
            || run.iter().filter_map(|(o, c)| if let Change::Issued(c) = c { Some((*o, c)) } else { None });
        let mut next = 1;
        for (_, coupon) in new() {
            next = bind_coupon(&mut self.coupons, next, coupon)?;
            sums.issue(coupon);
        }
        self.coupons.raw_execute()?;
        next = 1;
        for (offset, coupon) in new() {
            next = self.encoder.bind_event(&mut self.events, next, offset, EventKind::Issued, coupon)?;
        }
        self.events.raw_execute()?;
        Ok(())
    }

    fn write(&mut self, offset: Offset, change: &Change, sums: &mut Sums) -> Result<(), Fault> {
        match change {
            Change::Campaign(campaign) => Ok(self.upsert(campaign)?),
            Change::Issued(coupon) => {
                self.insert(coupon)?;
                sums.issue(coupon);
                Ok(self.emit(offset, EventKind::Issued, coupon)?)
            }
            Change::Redeemed { campaign, rank, .. } => {
                self.alter(offset, EventKind::Redeemed, (campaign, *rank), change, sums)
            }
            Change::Unredeemed { campaign, rank } => {
                self.alter(offset, EventKind::Unredeemed, (campaign, *rank), change, sums)
            }
            Change::Cancelled { campaign, rank } => {
                self.alter(offset, EventKind::Cancelled, (campaign, *rank), change, sums)
            }
            Change::CodeAssigned { campaign, rank, .. } => {
                self.alter(offset, EventKind::CodeAssigned, (campaign, *rank), change, sums)
            }
        }
    }

    fn upsert(&self, campaign: &Campaign) -> Result<()> {
        let closes_at = Some(campaign.closes_at.0).filter(|at| *at != Timestamp::NEVER.0);
        self.tx
            .prepare_cached(
                "INSERT INTO campaigns (campaign_id, title, stock, state, opens_at, closes_at, log_partition, \
                 created_offset) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (campaign_id) DO UPDATE \
                 SET title = ?2, stock = ?3, state = ?4, opens_at = ?5, closes_at = ?6, log_partition = ?7, \
                 created_offset = ?8",
            )?
            .execute(params![
                campaign.id,
                campaign.title,
                campaign.stock,
                campaign.state.name(),
                campaign.opens_at.0,
                closes_at,
                campaign.partition,
                campaign.created_offset,
            ])
            .map(drop)
    }

    fn insert(&mut self, coupon: &Coupon) -> Result<(), Fault> {
        bind_coupon(&mut self.coupon, 1, coupon)?;
        match self.coupon.raw_execute() {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(Fault::Poison(Poison::Duplicate(e.to_string().into())))
            }
            other => Ok(other.map(drop)?),
        }
    }

    /// Reads a coupon, applies the change, writes it back.
    fn alter(
        &mut self,
        offset: Offset,
        kind: EventKind,
        (campaign, rank): (&Arc<str>, Rank),
        change: &Change,
        sums: &mut Sums,
    ) -> Result<(), Fault> {
        let sql = format!("SELECT {} FROM coupons WHERE campaign_id = ?1 AND rank_no = ?2", read::COUPON);
        let found = self
            .tx
            .prepare_cached(&sql)?
            .query_row(params![campaign, rank], |row| read::coupon(row, Some(campaign)))
            .optional()?;
        let Some(mut coupon) = found.filter(|coupon| coupon.partition == self.encoder.partition) else {
            return Err(Fault::Poison(Poison::NoSuchCoupon));
        };
        let (status, hash) = (coupon.status, coupon.hash());
        coupon.apply(change).map_err(Fault::Poison)?;
        self.tx
            .prepare_cached(
                "UPDATE coupons SET code = ?3, status = ?4, redeemed_by = ?5, redeemed_at = ?6 \
                 WHERE campaign_id = ?1 AND rank_no = ?2",
            )?
            .execute(params![
                campaign,
                rank,
                coupon.code,
                coupon.status.name(),
                coupon.redeemed_by,
                coupon.redeemed_at.map(|at| at.0),
            ])?;
        sums.hash(&coupon, 0, coupon.hash().wrapping_sub(hash));
        sums.count(campaign, status, -1);
        sums.count(campaign, coupon.status, 1);
        Ok(self.emit(offset, kind, &coupon)?)
    }

    fn emit(&mut self, offset: Offset, kind: EventKind, coupon: &Coupon) -> Result<()> {
        self.encoder.bind_event(&mut self.event, 1, offset, kind, coupon)?;
        self.event.raw_execute().map(drop)
    }
}

/// Binds the row of a new coupon from parameter `at` on, and says which parameter comes next.
fn bind_coupon(insert: &mut Statement<'_>, at: usize, coupon: &Coupon) -> Result<usize> {
    insert.raw_bind_parameter(at, &coupon.campaign)?;
    insert.raw_bind_parameter(at + 1, coupon.rank)?;
    insert.raw_bind_parameter(at + 2, &coupon.user)?;
    insert.raw_bind_parameter(at + 3, &coupon.code)?;
    insert.raw_bind_parameter(at + 4, coupon.partition)?;
    insert.raw_bind_parameter(at + 5, coupon.offset)?;
    insert.raw_bind_parameter(at + 6, coupon.timestamp.0)?;
    Ok(at + 7)
}

/// Spells events out. The texts are reused: SQLite takes its own copy.
struct Encoder {
    partition: Partition,
    id: String,
    aggregate: String,
    payload: Vec<u8>,
}

impl Encoder {
    /// Binds the row of an event from parameter `at` on, and says which parameter comes next.
    fn bind_event(
        &mut self,
        insert: &mut Statement<'_>,
        at: usize,
        offset: Offset,
        kind: EventKind,
        coupon: &Coupon,
    ) -> Result<usize> {
        write_event_id(&mut self.id, self.partition, offset, kind, coupon.rank);
        write_aggregate_id(&mut self.aggregate, coupon);
        write_payload(&mut self.payload, coupon);
        insert.raw_bind_parameter(at, &self.id)?;
        insert.raw_bind_parameter(at + 1, &self.aggregate)?;
        insert.raw_bind_parameter(at + 2, kind.name())?;
        insert.raw_bind_parameter(at + 3, Text(&self.payload))?;
        Ok(at + 4)
    }
}

/// JSON from the encoder: bytes that are known to be UTF-8.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}
