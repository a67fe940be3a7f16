//! `cargo xtask bench broker`: `dibs broker` and Apache Kafka, one after the other on the same processors, under the
//! same clients: Kafka's Java tools, librdkafka (kcat), and `dibs perf` for what needs microseconds.

use std::{
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, ensure};

use super::{
    process,
    subject::{Broker, RECORD, REST, SUBJECTS, Subject, Tools, mib, output, records_per_second, two},
};
use crate::server;

/// `cargo xtask bench broker`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Records produced and consumed by each client, of 100 bytes
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Records of which the latency is taken, one after the other
    #[arg(long, default_value_t = 5_000)]
    latencies: u64,
    /// Only the brokers whose name has this in it
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    for tool in ["kcat", "java"] {
        let there = Command::new(tool).arg("-V").output().is_ok();
        ensure!(there, "{tool} is not installed: apt-get install kcat default-jre-headless");
    }
    let dibs = server::build("dibs", "dibs", &["--release", "--bin", "dibs"])?;
    let folder = tempfile::tempdir()?;
    let tools = Tools::new(dibs, folder.path(), args.records)?;
    println!("{}", process::machine());
    println!("{} records of {RECORD} bytes, acks=all, one partition", args.records);
    let mut columns = Vec::new();
    for (i, subject) in SUBJECTS.iter().enumerate().filter(|(_, s)| s.name.contains(&args.only)) {
        let broker = Broker::start(subject, &tools, &folder.path().join(i.to_string()))?;
        let figures = measure(subject, &broker, &tools, args);
        broker.stop(&tools)?;
        columns.push((subject.name, figures.with_context(|| subject.name)?));
    }
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    println!("| | {} |", names.join(" | "));
    println!("| --- |{}", " ---: |".repeat(names.len()));
    for (row, (what, _)) in columns[0].1.iter().enumerate() {
        let cells: Vec<&str> = columns.iter().map(|(_, figures)| &*figures[row].1).collect();
        println!("| {what} | {} |", cells.join(" | "));
    }
    Ok(())
}

/// What is measured, in the order of the table: a name and a figure each.
type Figures = Vec<(&'static str, String)>;

fn measure(subject: &Subject, broker: &Broker, tools: &Tools, args: &Args) -> anyhow::Result<Figures> {
    let mut figures: Figures =
        vec![("start to first acknowledged record", format!("{:.0?}", broker.started))];
    thread::sleep(REST);
    figures.push(("RSS at rest", mib(broker)?));
    figures.push(("processor at rest", broker.at_rest()?));
    for (client, rate, cpu) in [
        ("java", "produced by Java's client, records/s", "… processor time of the broker a record"),
        ("kcat", "produced by librdkafka, records/s", "… a record"),
    ] {
        tools.topic(broker, client, 1, subject.topic)?;
        let (per_second, each) = cost(broker, args.records, || tools.produce(broker, client, args.records))?;
        figures.extend([(rate, per_second), (cpu, each)]);
    }
    for (client, rate, cpu) in [
        ("java", "consumed by Java's client, records/s", "… a record read"),
        ("kcat", "consumed by librdkafka, records/s", "… a record read by it"),
    ] {
        let (per_second, each) = cost(broker, args.records, || tools.consume(broker, client, args.records))?;
        figures.extend([(rate, per_second), (cpu, each)]);
    }
    tools.topic(broker, "latency", 1, subject.topic)?;
    let latencies = args.latencies.to_string();
    let acknowledged = tools.perf(
        broker,
        &[
            &["produce", "--num-records", &latencies, "--record-size", "100", "--throughput", "1000"][..],
            &["--producer-props", "linger.ms=0"],
        ]
        .concat(),
    )?;
    figures.push(("acknowledged, 1,000 records/s: p50 / p99", two(&acknowledged, ["50th", "99th"])?));
    let end_to_end = tools.perf(broker, &["latency", "--num-records", &latencies, "--record-size", "100"])?;
    figures.push(("end to end, one at a time: p50 / p99", two(&end_to_end, ["50th", "99th"])?));
    figures.push(("RSS after it", mib(broker)?));
    Ok(figures)
}

/// Records a second that the work says, and the broker's processor time for each.
fn cost(
    broker: &Broker,
    records: u64,
    work: impl FnOnce() -> anyhow::Result<f64>,
) -> anyhow::Result<(String, String)> {
    let before = process::cpu(broker.pid)?;
    let rate = work()?;
    let each = (process::cpu(broker.pid)? - before).as_secs_f64() * 1e6 / records as f64;
    Ok((format!("{:.2} M", rate / 1e6), format!("{each:.2} µs")))
}

impl Tools {
    /// Records a second.
    fn produce(&self, broker: &Broker, client: &str, records: u64) -> anyhow::Result<f64> {
        let (server, count) = (format!("bootstrap.servers={}", broker.bootstrap), records.to_string());
        if client == "java" {
            let size = RECORD.to_string();
            let load =
                ["--topic", client, "--num-records", &count, "--record-size", &size, "--throughput", "-1"];
            let props = ["--producer-props", &server, "acks=all", "batch.size=100000", "linger.ms=5"];
            let said = self.java("ProducerPerformance", &[&load[..], &props].concat())?;
            return records_per_second(&said);
        }
        let begun = Instant::now();
        let mut kcat = Command::new("kcat");
        kcat.args(["-P", "-q", "-b", &broker.bootstrap, "-t", client, "-p", "0", "-X", "acks=all"]);
        kcat.args([
            "-X",
            "linger.ms=5",
            "-X",
            "batch.num.messages=10000",
            "-X",
            "queue.buffering.max.messages=1000000",
        ]);
        output(kcat.arg("-l").arg(&self.lines))?;
        Ok(records as f64 / begun.elapsed().as_secs_f64())
    }

    /// Records a second.
    fn consume(&self, broker: &Broker, client: &str, records: u64) -> anyhow::Result<f64> {
        let count = records.to_string();
        if client == "java" {
            let args = ["--bootstrap-server", &broker.bootstrap, "--topic", client, "--messages", &count];
            let said = self.java("ConsumerPerformance", &args)?;
            let last = said.lines().rfind(|l| l.contains(", ")).context("no sum of ConsumerPerformance")?;
            // From the first fetch on: joining the group is another matter.
            return last.rsplit(", ").next().and_then(|n| n.trim().parse().ok()).context("no fetch.nMsg.sec");
        }
        let begun = Instant::now();
        let mut kcat = Command::new("kcat");
        kcat.args([
            "-C",
            "-q",
            "-b",
            &broker.bootstrap,
            "-t",
            client,
            "-p",
            "0",
            "-o",
            "beginning",
            "-c",
            &count,
        ]);
        kcat.args(["-X", "fetch.wait.max.ms=100", "-X", "queued.min.messages=1000000"]);
        ensure!(kcat.stdout(Stdio::null()).status()?.success(), "kcat has failed");
        Ok(records as f64 / begun.elapsed().as_secs_f64())
    }
}
