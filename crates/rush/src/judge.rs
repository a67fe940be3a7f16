//! The judgement: a pure function from the evidence to everything that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::{ShownClaim, ShownWin};
use crate::gather::Evidence;
use crate::load::told;
use crate::tally::Win;

/// So many problems are told in words; the rest is counted.
const TOLD: usize = 50;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// More wins, or higher ranks, than there are coupons.
    Oversold,
    /// A rank or a code that two users hold, or a user with more than allowed.
    IssuedTwice,
    /// An acknowledged win that the server no longer shows as it was.
    Missing,
    /// Answers that cannot all be true.
    Contradiction,
    /// Ranks that leave gaps, or are not in order of arrival.
    Order,
    /// Refused although something was left.
    UnderIssued,
    /// The ledger did not get all the coupons.
    Unsettled,
    /// The campaign's own numbers do not fit each other or what was acknowledged.
    Accounts,
    /// Answers outside the contract.
    Unexpected,
    /// Questions of the check that have no answer.
    Unverified,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Oversold => "oversold",
            Kind::IssuedTwice => "issued_twice",
            Kind::Missing => "acknowledged_but_missing",
            Kind::Contradiction => "contradictory_answers",
            Kind::Order => "ranks_out_of_order",
            Kind::UnderIssued => "under_issued",
            Kind::Unsettled => "not_in_the_ledger",
            Kind::Accounts => "accounts",
            Kind::Unexpected => "unexpected_answers",
            Kind::Unverified => "unverified",
        }
    }
}

/// What was found.
#[derive(Default)]
pub(crate) struct Findings {
    counts: BTreeMap<Kind, u64>,
    /// In words, the first [`TOLD`].
    pub(crate) problems: Vec<String>,
    /// What could not be checked, and why; nothing wrong by itself.
    pub(crate) notes: Vec<String>,
}

impl Findings {
    /// Notes `count` problems of one kind, told by one text; nothing when there are none.
    pub(crate) fn add(&mut self, kind: Kind, count: u64, text: impl FnOnce() -> String) {
        if count == 0 {
            return;
        }
        *self.counts.entry(kind).or_default() += count;
        if self.problems.len() < TOLD {
            self.problems.push(format!("{}: {}", kind.name(), text()));
        }
    }

    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn by_kind(&self) -> BTreeMap<&'static str, u64> {
        self.counts.iter().map(|(kind, count)| (kind.name(), *count)).collect()
    }
}

/// Judges the evidence.
pub(crate) fn judge(evidence: &Evidence) -> Findings {
    let mut found = Findings::default();
    let case = Case::new(evidence, &mut found);
    case.oversold(&mut found);
    case.issued_twice(&mut found);
    case.missing(&mut found);
    case.contradictions(&mut found);
    case.order(&mut found);
    case.under_issued(&mut found);
    case.accounts(&mut found);
    for error in &evidence.unanswered {
        found.add(Kind::Unverified, 1, || error.to_string());
    }
    found
}

/// The evidence, sorted for the questions.
struct Case<'a> {
    e: &'a Evidence,
    /// One entry for each win, by user and rank: the acknowledged ones, and those the server shows of users
    /// whose last press had no answer.
    wins: Vec<Win>,
    /// Holds run out and give their units to others: less can be demanded.
    volatile: bool,
    /// Nobody had won before the rush.
    fresh: bool,
}

