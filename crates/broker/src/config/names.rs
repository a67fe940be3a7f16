//! The names of Kafka's broker settings: what each takes, which do nothing here, and which can be changed at run time.

use std::collections::{BTreeMap, BTreeSet};

use super::{security, topic::TOPIC_SETTINGS, value::Type};

/// One setting of the broker.
#[derive(Clone, Copy, Debug)]
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
    "connection.failed.authentication.delay.ms", Type::Int(0, INT), "100",
        "How long who could not be authenticated waits for the connection's end, in ms.";
    "connections.max.idle.ms", Type::Long(1, MAX), "600000", "A connection that is silent so long is closed.";
    "connections.max.reauth.ms", Type::Long(0, MAX), "0",
        "For how long who has authenticated by SASL is believed without doing it again, in ms; 0 for ever.";
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
    "max.connection.creation.rate", Type::Int(0, INT), "2147483647", "The most connections accepted a second.";
    "max.connections", Type::Int(0, INT), "2147483647", "The most connections at a time.";
    "max.connections.per.ip", Type::Int(0, INT), "2147483647", "The most connections at a time from an address.";
    "max.connections.per.ip.overrides", Type::Text, "",
        "The same for single addresses or host names, as ADDRESS:NUMBER,ADDRESS:NUMBER.";
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

