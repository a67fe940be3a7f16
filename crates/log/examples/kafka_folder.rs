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
        orders.produce(&batch.finish_with((i % 5) as u8)?, None, Origin::Client)?;
        if i % 10 == 9 {
            let commit = i % 20 == 9;
            let marker = Marker { producer_id: 4_000, producer_epoch: 0, coordinator_epoch: 3, commit };
            orders.append_marker(&marker, 1_700_000_000_000 + i)?;
        }
        orders.commit(1_700_000_000_000 + i)?;
        claims.commit(1_700_000_000_000 + i)?;
    }
    store.close()?;
    Ok(())
}
