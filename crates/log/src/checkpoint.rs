//! Kafka's checkpoint files: a version, a number of lines, and `topic partition offset` in each.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use dibs_model::Offset;

use crate::{
    error::Damage,
    storage::{Storage, read_file, replace_file},
};

/// Up to where each partition is known to be durable and whole.
pub(crate) const RECOVERY_POINTS: &str = "recovery-point-offset-checkpoint";
/// Where each partition starts that does not start at its first segment.
pub(crate) const LOG_STARTS: &str = "log-start-offset-checkpoint";
/// Up to where each partition has been compacted.
pub(crate) const CLEANED: &str = "cleaner-offset-checkpoint";
/// Up to where compaction may have left gaps in the offsets; not before [`CLEANED`].
pub(crate) const GAPS: &str = "gap-offset-checkpoint";

/// One checkpoint file of a data folder, and its contents.
pub(crate) struct Checkpoint {
    storage: Arc<dyn Storage>,
    name: &'static str,
    /// Never ahead of what is durable in the partition; the file is never ahead of the map.
    offsets: Mutex<BTreeMap<(String, u32), Offset>>,
}

impl Checkpoint {
    /// Reads the file; without one, everything is at 0.
    pub(crate) fn open(storage: Arc<dyn Storage>, name: &'static str) -> io::Result<Result<Self, Damage>> {
        let bytes = read_file(&*storage, name)?.unwrap_or_default();
        let parsed = parse(&bytes).map_err(|line| Damage {
            file: name.to_owned(),
            position: 0,
            offset: 0,
            what: format!("line {line} does not follow Kafka's checkpoint format"),
        });
        Ok(parsed.map(|offsets| Checkpoint { storage, name, offsets: Mutex::new(offsets) }))
    }

    pub(crate) fn get(&self, topic: &str, partition: u32) -> Option<Offset> {
        let offsets = self.offsets.lock().unwrap_or_else(PoisonError::into_inner);
        offsets.get(&(topic.to_owned(), partition)).copied()
    }

    /// Sets one partition's offset and makes it durable, with all the others'.
    pub(crate) fn save(&self, topic: &str, partition: u32, offset: Offset) -> io::Result<()> {
        self.save_all([((topic.to_owned(), partition), Some(offset))])
    }

    /// Sets or removes partitions' offsets and makes them durable, in one step.
    pub(crate) fn save_all(
        &self,
        changes: impl IntoIterator<Item = ((String, u32), Option<Offset>)>,
    ) -> io::Result<()> {
        let mut offsets = self.offsets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = offsets.clone();
        for (partition, offset) in changes {
            match offset {
                Some(offset) => new.insert(partition, offset),
                None => new.remove(&partition),
            };
        }
        if new != *offsets {
            replace_file(&*self.storage, self.name, format(&new).as_bytes())?;
            *offsets = new;
        }
        Ok(())
    }
}

fn format(offsets: &BTreeMap<(String, u32), Offset>) -> String {
    let mut text = format!("0\n{}\n", offsets.len());
    for ((topic, partition), offset) in offsets {
        text.push_str(&format!("{topic} {partition} {offset}\n"));
    }
    text
}

/// The offsets, or the number of the line that is wrong.
fn parse(bytes: &[u8]) -> Result<BTreeMap<(String, u32), Offset>, usize> {
    if bytes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut lines = std::str::from_utf8(bytes).map_err(|_| 1_usize)?.lines();
    if lines.next() != Some("0") {
        return Err(1);
    }
    let count: usize = lines.next().and_then(|l| l.parse().ok()).ok_or(2_usize)?;
    let mut offsets = BTreeMap::new();
    for i in 0..count {
        let line = lines.next().and_then(|line| {
            let mut words = line.split(' ');
            let entry = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            Some((entry, words.next()?.parse().ok()?))
        });
        let (partition, offset) = line.ok_or(3 + i)?;
        offsets.insert(partition, offset);
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_kafkas() {
        let offsets = BTreeMap::from([(("b".to_owned(), 0), 7), (("a.x".to_owned(), 11), 123)]);
        assert_eq!(format(&offsets), "0\n2\na.x 11 123\nb 0 7\n");
        assert_eq!(parse(format(&offsets).as_bytes()), Ok(offsets));
        assert_eq!(parse(b"1\n0\n"), Err(1));
        assert_eq!(parse(b"0\n2\na 0 7\n"), Err(4));
        assert_eq!(parse(b"0\n1\na 0 x\n"), Err(3));
    }
}
