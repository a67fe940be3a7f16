//! Random requests of every API in every version, whole and broken ones.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes};
use dibs_log::{MemoryStorage, Store, StoreConfig, batch::BatchBuilder};

use super::{SERVED, begin, produce};
use crate::{
    BrokerConfig,
    connection::{Client, Hangup},
    security::sasl::Auth,
    server::{Broker, Shared},
    wire::{Versions, samples, shape},
};

async fn broker() -> (Broker, Arc<Client>) {
    let store = Store::open(Arc::new(MemoryStorage::new(0)), StoreConfig::default()).unwrap();
    let settings = [
        ("listeners", "PLAINTEXT://127.0.0.1:0"),
        ("num.partitions", "3"),
        ("offsets.topic.num.partitions", "2"),
    ];
    let broker = Broker::start(Arc::new(store), BrokerConfig::new(settings).unwrap()).await.unwrap();
    let client = Client::new("/127.0.0.1".into(), 0, broker.addresses()[0], Auth::open(None));
    (broker, Arc::new(client))
}

fn apis() -> impl Iterator<Item = (i16, i16)> {
    let all = std::iter::once((produce::KEY, produce::VERSIONS)).chain(SERVED.iter().copied());
    all.flat_map(|(key, Versions(min, max))| (min..=max).map(move |version| (key, version)))
}

fn frame(rng: &mut fastrand::Rng, key: i16, version: i16) -> Vec<u8> {
    let mut records = BatchBuilder::new();
    records.push(Some(b"k"), Some(b"v"));
    let shape = shape(key).unwrap();
    let body = samples::request(rng, shape, version, &records.finish(7));
    let mut frame = Vec::new();
    frame.put_i16(key);
    frame.put_i16(version);
    frame.put_i32(1);
    frame.put_i16(-1);
    if shape.is_flexible(version) {
        frame.put_u8(0);
    }
    frame.extend(body);
    frame
}

/// Begins to answer, and waits for the answer for a moment: some wait for other members or more records.
async fn answer(shared: &Arc<Shared>, client: &Arc<Client>, frame: Vec<u8>) -> Result<(), Hangup> {
    let answering = begin(shared, client, Bytes::from(frame))?;
    match tokio::time::timeout(Duration::from_millis(2), answering.future).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_every_api_is_answered() {
    let (broker, client) = broker().await;
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..40 {
        for (key, version) in apis() {
            let frame = frame(&mut rng, key, version);
            match answer(broker.shared(), &client, frame.clone()).await {
                Ok(()) => {}
                // The one request that ends a connection though it is well-formed.
                Err(Hangup::Refused(why)) if why.contains("acks=0") => {}
                Err(e) => panic!("API {key} version {version}, round {round}: {e}\n{frame:?}"),
            }
        }
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_crash_nothing() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let (broker, client) = broker().await;
    let mut rng = fastrand::Rng::with_seed(2);
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..rounds {
        for (key, version) in apis() {
            let mut frame = frame(&mut rng, key, version);
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..frame.len());
                match rng.u8(..4) {
                    0 => frame[at] = rng.u8(..),
                    1 => frame[at] ^= 1 << rng.u8(..8),
                    2 => frame.truncate(at.max(1)),
                    _ => frame.insert(at, [0xff, 0x7f, 0x80, 0][rng.usize(..4)]),
                }
            }
            match answer(broker.shared(), &client, frame.clone()).await {
                Err(Hangup::Unencodable(why)) => panic!("{why}\n{frame:?}"),
                Err(_) => refused += 1,
                Ok(()) => taken += 1,
            }
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
    broker.stop().await;
}

/// Samples of every request in every version, for `tests/hostile.rs` and as a start for fuzzing; UPDATE=1 writes
/// them anew.
#[test]
fn samples_are_requests() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/requests.hex");
    if std::env::var("UPDATE").is_ok() {
        let mut rng = fastrand::Rng::with_seed(3);
        let hex = |frame: Vec<u8>| frame.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
        let all: String = apis().map(|(key, version)| hex(frame(&mut rng, key, version))).collect();
        std::fs::write(path, all).unwrap();
    }
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let byte = |i| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
        let frame: Vec<u8> = (0..line.len()).step_by(2).map(byte).collect();
        let mut stream = (frame.len() as u32).to_be_bytes().to_vec();
        stream.extend(frame);
        assert_eq!(crate::read_requests(&stream), Ok(1), "{line}");
    }
}
