//! Topics, settings, partitions, groups and records by the admin client.

use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewPartitions, NewTopic, OwnedResourceSpecifier,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};

use crate::kit::{
    PATIENCE, admin, classic, fresh, list, read, send, take, texts, topic, topic_with, until, values,
};

crate::checks![
    topics_are_made_and_deleted,
    topics_are_placed_by_hand,
    topics_are_refused_for_reasons,
    nothing_is_made_by_way_of_trial,
    deleting_what_is_not_there,
    settings_are_described_and_altered,
    settings_of_the_broker,
    settings_are_refused,
    partitions_are_added,
    records_are_deleted,
    groups_are_deleted,
    the_cluster_is_described,
];

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

/// Metadata of one topic, or of all. Asking for one by its name might make it.
fn metadata(topic: Option<&str>) -> Metadata {
    admin().inner().fetch_metadata(topic, PATIENCE).unwrap()
}

/// Metadata of a topic as soon as it has so many partitions: a broker hears of them after they were made.
fn known(topic: &str, partitions: usize) -> Metadata {
    until("the topic is known", || metadata(Some(topic)).topics()[0].partitions().len() == partitions);
    metadata(Some(topic))
}

fn exists(topic: &str) -> bool {
    metadata(None).topics().iter().any(|t| t.name() == topic)
}

async fn described(resource: ResourceSpecifier<'_>) -> ConfigResource {
    admin().describe_configs([&resource], &options()).await.unwrap().remove(0).unwrap()
}

/// What is described as soon as a setting has a value: a broker hears of it after it was altered.
async fn described_with(resource: ResourceSpecifier<'_>, setting: &str, value: &str) -> ConfigResource {
    let since = Instant::now();
    loop {
        let config = described(resource).await;
        if config.get(setting).unwrap().value.as_deref() == Some(value) {
            return config;
        }
        assert!(since.elapsed() < PATIENCE, "{setting} is never {value}");
    }
}

async fn topics_are_made_and_deleted() {
    let names = [fresh("rd"), fresh("rd")];
    let topics = [
        NewTopic::new(&names[0], 1, TopicReplication::Fixed(1)).set("max.message.bytes", "1234"),
        NewTopic::new(&names[1], 3, TopicReplication::Fixed(1)),
    ];
    let wanted = names.clone().map(Ok);
    assert_eq!(admin().create_topics(&topics, &options()).await.unwrap(), wanted);
    for (name, count) in names.iter().zip([1, 3]) {
        let metadata = known(name, count);
        let partitions = metadata.topics()[0].partitions();
        let broker = metadata.brokers()[0].id();
        assert!(
            partitions
                .iter()
                .all(|p| p.leader() == broker && p.replicas() == [broker] && p.isr() == [broker])
        );
    }
    assert_eq!(admin().delete_topics(&[&names[0], &names[1]], &options()).await.unwrap(), wanted);
    until("they are gone", || !names.iter().any(|name| exists(name)));
}

async fn topics_are_placed_by_hand() {
    let broker = metadata(None).brokers()[0].id();
    let name = fresh("rd");
    let here: &[i32] = &[broker];
    let placed = [here; 2];
    let topic = NewTopic::new(&name, 2, TopicReplication::Variable(&placed));
    assert_eq!(admin().create_topics(&[topic], &options()).await.unwrap(), [Ok(name.clone())]);
    known(&name, 2);
    // On a broker that is not there.
    let name = fresh("rd");
    let placed: [&[i32]; 1] = [&[broker + 77]];
    let topic = NewTopic::new(&name, 1, TopicReplication::Variable(&placed));
    let made = admin().create_topics(&[topic], &options()).await.unwrap();
    assert_eq!(made, [Err((name, Code::InvalidReplicaAssignment))]);
}

async fn topics_are_refused_for_reasons() {
    let old = topic(1).await;
    let new = fresh("rd");
    fn plain(name: &str) -> NewTopic<'_> {
        NewTopic::new(name, 1, TopicReplication::Fixed(1))
    }
    for (topic, code) in [
        (plain(&old), Code::TopicAlreadyExists),
        (NewTopic::new(&new, 1, TopicReplication::Fixed(3)), Code::InvalidReplicationFactor),
        (plain("a/b"), Code::InvalidTopic),
        (plain(&new).set("no.such", "1"), Code::InvalidConfig),
        (plain(&new).set("retention.ms", "soon"), Code::InvalidConfig),
    ] {
        let name = topic.name.to_owned();
        assert_eq!(admin().create_topics(&[topic], &options()).await.unwrap(), [Err((name, code))]);
    }
    // What is wrong with one is no harm to the other.
    let topics = [plain(&old), plain(&new)];
    let made = admin().create_topics(&topics, &options()).await.unwrap();
    assert_eq!(made, [Err((old, Code::TopicAlreadyExists)), Ok(new)]);
}

