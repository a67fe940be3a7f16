//! What the log promises of topics: their configuration, their times, and that a crash leaves them whole.

use std::{collections::BTreeMap, sync::Arc};

use dibs_log::{
    AppendError, ConfigError, DiskStorage, MemoryStorage, Origin, PartitionLog, Storage, Store, StoreConfig,
    TopicError, TopicId,
    batch::{Batch, BatchBuilder, BatchHeader, Batches},
};

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn store(storage: &MemoryStorage) -> Store {
    Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap()
}

fn topic(configs: &[(&str, &str)]) -> (Store, Arc<PartitionLog>) {
    let store = store(&MemoryStorage::new(0));
    let topic = store.create_topic_with("t", 1, map(configs)).unwrap();
    let log = topic.partition(0).unwrap().clone();
    (store, log)
}

fn timed(times: &[i64], codec: u8) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    times.iter().for_each(|&time| builder.push_at(time, Some(b"k"), Some(b"v")));
    builder.finish_with(codec).unwrap()
}

fn header_at(log: &PartitionLog, offset: u64) -> BatchHeader {
    let mut bytes = Vec::new();
    log.read(offset, 0, &mut bytes).unwrap();
    BatchHeader::parse(&bytes).unwrap()
}

#[test]
fn producers_times_are_kept_and_found_to_the_record() {
    let store = Store::open(
        Arc::new(MemoryStorage::new(0)),
        StoreConfig { segment_bytes: 400, ..StoreConfig::default() },
    );
    let store = store.unwrap();
    store.create_topic("t", 1).unwrap();
    let log = store.partition("t", 0).unwrap();
    let times = [[500, 100, 300], [200, 900, 50], [400, 400, 400], [800, 1000, 700], [1000, 950, 10]];
    for (i, batch) in times.iter().enumerate() {
        log.append_batch(&timed(batch, i as u8)).unwrap();
        log.commit(7_000).unwrap();
    }
    assert!(log.segments().len() > 1);
    let all: Vec<i64> = times.concat();
    let check = |log: &PartitionLog, start: usize| {
        for time in 0..1_050 {
            let first = all.iter().enumerate().skip(start).find(|(_, t)| **t >= time);
            let expected = first.map(|(offset, t)| (offset as u64, *t));
            assert_eq!(log.offset_for_timestamp(time).unwrap(), expected, "{time} from {start}");
        }
        let max = all[start..].iter().max().unwrap();
        let first = start + all[start..].iter().position(|t| t == max).unwrap();
        assert_eq!(log.max_timestamp().unwrap(), Some((first as u64, *max)));
    };
    check(&log, 0);
    let header = header_at(&log, 4);
    assert_eq!((header.max_timestamp, header.is_log_append_time(), header.compression()), (900, false, 1));
    for start in [2, 5, 11, 14] {
        log.delete_before(start).unwrap();
        check(&log, start as usize);
    }
    log.delete_before(15).unwrap();
    assert_eq!((log.max_timestamp().unwrap(), log.offset_for_timestamp(0).unwrap()), (None, None));
}

#[test]
fn own_records_have_the_commits_time_and_producers_too_if_the_topic_says_so() {
    let (store, log) = topic(&[]);
    log.append(None, Some(b"own")).unwrap();
    log.commit(77).unwrap();
    let header = header_at(&log, 0);
    assert_eq!((header.max_timestamp, header.is_log_append_time()), (77, false));
    store
        .alter_configs("t", |c| drop(c.insert("message.timestamp.type".into(), "LogAppendTime".into())))
        .unwrap();
    log.append_batch(&timed(&[5, 6], 1)).unwrap();
    log.commit(88).unwrap();
    let header = header_at(&log, 1);
    assert_eq!((header.max_timestamp, header.is_log_append_time()), (88, true));
    assert_eq!(log.offset_for_timestamp(80).unwrap(), Some((1, 88)));
    // Only the log says that its times are its own.
    let mut bytes = Vec::new();
    log.read(1, 0, &mut bytes).unwrap();
    assert_eq!(log.append_batch(&bytes), Err(AppendError::Timestamp { time: 88, records: vec![] }));
    store.create_topic("dibs.claims", 1).unwrap();
    let own = store.topic("dibs.claims").unwrap();
    assert_eq!(own.config().retention_ms, None);
    assert_eq!(own.configs()["message.timestamp.type"], "LogAppendTime");
}

