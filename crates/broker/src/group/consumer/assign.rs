//! Server-side assignors: who is to have which partitions. Pure, and the same for the same input.
//!
//! Both keep what members have as far as balance allows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use crate::group::record::consumer::Partitions;

/// An assignor's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Assignor {
    /// As many partitions for each member as for any other.
    Uniform,
    /// Within each topic, as many for each member as for any other; co-partitioned topics alike.
    Range,
}

impl Assignor {
    /// Kafka's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }

    /// By its name, or by the name of Kafka's class.
    pub(crate) fn find(name: &str) -> Option<Assignor> {
        match name {
            "uniform" | "org.apache.kafka.coordinator.group.assignor.UniformAssignor" => {
                Some(Assignor::Uniform)
            }
            "range" | "org.apache.kafka.coordinator.group.assignor.RangeAssignor" => Some(Assignor::Range),
            _ => None,
        }
    }

    /// Who is to have what.
    pub(crate) fn assign(self, spec: &Spec<'_>) -> BTreeMap<String, Partitions> {
        let mut assigned = match self {
            Assignor::Range => range(spec),
            Assignor::Uniform if spec.is_homogeneous() => uniform(spec),
            Assignor::Uniform => uneven(spec),
        };
        for partitions in assigned.values_mut() {
            partitions.retain(|_, p| !p.is_empty());
        }
        assigned
    }
}

/// What an assignor is told.
#[derive(Debug)]
pub(crate) struct Spec<'a> {
    /// Each member's topics, all of which are in `topics`.
    pub(crate) members: &'a BTreeMap<String, BTreeSet<Uuid>>,
    /// How many partitions each topic has.
    pub(crate) topics: &'a BTreeMap<Uuid, i32>,
    /// What each member was to have so far.
    pub(crate) current: &'a BTreeMap<String, Partitions>,
}

impl Spec<'_> {
    fn is_homogeneous(&self) -> bool {
        let mut topics = self.members.values();
        topics.next().is_none_or(|first| topics.all(|other| other == first))
    }

    /// What a member has of what it may have, each partition with one member only.
    fn kept(&self, member: &str, taken: &mut BTreeSet<(Uuid, i32)>) -> Vec<(Uuid, i32)> {
        let Some(current) = self.current.get(member) else { return Vec::new() };
        let mine = &self.members[member];
        let all = current.iter().flat_map(|(t, ps)| ps.iter().map(|p| (*t, *p)));
        let there = |(t, p): &(Uuid, i32)| mine.contains(t) && self.topics.get(t).is_some_and(|n| p < n);
        all.filter(there).filter(|tp| taken.insert(*tp)).collect()
    }
}

fn collect(partitions: impl IntoIterator<Item = (Uuid, i32)>) -> Partitions {
    let mut all = Partitions::new();
    for (topic, partition) in partitions {
        all.entry(topic).or_default().insert(partition);
    }
    all
}

/// How many each of `members` gets of `total`: the same, and one more for some, first for those who have more
/// already.
fn quotas(total: usize, held: &[usize]) -> Vec<usize> {
    let (least, mut more) = (total / held.len(), total % held.len());
    let mut quotas = vec![least; held.len()];
    for keeps in [true, false] {
        for (quota, held) in quotas.iter_mut().zip(held) {
            if more > 0 && (*held > least) == keeps {
                *quota += 1;
                more -= 1;
            }
        }
    }
    quotas
}

/// All members have the same topics: none has two partitions more than another.
fn uniform(spec: &Spec<'_>) -> BTreeMap<String, Partitions> {
    let Some(topics) = spec.members.values().next() else { return BTreeMap::new() };
    let mut taken = BTreeSet::new();
    let mut held: Vec<Vec<(Uuid, i32)>> = spec.members.keys().map(|m| spec.kept(m, &mut taken)).collect();
    let count = |t: &Uuid| spec.topics.get(t).copied().unwrap_or(0);
    let total = topics.iter().map(|t| count(t) as usize).sum();
    let quotas = quotas(total, &held.iter().map(Vec::len).collect::<Vec<_>>());
    for (held, quota) in held.iter_mut().zip(&quotas) {
        for tp in held.drain((*quota).min(held.len())..) {
            taken.remove(&tp);
        }
    }
    let all = topics.iter().flat_map(|t| (0..count(t)).map(|p| (*t, p)));
    let mut free = all.filter(|tp| !taken.contains(tp));
    let filled = spec.members.keys().zip(held).zip(quotas).map(|((member, mut held), quota)| {
        let missing = quota - held.len();
        held.extend(free.by_ref().take(missing));
        (member.clone(), collect(held))
    });
    filled.collect()
}

