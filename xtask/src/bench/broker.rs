//! `cargo xtask bench broker`: `dibs broker` and Apache Kafka, one after the other on the same processors, under the
//! same clients: Kafka's Java tools, librdkafka (kcat), and `dibs perf` for what needs microseconds.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::process;
use crate::server::{self, Server};

/// Bytes of a record.
const RECORD: usize = 100;
/// How long a broker is left alone to see what it costs at rest.
const REST: Duration = Duration::from_secs(5);

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

/// A broker, and how its topic is made.
struct Subject {
    name: &'static str,
    kafka: bool,
    topic: &'static [&'static str],
}

const SUBJECTS: [Subject; 3] = [
    Subject { name: "dibs broker (synced)", kafka: false, topic: &[] },
    Subject { name: "Apache Kafka (not synced)", kafka: true, topic: &[] },
    Subject { name: "Apache Kafka, flush.messages=1", kafka: true, topic: &["--config", "flush.messages=1"] },
];

/// What is needed besides brokers.
struct Tools {
    dibs: PathBuf,
    /// The repository's folder of interoperability suites.
    interop: PathBuf,
    jars: String,
    /// Lines of [`RECORD`] bytes.
    lines: PathBuf,
}

/// A running broker.
struct Broker {
    bootstrap: String,
    pid: u32,
    started: Duration,
    /// None for Apache Kafka, which its script stops.
    own: Option<Server>,
    folder: PathBuf,
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
    let before = process::cpu(broker.pid)?;
    thread::sleep(REST);
    let idle = (process::cpu(broker.pid)? - before).as_secs_f64() / REST.as_secs_f64();
    figures.push(("processor at rest", format!("{:.1} %", idle * 100.0)));
    for (client, rate, cpu) in [
        ("java", "produced by Java's client, records/s", "… processor time of the broker a record"),
        ("kcat", "produced by librdkafka, records/s", "… a record"),
    ] {
        tools.topic(broker, client, subject.topic)?;
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
    tools.topic(broker, "latency", subject.topic)?;
    let latencies = args.latencies.to_string();
    let acknowledged = tools.perf(
        broker,
        &["produce", "--num-records", &latencies, "--record-size", "100", "--throughput", "1000"],
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

fn mib(broker: &Broker) -> anyhow::Result<String> {
    Ok(format!("{:.0} MiB", process::rss_mib(broker.pid)?))
}

impl Broker {
    fn start(subject: &Subject, tools: &Tools, folder: &Path) -> anyhow::Result<Broker> {
        fs::create_dir_all(folder)?;
        let begun = Instant::now();
        let mut broker = if subject.kafka {
            let script = tools.interop.join("apache-kafka");
            let said = output(Command::new(script).arg("start").arg(folder))?;
            let pid = fs::read_to_string(folder.join("pid"))?.trim().parse()?;
            Broker {
                bootstrap: said.trim().to_owned(),
                pid,
                started: Duration::ZERO,
                own: None,
                folder: folder.into(),
            }
        } else {
            let mut command = Command::new(&tools.dibs);
            command.arg("broker").arg("--data").arg(folder.join("data")).args(["--listen", "127.0.0.1:0"]);
            let server = Server::spawn(command, &folder.join("log"))?;
            let (bootstrap, pid) = (server.address.to_string(), server.pid());
            Broker { bootstrap, pid, started: Duration::ZERO, own: Some(server), folder: folder.into() }
        };
        while tools.one_record(&broker).is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "{} does not start", subject.name);
        }
        broker.started = begun.elapsed();
        Ok(broker)
    }

    fn stop(self, tools: &Tools) -> anyhow::Result<()> {
        match self.own {
            Some(server) => server.end(),
            None => {
                let script = tools.interop.join("apache-kafka");
                output(Command::new(script).arg("stop").arg(self.folder)).map(drop)
            }
        }
    }
}

impl Tools {
    fn new(dibs: PathBuf, folder: &Path, records: u64) -> anyhow::Result<Tools> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
        let interop = root.join("interop");
        let cache = dibs.parent().and_then(Path::parent).context("the target folder")?.join("interop");
        if !cache.join("jars").is_dir() {
            let to = format!("-DoutputDirectory={}", cache.join("jars").display());
            let pom = interop.join("java/pom.xml");
            output(
                Command::new("mvn")
                    .args(["-q", "-B", "dependency:copy-dependencies", &to])
                    .arg("-f")
                    .arg(pom),
            )?;
        }
        let lines = folder.join("lines");
        let mut file = std::io::BufWriter::new(File::create(&lines)?);
        for i in 0..records {
            writeln!(file, "{i:0RECORD$}")?;
        }
        file.flush()?;
        Ok(Tools { jars: format!("{}/jars/*", cache.display()), dibs, interop, lines })
    }

