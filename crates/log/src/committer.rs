//! Threads that commit the partitions that nobody commits by hand.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::PartitionLog;

/// Partitions with something to commit, each at most once.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    some: Condvar,
}

#[derive(Default)]
struct State {
    dirty: VecDeque<Arc<PartitionLog>>,
    /// Partitions that have room to give back, and when, in ms, the earliest first; each at most once.
    resting: VecDeque<(i64, Arc<PartitionLog>)>,
    /// Threads that wait.
    idle: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn push(&self, log: Arc<PartitionLog>) {
        let mut state = self.state();
        state.dirty.push_back(log);
        let wake = state.idle > 0;
        drop(state);
        if wake {
            self.some.notify_one();
        }
    }

    /// Has somebody look whether the partition has come to rest by the time `at` (ms). False if nobody will: the
    /// queue is closed.
    pub(crate) fn push_later(&self, at: i64, log: Arc<PartitionLog>) -> bool {
        let mut state = self.state();
        // Nobody is woken: who has just committed the partition looks here before it waits.
        if !state.closed {
            state.resting.push_back((at, log));
        }
        !state.closed
    }

    /// What is to be done next; `None` when the queue is closed and empty.
    fn pop(&self, clock: &impl Fn() -> i64) -> Option<Work> {
        let mut state = self.state();
        loop {
            let wait = state.resting.front().map(|(at, _)| at.saturating_sub(clock()));
            if wait.is_some_and(|ms| ms <= 0) {
                return state.resting.pop_front().map(|(_, log)| Work::Rest(log, clock()));
            }
            if let Some(log) = state.dirty.pop_front() {
                return Some(Work::Commit(log));
            }
            if state.closed {
                return state.resting.pop_front().map(|(_, log)| Work::Rest(log, i64::MAX));
            }
            state.idle += 1;
            state = match wait {
                None => self.some.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(ms) => {
                    let timeout = Duration::from_millis(ms as u64);
                    self.some.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.idle -= 1;
        }
    }

    fn set_closed(&self, closed: bool) {
        self.state().closed = closed;
        self.some.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Work {
    Commit(Arc<PartitionLog>),
    /// With the time, in ms.
    Rest(Arc<PartitionLog>, i64),
}

/// The threads. Dropped, they commit what is pending and end; do so before [`crate::Store::close`].
pub struct Committer {
    queue: Arc<Queue>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Committer {
    pub(crate) fn spawn(
        queue: Arc<Queue>,
        threads: usize,
        clock: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> io::Result<Committer> {
        queue.set_closed(false);
        let clock = Arc::new(clock);
        let mut committer = Committer { queue, threads: Vec::new() };
        for i in 0..threads.max(1) {
            let (queue, clock) = (committer.queue.clone(), clock.clone());
            let run = move || {
                while let Some(work) = queue.pop(&*clock) {
                    match work {
                        Work::Commit(log) => {
                            if log.commit_pooled(clock()) {
                                queue.push(log);
                            }
                        }
                        Work::Rest(log, now) => log.rest(now),
                    }
                }
            };
            let thread = thread::Builder::new().name(format!("dibs-commit-{i}")).spawn(run)?;
            committer.threads.push(thread);
        }
        Ok(committer)
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue.set_closed(true);
        for thread in self.threads.drain(..) {
            // One that has panicked commits nothing more; the others have.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} threads", self.threads.len())
    }
}
