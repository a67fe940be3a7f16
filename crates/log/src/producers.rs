//! What a partition knows of its idempotent and transactional producers (KIP-98): a pure state, checked and
//! changed batch by batch in the order of the log.

use std::collections::{BTreeMap, HashMap, VecDeque};

use dibs_model::Offset;

use crate::{
    batch::{Batch, BatchHeader, add_sequence},
    txn_index::Aborted,
};

/// How many batches of a producer are remembered, to know them again when they are sent twice. Kafka's clients
/// have no more in flight.
pub(crate) const REMEMBERED_BATCHES: usize = 5;
/// An epoch or sequence number that is none.
pub(crate) const NONE: i32 = -1;

/// Why a batch is not taken from its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// Its sequence number does not follow the last one.
    #[error("producer {id}: sequence number {found}, {expected} was expected")]
    OutOfOrderSequence {
        /// The producer.
        id: i64,
        /// The batch's first sequence number.
        found: i32,
        /// The one that would have been right.
        expected: i32,
    },
    /// Another producer with the same id and a later epoch has written.
    #[error("producer {id}: epoch {found} is fenced by {current}")]
    InvalidEpoch {
        /// The producer.
        id: i64,
        /// The batch's epoch.
        found: i16,
        /// The latest epoch.
        current: i16,
    },
    /// A batch outside a transaction came from a producer that is in one.
    #[error("producer {id}: a transaction is open, and the batch is not part of one")]
    InvalidTransactionState {
        /// The producer.
        id: i64,
    },
    /// A client's batch belongs to a transaction that does not go on here, and nobody has asked its coordinator
    /// whether it should begin (KIP-890).
    #[error("producer {id}: the batch is not part of an ongoing transaction")]
    NotInTransaction {
        /// The producer.
        id: i64,
    },
    /// The marker comes from a transaction coordinator that has been replaced.
    #[error("producer {id}: coordinator epoch {found} is fenced by {current}")]
    CoordinatorFenced {
        /// The producer.
        id: i64,
        /// The marker's coordinator epoch.
        found: i32,
        /// The latest one.
        current: i32,
    },
    /// Only a transaction coordinator writes markers.
    #[error("a producer may not write control records")]
    Control,
}

/// Who appends a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client, whose sequence numbers are checked. It can go on with a transaction, and not begin one.
    Client,
    /// A client whose transaction's coordinator knows that this partition is part of the transaction.
    Verified,
    /// A coordinator in this process, for a producer: offsets committed in a transaction have no sequence
    /// numbers.
    Coordinator,
}

/// A batch that is in the log already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) first_offset: Offset,
    pub(crate) last_offset: Offset,
    pub(crate) timestamp: i64,
}

/// One remembered batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) last_sequence: i32,
    pub(crate) last_offset: Offset,
    /// Last offset less the first.
    pub(crate) delta: i32,
    pub(crate) timestamp: i64,
}

/// What is known of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) epoch: i16,
    /// The newest last, at most [`REMEMBERED_BATCHES`], all of the epoch.
    pub(crate) batches: VecDeque<Seen>,
    pub(crate) coordinator_epoch: i32,
    /// When it was last heard of, in ms.
    pub(crate) last_timestamp: i64,
    /// First offset of its open transaction.
    pub(crate) transaction: Option<Offset>,
}

impl Producer {
    fn new(epoch: i16) -> Self {
        Producer {
            epoch,
            batches: VecDeque::new(),
            coordinator_epoch: NONE,
            last_timestamp: i64::MIN,
            transaction: None,
        }
    }

    pub(crate) fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(NONE, |seen| seen.last_sequence)
    }

    fn enter(&mut self, epoch: i16) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.batches.clear();
        }
    }
}

/// One active producer, for those who ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerInfo {
    /// Its id.
    pub id: i64,
    /// Its latest epoch.
    pub epoch: i16,
    /// Sequence number of its last record, or −1.
    pub last_sequence: i32,
    /// When it was last heard of, in ms.
    pub last_timestamp: i64,
    /// Epoch of the coordinator of its last marker, or −1.
    pub coordinator_epoch: i32,
    /// First offset of its open transaction.
    pub transaction_start: Option<Offset>,
}

