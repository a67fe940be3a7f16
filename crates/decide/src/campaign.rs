//! One campaign and the rules by which its commands are judged (rules version 1).

use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
};

use dibs_model::{
    CampaignId, CampaignSpec, CodeSource, Command, Offset, Rank, Timestamp, Verdict,
    limits::{RESTOCK_KEYS, STOCK},
};

use crate::{
    Event,
    waitlist::{Waiting, Waitlist},
    winners::{Status, Win, Winners},
};

/// Who used a coupon and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redemption {
    /// Who: a till, a shop, a person.
    pub by: Box<str>,
    /// The request key of the use.
    pub key: Box<str>,
    /// When, by the log.
    pub at: Timestamp,
}

/// What a campaign does with claims at some instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not open yet.
    Scheduled,
    /// Claims can win.
    Open,
    /// Suspended.
    Paused,
    /// Open, with nothing left to win; there may still be room on the waitlist.
    SoldOut,
    /// Over.
    Closed,
}

impl Phase {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Scheduled => "scheduled",
            Phase::Open => "open",
            Phase::Paused => "paused",
            Phase::SoldOut => "sold_out",
            Phase::Closed => "closed",
        }
    }
}

/// One campaign: what was announced, and what has become of it.
pub struct Campaign {
    pub(crate) id: CampaignId,
    pub(crate) spec: Box<CampaignSpec>,
    pub(crate) created: Offset,
    /// The announced stock plus restocks. `winners.live() <= stock`, always.
    pub(crate) stock: u64,
    /// Codes in the imported list, as far as the log has said so; never shrinks.
    pub(crate) codes: u64,
    pub(crate) paused: bool,
    pub(crate) closed: bool,
    pub(crate) winners: Winners,
    /// Deadlines of the held wins. Log time and ranks both only grow and the hold is the same for all, so
    /// the order of ranks is the order of deadlines.
    pub(crate) held: BTreeMap<Rank, Timestamp>,
    /// Non-empty only while no unit is free, unless the campaign is closed (then it is empty).
    pub(crate) waitlist: Waitlist,
    pub(crate) redemptions: BTreeMap<Rank, Redemption>,
    /// Keys of the latest restocks and the stock that each of them led to.
    pub(crate) restocks: VecDeque<(Box<str>, u64)>,
}

impl Campaign {
    pub(crate) fn new(id: CampaignId, spec: Box<CampaignSpec>, created: Offset, seed: u64) -> Campaign {
        Campaign {
            id,
            stock: spec.stock,
            spec,
            created,
            codes: 0,
            paused: false,
            closed: false,
            winners: Winners::new(seed),
            held: BTreeMap::new(),
            waitlist: Waitlist::default(),
            redemptions: BTreeMap::new(),
            restocks: VecDeque::new(),
        }
    }

    pub(crate) fn apply(
        &mut self,
        offset: Offset,
        now: Timestamp,
        command: &Command<'_>,
        mut emit: impl FnMut(Event),
    ) -> Verdict {
        let emit = &mut emit;
        match command {
            Command::Claim { user, key } => self.claim(offset, now, user, key, emit),
            Command::Create(spec) if *spec == self.spec => Verdict::Created,
            Command::Create(_) => Verdict::Conflict,
            Command::Confirm { user, rank } => self.confirm(offset, now, user, *rank, emit),
            Command::Cancel { user, rank } => self.cancel(offset, now, user, *rank, emit),
            Command::Expire { rank } => self.expire(offset, now, *rank, emit),
            Command::Redeem { rank, by, key } => self.redeem(now, *rank, by, key, emit),
            Command::Unredeem { rank } => self.unredeem(*rank, emit),
            Command::Restock { units, key } => self.restock(offset, now, *units, key, emit),
            Command::Codes { imported } => self.codes(*imported, emit),
            Command::Pause => self.switch(true, self.closed, emit),
            Command::Resume => self.switch(false, self.closed, emit),
            Command::Close => self.switch(self.paused, true, emit),
        }
    }

