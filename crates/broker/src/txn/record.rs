//! What is kept in `__transaction_state`, in Kafka's own formats: `TransactionLogKey` version 0 and
//! `TransactionLogValue` version 1; version 0 of the value is read too.

use std::collections::BTreeSet;

use bytes::BufMut;

use super::{EPOCH_BUMP, LAST_EPOCH, NONE, State, TopicPartition, Transaction};
use crate::{
    group::record::Record,
    wire::{Reader, put_varint},
};

const KEY: i16 = 0;
/// The value version that is written: the first one with tagged fields.
const VALUE: i16 = 1;
/// Tags of a value.
const PREVIOUS_ID: u32 = 0;
const NEXT_ID: u32 = 1;
const CLIENT_VERSION: u32 = 2;

/// A record as it was meant: a transactional id, and what is known of it; nothing if it is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) id: String,
    pub(crate) value: Option<Transaction>,
}

/// What a transactional id is now, or that it is no more.
pub(super) fn record(id: &str, transaction: Option<&Transaction>) -> Record {
    let mut key = Vec::with_capacity(4 + id.len());
    key.put_i16(KEY);
    key.put_i16(id.len() as i16);
    key.put_slice(id.as_bytes());
    Record { key, value: transaction.map(value) }
}

fn value(transaction: &Transaction) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_i16(VALUE);
    out.put_i64(transaction.producer_id);
    out.put_i16(transaction.epoch);
    out.put_i32(transaction.timeout_ms);
    out.put_u8(transaction.state as u8);
    put_partitions(&mut out, transaction);
    out.put_i64(transaction.updated);
    out.put_i64(transaction.started);
    let ids = [(PREVIOUS_ID, transaction.previous_id), (NEXT_ID, transaction.next_id)];
    let ids: Vec<_> = ids.into_iter().filter(|(_, id)| *id != NONE).collect();
    let versioned = transaction.client_version != 0;
    put_varint(&mut out, ids.len() + usize::from(versioned));
    for (tag, id) in ids {
        put_varint(&mut out, tag as usize);
        put_varint(&mut out, 8);
        out.put_i64(id);
    }
    if versioned {
        put_varint(&mut out, CLIENT_VERSION as usize);
        put_varint(&mut out, 2);
        out.put_i16(transaction.client_version);
    }
    out
}

fn put_partitions(out: &mut Vec<u8>, transaction: &Transaction) {
    if transaction.state == State::Empty {
        return out.put_u8(0);
    }
    // They are sorted: those of a topic stand together.
    let all: Vec<&TopicPartition> = transaction.partitions.iter().collect();
    let topics: Vec<_> = all.chunk_by(|a, b| a.0 == b.0).collect();
    put_varint(out, topics.len() + 1);
    for partitions in topics {
        let name = &partitions[0].0;
        put_varint(out, name.len() + 1);
        out.put_slice(name.as_bytes());
        put_varint(out, partitions.len() + 1);
        partitions.iter().for_each(|p| out.put_i32(p.1));
        out.put_u8(0);
    }
}

impl Stored {
    /// Reads a record; `None` if it is of a version that is not known here.
    pub(crate) fn parse(key: &[u8], value: Option<&[u8]>) -> Option<Stored> {
        let mut key = Reader(key);
        if key.i16()? != KEY {
            return None;
        }
        let id = key.text()?;
        let value = match value {
            Some(value) => Some(parse_value(value)?),
            None => None,
        };
        Some(Stored { id, value })
    }
}

fn parse_value(bytes: &[u8]) -> Option<Transaction> {
    let mut r = Reader(bytes);
    let flexible = match r.i16()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let mut transaction = Transaction {
        producer_id: r.i64()?,
        previous_id: NONE,
        next_id: NONE,
        epoch: r.i16()?,
        last_epoch: NONE as i16,
        timeout_ms: r.i32()?,
        state: State::from_id(r.take(1)?[0])?,
        partitions: partitions(&mut r, flexible)?,
        updated: r.i64()?,
        started: r.i64()?,
        client_version: 0,
    };
    for _ in 0..if flexible { r.varint()? } else { 0 } {
        let (tag, field) = r.tag()?;
        let mut field = Reader(field);
        match tag {
            PREVIOUS_ID => transaction.previous_id = field.i64()?,
            NEXT_ID => transaction.next_id = field.i64()?,
            CLIENT_VERSION => transaction.client_version = field.i16()?,
            _ => {}
        }
    }
    transaction.last_epoch = last_epoch(&transaction);
    Some(transaction)
}