/// Kafka's settings that have no meaning here: clusters, controllers, thread pools, sockets' buffers, plug-ins in Java,
/// ZooKeeper.
const WITHOUT_MEANING: &str = "\
    add.partitions.to.txn.retry.backoff.ms advertised.host.name advertised.port \
    alter.config.policy.class.name alter.log.dirs.replication.quota.window.num \
    alter.log.dirs.replication.quota.window.size.seconds auto.leader.rebalance.enable background.threads \
    broker.heartbeat.interval.ms broker.id.generation.enable broker.rack broker.session.timeout.ms \
    client.quota.callback.class control.plane.listener.name \
    controlled.shutdown.enable controller.listener.names controller.quorum.append.linger.ms \
    controller.quorum.bootstrap.servers controller.quorum.election.backoff.max.ms \
    controller.quorum.election.timeout.ms controller.quorum.fetch.timeout.ms \
    controller.quorum.request.timeout.ms controller.quorum.retry.backoff.ms controller.quorum.voters \
    controller.quota.window.num controller.quota.window.size.seconds controller.socket.timeout.ms \
    create.topic.policy.class.name default.replication.factor delegation.token.expiry.check.interval.ms \
    delegation.token.expiry.time.ms delegation.token.master.key delegation.token.max.lifetime.ms \
    delegation.token.secret.key delete.records.purgatory.purge.interval.requests early.start.listeners \
    fetch.purgatory.purge.interval.requests group.coordinator.append.linger.ms \
    group.coordinator.rebalance.protocols group.coordinator.threads group.share.assignors \
    group.share.delivery.count.limit group.share.heartbeat.interval.ms group.share.max.heartbeat.interval.ms \
    group.share.max.record.lock.duration.ms group.share.max.session.timeout.ms \
    group.share.max.share.sessions group.share.max.size group.share.min.heartbeat.interval.ms \
    group.share.min.record.lock.duration.ms group.share.min.session.timeout.ms \
    group.share.partition.max.record.locks group.share.record.lock.duration.ms \
    group.share.session.timeout.ms group.streams.heartbeat.interval.ms \
    group.streams.max.heartbeat.interval.ms group.streams.max.session.timeout.ms group.streams.max.size \
    group.streams.max.standby.replicas group.streams.min.heartbeat.interval.ms \
    group.streams.min.session.timeout.ms group.streams.num.standby.replicas group.streams.session.timeout.ms \
    host.name initial.broker.registration.timeout.ms inter.broker.listener.name \
    inter.broker.protocol.version kafka.metrics.polling.interval.secs kafka.metrics.reporters \
    leader.imbalance.check.interval.seconds log.cleaner.backoff.ms log.cleaner.dedupe.buffer.size \
    log.cleaner.enable log.cleaner.io.buffer.load.factor log.cleaner.io.buffer.size \
    log.cleaner.io.max.bytes.per.second log.cleaner.threads log.dir log.dir.failure.timeout.ms log.dirs \
    log.flush.offset.checkpoint.interval.ms log.flush.scheduler.interval.ms \
    log.flush.start.offset.checkpoint.interval.ms log.message.downconversion.enable \
    log.message.format.version log.message.timestamp.difference.max.ms metadata.log.dir \
    metadata.log.max.record.bytes.between.snapshots metadata.log.max.snapshot.interval.ms \
    metadata.log.segment.bytes metadata.log.segment.ms metadata.max.idle.interval.ms \
    metadata.max.retention.bytes metadata.max.retention.ms metric.reporters metrics.num.samples \
    metrics.recording.level metrics.sample.window.ms num.io.threads num.network.threads \
    num.recovery.threads.per.data.dir num.replica.alter.log.dirs.threads num.replica.fetchers \
    offsets.commit.required.acks offsets.commit.timeout.ms offsets.load.buffer.size \
    offsets.topic.compression.codec offsets.topic.replication.factor password.encoder.secret port \
    principal.builder.class process.roles producer.purgatory.purge.interval.requests \
    queued.max.request.bytes queued.max.requests remote.fetch.max.wait.ms \
    remote.list.offsets.request.timeout.ms remote.log.index.file.cache.total.size.bytes \
    remote.log.manager.copier.thread.pool.size remote.log.manager.copy.max.bytes.per.second \
    remote.log.manager.copy.quota.window.num remote.log.manager.copy.quota.window.size.seconds \
    remote.log.manager.expiration.thread.pool.size remote.log.manager.fetch.max.bytes.per.second \
    remote.log.manager.fetch.quota.window.num remote.log.manager.fetch.quota.window.size.seconds \
    remote.log.manager.task.interval.ms remote.log.manager.thread.pool.size \
    remote.log.metadata.custom.metadata.max.bytes remote.log.metadata.manager.class.name \
    remote.log.metadata.manager.class.path remote.log.metadata.manager.impl.prefix \
    remote.log.metadata.manager.listener.name remote.log.reader.max.pending.tasks remote.log.reader.threads \
    remote.log.storage.manager.class.name remote.log.storage.manager.class.path \
    remote.log.storage.manager.impl.prefix remote.log.storage.system.enable replica.fetch.backoff.ms \
    replica.fetch.max.bytes replica.fetch.min.bytes replica.fetch.response.max.bytes \
    replica.fetch.wait.max.ms replica.high.watermark.checkpoint.interval.ms replica.lag.time.max.ms \
    replica.selector.class replica.socket.receive.buffer.bytes replica.socket.timeout.ms \
    replication.quota.window.num replication.quota.window.size.seconds request.timeout.ms \
    reserved.broker.max.id sasl.client.callback.handler.class sasl.jaas.config sasl.kerberos.kinit.cmd \
    sasl.kerberos.min.time.before.relogin sasl.kerberos.principal.to.local.rules sasl.kerberos.service.name \
    sasl.kerberos.ticket.renew.jitter sasl.kerberos.ticket.renew.window.factor \
    sasl.login.callback.handler.class sasl.login.class sasl.login.connect.timeout.ms \
    sasl.login.read.timeout.ms sasl.login.refresh.buffer.seconds sasl.login.refresh.min.period.seconds \
    sasl.login.refresh.window.factor sasl.login.refresh.window.jitter sasl.login.retry.backoff.max.ms \
    sasl.login.retry.backoff.ms sasl.mechanism.controller.protocol sasl.mechanism.inter.broker.protocol \
    sasl.oauthbearer.assertion.algorithm sasl.oauthbearer.assertion.claim.aud \
    sasl.oauthbearer.assertion.claim.exp.seconds sasl.oauthbearer.assertion.claim.iss \
    sasl.oauthbearer.assertion.claim.jti.include sasl.oauthbearer.assertion.claim.nbf.seconds \
    sasl.oauthbearer.assertion.claim.sub sasl.oauthbearer.assertion.file \
    sasl.oauthbearer.assertion.private.key.file sasl.oauthbearer.assertion.private.key.passphrase \
    sasl.oauthbearer.assertion.template.file sasl.oauthbearer.client.credentials.client.id \
    sasl.oauthbearer.client.credentials.client.secret sasl.oauthbearer.clock.skew.seconds \
    sasl.oauthbearer.expected.audience sasl.oauthbearer.expected.issuer \
    sasl.oauthbearer.jwks.endpoint.refresh.ms sasl.oauthbearer.jwks.endpoint.retry.backoff.max.ms \
    sasl.oauthbearer.jwks.endpoint.retry.backoff.ms sasl.oauthbearer.jwks.endpoint.url \
    sasl.oauthbearer.jwt.retriever.class sasl.oauthbearer.jwt.validator.class sasl.oauthbearer.scope \
    sasl.oauthbearer.scope.claim.name sasl.oauthbearer.sub.claim.name sasl.oauthbearer.token.endpoint.url \
    sasl.server.callback.handler.class sasl.server.max.receive.size security.inter.broker.protocol \
    security.providers share.coordinator.append.linger.ms share.coordinator.load.buffer.size \
    share.coordinator.snapshot.update.records.per.snapshot share.coordinator.state.topic.compression.codec \
    share.coordinator.state.topic.min.isr share.coordinator.state.topic.num.partitions \
    share.coordinator.state.topic.replication.factor share.coordinator.state.topic.segment.bytes \
    share.coordinator.threads share.coordinator.write.timeout.ms \
    share.fetch.purgatory.purge.interval.requests socket.connection.setup.timeout.max.ms \
    socket.connection.setup.timeout.ms socket.listen.backlog.size socket.receive.buffer.bytes \
    socket.send.buffer.bytes ssl.allow.dn.changes ssl.allow.san.changes ssl.cipher.suites \
    ssl.enabled.protocols ssl.endpoint.identification.algorithm ssl.engine.factory.class ssl.key.password \
    ssl.keymanager.algorithm ssl.keystore.password ssl.principal.mapping.rules ssl.protocol ssl.provider \
    ssl.secure.random.implementation ssl.trustmanager.algorithm ssl.truststore.password telemetry.max.bytes \
    transaction.partition.verification.enable transaction.state.log.load.buffer.size \
    transaction.state.log.min.isr transaction.state.log.replication.factor \
    transaction.two.phase.commit.enable zookeeper.connect zookeeper.connection.timeout.ms \
    zookeeper.session.timeout.ms zookeeper.set.acl";

