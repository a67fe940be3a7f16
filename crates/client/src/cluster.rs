//! Who is in the cluster, who leads what, and calls that find their way there.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, FindCoordinatorRequest, MetadataRequest, MetadataResponse, TopicName,
        metadata_request::MetadataRequestTopic, metadata_response::MetadataResponseTopic,
    },
    protocol::StrBytes,
};
use tokio::time::{Instant, sleep};

use crate::{
    ClientConfig, ClientError,
    connection::{Connection, OpenError},
    error::KafkaError,
    versions::Api,
};

/// How long a broker that the cluster names may be unreachable before that is an error: it may be restarting.
const RESTART_PATIENCE: Duration = Duration::from_secs(5);
/// The first wait between two tries, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The same while a topic is being made: most brokers have it at once, and only the first answer lacks it.
const BIRTH: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// A topic and a number of one of its partitions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: String,
    /// The partition, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: impl Into<String>, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: i32,
    /// Host and port as it advertises them.
    pub address: String,
}

/// A topic as its cluster describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id, if the brokers have ids for topics.
    pub id: Option<uuid::Uuid>,
    /// Whether it is Kafka's own, such as `__consumer_offsets`.
    pub internal: bool,
    /// Its partitions, in order.
    pub partitions: Vec<Partition>,
}

/// A partition as its cluster describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// The broker that leads it, if one does.
    pub leader: Option<i32>,
    /// The brokers that have a copy, the preferred leader first.
    pub replicas: Vec<i32>,
    /// Those whose copy is in sync.
    pub isr: Vec<i32>,
}

/// A Kafka cluster. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    state: Mutex<State>,
}

/// What a connection is for. A broker answers one request of a connection after the other: nothing must wait behind
/// a fetch that waits for records, or a member that waits for its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Whatever is answered at once.
    Prompt,
    Fetches,
    Groups,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<i32, Node>,
    controller: Option<i32>,
    /// The last connection to every address that was ever reached.
    connections: HashMap<(String, Lane), Arc<Connection>>,
    /// The address that answered first.
    home: Option<String>,
    coordinators: HashMap<String, i32>,
}

impl Cluster {
    /// Connects to the first bootstrap address that answers, and learns who is in the cluster.
    ///
    /// # Errors
    /// If none can be reached, or what is there is no Kafka broker that lets us in.
    pub async fn connect(config: ClientConfig) -> Result<Cluster, ClientError> {
        let cluster = Cluster { inner: Arc::new(Inner { config, state: Mutex::default() }) };
        match cluster.metadata_once(Some(&[]), false).await {
            // A listener that wants a login answers ApiVersions and nothing else.
            Err(ClientError::Disconnected { address }) if cluster.config().sasl.is_none() => {
                return Err(ClientError::NotKafka {
                    address,
                    why: "it answered one request and then closed the connection. If its listener is \
                          SASL_PLAINTEXT or SASL_SSL, say so with security.protocol and sasl.jaas.config in \
                          --command-config"
                        .to_owned(),
                });
            }
            Err(error) if error.is_transient() => cluster.metadata(Some(&[]), false).await.map(drop)?,
            asked => asked.map(drop)?,
        }
        Ok(cluster)
    }

    /// How it is reached.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// The brokers.
    pub fn nodes(&self) -> Vec<Node> {
        self.state().nodes.values().cloned().collect()
    }

    /// Describes topics; all of them for `None`. A topic that is not there is an error in its place; with
    /// `create`, a broker that may makes it.
    pub async fn topics(
        &self,
        names: Option<&[String]>,
        create: bool,
    ) -> Result<Vec<Result<Topic, (String, KafkaError)>>, ClientError> {
        let answer = self.metadata(names, create).await?;
        let mut topics: Vec<_> = answer.topics.iter().map(describe).collect();
        topics.sort_by(|a, b| {
            let name = |t: &Result<Topic, (String, KafkaError)>| match t {
                Ok(topic) => topic.name.clone(),
                Err((name, _)) => name.clone(),
            };
            name(a).cmp(&name(b))
        });
        Ok(topics)
    }

    /// Describes one topic, which must be there and have a leader for some partition.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] with `UNKNOWN_TOPIC_OR_PARTITION` if it is not there.
    pub async fn topic(&self, name: &str, create: bool) -> Result<Topic, ClientError> {
        let names = [name.to_owned()];
        let born = Instant::now() + Duration::from_secs(10);
        self.retry(async || {
            let mut wait = BIRTH.0;
            loop {
                let found = self.topics(Some(&names), create).await?.pop();
                match found.ok_or_else(|| ClientError::Malformed("Metadata without the topic".into()))? {
                    Ok(topic) => return Ok(topic),
                    // One that is being created now is unknown for a moment more.
                    Err((_, error))
                        if create
                            && error.code == ResponseError::UnknownTopicOrPartition
                            && Instant::now() < born => {}
                    Err((name, error)) => {
                        return Err(ClientError::Kafka { what: format!("topic {name}"), error });
                    }
                }
                sleep(wait).await;
                wait = (wait * 2).min(BIRTH.1);
            }
        })
        .await
    }

