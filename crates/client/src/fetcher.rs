//! Records of assigned partitions, fetched from their leaders ahead of the caller by one answer for each broker.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::ControlFlow,
    time::Duration,
};

use bytes::Bytes;
use dibs_log::batch::{Batch, BatchError, BatchHeader, Batches, Record};
use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, FetchRequest, FetchResponse,
        fetch_request::{FetchPartition, FetchTopic},
        fetch_response::PartitionData,
    },
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    At, ClientError, Cluster, Isolation, Properties, TopicPartition,
    cluster::{Lane, topic_name},
    error::KafkaError,
};

/// How long a partition that cannot be read is tried again before that is an error, if it is not there at all.
const MISSING_PATIENCE: Duration = Duration::from_secs(5);
/// The wait before a partition that could not be read is tried again.
const BACKOFF: Duration = Duration::from_millis(100);

/// Where to go on when a position is not there (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// At the first record.
    Earliest,
    /// After the last.
    Latest,
    /// Nowhere: that is an error.
    Never,
}

/// How records are fetched. The defaults are Kafka's.
#[derive(Clone, Debug)]
pub struct FetcherConfig {
    /// `isolation.level`.
    pub isolation: Isolation,
    /// `fetch.max.wait.ms`: how long a broker may wait for `min_bytes`.
    pub max_wait: Duration,
    /// `fetch.min.bytes`.
    pub min_bytes: i32,
    /// `fetch.max.bytes`: of one answer.
    pub max_bytes: i32,
    /// `max.partition.fetch.bytes`: of one partition in one answer.
    pub partition_max_bytes: i32,
    /// `auto.offset.reset`.
    pub reset: Reset,
}

impl FetcherConfig {
    /// Takes what concerns fetching out of `properties`.
    ///
    /// # Errors
    /// For wrong settings.
    pub fn new(
        properties: &mut Properties,
        isolation: Option<Isolation>,
    ) -> Result<FetcherConfig, ClientError> {
        let level = properties.take("isolation.level").map(|l| l.parse()).transpose()?;
        let reset = match properties.take("auto.offset.reset").as_deref() {
            None | Some("latest") => Reset::Latest,
            Some("earliest") => Reset::Earliest,
            Some("none") => Reset::Never,
            Some(other) => {
                return Err(ClientError::Config(format!(
                    "auto.offset.reset={other} is not one of earliest, latest, none"
                )));
            }
        };
        Ok(FetcherConfig {
            isolation: isolation.or(level).unwrap_or_default(),
            max_wait: Duration::from_millis(properties.take_as("fetch.max.wait.ms")?.unwrap_or(500)),
            min_bytes: properties.take_as("fetch.min.bytes")?.unwrap_or(1),
            max_bytes: properties.take_as("fetch.max.bytes")?.unwrap_or(50 << 20),
            partition_max_bytes: properties.take_as("max.partition.fetch.bytes")?.unwrap_or(1 << 20),
            reset,
        })
    }
}

/// Where a partition is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Offset(i64),
    /// To be asked for.
    Find(At),
}

struct Reading {
    position: Position,
    leader: Option<i32>,
    /// When it began to fail, and when it is tried again.
    failing: Option<(Instant, Instant)>,
}

/// Batches of one partition.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset after its last record that a consumer may see, when it was fetched.
    pub end: i64,
    /// The offset after its last batch, markers included.
    pub next: i64,
    bytes: Bytes,
    from: u64,
    aborted: Option<Vec<(i64, i64)>>,
}

/// Reads assigned partitions. Driven by [`Fetcher::next`].
pub struct Fetcher {
    cluster: Cluster,
    config: FetcherConfig,
    partitions: BTreeMap<TopicPartition, Reading>,
    /// Grows with every assignment: answers to fetches of an earlier one are not of interest.
    assignment: u64,
    ready: VecDeque<Fetched>,
    flights: JoinSet<Landed>,
    /// Brokers that a fetch is on its way to or from.
    busy: HashSet<i32>,
}

