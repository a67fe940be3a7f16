//! The real binary.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::http::PATIENCE;

pub(crate) const KEY: &str = "0123456789abcdef";

/// `dibs` with these arguments and no `DIBS_…` of the surroundings.
pub(crate) fn dibs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dibs"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    dibs(args).output().expect("the binary runs")
}

pub(crate) fn fixture(name: &str) -> String {
    // An absolute path stays what it is.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).to_str().unwrap().to_owned()
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

pub(crate) struct Server {
    process: Child,
    /// Host and port.
    pub(crate) address: String,
    folder: PathBuf,
    /// Kept so that the folder is deleted when the server is gone.
    _made: Option<tempfile::TempDir>,
}

impl Server {
    /// On a data folder of its own.
    pub(crate) fn start(more: &[&str]) -> Server {
        let made = tempfile::tempdir().unwrap();
        let mut server = Server::on(made.path(), more);
        server._made = Some(made);
        server
    }

    pub(crate) fn on(folder: &Path, more: &[&str]) -> Server {
        let mut args = vec!["serve", "--listen", "127.0.0.1:0", "--data", folder.to_str().unwrap()];
        args.extend(more);
        // A write beyond a limit on file sizes must be an error here, as on a full disk, and not a signal.
        let mut command = Command::new("sh");
        command.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#, env!("CARGO_BIN_EXE_dibs")]).args(args);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("the binary runs");
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().to_owned();
        assert!(address.starts_with("127.0.0.1:"), "it has said {line:?}");
        Server { process, address, folder: folder.to_owned(), _made: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    pub(crate) fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let process = &mut self.process;
        until("the server ends", || process.try_wait().unwrap())
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    /// Resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let pid = self.process.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// How many files and connections it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
