//! ConsumerGroupHeartbeat: a member joins, says what it wants and what it has, and is told what it is to have.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use ::regex::Regex;
use kafka_protocol::ResponseError;
use uuid::Uuid;

use super::{
    AWAY, Catalog, Consumer, LEAVE, Member, Refused, Rules,
    assign::Spec,
    hash,
    reconcile::{self, Goal},
    regex,
};
use crate::group::{
    Effects, Now,
    record::consumer::{Change, Current, Epoch, Info, MemberState, Partitions, Resolved},
};

/// One heartbeat. What is `None` has not changed since the last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beat {
    pub(crate) group: String,
    pub(crate) member: String,
    /// 0 to join, −1 to leave, −2 to go away for a while (static members).
    pub(crate) epoch: i32,
    pub(crate) instance: Option<String>,
    pub(crate) rack: Option<String>,
    pub(crate) rebalance_ms: Option<i32>,
    pub(crate) topics: Option<BTreeSet<String>>,
    pub(crate) regex: Option<String>,
    pub(crate) assignor: Option<String>,
    /// What the member has.
    pub(crate) owned: Option<Partitions>,
    /// The session time-out that is set for the group alone.
    pub(crate) session_ms: Option<u64>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
}

impl Beat {
    /// Whether it says everything that can be said, as after an error.
    fn is_full(&self) -> bool {
        self.rebalance_ms.is_some() && (self.topics.is_some() || self.regex.is_some()) && self.owned.is_some()
    }
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beaten {
    pub(crate) member: String,
    pub(crate) epoch: i32,
    /// What the member is to have now; `None` if that has not changed.
    pub(crate) assignment: Option<Partitions>,
}

impl Consumer {
    /// Joins, or stays. Refused before anything is changed. Its regular expression is one.
    pub(in crate::group) fn heartbeat(
        &mut self,
        rules: &Rules,
        now: Now,
        catalog: &dyn Catalog,
        beat: Beat,
        fx: &mut Effects,
    ) -> Result<Beaten, Refused> {
        if self.members.len() >= rules.max_size && !self.members.contains_key(&beat.member) {
            let why =
                format!("The consumer group has reached its maximum capacity of {} members.", rules.max_size);
            return Err((ResponseError::GroupMaxSizeReached, why));
        }
        let replaces = self.find(&beat)?;
        let (group, id) = (beat.group.as_str(), beat.member.as_str());
        if let Some(old) = replaces {
            self.replace(group, &old, id, fx);
        }
        let before = self.members.get(id).map(|m| m.current.assigned.clone()).unwrap_or_default();
        let info = self.updated(id, &beat);
        let changed = self.describe(group, id, info, fx);
        self.look(rules, now, catalog, group, changed.then_some(id), fx);
        self.retarget(rules, group, fx);
        self.reconcile(now, group, id, changed, beat.owned.as_ref(), fx);
        let full = beat.is_full();
        let Some(member) = self.members.get_mut(id) else {
            return Err((ResponseError::UnknownMemberId, String::new()));
        };
        member.deadline = now.mono + beat.session_ms.unwrap_or_else(|| member.session_ms(rules));
        (member.join_by, member.sync_by) = (None, None);
        let Current { epoch, assigned, .. } = &member.current;
        let told = beat.epoch == 0 || full || *assigned != before;
        Ok(Beaten { member: beat.member, epoch: *epoch, assignment: told.then(|| assigned.clone()) })
    }

    /// Whether the member may come with this epoch; the id of the static member that it takes the place of.
    fn find(&self, beat: &Beat) -> Result<Option<String>, Refused> {
        let joins = beat.epoch == 0;
        let Some(instance) = &beat.instance else {
            match self.members.get(&beat.member) {
                Some(member) => check(member, beat)?,
                None if joins => {}
                None => {
                    let why = format!("Member {} is not a member of group {}.", beat.member, beat.group);
                    return Err((ResponseError::UnknownMemberId, why));
                }
            }
            return Ok(None);
        };
        if joins {
            let Some(old) = self.statics.get(instance) else { return Ok(None) };
            let member = &self.members[old];
            if member.info.classic.is_none() && member.current.epoch != AWAY {
                let why = format!(
                    "Static member {} with instance id {instance} cannot join the group because the instance id is \
                     owned by {old} member.",
                    beat.member
                );
                return Err((ResponseError::UnreleasedInstanceId, why));
            }
            return Ok(Some(old.clone()));
        }
        let id = self.static_member(instance, &beat.member)?;
        check(&self.members[id], beat)?;
        Ok(None)
    }

