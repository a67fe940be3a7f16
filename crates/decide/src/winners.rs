//! The winners of one campaign: who holds which rank, and which ranks a user holds.

use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};

use dibs_model::{Offset, Rank, Timestamp};
use hashbrown::{HashTable, hash_table::Entry};

/// What has become of a win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Waits for `confirm`. No coupon yet.
    Held = 0,
    /// Has a coupon.
    Won = 1,
    /// Its coupon has been used.
    Redeemed = 2,
    /// Given up; the unit was released.
    Cancelled = 3,
    /// Not confirmed in time; the unit was released.
    Expired = 4,
}

impl Status {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Status::Held => "held",
            Status::Won => "won",
            Status::Redeemed => "redeemed",
            Status::Cancelled => "cancelled",
            Status::Expired => "expired",
        }
    }

    /// Whether the win still takes up a unit of the stock.
    pub fn is_live(self) -> bool {
        matches!(self, Status::Held | Status::Won | Status::Redeemed)
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Status> {
        [Status::Held, Status::Won, Status::Redeemed, Status::Cancelled, Status::Expired]
            .into_iter()
            .find(|s| *s as u8 == byte)
    }
}

/// One win, as it is read. Its user and key lie in the arena of its [`Winners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Win<'a> {
    /// The winner's number in order, from 1.
    pub rank: Rank,
    /// Who won.
    pub user: &'a str,
    /// The request key of the winning claim.
    pub key: &'a str,
    /// Where the claim stands in the partition.
    pub offset: Offset,
    /// When the claim was appended, by the log.
    pub timestamp: Timestamp,
    /// The record that made it what it is to the ledger: the claim itself, the `confirm` of a held win, or
    /// whatever released the unit to the waitlist. The coupon is issued once the issuer is past it.
    pub decided: Offset,
    /// What has become of it.
    pub status: Status,
    /// Whether it has, or once had, a coupon: so the ledger has a row for it.
    pub issued: bool,
}

/// 40 bytes beside the id; with its share of `by_user` (at most 9 × 16/7 bytes) a winner stays below the
/// 64 bytes that ARCHITECTURE allows it.
struct Slot {
    /// Start of the user id in `arena`; the request key follows it.
    text: u64,
    offset: Offset,
    timestamp: Timestamp,
    decided: Offset,
    /// Index + 1 of the same user's win before this one, 0 for none: a chain of at most `per_user_limit`.
    previous: u32,
    user_len: u8,
    key_len: u8,
    status: Status,
    issued: bool,
}

const _: () = assert!(size_of::<Slot>() <= 40);

/// A user's latest win: its index in `slots`, and the hash of the user, so that neither a growing table nor a
/// search that meets other users has to fetch their ids from memory.
#[derive(Clone, Copy)]
struct Latest {
    hash: u32,
    index: u32,
}

/// Winners by rank and by user. Never shrinks: a rank once given stays given.
pub(crate) struct Winners {
    /// The win of rank `r` is at `r - 1`: ranks are contiguous from 1 by construction.
    slots: Vec<Slot>,
    arena: Vec<u8>,
    /// The latest win of each user. Never iterated.
    by_user: HashTable<Latest>,
    hasher: foldhash::quality::FixedState,
    /// Wins that still take up a unit.
    live: u64,
}

impl Winners {
    pub(crate) fn new(seed: u64) -> Winners {
        Winners {
            slots: Vec::new(),
            arena: Vec::new(),
            by_user: HashTable::new(),
            hasher: foldhash::quality::FixedState::with_seed(seed),
            live: 0,
        }
    }

    /// As [`Winners::push`], for a win read from a snapshot.
    pub(crate) fn restore(
        &mut self,
        user: &str,
        key: &str,
        claim: (Offset, Timestamp),
        decided: Offset,
        fate: (Status, bool),
    ) {
        let rank = self.push(user, key, claim, decided, fate.0);
        self.slots[rank as usize - 1].issued = fate.1;
    }

