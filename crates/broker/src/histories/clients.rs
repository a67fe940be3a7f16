//! Producers of three kinds. Each asks for one thing or some at a time, hears what has become of it or not, and asks
//! again; what it does next, chance says.

use kafka_protocol::{
    ResponseError,
    messages::{
        AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest, ProduceRequest, ProducerId,
        TransactionalId, add_partitions_to_txn_request::*, produce_request::*,
    },
};
use tokio::task::JoinHandle;

use super::{
    history::Event,
    world::{Broker, PARTITIONS, TOPIC, World, text, topic_name},
};

/// Batches of an idempotent producer that may be unanswered at a time.
const IN_FLIGHT: usize = 5;
/// After so many errors in a row a producer gives up what it is at.
const PATIENCE: u8 = 8;

/// An id and an epoch.
pub(super) type Producer = (i64, i16);

/// What a broker has said to any request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    error: i16,
    base: i64,
    producer: Producer,
}

/// An answer that may come; `None` if the connection ended instead.
type Asked = JoinHandle<Option<Answer>>;

/// The answer, if it has come.
async fn heard(asked: &mut Asked) -> Option<Option<Answer>> {
    if asked.is_finished() { Some(asked.await.ok().flatten()) } else { None }
}

fn is_ok(answer: &Option<Answer>) -> Option<&Answer> {
    answer.as_ref().filter(|a| a.error == 0)
}

fn ask_init(broker: &Broker, id: Option<&str>) -> Asked {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(id.map(transactional))
        .with_transaction_timeout_ms(900_000)
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1);
    broker.ask(&request, 4, |r| Answer {
        error: r.error_code,
        base: -1,
        producer: (r.producer_id.0, r.producer_epoch),
    })
}

fn ask_produce(world: &mut World, broker: &Broker, batch: usize, of: (Option<&str>, i16, i16)) -> Asked {
    let (id, acks, version) = of;
    let sent = &world.history.batches[batch];
    let data = PartitionProduceData::default()
        .with_index(sent.partition as i32)
        .with_records(Some(world.bytes[batch].clone()));
    let topic = TopicProduceData::default().with_name(topic_name(TOPIC)).with_partition_data(vec![data]);
    let request = ProduceRequest::default()
        .with_transactional_id(id.map(transactional))
        .with_acks(acks)
        .with_timeout_ms(1000)
        .with_topic_data(vec![topic]);
    world.record(Event::Sent(batch));
    broker.ask(&request, version, |r| {
        let of = &r.responses[0].partition_responses[0];
        Answer { error: of.error_code, base: of.base_offset, producer: (-1, -1) }
    })
}

fn transactional(id: &str) -> TransactionalId {
    TransactionalId(text(id))
}

/// Sends a batch, and again if it hears nothing or an error: it may be there as often as it was sent.
#[derive(Default)]
pub(super) struct Plain {
    asked: Option<(usize, Asked)>,
    again: Option<usize>,
}

impl Plain {
    pub(super) async fn step(&mut self, world: &mut World, broker: &Broker) {
        if let Some((batch, asked)) = &mut self.asked {
            let Some(answer) = heard(asked).await else { return };
            match is_ok(&answer) {
                Some(answer) => {
                    let base = answer.base as u64;
                    world.record(Event::Acked { batch: *batch, base });
                }
                None => self.again = Some(*batch).filter(|_| world.random.u8(..8) > 0),
            }
            self.asked = None;
        }
        let batch = self.again.take().unwrap_or_else(|| {
            let partition = world.random.usize(..PARTITIONS);
            world.batch(partition, None, None)
        });
        if world.random.u8(..10) == 0 {
            // Nobody hears of it again.
            drop(ask_produce(world, broker, batch, (None, 0, 7)));
        } else {
            let (acks, version) = (world.random.i16(0..2) * 2 - 1, world.random.i16(3..=12));
            self.asked = Some((batch, ask_produce(world, broker, batch, (None, acks, version))));
        }
    }

    pub(super) fn died(&mut self) {
        self.again = self.asked.take().map(|(batch, _)| batch);
    }
}

/// Numbers its batches, and sends them out of order and more often than needed.
#[derive(Default)]
pub(super) struct Idempotent {
    producer: Option<Producer>,
    /// Its number in the history.
    name: usize,
    next: [i32; PARTITIONS],
    /// Not acknowledged yet, with the errors heard of each.
    open: Vec<(usize, u8)>,
    done: Vec<usize>,
    asked: Vec<(usize, Asked)>,
}

