//! Coupon codes: generated from the rank, or taken from an imported list.
//!
//! A generated code is a keyed permutation of the rank (a Feistel network whose round function is SipHash-2-4),
//! written in the campaign's pattern. A permutation and not a hash, so that two ranks can never have the same
//! code, and so that a code leads back to its rank without any table.

use std::{
    collections::HashMap,
    hash::Hasher,
    sync::{Arc, RwLock},
};

use dibs_decide::Campaign;
use dibs_model::{CampaignId, CodeSource, Pattern, Rank, limits};
use siphasher::sip::SipHasher24;

use crate::secret::Secret;

/// Rounds of the Feistel network; four make a pseudo-random permutation of a large domain, small domains need
/// more (Patarin), and each costs some 15 ns.
const ROUNDS: u32 = 10;

/// A keyed permutation of `0..2^bits`.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    key: [u8; 16],
    bits: u32,
}

impl Permutation {
    pub(crate) fn new(key: [u8; 16], bits: u32) -> Permutation {
        assert!((2..=60).contains(&bits));
        Permutation { key, bits }
    }

    fn round(&self, round: u32, half: u64, bits: u32) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_u64(half << 8 | u64::from(round));
        hasher.finish() & mask(bits)
    }

    /// The two halves differ by one bit when `bits` is odd; they change places in every round, and an even
    /// number of rounds puts them back.
    pub(crate) fn forward(&self, value: u64) -> u64 {
        let (mut a, mut b) = (self.bits / 2, self.bits - self.bits / 2);
        let (mut left, mut right) = (value >> b, value & mask(b));
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.round(round, right, a));
            (a, b) = (b, a);
        }
        left << b | right
    }

    pub(crate) fn backward(&self, value: u64) -> u64 {
        let (mut a, mut b) = (self.bits / 2, self.bits - self.bits / 2);
        let (mut left, mut right) = (value >> b, value & mask(b));
        for round in (0..ROUNDS).rev() {
            (a, b) = (b, a);
            (left, right) = (right ^ self.round(round, left, a), left);
        }
        left << b | right
    }
}

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// Why a list of codes cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// A code is empty, too long, or has a character that a path or a print would spoil.
    #[error("line {line}: a code is 1 to {} letters, digits, '-' and '_'", limits::CODE_BYTES)]
    Code {
        /// The line, from 1.
        line: usize,
    },
}

/// Checks one imported code.
pub(crate) fn is_code(code: &str) -> bool {
    (1..=limits::CODE_BYTES).contains(&code.len())
        && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The imported codes of one campaign, in the order of `dibs.codes`.
#[derive(Default)]
struct Imported {
    by_rank: Vec<Arc<str>>,
    ranks: HashMap<Arc<str>, Rank>,
}

/// Rank to code and back, for every campaign.
pub struct Codes {
    secret: Secret,
    keys: RwLock<HashMap<CampaignId, Permutation>>,
    imported: RwLock<HashMap<CampaignId, Imported>>,
}

impl Codes {
    /// No codes imported yet.
    pub fn new(secret: Secret) -> Codes {
        Codes { secret, keys: RwLock::default(), imported: RwLock::default() }
    }

    /// The code of a rank. `None` when the campaign's imported list is not that long (yet).
    pub fn code(&self, campaign: &Campaign, rank: Rank) -> Option<String> {
        self.code_of(campaign.id(), &campaign.spec().codes, rank)
    }

    pub(crate) fn code_of(&self, id: &CampaignId, source: &CodeSource, rank: Rank) -> Option<String> {
        match source {
            CodeSource::Pattern(pattern) => {
                let mut code = String::with_capacity(pattern.as_str().len());
                pattern.fill(self.permutation(id, pattern).forward(u64::from(rank)), &mut code);
                Some(code)
            }
            CodeSource::Imported => {
                let imported = self.imported.read().expect("no panic while locked");
                imported.get(id)?.by_rank.get(rank as usize - 1).map(|c| c.to_string())
            }
        }
    }

    /// The rank whose code this is, given or not.
    pub fn rank(&self, campaign: &Campaign, code: &str) -> Option<Rank> {
        match &campaign.spec().codes {
            CodeSource::Pattern(pattern) => {
                let value = self.permutation(campaign.id(), pattern).backward(pattern.parse(code)?);
                Rank::try_from(value).ok().filter(|r| *r > 0)
            }
            CodeSource::Imported => {
                let imported = self.imported.read().expect("no panic while locked");
                imported.get(campaign.id())?.ranks.get(code).copied()
            }
        }
    }

    /// Adds one code to the end of a campaign's list, in log order; a repeated code counts once.
    pub(crate) fn import(&self, campaign: &CampaignId, code: &str) {
        let mut imported = self.imported.write().expect("no panic while locked");
        let list = imported.entry(campaign.clone()).or_default();
        if !list.ranks.contains_key(code) {
            let code: Arc<str> = code.into();
            list.by_rank.push(code.clone());
            list.ranks.insert(code, list.by_rank.len() as Rank);
        }
    }

    /// How many codes a campaign has imported.
    pub fn imported(&self, campaign: &CampaignId) -> u64 {
        let imported = self.imported.read().expect("no panic while locked");
        imported.get(campaign).map_or(0, |l| l.by_rank.len() as u64)
    }

    fn permutation(&self, id: &CampaignId, pattern: &Pattern) -> Permutation {
        if let Some(permutation) = self.keys.read().expect("no panic while locked").get(id) {
            return permutation.clone();
        }
        let key = self.secret.derive("dibs coupon code 1", id.as_str());
        let key = key[..16].try_into().expect("16 of 32 bytes");
        let permutation = Permutation::new(key, pattern.bits());
        self.keys.write().expect("no panic while locked").insert(id.clone(), permutation.clone());
        permutation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_code_leads_back(key: [u8; 16], bits in 2u32..=60, value: u64) {
            let p = Permutation::new(key, bits);
            let value = value & mask(bits);
            prop_assert!(p.forward(value) <= mask(bits));
            prop_assert_eq!(p.backward(p.forward(value)), value);
        }
    }

    #[test]
    fn no_two_ranks_share_a_code() {
        let p = Permutation::new([7; 16], 15);
        let all: std::collections::HashSet<u64> = (0..1 << 15).map(|v| p.forward(v)).collect();
        assert_eq!(all.len(), 1 << 15);
    }
}
