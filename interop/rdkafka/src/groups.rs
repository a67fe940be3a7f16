//! Groups of both protocols: who has which partitions, and how far it is with them.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::kit::{
    PATIENCE, admin, assigned, classic, fresh, list, modern, send, take, texts, topic, until, values,
};

crate::checks![
    range,
    round_robin,
    cooperative_sticky,
    the_brokers_uniform,
    the_brokers_range,
    classic_static_members,
    modern_static_members,
    classic_patterns,
    modern_patterns,
    from_one_protocol_to_the_other,
    new_partitions_are_assigned,
    another_subscription,
    going_on_where_it_was,
    commits_with_metadata,
    commits_in_the_background,
    commits_of_stored_offsets,
    commits_by_the_clock,
    commits_of_a_stranger,
    commits_of_one_message,
    a_slow_member_is_left_behind,
    groups_are_listed_and_described,
];

/// Counts what it is told about.
#[derive(Default)]
struct Told {
    assigned: Mutex<Vec<usize>>,
    revoked: Mutex<Vec<usize>>,
}

impl ClientContext for Told {}

impl ConsumerContext for Told {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => self.assigned.lock().unwrap().push(list.count()),
            Rebalance::Revoke(list) => self.revoked.lock().unwrap().push(list.count()),
            Rebalance::Error(error) => panic!("{error}"),
        }
    }
}

type Member = BaseConsumer<Told>;

fn member(config: &ClientConfig, topic: &str) -> Member {
    let consumer: Member = config.create_with_context(Told::default()).unwrap();
    consumer.subscribe(&[topic]).unwrap();
    consumer
}

fn partitions(member: &Member) -> HashSet<(String, i32)> {
    member.assignment().unwrap().to_topic_map().into_keys().collect()
}