impl Idempotent {
    pub(super) async fn step(&mut self, world: &mut World, broker: &Broker) {
        let Some(producer) = self.producer else {
            // It comes from another thread: one at a time, so that a seed is one world.
            if let Some(answer) = is_ok(&ask_init(broker, None).await.ok().flatten()) {
                let name = world.producer();
                *self = Idempotent { producer: Some(answer.producer), name, ..Idempotent::default() };
            }
            return;
        };
        self.hear(world).await;
        if self.producer.is_none() {
            return;
        }
        let partition = world.random.usize(..PARTITIONS);
        let batch = match world.random.u8(..10) {
            0 if !self.done.is_empty() => self.done[world.random.usize(..self.done.len())],
            1..=5 if self.open.len() < IN_FLIGHT => {
                let sequence = self.next[partition];
                let batch = world.batch(partition, Some((self.name, producer, sequence)), None);
                self.next[partition] += world.len(batch) as i32;
                self.open.push((batch, 0));
                if world.random.u8(..4) == 0 {
                    return;
                }
                batch
            }
            _ if !self.open.is_empty() => self.open[world.random.usize(..self.open.len())].0,
            _ => return,
        };
        let asked = ask_produce(world, broker, batch, (None, -1, 9));
        self.asked.push((batch, asked));
    }

    async fn hear(&mut self, world: &mut World) {
        let mut left = Vec::new();
        for (batch, mut asked) in std::mem::take(&mut self.asked) {
            let Some(answer) = heard(&mut asked).await else {
                left.push((batch, asked));
                continue;
            };
            let open = self.open.iter().position(|(b, _)| *b == batch);
            match (is_ok(&answer), open) {
                (Some(answer), open) => {
                    world.record(Event::Acked { batch, base: answer.base as u64 });
                    if let Some(open) = open {
                        self.open.remove(open);
                        self.done.push(batch);
                    }
                }
                (None, Some(open)) => self.open[open].1 += 1,
                (None, None) => {}
            }
        }
        self.asked = left;
        // A number was left out, and nothing behind it is taken any more.
        if self.open.iter().any(|(_, errors)| *errors > PATIENCE) {
            self.producer = None;
        }
    }

    pub(super) fn died(&mut self) {
        self.asked.clear();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Init,
    Add(usize),
    Produce,
    End(bool),
}

/// Writes transactions, commits or aborts them, or leaves them for dead; goes on with one after a crash.
pub(super) struct Transactional {
    id: String,
    /// Whether it has a new epoch for each transaction (KIP-890).
    second_form: bool,
    producer: Option<Producer>,
    name: usize,
    next: [i32; PARTITIONS],
    added: [bool; PARTITIONS],
    transaction: Option<usize>,
    /// What is not acknowledged yet, with the errors heard of it.
    batch: Option<(usize, u8)>,
    ending: Option<bool>,
    /// Something went wrong: it begins anew when the transaction has ended.
    broken: bool,
    asked: Option<(Asking, Asked)>,
}

impl Transactional {
    pub(super) fn new(id: String, second_form: bool) -> Transactional {
        Transactional {
            id,
            second_form,
            producer: None,
            name: 0,
            next: [0; PARTITIONS],
            added: [false; PARTITIONS],
            transaction: None,
            batch: None,
            ending: None,
            broken: false,
            asked: None,
        }
    }

    pub(super) async fn step(&mut self, world: &mut World, broker: &Broker) {
        if let Some((asking, asked)) = &mut self.asked {
            let (asking, Some(answer)) = (*asking, heard(asked).await) else { return };
            self.asked = None;
            match is_ok(&answer) {
                Some(answer) => self.done(world, asking, *answer),
                None => self.failed(world, asking, answer.map_or(-1, |a| a.error)),
            }
        }
        let asking = self.next(world);
        let asked = match asking {
            Asking::Init => ask_init(broker, Some(&self.id)),
            Asking::Add(partition) => self.ask_add(broker, partition),
            Asking::Produce => {
                let Some((batch, _)) = self.batch else { return };
                let version = if self.second_form { 12 } else { 9 };
                ask_produce(world, broker, batch, (Some(&self.id), -1, version))
            }
            Asking::End(commit) => self.ask_end(world, broker, commit),
        };
        self.asked = Some((asking, asked));
    }

    /// Gives up what it is at. True when it is somebody anew and nothing is open any more.
    pub(super) async fn finish(&mut self, broker: &Broker) -> bool {
        match &mut self.asked {
            Some((Asking::Init, asked)) => match heard(asked).await {
                None => false,
                Some(answer) => {
                    self.asked = None;
                    is_ok(&answer).is_some()
                }
            },
            _ => {
                self.asked = Some((Asking::Init, ask_init(broker, Some(&self.id))));
                false
            }
        }
    }