impl<'a> Case<'a> {
    fn new(e: &'a Evidence, found: &mut Findings) -> Case<'a> {
        let mut wins = e.wins.clone();
        wins.sort_by_key(|win| (win.user, win.rank));
        wins.dedup_by(|next, first| {
            let same = (next.user, next.rank) == (first.user, first.rank);
            if same && (next.offset != first.offset || codes_differ(&next.code, &first.code)) {
                found.add(Kind::Contradiction, 1, || {
                    let user = name(e, first.user);
                    format!(
                        "{user} was shown rank {} as {:?} of offset {} and as {:?} of offset {}",
                        first.rank, first.code, first.offset, next.code, next.offset
                    )
                });
            }
            same
        });
        wins.extend(adopted(e));
        let volatile = e.after.hold_seconds > 0;
        if volatile {
            found
                .notes
                .push("holds run out during the rush: ranks and refusals are checked less strictly".into());
        }
        let fresh = e.before.won == 0;
        if !fresh {
            let won = e.before.won;
            found
                .notes
                .push(format!("{won} coupons were won before the rush: gaps in the ranks are not checked"));
        }
        Case { e, wins, volatile, fresh }
    }

    fn oversold(&self, found: &mut Findings) {
        let (stock, won) = (self.e.after.stock, self.e.after.won);
        let highest = self.wins.iter().map(|win| u64::from(win.rank)).max().unwrap_or(0);
        let known = self.wins.len() as u64;
        // With holds, ranks and acknowledged wins count those that ran out, too.
        let most = if self.volatile { won } else { won.max(known).max(highest).max(self.e.after.issued) };
        found.add(Kind::Oversold, most.saturating_sub(stock), || {
            format!(
                "{stock} coupons, but {known} wins known, highest rank {highest}, {won} won by its own count"
            )
        });
    }

    fn issued_twice(&self, found: &mut Findings) {
        let mut by_rank: Vec<&Win> = self.wins.iter().collect();
        by_rank.sort_by_key(|win| win.rank);
        for pair in by_rank.windows(2).filter(|pair| pair[0].rank == pair[1].rank) {
            found.add(Kind::IssuedTwice, 1, || {
                let (one, other) = (name(self.e, pair[0].user), name(self.e, pair[1].user));
                format!("rank {} belongs to {one} and to {other}", pair[0].rank)
            });
        }
        let mut by_code: Vec<&Win> = self.wins.iter().filter(|win| win.code.is_some()).collect();
        by_code.sort_by(|a, b| a.code.cmp(&b.code));
        for pair in by_code.windows(2).filter(|p| p[0].code == p[1].code && p[0].rank != p[1].rank) {
            found.add(Kind::IssuedTwice, 1, || {
                let (one, other) = (name(self.e, pair[0].user), name(self.e, pair[1].user));
                let code = pair[0].code.as_deref().unwrap_or_default();
                format!("code {code} belongs to {one} and to {other}")
            });
        }
        if self.volatile {
            return;
        }
        // Without keys all presses of a user are one press and its retries.
        let allowed = if self.e.keys { self.e.after.per_user_limit as usize } else { 1 };
        for mine in self.wins.chunk_by(|a, b| a.user == b.user).filter(|mine| mine.len() > allowed) {
            found.add(Kind::IssuedTwice, (mine.len() - allowed) as u64, || {
                let ranks: Vec<u32> = mine.iter().map(|win| win.rank).collect();
                format!("{} holds the ranks {ranks:?}, allowed is {allowed}", name(self.e, mine[0].user))
            });
        }
    }

    fn missing(&self, found: &mut Findings) {
        for mine in self.wins.chunk_by(|a, b| a.user == b.user) {
            // The server shows a user's latest win; the others are found by their codes.
            let latest = mine.last().map_or(0, |win| win.rank);
            for win in mine {
                let by_user = if win.rank == latest { self.gone_by_user(win) } else { None };
                if let Some(why) = by_user.or_else(|| self.gone_by_code(win)) {
                    found.add(Kind::Missing, 1, || {
                        format!("{} was acknowledged rank {}, but {why}", name(self.e, win.user), win.rank)
                    });
                }
            }
        }
    }

    fn gone_by_user(&self, win: &Win) -> Option<String> {
        match self.e.claims.get(&win.user)? {
            ShownClaim::Win(shown) if self.same(win, shown) => None,
            // A press without an answer may have won after the last one that was acknowledged.
            ShownClaim::Win(shown) if shown.rank > win.rank && self.may_have_more(win.user) => None,
            ShownClaim::Win(shown) => Some(format!("its claim shows {}", told_win(shown))),
            ShownClaim::Waiting => Some("its claim shows a place on the waitlist".into()),
            ShownClaim::Nothing => Some("the server knows no claim of this user".into()),
        }
    }

    fn gone_by_code(&self, win: &Win) -> Option<String> {
        let code = win.code.as_deref()?;
        match self.e.coupons.get(code)? {
            Some(shown) if self.same(win, shown) => None,
            Some(shown) => Some(format!("coupon {code} shows {}", told_win(shown))),
            None => Some(format!("the server knows no coupon {code}")),
        }
    }

    fn same(&self, win: &Win, shown: &ShownWin) -> bool {
        shown.rank == win.rank
            && shown.offset == win.offset
            && shown.user == name(self.e, win.user)
            && !codes_differ(&win.code, &shown.code)
            && (self.volatile || !shown.dead)
    }

    fn may_have_more(&self, user: u32) -> bool {
        self.e.keys && self.e.told[user as usize] & told::UNKNOWN != 0
    }

    fn contradictions(&self, found: &mut Findings) {
        let e = self.e;
        if e.keys && e.press as u32 <= e.after.per_user_limit {
            // Below the limit a press has its own win, and every retry of it shows the same one.
            let presses: BTreeSet<(u32, u16, u32)> = e.wins.iter().map(|w| (w.user, w.nth, w.rank)).collect();
            let presses: Vec<_> = presses.into_iter().collect();
            for pair in presses.windows(2).filter(|p| (p[0].0, p[0].1) == (p[1].0, p[1].1)) {
                found.add(Kind::Contradiction, 1, || {
                    let (user, nth, rank) = pair[0];
                    let user = name(e, user);
                    format!("press {nth} of {user} was answered with rank {rank} and with rank {}", pair[1].2)
                });
            }
        }
        if self.volatile || e.keys || e.after.stock != e.before.stock {
            return;
        }
        for (user, &what) in (0u32..).zip(&e.told) {
            let both = told::WON | told::SOLD_OUT;
            if what & both == both {
                found.add(Kind::Contradiction, 1, || {
                    format!("{} was told sold out, and was acknowledged a win", name(e, user))
                });
            }
        }
        for (&user, claim) in &e.claims {
            let what = e.told[user as usize];
            if let ShownClaim::Win(shown) = claim
                && what & told::SOLD_OUT != 0
                && what & told::WON == 0
            {
                found.add(Kind::Contradiction, 1, || {
                    format!("{} was told sold out, but its claim shows {}", name(e, user), told_win(shown))
                });
            }
        }
    }

    fn order(&self, found: &mut Findings) {
        if self.volatile {
            return;
        }
        let mut by_rank: Vec<(u32, u64)> = self.wins.iter().map(|win| (win.rank, win.offset)).collect();
        by_rank.sort_unstable();
        by_rank.dedup();
        if self.fresh {
            let mut expected = 1;
            for &(rank, _) in &by_rank {
                found.add(Kind::Order, u64::from(rank.saturating_sub(expected)), || {
                    format!("{} ranks from {expected} on were given to nobody", rank - expected)
                });
                expected = rank.saturating_add(1);
            }
        }
        // A place on the waitlist wins later than it arrived.
        if self.e.after.waitlist == 0 {
            for pair in by_rank.windows(2).filter(|p| p[0].0 != p[1].0 && p[0].1 >= p[1].1) {
                found.add(Kind::Order, 1, || {
                    let ((rank, offset), (next, before)) = (pair[0], pair[1]);
                    format!("rank {rank} arrived at offset {offset}, rank {next} before it at {before}")
                });
            }
        }
    }

    fn under_issued(&self, found: &mut Findings) {
        let left = self.e.after.remaining;
        if self.volatile || left == 0 || self.e.after.stock != self.e.before.stock {
            return;
        }
        let turned_away =
            self.e.told.iter().filter(|&&what| what & (told::SOLD_OUT | told::WAITING) != 0).count();
        if turned_away > 0 {
            found.add(Kind::UnderIssued, left, || {
                format!("{left} coupons are left, and {turned_away} users were told that there are none")
            });
        }
    }

    fn accounts(&self, found: &mut Findings) {
        let after = &self.e.after;
        let off = after.stock.abs_diff(after.won.saturating_add(after.remaining));
        found.add(Kind::Accounts, off, || {
            format!(
                "{} won and {} remaining do not make {} in stock",
                after.won, after.remaining, after.stock
            )
        });
        found.add(Kind::Unsettled, after.issuable().saturating_sub(after.issued), || {
            format!(
                "{} coupons are won, {} are in the ledger and nothing moves",
                after.issuable(),
                after.issued
            )
        });
        if self.volatile {
            return;
        }
        found.add(Kind::Accounts, after.issued.saturating_sub(after.won), || {
            format!("{} coupons are in the ledger, {} were won", after.issued, after.won)
        });
        let known = self.wins.len() as u64;
        if known > after.won || (self.fresh && known < after.won) {
            found.add(Kind::Accounts, known.abs_diff(after.won), || {
                format!("{} coupons are won by its own count, {known} wins are known to users", after.won)
            });
        }
    }
}

/// Wins that the server shows of users who were never told: their presses had no answer.
fn adopted(e: &Evidence) -> Vec<Win> {
    let mut wins = Vec::new();
    for (&user, claim) in &e.claims {
        if let ShownClaim::Win(shown) = claim
            && e.told[user as usize] & told::WON == 0
        {
            let (rank, offset, code) = (shown.rank, shown.offset, shown.code.clone());
            wins.push(Win { user, nth: 0, rank, offset, code });
        }
    }
    wins
}

fn name(e: &Evidence, user: u32) -> String {
    format!("{}{user}", e.user_prefix)
}

/// Both are known and they are not the same.
fn codes_differ(one: &Option<Box<str>>, other: &Option<Box<str>>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

fn told_win(win: &ShownWin) -> String {
    let dead = if win.dead { ", no longer alive" } else { "" };
    let code = win.code.as_deref().unwrap_or("no code");
    format!("rank {} of {} ({code}, offset {}{dead})", win.rank, win.user, win.offset)
}
