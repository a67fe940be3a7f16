//! Partitions that nobody commits by hand.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
};

use dibs_log::{
    Appended, Call, Lost, MemoryStorage, Origin, PartitionLog, Storage, Store, StoreConfig,
    batch::BatchBuilder,
};

/// Unparks the thread that waits.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

fn send(log: &PartitionLog) -> Appended {
    let mut builder = BatchBuilder::new();
    builder.push_at(1, Some(b"k"), Some(b"v"));
    log.produce(&builder.finish(0), None, Origin::Client).unwrap()
}

/// Every wait is without a timeout: one lost wake-up, and the test hangs.
#[test]
fn every_append_is_committed_without_being_asked_for() {
    for threads in [1, 3] {
        let store = Store::open(Arc::new(MemoryStorage::new(0)), StoreConfig::default()).unwrap();
        store.create_topic("early", 4).unwrap();
        store.create_topic("dibs.claims", 1).unwrap();
        // What waited before there was a committer is committed, too.
        let waiting = send(&store.partition("early", 2).unwrap());
        let committer = store.start_committer(threads, || 7, |name| !name.starts_with("dibs.")).unwrap();
        assert_eq!(block_on(store.partition("early", 2).unwrap().durable(waiting)), Ok(7));
        store.create_topic("late", 4).unwrap();
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for i in 0..8 {
                let log = store.partition(["early", "late"][i / 4], (i % 4) as u32).unwrap();
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..3_000 {
                        let sent = send(&log);
                        assert_eq!(block_on(log.durable(sent)), Ok(7));
                        assert!(log.high_watermark() > sent.last_offset);
                    }
                });
            }
        });
        let by_hand = store.partition("dibs.claims", 0).unwrap();
        by_hand.append(None, None).unwrap();
        let last = send(&store.partition("late", 0).unwrap());
        drop(committer);
        assert_eq!(store.partition("late", 0).unwrap().high_watermark(), last.last_offset + 1);
        assert_eq!(by_hand.high_watermark(), 0, "nobody else commits it");
        store.close().unwrap();
    }
}

#[test]
fn a_lost_append_is_told_and_the_partition_goes_on() {
    let storage = MemoryStorage::new(0);
    let store = Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap();
    store.create_topic("t", 1).unwrap();
    let log = store.partition("t", 0).unwrap();
    let committer = store.start_committer(1, || 7, |_| true).unwrap();
    assert_eq!(block_on(log.durable(send(&log))), Ok(7));
    storage.fail(Call::Write, 1, 1, 28);
    // The first attempt to mend fails as well.
    storage.fail(Call::SetLen, 1, 1, 5);
    assert_eq!(block_on(log.durable(send(&log))), Err(Lost::Failed));
    let mut builder = BatchBuilder::new();
    builder.push(None, None);
    let bytes = builder.finish(1);
    let sent = loop {
        // Refused until a thread has mended the file; each refusal asks for that.
        match log.produce(&bytes, None, Origin::Client) {
            Ok(sent) => break sent,
            Err(_) => thread::yield_now(),
        }
    };
    assert_eq!(sent.base_offset, 1);
    assert_eq!(block_on(log.durable(sent)), Ok(7));
    drop(committer);
    let waiting = send(&log);
    store.close().unwrap();
    assert_eq!(block_on(log.durable(waiting)), Err(Lost::Closed));
}

#[test]
fn what_comes_to_rest_ends_with_its_last_batch() {
    let (storage, clock) = (MemoryStorage::new(0), Arc::new(AtomicI64::new(1_000)));
    let store = Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap();
    store.create_topic("t", 2).unwrap();
    let logs = [0, 1].map(|i| store.partition("t", i).unwrap());
    let now = clock.clone();
    let committer = store.start_committer(2, move || now.load(Ordering::Acquire), |_| true).unwrap();
    let is_tight = |i: usize| {
        let file = storage.open(&format!("t-{i}/00000000000000000000.log"), false).unwrap();
        file.len().unwrap() == logs[i].segments()[0].bytes
    };
    for log in [0, 1, 0, 1, 0].map(|i: usize| &logs[i]) {
        block_on(log.durable(send(log))).unwrap();
    }
    assert_eq!([0, 1].map(is_tight), [false, false]);
    clock.store(2_000, Ordering::Release);
    while !(is_tight(0) && is_tight(1)) {
        thread::yield_now();
    }
    // And again, this time at the end.
    block_on(logs[0].durable(send(&logs[0]))).unwrap();
    block_on(logs[0].durable(send(&logs[0]))).unwrap();
    assert!(!is_tight(0));
    drop(committer);
    assert!(is_tight(0));
}
