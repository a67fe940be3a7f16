//! The records of `dibs.claims` as everybody who decides has to see them: decider, issuer and auditor alike.
//!
//! Any Kafka client may write to the topic, and writes what it likes: compressed batches, batches that say they
//! are compressed and are not, commands to a campaign of another partition. Each of those is a record, and every
//! replica gives it the same verdict; none stops the log.

use dibs_decide::{CampaignIndex, Event, State};
use dibs_log::batch::{Batch, Headers, Records};
use dibs_model::{Command, Offset, Timestamp, Verdict};

use crate::{dead_letter::Cause, flow::partition_of};

/// How the values of nearly all records begin, [`dibs_model::Command::Claim`]'s.
const CLAIM: &[u8] = br#"{"type":"claim","#;

/// One record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) offset: Offset,
    pub(crate) timestamp: Timestamp,
    /// The campaign's id.
    pub(crate) key: Option<&'a [u8]>,
    /// The command. None where the record cannot be read.
    pub(crate) value: Option<&'a [u8]>,
    /// None where the record cannot be read.
    pub(crate) headers: Option<Headers<'a>>,
}

/// The records of a batch. `unpacked` takes what a compressed one unpacks to.
pub(crate) fn entries<'a>(batch: &Batch<'a>, unpacked: &'a mut Vec<u8>) -> Entries<'a> {
    let (last, time) = (batch.header.last_offset(), Timestamp(batch.header.max_timestamp));
    Entries { records: batch.records_in(unpacked).ok(), last, time, done: false }
}

/// See [`entries`]. From where a batch cannot be read on, all of it is one record without key and value at the
/// batch's last offset.
pub(crate) struct Entries<'a> {
    records: Option<Records<'a>>,
    /// The batch's last offset, and its largest timestamp.
    last: Offset,
    time: Timestamp,
    /// Whether the last offset has been reached.
    done: bool,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.done {
            return None;
        }
        if let Some(Ok(r)) = self.records.as_mut().and_then(Iterator::next) {
            self.done = r.offset >= self.last;
            let (offset, timestamp) = (r.offset, Timestamp(r.timestamp));
            return Some(Entry { offset, timestamp, key: r.key, value: r.value, headers: Some(r.headers) });
        }
        self.done = true;
        Some(Entry { offset: self.last, timestamp: self.time, key: None, value: None, headers: None })
    }
}

/// Which of how many partitions of `dibs.claims` one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub number: u32,
    /// How many there are.
    pub partitions: u32,
}

impl Place {
    /// Applies a record. A command to a campaign of another partition is malformed, or else an order to create
    /// it could make it twice; a claim to one meets no such campaign here, which says the same at no cost.
    pub(crate) fn apply(
        &self,
        state: &mut State,
        entry: &Entry<'_>,
        events: &mut Vec<(CampaignIndex, Event)>,
    ) -> Verdict {
        let value = entry.value.filter(|v| v.starts_with(CLAIM) || self.has(entry.key));
        state.apply_record(entry.offset, entry.timestamp, entry.key, value, events)
    }

    /// Why a record came to nothing, for people.
    pub(crate) fn reason(&self, entry: &Entry<'_>, cause: Cause) -> String {
        let key = entry.key.map(String::from_utf8_lossy);
        match (cause, key, entry.value.map(Command::decode)) {
            _ if entry.headers.is_none() => "the batch cannot be read".to_owned(),
            (_, None, _) => "the key must be the campaign's id, and is null".to_owned(),
            (_, _, None) => "the value must be a command, and is null".to_owned(),
            (_, _, Some(Err(malformed))) => malformed.to_string(),
            (_, Some(key), _) if !self.has(entry.key) => {
                let home = partition_of(key.as_bytes(), self.partitions);
                format!("the campaign {key:?} belongs to partition {home}, this is {}", self.number)
            }
            (Cause::UnknownCampaign, Some(key), _) => format!("there is no campaign {key:?}"),
            (_, Some(key), _) => format!("{key:?} is no campaign's id"),
        }
    }

    /// Whether a campaign belongs here.
    fn has(&self, key: Option<&[u8]>) -> bool {
        key.is_some_and(|key| partition_of(key, self.partitions) == self.number)
    }
}

#[cfg(test)]
mod tests {
    use dibs_log::batch::{BatchBuilder, HEADER_BYTES};
    use dibs_model::Command;

    use super::*;

    fn claim(user: &str) -> Vec<u8> {
        Command::Claim { user: user.into(), key: "".into() }.to_json()
    }

    fn seen(bytes: &[u8]) -> Vec<(Offset, bool)> {
        let batch = Batch::parse(bytes).unwrap();
        entries(&batch, &mut Vec::new()).map(|e| (e.offset, e.value.is_some())).collect()
    }

    #[test]
    fn a_batch_is_read_as_far_as_it_can_be() {
        for codec in 0..=4 {
            let mut builder = BatchBuilder::new();
            for user in ["a", "b", "c"] {
                builder.push_at(1, Some(b"c"), Some(&claim(user)));
            }
            let good = builder.finish_with(codec).unwrap();
            assert_eq!(seen(&good), [(0, true), (1, true), (2, true)], "codec {codec}");
            let mut bad = good.clone();
            let end = bad.len() - 1;
            bad[HEADER_BYTES..end].fill(0xff);
            let crc = crc32c::crc32c(&bad[21..]);
            bad[17..21].copy_from_slice(&crc.to_be_bytes());
            assert_eq!(seen(&bad), [(2, false)], "codec {codec}");
        }
    }

    #[test]
    fn a_campaign_is_created_in_its_own_partition_only() {
        let create = br#"{"type":"create","title":"t","stock":1}"#;
        let made: Vec<Verdict> = (0..4)
            .map(|number| {
                let (mut state, mut events) = (State::new(1), Vec::new());
                let entry = Entry {
                    offset: 0,
                    timestamp: Timestamp(1),
                    key: Some(b"summer"),
                    value: Some(create),
                    headers: None,
                };
                Place { number, partitions: 4 }.apply(&mut state, &entry, &mut events)
            })
            .collect();
        assert_eq!(made.iter().filter(|v| **v == Verdict::Created).count(), 1, "{made:?}");
        assert_eq!(made.iter().filter(|v| **v == Verdict::Malformed).count(), 3, "{made:?}");
        assert_eq!(made[partition_of(b"summer", 4) as usize], Verdict::Created);
    }
}
