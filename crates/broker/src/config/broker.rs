//! The broker's own settings: parsed low (names and texts), then validated once into what is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    security::{self, Authorizer, Security},
    topic::TOPIC_SETTINGS,
    value::{Type, check},
};
use crate::{group::consumer::assign::Assignor, security::Protocol};

/// One setting of the broker.
#[derive(Debug)]
pub(crate) struct BrokerSetting {
    pub(crate) name: &'static str,
    pub(crate) kind: Type,
    pub(crate) default: &'static str,
    pub(crate) doc: &'static str,
}

const MAX: i64 = i64::MAX;
const INT: i64 = i32::MAX as i64;

macro_rules! settings {
    ($($name:literal, $kind:expr, $default:literal, $doc:literal;)*) => {
        /// Settings that mean something here, and are no topic's default.
        pub(crate) const BROKER_SETTINGS: &[BrokerSetting] =
            &[$(BrokerSetting { name: $name, kind: $kind, default: $default, doc: $doc },)*];
    };
}

settings! {
    "add.partitions.to.txn.retry.backoff.max.ms", Type::Int(0, INT), "100",
        "How long a new transaction waits at most for the end of the one before, in ms.";
    "allow.everyone.if.no.acl.found", Type::Bool, "false",
        "With an authorizer: whether what no access control is about is everybody's.";
    "advertised.listeners", Type::List, "", "The addresses told to clients, where they differ from listeners.";
    "authorizer.class.name", Type::Text, "",
        "Whether access control lists count: org.apache.kafka.metadata.authorizer.StandardAuthorizer, or nothing.";
    "auto.create.topics.enable", Type::Bool, "true", "Whether asking for a topic makes it.";
    "broker.id", Type::Int(0, INT), "1", "The broker's number.";
    "node.id", Type::Int(0, INT), "1", "The broker's number.";
    "connections.max.idle.ms", Type::Long(1, MAX), "600000", "A connection that is silent so long is closed.";
    "delete.topic.enable", Type::Bool, "true", "Whether topics can be deleted.";
    "fetch.max.bytes", Type::Int(1024, INT), "57671680", "The most bytes that answer a fetch.";
    "group.consumer.assignors", Type::List, "uniform,range",
        "The assignors of the consumer protocol; the first is taken where members do not say.";
    "group.consumer.heartbeat.interval.ms", Type::Int(1, INT), "5000",
        "How often members of the consumer protocol are to be heard of.";
    "group.consumer.max.heartbeat.interval.ms", Type::Int(1, INT), "15000", "The most that this interval can be.";
    "group.consumer.max.session.timeout.ms", Type::Int(1, INT), "60000", "The most that this time-out can be.";
    "group.consumer.max.size", Type::Int(1, INT), "2147483647", "The most members of a consumer group.";
    "group.consumer.migration.policy", Type::OneOf(&["disabled", "upgrade", "downgrade", "bidirectional"]),
        "bidirectional", "Which groups change their protocol while members are at work.";
    "group.consumer.min.heartbeat.interval.ms", Type::Int(1, INT), "5000", "The least that this interval can be.";
    "group.consumer.min.session.timeout.ms", Type::Int(1, INT), "45000", "The least that this time-out can be.";
    "group.consumer.regex.refresh.interval.ms", Type::Int(1, INT), "600000",
        "How often topics are looked for anew, even if none seems to have come or gone.";
    "group.consumer.session.timeout.ms", Type::Int(1, INT), "45000",
        "A member of the consumer protocol that is silent so long is taken for gone.";
    "group.initial.rebalance.delay.ms", Type::Int(0, INT), "0",
        "How long a new group waits for more members before its first rebalance, in ms.";
    "group.max.session.timeout.ms", Type::Int(1, INT), "1800000", "The longest session time-out of a member.";
    "group.max.size", Type::Int(1, INT), "2147483647", "The most members of a classic group.";
    "group.min.session.timeout.ms", Type::Int(1, INT), "6000", "The shortest session time-out of a member.";
    "listener.security.protocol.map", Type::Text,
        "PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
        "Which security protocol each named listener speaks.";
    "listeners", Type::List, "PLAINTEXT://127.0.0.1:9092", "Where connections are accepted.";
    "log.retention.check.interval.ms", Type::Long(1, MAX), "300000",
        "How often old segments are deleted and compacted, in ms.";
    "producer.id.expiration.ms", Type::Int(1, INT), "86400000",
        "A producer that is silent so long is forgotten by a partition, in ms.";
    "max.connections", Type::Int(0, INT), "2147483647", "The most connections at a time.";
    "max.incremental.fetch.session.cache.slots", Type::Int(0, INT), "1000",
        "The most incremental fetch sessions that are kept.";
    "max.request.partition.size.limit", Type::Int(1, INT), "2000", "The most partitions that answer one request.";
    "num.partitions", Type::Int(1, INT), "1", "Partitions of topics made automatically or without a number.";
    "offset.metadata.max.bytes", Type::Int(0, INT), "4096", "The longest metadata of a committed offset.";
    "offsets.retention.check.interval.ms", Type::Long(1, MAX), "600000",
        "How often expired offsets are looked for, in ms.";
    "offsets.retention.minutes", Type::Int(1, INT), "10080", "How long an idle group's offsets are kept.";
    "offsets.topic.num.partitions", Type::Int(1, 10_000), "50", "Partitions of __consumer_offsets.";
    "offsets.topic.segment.bytes", Type::Int(1, INT), "104857600", "Segment size of __consumer_offsets.";
    "plain.sasl.jaas.config", Type::Password, "",
        "The users of PLAIN: PlainLoginModule required user_NAME=\"PASSWORD\" …;";
    "quota.window.num", Type::Int(1, INT), "11",
        "What may be taken at once of a quota: one window less than this number of them.";
    "quota.window.size.seconds", Type::Int(1, INT), "1", "How long a window of a quota is.";
    "sasl.enabled.mechanisms", Type::SomeOf(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]), "",
        "The SASL mechanisms that clients may use.";
    "ssl.client.auth", Type::OneOf(&["none", "requested", "required"]), "none",
        "Whether clients have to show a certificate.";
    "ssl.keystore.certificate.chain", Type::Password, "", "The server's certificates, in PEM.";
    "ssl.keystore.key", Type::Password, "", "The server's private key, in PEM.";
    "ssl.keystore.location", Type::Text, "", "A PEM file with the server's private key and certificates.";
    "ssl.keystore.type", Type::Text, "JKS", "The form of the key store; it must be PEM.";
    "ssl.truststore.certificates", Type::Password, "", "The certificates that clients' are checked with, in PEM.";
    "ssl.truststore.location", Type::Text, "", "A PEM file with the certificates that clients' are checked with.";
    "ssl.truststore.type", Type::Text, "JKS", "The form of the trust store; it must be PEM.";
    "super.users", Type::Text, "", "With an authorizer: who may do everything, as User:NAME;User:NAME.";
    "socket.request.max.bytes", Type::Int(1024, INT), "104857600", "The largest request, in bytes.";
    "transaction.abort.timed.out.transaction.cleanup.interval.ms", Type::Int(1, INT), "10000",
        "How often transactions that have timed out are aborted, in ms.";
    "transaction.max.timeout.ms", Type::Int(1, INT), "900000",
        "The longest time-out of transactions that a producer may ask for, in ms.";
    "transaction.remove.expired.transaction.cleanup.interval.ms", Type::Int(1, INT), "3600000",
        "How often expired transactional ids are looked for, in ms.";
    "transaction.state.log.num.partitions", Type::Int(1, 10_000), "50", "Partitions of __transaction_state.";
    "transaction.state.log.segment.bytes", Type::Int(1, INT), "104857600", "Segment size of __transaction_state.";
    "transactional.id.expiration.ms", Type::Int(1, INT), "604800000",
        "A transactional id that is idle so long is forgotten, in ms.";
}