async fn nothing_is_made_by_way_of_trial() {
    let name = fresh("rd");
    let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
    let made = admin().create_topics(&[topic], &options().validate_only(true)).await.unwrap();
    assert_eq!(made, [Ok(name.clone())]);
    assert!(!exists(&name));
    let name = self::topic(1).await;
    let more = admin()
        .create_partitions(&[NewPartitions::new(&name, 4)], &options().validate_only(true))
        .await
        .unwrap();
    assert_eq!(more, [Ok(name.clone())]);
    known(&name, 1);
}

async fn deleting_what_is_not_there() {
    let (here, nowhere) = (topic(1).await, fresh("nowhere"));
    let deleted = admin().delete_topics(&[&nowhere, &here], &options()).await.unwrap();
    assert_eq!(deleted, [Err((nowhere.clone(), Code::UnknownTopicOrPartition)), Ok(here)]);
    let more = admin().create_partitions(&[NewPartitions::new(&nowhere, 4)], &options()).await.unwrap();
    assert_eq!(more, [Err((nowhere.clone(), Code::UnknownTopicOrPartition))]);
    let gone = admin().delete_records(&list(&nowhere, 0, Offset::End), &options()).await;
    let gone = gone.map(|list| list.elements()[0].error());
    assert!(matches!(gone, Err(_) | Ok(Err(_))), "{gone:?}");
}

async fn settings_are_described_and_altered() {
    let name = topic_with(1, &[("max.message.bytes", "1234")]).await;
    let resource = ResourceSpecifier::Topic(&name);
    let before = described(resource).await;
    assert_eq!(before.specifier, OwnedResourceSpecifier::Topic(name.clone()));
    let entry = before.get("max.message.bytes").unwrap();
    assert_eq!((entry.value.as_deref(), &entry.source), (Some("1234"), &ConfigSource::DynamicTopic));
    assert!(!entry.is_default && !entry.is_read_only && !entry.is_sensitive);
    let entry = before.get("cleanup.policy").unwrap();
    assert_eq!((entry.value.as_deref(), &entry.source), (Some("delete"), &ConfigSource::Default));
    assert!(entry.is_default);

    // What is altered so is replaced as a whole.
    let change = AlterConfig::new(resource).set("retention.ms", "5000").set("cleanup.policy", "compact");
    let altered = admin().alter_configs([&change], &options()).await.unwrap();
    assert_eq!(altered, [Ok(OwnedResourceSpecifier::Topic(name.clone()))]);
    let after = described_with(resource, "retention.ms", "5000").await;
    let value = |name: &str| after.get(name).unwrap().value.as_deref();
    assert_eq!((value("retention.ms"), value("cleanup.policy")), (Some("5000"), Some("compact")));
    assert_eq!(value("max.message.bytes"), Some("1048588"));
    assert!(after.get("max.message.bytes").unwrap().is_default);

    // As a trial it changes nothing.
    let change = AlterConfig::new(resource).set("retention.ms", "1");
    admin().alter_configs([&change], &options().validate_only(true)).await.unwrap()[0].as_ref().unwrap();
    assert_eq!(described(resource).await.get("retention.ms").unwrap().value.as_deref(), Some("5000"));
}

async fn settings_of_the_broker() {
    let broker = metadata(None).brokers()[0].id();
    let config = described(ResourceSpecifier::Broker(broker)).await;
    assert_eq!(config.specifier, OwnedResourceSpecifier::Broker(broker));
    let partitions = config.get("num.partitions").unwrap();
    assert_eq!((partitions.value.as_deref(), &partitions.source), (Some("2"), &ConfigSource::StaticBroker));
    assert!(config.get("log.retention.ms").is_some() && config.get("broker.id").is_some());
}

async fn settings_are_refused() {
    let name = topic(1).await;
    for (setting, value) in [("no.such", "1"), ("retention.ms", "soon"), ("cleanup.policy", "burn")] {
        // The crate keeps what the broker says of it to itself.
        let change = AlterConfig::new(ResourceSpecifier::Topic(&name)).set(setting, value);
        let _ = admin().alter_configs([&change], &options()).await.unwrap();
        let config = self::described(ResourceSpecifier::Topic(&name)).await;
        assert!(config.get(setting).is_none_or(|entry| entry.is_default), "{setting}={value}");
    }
}

