//! `decide` against a deliberately dumb twin: plain vectors, linear searches, the rules written down a second
//! time in the most obvious way. Whatever order of commands comes, both must say the same.

use dibs_decide::{Event, State, Status};
use dibs_model::{CampaignSpec, CodeSource, Command, Pattern, Timestamp, Verdict};
use proptest::prelude::*;

#[derive(Clone)]
struct TwinWin {
    user: String,
    key: String,
    status: Status,
    deadline: i64,
    redeemed: Option<(String, String, i64)>,
}

#[derive(Default)]
struct Twin {
    spec: Option<CampaignSpec>,
    now: i64,
    stock: u64,
    paused: bool,
    closed: bool,
    wins: Vec<TwinWin>,
    line: Vec<(String, String)>,
    restocks: Vec<(String, u64)>,
    codes: u64,
}

impl Twin {
    fn live(&self) -> u64 {
        self.wins.iter().filter(|w| w.status.is_live()).count() as u64
    }

    fn win(&mut self, user: &str, key: &str) -> u32 {
        let hold = self.spec.as_ref().unwrap().hold_seconds;
        let status = if hold > 0 { Status::Held } else { Status::Won };
        let deadline = self.now + i64::from(hold) * 1_000;
        self.wins.push(TwinWin { user: user.into(), key: key.into(), status, deadline, redeemed: None });
        self.wins.len() as u32
    }

    fn promote(&mut self) {
        while !self.closed && self.live() < self.stock && !self.line.is_empty() {
            let (user, key) = self.line.remove(0);
            self.win(&user, &key);
        }
    }

    fn find(&self, user: &str, rank: Option<u32>, wanted: fn(Status) -> bool) -> Option<usize> {
        let mine = |i: &usize| self.wins[*i].user == user;
        match rank {
            Some(r) => Some(r as usize - 1).filter(|i| *i < self.wins.len() && mine(i)),
            None => {
                let all: Vec<usize> = (0..self.wins.len()).rev().filter(mine).collect();
                all.iter().find(|i| wanted(self.wins[**i].status)).or(all.first()).copied()
            }
        }
    }

    fn apply(&mut self, ts: i64, command: &Command<'_>) -> Verdict {
        self.now = self.now.max(ts);
        let Some(spec) = self.spec.clone() else {
            return match command {
                Command::Create(spec) => {
                    self.stock = spec.stock;
                    self.spec = Some((**spec).clone());
                    Verdict::Created
                }
                _ => Verdict::UnknownCampaign,
            };
        };
        match command {
            Command::Create(other) if **other == spec => Verdict::Created,
            Command::Create(_) => Verdict::Conflict,
            Command::Claim { user, key } => self.claim(&spec, user, key),
            Command::Confirm { user, rank } => self.confirm(user, *rank),
            Command::Cancel { user, rank } => self.cancel(user, *rank),
            Command::Expire { rank } => self.expire(*rank as usize - 1),
            Command::Redeem { rank, by, key } => self.redeem(*rank as usize - 1, by, key),
            Command::Unredeem { rank } => match self.wins.get_mut(*rank as usize - 1) {
                Some(w) if w.status == Status::Redeemed => {
                    (w.status, w.redeemed) = (Status::Won, None);
                    Verdict::Unredeemed { rank: *rank }
                }
                Some(w) if w.status == Status::Won => Verdict::NotRedeemed,
                _ => Verdict::NoSuchWin,
            },
            Command::Restock { units, key } => {
                if let Some((_, stock)) = self.restocks.iter().find(|(k, _)| !key.is_empty() && k == key) {
                    return Verdict::Restocked { stock: *stock };
                }
                if self.closed {
                    return Verdict::Closed;
                }
                self.stock += units;
                self.restocks.push((key.to_string(), self.stock));
                self.promote();
                Verdict::Restocked { stock: self.stock }
            }
            Command::Codes { .. } if spec.codes != CodeSource::Imported => Verdict::Conflict,
            Command::Codes { imported } => {
                self.codes = self.codes.max(*imported);
                Verdict::Done
            }
            Command::Pause => self.switch(|t| t.paused = true),
            Command::Resume => self.switch(|t| t.paused = false),
            Command::Close => self.switch(|t| {
                t.closed = true;
                t.line.clear();
            }),
        }
    }

    fn switch(&mut self, change: fn(&mut Twin)) -> Verdict {
        change(self);
        Verdict::Done
    }