/// Kafka's settings that have no meaning here: clusters, controllers, thread pools, sockets' buffers.
const WITHOUT_MEANING: &[&str] = &[
    "add.partitions.to.txn.retry.backoff.ms",
    "default.replication.factor",
    "background.threads",
    "broker.heartbeat.interval.ms",
    "broker.rack",
    "broker.session.timeout.ms",
    "controlled.shutdown.enable",
    "controller.listener.names",
    "controller.quorum.bootstrap.servers",
    "controller.quorum.voters",
    "group.coordinator.append.linger.ms",
    "group.coordinator.rebalance.protocols",
    "group.coordinator.threads",
    "inter.broker.listener.name",
    "inter.broker.protocol.version",
    "log.dir",
    "log.dirs",
    "log.cleaner.enable",
    "log.cleaner.threads",
    "log.message.format.version",
    "metadata.log.dir",
    "min.insync.replicas",
    "num.io.threads",
    "num.network.threads",
    "num.recovery.threads.per.data.dir",
    "num.replica.fetchers",
    "offsets.topic.replication.factor",
    "process.roles",
    "queued.max.requests",
    "replica.lag.time.max.ms",
    "share.coordinator.state.topic.min.isr",
    "share.coordinator.state.topic.replication.factor",
    "socket.listen.backlog.size",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "transaction.state.log.min.isr",
    "transaction.state.log.replication.factor",
    "security.inter.broker.protocol",
    "zookeeper.connect",
    "zookeeper.connection.timeout.ms",
];

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Kafka knows no setting of this name.
    #[error("there is no setting {name}{}", suggestion.as_ref().map(|s| format!("; did you mean {s}?")).unwrap_or_default())]
    Unknown {
        /// As it was written.
        name: String,
        /// The nearest name that there is.
        suggestion: Option<String>,
    },
    /// A value that the setting does not take.
    #[error("{0}")]
    Value(String),
}

