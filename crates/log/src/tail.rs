//! Waiting for the high watermark: threads and tasks, woken without polling.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use dibs_model::Offset;

/// The high watermark and everybody who waits for it.
pub(crate) struct Tail {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    high_watermark: Offset,
    closed: bool,
    /// Threads in [`Tail::wait`].
    threads: usize,
    /// Tasks by the offset they wait for the high watermark to pass. A waker is registered in the same critical
    /// section that finds the high watermark too low, so that none is missed.
    tasks: BTreeMap<(Offset, u64), Waker>,
    next_task: u64,
}

impl Tail {
    pub(crate) fn new(high_watermark: Offset) -> Self {
        let state = State { high_watermark, closed: false, threads: 0, tasks: BTreeMap::new(), next_task: 0 };
        Tail { state: Mutex::new(state), moved: Condvar::new() }
    }

    /// Moves the high watermark and wakes whom that concerns.
    pub(crate) fn advance(&self, high_watermark: Offset) {
        let mut state = self.state();
        state.high_watermark = high_watermark;
        let later = state.tasks.split_off(&(high_watermark, 0));
        let ready = std::mem::replace(&mut state.tasks, later);
        let threads = state.threads;
        drop(state);
        if threads > 0 {
            self.moved.notify_all();
        }
        ready.into_values().for_each(Waker::wake);
    }

    /// Wakes everybody for good.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let ready = std::mem::take(&mut state.tasks);
        drop(state);
        self.moved.notify_all();
        ready.into_values().for_each(Waker::wake);
    }

    /// Blocks until the high watermark is past an offset, and says whether it is.
    pub(crate) fn wait(&self, past: Offset, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut state = self.state();
        state.threads += 1;
        while state.high_watermark <= past && !state.closed {
            state = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => self.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        state.threads -= 1;
        state.high_watermark > past
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when the high watermark is past an offset, or the partition is closed.
pub(crate) struct Passed<'a> {
    tail: &'a Tail,
    past: Offset,
    /// Its key in [`State::tasks`], from the first time it had to wait.
    task: Option<u64>,
}

impl<'a> Passed<'a> {
    pub(crate) fn new(tail: &'a Tail, past: Offset) -> Self {
        Passed { tail, past, task: None }
    }
}

impl Future for Passed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.tail.state();
        if state.high_watermark > self.past || state.closed {
            return Poll::Ready(());
        }
        let task = self.task.unwrap_or(state.next_task);
        state.next_task = state.next_task.max(task + 1);
        state.tasks.insert((self.past, task), cx.waker().clone());
        drop(state);
        self.task = Some(task);
        Poll::Pending
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.tail.state().tasks.remove(&(self.past, task));
        }
    }
}
