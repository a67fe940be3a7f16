//! A member of a consumer group: the classic protocol, eager, with the range assignor.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
        join_group_request::JoinGroupRequestProtocol, leave_group_request::MemberIdentity,
        sync_group_request::SyncGroupRequestAssignment,
    },
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    ClientError, Cluster, Properties, TopicPartition,
    cluster::text,
    groups::{group_id, read_assignment},
};

const CONSUMER: &str = "consumer";
const RANGE: &str = "range";
/// The wait before a coordinator that is not there is looked for again.
const BACKOFF: Duration = Duration::from_millis(100);

/// How a member behaves. The defaults are Kafka's.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// The group.
    pub group: String,
    /// `group.instance.id`, which makes the member a static one (KIP-345).
    pub instance_id: Option<String>,
    /// `session.timeout.ms`: silent for longer, and it is out.
    pub session_timeout: Duration,
    /// `heartbeat.interval.ms`.
    pub heartbeat_interval: Duration,
    /// `max.poll.interval.ms`: how long the others wait for it to join again.
    pub rebalance_timeout: Duration,
}

impl MemberConfig {
    /// Takes what concerns membership out of `properties`.
    ///
    /// # Errors
    /// For wrong settings.
    pub fn new(group: &str, properties: &mut Properties) -> Result<MemberConfig, ClientError> {
        let mut ms = |name: &str, default| {
            Ok::<_, ClientError>(Duration::from_millis(properties.take_as(name)?.unwrap_or(default)))
        };
        Ok(MemberConfig {
            group: group.to_owned(),
            session_timeout: ms("session.timeout.ms", 45_000)?,
            heartbeat_interval: ms("heartbeat.interval.ms", 3_000)?,
            rebalance_timeout: ms("max.poll.interval.ms", 300_000)?,
            instance_id: properties.take("group.instance.id"),
        })
    }
}

/// Why a member has to join again.
#[derive(Clone, Debug)]
pub enum Rebalance {
    /// Others came or went.
    Wanted,
    /// It was taken for dead: what it has not committed others read again.
    Lost,
    /// The coordinator says no, or cannot be reached.
    Failed(ClientError),
}

/// A member of a consumer group.
pub struct GroupMember {
    cluster: Cluster,
    config: MemberConfig,
    id: String,
    generation: i32,
    heart: Option<JoinHandle<()>>,
    rebalances: Option<mpsc::Receiver<Rebalance>>,
}

impl GroupMember {
    /// A member that has not joined yet.
    pub fn new(cluster: Cluster, config: MemberConfig) -> GroupMember {
        GroupMember { cluster, config, id: String::new(), generation: -1, heart: None, rebalances: None }
    }

    /// Its id, as the coordinator gave it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Joins, or joins again, and returns the partitions that are this member's now. From here on it sends
    /// heartbeats.
    ///
    /// # Errors
    /// If the group does not take it (other protocols, no authorization, full), or the coordinator cannot be
    /// reached within `default.api.timeout.ms`.
    pub async fn join(&mut self, topics: &[String]) -> Result<Vec<TopicPartition>, ClientError> {
        self.still();
        let mut failing: Option<Instant> = None;
        loop {
            let error = match self.join_once(topics).await {
                Ok(assigned) => {
                    self.start_heart();
                    return Ok(assigned);
                }
                Err(error) => error,
            };
            match error.kafka() {
                Some(ResponseError::MemberIdRequired | ResponseError::RebalanceInProgress) => continue,
                Some(ResponseError::UnknownMemberId | ResponseError::IllegalGeneration) => {
                    self.id.clear();
                    self.generation = -1;
                }
                _ if error.is_transient() => self.cluster.forget_coordinator(&self.config.group),
                _ => return Err(error),
            }
            let since = *failing.get_or_insert_with(Instant::now);
            if since.elapsed() > self.cluster.config().api_timeout {
                return Err(error);
            }
            tracing::debug!("{error}; joining again");
            sleep(BACKOFF).await;
        }
    }