/// Which of those Kafka lets be changed while it runs, beside those that are for security.
const UNUSED_DYNAMIC: &str = "\
    background.threads log.cleaner.backoff.ms log.cleaner.dedupe.buffer.size log.cleaner.io.buffer.load.factor \
    log.cleaner.io.buffer.size log.cleaner.io.max.bytes.per.second log.cleaner.threads metric.reporters \
    num.io.threads num.network.threads num.recovery.threads.per.data.dir num.replica.fetchers \
    remote.fetch.max.wait.ms remote.list.offsets.request.timeout.ms \
    remote.log.index.file.cache.total.size.bytes remote.log.manager.copier.thread.pool.size \
    remote.log.manager.copy.max.bytes.per.second remote.log.manager.expiration.thread.pool.size \
    remote.log.manager.fetch.max.bytes.per.second remote.log.reader.threads \
    transaction.partition.verification.enable";

/// `log.retention.hours` and `.minutes` are other units of `log.retention.ms`, and so on.
pub(super) fn unfold_hours(set: &mut BTreeMap<String, String>) {
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

/// A setting that means something here, without the listener that it may be for.
pub(crate) fn setting(name: &str) -> Option<BrokerSetting> {
    let name = security::without_listener(name);
    let own = BROKER_SETTINGS.iter().find(|s| s.name == name).copied();
    let topics = || {
        let setting = TOPIC_SETTINGS.iter().find(|s| s.broker == Some(name))?;
        Some(BrokerSetting {
            name: setting.broker?,
            kind: setting.kind,
            default: setting.default,
            doc: setting.doc,
        })
    };
    own.or_else(topics)
}

/// Whether a setting does something here.
pub(crate) fn has_meaning(name: &str) -> bool {
    setting(name).is_some() || is_coarse(name)
}

fn is_coarse(name: &str) -> bool {
    COARSE.iter().any(|c| c.0 == name)
}

/// What values a setting of Kafka's takes, whether it does something here or not.
pub(crate) fn kind_of(name: &str) -> Option<Type> {
    let coarse = || is_coarse(name).then_some(Type::Int(-1, INT));
    setting(name).map(|s| s.kind).or_else(coarse).or_else(|| unused_kind(name))
}

fn unused_kind(name: &str) -> Option<Type> {
    let name = security::without_mechanism(security::without_listener(name));
    let secret = ["password", "secret", "jaas", "passphrase"].iter().any(|word| name.contains(word));
    let is = WITHOUT_MEANING.split(' ').any(|known| known == name);
    is.then_some(if secret { Type::Password } else { Type::Text })
}

/// Where a setting can be changed while the broker runs (KIP-226).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dynamic {
    /// For this broker only: what is for security.
    OfBroker,
    /// For all brokers as well.
    OfCluster,
}

impl Dynamic {
    /// `None` if it cannot be changed. As in Kafka, but for the listeners, which are those of the start.
    pub(crate) fn of(name: &str) -> Option<Dynamic> {
        let name = security::without_mechanism(security::without_listener(name));
        let begins = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
        let never = begins(&["ssl.principal.mapping", "ssl.allow."]);
        let secure = begins(&["ssl.", "sasl.kerberos.", "sasl.login.refresh."])
            || ["principal.builder.class", "sasl.enabled.mechanisms", "sasl.jaas.config"].contains(&name)
            || name == "sasl.mechanism.inter.broker.protocol";
        let own = begins(&["max.connection"]) || name == "producer.id.expiration.ms";
        let topics = || TOPIC_SETTINGS.iter().any(|s| s.broker == Some(name));
        if never {
            None
        } else if secure {
            Some(Dynamic::OfBroker)
        } else {
            let unused = || UNUSED_DYNAMIC.split(' ').any(|known| known == name);
            (own || topics() || unused()).then_some(Dynamic::OfCluster)
        }
    }
}

/// The name that was meant, if one is near.
pub(crate) fn suggest(name: &str) -> Option<String> {
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
