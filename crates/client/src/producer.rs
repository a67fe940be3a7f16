//! Records into batches, batches to leaders: in order, tried again, and once only if idempotent (KIP-98).
//!
//! The caller drives: [`Producer::push`] gathers, [`Producer::drive`] sends and hears. A batch gets its place
//! in the sequence when it is first sent. When one fails for now, its partition waits until all that is under
//! way for it has landed, and goes on in the old order; when one fails for good, an idempotent producer takes a
//! new id, since the broker would take nothing that comes after a gap.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    time::Duration,
};

use dibs_log::batch::Header;
use kafka_protocol::{
    ResponseError,
    messages::{
        InitProducerIdRequest, ProduceRequest, ProduceResponse,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, sleep_until},
};

use crate::{
    Acks, ClientError, Cluster, ProducerConfig, Topic,
    cluster::{Lane, topic_name},
    error::KafkaError,
    partition_for_key,
    queue::{Batch, Gathering, Queue},
};

/// The longest wait between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// A record to be sent.
#[derive(Clone, Copy, Debug)]
pub struct ProducerRecord<'a> {
    /// Where to; `None` leaves it to Kafka's partitioner: by the key, or to one partition until a batch is full.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: &'a [Header<'a>],
    /// Its time, in ms.
    pub timestamp: i64,
    /// When it was given to the producer.
    pub at: Instant,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Delivery {
    /// Its partition.
    pub partition: i32,
    /// Number of its records.
    pub records: usize,
    /// Offset of its first record, −1 with acks=0; or why it was not taken.
    pub outcome: Result<i64, ClientError>,
    /// When its records were given to the producer: a time, and how many.
    pub given: Vec<(Instant, u32)>,
    /// When the answer came.
    pub landed: Instant,
}

/// Sends records to one topic.
pub struct Producer {
    cluster: Cluster,
    config: ProducerConfig,
    topic: String,
    queues: Vec<Queue>,
    /// The partition that records without a key go to, and the bytes that have gone there.
    sticky: (usize, usize),
    flights: JoinSet<Landed>,
    /// Requests under way, by broker.
    in_flight: HashMap<i32, usize>,
    /// Bytes of all records that wait or are under way.
    buffered: usize,
    identity: Option<(i64, i16)>,
    /// Whether a new identity is needed before anything more is sent.
    renew: bool,
    flushing: bool,
    deliveries: Vec<Delivery>,
    leaders_wanted: Option<Instant>,
}

struct Landed {
    node: i32,
    batches: Vec<(usize, Batch)>,
    answer: Result<Option<ProduceResponse>, ClientError>,
}

impl Producer {
    /// A producer for a topic that is there.
    pub fn new(cluster: Cluster, topic: &Topic, config: ProducerConfig) -> Producer {
        let queues: Vec<Queue> =
            topic.partitions.iter().map(|p| Queue { leader: p.leader, ..Queue::default() }).collect();
        let sticky = (fastrand::usize(..queues.len().max(1)), 0);
        Producer {
            cluster,
            topic: topic.name.clone(),
            queues,
            sticky,
            flights: JoinSet::new(),
            in_flight: HashMap::new(),
            buffered: 0,
            identity: None,
            renew: config.idempotent,
            flushing: false,
            deliveries: Vec::new(),
            leaders_wanted: None,
            config,
        }
    }

    /// Whether there is room for another record. Without it, drive.
    pub fn has_room(&self) -> bool {
        self.buffered < self.config.buffer_memory
    }

    /// Whether everything that was pushed has been delivered, or has failed.
    pub fn is_idle(&self) -> bool {
        self.buffered == 0
    }

    /// What has become of batches since this was last asked.
    pub fn take_deliveries(&mut self) -> Vec<Delivery> {
        mem::take(&mut self.deliveries)
    }

    /// Takes a record in.
    ///
    /// # Errors
    /// If its partition is not there, or it is larger than `max.request.size`.
    pub fn push(&mut self, record: &ProducerRecord<'_>) -> Result<(), ClientError> {
        let headers: usize =
            record.headers.iter().map(|h| h.name.len() + h.value.map_or(0, <[u8]>::len) + 10).sum();
        let size = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers + 30;
        if size > self.config.max_request_size {
            return Err(ClientError::Config(format!(
                "a record of {size} bytes is larger than max.request.size={}",
                self.config.max_request_size
            )));
        }
        let index = self.place(record, size)?;
        let queue = &mut self.queues[index];
        let full = |g: &Gathering| g.builder.size() + size > self.config.batch_size && !g.builder.is_empty();
        if queue.open.as_ref().is_some_and(|(gathering, _)| full(gathering)) {
            queue.close(&self.config);
        }
        let (gathering, _) = queue.open.get_or_insert_with(|| (Gathering::default(), record.at));
        let before = gathering.builder.size();
        gathering.builder.push_at_with(record.timestamp, record.key, record.value, record.headers);
        self.buffered += gathering.builder.size() - before;
        match gathering.given.last_mut() {
            Some((at, records)) if *at == record.at => *records += 1,
            _ => gathering.given.push((record.at, 1)),
        }
        Ok(())
    }

