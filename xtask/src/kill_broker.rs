//! SIGKILL at a random moment of transactions that copy one topic to another, round after round on the same data.
//! An idempotent producer writes numbers, copiers of both forms of the protocol copy them, some of their
//! transactions are aborted, and some copiers are left for dead and come back. In the end both topics must hold
//! the same numbers in the same order, each once. Meanwhile idempotent producers write events, and two groups read
//! them: in the end each event is there once, in its producer's order, and each group has read and committed all.

mod groups;

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use kafka_protocol::ResponseError;
use uuid::Uuid;

use self::groups::Group;

use crate::{
    Rounds,
    kafka::{self, Kafka, Producer},
    server::{self, Server},
};

const FROM: &str = "numbers";
const TO: &str = "copies";
const PARTITIONS: i32 = 2;
const COPIER: &str = "copier";
/// How many idempotent producers write events, each to all partitions.
const WRITERS: u64 = 3;
/// A producer of events rests for so long between two batches.
const REST: Duration = Duration::from_millis(2);
/// How long to wait before the next connection to a broker that is not there.
const RETRY: Duration = Duration::from_millis(5);

/// What the threads share.
struct Shared {
    /// Where the broker is, if it runs.
    address: Mutex<Option<SocketAddr>>,
    stop_writing: AtomicBool,
    stop_copying: AtomicBool,
    numbers: Written,
    events: Vec<Written>,
    groups: [Group; 2],
    committed: AtomicU64,
    aborted: AtomicU64,
    fenced: AtomicU64,
}

/// What one producer writes.
struct Written {
    topic: &'static str,
    /// Added to all numbers, to tell producers apart.
    tag: u64,
    rest: Duration,
    /// What was acknowledged, by partition: the numbers below this.
    acked: Vec<AtomicU64>,
}

impl Written {
    fn new(topic: &'static str, partitions: i32, writer: u64, rest: Duration) -> Written {
        let acked = (0..partitions).map(|_| AtomicU64::new(0)).collect();
        Written { topic, tag: writer << 40, rest, acked }
    }

    fn count(&self, partition: i32) -> u64 {
        self.acked[partition as usize].load(Acquire)
    }
}

impl Shared {
    fn new(address: SocketAddr, events: Uuid) -> Shared {
        let writer = |i| Written::new(groups::TOPIC, groups::PARTITIONS, i, REST);
        Shared {
            address: Mutex::new(Some(address)),
            stop_writing: AtomicBool::new(false),
            stop_copying: AtomicBool::new(false),
            numbers: Written::new(FROM, PARTITIONS, 0, Duration::ZERO),
            events: (0..WRITERS).map(writer).collect(),
            groups: [Group::new("classic", false, events), Group::new("consumer", true, events)],
            committed: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
        }
    }

    fn connect(&self) -> Option<Kafka> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let kafka = address.and_then(|address| Kafka::open(address).ok());
        if kafka.is_none() {
            thread::sleep(RETRY);
        }
        kafka
    }

    fn progress(&self) -> String {
        let of = |count: &AtomicU64| count.load(Relaxed);
        let [classic, newer] = &self.groups;
        format!(
            "{} transactions committed, {} aborted, {} zombies fenced, {} and {} commits of the groups",
            of(&self.committed),
            of(&self.aborted),
            of(&self.fenced),
            of(&classic.commits),
            of(&newer.commits)
        )
    }

    /// How many events each partition holds.
    fn ends(&self) -> Vec<i64> {
        let of_all = |partition| self.events.iter().map(|events| events.count(partition) as i64).sum();
        (0..groups::PARTITIONS).map(of_all).collect()
    }

    fn set(&self, address: Option<SocketAddr>) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

