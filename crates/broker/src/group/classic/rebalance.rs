//! How a generation ends and the next begins.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Classic, Join, Joined, Member, State};
use crate::group::{Answer, Effects, Now, Rules, Token, record::Record};

impl Classic {
    pub(in crate::group) fn tick(&mut self, id: &str, now: Now, fx: &mut Effects) {
        self.pending.retain(|_, until| *until > now.mono);
        // One at a time: taking one out may end a rebalance, and be a new start for the others.
        while let Some(member) = self.silent(now) {
            self.remove(id, now, &member, fx);
        }
        if !self.unsynced.is_empty() && self.unsynced_until <= now.mono {
            for member in std::mem::take(&mut self.unsynced) {
                self.remove(id, now, &member, fx);
            }
        }
        match self.state {
            State::Gathering { until, .. } | State::Joining { until } if until <= now.mono => {
                self.complete_join(id, now, fx);
            }
            _ => self.maybe_complete(id, now, fx),
        }
    }

    pub(super) fn silent(&self, now: Now) -> Option<String> {
        let mut members = self.members.iter();
        members.find(|(_, m)| m.expires().is_some_and(|at| at <= now.mono)).map(|(id, _)| id.clone())
    }

    /// A static member came back without its id: it gets a new one, and who used the old one is fenced.
    pub(super) fn replace_static(
        &mut self,
        rules: &Rules,
        now: Now,
        token: Token,
        old: String,
        join: Join,
        fx: &mut Effects,
    ) {
        let (group, new, can_skip) = (join.group.clone(), join.fresh_id.clone(), join.can_skip);
        let Some(mut member) = self.members.remove(&old) else { return };
        let fenced = ResponseError::FencedInstanceId;
        if let Some(token) = member.joining.take() {
            fx.answers.push((token, Answer::Join(Err((fenced, old.clone())))));
        }
        if let Some(token) = member.syncing.take() {
            fx.answers.push((token, Answer::Sync(Err(fenced))));
        }
        let was_leader = self.leader.as_ref() == Some(&old);
        if was_leader {
            self.leader = Some(new.clone());
        }
        if self.unsynced.remove(&old) {
            self.unsynced.insert(new.clone());
        }
        if let Some(instance) = &join.instance {
            self.statics.insert(instance.clone(), new.clone());
        }
        member.heard(now);
        self.members.insert(new.clone(), member);
        let before = self.protocol.clone();
        self.update(token, &new, join, fx);
        if self.state != State::Stable || self.vote() != before {
            if matches!(self.state, State::Stable | State::Syncing) {
                self.prepare(rules.initial_delay_ms, now, fx);
            }
            return self.maybe_complete(&group, now, fx);
        }
        // Nothing changes for the others: it goes on with the assignment it had.
        if let Some(member) = self.members.get_mut(&new) {
            member.joining = None;
        }
        fx.records.push(Record::group(&group, &self.stored()));
        let mut joined = self.joined(&new);
        if was_leader && !can_skip {
            // An older client assigns whenever it finds itself the leader.
            joined.leader = old;
            joined.members.clear();
        }
        joined.skip = was_leader && can_skip;
        fx.answers.push((token, Answer::Join(Ok(joined))));
    }

    /// Begins a rebalance: everybody has to join again.
    pub(super) fn prepare(&mut self, initial_delay_ms: u64, now: Now, fx: &mut Effects) {
        if self.state == State::Syncing {
            for member in self.members.values_mut() {
                member.assignment = Bytes::new();
                if let Some(token) = member.syncing.take() {
                    member.heard(now);
                    fx.answers.push((token, Answer::Sync(Err(ResponseError::RebalanceInProgress))));
                }
            }
        }
        self.unsynced.clear();
        let longest = self.longest_rebalance();
        self.state = match self.state {
            State::Empty if initial_delay_ms > 0 => {
                State::Gathering { until: now.mono + initial_delay_ms.min(longest), by: now.mono + longest }
            }
            _ => State::Joining { until: now.mono + longest },
        };
        self.since = now.wall;
    }

    pub(super) fn longest_rebalance(&self) -> u64 {
        self.members.values().map(|m| m.rebalance_ms.max(0) as u64).max().unwrap_or(0)
    }

