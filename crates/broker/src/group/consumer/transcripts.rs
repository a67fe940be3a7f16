//! Transcripts: what clients do, and what comes of it, as text in `testdata/groups`. UPDATE=1 writes them anew.
//!
//! ```text
//! topics NAME=PARTITIONS…          the topics that there are from now on
//! wait MS                          time passes
//! join MEMBER [NAME…] [/REGEX/] [static=INSTANCE]
//! beat MEMBER EPOCH [has TOPIC-PARTITION…]     `has` alone: it has nothing
//! leave MEMBER, away MEMBER INSTANCE
//! classic join MEMBER NAME…, classic sync MEMBER GENERATION, classic beat MEMBER GENERATION, classic leave MEMBER
//! commit MEMBER EPOCH OFFSET, fetch MEMBER EPOCH
//! restart
//! ```

use std::{collections::BTreeSet, fmt::Write};

use bytes::{BufMut, Bytes};

use super::{
    tests::{Topics, rules},
    *,
};
use crate::group::{
    Answer, Members, Shard,
    classic::{Join, Sync},
    embedded,
    offsets::Committed,
    record::Stored,
};

const GROUP: &str = "g";

struct Script {
    shard: Shard,
    topics: Topics,
    now: Now,
    records: Vec<Record>,
    out: String,
}

