//! Transcripts a person can read: a request in, what comes of it out. `UPDATE=1 cargo test -p dibs-broker
//! transcripts` writes them anew; read the difference before you commit it.
//!
//! A line is one of these, or a comment with `#`; what came of it follows, indented. A producer is written
//! `ID/EPOCH`, a partition `TOPIC-NUMBER`, and `v2` says that the client knows KIP-890.
//!
//! ```text
//! init ID TIMEOUT [PRODUCER]         InitProducerId
//! add ID PRODUCER [v2] PARTITION…    AddPartitionsToTxn, or the first batch
//! verify ID PRODUCER PARTITION       whether a batch may begin a transaction there
//! end ID PRODUCER commit|abort [v2]  EndTxn
//! complete ID                        the markers are written
//! epoch ID EPOCH                     as if it had come so far
//! wait MS                            time passes
//! restart                            everything is read from the log again
//! ```

use std::{fmt::Write, fs, path::Path};

use super::*;

struct Run {
    shard: Shard,
    now: i64,
    next_id: i64,
    log: Vec<Record>,
    decided: Vec<Decision>,
    out: String,
}

pub(super) fn rules() -> Rules {
    Rules { max_timeout_ms: 900_000, expiration_ms: 1_000_000 }
}

fn producer(text: &str) -> Producer {
    let (id, epoch) = text.split_once('/').expect("ID/EPOCH");
    Producer { id: id.parse().unwrap(), epoch: epoch.parse().unwrap() }
}

fn partition(text: &str) -> TopicPartition {
    let (topic, number) = text.rsplit_once('-').expect("TOPIC-NUMBER");
    (topic.to_owned(), number.parse().unwrap())
}

fn names<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> String {
    partitions.into_iter().map(|(topic, p)| format!(" {topic}-{p}")).collect()
}

fn answer<T>(result: Result<T, ResponseError>, of: impl FnOnce(T) -> String) -> String {
    result.map_or_else(|e| format!("{e:?}"), of)
}

fn who(producer: Producer) -> String {
    format!("{}/{}", producer.id, producer.epoch)
}

impl Run {
    fn line(&mut self, line: &str) {
        let mut fx = Effects::default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let v2 = words.contains(&"v2");
        let next_id = &mut self.next_id;
        let mut fresh = || {
            *next_id += 1;
            Ok(*next_id)
        };
        let told = match words[..] {
            ["init", id, timeout, ..] => {
                let expected = words.get(3).map(|p| producer(p));
                let timeout = timeout.parse().unwrap();
                let done = self.shard.init(self.now, id, timeout, expected, &mut fresh, &mut fx);
                answer(done, who)
            }
            ["add", id, by, ..] => {
                let all: Vec<_> = words[3..].iter().filter(|w| **w != "v2").map(|w| partition(w)).collect();
                let version = if v2 { EPOCH_BUMP } else { 0 };
                let done = self.shard.add(self.now, id, producer(by), &all, version, &mut fx);
                answer(done, |()| "yes".into())
            }
            ["verify", id, by, p] => {
                answer(self.shard.verify(id, producer(by), &partition(p)), |()| "yes".into())
            }
            ["end", id, by, how, ..] => {
                let end = End { id, producer: producer(by), commit: how == "commit", bumps: v2 };
                answer(self.shard.end(self.now, end, &mut fresh, &mut fx), who)
            }
            ["complete", id] => {
                let at = self.decided.iter().position(|d| d.id == id).expect("decided");
                let decision = self.decided.remove(at);
                self.shard.complete(self.now, &decision, &mut fx);
                String::new()
            }
            ["epoch", id, epoch] => {
                self.shard.ids.get_mut(id).unwrap().epoch = epoch.parse().unwrap();
                String::new()
            }
            ["wait", ms] => {
                self.now += ms.parse::<i64>().unwrap();
                self.shard.tick(self.now, &mut fx);
                self.shard.expire(self.now, &mut fx);
                String::new()
            }
            ["restart"] => {
                self.shard = replayed(&self.log);
                self.decided.clear();
                self.shard.replayed(&mut fx);
                String::new()
            }
            _ => panic!("what is {line:?}?"),
        };
        self.show(&told, fx);
    }

    fn show(&mut self, told: &str, fx: Effects) {
        if !told.is_empty() {
            writeln!(self.out, "  {told}").unwrap();
        }
        for record in &fx.records {
            let stored = Stored::parse(&record.key, record.value.as_deref()).unwrap();
            let now = match &stored.value {
                Some(t) => format!("{} {}{}", who(t.producer()), t.state.name(), names(&t.partitions)),
                None => "gone".into(),
            };
            writeln!(self.out, "  log: {} {now}", stored.id).unwrap();
        }
        for decision in &fx.decisions {
            let how = if decision.commit { "commit" } else { "abort" };
            let to = names(&decision.partitions);
            writeln!(self.out, "  markers: {how} {}{to}", who(decision.producer)).unwrap();
        }
        self.log.extend(fx.records);
        self.decided.extend(fx.decisions);
    }
}

pub(super) fn replayed(log: &[Record]) -> Shard {
    let mut shard = Shard::new(rules());
    for record in log {
        shard.replay(Stored::parse(&record.key, record.value.as_deref()).expect("it was written here"));
    }
    shard
}

fn run(script: &str) -> String {
    let shard = Shard::new(rules());
    let mut run = Run { shard, now: 0, next_id: 6, log: Vec::new(), decided: Vec::new(), out: String::new() };
    for line in script.lines().filter(|l| !l.starts_with(' ')) {
        writeln!(run.out, "{line}").unwrap();
        if !line.is_empty() && !line.starts_with('#') {
            run.line(line);
        }
    }
    run.out
}

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/txn");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let got = run(&fs::read_to_string(&file).unwrap());
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, &got).unwrap();
        }
        assert_eq!(got, fs::read_to_string(&file).unwrap(), "{}", file.display());
    }
}
