//! `dibs perf …`: what `kafka-producer-perf-test.sh`, `kafka-consumer-perf-test.sh` and `kafka-e2e-latency.sh` do.

mod consume;
mod latency;
mod produce;

use clap::Subcommand;
use dibs_client::ProducerConfig;
use hdrhistogram::Histogram;
use serde_json::json;

use super::{Reach, block_on, explain, misused, set_all};

/// Bytes of a MB in Kafka's tools.
const MB: f64 = 1024.0 * 1024.0;

/// `dibs perf …`
#[derive(Subcommand)]
pub(crate) enum Perf {
    /// Send records as fast as asked for, and measure each from being given to being acknowledged
    Produce(produce::Produce),
    /// Read records as fast as they come
    Consume(consume::Consume),
    /// Send one record at a time, and measure each until it has been read
    Latency(latency::Latency),
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

fn latency_json(times: &Histogram<u64>) -> serde_json::Value {
    let q = |q| ms(times.value_at_quantile(q));
    json!({
        "avg": times.mean() / 1000.0, "p50": q(0.5), "p95": q(0.95), "p99": q(0.99), "p999": q(0.999),
        "max": ms(times.max()),
    })
}
