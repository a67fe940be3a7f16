//! A broker, and commands against it.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// `dibs` with these arguments and no `DIBS_…` of the surroundings.
pub(crate) fn dibs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dibs"));
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end, with something on its standard input.
pub(crate) fn run_with(args: &[&str], input: &[u8]) -> Output {
    let mut child = dibs(args).stdin(Stdio::piped()).spawn().expect("the binary runs");
    // It may end before it has read everything.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("it ends")
}

/// It ended with this code. Returns what it printed, and what it said on stderr.
#[track_caller]
pub(crate) fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}{out}");
    assert!(!said.contains("panicked"), "{said}");
    (out, said)
}

/// Looks again and again, until it is so.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct Kafka {
    process: Option<Child>,
    pub(crate) bootstrap: String,
    _folder: Option<tempfile::TempDir>,
}

impl Kafka {
    pub(crate) fn start() -> Kafka {
        match std::env::var("DIBS_TEST_BOOTSTRAP") {
            Ok(bootstrap) => Kafka { process: None, bootstrap, _folder: None },
            Err(_) => Kafka::own(&[]),
        }
    }

    /// Always our own, with settings.
    pub(crate) fn own(settings: &[&str]) -> Kafka {
        let folder = tempfile::tempdir().unwrap();
        let mut args = vec!["broker", "--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()];
        settings.iter().for_each(|setting| args.extend(["--set", setting]));
        let mut process = dibs(&args).stderr(Stdio::null()).spawn().expect("the binary runs");
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let bootstrap = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(bootstrap.starts_with("127.0.0.1:"), "it has said {line:?}");
        Kafka { process: Some(process), bootstrap, _folder: Some(folder) }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut all = args.to_vec();
        all.extend(["--bootstrap-server", &self.bootstrap]);
        dibs(&all)
    }

    /// Runs a command that must end with this code. Returns what it printed and said.
    #[track_caller]
    pub(crate) fn ends(&self, args: &[&str], code: i32) -> (String, String) {
        ended(&self.command(args).output().unwrap(), code)
    }

    /// Runs a command that must succeed. Returns what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        self.ends(args, 0).0
    }

    /// The same with `--json`.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let printed = self.ok(&all);
        serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"))
    }

    /// Lines of JSON.
    #[track_caller]
    pub(crate) fn json_lines(&self, args: &[&str]) -> Vec<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        self.ok(&all).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// A topic of its own.
    #[track_caller]
    pub(crate) fn topic(&self, partitions: u32) -> String {
        let topic = fresh("t");
        let partitions = partitions.to_string();
        self.ok(&["topic", "create", "--topic", &topic, "--partitions", &partitions]);
        // On a cluster it takes a moment until every broker knows.
        until("the topic is known", || {
            self.command(&["topic", "describe", "--topic", &topic])
                .output()
                .unwrap()
                .status
                .success()
                .then_some(())
        });
        topic
    }

    /// Sends lines.
    #[track_caller]
    pub(crate) fn produce(&self, topic: &str, args: &[&str], lines: &str) {
        let mut all = vec!["produce", "--topic", topic, "--bootstrap-server", &self.bootstrap];
        all.extend(args);
        let (out, said) = ended(&run_with(&all, lines.as_bytes()), 0);
        assert_eq!((out.as_str(), said.as_str()), ("", ""));
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A name that no other test uses, nor another run against the same cluster.
pub(crate) fn fresh(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    format!("{prefix}-{now}-{}-{count}", std::process::id())
}

/// A command that runs until it is told to end.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn start(mut command: Command) -> Running {
        Running::of(command.spawn().expect("the binary runs"))
    }

    pub(crate) fn of(child: Child) -> Running {
        Running(Some(child))
    }

    /// Presses Ctrl-C, and waits for the end.
    pub(crate) fn interrupt(mut self) -> Output {
        let child = self.0.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
