//! One connection: frames in, answers out in the same order.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::watch};
use tokio_rustls::TlsAcceptor;

use crate::{
    api::{self, Answering},
    clock,
    security::{sasl::Auth, tls},
    server::Shared,
    socket::Socket,
    wire::{Malformed, Reply, next_frame},
};

/// The most requests of one connection that are being answered at a time; only Produce is pipelined.
const PIPELINE: usize = 64;
/// Room that a read buffer keeps while nothing comes.
const IDLE_BUFFER: usize = 64 << 10;
/// Answers that are there go out together, up to so many bytes.
const COALESCED: u64 = 64 << 10;
/// How long TLS may take to be agreed on.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who is at the other end.
#[derive(Debug)]
pub(crate) struct Client {
    /// The address, as Kafka writes it in group descriptions.
    pub(crate) host: String,
    /// Index of the listener that the connection came in by.
    pub(crate) listener: usize,
    /// The end on this side.
    pub(crate) local: SocketAddr,
    auth: Mutex<Auth>,
    /// When it is listened to again, on the clock that never goes back.
    muted_until_ms: AtomicU64,
}

impl Client {
    pub(crate) fn new(host: String, listener: usize, local: SocketAddr, auth: Auth) -> Client {
        Client { host, listener, local, auth: Mutex::new(auth), muted_until_ms: AtomicU64::new(0) }
    }

    /// Does not listen to it for a while (KIP-219). What it has asked already is answered.
    pub(crate) fn mute(&self, for_ms: u64) {
        if for_ms > 0 {
            self.muted_until_ms.fetch_max(clock::mono_ms().saturating_add(for_ms), Relaxed);
        }
    }

    /// For how many milliseconds it is not listened to.
    pub(crate) fn muted_ms(&self) -> u64 {
        match self.muted_until_ms.load(Relaxed) {
            0 => 0,
            until => until.saturating_sub(clock::mono_ms()),
        }
    }

    /// How far it is in saying who it is.
    pub(crate) fn auth(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection ends, other than by being closed from the other end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Hangup {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Refused(String),
    /// A response that its version cannot express: a mistake here, not the client's.
    #[error("a response could not be written: {0}")]
    Unencodable(String),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("silent for too long")]
    Idle,
}

/// Takes a connection in, over TLS if its listener says so, and serves it until it ends or the broker stops.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    stream: TcpStream,
    listener: usize,
    stopping: watch::Receiver<bool>,
) -> Result<(), Hangup> {
    stream.set_nodelay(true)?;
    let (host, local) = (format!("/{}", stream.peer_addr()?.ip()), stream.local_addr()?);
    let config = shared.config();
    let listening = &config.listeners[listener];
    let auth = |principal| if listening.protocol.sasl { Auth::None } else { Auth::open(principal) };
    let Some(tls_config) = config.security.tls.get(&listening.name) else {
        let client = Client::new(host, listener, local, auth(None));
        return serve(shared, stream, client, stopping).await;
    };
    let handshake = TlsAcceptor::from(tls_config.clone()).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| Hangup::Idle)?;
    let stream = stream.map_err(|e| Hangup::Refused(format!("TLS: {e}")))?;
    let principal = tls::principal(stream.get_ref().1.peer_certificates());
    let client = Client::new(host, listener, local, auth(principal));
    serve(shared, stream, client, stopping).await
}

async fn serve<S: Socket>(
    shared: Arc<Shared>,
    stream: S,
    client: Client,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Hangup> {
    let mut connection = Connection {
        idle: Duration::from_millis(shared.config().idle_ms),
        max: shared.config().max_request,
        client: Arc::new(client),
        shared,
        stream,
        buffer: BytesMut::new(),
        waiting: VecDeque::new(),
    };
    tokio::select! {
        done = connection.run() => done,
        _ = stopping.wait_for(|stop| *stop) => Ok(()),
    }
}

struct Connection<S> {
    shared: Arc<Shared>,
    client: Arc<Client>,
    stream: S,
    buffer: BytesMut,
    /// In the order of the requests. Only the first is polled, and all but the last are Produce.
    waiting: VecDeque<Answering>,
    idle: Duration,
    max: usize,
}

impl<S: Socket> Connection<S> {
    async fn run(&mut self) -> Result<(), Hangup> {
        loop {
            while self.takes_more()
                && let Some(frame) = next_frame(&mut self.buffer, self.max)?
            {
                self.begin(frame)?;
            }
            let takes_more = self.takes_more();
            match self.waiting.front_mut() {
                None => {
                    let muted = self.client.muted_ms();
                    if muted > 0 {
                        tokio::time::sleep(Duration::from_millis(muted)).await;
                    } else if !self.read_idle().await? {
                        return Ok(());
                    }
                }
                Some(first) => tokio::select! {
                    biased;
                    answer = Pin::new(&mut first.future) => {
                        self.waiting.pop_front();
                        self.write(answer?).await?;
                    }
                    read = self.stream.read_buf(&mut self.buffer), if takes_more => {
                        if read? == 0 {
                            return Ok(());
                        }
                    }
                },
            }
        }
    }

    /// Whether the next request may begin before those before it are answered.
    fn takes_more(&self) -> bool {
        self.waiting.len() < PIPELINE
            && self.client.muted_ms() == 0
            && self.waiting.back().is_none_or(|last| last.pipelined)
    }

    fn begin(&mut self, frame: Bytes) -> Result<(), Hangup> {
        let answering = api::begin(&self.shared, &self.client, frame)?;
        self.waiting.push_back(answering);
        Ok(())
    }

    /// Reads with nothing to answer; false at the end of the stream.
    async fn read_idle(&mut self) -> Result<bool, Hangup> {
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BUFFER {
            self.buffer = BytesMut::with_capacity(4096);
        }
        let read = tokio::time::timeout(self.idle, self.stream.read_buf(&mut self.buffer)).await;
        Ok(read.map_err(|_| Hangup::Idle)?? > 0)
    }

    async fn write(&mut self, answer: Option<Reply>) -> Result<(), Hangup> {
        let Some(mut out) = answer else { return Ok(()) };
        // Whatever else is answered by now goes out with it.
        while out.len() < COALESCED
            && let Some(first) = self.waiting.front_mut()
            && first.pipelined
            && let Some(answer) = now(&mut first.future).await
        {
            self.waiting.pop_front();
            if let Some(more) = answer? {
                out.append(more);
            }
        }
        Ok(self.stream.send(&out).await?)
    }
}

/// The outcome of a future, if there is one already.
async fn now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}