    pub(super) fn died(&mut self) {
        self.asked = None;
    }

    fn next(&mut self, world: &mut World) -> Asking {
        let Some(producer) = self.producer else { return Asking::Init };
        if let Some(commit) = self.ending {
            return Asking::End(commit);
        }
        if self.batch.is_none() {
            let begun = self.transaction.is_some();
            match world.random.u8(..20) {
                0 => {
                    self.producer = None;
                    return Asking::Init;
                }
                1..=6 if begun => {
                    let commit = world.random.u8(..3) > 0;
                    self.ending = Some(commit);
                    return Asking::End(commit);
                }
                _ => {}
            }
            let partition = world.random.usize(..PARTITIONS);
            let transaction = *self.transaction.get_or_insert_with(|| world.transaction());
            let numbered = (self.name, producer, self.next[partition]);
            self.batch = Some((world.batch(partition, Some(numbered), Some(transaction)), 0));
        }
        let (batch, _) = self.batch.expect("it was made just now");
        let partition = world.history.batches[batch].partition;
        if self.second_form || self.added[partition] { Asking::Produce } else { Asking::Add(partition) }
    }

    fn done(&mut self, world: &mut World, asking: Asking, answer: Answer) {
        match asking {
            Asking::Init => self.begin(world, answer.producer),
            Asking::Add(partition) => self.added[partition] = true,
            Asking::Produce => {
                let Some((batch, _)) = self.batch.take() else { return };
                world.record(Event::Acked { batch, base: answer.base as u64 });
                self.next[world.history.batches[batch].partition] += world.len(batch) as i32;
            }
            Asking::End(commit) => {
                if let Some(transaction) = self.transaction.take() {
                    world.record(Event::Ended { transaction, commit });
                }
                (self.ending, self.added) = (None, [false; PARTITIONS]);
                if self.second_form {
                    self.begin(world, answer.producer);
                }
                if self.broken {
                    self.producer = None;
                }
            }
        }
    }

    fn begin(&mut self, world: &mut World, producer: Producer) {
        let (name, id) = (world.producer(), std::mem::take(&mut self.id));
        *self = Transactional { producer: Some(producer), name, ..Transactional::new(id, self.second_form) };
    }

    fn failed(&mut self, world: &mut World, asking: Asking, error: i16) {
        let unknown = [
            -1,
            ResponseError::CoordinatorNotAvailable.code(),
            ResponseError::ConcurrentTransactions.code(),
            ResponseError::KafkaStorageError.code(),
            ResponseError::NotEnoughReplicas.code(),
            ResponseError::NotLeaderOrFollower.code(),
        ];
        let tries = self.batch.as_mut().map_or(0, |(_, tries)| {
            *tries += 1;
            *tries
        });
        if asking == Asking::Init || (unknown.contains(&error) && tries <= PATIENCE) {
            return;
        }
        self.batch = None;
        if matches!(asking, Asking::End(_)) || world.random.bool() {
            self.producer = None;
        } else {
            (self.ending, self.broken) = (Some(false), true);
        }
    }

    fn ask_add(&self, broker: &Broker, partition: usize) -> Asked {
        let (id, epoch) = self.producer.unwrap_or((-1, -1));
        let topic = AddPartitionsToTxnTopic::default()
            .with_name(topic_name(TOPIC))
            .with_partitions(vec![partition as i32]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(transactional(&self.id))
            .with_v3_and_below_producer_id(ProducerId(id))
            .with_v3_and_below_producer_epoch(epoch)
            .with_v3_and_below_topics(vec![topic]);
        broker.ask(&request, 3, |r| {
            let of = &r.results_by_topic_v3_and_below[0].results_by_partition[0];
            Answer { error: of.partition_error_code, base: -1, producer: (-1, -1) }
        })
    }

    fn ask_end(&self, world: &mut World, broker: &Broker, commit: bool) -> Asked {
        if let Some(transaction) = self.transaction {
            world.record(Event::Ending { transaction, commit });
        }
        let (id, epoch) = self.producer.unwrap_or((-1, -1));
        let request = EndTxnRequest::default()
            .with_transactional_id(transactional(&self.id))
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(epoch)
            .with_committed(commit);
        broker.ask(&request, if self.second_form { 5 } else { 3 }, |r| Answer {
            error: r.error_code,
            base: -1,
            producer: (r.producer_id.0, r.producer_epoch),
        })
    }
}