    async fn metadata(
        &self,
        names: Option<&[String]>,
        create: bool,
    ) -> Result<MetadataResponse, ClientError> {
        self.retry(async || self.metadata_once(names, create).await).await
    }

    async fn metadata_once(
        &self,
        names: Option<&[String]>,
        create: bool,
    ) -> Result<MetadataResponse, ClientError> {
        let topics = names.map(|names| {
            let topic = |name: &String| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
            names.iter().map(topic).collect()
        });
        let request = MetadataRequest::default().with_topics(topics).with_allow_auto_topic_creation(create);
        let answer = self.any().await?.call(&request).await?;
        let mut state = self.state();
        let node = |b: &kafka_protocol::messages::metadata_response::MetadataResponseBroker| {
            let host = if b.host.contains(':') { format!("[{}]", &*b.host) } else { b.host.to_string() };
            (b.node_id.0, Node { id: b.node_id.0, address: format!("{host}:{}", b.port) })
        };
        state.nodes = answer.brokers.iter().map(node).collect();
        state.controller = (answer.controller_id.0 >= 0).then_some(answer.controller_id.0);
        Ok(answer)
    }

    /// Calls any broker that answers.
    pub(crate) async fn call_any<R: Api>(&self, request: &R) -> Result<R::Response, ClientError> {
        self.retry(async || self.any().await?.call(request).await).await
    }

    /// Calls one broker. Whoever asks for something that moves looks again before trying again.
    pub(crate) async fn call_node<R: Api>(&self, node: i32, request: &R) -> Result<R::Response, ClientError> {
        self.connection(node).await?.call(request).await
    }

    /// Calls the controller; `judge` sees the answer, and its transient errors lead to another try.
    pub(crate) async fn call_controller<R: Api, T>(
        &self,
        request: &R,
        judge: impl Fn(R::Response) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.retry(async || {
            let controller = self.state().controller;
            let connection = match controller {
                Some(node) => self.connection(node).await?,
                None => self.any().await?,
            };
            let judged = judge(connection.call(request).await?);
            if judged.as_ref().is_err_and(ClientError::is_transient) {
                self.metadata(Some(&[]), false).await?;
            }
            judged
        })
        .await
    }

    /// Calls the coordinator of a group; `judge` sees the answer, and its transient errors lead to another try,
    /// at another broker if the group has moved.
    pub(crate) async fn call_coordinator<R: Api, T>(
        &self,
        group: &str,
        request: &R,
        judge: impl Fn(R::Response) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.retry(async || {
            let node = self.coordinator(group).await?;
            let judged = async { judge(self.group_connection(node).await?.call(request).await?) }.await;
            if judged.as_ref().is_err_and(ClientError::is_transient) {
                self.forget_coordinator(group);
            }
            judged
        })
        .await
    }

