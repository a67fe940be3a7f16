//! Before the first step, for those who have a topic already: a campaign's intake topic, whose records name users
//! and nothing else ([`dibs_model::IntakeTopic`]). Each is a claim, submitted in the topic's order.
//!
//! A record is left behind when its claim is answered. After a crash those since the last saved position come
//! again, under the same request keys, and find themselves decided already.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dibs_log::{
    Aborted, PartitionLog, Topic,
    batch::{BatchHeader, Batches},
};
use dibs_model::{CampaignId, IntakeFormat, IntakeTopic, Offset, UserId};
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    dead_letter::{Cause, DeadLetters},
    flow::Flow,
    intake::{Unanswered, Waiter},
    records::{Entry, entries},
};

/// The small file with the positions: a line `campaign partition topic-id offset` each.
const POSITIONS: &str = "intake.positions";
/// How often new campaigns and topics are looked for, and positions are saved.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of a topic read at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// Claims of one partition of a topic that are in flight, at most.
const IN_FLIGHT: usize = 4_096;
/// How long to wait before what was not taken is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Takes claims from the intake topics of all campaigns, present and future, until it is told to stop.
pub async fn feed(flow: Arc<Flow>, mut stop: watch::Receiver<bool>) {
    let positions = Arc::new(Positions::open(&flow));
    let mut running = HashSet::new();
    let mut feeders = JoinSet::new();
    while !*stop.borrow_and_update() {
        for (campaign, intake) in campaigns(&flow) {
            let Some(topic) = flow.store().topic(&intake.topic) else { continue };
            for log in topic.partitions() {
                let key = (campaign.clone(), log.partition());
                if running.insert((key.clone(), topic.id())) {
                    let feeder = Feeder::new(&flow, &positions, key, &intake, &topic, log);
                    feeders.spawn(feeder.run(stop.clone()));
                }
            }
        }
        positions.save(&flow);
        // A stop is seen above.
        let _ = tokio::time::timeout(LOOK, stop.changed()).await;
    }
    feeders.join_all().await;
    positions.save(&flow);
}

/// The campaigns that have an intake topic and are not closed.
fn campaigns(flow: &Flow) -> Vec<(CampaignId, IntakeTopic)> {
    let mut found = Vec::new();
    for partition in flow.partitions() {
        for campaign in partition.state().campaigns().iter().filter(|c| !c.is_closed()) {
            found.extend(campaign.spec().intake.clone().map(|intake| (campaign.id().clone(), intake)));
        }
    }
    found
}

/// A campaign, and a partition of its topic.
type Key = (CampaignId, u32);

/// How far each topic has been taken.
struct Positions(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// By the topic's id: one that was deleted and made again begins anew.
    next: BTreeMap<Key, (String, Offset)>,
    changed: bool,
}