/// One address that is listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name, such as `PLAINTEXT` or `EXTERNAL`.
    pub name: String,
    /// Host name or address; empty means all addresses.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
}

impl Listener {
    /// Whether only programs of this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        self.host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.name, self.host, self.port)
    }
}

/// The broker's settings, validated.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// What was set, by name.
    set: BTreeMap<String, String>,
    /// Settings that were given and do nothing here, as sentences for the operator.
    pub warnings: Vec<String>,
    /// Where connections are accepted. Never empty.
    pub listeners: Vec<Listener>,
    /// What clients are told, by listener's name; a listener that is missing is told as it is.
    pub advertised: Vec<Listener>,
    pub(crate) security: Security,
    pub(crate) authorizer: Option<Authorizer>,
    pub(crate) node_id: i32,
    pub(crate) auto_create: bool,
    pub(crate) delete_topic: bool,
    pub(crate) num_partitions: u32,
    pub(crate) max_request: usize,
    pub(crate) fetch_max_bytes: usize,
    pub(crate) max_connections: usize,
    pub(crate) idle_ms: u64,
    pub(crate) offsets_partitions: u32,
    pub(crate) offset_metadata_max: usize,
    pub(crate) offsets_retention_ms: i64,
    pub(crate) offsets_check_ms: u64,
    pub(crate) clean_every_ms: u64,
    pub(crate) producer_idle_ms: i64,
    pub(crate) min_session_ms: i32,
    pub(crate) max_session_ms: i32,
    pub(crate) initial_rebalance_ms: i32,
    pub(crate) group_max_size: usize,
    pub(crate) request_partitions: usize,
    pub(crate) add_partitions_wait_ms: u64,
    pub(crate) transactions_partitions: u32,
    pub(crate) transaction_max_ms: i32,
    pub(crate) transaction_check_ms: u64,
    pub(crate) transactional_id_ms: i64,
    pub(crate) transactional_id_check_ms: u64,
    pub(crate) fetch_sessions: usize,
    /// Quotas may be used up for so many seconds at once.
    pub(crate) quota_window_s: u64,
    pub(crate) consumer: ConsumerGroupConfig,
}

/// What is set for groups with the consumer protocol.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerGroupConfig {
    pub(crate) session_ms: u64,
    pub(crate) heartbeat_ms: i32,
    pub(crate) max_size: usize,
    /// Never empty.
    pub(crate) assignors: Vec<Assignor>,
    pub(crate) refresh_ms: u64,
    pub(crate) upgrade: bool,
    pub(crate) downgrade: bool,
}

