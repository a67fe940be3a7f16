//! The broker's own settings: parsed low (names and texts), then validated once into what is used.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, ToSocketAddrs},
};

use super::{
    names::{Dynamic, has_meaning, kind_of, setting, suggest, unfold_hours},
    security::{self, Authorizer, Security},
    topic::{TOPIC_SETTINGS, TopicSetting},
    value::check,
};
use crate::{group::consumer::assign::Assignor, security::Protocol};

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
        let address = self.host.trim_matches(['[', ']']).parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.name, self.host, self.port)
    }
}

/// By whom a value is; the first that says something counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// For this broker, while it ran.
    OfBroker,
    /// For all brokers, while they ran.
    OfCluster,
    /// In the file or on the command line, when it started.
    AtStart,
}

impl Said {
    pub(crate) const ALL: [Said; 3] = [Said::OfBroker, Said::OfCluster, Said::AtStart];
}

/// The broker's settings, validated.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// What was set, by name, in the order of [`Said`].
    said: [BTreeMap<String, String>; 3],
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
    pub(crate) max_connections_of_address: usize,
    /// The same for single addresses.
    pub(crate) max_connections_of: HashMap<IpAddr, usize>,
    /// A second.
    pub(crate) max_new_connections: u32,
    pub(crate) failed_authentication_ms: u64,
    /// 0 for never.
    pub(crate) reauthentication_ms: u64,
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
    /// Between what groups may set their own.
    pub(crate) session_bounds: (i64, i64),
    pub(crate) heartbeat_bounds: (i64, i64),
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
        let bounds = |what: &str| {
            let of = |bound: &str| int(&format!("group.consumer.{bound}.{what}"));
            (of("min"), of("max"))
        };
        let within = |what: &str| {
            let name = format!("group.consumer.{what}");
            let (value, (min, max)) = (int(&name), bounds(what));
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
            session_bounds: bounds("session.timeout.ms"),
            heartbeat_bounds: bounds("heartbeat.interval.ms"),
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
            let (name, value) = (name.as_ref().trim(), value.as_ref().trim());
            let kind = kind_of(name).ok_or_else(|| unknown(name))?;
            if has_meaning(name) {
                check(name, kind, value).map_err(ConfigError::Value)?;
                set.insert(name.to_owned(), value.to_owned());
            } else {
                warnings.push(format!("{name} has no meaning here and is ignored"));
            }
        }
        unfold_hours(&mut set);
        let config = BrokerConfig::validate([BTreeMap::new(), BTreeMap::new(), set])?;
        Ok(BrokerConfig { warnings, ..config })
    }

    /// The same with other changes: those for this broker, and those for all. Files that are named are read anew.
    pub(crate) fn changed(
        &self,
        of_broker: &BTreeMap<String, String>,
        of_cluster: &BTreeMap<String, String>,
    ) -> Result<BrokerConfig, ConfigError> {
        for (changes, for_all) in [(of_broker, false), (of_cluster, true)] {
            changes.iter().try_for_each(|(name, value)| check_change(name, value, for_all))?;
        }
        let [_, _, at_start] = &self.said;
        BrokerConfig::validate([of_broker.clone(), of_cluster.clone(), at_start.clone()])
    }

    fn validate(said: [BTreeMap<String, String>; 3]) -> Result<BrokerConfig, ConfigError> {
        let set: BTreeMap<String, String> =
            said.iter().rev().flatten().map(|(n, v)| (n.clone(), v.clone())).collect();
        let text = |name: &str| {
            let default = setting(name).map_or("", |s| s.default);
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
            max_connections_of_address: int("max.connections.per.ip") as usize,
            max_connections_of: overrides(text("max.connections.per.ip.overrides"))?,
            max_new_connections: int("max.connection.creation.rate") as u32,
            failed_authentication_ms: int("connection.failed.authentication.delay.ms") as u64,
            reauthentication_ms: int("connections.max.reauth.ms") as u64,
            quota_window_s: ((int("quota.window.num") - 1).max(1) * int("quota.window.size.seconds")) as u64,
            consumer: ConsumerGroupConfig::validate(text)?,
            listeners,
            advertised,
            security,
            authorizer,
            said,
            warnings: Vec::new(),
        })
    }

    /// What the settings say about topics that do not say otherwise, under the topics' names for it: for
    /// [`dibs_log::StoreConfig::defaults`].
    pub fn topic_defaults(&self) -> BTreeMap<String, String> {
        let said = |s: &TopicSetting| Some((s.name.to_owned(), self.get(s.broker?)?.to_owned()));
        TOPIC_SETTINGS.iter().filter_map(said).collect()
    }

    /// What was set for a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.said.iter().find_map(|said| said.get(name)).map(String::as_str)
    }

    /// All that was set for a name; the first counts.
    pub(crate) fn said<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (Said, &'a str)> {
        let layers = Said::ALL.into_iter().zip(&self.said);
        layers.filter_map(move |(who, said)| Some((who, said.get(name)?.as_str())))
    }

    /// Every name for which something was set by somebody.
    pub(crate) fn names(&self, who: Said) -> impl Iterator<Item = &str> {
        self.said[who as usize].keys().map(String::as_str)
    }
}

fn unknown(name: &str) -> ConfigError {
    ConfigError::Unknown { name: name.to_owned(), suggestion: suggest(name) }
}

/// Whether a setting can be changed to this while the broker runs.
fn check_change(name: &str, value: &str, for_all: bool) -> Result<(), ConfigError> {
    let kind = kind_of(name).ok_or_else(|| unknown(name))?;
    let refused = match Dynamic::of(name) {
        None => format!("Cannot update these configs dynamically: Set({name})"),
        Some(Dynamic::OfBroker) if for_all => format!(
            "Cannot update these configs at default cluster level, broker id must be specified: Set({name})"
        ),
        Some(_) => return check(name, kind, value).map_err(ConfigError::Value),
    };
    Err(ConfigError::Value(refused))
}

/// Reads `max.connections.per.ip.overrides`.
fn overrides(text: &str) -> Result<HashMap<IpAddr, usize>, ConfigError> {
    let mut found = HashMap::new();
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let wrong =
            |what: &str| ConfigError::Value(format!("max.connections.per.ip.overrides: {entry:?} {what}"));
        let pair = entry.rsplit_once(':').and_then(|(host, n)| Some((host, n.parse::<usize>().ok()?)));
        let (host, most) = pair.ok_or_else(|| wrong("is not ADDRESS:NUMBER"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = (host, 0).to_socket_addrs().map_err(|e| wrong(&format!("is not known: {e}")))?;
        found.extend(addresses.map(|a| (a.ip(), most)));
    }
    Ok(found)
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