    pub(crate) fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    pub(crate) fn get(&self, rank: Rank) -> Option<Win<'_>> {
        let index = rank.checked_sub(1)?;
        self.slots.get(index as usize).map(|_| self.win(index))
    }

    /// Makes room for this many more winners at once.
    pub(crate) fn reserve(&mut self, wins: usize) {
        self.slots.reserve(wins);
        self.by_user.reserve(wins, |l| spread(l.hash));
    }

    /// The user's wins, latest first.
    pub(crate) fn of_user<'a>(&'a self, user: &str) -> impl Iterator<Item = Win<'a>> + use<'a> {
        let hash = self.hash(user.as_bytes());
        let same = |l: &Latest| l.hash == hash && self.user(l.index) == user.as_bytes();
        let first = self.by_user.find(spread(hash), same).map(|l| l.index);
        let previous = |i: &u32| self.slots[*i as usize].previous.checked_sub(1);
        core::iter::successors(first, previous).map(|i| self.win(i))
    }

    /// Gives the next rank.
    pub(crate) fn push(
        &mut self,
        user: &str,
        key: &str,
        claim: (Offset, Timestamp),
        decided: Offset,
        status: Status,
    ) -> Rank {
        let index = self.slots.len() as u32;
        let hash = self.hash(user.as_bytes());
        let text = self.arena.len() as u64;
        self.arena.extend_from_slice(user.as_bytes());
        self.arena.extend_from_slice(key.as_bytes());
        let (slots, arena) = (&self.slots, &self.arena);
        let same =
            |l: &Latest| l.hash == hash && slot_user(&slots[l.index as usize], arena) == user.as_bytes();
        let latest = Latest { hash, index };
        let previous = match self.by_user.entry(spread(hash), same, |l| spread(l.hash)) {
            Entry::Occupied(mut entry) => core::mem::replace(entry.get_mut(), latest).index + 1,
            Entry::Vacant(entry) => {
                entry.insert(latest);
                0
            }
        };
        self.live += u64::from(status.is_live());
        self.slots.push(Slot {
            text,
            offset: claim.0,
            timestamp: claim.1,
            decided,
            previous,
            user_len: user.len() as u8,
            key_len: key.len() as u8,
            status,
            issued: status == Status::Won,
        });
        index + 1
    }

    /// Changes what has become of a win, because of the record at `decided` if its coupon comes to be now.
    pub(crate) fn set(&mut self, rank: Rank, status: Status, decided: Option<Offset>) {
        let slot = &mut self.slots[rank as usize - 1];
        self.live += u64::from(status.is_live());
        self.live -= u64::from(slot.status.is_live());
        slot.status = status;
        slot.issued |= status == Status::Won;
        slot.decided = decided.unwrap_or(slot.decided);
    }

    fn win(&self, index: u32) -> Win<'_> {
        let slot = &self.slots[index as usize];
        let text = &self.arena[slot.text as usize..];
        let (user, rest) = text.split_at(usize::from(slot.user_len));
        let as_str = |b| core::str::from_utf8(b).expect("the arena holds whole strings");
        Win {
            rank: index + 1,
            user: as_str(user),
            key: as_str(&rest[..usize::from(slot.key_len)]),
            offset: slot.offset,
            timestamp: slot.timestamp,
            decided: slot.decided,
            status: slot.status,
            issued: slot.issued,
        }
    }

    fn user(&self, index: u32) -> &[u8] {
        slot_user(&self.slots[index as usize], &self.arena)
    }

    fn hash(&self, user: &[u8]) -> u32 {
        let mut h = self.hasher.build_hasher();
        h.write(user);
        h.finish() as u32
    }
}

/// The table takes its buckets from the low bits of a hash and its tags from the high ones: spreads 32 bits over
/// 64 (Fibonacci hashing).
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

fn slot_user<'a>(slot: &Slot, arena: &'a [u8]) -> &'a [u8] {
    &arena[slot.text as usize..slot.text as usize + usize::from(slot.user_len)]
}
