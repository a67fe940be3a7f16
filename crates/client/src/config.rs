//! What was asked for: Java's properties, read once into settings that can be used.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use crate::{
    ClientError,
    sasl::{Mechanism, Sasl},
    tls::Tls,
};

/// Settings under Kafka's names. Whoever understands one takes it; what is left at the end nobody knew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Reads the text of a Java properties file: `name=value`, `name: value` or `name value`, comments with `#`
    /// and `!`, a backslash at the end of a line that goes on, and Java's escapes.
    pub fn parse(text: &str) -> Properties {
        let mut properties = Properties::default();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mut logical = line.trim_start().to_owned();
            if logical.is_empty() || logical.starts_with(['#', '!']) {
                continue;
            }
            while ends_open(&logical) {
                logical.pop();
                logical.push_str(lines.next().unwrap_or_default().trim_start());
            }
            let (name, value) = split(&logical);
            properties.set(&unescape(name), &unescape(value));
        }
        properties
    }

    /// Sets or replaces one.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// Takes one out.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).map(|value| value.trim().to_owned())
    }

    /// Takes one out as something else than text.
    ///
    /// # Errors
    /// If it cannot be read as that.
    pub fn take_as<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, ClientError> {
        let wrong = |value| ClientError::Config(format!("{name}={value} is not a valid value"));
        self.take(name).map(|value| value.parse().map_err(|_| wrong(value))).transpose()
    }

    /// Takes one out with all its white space, which may be what it is about (a separator).
    pub fn take_raw(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// The names that nobody has taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Whether a line goes on in the next: it ends in an odd number of backslashes.
fn ends_open(line: &str) -> bool {
    line.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1
}

/// Name and value, at the first `=`, `:` or space that is not escaped.
fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, letter) in line.char_indices() {
        if !escaped && matches!(letter, '=' | ':' | ' ' | '\t') {
            let rest = line[at..].trim_start();
            let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
            return (&line[..at], rest.trim_start());
        }
        escaped = letter == '\\' && !escaped;
    }
    (line, "")
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\u{c}'),
            Some('u') => {
                let digits: String = letters.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                out.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

/// How to reach a cluster, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `HOST:PORT` of some of the brokers.
    pub bootstrap: Vec<String>,
    /// Name of this client in the broker's logs and quotas.
    pub client_id: String,
    /// How long a connection may take to be made and agreed on (`socket.connection.setup.timeout.ms`).
    pub connect_timeout: Duration,
    /// How long an answer may take (`request.timeout.ms`).
    pub request_timeout: Duration,
    /// How long a call with all its retries may take (`default.api.timeout.ms`).
    pub api_timeout: Duration,
    pub(crate) tls: Option<Tls>,
    pub(crate) sasl: Option<Sasl>,
}

impl ClientConfig {
    /// Takes what concerns the connection out of `properties`. `bootstrap` (comma-separated) wins over
    /// `bootstrap.servers`.
    ///
    /// # Errors
    /// For wrong or unsupported settings, and if there is no address at all.
    pub fn new(bootstrap: Option<&str>, properties: &mut Properties) -> Result<ClientConfig, ClientError> {
        let from_file = properties.take("bootstrap.servers");
        let servers = bootstrap.map(str::to_owned).or(from_file).unwrap_or_default();
        let bootstrap = servers.split(',').map(str::trim).filter(|s| !s.is_empty());
        let bootstrap = bootstrap.map(with_port).collect::<Result<Vec<_>, _>>()?;
        if bootstrap.is_empty() {
            return Err(ClientError::Config("--bootstrap-server HOST:PORT is missing".into()));
        }
        let mut ms = |name: &str, default| {
            Ok::<_, ClientError>(Duration::from_millis(properties.take_as(name)?.unwrap_or(default)))
        };
        let connect_timeout = ms("socket.connection.setup.timeout.ms", 10_000)?;
        let request_timeout = ms("request.timeout.ms", 30_000)?;
        let api_timeout = ms("default.api.timeout.ms", 60_000)?;
        let protocol = properties.take("security.protocol").unwrap_or_else(|| "PLAINTEXT".into());
        let (encrypted, login) = match protocol.to_ascii_uppercase().as_str() {
            "PLAINTEXT" => (false, false),
            "SSL" => (true, false),
            "SASL_PLAINTEXT" => (false, true),
            "SASL_SSL" => (true, true),
            other => {
                return Err(ClientError::Config(format!(
                    "security.protocol={other} is not one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"
                )));
            }
        };
        let (tls, sasl) = (Tls::new(properties)?, Sasl::new(properties, login)?);
        Ok(ClientConfig {
            bootstrap,
            client_id: properties.take("client.id").unwrap_or_else(|| "dibs".into()),
            connect_timeout,
            request_timeout,
            api_timeout,
            tls: if encrypted { Some(tls.prepared()?) } else { None },
            sasl,
        })
    }

