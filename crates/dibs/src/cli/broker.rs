//! `dibs broker`: the embedded log alone, spoken to in the Kafka protocol.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow};
use dibs_broker::{Broker, BrokerConfig};
use dibs_log::{DiskStorage, Store, StoreConfig};
use tokio::signal::unix::{SignalKind, signal};

use super::serve::{Misconfigured, raise_file_limit};
use crate::config::kafka_settings;

/// See the module.
#[derive(clap::Args)]
pub(crate) struct BrokerArgs {
    /// Data folder; made if it is not there
    #[arg(long, env = "DIBS_DATA", default_value = "dibs-data", value_name = "FOLDER")]
    data: PathBuf,

    /// Address to listen on; port 0 takes a free one. Short for --set listeners=PLAINTEXT://HOST:PORT
    #[arg(long, env = "DIBS_BROKER_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,

    /// A setting under Kafka's own name, such as num.partitions=4; may be given many times
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,

    /// A file of settings, such as Kafka's server.properties
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Gives a user a password for SCRAM, such as SCRAM-SHA-256=[name=alice,password=secret]; may be given many times
    #[arg(long, value_name = "MECHANISM=[…]")]
    add_scram: Vec<String>,
}

pub(crate) fn run(args: &BrokerArgs) -> anyhow::Result<()> {
    let config = config(args).context(Misconfigured)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(args, config))
}

/// The file first, then `--set`, then `--listen`: the later counts.
fn config(args: &BrokerArgs) -> anyhow::Result<BrokerConfig> {
    let settings = kafka_settings(args.config.as_deref(), &args.settings, args.listen.as_deref())?;
    Ok(BrokerConfig::new(settings)?)
}

async fn serve(args: &BrokerArgs, config: BrokerConfig) -> anyhow::Result<()> {
    // Signals are taken from here on, so that an early Ctrl-C ends in order too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let storage = DiskStorage::new(&args.data)
        .with_context(|| format!("cannot use the data folder {}", args.data.display()))?;
    let log = StoreConfig { defaults: config.topic_defaults(), ..StoreConfig::default() };
    let store = Store::open(Arc::new(storage), log)
        .with_context(|| format!("cannot open the log in {}", args.data.display()))?;
    let store = Arc::new(store);
    let broker = Broker::start(store.clone(), config).await?;
    for user in &args.add_scram {
        broker.add_scram(user).map_err(|why| anyhow!("--add-scram {why}"))?;
    }
    // Scripts wait for this line to learn the port.
    for address in broker.addresses() {
        println!("dibs broker is listening on {address}");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    broker.stop().await;
    store.close().context("the log could not be closed")?;
    tracing::info!("stopped");
    Ok(())
}