    fn java(&self, class: &str, args: &[&str]) -> anyhow::Result<String> {
        let class = format!("org.apache.kafka.tools.{class}");
        output(Command::new("java").args(["-Xmx512m", "-cp", &self.jars, &class]).args(args))
    }

    fn perf(&self, broker: &Broker, args: &[&str]) -> anyhow::Result<String> {
        let server = ["--bootstrap-server", &broker.bootstrap, "--topic", "latency"];
        output(Command::new(&self.dibs).arg("perf").args(args).args(server))
    }

    /// Makes a topic of one partition.
    fn topic(&self, broker: &Broker, name: &str, more: &[&str]) -> anyhow::Result<()> {
        let server = ["topic", "create", "--bootstrap-server", &broker.bootstrap];
        let topic = ["--topic", name, "--partitions", "1", "--replication-factor", "1"];
        output(Command::new(&self.dibs).args(server).args(topic).args(more)).map(drop)
    }

    fn one_record(&self, broker: &Broker) -> anyhow::Result<()> {
        let mut command = Command::new(&self.dibs);
        command.args(["produce", "--bootstrap-server", &broker.bootstrap, "--topic", "first"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        child.stdin.take().context("a pipe")?.write_all(b"first\n")?;
        ensure!(child.wait()?.success(), "not yet");
        Ok(())
    }

    /// Records a second.
    fn produce(&self, broker: &Broker, client: &str, records: u64) -> anyhow::Result<f64> {
        let (server, count) = (format!("bootstrap.servers={}", broker.bootstrap), records.to_string());
        if client == "java" {
            let size = RECORD.to_string();
            let load =
                ["--topic", client, "--num-records", &count, "--record-size", &size, "--throughput", "-1"];
            let props = ["--producer-props", &server, "acks=all", "batch.size=100000", "linger.ms=5"];
            let said = self.java("ProducerPerformance", &[&load[..], &props].concat())?;
            let last =
                said.lines().rfind(|l| l.contains("99.9th")).context("no sum of ProducerPerformance")?;
            return before(last, " records/sec").context("no records/sec");
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

/// What a command that succeeds prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{command:?}: {status}\n{text}{}", String::from_utf8_lossy(&stderr));
    }
    Ok(text)
}

/// The number before a word.
fn before(text: &str, word: &str) -> Option<f64> {
    text.split(word).next()?.rsplit([' ', ',']).next()?.parse().ok()
}

/// Two percentiles of the last line that has them, in ms: `0.39 ms 50th` or `50th = 0.39`.
fn two(said: &str, names: [&str; 2]) -> anyhow::Result<String> {
    let line = said.lines().rfind(|l| l.contains(names[1])).context("no percentiles")?;
    let of = |name: &str| {
        let after =
            line.split(&format!("{name} = ")).nth(1).and_then(|t| t.split([',', ' ']).next()?.parse().ok());
        after.or_else(|| before(line, &format!(" ms {name}"))).context("no percentile")
    };
    let (first, second): (f64, f64) = (of(names[0])?, of(names[1])?);
    Ok(format!("{first:.2} / {second:.2} ms"))
}