struct Landed {
    node: i32,
    assignment: u64,
    asked: Vec<(TopicPartition, i64)>,
    answer: Result<FetchResponse, ClientError>,
}

impl Fetcher {
    /// A fetcher without partitions.
    pub fn new(cluster: Cluster, config: FetcherConfig) -> Fetcher {
        Fetcher {
            cluster,
            config,
            partitions: BTreeMap::new(),
            assignment: 0,
            ready: VecDeque::new(),
            flights: JoinSet::new(),
            busy: HashSet::new(),
        }
    }

    /// How it fetches.
    pub fn config(&self) -> &FetcherConfig {
        &self.config
    }

    /// Reads these partitions and no others from here on: from an offset, or from wherever [`At`] is found.
    pub fn assign(&mut self, partitions: impl IntoIterator<Item = (TopicPartition, Result<i64, At>)>) {
        self.assignment += 1;
        self.ready.clear();
        self.flights = JoinSet::new();
        self.busy.clear();
        let reading = |start: Result<i64, At>| Reading {
            position: start.map_or_else(Position::Find, Position::Offset),
            leader: None,
            failing: None,
        };
        self.partitions = partitions.into_iter().map(|(tp, start)| (tp, reading(start))).collect();
    }

    /// The next batches of some partition; waits for them without end. May be dropped and called anew.
    ///
    /// # Errors
    /// If a partition cannot be read and trying again has not helped.
    pub async fn next(&mut self) -> Result<Fetched, ClientError> {
        loop {
            if let Some(fetched) = self.ready.pop_front() {
                if self.ready.is_empty() {
                    self.begin_fetches();
                }
                return Ok(fetched);
            }
            self.find_leaders().await?;
            self.find_positions().await?;
            for node in self.idle_leaders() {
                if let Err(error) = self.cluster.connect_to(node, Lane::Fetches).await {
                    self.all_failed(node, &error)?;
                }
            }
            self.begin_fetches();
            let retry = self.partitions.values().filter_map(|r| r.failing).map(|(_, again)| again).min();
            tokio::select! {
                Some(landed) = self.flights.join_next(), if !self.flights.is_empty() => {
                    if let Ok(landed) = landed {
                        self.land(landed)?;
                    }
                }
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Asks who leads the partitions whose leader is not known.
    async fn find_leaders(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        let lost: HashSet<&str> = self
            .partitions
            .iter()
            .filter(|(_, r)| r.leader.is_none() && r.failing.is_none_or(|(_, again)| again <= now))
            .map(|(tp, _)| tp.topic.as_str())
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = lost.into_iter().map(str::to_owned).collect();
        let mut leaders = HashMap::new();
        for topic in self.cluster.topics(Some(&names), false).await?.into_iter().flatten() {
            for p in &topic.partitions {
                leaders.insert(TopicPartition::new(&topic.name, p.index), p.leader);
            }
        }
        for (tp, reading) in self.partitions.iter_mut().filter(|(tp, _)| names.contains(&tp.topic)) {
            let code = match leaders.get(tp) {
                Some(Some(leader)) => {
                    reading.leader = Some(*leader);
                    continue;
                }
                Some(None) => ResponseError::LeaderNotAvailable,
                None => ResponseError::UnknownTopicOrPartition,
            };
            failed(tp, reading, code, self.cluster.config().api_timeout)?;
        }
        Ok(())
    }

    /// Asks for the positions that are places rather than offsets.
    async fn find_positions(&mut self) -> Result<(), ClientError> {
        let asked: Vec<_> = self
            .partitions
            .iter()
            .filter(|(_, r)| r.leader.is_some())
            .filter_map(|(tp, r)| match r.position {
                Position::Find(at) => Some((tp.clone(), at)),
                Position::Offset(_) => None,
            })
            .collect();
        if asked.is_empty() {
            return Ok(());
        }
        let found = self.cluster.offsets(&asked, self.config.isolation).await?;
        for (tp, offset) in found {
            if let Some(reading) = self.partitions.get_mut(&tp) {
                reading.position = match offset {
                    Some(offset) => Position::Offset(offset.offset),
                    None => Position::Find(At::Latest),
                };
            }
        }
        Ok(())
    }

    fn idle_leaders(&self) -> HashSet<i32> {
        self.partitions.values().filter_map(|r| r.leader).filter(|node| !self.busy.contains(node)).collect()
    }

    /// Sends a fetch to every broker that has none, where there is a connection.
    fn begin_fetches(&mut self) {
        for node in self.idle_leaders() {
            let Some(connection) = self.cluster.open_connection(node, Lane::Fetches) else { continue };
            let asked: Vec<_> = self
                .partitions
                .iter()
                .filter(|(_, r)| r.leader == Some(node))
                .filter_map(|(tp, r)| match r.position {
                    Position::Offset(offset) => Some((tp.clone(), offset)),
                    Position::Find(_) => None,
                })
                .collect();
            if asked.is_empty() {
                continue;
            }
            let pending = connection.begin(&self.request(&asked));
            self.busy.insert(node);
            let assignment = self.assignment;
            self.flights.spawn(async move {
                let answer = match pending {
                    Ok(pending) => pending.wait().await,
                    Err(error) => Err(error),
                };
                Landed { node, assignment, asked, answer }
            });
        }
    }

    fn request(&self, asked: &[(TopicPartition, i64)]) -> FetchRequest {
        let mut topics: BTreeMap<&str, Vec<FetchPartition>> = BTreeMap::new();
        for (tp, offset) in asked {
            let partition = FetchPartition::default()
                .with_partition(tp.partition)
                .with_fetch_offset(*offset)
                .with_partition_max_bytes(self.config.partition_max_bytes);
            topics.entry(&tp.topic).or_default().push(partition);
        }
        let topic = |(name, partitions): (&str, _)| {
            FetchTopic::default().with_topic(topic_name(name)).with_partitions(partitions)
        };
        FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(self.config.max_wait.as_millis() as i32)
            .with_min_bytes(self.config.min_bytes)
            .with_max_bytes(self.config.max_bytes)
            .with_isolation_level(self.config.isolation.number())
            .with_topics(topics.into_iter().map(topic).collect())
    }

    fn land(&mut self, landed: Landed) -> Result<(), ClientError> {
        if landed.assignment != self.assignment {
            return Ok(());
        }
        self.busy.remove(&landed.node);
        let checked = landed.answer.and_then(|answer| {
            ClientError::check("fetch", answer.error_code, None)?;
            Ok(answer)
        });
        let answer = match checked {
            Ok(answer) => answer,
            Err(error) => return self.all_failed(landed.node, &error),
        };
        let from: HashMap<_, _> = landed.asked.into_iter().collect();
        for topic in answer.responses {
            for data in topic.partitions {
                let tp = TopicPartition::new(topic.topic.0.as_str(), data.partition_index);
                if let Some(&from) = from.get(&tp) {
                    self.land_partition(tp, from, data)?;
                }
            }
        }
        Ok(())
    }

    fn land_partition(
        &mut self,
        tp: TopicPartition,
        from: i64,
        data: PartitionData,
    ) -> Result<(), ClientError> {
        let Some(reading) = self.partitions.get_mut(&tp) else { return Ok(()) };
        match ResponseError::try_from_code(data.error_code) {
            None => reading.failing = None,
            Some(ResponseError::OffsetOutOfRange) => {
                reading.position = Position::Find(match self.config.reset {
                    Reset::Earliest => At::Earliest,
                    Reset::Latest => At::Latest,
                    Reset::Never => {
                        return ClientError::check(format!("offset {from} of {tp}"), data.error_code, None);
                    }
                });
                return Ok(());
            }
            Some(code) => return failed(&tp, reading, code, self.cluster.config().api_timeout),
        }
        let bytes = data.records.unwrap_or_default();
        let (whole, next) = whole_batches(&bytes)
            .map_err(|e| ClientError::Malformed(format!("records of {tp} from offset {from} on: {e}")))?;
        let Some(next) = next else { return Ok(()) };
        reading.position = Position::Offset(next.max(from));
        let committed = self.config.isolation == Isolation::ReadCommitted;
        let aborted = committed.then(|| {
            let aborted = data.aborted_transactions.unwrap_or_default();
            aborted.iter().map(|a| (a.first_offset, a.producer_id.0)).collect()
        });
        let end = if committed { data.last_stable_offset } else { data.high_watermark };
        let bytes = bytes.slice(..whole);
        self.ready.push_back(Fetched { partition: tp, end, next, bytes, from: from as u64, aborted });
        Ok(())
    }

    /// A broker could not be asked: its partitions may have moved.
    fn all_failed(&mut self, node: i32, error: &ClientError) -> Result<(), ClientError> {
        if !error.is_transient() && !matches!(error, ClientError::Timeout { .. }) {
            return Err(error.clone());
        }
        let patience = match error {
            ClientError::Advertised { .. } => MISSING_PATIENCE,
            _ => self.cluster.config().api_timeout,
        };
        let now = Instant::now();
        for reading in self.partitions.values_mut().filter(|r| r.leader == Some(node)) {
            let since = reading.failing.map_or(now, |(since, _)| since);
            if now - since > patience {
                return Err(error.clone());
            }
            reading.leader = None;
            reading.failing = Some((since, now + BACKOFF));
        }
        Ok(())
    }
}

/// Notes that a partition could not be read; an error if that will not pass.
fn failed(
    tp: &TopicPartition,
    reading: &mut Reading,
    code: ResponseError,
    patience: Duration,
) -> Result<(), ClientError> {
    let error = KafkaError { code, message: None };
    let error = ClientError::Kafka { what: format!("partition {tp}"), error };
    let patience = match code {
        ResponseError::UnknownTopicOrPartition | ResponseError::UnknownTopicId => MISSING_PATIENCE,
        _ if error.is_transient() => patience,
        _ => return Err(error),
    };
    let now = Instant::now();
    let since = reading.failing.map_or(now, |(since, _)| since);
    if now - since > patience {
        return Err(error);
    }
    tracing::debug!("{error}; trying again");
    reading.leader = None;
    reading.failing = Some((since, now + BACKOFF));
    Ok(())
}

/// How many bytes are whole batches, and the offset after the last. A broker may cut the last batch short.
fn whole_batches(bytes: &[u8]) -> Result<(usize, Option<i64>), BatchError> {
    let (mut whole, mut next) = (0, None);
    while whole < bytes.len() {
        let header = match BatchHeader::parse(&bytes[whole..]) {
            Ok(header) if whole + header.size() <= bytes.len() => header,
            Ok(_) | Err(BatchError::Truncated { .. }) => break,
            Err(error) => return Err(error),
        };
        whole += header.size();
        next = Some(header.next_offset() as i64);
    }
    Ok((whole, next))
}

impl Fetched {
    /// Bytes of the batches, as they came.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Calls back for each record that a consumer may see, in order: none before the position, no markers, and
    /// none of aborted transactions where only committed ones are wanted. `Break` ends it.
    ///
    /// # Errors
    /// If a batch is damaged or in a format older than Kafka 0.11's.
    pub fn for_each(
        &self,
        mut each: impl FnMut(&Batch<'_>, &Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let unreadable =
            |e: BatchError| ClientError::Malformed(format!("records of {}: {e}", self.partition));
        let mut filter = self.aborted.as_ref().map(|aborted| Aborted::new(aborted.clone()));
        let mut buffer = Vec::new();
        for batch in Batches::new(&self.bytes) {
            let batch = batch.map_err(unreadable)?;
            let skipped = match &mut filter {
                Some(filter) => filter.skips(&batch).map_err(unreadable)?,
                None => false,
            };
            if skipped || batch.header.is_control() {
                continue;
            }
            for record in batch.records_in(&mut buffer).map_err(unreadable)? {
                let record = record.map_err(unreadable)?;
                if record.offset >= self.from && each(&batch, &record).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Which producers are in an aborted transaction at the batch that is looked at.
struct Aborted {
    /// First offset and producer, the next transaction last.
    ahead: Vec<(i64, i64)>,
    open: HashSet<i64>,
}

impl Aborted {
    fn new(mut aborted: Vec<(i64, i64)>) -> Aborted {
        aborted.sort_unstable_by(|a, b| b.cmp(a));
        Aborted { ahead: aborted, open: HashSet::new() }
    }

    fn skips(&mut self, batch: &Batch<'_>) -> Result<bool, BatchError> {
        let header = &batch.header;
        while let Some((_, producer)) = self.ahead.pop_if(|(first, _)| *first <= header.last_offset() as i64)
        {
            self.open.insert(producer);
        }
        if header.is_control() {
            // Its one record's key is a version and a type, and type 0 is an abort.
            let mut buffer = Vec::new();
            let marker = batch.records_in(&mut buffer)?.next().transpose()?;
            if marker.and_then(|m| m.key).is_some_and(|key| key.get(2..4) == Some(&[0, 0])) {
                self.open.remove(&header.producer_id);
            }
            return Ok(true);
        }
        Ok(header.is_transactional() && self.open.contains(&header.producer_id))
    }
}

#[cfg(test)]
mod tests {
    use dibs_log::batch::BatchBuilder;

    use super::*;

    fn batch(base: u64, producer: Option<i64>, values: &[&str]) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for value in values {
            builder.push(None, Some(value.as_bytes()));
        }
        if let Some(id) = producer {
            builder.producer(id, 0, 0);
            builder.transactional();
        }
        let mut bytes = builder.finish(1);
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes
    }

    fn seen(fetched: &Fetched) -> Vec<String> {
        let mut seen = Vec::new();
        let each = |_: &Batch<'_>, r: &Record<'_>| {
            seen.push(String::from_utf8(r.value.unwrap().to_vec()).unwrap());
            ControlFlow::Continue(())
        };
        fetched.for_each(each).unwrap();
        seen
    }

    fn fetched(bytes: Vec<u8>, from: u64, aborted: Option<Vec<(i64, i64)>>) -> Fetched {
        Fetched {
            partition: TopicPartition::new("t", 0),
            end: 0,
            next: 0,
            bytes: bytes.into(),
            from,
            aborted,
        }
    }

    #[test]
    fn a_position_inside_a_batch_is_kept() {
        let bytes = [batch(0, None, &["a", "b"]), batch(2, None, &["c"])].concat();
        assert_eq!(seen(&fetched(bytes.clone(), 0, None)), ["a", "b", "c"]);
        assert_eq!(seen(&fetched(bytes.clone(), 1, None)), ["b", "c"]);
        assert_eq!(seen(&fetched(bytes, 2, None)), ["c"]);
    }

    #[test]
    fn what_was_aborted_is_not_seen_by_who_wants_committed_records() {
        let bytes =
            [batch(0, Some(7), &["aborted"]), batch(1, Some(8), &["committed"]), batch(2, None, &["plain"])]
                .concat();
        assert_eq!(seen(&fetched(bytes.clone(), 0, Some(vec![(0, 7)]))), ["committed", "plain"]);
        assert_eq!(seen(&fetched(bytes, 0, None)), ["aborted", "committed", "plain"]);
    }

    #[test]
    fn a_last_batch_that_was_cut_short_is_left_for_the_next_fetch() {
        let (a, b) = (batch(0, None, &["a"]), batch(1, None, &["b"]));
        let mut bytes = [a.clone(), b].concat();
        bytes.pop();
        assert_eq!(whole_batches(&bytes), Ok((a.len(), Some(1))));
        assert_eq!(whole_batches(&bytes[..30]), Ok((0, None)));
        assert_eq!(whole_batches(&[]), Ok((0, None)));
    }
}
