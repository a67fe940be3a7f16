//! The answers. Names and numbers are stable: they stand in metrics, in receipts and in other people's code.

use crate::{Rank, Timestamp};

/// What `decide` says to one command. A refusal is a verdict, not an error.
///
/// For a claim the first that applies is given, in the order `malformed`, `unknown_campaign`, `already_won`,
/// `not_open`, `paused`, `closed`, `won`, `waitlisted`, `sold_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The record is no command.
    Malformed,
    /// No `create` came before, in this partition.
    UnknownCampaign,
    /// The user holds this win already (or as many as the limit allows: then it is the latest).
    AlreadyWon {
        /// The win that is held.
        rank: Rank,
    },
    /// Too early. Costs the user nothing: a later claim is judged afresh.
    NotOpen,
    /// Claims are suspended until `resume`.
    Paused,
    /// Too late, or closed by hand.
    Closed,
    /// The claim has won.
    Won {
        /// The winner's number in order, from 1.
        rank: Rank,
    },
    /// In line for the next unit that is released or restocked.
    Waitlisted {
        /// How many are in line up to and including this claim.
        position: u64,
    },
    /// Nothing is left and nobody can wait.
    SoldOut,
    /// `create`: the campaign exists now, or existed with the same content.
    Created,
    /// `create`: a campaign with this id and other content exists; `codes`: it makes its own codes.
    Conflict,
    /// `confirm`: the held win is kept.
    Confirmed {
        /// The win.
        rank: Rank,
    },
    /// `cancel`: the win is given up and its unit released, or the claim has left the waitlist.
    Cancelled,
    /// `expire`: the hold has run out and its unit is released.
    Expired {
        /// The win.
        rank: Rank,
    },
    /// `expire`: by the log's time the hold has not run out, or it was confirmed.
    NotExpired,
    /// `redeem`: used now, or earlier by the same request key.
    Redeemed {
        /// The win.
        rank: Rank,
        /// When, by the log's time.
        at: Timestamp,
    },
    /// `redeem`: somebody used it before.
    AlreadyRedeemed {
        /// The win.
        rank: Rank,
        /// When, by the log's time.
        at: Timestamp,
    },
    /// `unredeem`: it can be used again.
    Unredeemed {
        /// The win.
        rank: Rank,
    },
    /// `unredeem`: it was not in use.
    NotRedeemed,
    /// `restock`: the stock is larger now, or was enlarged earlier by the same request key.
    Restocked {
        /// The whole stock from now on.
        stock: u64,
    },
    /// `restock`: the stock would exceed its limit.
    StockLimit,
    /// `codes`, `pause`, `resume`, `close`: it is so.
    Done,
    /// `confirm`, `cancel`, `redeem`, `unredeem`: there is no such live win.
    NoSuchWin,
    /// `redeem`: the win is held and not confirmed yet.
    Unconfirmed,
    /// `cancel`: the coupon has been used.
    InUse,
}

impl Verdict {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Malformed => "malformed",
            Verdict::UnknownCampaign => "unknown_campaign",
            Verdict::AlreadyWon { .. } => "already_won",
            Verdict::NotOpen => "not_open",
            Verdict::Paused => "paused",
            Verdict::Closed => "closed",
            Verdict::Won { .. } => "won",
            Verdict::Waitlisted { .. } => "waitlisted",
            Verdict::SoldOut => "sold_out",
            Verdict::Created => "created",
            Verdict::Conflict => "conflict",
            Verdict::Confirmed { .. } => "confirmed",
            Verdict::Cancelled => "cancelled",
            Verdict::Expired { .. } => "expired",
            Verdict::NotExpired => "not_expired",
            Verdict::Redeemed { .. } => "redeemed",
            Verdict::AlreadyRedeemed { .. } => "already_redeemed",
            Verdict::Unredeemed { .. } => "unredeemed",
            Verdict::NotRedeemed => "not_redeemed",
            Verdict::Restocked { .. } => "restocked",
            Verdict::StockLimit => "stock_limit",
            Verdict::Done => "done",
            Verdict::NoSuchWin => "no_such_win",
            Verdict::Unconfirmed => "unconfirmed",
            Verdict::InUse => "in_use",
        }
    }

    /// The stable number.
    pub fn number(self) -> u8 {
        match self {
            Verdict::Malformed => 1,
            Verdict::UnknownCampaign => 2,
            Verdict::AlreadyWon { .. } => 3,
            Verdict::NotOpen => 4,
            Verdict::Paused => 5,
            Verdict::Closed => 6,
            Verdict::Won { .. } => 7,
            Verdict::Waitlisted { .. } => 8,
            Verdict::SoldOut => 9,
            Verdict::Created => 20,
            Verdict::Conflict => 21,
            Verdict::Confirmed { .. } => 22,
            Verdict::Cancelled => 23,
            Verdict::Expired { .. } => 24,
            Verdict::NotExpired => 25,
            Verdict::Redeemed { .. } => 26,
            Verdict::AlreadyRedeemed { .. } => 27,
            Verdict::Unredeemed { .. } => 28,
            Verdict::NotRedeemed => 29,
            Verdict::Restocked { .. } => 30,
            Verdict::StockLimit => 31,
            Verdict::Done => 32,
            Verdict::NoSuchWin => 33,
            Verdict::Unconfirmed => 34,
            Verdict::InUse => 35,
        }
    }
}
