//! The disk fills up under load; later there is room again.

use std::{
    fs::{self, File},
    io::Write,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::{
    Common,
    judge::Judge,
    load::{Campaign, Load},
    server::{self, Server},
    volume::{self, Volume},
};

const DISK_MIB: u64 = 64;
/// How long the disk may take to be full, and the server to notice that it is not any more.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &Common) -> anyhow::Result<()> {
    if let Err(reason) = volume::enter() {
        volume::skipped("disk-full", &reason);
        return Ok(());
    }
    let mut random = args.random();
    let binary = server::binary(args.binary.as_deref())?;
    let folder = tempfile::tempdir()?;
    let (image, log) = (folder.path().join("disk.img"), folder.path().join("server.log"));
    Volume::format(&image, DISK_MIB)?;
    let disk = Volume::mount(&image, &folder.path().join("disk"))?;
    let server = Server::start(&binary, &disk.mounted.join("data"), &log)?;
    let campaigns = Campaign::trio("full", 1_000_000);
    let mut connection = server.connect()?;
    campaigns.iter().try_for_each(|c| c.create(&mut connection))?;
    let load = Load::start(server.address, &campaigns, "f", &mut random);
    thread::sleep(Duration::from_millis(500));
    // Somebody else's file takes all there is.
    let ballast = disk.mounted.join("ballast");
    fill(&ballast)?;
    thread::sleep(Duration::from_secs(4));
    let full = load.end();
    println!("while it filled up: {:?}", full.statuses);
    let refused = full.statuses.get(&503).copied().unwrap_or(0);
    ensure!(refused > 0, "a full disk was never noticed");
    ensure!(full.no_retry_after == 0, "{} times 503 or 429 without Retry-After", full.no_retry_after);
    let others = full.statuses.keys().find(|s| !matches!(s, 200 | 201 | 202 | 409 | 429 | 503));
    ensure!(others.is_none(), "an answer of status {others:?}");
    fs::remove_file(&ballast)?;
    let freed = Instant::now();
    let probe = Campaign { id: "after".into(), stock: 10, per_user: 1, hold: 0, waitlist: 0 };
    while let Err(error) = probe.create(&mut connection) {
        ensure!(freed.elapsed() < PATIENCE, "it does not recover: {error}");
        thread::sleep(Duration::from_millis(20));
    }
    println!("takes claims again {:.1?} after there was room", freed.elapsed());
    let mut judge = Judge::default();
    judge.after(&server, &campaigns, full, &mut random)?;
    let load = Load::start(server.address, &campaigns, "g", &mut random);
    thread::sleep(Duration::from_millis(500));
    let well = load.end();
    ensure!(!well.statuses.contains_key(&503), "still refused afterwards: {:?}", well.statuses);
    judge.after(&server, &[], well, &mut random)?;
    judge.last(&server)?;
    server.kill()?;
    let server = Server::start(&binary, &disk.mounted.join("data"), &log).context("after the full disk")?;
    judge.last(&server)?;
    server.end()?;
    judge.verdict(&format!("a full disk, {refused} claims answered 503"))
}

/// Writes until there is no room left.
fn fill(path: &std::path::Path) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    for size in [1 << 20, 1 << 12, 1] {
        let piece = vec![1; size];
        while file.write_all(&piece).is_ok() {}
    }
    let _ = file.sync_all();
    Ok(())
}
