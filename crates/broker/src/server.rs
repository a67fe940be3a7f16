//! The broker as a whole: it binds, accepts, and stops.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use dibs_log::Store;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    api::fetch_sessions::Sessions,
    clock,
    config::{BrokerConfig, Listener},
    connection::{self, Client, Hangup},
    connections::Connections,
    coordinator::Coordinator,
    producer_ids::ProducerIds,
    quota::{Doer, Quota, Quotas},
    security::{
        acl::Acls,
        users::{Users, scram_user},
    },
    settings::Settings,
    topics::{Owned, Topics, random_uuid},
    transactions::{Around, Transactions},
};

/// The small file that holds the cluster's id.
const CLUSTER_ID: &str = "cluster.id";
/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Those that can be changed while the broker runs.
    pub(crate) settings: Settings,
    /// Held while somebody's settings are read, changed and written.
    pub(crate) altering: tokio::sync::Mutex<()>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) groups: Arc<Coordinator>,
    pub(crate) users: Users,
    /// `None` lets everybody do everything.
    pub(crate) acls: Option<Acls>,
    pub(crate) quotas: Quotas,
    pub(crate) cluster_id: String,
    /// What is listened on, with the real ports; as many as `config.listeners`.
    pub(crate) bound: Vec<SocketAddr>,
    pub(crate) transactions: Arc<Transactions>,
    pub(crate) fetch_sessions: Mutex<Sessions>,
    connections: Mutex<Connections>,
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The data folder cannot be read or written, or what is in it is not the broker's.
    #[error("the broker's data: {0}")]
    Data(#[from] io::Error),
}

/// A running broker. It serves until [`Broker::stop`] is called; dropping it stops it too, less gracefully.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Broker {
    /// Binds the listeners and begins to serve. Must be called within a tokio runtime. The store stays the
    /// caller's to close, after [`Broker::stop`].
    pub async fn start(store: Arc<Store>, config: BrokerConfig) -> Result<Broker, StartError> {
        Broker::start_beside(store, config, Vec::new()).await
    }

    /// Like [`Broker::start`], within a program that has topics of its own in the store.
    pub async fn start_beside(
        store: Arc<Store>,
        config: BrokerConfig,
        owned: Vec<Owned>,
    ) -> Result<Broker, StartError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let topics = Arc::new(Topics::open(store, owned)?);
        let (mut listeners, mut bound) = (Vec::new(), Vec::new());
        for listener in &config.listeners {
            let socket = bind(listener).await?;
            bound.push(socket.local_addr()?);
            listeners.push(socket);
        }
        let shared = Arc::new(Shared::open(&config, topics, bound)?);
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(shared.groups.clone().run_timer(stopping.clone()));
        tasks.spawn(shared.transactions.clone().run_timer(stopping.clone()));
        tasks.spawn(clean(shared.clone(), stopping.clone()));
        for (i, listener) in listeners.into_iter().enumerate() {
            tasks.spawn(accept(shared.clone(), listener, i, stopping.clone()));
        }
        Ok(Broker { shared, stop, tasks })
    }

    /// The addresses that are listened on, in the order of `listeners`, with the real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.bound
    }

    /// Gives a user a password, durably, as Kafka's storage tool does with `--add-scram`:
    /// `SCRAM-SHA-256=[name=alice,password=secret]`. Blocks on the disk. The error is a sentence.
    pub fn add_scram(&self, text: &str) -> Result<(), String> {
        let salt = random_uuid().as_bytes().to_vec();
        let (user, scram, credential) = scram_user(text, salt)?;
        let Shared { users, topics, .. } = &*self.shared;
        users.alter(topics, [(user, scram, Some(credential))]).map_err(|e| e.to_string())
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Takes no more requests, commits what is pending, and ends.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
        let topics = self.shared.topics.clone();
        let _ = tokio::task::spawn_blocking(move || topics.stop()).await;
    }
}

/// Has old records deleted and compacted now and then.
async fn clean(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let every = shared.config().clean_every_ms;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(every)) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let (topics, idle) = (shared.topics.clone(), shared.config().producer_idle_ms);
        let _ = tokio::task::spawn_blocking(move || topics.clean(idle)).await;
    }
}