impl Positions {
    fn open(flow: &Flow) -> Positions {
        let bytes = flow.store().get(POSITIONS).unwrap_or_else(|error| {
            tracing::warn!(%error, "the positions in intake topics cannot be read: they are taken anew");
            None
        });
        let line = |line: &str| {
            let mut words = line.split(' ');
            let key = (CampaignId::new(words.next()?).ok()?, words.next()?.parse().ok()?);
            Some((key, (words.next()?.to_owned(), words.next()?.parse().ok()?)))
        };
        let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
        Positions(Mutex::new(Known { next: text.lines().filter_map(line).collect(), changed: false }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, key: &Key, topic: &str) -> Offset {
        self.known().next.get(key).filter(|(id, _)| id == topic).map_or(0, |(_, next)| *next)
    }

    fn set(&self, key: &Key, topic: &str, next: Offset) {
        let mut known = self.known();
        known.next.insert(key.clone(), (topic.to_owned(), next));
        known.changed = true;
    }

    fn save(&self, flow: &Flow) {
        let text: String = {
            let mut known = self.known();
            if !std::mem::take(&mut known.changed) {
                return;
            }
            let lines = known.next.iter();
            lines
                .map(|((campaign, n), (id, next))| format!("{} {n} {id} {next}\n", campaign.as_str()))
                .collect()
        };
        if let Err(error) = flow.store().put(POSITIONS, text.as_bytes()) {
            // Costs some claims that are sent again after a crash, and are found to be decided.
            tracing::warn!(%error, "the positions in intake topics cannot be saved");
            self.known().changed = true;
        }
    }
}

/// Takes the claims from one partition of a topic for one campaign.
struct Feeder {
    flow: Arc<Flow>,
    positions: Arc<Positions>,
    key: Key,
    topic: String,
    /// The topic's id.
    id: String,
    partitions: u32,
    format: IntakeFormat,
    log: Arc<PartitionLog>,
    /// The first record that is not submitted yet.
    next: Offset,
    /// Claims that are not answered yet, in the topic's order.
    waiting: VecDeque<(Offset, Waiter)>,
    /// From the first record on that names no user.
    dead: Option<DeadLetters>,
}

impl Feeder {
    fn new(
        flow: &Arc<Flow>,
        positions: &Arc<Positions>,
        key: Key,
        intake: &IntakeTopic,
        topic: &Topic,
        log: &Arc<PartitionLog>,
    ) -> Feeder {
        let id = topic.id().to_string();
        Feeder {
            flow: flow.clone(),
            positions: positions.clone(),
            next: positions.of(&key, &id),
            key,
            topic: intake.topic.to_string(),
            id,
            partitions: topic.partitions().len() as u32,
            format: intake.format,
            log: log.clone(),
            waiting: VecDeque::new(),
            dead: None,
        }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let seen = self.log.high_watermark();
            let end = self.log.last_stable_offset();
            self.next = self.next.max(self.log.log_start_offset());
            if self.next < end {
                match self.chunk(end).await {
                    Ok(()) => {}
                    Err(Stopped::Topic) => return,
                    Err(Stopped::Tried) => tokio::time::sleep(RETRY).await,
                }
            } else {
                if self.answered(0).await.is_err() {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                self.publish();
                // The end of a transaction is a record too.
                let more = self.log.committed(seen);
                tokio::select! {
                    () = more => {}
                    _ = stop.wait_for(|stop| *stop) => return,
                }
            }
            if *stop.borrow() {
                let _ = self.answered(0).await;
                return self.publish();
            }
        }
    }

    /// Submits what a read returns.
    async fn chunk(&mut self, end: Offset) -> Result<(), Stopped> {
        let (mut buffer, mut unpacked) = (Vec::new(), Vec::new());
        let read = self.log.read_until(self.next, end, CHUNK_BYTES, &mut buffer);
        let aborted = read.and_then(|_| self.log.aborted(self.next, end)).map_err(|error| {
            tracing::warn!(topic = self.topic, %error, "the intake topic cannot be read");
            if self.flow.store().topic(&self.topic).is_some_and(|t| t.id().to_string() == self.id) {
                Stopped::Tried
            } else {
                Stopped::Topic
            }
        })?;
        for batch in Batches::new(&buffer) {
            let Ok(batch) = batch else { return Err(Stopped::Tried) };
            if !is_for_readers(&batch.header, &aborted) {
                self.next = batch.header.next_offset();
                continue;
            }
            for entry in entries(&batch, &mut unpacked).filter(|e| e.offset < end) {
                if entry.offset >= self.next {
                    self.take(&entry).await?;
                    self.next = entry.offset + 1;
                }
            }
        }
        self.publish();
        Ok(())
    }

    /// One record: a claim, or a dead letter.
    async fn take(&mut self, entry: &Entry<'_>) -> Result<(), Stopped> {
        let user = match user_of(self.format, entry.value) {
            Ok(user) => user,
            Err(why) => return self.bury(entry, &why),
        };
        self.answered(IN_FLIGHT - 1).await?;
        let (campaign, from) = &self.key;
        let request = format!("{from}-{}", entry.offset);
        let partition = self.flow.partition(campaign.as_str()).clone();
        match partition.submit(campaign.as_str(), &user, &request).await {
            Ok(Ok(waiter)) => self.waiting.push_back((entry.offset, waiter)),
            // Decided already, or surely too early or too late: as for whoever presses.
            Ok(Err(_)) => {}
            Err(Unanswered::Overloaded | Unanswered::Unavailable(_) | Unanswered::Unknown) => {
                return Err(Stopped::Tried);
            }
        }
        Ok(())
    }

    /// Waits until no more than so many claims are unanswered. If an outcome is unknown, the records from there on
    /// come again.
    async fn answered(&mut self, most: usize) -> Result<(), Stopped> {
        while self.waiting.len() > most {
            let Some((offset, waiter)) = self.waiting.pop_front() else { break };
            if !matches!(waiter.await, Ok(Ok(_))) {
                self.waiting.clear();
                self.next = offset;
                return Err(Stopped::Tried);
            }
        }
        Ok(())
    }

    fn bury(&mut self, entry: &Entry<'_>, why: &str) -> Result<(), Stopped> {
        let failed = |error| {
            tracing::warn!(%error, "trying again");
            Stopped::Tried
        };
        let from = self.position();
        let dead = match &mut self.dead {
            Some(dead) => dead,
            none => {
                let (store, clock, from) = (self.flow.store(), self.flow.clock().clone(), from);
                let (topic, number) = (&self.topic, self.key.1);
                let opened = DeadLetters::open(store, topic, number, self.partitions, from, clock);
                none.insert(opened.map_err(failed)?)
            }
        };
        dead.keep(entry, Cause::User, why);
        if dead.is_full() { dead.flush().map_err(failed) } else { Ok(()) }
    }

    fn position(&self) -> Offset {
        self.waiting.front().map_or(self.next, |(offset, _)| *offset)
    }

    /// Says how far it is, once what is kept aside is durable.
    fn publish(&mut self) {
        let position = self.position();
        if let Some(dead) = &mut self.dead {
            if let Err(error) = dead.flush() {
                return tracing::warn!(%error, "trying again");
            }
            dead.forget_before(position);
        }
        if self.positions.of(&self.key, &self.id) != position {
            self.positions.set(&self.key, &self.id, position);
        }
    }
}

/// Why a chunk was not taken to its end.
enum Stopped {
    /// Something failed that may be better soon.
    Tried,
    /// The topic is no more.
    Topic,
}

/// Whether a batch holds records that readers of committed transactions see.
fn is_for_readers(header: &BatchHeader, aborted: &[Aborted]) -> bool {
    let base = header.base_offset;
    let within =
        |a: &Aborted| a.producer_id == header.producer_id && (a.first_offset..=a.last_offset).contains(&base);
    !(header.is_control() || header.is_transactional() && aborted.iter().any(within))
}

/// The user that a value names.
fn user_of(format: IntakeFormat, value: Option<&[u8]>) -> Result<Cow<'_, str>, String> {
    let value = value.ok_or("the value must name a user, and is null")?;
    let user: Cow<'_, str> = match format {
        IntakeFormat::String => std::str::from_utf8(value).map_err(|_| "the value is not UTF-8")?.into(),
        IntakeFormat::Long => {
            let long =
                value.try_into().map_err(|_| format!("a long has 8 bytes, this has {}", value.len()))?;
            i64::from_be_bytes(long).to_string().into()
        }
        IntakeFormat::Json => {
            let json: Value = serde_json::from_slice(value).map_err(|e| format!("not JSON: {e}"))?;
            let named = ["user", "userId", "user_id"].iter().find_map(|name| json.get(name));
            match named.unwrap_or(&json) {
                Value::String(user) => user.clone().into(),
                Value::Number(n) if n.is_i64() || n.is_u64() => n.to_string().into(),
                _ => return Err("the value must be a text, an integer, or an object with a user".into()),
            }
        }
    };
    UserId::check(&user).map_err(|e| e.to_string())?;
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_name_users() {
        let user = |format, value: &[u8]| user_of(format, Some(value)).map(Cow::into_owned).ok();
        assert_eq!(user(IntakeFormat::String, b"kim"), Some("kim".into()));
        assert_eq!(user(IntakeFormat::String, b""), None);
        assert_eq!(user(IntakeFormat::String, b"\xff"), None);
        assert_eq!(user(IntakeFormat::Long, &42_i64.to_be_bytes()), Some("42".into()));
        assert_eq!(user(IntakeFormat::Long, b"42"), None);
        for json in ["\"7\"", "7", r#"{"user":7}"#, r#"{"userId":"7","at":1}"#, r#"{"user_id":7}"#] {
            assert_eq!(user(IntakeFormat::Json, json.as_bytes()), Some("7".into()), "{json}");
        }
        for json in ["", "null", "1.5", "[7]", r#"{"user":{}}"#, r#"{"name":"kim"}"#] {
            assert_eq!(user(IntakeFormat::Json, json.as_bytes()), None, "{json}");
        }
        assert!(user_of(IntakeFormat::String, None).is_err());
    }
}