    fn claim(
        &mut self,
        offset: Offset,
        now: Timestamp,
        user: &str,
        key: &str,
        emit: &mut impl FnMut(Event),
    ) -> Verdict {
        if let Some(win) = self.held_by(user, key) {
            return Verdict::AlreadyWon { rank: win.rank };
        }
        match self.phase_at(now) {
            Phase::Scheduled => return Verdict::NotOpen,
            Phase::Paused => return Verdict::Paused,
            Phase::Closed => return Verdict::Closed,
            Phase::Open => {
                let rank = self.win(user, key, (offset, now), offset, now, emit);
                return Verdict::Won { rank };
            }
            Phase::SoldOut => {}
        }
        if let Some(position) = self.waitlist.position(user) {
            return Verdict::Waitlisted { position };
        }
        if self.waitlist.len() >= self.spec.waitlist {
            return Verdict::SoldOut;
        }
        let waiting = Waiting { user: user.into(), key: key.into(), offset, timestamp: now };
        Verdict::Waitlisted { position: self.waitlist.push(waiting) }
    }

    /// Gives the next rank and, unless it must be confirmed, a coupon.
    fn win(
        &mut self,
        user: &str,
        key: &str,
        claim: (Offset, Timestamp),
        decided: Offset,
        now: Timestamp,
        emit: &mut impl FnMut(Event),
    ) -> Rank {
        assert!(self.winners.live() < self.stock, "a win without a free unit");
        let hold = self.spec.hold_seconds;
        let status = if hold == 0 { Status::Won } else { Status::Held };
        let rank = self.winners.push(user, key, claim, decided, status);
        if hold == 0 {
            emit(Event::Issue { rank });
        } else {
            self.held.insert(rank, now.plus_seconds(hold));
            emit(Event::Hold { rank });
        }
        rank
    }

    fn confirm(
        &mut self,
        offset: Offset,
        now: Timestamp,
        user: &str,
        rank: Option<Rank>,
        emit: &mut impl FnMut(Event),
    ) -> Verdict {
        let Some((rank, status)) = self.win_of(user, rank, |s| s == Status::Held) else {
            return Verdict::NoSuchWin;
        };
        match status {
            Status::Held if self.held[&rank] < now => self.expire(offset, now, rank, emit),
            Status::Held => {
                self.held.remove(&rank);
                self.winners.set(rank, Status::Won, Some(offset));
                emit(Event::Issue { rank });
                Verdict::Confirmed { rank }
            }
            Status::Won | Status::Redeemed => Verdict::Confirmed { rank },
            Status::Expired => Verdict::Expired { rank },
            Status::Cancelled => Verdict::NoSuchWin,
        }
    }

    fn cancel(
        &mut self,
        offset: Offset,
        now: Timestamp,
        user: &str,
        rank: Option<Rank>,
        emit: &mut impl FnMut(Event),
    ) -> Verdict {
        if rank.is_none() && self.waitlist.remove(user) {
            return Verdict::Cancelled;
        }
        let Some((rank, status)) = self.win_of(user, rank, Status::is_live) else {
            return Verdict::NoSuchWin;
        };
        match status {
            Status::Redeemed => Verdict::InUse,
            Status::Cancelled => Verdict::Cancelled,
            Status::Expired => Verdict::Expired { rank },
            Status::Held | Status::Won => {
                self.release(offset, now, rank, Status::Cancelled, emit);
                Verdict::Cancelled
            }
        }
    }

    fn expire(
        &mut self,
        offset: Offset,
        now: Timestamp,
        rank: Rank,
        emit: &mut impl FnMut(Event),
    ) -> Verdict {
        match self.held.get(&rank) {
            Some(deadline) if *deadline < now => {
                self.release(offset, now, rank, Status::Expired, emit);
                Verdict::Expired { rank }
            }
            _ => Verdict::NotExpired,
        }
    }

