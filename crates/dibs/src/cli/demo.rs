//! `dibs demo`: the product's one job, on this machine, from nothing to the proof.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use dibs_rush::{DemoArgs, Row, ServerHandle, progress_for};
use serde_json::{Value, json};

use super::{Outcome, audit::word, client::Server};

/// `dibs demo`
#[derive(clap::Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    rush: DemoArgs,

    /// Print the report as JSON, and nothing else
    #[arg(long)]
    json: bool,
}

/// A server process that ends with the demonstration.
struct Running {
    process: Child,
    url: String,
}

impl Running {
    fn start(data: &Path) -> anyhow::Result<Running> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut process = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env_remove("DIBS_CONFIG")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line)?;
        match line.trim().strip_prefix("dibs is listening on ") {
            Some(url) => Ok(Running { url: url.to_owned(), process }),
            None => {
                let status = process.wait()?;
                bail!("the server did not start ({status})");
            }
        }
    }

    /// SIGTERM, and wait: the way an operator ends it.
    fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { bail!("the server ended with {status}") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only when something failed before `stop`: nothing may be left running.
        let _ = self.process.kill();
    }
}

pub(crate) fn run(demo: &Demo) -> anyhow::Result<Outcome> {
    let folder =
        tempfile::Builder::new().prefix("dibs-demo-").tempdir().context("cannot make a data folder")?;
    let running = Running::start(folder.path())?;
    let server = Server { url: running.url.clone(), admin_key: None, json: false };
    if !demo.json {
        eprintln!(
            "dibs serve is running on {} with its data in {}\n{} users press {} times for {} coupons\n",
            running.url,
            folder.path().display(),
            dibs_rush::count(demo.rush.users),
            demo.rush.press,
            dibs_rush::count(demo.rush.stock)
        );
    }
    let handle = ServerHandle { url: running.url.clone(), admin_key: None, pid: running.process.id() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(dibs_rush::demo(&demo.rush, &handle, &*progress_for(demo.json)))?;
    let audit = server.post("/v1/audit", None, &json!({}))?.ok()?;
    let exact = report.exact && audit["exact"] == true;
    if demo.json {
        println!("{}", json!({ "report": report, "audit": audit, "exact": exact }));
    } else {
        dibs_rush::print(&report, &rows(&audit))?;
    }
    if demo.rush.keep {
        keep(running, folder.keep(), &report.campaign)?;
    } else {
        running.stop()?;
    }
    Ok(if exact { Outcome::Done } else { Outcome::NotExact })
}

fn rows(audit: &Value) -> Vec<Row> {
    vec![
        Row::new("log records", dibs_rush::count(audit["records"].as_u64().unwrap_or(0))),
        Row::new("ledger rows", dibs_rush::count(audit["rows"].as_u64().unwrap_or(0))),
        Row::judged("audit", word(audit), audit["exact"] == true),
    ]
}

/// Leaves the server running until Ctrl-C and says what to try.
fn keep(running: Running, data: PathBuf, campaign: &str) -> anyhow::Result<()> {
    let url = &running.url;
    println!(
        "\nThe server keeps running; Ctrl-C ends it. Its data stays in {}. Try:\n\n  \
         curl -s {url}/v1/campaigns/{campaign}\n  \
         curl -si {url}/v1/campaigns/{campaign}/claims -d '{{\"user\":\"me\"}}'\n  \
         curl -s {url}/v1/campaigns/{campaign}/restock -d '{{\"units\":1}}'\n  \
         curl -si {url}/v1/campaigns/{campaign}/claims -d '{{\"user\":\"me\"}}'\n  \
         curl -s {url}/metrics\n",
        data.display()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    // The terminal sends Ctrl-C to the server too; whoever is first, it ends once.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut running = running;
    while Instant::now() < deadline {
        if running.process.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
        let pid = rustix::process::Pid::from_child(&running.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    Ok(())
}