async fn partitions_are_added() {
    let name = topic(1).await;
    send(&name, 0, &values(3)).await;
    let add = |count| [NewPartitions::new(&name, count)];
    assert_eq!(admin().create_partitions(&add(3), &options()).await.unwrap(), [Ok(name.clone())]);
    known(&name, 3);
    send(&name, 2, &values(1)).await;
    assert_eq!((read(&name, 0, &[]).len(), read(&name, 2, &[]).len()), (3, 1));
    for count in [2, 3] {
        let refused = admin().create_partitions(&add(count), &options()).await.unwrap();
        assert_eq!(refused, [Err((name.clone(), Code::InvalidPartitions))]);
    }
    let broker = metadata(None).brokers()[0].id();
    let here: [&[i32]; 1] = [&[broker]];
    let placed = [NewPartitions::new(&name, 4).assign(&here)];
    assert_eq!(admin().create_partitions(&placed, &options()).await.unwrap(), [Ok(name.clone())]);
}

async fn records_are_deleted() {
    let name = topic(3).await;
    let all = values(10);
    for partition in 0..3 {
        send(&name, partition, &all).await;
    }
    let mut wanted = TopicPartitionList::new();
    for (partition, offset) in [(0, Offset::Offset(4)), (1, Offset::End), (2, Offset::Offset(11))] {
        wanted.add_partition_offset(&name, partition, offset).unwrap();
    }
    let deleted = admin().delete_records(&wanted, &options()).await.unwrap();
    let low = |partition| deleted.find_partition(&name, partition).unwrap();
    assert_eq!((low(0).offset(), low(1).offset()), (Offset::Offset(4), Offset::Offset(10)));
    assert!(low(2).error().is_err());
    assert_eq!(texts(&read(&name, 0, &[])), all[4..]);
    assert!(read(&name, 1, &[]).is_empty());
    assert_eq!(admin().inner().fetch_watermarks(&name, 0, PATIENCE).unwrap(), (4, 10));
    assert_eq!(admin().inner().fetch_watermarks(&name, 1, PATIENCE).unwrap(), (10, 10));
    assert_eq!(read(&name, 2, &[]).len(), 10);
}

async fn groups_are_deleted() {
    let (name, idle, busy, nobody) = (topic(1).await, fresh("idle"), fresh("busy"), fresh("nobody"));
    send(&name, 0, &values(1)).await;
    let member = |group: &str| {
        let consumer: BaseConsumer = classic(group, &[]).create().unwrap();
        consumer.subscribe(&[&name]).unwrap();
        take(&consumer, 1);
        consumer.commit_consumer_state(CommitMode::Sync).unwrap();
        consumer
    };
    drop(member(&idle));
    let at_work = member(&busy);
    let listed = |group: &str| {
        let groups = admin().inner().fetch_group_list(None, PATIENCE).unwrap();
        groups.groups().iter().any(|g| g.name() == group)
    };
    assert!(listed(&idle) && listed(&busy));
    let mut deleted = admin().delete_groups(&[&idle, &busy, &nobody], &options()).await.unwrap();
    let mut wanted = vec![
        Ok(idle.clone()),
        Err((busy.clone(), Code::NonEmptyGroup)),
        Err((nobody, Code::GroupIdNotFound)),
    ];
    // It answers in any order.
    let name = |r: &Result<String, (String, Code)>| r.clone().unwrap_or_else(|(name, _)| name);
    deleted.sort_by_key(name);
    wanted.sort_by_key(name);
    assert_eq!(deleted, wanted);
    assert!(!listed(&idle) && listed(&busy));
    drop(at_work);
    let mut last = None;
    until("a group that was left is deleted", || {
        last = admin().inner().fetch_group_list(Some(&busy), Duration::from_secs(5)).ok();
        last.as_ref().is_some_and(|groups| groups.groups()[0].state() == "Empty")
    });
    assert_eq!(admin().delete_groups(&[&busy], &options()).await.unwrap(), [Ok(busy)]);
}

async fn the_cluster_is_described() {
    let name = topic(2).await;
    known(&name, 2);
    let client = admin();
    let cluster = client.inner().fetch_cluster_id(PATIENCE).unwrap();
    assert!(!cluster.is_empty());
    let all = metadata(None);
    assert_eq!(all.brokers().len(), 1);
    assert!(
        all.topics().iter().any(|t| t.name() == name && t.error().is_none() && t.partitions().len() == 2)
    );
}
