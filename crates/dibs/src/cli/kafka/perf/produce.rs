//! `dibs perf produce`: sends as fast as asked for.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use dibs_client::{Producer, ProducerConfig, ProducerRecord, Properties};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{
    super::{
        Interrupts, Misconfigured, Reach, existing, explain, misused, print, print_json, produce::now_ms,
        refused,
    },
    MB, histogram, latency_json, ms,
};

/// Records between two looks at the clock and at the connections.
const BURST: u64 = 256;

/// `dibs perf produce`
#[derive(clap::Args)]
pub(crate) struct Produce {
    /// The topic
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// How many records
    #[arg(long, value_name = "N")]
    num_records: u64,
    /// Bytes of a record's value, random letters
    #[arg(long, value_name = "BYTES", required_unless_present = "payload_file")]
    record_size: Option<usize>,
    /// A file of values, one of which is taken at random for each record
    #[arg(long, value_name = "FILE", conflicts_with = "record_size")]
    payload_file: Option<PathBuf>,
    /// What stands between the values in the file
    #[arg(long, value_name = "TEXT", default_value = "\\n")]
    payload_delimiter: String,
    /// Records per second; -1 for as many as go
    #[arg(long, value_name = "N", default_value_t = -1.0, allow_hyphen_values = true)]
    pub(super) throughput: f64,
    /// Records that are sent first and not counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup_records: u64,
    /// Producer settings: acks=all, linger.ms=5, batch.size=16384, compression.type=lz4…
    #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
    pub(super) producer_props: Vec<String>,
    /// Milliseconds between two lines
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    reporting_interval: u64,
}

impl Produce {
    pub(super) fn payloads(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let Some(file) = &self.payload_file else {
            let letters = |_| fastrand_letter();
            return Ok(vec![(0..self.record_size.unwrap_or_default()).map(letters).collect()]);
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))
            .context(Misconfigured)?;
        let delimiter = self.payload_delimiter.replace("\\n", "\n").replace("\\t", "\t");
        let payloads: Vec<Vec<u8>> =
            text.split(&delimiter).filter(|p| !p.is_empty()).map(|p| p.as_bytes().to_vec()).collect();
        if payloads.is_empty() {
            return Err(misused(format!("there is nothing in {}", file.display())));
        }
        Ok(payloads)
    }

    pub(super) async fn run(
        &self,
        reach: &Reach,
        properties: Properties,
        config: ProducerConfig,
        payloads: &[Vec<u8>],
        json: bool,
    ) -> anyhow::Result<()> {
        let cluster = reach.connect(properties).await?;
        let topic = existing(&cluster, &self.topic).await?;
        let mut producer = Producer::new(cluster, &topic, config);
        if self.warmup_records > 0 {
            let mut warmup = Sent::new(false, self.reporting_interval)?;
            self.send(&mut producer, self.warmup_records, payloads, &mut warmup).await?;
        }
        let mut sent = Sent::new(!json, self.reporting_interval)?;
        self.send(&mut producer, self.num_records, payloads, &mut sent).await?;
        if json {
            print_json(&sent.json())?;
        } else {
            print(&format!("{}\n", sent.summary()))?;
        }
        match sent.failed {
            0 => Ok(()),
            failed => Err(refused(format!("{failed} records were not sent"))),
        }
    }

    async fn send(
        &self,
        producer: &mut Producer,
        records: u64,
        payloads: &[Vec<u8>],
        sent: &mut Sent,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut interrupts = Interrupts::new()?;
        let (mut at, mut timestamp) = (begun, now_ms());
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for i in 0..records {
            if self.throughput > 0.0 {
                let due = begun + Duration::from_secs_f64(i as f64 / self.throughput);
                while Instant::now() < due {
                    tokio::select! {
                        biased;
                        () = interrupts.next() => return finish(producer, sent, &mut interrupts).await,
                        () = sleep_until(due) => {}
                        driven = producer.drive() => driven.map_err(explain)?,
                    }
                    sent.note(producer)?;
                }
                (at, timestamp) = (Instant::now(), now_ms());
            } else if i % BURST == 0 {
                tokio::select! {
                    biased;
                    () = interrupts.next() => return finish(producer, sent, &mut interrupts).await,
                    turned = producer.turn() => turned.map_err(explain)?,
                }
                sent.note(producer)?;
                (at, timestamp) = (Instant::now(), now_ms());
            }
            while !producer.has_room() {
                tokio::select! {
                    biased;
                    () = interrupts.next() => return finish(producer, sent, &mut interrupts).await,
                    driven = producer.drive() => driven.map_err(explain)?,
                }
                sent.note(producer)?;
                (at, timestamp) = (Instant::now(), now_ms());
            }
            // A step of a small generator is enough to pick.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let value = &payloads[((seed >> 33) % payloads.len() as u64) as usize];
            let record = ProducerRecord {
                partition: None,
                key: None,
                value: Some(value),
                headers: &[],
                timestamp,
                at,
            };
            producer.push(&record).map_err(explain)?;
            sent.pushed += 1;
            sent.bytes += value.len() as u64;
        }
        finish(producer, sent, &mut interrupts).await
    }
}

