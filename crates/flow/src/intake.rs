//! The second step: a command goes into the log, and its caller waits for the verdict.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use dibs_log::{AppendError, PartitionLog};
use dibs_model::{Command, Offset, Timestamp, Verdict};
use hashbrown::HashTable;
use tokio::sync::oneshot;

use crate::receipt::Group;

/// The answer to one command, once its record is durable and decided.
#[derive(Clone)]
pub struct Answer {
    /// What was decided.
    pub verdict: Verdict,
    /// Where the record stands in its partition.
    pub offset: Offset,
    /// The log's time at it.
    pub timestamp: Timestamp,
    /// Where the receipt of a win is to be had.
    pub receipt: Option<(Arc<Group>, u32)>,
}

/// Why a command has no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// As much as memory allows is waiting to be written; nothing was written for this caller.
    #[error("too many claims at once")]
    Overloaded,
    /// The log cannot be written now; nothing was written for this caller.
    #[error("the log cannot be written: {0}")]
    Unavailable(Arc<str>),
    /// The write failed or the server is stopping: the claim may stand or not. Asking again tells.
    #[error("the outcome is unknown")]
    Unknown,
}

pub(crate) type Reply = oneshot::Sender<Result<Answer, Unanswered>>;
/// Where a caller waits.
pub(crate) type Waiter = oneshot::Receiver<Result<Answer, Unanswered>>;

/// A command that is appended and not decided, and who waits for its verdict.
pub(crate) struct Pending {
    offset: Offset,
    hash: u64,
    /// Campaign, user and request key of a claim, apart by a NUL, which none of them can have; empty otherwise.
    identity: Box<[u8]>,
    pub(crate) campaign: Arc<str>,
    /// More than one when claims of one user came while the first was in flight.
    pub(crate) replies: Vec<Reply>,
}

impl Pending {
    /// Whose claim it is; empty for any other command.
    pub(crate) fn user(&self) -> &str {
        let user = self.identity.split(|b| *b == 0).nth(1).unwrap_or_default();
        std::str::from_utf8(user).expect("it was taken from a text")
    }
}

/// The commands in flight of one partition.
pub(crate) struct Intake {
    /// In offset order. What is decided leaves at the front.
    queue: VecDeque<Pending>,
    /// How many have left; the one with ticket `t` is at `t - left`.
    left: u64,
    /// Tickets of the claims in flight, by identity.
    claims: HashTable<u64>,
    /// Claims in flight by campaign. Entries that reach 0 are removed.
    by_campaign: HashMap<Arc<str>, u64>,
    hasher: foldhash::fast::RandomState,
    limit: usize,
}

impl Intake {
    pub(crate) fn new(limit: usize) -> Intake {
        Intake {
            queue: VecDeque::new(),
            left: 0,
            claims: HashTable::new(),
            by_campaign: HashMap::new(),
            hasher: foldhash::fast::RandomState::default(),
            limit,
        }
    }

    pub(crate) fn in_flight(&self, campaign: &str) -> u64 {
        self.by_campaign.get(campaign).copied().unwrap_or(0)
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Appends a claim, unless the same claim is in flight: then the caller shares its answer.
    pub(crate) fn claim(
        &mut self,
        log: &PartitionLog,
        scratch: &mut Vec<u8>,
        campaign: &Arc<str>,
        user: &str,
        key: &str,
    ) -> Result<Waiter, Unanswered> {
        let (reply, waiter) = oneshot::channel();
        scratch.clear();
        for (i, part) in [campaign, user, key].into_iter().enumerate() {
            scratch.extend_from_slice(if i > 0 { b"\0" } else { b"" });
            scratch.extend_from_slice(part.as_bytes());
        }
        let hash = self.hash(scratch);
        let same = |t: &u64| *self.queue[(t - self.left) as usize].identity == scratch[..];
        if let Some(&ticket) = self.claims.find(hash, same) {
            self.queue[(ticket - self.left) as usize].replies.push(reply);
            return Ok(waiter);
        }
        let identity = scratch.as_slice().into();
        scratch.clear();
        Command::Claim { user: user.into(), key: key.into() }.encode(scratch);
        self.append(log, scratch, campaign, identity, hash, reply)?;
        let ticket = self.left + self.queue.len() as u64 - 1;
        let (queue, left) = (&self.queue, self.left);
        self.claims.insert_unique(hash, ticket, |t| queue[(t - left) as usize].hash);
        match self.by_campaign.get_mut(campaign) {
            Some(n) => *n += 1,
            None => drop(self.by_campaign.insert(campaign.clone(), 1)),
        }
        Ok(waiter)
    }

    /// Appends any other command.
    pub(crate) fn command(
        &mut self,
        log: &PartitionLog,
        campaign: &Arc<str>,
        command: &Command<'_>,
    ) -> Result<Waiter, Unanswered> {
        let (reply, waiter) = oneshot::channel();
        self.append(log, &command.to_json(), campaign, Box::default(), 0, reply)?;
        Ok(waiter)
    }

    fn append(
        &mut self,
        log: &PartitionLog,
        value: &[u8],
        campaign: &Arc<str>,
        identity: Box<[u8]>,
        hash: u64,
        reply: Reply,
    ) -> Result<(), Unanswered> {
        if self.queue.len() >= self.limit {
            return Err(Unanswered::Overloaded);
        }
        let offset = log.append(Some(campaign.as_bytes()), Some(value)).map_err(|e| match e {
            AppendError::Full => Unanswered::Overloaded,
            other => Unanswered::Unavailable(other.to_string().into()),
        })?;
        debug_assert!(self.queue.back().is_none_or(|last| last.offset < offset));
        self.queue.push_back(Pending {
            offset,
            hash,
            identity,
            campaign: campaign.clone(),
            replies: vec![reply],
        });
        Ok(())
    }

    /// The first record that somebody waits for.
    pub(crate) fn first_offset(&self) -> Option<Offset> {
        self.queue.front().map(|p| p.offset)
    }

    /// Takes out whoever waits for the record at `offset`. Records of other producers have nobody.
    pub(crate) fn decided(&mut self, offset: Offset) -> Option<Pending> {
        let first = self.first_offset();
        debug_assert!(first.is_none_or(|f| f >= offset), "a decided record is still waited for");
        if first == Some(offset) { self.pop() } else { None }
    }

    /// Nothing in flight will be decided: every caller is told that the outcome is unknown.
    pub(crate) fn abandon(&mut self) {
        while let Some(pending) = self.pop() {
            for reply in pending.replies {
                // A caller that has gone away does not mind.
                let _ = reply.send(Err(Unanswered::Unknown));
            }
        }
    }

    fn pop(&mut self) -> Option<Pending> {
        let first = self.queue.pop_front()?;
        let ticket = self.left;
        self.left += 1;
        if !first.identity.is_empty() {
            if let Ok(entry) = self.claims.find_entry(first.hash, |t| *t == ticket) {
                entry.remove();
            }
            if let Some(n) = self.by_campaign.get_mut(&first.campaign) {
                *n -= 1;
                if *n == 0 {
                    self.by_campaign.remove(&first.campaign);
                }
            }
        }
        Some(first)
    }

    fn hash(&self, identity: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(identity);
        hasher.finish()
    }
}