    /// The partition of a record.
    fn place(&mut self, record: &ProducerRecord<'_>, size: usize) -> Result<usize, ClientError> {
        let count = self.queues.len();
        if let Some(partition) = record.partition {
            return usize::try_from(partition).ok().filter(|p| *p < count).ok_or_else(|| {
                ClientError::Config(format!(
                    "topic {} has no partition {partition}: it has 0 to {}",
                    self.topic,
                    count as i32 - 1
                ))
            });
        }
        if let Some(key) = record.key {
            return Ok(partition_for_key(key, count as u32) as usize);
        }
        let (place, bytes) = self.sticky;
        if bytes + size <= self.config.batch_size && self.queues[place].leader.is_some() {
            self.sticky.1 += size;
            return Ok(place);
        }
        let led: Vec<usize> = (0..count).filter(|&i| self.queues[i].leader.is_some()).collect();
        let next = if led.is_empty() { place } else { led[fastrand::usize(..led.len())] };
        self.sticky = (next, size);
        Ok(next)
    }

    /// Does what can be done at once, and lets the connections work: for a caller that pushes without pause.
    pub async fn turn(&mut self) -> Result<(), ClientError> {
        self.prepare().await?;
        self.dispatch()?;
        yield_now().await;
        while let Some(landed) = self.flights.try_join_next() {
            if let Ok(landed) = landed {
                self.land(landed);
            }
        }
        Ok(())
    }

