//! The outbox, in Debezium's shape: one row for each change that another service would want to hear of. It is
//! written by the transaction that makes the change, and a relay carries it to a topic.

use std::fmt::Write;

use dibs_model::{Offset, Partition, Rank};
use serde::Serialize;

use crate::{Change, Coupon};

/// One event, as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// An [`event_id`]: the same again when the ledger is rebuilt, so that a consumer can drop repetitions.
    pub id: Box<str>,
    /// Says which topic: always `coupon`.
    pub aggregatetype: Box<str>,
    /// The record's key: events of one aggregate stay in order. `campaign/rank`.
    pub aggregateid: Box<str>,
    /// The name of an [`EventKind`].
    pub kind: Box<str>,
    /// JSON: the coupon as the change left it.
    pub payload: Box<str>,
}

/// What happened to the coupon. The number stands in the [`event_id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// There is a new coupon.
    Issued = 1,
    /// It was used.
    Redeemed = 2,
    /// Its use was taken back.
    Unredeemed = 3,
    /// It was given up.
    Cancelled = 4,
    /// It had no code and has one now.
    CodeAssigned = 5,
}

impl EventKind {
    /// The stable name, as it stands in the column `type`.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Issued => "coupon_issued",
            EventKind::Redeemed => "coupon_redeemed",
            EventKind::Unredeemed => "coupon_unredeemed",
            EventKind::Cancelled => "coupon_cancelled",
            EventKind::CodeAssigned => "coupon_code_assigned",
        }
    }

    /// What a change is to the outside; a campaign's is nothing.
    pub fn of(change: &Change) -> Option<EventKind> {
        Some(match change {
            Change::Campaign(_) => return None,
            Change::Issued(_) => EventKind::Issued,
            Change::Redeemed { .. } => EventKind::Redeemed,
            Change::Unredeemed { .. } => EventKind::Unredeemed,
            Change::Cancelled { .. } => EventKind::Cancelled,
            Change::CodeAssigned { .. } => EventKind::CodeAssigned,
        })
    }
}

/// The id of an event: 36 characters, `pppppppp-oooooooooooooooo-k-rrrrrrrr` in lower-case hexadecimal, of the
/// partition, the offset of the record that made the change, the kind and the rank. It depends on nothing else,
/// and as text it sorts in the order of the log.
pub fn event_id(partition: Partition, offset: Offset, kind: EventKind, rank: Rank) -> Box<str> {
    let mut id = String::with_capacity(EVENT_ID_BYTES);
    write_event_id(&mut id, partition, offset, kind, rank);
    id.into()
}

/// The length of an [`event_id`].
pub const EVENT_ID_BYTES: usize = 36;

/// Every id of the partition is above the first of these and below the second.
pub(crate) fn id_range(partition: Partition) -> (String, String) {
    (format!("{partition:08x}-"), format!("{partition:08x}."))
}

pub(crate) fn write_event_id(
    into: &mut String,
    partition: Partition,
    offset: Offset,
    kind: EventKind,
    rank: Rank,
) {
    into.clear();
    push_hex(into, u64::from(partition), 8);
    into.push('-');
    push_hex(into, offset, 16);
    into.push('-');
    push_hex(into, kind as u64, 1);
    into.push('-');
    push_hex(into, u64::from(rank), 8);
}

pub(crate) fn write_aggregate_id(into: &mut String, coupon: &Coupon) {
    into.clear();
    // Writing to a String cannot fail.
    let _ = write!(into, "{}/{}", coupon.campaign, coupon.rank);
}

fn push_hex(into: &mut String, value: u64, digits: u32) {
    for place in (0..digits).rev() {
        into.push(char::from(b"0123456789abcdef"[(value >> (4 * place)) as usize & 15]));
    }
}

/// Writes the payload of an event: the coupon as it is now.
pub(crate) fn write_payload(into: &mut Vec<u8>, coupon: &Coupon) {
    #[derive(Serialize)]
    struct Payload<'a> {
        campaign: &'a str,
        rank: Rank,
        user: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'a str>,
        status: &'static str,
        partition: Partition,
        offset: Offset,
        claimed_at: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        redeemed_by: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        redeemed_at: Option<i64>,
    }
    into.clear();
    let payload = Payload {
        campaign: &coupon.campaign,
        rank: coupon.rank,
        user: &coupon.user,
        code: coupon.code.as_deref(),
        status: coupon.status.name(),
        partition: coupon.partition,
        offset: coupon.offset,
        claimed_at: coupon.timestamp.0,
        redeemed_by: coupon.redeemed_by.as_deref(),
        redeemed_at: coupon.redeemed_at.map(|at| at.0),
    };
    serde_json::to_writer(into, &payload).expect("a flat struct of texts and numbers is always JSON");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_and_sort_as_the_log() {
        let id = event_id(3, 0x1234, EventKind::Redeemed, 17);
        assert_eq!(&*id, "00000003-0000000000001234-2-00000011");
        assert_eq!(id.len(), EVENT_ID_BYTES);
        let ids = [
            event_id(3, 0, EventKind::CodeAssigned, u32::MAX),
            event_id(3, 9, EventKind::Issued, 1),
            event_id(3, 9, EventKind::Issued, 2),
            event_id(3, 9, EventKind::Cancelled, 1),
            event_id(3, 10, EventKind::Issued, 1),
            event_id(3, u64::MAX, EventKind::Issued, 1),
        ];
        assert!(ids.is_sorted());
        let (low, high) = id_range(3);
        assert!(ids.iter().all(|id| **id > *low && **id < *high));
        assert!(
            *event_id(4, 0, EventKind::Issued, 0) > *high
                && *event_id(2, u64::MAX, EventKind::Issued, 9) < *low
        );
    }
}
