//! From the classic protocol to the consumer protocol and back, while members go on working.

use std::collections::BTreeSet;

use super::{Catalog, Consumer, Member};
use crate::group::{
    Effects, Now,
    classic::{self, Classic},
    embedded::{self, Subscription},
    record::consumer::{Change, ClassicInfo, Current, Epoch, Info, MemberState, Partitions},
};

impl Consumer {
    /// What a classic group is with the consumer protocol: the same members, each with what it has. The error says
    /// what stands against it.
    pub(in crate::group) fn from_classic(
        group: &str,
        classic: &Classic,
        catalog: &dyn Catalog,
        now: Now,
        fx: &mut Effects,
    ) -> Result<Consumer, &'static str> {
        let epoch = classic.generation();
        let mut changes = Vec::new();
        for (id, member, metadata) in classic.members() {
            let malformed = "the embedded consumer protocol is malformed";
            // Before the first generation there is no protocol that all have agreed on.
            let first = member.protocols.first().map(|p| p.1.clone()).unwrap_or_default();
            let metadata = if metadata.is_empty() { first } else { metadata };
            let subscription = Subscription::parse(&metadata).ok_or(malformed)?;
            let (named, custom) = embedded::parse_assignment(&member.assignment).ok_or(malformed)?;
            if custom {
                return Err("an unsupported custom assignor is in use");
            }
            let there = |(name, ps): (String, Vec<i32>)| {
                let (topic, _) = catalog.topic(&name)?;
                Some((topic, ps.into_iter().collect::<BTreeSet<i32>>()))
            };
            let assigned: Partitions =
                named.into_iter().filter_map(there).filter(|(_, ps)| !ps.is_empty()).collect();
            let info = Info {
                instance: member.instance.clone(),
                rack: subscription.rack,
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                topics: subscription.topics.into_iter().collect(),
                rebalance_ms: member.rebalance_ms,
                classic: Some(ClassicInfo {
                    session_ms: member.session_ms,
                    protocols: member.protocols.clone(),
                }),
                ..Info::default()
            };
            let current = Current {
                epoch,
                previous: epoch,
                state: MemberState::Stable,
                assigned,
                ..Current::default()
            };
            changes.push((id.to_owned(), info, current, member.session_ms));
        }
        let mut consumer = Consumer::default();
        let ids: Vec<(String, i32)> = changes.iter().map(|c| (c.0.clone(), c.3)).collect();
        for (id, info, mut current, _) in changes {
            // The leader may have given a partition to two: then the first has it.
            for (topic, partitions) in &mut current.assigned {
                partitions.retain(|p| !consumer.owners.contains_key(&(*topic, *p)));
            }
            current.assigned.retain(|_, partitions| !partitions.is_empty());
            consumer.put(group, Change::Member(id.clone(), Some(info)), fx);
            consumer.put(group, Change::Target(id.clone(), Some(current.assigned.clone())), fx);
            consumer.put(group, Change::Current(id, Some(current)), fx);
        }
        consumer.see_topics(Some(catalog));
        // Not the topics' hash, so that the next heartbeat makes a target: the leader's may not be up to date.
        consumer.put(group, Change::Epoch(Some(Epoch { epoch, hash: 0 })), fx);
        consumer.put(group, Change::TargetEpoch(Some(epoch)), fx);
        for (id, session_ms) in ids {
            if let Some(member) = consumer.members.get_mut(&id) {
                member.deadline = now.mono + session_ms.max(0) as u64;
            }
        }
        Ok(consumer)
    }

    /// What the group is with the classic protocol, without one member.
    pub(in crate::group) fn to_classic(&self, without: &str, now: Now) -> Classic {
        let member = |(id, m): (&String, &Member)| {
            let classic = m.info.classic.clone().unwrap_or_default();
            let mut member = classic::Member::default();
            member.instance.clone_from(&m.info.instance);
            member.client_id.clone_from(&m.info.client_id);
            member.client_host.clone_from(&m.info.client_host);
            member.session_ms = classic.session_ms;
            member.rebalance_ms = m.info.rebalance_ms;
            member.protocols = classic.protocols;
            member.assignment = self.embedded(m);
            (id.clone(), member)
        };
        let members = self.members.iter().filter(|(id, _)| *id != without).map(member);
        Classic::from_members(self.epoch, members.collect(), now)
    }
}
