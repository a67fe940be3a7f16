//! Transactional ids as a pure state: requests and time in, answers, records and markers out. No I/O, no clock.
//!
//! A [`Shard`] holds the transactional ids of one partition of `__transaction_state` (KIP-98, KIP-360, KIP-890).
//! What must outlive the process comes out as [`Record`]s, in Kafka's own format, and goes in again with
//! [`Shard::replay`] at the next start. An answer may be given, and a [`Decision`] carried out, when all records
//! that came out before it are durable.
//!
//! ```text
//!  ┌──────────── InitProducerId ─────────────┐
//!  v                                         │
//! Empty ──partitions──> Ongoing ──EndTxn──> Prepare… ──markers are written──> Complete…
//!                          ^                                                     │
//!                          └───────────────────── partitions ────────────────────┘
//! ```

mod end;
mod record;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::ResponseError;

pub(crate) use end::End;
pub(crate) use record::Stored;

use crate::group::record::Record;

/// A producer id, a time or an epoch that is none.
pub(crate) const NONE: i64 = -1;
/// A producer id is not used beyond this epoch: the next one is the coordinator's, to fence with.
const LAST_EPOCH: i16 = i16::MAX - 1;
/// The level of `transaction.version` from which on every transaction has an epoch of its own (KIP-890).
pub(crate) const EPOCH_BUMP: i16 = 2;

/// A topic's name and a partition's number.
pub(crate) type TopicPartition = (String, i32);

/// Gives out a producer id that nobody has had.
pub(crate) type Fresh<'a> = &'a mut dyn FnMut() -> Result<i64, ResponseError>;

/// Who produces: an id, and in which epoch. Who has an earlier epoch of the id is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

/// Where a transactional id is. The numbers are those of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Empty = 0,
    Ongoing = 1,
    PrepareCommit = 2,
    PrepareAbort = 3,
    CompleteCommit = 4,
    CompleteAbort = 5,
}

/// Kafka's names of all states; the last two are never seen from outside.
const NAMES: [&str; 8] = [
    "Empty",
    "Ongoing",
    "PrepareCommit",
    "PrepareAbort",
    "CompleteCommit",
    "CompleteAbort",
    "Dead",
    "PrepareEpochFence",
];

impl State {
    /// Kafka's name for it.
    pub(crate) fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Whether Kafka has a state of this name.
    pub(crate) fn is_name(name: &str) -> bool {
        NAMES.contains(&name)
    }

    fn from_id(id: u8) -> Option<State> {
        use State::*;
        [Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort]
            .into_iter()
            .find(|state| *state as u8 == id)
    }

    fn is_prepared(self) -> bool {
        matches!(self, State::PrepareCommit | State::PrepareAbort)
    }
}

/// What is known of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) producer_id: i64,
    /// The producer id before the last change of whatever kind, or −1: a client may still ask by it.
    previous_id: i64,
    /// The producer id from the end of this transaction on, if the epochs of the present one are used up; else −1.
    next_id: i64,
    /// −1 until the first answer to InitProducerId.
    pub(crate) epoch: i16,
    /// The epoch that a client may still have if the answer with its new one was lost, or −1. Not in the log.
    last_epoch: i16,
    pub(crate) timeout_ms: i32,
    pub(crate) state: State,
    /// What takes part in the transaction. Empty unless it is ongoing or prepared.
    pub(crate) partitions: BTreeSet<TopicPartition>,
    /// When the transaction began, in ms since the Unix epoch, or −1.
    pub(crate) started: i64,
    /// When it last changed, in ms since the Unix epoch.
    updated: i64,
    /// The level of `transaction.version` that the client was at.
    client_version: i16,
}

impl Transaction {
    pub(crate) fn producer(&self) -> Producer {
        Producer { id: self.producer_id, epoch: self.epoch }
    }

    /// When it is aborted, in ms since the Unix epoch.
    fn deadline(&self) -> Option<i64> {
        (self.state == State::Ongoing).then(|| self.started.saturating_add(i64::from(self.timeout_ms)))
    }

    fn decision(&self, id: &str) -> Decision {
        Decision {
            id: id.to_owned(),
            producer: self.producer(),
            commit: self.state == State::PrepareCommit,
            partitions: self.partitions.iter().cloned().collect(),
        }
    }
}

/// A transaction that has been decided: markers that say so go to all its partitions, and then it is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The transactional id.
    pub(crate) id: String,
    /// Whose transaction; the epoch is the markers'.
    pub(crate) producer: Producer,
    pub(crate) commit: bool,
    pub(crate) partitions: Vec<TopicPartition>,
}

