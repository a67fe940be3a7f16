//! Writes a data folder with some of everything, for Apache Kafka's own dump tool to read:
//! `cargo run -p dibs-log --example kafka_folder -- FOLDER`.

use std::sync::Arc;

use dibs_log::{DiskStorage, Marker, Origin, Store, StoreConfig, batch::BatchBuilder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("a folder is missing")?;
    let config = StoreConfig { segment_bytes: 60_000, ..StoreConfig::default() };
    let store = Store::open(Arc::new(DiskStorage::new(folder)?), config)?;
    store.create_topic("dibs.claims", 1)?;
    store.create_topic("orders", 2)?;
    let claims = store.partition("dibs.claims", 0).ok_or("no partition")?;
    let orders = store.partition("orders", 0).ok_or("no partition")?;
    let mut sequence = 0;
    for i in 0..2_000_i64 {
        claims.append(Some(b"summer"), Some(format!("claim {i}").as_bytes()))?;
        let mut batch = BatchBuilder::new();
        for j in 0..10 {
            batch.push_at(i * 7_919 % 100_000 + j, Some(b"key"), Some(format!("{i} {j}").as_bytes()));
        }
        if i % 3 > 0 {
            batch.producer(4_000, 0, sequence);
            batch.transactional();
            sequence += 10;
        }
        orders.produce(&batch.finish_with((i % 5) as u8)?, None, Origin::Verified)?;
        if i % 10 == 9 {
            let commit = i % 20 == 9;
            let marker = Marker { producer_id: 4_000, producer_epoch: 0, coordinator_epoch: 3, commit };
            orders.append_marker(&marker, 1_700_000_000_000 + i)?;
        }
        orders.commit(1_700_000_000_000 + i)?;
        claims.commit(1_700_000_000_000 + i)?;
    }
    compacted(&store)?;
    store.close()?;
    Ok(())
}

/// A topic with tombstones, aborted transactions and gaps.
fn compacted(store: &Store) -> Result<(), Box<dyn std::error::Error>> {
    let configs = [("cleanup.policy".to_owned(), "compact".to_owned())];
    let topic = store.create_topic_with("state", 1, configs.into())?;
    let log = topic.partition(0).ok_or("no partition")?;
    for i in 0..6_000_i64 {
        let mut batch = BatchBuilder::new();
        let key = format!("key {}", i * 7_919 % 977);
        let value = format!("value {i}");
        batch.push_at(i, Some(key.as_bytes()), (i % 5 > 0).then_some(value.as_bytes()));
        batch.push_at(i + 1, Some(b"always"), Some(value.as_bytes()));
        let id = 1 + i % 3;
        batch.producer(id, 0, i as i32 / 3 * 2);
        batch.transactional();
        log.produce(&batch.finish_with((i % 5) as u8)?, None, Origin::Verified)?;
        if i % 12 > 8 {
            let marker =
                Marker { producer_id: id, producer_epoch: 0, coordinator_epoch: 0, commit: i % 24 < 12 };
            log.append_marker(&marker, i)?;
        }
        log.commit(i)?;
        if i % 2_000 == 1_999 {
            println!("{:?}", store.clean(i, 86_400_000)?);
        }
    }
    Ok(())
}
