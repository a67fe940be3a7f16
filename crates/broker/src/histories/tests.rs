use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use super::{
    checker::{Kind, check},
    history::{Batch, Event, Fetched, History, Item},
    world::{Summary, World},
};

fn from_env(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is a whole number")))
}

/// A panic somewhere below must name the seed too.
struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("SEED={} cargo test -p dibs-broker histories shows it again", self.0);
        }
    }
}

fn world(seed: u64, aloud: bool) -> Summary {
    let _named = NameOnPanic(seed);
    let mut world = World::new(seed);
    let lived = world.live();
    if aloud {
        world.history.batches.iter().enumerate().for_each(|(i, batch)| println!("batch {i}: {batch:?}"));
        world.history.events.iter().enumerate().for_each(|(i, event)| println!("event {i}: {event:?}"));
    }
    lived.unwrap_or_else(|wrong| panic!("{:?}: {}", wrong.kind, wrong.what))
}

#[test]
fn what_clients_see_is_one_log() {
    if let Some(seed) = from_env("SEED") {
        println!("{:?}", world(seed, true));
        return;
    }
    let (next, seeds) = (AtomicU64::new(0), from_env("SEEDS").unwrap_or(1_500));
    let run = || {
        let mut total = Summary::default();
        while let seed @ 0.. = next.fetch_add(1, Relaxed)
            && seed < seeds
        {
            let one = world(seed, false);
            total.batches += one.batches;
            total.acked += one.acked;
            total.committed += one.committed;
            total.aborted += one.aborted;
            total.fetched += one.fetched;
            total.restarts += one.restarts;
            total.segments += one.segments;
        }
        println!("{total:?}");
        total
    };
    let totals = thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|one| one.join().expect("a world went wrong")).collect::<Vec<_>>()
    });
    // A schedule in which nothing happens proves nothing.
    let least = |s: &Summary| [s.acked, s.committed, s.aborted, s.restarts, s.segments, s.fetched];
    let sums = totals.iter().map(least).fold([0; 6], |sums, one| std::array::from_fn(|i| sums[i] + one[i]));
    assert!(sums.iter().all(|sum| *sum as u64 >= seeds), "{totals:?}");
}

#[test]
fn a_seed_is_one_world() {
    for seed in 0..20 {
        let lived = || {
            let mut world = World::new(seed);
            let lived = world.live().is_ok();
            (lived, format!("{:?}", world.history))
        };
        assert_eq!(lived(), lived(), "{seed}");
    }
}

fn numbered(values: std::ops::Range<u64>, transaction: Option<usize>) -> Batch {
    Batch { partition: 0, values, producer: Some(1), transaction }
}

fn fetched(committed: bool, end: u64, items: &[(u64, Item)]) -> Event {
    let from = items.first().map_or(end, |(offset, _)| *offset);
    let items = items.to_vec();
    let (partition, start) = (0, 0);
    Event::Fetched(Fetched {
        partition,
        from,
        committed,
        start,
        high_watermark: end,
        last_stable: end,
        items,
    })
}

/// A producer's two batches, and a transaction of two.
fn right() -> History {
    use Item::*;
    let all = [Record(0), Record(1), Record(2), Record(3), Record(4), Control];
    let end: Vec<_> = (0..).zip(all).collect();
    History {
        batches: vec![
            numbered(0..2, None),
            numbered(2..3, None),
            numbered(3..4, Some(1)),
            numbered(4..5, Some(1)),
        ],
        events: vec![
            Event::Sent(0),
            Event::Sent(1),
            Event::Acked { batch: 0, base: 0 },
            fetched(false, 3, &end[..3]),
            Event::Sent(1),
            Event::Acked { batch: 1, base: 2 },
            Event::Sent(2),
            Event::Acked { batch: 2, base: 3 },
            Event::Sent(3),
            Event::Acked { batch: 3, base: 4 },
            Event::Ending { transaction: 1, commit: true },
            fetched(true, 6, &end),
            Event::Ended { transaction: 1, commit: true },
        ],
        end: vec![end],
    }
}

