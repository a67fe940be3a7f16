//! The group coordinator around the pure [`Shard`]s: their log, their clock, and who waits for an answer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::*},
    },
};

use dibs_log::{
    AppendError, Appended, Marker,
    batch::{Batch, BatchBuilder},
};
use kafka_protocol::ResponseError;
use tokio::sync::{Notify, oneshot, watch};

use crate::{
    clock,
    config::BrokerConfig,
    group::{
        Answer, Effects, Group, Now, Rules, Shard, Token,
        classic::{Join, Joined, Sync, Synced},
        consumer,
        offsets::Committed,
        record::{Record, Stored},
    },
    topics::{Partition, Topics},
    txn::Producer,
};

/// The topic that groups are kept in.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Records are appended in batches of about so many bytes at most.
const BATCH_BYTES: usize = 512 << 10;

/// All groups.
#[derive(Debug)]
pub(crate) struct Coordinator {
    /// Itself, for work on other threads.
    me: Weak<Coordinator>,
    config: Arc<BrokerConfig>,
    topics: Arc<Topics>,
    /// One for each partition of the topic, from when there is one.
    cells: OnceLock<Vec<Arc<Cell>>>,
    next_token: AtomicU64,
    /// When the timer wakes next, and how to wake it earlier.
    wakes: AtomicU64,
    earlier: Notify,
}

#[derive(Debug)]
struct Cell {
    partition: Partition,
    state: Mutex<CellState>,
}

#[derive(Debug)]
struct CellState {
    shard: Shard,
    waiting: HashMap<Token, oneshot::Sender<Answer>>,
    /// The newest record appended. What was decided after it may be told when it is durable.
    newest: Option<Appended>,
    /// An append failed: the shard is ahead of its log and has to be read anew. Until then it answers nothing.
    stale: bool,
    /// How many of the log's commits had failed when the shard was read. After another one it is stale, whoever
    /// waited for that commit or no longer did.
    failures: u64,
    /// When the shard has to be told the time, at the latest.
    wakes: u64,
}

impl Coordinator {
    /// Replays the groups, if there are any yet.
    pub(crate) fn open(config: Arc<BrokerConfig>, topics: Arc<Topics>) -> Arc<Coordinator> {
        let coordinator = Arc::new_cyclic(|me| Coordinator {
            me: me.clone(),
            config,
            topics,
            cells: OnceLock::new(),
            next_token: AtomicU64::new(1),
            wakes: AtomicU64::new(u64::MAX),
            earlier: Notify::new(),
        });
        if coordinator.topics.get(OFFSETS_TOPIC).is_some() {
            coordinator.load();
        }
        coordinator
    }

    /// Makes the topic if need be. Blocks on the disk the first time.
    fn ensure(&self) -> Result<(), ResponseError> {
        if self.cells.get().is_none() {
            let segment = self.config.get("offsets.topic.segment.bytes").unwrap_or("104857600");
            let own = [("compression.type", "producer"), ("segment.bytes", segment)];
            self.topics.make_internal(OFFSETS_TOPIC, self.config.offsets_partitions, own)?;
            self.load();
        }
        Ok(())
    }

    fn load(&self) {
        let Some(topic) = self.topics.get(OFFSETS_TOPIC) else { return };
        let cell = |partition: Partition| {
            let failures = partition.failures();
            let found = self.replay(&partition);
            let stale = found.is_none();
            let shard = found.unwrap_or_else(|| Shard::new(rules(&self.config)));
            let wakes = shard.earliest().unwrap_or(u64::MAX);
            let state = CellState { shard, waiting: HashMap::new(), newest: None, stale, failures, wakes };
            Arc::new(Cell { partition, state: Mutex::new(state) })
        };
        self.cells.get_or_init(|| topic.partitions().into_iter().map(cell).collect());
        self.earlier.notify_one();
    }

    /// Reads a shard from its log; `None` if that is not possible.
    fn replay(&self, partition: &Partition) -> Option<Shard> {
        let mut shard = Shard::new(rules(&self.config));
        if !partition.replay(|batch| replay_batch(&mut shard, batch)) {
            return None;
        }
        shard.replayed(now(), &*self.topics);
        Some(shard)
    }

