//! `cargo xtask bench http`: a server that answers every request with the same bytes, then Dibs, under the same
//! load (wrk) on the same processors.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::process;
use crate::server::{self, Server};

/// Coupons of the campaign that is never sold out.
const LARGE: u64 = 100_000_000;

/// `cargo xtask bench http`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 256)]
    connections: u32,
    /// Seconds of load per server and round
    #[arg(long, default_value_t = 6)]
    seconds: u32,
    /// How often each server has its turn; the median round is shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only axum and the servers whose name has this in it
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
    /// Show every round
    #[arg(long)]
    all: bool,
}

/// One server under one kind of load.
struct Subject {
    name: &'static str,
    server: usize,
    /// Lua: the campaign and the user of the `n`th request; `u` is a number that no other request has.
    choose: &'static str,
}

const AXUM: usize = 0;
const HYPER: usize = 1;
const DIBS: usize = 2;

const SUBJECTS: [Subject; 6] = [
    Subject { name: "constant answer, axum", server: AXUM, choose: "return 'sold-out', u" },
    Subject { name: "constant answer, hyper", server: HYPER, choose: "return 'sold-out', u" },
    Subject { name: "Dibs, sold out", server: DIBS, choose: "return 'sold-out', u" },
    Subject { name: "Dibs, every claim wins", server: DIBS, choose: "return 'large', u" },
    Subject { name: "Dibs, already won", server: DIBS, choose: "return 'large', n % 1000" },
    Subject {
        name: "Dibs, mixed (1 in 10 wins, 1 has won, 8 sold out)",
        server: DIBS,
        choose: "if n % 10 == 0 then return 'large', u elseif n % 10 == 1 then return 'large', n % 1000 \
                 else return 'sold-out', u end",
    },
];

/// What one round said.
#[derive(Clone, Copy)]
struct Figures {
    /// Requests a second.
    rate: f64,
    p50: Duration,
    p99: Duration,
    /// Of the server, a request.
    cpu: Duration,
    rss: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(Command::new("wrk").arg("-v").output().is_ok(), "wrk is not installed: apt-get install wrk");
    let dibs = server::build("dibs", "dibs", &["--release", "--bin", "dibs"])?;
    let constant = server::build("dibs-http", "constant", &["--release", "--example", "constant"])?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let yardstick = |kind: &str| {
        let mut command = Command::new(&constant);
        command.args([kind, "127.0.0.1:0"]);
        Server::spawn(command, &log)
    };
    let servers =
        [yardstick("axum")?, yardstick("hyper")?, Server::start(&dibs, &folder.path().join("data"), &log)?];
    prepare(&servers[DIBS])?;
    println!("{}", process::machine());
    println!("wrk, {} connections, {} s, median of {}", args.connections, args.seconds, args.rounds);
    let mut rounds: Vec<Vec<Figures>> = SUBJECTS.iter().map(|_| Vec::new()).collect();
    for round in 0..args.rounds {
        for (i, subject) in SUBJECTS.iter().enumerate() {
            if i != AXUM && !subject.name.contains(&args.only) {
                continue;
            }
            let script = folder.path().join("load.lua");
            fs::write(&script, lua(subject, round * SUBJECTS.len() + i))?;
            rounds[i].push(measure(&servers[subject.server], &script, args)?);
            if args.all {
                println!("round {}: {}", round + 1, row(subject.name, rounds[i][round], rounds[AXUM][round]));
            }
        }
    }
    println!("| server | requests/s | × axum | p50 | p99 | CPU a request | RSS |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let middle = |figures: &mut Vec<Figures>| {
        figures.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        figures[figures.len() / 2]
    };
    let axum = middle(&mut rounds[AXUM].clone());
    for (subject, figures) in SUBJECTS.iter().zip(&mut rounds).filter(|(_, figures)| !figures.is_empty()) {
        println!("{}", row(subject.name, middle(figures), axum));
    }
    let [_, _, dibs] = servers;
    dibs.end()
}

fn row(name: &str, f: Figures, axum: Figures) -> String {
    let ratio = f.rate / axum.rate;
    let Figures { rate, p50, p99, cpu, rss } = f;
    format!("| {name} | {rate:.0} | {ratio:.2} | {p50:.2?} | {p99:.2?} | {cpu:.1?} | {rss:.0} MiB |")
}

/// One campaign that is sold out, one that never will be.
fn prepare(dibs: &Server) -> anyhow::Result<()> {
    let mut connection = dibs.connect()?;
    for (id, stock) in [("sold-out", 1), ("large", LARGE)] {
        let body = json!({ "id": id, "stock": stock });
        let reply = connection.call("POST", "/v1/campaigns", "", Some(&body))?;
        ensure!(reply.status == 201, "creating {id} is answered {}", reply.status);
    }
    let first = json!({ "user": "first" });
    connection.call("POST", "/v1/campaigns/sold-out/claims", "", Some(&first))?;
    Ok(())
}

/// The requests. Users' names have one length, and no two runs have the same.
fn lua(subject: &Subject, run: usize) -> String {
    let choose = subject.choose;
    format!(
        r#"
local threads = 0
function setup(thread) thread:set("tid", threads); threads = threads + 1 end
local n = 0
local function choose(u) {choose} end
function request()
  n = n + 1
  local campaign, user = choose(({run} * 16 + tid) * 1e9 + n)
  return string.format("POST /v1/campaigns/%s/claims HTTP/1.1\r\nHost: x\r\nContent-Length: 28\r\n\r\n" ..
    "{{\"user\":\"u%016.0f\"}}", campaign, user)
end
"#
    )
}

fn measure(server: &Server, script: &Path, args: &Args) -> anyhow::Result<Figures> {
    let before = process::cpu(server.pid())?;
    let wrk = Command::new("wrk")
        .args(["--latency", "-t2", &format!("-c{}", args.connections), &format!("-d{}", args.seconds), "-s"])
        .arg(script)
        .arg(url(server.address))
        .output()
        .context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&wrk.stdout);
    ensure!(wrk.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&wrk.stderr));
    if let Some(errors) = text.lines().find(|l| l.contains("Socket errors")) {
        bail!("wrk counted errors: {errors}");
    }
    let word = |label: &str, at: usize| {
        let line =
            text.lines().find(|l| l.contains(label)).with_context(|| format!("no {label} in {text}"))?;
        line.split_whitespace().nth(at).with_context(|| format!("{line:?} is cut short"))
    };
    let requests: f64 = word("requests in", 0)?.parse()?;
    let cpu = process::cpu(server.pid())? - before;
    Ok(Figures {
        rate: word("Requests/sec:", 1)?.parse()?,
        p50: duration(word(" 50%", 1)?)?,
        p99: duration(word(" 99%", 1)?)?,
        cpu: cpu.div_f64(requests),
        rss: process::rss_mib(server.pid())?,
    })
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

/// wrk writes `512.00us`, `1.20ms`, `1.05s`.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).context("a latency without a unit")?;
    let value: f64 = text[..split].parse()?;
    let unit = match &text[split..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        other => bail!("latency in {other:?}"),
    };
    Ok(Duration::from_secs_f64(value * unit))
}