    fn claim(&mut self, spec: &CampaignSpec, user: &str, key: &str) -> Verdict {
        let mine: Vec<usize> = (0..self.wins.len()).filter(|i| self.wins[*i].user == user).collect();
        if let Some(i) = mine.iter().find(|i| self.wins[**i].key == key) {
            return Verdict::AlreadyWon { rank: *i as u32 + 1 };
        }
        if mine.len() >= spec.per_user_limit as usize {
            return Verdict::AlreadyWon { rank: *mine.last().unwrap() as u32 + 1 };
        }
        if self.now < spec.opens_at.0 {
            return Verdict::NotOpen;
        }
        if self.paused && !self.closed {
            return Verdict::Paused;
        }
        if self.closed || self.now >= spec.closes_at.0 {
            return Verdict::Closed;
        }
        if self.live() < self.stock {
            return Verdict::Won { rank: self.win(user, key) };
        }
        if let Some(i) = self.line.iter().position(|(u, _)| u == user) {
            return Verdict::Waitlisted { position: i as u64 + 1 };
        }
        if self.line.len() as u64 >= spec.waitlist {
            return Verdict::SoldOut;
        }
        self.line.push((user.into(), key.into()));
        Verdict::Waitlisted { position: self.line.len() as u64 }
    }

    fn confirm(&mut self, user: &str, rank: Option<u32>) -> Verdict {
        let Some(i) = self.find(user, rank, |s| s == Status::Held) else { return Verdict::NoSuchWin };
        let rank = i as u32 + 1;
        match self.wins[i].status {
            Status::Held if self.wins[i].deadline < self.now => self.expire(i),
            Status::Held => {
                self.wins[i].status = Status::Won;
                Verdict::Confirmed { rank }
            }
            Status::Won | Status::Redeemed => Verdict::Confirmed { rank },
            Status::Expired => Verdict::Expired { rank },
            Status::Cancelled => Verdict::NoSuchWin,
        }
    }

    fn cancel(&mut self, user: &str, rank: Option<u32>) -> Verdict {
        if rank.is_none()
            && let Some(i) = self.line.iter().position(|(u, _)| u == user)
        {
            self.line.remove(i);
            return Verdict::Cancelled;
        }
        let Some(i) = self.find(user, rank, Status::is_live) else { return Verdict::NoSuchWin };
        match self.wins[i].status {
            Status::Redeemed => Verdict::InUse,
            Status::Expired => Verdict::Expired { rank: i as u32 + 1 },
            Status::Cancelled => Verdict::Cancelled,
            Status::Held | Status::Won => {
                self.wins[i].status = Status::Cancelled;
                self.promote();
                Verdict::Cancelled
            }
        }
    }

    fn expire(&mut self, i: usize) -> Verdict {
        match self.wins.get_mut(i) {
            Some(w) if w.status == Status::Held && w.deadline < self.now => {
                w.status = Status::Expired;
                self.promote();
                Verdict::Expired { rank: i as u32 + 1 }
            }
            _ => Verdict::NotExpired,
        }
    }

    fn redeem(&mut self, i: usize, by: &str, key: &str) -> Verdict {
        let (rank, now) = (i as u32 + 1, self.now);
        let Some(w) = self.wins.get_mut(i) else { return Verdict::NoSuchWin };
        match w.status {
            Status::Won => {
                w.status = Status::Redeemed;
                w.redeemed = Some((by.into(), key.into(), now));
                Verdict::Redeemed { rank, at: Timestamp(now) }
            }
            Status::Redeemed => {
                let (b, k, at) = w.redeemed.clone().unwrap();
                let at = Timestamp(at);
                if !key.is_empty() && b == by && k == key {
                    Verdict::Redeemed { rank, at }
                } else {
                    Verdict::AlreadyRedeemed { rank, at }
                }
            }
            Status::Held => Verdict::Unconfirmed,
            _ => Verdict::NoSuchWin,
        }
    }
}

fn spec() -> impl Strategy<Value = CampaignSpec> {
    (1u64..6, 0i64..20, 20i64..60, 1u32..4, 0u32..3, 0u64..4, any::<bool>()).prop_map(
        |(stock, opens, closes, limit, hold, waitlist, imported)| CampaignSpec {
            title: "t".into(),
            stock,
            opens_at: Timestamp(opens * 1_000),
            closes_at: Timestamp(closes * 1_000),
            per_user_limit: limit,
            codes: if imported { CodeSource::Imported } else { CodeSource::Pattern(Pattern::default()) },
            hold_seconds: hold,
            waitlist,
            intake: None,
        },
    )
}

