//! `dibs produce`: what `kafka-console-producer.sh` does. Lines of standard input become records.

use std::{
    io::IsTerminal,
    time::{SystemTime, UNIX_EPOCH},
};

use dibs_client::{
    Cluster, Producer, ProducerConfig, ProducerRecord, Properties, ResponseError, Topic, batch::Header,
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Interrupts, Reach, block_on, explain,
    format::Format,
    lines::{self, LineParser, Typed},
    misused, print, print_json, refused, set_all, similar, topic_names, unknown_topic,
};
use crate::cli::Outcome;

/// `dibs produce`
#[derive(clap::Args)]
pub(crate) struct Produce {
    /// The topic
    #[arg(long, value_name = "TOPIC")]
    topic: String,

    /// The partition of every record [default: by the key as Java's producer does; without keys, batch by batch]
    #[arg(long, value_name = "N")]
    partition: Option<i32>,

    /// How lines are read: parse.key=true, key.separator=:, parse.headers=true, headers.delimiter,
    /// headers.separator, headers.key.separator, null.marker=NULL, ignore.error=true; may be given many times
    #[arg(long, alias = "reader-property", value_name = "NAME=VALUE")]
    property: Vec<String>,

    /// How keys are written
    #[arg(long, value_enum, default_value_t)]
    key_format: Format,

    /// How values are written
    #[arg(long, value_enum, default_value_t)]
    value_format: Format,

    /// Compress: none, gzip, snappy, lz4 or zstd; gzip if none is named
    #[arg(long, value_name = "CODEC", num_args = 0..=1, default_missing_value = "gzip")]
    compression_codec: Option<String>,

    /// Which replicas must have a record before it counts: 0, 1 or all [default: all]
    #[arg(long, value_name = "ACKS", allow_hyphen_values = true)]
    request_required_acks: Option<String>,

    /// Bytes of a batch [default: 16384]
    #[arg(long, visible_alias = "max-partition-memory-bytes", value_name = "BYTES")]
    batch_size: Option<u64>,

    /// How long a batch waits for more records, in ms [default: 5]
    #[arg(long, value_name = "MS")]
    timeout: Option<u64>,

    /// Wait for each line to be acknowledged before the next is read
    #[arg(long)]
    sync: bool,

    /// At the end, print what was done as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

pub(crate) fn run(args: &Produce) -> anyhow::Result<Outcome> {
    let mut properties = args.reach.properties()?;
    let flags = [
        ("compression.type", args.compression_codec.clone()),
        ("acks", args.request_required_acks.clone()),
        ("batch.size", args.batch_size.map(|n| n.to_string())),
        ("linger.ms", args.timeout.map(|n| n.to_string())),
    ];
    for (name, value) in flags {
        if let Some(value) = value {
            properties.set(name, &value);
        }
    }
    let config = ProducerConfig::new(&mut properties).map_err(explain)?;
    let mut reading = Properties::default();
    set_all(&mut reading, &args.property, "--property")?;
    let parser = LineParser::new(&mut reading, (args.key_format, args.value_format)).map_err(misused)?;
    for name in reading.names() {
        eprintln!("dibs: warning: --property {name} is not known here and has no effect");
    }
    block_on(async {
        let cluster = args.reach.connect(properties).await?;
        let topic = topic_to_write(&cluster, &args.topic).await?;
        let producer = Producer::new(cluster, &topic, config);
        let mut session =
            Session { producer, parser, partition: args.partition, line: 0, sent: 0, failed: 0 };
        session.all(args.sync).await?;
        if args.json {
            let done = json!({ "topic": args.topic, "sent": session.sent, "failed": session.failed });
            print_json(&done)?;
        }
        Ok(if session.failed == 0 { Outcome::Done } else { Outcome::NotExact })
    })
}

/// The topic. One that is not there is made if the broker does so on demand, but not when it is probably a slip.
async fn topic_to_write(cluster: &Cluster, name: &str) -> anyhow::Result<Topic> {
    match cluster.topic(name, false).await {
        Err(error) if error.kafka() == Some(ResponseError::UnknownTopicOrPartition) => {}
        found => return found.map_err(explain),
    }
    if topic_names(cluster).await?.iter().any(|other| similar::same(name, other)) {
        return Err(unknown_topic(cluster, name).await);
    }
    match cluster.topic(name, true).await {
        Err(error) if error.kafka() == Some(ResponseError::UnknownTopicOrPartition) => {
            Err(unknown_topic(cluster, name).await)
        }
        found => found.map_err(explain),
    }
}

struct Session {
    producer: Producer,
    parser: LineParser,
    partition: Option<i32>,
    line: u64,
    sent: u64,
    failed: u64,
}

impl Session {
    async fn all(&mut self, sync: bool) -> anyhow::Result<()> {
        let mut interrupts = Interrupts::new()?;
        let stdin = std::io::stdin();
        let prompt = stdin.is_terminal() && std::io::stdout().is_terminal();
        let mut lines = lines::read(stdin);
        if prompt {
            print(">")?;
            std::io::Write::flush(&mut std::io::stdout())?;
        }
        loop {
            let chunk = tokio::select! {
                chunk = lines.recv() => chunk,
                driven = self.producer.drive() => {
                    driven.map_err(explain)?;
                    self.note_deliveries();
                    continue;
                }
                _ = interrupts.next() => None,
            };
            let Some(chunk) = chunk else { break };
            for line in chunk? {
                self.line(&line).await?;
                if sync {
                    self.producer.flush().await.map_err(explain)?;
                    self.note_deliveries();
                }
            }
            if prompt {
                print(">")?;
                std::io::Write::flush(&mut std::io::stdout())?;
            }
        }
        // What was read is still delivered; a second Ctrl-C ends that too.
        tokio::select! {
            flushed = self.producer.flush() => flushed.map_err(explain)?,
            _ = interrupts.next() => return Err(refused("stopped before everything was delivered")),
        }
        self.note_deliveries();
        Ok(())
    }

    async fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        self.line += 1;
        let typed = self.parser.parse(line).map_err(|e| refused(format!("line {}: {e}", self.line)));
        let typed = match typed {
            Ok(typed) => typed,
            Err(error) => {
                // The lines before it count.
                self.producer.flush().await.map_err(explain)?;
                self.note_deliveries();
                return Err(error);
            }
        };
        while !self.producer.has_room() {
            self.producer.drive().await.map_err(explain)?;
            self.note_deliveries();
        }
        self.push(&typed)
    }

    fn push(&mut self, typed: &Typed) -> anyhow::Result<()> {
        let headers: Vec<Header<'_>> =
            typed.headers.iter().map(|(name, value)| Header { name, value: value.as_deref() }).collect();
        let record = ProducerRecord {
            partition: self.partition,
            key: typed.key.as_deref(),
            value: typed.value.as_deref(),
            headers: &headers,
            timestamp: now_ms(),
            at: Instant::now(),
        };
        self.producer.push(&record).map_err(|e| refused(format!("line {}: {e}", self.line)))
    }

    fn note_deliveries(&mut self) {
        for delivery in self.producer.take_deliveries() {
            match delivery.outcome {
                Ok(_) => self.sent += delivery.records as u64,
                Err(error) => {
                    self.failed += delivery.records as u64;
                    eprintln!("dibs: {} records were not sent: {error}", delivery.records);
                }
            }
        }
    }
}

/// The clock on the wall, in ms since 1970.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}
