//! The smallest program that is a broker: `cargo run -p dibs-broker --example serve -- FOLDER HOST:PORT NAME=VALUE…`.

use std::sync::Arc;

use dibs_broker::{Broker, BrokerConfig};
use dibs_log::{DiskStorage, Store, StoreConfig};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| "dibs-data".into());
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:9092".into());
    let settings = args.filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())));
    let listeners = [("listeners".to_owned(), format!("PLAINTEXT://{listen}"))];
    let config = BrokerConfig::new(listeners.into_iter().chain(settings))?;
    let log = StoreConfig { defaults: config.topic_defaults(), ..StoreConfig::default() };
    let store = Arc::new(Store::open(Arc::new(DiskStorage::new(std::path::Path::new(&folder))?), log)?);
    let mut terminate = signal(SignalKind::terminate())?;
    let broker = Broker::start(store.clone(), config).await?;
    println!("listening on {}", broker.addresses()[0]);
    terminate.recv().await;
    broker.stop().await;
    Ok(store.close()?)
}
