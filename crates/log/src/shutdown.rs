//! What a clean shutdown leaves for the next start: one small file that says what every partition's files hold,
//! so that nobody need look. The next start removes it before it changes anything.

use std::{collections::BTreeMap, io};

use data_encoding::BASE64URL_NOPAD;
use dibs_model::Offset;

use crate::{
    index::TimeEntry,
    producers::Producers,
    snapshot,
    storage::{Storage, read_file, replace_file},
};

/// The file's name in the data folder.
pub(crate) const CLEAN: &str = "clean-shutdown";
/// Its first line.
const VERSION: &str = "0";

/// What a partition's files hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) end: Offset,
    /// The log's own time of the last group, in ms.
    pub(crate) last_time: i64,
    /// The last entry of the last segment's time index: its largest timestamp.
    pub(crate) last_entry: Option<TimeEntry>,
    pub(crate) snapshots: Vec<Offset>,
    pub(crate) producers: Producers,
    pub(crate) segments: Vec<LeftSegment>,
}

/// What a segment's files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeftSegment {
    pub(crate) base: Offset,
    pub(crate) size: u64,
    pub(crate) max_timestamp: i64,
    /// `i64::MIN` if nobody knows it.
    pub(crate) first_timestamp: i64,
    /// Entries of the offset index.
    pub(crate) offsets: u64,
    /// Entries of the time index.
    pub(crate) times: u64,
}

pub(crate) type Partitions = BTreeMap<(String, u32), Left>;

/// Writes the file, durably.
pub(crate) fn write(storage: &dyn Storage, partitions: &Partitions) -> io::Result<()> {
    replace_file(storage, CLEAN, format(partitions).as_bytes())
}

/// Reads the file and removes it, durably. Without one, or with one that is not whole, nothing is known.
pub(crate) fn take(storage: &dyn Storage) -> io::Result<Partitions> {
    let Some(bytes) = read_file(storage, CLEAN)? else { return Ok(Partitions::new()) };
    storage.remove(CLEAN)?;
    storage.sync_dir("")?;
    Ok(parse(&bytes).unwrap_or_default())
}

fn format(partitions: &Partitions) -> String {
    let mut text = format!("{VERSION}\n");
    for ((topic, partition), left) in partitions {
        let entry = left.last_entry.map_or("- -".to_owned(), |e| format!("{} {}", e.timestamp, e.offset));
        text.push_str(&format!("partition {topic} {partition} {} {} {entry}\n", left.end, left.last_time));
        for s in &left.segments {
            text.push_str(&format!(
                "segment {} {} {} {} {} {}\n",
                s.base, s.size, s.max_timestamp, s.first_timestamp, s.offsets, s.times
            ));
        }
        for offset in &left.snapshots {
            text.push_str(&format!("snapshot {offset}\n"));
        }
        if !left.producers.is_empty() {
            let bytes = snapshot::encode(&left.producers);
            text.push_str(&format!("producers {}\n", BASE64URL_NOPAD.encode(&bytes)));
        }
    }
    text.push_str(&format!("crc {:08x}\n", crc32c::crc32c(text.as_bytes())));
    text
}

fn parse(bytes: &[u8]) -> Option<Partitions> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let (body, crc) = text.rsplit_once("crc ")?;
    if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    (lines.next() == Some(VERSION)).then_some(())?;
    let mut partitions = Partitions::new();
    let mut current = (String::new(), 0);
    for line in lines {
        let mut words = line.split(' ');
        let kind = words.next()?;
        if kind == "partition" {
            current = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            let (end, last_time) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            let (time, offset) = (words.next()?.parse().ok(), words.next()?.parse().ok());
            let last_entry = time.zip(offset).map(|(timestamp, offset)| TimeEntry { timestamp, offset });
            let (snapshots, producers, segments) = (Vec::new(), Producers::default(), Vec::new());
            let left = Left { end, last_time, last_entry, snapshots, producers, segments };
            partitions.insert(current.clone(), left);
            continue;
        }
        let left = partitions.get_mut(&current)?;
        match kind {
            "segment" => left.segments.push(LeftSegment {
                base: words.next()?.parse().ok()?,
                size: words.next()?.parse().ok()?,
                max_timestamp: words.next()?.parse().ok()?,
                first_timestamp: words.next()?.parse().ok()?,
                offsets: words.next()?.parse().ok()?,
                times: words.next()?.parse().ok()?,
            }),
            "snapshot" => left.snapshots.push(words.next()?.parse().ok()?),
            "producers" => {
                let bytes = BASE64URL_NOPAD.decode(words.next()?.as_bytes()).ok()?;
                left.producers = snapshot::decode(&bytes)?;
            }
            _ => return None,
        }
    }
    partitions.values().all(|left| !left.segments.is_empty()).then_some(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{producers::Marker, storage::MemoryStorage};

    #[test]
    fn what_is_written_is_read_once_and_only_whole() {
        let mut producers = Producers::default();
        let marker = Marker { producer_id: 7, producer_epoch: 1, coordinator_epoch: 4, commit: true };
        producers.marker(&marker, 103, 79);
        let (max_timestamp, first_timestamp) = (5, i64::MIN);
        let segment = LeftSegment { base: 0, size: 9, max_timestamp, first_timestamp, offsets: 1, times: 2 };
        let entry = TimeEntry { timestamp: -1, offset: 3 };
        let left = Left {
            end: 12,
            last_time: i64::MIN,
            last_entry: Some(entry),
            snapshots: vec![4, 12],
            producers,
            segments: vec![segment, LeftSegment { base: 7, ..segment }],
        };
        let bare = Left { last_entry: None, snapshots: Vec::new(), ..left.clone() };
        let partitions = Partitions::from([(("a.b-c".to_owned(), 3), left), (("x".to_owned(), 0), bare)]);
        let text = format(&partitions);
        assert_eq!(parse(text.as_bytes()), Some(partitions.clone()));
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1;
            assert_eq!(parse(&bad), None, "byte {at}");
        }
        let storage = MemoryStorage::new(0);
        write(&storage, &partitions).unwrap();
        assert_eq!(take(&storage).unwrap(), partitions);
        storage.crash();
        assert_eq!(take(&storage).unwrap(), Partitions::new());
    }
}
