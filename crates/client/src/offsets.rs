//! Offsets by place or by time (ListOffsets), asked of each partition's leader.

use std::collections::{BTreeMap, HashMap};

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, ListOffsetsRequest,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
};
use tokio::sync::Mutex;

use crate::{ClientError, Cluster, Isolation, TopicPartition, cluster::topic_name, error::KafkaError};

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The first that is still there.
    Earliest,
    /// The one after the last: the high watermark, or the last stable offset for committed records only.
    Latest,
    /// The first whose timestamp (ms) is not smaller.
    Time(i64),
}

impl At {
    fn timestamp(self) -> i64 {
        match self {
            At::Earliest => -2,
            At::Latest => -1,
            At::Time(ms) => ms,
        }
    }
}

/// An offset that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset.
    pub offset: i64,
    /// The timestamp (ms) of its record, if the search was by time.
    pub timestamp: i64,
}

impl Cluster {
    /// Asks for an offset of each partition. `None` stands where no record is so young.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] with `UNKNOWN_TOPIC_OR_PARTITION` if one is not there.
    pub async fn offsets(
        &self,
        asked: &[(TopicPartition, At)],
        isolation: Isolation,
    ) -> Result<HashMap<TopicPartition, Option<FoundOffset>>, ClientError> {
        let found = Mutex::new(HashMap::new());
        self.retry(async || {
            let mut found = found.lock().await;
            let missing: Vec<_> = asked.iter().filter(|(tp, _)| !found.contains_key(tp)).collect();
            let mut later = None;
            for (leader, asked) in self.by_leader(&missing).await? {
                let request = request(&asked, isolation);
                let answer = match self.call_node(leader, &request).await {
                    Err(error) if error.is_transient() => {
                        later = Some(error);
                        continue;
                    }
                    answer => answer?,
                };
                for topic in &answer.topics {
                    for p in &topic.partitions {
                        let tp = TopicPartition::new(topic.name.0.as_str(), p.partition_index);
                        match ClientError::check(tp.to_string(), p.error_code, None) {
                            Ok(()) => {
                                let offset = FoundOffset { offset: p.offset, timestamp: p.timestamp };
                                found.insert(tp, (p.offset >= 0).then_some(offset));
                            }
                            Err(error) if error.is_transient() => later = Some(error),
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            later.map_or(Ok(()), Err)
        })
        .await?;
        Ok(found.into_inner())
    }

    /// Sorts what is asked by the leader that can answer.
    async fn by_leader<'a>(
        &self,
        asked: &[&'a (TopicPartition, At)],
    ) -> Result<BTreeMap<i32, Vec<&'a (TopicPartition, At)>>, ClientError> {
        let mut names: Vec<String> = asked.iter().map(|(tp, _)| tp.topic.clone()).collect();
        names.sort();
        names.dedup();
        let mut leaders = HashMap::new();
        for topic in self.topics(Some(&names), false).await? {
            let topic =
                topic.map_err(|(name, error)| ClientError::Kafka { what: format!("topic {name}"), error })?;
            for p in &topic.partitions {
                leaders.insert(TopicPartition::new(&topic.name, p.index), p.leader);
            }
        }
        let mut sorted: BTreeMap<i32, Vec<_>> = BTreeMap::new();
        for &one in asked {
            let code = match leaders.get(&one.0) {
                Some(Some(leader)) => {
                    sorted.entry(*leader).or_default().push(one);
                    continue;
                }
                Some(None) => ResponseError::LeaderNotAvailable,
                None => ResponseError::UnknownTopicOrPartition,
            };
            let error = KafkaError { code, message: None };
            return Err(ClientError::Kafka { what: format!("partition {}", one.0), error });
        }
        Ok(sorted)
    }
}

fn request(asked: &[&(TopicPartition, At)], isolation: Isolation) -> ListOffsetsRequest {
    let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
    for (tp, at) in asked {
        let partition =
            ListOffsetsPartition::default().with_partition_index(tp.partition).with_timestamp(at.timestamp());
        topics.entry(&tp.topic).or_default().push(partition);
    }
    let topic = |(name, partitions): (&str, _)| {
        ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions(partitions)
    };
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_isolation_level(isolation.number())
        .with_topics(topics.into_iter().map(topic).collect())
}