pub(crate) fn run(args: &Rounds) -> anyhow::Result<()> {
    let mut random = args.common.random();
    let binary = server::binary(args.common.binary.as_deref())?;
    let folder = tempfile::tempdir()?;
    let (data, log) = (folder.path().join("data"), folder.path().join("broker.log"));
    let mut broker = start(&binary, &data, &log)?;
    let mut admin = Kafka::open(broker.address)?;
    for topic in [FROM, TO] {
        admin.create_topic(topic, PARTITIONS)?;
    }
    let events = admin.create_topic(groups::TOPIC, groups::PARTITIONS)?;
    let shared = &Shared::new(broker.address, events);
    let broker = thread::scope(move |scope| {
        // Whatever ends this ends the threads too.
        let stop = Stop(shared);
        let mut another = || fastrand::Rng::with_seed(random.u64(..));
        let (for_numbers, for_copier) = (another(), another());
        let mut writing = vec![scope.spawn(|| write(shared, &shared.numbers, for_numbers))];
        for events in &shared.events {
            let random = another();
            writing.push(scope.spawn(move || write(shared, events, random)));
        }
        let copying = scope.spawn(|| copy(shared, for_copier));
        let mut reading = Vec::new();
        for group in shared.groups.iter().flat_map(|group| [group; groups::MEMBERS]) {
            let random = another();
            reading.push(scope.spawn(move || group.attend(shared, random)));
        }
        for round in 1..=args.rounds {
            thread::sleep(Duration::from_millis(random.u64(5..500)));
            shared.set(None);
            broker.kill()?;
            broker = start(&binary, &data, &log).with_context(|| format!("round {round}"))?;
            let mut kafka = Kafka::open(broker.address)?;
            shared.groups.iter().try_for_each(|group| group.check(&mut kafka))?;
            shared.set(Some(broker.address));
            println!("round {round}: {}", shared.progress());
        }
        shared.stop_writing.store(true, Release);
        for thread in writing {
            thread.join().expect("a writer panicked")?;
        }
        let ends = shared.ends();
        shared.groups.iter().try_for_each(|group| group.drain(&ends))?;
        drop(stop);
        for thread in reading {
            thread.join().expect("a member panicked")?;
        }
        copying.join().expect("the copier panicked")?;
        anyhow::Ok(broker)
    })?;
    let numbers = judge(shared, broker.address)?;
    let events = judge_events(shared, broker.address)?;
    broker.end()?;
    let of_both =
        |count: fn(&Group) -> &AtomicU64| shared.groups.iter().map(|g| count(g).load(Relaxed)).sum::<u64>();
    println!(
        "{} rounds, {} kills: {numbers} numbers, each copied exactly once; {events} events of {WRITERS} idempotent \
         producers, each there once and read by 2 groups of {} ({} joins, {} commits, none forgotten, {} records \
         read again)",
        args.rounds,
        args.rounds,
        groups::MEMBERS,
        of_both(|g| &g.joins),
        of_both(|g| &g.commits),
        of_both(|g| &g.again)
    );
    Ok(())
}

/// Dropped, it lets all threads end.
struct Stop<'a>(&'a Shared);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop_writing.store(true, Release);
        self.0.stop_copying.store(true, Release);
        self.0.groups.iter().for_each(Group::stop);
    }
}