async fn bind(listener: &Listener) -> Result<TcpListener, StartError> {
    let host = if listener.host.is_empty() { "0.0.0.0" } else { &listener.host };
    let address = format!("{host}:{}", listener.port);
    TcpListener::bind((host, listener.port)).await.map_err(|source| StartError::Bind { address, source })
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, index: usize, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let config = shared.config();
                let waits = match shared.connections().admit(peer.ip(), &config, clock::mono_ms()) {
                    Ok(waits) => Duration::from_millis(waits),
                    Err(setting) => {
                        tracing::warn!(%peer, "refused: there are {setting} connections already");
                        continue;
                    }
                };
                // Who comes too fast is not listened to (KIP-612).
                if !waits.is_zero() {
                    tokio::time::sleep(waits).await;
                }
                connections.spawn(connect(shared.clone(), stream, peer, index, stop.clone()));
            }
            Err(e) => {
                // Out of file descriptors, as a rule: some will be closed in a moment.
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn connect(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: usize,
    stop: watch::Receiver<bool>,
) {
    if shared.quotas.any() {
        let address = peer.ip().to_string();
        let owed = shared.quotas.take(Quota::Connection, Doer::Address(&address), 1.0, clock::mono_ms());
        if owed > 0 {
            tokio::time::sleep(Duration::from_millis(owed)).await;
        }
    }
    match connection::accept(shared.clone(), stream, listener, stop).await {
        Ok(()) | Err(Hangup::Io(_)) => {}
        Err(e) => tracing::info!(%peer, "connection closed: {e}"),
    }
    shared.connections().leave(peer.ip());
}

impl Shared {
    /// The settings as they are now.
    pub(crate) fn config(&self) -> Arc<BrokerConfig> {
        self.settings.now()
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replays what is in the store. Must be called within a tokio runtime.
    pub(crate) fn open(
        config: &BrokerConfig,
        topics: Arc<Topics>,
        bound: Vec<SocketAddr>,
    ) -> Result<Shared, StartError> {
        let settings = Settings::open(&topics, config)?;
        // What is read of it from here on cannot be changed while the broker runs.
        let config = settings.now();
        let groups = Coordinator::open(config.clone(), topics.clone());
        let around = Around {
            config: config.clone(),
            topics: topics.clone(),
            groups: groups.clone(),
            ids: Arc::new(ProducerIds::open(topics.clone())?),
        };
        Ok(Shared {
            users: Users::open(&topics)?,
            quotas: Quotas::open(&topics, config.quota_window_s)?,
            acls: config
                .authorizer
                .clone()
                .map(|a| Acls::open(&topics, a.super_users, a.open))
                .transpose()?,
            groups,
            transactions: Transactions::open(around),
            cluster_id: cluster_id(&topics)?,
            fetch_sessions: Mutex::new(Sessions::new(config.fetch_sessions)),
            connections: Mutex::new(Connections::default()),
            settings,
            altering: tokio::sync::Mutex::new(()),
            topics,
            bound,
        })
    }

    /// The host and port that a client is told to use.
    pub(crate) fn advertised(&self, client: &Client) -> (String, i32) {
        self.advertised_on(client.listener, client.local)
    }

    fn advertised_on(&self, listener: usize, local: SocketAddr) -> (String, i32) {
        let config = self.config();
        let listening = &config.listeners[listener];
        let port = self.bound[listener].port();
        match config.advertised.iter().find(|a| a.name == listening.name) {
            Some(a) => (a.host.clone(), i32::from(if a.port == 0 { port } else { a.port })),
            None if listening.host.is_empty() => (local.ip().to_string(), i32::from(port)),
            None => (listening.host.clone(), i32::from(port)),
        }
    }
}

/// The id that the cluster has for ever: 16 random bytes in base64url, as Kafka's.
fn cluster_id(topics: &Topics) -> io::Result<String> {
    if let Some(id) = topics.read_file(CLUSTER_ID)? {
        return Ok(String::from_utf8_lossy(&id).trim().to_owned());
    }
    let id = base64url(random_uuid().as_bytes());
    topics.put(CLUSTER_ID, id.as_bytes())?;
    Ok(id)
}

/// Base64 as Kafka writes ids: URL-safe, without padding.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}
