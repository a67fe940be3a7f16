//! Members with the classic protocol in a group with the consumer protocol, while a group is on its way from one to
//! the other: what they are told looks to them like the classic protocol, but nobody waits for anybody.
//!
//! A member's epoch is its generation. The coordinator tells it to join again when there is more to give up or to
//! get.

use std::collections::BTreeSet;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Catalog, Consumer, Member, Rules};
use crate::group::{
    Effects, Now,
    classic::{Join, Joined, Sync, Synced},
    embedded::{self, Named, Subscription},
    record::consumer::{ClassicInfo, Info, MemberState, Partitions},
};

const PROTOCOL_TYPE: &str = "consumer";

impl Consumer {
    /// JoinGroup. The error comes with the member's id.
    pub(in crate::group) fn join(
        &mut self,
        rules: &Rules,
        now: Now,
        catalog: &dyn Catalog,
        join: Join,
        fx: &mut Effects,
    ) -> Result<Joined, (ResponseError, String)> {
        let new = join.member.is_empty();
        let id = if new { join.fresh_id.clone() } else { join.member.clone() };
        let refuse = |e: ResponseError| Err((e, join.member.clone()));
        if self.members.len() >= rules.max_size && !self.members.contains_key(&id) {
            return refuse(ResponseError::GroupMaxSizeReached);
        }
        let subscription = join.protocols.first().and_then(|(_, metadata)| Subscription::parse(metadata));
        let Some(subscription) = subscription.filter(|_| self.fits(&join)) else {
            return refuse(ResponseError::InconsistentGroupProtocol);
        };
        if new && join.instance.is_none() && join.id_first {
            return Err((ResponseError::MemberIdRequired, id));
        }
        let place = join.instance.as_ref().and_then(|i| self.statics.get(i)).cloned();
        match (&join.instance, place) {
            (Some(_), Some(old)) if new => self.replace(&join.group, &old, &id, fx),
            (Some(_), Some(old)) if old != id => return refuse(ResponseError::FencedInstanceId),
            (Some(_), None) if !new => return refuse(ResponseError::UnknownMemberId),
            _ => {}
        }
        let owned = owned(&subscription.owned, catalog);
        let name = join.protocols[0].0.clone();
        let (group, session_ms, rebalance_ms) = (join.group.clone(), join.session_ms, join.rebalance_ms);
        let changed = self.describe(&group, &id, info(join, subscription), fx);
        self.look(rules, now, catalog, &group, changed.then_some(&id), fx);
        self.retarget(rules, &group, fx);
        self.reconcile(now, &group, &id, changed, Some(&owned), fx);
        let Some(member) = self.members.get_mut(&id) else {
            return Err((ResponseError::UnknownMemberId, id));
        };
        member.deadline = now.mono + session_ms.max(0) as u64;
        (member.join_by, member.revoke_by) = (None, None);
        member.sync_by = Some(now.mono + rebalance_ms.max(0) as u64);
        Ok(Joined {
            generation: member.current.epoch,
            protocol_type: Some(PROTOCOL_TYPE.to_owned()),
            protocol: Some(name),
            member: id,
            ..Joined::default()
        })
    }

    /// Whether one of the protocols is spoken by all who speak the classic one.
    fn fits(&self, join: &Join) -> bool {
        let others = self.members.iter().filter(|(id, _)| **id != join.member);
        let others: Vec<_> = others.filter_map(|(_, m)| m.info.classic.as_ref()).collect();
        let spoken = |name: &str| others.iter().all(|c| c.protocols.iter().any(|(other, _)| other == name));
        join.protocol_type == PROTOCOL_TYPE && join.protocols.iter().any(|(name, _)| spoken(name))
    }

    /// SyncGroup: the assignment, as the classic protocol has it.
    pub(in crate::group) fn sync(&mut self, now: Now, sync: &Sync) -> Result<Synced, ResponseError> {
        let id = self.classic_member(&sync.member, sync.instance.as_deref(), sync.generation)?;
        let member = &self.members[&id];
        let classic = member.info.classic.clone().unwrap_or_default();
        let name = classic.protocols.first().map(|p| p.0.clone());
        let differs =
            |said: &Option<String>, is: Option<&str>| said.as_deref().is_some_and(|said| Some(said) != is);
        if differs(&sync.protocol_type, Some(PROTOCOL_TYPE)) || differs(&sync.protocol, name.as_deref()) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        let behind = self.epoch > member.current.epoch && member.current.state != MemberState::Unrevoked;
        let assignment = self.embedded(member);
        let Some(member) = self.members.get_mut(&id) else { return Err(ResponseError::UnknownMemberId) };
        member.sync_by = None;
        member.deadline = now.mono + classic.session_ms.max(0) as u64;
        if behind {
            member.ask_to_join(now);
            return Err(ResponseError::RebalanceInProgress);
        }
        Ok(Synced { protocol_type: Some(PROTOCOL_TYPE.to_owned()), protocol: name, assignment })
    }

