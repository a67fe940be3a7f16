//! Claims in line for the next unit. Each user stands in it once.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use dibs_model::{Offset, Timestamp};

/// One claim in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) user: Box<str>,
    pub(crate) key: Box<str>,
    pub(crate) offset: Offset,
    pub(crate) timestamp: Timestamp,
}

/// First come, first served; somebody in the middle may leave.
#[derive(Default)]
pub(crate) struct Waitlist {
    /// `None` where somebody left; the front is never `None`.
    line: VecDeque<Option<Waiting>>,
    /// The ticket number of the front of `line`.
    front: u64,
    /// Ticket by user. Ordered, for a snapshot must not depend on a hash.
    tickets: BTreeMap<Box<str>, u64>,
    /// Tickets of those who left and still have somebody before them.
    left: BTreeSet<u64>,
}

impl Waitlist {
    pub(crate) fn len(&self) -> u64 {
        self.tickets.len() as u64
    }

    /// The user's place, from 1.
    pub(crate) fn position(&self, user: &str) -> Option<u64> {
        let ticket = *self.tickets.get(user)?;
        Some(ticket - self.front - self.left.range(..ticket).count() as u64 + 1)
    }

    /// Puts a claim at the end of the line. The user must not be in it.
    pub(crate) fn push(&mut self, waiting: Waiting) -> u64 {
        let ticket = self.front + self.line.len() as u64;
        let before = self.tickets.insert(waiting.user.clone(), ticket);
        assert!(before.is_none(), "a user stands in line once");
        self.line.push_back(Some(waiting));
        self.len()
    }

    /// The first in line leaves it.
    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        let first = self.line.pop_front()??;
        self.front += 1;
        self.tickets.remove(&first.user);
        self.drop_gaps();
        Some(first)
    }

    /// The user leaves the line.
    pub(crate) fn remove(&mut self, user: &str) -> bool {
        let Some(ticket) = self.tickets.remove(user) else { return false };
        self.line[(ticket - self.front) as usize] = None;
        self.left.insert(ticket);
        self.drop_gaps();
        true
    }

    pub(crate) fn clear(&mut self) {
        *self = Waitlist::default();
    }

    /// Those in line, first to last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.line.iter().flatten()
    }

    fn drop_gaps(&mut self) {
        while let Some(None) = self.line.front() {
            self.line.pop_front();
            self.left.remove(&self.front);
            self.front += 1;
        }
    }
}
