//! One HTTP/1.1 connection, and the claims as they go over it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dibs_model::CampaignId;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::outcome::Outcome;
use crate::plan::PlanError;

/// The longest wait for one answer; then the outcome counts as lost.
pub(crate) const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// The longest wait for a connection.
const CONNECT_BOUND: Duration = Duration::from_secs(5);
/// Request bodies are cut from pieces of this many bytes.
const BODY_PIECE: usize = 16 * 1024;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why an exchange has no answer. Whether the server saw the request is unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no connection within {} s", CONNECT_BOUND.as_secs())]
    ConnectSlow,
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("no answer within {} s", ANSWER_BOUND.as_secs())]
    Slow,
}

/// The server's address, taken apart once.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// What connections are made to: `host:port`.
    address: String,
    /// The `Host` header.
    host: HeaderValue,
    /// What paths start with; empty for a server at the root.
    base: String,
    /// `Bearer KEY` for the calls that need it.
    admin: Option<HeaderValue>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.address, self.base)
    }
}

impl Target {
    pub(crate) fn parse(url: &str, admin_key: Option<&str>) -> Result<Target, PlanError> {
        let wrong = |why| PlanError::Url { url: url.to_owned(), why };
        let uri: Uri =
            url.parse().map_err(|_| wrong("this is no URL; one looks like http://127.0.0.1:8080"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("only http:// is spoken here, without TLS"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("there is no host in it"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user name in it is not used; the admin key is --admin-key"));
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| wrong("the host is no host"))?;
        let port = authority.port_u16().unwrap_or(80);
        let admin = match admin_key {
            None => None,
            Some(key) => {
                Some(HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| PlanError::AdminKey)?)
            }
        };
        let base = uri.path().trim_end_matches('/').to_owned();
        Ok(Target { address: format!("{}:{port}", authority.host()), host, base, admin })
    }

    /// A request that is not a claim. `path` starts with `/v1`; `body` is JSON.
    pub(crate) fn request(&self, method: Method, path: &str, body: Option<Bytes>) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.uri_mut() = path_of(&self.base, path);
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        if method != Method::GET {
            headers.insert(CONTENT_TYPE, JSON);
            if let Some(admin) = &self.admin {
                headers.insert(AUTHORIZATION, admin.clone());
            }
        }
        *request.method_mut() = method;
        request
    }
}

/// Paths are made of a checked base and percent-encoded pieces, so they parse.
fn path_of(base: &str, path: &str) -> Uri {
    format!("{base}{path}").parse().expect("an encoded path is a URI")
}

/// Percent-encodes a path segment: everything but RFC 3986's unreserved characters.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The claims of one connection, ready to send: only the user's number is written for each.
pub(crate) struct Claims {
    uri: Uri,
    host: HeaderValue,
    /// Everything before the number: `{"user":"rush-`.
    opening: String,
    /// One for each press; empty when no keys are sent.
    keys: Vec<HeaderValue>,
    piece: BytesMut,
}

impl Claims {
    /// `keys` is how many different idempotency keys there are, 0 for none.
    pub(crate) fn new(target: &Target, campaign: &CampaignId, prefix: &str, keys: u16) -> Claims {
        // serde_json escapes the prefix; its closing quote comes after the number instead.
        let mut opening = format!("{{\"user\":{}", serde_json::Value::from(prefix));
        opening.pop();
        let keys = (0..keys)
            .map(|n| HeaderValue::from_str(&format!("press-{n}")).expect("letters and digits"))
            .collect();
        let uri = path_of(&target.base, &format!("/v1/campaigns/{}/claims", segment(campaign.as_str())));
        Claims { uri, host: target.host.clone(), opening, keys, piece: BytesMut::new() }
    }