impl ConsumerGroupConfig {
    fn validate<'a>(text: impl Fn(&str) -> &'a str) -> Result<ConsumerGroupConfig, ConfigError> {
        let int = |name: &str| text(name).parse::<i64>().unwrap_or_default();
        let within = |what: &str| {
            let name = format!("group.consumer.{what}");
            let of = |bound: &str| int(&format!("group.consumer.{bound}.{what}"));
            let (value, min, max) = (int(&name), of("min"), of("max"));
            if (min..=max).contains(&value) {
                return Ok(value);
            }
            Err(ConfigError::Value(format!("{name} is {value} and must be from {min} to {max}")))
        };
        let assignors = text("group.consumer.assignors").split(',').map(str::trim).filter(|a| !a.is_empty());
        let find = |name: &str| {
            let unknown = || format!("group.consumer.assignors: {name:?} is neither uniform nor range");
            Assignor::find(name).ok_or_else(|| ConfigError::Value(unknown()))
        };
        let assignors: Vec<Assignor> = assignors.map(find).collect::<Result<_, _>>()?;
        if assignors.is_empty() {
            return Err(ConfigError::Value("group.consumer.assignors must name at least one".into()));
        }
        let (session, heartbeat) = (within("session.timeout.ms")?, within("heartbeat.interval.ms")?);
        if heartbeat >= session {
            return Err(ConfigError::Value(
                "group.consumer.heartbeat.interval.ms must be less than group.consumer.session.timeout.ms"
                    .into(),
            ));
        }
        let policy = text("group.consumer.migration.policy");
        Ok(ConsumerGroupConfig {
            session_ms: session as u64,
            heartbeat_ms: heartbeat as i32,
            max_size: int("group.consumer.max.size") as usize,
            assignors,
            refresh_ms: int("group.consumer.regex.refresh.interval.ms") as u64,
            upgrade: matches!(policy, "bidirectional" | "upgrade"),
            downgrade: matches!(policy, "bidirectional" | "downgrade"),
        })
    }
}

impl Default for BrokerConfig {
    fn default() -> Self {
        let nothing: [(&str, &str); 0] = [];
        BrokerConfig::new(nothing).unwrap_or_else(|e| unreachable!("the defaults are valid: {e}"))
    }
}

impl BrokerConfig {
    /// Takes settings under Kafka's names; of one that is given twice the last counts.
    pub fn new<K: AsRef<str>, V: AsRef<str>>(
        settings: impl IntoIterator<Item = (K, V)>,
    ) -> Result<BrokerConfig, ConfigError> {
        let (mut set, mut warnings) = (BTreeMap::new(), Vec::new());
        for (name, value) in settings {
            let (name, value) = (canonical(name.as_ref()), value.as_ref().trim());
            if let Some(kind) = kind_of(&name) {
                check(&name, kind, value).map_err(ConfigError::Value)?;
                set.insert(name, value.to_owned());
            } else if has_no_meaning(&name) {
                warnings.push(format!("{name} has no meaning here and is ignored"));
            } else {
                return Err(ConfigError::Unknown { suggestion: suggest(&name), name });
            }
        }
        unfold_hours(&mut set);
        BrokerConfig::validate(set, warnings)
    }