#[test]
fn a_wrong_largest_time_is_put_right_and_times_too_far_off_are_refused() {
    let (_store, log) = topic(&[("message.timestamp.before.max.ms", "1000")]);
    let mut builder = BatchBuilder::new();
    builder.push_at(5_000, None, None);
    builder.push_at(6_000, None, None);
    let good = builder.clone().finish(0);
    // As a client that forgets to fill it in.
    let other = timed(&[1], 0);
    let mut lie = good.clone();
    lie[35..43].copy_from_slice(&other[35..43]);
    let crc = crc32c::crc32c(&lie[21..]);
    lie[17..21].copy_from_slice(&crc.to_be_bytes());
    log.append_batch(&lie).unwrap();
    log.commit(1).unwrap();
    assert_eq!(header_at(&log, 0).max_timestamp, 6_000);
    let at = |now| log.produce(&good, Some(now), Origin::Client).map(|a| a.base_offset);
    assert_eq!(at(6_000), Ok(2));
    assert_eq!(at(6_001), Err(AppendError::Timestamp { time: 5_000, records: vec![0] }));
    assert_eq!(at(6_000 - 3_600_000), Ok(4));
    assert_eq!(at(6_000 - 3_600_001), Err(AppendError::Timestamp { time: 6_000, records: vec![1] }));
}

#[test]
fn sizes_codecs_and_keys_are_as_the_topic_says() {
    let (store, log) = topic(&[("max.message.bytes", "200"), ("compression.type", "lz4")]);
    let mut builder = BatchBuilder::new();
    (0..50).for_each(|_| builder.push(Some(b"key"), Some(b"value value")));
    let big = builder.finish(1);
    assert!(matches!(log.append_batch(&big), Err(AppendError::TooLarge { max: 200, .. })));
    store.alter_configs("t", |c| drop(c.insert("max.message.bytes".into(), "100000".into()))).unwrap();
    log.append_batch(&big).unwrap();
    log.commit(1).unwrap();
    let header = header_at(&log, 0);
    assert_eq!((header.compression(), header.records_count), (3, 50));
    assert!(header.size() < big.len());
    let (mut bytes, mut buffer) = (Vec::new(), Vec::new());
    log.read(0, 0, &mut bytes).unwrap();
    let batch = Batch::parse(&bytes).unwrap();
    assert!(batch.records_in(&mut buffer).unwrap().all(|r| r.unwrap().value == Some(b"value value")));

    let (_store, log) = topic(&[("cleanup.policy", "compact")]);
    for codec in 0..5 {
        let mut builder = BatchBuilder::new();
        builder.push_at(1, Some(b"k"), None);
        builder.push_at(1, None, Some(b"v"));
        builder.push_at(1, Some(b"k"), Some(b"v"));
        builder.push_at(1, None, None);
        let refused = log.append_batch(&builder.finish_with(codec).unwrap());
        assert_eq!(refused, Err(AppendError::NoKey { records: vec![1, 3] }));
    }
}

#[test]
fn segments_end_by_time_too() {
    let compacted = [("cleanup.policy", "compact"), ("max.compaction.lag.ms", "1000")];
    for configs in [&[("segment.ms", "1000")][..], &compacted] {
        let (_store, log) = topic(configs);
        for time in [5_000, 5_500, 6_000, 6_001, 3_000, 7_001, 7_002] {
            let mut builder = BatchBuilder::new();
            builder.push_at(time, Some(b"key"), None);
            log.append_batch(&builder.finish(0)).unwrap();
            log.commit(1).unwrap();
        }
        let bases: Vec<_> = log.segments().iter().map(|s| s.base).collect();
        assert_eq!(bases, [0, 3, 6], "{configs:?}");
    }
}