    pub(crate) fn request(&mut self, user: u32, nth: u16) -> Request<Full<Bytes>> {
        let longest = self.opening.len() + 12;
        if self.piece.capacity() < longest {
            self.piece.reserve(longest.max(BODY_PIECE));
        }
        let _ = write!(self.piece, "{}{user}\"}}", self.opening);
        let mut request = Request::new(Full::new(self.piece.split().freeze()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, JSON);
        if let Some(key) = self.keys.get(usize::from(nth)) {
            headers.insert(IDEMPOTENCY_KEY, key.clone());
        }
        request
    }
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// `Retry-After`, when it is a number of seconds.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

/// One keep-alive connection. Both halves of hyper's client are driven by the task that asks: no second task
/// to wake for each answer.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<TokioIo<TcpStream>, Full<Bytes>>,
}

impl Line {
    async fn open(address: &str) -> Result<Line, WireError> {
        let connect = tokio::time::timeout(CONNECT_BOUND, TcpStream::connect(address));
        let stream = connect.await.map_err(|_| WireError::ConnectSlow)?.map_err(WireError::Connect)?;
        stream.set_nodelay(true).map_err(WireError::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        Ok(Line { sender, connection })
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, WireError> {
        let Line { sender, connection } = self;
        let mut reply = pin!(async move {
            sender.ready().await?;
            read(sender.send_request(request).await?).await
        });
        poll_fn(|cx| {
            // The first round makes the connection ready, the second one writes: a request is on its way after
            // one poll, however soon it is given up.
            for _ in 0..2 {
                if let Poll::Ready(reply) = reply.as_mut().poll(cx) {
                    return Poll::Ready(reply);
                }
                if let Poll::Ready(end) = Pin::new(&mut *connection).poll(cx) {
                    // The last answer may have come together with the end.
                    let reply = reply.as_mut().poll(cx);
                    let lost = end.map_or_else(WireError::from, |()| WireError::Closed);
                    return if reply.is_ready() { reply } else { Poll::Ready(Err(lost)) };
                }
            }
            reply.as_mut().poll(cx)
        })
        .await
    }
}

async fn read(response: Response<Incoming>) -> Result<Reply, WireError> {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let mut incoming = response.into_body();
    let mut body = Bytes::new();
    while !incoming.is_end_stream() {
        let Some(frame) = incoming.frame().await else { break };
        let Ok(data) = frame?.into_data() else { continue };
        // Nearly every body comes in one frame and is taken as it is.
        body = if body.is_empty() { data } else { [body, data].concat().into() };
    }
    Ok(Reply { status, retry_after: retry_after.map(Duration::from_secs), body })
}

/// A caller's way to the server: one connection at a time, opened when it is needed.
pub(crate) struct Caller {
    target: Target,
    line: Option<Line>,
}

impl Caller {
    pub(crate) fn new(target: &Target) -> Caller {
        Caller { target: target.clone(), line: None }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Connects unless there is a connection.
    pub(crate) async fn connect(&mut self) -> Result<(), WireError> {
        if self.line.as_ref().is_none_or(|line| line.sender.is_closed()) {
            self.line = Some(Line::open(&self.target.address).await?);
        }
        Ok(())
    }

    /// Sends and waits for the answer, at most [`ANSWER_BOUND`]. After an error the connection is gone.
    pub(crate) async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, WireError> {
        self.connect().await?;
        // Out of `self` while it is in use: an exchange that is given up takes its connection with it.
        let mut line = self.line.take().expect("connected above");
        let reply = tokio::time::timeout(ANSWER_BOUND, line.exchange(request)).await;
        let reply = reply.map_err(|_| WireError::Slow)??;
        self.line = Some(line);
        Ok(reply)
    }

    /// Sends, waits no longer than `wait`, and drops the connection without looking at any answer.
    pub(crate) async fn send_and_drop(&mut self, request: Request<Full<Bytes>>, wait: Duration) {
        if self.connect().await.is_ok() {
            let mut line = self.line.take().expect("connected above");
            let _ = tokio::time::timeout(wait, line.exchange(request)).await;
        }
    }
}

/// A win, as claims, claim status and coupons show it.
#[derive(Debug, Deserialize)]
pub(crate) struct WinJson<'a> {
    #[serde(borrow)]
    pub(crate) user: Cow<'a, str>,
    pub(crate) rank: u32,
    #[serde(borrow, default)]
    pub(crate) state: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) code: Option<Cow<'a, str>>,
    pub(crate) claim: PlaceJson,
}

/// Where the winning claim stands in the log.
#[derive(Debug, Deserialize)]
pub(crate) struct PlaceJson {
    pub(crate) offset: u64,
}

/// The part of every answer that says what was decided.
#[derive(Debug, Deserialize)]
pub(crate) struct VerdictJson<'a> {
    #[serde(borrow, default)]
    pub(crate) verdict: Option<Cow<'a, str>>,
}

/// What the answer to a claim means. Status and verdict must say the same.
pub(crate) fn outcome_of(reply: &Reply) -> Outcome {
    let (expected, outcome) = match reply.status {
        201 => ("won", Outcome::Won),
        200 => ("already_won", Outcome::AlreadyWon),
        202 => ("waitlisted", Outcome::Waitlisted),
        409 => ("sold_out", Outcome::SoldOut),
        425 => ("not_open", Outcome::NotOpen),
        423 => ("paused", Outcome::Paused),
        410 => ("closed", Outcome::Closed),
        404 => ("unknown_campaign", Outcome::UnknownCampaign),
        429 => return Outcome::Throttled,
        500..=599 => return Outcome::Unavailable,
        _ => return Outcome::Unexpected,
    };
    match serde_json::from_slice::<VerdictJson<'_>>(&reply.body) {
        Ok(json) if json.verdict.as_deref() == Some(expected) => outcome,
        _ => Outcome::Unexpected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &'static str) -> Reply {
        Reply { status, retry_after: None, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn status_and_verdict_must_agree() {
        assert_eq!(outcome_of(&reply(409, r#"{"verdict":"sold_out"}"#)), Outcome::SoldOut);
        assert_eq!(outcome_of(&reply(409, r#"{"verdict":"won"}"#)), Outcome::Unexpected);
        assert_eq!(outcome_of(&reply(201, "nonsense")), Outcome::Unexpected);
        assert_eq!(outcome_of(&reply(503, "")), Outcome::Unavailable);
        assert_eq!(outcome_of(&reply(302, "")), Outcome::Unexpected);
    }

    #[tokio::test]
    async fn claims_are_json_whatever_the_prefix() {
        let target = Target::parse("http://h:1/base/", None).unwrap();
        let mut claims = Claims::new(&target, &CampaignId::new("c").unwrap(), "김\"\\", 2);
        for user in [0, u32::MAX] {
            let request = claims.request(user, 1);
            assert_eq!(request.uri().path(), "/base/v1/campaigns/c/claims");
            assert_eq!(request.headers()["idempotency-key"], "press-1");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["user"], format!("김\"\\{user}"));
        }
    }

    #[test]
    fn path_segments_are_encoded() {
        assert_eq!(segment("a/b c%김"), "a%2Fb%20c%25%EA%B9%80");
        assert_eq!(segment("SUMMER-28T5_x.~"), "SUMMER-28T5_x.~");
    }
}
