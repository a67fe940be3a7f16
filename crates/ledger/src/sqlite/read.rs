//! Rows into nouns.

use std::sync::Arc;

use dibs_model::{Offset, Partition, Rank, Timestamp};
use rusqlite::{Connection, OptionalExtension, Params, Result, Row, params, types::Type};

use crate::{Campaign, CampaignState, Counts, Coupon, CouponStatus, OutboxRow, Window, outbox};

/// The columns of a coupon, in the order in which [`coupon`] reads them.
pub(super) const COUPON: &str = "campaign_id, rank_no, user_id, code, status, log_partition, log_offset, \
                                 claimed_at, redeemed_by, redeemed_at";

pub(super) fn next_offset(db: &Connection, partition: Partition) -> Result<Option<Offset>> {
    db.prepare_cached("SELECT next_offset FROM progress WHERE log_partition = ?1")?
        .query_row([partition], |row| row.get(0))
        .optional()
}

pub(super) fn coupons(db: &Connection, campaign: &str, after: Rank, limit: u32) -> Result<Vec<Coupon>> {
    let sql = format!(
        "SELECT {COUPON} FROM coupons WHERE campaign_id = ?1 AND rank_no > ?2 ORDER BY rank_no LIMIT ?3"
    );
    // Every row has the same campaign: one text for all.
    let shared: Arc<str> = campaign.into();
    all(db, &sql, params![campaign, after, limit], |row| coupon(row, Some(&shared)))
}

pub(super) fn coupons_claimed(
    db: &Connection,
    partition: Partition,
    from: Offset,
    to: Offset,
    limit: u32,
) -> Result<Vec<Coupon>> {
    let sql = format!(
        "SELECT {COUPON} FROM coupons WHERE log_partition = ?1 AND log_offset >= ?2 AND log_offset < ?3 \
         ORDER BY log_offset LIMIT ?4"
    );
    all(db, &sql, params![partition, clamp(from), clamp(to), limit], |row| coupon(row, None))
}

pub(super) fn campaigns(db: &Connection, after: &str, limit: u32) -> Result<Vec<(Campaign, Counts)>> {
    let sql = "SELECT campaign_id, title, stock, state, opens_at, closes_at, log_partition, created_offset, \
               coalesce(issued, 0), coalesce(redeemed, 0), coalesce(cancelled, 0) \
               FROM campaigns LEFT JOIN campaign_counts USING (campaign_id) \
               WHERE campaign_id > ?1 ORDER BY campaign_id LIMIT ?2";
    all(db, sql, params![after, limit], |row| {
        let campaign = Campaign {
            id: row.get(0)?,
            title: row.get(1)?,
            stock: row.get(2)?,
            state: named(row, 3, CampaignState::from_name)?,
            opens_at: Timestamp(row.get(4)?),
            closes_at: row.get::<_, Option<i64>>(5)?.map_or(Timestamp::NEVER, Timestamp),
            partition: row.get(6)?,
            created_offset: row.get(7)?,
        };
        Ok((campaign, Counts { issued: row.get(8)?, redeemed: row.get(9)?, cancelled: row.get(10)? }))
    })
}

pub(super) fn counts(db: &Connection, campaign: &str) -> Result<Counts> {
    db.prepare_cached("SELECT issued, redeemed, cancelled FROM campaign_counts WHERE campaign_id = ?1")?
        .query_row([campaign], |row| {
            Ok(Counts { issued: row.get(0)?, redeemed: row.get(1)?, cancelled: row.get(2)? })
        })
        .optional()
        .map(Option::unwrap_or_default)
}

pub(super) fn windows(
    db: &Connection,
    partition: Partition,
    from: Offset,
    limit: u32,
) -> Result<Vec<Window>> {
    let sql = "SELECT from_offset, to_offset, coupons, hash FROM windows \
               WHERE log_partition = ?1 AND from_offset >= ?2 ORDER BY from_offset LIMIT ?3";
    all(db, sql, params![partition, clamp(from), limit], |row| {
        let hash: i64 = row.get(3)?;
        Ok(Window {
            partition,
            from: row.get(0)?,
            to: row.get(1)?,
            count: row.get(2)?,
            hash: hash.cast_unsigned(),
        })
    })
}

pub(super) fn outbox(
    db: &Connection,
    partition: Partition,
    after: &str,
    limit: u32,
) -> Result<Vec<OutboxRow>> {
    let sql = "SELECT id, aggregatetype, aggregateid, type, payload FROM outbox \
               WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3";
    let (low, high) = outbox::id_range(partition);
    all(db, sql, params![after.max(&low), high, limit], |row| {
        Ok(OutboxRow {
            id: row.get(0)?,
            aggregatetype: row.get(1)?,
            aggregateid: row.get(2)?,
            kind: row.get(3)?,
            payload: row.get(4)?,
        })
    })
}

/// Reads a coupon; `campaign` saves a copy of a text that the caller has.
pub(super) fn coupon(row: &Row<'_>, campaign: Option<&Arc<str>>) -> Result<Coupon> {
    Ok(Coupon {
        campaign: campaign.map_or_else(|| row.get(0), |shared| Ok(shared.clone()))?,
        rank: row.get(1)?,
        user: row.get(2)?,
        code: row.get(3)?,
        status: named(row, 4, CouponStatus::from_name)?,
        partition: row.get(5)?,
        offset: row.get(6)?,
        timestamp: Timestamp(row.get(7)?),
        redeemed_by: row.get(8)?,
        redeemed_at: row.get::<_, Option<i64>>(9)?.map(Timestamp),
    })
}

fn all<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    db.prepare_cached(sql)?.query_map(params, read)?.collect()
}

fn named<T>(row: &Row<'_>, column: usize, from_name: fn(&str) -> Option<T>) -> Result<T> {
    let name = row.get_ref(column)?.as_str()?;
    from_name(name).ok_or_else(|| {
        let what = format!("there is no status {name:?}");
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
    })
}

/// Offsets in the database are signed; a bound beyond them is as good as the highest.
fn clamp(offset: Offset) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}
