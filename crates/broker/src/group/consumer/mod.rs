//! The consumer group protocol (KIP-848): the coordinator assigns, and leads each member to its target by heartbeats.
//!
//! Three epochs grow in turn. The *group's* grows with every change of members, subscriptions or topics. The
//! *target's* follows when an assignor has said who is to have what. A *member's* follows when it has given up all
//! that it is not to have; then it gets what nobody else has any more.
//!
//! Whatever changes is a [`Change`], which is recorded and applied: after a restart the same changes lead to the
//! same state. Members with the classic protocol can be in the group too ([`classic`]).

pub(crate) mod assign;
mod classic;
mod convert;
mod heartbeat;
mod reconcile;
mod regex;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kafka_protocol::ResponseError;
use twox_hash::XxHash3_64;
use uuid::Uuid;

use super::{
    Effects, Now,
    record::{
        Record,
        consumer::{Change, Current, Epoch, Info, MemberState, Partitions, Resolved},
    },
};
use assign::Assignor;
pub(crate) use heartbeat::{Beat, Beaten, check_regex, validate};

/// The member epoch with which a static member goes away for a while.
pub(crate) const AWAY: i32 = -2;
/// The member epoch with which a member leaves.
pub(crate) const LEAVE: i32 = -1;

/// Which topics there are.
pub(crate) trait Catalog {
    /// Grows whenever topics come, go or change.
    fn version(&self) -> u64;
    /// A topic's id and partition count.
    fn topic(&self, name: &str) -> Option<(Uuid, i32)>;
    /// All topics' names.
    fn names(&self) -> Vec<String>;
}

/// What the operator says about groups with this protocol.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) session_ms: u64,
    pub(crate) max_size: usize,
    /// Never empty; the first is taken if members do not say.
    pub(crate) assignors: Vec<Assignor>,
    /// After so long, topics are looked for anew even if nothing seems to have changed.
    pub(crate) refresh_ms: u64,
    /// Whether classic groups become consumer groups when such a member joins, and the reverse.
    pub(crate) upgrade: bool,
    pub(crate) downgrade: bool,
}

/// What is said to a request that is refused: the error, and why.
pub(crate) type Refused = (ResponseError, String);

/// One member.
#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) info: Info,
    pub(crate) current: Current,
    /// When it is taken for gone.
    deadline: u64,
    /// Until when it may take to give up partitions.
    revoke_by: Option<u64>,
    /// With the classic protocol: until when it may take to join again.
    join_by: Option<u64>,
    /// With the classic protocol: until when it may take to ask for its assignment.
    sync_by: Option<u64>,
}

impl Member {
    fn session_ms(&self, rules: &Rules) -> u64 {
        self.info.classic.as_ref().map_or(rules.session_ms, |c| c.session_ms.max(0) as u64)
    }

    fn regex(&self) -> Option<&str> {
        self.info.regex.as_deref().filter(|r| !r.is_empty())
    }

    fn deadline(&self) -> u64 {
        let all = [Some(self.deadline), self.revoke_by, self.join_by, self.sync_by];
        all.into_iter().flatten().min().unwrap_or(u64::MAX)
    }
}

/// One group with the consumer protocol.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    /// 0 before the first member.
    epoch: i32,
    /// Over [`Consumer::image`], as it was when the epoch was made.
    hash: i64,
    members: BTreeMap<String, Member>,
    /// Static members' ids by instance; each is in `members`.
    statics: BTreeMap<String, String>,
    /// At most `epoch`.
    target_epoch: i32,
    target: BTreeMap<String, Partitions>,
    /// What the regular expressions that members are subscribed to match.
    regexes: BTreeMap<String, Resolved>,
    /// Who has each partition, or still has to give it up: one member at a time.
    owners: HashMap<(Uuid, i32), String>,
    /// The topics that members are subscribed to, as they were when last looked for.
    image: BTreeMap<String, (Uuid, i32)>,
    /// The catalog's version at that time.
    seen: Option<u64>,
    refresh_at: u64,
    /// A member came with a new regular expression. What it matches is found out with the group's next heartbeat,
    /// as Kafka does it beside the heartbeats: clients count on having the topics they name first.
    unresolved: bool,
}

impl Consumer {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn epoch(&self) -> i32 {
        self.epoch
    }

    pub(crate) fn target_epoch(&self) -> i32 {
        self.target_epoch
    }