    async fn join_once(&mut self, topics: &[String]) -> Result<Vec<TopicPartition>, ClientError> {
        let node = self.cluster.coordinator(&self.config.group).await?;
        let connection = self.cluster.group_connection(node).await?;
        let millis = |d: Duration| i32::try_from(d.as_millis()).unwrap_or(i32::MAX);
        let request = JoinGroupRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_session_timeout_ms(millis(self.config.session_timeout))
            .with_rebalance_timeout_ms(millis(self.config.rebalance_timeout))
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.config.instance_id.as_deref().map(text))
            .with_protocol_type(text(CONSUMER))
            .with_protocols(vec![
                JoinGroupRequestProtocol::default()
                    .with_name(text(RANGE))
                    .with_metadata(write_subscription(topics)),
            ]);
        // The answer comes when all members have joined, or were given up on.
        let patience = self.config.rebalance_timeout + self.cluster.config().request_timeout;
        let joined = connection.begin(&request)?.wait_for(patience).await?;
        if joined.error_code == ResponseError::MemberIdRequired.code() {
            self.id = joined.member_id.to_string();
        }
        ClientError::check(self.about(), joined.error_code, None)?;
        self.id = joined.member_id.to_string();
        self.generation = joined.generation_id;
        let assignments =
            if joined.leader == joined.member_id { self.assign(&joined).await? } else { Vec::new() };
        let request = SyncGroupRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.config.instance_id.as_deref().map(text))
            .with_protocol_type(Some(text(CONSUMER)))
            .with_protocol_name(Some(text(RANGE)))
            .with_assignments(assignments);
        let synced = connection.begin(&request)?.wait_for(patience).await?;
        ClientError::check(self.about(), synced.error_code, None)?;
        read_assignment(synced.assignment)
            .ok_or_else(|| ClientError::Malformed("an assignment that is not the consumer protocol's".into()))
    }

    /// The leader's part: who reads what.
    async fn assign(
        &self,
        joined: &JoinGroupResponse,
    ) -> Result<Vec<SyncGroupRequestAssignment>, ClientError> {
        let subscriptions: Vec<Subscriber> = joined
            .members
            .iter()
            .map(|m| Subscriber {
                order: (
                    m.group_instance_id.is_none(),
                    m.group_instance_id.as_ref().unwrap_or(&m.member_id).to_string(),
                ),
                id: m.member_id.to_string(),
                topics: read_subscription(&m.metadata).unwrap_or_default(),
            })
            .collect();
        let names: BTreeSet<String> = subscriptions.iter().flat_map(|s| s.topics.clone()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let topics = self.cluster.topics(Some(&names), false).await?;
        let counts = topics.into_iter().flatten().map(|t| (t.name, t.partitions.len() as i32)).collect();
        let assignments = range(&subscriptions, &counts).into_iter().map(|(member, topics)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(text(&member))
                .with_assignment(write_assignment(&topics))
        });
        Ok(assignments.collect())
    }

    /// Completes when the member has to join again. May be dropped and called anew.
    pub async fn rebalance(&mut self) -> Rebalance {
        let Some(rebalances) = &mut self.rebalances else { return std::future::pending().await };
        match rebalances.recv().await {
            Some(rebalance) => {
                if matches!(rebalance, Rebalance::Lost) {
                    self.id.clear();
                    self.generation = -1;
                }
                rebalance
            }
            None => std::future::pending().await,
        }
    }

    /// Commits offsets of partitions that are this member's.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] if they no longer are: it has to join again.
    pub async fn commit(&self, offsets: &BTreeMap<TopicPartition, i64>) -> Result<(), ClientError> {
        if offsets.is_empty() || self.generation < 0 {
            return Ok(());
        }
        self.cluster.commit(&self.config.group, Some((&self.id, self.generation)), offsets).await
    }

    /// Leaves the group, so that the others need not wait for the session to time out. A static member stays:
    /// it is expected back.
    ///
    /// # Errors
    /// If the coordinator does not hear it.
    pub async fn leave(mut self) -> Result<(), ClientError> {
        self.still();
        if self.id.is_empty() || self.config.instance_id.is_some() {
            return Ok(());
        }
        let node = self.cluster.coordinator(&self.config.group).await?;
        let connection = self.cluster.group_connection(node).await?;
        let request = LeaveGroupRequest::default().with_group_id(group_id(&self.config.group));
        let request = if connection.version::<LeaveGroupRequest>()? < 3 {
            request.with_member_id(text(&self.id))
        } else {
            request.with_members(vec![MemberIdentity::default().with_member_id(text(&self.id))])
        };
        let answer = connection.call(&request).await?;
        ClientError::check(self.about(), answer.error_code, None)
    }

    fn start_heart(&mut self) {
        let (sender, receiver) = mpsc::channel(1);
        let request = HeartbeatRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.config.instance_id.as_deref().map(text));
        let (cluster, config) = (self.cluster.clone(), self.config.clone());
        self.rebalances = Some(receiver);
        self.heart = Some(tokio::spawn(async move {
            let rebalance = beat(&cluster, &config, &request).await;
            let _ = sender.send(rebalance).await;
        }));
    }

    /// No more heartbeats.
    fn still(&mut self) {
        if let Some(heart) = self.heart.take() {
            heart.abort();
        }
        self.rebalances = None;
    }

    fn about(&self) -> String {
        format!("group {}", self.config.group)
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        self.still();
    }
}

/// Sends heartbeats until one says that the member has to join again.
async fn beat(cluster: &Cluster, config: &MemberConfig, request: &HeartbeatRequest) -> Rebalance {
    let mut heard = Instant::now();
    loop {
        sleep(config.heartbeat_interval).await;
        let answer = async {
            let node = cluster.coordinator(&config.group).await?;
            let answer = cluster.group_connection(node).await?.call(request).await?;
            ClientError::check(format!("group {}", config.group), answer.error_code, None)
        };
        let error = match answer.await {
            Ok(()) => {
                heard = Instant::now();
                continue;
            }
            Err(error) => error,
        };
        match error.kafka() {
            Some(ResponseError::RebalanceInProgress) => return Rebalance::Wanted,
            Some(ResponseError::UnknownMemberId | ResponseError::IllegalGeneration) => {
                return Rebalance::Lost;
            }
            _ if error.is_transient() || matches!(error, ClientError::Timeout { .. }) => {
                cluster.forget_coordinator(&config.group);
                if heard.elapsed() > config.session_timeout + cluster.config().api_timeout {
                    return Rebalance::Failed(error);
                }
            }
            _ => return Rebalance::Failed(error),
        }
    }
}

