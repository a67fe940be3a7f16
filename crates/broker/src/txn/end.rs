//! EndTxn: what a transaction's end means in each state, in its two forms.
//!
//! In the first form an epoch lives through many transactions. In the second (KIP-890) every end of a transaction
//! begins a new epoch, so that a request that comes late is known by its old one:
//!
//! | state            | abort, old epoch | abort     | commit, old epoch | commit            |
//! | ---------------- | ---------------- | --------- | ----------------- | ----------------- |
//! | `Empty`          | fenced           | new epoch | fenced            | `INVALID_TXN_STATE` |
//! | `CompleteAbort`  | the same again   | new epoch | `INVALID_TXN_STATE` | `INVALID_TXN_STATE` |
//! | `CompleteCommit` | `INVALID_TXN_STATE` | new epoch | the same again  | `INVALID_TXN_STATE` |

use kafka_protocol::ResponseError;

use super::{EPOCH_BUMP, Effects, Fresh, LAST_EPOCH, NONE, Producer, Shard, State, Transaction};

/// A request to end a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    /// The transactional id.
    pub(crate) id: &'a str,
    pub(crate) producer: Producer,
    pub(crate) commit: bool,
    /// Whether the end begins a new epoch.
    pub(crate) bumps: bool,
}

impl Shard {
    /// EndTxn. Who the producer is from now on: if the end begins a new epoch, another one.
    pub(crate) fn end(
        &mut self,
        now: i64,
        end: End<'_>,
        fresh: Fresh<'_>,
        fx: &mut Effects,
    ) -> Result<Producer, ResponseError> {
        if end.id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let transaction = self.ids.get_mut(end.id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        if end.bumps {
            transaction.end_epoch(now, end, fresh, fx)
        } else {
            transaction.end_plain(now, end, fx)
        }
    }
}

/// What an end of this kind makes of a transaction.
fn prepared(commit: bool) -> State {
    if commit { State::PrepareCommit } else { State::PrepareAbort }
}

/// Whether a transaction that has ended has ended so.
fn ended(state: State, commit: bool) -> bool {
    state == if commit { State::CompleteCommit } else { State::CompleteAbort }
}

impl Transaction {
    fn end_plain(&mut self, now: i64, end: End<'_>, fx: &mut Effects) -> Result<Producer, ResponseError> {
        if self.producer_id != end.producer.id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if self.epoch != end.producer.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        match self.state {
            State::Ongoing => {
                self.client_version = 0;
                self.previous_id = self.producer_id;
                self.decide(prepared(end.commit), end.id, now, fx);
                Ok(self.producer())
            }
            state if ended(state, end.commit) => Ok(self.producer()),
            state if state == prepared(end.commit) => Err(ResponseError::ConcurrentTransactions),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    fn end_epoch(
        &mut self,
        now: i64,
        end: End<'_>,
        fresh: Fresh<'_>,
        fx: &mut Effects,
    ) -> Result<Producer, ResponseError> {
        use State::*;
        let Producer { id, epoch } = end.producer;
        let complete = matches!(self.state, CompleteCommit | CompleteAbort);
        // Nobody has the last epoch but after a fence, which is nobody's own end.
        let bumped = self.epoch == epoch.saturating_add(1) && !(complete && self.epoch == i16::MAX);
        let rotated = self.previous_id == id && epoch == LAST_EPOCH && self.epoch == 0;
        if self.producer_id != id && !rotated {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        let again = bumped || rotated;
        let valid = match self.state {
            Empty | Ongoing => self.epoch == epoch,
            _ => again || self.epoch == epoch,
        };
        if !valid {
            return Err(ResponseError::ProducerFenced);
        }
        match self.state {
            Ongoing => self.prepare(prepared(end.commit), end.id, now, fresh, fx),
            // With the new epoch it is the end of the next transaction, whose records were refused up to now. Kafka
            // says that it is fenced, which it is not.
            PrepareCommit | PrepareAbort if !again || self.state == prepared(end.commit) => {
                Err(ResponseError::ConcurrentTransactions)
            }
            CompleteCommit | CompleteAbort if again && ended(self.state, end.commit) => Ok(self.producer()),
            Empty | CompleteCommit | CompleteAbort if !again && !end.commit => {
                // A transaction in which nothing was sent, or nothing that is known here.
                self.started = now;
                self.prepare(PrepareAbort, end.id, now, fresh, fx)
            }
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// Decides, with a new epoch. When the epochs are used up, the next one is of another producer id.
    fn prepare(
        &mut self,
        state: State,
        id: &str,
        now: i64,
        fresh: Fresh<'_>,
        fx: &mut Effects,
    ) -> Result<Producer, ResponseError> {
        let next_id = if self.epoch >= LAST_EPOCH { fresh()? } else { NONE };
        self.next_id = next_id;
        self.last_epoch = self.epoch;
        self.epoch = self.epoch.saturating_add(1);
        self.previous_id = self.producer_id;
        self.client_version = EPOCH_BUMP;
        self.decide(state, id, now, fx);
        let rotates = next_id != NONE;
        Ok(if rotates { Producer { id: next_id, epoch: 0 } } else { self.producer() })
    }
}
