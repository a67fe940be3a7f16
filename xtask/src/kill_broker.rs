//! SIGKILL at a random moment of transactions that copy one topic to another, round after round on the same data.
//! An idempotent producer writes numbers, copiers of both forms of the protocol copy them, some of their
//! transactions are aborted, and some copiers are left for dead and come back. In the end both topics must hold
//! the same numbers in the same order, each once.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use kafka_protocol::ResponseError;

use crate::{
    Rounds,
    kafka::{self, Kafka, Producer},
    server::{self, Server},
};

const FROM: &str = "numbers";
const TO: &str = "copies";
const PARTITIONS: i32 = 2;
const COPIER: &str = "copier";
/// How long to wait before the next connection to a broker that is not there.
const RETRY: Duration = Duration::from_millis(5);

/// What the threads share.
#[derive(Default)]
struct Shared {
    /// Where the broker is, if it runs.
    address: Mutex<Option<SocketAddr>>,
    stop_writing: AtomicBool,
    stop_copying: AtomicBool,
    /// What was acknowledged to the writer, by partition: the numbers below this.
    written: [AtomicU64; PARTITIONS as usize],
    committed: AtomicU64,
    aborted: AtomicU64,
    fenced: AtomicU64,
}

impl Shared {
    fn connect(&self) -> Option<Kafka> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let kafka = address.and_then(|address| Kafka::open(address).ok());
        if kafka.is_none() {
            thread::sleep(RETRY);
        }
        kafka
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
    [FROM, TO].iter().try_for_each(|topic| admin.create_topic(topic, PARTITIONS))?;
    let shared = Arc::new(Shared::default());
    shared.set(Some(broker.address));
    let (for_writer, for_copier) = (shared.clone(), shared.clone());
    let (seeds, mut writing) = ((random.u64(..), random.u64(..)), Vec::new());
    writing.push(thread::spawn(move || write(&for_writer, fastrand::Rng::with_seed(seeds.0))));
    let copying = thread::spawn(move || copy(&for_copier, fastrand::Rng::with_seed(seeds.1)));
    for round in 1..=args.rounds {
        thread::sleep(Duration::from_millis(random.u64(5..500)));
        shared.set(None);
        broker.kill()?;
        broker = start(&binary, &data, &log).with_context(|| format!("round {round}"))?;
        shared.set(Some(broker.address));
        let of = |count: &AtomicU64| count.load(Relaxed);
        println!(
            "round {round}: {} transactions committed, {} aborted, {} zombies fenced",
            of(&shared.committed),
            of(&shared.aborted),
            of(&shared.fenced)
        );
    }
    shared.stop_writing.store(true, Release);
    for thread in writing {
        thread.join().expect("the writer panicked")?;
    }
    shared.stop_copying.store(true, Release);
    copying.join().expect("the copier panicked")?;
    let count = judge(&shared, broker.address)?;
    broker.end()?;
    println!("{} rounds, {} kills: {count} numbers, each copied exactly once", args.rounds, args.rounds);
    Ok(())
}

fn start(binary: &Path, data: &Path, log: &Path) -> anyhow::Result<Server> {
    let mut command = Command::new(binary);
    command.args(["broker", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    command.args([
        "--set",
        "offsets.topic.num.partitions=4",
        "--set",
        "transaction.state.log.num.partitions=4",
    ]);
    Server::spawn(command, log)
}

/// Writes the numbers 0, 1, 2, … to each partition, in batches; a batch without an answer is sent again.
fn write(shared: &Shared, mut random: fastrand::Rng) -> anyhow::Result<()> {
    let mut producer = None;
    let mut next = [0_u64; PARTITIONS as usize];
    let mut unanswered: Option<(usize, Vec<u64>)> = None;
    while !shared.stop_writing.load(Acquire) || unanswered.is_some() {
        let Some(mut kafka) = shared.connect() else { continue };
        loop {
            let (partition, batch) = unanswered.take().unwrap_or_else(|| {
                let partition = random.usize(..next.len());
                (partition, (next[partition]..next[partition] + random.u64(1..30)).collect())
            });
            let known = match producer {
                Some(known) => Ok(known),
                None => kafka.init(None),
            };
            let sent = known.and_then(|known| {
                producer = Some(known);
                let to = (FROM, partition as i32);
                kafka.produce(to, None, known, next[partition] as i32, &batch, 9)
            });
            match sent {
                Ok(()) => {
                    next[partition] += batch.len() as u64;
                    shared.written[partition].store(next[partition], Release);
                }
                Err(e) => {
                    unanswered = Some((partition, batch));
                    ensure!(e.downcast_ref::<ResponseError>().is_none_or(ResponseError::is_retriable), e);
                    break;
                }
            }
            if shared.stop_writing.load(Acquire) {
                break;
            }
        }
    }
    Ok(())
}

/// Copies until it is told to stop and everything is copied. Whenever anything goes wrong, it begins anew.
fn copy(shared: &Shared, mut random: fastrand::Rng) -> anyhow::Result<()> {
    let mut zombie = None;
    loop {
        let Some(mut kafka) = shared.connect() else { continue };
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
struct Violation(&'static str);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
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
            Ok(_) => return Err(Violation("a zombie has committed").into()),
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
        let all = shared.written[partition as usize].load(Acquire);
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
        let written = shared.written[partition as usize].load(Acquire);
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