/// The epoch of a producer that has ended a transaction and may not have heard the answer. It is not in the log:
/// after an end that begins an epoch (KIP-890) it is the one before; after a fence, nobody has had that one.
fn last_epoch(transaction: &Transaction) -> i16 {
    let ended = !matches!(transaction.state, State::Empty | State::Ongoing);
    match transaction.epoch {
        _ if !ended || transaction.client_version < EPOCH_BUMP => NONE as i16,
        0 => LAST_EPOCH,
        i16::MAX => NONE as i16,
        epoch => epoch - 1,
    }
}

fn partitions(r: &mut Reader<'_>, flexible: bool) -> Option<BTreeSet<TopicPartition>> {
    let count = |r: &mut Reader<'_>| match flexible {
        true => Some((r.varint()? as usize).saturating_sub(1)),
        false => Some(usize::try_from(r.i32()?).unwrap_or(0)),
    };
    let mut partitions = BTreeSet::new();
    for _ in 0..count(r)? {
        let topic = if flexible { r.compact_text()? } else { r.text()? };
        for _ in 0..count(r)? {
            partitions.insert((topic.clone(), r.i32()?));
        }
        if flexible {
            r.skip_tags()?;
        }
    }
    Some(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ongoing() -> Transaction {
        Transaction {
            producer_id: 258,
            previous_id: NONE,
            next_id: NONE,
            epoch: 3,
            last_epoch: NONE as i16,
            timeout_ms: 60_000,
            state: State::Ongoing,
            partitions: [("t".into(), 1), ("t".into(), 2), ("u".into(), 0)].into(),
            started: 5,
            updated: 6,
            client_version: 0,
        }
    }

    /// Computed by hand from Kafka's schemas, field by field.
    #[test]
    fn records_are_kafkas_bit_for_bit() {
        let written = record("id", Some(&ongoing()));
        assert_eq!(written.key, b"\0\0\0\x02id");
        let value = [
            &b"\0\x01"[..],                                            // version
            b"\0\0\0\0\0\0\x01\x02\0\x03\0\0\xea\x60\x01",             // id, epoch, time-out, status
            b"\x03\x02t\x03\0\0\0\x01\0\0\0\x02\0\x02u\x02\0\0\0\0\0", // partitions
            b"\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x05",                   // updated, started
            b"\0",                                                     // no tags
        ];
        assert_eq!(written.value.unwrap(), value.concat());
        let tagged = Transaction { previous_id: 1, next_id: 2, client_version: 2, ..ongoing() };
        let tags = b"\x03\0\x08\0\0\0\0\0\0\0\x01\x01\x08\0\0\0\0\0\0\0\x02\x02\x02\0\x02";
        assert!(record("id", Some(&tagged)).value.unwrap().ends_with(tags));
    }

    #[test]
    fn what_is_written_is_read() {
        let empty = Transaction { state: State::Empty, partitions: BTreeSet::new(), ..ongoing() };
        let tagged = Transaction { previous_id: 1, next_id: 2, client_version: 2, ..ongoing() };
        for transaction in [ongoing(), empty, tagged] {
            let written = record("id", Some(&transaction));
            let read = Stored::parse(&written.key, written.value.as_deref());
            assert_eq!(read, Some(Stored { id: "id".into(), value: Some(transaction) }));
            let value = written.value.unwrap();
            for cut in 0..value.len() {
                assert_eq!(Stored::parse(&written.key, Some(&value[..cut])), None, "cut off at {cut}");
            }
        }
        let gone = record("id", None);
        assert_eq!(Stored::parse(&gone.key, None), Some(Stored { id: "id".into(), value: None }));
    }

    #[test]
    fn version_0_is_read() {
        let value = [
            &b"\0\0"[..],
            b"\0\0\0\0\0\0\x01\x02\0\x03\0\0\xea\x60\x01",
            b"\0\0\0\x02\0\x01t\0\0\0\x02\0\0\0\x01\0\0\0\x02\0\x01u\0\0\0\x01\0\0\0\0",
            b"\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x05",
        ];
        let read = Stored::parse(b"\0\0\0\x02id", Some(&value.concat())).unwrap();
        assert_eq!(read.value, Some(ongoing()));
    }
}
