//! The classic group protocol: members join, a leader among them assigns, all sync, then heartbeats.
//!
//! ```text
//! Empty ──join──> Joining ──all are here──> Syncing ──leader's sync──> Stable
//!   ^                ^  ^                      │                          │
//!   └── none left ───┘  └──── a member comes, goes, changes or is silent ─┘
//! ```

mod rebalance;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{
    Answer, Effects, Now, Protocol, Rules, Token,
    embedded::Subscription,
    record::{Record, StoredGroup, StoredMember},
};

/// A new member that waits for the others is given up after so long, in ms, whatever its session time-out.
const NEW_MEMBER_MS: u64 = 300_000;

/// A request to join.
#[derive(Clone, Debug, Default)]
pub(crate) struct Join {
    pub(crate) group: String,
    /// Empty if it has no id yet.
    pub(crate) member: String,
    pub(crate) instance: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_ms: i32,
    pub(crate) rebalance_ms: i32,
    pub(crate) protocol_type: String,
    pub(crate) protocols: Vec<Protocol>,
    /// Whether a member without an id is first told one and has to come again with it.
    pub(crate) id_first: bool,
    /// Whether the leader can be told not to assign.
    pub(crate) can_skip: bool,
    /// The id that the member gets if it has none.
    pub(crate) fresh_id: String,
}

/// The answer to a member that has joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: String,
    pub(crate) skip: bool,
    pub(crate) member: String,
    /// For the leader: all members' ids, instances and metadata.
    pub(crate) members: Vec<(String, Option<String>, Bytes)>,
}

/// A request for the assignment; the leader's brings it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sync {
    pub(crate) group: String,
    pub(crate) member: String,
    pub(crate) instance: Option<String>,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignments: Vec<(String, Bytes)>,
}

/// A member's assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignment: Bytes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Empty,
    /// Waits for members to join again, until the time-out.
    Joining {
        until: u64,
    },
    /// A new group, which waits a little for more members; each that comes moves the end, up to `by`.
    Gathering {
        until: u64,
        by: u64,
    },
    /// Waits for the leader's assignment, and until the time-out for every member to ask for it.
    Syncing,
    Stable,
}

impl State {
    /// Kafka's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::Joining { .. } | State::Gathering { .. } => "PreparingRebalance",
            State::Syncing => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    pub(crate) instance: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_ms: i32,
    pub(crate) rebalance_ms: i32,
    pub(crate) protocols: Vec<Protocol>,
    pub(crate) assignment: Bytes,
    joining: Option<Token>,
    syncing: Option<Token>,
    /// When it is taken for gone, unless it waits for an answer.
    deadline: u64,
    /// Has not been in a generation yet: its deadline holds even while it waits.
    new: bool,
}

impl Member {
    fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|(name, _)| name == protocol).map(|(_, m)| m.clone()).unwrap_or_default()
    }

    fn expires(&self) -> Option<u64> {
        let waits = self.joining.is_some() || self.syncing.is_some();
        (self.new || !waits).then_some(self.deadline)
    }

    fn heard(&mut self, now: Now) {
        self.deadline = now.mono + self.session_ms.max(0) as u64;
    }
}

/// The members of one group, and where they are between two generations.
#[derive(Debug, Default)]
pub(crate) struct Classic {
    state: State,
    protocol_type: Option<String>,
    generation: i32,
    protocol: Option<String>,
    /// A member's id, if there are members.
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Static members' ids by instance; each is in `members`.
    statics: BTreeMap<String, String>,
    /// Ids that were given out and have not come back yet, with the time until which they may.
    pending: BTreeMap<String, u64>,
    /// Members that have not asked for their assignment yet, and the time until which they may.
    unsynced: BTreeSet<String>,
    unsynced_until: u64,
    /// Since when the state is what it is, in ms since the Unix epoch.
    since: i64,
}

/// What is asked first, when a member says who it is.
type Checked = Result<(), ResponseError>;

impl Classic {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn generation(&self) -> i32 {
        self.generation
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn protocol_type(&self) -> &str {
        self.protocol_type.as_deref().unwrap_or_default()
    }

    pub(crate) fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or_default()
    }