    /// Takes the unit back from a win and gives it to the first in line.
    fn release(
        &mut self,
        offset: Offset,
        now: Timestamp,
        rank: Rank,
        status: Status,
        emit: &mut impl FnMut(Event),
    ) {
        let issued = self.held.remove(&rank).is_none();
        self.winners.set(rank, status, None);
        emit(Event::Release { rank, issued });
        self.promote(offset, now, emit);
    }

    /// Gives free units to those in line, first come, first served.
    fn promote(&mut self, offset: Offset, now: Timestamp, emit: &mut impl FnMut(Event)) {
        while !self.closed && self.free() > 0 {
            let Some(first) = self.waitlist.pop() else { return };
            self.win(&first.user, &first.key, (first.offset, first.timestamp), offset, now, emit);
        }
    }

    fn redeem(
        &mut self,
        now: Timestamp,
        rank: Rank,
        by: &str,
        key: &str,
        emit: &mut impl FnMut(Event),
    ) -> Verdict {
        match self.winners.get(rank).map(|w| w.status) {
            None | Some(Status::Cancelled | Status::Expired) => Verdict::NoSuchWin,
            Some(Status::Held) => Verdict::Unconfirmed,
            Some(Status::Redeemed) => {
                let earlier = &self.redemptions[&rank];
                if !key.is_empty() && *earlier.key == *key && *earlier.by == *by {
                    Verdict::Redeemed { rank, at: earlier.at }
                } else {
                    Verdict::AlreadyRedeemed { rank, at: earlier.at }
                }
            }
            Some(Status::Won) => {
                let redemption = Redemption { by: by.into(), key: key.into(), at: now };
                self.winners.set(rank, Status::Redeemed, None);
                self.redemptions.insert(rank, redemption.clone());
                emit(Event::Redeem { rank, redemption });
                Verdict::Redeemed { rank, at: now }
            }
        }
    }

    fn unredeem(&mut self, rank: Rank, emit: &mut impl FnMut(Event)) -> Verdict {
        match self.winners.get(rank).map(|w| w.status) {
            Some(Status::Redeemed) => {
                self.winners.set(rank, Status::Won, None);
                self.redemptions.remove(&rank);
                emit(Event::Unredeem { rank });
                Verdict::Unredeemed { rank }
            }
            Some(Status::Won) => Verdict::NotRedeemed,
            _ => Verdict::NoSuchWin,
        }
    }

    fn restock(
        &mut self,
        offset: Offset,
        now: Timestamp,
        units: u64,
        key: &str,
        emit: &mut impl FnMut(Event),
    ) -> Verdict {
        if let Some((_, stock)) = self.restocks.iter().find(|(k, _)| !key.is_empty() && **k == *key) {
            return Verdict::Restocked { stock: *stock };
        }
        if self.closed {
            return Verdict::Closed;
        }
        // Ranks are never reused, so the stock and every unit released so far share the range of ranks.
        if self.stock + units + (self.winners.len() - self.winners.live()) > STOCK {
            return Verdict::StockLimit;
        }
        self.stock += units;
        if !key.is_empty() {
            self.restocks.push_back((key.into(), self.stock));
            if self.restocks.len() > RESTOCK_KEYS {
                self.restocks.pop_front();
            }
        }
        emit(Event::Campaign);
        self.promote(offset, now, emit);
        Verdict::Restocked { stock: self.stock }
    }

    fn codes(&mut self, imported: u64, emit: &mut impl FnMut(Event)) -> Verdict {
        if self.spec.codes != CodeSource::Imported {
            return Verdict::Conflict;
        }
        let (from, to) = (self.codes + 1, imported.min(self.winners.len()));
        self.codes = self.codes.max(imported);
        if from <= to {
            emit(Event::Codes { from: from as Rank, to: to as Rank });
        }
        Verdict::Done
    }

    fn switch(&mut self, paused: bool, closed: bool, emit: &mut impl FnMut(Event)) -> Verdict {
        if (paused, closed) != (self.paused, self.closed) {
            (self.paused, self.closed) = (paused, closed);
            if closed {
                self.waitlist.clear();
            }
            emit(Event::Campaign);
        }
        Verdict::Done
    }