fn start(binary: &Path, data: &Path, log: &Path) -> anyhow::Result<Server> {
    let mut command = Command::new(binary);
    command.args(["broker", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    let set = |name: &str, value: i32| format!("{name}={value}");
    let session = groups::SESSION_MS;
    for setting in [
        set("offsets.topic.num.partitions", 4),
        set("transaction.state.log.num.partitions", 4),
        set("group.initial.rebalance.delay.ms", 0),
        set("group.min.session.timeout.ms", session),
        set("group.consumer.session.timeout.ms", session),
        set("group.consumer.min.session.timeout.ms", session),
        set("group.consumer.heartbeat.interval.ms", session / 5),
        set("group.consumer.min.heartbeat.interval.ms", session / 5),
    ] {
        command.args(["--set", &setting]);
    }
    Server::spawn(command, log)
}

/// Writes the numbers 0, 1, 2, … to each partition, in batches; a batch without an answer is sent again.
fn write(shared: &Shared, to: &Written, mut random: fastrand::Rng) -> anyhow::Result<()> {
    let mut producer = None;
    let mut unanswered: Option<(i32, Vec<u64>)> = None;
    while !shared.stop_writing.load(Acquire) || unanswered.is_some() {
        let Some(mut kafka) = shared.connect() else {
            ensure!(!shared.stop_copying.load(Acquire), "the broker is gone");
            continue;
        };
        loop {
            let (partition, batch) = unanswered.take().unwrap_or_else(|| {
                let partition = random.i32(0..to.acked.len() as i32);
                let first = to.tag + to.count(partition);
                (partition, (first..first + random.u64(1..30)).collect())
            });
            let known = match producer {
                Some(known) => Ok(known),
                None => kafka.init(None),
            };
            let sent = known.and_then(|known| {
                producer = Some(known);
                let sequence = to.count(partition) as i32;
                kafka.produce((to.topic, partition), None, known, sequence, &batch, 9)
            });
            match sent {
                Ok(()) => drop(to.acked[partition as usize].fetch_add(batch.len() as u64, Release)),
                Err(e) => {
                    unanswered = Some((partition, batch));
                    ensure!(e.downcast_ref::<ResponseError>().is_none_or(ResponseError::is_retriable), e);
                    break;
                }
            }
            if shared.stop_writing.load(Acquire) {
                break;
            }
            thread::sleep(to.rest);
        }
    }
    Ok(())
}

/// Copies until it is told to stop and everything is copied. Whenever anything goes wrong, it begins anew.
fn copy(shared: &Shared, mut random: fastrand::Rng) -> anyhow::Result<()> {
    let mut zombie = None;
    loop {
        let Some(mut kafka) = shared.connect() else {
            ensure!(!shared.stop_copying.load(Acquire), "the broker is gone");
            continue;
        };
        match copy_some(shared, &mut kafka, &mut random, &mut zombie) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The broker was killed, or began to be.
            Err(e) if e.downcast_ref::<Violation>().is_some() => return Err(e),
            Err(_) => thread::sleep(RETRY),
        }
    }
}

/// What must not be.
#[derive(Debug)]
struct Violation(String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// One copier's life. True if everything is copied; false if it is left for dead in the middle of a transaction.
fn copy_some(
    shared: &Shared,
    kafka: &mut Kafka,
    random: &mut fastrand::Rng,
    zombie: &mut Option<(Producer, i16)>,
) -> anyhow::Result<bool> {
    let second_form = random.bool();
    let mut producer = kafka.init(Some(COPIER))?;
    let mut sequences = [0; PARTITIONS as usize];
    if let Some((old, version)) = zombie.take() {
        match kafka.end(COPIER, old, true, version) {
            Ok(_) => return Err(Violation("a zombie has committed".into()).into()),
            Err(e) if kafka::is(&e, ResponseError::ProducerFenced) => {
                let _ = shared.fenced.fetch_add(1, Relaxed);
            }
            Err(e) => ensure!(e.downcast_ref::<ResponseError>().is_none(), e),
        }
    }
    let mut idle = 0;
    for partition in (0..PARTITIONS).cycle() {
        let (from, to) = ((FROM, partition), (TO, partition));
        let at = kafka.committed("copiers", from)?;
        let fetched = kafka.fetch(from, at)?;
        let all = shared.numbers.count(partition);
        idle = if at as u64 >= all { idle + 1 } else { 0 };
        if idle > PARTITIONS && shared.stop_copying.load(Acquire) {
            return Ok(true);
        }
        let count = random.usize(1..100).min(fetched.values.len());
        if count == 0 {
            continue;
        }
        let (values, next) = (&fetched.values[..count], at + count as i64);
        let sequence = sequences[partition as usize];
        let version = if second_form { 5 } else { 3 };
        if second_form {
            kafka.produce(to, Some(COPIER), producer, sequence, values, 12)?;
        } else {
            kafka.add_partition(COPIER, producer, to)?;
            kafka.produce(to, Some(COPIER), producer, sequence, values, 9)?;
            kafka.add_offsets(COPIER, producer, "copiers")?;
        }
        kafka.commit_offset(COPIER, producer, "copiers", from, next, version)?;
        if random.u8(..20) == 0 {
            *zombie = Some((producer, version));
            return Ok(false);
        }
        let commit = random.u8(..5) > 0;
        producer = kafka.end(COPIER, producer, commit, version)?;
        let counter = if commit { &shared.committed } else { &shared.aborted };
        counter.fetch_add(1, Relaxed);
        sequences[partition as usize] += count as i32;
        if second_form {
            sequences.fill(0);
        }
    }
    Ok(true)
}

/// Compares the topics, and says how many numbers there are.
fn judge(shared: &Shared, address: SocketAddr) -> anyhow::Result<u64> {
    let mut kafka = Kafka::open(address)?;
    let mut count = 0;
    for partition in 0..PARTITIONS {
        let written = shared.numbers.count(partition);
        for topic in [FROM, TO] {
            let found = read_all(&mut kafka, (topic, partition))?;
            let wrong = (0..written).zip(&found).find(|(expected, found)| expected != *found);
            ensure!(wrong.is_none(), "{topic}-{partition}: (expected, found) is {wrong:?}");
            ensure!(found.len() as u64 == written, "{topic}-{partition}: {} of {written}", found.len());
        }
        count += written;
    }
    Ok(count)
}

/// Compares the events with what their producers were told and what the groups have read, and counts them.
fn judge_events(shared: &Shared, address: SocketAddr) -> anyhow::Result<u64> {
    let mut kafka = Kafka::open(address)?;
    let mut count = 0;
    for partition in 0..groups::PARTITIONS {
        let found = read_all(&mut kafka, (groups::TOPIC, partition))?;
        for events in &shared.events {
            let expected = events.tag..events.tag + events.count(partition);
            let theirs = found.iter().filter(|n| **n >> 40 == events.tag >> 40);
            ensure!(
                theirs.copied().eq(expected),
                "{}-{partition}: not {} in order",
                events.topic,
                events.tag
            );
        }
        shared.groups.iter().try_for_each(|group| group.judge(partition, &found))?;
        count += found.len() as u64;
    }
    ensure!(count as i64 == shared.ends().iter().sum::<i64>(), "there are {count} events");
    Ok(count)
}

fn read_all(kafka: &mut Kafka, from: (&str, i32)) -> anyhow::Result<Vec<u64>> {
    let (mut values, mut at) = (Vec::new(), 0);
    loop {
        let fetched = kafka.fetch(from, at)?;
        values.extend(fetched.values);
        if fetched.next >= fetched.last_stable {
            return Ok(values);
        }
        at = fetched.next;
    }
}