/// Members have different topics: partitions go to who may have them and has least, and move while that makes it
/// more even.
fn uneven(spec: &Spec<'_>) -> BTreeMap<String, Partitions> {
    let names: Vec<&String> = spec.members.keys().collect();
    let mut taken = BTreeSet::new();
    let mut owner: BTreeMap<(Uuid, i32), usize> = BTreeMap::new();
    let mut load = vec![0_usize; names.len()];
    for (i, name) in names.iter().enumerate() {
        for tp in spec.kept(name, &mut taken) {
            owner.insert(tp, i);
            load[i] += 1;
        }
    }
    let may = |t: &Uuid| -> Vec<usize> {
        spec.members.values().enumerate().filter(|(_, ts)| ts.contains(t)).map(|(i, _)| i).collect()
    };
    let subscribers: HashMap<Uuid, Vec<usize>> = spec.topics.keys().map(|t| (*t, may(t))).collect();
    // Those that few may have go first: the others can still go round them.
    let mut topics: Vec<(&Uuid, i32)> = spec.topics.iter().map(|(t, n)| (t, *n)).collect();
    topics.sort_by_key(|(t, _)| subscribers[*t].len());
    for tp in topics.iter().flat_map(|(t, n)| (0..*n).map(|p| (**t, p))) {
        if let Some(least) = subscribers[&tp.0].iter().copied().min_by_key(|i| load[*i])
            && !owner.contains_key(&tp)
        {
            owner.insert(tp, least);
            load[least] += 1;
        }
    }
    // Each move makes the sum of the squares smaller, so there is an end.
    let mut moved = true;
    while moved {
        moved = false;
        for (tp, owner) in &mut owner {
            let least = subscribers[&tp.0].iter().copied().min_by_key(|i| load[*i]);
            if let Some(least) = least.filter(|least| load[*owner] > load[*least] + 1) {
                load[*owner] -= 1;
                load[least] += 1;
                *owner = least;
                moved = true;
            }
        }
    }
    let mut all: BTreeMap<String, Partitions> =
        names.iter().map(|n| ((*n).clone(), Partitions::new())).collect();
    for ((topic, partition), i) in owner {
        if let Some(partitions) = all.get_mut(names[i]) {
            partitions.entry(topic).or_default().insert(partition);
        }
    }
    all
}

