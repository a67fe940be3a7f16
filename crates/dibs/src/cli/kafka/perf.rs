//! `dibs perf …`: what `kafka-producer-perf-test.sh`, `kafka-consumer-perf-test.sh` and `kafka-e2e-latency.sh` do.

use std::{ops::ControlFlow, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Subcommand;
use dibs_client::{
    At, Cluster, Fetcher, FetcherConfig, Producer, ProducerConfig, ProducerRecord, Properties, Reset, Topic,
    TopicPartition,
};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    Interrupts, Misconfigured, Reach, block_on, existing, explain, misused, print, print_json,
    produce::now_ms, refused, set_all,
};

/// Bytes of a MB in Kafka's tools.
const MB: f64 = 1024.0 * 1024.0;
/// Records between two looks at the clock and at the connections.
const BURST: u64 = 256;

/// `dibs perf …`
#[derive(Subcommand)]
pub(crate) enum Perf {
    /// Send records as fast as asked for, and measure each from being given to being acknowledged
    Produce(Produce),
    /// Read records as fast as they come
    Consume(Consume),
    /// Send one record at a time, and measure each until it has been read
    Latency(Latency),
}

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
    throughput: f64,
    /// Records that are sent first and not counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup_records: u64,
    /// Producer settings: acks=all, linger.ms=5, batch.size=16384, compression.type=lz4…
    #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
    producer_props: Vec<String>,
    /// Milliseconds between two lines
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    reporting_interval: u64,
}

/// `dibs perf consume`
#[derive(clap::Args)]
pub(crate) struct Consume {
    /// The topic
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// How many records
    #[arg(long, visible_alias = "num-records", value_name = "N")]
    messages: u64,
    /// Bytes of a partition in one fetch
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    fetch_size: i32,
    /// Begin after the last record instead of at the first
    #[arg(long)]
    from_latest: bool,
    /// End if nothing comes for so long, in ms
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    timeout: u64,
    /// Without the line that names the columns
    #[arg(long)]
    hide_header: bool,
    /// A line for each --reporting-interval
    #[arg(long)]
    show_detailed_stats: bool,
    /// Milliseconds between two lines
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    reporting_interval: u64,
    /// Accepted as Kafka's tool has it; partitions are read without a group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
}

/// `dibs perf latency`
#[derive(clap::Args)]
pub(crate) struct Latency {
    /// The topic
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// How many records, one after the other
    #[arg(long, alias = "num-messages", value_name = "N")]
    num_records: u64,
    /// Bytes of a record's value
    #[arg(long, alias = "message-size", value_name = "BYTES", default_value_t = 100)]
    record_size: usize,
    /// acks: 1 or all
    #[arg(long, alias = "acks", value_name = "ACKS", default_value = "all", allow_hyphen_values = true)]
    producer_acks: String,
}

pub(crate) fn run(command: &Perf, reach: &Reach, json: bool) -> anyhow::Result<()> {
    let mut properties = reach.properties()?;
    match command {
        Perf::Produce(args) => {
            set_all(&mut properties, &args.producer_props, "--producer-props")?;
            if args.throughput == 0.0 {
                return Err(misused("--throughput is a number of records per second, or -1"));
            }
            let payloads = args.payloads()?;
            let config = ProducerConfig::new(&mut properties).map_err(explain)?;
            block_on(args.run(reach, properties, config, &payloads, json))
        }
        Perf::Consume(args) => block_on(args.run(reach, properties, json)),
        Perf::Latency(args) => {
            properties.set("acks", &args.producer_acks);
            properties.set("linger.ms", "0");
            let config = ProducerConfig::new(&mut properties).map_err(explain)?;
            block_on(args.run(reach, properties, config, json))
        }
    }
}

/// Latencies in microseconds, for constant memory to three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 3_600_000_000, 3)?)
}

fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl Produce {
    fn payloads(&self) -> anyhow::Result<Vec<Vec<u8>>> {
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

    async fn run(
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

fn latency_json(times: &Histogram<u64>) -> serde_json::Value {
    let q = |q| ms(times.value_at_quantile(q));
    json!({
        "avg": times.mean() / 1000.0, "p50": q(0.5), "p95": q(0.95), "p99": q(0.99), "p999": q(0.999),
        "max": ms(times.max()),
    })
}

/// All partitions of a topic, from one of their ends.
fn all_of(topic: &Topic, at: At) -> Vec<(TopicPartition, Result<i64, At>)> {
    topic.partitions.iter().map(|p| (TopicPartition::new(&topic.name, p.index), Err(at))).collect()
}

impl Consume {
    async fn run(&self, reach: &Reach, mut properties: Properties, json: bool) -> anyhow::Result<()> {
        let mut config = FetcherConfig::new(&mut properties, None).map_err(explain)?;
        config.partition_max_bytes = self.fetch_size;
        config.reset = Reset::Earliest;
        let cluster = reach.connect(properties).await?;
        let topic = existing(&cluster, &self.topic).await?;
        let mut fetcher = Fetcher::new(cluster, config);
        fetcher.assign(all_of(&topic, if self.from_latest { At::Latest } else { At::Earliest }));
        if !self.hide_header && !json {
            print(if self.show_detailed_stats {
                "time, threadId, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec\n"
            } else {
                "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, \
                 rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec\n"
            })?;
        }
        let (begun, start) = (Instant::now(), now_ms());
        let mut read = Read { records: 0, bytes: 0 };
        let mut interrupts = Interrupts::new()?;
        let (mut ended, mut shown) = (begun, (begun, 0, 0));
        let mut timed_out = false;
        while read.records < self.messages {
            let next = timeout(Duration::from_millis(self.timeout), fetcher.next());
            let fetched = tokio::select! {
                biased;
                () = interrupts.next() => break,
                fetched = next => fetched,
            };
            let Ok(fetched) = fetched else {
                timed_out = true;
                break;
            };
            fetched
                .map_err(explain)?
                .for_each(|_, record| {
                    read.records += 1;
                    read.bytes +=
                        (record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len)) as u64;
                    if read.records == self.messages {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
                .map_err(explain)?;
            ended = Instant::now();
            if self.show_detailed_stats
                && !json
                && (ended - shown.0).as_millis() as u64 >= self.reporting_interval
            {
                print(&read.detail(&shown, ended))?;
                shown = (ended, read.records, read.bytes);
            }
        }
        if timed_out {
            eprintln!(
                "dibs: nothing came for {} ms; {} of {} records were read (see --timeout)",
                self.timeout, read.records, self.messages
            );
        }
        let took = (ended - begun).as_secs_f64().max(1e-9);
        if json {
            print_json(&read.json(took))
        } else if self.show_detailed_stats {
            print(&read.detail(&shown, ended))
        } else {
            print(&read.summary(start, took))
        }
    }
}

struct Read {
    records: u64,
    bytes: u64,
}

impl Read {
    fn json(&self, seconds: f64) -> serde_json::Value {
        json!({
            "records": self.records, "mb": self.bytes as f64 / MB, "seconds": seconds,
            "records_per_second": self.records as f64 / seconds,
            "mb_per_second": self.bytes as f64 / MB / seconds,
        })
    }

    fn summary(&self, start: i64, seconds: f64) -> String {
        let (mb, records) = (self.bytes as f64 / MB, self.records as f64);
        let fetch_ms = (seconds * 1000.0) as i64;
        format!(
            "{}, {}, {mb:.4}, {:.4}, {records}, {:.4}, 0, {fetch_ms}, {:.4}, {:.4}\n",
            clock(start),
            clock(start + fetch_ms),
            mb / seconds,
            records / seconds,
            mb / seconds,
            records / seconds
        )
    }

    fn detail(&self, since: &(Instant, u64, u64), now: Instant) -> String {
        let seconds = (now - since.0).as_secs_f64().max(1e-9);
        let mb = |bytes: u64| bytes as f64 / MB;
        format!(
            "{}, 0, {:.4}, {:.4}, {}, {:.4}\n",
            clock(now_ms()),
            mb(self.bytes),
            mb(self.bytes - since.2) / seconds,
            self.records,
            (self.records - since.1) as f64 / seconds
        )
    }
}

/// A time (ms) as Kafka's tool writes it, in UTC.
fn clock(ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    format!("{}:{:03}", time.strftime("%Y-%m-%d %H:%M:%S"), time.millisecond())
}

impl Latency {
    async fn run(
        &self,
        reach: &Reach,
        properties: Properties,
        producing: ProducerConfig,
        json: bool,
    ) -> anyhow::Result<()> {
        let cluster = reach.connect(properties).await?;
        let topic = existing(&cluster, &self.topic).await?;
        let mut producer = Producer::new(cluster.clone(), &topic, producing);
        let mut fetcher = self.fetcher(&cluster, &topic).await?;
        let mut times = histogram()?;
        let (mut total, mut interrupts) = (Duration::ZERO, Interrupts::new()?);
        for i in 0..self.num_records {
            let mut value = vec![b'x'; self.record_size.max(8)];
            value[..8].copy_from_slice(&i.to_be_bytes());
            let took = tokio::select! {
                biased;
                () = interrupts.next() => break,
                took = round(&mut producer, &mut fetcher, &value) => took?,
            };
            total += took;
            times.saturating_record((took.as_micros() as u64).max(1));
            if i % 1000 == 0 && !json {
                print(&format!("{i}\t{:.4}\n", took.as_secs_f64() * 1000.0))?;
            }
        }
        if json {
            return print_json(&json!({ "records": times.len(), "latency_ms": latency_json(&times) }));
        }
        let q = |q| ms(times.value_at_quantile(q));
        print(&format!(
            "Avg latency: {:.4} ms\nPercentiles: 50th = {:.3}, 95th = {:.3}, 99th = {:.3}, 99.9th = {:.3}, max = {:.3} ms\n",
            total.as_secs_f64() * 1000.0 / times.len().max(1) as f64,
            q(0.5),
            q(0.95),
            q(0.99),
            q(0.999),
            ms(times.max())
        ))
    }

    /// Reads from the ends of all partitions, which are asked for before anything is sent.
    async fn fetcher(&self, cluster: &Cluster, topic: &Topic) -> anyhow::Result<Fetcher> {
        let config = FetcherConfig::new(&mut Properties::default(), None).map_err(explain)?;
        let asked: Vec<_> = topic
            .partitions
            .iter()
            .map(|p| (TopicPartition::new(&topic.name, p.index), At::Latest))
            .collect();
        let ends = cluster.offsets(&asked, config.isolation).await.map_err(explain)?;
        let mut fetcher = Fetcher::new(cluster.clone(), config);
        fetcher.assign(ends.into_iter().filter_map(|(tp, end)| Some((tp, Ok(end?.offset)))));
        Ok(fetcher)
    }
}

/// Sends a record and waits until it is read; it may be read before it is acknowledged.
async fn round(producer: &mut Producer, fetcher: &mut Fetcher, value: &[u8]) -> anyhow::Result<Duration> {
    let at = Instant::now();
    let record = ProducerRecord {
        partition: None,
        key: None,
        value: Some(value),
        headers: &[],
        timestamp: now_ms(),
        at,
    };
    producer.push(&record).map_err(explain)?;
    let sending = async {
        producer.flush().await.map_err(explain)?;
        for delivery in producer.take_deliveries() {
            delivery.outcome.map_err(explain)?;
        }
        Ok(())
    };
    let reading = async {
        let mut found = false;
        while !found {
            let next = timeout(Duration::from_secs(60), fetcher.next()).await;
            let fetched =
                next.map_err(|_| refused("the record was not read within 60 s"))?.map_err(explain)?;
            fetched
                .for_each(|_, record| {
                    found |= record.value == Some(value);
                    ControlFlow::Continue(())
                })
                .map_err(explain)?;
        }
        Ok::<_, anyhow::Error>(at.elapsed())
    };
    let ((), took) = tokio::try_join!(sending, reading)?;
    Ok(took)
}
