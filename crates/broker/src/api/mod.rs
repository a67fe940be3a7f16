//! What is answered, one file for each API or family of them. The versions stand beside the handler.

mod acls;
mod alter_configs;
mod api_versions;
mod authorize;
mod by_id;
mod client_quotas;
mod cluster;
mod configs;
mod consumer_groups;
mod create_partitions;
mod create_topics;
mod delete_records;
mod delete_topics;
mod fetch;
mod fetch_answer;
pub(crate) mod fetch_sessions;
mod find_coordinator;
mod groups;
mod init_producer_id;
mod leaders;
mod list_offsets;
mod log_dirs;
mod membership;
mod metadata;
mod offsets;
mod produce;
mod sasl;
mod scram_credentials;
mod topic_partitions;
mod txn;
mod txn_admin;
mod txn_offsets;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{ProduceRequest, TopicName},
    protocol::StrBytes,
};

use crate::{
    clock,
    connection::{Client, Hangup},
    quota::Quota,
    server::Shared,
    wire::{Reply, Request, RequestHeader, Response, Versions, next_frame, shape},
};

/// A request that is being answered.
pub(crate) struct Answering {
    /// `None` answers nothing.
    pub(crate) future: Pin<Box<dyn Future<Output = Result<Option<Reply>, Hangup>> + Send>>,
    /// Whether the connection's next request may begin before this one is answered.
    pub(crate) pipelined: bool,
}

/// What a handler knows besides the request.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Arc<Client>,
    pub(crate) client_id: String,
    pub(crate) version: i16,
}

/// A request before it is decoded.
struct Call {
    cx: Context,
    correlation: i32,
    body: Bytes,
}

macro_rules! apis {
    ($($key:literal $min:literal..=$max:literal => $handler:expr;)*) => {
        /// What is served, as (key, versions). Produce is said to begin at 0 though 3 is the first that is
        /// taken: older librdkafka turns compression off otherwise.
        pub(crate) const SERVED: &[(i16, Versions)] = &[$(($key, Versions($min, $max)),)*];

        fn dispatch(key: i16, call: Call) -> Result<Answering, Hangup> {
            match key {
                0 => produce::begin(call),
                $($key => call.run($handler),)*
                _ => Err(Hangup::Refused(format!("API {key} is not served"))),
            }
        }

        /// Decodes a body, and does nothing with it.
        fn decode_only(key: i16, body: &mut Bytes, version: i16) -> Result<(), Hangup> {
            match key {
                0 => decode::<ProduceRequest>(body, version).map(drop),
                $($key => decode_for($handler, body, version),)*
                _ => Err(Hangup::Refused(format!("API {key} is not served"))),
            }
        }
    };
}

apis! {
    1 4..=18 => fetch::answer;
    2 1..=10 => list_offsets::answer;
    3 0..=13 => metadata::answer;
    8 2..=10 => offsets::commit;
    9 1..=10 => offsets::fetch;
    10 0..=6 => find_coordinator::answer;
    11 0..=9 => membership::join;
    12 0..=4 => membership::heartbeat;
    13 0..=5 => membership::leave;
    14 0..=5 => membership::sync;
    15 0..=6 => groups::describe;
    16 0..=5 => groups::list;
    17 0..=1 => sasl::handshake;
    18 0..=4 => api_versions::answer;
    19 2..=7 => create_topics::answer;
    20 1..=6 => delete_topics::answer;
    21 0..=2 => delete_records::answer;
    22 0..=5 => init_producer_id::answer;
    23 2..=4 => list_offsets::answer_epochs;
    24 0..=5 => txn::add_partitions;
    25 0..=4 => txn::add_offsets;
    26 0..=5 => txn::end;
    27 1..=1 => txn_admin::write_markers;
    28 0..=5 => txn_offsets::answer;
    29 1..=3 => acls::describe;
    30 1..=3 => acls::create;
    31 1..=3 => acls::delete;
    32 1..=4 => configs::describe;
    33 0..=2 => alter_configs::wholly;
    34 1..=2 => log_dirs::alter;
    35 1..=4 => log_dirs::answer;
    36 0..=2 => sasl::authenticate;
    37 0..=3 => create_partitions::answer;
    42 0..=2 => groups::delete;
    43 0..=2 => leaders::elect;
    44 0..=1 => alter_configs::incrementally;
    45 0..=1 => leaders::reassign;
    46 0..=0 => leaders::reassignments;
    47 0..=0 => offsets::delete;
    48 0..=1 => client_quotas::describe;
    49 0..=1 => client_quotas::alter;
    50 0..=0 => scram_credentials::describe;
    51 0..=0 => scram_credentials::alter;
    55 0..=2 => cluster::quorum;
    60 0..=2 => cluster::answer;
    61 0..=0 => txn_admin::describe_producers;
    65 0..=0 => txn_admin::describe;
    66 0..=2 => txn_admin::list;
    68 0..=1 => consumer_groups::heartbeat;
    69 0..=1 => consumer_groups::describe;
    74 0..=1 => configs::list;
    75 0..=0 => topic_partitions::answer;
}