/// Each topic for itself: sorted partitions in ranges over sorted members, but for those that members keep.
fn range(spec: &Spec<'_>) -> BTreeMap<String, Partitions> {
    let mut all: BTreeMap<String, Partitions> =
        spec.members.keys().map(|m| (m.clone(), Partitions::new())).collect();
    for (topic, count) in spec.topics {
        let members: Vec<&String> =
            spec.members.iter().filter(|(_, ts)| ts.contains(topic)).map(|(m, _)| m).collect();
        if members.is_empty() {
            continue;
        }
        let mut taken = BTreeSet::new();
        let mut keep = |member: &&String| -> Vec<i32> {
            let current = spec.current.get(*member).and_then(|c| c.get(topic));
            let there = current.into_iter().flatten().copied().filter(|p| p < count);
            there.filter(|p| taken.insert(*p)).collect()
        };
        let mut held: Vec<Vec<i32>> = members.iter().map(&mut keep).collect();
        let quotas = quotas(*count as usize, &held.iter().map(Vec::len).collect::<Vec<_>>());
        for (held, quota) in held.iter_mut().zip(&quotas) {
            for p in held.drain((*quota).min(held.len())..) {
                taken.remove(&p);
            }
        }
        let mut free = (0..*count).filter(|p| !taken.contains(p));
        for ((member, mut held), quota) in members.into_iter().zip(held).zip(quotas) {
            let missing = quota - held.len();
            held.extend(free.by_ref().take(missing));
            if let Some(partitions) = all.get_mut(member) {
                partitions.insert(*topic, held.into_iter().collect());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128 + 1)
    }

    struct World {
        members: BTreeMap<String, BTreeSet<Uuid>>,
        topics: BTreeMap<Uuid, i32>,
        current: BTreeMap<String, Partitions>,
    }

    impl World {
        /// Topics with so many partitions, and members with these topics.
        fn new(topics: &[i32], members: &[&[usize]]) -> World {
            let name = |i: usize| format!("m{i}");
            let member = |(i, ts): (usize, &&[usize])| (name(i), ts.iter().map(|t| id(*t)).collect());
            World {
                members: members.iter().enumerate().map(member).collect(),
                topics: topics.iter().enumerate().map(|(i, n)| (id(i), *n)).collect(),
                current: BTreeMap::new(),
            }
        }

        fn assign(&mut self, assignor: Assignor) -> Vec<Vec<(usize, Vec<i32>)>> {
            let spec = Spec { members: &self.members, topics: &self.topics, current: &self.current };
            self.current = assignor.assign(&spec);
            let number = |t: &Uuid| t.as_u128() as usize - 1;
            let list = |ps: &Partitions| {
                ps.iter().map(|(t, p)| (number(t), p.iter().copied().collect())).collect::<Vec<_>>()
            };
            self.current.values().map(list).collect()
        }

        fn loads(&self) -> Vec<usize> {
            self.current.values().map(|ps| ps.values().map(BTreeSet::len).sum()).collect()
        }
    }

    #[test]
    fn uniform_gives_everybody_the_same() {
        let mut world = World::new(&[3, 2], &[&[0, 1], &[0, 1]]);
        let assigned = world.assign(Assignor::Uniform);
        assert_eq!(assigned, [vec![(0, vec![0, 1, 2])], vec![(1, vec![0, 1])]]);
    }

    #[test]
    fn uniform_moves_no_more_than_it_must() {
        let mut world = World::new(&[6], &[&[0], &[0]]);
        world.assign(Assignor::Uniform);
        // A third member takes one from each.
        world.members.insert("m2".into(), BTreeSet::from([id(0)]));
        let assigned = world.assign(Assignor::Uniform);
        assert_eq!(assigned, [vec![(0, vec![0, 1])], vec![(0, vec![3, 4])], vec![(0, vec![2, 5])]]);
        // It goes again, and what the others had stays with them.
        world.members.remove("m2");
        world.current.remove("m2");
        let assigned = world.assign(Assignor::Uniform);
        assert_eq!(assigned, [vec![(0, vec![0, 1, 2])], vec![(0, vec![3, 4, 5])]]);
        // A seventh partition changes nothing for the others.
        world.topics.insert(id(0), 7);
        let assigned = world.assign(Assignor::Uniform);
        assert_eq!(assigned, [vec![(0, vec![0, 1, 2, 6])], vec![(0, vec![3, 4, 5])]]);
    }

    #[test]
    fn range_takes_each_topic_alike() {
        let mut world = World::new(&[3, 3], &[&[0, 1], &[0, 1]]);
        let assigned = world.assign(Assignor::Range);
        assert_eq!(assigned[0], [(0, vec![0, 1]), (1, vec![0, 1])]);
        assert_eq!(assigned[1], [(0, vec![2]), (1, vec![2])]);
        world.members.insert("m2".into(), BTreeSet::from([id(0)]));
        let assigned = world.assign(Assignor::Range);
        assert_eq!(assigned[0], [(0, vec![0]), (1, vec![0, 1])]);
        assert_eq!(assigned[2], [(0, vec![1])]);
    }

    #[test]
    fn different_topics_are_balanced_as_far_as_they_go() {
        let mut world = World::new(&[4, 4], &[&[0], &[0, 1]]);
        world.assign(Assignor::Uniform);
        assert_eq!(world.loads(), [4, 4]);
        // The one who had everything gives up what another may have.
        let mut world = World::new(&[6], &[&[0]]);
        world.assign(Assignor::Uniform);
        world.members.insert("m1".into(), BTreeSet::from([id(0), id(1)]));
        world.topics.insert(id(1), 1);
        world.assign(Assignor::Uniform);
        assert_eq!(world.loads().iter().sum::<usize>(), 7);
        assert!(world.loads().iter().all(|l| (3..=4).contains(l)), "{:?}", world.loads());
    }

    #[test]
    fn any_subscriptions_have_everything_assigned_once() {
        for seed in 0..2000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut world = World::new(&[], &[]);
            for _ in 0..8 {
                let (m, t) = (format!("m{}", rng.u8(..5)), id(rng.usize(..4)));
                match rng.u8(..8) {
                    0 => drop(world.topics.insert(t, rng.i32(0..9))),
                    1 => {
                        world.topics.remove(&t);
                        world.members.values_mut().for_each(|ts| ts.retain(|other| *other != t));
                    }
                    2 => {
                        world.members.remove(&m);
                        world.current.remove(&m);
                    }
                    _ => world
                        .members
                        .entry(m)
                        .or_default()
                        .extend(Some(t).filter(|t| world.topics.contains_key(t))),
                }
                let assignor = if seed % 2 == 0 { Assignor::Uniform } else { Assignor::Range };
                world.assign(assignor);
                check(&world, seed);
                let before = world.current.clone();
                world.assign(assignor);
                assert_eq!(world.current, before, "seed {seed}: nothing changed, and something moved");
            }
        }
    }

    fn check(world: &World, seed: u64) {
        let mut seen = BTreeSet::new();
        for (member, partitions) in &world.current {
            for (topic, partitions) in partitions {
                assert!(world.members[member].contains(topic), "seed {seed}: not subscribed");
                for partition in partitions {
                    assert!(seen.insert((*topic, *partition)), "seed {seed}: assigned twice");
                    assert!(*partition < world.topics[topic], "seed {seed}: no such partition");
                }
            }
        }
        let wanted: BTreeSet<&Uuid> = world.members.values().flatten().collect();
        let all: usize = wanted.iter().map(|t| world.topics[*t] as usize).sum();
        assert_eq!(seen.len(), all, "seed {seed}: not all are assigned");
    }
}