    /// The broker that coordinates a group.
    pub(crate) async fn coordinator(&self, group: &str) -> Result<i32, ClientError> {
        if let Some(node) = self.state().coordinators.get(group) {
            return Ok(*node);
        }
        let request = FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_owned()));
        let answer = self.any().await?.call(&request).await?;
        ClientError::check(
            format!("coordinator of group {group}"),
            answer.error_code,
            answer.error_message.as_deref(),
        )?;
        let node = answer.node_id.0;
        let mut state = self.state();
        state
            .nodes
            .entry(node)
            .or_insert_with(|| Node { id: node, address: format!("{}:{}", &*answer.host, answer.port) });
        state.coordinators.insert(group.to_owned(), node);
        Ok(node)
    }

    pub(crate) fn forget_coordinator(&self, group: &str) {
        self.state().coordinators.remove(group);
    }

    /// An open connection to some broker, the one that answered first if it still does.
    pub(crate) async fn any(&self) -> Result<Arc<Connection>, ClientError> {
        let (home, known) = {
            let state = self.state();
            let open = state.home.clone().and_then(|home| state.connections.get(&(home, Lane::Prompt)));
            if let Some(open) = open.filter(|c| c.is_open()) {
                return Ok(open.clone());
            }
            (state.home.clone(), state.nodes.values().map(|n| n.address.clone()).collect::<Vec<_>>())
        };
        let mut refused: Option<ClientError> = None;
        for address in home.iter().chain(&self.inner.config.bootstrap).chain(&known) {
            match self.open(address, Lane::Prompt).await {
                Ok(connection) => {
                    self.state().home = Some(address.clone());
                    return Ok(connection);
                }
                Err(OpenError::Other(error)) => return Err(error),
                Err(OpenError::Unreachable(why)) => {
                    let address = address.clone();
                    refused.get_or_insert(ClientError::Unreachable { address, why });
                }
            }
        }
        Err(match refused {
            // It was there a moment ago: others may take over, or it comes back.
            Some(ClientError::Unreachable { address, .. }) if home.is_some() => {
                ClientError::Disconnected { address }
            }
            Some(error) => error,
            None => ClientError::Config("--bootstrap-server is missing".into()),
        })
    }

    /// An open connection to one broker, for what is answered at once.
    pub(crate) async fn connection(&self, node: i32) -> Result<Arc<Connection>, ClientError> {
        self.connect_to(node, Lane::Prompt).await
    }

    /// An open connection to a coordinator.
    pub(crate) async fn group_connection(&self, node: i32) -> Result<Arc<Connection>, ClientError> {
        self.connect_to(node, Lane::Groups).await
    }

    pub(crate) async fn connect_to(&self, node: i32, lane: Lane) -> Result<Arc<Connection>, ClientError> {
        let address = self.state().nodes.get(&node).map(|n| n.address.clone());
        let Some(address) = address else {
            // It has left the cluster since, or is not back yet.
            self.metadata_once(Some(&[]), false).await?;
            let error = KafkaError { code: ResponseError::BrokerNotAvailable, message: None };
            return Err(ClientError::Kafka { what: format!("broker {node}"), error });
        };
        self.open(&address, lane).await.map_err(|error| match error {
            // It was there a moment ago: it is being restarted, or its partitions move.
            OpenError::Unreachable(_) if self.was_reached(&address) => ClientError::Disconnected { address },
            OpenError::Unreachable(why) => ClientError::Advertised { node, address, why },
            OpenError::Other(error) => error,
        })
    }

    /// A connection to a broker that is open already.
    pub(crate) fn open_connection(&self, node: i32, lane: Lane) -> Option<Arc<Connection>> {
        let state = self.state();
        let address = state.nodes.get(&node)?.address.clone();
        state.connections.get(&(address, lane)).filter(|c| c.is_open()).cloned()
    }

    fn was_reached(&self, address: &str) -> bool {
        self.state().connections.keys().any(|(reached, _)| reached == address)
    }

    async fn open(&self, address: &str, lane: Lane) -> Result<Arc<Connection>, OpenError> {
        let key = (address.to_owned(), lane);
        let open = self.state().connections.get(&key).filter(|c| c.is_open()).cloned();
        if let Some(connection) = open {
            return Ok(connection);
        }
        let connection = Connection::open(&self.inner.config, address).await?;
        self.state().connections.insert(key, connection.clone());
        Ok(connection)
    }

    /// Tries again after transient errors, waiting longer each time, for `default.api.timeout.ms` at most; an
    /// advertised address that cannot be reached is given [`RESTART_PATIENCE`] only.
    pub(crate) async fn retry<T>(
        &self,
        call: impl AsyncFn() -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let begun = Instant::now();
        let mut backoff = BACKOFF.0;
        loop {
            let error = match call().await {
                Err(error) if error.is_transient() => error,
                done => return done,
            };
            let patience = match &error {
                ClientError::Advertised { .. } => RESTART_PATIENCE.min(self.inner.config.api_timeout),
                _ => self.inner.config.api_timeout,
            };
            if begun.elapsed() + backoff > patience {
                return Err(error);
            }
            tracing::debug!("{error}; trying again");
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(topic: &MetadataResponseTopic) -> Result<Topic, (String, KafkaError)> {
    let name = topic.name.as_ref().map(|n| n.0.to_string()).unwrap_or_default();
    KafkaError::check(topic.error_code, None).map_err(|error| (name.clone(), error))?;
    let ids = |nodes: &[BrokerId]| nodes.iter().map(|n| n.0).collect();
    let mut partitions: Vec<Partition> = topic
        .partitions
        .iter()
        .map(|p| Partition {
            index: p.partition_index,
            leader: (p.leader_id.0 >= 0).then_some(p.leader_id.0),
            replicas: ids(&p.replica_nodes),
            isr: ids(&p.isr_nodes),
        })
        .collect();
    partitions.sort_by_key(|p| p.index);
    let id = (!topic.topic_id.is_nil()).then_some(topic.topic_id);
    Ok(Topic { name, id, internal: topic.is_internal, partitions })
}

/// A topic's name as the codec wants it.
pub(crate) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// Text as the codec wants it.
pub(crate) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
