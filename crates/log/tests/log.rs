//! What the log promises, one promise a test.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Barrier},
    task::{Context, Poll, Wake, Waker},
    thread,
};

use dibs_log::{
    AppendError, Call, CommitError, Damage, DiskStorage, GROUP_BYTES, MemoryStorage, OpenError, PartitionLog,
    ReadError, Storage, Store, StoreConfig, TopicError,
    batch::{Batch, BatchBuilder, BatchError, BatchHeader, Batches, Header},
};

const LOG: &str = "t-0/00000000000000000000.log";

fn open(storage: &MemoryStorage, config: StoreConfig) -> (Store, Arc<PartitionLog>) {
    let store = Store::open(Arc::new(storage.clone()), config).unwrap();
    if store.topic("t").is_none() {
        let configs = [("message.timestamp.type".to_owned(), "LogAppendTime".to_owned())];
        store.create_topic_with("t", 1, configs.into()).unwrap();
    }
    let log = store.partition("t", 0).unwrap();
    (store, log)
}

/// A log of `groups` groups with one record each, at the times 100, 200, …; not closed.
fn filled(groups: u64, config: StoreConfig) -> MemoryStorage {
    let storage = MemoryStorage::new(1);
    let (_store, log) = open(&storage, config);
    for i in 0..groups {
        assert_eq!(log.append(Some(b"key"), Some(&[i as u8; 40])), Ok(i));
        log.commit((i as i64 + 1) * 100).unwrap().unwrap();
    }
    storage
}

fn headers(log: &PartitionLog, from: u64) -> Vec<BatchHeader> {
    let mut bytes = Vec::new();
    let (mut at, mut headers) = (from, Vec::new());
    while at < log.high_watermark() {
        bytes.clear();
        log.read(at, 4096, &mut bytes).unwrap();
        headers.extend(Batches::new(&bytes).map(|b| b.unwrap().header));
        at = headers.last().unwrap().next_offset();
    }
    headers
}

