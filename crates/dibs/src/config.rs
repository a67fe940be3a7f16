//! The configuration of a server: read low (flags, environment, file: whatever was said), validated high, once,
//! into a [`Config`] that can be used as it is.
//!
//! A flag wins over its `DIBS_…` variable, a variable over the file, the file over the default.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use dibs_broker::BrokerConfig;
use dibs_flow::{CLAIMS_TOPIC, FlowConfig, Secret};
use serde::{Deserialize, Serialize};

use dibs_http::{Patience, UserSource, Verifier};

/// What was said, by flag, variable or file. Nothing is checked yet.
#[derive(clap::Args, Deserialize, Serialize, Default, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServeArgs {
    /// Data folder: the log, the snapshots, the secret, and the ledger unless it is elsewhere [default: dibs-data]
    #[arg(long, env = "DIBS_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// Address of the HTTP API; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "DIBS_LISTEN", value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,

    /// Address for Kafka's clients, such as 127.0.0.1:9092; port 0 takes a free one [default: none, not served]
    #[arg(long, env = "DIBS_KAFKA_LISTEN", value_name = "HOST:PORT")]
    pub(crate) kafka_listen: Option<String>,

    /// A setting of the Kafka side under Kafka's own name, such as num.partitions=4; may be given many times
    #[arg(long, value_name = "NAME=VALUE")]
    #[serde(default)]
    pub(crate) kafka_set: Vec<String>,

    /// A file of settings of the Kafka side, such as Kafka's server.properties
    #[arg(long, env = "DIBS_KAFKA_CONFIG", value_name = "FILE")]
    pub(crate) kafka_config: Option<PathBuf>,

    /// SQLite file of the ledger [default: ledger.db in the data folder]
    #[arg(long, env = "DIBS_LEDGER", value_name = "FILE")]
    pub(crate) ledger: Option<PathBuf>,

    /// Key that calls which change a campaign must show; needed to listen beyond loopback, at least 16 characters
    #[arg(long, env = "DIBS_ADMIN_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) admin_key: Option<String>,

    /// Header in which a trusted gateway names the user
    #[arg(long, env = "DIBS_USER_HEADER", value_name = "NAME")]
    pub(crate) user_header: Option<String>,

    /// Key that users' JWTs are verified with: a JWKS, an RSA or Ed25519 public key in PEM, or an HS256 secret
    #[arg(long, env = "DIBS_JWT_KEY", value_name = "FILE")]
    pub(crate) jwt_key: Option<PathBuf>,

    /// Partitions of dibs.claims; counts only when the data folder is new [default: 1]
    #[arg(long, env = "DIBS_PARTITIONS", value_name = "N")]
    pub(crate) partitions: Option<u32>,

    /// Coupons a second written to the ledger, such as 500 or 500/s; "unlimited" for as many as it takes
    /// [default: unlimited]
    #[arg(long, env = "DIBS_ISSUE_RATE", value_name = "N/s")]
    pub(crate) issue_rate: Option<String>,

    /// Commands in flight per partition before callers are answered 429 [default: 65536]
    #[arg(long, env = "DIBS_IN_FLIGHT", value_name = "N")]
    pub(crate) in_flight: Option<usize>,

    /// Milliseconds that a claim may wait at the gate before it is answered 429 [default: 3000]
    #[arg(long, env = "DIBS_HOLD_MS", value_name = "MS")]
    pub(crate) hold_ms: Option<u64>,

    /// Open connections, at most; more wait in the kernel's queue [default: 16384]
    #[arg(long, env = "DIBS_CONNECTIONS", value_name = "N")]
    pub(crate) connections: Option<usize>,

    /// Milliseconds between two looks at a connection: one on which no request was begun since the last look is
    /// closed [default: 15000]
    #[arg(long, env = "DIBS_IDLE_MS", value_name = "MS")]
    pub(crate) idle_ms: Option<u64>,

    /// Milliseconds that a request's body may take to arrive [default: 10000]
    #[arg(long, env = "DIBS_BODY_MS", value_name = "MS")]
    pub(crate) body_ms: Option<u64>,

    /// Milliseconds that the body of a code import may take to arrive [default: 300000]
    #[arg(long, env = "DIBS_IMPORT_MS", value_name = "MS")]
    pub(crate) import_ms: Option<u64>,

    /// Secret of this installation, 64 hexadecimal digits [default: secret.key in the data folder, made at the
    /// first start]
    #[arg(long, env = "DIBS_SECRET", value_name = "HEX", hide_env_values = true)]
    pub(crate) secret: Option<String>,
}

/// A configuration that holds together.
pub(crate) struct Config {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    /// None where Kafka's clients are not served.
    pub(crate) kafka: Option<BrokerConfig>,
    pub(crate) ledger: PathBuf,
    pub(crate) admin_key: Option<String>,
    pub(crate) users: UserSource,
    pub(crate) flow: FlowConfig,
    pub(crate) connections: usize,
    pub(crate) patience: Patience,
    pub(crate) secret: Option<Secret>,
}

