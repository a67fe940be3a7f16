//! A server that stands still for a while: a debugger, a snapshot of the machine, a hypervisor that takes its time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use rustix::process::Signal;

use crate::{
    Common,
    judge::Judge,
    load::{Campaign, Load},
    server::{self, Server},
};

const STALL: Duration = Duration::from_secs(5);
const BEFORE: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &Common) -> anyhow::Result<()> {
    let mut random = args.random();
    let binary = server::binary(args.binary.as_deref())?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("server.log");
    let server = Server::start(&binary, &folder.path().join("data"), &log)?;
    // More stock than can be pressed for: every refusal is a wrong one.
    let campaigns = [
        Campaign { id: "plain".into(), stock: 10_000_000, per_user: 1, hold: 0, waitlist: 0 },
        Campaign { id: "two".into(), stock: 10_000_000, per_user: 2, hold: 0, waitlist: 0 },
    ];
    let mut connection = server.connect()?;
    campaigns.iter().try_for_each(|c| c.create(&mut connection))?;
    let load = Load::start(server.address, &campaigns, "s", &mut random);
    thread::sleep(BEFORE);
    server.signal(Signal::STOP)?;
    let stopped = Instant::now();
    thread::sleep(STALL);
    server.signal(Signal::CONT)?;
    let resumed = Instant::now();
    thread::sleep(BEFORE);
    let told = load.end();
    println!("answers by status: {:?}, {} without any", told.statuses, told.unknown.len());
    let before = told.latencies.iter().filter(|l| l.0 < stopped).map(|l| l.1).collect();
    let after: Vec<_> = told.latencies.iter().filter(|l| l.0 >= resumed).map(|l| l.1).collect();
    let (across, after): (Vec<_>, Vec<_>) = after.into_iter().partition(|l| *l >= STALL / 2);
    for (when, latencies) in [("before", before), ("across the stall", across), ("after", after)] {
        println!("{when}: {}", quantiles(latencies));
    }
    let wrong: u64 = told.statuses.iter().filter(|s| !matches!(s.0, 200 | 201)).map(|s| s.1).sum();
    let unknown = told.unknown.len();
    let mut judge = Judge::default();
    judge.after(&server, &campaigns, told, &mut random)?;
    judge.last(&server)?;
    server.end()?;
    judge.verdict(&format!("stalled for {} s, {wrong} refused, {unknown} unknown", STALL.as_secs()))?;
    ensure!(wrong == 0 && unknown == 0, "a stall must refuse nobody and lose no answer");
    Ok(())
}

fn quantiles(mut latencies: Vec<Duration>) -> String {
    latencies.sort_unstable();
    let Some(last) = latencies.last() else { return "no answers".into() };
    let at = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize];
    format!("{} answers, p50 {:.1?}, p99 {:.1?}, max {last:.1?}", latencies.len(), at(0.5), at(0.99))
}
