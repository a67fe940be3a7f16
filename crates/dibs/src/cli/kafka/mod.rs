//! Kafka's everyday tools, against any Kafka: `dibs topic`, `produce`, `consume`, `group` and `perf`. Flags have
//! the names that Kafka's own tools gave them.
//!
//! In reading order: this file (how a cluster is reached), `format` (bytes as text), `similar` (did you mean),
//! `table`, and a file for each command.

pub(crate) mod consume;
mod format;
pub(crate) mod group;
mod lines;
pub(crate) mod perf;
mod print;
pub(crate) mod produce;
mod reset;
mod similar;
mod table;
pub(crate) mod topic;
mod when;

use std::{future::Future, path::PathBuf};

use anyhow::Context;
use dibs_client::{ClientConfig, ClientError, Cluster, Properties, ResponseError, Topic};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{client::Refused, serve::Misconfigured};

/// Where `dibs broker` and Kafka listen unless told otherwise.
const DEFAULT_BOOTSTRAP: &str = "127.0.0.1:9092";

/// Which cluster, and how to reach it.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Reach {
    /// One or more brokers, comma-separated [default: bootstrap.servers of the configuration, or 127.0.0.1:9092]
    #[arg(
        long,
        alias = "broker-list",
        env = "DIBS_BOOTSTRAP_SERVER",
        value_name = "HOST:PORT",
        global = true
    )]
    bootstrap_server: Option<String>,

    /// A Java properties file of client settings: security.protocol, sasl.jaas.config, ssl.truststore.location…
    #[arg(long, aliases = ["producer.config", "consumer.config", "config-file"], value_name = "FILE", global = true)]
    command_config: Option<PathBuf>,

    /// One client setting; may be given many times, and wins over the file
    #[arg(
        long,
        aliases = ["producer-property", "consumer-property"],
        value_name = "NAME=VALUE",
        global = true
    )]
    command_property: Vec<String>,
}

impl Reach {
    /// The settings that were given, the later ones winning.
    pub(crate) fn properties(&self) -> anyhow::Result<Properties> {
        let mut properties = Properties::default();
        if let Some(file) = &self.command_config {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))
                .context(Misconfigured)?;
            properties = Properties::parse(&text);
        }
        set_all(&mut properties, &self.command_property, "--command-property")?;
        Ok(properties)
    }

    /// Connects. What the command itself wanted of the settings it has taken out before.
    pub(crate) async fn connect(&self, mut properties: Properties) -> anyhow::Result<Cluster> {
        let named = properties.take("bootstrap.servers");
        let bootstrap =
            self.bootstrap_server.clone().or(named).unwrap_or_else(|| DEFAULT_BOOTSTRAP.to_owned());
        let config = ClientConfig::new(Some(&bootstrap), &mut properties).map_err(explain)?;
        warn_of_unknown(&properties);
        Cluster::connect(config).await.map_err(explain)
    }
}

/// Adds `NAME=VALUE` pairs.
fn set_all(properties: &mut Properties, pairs: &[String], flag: &str) -> anyhow::Result<()> {
    for pair in pairs {
        let (name, value) = split_pair(pair, flag)?;
        properties.set(name, value);
    }
    Ok(())
}

/// Takes `NAME=VALUE` apart.
fn split_pair<'a>(pair: &'a str, flag: &str) -> anyhow::Result<(&'a str, &'a str)> {
    pair.split_once('=').with_context(|| format!("{flag} {pair} is not NAME=VALUE")).context(Misconfigured)
}

/// Settings of Java's clients that mean nothing to the tools, and are in every configuration file.
const NOT_FOR_TOOLS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.size",
    "buffer.memory",
    "check.crcs",
    "client.dns.lookup",
    "compression.type",
    "enable.auto.commit",
    "enable.idempotence",
    "fetch.max.bytes",
    "fetch.max.wait.ms",
    "fetch.min.bytes",
    "group.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "isolation.level",
    "key.deserializer",
    "key.serializer",
    "linger.ms",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "max.poll.records",
    "max.request.size",
    "metadata.max.age.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "session.timeout.ms",
    "value.deserializer",
    "value.serializer",
];

