//! SIGKILL at a random moment of a rush, round after round on the same data.

use std::{thread, time::Duration};

use anyhow::Context;

use crate::{
    Rounds,
    judge::Judge,
    load::{Campaign, Load},
    server::{self, Server},
};

pub(crate) fn run(args: &Rounds) -> anyhow::Result<()> {
    let mut random = args.common.random();
    let binary = server::binary(args.common.binary.as_deref())?;
    let folder = tempfile::tempdir()?;
    let (data, log) = (folder.path().join("data"), folder.path().join("server.log"));
    let mut judge = Judge::default();
    let mut server = Server::start(&binary, &data, &log)?;
    for round in 1..=args.rounds {
        let name = format!("r{round}");
        let campaigns = Campaign::trio(&name, random.u64(100..3_000));
        let mut connection = server.connect()?;
        campaigns.iter().try_for_each(|c| c.create(&mut connection))?;
        let load = Load::start(server.address, &campaigns, &name, &mut random);
        thread::sleep(Duration::from_millis(random.u64(5..600)));
        server.kill()?;
        let told = load.end();
        let (won, unknown) = (told.wins.iter().filter(|w| w.first).count(), told.unknown.len());
        server = Server::start(&binary, &data, &log).with_context(|| format!("round {round}"))?;
        judge.after(&server, &campaigns, told, &mut random).with_context(|| format!("round {round}"))?;
        println!("round {round}: {won} wins, {unknown} unknown at the kill, {} lost", judge.lost);
    }
    judge.last(&server)?;
    server.end()?;
    judge.verdict(&format!("{} rounds, {} kills", args.rounds, args.rounds))
}
