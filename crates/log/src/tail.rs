//! Waiting for the high watermark: threads and tasks, woken without polling.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use dibs_model::Offset;

use crate::{error::Lost, pending::Appended};

/// How many commits' times, and failures, are remembered for those who ask late.
const REMEMBERED: usize = 64;

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
    /// The high watermark after the newest commits, and their time in ms. Oldest first.
    times: VecDeque<(Offset, i64)>,
    /// How many commits have failed.
    failures: u64,
    /// The high watermark at the newest failures. Oldest first.
    failed_at: VecDeque<Offset>,
}

impl Tail {
    pub(crate) fn new(high_watermark: Offset) -> Self {
        let state = State {
            high_watermark,
            closed: false,
            threads: 0,
            tasks: BTreeMap::new(),
            next_task: 0,
            times: VecDeque::from([(high_watermark, -1)]),
            failures: 0,
            failed_at: VecDeque::new(),
        };
        Tail { state: Mutex::new(state), moved: Condvar::new() }
    }

    /// Moves the high watermark by a commit of the time `now` (ms), and wakes whom that concerns.
    pub(crate) fn advance(&self, high_watermark: Offset, now: i64) {
        let mut state = self.state();
        state.high_watermark = high_watermark;
        remember(&mut state.times, (high_watermark, now));
        let later = state.tasks.split_off(&(high_watermark, 0));
        let ready = std::mem::replace(&mut state.tasks, later);
        let threads = state.threads;
        drop(state);
        if threads > 0 {
            self.moved.notify_all();
        }
        ready.into_values().for_each(Waker::wake);
    }

    /// A commit has failed: wakes every task, for what it waits for may never come.
    pub(crate) fn fail(&self) {
        let mut state = self.state();
        state.failures += 1;
        let high_watermark = state.high_watermark;
        remember(&mut state.failed_at, high_watermark);
        let ready = std::mem::take(&mut state.tasks);
        drop(state);
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

fn remember<T>(newest: &mut VecDeque<T>, item: T) {
    if newest.len() == REMEMBERED {
        newest.pop_front();
    }
    newest.push_back(item);
}

impl State {
    /// What has become of an append: the time (ms) of its commit, lost, or nothing yet.
    fn outcome(&self, appended: &Appended) -> Option<Result<i64, Lost>> {
        let failed_since = self.failures - appended.failures;
        // What was durable at the first failure after the append was durable under its own offset.
        let durable_up_to = match (failed_since, self.failed_at.len() as u64) {
            (0, _) => self.high_watermark,
            (since, remembered) if since <= remembered => self.failed_at[(remembered - since) as usize],
            _ => 0,
        };
        if durable_up_to > appended.last_offset {
            // The oldest entry says nothing of how far back its commit goes.
            let commit = self.times.iter().skip(1).find(|(end, _)| *end > appended.last_offset);
            let remembered = self.times[0].0 <= appended.last_offset;
            return Some(Ok(commit.filter(|_| remembered).map_or(-1, |(_, time)| *time)));
        }
        match failed_since {
            0 if self.closed => Some(Err(Lost::Closed)),
            0 => None,
            _ => Some(Err(Lost::Failed)),
        }
    }
}

/// Registers a task for the high watermark to pass an offset; forgets it when dropped.
struct Place<'a> {
    tail: &'a Tail,
    past: Offset,
    /// Its key in [`State::tasks`], from the first time it had to wait.
    task: Option<u64>,
}

impl Place<'_> {
    fn register(&mut self, mut state: MutexGuard<'_, State>, cx: &Context<'_>) {
        let task = self.task.unwrap_or(state.next_task);
        state.next_task = state.next_task.max(task + 1);
        state.tasks.insert((self.past, task), cx.waker().clone());
        drop(state);
        self.task = Some(task);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.tail.state().tasks.remove(&(self.past, task));
        }
    }
}

/// Resolves when the high watermark is past an offset, or the partition is closed.
pub(crate) struct Passed<'a>(Place<'a>);

impl<'a> Passed<'a> {
    pub(crate) fn new(tail: &'a Tail, past: Offset) -> Self {
        Passed(Place { tail, past, task: None })
    }
}

impl Future for Passed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let state = self.0.tail.state();
        if state.high_watermark > self.0.past || state.closed {
            return Poll::Ready(());
        }
        self.0.register(state, cx);
        Poll::Pending
    }
}

/// Resolves when it is known what became of an append.
pub(crate) struct Durable<'a> {
    place: Place<'a>,
    appended: Appended,
}

impl<'a> Durable<'a> {
    pub(crate) fn new(tail: &'a Tail, appended: Appended) -> Self {
        Durable { place: Place { tail, past: appended.last_offset, task: None }, appended }
    }
}

impl Future for Durable<'_> {
    type Output = Result<i64, Lost>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let state = self.place.tail.state();
        if let Some(outcome) = state.outcome(&self.appended) {
            return Poll::Ready(outcome);
        }
        self.place.register(state, cx);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appended(offset: Offset, failures: u64) -> Appended {
        Appended { base_offset: offset, last_offset: offset, duplicate: false, failures }
    }

    #[test]
    fn an_append_is_durable_or_lost_and_never_another_ones_fate() {
        let tail = Tail::new(10);
        let outcome = |offset, failures| tail.state().outcome(&appended(offset, failures));
        assert_eq!(outcome(10, 0), None);
        tail.advance(12, 500);
        assert_eq!((outcome(11, 0), outcome(12, 0)), (Some(Ok(500)), None));
        tail.fail();
        // Offset 12 is given anew, and committed; the first one's append is lost all the same.
        tail.advance(13, 600);
        assert_eq!((outcome(12, 0), outcome(12, 1)), (Some(Err(Lost::Failed)), Some(Ok(600))));
        assert_eq!(outcome(11, 0), Some(Ok(500)), "durable before the failure");
        (0..2 * REMEMBERED).for_each(|_| tail.fail());
        assert_eq!(outcome(11, 0), Some(Err(Lost::Failed)), "too long ago to tell");
        assert_eq!(outcome(13, 1 + 2 * REMEMBERED as u64), None);
        tail.close();
        assert_eq!(outcome(13, 1 + 2 * REMEMBERED as u64), Some(Err(Lost::Closed)));
    }

    #[test]
    fn the_time_is_that_of_the_commit_or_none() {
        let tail = Tail::new(0);
        for i in 0..3 * REMEMBERED as u64 {
            tail.advance(i + 1, i as i64 * 10);
        }
        let time = |offset| tail.state().outcome(&appended(offset, 0));
        let newest = 3 * REMEMBERED as u64 - 1;
        assert_eq!(time(newest), Some(Ok(newest as i64 * 10)));
        assert_eq!(time(newest - 50), Some(Ok((newest as i64 - 50) * 10)));
        assert_eq!(time(5), Some(Ok(-1)), "forgotten");
    }
}
