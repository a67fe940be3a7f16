//! How much clients may: Kafka's client quotas (KIP-13, KIP-124, KIP-546, KIP-599, KIP-612).
//!
//! Each quota fills a bucket at its rate, up to a window's worth; what a client does is taken out of it. Who owes is
//! told how long, and is not listened to until then (KIP-219).

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::*},
    },
};

use data_encoding::BASE64;

use crate::topics::Topics;

/// The small file with the quotas: a line `quota value entity…` each, an entity as `type=name` with the name in
/// base64, or `type=` for the default one.
const FILE: &str = "quotas";
/// So many buckets are kept before those that are full are forgotten, which changes nothing.
const MAX_BUCKETS: usize = 10_000;

/// What a quota bounds, a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Quota {
    /// Bytes produced.
    Produce,
    /// Bytes fetched.
    Fetch,
    /// Hundredths of a processor's time.
    Request,
    /// Partitions made or deleted.
    Mutation,
    /// Connections accepted from an address.
    Connection,
}

impl Quota {
    pub(crate) const ALL: [Quota; 5] =
        [Quota::Produce, Quota::Fetch, Quota::Request, Quota::Mutation, Quota::Connection];

    /// Kafka's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Quota::Produce => "producer_byte_rate",
            Quota::Fetch => "consumer_byte_rate",
            Quota::Request => "request_percentage",
            Quota::Mutation => "controller_mutation_rate",
            Quota::Connection => "connection_creation_rate",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Quota> {
        Quota::ALL.into_iter().find(|q| q.name() == name)
    }

    /// Whether its rate has to be a whole number.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Quota::Produce | Quota::Fetch | Quota::Connection)
    }

    /// Whether entities of this kind can have it.
    pub(crate) fn fits(self, entity: &Entity) -> bool {
        entity.keys().all(|kind| (*kind == EntityKind::Ip) == (self == Quota::Connection))
    }
}

/// Whom a quota is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum EntityKind {
    User,
    ClientId,
    Ip,
}

impl EntityKind {
    const ALL: [EntityKind; 3] = [EntityKind::User, EntityKind::ClientId, EntityKind::Ip];

    /// Kafka's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EntityKind::User => "user",
            EntityKind::ClientId => "client-id",
            EntityKind::Ip => "ip",
        }
    }

    pub(crate) fn named(name: &str) -> Option<EntityKind> {
        EntityKind::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// Whom a quota is for: names by kind, `None` for all who have none of their own. Never empty.
pub(crate) type Entity = BTreeMap<EntityKind, Option<String>>;

/// The rates of all entities.
pub(crate) type Rates = BTreeMap<Entity, BTreeMap<Quota, f64>>;

/// Who does something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Doer<'a> {
    Client { user: &'a str, id: &'a str },
    Address(&'a str),
}

/// What is left of a quota for somebody.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at_ms: u64,
}

#[derive(Debug, Default)]
struct State {
    rates: Rates,
    buckets: HashMap<(Quota, Entity), Bucket>,
}

/// All quotas, and what is left of them.
#[derive(Debug)]
pub(crate) struct Quotas {
    /// A bucket holds what so many seconds give.
    window_s: f64,
    /// Whether there are any: without, nobody waits for the lock.
    some: AtomicBool,
    state: Mutex<State>,
}

impl Quotas {
    /// Reads the file.
    pub(crate) fn open(topics: &Topics, window_s: u64) -> io::Result<Quotas> {
        let mut rates = Rates::new();
        for (quota, rate, entity) in topics.read_lines::<_, Vec<_>>(FILE, parse)? {
            rates.entry(entity).or_default().insert(quota, rate);
        }
        Ok(Quotas::new(rates, window_s))
    }

    fn new(rates: Rates, window_s: u64) -> Quotas {
        let some = AtomicBool::new(!rates.is_empty());
        let state = State { rates, buckets: HashMap::new() };
        Quotas { window_s: window_s as f64, some, state: Mutex::new(state) }
    }

    /// Takes out what somebody did. Returns for how many milliseconds they owe.
    pub(crate) fn take(&self, quota: Quota, doer: Doer<'_>, amount: f64, now_ms: u64) -> u64 {
        self.with_bucket(quota, doer, now_ms, |bucket, rate| {
            bucket.left -= amount;
            owes(bucket, rate)
        })
    }

