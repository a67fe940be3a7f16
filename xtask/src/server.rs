//! A `dibs serve` of our own: started, stopped, killed. It never outlives us.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::http::Connection;

/// A server that does not start in this time has failed.
const START: Duration = Duration::from_secs(30);

/// A running server. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// The binary to test: the one given, or the workspace's, built now.
pub(crate) fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    match given {
        None => build("dibs", "dibs", &["--bin", "dibs"]),
        Some(path) => {
            ensure!(path.is_file(), "there is no binary {}", path.display());
            path.canonicalize().context("cannot find the binary")
        }
    }
}

/// Builds one executable of a package and says where it is.
pub(crate) fn build(package: &str, name: &str, flags: &[&str]) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--package", package, "--message-format=json-render-diagnostics"])
        .args(flags)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(built.status.success(), "{name} does not build");
    let mut artifacts = built.stdout.split(|b| *b == b'\n').filter_map(|line| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    artifacts.next_back().with_context(|| format!("cargo did not say where {name} is"))
}

impl Server {
    /// Starts a server on a data folder and waits until it has caught up. What it logs is added to `log`.
    pub(crate) fn start(binary: &Path, data: &Path, log: &Path) -> anyhow::Result<Server> {
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        let server = Server::spawn(command, log)?;
        let deadline = Instant::now() + START;
        while server.connect()?.call("GET", "/readyz", "", None)?.status != 200 {
            ensure!(Instant::now() < deadline, "the server is not ready within {START:?}");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    /// Starts any server whose first line of output tells where it listens.
    pub(crate) fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Server> {
        let stderr = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        // From here on `drop` cleans up.
        let mut server = Server { child, address: ([127, 0, 0, 1], 0).into() };
        BufReader::new(stdout).read_line(&mut line)?;
        let Some((_, address)) = line.trim().split_once(" is listening on ") else {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("the server does not start: {}", said.lines().last().unwrap_or("it says nothing"));
        };
        let address = address.trim_start_matches("http://");
        server.address = address.parse().context("the server tells no address")?;
        Ok(server)
    }

    /// Of the process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self) -> anyhow::Result<Connection> {
        Connection::open(self.address).context("cannot connect to the server")
    }

    /// SIGKILL; returns when it is dead.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; returns when it has ended, which it must do in order.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal).context("cannot signal the server")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
