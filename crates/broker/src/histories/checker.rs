//! The dumb twin: from what clients saw alone it says whether one log, in which nothing is ever lost, doubled,
//! changed or moved, can have shown it.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Batch, Event, Fetched, History, Item, Value};

/// What no log may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What was acknowledged or shown is gone.
    Lost,
    /// A numbered batch is there twice, or an unnumbered one more often than it was sent.
    Duplicated,
    /// A producer's batches are not in the order of their numbers.
    Reordered,
    /// An offset held something else before, or somebody was told otherwise.
    Changed,
    /// Something is missing between two offsets, or between two of a producer's batches.
    Gap,
    /// Nobody has sent this here.
    Invented,
    /// A record was shown whose transaction is open or aborted.
    Uncommitted,
    /// Of a transaction there is one part and not the other.
    Torn,
}

/// A history that cannot be.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    pub(super) kind: Kind,
    pub(super) what: String,
}

fn wrong<T>(kind: Kind, what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { kind, what: what.into() })
}

/// How far a transaction is, as far as its producer knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    /// Nobody has asked for its commit.
    #[default]
    Open,
    /// Its commit was asked for; nobody knows more.
    Asked,
    Committed,
    Aborted,
}

/// What is known of a partition.
#[derive(Default)]
struct Partition {
    log: BTreeMap<u64, Item>,
    high_watermark: u64,
    last_stable: u64,
    start: u64,
    /// Up to where somebody has asked to delete.
    deleting: u64,
}

struct Checker<'h> {
    batches: &'h [Batch],
    partitions: Vec<Partition>,
    /// How often each batch was sent.
    sent: Vec<usize>,
    /// Where each batch begins in the log, as often as it is there.
    copies: Vec<BTreeSet<u64>>,
    acked: Vec<bool>,
    fates: BTreeMap<usize, Fate>,
    /// Whether a reader of committed records was shown it.
    shown: BTreeMap<Value, bool>,
}

/// Says what is wrong with a history, if anything is.
pub(super) fn check(history: &History) -> Result<(), Wrong> {
    let batches = &history.batches;
    let mut checker = Checker {
        batches,
        partitions: history.end.iter().map(|_| Partition::default()).collect(),
        sent: vec![0; batches.len()],
        copies: vec![BTreeSet::new(); batches.len()],
        acked: vec![false; batches.len()],
        fates: BTreeMap::new(),
        shown: BTreeMap::new(),
    };
    for (i, event) in history.events.iter().enumerate() {
        let at = |e: Wrong| Wrong { what: format!("event {i}, {event:?}: {}", e.what), ..e };
        checker.event(event).map_err(at)?;
    }
    for (p, end) in history.end.iter().enumerate() {
        checker.end(p, end).map_err(|e| Wrong { what: format!("partition {p}: {}", e.what), ..e })?;
    }
    checker.order()?;
    checker.transactions()
}

