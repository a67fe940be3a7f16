//! Random schedules of clients that join, sync, beat, commit, leave, fall silent and lose answers, against a twin
//! that only writes down what everybody was told, and complains about whatever does not go together.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    Answer, Effects, Group, Members, Now, Rules, Shard,
    classic::{Classic, Join, State, Sync},
    consumer::{self, Catalog},
    offsets::Committed,
    record::{Record, Stored},
};
use crate::worlds;

const GROUP: &str = "g";
const TOPIC: &str = "t";

/// What one client believes.
#[derive(Clone, Debug, Default)]
struct Client {
    instance: Option<String>,
    id: String,
    generation: i32,
    doing: Doing,
    /// Sends nothing any more.
    dead: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doing {
    #[default]
    Nothing,
    /// Waits for the answer to a join.
    Joining(u64),
    /// Was told its generation, and has not asked for its assignment yet.
    Joined,
    Syncing(u64),
    Member,
}

/// Everything that was told about one generation.
#[derive(Debug, Default)]
struct Generation {
    leader: String,
    /// Those that were told they are in it.
    joined: BTreeSet<String>,
    /// Those that the leader was told of.
    listed: Option<BTreeSet<String>>,
    /// What the leader said.
    assigned: BTreeMap<String, Bytes>,
}

struct World {
    rng: fastrand::Rng,
    shard: Shard,
    now: Now,
    clients: Vec<Client>,
    next: u64,
    generations: BTreeMap<i32, Generation>,
    /// Tokens that wait for an answer.
    open: BTreeSet<u64>,
    records: Vec<Record>,
    committed: Option<i64>,
}

/// These members name no topics.
pub(crate) struct NoTopics;

impl Catalog for NoTopics {
    fn version(&self) -> u64 {
        0
    }

