//! One socket to one broker: frames in both directions, many requests at once, answered in their order.

use std::{
    io,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiVersionsRequest, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, StrBytes},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    ClientConfig, ClientError, sasl,
    versions::{Api, Served},
};

/// The most bytes of an answer. More is not Kafka's: "HTTP" read as a length is 1.2 GB.
const MAX_FRAME: usize = 512 << 20;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection on which requests may be sent at once, each negotiated down to what the broker serves.
pub(crate) struct Connection {
    address: String,
    client_id: StrBytes,
    served: Served,
    request_timeout: Duration,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    correlation: AtomicI32,
    open: Arc<AtomicBool>,
}

struct Outgoing {
    frame: BytesMut,
    reply: Reply,
}

enum Reply {
    /// The request with this correlation id is answered.
    Answer(i32, oneshot::Sender<Bytes>),
    /// It is not (Produce with acks=0); all that can be said is that it was written.
    Written(oneshot::Sender<()>),
}

/// An answer that is on its way.
pub(crate) struct Pending<R> {
    reply: oneshot::Receiver<Bytes>,
    address: String,
    version: i16,
    timeout: Duration,
    request: PhantomData<fn() -> R>,
}

impl Connection {
    /// Connects, and agrees with the broker on versions, TLS and who is speaking.
    pub(crate) async fn open(config: &ClientConfig, address: &str) -> Result<Arc<Connection>, OpenError> {
        let opening = Connection::open_unlimited(config, address);
        match timeout(config.connect_timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(OpenError::Unreachable(format!(
                "no answer within {} s",
                config.connect_timeout.as_secs()
            ))),
        }
    }

    async fn open_unlimited(config: &ClientConfig, address: &str) -> Result<Arc<Connection>, OpenError> {
        let socket = TcpStream::connect(address).await.map_err(|e| OpenError::Unreachable(plain(&e)))?;
        let _ = socket.set_nodelay(true);
        let (reader, writer): (Reader, Writer) = match &config.tls {
            None => {
                let (reader, writer) = socket.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Some(tls) => {
                let stream = tls.connect(address, socket).await.map_err(OpenError::Other)?;
                let (reader, writer) = tokio::io::split(stream);
                (Box::new(reader), Box::new(writer))
            }
        };
        let (outgoing, requests) = mpsc::unbounded_channel();
        let (awaited, replies) = mpsc::unbounded_channel();
        let open = Arc::new(AtomicBool::new(true));
        tokio::spawn(write(writer, requests, awaited, open.clone()));
        tokio::spawn(read(reader, replies, open.clone()));
        let mut connection = Connection {
            address: address.to_owned(),
            client_id: StrBytes::from_string(config.client_id.clone()),
            served: Served::default(),
            request_timeout: config.request_timeout,
            outgoing,
            correlation: AtomicI32::new(0),
            open,
        };
        connection.served = connection.agree(config).await?;
        if let Some(sasl) = &config.sasl {
            sasl::login(&connection, sasl).await.map_err(OpenError::Other)?;
        }
        Ok(Arc::new(connection))
    }

    /// Asks for the broker's versions. One that does not know version 3 answers with version 0 and says so.
    async fn agree(&self, config: &ClientConfig) -> Result<Served, OpenError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("dibs"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        for (version, request) in [(3, request), (0, ApiVersionsRequest::default())] {
            let bytes = self.begin_at(&request, version).map_err(OpenError::Other)?.bytes().await;
            let bytes = bytes.map_err(|e| self.not_kafka(config, &e))?;
            // The header of this answer is never flexible: it is the correlation id. The error code comes next.
            let bytes = bytes.slice(4..);
            if bytes.len() >= 2 && bytes[..2] == [0, 35] && version > 0 {
                continue;
            }
            let answer = kafka_protocol::messages::ApiVersionsResponse::decode(&mut bytes.clone(), version)
                .map_err(|e| OpenError::Other(ClientError::Malformed(e.to_string())))?;
            ClientError::check(format!("ApiVersions at {}", self.address), answer.error_code, None)
                .map_err(OpenError::Other)?;
            return Ok(Served::new(&answer));
        }
        Err(OpenError::Other(ClientError::Malformed("no version of ApiVersions is served".into())))
    }

    fn not_kafka(&self, config: &ClientConfig, error: &ClientError) -> OpenError {
        let hint = match (&config.tls, error) {
            (_, ClientError::Malformed(what)) => what.clone(),
            (None, _) => "it closed the connection at the first request. If its listener is SSL or SASL_SSL, \
                          say so with security.protocol in --command-config; otherwise this is no Kafka listener"
                .to_owned(),
            (Some(_), _) => "it closed the connection at the first request. Is this its SSL listener, and \
                             does it ask for a client certificate (ssl.keystore.location)?"
                .to_owned(),
        };
        OpenError::Other(ClientError::NotKafka { address: self.address.clone(), why: hint })
    }

    /// Whether requests can still be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Where it goes.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The version in which a request is sent.
    pub(crate) fn version<R: Api>(&self) -> Result<i16, ClientError> {
        self.served.version::<R>(&self.address)
    }

    /// Sends a request and waits for the answer.
    pub(crate) async fn call<R: Api>(&self, request: &R) -> Result<R::Response, ClientError> {
        self.begin(request)?.wait().await
    }

    /// Sends a request. Those of one task are sent in the order of these calls.
    pub(crate) fn begin<R: Api>(&self, request: &R) -> Result<Pending<R>, ClientError> {
        self.begin_at(request, self.version::<R>()?)
    }

    fn begin_at<R: Api>(&self, request: &R, version: i16) -> Result<Pending<R>, ClientError> {
        let (sender, reply) = oneshot::channel();
        self.send(request, version, |correlation| Reply::Answer(correlation, sender))?;
        let (address, timeout) = (self.address.clone(), self.request_timeout);
        Ok(Pending { reply, address, version, timeout, request: PhantomData })
    }

    /// Sends a request that the broker does not answer. The receiver hears when it was written.
    pub(crate) fn tell<R: Api>(&self, request: &R) -> Result<oneshot::Receiver<()>, ClientError> {
        let (sender, written) = oneshot::channel();
        self.send(request, self.version::<R>()?, |_| Reply::Written(sender))?;
        Ok(written)
    }

    fn send<R: Api>(
        &self,
        request: &R,
        version: i16,
        reply: impl FnOnce(i32) -> Reply,
    ) -> Result<(), ClientError> {
        let correlation = self.correlation.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(correlation)
            .with_client_id(Some(self.client_id.clone()));
        let malformed = |e: &dyn std::fmt::Display| ClientError::Malformed(format!("{}: {e}", R::NAME));
        let size = request.compute_size(version).map_err(|e| malformed(&e))?;
        let mut frame = BytesMut::with_capacity(size + 64);
        frame.put_u32(0);
        header.encode(&mut frame, R::header_version(version)).map_err(|e| malformed(&e))?;
        request.encode(&mut frame, version).map_err(|e| malformed(&e))?;
        let length = (frame.len() - 4) as u32;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.outgoing
            .send(Outgoing { frame, reply: reply(correlation) })
            .map_err(|_| ClientError::Disconnected { address: self.address.clone() })
    }
}

impl<R: Api> Pending<R> {
    /// The answer to a request that may take longer than others, or the error after so long.
    pub(crate) async fn wait_for(mut self, timeout: Duration) -> Result<R::Response, ClientError> {
        self.timeout = timeout;
        self.wait().await
    }

