//! Threads that commit: whatever partition has something pending is written and synced by the first free one.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    thread::JoinHandle,
};

use dibs_log::CommitError;

use crate::{clock, topics::Partition};

/// Threads that commit. They wait for the disk nearly all of their time.
const THREADS: usize = 4;

#[derive(Debug)]
pub(crate) struct Committer {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    something: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Partition>>,
    closed: bool,
}

/// Whether a partition is queued. Cleared before its commit begins, so that what is appended during the commit
/// queues it again.
#[derive(Debug, Default)]
pub(crate) struct Queued(AtomicBool);

impl Committer {
    pub(crate) fn start() -> Committer {
        let queue = Arc::new(Queue::default());
        let spawn = |i| {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("dibs-commit-{i}")).spawn(move || queue.run())
        };
        let threads = (0..THREADS).filter_map(|i| spawn(i).ok()).collect();
        Committer { queue, threads: Mutex::new(threads) }
    }

    pub(crate) fn queue(&self) -> Arc<Queue> {
        self.queue.clone()
    }

    /// Commits what is queued, then ends the threads.
    pub(crate) fn stop(&self) {
        self.queue.state().closed = true;
        self.queue.something.notify_all();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}

impl Queue {
    /// Sees to it that what is pending in a partition will be committed.
    pub(crate) fn push(&self, partition: &Arc<Partition>) {
        if !partition.queued.0.swap(true, AcqRel) {
            self.state().waiting.push_back(partition.clone());
            self.something.notify_one();
        }
    }

    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some(partition) = state.waiting.pop_front() {
                drop(state);
                partition.queued.0.swap(false, AcqRel);
                commit(&partition);
                state = self.state();
            } else if state.closed {
                return;
            } else {
                state = self.something.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn commit(partition: &Partition) {
    if let Err(e) = partition.log.commit(clock::wall_ms()) {
        tracing::error!(partition = ?partition.log, "a commit failed: {e}");
        partition.failed.notify_waiters();
        if !matches!(e, CommitError::Closed | CommitError::Broken(_))
            && let Err(e) = partition.log.reset()
        {
            tracing::error!(partition = ?partition.log, "the partition takes no more records: {e}");
        }
    }
}