    /// Ends the joining if nobody is waited for any more.
    pub(super) fn maybe_complete(&mut self, group: &str, now: Now, fx: &mut Effects) {
        if matches!(self.state, State::Joining { .. })
            && self.pending.is_empty()
            && self.members.values().all(|m| m.joining.is_some())
        {
            self.complete_join(group, now, fx);
        }
    }

    pub(super) fn complete_join(&mut self, group: &str, now: Now, fx: &mut Effects) {
        let absent =
            |(id, m): (&String, &Member)| (m.joining.is_none() && m.instance.is_none()).then(|| id.clone());
        let absent: Vec<String> = self.members.iter().filter_map(absent).collect();
        for id in absent {
            self.drop_member(&id, fx);
        }
        if !self.members.is_empty() && self.members.values().all(|m| m.joining.is_none()) {
            // Static members only, and none is back: they have until their sessions end.
            self.state = State::Joining { until: now.mono + self.longest_rebalance().max(1) };
            return;
        }
        let leader_is_here =
            self.leader.as_ref().is_some_and(|l| self.members.get(l).is_some_and(|m| m.joining.is_some()));
        if !leader_is_here {
            self.leader = self.members.iter().find(|(_, m)| m.joining.is_some()).map(|(id, _)| id.clone());
        }
        self.generation += 1;
        self.since = now.wall;
        if self.members.is_empty() {
            self.become_empty(group, now, fx);
            return;
        }
        self.protocol = self.vote();
        self.state = State::Syncing;
        self.unsynced = self.members.keys().cloned().collect();
        self.unsynced_until = now.mono + self.longest_rebalance();
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else { continue };
            member.new = false;
            if let Some(token) = member.joining.take() {
                member.heard(now);
                fx.answers.push((token, Answer::Join(Ok(joined))));
            }
        }
    }

    pub(super) fn become_empty(&mut self, group: &str, now: Now, fx: &mut Effects) {
        self.state = State::Empty;
        self.since = now.wall;
        self.protocol = None;
        self.leader = None;
        self.unsynced.clear();
        fx.records.push(Record::group(group, &self.stored()));
    }

    /// The protocol that all support and most prefer.
    pub(super) fn vote(&self) -> Option<String> {
        let all = |name: &str| self.members.values().all(|m| m.protocols.iter().any(|(n, _)| n == name));
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| all(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max()?;
        votes.iter().find(|(_, count)| **count == most).map(|(name, _)| (*name).to_owned())
    }

    pub(super) fn joined(&self, id: &str) -> Joined {
        let is_leader = self.leader.as_deref() == Some(id);
        let protocol = self.protocol();
        let all = self.members.iter().filter(|_| is_leader);
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip: false,
            member: id.to_owned(),
            members: all.map(|(id, m)| (id.clone(), m.instance.clone(), m.metadata(protocol))).collect(),
        }
    }

    /// A member that asked to join again without a change is told what it was told before.
    pub(super) fn answer_current(&mut self, now: Now, token: Token, id: &str, fx: &mut Effects) {
        if let Some(member) = self.members.get_mut(id) {
            member.heard(now);
        }
        fx.answers.push((token, Answer::Join(Ok(self.joined(id)))));
    }

    /// Takes a member out, and rebalances the others.
    pub(super) fn remove(&mut self, group: &str, now: Now, id: &str, fx: &mut Effects) {
        if !self.members.contains_key(id) {
            return;
        }
        self.drop_member(id, fx);
        match self.state {
            State::Stable | State::Syncing => {
                self.prepare(0, now, fx);
                self.maybe_complete(group, now, fx);
            }
            State::Joining { .. } => self.maybe_complete(group, now, fx),
            State::Gathering { .. } | State::Empty => {}
        }
    }

    pub(super) fn drop_member(&mut self, id: &str, fx: &mut Effects) {
        let Some(member) = self.members.remove(id) else { return };
        let gone = ResponseError::UnknownMemberId;
        if let Some(token) = member.joining {
            fx.answers.push((token, Answer::Join(Err((gone, id.to_owned())))));
        }
        if let Some(token) = member.syncing {
            fx.answers.push((token, Answer::Sync(Err(gone))));
        }
        if let Some(instance) = &member.instance {
            self.statics.remove(instance);
        }
        self.unsynced.remove(id);
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }
}