    /// Like [`Quotas::take`], but takes nothing of somebody who owes already: then it is an error.
    pub(crate) fn try_take(&self, quota: Quota, doer: Doer<'_>, amount: f64, now_ms: u64) -> Result<(), u64> {
        let owed = self.with_bucket(quota, doer, now_ms, |bucket, rate| {
            let owed = owes(bucket, rate);
            if owed == 0 {
                bucket.left -= amount;
            }
            owed
        });
        if owed == 0 { Ok(()) } else { Err(owed) }
    }

    /// Whether there are quotas at all. Costs nothing.
    pub(crate) fn any(&self) -> bool {
        self.some.load(Relaxed)
    }

    /// Whether anybody has this quota.
    pub(crate) fn limits(&self, quota: Quota) -> bool {
        self.any() && self.state().rates.values().any(|rates| rates.contains_key(&quota))
    }

    fn with_bucket(
        &self,
        quota: Quota,
        doer: Doer<'_>,
        now_ms: u64,
        act: impl FnOnce(&mut Bucket, f64) -> u64,
    ) -> u64 {
        if !self.any() {
            return 0;
        }
        let mut state = self.state();
        let Some((rate, whose)) = find(&state.rates, quota, doer) else { return 0 };
        let full = rate * self.window_s;
        if state.buckets.len() >= MAX_BUCKETS {
            state.buckets.retain(|_, b| now_ms.saturating_sub(b.at_ms) as f64 <= self.window_s * 1_000.0);
        }
        let bucket = state.buckets.entry((quota, whose)).or_insert(Bucket { left: full, at_ms: now_ms });
        let gained = rate * now_ms.saturating_sub(bucket.at_ms) as f64 / 1_000.0;
        *bucket = Bucket { left: (bucket.left + gained).min(full), at_ms: now_ms.max(bucket.at_ms) };
        act(bucket, rate)
    }

    /// The rates of all entities.
    pub(crate) fn all(&self) -> Rates {
        self.state().rates.clone()
    }

