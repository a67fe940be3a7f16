//! The state as bytes, so that start-up does not grow with history. Versioned and checksummed; a snapshot that
//! cannot be read costs a longer replay and nothing else.
//!
//! Layout, all integers big endian: magic, version (u32), next offset, log time, number of campaigns, the
//! campaigns in order of creation, CRC-32C of all before. Texts are length (u32) and bytes.

use alloc::{boxed::Box, vec::Vec};

use dibs_model::{CampaignId, Command, Timestamp};

use crate::{
    Campaign, Redemption, State,
    waitlist::Waiting,
    winners::{Status, Winners},
};

const MAGIC: &[u8; 8] = b"DIBSSNAP";
/// Grows with the layout and with the rules.
const VERSION: u32 = 1;

/// Why bytes are no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The checksum does not match.
    #[error("the snapshot is damaged")]
    Damaged,
    /// Another version wrote it.
    #[error("the snapshot has version {0}, this program reads version {VERSION}")]
    Version(u32),
}

impl State {
    /// Writes the state.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        put_u64(&mut out, self.next);
        put_u64(&mut out, self.now.0 as u64);
        put_u64(&mut out, self.campaigns.len() as u64);
        for campaign in &self.campaigns {
            put_campaign(&mut out, campaign);
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads a state. The seed need not be the one it was written under.
    pub fn restore(bytes: &[u8], seed: u64) -> Result<State, SnapshotError> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(SnapshotError::Damaged)?;
        if crc32c::crc32c(body) != u32::from_be_bytes(*crc) {
            return Err(SnapshotError::Damaged);
        }
        let body = body.strip_prefix(MAGIC).ok_or(SnapshotError::Damaged)?;
        let (version, body) = body.split_first_chunk::<4>().ok_or(SnapshotError::Damaged)?;
        match u32::from_be_bytes(*version) {
            VERSION => Reader(body).state(seed).ok_or(SnapshotError::Damaged),
            other => Err(SnapshotError::Version(other)),
        }
    }
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_campaign(out: &mut Vec<u8>, c: &Campaign) {
    put_bytes(out, c.id.as_str().as_bytes());
    put_bytes(out, &Command::Create(c.spec.clone()).to_json());
    put_u64(out, c.created);
    put_u64(out, c.stock);
    put_u64(out, c.codes);
    out.push(u8::from(c.paused));
    out.push(u8::from(c.closed));
    put_u64(out, c.winners.len());
    for rank in 1..=c.ranks() {
        let win = c.winners.get(rank).expect("ranks are contiguous");
        out.push(win.status as u8);
        out.push(u8::from(win.issued));
        put_u64(out, win.offset);
        put_u64(out, win.timestamp.0 as u64);
        put_u64(out, win.decided);
        put_bytes(out, win.user.as_bytes());
        put_bytes(out, win.key.as_bytes());
    }
    put_u64(out, c.held.len() as u64);
    for (rank, deadline) in &c.held {
        put_u64(out, u64::from(*rank));
        put_u64(out, deadline.0 as u64);
    }
    put_u64(out, c.redemptions.len() as u64);
    for (rank, redemption) in &c.redemptions {
        put_u64(out, u64::from(*rank));
        put_bytes(out, redemption.by.as_bytes());
        put_bytes(out, redemption.key.as_bytes());
        put_u64(out, redemption.at.0 as u64);
    }
    put_u64(out, c.waitlist.len());
    for waiting in c.waitlist.iter() {
        put_bytes(out, waiting.user.as_bytes());
        put_bytes(out, waiting.key.as_bytes());
        put_u64(out, waiting.offset);
        put_u64(out, waiting.timestamp.0 as u64);
    }
    put_u64(out, c.restocks.len() as u64);
    for (key, stock) in &c.restocks {
        put_bytes(out, key.as_bytes());
        put_u64(out, *stock);
    }
}

/// Reads what was written; `None` when the bytes end early or make no sense.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*first))
    }

    fn time(&mut self) -> Option<Timestamp> {
        self.u64().map(|t| Timestamp(t as i64))
    }

    fn rank(&mut self) -> Option<u32> {
        self.u64()?.try_into().ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        core::str::from_utf8(self.bytes()?).ok()
    }

    fn state(mut self, seed: u64) -> Option<State> {
        let mut state = State::new(seed);
        state.next = self.u64()?;
        state.now = self.time()?;
        for index in 0..self.u64()? {
            let campaign = self.campaign(seed)?;
            state.names.insert(campaign.id.clone(), index as u32);
            state.campaigns.push(campaign);
        }
        self.0.is_empty().then_some(state)
    }

    fn campaign(&mut self, seed: u64) -> Option<Campaign> {
        let id = CampaignId::new(self.text()?).ok()?;
        let Ok(Command::Create(spec)) = Command::decode(self.bytes()?) else { return None };
        let mut c = Campaign::new(id, spec, self.u64()?, seed);
        c.stock = self.u64()?;
        c.codes = self.u64()?;
        c.paused = self.byte()? == 1;
        c.closed = self.byte()? == 1;
        c.winners = self.winners(seed)?;
        for _ in 0..self.u64()? {
            c.held.insert(self.rank()?, self.time()?);
        }
        for _ in 0..self.u64()? {
            let rank = self.rank()?;
            let (by, key) = (Box::from(self.text()?), Box::from(self.text()?));
            c.redemptions.insert(rank, Redemption { by, key, at: self.time()? });
        }
        for _ in 0..self.u64()? {
            let (user, key) = (Box::from(self.text()?), Box::from(self.text()?));
            c.waitlist.push(Waiting { user, key, offset: self.u64()?, timestamp: self.time()? });
        }
        for _ in 0..self.u64()? {
            c.restocks.push_back((self.text()?.into(), self.u64()?));
        }
        Some(c)
    }

    fn winners(&mut self, seed: u64) -> Option<Winners> {
        let mut winners = Winners::new(seed);
        let wins = self.u64()?;
        // A win takes more than 20 bytes here: a number that cannot be true reserves no memory.
        winners.reserve((wins as usize).min(self.0.len() / 20));
        for _ in 0..wins {
            let fate = (Status::from_byte(self.byte()?)?, self.byte()? == 1);
            let claim = (self.u64()?, self.time()?);
            let decided = self.u64()?;
            winners.restore(self.text()?, self.text()?, claim, decided, fate);
        }
        Some(winners)
    }
}