/// A member as its leader sees it.
struct Subscriber {
    /// Static members come first, by instance id; the others by member id (Kafka's `MemberInfo`).
    order: (bool, String),
    id: String,
    topics: Vec<String>,
}

/// Kafka's range assignor: of each topic, every subscriber gets a run of partitions, the first ones one more.
fn range(
    members: &[Subscriber],
    counts: &HashMap<String, i32>,
) -> BTreeMap<String, BTreeMap<String, Vec<i32>>> {
    let mut sorted: Vec<&Subscriber> = members.iter().collect();
    sorted.sort_by(|a, b| a.order.cmp(&b.order));
    let mut all: BTreeMap<String, BTreeMap<String, Vec<i32>>> =
        members.iter().map(|m| (m.id.clone(), BTreeMap::new())).collect();
    for (topic, &count) in counts {
        let readers: Vec<_> = sorted.iter().filter(|m| m.topics.contains(topic)).collect();
        let Some((each, more)) =
            (!readers.is_empty()).then(|| (count / readers.len() as i32, count % readers.len() as i32))
        else {
            continue;
        };
        let mut next = 0;
        for (reader, place) in readers.into_iter().zip(0..) {
            let run = each + i32::from(place < more);
            if run > 0 {
                let topics = all.entry(reader.id.clone()).or_default();
                topics.insert(topic.clone(), (next..next + run).collect());
            }
            next += run;
        }
    }
    all
}

/// A subscription of the consumer protocol, version 0: topics, and no user data.
fn write_subscription(topics: &[String]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(0);
    out.put_i32(topics.len() as i32);
    for topic in topics {
        put_string(&mut out, topic);
    }
    out.put_i32(-1);
    out.freeze()
}

/// The topics in a subscription; later versions have more behind them.
fn read_subscription(bytes: &Bytes) -> Option<Vec<String>> {
    let mut rest = &bytes[..];
    rest.try_get_i16().ok()?;
    let mut topics = Vec::new();
    for _ in 0..rest.try_get_i32().ok()? {
        let length = usize::try_from(rest.try_get_i16().ok()?).ok()?;
        let (name, after) = rest.split_at_checked(length)?;
        topics.push(String::from_utf8(name.to_vec()).ok()?);
        rest = after;
    }
    Some(topics)
}

/// An assignment of the consumer protocol, version 0.
fn write_assignment(topics: &BTreeMap<String, Vec<i32>>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(0);
    out.put_i32(topics.len() as i32);
    for (topic, partitions) in topics {
        put_string(&mut out, topic);
        out.put_i32(partitions.len() as i32);
        partitions.iter().for_each(|p| out.put_i32(*p));
    }
    out.put_i32(-1);
    out.freeze()
}

fn put_string(out: &mut BytesMut, text: &str) {
    out.put_i16(text.len() as i16);
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, instance: Option<&str>, topics: &[&str]) -> Subscriber {
        Subscriber {
            order: (instance.is_none(), instance.unwrap_or(id).to_owned()),
            id: id.to_owned(),
            topics: topics.iter().map(|t| (*t).to_owned()).collect(),
        }
    }

    #[test]
    fn a_range_is_kafkas() {
        let counts = HashMap::from([("t".to_owned(), 5), ("u".to_owned(), 1)]);
        let members =
            [member("b", None, &["t", "u"]), member("a", None, &["t"]), member("z", Some("s"), &["t"])];
        let all = range(&members, &counts);
        assert_eq!(all["z"], BTreeMap::from([("t".to_owned(), vec![0, 1])]));
        assert_eq!(all["a"], BTreeMap::from([("t".to_owned(), vec![2, 3])]));
        assert_eq!(all["b"], BTreeMap::from([("t".to_owned(), vec![4]), ("u".to_owned(), vec![0])]));
    }

    #[test]
    fn who_gets_nothing_is_told_so() {
        let counts = HashMap::from([("t".to_owned(), 1)]);
        let all = range(&[member("a", None, &["t"]), member("b", None, &["t"])], &counts);
        assert_eq!(all["a"].len(), 1);
        assert!(all["b"].is_empty());
    }

    #[test]
    fn what_is_written_is_read() {
        let topics = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(read_subscription(&write_subscription(&topics)), Some(topics));
        let assignment = BTreeMap::from([("a".to_owned(), vec![0, 2]), ("b".to_owned(), vec![1])]);
        let expected = [("a", 0), ("a", 2), ("b", 1)].map(|(t, p)| TopicPartition::new(t, p));
        assert_eq!(read_assignment(write_assignment(&assignment)), Some(expected.to_vec()));
        assert_eq!(read_assignment(Bytes::from_static(&[0, 0, 0])), None);
    }
}