    /// The member with this instance, if it is this one.
    fn static_member(&self, instance: &str, member: &str) -> Result<&String, Refused> {
        match self.statics.get(instance) {
            None => Err((ResponseError::UnknownMemberId, format!("Instance id {instance} is unknown."))),
            Some(id) if id != member => {
                let why =
                    format!("Static member {member} with instance id {instance} was fenced by member {id}.");
                Err((ResponseError::FencedInstanceId, why))
            }
            Some(id) => Ok(id),
        }
    }

    /// Who leaves with this heartbeat, and whether for good.
    pub(in crate::group) fn leaver(&self, beat: &Beat) -> Result<String, Refused> {
        match &beat.instance {
            None if self.members.contains_key(&beat.member) => Ok(beat.member.clone()),
            None => {
                let why = format!("Member {} is not a member of group {}.", beat.member, beat.group);
                Err((ResponseError::UnknownMemberId, why))
            }
            Some(instance) => self.static_member(instance, &beat.member).cloned(),
        }
    }

    /// A static member goes away, and keeps its place until its session ends.
    pub(in crate::group) fn go_away(&mut self, group: &str, id: &str, fx: &mut Effects) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.revoke_by = None;
        let away = Current { epoch: AWAY, revoking: Partitions::new(), ..member.current.clone() };
        self.put(group, Change::Current(id.to_owned(), Some(away)), fx);
    }

    /// Gives a static member's place to another id, which begins with epoch 0.
    pub(super) fn replace(&mut self, group: &str, old: &str, new: &str, fx: &mut Effects) {
        let Some(member) = self.members.get(old) else { return };
        let (info, mut current) = (member.info.clone(), member.current.clone());
        let target = self.target.get(old).cloned().unwrap_or_default();
        (current.epoch, current.previous) = (0, 0);
        self.forget_member(group, old, fx);
        self.put(group, Change::Member(new.to_owned(), Some(info)), fx);
        self.put(group, Change::Target(new.to_owned(), Some(target)), fx);
        self.put(group, Change::Current(new.to_owned(), Some(current)), fx);
    }

    fn updated(&self, id: &str, beat: &Beat) -> Info {
        let mut info = self.members.get(id).map(|m| m.info.clone()).unwrap_or_default();
        let update = |old: &mut Option<String>, new: &Option<String>| {
            if new.is_some() {
                old.clone_from(new);
            }
        };
        update(&mut info.instance, &beat.instance);
        update(&mut info.rack, &beat.rack);
        update(&mut info.regex, &beat.regex);
        update(&mut info.assignor, &beat.assignor);
        info.rebalance_ms = beat.rebalance_ms.unwrap_or(info.rebalance_ms);
        if let Some(topics) = &beat.topics {
            info.topics.clone_from(topics);
        }
        info.client_id.clone_from(&beat.client_id);
        info.client_host.clone_from(&beat.client_host);
        info.classic = None;
        info
    }

    /// Keeps what a member says about itself; whether its subscription is another than before.
    pub(super) fn describe(&mut self, group: &str, id: &str, info: Info, fx: &mut Effects) -> bool {
        let text = |r: &Option<String>| r.clone().unwrap_or_default();
        let (changed, same) = match self.members.get(id) {
            None => (!info.topics.is_empty() || !text(&info.regex).is_empty(), false),
            Some(m) => {
                let regex = text(&m.info.regex) != text(&info.regex);
                (m.info.topics != info.topics || regex, m.info == info)
            }
        };
        if !same {
            self.put(group, Change::Member(id.to_owned(), Some(info)), fx);
        }
        changed
    }

