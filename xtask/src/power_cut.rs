//! What a disk has at one instant under load is what a power cut would leave: nothing of what only the system's
//! memory held. A kill cannot show that, for the system's memory survives it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::process::Signal;

use crate::{
    Rounds,
    judge::Judge,
    load::{Campaign, Load},
    server::{self, Server},
    volume::{self, Volume},
};

const DISK_MIB: u64 = 96;
/// What was under way to the disk when the server was stopped arrives within this time.
const SETTLE: Duration = Duration::from_millis(30);

pub(crate) fn run(args: &Rounds) -> anyhow::Result<()> {
    if let Err(reason) = volume::enter() {
        volume::skipped("power-cut", &reason);
        return Ok(());
    }
    let mut random = args.common.random();
    let binary = server::binary(args.common.binary.as_deref())?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("server.log");
    let mut disk = folder.path().join("disk-0.img");
    Volume::format(&disk, DISK_MIB)?;
    let (mut judge, mut dropped) = (Judge::default(), 0);
    for round in 1..=args.rounds {
        let volume = Volume::mount(&disk, &folder.path().join("before"))?;
        let server = Server::start(&binary, &volume.mounted.join("data"), &log)?;
        let name = format!("p{round}");
        let campaigns = Campaign::trio(&name, random.u64(100..3_000));
        let mut connection = server.connect()?;
        campaigns.iter().try_for_each(|c| c.create(&mut connection))?;
        let load = Load::start(server.address, &campaigns, &name, &mut random);
        thread::sleep(Duration::from_millis(random.u64(5..500)));
        // The server stands still while the disk is copied, or the copy would be of many moments at once.
        server.signal(Signal::STOP)?;
        let cut = Instant::now();
        thread::sleep(SETTLE);
        let copy = folder.path().join(format!("disk-{round}.img"));
        fs::copy(&disk, &copy)?;
        server.kill()?;
        let mut told = load.end();
        drop(volume);
        fs::remove_file(&disk)?;
        // Answers that were in the network's buffers count for the time they were read.
        let all = told.wins.len();
        told.wins.retain(|w| w.at <= cut);
        dropped += all - told.wins.len();
        disk = copy;
        let volume = Volume::mount(&disk, &folder.path().join("after"))?;
        let server = Server::start(&binary, &volume.mounted.join("data"), &log)
            .with_context(|| format!("round {round}: after the power cut"))?;
        judge.after(&server, &campaigns, told, &mut random).with_context(|| format!("round {round}"))?;
        println!("round {round}: {} wins so far, {} lost", judge.acknowledged(), judge.lost);
        if round == args.rounds {
            judge.last(&server)?;
        }
        server.end()?;
        drop(volume);
        volume::fsck(&disk)?;
    }
    println!("{dropped} wins were read after a cut and are not counted");
    judge.verdict(&format!("{} rounds, {} power cuts", args.rounds, args.rounds))
}