    /// What a member has, as the classic protocol writes it.
    pub(super) fn embedded(&self, member: &Member) -> Bytes {
        let metadata = member.info.classic.as_ref().and_then(|c| c.protocols.first());
        let version = metadata.and_then(|(_, m)| Subscription::parse(m)).map_or(0, |s| s.version);
        let named = self.image.iter().filter_map(|(name, (id, _))| {
            Some((name.clone(), member.current.assigned.get(id)?.iter().copied().collect()))
        });
        embedded::assignment(version, &named.collect())
    }

    /// Heartbeat, by [`Consumer::classic_member`].
    pub(in crate::group) fn classic_heartbeat(&mut self, now: Now, id: &str) -> Result<(), ResponseError> {
        let rejoins = self.has_more_for(id);
        let Some(member) = self.members.get_mut(id) else { return Err(ResponseError::UnknownMemberId) };
        let session_ms = member.info.classic.as_ref().map_or(0, |c| c.session_ms.max(0) as u64);
        member.deadline = now.mono + session_ms;
        if rejoins {
            member.ask_to_join(now);
            return Err(ResponseError::RebalanceInProgress);
        }
        Ok(())
    }

    /// Whether a member has to join again: for a new epoch, to give something up, or to get what is free now.
    fn has_more_for(&self, id: &str) -> bool {
        let current = &self.members[id].current;
        let waits = || {
            let target = self.target.get(id).into_iter().flatten();
            let mut missing = target.flat_map(|(t, ps)| ps.iter().map(|p| (*t, *p)));
            missing.any(|tp| self.owners.get(&tp).is_some_and(|owner| owner != id))
        };
        current.epoch < self.epoch
            || match current.state {
                MemberState::Stable => false,
                MemberState::Unrevoked => true,
                MemberState::Unreleased => !waits(),
            }
    }

    /// The id of a member with the classic protocol, if it is what it says.
    pub(in crate::group) fn classic_member(
        &self,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<String, ResponseError> {
        if let Some(instance) = instance {
            let id = self.statics.get(instance).ok_or(ResponseError::UnknownMemberId)?;
            if id != member {
                return Err(ResponseError::FencedInstanceId);
            }
        }
        let found = self.members.get(member).ok_or(ResponseError::UnknownMemberId)?;
        if found.info.classic.is_none() {
            return Err(ResponseError::UnknownMemberId);
        }
        if found.current.epoch != generation {
            return Err(ResponseError::IllegalGeneration);
        }
        Ok(member.to_owned())
    }

    /// Who a LeaveGroup request means.
    pub(in crate::group) fn classic_leaver(
        &self,
        member: &str,
        instance: Option<&str>,
    ) -> Result<String, ResponseError> {
        match instance {
            Some(instance) => match self.statics.get(instance) {
                None => Err(ResponseError::UnknownMemberId),
                Some(id) if !member.is_empty() && id != member => Err(ResponseError::FencedInstanceId),
                Some(id) => Ok(id.clone()),
            },
            None if self.members.contains_key(member) => Ok(member.to_owned()),
            None => Err(ResponseError::UnknownMemberId),
        }
    }

    /// Whether only members with the classic protocol would be left without this one, and some.
    pub(in crate::group) fn is_classic_without(&self, id: &str) -> bool {
        let mut others = self.members.iter().filter(|(other, _)| *other != id).peekable();
        others.peek().is_some() && others.all(|(_, m)| m.info.classic.is_some())
    }

    /// The static member that this request takes the place of.
    pub(in crate::group) fn replaced_by(&self, join: &Join) -> Option<&String> {
        let instance = join.instance.as_ref().filter(|_| join.member.is_empty())?;
        self.statics.get(instance).filter(|id| self.members[*id].info.classic.is_none())
    }
}

impl Member {
    fn ask_to_join(&mut self, now: Now) {
        let by = now.mono + self.info.rebalance_ms.max(0) as u64;
        self.join_by.get_or_insert(by);
    }
}

/// What a member says that it has, by the topics' ids.
fn owned(named: &Named, catalog: &dyn Catalog) -> Partitions {
    let id = |(name, ps): (&String, &Vec<i32>)| {
        Some((catalog.topic(name)?.0, ps.iter().copied().collect::<BTreeSet<i32>>()))
    };
    named.iter().filter_map(id).filter(|(_, ps)| !ps.is_empty()).collect()
}

fn info(join: Join, subscription: Subscription) -> Info {
    Info {
        instance: join.instance,
        rack: subscription.rack,
        client_id: join.client_id,
        client_host: join.client_host,
        topics: subscription.topics.into_iter().collect(),
        regex: None,
        rebalance_ms: join.rebalance_ms,
        assignor: None,
        classic: Some(ClassicInfo { session_ms: join.session_ms, protocols: join.protocols }),
    }
}
