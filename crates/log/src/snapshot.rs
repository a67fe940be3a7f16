//! The producers of a partition after some offset, in Kafka's `.snapshot` files: a start need not read the whole
//! log to know them.

use std::{collections::VecDeque, io};

use dibs_model::Offset;

use crate::{
    producers::{Producer, Producers, Seen},
    storage::{Storage, read_file},
};

/// The version of the layout.
const VERSION: i16 = 1;
/// Bytes before those that the CRC covers: version and CRC.
const CRC_END: usize = 6;
/// Bytes of a producer.
const ENTRY_BYTES: usize = 46;

/// The path of the snapshot of all producers before an offset.
pub(crate) fn path(dir: &str, offset: Offset) -> String {
    format!("{dir}/{offset:020}.snapshot")
}

/// The offset in a snapshot's file name.
pub(crate) fn offset_of(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(".snapshot")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// Writes a snapshot, durably but for its name.
pub(crate) fn write(
    storage: &dyn Storage,
    dir: &str,
    offset: Offset,
    producers: &Producers,
) -> io::Result<()> {
    let file = storage.open(&path(dir, offset), true)?;
    file.set_len(0)?;
    file.write_at(&encode(producers), 0)?;
    file.sync_data()
}

/// Reads a snapshot; `None` if it is not whole.
pub(crate) fn read(storage: &dyn Storage, dir: &str, offset: Offset) -> io::Result<Option<Producers>> {
    Ok(read_file(storage, &path(dir, offset))?.and_then(|bytes| decode(&bytes)))
}

/// Kafka's layout remembers one batch of each producer.
fn encode(producers: &Producers) -> Vec<u8> {
    let mut known: Vec<_> = producers.known.iter().collect();
    known.sort_unstable_by_key(|(id, _)| **id);
    let mut out = Vec::with_capacity(CRC_END + 4 + known.len() * ENTRY_BYTES);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(known.len() as i32).to_be_bytes());
    for (id, producer) in known {
        let last = producer.batches.back();
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&producer.epoch.to_be_bytes());
        out.extend_from_slice(&producer.last_sequence().to_be_bytes());
        out.extend_from_slice(&last.map_or(-1, |seen| seen.last_offset as i64).to_be_bytes());
        out.extend_from_slice(&last.map_or(0, |seen| seen.delta).to_be_bytes());
        out.extend_from_slice(&producer.last_timestamp.to_be_bytes());
        out.extend_from_slice(&producer.coordinator_epoch.to_be_bytes());
        out.extend_from_slice(&producer.transaction.map_or(-1, |first| first as i64).to_be_bytes());
    }
    let crc = crc32c::crc32c(&out[CRC_END..]);
    out[2..CRC_END].copy_from_slice(&crc.to_be_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<Producers> {
    let mut reader = Reader(bytes);
    let version = i16::from_be_bytes(reader.take()?);
    let crc = u32::from_be_bytes(reader.take()?);
    if version != VERSION || crc != crc32c::crc32c(reader.0) {
        return None;
    }
    let count = i32::from_be_bytes(reader.take()?);
    let mut producers = Producers::default();
    for _ in 0..count {
        let id = i64::from_be_bytes(reader.take()?);
        let epoch = i16::from_be_bytes(reader.take()?);
        let last_sequence = i32::from_be_bytes(reader.take()?);
        let last_offset = i64::from_be_bytes(reader.take()?);
        let delta = i32::from_be_bytes(reader.take()?);
        let timestamp = i64::from_be_bytes(reader.take()?);
        let coordinator_epoch = i32::from_be_bytes(reader.take()?);
        let transaction = u64::try_from(i64::from_be_bytes(reader.take()?)).ok();
        let seen = u64::try_from(last_offset).ok().filter(|_| last_sequence >= 0);
        let batches = seen.map(|last_offset| Seen { last_sequence, last_offset, delta, timestamp });
        let batches = VecDeque::from_iter(batches);
        let last_timestamp = timestamp;
        let producer = Producer { epoch, batches, coordinator_epoch, last_timestamp, transaction };
        producers.restore(id, producer);
    }
    Some(producers)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::BatchHeader, producers::Marker};

    fn batch(id: i64, sequence: i32, records: i32) -> BatchHeader {
        let mut builder = crate::batch::BatchBuilder::new();
        (0..records).for_each(|_| builder.push(None, None));
        builder.producer(id, 3, sequence);
        if id == 9 {
            builder.transactional();
        }
        BatchHeader::parse(&builder.finish(77)).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut producers = Producers::default();
        assert_eq!(decode(&encode(&producers)), Some(producers.clone()));
        producers.data(&batch(7, 5, 2), 100, 101, 77);
        producers.data(&batch(9, 0, 1), 102, 102, 78);
        let marker = Marker { producer_id: 11, producer_epoch: 1, coordinator_epoch: 4, commit: true };
        producers.marker(&marker, 103, 79);
        let bytes = encode(&producers);
        assert_eq!(bytes.len(), CRC_END + 4 + 3 * ENTRY_BYTES);
        let again = decode(&bytes).unwrap();
        assert_eq!(again, producers);
        assert_eq!(again.first_open(), Some(102));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None);
        }
    }
}