/// A transaction's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The producer whose transaction ends.
    pub producer_id: i64,
    /// Its epoch; a later one than its records' is taken over.
    pub producer_epoch: i16,
    /// Epoch of the coordinator that decided.
    pub coordinator_epoch: i32,
    /// Whether the transaction's records count.
    pub commit: bool,
}

impl Marker {
    /// The marker that a control batch holds; `None` if its record is gone or of another kind.
    pub fn of(batch: &Batch<'_>) -> Option<Marker> {
        if batch.header.is_control() { read_marker(batch) } else { None }
    }
}

/// All producers of a partition, after some offset of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    /// The map's order is of no consequence anywhere.
    pub(crate) known: HashMap<i64, Producer>,
    /// Open transactions: first offset and producer.
    open: BTreeMap<Offset, i64>,
}

impl Producers {
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether a batch may be appended for its producer; if it is there already, where. A coordinator's batches
    /// have no sequence numbers.
    pub(crate) fn check(&self, batch: &BatchHeader, origin: Origin) -> Result<Option<Known>, ProducerError> {
        let id = batch.producer_id;
        let known_producer = self.known.get(&id);
        let begins = batch.is_transactional()
            && !known_producer.is_some_and(|p| p.transaction.is_some() && p.epoch == batch.producer_epoch);
        let unverified = begins && origin == Origin::Client;
        let Some(producer) = known_producer else {
            // Its records may have been deleted since, or it was idle for long: any number may follow.
            return if unverified { Err(ProducerError::NotInTransaction { id }) } else { Ok(None) };
        };
        if batch.producer_epoch == producer.epoch
            && let Some(known) = known(producer, batch)
        {
            return Ok(Some(known));
        }
        if batch.producer_epoch < producer.epoch {
            let (found, current) = (batch.producer_epoch, producer.epoch);
            return Err(ProducerError::InvalidEpoch { id, found, current });
        }
        if producer.transaction.is_some() && !batch.is_transactional() {
            return Err(ProducerError::InvalidTransactionState { id });
        }
        let expected = match producer.last_sequence() {
            _ if batch.producer_epoch > producer.epoch => 0,
            last => add_sequence(last, 1),
        };
        if batch.base_sequence != expected && origin != Origin::Coordinator {
            return Err(ProducerError::OutOfOrderSequence { id, found: batch.base_sequence, expected });
        }
        if unverified {
            return Err(ProducerError::NotInTransaction { id });
        }
        Ok(None)
    }

    /// Takes a batch of records that stands in the log at `first..=last`.
    pub(crate) fn data(&mut self, batch: &BatchHeader, first: Offset, last: Offset, timestamp: i64) {
        let producer =
            self.known.entry(batch.producer_id).or_insert_with(|| Producer::new(batch.producer_epoch));
        producer.enter(batch.producer_epoch);
        if batch.base_sequence >= 0 {
            if producer.batches.len() == REMEMBERED_BATCHES {
                producer.batches.pop_front();
            }
            producer.batches.push_back(Seen {
                last_sequence: batch.last_sequence(),
                last_offset: last,
                delta: (last - first) as i32,
                timestamp,
            });
        }
        producer.last_timestamp = timestamp;
        if batch.is_transactional() && producer.transaction.is_none() {
            producer.transaction = Some(first);
            self.open.insert(first, batch.producer_id);
        }
    }

    /// Whether a marker may be appended.
    pub(crate) fn check_marker(&self, marker: &Marker) -> Result<(), ProducerError> {
        let id = marker.producer_id;
        let Some(producer) = self.known.get(&id) else { return Ok(()) };
        if marker.producer_epoch < producer.epoch {
            let (found, current) = (marker.producer_epoch, producer.epoch);
            return Err(ProducerError::InvalidEpoch { id, found, current });
        }
        if marker.coordinator_epoch < producer.coordinator_epoch {
            let (found, current) = (marker.coordinator_epoch, producer.coordinator_epoch);
            return Err(ProducerError::CoordinatorFenced { id, found, current });
        }
        Ok(())
    }

