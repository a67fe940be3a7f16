//! Two consumer groups, one of each protocol, whose members come, go, and are left for dead. What they have read they
//! commit: no acknowledged commit may be forgotten, and nothing be left out.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::*},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use kafka_protocol::ResponseError;
use uuid::Uuid;

use super::{RETRY, Shared, Violation};
use crate::kafka::{self, Kafka};

/// What the groups read.
pub(super) const TOPIC: &str = "events";
pub(super) const PARTITIONS: i32 = 4;
/// A member that is silent for so long (ms) is out, in both protocols.
pub(super) const SESSION_MS: i32 = 400;
/// In a rebalance, nobody waits longer (ms) for the others: they may be dead, and the broker will be soon.
const REBALANCE_MS: i32 = 100;
/// Members of each group.
pub(super) const MEMBERS: usize = 3;
/// To read what is there must not take longer, once nobody kills any more.
const DRAIN: Duration = Duration::from_secs(60);

/// A group, and what its members have done.
pub(super) struct Group {
    name: &'static str,
    /// Whether it is of the newer protocol (KIP-848).
    newer: bool,
    topic_id: Uuid,
    stop: AtomicBool,
    /// What was read, by partition and offset.
    read: Vec<Mutex<Vec<Option<u64>>>>,
    /// The largest acknowledged offset of each partition.
    committed: Vec<AtomicI64>,
    pub(super) commits: AtomicU64,
    pub(super) joins: AtomicU64,
    /// Records that were read before.
    pub(super) again: AtomicU64,
}

/// One that reads.
#[derive(Default)]
struct Member {
    id: String,
    /// Its generation or epoch, while it is in the group.
    epoch: Option<i32>,
    /// Where it goes on in its partitions, once it knows.
    positions: BTreeMap<i32, Option<i64>>,
}

impl Group {
    pub(super) fn new(name: &'static str, newer: bool, topic_id: Uuid) -> Group {
        let of_partitions = 0..PARTITIONS;
        Group {
            name,
            newer,
            topic_id,
            stop: AtomicBool::new(false),
            read: of_partitions.clone().map(|_| Mutex::default()).collect(),
            committed: of_partitions.map(|_| AtomicI64::new(0)).collect(),
            commits: AtomicU64::new(0),
            joins: AtomicU64::new(0),
            again: AtomicU64::new(0),
        }
    }

    /// Lives as one member after the other until the group is stopped.
    pub(super) fn attend(&self, shared: &Shared, mut random: fastrand::Rng) -> anyhow::Result<()> {
        let mut member = Member::default();
        while !self.stop.load(Acquire) {
            let Some(mut kafka) = shared.connect() else { continue };
            match self.live(&mut kafka, &mut member, &mut random) {
                Ok(()) => member = Member::default(),
                Err(e) if e.downcast_ref::<Violation>().is_some() => return Err(e),
                Err(_) => {
                    // The broker was killed, and now and then the member with it.
                    if random.u8(..8) == 0 {
                        member = Member::default();
                    }
                    thread::sleep(RETRY);
                }
            }
        }
        Ok(())
    }

    /// Reads and commits for a while, and leaves in the end or goes without a word.
    fn live(&self, kafka: &mut Kafka, member: &mut Member, random: &mut fastrand::Rng) -> anyhow::Result<()> {
        for _ in 0..random.u32(50..1_000) {
            if self.stop.load(Acquire) {
                return self.leave(kafka, member);
            }
            let at_home =
                if self.newer { self.beat(kafka, member) } else { self.beat_classic(kafka, member) };
            let read = at_home.and_then(|()| self.read(kafka, member, random));
            match read {
                Ok(()) => {}
                Err(e) if is_put_out(&e) => {
                    member.epoch = None;
                    member.positions.clear();
                }
                // The next heartbeat says more.
                Err(e) if kafka::is(&e, ResponseError::RebalanceInProgress) => {}
                Err(e) if kafka::is(&e, ResponseError::StaleMemberEpoch) => {}
                Err(e) => return Err(e),
            }
        }
        if random.bool() { self.leave(kafka, member) } else { Ok(()) }
    }

    fn beat_classic(&self, kafka: &mut Kafka, member: &mut Member) -> anyhow::Result<()> {
        if let Some(generation) = member.epoch {
            match kafka.heartbeat(self.name, &member.id, generation) {
                Err(e) if kafka::is(&e, ResponseError::RebalanceInProgress) => {}
                done => return done,
            }
        }
        // What it has read and not committed, others read again.
        member.epoch = None;
        member.positions.clear();
        let joined = match kafka.join(self.name, &mut member.id, TOPIC, (SESSION_MS, REBALANCE_MS)) {
            Err(e) if kafka::is(&e, ResponseError::MemberIdRequired) => {
                kafka.join(self.name, &mut member.id, TOPIC, (SESSION_MS, REBALANCE_MS))
            }
            Err(e) if kafka::is(&e, ResponseError::UnknownMemberId) => {
                member.id.clear();
                return Ok(());
            }
            joined => joined,
        }?;
        let mine = kafka.sync(self.name, &member.id, &joined, (TOPIC, PARTITIONS))?;
        self.joins.fetch_add(1, Relaxed);
        member.epoch = Some(joined.generation);
        member.positions = mine.into_iter().map(|partition| (partition, None)).collect();
        Ok(())
    }

