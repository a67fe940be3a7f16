//! `dibs serve`: the whole product in one process.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use dibs_broker::{Broker, BrokerConfig, Owned};
use dibs_flow::{CLAIMS_TOPIC, CODES_TOPIC, DEAD_LETTER_SUFFIX, Flow};
use dibs_ledger::{Ledger, SqliteLedger};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    config::{Config, ServeArgs},
    data,
};

/// See the module.
#[derive(clap::Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    args: ServeArgs,

    /// Configuration file (TOML); its names are those of the flags, with _ for -
    #[arg(long, env = "DIBS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the configuration that would be used, as a configuration file, and end
    #[arg(long)]
    print_config: bool,
}

/// The flags, variables and file together are no configuration; ends with exit code 2.
#[derive(Debug)]
pub(crate) struct Misconfigured;

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("wrong configuration")
    }
}

pub(crate) fn run(serve: Serve) -> anyhow::Result<()> {
    let args = serve.args.over_file(serve.config.as_deref()).context(Misconfigured)?;
    if serve.print_config {
        print!("{}", args.clone().with_defaults().print()?);
        args.validate().context(Misconfigured)?;
        return Ok(());
    }
    let config = args.validate().context(Misconfigured)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(server(config))
}

async fn server(config: Config) -> anyhow::Result<()> {
    // Signals are taken from here on, so that an early Ctrl-C ends in order too.
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new()
        .install_recorder()
        .context("cannot set up the metrics")?;
    let topics = config.kafka.as_ref().map(BrokerConfig::topic_defaults).unwrap_or_default();
    let store = data::open(&config.data, topics)?;
    let secret = data::secret(&store, config.secret)?;
    let ledger = SqliteLedger::open(&config.ledger)
        .with_context(|| format!("cannot open the ledger {}", config.ledger.display()))?;
    let ledger = Arc::new(ledger);
    let flow = Arc::new(Flow::start(store.clone(), &secret, &config.flow)?);
    flow.check_ledger(&*ledger).await?;
    flow.issue_into(&ledger)?;
    let listener = listen(config.listen)
        .with_context(|| format!("cannot listen on {}: is another server running there?", config.listen))?;
    let address = listener.local_addr()?;
    let broker = match config.kafka {
        Some(kafka) => Some(Broker::start_beside(store, kafka, owned()).await?),
        None => None,
    };
    let feeding = tokio::spawn(dibs_flow::feed(flow.clone(), stopped.clone()));
    let app = dibs_http::App::new(
        flow.clone(),
        ledger.clone(),
        config.users,
        config.admin_key,
        config.patience,
        metrics,
        stopped.clone(),
    );
    let serving = tokio::spawn(dibs_http::serve(listener, Arc::new(app), config.connections, stopped));
    // Scripts wait for this line to learn the port.
    println!("dibs is listening on http://{address}");
    for address in broker.iter().flat_map(Broker::addresses) {
        println!("dibs is listening on kafka://{address}");
    }
    tracing::info!(%address, data = %config.data.display(), "listening");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: answering what is in flight");
    stop.send_replace(true);
    serving.await.context("the HTTP server failed")?;
    if let Some(broker) = broker {
        broker.stop().await;
    }
    feeding.await.context("the intake topics failed")?;
    flow.stop().await;
    ledger.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// Dibs' own topics, to Kafka's clients: they may claim, and read.
fn owned() -> Vec<Owned> {
    let dead_letters = format!("{CLAIMS_TOPIC}{DEAD_LETTER_SUFFIX}");
    let owned = |topic: &str, produce| Owned { topic: topic.to_owned(), produce };
    vec![owned(CLAIMS_TOPIC, true), owned(CODES_TOPIC, false), owned(&dead_letters, false)]
}

/// With the longest queue that the kernel allows (`net.core.somaxconn`). In the usual one, of 128, a rush has no
/// room: the kernel drops who comes then, and they try again a second later.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait until the kernel forgets the last run's connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(i32::MAX as u32)
}

/// A rush needs a file descriptor for each connection; the soft limit of most shells is 1024.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
