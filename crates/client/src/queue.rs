//! What waits for one partition: a batch that is being filled, batches in line, and those that are tried again.

use std::{collections::VecDeque, mem};

use bytes::Bytes;
use dibs_log::batch::{BatchBuilder, Batches, HEADER_BYTES, Header, set_producer};
use tokio::time::Instant;

use crate::ProducerConfig;

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) leader: Option<i32>,
    /// The batch that is being filled, and since when.
    pub(crate) open: Option<(Gathering, Instant)>,
    pub(crate) ready: VecDeque<Batch>,
    pub(crate) flying: usize,
    pub(crate) next_sequence: i32,
    /// Those of the last flights that failed for now.
    pub(crate) failed: Vec<Batch>,
    pub(crate) retry_at: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Gathering {
    pub(crate) builder: BatchBuilder,
    pub(crate) given: Vec<(Instant, u32)>,
}

pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    pub(crate) records: usize,
    /// Bytes that it counts for in `buffered`.
    pub(crate) size: usize,
    /// Its place in the producer's sequence, once it has been sent.
    pub(crate) sequence: Option<i32>,
    pub(crate) born: Instant,
    pub(crate) tries: u32,
    pub(crate) given: Vec<(Instant, u32)>,
}

impl Queue {
    pub(crate) fn has_work(&self) -> bool {
        self.open.is_some() || !self.ready.is_empty()
    }