    /// Sends what is due and waits for something to land, or for more to be due; for ever if there is nothing.
    /// May be dropped and called anew.
    ///
    /// # Errors
    /// If the cluster cannot be asked for leaders or an identity. What becomes of records is in
    /// [`Producer::take_deliveries`].
    pub async fn drive(&mut self) -> Result<(), ClientError> {
        self.prepare().await?;
        let due = self.dispatch()?;
        tokio::select! {
            Some(landed) = self.flights.join_next(), if !self.flights.is_empty() => {
                if let Ok(landed) = landed {
                    self.land(landed);
                }
                while let Some(Ok(landed)) = self.flights.try_join_next() {
                    self.land(landed);
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            else => std::future::pending().await,
        }
        Ok(())
    }

    /// Sends everything and waits until it has landed.
    ///
    /// # Errors
    /// As [`Producer::drive`].
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        self.flushing = true;
        while !self.is_idle() {
            self.drive().await?;
        }
        self.flushing = false;
        Ok(())
    }

    /// Identity, leaders and connections, as far as they are missing.
    async fn prepare(&mut self) -> Result<(), ClientError> {
        if self.renew && self.flights.is_empty() {
            let request = InitProducerIdRequest::default()
                .with_transactional_id(None)
                .with_transaction_timeout_ms(i32::MAX);
            let answer = self
                .cluster
                .retry(async || {
                    let answer = self.cluster.call_any(&request).await?;
                    ClientError::check("producer id", answer.error_code, None)?;
                    Ok(answer)
                })
                .await?;
            self.identity = Some((answer.producer_id.0, answer.producer_epoch));
            self.renew = false;
            for queue in &mut self.queues {
                queue.next_sequence = 0;
                queue.ready.iter_mut().for_each(|batch| batch.sequence = None);
            }
        }
        let now = Instant::now();
        let lost = |q: &Queue| q.leader.is_none() && q.has_work();
        if self.queues.iter().any(lost) && self.leaders_wanted.is_none_or(|at| at <= now) {
            self.leaders_wanted = Some(now + self.config.retry_backoff);
            self.find_leaders().await?;
        }
        let nodes: BTreeSet<i32> =
            self.queues.iter().filter(|q| q.has_work()).filter_map(|q| q.leader).collect();
        for node in nodes {
            if self.cluster.open_connection(node, Lane::Prompt).is_some() {
                continue;
            }
            match self.cluster.connection(node).await {
                Ok(_) => {}
                Err(error @ ClientError::Advertised { .. }) => self.unreachable(node, &error),
                Err(error) if error.is_transient() => self.unreachable(node, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn find_leaders(&mut self) -> Result<(), ClientError> {
        let topic = match self.cluster.topic(&self.topic, false).await {
            Ok(topic) => topic,
            Err(error) if error.kafka() == Some(ResponseError::UnknownTopicOrPartition) => {
                // Perhaps deleted; what waits will run out of time.
                self.expire(&error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for (queue, partition) in self.queues.iter_mut().zip(&topic.partitions) {
            queue.leader = partition.leader;
        }
        Ok(())
    }

    /// A leader cannot be reached: asked for anew a little later, as long as there is time.
    fn unreachable(&mut self, node: i32, error: &ClientError) {
        for queue in self.queues.iter_mut().filter(|q| q.leader == Some(node)) {
            queue.leader = None;
        }
        self.expire(error);
    }

    /// Gives up on what has waited for too long.
    fn expire(&mut self, error: &ClientError) {
        let patience = match error {
            ClientError::Advertised { .. } => self.config.delivery_timeout.min(Duration::from_secs(5)),
            _ => self.config.delivery_timeout,
        };
        let mut given_up = Vec::new();
        for (index, queue) in self.queues.iter_mut().enumerate().filter(|(_, q)| q.leader.is_none()) {
            if queue.open.as_ref().is_some_and(|(_, since)| since.elapsed() > patience) {
                queue.close(&self.config);
            }
            while queue.ready.front().is_some_and(|batch| batch.born.elapsed() > patience) {
                given_up.extend(queue.ready.pop_front().map(|batch| (index, batch)));
            }
        }
        for (index, batch) in given_up {
            self.deliver(index, batch, Err(error.clone()));
        }
    }

    /// Sends whatever is due, and says when more will be.
    fn dispatch(&mut self) -> Result<Option<Instant>, ClientError> {
        let now = Instant::now();
        let mut due: Option<Instant> = None;
        let mut note = |at: Instant| due = Some(due.map_or(at, |d| d.min(at)));
        let mut waiting: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if let Some((_, since)) = queue.open {
                let at = since + self.config.linger;
                if self.flushing || at <= now {
                    queue.close(&self.config);
                } else {
                    note(at);
                }
            }
            if queue.ready.is_empty() || queue.is_held() {
                continue;
            }
            match (queue.leader, queue.retry_at) {
                (_, Some(at)) if at > now => note(at),
                (None, _) => note(self.leaders_wanted.unwrap_or(now).max(now + Duration::from_millis(1))),
                (Some(node), _) => waiting.entry(node).or_default().push(index),
            }
        }
        if self.renew {
            // Nothing more goes out under the old identity.
            return Ok(if self.flights.is_empty() { Some(now) } else { None });
        }
        for (node, mut indices) in waiting {
            // Whoever is last in line now is first another time.
            let turn = fastrand::usize(..indices.len());
            indices.rotate_left(turn);
            while self.in_flight.get(&node).copied().unwrap_or(0) < self.config.max_in_flight {
                let batches = self.take_batches(&indices);
                if batches.is_empty() {
                    break;
                }
                self.send(node, batches)?;
            }
        }
        Ok(due)
    }

    /// The next batch of each of these partitions, as many as fit in a request.
    fn take_batches(&mut self, indices: &[usize]) -> Vec<(usize, Batch)> {
        let (mut batches, mut size) = (Vec::new(), 0);
        for &index in indices {
            let queue = &mut self.queues[index];
            let Some(next) = queue.ready.front() else { continue };
            if size > 0 && size + next.bytes.len() > self.config.max_request_size {
                continue;
            }
            size += next.bytes.len();
            if let Some(mut batch) = queue.ready.pop_front() {
                queue.sign(&mut batch, self.identity);
                queue.flying += 1;
                queue.retry_at = None;
                batches.push((index, batch));
            }
        }
        batches
    }

    fn send(&mut self, node: i32, batches: Vec<(usize, Batch)>) -> Result<(), ClientError> {
        let data = batches.iter().map(|(index, batch)| {
            PartitionProduceData::default().with_index(*index as i32).with_records(Some(batch.bytes.clone()))
        });
        let topic = TopicProduceData::default()
            .with_name(topic_name(&self.topic))
            .with_partition_data(data.collect());
        let request = ProduceRequest::default()
            .with_acks(self.config.acks.number())
            .with_timeout_ms(self.config.request_timeout.as_millis() as i32)
            .with_topic_data(vec![topic]);
        *self.in_flight.entry(node).or_default() += 1;
        let gone = move || ClientError::Disconnected { address: format!("broker {node}") };
        let connection = self.cluster.open_connection(node, Lane::Prompt);
        if self.config.acks == Acks::None {
            let told = connection.ok_or_else(gone).and_then(|c| c.tell(&request));
            self.flights.spawn(async move {
                let answer = match told {
                    Ok(written) => written.await.map(|()| None).map_err(|_| gone()),
                    Err(error) => Err(error),
                };
                Landed { node, batches, answer }
            });
            return Ok(());
        }
        let pending = connection.ok_or_else(gone).and_then(|c| c.begin(&request));
        self.flights.spawn(async move {
            let answer = match pending {
                Ok(pending) => pending.wait().await.map(Some),
                Err(error) => Err(error),
            };
            Landed { node, batches, answer }
        });
        Ok(())
    }

    fn land(&mut self, landed: Landed) {
        if let Some(flying) = self.in_flight.get_mut(&landed.node) {
            *flying -= 1;
        }
        let mut outcomes: HashMap<usize, Result<i64, ClientError>> = HashMap::new();
        if let Ok(Some(answer)) = &landed.answer {
            for p in answer.responses.iter().flat_map(|t| &t.partition_responses) {
                let checked = KafkaError::check(p.error_code, p.error_message.as_deref());
                let what = || format!("partition {}-{}", self.topic, p.index);
                let outcome = checked.map(|()| p.base_offset);
                let outcome = outcome.map_err(|error| ClientError::Kafka { what: what(), error });
                outcomes.insert(p.index as usize, outcome);
            }
        }
        for (index, batch) in landed.batches {
            self.queues[index].flying -= 1;
            let outcome = match &landed.answer {
                Ok(None) => Ok(-1),
                Err(error) => Err(error.clone()),
                Ok(Some(_)) => outcomes.remove(&index).unwrap_or_else(|| {
                    Err(ClientError::Malformed("Produce without an answer for a partition".into()))
                }),
            };
            self.land_batch(index, batch, outcome);
        }
    }

    fn land_batch(&mut self, index: usize, mut batch: Batch, outcome: Result<i64, ClientError>) {
        let after_failure = !self.queues[index].failed.is_empty();
        match verdict(&outcome, self.config.idempotent, after_failure) {
            Verdict::Done => self.deliver(index, batch, Ok(outcome.unwrap_or(-1))),
            Verdict::Later if batch.born.elapsed() < self.config.delivery_timeout => {
                let queue = &mut self.queues[index];
                queue.leader = None;
                let backoff =
                    (self.config.retry_backoff * 2_u32.saturating_pow(batch.tries)).min(MAX_BACKOFF);
                queue.retry_at = Some(Instant::now() + backoff);
                batch.tries += 1;
                queue.failed.push(batch);
            }
            Verdict::Split if batch.records > 1 => {
                let halves = batch.split(&self.config);
                self.renew = self.config.idempotent;
                self.queues[index].failed.extend(halves);
            }
            Verdict::Renew if batch.tries < 10 => {
                batch.tries += 1;
                self.renew = true;
                self.queues[index].failed.push(batch);
            }
            _ => {
                self.renew |= self.config.idempotent;
                let error = outcome.err();
                let error =
                    error.unwrap_or_else(|| ClientError::Malformed("an outcome without an error".into()));
                self.deliver(index, batch, Err(error));
            }
        }
        self.queues[index].requeue();
    }

    fn deliver(&mut self, index: usize, batch: Batch, outcome: Result<i64, ClientError>) {
        self.buffered -= batch.size;
        self.deliveries.push(Delivery {
            partition: index as i32,
            records: batch.records,
            outcome,
            given: batch.given,
            landed: Instant::now(),
        });
    }
}

/// What an answer means for its batch.
enum Verdict {
    Done,
    Later,
    /// Too large as it is.
    Split,
    /// The broker has forgotten the producer, or a gap was made: under a new identity.
    Renew,
    Never,
}

fn verdict(outcome: &Result<i64, ClientError>, idempotent: bool, after_failure: bool) -> Verdict {
    use ResponseError as E;
    let error = match outcome {
        Ok(_) => return Verdict::Done,
        Err(error) => error,
    };
    match error.kafka() {
        Some(E::DuplicateSequenceNumber) => Verdict::Done,
        Some(E::MessageTooLarge | E::RecordListTooLarge) => Verdict::Split,
        // What came before it is tried again, and it with that.
        Some(E::OutOfOrderSequenceNumber) if after_failure => Verdict::Later,
        Some(E::UnknownProducerId | E::OutOfOrderSequenceNumber | E::InvalidProducerEpoch) if idempotent => {
            Verdict::Renew
        }
        Some(E::UnknownTopicOrPartition | E::NotEnoughReplicas | E::NotEnoughReplicasAfterAppend) => {
            Verdict::Later
        }
        _ if error.is_transient() || matches!(error, ClientError::Timeout { .. }) => Verdict::Later,
        _ => Verdict::Never,
    }
}