impl Script {
    fn new() -> Script {
        Script {
            shard: Shard::new(rules(Assignor::Uniform)),
            topics: Topics::default(),
            now: Now { mono: 1, wall: 1_000_000 },
            records: Vec::new(),
            out: String::new(),
        }
    }

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.out, "  {line}");
    }

    fn names(&self, partitions: &Partitions) -> String {
        let name = |id: &Uuid| {
            let known = self.topics.all.iter().find(|(_, (other, _))| other == id);
            known.map_or_else(|| "?".to_owned(), |(name, _)| name.clone())
        };
        let all = partitions.iter().flat_map(|(t, ps)| ps.iter().map(move |p| format!("{}-{p}", name(t))));
        let all: Vec<String> = all.collect();
        if all.is_empty() { "nothing".to_owned() } else { all.join(" ") }
    }

    fn run(&mut self, words: &[&str]) {
        let mut fx = Effects::default();
        match words {
            ["topics", all @ ..] => {
                self.topics.version += 1;
                let before = std::mem::take(&mut self.topics.all);
                for (name, count) in all.iter().filter_map(|t| t.split_once('=')) {
                    let next = Uuid::from_u128(
                        u128::from(self.topics.version) * 100 + self.topics.all.len() as u128,
                    );
                    let id = before.get(name).map_or(next, |t| t.0);
                    self.topics.all.insert(name.to_owned(), (id, count.parse().unwrap()));
                }
            }
            ["wait", ms] => {
                let ms: u64 = ms.parse().unwrap();
                self.now = Now { mono: self.now.mono + ms, wall: self.now.wall + ms as i64 };
                self.shard.tick(self.now, &mut fx);
            }
            ["join", member, wants @ ..] => {
                let regex = wants.iter().find_map(|w| w.strip_prefix('/')?.strip_suffix('/'));
                let instance = wants.iter().find_map(|w| w.strip_prefix("static="));
                let is_name = |w: &&&str| !w.starts_with('/') && !w.contains('=');
                let beat = Beat {
                    rebalance_ms: Some(500),
                    topics: Some(wants.iter().filter(is_name).map(|w| (*w).to_owned()).collect()),
                    regex: regex.map(str::to_owned),
                    instance: instance.map(str::to_owned),
                    owned: Some(Partitions::new()),
                    ..beat(member, 0)
                };
                self.beat(beat, &mut fx);
            }
            ["beat", member, epoch, has @ ..] => {
                let owned = has.split_first().map(|(_, all)| self.owned(all));
                self.beat(Beat { owned, ..beat(member, epoch.parse().unwrap()) }, &mut fx);
            }
            ["leave", member] => self.beat(beat(member, LEAVE), &mut fx),
            ["away", member, instance] => {
                self.beat(Beat { instance: Some((*instance).to_owned()), ..beat(member, AWAY) }, &mut fx);
            }
            ["classic", rest @ ..] => self.classic(rest, &mut fx),
            ["commit", member, epoch, offset] => {
                let may = self.shard.may_commit(self.now, GROUP, member, None, epoch.parse().unwrap());
                let value = Committed {
                    offset: offset.parse().unwrap(),
                    leader_epoch: -1,
                    metadata: String::new(),
                    at: self.now.wall,
                };
                let done = may.and_then(|()| self.shard.commit(GROUP, "t", 0, value, &mut fx));
                self.say(&format!("{done:?}"));
            }
            ["fetch", member, epoch] => {
                let may = self.shard.may_fetch(GROUP, member, epoch.parse().unwrap());
                self.say(&format!("{may:?}"));
            }
            ["restart"] => {
                self.shard = Shard::new(rules(Assignor::Uniform));
                for r in &self.records {
                    self.shard.replay(Stored::parse(&r.key, r.value.as_deref()).unwrap());
                }
                self.shard.replayed(self.now, &self.topics);
            }
            other => panic!("what is {other:?}?"),
        }
        self.take(fx);
    }

    fn owned(&self, all: &[&str]) -> Partitions {
        let mut owned = Partitions::new();
        for (name, partition) in all.iter().filter_map(|tp| tp.rsplit_once('-')) {
            let id = self.topics.all.get(name).map_or(Uuid::nil(), |t| t.0);
            owned.entry(id).or_default().insert(partition.parse().unwrap());
        }
        owned
    }

    fn beat(&mut self, beat: Beat, fx: &mut Effects) {
        let line = match self.shard.beat(self.now, beat, true, &self.topics, fx) {
            Ok(Beaten { epoch, assignment: Some(assignment), .. }) => {
                format!("epoch {epoch}, has {}", self.names(&assignment))
            }
            Ok(Beaten { epoch, .. }) => format!("epoch {epoch}"),
            Err((error, why)) => format!("{error:?}: {why}"),
        };
        self.say(&line);
    }

    fn classic(&mut self, words: &[&str], fx: &mut Effects) {
        match words {
            ["join", member, names @ ..] => {
                let mut metadata = vec![0, 1];
                metadata.put_i32(names.len() as i32);
                for name in names {
                    metadata.put_i16(name.len() as i16);
                    metadata.put_slice(name.as_bytes());
                }
                metadata.put_i32(-1);
                metadata.put_i32(0);
                let known = self.shard.get(GROUP).is_some_and(|g| match &g.members {
                    Members::Classic(classic) => classic.members().any(|(id, ..)| id == *member),
                    Members::Consumer(consumer) => consumer.member(member).is_some(),
                });
                let join = Join {
                    group: GROUP.into(),
                    member: if known { (*member).to_owned() } else { String::new() },
                    fresh_id: (*member).to_owned(),
                    session_ms: 1000,
                    rebalance_ms: 500,
                    protocol_type: "consumer".into(),
                    protocols: vec![("range".into(), Bytes::from(metadata))],
                    ..Join::default()
                };
                self.shard.join(self.now, 0, join, &self.topics, fx);
            }
            ["sync", member, generation] => {
                // As a leader it gives itself everything.
                let all = self.topics.all.iter().map(|(name, (_, n))| (name.clone(), (0..*n).collect()));
                let sync = Sync {
                    group: GROUP.into(),
                    member: (*member).to_owned(),
                    generation: generation.parse().unwrap(),
                    assignments: vec![((*member).to_owned(), embedded::assignment(1, &all.collect()))],
                    ..Sync::default()
                };
                self.shard.sync(self.now, 0, sync, fx);
            }
            ["beat", member, generation] => {
                let generation = generation.parse().unwrap();
                let beat = self.shard.heartbeat(self.now, GROUP, member, None, generation, &self.topics, fx);
                self.say(&format!("{beat:?}"));
            }
            ["leave", member] => {
                let left = self.shard.leave(self.now, GROUP, member, None, fx);
                self.say(&format!("{left:?}"));
            }
            other => panic!("what is {other:?}?"),
        }
    }

    /// Tells what came out, and what the group is now.
    fn take(&mut self, fx: Effects) {
        for (_, answer) in fx.answers {
            let line = match answer {
                Answer::Join(Ok(joined)) => {
                    let leads = if joined.leader == joined.member { ", leads" } else { "" };
                    format!("{} joined, generation {}{leads}", joined.member, joined.generation)
                }
                Answer::Sync(Ok(synced)) => {
                    let (named, _) = embedded::parse_assignment(&synced.assignment).unwrap();
                    let all = named.iter().flat_map(|(t, ps)| ps.iter().map(move |p| format!("{t}-{p}")));
                    format!("has {}", all.collect::<Vec<_>>().join(" "))
                }
                Answer::Join(Err((error, member))) => format!("{member}: {error:?}"),
                Answer::Sync(Err(error)) => format!("{error:?}"),
            };
            self.say(&line);
        }
        let changed = !fx.records.is_empty();
        self.records.extend(fx.records);
        let Some(group) = self.shard.get(GROUP) else { return };
        if changed {
            let (kind, state, epoch) =
                (group.members.kind(), group.members.state(), group.members.generation());
            let mut line = format!("-> {kind} group, {state}, epoch {epoch}");
            if let Members::Consumer(consumer) = &group.members {
                for (id, member, target) in consumer.members() {
                    let Current { epoch, state, assigned, revoking, .. } = &member.current;
                    let _ = write!(line, "\n     {id} {state:?} in {epoch}: {}", self.names(assigned));
                    if !revoking.is_empty() {
                        let _ = write!(line, "; gives up {}", self.names(revoking));
                    }
                    if target.is_some_and(|target| target != assigned) {
                        let _ = write!(line, "; is to have {}", self.names(target.unwrap()));
                    }
                }
            }
            self.say(&line);
        }
    }
}

fn beat(member: &str, epoch: i32) -> Beat {
    Beat { group: GROUP.into(), member: member.to_owned(), epoch, ..Beat::default() }
}

#[test]
fn transcripts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/groups");
    let paths: BTreeSet<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut script = Script::new();
        for line in text.lines().filter(|l| !l.starts_with("  ")) {
            let _ = writeln!(script.out, "{line}");
            let words: Vec<&str> = line.split_whitespace().collect();
            if !words.is_empty() && !line.starts_with('#') {
                script.run(&words);
            }
        }
        if std::env::var("UPDATE").is_ok() {
            std::fs::write(&path, &script.out).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), script.out, "{}", path.display());
    }
}
