//! What clients were told against what the server says afterwards.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};

use crate::{
    load::{Campaign, Told, Win, win},
    server::Server,
};

/// How long the ledger may take to have everything.
const ISSUED: Duration = Duration::from_secs(60);
/// Wins of earlier rounds that are looked at again after each round; the last look is at all.
const AGAIN: usize = 500;

/// Everything that clients were ever told on one data folder.
#[derive(Default)]
pub(crate) struct Judge {
    wins: Vec<Win>,
    holders: HashMap<(String, u64), String>,
    campaigns: Vec<Campaign>,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) over: u64,
}

impl Judge {
    pub(crate) fn acknowledged(&self) -> usize {
        self.wins.len()
    }

    /// Takes note of what clients were told in a round, and asks again what they were not told.
    pub(crate) fn after(
        &mut self,
        server: &Server,
        campaigns: &[Campaign],
        told: Told,
        random: &mut fastrand::Rng,
    ) -> anyhow::Result<()> {
        let old = self.wins.len();
        self.campaigns.extend_from_slice(campaigns);
        told.wins.into_iter().for_each(|win| self.note(win));
        let mut connection = server.connect()?;
        for press in told.unknown.iter().take(AGAIN) {
            let reply = press.send(&mut connection)?;
            ensure!(reply.status < 500, "asking again is answered {} {}", reply.status, reply.body);
            if let Some(win) = win(press, &reply, Instant::now()) {
                self.note(win);
            }
        }
        let mut again: Vec<usize> = (old..self.wins.len()).collect();
        again.extend((0..AGAIN.min(old)).map(|_| random.usize(..old)));
        self.look(server, &again)?;
        self.audit(server, campaigns, false)
    }

    /// Looks at every win once more, and waits until the ledger has them all.
    pub(crate) fn last(&mut self, server: &Server) -> anyhow::Result<()> {
        self.look(server, &(0..self.wins.len()).collect::<Vec<_>>())?;
        self.audit(server, &self.campaigns.clone(), true)
    }

    fn note(&mut self, win: Win) {
        let rank = (win.press.campaign.id.clone(), win.rank);
        let holder = self.holders.entry(rank).or_insert_with(|| win.press.user.clone());
        if *holder != win.press.user {
            println!("TWICE: rank {} is also {holder}'s: {win:?}", win.rank);
            self.twice += 1;
        }
        if win.press.campaign.hold == 0 && win.rank > win.press.campaign.stock {
            println!("OVER: {win:?}");
            self.over += 1;
        }
        if win.first {
            self.wins.push(win);
        }
    }

    /// Presses once more for wins that were acknowledged: the same rank and code must come back.
    fn look(&mut self, server: &Server, which: &[usize]) -> anyhow::Result<()> {
        let mut connection = server.connect()?;
        for &i in which {
            let told = &self.wins[i];
            let reply = told.press.send(&mut connection)?;
            let now = win(&told.press, &reply, Instant::now());
            let same = now.is_some_and(|w| {
                !w.first && w.rank == told.rank && (told.code.is_none() || told.code == w.code)
            });
            if !same {
                println!("LOST: {told:?} is now {} {}", reply.status, reply.body);
                self.lost += 1;
            }
        }
        Ok(())
    }

    fn audit(&mut self, server: &Server, campaigns: &[Campaign], whole: bool) -> anyhow::Result<()> {
        let mut connection = server.connect()?;
        for campaign in campaigns {
            let shown = connection.call("GET", &format!("/v1/campaigns/{}", campaign.id), "", None)?;
            let won = shown.body["won"].as_u64();
            if won.is_none_or(|won| won > campaign.stock) {
                println!("OVER: {} has {won:?} wins of {}", campaign.id, campaign.stock);
                self.over += 1;
            }
        }
        let deadline = Instant::now() + ISSUED;
        loop {
            let audit = connection.call("POST", "/v1/audit", "", None)?;
            ensure!(audit.body["exact"] == true, "the audit found differences: {}", audit.body);
            if !whole || audit.body["not_yet_issued"] == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not everything is issued within {ISSUED:?}: {}", audit.body);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The verdict over the whole run, as a line and an exit.
    pub(crate) fn verdict(&self, what: &str) -> anyhow::Result<()> {
        println!(
            "{what}, {} acknowledged wins, {} lost, {} twice, {} over",
            self.wins.len(),
            self.lost,
            self.twice,
            self.over
        );
        ensure!(self.lost + self.twice + self.over == 0, "the server was not exact");
        Ok(())
    }
}
