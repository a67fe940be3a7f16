//! `cargo xtask bench growth`: what partitions, connections and groups cost `dibs broker` and Apache Kafka.

use std::{
    fs,
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, ensure};

use super::{
    process,
    subject::{Broker, REST, SUBJECTS, Subject, Tools, mib, output, records_per_second, two},
};
use crate::{kafka::Kafka, server};

/// `cargo xtask bench growth`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Partitions of the one topic
    #[arg(long, value_delimiter = ',', default_value = "1,100,10000")]
    partitions: Vec<u32>,
    /// Connections that are open and silent
    #[arg(long, value_delimiter = ',', default_value = "1,100,5000")]
    connections: Vec<usize>,
    /// Groups of one member each that all read the same records
    #[arg(long, value_delimiter = ',', default_value = "1,100")]
    groups: Vec<usize>,
    /// Records that are written, and that each group reads, of 100 bytes
    #[arg(long, default_value_t = 100_000)]
    records: u64,
    /// Only the brokers whose name has this in it
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
}

/// A line of a table: how many, and the figures.
type Row = (String, Vec<String>);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let dibs = server::build("dibs", "dibs", &["--release", "--bin", "dibs"])?;
    let folder = tempfile::tempdir()?;
    let tools = Tools::new(dibs, folder.path(), 1)?;
    println!("{}", process::machine());
    // The third is the second with syncing, which changes nothing of this.
    for subject in SUBJECTS[..2].iter().filter(|s| s.name.contains(&args.only)) {
        let fresh = |what: &str, n: usize| folder.path().join(format!("{}-{what}-{n}", subject.kafka));
        let mut rows = Vec::new();
        for &n in &args.partitions {
            rows.push(partitions(subject, &tools, &fresh("partitions", n as usize), n, args.records)?);
        }
        let names = [
            "partitions",
            "made in",
            "records/s",
            "broker's processor a record",
            "started again in",
            "RSS at rest",
            "open files",
            "processor at rest",
        ];
        table(subject, &names, &rows);
        rows.clear();
        for &n in &args.connections {
            rows.push(connections(subject, &tools, &fresh("connections", n), n)?);
        }
        let names =
            ["connections", "opened in", "RSS", "a connection", "processor at rest", "end to end, p50 / p99"];
        table(subject, &names, &rows);
        rows.clear();
        for &n in &args.groups {
            rows.push(groups(subject, &tools, &fresh("groups", n), n, args.records)?);
        }
        table(subject, &["groups", "records read a second", "broker's processor a record", "RSS"], &rows);
    }
    Ok(())
}

fn table(subject: &Subject, names: &[&str], rows: &[Row]) {
    println!("\n{}\n\n| {} |", subject.name, names.join(" | "));
    println!("|{}", " ---: |".repeat(names.len()));
    for (n, figures) in rows {
        println!("| {n} | {} |", figures.join(" | "));
    }
}

fn partitions(subject: &Subject, tools: &Tools, folder: &Path, n: u32, records: u64) -> anyhow::Result<Row> {
    let broker = Broker::start(subject, tools, folder)?;
    let begun = Instant::now();
    tools.topic(&broker, "many", n, &[])?;
    let made = begun.elapsed();
    let cpu = process::cpu(broker.pid)?;
    let rate = produce(tools, &broker, "many", records)?;
    let each = (process::cpu(broker.pid)? - cpu).as_secs_f64() * 1e6 / records as f64;
    broker.stop(tools)?;
    let broker = Broker::start(subject, tools, folder)?;
    let started = broker.started;
    thread::sleep(REST);
    let idle = broker.at_rest()?;
    let files = fs::read_dir(format!("/proc/{}/fd", broker.pid))?.count();
    let rss = mib(&broker)?;
    broker.stop(tools)?;
    let figures = vec![
        format!("{made:.1?}"),
        format!("{rate:.0}"),
        format!("{each:.2} µs"),
        format!("{started:.0?}"),
        rss,
        files.to_string(),
        idle,
    ];
    Ok((n.to_string(), figures))
}

fn connections(subject: &Subject, tools: &Tools, folder: &Path, n: usize) -> anyhow::Result<Row> {
    let broker = Broker::start(subject, tools, folder)?;
    tools.topic(&broker, "latency", 1, &[])?;
    let before = process::rss_mib(broker.pid)?;
    let address: SocketAddr = broker.bootstrap.to_socket_addrs()?.next().context("an address")?;
    let mut kafka = Kafka::open(address)?;
    let producer = kafka.init(None)?;
    kafka.produce(("latency", 0), None, producer, 0, &[1], 9)?;
    let begun = Instant::now();
    let open = || -> anyhow::Result<Kafka> {
        let mut kafka = Kafka::open(address)?;
        // A request each: a connection without one costs less.
        kafka.fetch(("latency", 0), 0)?;
        Ok(kafka)
    };
    let held: Vec<Kafka> = (0..n).map(|_| open()).collect::<Result<_, _>>()?;
    let opened = begun.elapsed();
    thread::sleep(REST);
    let idle = broker.at_rest()?;
    let rss = process::rss_mib(broker.pid)?;
    let each = (rss - before).max(0.0) * 1024.0 / n as f64;
    let said = tools.perf(&broker, &["latency", "--num-records", "2000", "--record-size", "100"])?;
    let latency = two(&said, ["50th", "99th"])?;
    drop(held);
    broker.stop(tools)?;
    let figures =
        vec![format!("{opened:.1?}"), format!("{rss:.0} MiB"), format!("{each:.1} KiB"), idle, latency];
    Ok((n.to_string(), figures))
}

fn groups(subject: &Subject, tools: &Tools, folder: &Path, n: usize, records: u64) -> anyhow::Result<Row> {
    let broker = Broker::start(subject, tools, folder)?;
    tools.topic(&broker, "read", 1, &[])?;
    produce(tools, &broker, "read", records)?;
    let cpu = process::cpu(broker.pid)?;
    let begun = Instant::now();
    let members: Vec<Child> = (0..n).map(|i| member(tools, &broker, i, records)).collect::<Result<_, _>>()?;
    for mut member in members {
        ensure!(member.wait()?.success(), "a member of a group has failed");
    }
    let all = (n as u64 * records) as f64;
    let rate = all / begun.elapsed().as_secs_f64();
    let each = (process::cpu(broker.pid)? - cpu).as_secs_f64() * 1e6 / all;
    let rss = mib(&broker)?;
    broker.stop(tools)?;
    Ok((n.to_string(), vec![format!("{rate:.0}"), format!("{each:.2} µs"), rss]))
}

fn member(tools: &Tools, broker: &Broker, i: usize, records: u64) -> anyhow::Result<Child> {
    let (group, count) = (format!("group-{i}"), records.to_string());
    let mut command = Command::new(&tools.dibs);
    command.args(["consume", "--bootstrap-server", &broker.bootstrap, "--topic", "read", "--group", &group]);
    command.args(["--from-beginning", "--max-messages", &count]);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Records a second.
fn produce(tools: &Tools, broker: &Broker, topic: &str, records: u64) -> anyhow::Result<f64> {
    let mut command = Command::new(&tools.dibs);
    command.args(["perf", "produce", "--bootstrap-server", &broker.bootstrap, "--topic", topic]);
    command.args(["--num-records", &records.to_string(), "--record-size", "100"]);
    let said = output(&mut command)?;
    records_per_second(&said)
}