    /// Tells the shards the time when it matters to them, and nothing else.
    pub(crate) async fn run_timer(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut expire_at = clock::mono_ms() + self.config.offsets_check_ms;
        loop {
            let mono = clock::mono_ms();
            let expire = mono >= expire_at;
            if expire {
                expire_at = mono + self.config.offsets_check_ms;
            }
            let mut earliest = expire_at;
            for cell in self.cells.get().into_iter().flatten() {
                let mut state = self.ready(cell);
                if expire || state.wakes <= mono {
                    let mut fx = Effects::default();
                    state.shard.tick(now(), &mut fx);
                    if expire {
                        state.shard.expire(now(), &mut fx);
                    }
                    state.wakes = state.shard.earliest().unwrap_or(u64::MAX);
                    cell.finish(&mut state, fx);
                }
                earliest = earliest.min(state.wakes);
            }
            self.wakes.store(earliest, Release);
            tokio::select! {
                () = tokio::time::sleep_until(clock::instant(earliest)) => {}
                () = self.earlier.notified() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Does something with a group, and returns its outcome when all that led to it is durable.
    pub(crate) async fn with<T>(
        &self,
        group: &str,
        work: impl FnOnce(&mut Shard, Now, &mut Effects) -> T,
    ) -> Result<T, ResponseError> {
        let cell = self.cell(group).await?.clone();
        let (outcome, newest) = self.apply(&cell, group, |state, now, fx| work(&mut state.shard, now, fx))?;
        if let Some(newest) = newest {
            cell.durable(newest).await?;
        }
        Ok(outcome)
    }

    /// Looks at all groups, when what they are is durable.
    pub(crate) async fn each(&self, mut look: impl FnMut(&str, &Group)) -> Result<(), ResponseError> {
        for cell in self.cells.get().into_iter().flatten() {
            let newest = {
                let state = self.ready(cell);
                state.shard.groups().for_each(|(id, group)| look(id, group));
                cell.unsynced(&state)?
            };
            if let Some(newest) = newest {
                cell.durable(newest).await?;
            }
        }
        Ok(())
    }

    /// JoinGroup: waits for the others. An error comes with the member's id.
    pub(crate) async fn join(&self, join: Join) -> Result<Joined, (ResponseError, String)> {
        let (group, member) = (join.group.clone(), join.member.clone());
        let answer =
            self.wait(&group, |shard, now, token, fx| shard.join(now, token, join, &*self.topics, fx)).await;
        match answer {
            Ok(Answer::Join(joined)) => joined,
            Ok(Answer::Sync(_)) => Err((ResponseError::UnknownServerError, member)),
            Err(e) => Err((e, member)),
        }
    }

    /// SyncGroup: waits for the leader.
    pub(crate) async fn sync(&self, sync: Sync) -> Result<Synced, ResponseError> {
        let group = sync.group.clone();
        match self.wait(&group, |shard, now, token, fx| shard.sync(now, token, sync, fx)).await? {
            Answer::Sync(synced) => synced,
            Answer::Join(_) => Err(ResponseError::UnknownServerError),
        }
    }

    async fn wait(
        &self,
        group: &str,
        work: impl FnOnce(&mut Shard, Now, Token, &mut Effects),
    ) -> Result<Answer, ResponseError> {
        let (sender, receiver) = oneshot::channel();
        let token = self.next_token.fetch_add(1, Relaxed);
        let cell = self.cell(group).await?;
        self.apply(cell, group, |state, now, fx| {
            state.waiting.insert(token, sender);
            work(&mut state.shard, now, token, fx);
        })?;
        receiver.await.map_err(|_| ResponseError::CoordinatorNotAvailable)
    }

    /// Forgets what groups have committed for a topic that is no more.
    pub(crate) fn forget_topic(&self, topic: &str) {
        for cell in self.cells.get().into_iter().flatten() {
            let mut state = self.ready(cell);
            let mut fx = Effects::default();
            state.shard.forget_topic(topic, &mut fx);
            cell.finish(&mut state, fx);
        }
    }

    /// The partition of the topic that a group's offsets are in.
    pub(crate) async fn partition(&self, group: &str) -> Result<i32, ResponseError> {
        self.cell(group).await?;
        Ok(partition_of(group, self.cells.get().map_or(0, Vec::len)) as i32)
    }

    /// Appends offsets that count when their producer's transaction is committed. What is said of who commits
    /// them is checked by `may`.
    pub(crate) fn hold(
        &self,
        group: &str,
        producer: Producer,
        offsets: Vec<(String, i32, Committed)>,
        may: impl FnOnce(&mut Shard, Now) -> Result<(), ResponseError>,
    ) -> Result<(Partition, Appended), ResponseError> {
        let cells = self.cells.get().ok_or(ResponseError::CoordinatorNotAvailable)?;
        let cell = &cells[partition_of(group, cells.len())];
        let mut state = self.ready(cell);
        cell.unsynced(&state)?;
        may(&mut state.shard, now())?;
        let mut batch = BatchBuilder::new();
        for (topic, partition, value) in &offsets {
            let record = Record::offset(group, topic, *partition, Some(value));
            batch.push(Some(&record.key), record.value.as_deref());
        }
        batch.producer(producer.id, producer.epoch, -1);
        batch.transactional();
        let appended = cell.partition.append_own(&batch.finish(clock::wall_ms()));
        let appended = appended.map_err(|e| match e {
            AppendError::Producer(_) => ResponseError::InvalidProducerEpoch,
            AppendError::TooLarge { .. } => ResponseError::InvalidCommitOffsetSize,
            _ => ResponseError::CoordinatorNotAvailable,
        })?;
        for (topic, partition, value) in offsets {
            state.shard.hold(producer.id, group, &topic, partition, value);
        }
        state.stale |= appended.failures != state.failures;
        state.newest = Some(appended);
        Ok((cell.partition.clone(), appended))
    }

    /// Appends the end of a transaction behind the offsets that it has committed in a partition of the topic;
    /// `None` if there is no such partition.
    pub(crate) fn append_marker(
        &self,
        partition: i32,
        marker: &Marker,
    ) -> Option<Result<(Partition, Appended), AppendError>> {
        let cell = self.cells.get()?.get(usize::try_from(partition).ok()?)?;
        let mut state = self.ready(cell);
        if state.stale {
            return Some(Err(AppendError::Unavailable));
        }
        Some(cell.partition.append_marker(marker).map(|appended| {
            state.shard.end_transaction(marker.producer_id, marker.commit);
            state.stale |= appended.failures != state.failures;
            state.newest = Some(appended);
            (cell.partition.clone(), appended)
        }))
    }

    /// A cell's state, read anew from its log if it was ahead of it. It stays stale as long as that cannot be done:
    /// while something is on its way into the log, of which nobody knows yet whether it gets there.
    fn ready<'a>(&self, cell: &'a Cell) -> MutexGuard<'a, CellState> {
        let mut state = cell.state();
        let failures = cell.partition.failures();
        state.stale |= state.failures != failures;
        if state.stale
            && cell.partition.is_settled()
            && let Some(shard) = self.replay(&cell.partition)
        {
            (state.shard, state.newest) = (shard, None);
            state.waiting.clear();
            (state.stale, state.failures) = (false, failures);
        }
        state
    }

    async fn cell(&self, group: &str) -> Result<&Arc<Cell>, ResponseError> {
        if group.len() > i16::MAX as usize {
            return Err(ResponseError::InvalidGroupId);
        }
        if self.cells.get().is_none()
            && let Some(me) = self.me.upgrade()
        {
            let made = tokio::task::spawn_blocking(move || me.ensure());
            made.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))?;
        }
        let cells = self.cells.get().ok_or(ResponseError::CoordinatorNotAvailable)?;
        Ok(&cells[partition_of(group, cells.len())])
    }

    fn apply<T>(
        &self,
        cell: &Arc<Cell>,
        group: &str,
        work: impl FnOnce(&mut CellState, Now, &mut Effects) -> T,
    ) -> Result<(T, Option<Appended>), ResponseError> {
        let mut state = self.ready(cell);
        let mut fx = Effects::default();
        let outcome = work(&mut state, now(), &mut fx);
        if let Some(deadline) = state.shard.deadline(group).filter(|d| *d < state.wakes) {
            state.wakes = deadline;
            if deadline < self.wakes.load(Acquire) {
                self.earlier.notify_one();
            }
        }
        cell.finish(&mut state, fx);
        let newest = cell.unsynced(&state)?;
        Ok((outcome, newest))
    }
}