    /// The mechanism of the login, if there is one.
    pub fn mechanism(&self) -> Option<Mechanism> {
        self.sasl.as_ref().map(|sasl| sasl.mechanism)
    }
}

/// An address as the resolver wants it; Kafka's URL-like forms lose their protocol.
fn with_port(address: &str) -> Result<String, ClientError> {
    let bare = address.rsplit("//").next().unwrap_or(address);
    match bare.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(bare.to_owned()),
        _ => Err(ClientError::Config(format!(
            "--bootstrap-server {address} is not HOST:PORT, such as 127.0.0.1:9092"
        ))),
    }
}

/// How many replicas must have a record before it counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// None: the broker does not answer, and whatever happens goes unnoticed.
    None,
    /// The leader alone.
    Leader,
    /// All that are in sync.
    All,
}

impl Acks {
    pub(crate) fn number(self) -> i16 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }
}

impl FromStr for Acks {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Acks, ClientError> {
        match text {
            "0" => Ok(Acks::None),
            "1" => Ok(Acks::Leader),
            "-1" | "all" => Ok(Acks::All),
            _ => Err(ClientError::Config(format!("acks={text} is not one of 0, 1, all"))),
        }
    }
}

/// How records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// snappy.
    Snappy,
    /// lz4.
    Lz4,
    /// zstd.
    Zstd,
}

impl Codec {
    pub(crate) fn number(self) -> u8 {
        self as u8
    }
}

impl FromStr for Codec {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Codec, ClientError> {
        match text.to_ascii_lowercase().as_str() {
            "none" => Ok(Codec::None),
            "gzip" => Ok(Codec::Gzip),
            "snappy" => Ok(Codec::Snappy),
            "lz4" => Ok(Codec::Lz4),
            "zstd" => Ok(Codec::Zstd),
            _ => Err(ClientError::Config(format!(
                "compression {text} is not one of none, gzip, snappy, lz4, zstd"
            ))),
        }
    }
}

/// Which records a consumer sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// All, those of aborted and open transactions too.
    #[default]
    ReadUncommitted,
    /// Those outside transactions and of committed ones, up to the last stable offset.
    ReadCommitted,
}

impl Isolation {
    pub(crate) fn number(self) -> i8 {
        self as i8
    }
}

impl FromStr for Isolation {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Isolation, ClientError> {
        match text {
            "read_uncommitted" => Ok(Isolation::ReadUncommitted),
            "read_committed" => Ok(Isolation::ReadCommitted),
            _ => Err(ClientError::Config(format!(
                "isolation level {text} is not one of read_uncommitted, read_committed"
            ))),
        }
    }
}

/// How a producer gathers, sends and repeats. The defaults are Kafka 4's.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// `acks`.
    pub acks: Acks,
    /// `compression.type`.
    pub codec: Codec,
    /// `linger.ms`: how long a batch waits for more records.
    pub linger: Duration,
    /// `batch.size`: bytes at which a batch is sent at once.
    pub batch_size: usize,
    /// `max.request.size`: the most bytes of one record, and about the most of a request.
    pub max_request_size: usize,
    /// `buffer.memory`: the most bytes that wait or are on their way.
    pub buffer_memory: usize,
    /// `max.in.flight.requests.per.connection`.
    pub max_in_flight: usize,
    /// `enable.idempotence`.
    pub idempotent: bool,
    /// `delivery.timeout.ms`: how long a batch is tried again.
    pub delivery_timeout: Duration,
    /// `retry.backoff.ms`: the first wait before a batch is tried again.
    pub retry_backoff: Duration,
    /// `request.timeout.ms` as the broker is told it.
    pub request_timeout: Duration,
}

