//! The transaction coordinator around the pure [`Shard`]s: their log, their clock, and the markers that carry a
//! decision to the partitions it concerns.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use dibs_log::{AppendError, Appended, Lost, Marker};
use kafka_protocol::ResponseError;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    clock,
    config::BrokerConfig,
    coordinator::{self, Coordinator, OFFSETS_TOPIC},
    producer_ids::ProducerIds,
    topics::{Partition, Topics},
    txn::{Decision, Effects, Producer, Rules, Shard, Stored, TopicPartition},
};

/// The topic that transactional ids are kept in.
pub(crate) const TRANSACTIONS_TOPIC: &str = "__transaction_state";
/// The epoch of the coordinator: there is one, and never another.
const COORDINATOR_EPOCH: i32 = 0;
/// A marker that could not be written is tried again after so long.
const RETRY: Duration = Duration::from_millis(100);

/// What the coordinator works with.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    pub(crate) config: Arc<BrokerConfig>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) groups: Arc<Coordinator>,
    pub(crate) ids: Arc<ProducerIds>,
}

/// All transactional ids.
#[derive(Debug)]
pub(crate) struct Transactions {
    /// Itself, for work in the background.
    me: Weak<Transactions>,
    around: Around,
    /// One for each partition of the topic, from when there is one.
    cells: OnceLock<Vec<Arc<Cell>>>,
}

#[derive(Debug)]
struct Cell {
    partition: Partition,
    state: Mutex<CellState>,
    /// Told whenever a decision has been carried out.
    completed: Notify,
}

#[derive(Debug)]
struct CellState {
    shard: Shard,
    /// The newest record appended. What was decided after it may be told when it is durable.
    newest: Option<Appended>,
    /// An append failed: the shard is ahead of its log and has to be read anew. Until then it answers nothing.
    stale: bool,
    /// How many of the log's commits had failed when the shard was read. After another one it is stale.
    failures: u64,
    /// Transactional ids whose decision is being carried out. It is done once at a time: a marker that came late
    /// would end the next transaction of a producer that keeps its epoch.
    marking: HashSet<String>,
}

impl Transactions {
    /// Replays the transactional ids, if there are any yet, and goes on with what was decided. Must be called
    /// within a tokio runtime.
    pub(crate) fn open(around: Around) -> Arc<Transactions> {
        let new = |me: &Weak<Transactions>| Transactions { me: me.clone(), around, cells: OnceLock::new() };
        let transactions = Arc::new_cyclic(new);
        transactions.load();
        transactions
    }

    /// Makes the topic if need be. Blocks on the disk the first time.
    fn ensure(&self) -> Result<(), ResponseError> {
        if self.cells.get().is_none() {
            let config = &self.around.config;
            let segment = config.get("transaction.state.log.segment.bytes").unwrap_or("104857600");
            let own = [("compression.type", "uncompressed"), ("segment.bytes", segment)];
            self.around.topics.make_internal(TRANSACTIONS_TOPIC, config.transactions_partitions, own)?;
            self.load();
        }
        Ok(())
    }

    fn load(&self) {
        let Some(topic) = self.around.topics.get(TRANSACTIONS_TOPIC) else { return };
        let cell = |partition: Partition| {
            let state = CellState {
                shard: Shard::new(self.rules()),
                newest: None,
                // It is read when it is looked at first, which is now.
                stale: true,
                failures: 0,
                marking: HashSet::new(),
            };
            Arc::new(Cell { partition, state: Mutex::new(state), completed: Notify::new() })
        };
        let cells = self.cells.get_or_init(|| topic.partitions().into_iter().map(cell).collect());
        cells.iter().for_each(|cell| drop(self.ready(cell)));
    }

    fn rules(&self) -> Rules {
        let config = &self.around.config;
        Rules { max_timeout_ms: config.transaction_max_ms, expiration_ms: config.transactional_id_ms }
    }

