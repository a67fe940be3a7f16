//! Threads that commit the partitions that nobody commits by hand.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
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

    /// The next partition; `None` when the queue is closed and empty.
    fn pop(&self) -> Option<Arc<PartitionLog>> {
        let mut state = self.state();
        loop {
            if let Some(log) = state.dirty.pop_front() {
                return Some(log);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.some.wait(state).unwrap_or_else(PoisonError::into_inner);
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
                while let Some(log) = queue.pop() {
                    if log.commit_pooled(clock()) {
                        queue.push(log);
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