impl ProducerConfig {
    /// Takes what concerns a producer out of `properties`.
    ///
    /// # Errors
    /// For wrong settings, and for idempotence that was asked for with an `acks` that cannot keep it.
    pub fn new(properties: &mut Properties) -> Result<ProducerConfig, ClientError> {
        let acks = properties.take("acks").map(|a| a.parse()).transpose()?.unwrap_or(Acks::All);
        let max_in_flight = properties.take_as("max.in.flight.requests.per.connection")?.unwrap_or(5);
        let asked = properties.take_as::<bool>("enable.idempotence")?;
        let possible = acks == Acks::All && max_in_flight <= 5;
        if asked == Some(true) && !possible {
            return Err(ClientError::Config(
                "enable.idempotence needs acks=all and at most 5 requests in flight".into(),
            ));
        }
        if properties.take("transactional.id").is_some() {
            return Err(ClientError::Config("transactional.id is not supported by this command".into()));
        }
        let codec = properties.take("compression.type").map(|c| c.parse()).transpose()?;
        let ms = |n: Option<u64>, default| Duration::from_millis(n.unwrap_or(default));
        Ok(ProducerConfig {
            acks,
            codec: codec.unwrap_or_default(),
            linger: ms(properties.take_as("linger.ms")?, 5),
            batch_size: properties.take_as("batch.size")?.unwrap_or(16 << 10),
            max_request_size: properties.take_as("max.request.size")?.unwrap_or(1 << 20),
            buffer_memory: properties.take_as("buffer.memory")?.unwrap_or(32 << 20),
            max_in_flight: std::cmp::max(max_in_flight, 1),
            idempotent: asked.unwrap_or(possible),
            delivery_timeout: ms(properties.take_as("delivery.timeout.ms")?, 120_000),
            retry_backoff: ms(properties.take_as("retry.backoff.ms")?, 100),
            request_timeout: Duration::from_secs(30),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_javas() {
        let text = "# comment\n! too\n\na=1\n b : 2 \nc 3\nd=x=y\ne = one, \\\n    two\nf=a\\tb\\u0041\ng\n\
                    h\\=i=j\npath=C:\\\\\n";
        let mut p = Properties::parse(text);
        for (name, value) in [
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("d", "x=y"),
            ("e", "one, two"),
            ("f", "a\tbA"),
            ("g", ""),
            ("h=i", "j"),
            ("path", "C:\\"),
        ] {
            assert_eq!(p.take(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(p, Properties::default());
    }

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        let config = |s| ClientConfig::new(Some(s), &mut Properties::default());
        let addresses = config("a:1, PLAINTEXT://b:2 ,[::1]:3").unwrap().bootstrap;
        assert_eq!(addresses, ["a:1", "b:2", "[::1]:3"]);
        for wrong in ["", "a", "a:b", ":1", "a:70000"] {
            assert!(matches!(config(wrong), Err(ClientError::Config(_))), "{wrong}");
        }
    }

    #[test]
    fn idempotence_is_on_where_it_can_be() {
        let config = |text| ProducerConfig::new(&mut Properties::parse(text));
        assert!(config("").unwrap().idempotent);
        assert!(!config("acks=1").unwrap().idempotent);
        assert!(!config("enable.idempotence=false").unwrap().idempotent);
        assert!(!config("max.in.flight.requests.per.connection=9").unwrap().idempotent);
        assert!(config("acks=1\nenable.idempotence=true").is_err());
        assert!(config("acks=2").is_err());
        assert!(config("linger.ms=soon").is_err());
    }
}