impl ServeArgs {
    /// Adds what the file says where flags and variables were silent.
    pub(crate) fn over_file(self, file: Option<&Path>) -> anyhow::Result<ServeArgs> {
        let Some(path) = file else { return Ok(self) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        let file: ServeArgs = toml::from_str(&text)
            .with_context(|| format!("the configuration file {} is not valid", path.display()))?;
        Ok(ServeArgs {
            data: self.data.or(file.data),
            listen: self.listen.or(file.listen),
            kafka_listen: self.kafka_listen.or(file.kafka_listen),
            kafka_config: self.kafka_config.or(file.kafka_config),
            kafka_set: if self.kafka_set.is_empty() { file.kafka_set } else { self.kafka_set },
            ledger: self.ledger.or(file.ledger),
            admin_key: self.admin_key.or(file.admin_key),
            user_header: self.user_header.or(file.user_header),
            jwt_key: self.jwt_key.or(file.jwt_key),
            partitions: self.partitions.or(file.partitions),
            issue_rate: self.issue_rate.or(file.issue_rate),
            in_flight: self.in_flight.or(file.in_flight),
            hold_ms: self.hold_ms.or(file.hold_ms),
            connections: self.connections.or(file.connections),
            idle_ms: self.idle_ms.or(file.idle_ms),
            body_ms: self.body_ms.or(file.body_ms),
            import_ms: self.import_ms.or(file.import_ms),
            secret: self.secret.or(file.secret),
        })
    }

    /// Fills in the defaults.
    pub(crate) fn with_defaults(mut self) -> ServeArgs {
        let flow = FlowConfig::default();
        let data = self.data.get_or_insert_with(|| "dibs-data".into()).clone();
        self.listen.get_or_insert_with(|| "127.0.0.1:8080".into());
        self.ledger.get_or_insert_with(|| data.join("ledger.db"));
        self.partitions.get_or_insert(flow.partitions);
        self.issue_rate.get_or_insert_with(|| "unlimited".into());
        self.in_flight.get_or_insert(flow.in_flight);
        self.hold_ms.get_or_insert(flow.hold.as_millis() as u64);
        self.connections.get_or_insert(16_384);
        let patience = Patience::default();
        self.idle_ms.get_or_insert(patience.idle.as_millis() as u64);
        self.body_ms.get_or_insert(patience.body.as_millis() as u64);
        self.import_ms.get_or_insert(patience.import.as_millis() as u64);
        self
    }

    /// As a configuration file, secrets left out.
    pub(crate) fn print(&self) -> anyhow::Result<String> {
        let hidden = |s: &Option<String>| s.as_ref().map(|_| "(set, not shown)".to_owned());
        let shown =
            ServeArgs { admin_key: hidden(&self.admin_key), secret: hidden(&self.secret), ..self.clone() };
        Ok(toml::to_string(&shown)?)
    }

    /// The one place where a configuration is judged.
    pub(crate) fn validate(self) -> anyhow::Result<Config> {
        let said = self.with_defaults();
        let listen = said.listen.expect("has a default");
        let listen: SocketAddr = listen.parse().with_context(|| {
            format!("--listen {listen:?} is not an address and a port, such as 127.0.0.1:8080 or [::1]:8080")
        })?;
        if let Some(key) = &said.admin_key
            && (key.len() < 16 || key.chars().any(|c| c.is_whitespace() || c.is_control()))
        {
            bail!("--admin-key must have at least 16 characters and no white space");
        }
        if !listen.ip().is_loopback() && said.admin_key.is_none() {
            bail!(
                "listening on {listen} would let everybody who reaches it create campaigns: set --admin-key \
                 (or DIBS_ADMIN_KEY), or listen on 127.0.0.1"
            );
        }
        let kafka =
            kafka_settings(said.kafka_config.as_deref(), &said.kafka_set, said.kafka_listen.as_deref())?;
        let kafka = kafka_side(kafka)?;
        let users = match (said.user_header, said.jwt_key) {
            (Some(_), Some(_)) => {
                bail!("--user-header and --jwt-key exclude each other: who names the user?")
            }
            (Some(name), None) => UserSource::Header(
                name.parse().with_context(|| format!("--user-header {name:?} is not a header name"))?,
            ),
            (None, Some(path)) => UserSource::Jwt(Verifier::read(&path)?),
            (None, None) => UserSource::Body,
        };
        let secret = said.secret.map(|hex| {
            Secret::from_hex(&hex).context("--secret must be 64 hexadecimal digits (openssl rand -hex 32)")
        });
        let partitions = said.partitions.expect("has a default");
        if !(1..=1_000).contains(&partitions) {
            bail!("--partitions must be 1 to 1000");
        }
        let in_flight = said.in_flight.expect("has a default");
        let connections = said.connections.expect("has a default");
        if in_flight == 0 || connections == 0 {
            bail!("--in-flight and --connections must be at least 1");
        }
        let milliseconds = |said: Option<u64>| Duration::from_millis(said.expect("has a default"));
        let patience = Patience {
            idle: milliseconds(said.idle_ms),
            body: milliseconds(said.body_ms),
            import: milliseconds(said.import_ms),
        };
        if [patience.idle, patience.body, patience.import].contains(&Duration::ZERO) {
            bail!("--idle-ms, --body-ms and --import-ms must be at least 1");
        }
        Ok(Config {
            data: said.data.expect("has a default"),
            listen,
            kafka,
            ledger: said.ledger.expect("has a default"),
            admin_key: said.admin_key,
            users,
            flow: FlowConfig {
                partitions,
                issue_rate: rate(&said.issue_rate.expect("has a default"))?,
                in_flight,
                hold: milliseconds(said.hold_ms),
                ..FlowConfig::default()
            },
            connections,
            patience,
            secret: secret.transpose()?,
        })
    }
}

/// Settings of a broker, under Kafka's names: the file's, then those said one by one, then the address. Of one that
/// is there twice the later counts.
pub(crate) fn kafka_settings(
    file: Option<&Path>,
    set: &[String],
    listen: Option<&str>,
) -> anyhow::Result<Vec<(String, String)>> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').with_context(|| format!("{text:?} is not NAME=VALUE"))?;
        anyhow::Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    let mut settings = Vec::new();
    if let Some(file) = file {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        // A backslash at its end continues a line.
        let text = text.replace("\\\r\n", "").replace("\\\n", "");
        let said = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(['#', '!']));
        for line in said {
            settings.push(pair(line).with_context(|| format!("in {}", file.display()))?);
        }
    }
    for setting in set {
        settings.push(pair(setting)?);
    }
    if let Some(listen) = listen {
        settings.push(("listeners".to_owned(), format!("PLAINTEXT://{listen}")));
    }
    Ok(settings)
}