    /// Whether it waits for flights that must land before others may follow.
    pub(crate) fn is_held(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Closes the batch that is being filled.
    pub(crate) fn close(&mut self, config: &ProducerConfig) {
        let Some((Gathering { builder, given }, born)) = self.open.take() else { return };
        let (counted, records) = (builder.size() - HEADER_BYTES, builder.len());
        // A builder's codecs do not fail on what they are given.
        let bytes = builder.finish_with(config.codec.number()).unwrap_or_default();
        let batch =
            Batch { bytes: bytes.into(), records, size: counted, sequence: None, born, tries: 0, given };
        self.ready.push_back(batch);
    }

    /// Gives a batch that is sent for the first time its place in the sequence.
    pub(crate) fn sign(&mut self, batch: &mut Batch, identity: Option<(i64, i16)>) {
        let (Some((id, epoch)), None) = (identity, batch.sequence) else { return };
        let sequence = self.next_sequence;
        batch.sequence = Some(sequence);
        self.next_sequence = ((i64::from(sequence) + batch.records as i64) & i64::from(i32::MAX)) as i32;
        let mut bytes: Vec<u8> = mem::take(&mut batch.bytes).into();
        set_producer(&mut bytes, id, epoch, sequence);
        batch.bytes = bytes.into();
    }

    /// Once all flights have landed, puts what failed back in front, in the order of its sequence.
    pub(crate) fn requeue(&mut self) {
        if self.flying > 0 || self.failed.is_empty() {
            return;
        }
        self.failed.sort_by_key(|batch| batch.born);
        for batch in self.failed.drain(..).rev() {
            self.ready.push_front(batch);
        }
    }
}

impl Batch {
    /// The same records in two batches.
    pub(crate) fn split(self, config: &ProducerConfig) -> Vec<Batch> {
        let mut buffer = Vec::new();
        let mut halves = [BatchBuilder::new(), BatchBuilder::new()];
        let half = self.records.div_ceil(2);
        let batch = Batches::new(&self.bytes).flatten().next();
        let records = batch.as_ref().and_then(|b| b.records_in(&mut buffer).ok());
        for (i, record) in records.into_iter().flatten().flatten().enumerate() {
            let headers: Vec<Header<'_>> = record.headers.iter().collect();
            halves[usize::from(i >= half)].push_at_with(record.timestamp, record.key, record.value, &headers);
        }
        let mut given = self.given;
        let first = take_given(&mut given, half as u32);
        let sizes = [self.size.div_ceil(2), self.size / 2];
        let parts = halves.into_iter().zip(sizes).zip([first, given]);
        let part = |((builder, size), given): ((BatchBuilder, usize), _)| Batch {
            records: builder.len(),
            bytes: builder.finish_with(config.codec.number()).unwrap_or_default().into(),
            size,
            sequence: None,
            born: self.born,
            tries: self.tries,
            given,
        };
        parts.map(part).collect()
    }
}

/// Takes the times of the first `records` records out.
fn take_given(given: &mut Vec<(Instant, u32)>, mut records: u32) -> Vec<(Instant, u32)> {
    let mut first = Vec::new();
    for (at, count) in given.iter_mut() {
        let taken = records.min(*count);
        if taken > 0 {
            first.push((*at, taken));
        }
        *count -= taken;
        records -= taken;
    }
    given.retain(|(_, count)| *count > 0);
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Properties;

    fn config(text: &str) -> ProducerConfig {
        ProducerConfig::new(&mut Properties::parse(text)).unwrap()
    }

    /// A queue with a closed batch for each of these numbers of records.
    fn filled(records: &[usize], config: &ProducerConfig) -> Queue {
        let mut queue = Queue::default();
        for &records in records {
            let mut gathering = Gathering::default();
            let at = Instant::now();
            for i in 0..records {
                gathering.builder.push_at(i as i64, None, Some(format!("{i}").as_bytes()));
            }
            gathering.given.push((at, records as u32));
            queue.open = Some((gathering, at));
            queue.close(config);
        }
        queue
    }

    fn values(batch: &Batch) -> Vec<String> {
        let mut buffer = Vec::new();
        let parsed = Batches::new(&batch.bytes).next().unwrap().unwrap();
        let text = |v: Option<&[u8]>| String::from_utf8(v.unwrap().to_vec()).unwrap();
        parsed.records_in(&mut buffer).unwrap().map(|r| text(r.unwrap().value)).collect()
    }

    #[test]
    fn batches_are_numbered_when_they_are_sent_and_keep_their_number() {
        let mut queue = filled(&[3, 2], &config("compression.type=gzip"));
        let (mut a, mut b) = (queue.ready.pop_front().unwrap(), queue.ready.pop_front().unwrap());
        queue.sign(&mut a, Some((7, 1)));
        queue.sign(&mut b, Some((7, 1)));
        queue.sign(&mut a, Some((7, 1)));
        assert_eq!((a.sequence, b.sequence, queue.next_sequence), (Some(0), Some(3), 5));
        let header = Batches::new(&b.bytes).next().unwrap().unwrap().header;
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 1, 3));
        queue.next_sequence = i32::MAX;
        b.sequence = None;
        queue.sign(&mut b, Some((8, 0)));
        assert_eq!((b.sequence, queue.next_sequence), (Some(i32::MAX), 1), "after the largest comes 0");
        let mut plain = filled(&[1], &config("acks=1")).ready.pop_front().unwrap();
        queue.sign(&mut plain, None);
        assert_eq!(plain.sequence, None);
    }

    #[test]
    fn what_failed_goes_on_in_the_old_order_once_all_has_landed() {
        let mut queue = filled(&[1, 2, 3], &config(""));
        for _ in 0..2 {
            let batch = queue.ready.pop_front().unwrap();
            queue.failed.push(batch);
        }
        queue.flying = 1;
        queue.requeue();
        assert!(queue.is_held() && queue.ready.len() == 1);
        queue.flying = 0;
        queue.requeue();
        assert!(!queue.is_held());
        assert_eq!(queue.ready.iter().map(|b| b.records).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_batch_that_is_too_large_becomes_two() {
        for codec in ["none", "zstd"] {
            let config = config(&format!("compression.type={codec}"));
            let batch = filled(&[5], &config).ready.pop_front().unwrap();
            let size = batch.size;
            let halves = batch.split(&config);
            assert_eq!(values(&halves[0]), ["0", "1", "2"]);
            assert_eq!(values(&halves[1]), ["3", "4"]);
            assert_eq!(halves.iter().map(|h| h.size).sum::<usize>(), size, "what is counted stays the same");
            let given = |h: &Batch| h.given.iter().map(|(_, n)| *n).sum::<u32>();
            assert_eq!((given(&halves[0]), given(&halves[1])), (3, 2));
        }
    }
}
