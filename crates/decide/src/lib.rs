//! Who won. A pure, deterministic function over the order of the log:
//!
//! ```text
//! State::apply(offset, timestamp, campaign, command) -> Verdict (+ Events)
//! ```
//!
//! It does no I/O, sees no clock, no randomness and no float, and never iterates a hash map: the same log gives
//! the same verdicts on every machine, for ever. What follows from a command for others (a coupon to write, a
//! unit released to somebody in line) comes out as [`Event`]s, which the issuer turns into rows.
//!
//! It deliberately knows nothing of codes, receipts, the ledger, HTTP or Kafka.

#![no_std]
extern crate alloc;

mod campaign;
mod snapshot;
mod waitlist;
mod winners;

use alloc::{boxed::Box, vec::Vec};

use dibs_model::{CampaignId, Command, Offset, Rank, Timestamp, Verdict};
use hashbrown::HashMap;

pub use campaign::{Campaign, Phase, Redemption};
pub use snapshot::SnapshotError;
pub use winners::{Status, Win};

/// What a command changed, beyond its verdict. In log order; applying the same log twice gives the same events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The campaign is new, or its stock or phase is another.
    Campaign,
    /// The win has a coupon from now on.
    Issue {
        /// Which win.
        rank: Rank,
    },
    /// Wins from one rank to another, both included, have their imported codes from now on, as far as they
    /// have a coupon. Those after them have theirs when they are issued.
    Codes {
        /// The first.
        from: Rank,
        /// The last.
        to: Rank,
    },
    /// The win must be confirmed before it has a coupon.
    Hold {
        /// Which win.
        rank: Rank,
    },
    /// The win is given up or has expired.
    Release {
        /// Which win.
        rank: Rank,
        /// Whether it had a coupon.
        issued: bool,
    },
    /// The coupon has been used.
    Redeem {
        /// Which win.
        rank: Rank,
        /// By whom and when.
        redemption: Redemption,
    },
    /// The coupon can be used again.
    Unredeem {
        /// Which win.
        rank: Rank,
    },
}

/// Index of a campaign in its [`State`], in order of creation. Stable for the life of the partition.
pub type CampaignIndex = u32;

/// Everything that one partition has decided so far.
pub struct State {
    /// Never decreases, whatever the clocks of the brokers did (ARCHITECTURE: invariant 2).
    now: Timestamp,
    /// The offset after the last one applied.
    next: Offset,
    /// Looked up, never iterated.
    names: HashMap<CampaignId, CampaignIndex, foldhash::quality::FixedState>,
    campaigns: Vec<Campaign>,
    seed: u64,
}

impl State {
    /// Nothing decided yet. The seed keeps users from choosing ids that collide in the tables; it has no
    /// influence on any verdict.
    pub fn new(seed: u64) -> State {
        let hasher = foldhash::quality::FixedState::with_seed(seed);
        State { now: Timestamp(0), next: 0, names: HashMap::with_hasher(hasher), campaigns: Vec::new(), seed }
    }

    /// Applies one record of the partition. What is no command is [`Verdict::Malformed`] and changes nothing.
    pub fn apply_record(
        &mut self,
        offset: Offset,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        events: &mut Vec<(CampaignIndex, Event)>,
    ) -> Verdict {
        let command = value.and_then(|v| Command::decode(v).ok());
        let campaign = key.and_then(|k| core::str::from_utf8(k).ok());
        match (campaign, command) {
            (Some(campaign), Some(command)) => self.apply(offset, timestamp, campaign, &command, events),
            _ => {
                self.advance(offset, timestamp);
                Verdict::Malformed
            }
        }
    }

    /// Applies one command. Offsets must increase; they may have gaps, as Kafka's do.
    ///
    /// # Panics
    /// If an offset comes twice or out of order: the caller has lost its place in the log, and whatever it
    /// would answer from here on would be wrong.
    pub fn apply(
        &mut self,
        offset: Offset,
        timestamp: Timestamp,
        campaign: &str,
        command: &Command<'_>,
        events: &mut Vec<(CampaignIndex, Event)>,
    ) -> Verdict {
        self.advance(offset, timestamp);
        let Some(&index) = self.names.get(campaign) else {
            return match command {
                Command::Create(spec) => match CampaignId::new(campaign) {
                    Ok(id) => self.create(id, spec, offset, events),
                    Err(_) => Verdict::Malformed,
                },
                _ => Verdict::UnknownCampaign,
            };
        };
        let now = self.now;
        self.campaigns[index as usize].apply(offset, now, command, |event| events.push((index, event)))
    }

    fn advance(&mut self, offset: Offset, timestamp: Timestamp) {
        assert!(offset >= self.next, "offset {offset} comes after {} has been applied", self.next);
        self.next = offset + 1;
        self.now = self.now.max(timestamp);
    }

    fn create(
        &mut self,
        id: CampaignId,
        spec: &dibs_model::CampaignSpec,
        offset: Offset,
        events: &mut Vec<(CampaignIndex, Event)>,
    ) -> Verdict {
        let index = self.campaigns.len() as CampaignIndex;
        self.names.insert(id.clone(), index);
        self.campaigns.push(Campaign::new(id, Box::new(spec.clone()), offset, self.seed));
        events.push((index, Event::Campaign));
        Verdict::Created
    }

    /// The offset after the last one applied: where to read on.
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// The log's own time so far.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// A campaign by its id.
    pub fn campaign(&self, id: &str) -> Option<&Campaign> {
        self.names.get(id).map(|i| &self.campaigns[*i as usize])
    }

    /// A campaign by its index, as events name it.
    pub fn at(&self, index: CampaignIndex) -> &Campaign {
        &self.campaigns[index as usize]
    }

    /// All campaigns, in order of creation.
    pub fn campaigns(&self) -> &[Campaign] {
        &self.campaigns
    }
}