    /// All members, with what they said in the group's protocol.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&str, &Member, Bytes)> {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        self.members.iter().map(move |(id, m)| (id.as_str(), m, m.metadata(protocol)))
    }

    /// Since when it has no members.
    pub(super) fn empty_since(&self) -> Option<i64> {
        (self.state == State::Empty && self.since > 0).then_some(self.since)
    }

    /// Whether a member says that it consumes a topic; of the `consumer` protocol type only, which says so in a
    /// known way.
    pub(super) fn is_subscribed(&self, topic: &str) -> bool {
        self.protocol_type() == "consumer"
            && self.members.values().flat_map(|m| m.protocols.first()).any(|(_, metadata)| {
                Subscription::parse(metadata).is_none_or(|s| s.topics.iter().any(|t| t == topic))
            })
    }

    /// A group of members that have what they have, from now on with this protocol.
    pub(super) fn from_members(generation: i32, members: BTreeMap<String, Member>, now: Now) -> Classic {
        let statics = members.iter().filter_map(|(id, m)| Some((m.instance.clone()?, id.clone()))).collect();
        let mut classic = Classic {
            state: State::Stable,
            protocol_type: Some("consumer".to_owned()),
            generation,
            leader: members.keys().next().cloned(),
            members,
            statics,
            since: now.wall,
            ..Classic::default()
        };
        classic.protocol = classic.vote();
        classic.restart_sessions(now);
        classic
    }

    /// Records it as it is, and begins a rebalance.
    pub(super) fn begin(&mut self, group: &str, now: Now, fx: &mut Effects) {
        fx.records.push(Record::group(group, &self.stored()));
        self.prepare(0, now, fx);
        self.maybe_complete(group, now, fx);
    }

    /// Sends everybody who waits away, to come again.
    pub(super) fn dismiss(&mut self, fx: &mut Effects) {
        let rebalance = ResponseError::RebalanceInProgress;
        for (id, member) in &mut self.members {
            if let Some(token) = member.joining.take() {
                fx.answers.push((token, Answer::Join(Err((rebalance, id.clone())))));
            }
            if let Some(token) = member.syncing.take() {
                fx.answers.push((token, Answer::Sync(Err(rebalance))));
            }
        }
    }

    pub(super) fn restore(stored: StoredGroup) -> Classic {
        let protocol = stored.protocol.clone().unwrap_or_default();
        let mut classic = Classic {
            state: if stored.members.is_empty() { State::Empty } else { State::Stable },
            protocol_type: Some(stored.protocol_type).filter(|t| !t.is_empty()),
            generation: stored.generation,
            protocol: stored.protocol,
            leader: stored.leader,
            since: stored.since,
            ..Classic::default()
        };
        for m in stored.members {
            if let Some(instance) = &m.instance {
                classic.statics.insert(instance.clone(), m.id.clone());
            }
            let member = Member {
                instance: m.instance,
                client_id: m.client_id,
                client_host: m.client_host,
                session_ms: m.session_ms,
                rebalance_ms: m.rebalance_ms,
                protocols: vec![(protocol.clone(), m.subscription)],
                assignment: m.assignment,
                ..Member::default()
            };
            classic.members.insert(m.id, member);
        }
        classic
    }

    fn stored(&self) -> StoredGroup {
        let protocol = self.protocol();
        let member = |(id, m): (&String, &Member)| StoredMember {
            id: id.clone(),
            instance: m.instance.clone(),
            client_id: m.client_id.clone(),
            client_host: m.client_host.clone(),
            rebalance_ms: m.rebalance_ms,
            session_ms: m.session_ms,
            subscription: m.metadata(protocol),
            assignment: m.assignment.clone(),
        };
        StoredGroup {
            protocol_type: self.protocol_type().to_owned(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            since: self.since,
            members: self.members.iter().map(member).collect(),
        }
    }

    pub(super) fn restart_sessions(&mut self, now: Now) {
        self.members.values_mut().for_each(|m| m.heard(now));
    }

    /// The next time at which [`Classic::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<u64> {
        let members = self.members.values().filter_map(Member::expires);
        let rebalance = match self.state {
            State::Joining { until } | State::Gathering { until, .. } => Some(until),
            _ => None,
        };
        let unsynced = (!self.unsynced.is_empty()).then_some(self.unsynced_until);
        members.chain(self.pending.values().copied()).chain(rebalance).chain(unsynced).min()
    }

    pub(super) fn join(&mut self, rules: &Rules, now: Now, token: Token, join: Join, fx: &mut Effects) {
        let id = join.member.clone();
        if let Err(e) = self.try_join(rules, now, token, join, fx) {
            fx.answers.push((token, Answer::Join(Err((e.0, e.1.unwrap_or(id))))));
        }
    }

    /// The error comes with the member's id if it is another than it said.
    fn try_join(
        &mut self,
        rules: &Rules,
        now: Now,
        token: Token,
        join: Join,
        fx: &mut Effects,
    ) -> Result<(), (ResponseError, Option<String>)> {
        let plain = |e: ResponseError| (e, None);
        if !self.fits(&join) {
            return Err(plain(ResponseError::InconsistentGroupProtocol));
        }
        let group = join.group.clone();
        let known = join.member.as_str();
        let known_static = join.instance.as_ref().and_then(|i| self.statics.get(i)).cloned();
        if known.is_empty() {
            if let Some(old) = known_static {
                self.replace_static(rules, now, token, old, join, fx);
                return Ok(());
            }
            if self.members.len() + self.pending.len() >= rules.max_size {
                return Err(plain(ResponseError::GroupMaxSizeReached));
            }
            let fresh = join.fresh_id.clone();
            if join.instance.is_none() && join.id_first {
                self.pending.insert(fresh.clone(), now.mono + join.session_ms.max(0) as u64);
                return Err((ResponseError::MemberIdRequired, Some(fresh)));
            }
            self.add(rules, now, token, fresh, join, fx);
            return Ok(());
        }
        if self.pending.remove(known).is_some() {
            let member = known.to_owned();
            self.add(rules, now, token, member, join, fx);
            return Ok(());
        }
        self.check_member(known, join.instance.as_deref()).map_err(plain)?;
        let member = known.to_owned();
        let is_leader = self.leader.as_deref() == Some(known);
        let same = self.members[known].protocols == join.protocols;
        match self.state {
            State::Empty => return Err(plain(ResponseError::UnknownMemberId)),
            State::Joining { .. } | State::Gathering { .. } => self.update(token, &member, join, fx),
            State::Syncing if same => self.answer_current(now, token, &member, fx),
            State::Stable if same && !is_leader => self.answer_current(now, token, &member, fx),
            State::Syncing | State::Stable => {
                self.update(token, &member, join, fx);
                self.prepare(rules.initial_delay_ms, now, fx);
            }
        }
        self.maybe_complete(&group, now, fx);
        Ok(())
    }

    /// Whether the others could go on with somebody who speaks these protocols.
    fn fits(&self, join: &Join) -> bool {
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return false;
        }
        let others: Vec<_> = self.members.iter().filter(|(id, _)| **id != join.member).collect();
        if self.members.is_empty() {
            return true;
        }
        self.protocol_type.as_deref() == Some(&join.protocol_type)
            && (others.is_empty()
                || join
                    .protocols
                    .iter()
                    .any(|(name, _)| others.iter().all(|(_, m)| m.protocols.iter().any(|(n, _)| n == name))))
    }

    /// Whether a member is what it says.
    fn check_member(&self, member: &str, instance: Option<&str>) -> Checked {
        if let Some(instance) = instance {
            return match self.statics.get(instance) {
                None => Err(ResponseError::UnknownMemberId),
                Some(id) if id != member => Err(ResponseError::FencedInstanceId),
                Some(_) => Ok(()),
            };
        }
        if self.members.contains_key(member) { Ok(()) } else { Err(ResponseError::UnknownMemberId) }
    }

    fn add(&mut self, rules: &Rules, now: Now, token: Token, id: String, join: Join, fx: &mut Effects) {
        let group = join.group.clone();
        if let Some(instance) = &join.instance {
            self.statics.insert(instance.clone(), id.clone());
        }
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type);
        }
        let member = Member {
            instance: join.instance,
            client_id: join.client_id,
            client_host: join.client_host,
            session_ms: join.session_ms,
            rebalance_ms: join.rebalance_ms,
            protocols: join.protocols,
            assignment: Bytes::new(),
            joining: Some(token),
            syncing: None,
            deadline: now.mono + NEW_MEMBER_MS,
            new: true,
        };
        self.members.insert(id.clone(), member);
        self.leader.get_or_insert(id);
        match self.state {
            State::Gathering { by, .. } => {
                // Each newcomer starts the wait anew, within limits.
                self.state = State::Gathering { until: (now.mono + rules.initial_delay_ms).min(by), by };
            }
            State::Joining { .. } => {}
            _ => self.prepare(rules.initial_delay_ms, now, fx),
        }
        self.maybe_complete(&group, now, fx);
    }

    fn update(&mut self, token: Token, id: &str, join: Join, fx: &mut Effects) {
        let Some(member) = self.members.get_mut(id) else { return };
        if let Some(old) = member.joining.replace(token) {
            // Its client asked again and no longer listens to this one.
            fx.answers.push((old, Answer::Join(Err((ResponseError::RebalanceInProgress, id.to_owned())))));
        }
        member.protocols = join.protocols;
        member.session_ms = join.session_ms;
        member.rebalance_ms = join.rebalance_ms;
        member.client_id = join.client_id;
        member.client_host = join.client_host;
    }

    pub(super) fn sync(&mut self, now: Now, token: Token, sync: Sync, fx: &mut Effects) {
        if let Err(e) = self.try_sync(now, token, sync, fx) {
            fx.answers.push((token, Answer::Sync(Err(e))));
        }
    }

    fn try_sync(&mut self, now: Now, token: Token, sync: Sync, fx: &mut Effects) -> Checked {
        self.check_member(&sync.member, sync.instance.as_deref())?;
        if sync.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let differs = |said: &Option<String>, is: &Option<String>| said.is_some() && said != is;
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        match self.state {
            State::Empty => return Err(ResponseError::UnknownMemberId),
            State::Joining { .. } | State::Gathering { .. } => {
                return Err(ResponseError::RebalanceInProgress);
            }
            State::Syncing | State::Stable => {}
        }
        self.unsynced.remove(&sync.member);
        if let Some(member) = self.members.get_mut(&sync.member)
            && let Some(old) = member.syncing.replace(token)
        {
            fx.answers.push((old, Answer::Sync(Err(ResponseError::RebalanceInProgress))));
        }
        if self.state == State::Syncing && self.leader.as_deref() == Some(&*sync.member) {
            let mut assignments: BTreeMap<String, Bytes> = sync.assignments.into_iter().collect();
            for (id, member) in &mut self.members {
                member.assignment = assignments.remove(id).unwrap_or_default();
            }
            self.state = State::Stable;
            self.since = now.wall;
            fx.records.push(Record::group(&sync.group, &self.stored()));
        }
        if self.state == State::Stable {
            self.answer_syncs(now, fx);
        }
        Ok(())
    }

    fn answer_syncs(&mut self, now: Now, fx: &mut Effects) {
        for member in self.members.values_mut() {
            if let Some(token) = member.syncing.take() {
                member.heard(now);
                let synced = Synced {
                    protocol_type: self.protocol_type.clone(),
                    protocol: self.protocol.clone(),
                    assignment: member.assignment.clone(),
                };
                fx.answers.push((token, Answer::Sync(Ok(synced))));
            }
        }
    }

    pub(super) fn heartbeat(
        &mut self,
        now: Now,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Checked {
        self.check_member(member, instance)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        if let Some(member) = self.members.get_mut(member) {
            member.heard(now);
        }
        match self.state {
            State::Empty => Err(ResponseError::UnknownMemberId),
            State::Joining { .. } | State::Gathering { .. } => Err(ResponseError::RebalanceInProgress),
            State::Syncing | State::Stable => Ok(()),
        }
    }

    pub(super) fn may_commit(
        &mut self,
        now: Now,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Checked {
        // Nobody is in the group: not a member with an id of its own, either, that assigns itself partitions.
        if generation < 0 && self.members.is_empty() {
            return Ok(());
        }
        if generation >= 0 || !member.is_empty() || instance.is_some() {
            self.check_member(member, instance)?;
            // One that is new has not been in any generation.
            if generation != self.generation || self.members.get(member).is_some_and(|m| m.new) {
                return Err(ResponseError::IllegalGeneration);
            }
            if self.state == State::Syncing {
                return Err(ResponseError::RebalanceInProgress);
            }
            if let Some(member) = self.members.get_mut(member) {
                member.heard(now);
            }
            return Ok(());
        }
        // An offset from outside, while members are at work.
        Err(ResponseError::UnknownMemberId)
    }

    pub(super) fn leave(
        &mut self,
        group: &str,
        now: Now,
        member: &str,
        instance: Option<&str>,
        fx: &mut Effects,
    ) -> Checked {
        let id = match instance {
            Some(instance) => match self.statics.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(id) if !member.is_empty() && id != member => {
                    return Err(ResponseError::FencedInstanceId);
                }
                Some(id) => id.clone(),
            },
            None => member.to_owned(),
        };
        if self.pending.remove(&id).is_some() {
            self.maybe_complete(group, now, fx);
            return Ok(());
        }
        if !self.members.contains_key(&id) {
            return Err(ResponseError::UnknownMemberId);
        }
        self.remove(group, now, &id, fx);
        Ok(())
    }
}