fn command() -> impl Strategy<Value = Command<'static>> {
    let user = || (0u8..8).prop_map(|u| format!("u{u}").into());
    let key = || (0u8..3).prop_map(|k| if k == 0 { "".into() } else { format!("k{k}").into() });
    let rank = || 1u32..9;
    prop_oneof![
        12 => (user(), key()).prop_map(|(user, key)| Command::Claim { user, key }),
        3 => (user(), proptest::option::of(rank())).prop_map(|(user, rank)| Command::Confirm { user, rank }),
        3 => (user(), proptest::option::of(rank())).prop_map(|(user, rank)| Command::Cancel { user, rank }),
        3 => rank().prop_map(|rank| Command::Expire { rank }),
        2 => (rank(), user(), key()).prop_map(|(rank, by, key)| Command::Redeem { rank, by, key }),
        1 => rank().prop_map(|rank| Command::Unredeem { rank }),
        1 => (1u64..4, key()).prop_map(|(units, key)| Command::Restock { units, key }),
        1 => (0u64..9).prop_map(|imported| Command::Codes { imported }),
        1 => Just(Command::Pause),
        2 => Just(Command::Resume),
        1 => (0u8..8).prop_map(|n| if n == 0 { Command::Close } else { Command::Resume }),
    ]
}

/// The invariants that no order of commands may break (5 and the decide half of 6).
fn check_invariants(state: &State, issued: &mut [bool]) {
    let Some(c) = state.campaign("c") else { return };
    assert!(c.live() <= c.stock(), "oversold");
    assert_eq!(c.live(), (1..=c.ranks()).filter(|r| c.win_at(*r).unwrap().status.is_live()).count() as u64);
    for rank in 1..=c.ranks() {
        let win = c.win_at(rank).expect("ranks are contiguous from 1");
        let same = c.wins_of(win.user).count();
        assert!(same <= c.spec().per_user_limit as usize, "{} has {same}", win.user);
        let coupon = matches!(win.status, Status::Won | Status::Redeemed);
        assert!(!coupon || issued[rank as usize], "rank {rank} has a coupon that was never issued");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn decide_equals_its_twin(
        spec in spec(),
        steps in proptest::collection::vec((0i64..1_500, any::<bool>(), command(), 1u64..3), 1..120),
        cut in 0usize..120,
    ) {
        let mut state = State::new(7);
        let mut twin = Twin::default();
        let (mut clock, mut offset) = (0i64, 0u64);
        let (mut issued, mut coded, mut late) = (vec![false; 200], vec![false; 200], vec![false; 200]);
        let create = Command::Create(Box::new(spec));
        for (i, (step, back, command, gap)) in
            std::iter::once((0, false, create, 1)).chain(steps).enumerate()
        {
            // The brokers' clock sometimes steps back.
            clock = if back { clock - step / 2 } else { clock + step };
            let (wins, codes) = (twin.wins.len(), twin.codes);
            let mut events = Vec::new();
            let json = command.to_json();
            let verdict = state.apply_record(offset, Timestamp(clock), Some(b"c"), Some(&json), &mut events);
            prop_assert_eq!(verdict, twin.apply(clock, &command), "{:?} at {}", command, clock);
            for (_, event) in events {
                match event {
                    Event::Issue { rank } => {
                        prop_assert!(!std::mem::replace(&mut issued[rank as usize], true), "issued twice");
                    }
                    Event::Codes { from, to } => {
                        for rank in from..=to {
                            prop_assert!(!std::mem::replace(&mut coded[rank as usize], true), "two codes");
                        }
                    }
                    _ => {}
                }
            }
            // A code that comes after the win has an event, any other comes with the coupon.
            for rank in codes + 1..=twin.codes.min(wins as u64) {
                late[rank as usize] = true;
            }
            prop_assert_eq!(&coded, &late);
            check_invariants(&state, &mut issued);
            offset += gap;
            if i == cut {
                // A restart from a snapshot goes on as if nothing had happened.
                let bytes = state.snapshot();
                state = State::restore(&bytes, 8).unwrap();
                prop_assert_eq!(&state.snapshot(), &bytes);
            }
        }
    }

    /// A damaged snapshot is refused, whichever bit it is.
    #[test]
    fn a_damaged_snapshot_is_refused(bit in any::<proptest::sample::Index>()) {
        let mut state = State::new(1);
        let mut events = Vec::new();
        for (offset, value) in include_str!("../../model/testdata/commands.jsonl").lines().enumerate() {
            state.apply_record(offset as u64, Timestamp(1), Some(b"c"), Some(value.as_bytes()), &mut events);
        }
        let mut bytes = state.snapshot();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(State::restore(&bytes, 1).is_err());
    }
}
