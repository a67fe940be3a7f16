//! The third step: committed records in, verdicts out.
//!
//! One thread per partition makes what is pending durable, reads it back as every other process would, applies
//! it and answers. Committing and deciding share the thread, for a thread switch costs as much as a sync;
//! while it decides one group, the next one gathers. [`Decider::turn`] is all of it but the waiting.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use dibs_log::{CommitError, Committed, ReadError, batch::Batches};
use dibs_model::{Command, Offset, Timestamp, Verdict};

use crate::{intake::Answer, partition::Partition, receipt::Group, records::entries};

/// Bytes of log read and applied at a time; the state is locked against readers for so long.
const CHUNK_BYTES: usize = 256 * 1024;
/// How long to wait after a failed write before the next try.
const RETRY: Duration = Duration::from_millis(200);
/// Under a rush a group is committed so long after the one before. A commit costs some 80 µs of processor time
/// (two system calls, a signature, a wake-up) however many claims it has, and at thousands a second that is what
/// the claims themselves lack. Whoever presses alone does not wait.
const PACE: Duration = Duration::from_millis(1);
/// Records in a group from which on it is a rush: others press while one is being written.
const RUSH: u64 = 4;
/// How often deadlines of holds are looked at when nothing else happens.
const IDLE: Duration = Duration::from_millis(250);

/// Runs until [`Partition::stop`]. Returns once everything appended is durable and answered.
pub(crate) fn run(partition: Arc<Partition>) {
    // The log was verified when it was opened and only this process writes to it: if it cannot be read now, no
    // verdict from here on can be trusted.
    const UNREADABLE: &str = "the log cannot be read back";
    let mut decider = Decider::new(partition.clone());
    decider.catch_up().expect(UNREADABLE);
    loop {
        let stopping = partition.stopping.load(Ordering::Acquire);
        if !stopping {
            partition.log.wait_pending(Some(IDLE));
        }
        let begun = Instant::now();
        match decider.turn() {
            Ok(None) | Err(TurnError::Commit(_)) if stopping => return,
            Ok(Some(group)) if group.to - group.from >= RUSH && !stopping => {
                thread::sleep(PACE.saturating_sub(begun.elapsed()));
            }
            Ok(_) => {}
            Err(TurnError::Commit(_)) => thread::sleep(RETRY),
            Err(TurnError::Read(error)) => panic!("{UNREADABLE}: {error}"),
        }
    }
}

/// Why a turn ended early.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// What was in flight is not durable; its callers were told that the outcome is unknown.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The log cannot be read back. The process must end: a restart verifies the log.
    #[error("the log cannot be read back: {0}")]
    Read(#[from] ReadError),
}

/// Decides one partition. There must be only one for each [`Partition`]; [`crate::Flow::start`] gives every
/// partition a thread with one.
pub struct Decider {
    partition: Arc<Partition>,
    buffer: Vec<u8>,
    /// What a compressed batch unpacks to.
    unpacked: Vec<u8>,
    decided: Vec<Decided>,
    events: Vec<(u32, dibs_decide::Event)>,
}

#[derive(Clone, Copy)]
struct Decided {
    offset: Offset,
    timestamp: Timestamp,
    verdict: Verdict,
}