    /// Changes rates, durably. Blocks on the disk.
    pub(crate) fn change(&self, topics: &Topics, change: impl FnOnce(&mut Rates)) -> io::Result<()> {
        let mut state = self.state();
        let mut next = state.rates.clone();
        change(&mut next);
        next.retain(|_, rates| !rates.is_empty());
        if next != state.rates {
            let lines = next.iter().flat_map(|(entity, rates)| rates.iter().map(move |r| line(entity, r)));
            topics.put(FILE, lines.collect::<String>().as_bytes())?;
            self.some.store(!next.is_empty(), Relaxed);
            *state = State { rates: next, buckets: HashMap::new() };
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds until the bucket is no longer in debt.
fn owes(bucket: &Bucket, rate: f64) -> u64 {
    (-bucket.left / rate * 1_000.0).ceil().max(0.0) as u64
}

/// The rate that counts for somebody, and with whom they share it: the most specific one (KIP-55).
fn find(rates: &Rates, quota: Quota, doer: Doer<'_>) -> Option<(f64, Entity)> {
    use EntityKind::{ClientId, Ip, User};
    let rate = |entity: &Entity| rates.get(entity)?.get(&quota).copied();
    let some = |name: &str| Some(name.to_owned());
    let (user, id) = match doer {
        Doer::Address(address) => {
            let own = Entity::from([(Ip, some(address))]);
            let rate = rate(&own).or_else(|| rate(&Entity::from([(Ip, None)])))?;
            return Some((rate, own));
        }
        Doer::Client { user, id } => (user, id),
    };
    let both = Entity::from([(User, some(user)), (ClientId, some(id))]);
    let (of_user, of_id) = (Entity::from([(User, some(user))]), Entity::from([(ClientId, some(id))]));
    let pair = |user: Option<String>, id: Option<String>| Entity::from([(User, user), (ClientId, id)]);
    // What is set, and who shares it.
    let order = [
        (both.clone(), &both),
        (pair(some(user), None), &both),
        (of_user.clone(), &of_user),
        (pair(None, some(id)), &both),
        (pair(None, None), &both),
        (Entity::from([(User, None)]), &of_user),
        (of_id.clone(), &of_id),
        (Entity::from([(ClientId, None)]), &of_id),
    ];
    order.into_iter().find_map(|(set, shared)| Some((rate(&set)?, shared.clone())))
}

fn line(entity: &Entity, (quota, rate): (&Quota, &f64)) -> String {
    let name = |name: &Option<String>| name.as_ref().map_or(String::new(), |n| BASE64.encode(n.as_bytes()));
    let names: String = entity.iter().map(|(k, n)| format!(" {}={}", k.name(), name(n))).collect();
    format!("{} {rate}{names}\n", quota.name())
}

fn parse(line: &str) -> Option<(Quota, f64, Entity)> {
    let mut words = line.split(' ');
    let (quota, rate) = (Quota::named(words.next()?)?, words.next()?.parse().ok()?);
    let one = |word: &str| {
        let (kind, name) = word.split_once('=')?;
        let name = match name {
            "" => None,
            name => Some(String::from_utf8(BASE64.decode(name.as_bytes()).ok()?).ok()?),
        };
        Some((EntityKind::named(kind)?, name))
    };
    let entity: Entity = words.map(one).collect::<Option<_>>()?;
    (!entity.is_empty()).then_some((quota, rate, entity))
}

#[cfg(test)]
mod tests {
    use super::{EntityKind::*, *};

    fn entity<const N: usize>(names: [(EntityKind, Option<&str>); N]) -> Entity {
        names.into_iter().map(|(kind, name)| (kind, name.map(str::to_owned))).collect()
    }

    fn quotas<const N: usize>(quota: Quota, rates: [(Entity, f64); N]) -> Quotas {
        let rates = rates.into_iter().map(|(entity, rate)| (entity, [(quota, rate)].into()));
        Quotas::new(rates.collect(), 10)
    }

    const KIM: Doer<'_> = Doer::Client { user: "kim", id: "app" };

    #[test]
    fn a_window_of_it_may_be_taken_at_once() {
        let quotas = quotas(Quota::Produce, [(entity([(User, Some("kim"))]), 100.0)]);
        let take = |amount, now| quotas.take(Quota::Produce, KIM, amount, now);
        assert_eq!(take(1_000.0, 0), 0);
        assert_eq!(take(50.0, 0), 500);
        // A second later half a second's worth is there, and is gone again.
        assert_eq!(take(50.0, 1_000), 0);
        assert_eq!(take(1.0, 1_000), 10);
        // However long nothing is done, there is never more than a window.
        assert_eq!(take(1_001.0, 1_000_000), 10);
        assert_eq!(quotas.take(Quota::Fetch, KIM, 1e9, 0), 0, "another quota");
        let lee = Doer::Client { user: "lee", id: "app" };
        assert_eq!(quotas.take(Quota::Produce, lee, 1e9, 0), 0, "another user");
    }

    #[test]
    fn who_owes_gets_nothing_strictly() {
        let quotas = quotas(Quota::Mutation, [(entity([(User, None)]), 1.0)]);
        assert_eq!(quotas.try_take(Quota::Mutation, KIM, 15.0, 0), Ok(()));
        assert_eq!(quotas.try_take(Quota::Mutation, KIM, 1.0, 0), Err(5_000));
        assert_eq!(quotas.try_take(Quota::Mutation, KIM, 1.0, 5_000), Ok(()));
    }

    #[test]
    fn the_most_specific_counts() {
        let all = [
            entity([(User, Some("kim")), (ClientId, Some("app"))]),
            entity([(User, Some("kim")), (ClientId, None)]),
            entity([(User, Some("kim"))]),
            entity([(User, None), (ClientId, Some("app"))]),
            entity([(User, None), (ClientId, None)]),
            entity([(User, None)]),
            entity([(ClientId, Some("app"))]),
            entity([(ClientId, None)]),
        ];
        for skip in 0..all.len() {
            let rates = all[skip..].iter().enumerate().map(|(i, entity)| {
                let rate = (skip + i + 1) as f64;
                (entity.clone(), BTreeMap::from([(Quota::Fetch, rate)]))
            });
            let found = find(&rates.collect(), Quota::Fetch, KIM).unwrap();
            assert_eq!(found.0, (skip + 1) as f64);
        }
        assert!(find(&Rates::new(), Quota::Fetch, KIM).is_none());
    }

    #[test]
    fn a_default_is_each_ones_own() {
        let quotas = quotas(Quota::Connection, [(entity([(Ip, None)]), 1.0)]);
        let from = |address, n| quotas.take(Quota::Connection, Doer::Address(address), n, 0);
        assert_eq!(from("10.0.0.1", 11.0), 1_000);
        assert_eq!(from("10.0.0.2", 10.0), 0);
    }

    #[test]
    fn a_quota_is_a_line() {
        let entity = entity([(User, Some("김 a=b")), (ClientId, None)]);
        let written = line(&entity, (&Quota::Request, &12.5));
        assert_eq!(parse(written.trim_end()), Some((Quota::Request, 12.5, entity)));
        for wrong in
            ["", "producer_byte_rate", "producer_byte_rate 1", "x 1 user=", "producer_byte_rate 1 x="]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