/// Polls. A topic that was just made may not be known to all parts of a broker yet.
fn poll(member: &Member) -> Option<OwnedMessage> {
    match member.poll(Duration::from_millis(20))? {
        Ok(message) => Some(message.detach()),
        Err(KafkaError::MessageConsumption(Code::UnknownTopicOrPartition)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Polls until the members have so many partitions each, and no two have the same.
fn until_assigned(wanted: &[usize], members: &[&Member]) {
    until(&format!("{wanted:?} are assigned"), || {
        for member in members {
            poll(member);
        }
        members.iter().map(|member| partitions(member).len()).eq(wanted.iter().copied())
    });
    let all: HashSet<_> = members.iter().flat_map(|member| partitions(member)).collect();
    assert_eq!(all.len(), wanted.iter().sum::<usize>());
}

/// One, two, three and two members share six partitions; nothing is lost on the way.
async fn shared(config: ClientConfig) {
    let name = topic(6).await;
    let a = member(&config, &name);
    until_assigned(&[6], &[&a]);
    let b = member(&config, &name);
    until_assigned(&[3, 3], &[&a, &b]);
    let c = member(&config, &name);
    until_assigned(&[2, 2, 2], &[&a, &b, &c]);
    drop(b);
    until_assigned(&[3, 3], &[&a, &c]);
    assert!(a.context().assigned.lock().unwrap().iter().sum::<usize>() >= 6);
    assert!(!a.context().revoked.lock().unwrap().is_empty());
    for partition in 0..6 {
        send(&name, partition, &values(5)).await;
    }
    let mut count = 0;
    until("all is read", || {
        for member in [&a, &c] {
            count += usize::from(poll(member).is_some());
        }
        count == 30
    });
}

async fn range() {
    shared(classic(&fresh("g"), &[("partition.assignment.strategy", "range")])).await;
}

async fn round_robin() {
    shared(classic(&fresh("g"), &[("partition.assignment.strategy", "roundrobin")])).await;
}

async fn cooperative_sticky() {
    shared(classic(&fresh("g"), &[("partition.assignment.strategy", "cooperative-sticky")])).await;
}

async fn the_brokers_uniform() {
    shared(modern(&fresh("g"), &[("group.remote.assignor", "uniform")])).await;
}

async fn the_brokers_range() {
    shared(modern(&fresh("g"), &[("group.remote.assignor", "range")])).await;
}

/// A static member comes back, and has what it had; nobody else may have its name.
async fn static_members(config: impl Fn(&str) -> ClientConfig) {
    let name = topic(4).await;
    let a = member(&config("a"), &name);
    let b = member(&config("b"), &name);
    until_assigned(&[2, 2], &[&a, &b]);
    let (mine, moves) = (partitions(&b), a.context().assigned.lock().unwrap().len());
    drop(b);
    let b = member(&config("b"), &name);
    until_assigned(&[2, 2], &[&a, &b]);
    assert_eq!(partitions(&b), mine);
    assert_eq!(a.context().assigned.lock().unwrap().len(), moves);
}

async fn classic_static_members() {
    let group = fresh("g");
    static_members(|instance| classic(&group, &[("group.instance.id", instance)])).await;
    // The one who came first is fenced.
    let name = topic(1).await;
    let config = classic(&fresh("g"), &[("group.instance.id", "a")]);
    let old = member(&config, &name);
    until_assigned(&[1], &[&old]);
    let new = member(&config, &name);
    until("the old one is fenced", || {
        let _ = (new.poll(Duration::from_millis(20)), old.poll(Duration::from_millis(20)));
        old.client().fatal_error().is_some_and(|(code, _)| code == Code::FencedInstanceId)
    });
    until_assigned(&[1], &[&new]);
}

async fn modern_static_members() {
    let group = fresh("g");
    static_members(|instance| modern(&group, &[("group.instance.id", instance)])).await;
    // The one who comes later is refused.
    let name = topic(1).await;
    let config = modern(&fresh("g"), &[("group.instance.id", "a")]);
    let old = member(&config, &name);
    until_assigned(&[1], &[&old]);
    let new = member(&config, &name);
    until("the new one is refused", || {
        let _ = (new.poll(Duration::from_millis(20)), old.poll(Duration::from_millis(20)));
        new.client().fatal_error().is_some_and(|(code, _)| code == Code::UnreleasedInstanceId)
    });
    until_assigned(&[1], &[&old]);
}

async fn patterns(config: ClientConfig) {
    let prefix = fresh("pattern");
    let make = async |suffix: &str, partitions: i32| {
        let name = format!("{prefix}-{suffix}");
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        admin().create_topics(&[topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    };
    make("a", 1).await;
    let consumer = member(&config, &format!("^{prefix}-.*"));
    until_assigned(&[1], &[&consumer]);
    make("b", 2).await;
    until_assigned(&[3], &[&consumer]);
}

async fn classic_patterns() {
    patterns(classic(&fresh("g"), &[("topic.metadata.refresh.interval.ms", "300")])).await;
}

async fn modern_patterns() {
    patterns(modern(&fresh("g"), &[("topic.metadata.refresh.interval.ms", "300")])).await;
}

async fn from_one_protocol_to_the_other() {
    let (name, group) = (topic(4).await, fresh("g"));
    let old = member(&classic(&group, &[("partition.assignment.strategy", "cooperative-sticky")]), &name);
    until_assigned(&[4], &[&old]);
    let new = member(&modern(&group, &[]), &name);
    until_assigned(&[2, 2], &[&old, &new]);
    drop(old);
    until_assigned(&[4], &[&new]);
    let old = member(&classic(&group, &[("partition.assignment.strategy", "cooperative-sticky")]), &name);
    until_assigned(&[2, 2], &[&old, &new]);
    drop(new);
    until_assigned(&[4], &[&old]);
}

async fn new_partitions_are_assigned() {
    let refresh = [("topic.metadata.refresh.interval.ms", "300")];
    for config in [classic(&fresh("g"), &refresh), modern(&fresh("g"), &refresh)] {
        let name = topic(1).await;
        let consumer = member(&config, &name);
        until_assigned(&[1], &[&consumer]);
        let more = [NewPartitions::new(&name, 3)];
        admin().create_partitions(&more, &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
        until_assigned(&[3], &[&consumer]);
    }
}

async fn another_subscription() {
    for config in [classic(&fresh("g"), &[]), modern(&fresh("g"), &[])] {
        let (one, two) = (topic(1).await, topic(2).await);
        let consumer = member(&config, &one);
        until_assigned(&[1], &[&consumer]);
        consumer.subscribe(&[&one, &two]).unwrap();
        until_assigned(&[3], &[&consumer]);
        consumer.subscribe(&[&two]).unwrap();
        until_assigned(&[2], &[&consumer]);
        assert!(partitions(&consumer).iter().all(|(topic, _)| topic == &two));
        consumer.unsubscribe();
        until_assigned(&[0], &[&consumer]);
        assert_eq!(consumer.subscription().unwrap().count(), 0);
    }
}

async fn going_on_where_it_was() {
    for config in [classic(&fresh("g"), &[]), modern(&fresh("g"), &[])] {
        let name = topic(1).await;
        let all = values(25);
        send(&name, 0, &all[..10]).await;
        let first = member(&config, &name);
        assert_eq!(texts(&take(&first, 10)), all[..10]);
        first.commit_consumer_state(CommitMode::Sync).unwrap();
        drop(first);
        send(&name, 0, &all[10..20]).await;
        let second = member(&config, &name);
        assert_eq!(texts(&take(&second, 10)), all[10..20]);
        // What is not committed comes again.
        drop(second);
        let third: StreamConsumer = config.create().unwrap();
        third.subscribe(&[&name]).unwrap();
        send(&name, 0, &all[20..]).await;
        for value in &all[10..] {
            assert_eq!(third.recv().await.unwrap().payload(), Some(value.as_bytes()));
        }
    }
}

async fn commits_with_metadata() {
    for config in [classic(&fresh("g"), &[]), modern(&fresh("g"), &[])] {
        let name = topic(2).await;
        let consumer = member(&config, &name);
        until_assigned(&[2], &[&consumer]);
        let mut wanted = TopicPartitionList::new();
        for (partition, offset) in [(0, 42), (1, 43)] {
            let mut element = wanted.add_partition(&name, partition);
            element.set_offset(Offset::Offset(offset)).unwrap();
            element.set_metadata(format!("up to {offset}"));
        }
        consumer.commit(&wanted, CommitMode::Sync).unwrap();
        let found = consumer.committed(PATIENCE).unwrap();
        for (partition, offset) in [(0, 42), (1, 43)] {
            let element = found.find_partition(&name, partition).unwrap();
            assert_eq!(
                (element.offset(), element.metadata()),
                (Offset::Offset(offset), &*format!("up to {offset}"))
            );
        }
        // More of it than offset.metadata.max.bytes.
        let mut long = TopicPartitionList::new();
        let mut element = long.add_partition(&name, 0);
        element.set_offset(Offset::Offset(44)).unwrap();
        element.set_metadata("x".repeat(4097));
        let refused = consumer.commit(&long, CommitMode::Sync).unwrap_err();
        assert_eq!(refused, KafkaError::ConsumerCommit(Code::OffsetMetadataTooLarge));
        assert_eq!(
            consumer.committed(PATIENCE).unwrap().find_partition(&name, 0).unwrap().offset(),
            Offset::Offset(42)
        );
    }
}

async fn commits_in_the_background() {
    let name = topic(1).await;
    send(&name, 0, &values(10)).await;
    let consumer = member(&classic(&fresh("g"), &[]), &name);
    take(&consumer, 10);
    consumer.commit_consumer_state(CommitMode::Async).unwrap();
    until("it is committed", || {
        consumer.poll(Duration::from_millis(20));
        consumer.committed(PATIENCE).unwrap().elements()[0].offset() == Offset::Offset(10)
    });
}

async fn commits_of_stored_offsets() {
    let (name, settings) = (topic(1).await, [("enable.auto.offset.store", "false")]);
    send(&name, 0, &values(10)).await;
    let consumer = member(&classic(&fresh("g"), &settings), &name);
    take(&consumer, 10);
    // Nothing is stored yet, and so there is nothing to commit.
    let nothing = consumer.commit_consumer_state(CommitMode::Sync).unwrap_err();
    assert_eq!(nothing, KafkaError::ConsumerCommit(Code::NoOffset));
    consumer.store_offset(&name, 0, 3).unwrap();
    consumer.commit_consumer_state(CommitMode::Sync).unwrap();
    // The offset is that of the last message done.
    assert_eq!(consumer.committed(PATIENCE).unwrap().elements()[0].offset(), Offset::Offset(4));
    consumer.store_offsets(&list(&name, 0, Offset::Offset(7))).unwrap();
    consumer.commit_consumer_state(CommitMode::Sync).unwrap();
    assert_eq!(consumer.committed(PATIENCE).unwrap().elements()[0].offset(), Offset::Offset(7));
}

async fn commits_by_the_clock() {
    let settings = [("enable.auto.commit", "true"), ("auto.commit.interval.ms", "200")];
    for config in [classic(&fresh("g"), &settings), modern(&fresh("g"), &settings)] {
        let name = topic(1).await;
        send(&name, 0, &values(10)).await;
        let consumer = member(&config, &name);
        take(&consumer, 10);
        until("it is committed", || {
            consumer.poll(Duration::from_millis(20));
            consumer.committed(PATIENCE).unwrap().elements()[0].offset() == Offset::Offset(10)
        });
        // And once more at the end.
        send(&name, 0, &values(1)).await;
        take(&consumer, 1);
        drop(consumer);
        let next = member(&config, &name);
        until_assigned(&[1], &[&next]);
        assert_eq!(next.committed(PATIENCE).unwrap().elements()[0].offset(), Offset::Offset(11));
    }
}

/// Who is no member may commit for a group as long as it has none.
async fn commits_of_a_stranger() {
    let (name, group) = (topic(1).await, fresh("g"));
    send(&name, 0, &values(5)).await;
    let stranger = assigned(&name, 0, Offset::Beginning, &[("group.id", &group)]);
    take(&stranger, 5);
    stranger.commit_consumer_state(CommitMode::Sync).unwrap();
    let next = || stranger.committed(PATIENCE).unwrap().elements()[0].offset();
    assert_eq!(next(), Offset::Offset(5));
    let at_work = member(&classic(&group, &[]), &name);
    until_assigned(&[1], &[&at_work]);
    let refused = stranger.commit(&list(&name, 0, Offset::Offset(2)), CommitMode::Sync).unwrap_err();
    assert_eq!(refused, KafkaError::ConsumerCommit(Code::UnknownMemberId));
    assert_eq!(next(), Offset::Offset(5));
    // A partition that is not there is refused, or kept: it does no harm to another.
    let mut both = list(&name, 0, Offset::Offset(3));
    both.add_partition_offset(&fresh("nowhere"), 0, Offset::Offset(1)).unwrap();
    let _ = at_work.commit(&both, CommitMode::Sync);
    assert_eq!(next(), Offset::Offset(3));
}

async fn commits_of_one_message() {
    let name = topic(1).await;
    send(&name, 0, &values(5)).await;
    let consumer: StreamConsumer = classic(&fresh("g"), &[]).create().unwrap();
    consumer.subscribe(&[&name]).unwrap();
    for offset in 0..5 {
        let message = consumer.recv().await.unwrap();
        consumer.commit_message(&message, CommitMode::Sync).unwrap();
        let committed = consumer.committed(PATIENCE).unwrap();
        assert_eq!(committed.elements()[0].offset(), Offset::Offset(offset + 1));
    }
}

/// Who does not poll is no longer a member, and its commits are refused; later it may come back.
async fn a_slow_member_is_left_behind() {
    let (name, group) = (topic(2).await, fresh("g"));
    send(&name, 0, &values(1)).await;
    send(&name, 1, &values(1)).await;
    let settings = [("max.poll.interval.ms", "6000"), ("session.timeout.ms", "6000")];
    let slow = member(&classic(&group, &settings), &name);
    take(&slow, 2);
    let other = member(&classic(&group, &[]), &name);
    until_assigned(&[2], &[&other]);
    let refused = slow.commit_consumer_state(CommitMode::Sync).unwrap_err();
    let KafkaError::ConsumerCommit(code) = refused else { panic!("{refused}") };
    assert!(
        matches!(code, Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress),
        "{code}"
    );
    until("it is told, and comes back", || {
        let told = slow.poll(Duration::from_millis(20)).is_some_and(|m| m.is_err());
        poll(&other);
        told || (partitions(&slow).len() == 1 && partitions(&other).len() == 1)
    });
    until_assigned(&[1, 1], &[&slow, &other]);
}

async fn groups_are_listed_and_described() {
    let (name, group) = (topic(2).await, fresh("g"));
    let config =
        classic(&group, &[("client.id", "somebody"), ("partition.assignment.strategy", "roundrobin")]);
    let (a, b) = (member(&config, &name), member(&config, &name));
    until_assigned(&[1, 1], &[&a, &b]);
    let client = admin();
    let all = client.inner().fetch_group_list(None, PATIENCE).unwrap();
    assert!(all.groups().iter().any(|g| g.name() == group));
    let described = client.inner().fetch_group_list(Some(&group), PATIENCE).unwrap();
    let [found] = described.groups() else { panic!("not one group") };
    assert_eq!(
        (found.name(), found.state(), found.protocol(), found.protocol_type()),
        (&*group, "Stable", "roundrobin", "consumer")
    );
    assert_eq!(found.members().len(), 2);
    for member in found.members() {
        assert_eq!(member.client_id(), "somebody");
        assert!(member.id().starts_with("somebody-") && member.client_host().contains("127.0.0.1"));
        // Version, topics, user data.
        let has =
            |bytes: Option<&[u8]>| bytes.is_some_and(|b| b.windows(name.len()).any(|w| w == name.as_bytes()));
        assert!(has(member.metadata()) && has(member.assignment()));
    }
    drop((a, b));
    until("it is empty", || {
        let described = client.inner().fetch_group_list(Some(&group), PATIENCE).unwrap();
        described.groups()[0].state() == "Empty" && described.groups()[0].members().is_empty()
    });
    let nobody = client.inner().fetch_group_list(Some(&fresh("nobody")), PATIENCE);
    assert!(nobody.is_err() || nobody.unwrap().groups().iter().all(|g| g.state() == "Dead"));
}
