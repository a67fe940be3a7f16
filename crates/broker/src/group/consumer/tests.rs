//! Random schedules of clients with both protocols, against a twin that only writes down what each client was told
//! it has, and complains when two have the same.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};

use super::{AWAY, Beat, Catalog, LEAVE, assign::Assignor, *};
use crate::{
    group::{
        Answer, Group, Members, Rules as GroupRules, Shard,
        classic::{Join, State, Sync},
        embedded,
        offsets::Committed,
        record::Stored,
    },
    worlds,
};

const GROUP: &str = "g";

type Owned = BTreeSet<(Uuid, i32)>;

#[derive(Clone, Debug, Default)]
pub(super) struct Topics {
    pub(super) all: BTreeMap<String, (Uuid, i32)>,
    pub(super) version: u64,
}

impl Catalog for Topics {
    fn version(&self) -> u64 {
        self.version
    }

    fn topic(&self, name: &str) -> Option<(Uuid, i32)> {
        self.all.get(name).copied()
    }

    fn names(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }
}

pub(super) fn rules(assignor: Assignor) -> GroupRules {
    GroupRules {
        min_session_ms: 1,
        max_session_ms: 100_000,
        initial_delay_ms: 0,
        max_size: 100,
        metadata_max: 100,
        retention_ms: 1_000_000,
        consumer: Rules {
            session_ms: 1000,
            max_size: 100,
            assignors: vec![assignor],
            refresh_ms: 1_000_000,
            upgrade: true,
            downgrade: true,
        },
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doing {
    #[default]
    Nothing,
    Joining(u64),
    /// It leads, of these members.
    Joined,
    Syncing(u64),
    Member,
}

/// What one client believes.
#[derive(Clone, Debug, Default)]
struct Client {
    classic: bool,
    instance: Option<String>,
    id: String,
    epoch: i32,
    topics: BTreeSet<String>,
    regex: Option<String>,
    owned: Owned,
    /// What it is to have, when it has given up the rest.
    goal: Option<Owned>,
    /// The last answer was lost: it says everything again.
    full: bool,
    doing: Doing,
    leads: Vec<(String, Bytes)>,
    dead: bool,
}

struct World {
    rng: fastrand::Rng,
    rules: GroupRules,
    shard: Shard,
    topics: Topics,
    now: Now,
    clients: Vec<Client>,
    next: u64,
    records: Vec<Record>,
    committed: BTreeMap<i32, i64>,
    newest: i32,
    loud: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rules = rules(if rng.bool() { Assignor::Uniform } else { Assignor::Range });
        let mut topics = Topics::default();
        for i in 0..rng.usize(1..4) {
            topics.all.insert(format!("t{i}"), (Uuid::from_u128(i as u128 + 1), rng.i32(1..5)));
        }
        let mixed = rng.bool();
        let mut world = World {
            shard: Shard::new(rules.clone()),
            rules,
            topics,
            now: Now { mono: 1, wall: 1_000_000 },
            clients: Vec::new(),
            next: 1000,
            records: Vec::new(),
            committed: BTreeMap::new(),
            newest: 0,
            loud: std::env::var("WORLD").is_ok(),
            rng,
        };
        for i in 0..world.rng.usize(1..6) {
            let client = Client {
                classic: mixed && world.rng.bool(),
                instance: (world.rng.u8(..3) == 0).then(|| format!("i{i}")),
                ..Client::default()
            };
            world.clients.push(client);
            world.begin_anew(i);
            world.subscribe(i);
        }
        world
    }

    /// A client that is started again knows nothing but its settings.
    fn begin_anew(&mut self, i: usize) {
        self.next += 1;
        let client = &mut self.clients[i];
        client.id = if client.classic { String::new() } else { format!("c{}", self.next) };
        client.epoch = 0;
        client.owned.clear();
        (client.goal, client.full, client.doing) = (None, false, Doing::Nothing);
    }

    fn subscribe(&mut self, i: usize) {
        let names: BTreeSet<String> = (0..4).filter(|_| self.rng.bool()).map(|t| format!("t{t}")).collect();
        let client = &mut self.clients[i];
        (client.topics, client.regex) = (names, None);
        if !client.classic && self.rng.u8(..3) == 0 {
            client.topics.clear();
            client.regex = Some(["t.*", "t[01]", "x"][self.rng.usize(..3)].to_owned());
        }
        client.full = true;
    }

    fn step(&mut self, calm: bool) {
        let i = self.rng.usize(..self.clients.len());
        match self.rng.u8(..if calm { 10 } else { 20 }) {
            0..=2 => self.tick(if calm { 30 } else { 200 }),
            3 => self.reach_goal(i),
            10 => self.clients[i].dead = self.rng.u8(..4) == 0,
            11 => self.leave(i),
            12 if self.rng.bool() => self.begin_anew(i),
            13 => self.change_topics(),
            14 => self.subscribe(i),
            15 => self.commit(i),
            16 if self.rng.u8(..3) == 0 => self.restart(),
            17 if self.rng.u8(..4) == 0 => self.switch(i),
            _ if self.clients[i].dead => {}
            _ if self.clients[i].classic => self.classic_step(i),
            _ => self.beat(i, calm),
        }
        self.tell(i);
        self.check();
    }

    /// With WORLD=… the way to the failure is told.
    fn tell(&self, i: usize) {
        if !self.loud {
            return;
        }
        let Client { id, epoch, doing, owned, goal, .. } = &self.clients[i];
        println!("{} {i} {id} epoch {epoch} {doing:?} has {owned:?}, goal {goal:?}", self.now.mono);
        if let Some(Group { members: Members::Consumer(consumer), .. }) = self.shard.get(GROUP) {
            println!("    {}", recorded(consumer));
        }
    }

    fn tick(&mut self, most: u64) {
        let passed = self.rng.u64(1..most);
        self.now = Now { mono: self.now.mono + passed, wall: self.now.wall + passed as i64 };
        let mut fx = Effects::default();
        self.shard.tick(self.now, &mut fx);
        self.take(fx);
        let late = self.shard.earliest().is_some_and(|at| at <= self.now.mono);
        assert!(!late, "a deadline that has passed is still there");
    }

    fn change_topics(&mut self) {
        self.topics.version += 1;
        self.next += 1;
        let (name, new) = (format!("t{}", self.rng.usize(..4)), Uuid::from_u128(u128::from(self.next)));
        // The classic protocol has names only: it cannot tell a topic from another that was made under its name.
        let classic = self.clients.iter().any(|c| c.classic);
        match self.rng.u8(..3) {
            0 if !classic => drop(self.topics.all.remove(&name)),
            _ => {
                let topic = self.topics.all.entry(name).or_insert((new, 0));
                topic.1 += self.rng.i32(1..3);
            }
        }
    }

    /// The client goes over to the other protocol, as with a rolling restart.
    fn switch(&mut self, i: usize) {
        self.leave(i);
        self.clients[i].classic ^= true;
        self.begin_anew(i);
        self.subscribe(i);
    }

    fn reach_goal(&mut self, i: usize) {
        if let Some(goal) = self.clients[i].goal.take() {
            self.clients[i].owned = goal;
        }
    }

    fn beat(&mut self, i: usize, calm: bool) {
        let full = self.clients[i].full || self.clients[i].epoch == 0 || self.rng.u8(..8) == 0;
        // It says what it has when it has all that it was told: who says less than that has given the rest up,
        // and must not take it later.
        if full {
            self.reach_goal(i);
        }
        let client = &self.clients[i];
        let mut owned = Partitions::new();
        for (topic, partition) in &client.owned {
            owned.entry(*topic).or_default().insert(*partition);
        }
        let beat = Beat {
            group: GROUP.into(),
            member: client.id.clone(),
            epoch: client.epoch,
            instance: client.instance.clone(),
            rebalance_ms: full.then_some(2000),
            topics: full.then(|| client.topics.clone()),
            regex: full.then(|| client.regex.clone().unwrap_or_default()),
            owned: (full || client.goal.is_none() && self.rng.bool()).then_some(owned),
            ..Beat::default()
        };
        let mut fx = Effects::default();
        let beaten = self.shard.beat(self.now, beat, true, &self.topics, &mut fx);
        self.take(fx);
        let lost = !calm && self.rng.u8(..10) == 0;
        let client = &mut self.clients[i];
        match beaten {
            Ok(_) | Err(_) if lost => client.full = true,
            Ok(beaten) => {
                assert!(beaten.epoch >= client.epoch, "epoch {} after {}", beaten.epoch, client.epoch);
                (client.epoch, client.full) = (beaten.epoch, false);
                if let Some(assignment) = beaten.assignment {
                    let goal: Owned =
                        assignment.iter().flat_map(|(t, ps)| ps.iter().map(|p| (*t, *p))).collect();
                    client.goal = Some(goal);
                    if self.rng.bool() {
                        self.reach_goal(i);
                    }
                }
            }
            Err((ResponseError::UnreleasedInstanceId, _)) => {}
            Err(_) => {
                client.owned.clear();
                (client.goal, client.epoch) = (None, 0);
            }
        }
    }

    fn leave(&mut self, i: usize) {
        let client = self.clients[i].clone();
        self.clients[i].owned.clear();
        let mut fx = Effects::default();
        if client.classic {
            let _ = self.shard.leave(self.now, GROUP, &client.id, client.instance.as_deref(), &mut fx);
        } else {
            let away = client.instance.is_some() && self.rng.bool();
            let beat = Beat {
                group: GROUP.into(),
                member: client.id,
                epoch: if away { AWAY } else { LEAVE },
                instance: client.instance,
                ..Beat::default()
            };
            let _ = self.shard.beat(self.now, beat, true, &self.topics, &mut fx);
        }
        self.take(fx);
        self.begin_anew(i);
    }

    fn classic_step(&mut self, i: usize) {
        match self.clients[i].doing {
            Doing::Nothing => self.join(i),
            Doing::Joined => self.sync(i),
            // Its subscription is another than it said.
            Doing::Member if self.clients[i].full => self.join(i),
            Doing::Member => {
                let client = &self.clients[i];
                let (id, instance) = (client.id.clone(), client.instance.clone());
                let (epoch, mut fx) = (client.epoch, Effects::default());
                let instance = instance.as_deref();
                let beat = self.shard.heartbeat(self.now, GROUP, &id, instance, epoch, &self.topics, &mut fx);
                self.take(fx);
                match beat {
                    Ok(()) => {}
                    Err(ResponseError::RebalanceInProgress) => self.join(i),
                    Err(_) => self.begin_anew(i),
                }
            }
            Doing::Joining(_) | Doing::Syncing(_) => {}
        }
    }

    /// Eager clients: they give up everything before they join.
    fn join(&mut self, i: usize) {
        self.next += 1;
        let token = self.next;
        let client = &mut self.clients[i];
        client.owned.clear();
        (client.doing, client.full) = (Doing::Joining(token), false);
        let mut metadata = vec![0, 1];
        metadata.put_i32(client.topics.len() as i32);
        for topic in &client.topics {
            metadata.put_i16(topic.len() as i16);
            metadata.put_slice(topic.as_bytes());
        }
        metadata.put_i32(-1);
        metadata.put_i32(0);
        let join = Join {
            group: GROUP.into(),
            member: client.id.clone(),
            instance: client.instance.clone(),
            session_ms: 1000,
            rebalance_ms: 2000,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), Bytes::from(metadata))],
            id_first: self.rng.bool(),
            fresh_id: format!("m{token}"),
            ..Join::default()
        };
        let mut fx = Effects::default();
        self.shard.join(self.now, token, join, &self.topics, &mut fx);
        self.take(fx);
    }

    fn sync(&mut self, i: usize) {
        self.next += 1;
        let token = self.next;
        let assignments = self.lead(i);
        let client = &mut self.clients[i];
        client.doing = Doing::Syncing(token);
        let sync = Sync {
            group: GROUP.into(),
            member: client.id.clone(),
            instance: client.instance.clone(),
            generation: client.epoch,
            assignments,
            ..Sync::default()
        };
        let mut fx = Effects::default();
        self.shard.sync(self.now, token, sync, &mut fx);
        self.take(fx);
    }

    /// The leader's assignment: each partition to the first who wants it.
    fn lead(&mut self, i: usize) -> Vec<(String, Bytes)> {
        let members = std::mem::take(&mut self.clients[i].leads);
        let mut all: BTreeMap<&String, embedded::Named> =
            members.iter().map(|m| (&m.0, BTreeMap::new())).collect();
        for (name, (_, count)) in &self.topics.all {
            let wants = |m: &&(String, Bytes)| {
                embedded::Subscription::parse(&m.1).is_some_and(|s| s.topics.contains(name))
            };
            let wanting: Vec<_> = members.iter().filter(wants).collect();
            for (p, m) in (0..*count).zip(wanting.iter().cycle()) {
                all.entry(&m.0).or_default().entry(name.clone()).or_default().push(p);
            }
        }
        all.into_iter().map(|(id, named)| (id.clone(), embedded::assignment(1, &named))).collect()
    }

    fn commit(&mut self, i: usize) {
        let client = self.clients[i].clone();
        let epoch = if client.id.is_empty() { -1 } else { client.epoch };
        let may = self.shard.may_commit(self.now, GROUP, &client.id, client.instance.as_deref(), epoch);
        if may.is_err() {
            return;
        }
        let (partition, offset) = (self.rng.i32(..3), self.rng.i64(0..1000));
        let value = Committed { offset, leader_epoch: -1, metadata: String::new(), at: self.now.wall };
        let mut fx = Effects::default();
        self.shard.commit(GROUP, "t0", partition, value, &mut fx).expect("it is small");
        self.committed.insert(partition, offset);
        self.take(fx);
    }

    /// Everything is as the records say; whoever waited asks again.
    fn restart(&mut self) {
        let mut shard = Shard::new(self.rules.clone());
        for record in &self.records {
            shard.replay(Stored::parse(&record.key, record.value.as_deref()).expect("it was written here"));
        }
        shard.replayed(self.now, &self.topics);
        if let Some(Group { members: Members::Consumer(before), .. }) = self.shard.get(GROUP) {
            match shard.get(GROUP).map(|g| &g.members) {
                Some(Members::Consumer(after)) => assert_eq!(recorded(after), recorded(before)),
                _ => assert!(before.is_empty() && before.epoch == 0, "the group is gone"),
            }
        }
        self.shard = shard;
        // A classic generation is recorded when it is complete, and begins anew otherwise.
        self.newest = 0;
        for client in &mut self.clients {
            if let Doing::Joining(_) | Doing::Syncing(_) = client.doing {
                client.doing = Doing::Nothing;
            }
        }
    }

    fn take(&mut self, fx: Effects) {
        self.records.extend(fx.records);
        for (token, answer) in fx.answers {
            let waits = |c: &Client| matches!(c.doing, Doing::Joining(t) | Doing::Syncing(t) if t == token);
            let Some(i) = self.clients.iter().position(waits) else { continue };
            match answer {
                Answer::Join(Ok(joined)) => {
                    let client = &mut self.clients[i];
                    (client.id, client.epoch, client.doing) =
                        (joined.member, joined.generation, Doing::Joined);
                    client.leads = joined.members.into_iter().map(|(id, _, m)| (id, m)).collect();
                }
                Answer::Sync(Ok(synced)) => {
                    let (named, _) = embedded::parse_assignment(&synced.assignment).unwrap();
                    let known = |(name, ps): (String, Vec<i32>)| Some((self.topics.all.get(&name)?.0, ps));
                    let all = named.into_iter().filter_map(known);
                    let client = &mut self.clients[i];
                    client.owned = all.flat_map(|(t, ps)| ps.into_iter().map(move |p| (t, p))).collect();
                    client.doing = Doing::Member;
                }
                Answer::Join(Err((ResponseError::MemberIdRequired, id))) => {
                    (self.clients[i].id, self.clients[i].doing) = (id, Doing::Nothing);
                }
                Answer::Sync(Err(ResponseError::RebalanceInProgress))
                | Answer::Join(Err((ResponseError::RebalanceInProgress, _))) => {
                    self.clients[i].doing = Doing::Nothing;
                }
                Answer::Join(Err(_)) | Answer::Sync(Err(_)) => self.begin_anew(i),
            }
        }
    }

    fn is_member(&self, client: &Client) -> bool {
        match self.shard.get(GROUP).map(|g| &g.members) {
            Some(Members::Consumer(consumer)) => consumer.member(&client.id).is_some(),
            Some(Members::Classic(classic)) => classic.members().any(|(id, ..)| id == client.id),
            None => false,
        }
    }

    /// No partition has two owners, of those that the group knows.
    fn check(&mut self) {
        let mut owners: BTreeMap<(Uuid, i32), &str> = BTreeMap::new();
        for client in self.clients.iter().filter(|c| self.is_member(c)) {
            for partition in &client.owned {
                let other = owners.insert(*partition, &client.id);
                assert!(other.is_none(), "{partition:?} is {:?}'s and {}'s", other, client.id);
            }
        }
        let group = self.shard.get(GROUP);
        let epoch = group.map_or(0, |g| g.members.generation());
        // A group whose last member has gone may begin anew.
        let empty = group.is_none_or(|g| g.members.is_empty());
        assert!(epoch >= self.newest || empty || epoch <= 1, "epoch {epoch} after {}", self.newest);
        self.newest = epoch;
        if let Some(Group { members: Members::Consumer(consumer), .. }) = group {
            assert!(consumer.target_epoch <= consumer.epoch);
            for member in consumer.members.values() {
                assert!(member.current.epoch <= consumer.target_epoch);
            }
        }
    }

    /// With all alive and nobody disturbing them, the group comes to rest, and everything has an owner.
    fn comes_to_rest(&mut self) {
        self.clients.iter_mut().for_each(|c| c.dead = false);
        for _ in 0..20_000 {
            self.step(true);
            if self.is_at_rest() {
                return;
            }
        }
        panic!("no rest: {:#?}\n{:#?}\n{:?}", self.clients, self.shard.get(GROUP), self.topics);
    }

    fn is_at_rest(&self) -> bool {
        let Some(group) = self.shard.get(GROUP) else { return false };
        let stable = match &group.members {
            Members::Consumer(consumer) => {
                consumer.state() == "Stable" && consumer.members.len() == self.clients.len()
            }
            Members::Classic(classic) => {
                classic.state() == State::Stable && classic.members().count() == self.clients.len()
            }
        };
        let settled = |c: &Client| {
            self.is_member(c)
                && !c.full
                && if c.classic { c.doing == Doing::Member } else { c.goal.is_none() }
        };
        if !stable || !self.clients.iter().all(settled) {
            return false;
        }
        let compiled = |c: &Client| c.regex.as_deref().and_then(|r| regex::compile(r).ok());
        let wants =
            |c: &Client, name: &str| c.topics.contains(name) || compiled(c).is_some_and(|r| r.is_match(name));
        let wanted = self.topics.all.iter().filter(|(name, _)| self.clients.iter().any(|c| wants(c, name)));
        let all: Owned = wanted.flat_map(|(_, (id, n))| (0..*n).map(|p| (*id, p))).collect();
        // A classic leader does not look for changed topics by itself here.
        let classic = matches!(group.members, Members::Classic(_));
        classic || self.clients.iter().flat_map(|c| c.owned.iter().copied()).collect::<Owned>() == all
    }
}

/// All that is recorded of a group.
fn recorded(group: &Consumer) -> String {
    let members: Vec<_> = group.members.iter().map(|(id, m)| (id, &m.info, &m.current)).collect();
    format!(
        "{} {} {} {members:?} {:?} {:?}",
        group.epoch, group.hash, group.target_epoch, group.target, group.regexes
    )
}

#[test]
fn no_partition_has_two_owners() {
    worlds::each(worlds::seeds(500), |seed| {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step(false);
        }
        world.comes_to_rest();
        world.restart();
        world.comes_to_rest();
        let offsets = |p: i32| world.shard.get(GROUP).and_then(|g| g.offsets.get("t0", p)).map(|c| c.offset);
        for (partition, offset) in &world.committed {
            assert_eq!(offsets(*partition), Some(*offset), "a committed offset is lost");
        }
        world.committed.len()
    });
}