/// What serves Kafka's clients, if anything does.
fn kafka_side(settings: Vec<(String, String)>) -> anyhow::Result<Option<BrokerConfig>> {
    if settings.is_empty() {
        return Ok(None);
    }
    if !settings.iter().any(|(name, _)| name == "listeners") {
        bail!(
            "--kafka-set needs --kafka-listen (or the setting listeners): where are Kafka's clients served?"
        );
    }
    let config = BrokerConfig::new(settings)?;
    if let Some(open) = config.listeners.iter().find(|l| !l.is_loopback() && !l.protocol.sasl) {
        bail!(
            "{open} would let everybody who reaches it write commands into {CLAIMS_TOPIC}, such as to create or \
             close campaigns: listen on 127.0.0.1, or let clients say who they are (a SASL_SSL listener)"
        );
    }
    Ok(Some(config))
}

/// `500`, `500/s` or `unlimited`.
fn rate(text: &str) -> anyhow::Result<Option<u64>> {
    if text == "unlimited" {
        return Ok(None);
    }
    match text.strip_suffix("/s").unwrap_or(text).parse() {
        Ok(rate) if rate > 0 => Ok(Some(rate)),
        _ => bail!(
            "--issue-rate {text:?} must be a whole number of coupons a second, such as 500/s, or unlimited"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(args: ServeArgs) -> String {
        args.validate().map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn refuses_to_be_open_to_the_world_without_a_key() {
        let open = ServeArgs { listen: Some("0.0.0.0:8080".into()), ..Default::default() };
        assert!(wrong(open.clone()).contains("set --admin-key"));
        let keyed = ServeArgs { admin_key: Some("0123456789abcdef".into()), ..open.clone() };
        assert!(keyed.validate().is_ok());
        let weak = ServeArgs { admin_key: Some("short".into()), ..open };
        assert!(wrong(weak).contains("at least 16"));
    }

    #[test]
    fn says_what_would_be_right() {
        let rate = ServeArgs { issue_rate: Some("fast".into()), ..Default::default() };
        assert!(wrong(rate).contains("such as 500/s"));
        let kafka = |set: &str| ServeArgs { kafka_set: vec![set.into()], ..Default::default() };
        assert!(wrong(kafka("num.partitions=4")).contains("--kafka-listen"));
        assert!(wrong(kafka("num.partitions")).contains("NAME=VALUE"));
        assert!(wrong(kafka("listeners=PLAINTEXT://dibs.example.com:0")).contains("127.0.0.1"));
        assert!(kafka("listeners=PLAINTEXT://[::1]:0").validate().unwrap().kafka.is_some());
        let listen = ServeArgs { listen: Some("localhost".into()), ..Default::default() };
        assert!(wrong(listen).contains("127.0.0.1:8080"));
        assert_eq!(super::rate("500/s").unwrap(), Some(500));
        assert_eq!(super::rate("unlimited").unwrap(), None);
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dibs.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\nissue_rate = \"7\"\n").unwrap();
        let flags = ServeArgs { listen: Some("127.0.0.1:2".into()), ..Default::default() };
        let config = flags.over_file(Some(&file)).unwrap().validate().unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.flow.issue_rate, Some(7));
        assert_eq!(config.connections, 16_384);
        std::fs::write(&file, "lisen = \"127.0.0.1:1\"\n").unwrap();
        let error = format!("{:#}", ServeArgs::default().over_file(Some(&file)).unwrap_err());
        assert!(error.contains("lisen"), "{error}");
    }
}