    /// The user's win of this rank; without one the latest that `wanted` accepts, or else the latest.
    fn win_of(&self, user: &str, rank: Option<Rank>, wanted: fn(Status) -> bool) -> Option<(Rank, Status)> {
        let win = match rank {
            Some(rank) => self.winners.get(rank).filter(|w| w.user == user),
            None => self
                .winners
                .of_user(user)
                .find(|w| wanted(w.status))
                .or_else(|| self.winners.of_user(user).next()),
        }?;
        Some((win.rank, win.status))
    }

    /// The win that answers another press of this user with this key: the one with the same key, or the
    /// latest when the user has had as many as the limit allows. A win given up or expired counts: each user
    /// has `per_user_limit` chances.
    pub fn held_by(&self, user: &str, key: &str) -> Option<Win<'_>> {
        let mut count = 0;
        let mut latest = None;
        for win in self.winners.of_user(user) {
            if win.key == key {
                return Some(win);
            }
            latest = latest.or(Some(win));
            count += 1;
        }
        latest.filter(|_| count >= self.spec.per_user_limit)
    }

    /// What a claim meets at this instant of the log.
    pub fn phase_at(&self, now: Timestamp) -> Phase {
        if now < self.spec.opens_at {
            Phase::Scheduled
        } else if self.paused && !self.closed {
            Phase::Paused
        } else if self.closed || now >= self.spec.closes_at {
            Phase::Closed
        } else if self.free() == 0 {
            Phase::SoldOut
        } else {
            Phase::Open
        }
    }

    /// Its id.
    pub fn id(&self) -> &CampaignId {
        &self.id
    }

    /// What was announced.
    pub fn spec(&self) -> &CampaignSpec {
        &self.spec
    }

    /// The offset of its `create`.
    pub fn created(&self) -> Offset {
        self.created
    }

    /// The announced stock plus restocks.
    pub fn stock(&self) -> u64 {
        self.stock
    }

    /// Codes in its imported list, as far as the log has said so; 0 where codes are made from ranks.
    pub fn imported_codes(&self) -> u64 {
        self.codes
    }

    /// Units that nobody holds.
    pub fn free(&self) -> u64 {
        self.stock - self.winners.live()
    }

    /// Wins that take up a unit, held ones included.
    pub fn live(&self) -> u64 {
        self.winners.live()
    }

    /// Wins that wait for `confirm`.
    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// The highest rank given.
    pub fn ranks(&self) -> Rank {
        self.winners.len() as Rank
    }

    /// Claims in line.
    pub fn waiting(&self) -> u64 {
        self.waitlist.len()
    }

    /// Whether another claim could be put in line.
    pub fn can_wait(&self) -> bool {
        self.waitlist.len() < self.spec.waitlist
    }

    /// Whether it was closed by hand.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// A win by its rank.
    pub fn win_at(&self, rank: Rank) -> Option<Win<'_>> {
        self.winners.get(rank)
    }

    /// A user's wins, latest first.
    pub fn wins_of<'a>(&'a self, user: &str) -> impl Iterator<Item = Win<'a>> + use<'a> {
        self.winners.of_user(user)
    }

    /// A user's place in line, from 1.
    pub fn position_of(&self, user: &str) -> Option<u64> {
        self.waitlist.position(user)
    }

    /// By when a held win must be confirmed.
    pub fn confirm_by(&self, rank: Rank) -> Option<Timestamp> {
        self.held.get(&rank).copied()
    }

    /// The held win that expires first, and when.
    pub fn first_deadline(&self) -> Option<(Rank, Timestamp)> {
        self.held.first_key_value().map(|(r, t)| (*r, *t))
    }

    /// Held wins in order of their deadlines.
    pub fn deadlines(&self) -> impl Iterator<Item = (Rank, Timestamp)> {
        self.held.iter().map(|(r, t)| (*r, *t))
    }

    /// Who used the coupon of this win, and when.
    pub fn redemption(&self, rank: Rank) -> Option<&Redemption> {
        self.redemptions.get(&rank)
    }
}
