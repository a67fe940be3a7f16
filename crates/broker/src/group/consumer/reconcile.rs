//! How a member gets from what it has to its target: first it gives up what it is not to have, then it goes on to
//! the target's epoch, then it gets what others have given up. Pure.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::group::record::consumer::{Current, MemberState, Partitions};

/// Where a member is to go.
#[derive(Debug)]
pub(super) struct Goal<'a> {
    /// The target's epoch.
    pub(super) epoch: i32,
    pub(super) target: &'a Partitions,
    /// The topics that the member is subscribed to, as far as there are such.
    pub(super) subscribed: &'a BTreeSet<Uuid>,
    /// Whether the member has just changed its subscription.
    pub(super) changed: bool,
    /// The partitions that the member says it has; `None` if it did not say.
    pub(super) owned: Option<&'a Partitions>,
}

/// What a member has next; what it has now if it cannot go on yet. A partition is free if no other member has it.
pub(super) fn next(me: &Current, goal: &Goal<'_>, is_free: impl Fn(Uuid, i32) -> bool) -> Current {
    match me.state {
        MemberState::Stable if me.epoch == goal.epoch => {
            if goal.changed {
                unsubscribe(me, goal)
            } else {
                me.clone()
            }
        }
        MemberState::Unrevoked if owns(goal, &me.revoking) => {
            if goal.changed {
                unsubscribe(me, goal)
            } else {
                me.clone()
            }
        }
        MemberState::Stable | MemberState::Unrevoked | MemberState::Unreleased => advance(me, goal, is_free),
    }
}

/// Whether the member still has some of these, for all that is known.
fn owns(goal: &Goal<'_>, some: &Partitions) -> bool {
    let Some(owned) = goal.owned else { return true };
    owned.iter().any(|(t, ps)| some.get(t).is_some_and(|some| !some.is_disjoint(ps)))
}

/// Takes away topics that the member does not want any more, without waiting for a new target.
fn unsubscribe(me: &Current, goal: &Goal<'_>) -> Current {
    let mut new = me.clone();
    let unwanted: Vec<Uuid> = me.assigned.keys().filter(|t| !goal.subscribed.contains(t)).copied().collect();
    if unwanted.is_empty() {
        return new;
    }
    for topic in unwanted {
        if let Some(partitions) = new.assigned.remove(&topic) {
            new.revoking.entry(topic).or_default().extend(partitions);
        }
    }
    if owns(goal, &new.revoking) {
        new.state = MemberState::Unrevoked;
    } else {
        new.revoking = me.revoking.clone();
    }
    new.previous = me.epoch;
    new
}

fn advance(me: &Current, goal: &Goal<'_>, is_free: impl Fn(Uuid, i32) -> bool) -> Current {
    let none = BTreeSet::new();
    let (mut assigned, mut revoking, mut pending) = (Partitions::new(), Partitions::new(), Partitions::new());
    let mut waits = false;
    let topics: BTreeSet<Uuid> = goal.target.keys().chain(me.assigned.keys()).copied().collect();
    for topic in topics {
        let has = me.assigned.get(&topic).unwrap_or(&none);
        let target = goal.target.get(&topic).filter(|_| goal.subscribed.contains(&topic)).unwrap_or(&none);
        let put = |into: &mut Partitions, partitions: BTreeSet<i32>| {
            if !partitions.is_empty() {
                into.insert(topic, partitions);
            }
        };
        put(&mut assigned, has & target);
        put(&mut revoking, has - target);
        let (free, taken): (BTreeSet<i32>, BTreeSet<i32>) =
            (target - has).into_iter().partition(|p| is_free(topic, *p));
        waits |= !taken.is_empty();
        put(&mut pending, free);
    }
    if !revoking.is_empty() && owns(goal, &revoking) {
        let (epoch, previous) = (me.epoch, me.epoch);
        return Current { epoch, previous, state: MemberState::Unrevoked, assigned, revoking };
    }
    for (topic, partitions) in pending {
        assigned.entry(topic).or_default().extend(partitions);
    }
    let state = if waits { MemberState::Unreleased } else { MemberState::Stable };
    Current { epoch: goal.epoch, previous: me.epoch, state, assigned, revoking: Partitions::new() }
}