/// What the checker says of a history with something wrong in it.
fn says(spoil: impl FnOnce(&mut History)) -> Kind {
    let mut history = right();
    check(&history).expect("it is right as it is");
    spoil(&mut history);
    check(&history).expect_err("it is wrong").kind
}

#[test]
fn what_was_acknowledged_must_stay() {
    assert_eq!(says(|h| h.end[0].truncate(2)), Kind::Lost);
    assert_eq!(says(|h| h.events.insert(10, fetched(false, 2, &[]))), Kind::Lost);
    assert_eq!(says(|h| h.events.insert(10, Event::OutOfRange { partition: 0, from: 1 })), Kind::Lost);
    assert_eq!(says(|h| h.events.insert(10, Event::Deleted { partition: 0, start: 1 })), Kind::Lost);
}

#[test]
fn nothing_may_be_there_twice() {
    let twice = |h: &mut History| h.end[0].push((6, Item::Record(2)));
    assert_eq!(says(twice), Kind::Duplicated);
    assert_eq!(says(|h| h.events.push(Event::Acked { batch: 1, base: 6 })), Kind::Duplicated);
    // Who does not number its batches gets as many as it has sent, and no more.
    let of_nobody = |h: &mut History| {
        h.batches[1].producer = None;
        twice(h);
    };
    let mut history = right();
    of_nobody(&mut history);
    check(&history).expect("it was sent twice");
    assert_eq!(
        says(|h| {
            of_nobody(h);
            h.end[0].push((7, Item::Record(2)));
        }),
        Kind::Duplicated
    );
}

#[test]
fn batches_are_in_the_order_of_their_numbers() {
    let without = |h: &mut History| {
        h.events.clear();
        h.events.extend((0..4).map(Event::Sent));
        h.events.push(Event::Ending { transaction: 1, commit: true });
    };
    let swapped = |h: &mut History| {
        without(h);
        h.end[0] = (0..).zip([2, 0, 1].map(Item::Record)).collect();
    };
    assert_eq!(says(swapped), Kind::Reordered);
    let skipped = |h: &mut History| {
        without(h);
        h.end[0] = (0..).zip([0, 1, 3, 4].map(Item::Record)).collect();
    };
    assert_eq!(says(skipped), Kind::Gap);
}

#[test]
fn an_offset_holds_one_record_for_ever() {
    assert_eq!(says(|h| h.end[0][1].1 = Item::Record(2)), Kind::Changed);
    assert_eq!(says(|h| h.end[0][1].1 = Item::Control), Kind::Changed);
    assert_eq!(says(|h| h.end[0].push((6, Item::Record(9)))), Kind::Invented);
    assert_eq!(says(|h| h.events[0] = Event::Sent(1)), Kind::Invented);
}

#[test]
fn offsets_leave_nothing_out() {
    assert_eq!(says(|h| h.end[0].retain(|(offset, _)| *offset != 4)), Kind::Gap);
    let of_three = [(0, Item::Record(0)), (2, Item::Record(2))];
    assert_eq!(says(|h| h.events[3] = fetched(false, 3, &of_three)), Kind::Gap);
    let mut late = fetched(false, 3, &[(1, Item::Record(1)), (2, Item::Record(2))]);
    if let Event::Fetched(fetched) = &mut late {
        fetched.from = 0;
    }
    assert_eq!(says(|h| h.events[3] = late), Kind::Gap);
}

#[test]
fn what_is_not_committed_is_not_shown() {
    // Before anybody has asked for the commit.
    assert_eq!(says(|h| h.events.swap(10, 11)), Kind::Uncommitted);
    assert_eq!(says(|h| h.events[12] = Event::Ended { transaction: 1, commit: false }), Kind::Uncommitted);
    // And what is committed is not left out.
    assert_eq!(says(|h| h.end[0][3].1 = Item::Aborted(3)), Kind::Changed);
    let one_part = |h: &mut History| {
        h.events.truncate(11);
        h.end[0][3].1 = Item::Aborted(3);
    };
    assert_eq!(says(one_part), Kind::Torn);
    let left_out = |h: &mut History| {
        h.events.remove(11);
        h.end[0][3].1 = Item::Aborted(3);
    };
    assert_eq!(says(left_out), Kind::Lost);
}