/// Begins to answer a request. An error ends the connection, as it does with Kafka.
pub(crate) fn begin(shared: &Arc<Shared>, client: &Arc<Client>, frame: Bytes) -> Result<Answering, Hangup> {
    if client.auth().takes_raw() {
        return sasl::token(shared, client, &frame);
    }
    let (header, body) = match read(frame)? {
        Read::Request(header, body) => (header, body),
        Read::UnknownApiVersions(correlation) => return api_versions::unsupported(correlation),
    };
    let RequestHeader { key, version, correlation, client_id } = header;
    sasl::may(&client.auth(), key, clock::mono_ms())?;
    let client_id = client_id.unwrap_or_default();
    let cx = Context { shared: shared.clone(), client: client.clone(), client_id, version };
    if !shared.quotas.limits(Quota::Request) {
        return dispatch(key, Call { cx, correlation, body });
    }
    let began = Instant::now();
    let answering = dispatch(key, Call { cx: cx.clone(), correlation, body })?;
    Ok(timed(cx, answering, began.elapsed()))
}

/// Takes the time that it takes to answer out of the client's quota.
fn timed(cx: Context, answering: Answering, mut spent: Duration) -> Answering {
    let Answering { mut future, pipelined } = answering;
    let future = std::future::poll_fn(move |context| {
        let began = Instant::now();
        let polled = future.as_mut().poll(context);
        spent += began.elapsed();
        if polled.is_ready() {
            cx.takes(Quota::Request, spent.as_secs_f64() * 100.0);
        }
        polled
    });
    Answering { future: Box::pin(future), pipelined }
}

/// A frame whose request is all there.
enum Read {
    Request(RequestHeader, Bytes),
    /// ApiVersions in a version that is not known, with its correlation id.
    UnknownApiVersions(i32),
}

fn read(mut frame: Bytes) -> Result<Read, Hangup> {
    let mut header = RequestHeader::begin(&mut frame)?;
    let (key, version) = (header.key, header.version);
    let unserved = || Hangup::Refused(format!("API {key} version {version} is not served"));
    let shape = shape(key).ok_or_else(unserved)?;
    if key == api_versions::KEY && !shape.versions.has(version) {
        return Ok(Read::UnknownApiVersions(header.correlation));
    }
    if !served(key).is_some_and(|versions| versions.has(version)) {
        return Err(unserved());
    }
    header.finish(&mut frame, shape.is_flexible(version))?;
    shape.check(&frame, version)?;
    Ok(Read::Request(header, frame))
}

/// Reads requests out of a stream of frames as a connection does, up to where they would be answered: what is no
/// request is an error, and nothing makes it panic or take much more memory than was sent. For fuzzing.
pub fn read_requests(stream: &[u8]) -> Result<usize, String> {
    let (mut buffer, mut count) = (BytesMut::from(stream), 0);
    while let Some(frame) = next_frame(&mut buffer, stream.len()).map_err(|e| e.to_string())? {
        if let Read::Request(header, mut body) = read(frame).map_err(|e| e.to_string())? {
            decode_only(header.key, &mut body, header.version).map_err(|e| e.to_string())?;
        }
        count += 1;
    }
    Ok(count)
}

/// The versions of an API that are taken.
fn served(key: i16) -> Option<Versions> {
    if key == produce::KEY {
        return Some(produce::VERSIONS);
    }
    SERVED.iter().find(|(k, _)| *k == key).map(|(_, versions)| *versions)
}

fn decode<R: Request>(body: &mut Bytes, version: i16) -> Result<R, Hangup> {
    R::read(body, version).map_err(Hangup::Refused)
}

/// Decodes what a handler takes.
fn decode_for<Req: Request, F>(
    _: impl FnOnce(Context, Req) -> F,
    body: &mut Bytes,
    version: i16,
) -> Result<(), Hangup> {
    decode::<Req>(body, version).map(drop)
}

impl Call {
    fn decode<R: Request>(&mut self) -> Result<R, Hangup> {
        decode(&mut self.body, self.cx.version)
    }

    fn run<Req, Res, F>(
        mut self,
        handler: impl FnOnce(Context, Req) -> F + Send + 'static,
    ) -> Result<Answering, Hangup>
    where
        Req: Request + Send + 'static,
        Res: Response + Send,
        F: Future<Output = Res> + Send,
    {
        let request = self.decode::<Req>()?;
        let (correlation, version) = (self.correlation, self.cx.version);
        let future = async move {
            let response = handler(self.cx, request).await;
            Reply::frame(correlation, version, &response).map(Some).map_err(unencodable)
        };
        Ok(Answering { future: Box::pin(future), pipelined: false })
    }
}

fn unencodable(what: String) -> Hangup {
    tracing::error!("a response could not be written: {what}");
    Hangup::Unencodable(what)
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.client_id, self.version)
    }
}

/// An error with the sentence that explains it.
type Refusal = (ResponseError, String);

/// An error that explains itself.
fn refusal(error: ResponseError) -> Refusal {
    (error, error.to_string())
}

/// What no broker would take.
fn invalid(why: impl Into<String>) -> Refusal {
    (ResponseError::InvalidRequest, why.into())
}

/// Text as the codec wants it.
fn text(s: impl Into<String>) -> StrBytes {
    StrBytes::from_string(s.into())
}

/// A topic's name as the codec wants it.
fn topic_name(s: &str) -> TopicName {
    TopicName(text(s))
}

/// An error's number, 0 for none.
fn code<T>(result: &Result<T, ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, ResponseError::code)
}

/// Runs what waits for the disk where it holds nobody up.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ResponseError> + Send + 'static,
) -> Result<T, ResponseError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(ResponseError::UnknownServerError))
}

#[cfg(test)]
mod tests;