/// What an input led to.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// To be appended, in this order.
    pub(crate) records: Vec<Record>,
    /// To be carried out when everything appended so far is durable, then told with [`Shard::complete`].
    pub(crate) decisions: Vec<Decision>,
}

/// What the operator says about transactions, in ms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The longest time-out that a producer may ask for.
    pub(crate) max_timeout_ms: i32,
    /// An id that is idle so long is forgotten.
    pub(crate) expiration_ms: i64,
}

/// The transactional ids of one partition.
#[derive(Debug)]
pub(crate) struct Shard {
    rules: Rules,
    ids: BTreeMap<String, Transaction>,
}

impl Shard {
    pub(crate) fn new(rules: Rules) -> Shard {
        Shard { rules, ids: BTreeMap::new() }
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Transaction> {
        self.ids.get(id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Transaction)> {
        self.ids.iter().map(|(id, transaction)| (id.as_str(), transaction))
    }

    /// Takes a record of an earlier run; in the order of their offsets.
    pub(crate) fn replay(&mut self, stored: Stored) {
        match stored.value {
            Some(transaction) => drop(self.ids.insert(stored.id, transaction)),
            None => drop(self.ids.remove(&stored.id)),
        }
    }

    /// Ends the replay: what was decided is carried out again, whatever has been carried out before.
    pub(crate) fn replayed(&self, fx: &mut Effects) {
        let decided = self.ids.iter().filter(|(_, t)| t.state.is_prepared());
        fx.decisions.extend(decided.map(|(id, t)| t.decision(id)));
    }

    /// InitProducerId for a transactional id: who the producer is from now on. All earlier ones are fenced. With
    /// `expected`, who it says it is: then it is fenced itself if there has been another one since (KIP-360).
    pub(crate) fn init(
        &mut self,
        now: i64,
        id: &str,
        timeout_ms: i32,
        expected: Option<Producer>,
        fresh: Fresh<'_>,
        fx: &mut Effects,
    ) -> Result<Producer, ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        if timeout_ms <= 0 || timeout_ms > self.rules.max_timeout_ms {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let transaction = match self.ids.get_mut(id) {
            Some(transaction) => transaction,
            None => self.ids.entry(id.to_owned()).or_insert(Transaction::new(fresh()?, timeout_ms, now)),
        };
        let is_new = transaction.epoch < 0;
        if let Some(expected) = expected
            && !is_new
        {
            let rotated = expected.id == transaction.previous_id && expected.epoch >= LAST_EPOCH;
            if expected.id != transaction.producer_id && !rotated {
                return Err(ResponseError::ProducerFenced);
            }
        }
        match transaction.state {
            State::PrepareCommit | State::PrepareAbort => Err(ResponseError::ConcurrentTransactions),
            // Kafka aborts first and looks at the epoch when asked again; who is fenced should abort nothing.
            State::Ongoing if expected.is_some_and(|e| e.epoch != transaction.epoch) => {
                Err(ResponseError::ProducerFenced)
            }
            State::Ongoing => {
                transaction.fence(id, now, fx);
                Err(ResponseError::ConcurrentTransactions)
            }
            State::Empty | State::CompleteCommit | State::CompleteAbort => {
                transaction.begin_epoch(expected.map(|e| e.epoch), fresh)?;
                transaction.timeout_ms = timeout_ms;
                transaction.partitions.clear();
                transaction.started = NONE;
                transaction.change(State::Empty, id, now, fx);
                Ok(transaction.producer())
            }
        }
    }

    /// AddPartitionsToTxn, and what leads to the same: from now on the transaction's end goes to these partitions
    /// too. `version` is the client's level of `transaction.version`.
    pub(crate) fn add(
        &mut self,
        now: i64,
        id: &str,
        producer: Producer,
        partitions: &[TopicPartition],
        version: i16,
        fx: &mut Effects,
    ) -> Result<(), ResponseError> {
        let transaction = self.of(id, producer)?;
        let ongoing = transaction.state == State::Ongoing;
        if ongoing && partitions.iter().all(|p| transaction.partitions.contains(p)) {
            return Ok(());
        }
        if !ongoing {
            transaction.started = now;
        }
        transaction.partitions.extend(partitions.iter().cloned());
        transaction.client_version = version;
        transaction.previous_id = transaction.producer_id;
        transaction.change(State::Ongoing, id, now, fx);
        Ok(())
    }

    /// Whether a partition takes part in a producer's transaction.
    pub(crate) fn verify(
        &mut self,
        id: &str,
        producer: Producer,
        partition: &TopicPartition,
    ) -> Result<(), ResponseError> {
        let transaction = self.of(id, producer)?;
        if transaction.partitions.contains(partition) {
            Ok(())
        } else {
            Err(ResponseError::TransactionAbortable)
        }
    }

    /// A transactional id whose producer this is, and which is not between two transactions.
    fn of(&mut self, id: &str, producer: Producer) -> Result<&mut Transaction, ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let transaction = self.ids.get_mut(id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        if transaction.producer_id != producer.id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if transaction.epoch != producer.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        if transaction.state.is_prepared() {
            return Err(ResponseError::ConcurrentTransactions);
        }
        Ok(transaction)
    }

    /// A decision has been carried out.
    pub(crate) fn complete(&mut self, now: i64, decision: &Decision, fx: &mut Effects) {
        let Some(transaction) = self.ids.get_mut(&decision.id) else { return };
        if !transaction.state.is_prepared() || transaction.producer() != decision.producer {
            return;
        }
        transaction.previous_id = transaction.producer_id;
        if transaction.next_id != NONE {
            transaction.producer_id = std::mem::replace(&mut transaction.next_id, NONE);
            transaction.epoch = 0;
        }
        transaction.partitions.clear();
        let state = if decision.commit { State::CompleteCommit } else { State::CompleteAbort };
        transaction.change(state, &decision.id, now, fx);
    }

    /// Aborts what has been going on for too long, and fences who is at it.
    pub(crate) fn tick(&mut self, now: i64, fx: &mut Effects) {
        for (id, transaction) in &mut self.ids {
            if transaction.deadline().is_some_and(|deadline| deadline < now) {
                transaction.fence(id, now, fx);
            }
        }
    }

    /// Forgets ids that nobody has used for too long.
    pub(crate) fn expire(&mut self, now: i64, fx: &mut Effects) {
        let before = now.saturating_sub(self.rules.expiration_ms);
        self.ids.retain(|id, transaction| {
            let at_work = transaction.state == State::Ongoing || transaction.state.is_prepared();
            let stays = at_work || transaction.updated > before;
            if !stays {
                fx.records.push(record::record(id, None));
            }
            stays
        });
    }
}

impl Transaction {
    fn new(producer_id: i64, timeout_ms: i32, now: i64) -> Transaction {
        Transaction {
            producer_id,
            previous_id: NONE,
            next_id: NONE,
            epoch: NONE as i16,
            last_epoch: NONE as i16,
            timeout_ms,
            state: State::Empty,
            partitions: BTreeSet::new(),
            started: NONE,
            updated: now,
            client_version: 0,
        }
    }

    /// The next epoch, of another producer id if need be; the same again for a client that has not heard of it.
    fn begin_epoch(&mut self, expected: Option<i16>, fresh: Fresh<'_>) -> Result<(), ResponseError> {
        let (epoch, last_epoch) = (self.epoch, self.last_epoch);
        let is_new = epoch < 0;
        let up_to_date = expected.is_none_or(|e| e == epoch);
        if epoch >= LAST_EPOCH && up_to_date {
            let fresh = fresh()?;
            self.previous_id = self.producer_id;
            (self.producer_id, self.epoch) = (fresh, 0);
        } else if up_to_date || is_new {
            self.previous_id = self.producer_id;
            self.epoch += 1;
        } else if expected == Some(last_epoch) {
            return Ok(());
        } else {
            return Err(ResponseError::ProducerFenced);
        }
        self.last_epoch = if expected.is_some() { epoch } else { NONE as i16 };
        Ok(())
    }

    fn change(&mut self, state: State, id: &str, now: i64, fx: &mut Effects) {
        self.state = state;
        self.updated = now;
        fx.records.push(record::record(id, Some(self)));
    }

    fn decide(&mut self, state: State, id: &str, now: i64, fx: &mut Effects) {
        self.change(state, id, now, fx);
        fx.decisions.push(self.decision(id));
    }

    /// Aborts an ongoing transaction and fences its producer.
    fn fence(&mut self, id: &str, now: i64, fx: &mut Effects) {
        // Two epochs on, as Kafka does: one would look like the producer's own end of the transaction (KIP-890).
        self.epoch = self.epoch.saturating_add(2);
        self.last_epoch = NONE as i16;
        self.previous_id = self.producer_id;
        self.client_version = EPOCH_BUMP;
        self.decide(State::PrepareAbort, id, now, fx);
    }
}