fn damage(storage: &MemoryStorage) -> Damage {
    match Store::open(Arc::new(storage.clone()), StoreConfig::default()) {
        Err(OpenError::Damaged(damage)) => damage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_appends_of_a_group_are_one_batch_with_the_logs_time() {
    let (_store, log) = open(&MemoryStorage::new(0), StoreConfig::default());
    assert_eq!(log.append(Some(b"a"), None), Ok(0));
    let header = Header { name: "id", value: Some(b"1") };
    assert_eq!(log.append_with(None, Some(b"b"), &[header]), Ok(1));
    assert_eq!((log.log_end_offset(), log.high_watermark()), (2, 0));
    let mut bytes = Vec::new();
    assert_eq!(log.read(0, 1000, &mut bytes).unwrap(), 0, "not committed yet");
    let committed = log.commit(77).unwrap().unwrap();
    assert_eq!((committed.from, committed.to), (0, 2));
    assert_eq!(log.commit(78).unwrap(), None);
    log.read(1, 0, &mut bytes).unwrap();
    let batch = Batch::parse(&bytes).unwrap();
    assert_eq!(
        (batch.header.base_offset, batch.header.max_timestamp, batch.bytes.len()),
        (0, 77, bytes.len())
    );
    assert!(batch.header.is_log_append_time());
    let records: Vec<_> = batch.records().unwrap().map(Result::unwrap).collect();
    assert_eq!((records[1].offset, records[1].timestamp, records[1].value), (1, 77, Some(&b"b"[..])));
    assert_eq!(records[1].headers.iter().collect::<Vec<_>>(), [header]);
}

#[test]
fn a_producers_batch_is_kept_but_for_offset_and_time() {
    let (_store, log) = open(&MemoryStorage::new(0), StoreConfig::default());
    log.append(None, Some(b"first")).unwrap();
    let mut builder = BatchBuilder::new();
    builder.push(None, Some(b"x"));
    builder.push(None, Some(b"y"));
    let batch = builder.finish(5);
    assert_eq!(log.append_batch(&batch), Ok(1));
    assert_eq!(log.append(None, Some(b"last")), Ok(3));
    log.commit(9).unwrap();
    let headers = headers(&log, 0);
    let counts: Vec<_> = headers.iter().map(|h| (h.base_offset, h.records_count, h.max_timestamp)).collect();
    assert_eq!(counts, [(0, 1, 9), (1, 2, 9), (3, 1, 9)]);
    assert_eq!(headers[1].base_timestamp, 5);

    let mut bad = batch.clone();
    bad[65] ^= 1;
    assert!(matches!(log.append_batch(&bad), Err(AppendError::Invalid(BatchError::Crc { .. }))));
    let two = [batch.clone(), batch].concat();
    assert!(matches!(log.append_batch(&two), Err(AppendError::Invalid(BatchError::Truncated { .. }))));
}

#[test]
fn what_waits_is_bounded() {
    let config = StoreConfig { max_batch_bytes: 500, max_pending_bytes: 1000, ..StoreConfig::default() };
    let (_store, log) = open(&MemoryStorage::new(0), config);
    assert!(matches!(log.append(None, Some(&[0; 600])), Err(AppendError::TooLarge { max: 500, .. })));
    while log.append(None, Some(&[0; 90])).is_ok() {}
    assert_eq!(log.append(None, Some(&[0; 90])), Err(AppendError::Full));
    assert!((900..=1000).contains(&log.pending_bytes()));
    let end = log.log_end_offset();
    assert_eq!(log.commit(1).unwrap().unwrap().to, end);
    assert_eq!(log.append(None, Some(&[0; 90])), Ok(end));
    assert!(headers(&log, 0).iter().all(|h| h.size() <= 500));
}

#[test]
fn a_large_group_is_synced_in_parts() {
    let (_store, log) = open(&MemoryStorage::new(0), StoreConfig::default());
    while log.pending_bytes() < 3 * GROUP_BYTES / 2 {
        log.append(None, Some(&[7; 100_000])).unwrap();
    }
    let storage = MemoryStorage::new(3);
    let (_store2, twin) = open(&storage, StoreConfig::default());
    while twin.pending_bytes() < 3 * GROUP_BYTES / 2 {
        twin.append(None, Some(&[7; 100_000])).unwrap();
    }
    // The third sync fails, after that of the metadata and of the first part: this part counts, though the
    // commit failed.
    storage.fail(Call::Sync, 3, 1, 5);
    assert!(matches!(twin.commit(1), Err(CommitError::Broken(_))));
    let durable = twin.high_watermark();
    assert!(durable > 0 && durable < log.log_end_offset());
    assert!(twin.segments()[0].bytes <= GROUP_BYTES as u64);
    assert!(matches!(twin.reset(), Err(CommitError::Broken(_))));
    assert_eq!(log.commit(1).unwrap().unwrap().to, log.log_end_offset());
}

#[test]
fn without_space_nothing_acknowledged_is_lost_and_it_goes_on() {
    let storage = filled(20, StoreConfig::default());
    storage.crash();
    let (store, log) = open(&storage, StoreConfig::default());
    let failures = log.failures();
    storage.set_capacity(Some(storage.used() + 150));
    for _ in 0..3 {
        log.append(None, Some(&[1; 100])).unwrap();
    }
    assert!(matches!(log.commit(5000), Err(CommitError::NoSpace(_))));
    assert_eq!((log.high_watermark(), log.failures()), (20, failures + 1));
    assert_eq!(log.append(None, None), Err(AppendError::Unavailable));
    assert!(matches!(log.commit(5000), Err(CommitError::Unavailable)));
    log.reset().unwrap();
    log.append(None, Some(&[1; 400])).unwrap();
    assert!(matches!(log.commit(5000), Err(CommitError::NoSpace(_))));
    storage.set_capacity(None);
    log.reset().unwrap();
    assert_eq!(log.append(None, Some(b"after")), Ok(20));
    log.commit(6000).unwrap();
    store.close().unwrap();
    drop((store, log));
    let (store, log) = open(&storage, StoreConfig::default());
    assert_eq!(log.high_watermark(), 21);
    assert_eq!(store.recovery()[0].bytes_truncated, 0);
    assert_eq!(headers(&log, 20)[0].max_timestamp, 6000);
}

#[test]
fn a_failed_sync_breaks_the_partition_until_the_next_open() {
    let storage = filled(3, StoreConfig::default());
    storage.crash();
    let (store, log) = open(&storage, StoreConfig::default());
    log.append(None, Some(b"doubtful")).unwrap();
    storage.fail(Call::Sync, 1, 1, 5);
    assert!(matches!(log.commit(900), Err(CommitError::Broken(_))));
    assert!(matches!(log.reset(), Err(CommitError::Broken(_))));
    assert!(matches!(log.commit(900), Err(CommitError::Broken(_))));
    assert!(store.close().is_err());
    drop((store, log));
    // The system still shows the bytes, though it will never write them: whoever opens must.
    let (store, log) = open(&storage, StoreConfig::default());
    assert_eq!(log.high_watermark(), 4);
    drop((store, log));
    storage.crash();
    assert_eq!(open(&storage, StoreConfig::default()).1.high_watermark(), 4);
}

#[test]
fn a_torn_group_is_cut_and_kept_aside() {
    // Two batches of one group of which the first is harmed: a power cut may do that.
    let config = || StoreConfig { max_batch_bytes: 200, ..StoreConfig::default() };
    let storage = filled(5, config());
    storage.crash();
    let (_, log) = open(&storage, config());
    let size = log.segments()[0].bytes;
    for _ in 0..4 {
        log.append(None, Some(&[9; 70])).unwrap();
    }
    log.commit(9000).unwrap();
    assert!(headers(&log, 5).len() >= 2);
    drop(log);
    storage.crash();
    storage.flip_bit(LOG, size + 100, 0);
    let (store, log) = open(&storage, config());
    let report = &store.recovery()[0];
    assert_eq!((log.high_watermark(), report.end), (5, 5));
    assert!(report.bytes_truncated > 200, "{report:?}");
    let torn = report.torn_file.clone().unwrap();
    assert_eq!(torn, format!("{LOG}.{size}.torn"));
    let kept = storage.open(&torn, false).unwrap().len().unwrap();
    assert_eq!(kept, report.bytes_truncated);
    assert_eq!(log.append(None, Some(b"on")), Ok(5));
    log.commit(9001).unwrap();
}

#[test]
fn damage_inside_the_log_is_an_error_that_names_the_place() {
    // Not in the last group: batches of later times follow.
    let storage = filled(30, StoreConfig::default());
    storage.crash();
    storage.flip_bit(LOG, 300, 3);
    let found = damage(&storage);
    let size = 61 + 50;
    assert_eq!((found.file.as_str(), found.position, found.offset), (LOG, 300 / size * size, 300 / size));
    assert!(found.to_string().contains("several writes follow"), "{found}");
    // And it stays one: nothing was cut.
    assert_eq!(damage(&storage), found);

    // Below the recovery point even the last batch is no torn tail.
    let storage = filled(30, StoreConfig::default());
    storage.crash();
    drop(open(&storage, StoreConfig::default()));
    storage.flip_bit(LOG, 29 * size + 70, 0);
    storage.remove("t-0/00000000000000000000.timeindex").unwrap();
    let found = damage(&storage);
    assert_eq!((found.position, found.offset), (29 * size, 29));
    assert!(found.to_string().contains("offset 29 was durable"), "{found}");
}

#[test]
fn more_than_one_group_is_never_cut() {
    let storage = filled(3, StoreConfig::default());
    storage.crash();
    let file = storage.open(LOG, false).unwrap();
    let end = 3 * (61 + 50);
    file.set_len(end).unwrap();
    file.write_at(&vec![0x55; GROUP_BYTES + 1], end).unwrap();
    let found = damage(&storage);
    assert_eq!((found.position, found.offset), (end, 3));
    assert!(found.what.contains("more follows than is ever written at once"), "{found}");
    file.set_len(end + GROUP_BYTES as u64).unwrap();
    let (store, log) = open(&storage, StoreConfig::default());
    assert_eq!((log.high_watermark(), store.recovery()[0].bytes_truncated), (3, GROUP_BYTES as u64));
}

#[test]
fn records_and_segments_that_are_gone_are_missed() {
    let config = || StoreConfig { segment_bytes: 400, ..StoreConfig::default() };
    let opened = || {
        let storage = filled(12, config());
        storage.crash();
        drop(open(&storage, config()));
        storage
    };
    let without = |name: &str| {
        let storage = opened();
        storage.remove(&format!("t-0/{name}")).unwrap();
        damage(&storage)
    };
    let storage = opened();
    let names: Vec<_> = storage.list("t-0").unwrap().into_iter().map(|e| e.name).collect();
    let logs: Vec<_> = names.iter().filter(|n| n.ends_with(".log")).collect();
    assert!(logs.len() >= 4, "{logs:?}");
    assert_eq!(without(logs[0]).offset, 0);
    let middle = without(logs[1]);
    assert!(middle.what.contains("the segment before ends at offset 3"), "{middle}");
    let last = without(logs[logs.len() - 1]);
    assert!(last.what.contains("durable up to offset 12"), "{last}");
}

#[test]
fn zeros_at_the_end_are_no_damage() {
    let storage = filled(5, StoreConfig::default());
    storage.crash();
    let file = storage.open(LOG, false).unwrap();
    let len = 5 * (61 + 50);
    file.set_len(len + 100_000).unwrap();
    let (store, log) = open(&storage, StoreConfig::default());
    assert_eq!((log.high_watermark(), store.recovery()[0].bytes_truncated), (5, 100_000));
    assert_eq!(store.recovery()[0].torn_file, None);
    assert_eq!(file.len().unwrap(), len);
}

#[test]
fn a_busy_partition_has_room_ahead_and_gives_it_back() {
    let storage = MemoryStorage::new(0);
    let file_len = || storage.open(LOG, false).unwrap().len().unwrap();
    let (store, log) = open(&storage, StoreConfig::default());
    let size = || log.segments()[0].bytes;
    let commit = |now| {
        log.append(None, Some(&[7; 40])).unwrap();
        log.commit(now).unwrap().unwrap();
    };
    // Now and then one: its file ends with it.
    for now in [1_000, 2_000, 3_000] {
        commit(now);
        assert_eq!(file_len(), size());
    }
    (3_001..3_010).for_each(commit);
    let room = file_len();
    assert!(room > size() + 10_000, "{room}");
    // A look a moment later changes nothing; one after some rest cuts the zeros.
    assert_eq!((log.commit(3_020).unwrap(), file_len()), (None, room));
    assert_eq!((log.commit(4_000).unwrap(), file_len()), (None, size()));
    // What is too large for it makes none.
    log.append(None, Some(&[7; 100_000])).unwrap();
    log.commit(4_001).unwrap().unwrap();
    assert_eq!(file_len(), size());
    // Nor does a disk that is full, and it is no error.
    storage.set_capacity(Some(storage.used() + 1_000));
    commit(4_002);
    assert_eq!(file_len(), size());
    storage.set_capacity(None);
    // It is tried again after the next rest.
    assert_eq!(log.commit(5_000).unwrap(), None);
    (5_001..5_003).for_each(commit);
    assert!(file_len() > size());
    store.close().unwrap();
    assert_eq!(file_len(), size());
}

#[test]
fn a_full_segment_ends_with_its_last_batch() {
    let storage = MemoryStorage::new(0);
    let (_store, log) = open(&storage, StoreConfig { segment_bytes: 1_000, ..StoreConfig::default() });
    for now in 0..30 {
        log.append(None, Some(&[7; 40])).unwrap();
        log.commit(now).unwrap().unwrap();
        let segments = log.segments();
        let file = |base: u64| storage.open(&format!("t-0/{base:020}.log"), false).unwrap().len().unwrap();
        let (last, full) = segments.split_last().unwrap();
        assert!(full.iter().all(|s| file(s.base) == s.bytes));
        assert!(file(last.base) <= 1_000, "no room that no batch will take");
    }
    assert!(log.segments().len() > 2);
}

#[test]
fn room_that_a_killed_process_leaves_is_cut() {
    for power in [false, true] {
        let storage = MemoryStorage::new(1);
        let (store, log) = open(&storage, StoreConfig::default());
        for now in 0..5 {
            log.append(None, Some(&[7; 40])).unwrap();
            log.commit(now).unwrap().unwrap();
        }
        drop((store, log));
        assert!(storage.open(LOG, false).unwrap().len().unwrap() > 10_000);
        if power {
            storage.crash();
        }
        let (store, log) = open(&storage, StoreConfig::default());
        assert_eq!((log.high_watermark(), &store.recovery()[0].torn_file), (5, &None));
        assert_eq!(storage.open(LOG, false).unwrap().len().unwrap(), log.segments()[0].bytes);
    }
}

#[test]
fn indexes_are_made_again() {
    let config = || StoreConfig { segment_bytes: 2000, index_interval_bytes: 200, ..StoreConfig::default() };
    for (ending, size) in [("index", 8), ("timeindex", 12)] {
        for harm in 0..3 {
            let storage = filled(40, config());
            storage.crash();
            let (store, log) = open(&storage, config());
            store.close().unwrap();
            drop((store, log));
            // A start that trusts a clean shutdown would not look.
            storage.remove("clean-shutdown").unwrap();
            let path = format!("t-0/00000000000000000000.{ending}");
            let content = |s: &MemoryStorage| {
                let file = s.open(&path, true).unwrap();
                let mut bytes = vec![0; file.len().unwrap() as usize];
                file.read_at(&mut bytes, 0).unwrap();
                bytes
            };
            let before = content(&storage);
            assert!(before.len() >= 60, "{}", before.len());
            match harm {
                0 => storage.remove(&path).unwrap(),
                // Another offset for the right position; for a time, nonsense as well.
                1 => storage.flip_bit(&path, before.len() as u64 - size + (size - 5) % 4, 0),
                // Out of order.
                _ => storage.flip_bit(&path, before.len() as u64 - size, 7),
            }
            let (store, log) = open(&storage, config());
            assert_eq!(content(&storage), before, "{ending} {harm}");
            assert!(harm > 0 || store.recovery()[0].index_entries_rebuilt > 0);
            assert_eq!(headers(&log, 0).len(), 40);
        }
    }
}

#[test]
fn a_clean_close_leaves_files_as_kafka_does() {
    let config = || StoreConfig { segment_bytes: 2000, index_interval_bytes: 300, ..StoreConfig::default() };
    let storage = filled(40, config());
    storage.crash();
    let (store, log) = open(&storage, config());
    store.close().unwrap();
    let segments = log.segments();
    assert!(segments.len() > 2);
    for segment in segments {
        let read = |ending: &str| {
            let file = storage.open(&format!("t-0/{:020}.{ending}", segment.base), false).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        let (batches, index, times) = (read("log"), read("index"), read("timeindex"));
        assert_eq!(batches.len() as u64, segment.bytes);
        assert_eq!((index.len() % 8, times.len() % 12), (0, 0));
        // What Kafka's own dump tool checks: an entry's offset is the last one of the batch at its position.
        let relative = |b: &[u8]| segment.base + u64::from(u32::from_be_bytes(b.try_into().unwrap()));
        for entry in index.chunks(8) {
            let position = u32::from_be_bytes(entry[4..].try_into().unwrap()) as usize;
            assert_eq!(
                Batch::parse(&batches[position..]).unwrap().header.last_offset(),
                relative(&entry[..4])
            );
        }
        let mut last = i64::MIN;
        for entry in times.chunks(12) {
            let (time, offset) = (i64::from_be_bytes(entry[..8].try_into().unwrap()), relative(&entry[8..]));
            let batch = Batches::new(&batches).map(Result::unwrap).find(|b| b.header.last_offset() >= offset);
            let header = batch.unwrap().header;
            assert_eq!((header.last_offset(), header.max_timestamp), (offset, time));
            assert!(time > last);
            last = time;
        }
        assert_eq!(last, segment.max_timestamp, "the time index ends with the largest timestamp");
    }
    let file = storage.open("recovery-point-offset-checkpoint", false).unwrap();
    let mut text = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut text, 0).unwrap();
    assert_eq!(text, b"0\n1\nt 0 40\n");
    // The next start reads next to nothing.
    drop((store, log));
    let (store, _) = open(&storage, config());
    assert_eq!(store.recovery()[0].bytes_scanned, 0);
    drop(store);
    // And the one after, whose run before was not closed, little.
    let (store, _) = open(&storage, config());
    assert!(store.recovery()[0].bytes_scanned > 0, "a shutdown is trusted once");
    assert!(store.recovery()[0].bytes_scanned < 6 * 1000, "{:?}", store.recovery()[0]);
}

#[test]
fn files_that_change_after_a_clean_shutdown_are_noticed() {
    for harm in 0..3 {
        let storage = filled(10, StoreConfig::default());
        storage.crash();
        open(&storage, StoreConfig::default()).0.close().unwrap();
        let file = storage.open(LOG, false).unwrap();
        let len = file.len().unwrap();
        match harm {
            0 => storage.remove(LOG).unwrap(),
            1 => file.set_len(len - 1).unwrap(),
            _ => file.set_len(len + 1).unwrap(),
        }
        let (_store, log) = open(&storage, StoreConfig::default());
        assert!(matches!(log.read(0, 100, &mut Vec::new()), Err(ReadError::Damaged(_))), "{harm}");
        log.append(None, Some(b"v")).unwrap();
        assert!(log.commit(5).is_err(), "{harm}");
    }
}

#[test]
fn after_a_clean_shutdown_all_is_as_it_was() {
    let config = || StoreConfig { segment_bytes: 700, index_interval_bytes: 100, ..StoreConfig::default() };
    let storage = filled(30, config());
    storage.crash();
    let mut count = 30;
    for _ in 0..3 {
        let (store, log) = open(&storage, config());
        assert!(headers(&log, 0).iter().map(|h| h.base_offset).eq(0..count));
        for offset in 0..count {
            let time = (offset as i64 + 1) * 100;
            assert_eq!(log.offset_for_timestamp(time).unwrap(), Some((offset, time)));
        }
        for _ in 0..10 {
            log.append(Some(b"key"), Some(&[1; 40])).unwrap();
            count += 1;
            log.commit(count as i64 * 100).unwrap();
        }
        store.close().unwrap();
    }
}

#[test]
fn reads_are_bounded_and_say_what_is_out_of_range() {
    let config = StoreConfig { segment_bytes: 2000, index_interval_bytes: 200, ..StoreConfig::default() };
    let storage = filled(50, config.clone());
    storage.crash();
    let (store, log) = open(&storage, config);
    for from in 0..50 {
        for max in [0, 200, 1000] {
            let mut out = b"kept".to_vec();
            let n = log.read(from, max, &mut out).unwrap();
            assert_eq!(out.len(), n + 4);
            assert!(n <= max.max(111));
            assert_eq!(BatchHeader::parse(&out[4..]).unwrap().base_offset, from);
        }
        let time = from as i64 * 100 + 1;
        assert_eq!(log.offset_for_timestamp(time).unwrap(), Some((from, (from as i64 + 1) * 100)));
    }
    assert!(matches!(log.read(51, 10, &mut Vec::new()), Err(ReadError::OutOfRange { start: 0, end: 50 })));
    log.delete_before(30).unwrap();
    assert!(matches!(log.read(29, 10, &mut Vec::new()), Err(ReadError::OutOfRange { start: 30, end: 50 })));
    assert_eq!(log.offset_for_timestamp(0).unwrap(), Some((30, 3100)));
    assert!(log.segments()[0].base <= 30 && log.segments()[0].base > 10);
    assert!(matches!(log.delete_before(51), Err(ReadError::OutOfRange { .. })));
    drop((store, log));
    storage.crash();
    let (_store, log) = open(&storage, StoreConfig::default());
    assert_eq!((log.log_start_offset(), headers(&log, 30).len()), (30, 20));
}

#[test]
fn a_folder_is_open_once() {
    let folder = tempfile::tempdir().unwrap();
    let disk = || Arc::new(DiskStorage::new(folder.path().join("a/b")).unwrap());
    let store = Store::open(disk(), StoreConfig::default()).unwrap();
    store.create_topic("t", 2).unwrap();
    let log = store.partition("t", 1).unwrap();
    log.append(None, Some(b"v")).unwrap();
    log.commit(1).unwrap();
    let error = Store::open(disk(), StoreConfig::default()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    // As long as somebody could still write, it stays locked.
    drop(store);
    assert!(matches!(Store::open(disk(), StoreConfig::default()), Err(OpenError::Locked { .. })));
    drop(log);
    let store = Store::open(disk(), StoreConfig::default()).unwrap();
    assert_eq!(store.partition("t", 1).unwrap().high_watermark(), 1);
    let log = store.partition("t", 0).unwrap();
    store.close().unwrap();
    assert_eq!(log.append(None, None), Err(AppendError::Closed));
    assert!(matches!(log.commit(1), Err(CommitError::Closed)));
    assert!(Store::open(disk(), StoreConfig::default()).is_ok());
}

#[test]
fn topics_come_and_go() {
    let storage = MemoryStorage::new(0);
    let (store, log) = open(&storage, StoreConfig::default());
    for bad in ["", ".", "..", "a b", "a/b", "여름", &"x".repeat(250)] {
        assert!(matches!(store.create_topic(bad, 1), Err(TopicError::Name { .. })), "{bad}");
    }
    store.create_topic("a-1", 3).unwrap();
    store.create_topic("a-1", 3).unwrap();
    assert!(matches!(store.create_topic("a-1", 2), Err(TopicError::Exists { partitions: 3, .. })));
    assert!(matches!(store.create_topic("b", 0), Err(TopicError::Partitions(0))));
    store.add_partitions("a-1", 5).unwrap();
    (0..5).for_each(|i| assert_eq!(store.partition("a-1", i).unwrap().partition(), i));
    assert!(matches!(store.add_partitions("no", 5), Err(TopicError::Unknown(_))));
    assert!(store.partition("a-1", 5).is_none() && store.partition("x", 0).is_none());
    log.append(None, Some(b"v")).unwrap();
    log.commit(1).unwrap();
    drop((store, log));
    storage.crash();
    let (store, log) = open(&storage, StoreConfig::default());
    assert_eq!(store.topics(), [("a-1".to_owned(), 5), ("t".to_owned(), 1)]);
    store.delete_topic("t").unwrap();
    assert_eq!(log.append(None, None), Err(AppendError::Closed));
    store.create_topic("t", 1).unwrap();
    assert_eq!(store.partition("t", 0).unwrap().high_watermark(), 0);
    assert_eq!(store.partition("a-1", 4).unwrap().append(None, None), Ok(0));
}

#[test]
fn a_crash_leaves_topics_whole_or_not_at_all() {
    for at in 1..60 {
        let storage = MemoryStorage::new(at);
        drop(Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap());
        storage.cut_power_at(at);
        let made = Store::open(Arc::new(storage.clone()), StoreConfig::default())
            .is_ok_and(|store| store.create_topic("t", 3).is_ok());
        storage.crash();
        let store = Store::open(Arc::new(storage.clone()), StoreConfig::default()).unwrap();
        match &store.topics()[..] {
            [] => assert!(!made, "cut at {at}"),
            [(name, 3)] => assert_eq!(name, "t"),
            other => panic!("cut at {at}: {other:?}"),
        }
        store.create_topic("t", 3).unwrap();
    }
}

#[test]
fn small_files_are_replaced_whole() {
    for at in 1..12 {
        let storage = MemoryStorage::new(at);
        let (store, log) = open(&storage, StoreConfig::default());
        let (old, new) = (vec![1; 2000], vec![2; 3000]);
        store.put("decider-0.snapshot", &old).unwrap();
        storage.cut_power_at(at);
        let done = store.put("decider-0.snapshot", &new).is_ok();
        drop((store, log));
        storage.crash();
        let (store, _) = open(&storage, StoreConfig::default());
        let found = store.get("decider-0.snapshot").unwrap().unwrap();
        assert!(if done { found == new } else { found == old || found == new }, "cut at {at}");
        assert_eq!(store.files().unwrap(), ["decider-0.snapshot"]);
        store.remove("decider-0.snapshot").unwrap();
        store.remove("decider-0.snapshot").unwrap();
        assert_eq!(store.get("decider-0.snapshot").unwrap(), None);
        assert!(store.put(".lock", b"").is_err() && store.put("a/b", b"").is_err());
        assert!(store.put("recovery-point-offset-checkpoint", b"").is_err());
    }
}

/// Unparks the thread that waits.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    while future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
        thread::park();
    }
}

/// Every wait here is without a timeout: one lost wake-up, and the test hangs.
#[test]
fn no_wake_up_is_lost() {
    const RECORDS: u64 = 20_000;
    let (store, log) = open(&MemoryStorage::new(0), StoreConfig::default());
    let start = Barrier::new(5);
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            while log.high_watermark() < 2 * RECORDS {
                log.wait_pending(None);
                log.commit(1).unwrap();
            }
        });
        for _ in 0..2 {
            // Each append waits for its commit: every one is a transition from nothing to something.
            scope.spawn(|| {
                start.wait();
                for _ in 0..RECORDS {
                    let offset = log.append(None, Some(b"v")).unwrap();
                    assert!(log.wait_committed(offset, None));
                }
            });
        }
        scope.spawn(|| {
            start.wait();
            (0..2 * RECORDS).for_each(|offset| block_on(log.committed(offset)));
        });
        scope.spawn(|| {
            start.wait();
            let (mut at, mut bytes) = (0, Vec::new());
            while at < 2 * RECORDS {
                block_on(log.committed(at));
                bytes.clear();
                log.read(at, 1 << 16, &mut bytes).unwrap();
                at = Batches::new(&bytes).last().unwrap().unwrap().header.next_offset();
            }
        });
    });
    // Closing, too, wakes everybody, and a wake that nobody was waiting for is not forgotten.
    log.wake();
    assert!(!log.wait_pending(None));
    thread::scope(|scope| {
        scope.spawn(|| assert!(!log.wait_pending(None)));
        scope.spawn(|| assert!(!log.wait_committed(2 * RECORDS, None)));
        scope.spawn(|| block_on(log.committed(2 * RECORDS)));
        store.close().unwrap();
    });
}
