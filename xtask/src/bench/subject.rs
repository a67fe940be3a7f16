//! The brokers that are compared, and the programs that are their clients.

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
use crate::server::Server;

/// How long a broker is left alone to see what it costs at rest.
pub(super) const REST: Duration = Duration::from_secs(5);
/// Bytes of a record.
pub(super) const RECORD: usize = 100;

/// A broker, and how its topic is made.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) kafka: bool,
    pub(super) topic: &'static [&'static str],
}

pub(super) const SUBJECTS: [Subject; 3] = [
    Subject { name: "dibs broker (synced)", kafka: false, topic: &[] },
    Subject { name: "Apache Kafka (not synced)", kafka: true, topic: &[] },
    Subject { name: "Apache Kafka, flush.messages=1", kafka: true, topic: &["--config", "flush.messages=1"] },
];

/// What is needed besides brokers.
pub(super) struct Tools {
    pub(super) dibs: PathBuf,
    /// The repository's folder of interoperability suites.
    pub(super) interop: PathBuf,
    pub(super) jars: String,
    /// Lines of [`RECORD`] bytes.
    pub(super) lines: PathBuf,
}

/// A running broker.
pub(super) struct Broker {
    pub(super) bootstrap: String,
    pub(super) pid: u32,
    pub(super) started: Duration,
    /// None for Apache Kafka, which its script stops.
    pub(super) own: Option<Server>,
    pub(super) folder: PathBuf,
}

pub(super) fn mib(broker: &Broker) -> anyhow::Result<String> {
    Ok(format!("{:.0} MiB", process::rss_mib(broker.pid)?))
}

impl Broker {
    pub(super) fn start(subject: &Subject, tools: &Tools, folder: &Path) -> anyhow::Result<Broker> {
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

    /// The share of a processor that it takes while nothing happens.
    pub(super) fn at_rest(&self) -> anyhow::Result<String> {
        let before = process::cpu(self.pid)?;
        thread::sleep(REST);
        let share = (process::cpu(self.pid)? - before).as_secs_f64() / REST.as_secs_f64();
        Ok(format!("{:.1} %", share * 100.0))
    }

    pub(super) fn stop(self, tools: &Tools) -> anyhow::Result<()> {
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
    pub(super) fn new(dibs: PathBuf, folder: &Path, records: u64) -> anyhow::Result<Tools> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
        let interop = root.join("interop");
        let cache = dibs.parent().and_then(Path::parent).context("the target folder")?.join("interop");
        let jars = cache.join("kafka-tools-jars");
        if !jars.is_dir() {
            let to = format!("-DoutputDirectory={}", jars.display());
            let pom = interop.join("kafka-tools/pom.xml");
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
        Ok(Tools { jars: format!("{}/*", jars.display()), dibs, interop, lines })
    }

    pub(super) fn java(&self, class: &str, args: &[&str]) -> anyhow::Result<String> {
        let class = format!("org.apache.kafka.tools.{class}");
        output(Command::new("java").args(["-Xmx512m", "-cp", &self.jars, &class]).args(args))
    }

    pub(super) fn perf(&self, broker: &Broker, args: &[&str]) -> anyhow::Result<String> {
        let server = ["--bootstrap-server", &broker.bootstrap, "--topic", "latency"];
        output(Command::new(&self.dibs).arg("perf").args(args).args(server))
    }

    /// Makes a topic.
    pub(super) fn topic(
        &self,
        broker: &Broker,
        name: &str,
        partitions: u32,
        more: &[&str],
    ) -> anyhow::Result<()> {
        // More than so many at once are against Apache Kafka's policy.
        const STEP: u32 = 5_000;
        let (mut made, mut how) = (0, [&["create"][..], more].concat());
        while made < partitions {
            made = partitions.min(made + STEP);
            let mut command = Command::new(&self.dibs);
            command.arg("topic").args(&how).args(["--bootstrap-server", &broker.bootstrap, "--topic", name]);
            // Apache Kafka takes its time for some thousands.
            command.args(["--command-property", "request.timeout.ms=600000"]);
            command.args(["--partitions", &made.to_string()]);
            let begun = Instant::now();
            // Apache Kafka's broker hears of a new topic a moment after it is there.
            while let Err(e) = output(&mut command) {
                ensure!(how == ["alter"] && begun.elapsed() < Duration::from_secs(60), e);
                thread::sleep(Duration::from_millis(100));
            }
            how = vec!["alter"];
        }
        Ok(())
    }

    pub(super) fn one_record(&self, broker: &Broker) -> anyhow::Result<()> {
        let mut command = Command::new(&self.dibs);
        command.args(["produce", "--bootstrap-server", &broker.bootstrap, "--topic", "first"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        child.stdin.take().context("a pipe")?.write_all(b"first\n")?;
        ensure!(child.wait()?.success(), "not yet");
        Ok(())
    }
}

/// What a command that succeeds prints.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{command:?}: {status}\n{text}{}", String::from_utf8_lossy(&stderr));
    }
    Ok(text)
}

/// What a performance tool's last line says.
pub(super) fn records_per_second(said: &str) -> anyhow::Result<f64> {
    let last = said.lines().rfind(|l| l.contains("99.9th")).context("no sum of a performance tool")?;
    before(last, " records/sec").context("no records/sec")
}

/// The number before a word.
fn before(text: &str, word: &str) -> Option<f64> {
    text.split(word).next()?.rsplit([' ', ',']).next()?.parse().ok()
}

/// Two percentiles of the last line that has them, in ms: `0.39 ms 50th` or `50th = 0.39`.
pub(super) fn two(said: &str, names: [&str; 2]) -> anyhow::Result<String> {
    let line = said.lines().rfind(|l| l.contains(names[1])).context("no percentiles")?;
    let of = |name: &str| {
        let after =
            line.split(&format!("{name} = ")).nth(1).and_then(|t| t.split([',', ' ']).next()?.parse().ok());
        after.or_else(|| before(line, &format!(" ms {name}"))).context("no percentile")
    };
    let (first, second): (f64, f64) = (of(names[0])?, of(names[1])?);
    Ok(format!("{first:.2} / {second:.2} ms"))
}
