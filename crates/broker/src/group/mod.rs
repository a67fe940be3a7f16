//! Consumer groups as a pure state: requests and time in, answers and records out. No I/O, no clock.
//!
//! A [`Shard`] holds the groups of one partition of `__consumer_offsets`. Whatever must outlive the process comes
//! out as [`Record`]s, in Kafka's own formats, and goes in again with [`Shard::replay`] at the next start. An
//! answer may be given when all records that came out before it are durable.

pub(crate) mod classic;
pub(crate) mod consumer;
mod embedded;
mod members;
pub(crate) mod offsets;
pub(crate) mod record;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::ResponseError;

use classic::{Classic, Join, Joined, Sync, Synced};
use consumer::{AWAY, Beat, Beaten, Catalog, Consumer, LEAVE, Refused};
pub(crate) use members::Members;
use offsets::Offsets;
use record::{Record, Stored, consumer::Change};

/// Names somebody who waits for an answer.
pub(crate) type Token = u64;

/// Both clocks at the moment of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Milliseconds that never go back: time-outs.
    pub(crate) mono: u64,
    /// Milliseconds since the Unix epoch: timestamps.
    pub(crate) wall: i64,
}

/// What the operator says about groups.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) min_session_ms: i32,
    pub(crate) max_session_ms: i32,
    /// How long a new group waits for more members.
    pub(crate) initial_delay_ms: u64,
    pub(crate) max_size: usize,
    /// Bytes of a commit's metadata.
    pub(crate) metadata_max: usize,
    /// How long offsets of a group without members are kept.
    pub(crate) retention_ms: i64,
    pub(crate) consumer: consumer::Rules,
}

/// What an input led to.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// To be appended, in this order.
    pub(crate) records: Vec<Record>,
    /// To be given when everything appended so far is durable.
    pub(crate) answers: Vec<(Token, Answer)>,
}

/// An answer that somebody had to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Join(Result<Joined, (ResponseError, String)>),
    Sync(Result<Synced, ResponseError>),
}

/// The groups of one partition.
#[derive(Debug)]
pub(crate) struct Shard {
    rules: Rules,
    groups: BTreeMap<String, Group>,
    /// Producers whose open transactions hold offsets, and in which groups.
    transactions: BTreeMap<i64, BTreeSet<String>>,
    /// How many offsets were held so far: their order.
    held: u64,
}

/// One group: its members, and the offsets it has committed.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) members: Members,
    pub(crate) offsets: Offsets,
}

impl Group {
    /// Whether nothing would be lost without it.
    fn is_blank(&self) -> bool {
        self.members.is_empty() && self.offsets.is_empty()
    }
}

impl Shard {
    pub(crate) fn new(rules: Rules) -> Shard {
        Shard { rules, groups: BTreeMap::new(), transactions: BTreeMap::new(), held: 0 }
    }