    fn validate(set: BTreeMap<String, String>, warnings: Vec<String>) -> Result<BrokerConfig, ConfigError> {
        let text = |name: &str| {
            let default = BROKER_SETTINGS.iter().find(|s| s.name == name).map_or("", |s| s.default);
            set.get(name).map_or(default, String::as_str)
        };
        let int = |name: &str| text(name).parse::<i64>().unwrap_or_default();
        let bool = |name: &str| text(name).eq_ignore_ascii_case("true");
        let mut listeners = parse_listeners("listeners", text("listeners"))?;
        if listeners.is_empty() {
            return Err(ConfigError::Value("listeners must name at least one address".into()));
        }
        security::set_protocols(&mut listeners, text("listener.security.protocol.map"))
            .map_err(ConfigError::Value)?;
        let security = Security::read(&listeners, &set).map_err(ConfigError::Value)?;
        let authorizer = Authorizer::read(
            text("authorizer.class.name"),
            text("super.users"),
            bool("allow.everyone.if.no.acl.found"),
        );
        let authorizer = authorizer.map_err(ConfigError::Value)?;
        let advertised = parse_listeners("advertised.listeners", text("advertised.listeners"))?;
        for listener in &advertised {
            if !listeners.iter().any(|l| l.name == listener.name) {
                return Err(ConfigError::Value(format!(
                    "advertised.listeners names {}, which listeners does not",
                    listener.name
                )));
            }
        }
        let meta = |l: &&Listener| ["0.0.0.0", "::"].contains(&l.host.as_str());
        if let Some(listener) =
            listeners.iter().filter(meta).find(|l| !advertised.iter().any(|a| a.name == l.name))
        {
            return Err(ConfigError::Value(format!(
                "listener {name} accepts connections on all addresses, and clients cannot be sent to {host}: \
                 set advertised.listeners={name}://HOST:{port} with the host name that clients reach",
                name = listener.name,
                host = listener.host,
                port = listener.port,
            )));
        }
        let node_id = if set.contains_key("node.id") { int("node.id") } else { int("broker.id") } as i32;
        Ok(BrokerConfig {
            node_id,
            auto_create: bool("auto.create.topics.enable"),
            delete_topic: bool("delete.topic.enable"),
            num_partitions: int("num.partitions") as u32,
            max_request: int("socket.request.max.bytes") as usize,
            fetch_max_bytes: int("fetch.max.bytes") as usize,
            max_connections: int("max.connections") as usize,
            idle_ms: int("connections.max.idle.ms") as u64,
            offsets_partitions: int("offsets.topic.num.partitions") as u32,
            offset_metadata_max: int("offset.metadata.max.bytes") as usize,
            offsets_retention_ms: int("offsets.retention.minutes") * 60_000,
            clean_every_ms: int("log.retention.check.interval.ms") as u64,
            producer_idle_ms: int("producer.id.expiration.ms"),
            offsets_check_ms: int("offsets.retention.check.interval.ms") as u64,
            min_session_ms: int("group.min.session.timeout.ms") as i32,
            max_session_ms: int("group.max.session.timeout.ms") as i32,
            initial_rebalance_ms: int("group.initial.rebalance.delay.ms") as i32,
            group_max_size: int("group.max.size") as usize,
            request_partitions: int("max.request.partition.size.limit") as usize,
            add_partitions_wait_ms: int("add.partitions.to.txn.retry.backoff.max.ms") as u64,
            transactions_partitions: int("transaction.state.log.num.partitions") as u32,
            transaction_max_ms: int("transaction.max.timeout.ms") as i32,
            transaction_check_ms: int("transaction.abort.timed.out.transaction.cleanup.interval.ms") as u64,
            transactional_id_ms: int("transactional.id.expiration.ms"),
            transactional_id_check_ms: int("transaction.remove.expired.transaction.cleanup.interval.ms")
                as u64,
            fetch_sessions: int("max.incremental.fetch.session.cache.slots") as usize,
            quota_window_s: ((int("quota.window.num") - 1).max(1) * int("quota.window.size.seconds")) as u64,
            consumer: ConsumerGroupConfig::validate(text)?,
            listeners,
            advertised,
            security,
            authorizer,
            set,
            warnings,
        })
    }

    /// What the settings say about topics that do not say otherwise, under the topics' names for it: for
    /// [`dibs_log::StoreConfig::defaults`].
    pub fn topic_defaults(&self) -> BTreeMap<String, String> {
        let said = |s: &super::TopicSetting| Some((s.name.to_owned(), self.get(s.broker?)?.to_owned()));
        TOPIC_SETTINGS.iter().filter_map(said).collect()
    }

    /// What was set for a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.set.get(name).map(String::as_str)
    }
}

/// Older names for the same setting.
fn canonical(name: &str) -> String {
    name.trim().to_owned()
}

/// `log.retention.hours` and `.minutes` are other units of `log.retention.ms`, and so on.
fn unfold_hours(set: &mut BTreeMap<String, String>) {
    for (from, to, unit) in COARSE {
        if let Some(n) = set.get(*from).and_then(|v| v.parse::<i64>().ok())
            && !set.contains_key(*to)
        {
            set.insert((*to).to_owned(), if n < 0 { n } else { n.saturating_mul(*unit) }.to_string());
        }
    }
}

const COARSE: &[(&str, &str, i64)] = &[
    ("log.retention.minutes", "log.retention.ms", 60_000),
    ("log.retention.hours", "log.retention.ms", 3_600_000),
    ("log.roll.hours", "log.roll.ms", 3_600_000),
    ("log.roll.jitter.hours", "log.roll.jitter.ms", 3_600_000),
];

fn kind_of(name: &str) -> Option<Type> {
    let name = security::without_listener(name);
    let own = BROKER_SETTINGS.iter().find(|s| s.name == name).map(|s| s.kind);
    let topics = || TOPIC_SETTINGS.iter().find(|s| s.broker == Some(name)).map(|s| s.kind);
    let coarse = || COARSE.iter().any(|c| c.0 == name).then_some(Type::Int(-1, INT));
    own.or_else(topics).or_else(coarse)
}

fn has_no_meaning(name: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "sasl.",
        "controller.",
        "replica.",
        "remote.log.",
        "metadata.",
        "metric",
        "share.",
        "ssl.",
        "group.share.",
        "group.streams.",
        "transaction.",
        "transactional.",
    ];
    let name = security::without_listener(name);
    WITHOUT_MEANING.contains(&name) || PREFIXES.iter().any(|p| name.starts_with(p))
}

