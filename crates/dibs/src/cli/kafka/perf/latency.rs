//! `dibs perf latency`: one record at a time, there and back.

use std::{ops::ControlFlow, time::Duration};

use dibs_client::{
    At, Cluster, Fetcher, FetcherConfig, Producer, ProducerConfig, ProducerRecord, Properties, Topic,
    TopicPartition,
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{
    super::{Interrupts, Reach, existing, explain, print, print_json, produce::now_ms, refused},
    histogram, latency_json, ms,
};

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
    pub(super) producer_acks: String,
}

impl Latency {
    pub(super) async fn run(
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