    pub(crate) fn get(&self, group: &str) -> Option<&Group> {
        self.groups.get(group)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (&str, &Group)> {
        self.groups.iter().map(|(id, group)| (id.as_str(), group))
    }

    /// Takes a record of an earlier run; in the order of their offsets.
    pub(crate) fn replay(&mut self, stored: Stored) {
        match stored {
            Stored::Offset { group, topic, partition, value: Some(value) } => {
                self.groups.entry(group).or_default().offsets.put(topic, partition, value);
            }
            Stored::Offset { group, topic, partition, value: None } => {
                if let Some(group) = self.groups.get_mut(&group) {
                    group.offsets.remove(&topic, partition);
                }
            }
            Stored::Group { group, value: Some(value) } => {
                self.groups.entry(group).or_default().members =
                    Members::Classic(Box::new(Classic::restore(value)));
            }
            Stored::Group { group, value: None } => {
                if let Some(group) = self.groups.get_mut(&group)
                    && let Members::Classic(_) = group.members
                {
                    group.members = Members::default();
                }
            }
            Stored::Consumer { group, change } => self.replay_change(group, change),
        }
    }

    fn replay_change(&mut self, id: String, change: Change) {
        // What removes something makes no group, and of a classic one it removes nothing.
        let removes = matches!(
            change,
            Change::Epoch(None)
                | Change::Member(_, None)
                | Change::TargetEpoch(None)
                | Change::Target(_, None)
                | Change::Current(_, None)
                | Change::Regex(_, None)
        );
        if !removes {
            return self.groups.entry(id).or_default().members.as_consumer().apply(change);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        if let Members::Consumer(consumer) = &mut group.members {
            let gone = change == Change::Epoch(None);
            consumer.apply(change);
            if gone && consumer.is_empty() {
                group.members = Members::default();
            }
        }
    }

    /// Ends the replay: members have a whole session from now on to be heard of again.
    pub(crate) fn replayed(&mut self, now: Now, catalog: &dyn Catalog) {
        self.groups.retain(|_, group| !group.is_blank() || group.members.generation() > 0);
        for group in self.groups.values_mut() {
            match &mut group.members {
                Members::Classic(classic) => classic.restart_sessions(now),
                Members::Consumer(consumer) => consumer.replayed(now, &self.rules.consumer, catalog),
            }
        }
    }

    /// When [`Shard::tick`] has something to do for a group, in ms of the clock that never goes back.
    pub(crate) fn deadline(&self, group: &str) -> Option<u64> {
        self.groups.get(group)?.members.deadline()
    }

    /// The earliest of all groups' deadlines.
    pub(crate) fn earliest(&self) -> Option<u64> {
        self.groups.values().filter_map(|g| g.members.deadline()).min()
    }

    /// Lets time pass: sessions and rebalances that are over by now end.
    pub(crate) fn tick(&mut self, now: Now, fx: &mut Effects) {
        for (id, group) in &mut self.groups {
            while group.members.deadline().is_some_and(|deadline| deadline <= now.mono) {
                match &mut group.members {
                    Members::Classic(classic) => {
                        classic.tick(id, now, fx);
                        break;
                    }
                    Members::Consumer(consumer) => {
                        let Some(late) = consumer.late(now) else { break };
                        fence(&self.rules, id, group, &late, now, fx);
                    }
                }
            }
        }
        self.forget_blank();
    }

    /// Removes offsets that nobody used for too long, and groups that are nothing any more.
    pub(crate) fn expire(&mut self, now: Now, fx: &mut Effects) {
        for (id, group) in &mut self.groups {
            if group.members.is_empty() {
                let since = group.members.empty_since();
                group.offsets.expire(id, since, now.wall - self.rules.retention_ms, fx);
                if group.is_blank() && group.members.generation() > 0 {
                    group.members.bury(id, fx);
                    group.members = Members::default();
                }
            }
        }
        self.forget_blank();
    }

    fn forget_blank(&mut self) {
        self.groups.retain(|_, group| !group.is_blank() || group.members.generation() > 0);
    }

    /// JoinGroup. The answer comes with [`Effects`], now or later.
    pub(crate) fn join(
        &mut self,
        now: Now,
        token: Token,
        join: Join,
        catalog: &dyn Catalog,
        fx: &mut Effects,
    ) {
        let refused = |e: ResponseError| Answer::Join(Err((e, join.member.clone())));
        let session = join.session_ms;
        if join.group.is_empty() {
            return fx.answers.push((token, refused(ResponseError::InvalidGroupId)));
        }
        if session < self.rules.min_session_ms || session > self.rules.max_session_ms {
            return fx.answers.push((token, refused(ResponseError::InvalidSessionTimeout)));
        }
        if !self.groups.contains_key(&join.group) && !join.member.is_empty() {
            return fx.answers.push((token, refused(ResponseError::UnknownMemberId)));
        }
        let id = join.group.clone();
        let group = self.groups.entry(id.clone()).or_default();
        if let Members::Consumer(consumer) = &group.members {
            // The last one with the consumer protocol may come back with the classic one.
            let replaced = consumer.replaced_by(&join).filter(|_| self.rules.consumer.downgrade).cloned();
            let alone = replaced.is_some() && consumer.members().count() == 1;
            if consumer.is_empty() || alone {
                group.members.bury(&id, fx);
                group.members = Members::default();
            } else if let Some(old) = replaced.filter(|old| may_downgrade(&self.rules, consumer, old)) {
                fence(&self.rules, &id, group, &old, now, fx);
            }
        }
        match &mut group.members {
            Members::Classic(classic) => classic.join(&self.rules, now, token, join, fx),
            Members::Consumer(consumer) => {
                let joined = consumer.join(&self.rules.consumer, now, catalog, join, fx);
                fx.answers.push((token, Answer::Join(joined)));
            }
        }
        if self.groups.get(&id).is_some_and(|g| g.is_blank() && g.members.generation() == 0) {
            self.groups.remove(&id);
        }
    }

    /// SyncGroup. The answer comes with [`Effects`], now or later.
    pub(crate) fn sync(&mut self, now: Now, token: Token, sync: Sync, fx: &mut Effects) {
        match self.groups.get_mut(&sync.group).map(|g| &mut g.members) {
            Some(Members::Classic(classic)) => classic.sync(now, token, sync, fx),
            Some(Members::Consumer(consumer)) => {
                let synced = consumer.sync(now, &sync);
                fx.answers.push((token, Answer::Sync(synced)));
            }
            None => fx.answers.push((token, Answer::Sync(Err(ResponseError::UnknownMemberId)))),
        }
    }

    /// Heartbeat.
    #[expect(clippy::too_many_arguments, reason = "they are the request's, and the world's")]
    pub(crate) fn heartbeat(
        &mut self,
        now: Now,
        group: &str,
        member: &str,
        instance: Option<&str>,
        generation: i32,
        catalog: &dyn Catalog,
        fx: &mut Effects,
    ) -> Result<(), ResponseError> {
        let id = group;
        let group = self.groups.get_mut(id).ok_or(ResponseError::UnknownMemberId)?;
        match &mut group.members {
            Members::Classic(classic) => classic.heartbeat(now, member, instance, generation),
            Members::Consumer(consumer) => {
                let member = consumer.classic_member(member, instance, generation)?;
                consumer.look(&self.rules.consumer, now, catalog, id, None, fx);
                consumer.classic_heartbeat(now, &member)
            }
        }
    }

    /// LeaveGroup, for one member.
    pub(crate) fn leave(
        &mut self,
        now: Now,
        id: &str,
        member: &str,
        instance: Option<&str>,
        fx: &mut Effects,
    ) -> Result<(), ResponseError> {
        let group = self.groups.get_mut(id).ok_or(ResponseError::UnknownMemberId)?;
        match &mut group.members {
            Members::Classic(classic) => classic.leave(id, now, member, instance, fx)?,
            Members::Consumer(consumer) => {
                let leaver = consumer.classic_leaver(member, instance)?;
                fence(&self.rules, id, group, &leaver, now, fx);
            }
        }
        self.forget_blank();
        Ok(())
    }

    /// ConsumerGroupHeartbeat; `own_id` says whether members bring their ids from the first.
    pub(crate) fn beat(
        &mut self,
        now: Now,
        beat: Beat,
        own_id: bool,
        catalog: &dyn Catalog,
        fx: &mut Effects,
    ) -> Result<Beaten, Refused> {
        let rules = &self.rules;
        consumer::validate(&rules.consumer, &beat, own_id)?;
        let id = beat.group.clone();
        if beat.epoch == LEAVE || beat.epoch == AWAY {
            let group = self.groups.get_mut(&id).ok_or_else(|| not_found(&id))?;
            let Members::Consumer(consumer) = &mut group.members else { return Err(not_consumer(&id)) };
            let member = consumer.leaver(&beat)?;
            if beat.epoch == AWAY {
                consumer.go_away(&id, &member, fx);
            } else {
                fence(rules, &id, group, &member, now, fx);
            }
            self.forget_blank();
            return Ok(Beaten { member: beat.member, epoch: beat.epoch, assignment: None });
        }
        consumer::check_regex(&beat)?;
        if beat.epoch != 0 && !self.groups.contains_key(&id) {
            return Err(not_found(&id));
        }
        let group = self.groups.entry(id.clone()).or_default();
        if let Members::Classic(classic) = &mut group.members {
            if beat.epoch != 0 {
                return Err(not_consumer(&id));
            }
            group.members = Members::Consumer(Box::new(upgrade(rules, &id, classic, catalog, now, fx)?));
        }
        group.members.as_consumer().heartbeat(&rules.consumer, now, catalog, beat, fx)
    }

    /// Whether a commit of offsets by this member is in order; makes the group if nobody is said to be in it.
    pub(crate) fn may_commit(
        &mut self,
        now: Now,
        id: &str,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        match self.groups.get_mut(id) {
            Some(Group { members: Members::Classic(classic), .. }) => {
                classic.may_commit(now, member, instance, generation)
            }
            Some(Group { members: Members::Consumer(consumer), .. }) => {
                consumer.may_commit(member, generation)
            }
            None if generation < 0 => Ok(()),
            None => Err(ResponseError::IllegalGeneration),
        }
    }

    /// Whether offsets may be committed in a transaction by this member, or by nobody in particular: older
    /// clients do not say who they are.
    pub(crate) fn may_commit_in_transaction(
        &mut self,
        now: Now,
        id: &str,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        let anonymous = generation < 0 && member.is_empty() && instance.is_none();
        if anonymous && self.groups.contains_key(id) {
            return Ok(());
        }
        match self.may_commit(now, id, member, instance, generation) {
            // What was consumed in a generation may be committed until the next one is complete.
            Err(ResponseError::RebalanceInProgress) => Ok(()),
            Err(ResponseError::StaleMemberEpoch) => Err(ResponseError::IllegalGeneration),
            done => done,
        }
    }

    /// Holds an offset for a producer until its transaction ends, after [`Shard::may_commit_in_transaction`] or
    /// when read from the log.
    pub(crate) fn hold(
        &mut self,
        producer: i64,
        id: &str,
        topic: &str,
        partition: i32,
        value: offsets::Committed,
    ) {
        self.held += 1;
        self.transactions.entry(producer).or_default().insert(id.to_owned());
        let group = self.groups.entry(id.to_owned()).or_default();
        group.offsets.hold(producer, self.held, topic.to_owned(), partition, value);
    }

    /// Ends a producer's transaction: what it held is committed or gone.
    pub(crate) fn end_transaction(&mut self, producer: i64, commit: bool) {
        for id in self.transactions.remove(&producer).into_iter().flatten() {
            if let Some(group) = self.groups.get_mut(&id) {
                group.offsets.end_transaction(producer, commit);
            }
        }
        self.forget_blank();
    }

    /// Whether this is a member with epochs: of the consumer protocol.
    pub(crate) fn has_epochs(&self, id: &str, member: &str) -> bool {
        let Some(Group { members: Members::Consumer(consumer), .. }) = self.groups.get(id) else {
            return false;
        };
        consumer.member(member).is_some_and(|m| m.info.classic.is_none())
    }

    /// Whether a member may ask for offsets: in a consumer group it has to be in the epoch that it says.
    pub(crate) fn may_fetch(&self, id: &str, member: &str, epoch: i32) -> Result<(), ResponseError> {
        match self.groups.get(id).map(|g| &g.members) {
            Some(Members::Consumer(consumer)) => consumer.check_epoch(member, epoch),
            _ => Ok(()),
        }
    }

    /// Commits an offset, after [`Shard::may_commit`].
    pub(crate) fn commit(
        &mut self,
        id: &str,
        topic: &str,
        partition: i32,
        value: offsets::Committed,
        fx: &mut Effects,
    ) -> Result<(), ResponseError> {
        if value.metadata.len() > self.rules.metadata_max {
            return Err(ResponseError::OffsetMetadataTooLarge);
        }
        fx.records.push(Record::offset(id, topic, partition, Some(&value)));
        let group = self.groups.entry(id.to_owned()).or_default();
        group.offsets.put(topic.to_owned(), partition, value);
        Ok(())
    }

    /// OffsetDelete, for one partition.
    pub(crate) fn delete_offset(
        &mut self,
        id: &str,
        topic: &str,
        partition: i32,
        fx: &mut Effects,
    ) -> Result<(), ResponseError> {
        let group = self.groups.get_mut(id).ok_or(ResponseError::GroupIdNotFound)?;
        if group.members.is_subscribed(topic) {
            return Err(ResponseError::GroupSubscribedToTopic);
        }
        if group.offsets.remove(topic, partition) {
            fx.records.push(Record::offset(id, topic, partition, None));
        }
        Ok(())
    }

    /// DeleteGroups, for one group.
    pub(crate) fn delete(&mut self, id: &str, fx: &mut Effects) -> Result<(), ResponseError> {
        let group = self.groups.get_mut(id).ok_or(ResponseError::GroupIdNotFound)?;
        if !group.members.is_empty() {
            return Err(ResponseError::NonEmptyGroup);
        }
        for (topic, partition) in group.offsets.keys() {
            fx.records.push(Record::offset(id, &topic, partition, None));
        }
        group.members.bury(id, fx);
        self.groups.remove(id);
        Ok(())
    }

    /// Removes all offsets of a topic that is no more.
    pub(crate) fn forget_topic(&mut self, topic: &str, fx: &mut Effects) {
        for (id, group) in &mut self.groups {
            for (name, partition) in group.offsets.keys() {
                if name == topic {
                    group.offsets.remove(&name, partition);
                    fx.records.push(Record::offset(id, &name, partition, None));
                }
            }
        }
        self.forget_blank();
    }
}

/// Takes a member out of a consumer group; if only members with the classic protocol are left, the group goes back
/// to it.
fn fence(rules: &Rules, id: &str, group: &mut Group, member: &str, now: Now, fx: &mut Effects) {
    let Members::Consumer(consumer) = &mut group.members else { return };
    if !may_downgrade(rules, consumer, member) {
        return consumer.fence(id, member, fx);
    }
    consumer.bury(id, fx);
    let mut classic = consumer.to_classic(member, now);
    classic.begin(id, now, fx);
    group.members = Members::Classic(Box::new(classic));
}

fn may_downgrade(rules: &Rules, consumer: &Consumer, without: &str) -> bool {
    rules.consumer.downgrade
        && consumer.is_classic_without(without)
        && consumer.members().count() - 1 <= rules.max_size
}

/// Makes a classic group a consumer group: an empty one begins anew, the members of another stay.
fn upgrade(
    rules: &Rules,
    id: &str,
    classic: &mut Classic,
    catalog: &dyn Catalog,
    now: Now,
    fx: &mut Effects,
) -> Result<Consumer, Refused> {
    let refuse = |why: &str| {
        let why = format!("Cannot upgrade classic group {id} to consumer group because {why}.");
        Err((ResponseError::GroupIdNotFound, why))
    };
    if classic.is_empty() {
        if classic.generation() > 0 {
            fx.records.push(Record::group_gone(id));
        }
        return Ok(Consumer::default());
    }
    if !rules.consumer.upgrade {
        return refuse("online upgrade is disabled");
    }
    if classic.protocol_type() != "consumer" {
        return refuse("the group does not use the consumer embedded protocol");
    }
    if classic.members().count() >= rules.consumer.max_size {
        return refuse("the group size exceeds the consumer group maximum size");
    }
    let mut conversion = Effects::default();
    match Consumer::from_classic(id, classic, catalog, now, &mut conversion) {
        Ok(consumer) => {
            classic.dismiss(fx);
            fx.records.push(Record::group_gone(id));
            fx.records.extend(conversion.records);
            Ok(consumer)
        }
        Err(why) => refuse(why),
    }
}

fn not_found(id: &str) -> Refused {
    (ResponseError::GroupIdNotFound, format!("Group {id} not found."))
}

fn not_consumer(id: &str) -> Refused {
    (ResponseError::GroupIdNotFound, format!("Group {id} is not a consumer group."))
}

/// A protocol that a member supports: its name, and what it says in it.
pub(crate) type Protocol = (String, Bytes);

#[cfg(test)]
pub(crate) mod tests;