    fn beat(&self, kafka: &mut Kafka, member: &mut Member) -> anyhow::Result<()> {
        let topic = (TOPIC, self.topic_id);
        if member.id.is_empty() {
            member.id = format!("{}-{:x}", self.name, fastrand::u128(..));
        }
        if member.epoch.is_none() {
            member.positions.clear();
            self.joins.fetch_add(1, Relaxed);
        }
        let epoch = member.epoch.unwrap_or(0);
        let beaten = kafka.beat((self.name, &member.id), epoch, topic, None, REBALANCE_MS)?;
        member.epoch = Some(beaten.epoch);
        if let Some(mine) = beaten.partitions {
            member.positions.retain(|partition, _| mine.contains(partition));
            for partition in &mine {
                member.positions.entry(*partition).or_default();
            }
            // It reads no others any more, and says so.
            let beaten =
                kafka.beat((self.name, &member.id), beaten.epoch, topic, Some(&mine), REBALANCE_MS)?;
            member.epoch = Some(beaten.epoch);
        }
        Ok(())
    }

    fn read(&self, kafka: &mut Kafka, member: &mut Member, random: &mut fastrand::Rng) -> anyhow::Result<()> {
        let Some(epoch) = member.epoch else { return Ok(()) };
        for (&partition, position) in &mut member.positions {
            let from = match *position {
                Some(position) => position,
                None => self.committed(kafka, partition)?,
            };
            let fetched = kafka.fetch((TOPIC, partition), from)?;
            self.take(partition, from, &fetched.values)?;
            *position = Some(fetched.next);
            // Now and then it is put off, to the next time at least.
            let committed = self.committed[partition as usize].load(Acquire);
            if fetched.next > committed && random.u8(..4) > 0 {
                let me = (self.name, &*member.id, epoch);
                kafka.commit_as(me, (TOPIC, partition), fetched.next)?;
                self.committed[partition as usize].fetch_max(fetched.next, AcqRel);
                self.commits.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }

    /// The group's offset, which is not before any that was acknowledged.
    fn committed(&self, kafka: &mut Kafka, partition: i32) -> anyhow::Result<i64> {
        let acknowledged = self.committed[partition as usize].load(Acquire);
        let found = kafka.committed(self.name, (TOPIC, partition))?;
        if found < acknowledged {
            let what = format!("{}: {partition} is at {found} and was at {acknowledged}", self.name);
            return Err(Violation(what).into());
        }
        Ok(found)
    }

    /// Takes what was read. An offset has one record for ever.
    fn take(&self, partition: i32, from: i64, values: &[u64]) -> anyhow::Result<()> {
        let mut read = self.read[partition as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let end = from as usize + values.len();
        if read.len() < end {
            read.resize(end, None);
        }
        for (offset, value) in (from as usize..).zip(values) {
            match read[offset].replace(*value) {
                Some(before) if before != *value => {
                    let what = format!("offset {offset} of {partition} is {value} and was {before}");
                    return Err(Violation(what).into());
                }
                Some(_) => drop(self.again.fetch_add(1, Relaxed)),
                None => {}
            }
        }
        Ok(())
    }

    fn leave(&self, kafka: &mut Kafka, member: &mut Member) -> anyhow::Result<()> {
        match member.epoch {
            None => Ok(()),
            Some(_) if self.newer => {
                let topic = (TOPIC, self.topic_id);
                kafka.beat((self.name, &member.id), -1, topic, None, REBALANCE_MS).map(drop)
            }
            Some(_) => kafka.leave(self.name, &member.id),
        }
    }

    /// What was acknowledged before a kill is still there after it.
    pub(super) fn check(&self, kafka: &mut Kafka) -> anyhow::Result<()> {
        (0..PARTITIONS).try_for_each(|partition| self.committed(kafka, partition).map(drop))
    }

    /// Waits until everything below `ends` is read and committed.
    pub(super) fn drain(&self, ends: &[i64]) -> anyhow::Result<()> {
        let deadline = Instant::now() + DRAIN;
        let lag = || -> i64 {
            let each = self.committed.iter().zip(ends);
            each.map(|(committed, end)| end - committed.load(Acquire)).sum()
        };
        while lag() > 0 {
            ensure!(Instant::now() < deadline, "{}: {} records are not committed", self.name, lag());
            thread::sleep(RETRY);
        }
        Ok(())
    }

    /// Lets the members go.
    pub(super) fn stop(&self) {
        self.stop.store(true, Release);
    }

    /// Everything that a partition holds was read, and as it is.
    pub(super) fn judge(&self, partition: i32, found: &[u64]) -> anyhow::Result<()> {
        let read = self.read[partition as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = found.iter().zip(&*read).position(|(found, read)| Some(*found) != *read);
        ensure!(wrong.is_none(), "{}: offset {wrong:?} of {TOPIC}-{partition} was not read", self.name);
        ensure!(read.len() == found.len(), "{}: {} of {} were read", self.name, read.len(), found.len());
        Ok(())
    }
}

/// Whether the member is none any more, and has to join anew.
fn is_put_out(error: &anyhow::Error) -> bool {
    [
        ResponseError::UnknownMemberId,
        ResponseError::IllegalGeneration,
        ResponseError::FencedMemberEpoch,
        ResponseError::GroupIdNotFound,
    ]
    .iter()
    .any(|code| kafka::is(error, *code))
}