fn warn_of_unknown(properties: &Properties) {
    for name in properties.names().filter(|name| !NOT_FOR_TOOLS.contains(name)) {
        eprintln!("dibs: warning: the setting {name} is not known here and has no effect");
    }
}

/// Ctrl-C and SIGTERM from here on: noted even while nobody waits for them.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> std::io::Result<Interrupts> {
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Completes at the next one. May be dropped and called anew.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Runs a command's work on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// An error with the exit code that belongs to it: what a broker refuses is 1, what was asked for wrongly is 2.
pub(crate) fn explain(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Kafka { .. } | ClientError::Login { .. } => Refused(error.to_string()).into(),
        ClientError::Config(_) => anyhow::Error::from(error).context(Misconfigured),
        error => error.into(),
    }
}

/// A refusal in our own words.
fn refused(words: impl Into<String>) -> anyhow::Error {
    Refused(words.into()).into()
}

/// Wrong arguments that only show once they are looked at together.
fn misused(words: impl Into<String>) -> anyhow::Error {
    anyhow::Error::msg(words.into()).context(Misconfigured)
}

/// A topic that has to be there; if it is not, perhaps another was meant.
async fn existing(cluster: &Cluster, name: &str) -> anyhow::Result<Topic> {
    match cluster.topic(name, false).await {
        Err(error) if error.kafka() == Some(ResponseError::UnknownTopicOrPartition) => {
            Err(unknown_topic(cluster, name).await)
        }
        found => found.map_err(explain),
    }
}

/// The error for a topic that is not there.
async fn unknown_topic(cluster: &Cluster, name: &str) -> anyhow::Error {
    let names = topic_names(cluster).await.unwrap_or_default();
    refused(match similar::to(name, names.iter().map(String::as_str)) {
        Some(meant) => format!("there is no topic {name}. Did you mean {meant}?"),
        None => {
            format!("there is no topic {name}. `dibs topic list` shows all, `dibs topic create` makes one")
        }
    })
}

async fn topic_names(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let topics = cluster.topics(None, false).await.map_err(explain)?;
    Ok(topics.into_iter().flatten().map(|t| t.name).collect())
}

/// Prints text; a reader that has gone away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints JSON on a line.
fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    print(&format!("{value}\n"))
}

/// The words with which Kafka's tools say what to do, turned into commands: `dibs topic --create --topic x` is
/// `dibs topic create --topic x`.
pub(crate) fn with_kafkas_actions(mut arguments: Vec<String>) -> Vec<String> {
    let actions: &[&str] = match arguments.get(1).map(String::as_str) {
        Some("topic") => &["create", "list", "describe", "alter", "delete"],
        Some("group") => &["list", "describe", "reset-offsets", "delete-offsets", "delete"],
        _ => return arguments,
    };
    if arguments.get(2).is_some_and(|second| actions.contains(&second.as_str())) {
        return arguments;
    }
    let action = |argument: &String| argument.strip_prefix("--").is_some_and(|name| actions.contains(&name));
    if let Some(at) = arguments.iter().position(action) {
        let action = arguments.remove(at).trim_start_matches("--").to_owned();
        arguments.insert(2, action);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::with_kafkas_actions;

    #[test]
    fn kafkas_way_of_saying_it_is_understood() {
        let of = |line: &str| with_kafkas_actions(line.split(' ').map(str::to_owned).collect()).join(" ");
        assert_eq!(of("dibs topic --create --topic x"), "dibs topic create --topic x");
        assert_eq!(of("dibs topic --topic x --delete"), "dibs topic delete --topic x");
        assert_eq!(of("dibs group --group g --reset-offsets"), "dibs group reset-offsets --group g");
        for same in ["dibs topic create --list", "dibs serve --list", "dibs topic", "dibs topic --help"] {
            assert_eq!(of(same), same);
        }
    }
}