    /// Looks for the topics if need be, and begins a new epoch if they or a subscription changed: that of the
    /// member `changed`.
    pub(in crate::group) fn look(
        &mut self,
        rules: &Rules,
        now: Now,
        catalog: &dyn Catalog,
        group: &str,
        changed: Option<&str>,
        fx: &mut Effects,
    ) {
        let version = catalog.version();
        let late = mem::take(&mut self.unresolved);
        let old = late || self.seen != Some(version) || now.mono >= self.refresh_at;
        let mut bump = changed.is_some() || self.epoch == 0;
        if !old && !bump {
            return;
        }
        self.drop_unused_regexes(group, fx);
        let new = changed.and_then(|id| self.members.get(id)?.regex()).map(str::to_owned);
        let new = new.filter(|r| !self.regexes.contains_key(r));
        self.unresolved = new.is_some();
        if old {
            bump |= self.resolve(now, catalog, group, new.as_deref(), fx);
        }
        self.see_topics(Some(catalog));
        let hash = hash(&self.image);
        if bump || hash != self.hash {
            let epoch = self.epoch + 1;
            self.put(group, Change::Epoch(Some(Epoch { epoch, hash })), fx);
        }
        self.seen = Some(version);
        self.refresh_at = now.mono + rules.refresh_ms;
    }

    /// Finds out what regular expressions match, all but a new one. Whether that is something else than before.
    fn resolve(
        &mut self,
        now: Now,
        catalog: &dyn Catalog,
        group: &str,
        new: Option<&str>,
        fx: &mut Effects,
    ) -> bool {
        let wanted: BTreeSet<&str> = self.members.values().filter_map(Member::regex).collect();
        let wanted = wanted.into_iter().filter(|r| Some(*r) != new);
        let compiled: Vec<(String, Option<Regex>)> =
            wanted.map(|r| (r.to_owned(), regex::compile(r).ok())).collect();
        if compiled.is_empty() {
            return false;
        }
        let (names, version) = (catalog.names(), catalog.version() as i64);
        let mut changed = false;
        for (pattern, regex) in compiled {
            let matches = |name: &&String| regex.as_ref().is_some_and(|r| r.is_match(name));
            let topics: BTreeSet<String> = names.iter().filter(matches).cloned().collect();
            if self.regexes.get(&pattern).is_none_or(|old| old.topics != topics) {
                changed = true;
                let resolved = Resolved { topics, version, at: now.wall };
                self.put(group, Change::Regex(pattern, Some(resolved)), fx);
            }
        }
        changed
    }

    /// Makes a new target if the group has gone on since the last.
    pub(super) fn retarget(&mut self, rules: &Rules, group: &str, fx: &mut Effects) {
        if self.epoch <= self.target_epoch {
            return;
        }
        let members: BTreeMap<String, BTreeSet<Uuid>> =
            self.members.iter().map(|(id, m)| (id.clone(), self.subscribed(m))).collect();
        let topics = self.image.values().copied().collect();
        let spec = Spec { members: &members, topics: &topics, current: &self.target };
        for (id, target) in self.assignor(&rules.assignors).assign(&spec) {
            if self.target.get(&id) != Some(&target) {
                self.put(group, Change::Target(id, Some(target)), fx);
            }
        }
        self.put(group, Change::TargetEpoch(Some(self.epoch)), fx);
    }

    /// Leads a member on towards its target.
    pub(super) fn reconcile(
        &mut self,
        now: Now,
        group: &str,
        id: &str,
        changed: bool,
        owned: Option<&Partitions>,
        fx: &mut Effects,
    ) {
        let Some(member) = self.members.get(id) else { return };
        let none = Partitions::new();
        let goal = Goal {
            epoch: self.target_epoch,
            target: self.target.get(id).unwrap_or(&none),
            subscribed: &self.subscribed(member),
            changed,
            owned,
        };
        let is_free = |topic, partition| self.owners.get(&(topic, partition)).is_none_or(|owner| owner == id);
        let next = reconcile::next(&member.current, &goal, is_free);
        if next == member.current {
            return;
        }
        let (classic, rebalance_ms) = (member.info.classic.is_some(), member.info.rebalance_ms.max(0) as u64);
        let revokes = next.state == MemberState::Unrevoked;
        self.put(group, Change::Current(id.to_owned(), Some(next)), fx);
        if let Some(member) = self.members.get_mut(id).filter(|_| !classic) {
            member.revoke_by = revokes.then(|| now.mono + rebalance_ms);
        }
    }
}