#[test]
fn topics_have_ids_and_configurations_that_last() {
    let storage = MemoryStorage::new(1);
    let first = store(&storage);
    let made = first.create_topic_with("a", 2, map(&[("retention.ms", "5")])).unwrap();
    assert!(matches!(
        first.create_topic_with("a", 2, map(&[])),
        Err(TopicError::Exists { partitions: 2, .. })
    ));
    let wrong = first.create_topic_with("b", 1, map(&[("retention.ms", "x")]));
    assert!(matches!(wrong, Err(TopicError::Config(ConfigError::Value { name: "retention.ms", .. }))));
    let wrong = first.alter_configs("a", |c| drop(c.insert("no.such".into(), "1".into())));
    assert!(matches!(wrong, Err(TopicError::Config(ConfigError::Unknown(_)))));
    assert_eq!(first.topic("a").unwrap().configs(), &map(&[("retention.ms", "5")]));
    first.alter_configs("a", |c| drop(c.insert("cleanup.policy".into(), "compact".into()))).unwrap();
    first.add_partitions("a", 3).unwrap();
    made.partition(0).unwrap().append(Some(b"k"), None).unwrap();
    made.partition(0).unwrap().commit(1).unwrap();
    drop((first, made.partition(1).cloned()));
    drop(made);
    storage.crash();
    let again = store(&storage);
    let topic = again.topic("a").unwrap();
    assert_eq!(topic.configs(), &map(&[("cleanup.policy", "compact"), ("retention.ms", "5")]));
    assert_eq!((topic.partitions().len(), topic.config().compact), (3, true));
    assert_eq!(again.topic_by_id(topic.id()).unwrap().name(), "a");
    assert!(again.topic_by_id(TopicId::random().unwrap()).is_none());
    let file = storage.open("a-0/partition.metadata", false).unwrap();
    let mut text = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut text, 0).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), format!("version: 0\ntopic_id: {}", topic.id()));
    // A partition without records has no folder.
    assert!(storage.list("").unwrap().iter().all(|e| e.name != "a-1"));
    let id = topic.id();
    again.delete_topic("a").unwrap();
    assert!(again.topic_by_id(id).is_none() && again.topic("a").is_none());
    assert_ne!(again.create_topic_with("a", 1, map(&[])).unwrap().id(), id);
    assert_eq!(again.partition("a", 0).unwrap().log_end_offset(), 0);
}

/// A power cut at every step of making, changing and deleting a topic.
#[test]
fn a_crash_leaves_the_old_topic_or_the_new_one() {
    for at in 1..70 {
        for seed in 0..4 {
            let storage = MemoryStorage::new(at * 10 + seed);
            let first = store(&storage);
            let kept = first.create_topic_with("kept", 2, map(&[("retention.ms", "5")])).unwrap();
            let gone = first.create_topic_with("gone", 2, map(&[])).unwrap();
            for log in kept.partitions().iter().chain(gone.partitions()) {
                log.append(None, Some(b"v")).unwrap();
                log.commit(1).unwrap();
            }
            storage.cut_power_at(at);
            let made = first.create_topic_with("new", 3, map(&[("segment.ms", "7")])).map(|t| t.id());
            let altered = first.alter_configs("kept", |c| drop(c.insert("retention.ms".into(), "6".into())));
            let added = first.add_partitions("kept", 4);
            let deleted = first.delete_topic("gone");
            let made_again = first.create_topic("gone", 1);
            drop((first, kept, gone));
            let (altered, added) = (altered.map(drop), added);
            storage.crash();

            let again = store(&storage);
            let retention = again.topic("kept").unwrap().configs()["retention.ms"].clone();
            assert!(retention == "6" || (retention == "5" && altered.is_err()), "cut at {at}");
            let partitions = again.topic("kept").unwrap().partitions().len();
            assert!(partitions == 4 || (partitions == 2 && added.is_err()), "cut at {at}");
            (0..2).for_each(|i| assert_eq!(again.partition("kept", i).unwrap().high_watermark(), 1));
            match again.topic("new") {
                Some(topic) => {
                    assert_eq!((topic.partitions().len(), topic.configs()["segment.ms"].as_str()), (3, "7"));
                    assert!(made.is_err() || made.is_ok_and(|id| id == topic.id()));
                }
                None => assert!(made.is_err(), "cut at {at}"),
            }
            match again.topic("gone") {
                Some(topic) if topic.partitions().len() == 1 => {
                    assert_eq!(topic.partitions()[0].high_watermark(), 0, "cut at {at}: the dead live again");
                }
                Some(topic) => {
                    assert!(deleted.is_err());
                    topic.partitions().iter().for_each(|log| assert_eq!(log.high_watermark(), 1));
                }
                None => assert!(made_again.is_err()),
            }
            let dirs = again.topics().iter().map(|(_, partitions)| *partitions as usize).sum::<usize>();
            assert!(storage.list("").unwrap().iter().filter(|e| e.is_dir).count() <= dirs);
        }
    }
}