fn suggest(name: &str) -> Option<String> {
    let own = BROKER_SETTINGS.iter().map(|s| s.name);
    let topics = TOPIC_SETTINGS.iter().filter_map(|s| s.broker);
    // A topic's name for a setting is the commonest slip.
    if let Some(setting) = TOPIC_SETTINGS.iter().find(|s| s.name == name) {
        return setting.broker.map(str::to_owned);
    }
    let names: BTreeSet<&str> = own.chain(topics).chain(COARSE.iter().map(|c| c.0)).collect();
    let (distance, best) = names.into_iter().map(|n| (distance(name, n), n)).min()?;
    (distance <= 2 + name.len() / 6).then(|| best.to_owned())
}

/// How many letters have to be changed, put in or taken out.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn parse_listeners(name: &str, text: &str) -> Result<Vec<Listener>, ConfigError> {
    let mut listeners: Vec<Listener> = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let wrong = |what: &str| ConfigError::Value(format!("{name}: {entry:?} {what}"));
        let (listener, address) = entry.split_once("://").ok_or_else(|| wrong("is not NAME://HOST:PORT"))?;
        let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port = port.parse().map_err(|_| wrong("has no valid port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if name == "advertised.listeners" && ["", "0.0.0.0", "::"].contains(&host) {
            return Err(wrong(
                "is no address that a client can reach; set advertised.listeners to the host name that clients use",
            ));
        }
        if listeners.iter().any(|l| l.name == listener) {
            return Err(wrong("names a listener twice"));
        }
        let protocol = Protocol::default();
        listeners.push(Listener { name: listener.to_owned(), host: host.to_owned(), port, protocol });
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_setting_is_an_error_with_a_suggestion() {
        let of = |name| BrokerConfig::new([(name, "1")]).unwrap_err().to_string();
        assert_eq!(of("num.partition"), "there is no setting num.partition; did you mean num.partitions?");
        assert_eq!(of("retention.ms"), "there is no setting retention.ms; did you mean log.retention.ms?");
        assert_eq!(of("colour"), "there is no setting colour");
    }

    #[test]
    fn what_means_nothing_here_is_a_warning() {
        let config = BrokerConfig::new([("num.io.threads", "8"), ("process.roles", "broker")]).unwrap();
        assert_eq!(config.warnings.len(), 2);
    }

    #[test]
    fn times_of_consumer_groups_keep_to_their_bounds() {
        let of = |settings: &[(&str, &str)]| BrokerConfig::new(settings.iter().copied()).map(|c| c.consumer);
        let error = of(&[("group.consumer.session.timeout.ms", "6000")]).unwrap_err().to_string();
        assert_eq!(error, "group.consumer.session.timeout.ms is 6000 and must be from 45000 to 60000");
        let config = of(&[
            ("group.consumer.session.timeout.ms", "6000"),
            ("group.consumer.min.session.timeout.ms", "6000"),
            (
                "group.consumer.assignors",
                "range, org.apache.kafka.coordinator.group.assignor.UniformAssignor",
            ),
            ("group.consumer.migration.policy", "upgrade"),
        ]);
        let config = config.unwrap();
        assert_eq!(config.session_ms, 6000);
        assert_eq!(config.assignors, [Assignor::Range, Assignor::Uniform]);
        assert!(config.upgrade && !config.downgrade);
        assert!(of(&[("group.consumer.assignors", "sticky")]).is_err());
    }

    #[test]
    fn hours_are_milliseconds_unless_those_are_given() {
        let config = BrokerConfig::new([("log.retention.hours", "2")]).unwrap();
        assert_eq!(config.get("log.retention.ms"), Some("7200000"));
        let config = BrokerConfig::new([("log.retention.hours", "2"), ("log.retention.ms", "5")]).unwrap();
        assert_eq!(config.get("log.retention.ms"), Some("5"));
    }

    #[test]
    fn an_advertised_address_must_be_one_that_can_be_reached() {
        let of = |v| BrokerConfig::new([("advertised.listeners", v)]).map(|c| c.advertised);
        assert!(of("PLAINTEXT://0.0.0.0:9092").unwrap_err().to_string().contains("host name"));
        assert_eq!(of("PLAINTEXT://broker.example:1").unwrap()[0].host, "broker.example");
        assert!(of("OTHER://broker.example:1").is_err());
    }
}
