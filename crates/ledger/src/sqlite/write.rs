//! The transactions. [`commit`] is the one that matters.

use std::{collections::BTreeMap, sync::Arc};

use dibs_model::{Offset, Partition, Rank, Timestamp};
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OptionalExtension, Result, ToSql, Transaction,
    TransactionBehavior, params,
    types::{ToSqlOutput, ValueRef},
};

use super::{faults::sql_error, read};
use crate::{
    Campaign, Change, Coupon, CouponStatus, EventKind, Lease, LedgerBatch, LedgerError, Poison, Position,
    audit::{WINDOW_OFFSETS, window_start},
    outbox::{AGGREGATE_TYPE, id_range, write_aggregate_id, write_event_id, write_payload},
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
    // The write lock comes first: what is read after it stays true until the commit. Leaving early rolls back.
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql_error)?;
    check_fence(&tx, batch)?;
    let mut sums = Sums::default();
    {
        let mut rows = Rows::prepare(&tx, batch.partition).map_err(sql_error)?;
        for (index, (offset, change)) in batch.changes.iter().enumerate() {
            batch
                .check(index)
                .map_err(Fault::Poison)
                .and_then(|()| rows.write(*offset, change, &mut sums))
                .map_err(|fault| fault.at(*offset))?;
        }
    }
    write_sums(&tx, batch.partition, &sums).and_then(|()| advance(&tx, batch)).map_err(sql_error)?;
    tx.commit().map_err(sql_error)
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
    fn at(self, offset: Offset) -> LedgerError {
        match self {
            Fault::Poison(reason) => LedgerError::Permanent { offset, reason },
            // Both are about the values of this very row.
            Fault::Sql(e) if e.sqlite_error_code() == Some(ErrorCode::TooBig) => {
                LedgerError::Permanent { offset, reason: Poison::Refused(e.to_string().into()) }
            }
            Fault::Sql(e @ rusqlite::Error::ToSqlConversionFailure(_)) => {
                LedgerError::Permanent { offset, reason: Poison::Refused(e.to_string().into()) }
            }
            Fault::Sql(e) => sql_error(e),
        }
    }
}

/// The statements that write rows, and the buffers that they write from.
struct Rows<'t> {
    tx: &'t Transaction<'t>,
    partition: Partition,
    coupon: CachedStatement<'t>,
    event: CachedStatement<'t>,
    id: String,
    aggregate: String,
    payload: Vec<u8>,
}

impl<'t> Rows<'t> {
    fn prepare(tx: &'t Transaction<'t>, partition: Partition) -> Result<Self> {
        Ok(Rows {
            tx,
            partition,
            coupon: tx.prepare_cached(
                "INSERT INTO coupons (campaign_id, rank_no, user_id, code, status, log_partition, log_offset, \
                 claimed_at) VALUES (?1, ?2, ?3, ?4, 'issued', ?5, ?6, ?7)",
            )?,
            event: tx.prepare_cached(
                "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?,
            id: String::new(),
            aggregate: String::new(),
            payload: Vec::new(),
        })
    }

    fn write(&mut self, offset: Offset, change: &Change, sums: &mut Sums) -> Result<(), Fault> {
        match change {
            Change::Campaign(campaign) => Ok(self.upsert(campaign)?),
            Change::Issued(coupon) => {
                self.insert(coupon)?;
                sums.hash(coupon, 1, coupon.hash());
                sums.count(&coupon.campaign, CouponStatus::Issued, 1);
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
        let inserted = self.coupon.execute(params![
            coupon.campaign,
            coupon.rank,
            coupon.user,
            coupon.code,
            coupon.partition,
            coupon.offset,
            coupon.timestamp.0,
        ]);
        match inserted {
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
        let Some(mut coupon) = found.filter(|coupon| coupon.partition == self.partition) else {
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
        write_event_id(&mut self.id, self.partition, offset, kind, coupon.rank);
        write_aggregate_id(&mut self.aggregate, coupon);
        write_payload(&mut self.payload, coupon);
        self.event
            .execute(params![self.id, AGGREGATE_TYPE, self.aggregate, kind.name(), Text(&self.payload)])
            .map(drop)
    }
}

/// JSON from the encoder: bytes that are known to be UTF-8.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}