    /// A cell's state, read anew from its log if it was ahead of it. It stays stale as long as that cannot be done:
    /// while something is on its way into the log, of which nobody knows yet whether it gets there.
    fn ready<'a>(&self, cell: &'a Arc<Cell>) -> MutexGuard<'a, CellState> {
        let mut state = cell.state();
        let failures = cell.partition.failures();
        state.stale |= state.failures != failures;
        if state.stale
            && cell.partition.is_settled()
            && let Some(shard) = replay(self.rules(), &cell.partition)
        {
            (state.shard, state.newest) = (shard, None);
            (state.stale, state.failures) = (false, failures);
            let mut fx = Effects::default();
            state.shard.replayed(&mut fx);
            self.finish(cell, &mut state, fx);
        }
        state
    }

    /// Does something with transactional ids, and returns its outcome when all that led to it is durable.
    pub(crate) async fn with<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut Shard, i64, &mut Effects) -> T,
    ) -> Result<T, ResponseError> {
        let cell = self.cell(id).await?;
        let (outcome, newest) = {
            let mut state = self.ready(cell);
            let mut fx = Effects::default();
            let outcome = work(&mut state.shard, clock::wall_ms(), &mut fx);
            self.finish(cell, &mut state, fx);
            (outcome, cell.unsynced(&state)?)
        };
        if let Some(newest) = newest {
            cell.durable(newest).await?;
        }
        Ok(outcome)
    }

    /// Makes partitions part of a producer's transaction, durably. If the one before is just being ended, waits for
    /// that a little: some clients take seconds to ask again.
    pub(crate) async fn add(
        &self,
        id: &str,
        producer: Producer,
        partitions: &[TopicPartition],
        version: i16,
    ) -> Result<(), ResponseError> {
        let deadline = Instant::now() + Duration::from_millis(self.around.config.add_partitions_wait_ms);
        let cell = self.cell(id).await?;
        loop {
            // Registered before the look, so that none is missed.
            let mut completed = pin!(cell.completed.notified());
            completed.as_mut().enable();
            let add =
                self.with(id, |shard, now, fx| shard.add(now, id, producer, partitions, version, fx)).await?;
            let waits = add == Err(ResponseError::ConcurrentTransactions);
            if !waits || tokio::time::timeout_at(deadline, completed).await.is_err() {
                return add;
            }
        }
    }

    /// Does what appends to a partition, when that is durably part of a producer's transaction and cannot leave it
    /// meanwhile: the transaction's marker comes behind what is appended. With `version`, it becomes part of it.
    pub(crate) async fn within<T>(
        &self,
        id: &str,
        producer: Producer,
        partition: &TopicPartition,
        version: Option<i16>,
        append: impl FnOnce() -> T,
    ) -> Result<T, ResponseError> {
        match version {
            Some(version) => self.add(id, producer, std::slice::from_ref(partition), version).await?,
            None => self.with(id, |shard, _, _| shard.verify(id, producer, partition)).await??,
        }
        let cell = self.cell(id).await?;
        let mut state = self.ready(cell);
        cell.unsynced(&state)?;
        state.shard.verify(id, producer, partition)?;
        Ok(append())
    }

    /// Looks at all transactional ids, when what they are is durable.
    pub(crate) async fn each(&self, mut look: impl FnMut(&Shard, i64)) -> Result<(), ResponseError> {
        for cell in self.cells.get().into_iter().flatten() {
            let newest = {
                let state = self.ready(cell);
                look(&state.shard, clock::wall_ms());
                cell.unsynced(&state)?
            };
            if let Some(newest) = newest {
                cell.durable(newest).await?;
            }
        }
        Ok(())
    }

    /// Gives out producer ids.
    pub(crate) fn fresh(&self) -> impl FnMut() -> Result<i64, ResponseError> + use<> {
        let ids = self.around.ids.clone();
        move || {
            ids.next().map_err(|e| {
                tracing::error!("no producer id can be reserved: {e}");
                ResponseError::CoordinatorNotAvailable
            })
        }
    }

    /// Aborts transactions that have timed out, and forgets ids that have expired, now and then.
    pub(crate) async fn run_timer(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let (check, expire) = {
            let config = &self.around.config;
            (config.transaction_check_ms, config.transactional_id_check_ms)
        };
        let mut expire_at = clock::mono_ms().saturating_add(expire);
        loop {
            let next = clock::mono_ms().saturating_add(check).min(expire_at);
            tokio::select! {
                () = tokio::time::sleep_until(clock::instant(next)) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let expires = clock::mono_ms() >= expire_at;
            if expires {
                expire_at = clock::mono_ms().saturating_add(expire);
            }
            for cell in self.cells.get().into_iter().flatten() {
                let mut state = self.ready(cell);
                let (mut fx, now) = (Effects::default(), clock::wall_ms());
                state.shard.tick(now, &mut fx);
                if expires {
                    state.shard.expire(now, &mut fx);
                }
                self.finish(cell, &mut state, fx);
            }
        }
    }

    async fn cell(&self, id: &str) -> Result<&Arc<Cell>, ResponseError> {
        if id.len() > i16::MAX as usize {
            return Err(ResponseError::InvalidRequest);
        }
        if self.cells.get().is_none()
            && let Some(me) = self.me.upgrade()
        {
            let made = tokio::task::spawn_blocking(move || me.ensure());
            made.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))?;
        }
        let cells = self.cells.get().ok_or(ResponseError::CoordinatorNotAvailable)?;
        Ok(&cells[coordinator::partition_of(id, cells.len())])
    }

    /// Appends the records, and sees to it that decisions are carried out when those are durable.
    fn finish(&self, cell: &Arc<Cell>, state: &mut CellState, fx: Effects) {
        if state.stale {
            return;
        }
        for batch in coordinator::batches(&fx.records) {
            match cell.partition.append_own(&batch) {
                Ok(appended) => {
                    state.stale |= appended.failures != state.failures;
                    state.newest = Some(appended);
                }
                Err(e) => {
                    tracing::error!(partition = ?cell.partition, "transactions cannot be written: {e}");
                    state.stale = true;
                }
            }
        }
        let Ok(newest) = cell.unsynced(state) else { return };
        for decision in fx.decisions {
            if state.marking.insert(decision.id.clone())
                && let Some(me) = self.me.upgrade()
            {
                tokio::spawn(me.carry_out(cell.clone(), newest, decision));
            }
        }
    }

    /// Writes a decision's markers, and says so, when the decision is durable.
    async fn carry_out(self: Arc<Self>, cell: Arc<Cell>, decided: Option<Appended>, decision: Decision) {
        let durable = match decided {
            Some(decided) => cell.durable(decided).await.is_ok(),
            None => true,
        };
        if durable && !self.mark(&decision).await {
            return;
        }
        // One step: nobody may find the decision not carried out and nobody at it.
        let mut state = self.ready(&cell);
        state.marking.remove(&decision.id);
        let mut fx = Effects::default();
        if durable {
            state.shard.complete(clock::wall_ms(), &decision, &mut fx);
        } else {
            state.shard.replayed(&mut fx);
        }
        self.finish(&cell, &mut state, fx);
        drop(state);
        cell.completed.notify_waiters();
    }

    /// Writes a decision's markers until all are durable; false if the log was closed meanwhile.
    async fn mark(&self, decision: &Decision) -> bool {
        let marker = Marker {
            producer_id: decision.producer.id,
            producer_epoch: decision.producer.epoch,
            coordinator_epoch: COORDINATOR_EPOCH,
            commit: decision.commit,
        };
        let mut left = decision.partitions.clone();
        loop {
            let mut again = Vec::new();
            let mut appended = Vec::with_capacity(left.len());
            for partition in left {
                match self.append_marker(&partition, &marker) {
                    None => {}
                    Some(Ok(written)) => appended.push((partition, written)),
                    Some(Err(AppendError::Closed)) => return false,
                    Some(Err(AppendError::Producer(e))) => {
                        // Somebody has ended it there with a later epoch: an operator, by WriteTxnMarkers.
                        tracing::warn!("the end of transaction {:?} is not taken: {e}", decision.id);
                    }
                    Some(Err(_)) => again.push(partition),
                }
            }
            for (partition, (log, appended)) in appended {
                match log.durable(appended).await {
                    Ok(_) => {}
                    Err(Lost::Closed) => return false,
                    Err(Lost::Failed) => again.push(partition),
                }
            }
            if again.is_empty() {
                return true;
            }
            left = again;
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends a transaction in one partition; `None` if there is no such partition.
    pub(crate) fn append_marker(
        &self,
        (topic, partition): &TopicPartition,
        marker: &Marker,
    ) -> Option<Result<(Partition, Appended), AppendError>> {
        if topic == OFFSETS_TOPIC {
            return self.around.groups.append_marker(*partition, marker);
        }
        let partition = self.around.topics.partition(topic, *partition)?;
        Some(partition.append_marker(marker).map(|appended| (partition.clone(), appended)))
    }
}

impl Cell {
    fn state(&self) -> MutexGuard<'_, CellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest record, unless it is durable. An error if the state is not what the log says.
    fn unsynced(&self, state: &CellState) -> Result<Option<Appended>, ResponseError> {
        if state.stale {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        Ok(state.newest.filter(|newest| self.partition.high_watermark() <= newest.last_offset))
    }

    async fn durable(&self, newest: Appended) -> Result<(), ResponseError> {
        let durable = self.partition.durable(newest).await;
        durable.map(drop).map_err(|_| ResponseError::CoordinatorNotAvailable)
    }
}

/// Reads a shard from its log; `None` if that is not possible.
fn replay(rules: Rules, partition: &Partition) -> Option<Shard> {
    let mut shard = Shard::new(rules);
    let whole = partition.replay(|batch| {
        if batch.header.is_control() {
            return;
        }
        for record in batch.records().into_iter().flatten().flatten() {
            if let Some(stored) = record.key.and_then(|key| Stored::parse(key, record.value)) {
                shard.replay(stored);
            }
        }
    });
    whole.then_some(shard)
}

#[cfg(test)]
mod tests;