impl Decider {
    /// A decider that has decided nothing yet.
    pub fn new(partition: Arc<Partition>) -> Decider {
        Decider {
            partition,
            buffer: Vec::new(),
            unpacked: Vec::new(),
            decided: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Commits what is pending, decides and answers it, and looks at deadlines. Never waits but for the disk.
    pub fn turn(&mut self) -> Result<Option<Committed>, TurnError> {
        match self.partition.log.commit(self.partition.clock.now().0) {
            Ok(committed) => {
                self.catch_up()?;
                self.expire_holds();
                Ok(committed)
            }
            Err(error) => {
                self.abandon(&error);
                Err(error.into())
            }
        }
    }

    /// Applies everything that is committed. After the first time the partition is ready.
    fn catch_up(&mut self) -> Result<(), ReadError> {
        let mut next = self.partition.state().next_offset();
        while next < self.partition.log.high_watermark() {
            self.buffer.clear();
            self.partition.log.read(next, CHUNK_BYTES, &mut self.buffer)?;
            self.apply();
            next = self.partition.state().next_offset();
            self.answer();
        }
        self.partition.caught_up.store(true, Ordering::Release);
        self.partition.moved.notify_waiters();
        Ok(())
    }

    /// Applies what was read. What nobody waits for (records of other producers, a replay) is not remembered.
    fn apply(&mut self) {
        // Whoever waits for a committed record was in the intake before it was committed.
        let awaited = self.partition.intake().first_offset().unwrap_or(Offset::MAX);
        let mut state = self.partition.state.write().expect("no panic while locked");
        for batch in Batches::new(&self.buffer) {
            let batch = batch.expect("the log was verified");
            for entry in entries(&batch, &mut self.unpacked) {
                if entry.offset < state.next_offset() {
                    continue;
                }
                let verdict = self.partition.place.apply(&mut state, &entry, &mut self.events);
                self.partition.counters.count(verdict);
                if entry.offset >= awaited {
                    let (offset, timestamp) = (entry.offset, state.now());
                    self.decided.push(Decided { offset, timestamp, verdict });
                }
                self.events.clear();
            }
        }
    }

    /// Tells those who wait. The lock is held only to take them out of the queue.
    fn answer(&mut self) {
        if self.decided.is_empty() {
            return;
        }
        let mut intake = self.partition.intake();
        let mut replies = Vec::with_capacity(self.decided.len().min(intake.len()));
        for d in self.decided.drain(..) {
            replies.extend(intake.decided(d.offset).map(|waiting| (d, waiting)));
        }
        drop(intake);
        let mut group = Group::default();
        let receipts: Vec<Option<u32>> = replies
            .iter()
            .map(|(d, waiting)| {
                let Verdict::Won { rank } = d.verdict else { return None };
                let (campaign, user) = (&waiting.campaign, waiting.user());
                Some(group.push(campaign, user, self.partition.number, d.offset, d.timestamp.0, rank))
            })
            .collect();
        let group = Arc::new(group);
        for ((d, waiting), receipt) in replies.into_iter().zip(receipts) {
            let receipt = receipt.map(|i| (group.clone(), i));
            let answer = Answer { verdict: d.verdict, offset: d.offset, timestamp: d.timestamp, receipt };
            for reply in waiting.replies {
                // A caller that has gone away does not mind: it may ask again.
                let _ = reply.send(Ok(answer.clone()));
            }
        }
    }

    /// Appends `expire` for holds that are over by this node's clock; the log's time decides whether they are.
    fn expire_holds(&mut self) {
        let now = self.partition.clock.now();
        let state = self.partition.state();
        for campaign in state.campaigns() {
            for (rank, _) in campaign.deadlines().take_while(|(_, t)| *t < now).take(1_000) {
                let value = Command::Expire { rank }.to_json();
                // A failed append is tried again when the holds are looked at next.
                let _ = self.partition.log.append(Some(campaign.id().as_str().as_bytes()), Some(&value));
            }
        }
    }

    /// A write failed. Callers learn that the outcome is unknown, and the log takes records again if it can.
    fn abandon(&mut self, error: &CommitError) {
        tracing::error!(partition = self.partition.number, %error, "cannot write the log");
        self.partition.counters.failed_commits.increment(1);
        {
            // Locked over both, so that nobody appends between the two and is then told nothing.
            let mut intake = self.partition.intake();
            intake.abandon();
            if let Err(error) = self.partition.log.reset() {
                tracing::error!(partition = self.partition.number, %error, "the log takes no more records");
                let broken = matches!(error, CommitError::Broken(_));
                self.partition.broken.store(broken, Ordering::Release);
            }
        }
        self.partition.moved.notify_waiters();
    }
}