impl Cell {
    fn state(&self) -> MutexGuard<'_, CellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the records, and sees to it that the answers go out when those are durable.
    fn finish(self: &Arc<Self>, state: &mut CellState, fx: Effects) {
        if state.stale {
            return;
        }
        for batch in batches(&fx.records) {
            match self.partition.append(&batch) {
                Ok(appended) => {
                    state.stale |= appended.failures != state.failures;
                    state.newest = Some(appended);
                }
                Err(e) => {
                    tracing::error!(partition = ?self.partition, "groups cannot be written: {e}");
                    state.stale = true;
                }
            }
        }
        let answers: Vec<_> = fx
            .answers
            .into_iter()
            .filter_map(|(token, a)| Some((state.waiting.remove(&token)?, a)))
            .collect();
        let Ok(newest) = self.unsynced(state) else { return };
        if answers.is_empty() {
            return;
        }
        let Some(newest) = newest else {
            return answers.into_iter().for_each(|(sender, answer)| drop(sender.send(answer)));
        };
        let cell = self.clone();
        tokio::spawn(async move {
            if cell.durable(newest).await.is_ok() {
                answers.into_iter().for_each(|(sender, answer)| drop(sender.send(answer)));
            }
        });
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

fn now() -> Now {
    Now { mono: clock::mono_ms(), wall: clock::wall_ms() }
}

fn rules(config: &BrokerConfig) -> Rules {
    Rules {
        min_session_ms: config.min_session_ms,
        max_session_ms: config.max_session_ms,
        initial_delay_ms: config.initial_rebalance_ms as u64,
        max_size: config.group_max_size,
        metadata_max: config.offset_metadata_max.min(i16::MAX as usize),
        retention_ms: config.offsets_retention_ms,
        consumer: consumer::Rules {
            session_ms: config.consumer.session_ms,
            max_size: config.consumer.max_size,
            assignors: config.consumer.assignors.clone(),
            refresh_ms: config.consumer.refresh_ms,
            upgrade: config.consumer.upgrade,
            downgrade: config.consumer.downgrade,
        },
    }
}

/// Takes what a batch of an earlier run holds.
fn replay_batch(shard: &mut Shard, batch: &Batch<'_>) {
    if let Some(marker) = Marker::of(batch) {
        return shard.end_transaction(marker.producer_id, marker.commit);
    }
    let producer = batch.header.producer_id;
    for record in batch.records().into_iter().flatten().flatten() {
        match record.key.and_then(|key| Stored::parse(key, record.value)) {
            Some(Stored::Offset { group, topic, partition, value: Some(value) })
                if batch.header.is_transactional() =>
            {
                shard.hold(producer, &group, &topic, partition, value);
            }
            Some(stored) => shard.replay(stored),
            None => {}
        }
    }
}

/// Records in batches that are not too large.
pub(crate) fn batches(records: &[Record]) -> Vec<Vec<u8>> {
    let (mut done, mut open) = (Vec::new(), BatchBuilder::new());
    for record in records {
        if open.size() > BATCH_BYTES {
            done.push(std::mem::take(&mut open).finish(clock::wall_ms()));
        }
        open.push(Some(&record.key), record.value.as_deref());
    }
    if !open.is_empty() {
        done.push(open.finish(clock::wall_ms()));
    }
    done
}

/// The partition that a group or a transactional id belongs to: Java's hash of it.
pub(crate) fn partition_of(group: &str, partitions: usize) -> usize {
    let hash = group.encode_utf16().fold(0_i32, |h, c| h.wrapping_mul(31).wrapping_add(i32::from(c)));
    let positive = if hash == i32::MIN { 0 } else { hash.unsigned_abs() };
    positive as usize % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::partition_of;

    #[test]
    fn groups_are_where_kafka_keeps_them() {
        // Computed with Java's String.hashCode.
        assert_eq!(partition_of("test", 50), 48);
        assert_eq!(partition_of("", 50), 0);
        assert_eq!(partition_of("polygenelubricants", 50), 0);
    }
}
