//! `dibs broker`: the embedded log alone, spoken to in the Kafka protocol.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use dibs_broker::{Broker, BrokerConfig};
use dibs_log::{DiskStorage, Store, StoreConfig};
use tokio::signal::unix::{SignalKind, signal};

use super::serve::{Misconfigured, raise_file_limit};

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
}

pub(crate) fn run(args: &BrokerArgs) -> anyhow::Result<()> {
    let config = config(args).context(Misconfigured)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(args, config))
}

/// The file first, then `--set`, then `--listen`: the later counts.
fn config(args: &BrokerArgs) -> anyhow::Result<BrokerConfig> {
    let mut settings = Vec::new();
    if let Some(file) = &args.config {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let pair = line.split_once('=').with_context(|| format!("{line:?} is not NAME=VALUE"))?;
            settings.push((pair.0.trim().to_owned(), pair.1.trim().to_owned()));
        }
    }
    for setting in &args.settings {
        let pair = setting.split_once('=').with_context(|| format!("--set {setting:?} is not NAME=VALUE"))?;
        settings.push((pair.0.to_owned(), pair.1.to_owned()));
    }
    if let Some(listen) = &args.listen {
        settings.push(("listeners".to_owned(), format!("PLAINTEXT://{listen}")));
    }
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