impl Checker<'_> {
    fn event(&mut self, event: &Event) -> Result<(), Wrong> {
        match *event {
            Event::Sent(batch) => self.sent[batch] += 1,
            Event::Acked { batch, base } => return self.acked(batch, base),
            Event::Ending { transaction, commit } => {
                let fate = self.fates.entry(transaction).or_default();
                if commit && *fate == Fate::Open {
                    *fate = Fate::Asked;
                }
            }
            Event::Ended { transaction, commit } => {
                let fate = if commit { Fate::Committed } else { Fate::Aborted };
                self.fates.insert(transaction, fate);
            }
            Event::Deleting { partition, before } => {
                let deleting = &mut self.partitions[partition].deleting;
                *deleting = before.max(*deleting);
            }
            Event::Deleted { partition, start } => self.start(partition, start)?,
            Event::Fetched(ref fetched) => return self.fetched(fetched),
            Event::OutOfRange { partition, from } => {
                let known = &self.partitions[partition];
                if from >= known.deleting && from <= known.high_watermark {
                    return wrong(Kind::Lost, "it was there, and nobody has deleted it");
                }
            }
        }
        Ok(())
    }

    fn acked(&mut self, batch: usize, base: u64) -> Result<(), Wrong> {
        let Batch { partition, ref values, .. } = self.batches[batch];
        if base + (values.end - values.start) <= self.partitions[partition].start {
            // Deleted already: it is told for the first time that it was ever there.
            return Ok(());
        }
        for (offset, value) in (base..).zip(values.clone()) {
            self.stands(partition, offset, Item::Record(value))?;
        }
        self.acked[batch] = true;
        let known = &mut self.partitions[partition];
        known.high_watermark = known.high_watermark.max(base + values.end - values.start);
        Ok(())
    }

    fn start(&mut self, partition: usize, start: u64) -> Result<(), Wrong> {
        let known = &mut self.partitions[partition];
        if start > known.deleting {
            return wrong(Kind::Lost, format!("nobody has deleted up to {start}"));
        }
        if start < known.start {
            return wrong(Kind::Changed, format!("what was deleted up to {} is there again", known.start));
        }
        known.start = start;
        Ok(())
    }

    /// An offset holds this, and so it always did and will.
    fn stands(&mut self, partition: usize, offset: u64, item: Item) -> Result<(), Wrong> {
        let item = match item {
            Item::Aborted(value) => Item::Record(value),
            item => item,
        };
        let before = self.partitions[partition].log.insert(offset, item);
        if let Some(before) = before.filter(|before| *before != item) {
            return wrong(Kind::Changed, format!("offset {offset} is {item:?} and was {before:?}"));
        }
        let Item::Record(value) = item else { return Ok(()) };
        let after = self.batches.partition_point(|batch| batch.values.end <= value);
        let Some(batch) =
            self.batches.get(after).filter(|b| b.partition == partition && self.sent[after] > 0)
        else {
            return wrong(Kind::Invented, format!("{value} at offset {offset}"));
        };
        let Some(base) = offset.checked_sub(value - batch.values.start) else {
            return wrong(Kind::Lost, format!("{value} at offset {offset}, without what was sent before it"));
        };
        self.copies[after].insert(base);
        let allowed = if batch.producer.is_some() { 1 } else { self.sent[after] };
        if self.copies[after].len() > allowed {
            return wrong(Kind::Duplicated, format!("{batch:?} stands at {:?}", self.copies[after]));
        }
        Ok(())
    }

    fn fetched(&mut self, fetched: &Fetched) -> Result<(), Wrong> {
        self.start(fetched.partition, fetched.start)?;
        let known = &mut self.partitions[fetched.partition];
        let Fetched { from, high_watermark, last_stable, .. } = *fetched;
        if high_watermark < known.high_watermark || last_stable < known.last_stable {
            let before = (known.high_watermark, known.last_stable);
            return wrong(Kind::Lost, format!("high watermark and last stable offset were {before:?}"));
        }
        if last_stable > high_watermark {
            return wrong(Kind::Uncommitted, "the last stable offset is not durable");
        }
        (known.high_watermark, known.last_stable) = (high_watermark, last_stable);
        let end = if fetched.committed { last_stable } else { high_watermark };
        let first = fetched.items.first().map_or(end, |(offset, _)| *offset);
        if first > from {
            return wrong(Kind::Gap, format!("nothing before offset {first}"));
        }
        for (expected, &(offset, item)) in (first..).zip(&fetched.items) {
            if offset != expected {
                return wrong(Kind::Gap, format!("offset {offset} follows {expected}"));
            }
            if offset >= end {
                return wrong(Kind::Uncommitted, format!("offset {offset} is not below {end}"));
            }
            self.stands(fetched.partition, offset, item)?;
            if fetched.committed {
                self.visible(item)?;
            }
        }
        Ok(())
    }

    /// A reader of committed records was shown this, or told to leave it out.
    fn visible(&mut self, item: Item) -> Result<(), Wrong> {
        let (value, shown) = match item {
            Item::Record(value) => (value, true),
            Item::Aborted(value) => (value, false),
            Item::Control => return Ok(()),
        };
        if self.shown.insert(value, shown).is_some_and(|before| before != shown) {
            return wrong(Kind::Changed, format!("{value} was shown to one and not to the other"));
        }
        let batch = &self.batches[self.batches.partition_point(|batch| batch.values.end <= value)];
        let fate = batch.transaction.map(|t| self.fates.get(&t).copied().unwrap_or_default());
        match (fate, shown) {
            (Some(Fate::Open | Fate::Aborted), true) => wrong(Kind::Uncommitted, format!("{value} is shown")),
            (None | Some(Fate::Committed), false) => wrong(Kind::Lost, format!("{value} is left out")),
            _ => Ok(()),
        }
    }

    /// In the end, everything stands where it ever stood.
    fn end(&mut self, partition: usize, end: &[(u64, Item)]) -> Result<(), Wrong> {
        let start = self.partitions[partition].start;
        for (expected, &(offset, item)) in (start..).zip(end) {
            if offset != expected {
                return wrong(Kind::Gap, format!("at the end, offset {offset} follows {expected}"));
            }
            self.stands(partition, offset, item)?;
            self.visible(item)?;
        }
        let known = &self.partitions[partition];
        let last = known.log.last_key_value().map_or(0, |(last, _)| last + 1).max(known.high_watermark);
        if start + (end.len() as u64) < last {
            return wrong(Kind::Lost, format!("{last} offsets at most, {} from {start} on left", end.len()));
        }
        for (batch, copies) in self.batches.iter().zip(&self.copies).filter(|(b, _)| b.partition == partition)
        {
            for (base, value) in copies.iter().flat_map(|base| batch.values.clone().map(move |v| (base, v))) {
                let offset = base + (value - batch.values.start);
                if offset >= start && known.log.get(&offset) != Some(&Item::Record(value)) {
                    return wrong(Kind::Lost, format!("offset {offset} is not {value} of {batch:?}"));
                }
            }
        }
        Ok(())
    }

    /// A producer's batches in a partition are in the order of their numbers, and none is left out.
    fn order(&self) -> Result<(), Wrong> {
        // Where a producer's last batch begins, and whether one after it is missing.
        let mut last: BTreeMap<(usize, usize), (u64, bool)> = BTreeMap::new();
        for (batch, copies) in self.batches.iter().zip(&self.copies) {
            let Some(producer) = batch.producer else { continue };
            let key = (producer, batch.partition);
            let Some(&base) = copies.first() else {
                last.entry(key).and_modify(|(_, missing)| *missing = true);
                continue;
            };
            // What stood in the deleted part may never have been seen.
            let start = self.partitions[batch.partition].start;
            match last.insert(key, (base, false)) {
                Some((before, _)) if base < before => {
                    return wrong(Kind::Reordered, format!("{batch:?} at {base} is before {before}"));
                }
                Some((before, true)) if before >= start => {
                    return wrong(
                        Kind::Gap,
                        format!("{batch:?} at {base} follows {before}, but not by number"),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Of a transaction, all records count or none.
    fn transactions(&self) -> Result<(), Wrong> {
        let mut counts: BTreeMap<usize, bool> = BTreeMap::new();
        for (i, batch) in self.batches.iter().enumerate() {
            let Some(transaction) = batch.transaction else { continue };
            let fate = self.fates.get(&transaction).copied().unwrap_or_default();
            for value in batch.values.clone() {
                let shown = self.shown.get(&value).copied();
                let gone = self.copies[i].last().is_some_and(|base| {
                    base + (value - batch.values.start) < self.partitions[batch.partition].start
                });
                match shown {
                    None if gone || !self.acked[i] => {}
                    None => return wrong(Kind::Lost, format!("{value} of transaction {transaction}")),
                    Some(shown) if counts.insert(transaction, shown).is_some_and(|other| other != shown) => {
                        return wrong(Kind::Torn, format!("transaction {transaction} ({fate:?}) at {value}"));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }
}