    /// All members with their targets.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&str, &Member, Option<&Partitions>)> {
        self.members.iter().map(|(id, m)| (id.as_str(), m, self.target.get(id)))
    }

    pub(crate) fn member(&self, id: &str) -> Option<&Member> {
        self.members.get(id)
    }

    /// Kafka's name for its state.
    pub(crate) fn state(&self) -> &'static str {
        let there =
            |m: &Member| m.current.state == MemberState::Stable && m.current.epoch == self.target_epoch;
        match () {
            () if self.members.is_empty() => "Empty",
            () if self.epoch > self.target_epoch => "Assigning",
            () if self.members.values().all(there) => "Stable",
            () => "Reconciling",
        }
    }

    /// The assignor that most members want, else the first of those that are known (there is one).
    pub(crate) fn assignor(&self, known: &[Assignor]) -> Assignor {
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        let wanted = self.members.values().filter_map(|m| Assignor::find(m.info.assignor.as_deref()?));
        wanted.filter(|a| known.contains(a)).for_each(|a| *votes.entry(a).or_default() += 1);
        let most = votes.into_iter().rev().max_by_key(|(_, n)| *n);
        most.map_or(known[0], |(assignor, _)| assignor)
    }

    pub(super) fn is_subscribed(&self, topic: &str) -> bool {
        let by_regex = |m: &Member| {
            let resolved = m.regex().and_then(|r| self.regexes.get(r));
            resolved.is_some_and(|r| r.topics.contains(topic))
        };
        self.members.values().any(|m| m.info.topics.contains(topic) || by_regex(m))
    }

    /// Takes a change: the group is what all its changes made it.
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Epoch(epoch) => {
                let Epoch { epoch, hash } = epoch.unwrap_or_default();
                (self.epoch, self.hash) = (epoch, hash);
            }
            Change::Member(id, Some(info)) => {
                self.forget_static(&id);
                if let Some(instance) = &info.instance {
                    self.statics.insert(instance.clone(), id.clone());
                }
                self.members.entry(id).or_default().info = info;
            }
            Change::Member(id, None) => {
                self.have(&id, None);
                self.forget_static(&id);
                self.members.remove(&id);
            }
            Change::TargetEpoch(epoch) => self.target_epoch = epoch.unwrap_or_default(),
            Change::Target(id, Some(target)) => drop(self.target.insert(id, target)),
            Change::Target(id, None) => drop(self.target.remove(&id)),
            Change::Current(id, current) => self.have(&id, current),
            Change::Regex(regex, Some(resolved)) => drop(self.regexes.insert(regex, resolved)),
            Change::Regex(regex, None) => drop(self.regexes.remove(&regex)),
        }
    }

    fn forget_static(&mut self, id: &str) {
        if let Some(instance) = self.members.get(id).and_then(|m| m.info.instance.as_ref())
            && self.statics.get(instance).is_some_and(|i| i == id)
        {
            self.statics.remove(instance);
        }
    }

    /// Replaces what a member has.
    fn have(&mut self, id: &str, current: Option<Current>) {
        let member = match (self.members.get_mut(id), &current) {
            (Some(member), _) => member,
            (None, Some(_)) => self.members.entry(id.to_owned()).or_default(),
            (None, None) => return,
        };
        for partition in partitions_of(&member.current) {
            if self.owners.get(&partition).is_some_and(|owner| owner == id) {
                self.owners.remove(&partition);
            }
        }
        member.current = current.unwrap_or_default();
        for partition in partitions_of(&member.current) {
            let other = self.owners.insert(partition, id.to_owned());
            debug_assert!(other.is_none(), "{partition:?} is {other:?}'s and {id}'s");
        }
    }

    /// Records a change and takes it.
    fn put(&mut self, group: &str, change: Change, fx: &mut Effects) {
        fx.records.push(Record::consumer(group, &change));
        self.apply(change);
    }

    /// Removes everything that is recorded of the group.
    pub(super) fn bury(&self, group: &str, fx: &mut Effects) {
        let mut put = |change| fx.records.push(Record::consumer(group, &change));
        self.members.keys().for_each(|id| put(Change::Current(id.clone(), None)));
        self.target.keys().for_each(|id| put(Change::Target(id.clone(), None)));
        put(Change::TargetEpoch(None));
        self.members.keys().for_each(|id| put(Change::Member(id.clone(), None)));
        self.regexes.keys().for_each(|regex| put(Change::Regex(regex.clone(), None)));
        put(Change::Epoch(None));
    }

    /// Ends a replay: members have a whole session to be heard of again.
    pub(super) fn replayed(&mut self, now: Now, rules: &Rules, catalog: &dyn Catalog) {
        self.see_topics(Some(catalog));
        for member in self.members.values_mut() {
            member.deadline = now.mono + member.session_ms(rules);
            member.revoke_by = (member.current.state == MemberState::Unrevoked)
                .then(|| now.mono + member.info.rebalance_ms.max(0) as u64);
        }
    }

    /// The next time at which [`Consumer::late`] finds somebody.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.members.values().map(Member::deadline).min()
    }

    /// A member that was silent for too long, or too slow.
    pub(super) fn late(&self, now: Now) -> Option<String> {
        self.members.iter().find(|(_, m)| m.deadline() <= now.mono).map(|(id, _)| id.clone())
    }

    /// Takes a member out. The next heartbeat of any other makes a new target.
    pub(super) fn fence(&mut self, group: &str, id: &str, fx: &mut Effects) {
        self.forget_member(group, id, fx);
        self.drop_unused_regexes(group, fx);
        self.see_topics(None);
        let (epoch, hash) = (self.epoch + 1, hash(&self.image));
        self.put(group, Change::Epoch(Some(Epoch { epoch, hash })), fx);
    }

    fn forget_member(&mut self, group: &str, id: &str, fx: &mut Effects) {
        let id = || id.to_owned();
        self.put(group, Change::Current(id(), None), fx);
        self.put(group, Change::Target(id(), None), fx);
        self.put(group, Change::Member(id(), None), fx);
    }

    fn drop_unused_regexes(&mut self, group: &str, fx: &mut Effects) {
        let used = |regex: &String| self.members.values().any(|m| m.regex() == Some(regex));
        let unused: Vec<String> = self.regexes.keys().filter(|r| !used(r)).cloned().collect();
        unused.into_iter().for_each(|regex| self.put(group, Change::Regex(regex, None), fx));
    }

    /// The names of all topics that members are subscribed to.
    fn names(&self) -> BTreeSet<&String> {
        let plain = self.members.values().flat_map(|m| &m.info.topics);
        plain.chain(self.regexes.values().flat_map(|r| &r.topics)).collect()
    }

    /// Looks for the topics that are subscribed to; without a catalog, among those seen before.
    fn see_topics(&mut self, catalog: Option<&dyn Catalog>) {
        let look = |name: &String| match catalog {
            Some(catalog) => catalog.topic(name),
            None => self.image.get(name).copied(),
        };
        let seen = self.names().into_iter().filter_map(|name| Some((name.clone(), look(name)?)));
        self.image = seen.collect();
    }

    /// The ids of the topics that a member is subscribed to, of those that there are.
    fn subscribed(&self, member: &Member) -> BTreeSet<Uuid> {
        let resolved = member.regex().and_then(|r| self.regexes.get(r));
        let names = member.info.topics.iter().chain(resolved.into_iter().flat_map(|r| &r.topics));
        names.filter_map(|name| self.image.get(name)).map(|(id, _)| *id).collect()
    }

    /// Whether a commit of offsets by this member is in order.
    pub(super) fn may_commit(&self, member: &str, epoch: i32) -> Result<(), ResponseError> {
        if epoch < 0 && self.members.is_empty() {
            return Ok(());
        }
        self.check_epoch(member, epoch)
    }

    /// Whether a member is in this epoch.
    pub(super) fn check_epoch(&self, member: &str, epoch: i32) -> Result<(), ResponseError> {
        let member = self.members.get(member).ok_or(ResponseError::UnknownMemberId)?;
        match &member.info.classic {
            _ if epoch == member.current.epoch => Ok(()),
            Some(_) => Err(ResponseError::IllegalGeneration),
            None => Err(ResponseError::StaleMemberEpoch),
        }
    }
}

fn partitions_of(current: &Current) -> Vec<(Uuid, i32)> {
    let all = current.assigned.iter().chain(&current.revoking);
    all.flat_map(|(t, ps)| ps.iter().map(|p| (*t, *p))).collect()
}

/// A number that changes with the topics, their ids or their partition counts; 0 for none.
fn hash(image: &BTreeMap<String, (Uuid, i32)>) -> i64 {
    if image.is_empty() {
        return 0;
    }
    let mut bytes = Vec::new();
    for (name, (id, partitions)) in image {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0xff);
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&partitions.to_be_bytes());
    }
    XxHash3_64::oneshot(&bytes) as i64
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod transcripts;