    /// Takes a marker that stands in the log at `offset`. Returns what it aborted, if it did.
    pub(crate) fn marker(&mut self, marker: &Marker, offset: Offset, timestamp: i64) -> Option<Aborted> {
        let producer =
            self.known.entry(marker.producer_id).or_insert_with(|| Producer::new(marker.producer_epoch));
        producer.enter(marker.producer_epoch);
        producer.coordinator_epoch = marker.coordinator_epoch;
        producer.last_timestamp = timestamp;
        let first_offset = producer.transaction.take()?;
        self.open.remove(&first_offset);
        let last_stable_offset = self.first_open().unwrap_or(offset + 1);
        (!marker.commit).then_some(Aborted {
            producer_id: marker.producer_id,
            first_offset,
            last_offset: offset,
            last_stable_offset,
        })
    }

    /// Takes a batch as it stands in the log, whatever it is.
    pub(crate) fn replay(&mut self, batch: &Batch<'_>) -> Option<Aborted> {
        let header = &batch.header;
        if header.producer_id < 0 {
            return None;
        }
        if !header.is_control() {
            self.data(header, header.base_offset, header.last_offset(), header.max_timestamp);
            return None;
        }
        let marker = read_marker(batch)?;
        self.marker(&marker, header.last_offset(), header.max_timestamp)
    }

    /// First offset of the oldest open transaction.
    pub(crate) fn first_open(&self) -> Option<Offset> {
        self.open.first_key_value().map(|(offset, _)| *offset)
    }

    /// Forgets who was not heard of since `before` (ms) and has no open transaction. Says whether there was any.
    pub(crate) fn expire(&mut self, before: i64) -> bool {
        let count = self.known.len();
        self.known.retain(|_, producer| producer.transaction.is_some() || producer.last_timestamp >= before);
        self.known.len() < count
    }

    /// Adds a producer that a snapshot knows.
    pub(crate) fn restore(&mut self, id: i64, producer: Producer) {
        if let Some(first) = producer.transaction {
            self.open.insert(first, id);
        }
        self.known.insert(id, producer);
    }

    /// The producers by id.
    pub(crate) fn list(&self) -> Vec<ProducerInfo> {
        let info = |(&id, producer): (&i64, &Producer)| ProducerInfo {
            id,
            epoch: producer.epoch,
            last_sequence: producer.last_sequence(),
            last_timestamp: producer.last_timestamp,
            coordinator_epoch: producer.coordinator_epoch,
            transaction_start: producer.transaction,
        };
        let mut list: Vec<_> = self.known.iter().map(info).collect();
        list.sort_unstable_by_key(|info| info.id);
        list
    }
}

fn known(producer: &Producer, batch: &BatchHeader) -> Option<Known> {
    let same = |seen: &&Seen| {
        let first = add_sequence(seen.last_sequence, -seen.delta);
        batch.base_sequence >= 0
            && (first, seen.last_sequence) == (batch.base_sequence, batch.last_sequence())
    };
    producer.batches.iter().find(same).map(|seen| Known {
        first_offset: seen.last_offset - seen.delta as u64,
        last_offset: seen.last_offset,
        timestamp: seen.timestamp,
    })
}

/// The marker in a control batch; `None` if its record is gone or of another kind.
pub(crate) fn read_marker(batch: &Batch<'_>) -> Option<Marker> {
    let record = batch.records().ok()?.next()?.ok()?;
    let key = record.key?.first_chunk::<4>()?;
    let value = record.value?.get(2..6)?.as_array::<4>()?;
    let commit = match i16::from_be_bytes([key[2], key[3]]) {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Marker {
        producer_id: batch.header.producer_id,
        producer_epoch: batch.header.producer_epoch,
        coordinator_epoch: i32::from_be_bytes(*value),
        commit,
    })
}