    /// The answer, or the error after the request's timeout.
    pub(crate) async fn wait(self) -> Result<R::Response, ClientError> {
        use kafka_protocol::protocol::HeaderVersion;
        let version = self.version;
        let mut bytes = self.bytes().await?;
        let malformed = |e: &dyn std::fmt::Display| ClientError::Malformed(format!("{}: {e}", R::NAME));
        ResponseHeader::decode(&mut bytes, R::Response::header_version(version))
            .map_err(|e| malformed(&e))?;
        R::Response::decode(&mut bytes, version).map_err(|e| malformed(&e))
    }

    async fn bytes(self) -> Result<Bytes, ClientError> {
        match timeout(self.timeout, self.reply).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(_)) => Err(ClientError::Disconnected { address: self.address }),
            Err(_) => Err(ClientError::Timeout {
                what: format!("{} at {}", R::NAME, self.address),
                seconds: self.timeout.as_secs(),
            }),
        }
    }
}

/// Why a connection could not be had.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// Nobody is there: what the system says.
    Unreachable(String),
    /// Somebody is there.
    Other(ClientError),
}

async fn write(
    mut writer: Writer,
    mut requests: mpsc::UnboundedReceiver<Outgoing>,
    awaited: mpsc::UnboundedSender<(i32, oneshot::Sender<Bytes>)>,
    open: Arc<AtomicBool>,
) {
    while let Some(Outgoing { frame, reply }) = requests.recv().await {
        let written = match reply {
            Reply::Answer(correlation, reply) => match awaited.send((correlation, reply)) {
                Ok(()) => None,
                Err(_) => break,
            },
            Reply::Written(written) => Some(written),
        };
        if writer.write_all(&frame).await.is_err() {
            break;
        }
        if (requests.is_empty() || written.is_some()) && writer.flush().await.is_err() {
            break;
        }
        if let Some(written) = written {
            let _ = written.send(());
        }
    }
    open.store(false, Ordering::Relaxed);
    let _ = writer.shutdown().await;
}

/// Hands out answers in the order of their requests; whoever still waits when it ends is told so by the end of
/// their channel.
async fn read(
    mut reader: Reader,
    mut replies: mpsc::UnboundedReceiver<(i32, oneshot::Sender<Bytes>)>,
    open: Arc<AtomicBool>,
) {
    while let Ok(frame) = read_frame(&mut reader).await {
        if frame.len() < 4 {
            break;
        }
        let Ok((correlation, reply)) = replies.try_recv() else { break };
        if (&frame[..4]).get_i32() != correlation {
            break;
        }
        let _ = reply.send(frame);
    }
    open.store(false, Ordering::Relaxed);
    replies.close();
}

async fn read_frame(reader: &mut Reader) -> io::Result<Bytes> {
    let length = reader.read_u32().await? as usize;
    if length > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = BytesMut::with_capacity(length);
    let mut rest = reader.take(length as u64);
    while frame.len() < length {
        if rest.read_buf(&mut frame).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(frame.freeze())
}

/// The system's words without its numbers.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}