#[test]
fn folders_from_elsewhere_become_topics() {
    // As Apache Kafka leaves a compacted partition: gaps in a segment and between segments, no checkpoints.
    let storage = MemoryStorage::new(0);
    storage.create_dir("orders-0").unwrap();
    let put = |base: u64, offset: u64, values: &[&[u8]]| {
        let file = storage.open(&format!("orders-0/{base:020}.log"), true).unwrap();
        let mut builder = BatchBuilder::new();
        values.iter().for_each(|v| builder.push(Some(b"k"), Some(v)));
        let mut bytes = builder.finish(1_000 + offset as i64);
        bytes[..8].copy_from_slice(&offset.to_be_bytes());
        let at = file.len().unwrap();
        file.write_at(&bytes, at).unwrap();
    };
    put(0, 3, &[b"a", b"b"]);
    put(0, 9, &[b"c"]);
    put(20, 25, &[b"d"]);
    let id = TopicId::random().unwrap();
    let file = storage.open("orders-0/partition.metadata", true).unwrap();
    file.write_at(format!("version: 0\ntopic_id: {id}").as_bytes(), 0).unwrap();
    for _ in 0..3 {
        let store = store(&storage);
        let topic = store.topic("orders").unwrap();
        assert_eq!(topic.id(), id);
        let log = topic.partition(0).unwrap();
        assert_eq!(log.high_watermark(), 26);
        for (from, first) in [(0, 3), (3, 3), (4, 3), (5, 9), (9, 9), (10, 25), (19, 25), (20, 25), (25, 25)]
        {
            assert_eq!(header_at(log, from).base_offset, first, "from {from}");
        }
        assert_eq!(log.offset_for_timestamp(1_010).unwrap(), Some((25, 1_025)));
        assert_eq!(log.append(Some(b"k"), None), Ok(26));
        store.close().unwrap();
        storage.crash();
    }
}

#[test]
fn a_real_disk_reads_without_filling_and_lends_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(DiskStorage::new(folder.path()).unwrap());
    let store = Store::open(disk, StoreConfig { max_open_segments: 1, ..StoreConfig::default() }).unwrap();
    store.create_topic("t", 3).unwrap();
    for partition in 0..3 {
        let log = store.partition("t", partition).unwrap();
        for i in 0..100_u32 {
            log.append_batch(&timed(&[i64::from(i)], 0)).unwrap();
            log.commit(1).unwrap();
        }
    }
    for partition in 0..3 {
        let log = store.partition("t", partition).unwrap();
        let mut bytes = b"kept".to_vec();
        bytes.reserve(1 << 16);
        let n = log.read(10, 1000, &mut bytes).unwrap();
        assert_eq!((bytes.len(), &bytes[..4]), (n + 4, &b"kept"[..]));
        assert_eq!(Batches::new(&bytes[4..]).next().unwrap().unwrap().header.base_offset, 10);
        let range = log.read_range(10, 60, 1000).unwrap().unwrap();
        assert!(range.file.as_fd().is_some());
        assert_eq!(range.length as usize, n);
    }
}