/// Whether a member may come with this epoch.
fn check(member: &Member, beat: &Beat) -> Result<(), Refused> {
    let current = &member.current;
    let wrong = |than: &str| {
        let why = format!(
            "The consumer group member has a {than} member epoch ({}) than the one known by the group coordinator \
             ({}). The member must abandon all its partitions and rejoin.",
            beat.epoch, current.epoch
        );
        Err((ResponseError::FencedMemberEpoch, why))
    };
    if beat.epoch == 0 || beat.epoch == current.epoch {
        return Ok(());
    }
    if beat.epoch > current.epoch {
        return wrong("greater");
    }
    // The answer with the new epoch may have been lost; then it has nothing that it is not to have.
    let known = |t: &Uuid, ps: &BTreeSet<i32>| current.assigned.get(t).is_some_and(|has| ps.is_subset(has));
    let lost = beat.epoch == current.previous
        && beat.owned.as_ref().is_some_and(|owned| owned.iter().all(|(t, ps)| known(t, ps)));
    if lost { Ok(()) } else { wrong("smaller") }
}

/// What is wrong with a heartbeat, whatever the group (KIP-848's rules for the first and later ones).
pub(crate) fn validate(rules: &Rules, beat: &Beat, own_id: bool) -> Result<(), Refused> {
    let invalid = |why: &str| Err((ResponseError::InvalidRequest, why.to_owned()));
    let is_empty = |text: &Option<String>| text.as_deref() == Some("");
    if beat.member.is_empty() && (own_id || beat.epoch > 0 || beat.epoch == LEAVE) {
        return invalid("MemberId can't be empty.");
    }
    if beat.group.is_empty() {
        return invalid("GroupId can't be empty.");
    }
    if is_empty(&beat.instance) {
        return invalid("InstanceId can't be empty.");
    }
    if is_empty(&beat.rack) {
        return invalid("RackId can't be empty.");
    }
    match beat.epoch {
        0 if beat.rebalance_ms.is_none() => {
            return invalid("RebalanceTimeoutMs must be provided in first request.");
        }
        0 if beat.owned.as_ref().is_none_or(|owned| !owned.is_empty()) => {
            return invalid("TopicPartitions must be empty when (re-)joining.");
        }
        0 if beat.topics.is_none() && beat.regex.is_none() => {
            return invalid(
                "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.",
            );
        }
        AWAY if beat.instance.is_none() => return invalid("InstanceId can't be null."),
        epoch if epoch < AWAY => return invalid(&format!("MemberEpoch is invalid: {epoch}.")),
        _ => {}
    }
    if let Some(name) = &beat.assignor
        && !rules.assignors.iter().any(|a| a.name() == name)
    {
        let names: Vec<&str> = rules.assignors.iter().map(|a| a.name()).collect();
        let why =
            format!("ServerAssignor {name} is not supported. Supported assignors: {}.", names.join(", "));
        return Err((ResponseError::UnsupportedAssignor, why));
    }
    Ok(())
}

/// Whether the subscription's regular expression is one.
pub(crate) fn check_regex(beat: &Beat) -> Result<(), Refused> {
    let Some(pattern) = beat.regex.as_deref().filter(|r| !r.is_empty()) else { return Ok(()) };
    regex::compile(pattern).map(drop).map_err(|e| {
        let why = format!("SubscribedTopicRegex `{pattern}` is not a valid regular expression: {e}.");
        (ResponseError::InvalidRegularExpression, why)
    })
}