    fn topic(&self, _: &str) -> Option<(uuid::Uuid, i32)> {
        None
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

pub(crate) fn rules() -> Rules {
    Rules {
        min_session_ms: 1,
        max_session_ms: 100_000,
        initial_delay_ms: 0,
        max_size: 100,
        metadata_max: 100,
        retention_ms: 1_000_000,
        consumer: consumer::Rules {
            session_ms: 1000,
            max_size: 100,
            assignors: vec![consumer::assign::Assignor::Uniform],
            refresh_ms: 1_000_000,
            upgrade: true,
            downgrade: true,
        },
    }
}

/// The group's members, which have the classic protocol here.
fn classic(group: &Group) -> &Classic {
    match &group.members {
        Members::Classic(classic) => classic,
        Members::Consumer(_) => panic!("nobody made it a consumer group"),
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let client =
            |i: usize| Client { instance: (i % 3 == 2).then(|| format!("static-{i}")), ..Client::default() };
        let clients = (0..rng.usize(1..6)).map(client).collect();
        World {
            rng,
            shard: Shard::new(Rules { initial_delay_ms: seed % 2 * 50, ..rules() }),
            now: Now { mono: 1, wall: 1_000_000 },
            clients,
            next: 1,
            generations: BTreeMap::new(),
            open: BTreeSet::new(),
            records: Vec::new(),
            committed: None,
        }
    }

    fn token(&mut self) -> u64 {
        self.next += 1;
        self.open.insert(self.next);
        self.next
    }

    fn step(&mut self, calm: bool) {
        let i = self.rng.usize(..self.clients.len());
        match self.rng.u8(..if calm { 10 } else { 16 }) {
            0..=2 => self.tick(if calm { 20 } else { 200 }),
            10 => self.clients[i].dead = self.rng.u8(..4) == 0 && self.clients.len() > 1,
            11 => self.leave(i),
            // A new start: it forgets who it was.
            12 => {
                let instance = self.clients[i].instance.clone();
                self.clients[i] = Client { instance, ..Client::default() };
            }
            13 => self.join(i),
            14 => self.commit(i),
            _ if self.clients[i].dead => {}
            _ => match self.clients[i].doing {
                Doing::Nothing => self.join(i),
                Doing::Joined => self.sync(i),
                Doing::Member => self.beat(i),
                Doing::Joining(_) | Doing::Syncing(_) => {}
            },
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

    fn join(&mut self, i: usize) {
        if matches!(self.clients[i].doing, Doing::Joining(_) | Doing::Syncing(_)) && self.rng.bool() {
            return;
        }
        let token = self.token();
        let client = &mut self.clients[i];
        client.doing = Doing::Joining(token);
        let join = Join {
            group: GROUP.into(),
            member: client.id.clone(),
            instance: client.instance.clone(),
            session_ms: 1000,
            rebalance_ms: 2000,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), Bytes::from(vec![i as u8, self.rng.u8(..2)]))],
            id_first: self.rng.bool(),
            fresh_id: format!("m{token}"),
            ..Join::default()
        };
        let mut fx = Effects::default();
        self.shard.join(self.now, token, join, &NoTopics, &mut fx);
        self.take(fx);
    }

    fn sync(&mut self, i: usize) {
        let token = self.token();
        let client = &mut self.clients[i];
        client.doing = Doing::Syncing(token);
        let (id, generation) = (client.id.clone(), client.generation);
        let known = self.generations.get_mut(&generation).expect("it was told of it");
        let assignments: Vec<(String, Bytes)> = match (&known.listed, known.leader == id) {
            (Some(listed), true) => {
                let assign = |m: &String| (m.clone(), Bytes::from(format!("{m} in {generation}, {token}")));
                listed.iter().map(assign).collect()
            }
            _ => Vec::new(),
        };
        let takes_it = self
            .shard
            .get(GROUP)
            .is_some_and(|g| classic(g).state() == State::Syncing && g.members.generation() == generation);
        if takes_it && !assignments.is_empty() {
            known.assigned = assignments.iter().cloned().collect();
        }
        let instance = self.clients[i].instance.clone();
        let sync =
            Sync { group: GROUP.into(), member: id, instance, generation, assignments, ..Sync::default() };
        let mut fx = Effects::default();
        self.shard.sync(self.now, token, sync, &mut fx);
        self.take(fx);
    }

    fn beat(&mut self, i: usize) {
        let client = &self.clients[i];
        let (id, instance) = (client.id.clone(), client.instance.clone());
        let (generation, mut fx) = (client.generation, Effects::default());
        let beat =
            self.shard.heartbeat(self.now, GROUP, &id, instance.as_deref(), generation, &NoTopics, &mut fx);
        match beat {
            Ok(()) => self.is_current(i),
            Err(kafka_protocol::ResponseError::RebalanceInProgress) => self.join(i),
            Err(_) => {
                let client = &mut self.clients[i];
                client.id.clear();
                client.doing = Doing::Nothing;
            }
        }
    }

    fn commit(&mut self, i: usize) {
        let client = self.clients[i].clone();
        let may = self.shard.may_commit(
            self.now,
            GROUP,
            &client.id,
            client.instance.as_deref(),
            if client.id.is_empty() { -1 } else { client.generation },
        );
        if may.is_err() {
            return;
        }
        if client.id.is_empty() {
            let members = self.shard.get(GROUP).map_or(0, |g| classic(g).members().count());
            assert!(client.instance.is_some() || members == 0, "an outsider committed");
        } else {
            self.is_current(i);
        }
        let offset = self.rng.i64(0..1000);
        let value = Committed { offset, leader_epoch: -1, metadata: String::new(), at: self.now.wall };
        let mut fx = Effects::default();
        self.shard.commit(GROUP, TOPIC, 0, value, &mut fx).expect("it is small");
        self.committed = Some(offset);
        self.take(fx);
    }

    fn leave(&mut self, i: usize) {
        let client = self.clients[i].clone();
        let mut fx = Effects::default();
        let left = self.shard.leave(self.now, GROUP, &client.id, client.instance.as_deref(), &mut fx);
        if left.is_ok() {
            let instance = client.instance;
            self.clients[i] = Client { instance, ..Client::default() };
        }
        self.take(fx);
    }

    /// Whoever is taken for a member is in the newest generation that there is.
    fn is_current(&self, i: usize) {
        let client = &self.clients[i];
        let newest = self.shard.get(GROUP).map(|g| g.members.generation());
        assert_eq!(Some(client.generation), newest, "an old generation was let through");
        assert!(
            self.generations[&client.generation].joined.contains(&client.id),
            "a stranger was let through"
        );
    }

    fn take(&mut self, fx: Effects) {
        self.records.extend(fx.records);
        for (token, answer) in fx.answers {
            assert!(self.open.remove(&token), "{token} was answered twice");
            let waits = |c: &Client| matches!(c.doing, Doing::Joining(t) | Doing::Syncing(t) if t == token);
            let client = self.clients.iter().position(waits);
            match answer {
                Answer::Join(Ok(joined)) => {
                    let newest = self.shard.get(GROUP).map_or(0, |g| g.members.generation());
                    assert_eq!(joined.generation, newest);
                    let known = self.generations.entry(joined.generation).or_default();
                    if known.leader.is_empty() {
                        known.leader = joined.leader.clone();
                    }
                    known.joined.insert(joined.member.clone());
                    if joined.leader == joined.member {
                        known.leader = joined.leader.clone();
                        let listed: BTreeSet<String> = joined.members.iter().map(|m| m.0.clone()).collect();
                        assert!(listed.contains(&joined.member), "the leader is not a member");
                        known.listed = Some(listed);
                    }
                    if let Some(i) = client {
                        let client = &mut self.clients[i];
                        client.id = joined.member;
                        client.generation = joined.generation;
                        client.doing = Doing::Joined;
                    }
                }
                Answer::Sync(Ok(synced)) => {
                    let Some(i) = client else { continue };
                    let client = &mut self.clients[i];
                    client.doing = Doing::Member;
                    let said = self.generations[&client.generation].assigned.get(&client.id);
                    if client.instance.is_none() {
                        assert_eq!(said, Some(&synced.assignment), "not what the leader said");
                    }
                }
                Answer::Join(Err((_, id))) => {
                    let Some(i) = client else { continue };
                    let client = &mut self.clients[i];
                    // Told an id to come again with, or to begin anew.
                    let told = client.id.is_empty() && !id.is_empty();
                    client.id = if told { id } else { String::new() };
                    client.doing = Doing::Nothing;
                }
                Answer::Sync(Err(_)) => {
                    let Some(i) = client else { continue };
                    self.clients[i].doing = Doing::Nothing;
                }
            }
        }
    }

    /// With all alive and nobody disturbing them, the group comes to rest with exactly them in it.
    fn comes_to_rest(&mut self) {
        self.clients.iter_mut().for_each(|c| c.dead = false);
        for _ in 0..20_000 {
            self.step(true);
            let Some(group) = self.shard.get(GROUP) else { continue };
            let members: BTreeSet<&str> = classic(group).members().map(|(id, ..)| id).collect();
            let wanted: BTreeSet<&str> = self.clients.iter().map(|c| c.id.as_str()).collect();
            let all = self.clients.iter().all(|c| c.doing == Doing::Member);
            if classic(group).state() == State::Stable && all && members == wanted {
                assert!(self.open.is_empty(), "{:?} were never answered", self.open);
                return;
            }
        }
        panic!("no rest: {:?}\n{:?}", self.clients, self.shard.get(GROUP));
    }

    /// What a restart would make of the records is what there is.
    fn survives_a_restart(&self) {
        let mut shard = Shard::new(rules());
        for record in &self.records {
            shard.replay(Stored::parse(&record.key, record.value.as_deref()).expect("it was written here"));
        }
        shard.replayed(self.now, &NoTopics);
        let (before, after) = (self.shard.get(GROUP).unwrap(), shard.get(GROUP).unwrap());
        assert_eq!(classic(after).state(), State::Stable);
        assert_eq!(after.members.generation(), before.members.generation());
        let all = |g: &Group| -> Vec<(String, Bytes)> {
            classic(g).members().map(|(id, m, _)| (id.to_owned(), m.assignment.clone())).collect()
        };
        assert_eq!(all(after), all(before));
        assert_eq!(after.offsets.get(TOPIC, 0).map(|c| c.offset), self.committed);
    }
}

#[test]
fn nobody_is_told_what_does_not_go_together() {
    worlds::each(worlds::seeds(1000), |seed| {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step(false);
        }
        world.comes_to_rest();
        world.survives_a_restart();
        1
    });
}