/// Waits for what is under way; Ctrl-C (once more) ends that too.
async fn finish(producer: &mut Producer, sent: &mut Sent, interrupts: &mut Interrupts) -> anyhow::Result<()> {
    tokio::select! {
        flushed = producer.flush() => flushed.map_err(explain)?,
        () = interrupts.next() => return Err(refused("stopped before everything was delivered")),
    }
    sent.note(producer)
}

/// A random upper-case letter, as Kafka's tool sends them.
fn fastrand_letter() -> u8 {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    b'A' + byte[0] % 26
}

/// What was sent, and how long it took.
struct Sent {
    begun: Instant,
    last: Option<Instant>,
    /// Records given to the producer, and the bytes of their values.
    pushed: u64,
    bytes: u64,
    records: u64,
    failed: u64,
    all: Histogram<u64>,
    /// Since the last line.
    window: (Instant, u64, Histogram<u64>),
    show: bool,
    interval: Duration,
}

impl Sent {
    fn new(show: bool, interval_ms: u64) -> anyhow::Result<Sent> {
        let now = Instant::now();
        Ok(Sent {
            begun: now,
            last: None,
            pushed: 0,
            bytes: 0,
            records: 0,
            failed: 0,
            all: histogram()?,
            window: (now, 0, histogram()?),
            show,
            interval: Duration::from_millis(interval_ms.max(1)),
        })
    }

    fn note(&mut self, producer: &mut Producer) -> anyhow::Result<()> {
        for delivery in producer.take_deliveries() {
            if let Err(error) = &delivery.outcome {
                if self.failed == 0 {
                    eprintln!("dibs: {error}");
                }
                self.failed += delivery.records as u64;
                continue;
            }
            self.last = Some(delivery.landed);
            self.records += delivery.records as u64;
            self.window.1 += delivery.records as u64;
            for (given, records) in delivery.given {
                let micros = (delivery.landed.saturating_duration_since(given).as_micros() as u64).max(1);
                self.all.saturating_record_n(micros, u64::from(records));
                self.window.2.saturating_record_n(micros, u64::from(records));
            }
        }
        let now = Instant::now();
        if self.show && now - self.window.0 >= self.interval {
            let (begun, records, times) = &self.window;
            let text = self.line(*records, now - *begun, times);
            print(&format!("{text}\n"))?;
            self.window.0 = now;
            self.window.1 = 0;
            self.window.2.reset();
        }
        Ok(())
    }

    /// Mean bytes of a value.
    fn mean_size(&self) -> f64 {
        self.bytes as f64 / self.pushed.max(1) as f64
    }

    fn line(&self, records: u64, took: Duration, times: &Histogram<u64>) -> String {
        let rate = records as f64 / took.as_secs_f64().max(1e-9);
        format!(
            "{records} records sent, {rate:.1} records/sec ({:.2} MB/sec), {:.1} ms avg latency, {:.1} ms max latency",
            rate * self.mean_size() / MB,
            times.mean() / 1000.0,
            ms(times.max())
        )
    }

    fn took(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |last| last - self.begun)
    }

    fn summary(&self) -> String {
        let line = self.line(self.records, self.took(), &self.all);
        let q = |q| ms(self.all.value_at_quantile(q));
        format!(
            "{line}, {:.2} ms 50th, {:.2} ms 95th, {:.2} ms 99th, {:.2} ms 99.9th.",
            q(0.5),
            q(0.95),
            q(0.99),
            q(0.999)
        )
    }

    fn json(&self) -> serde_json::Value {
        let seconds = self.took().as_secs_f64().max(1e-9);
        let rate = self.records as f64 / seconds;
        json!({
            "records": self.records, "failed": self.failed, "seconds": seconds, "records_per_second": rate,
            "mb_per_second": rate * self.mean_size() / MB, "latency_ms": latency_json(&self.all),
        })
    }
}
