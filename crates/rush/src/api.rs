//! The public calls that are not claims: to prepare the campaign, to watch it, and to check it afterwards.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use dibs_model::CampaignId;
use hyper::Method;
use serde::{Deserialize, de::DeserializeOwned};

use crate::wire::{Caller, Reply, Target, WinJson, WireError, segment};

/// The first pause after an answer that says "ask again".
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause, whatever `Retry-After` asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a call has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer in spite of all retries.
    #[error("{what}: {why}")]
    Unreachable {
        /// The call.
        what: String,
        /// The last failure.
        why: String,
    },
    /// The server refuses.
    #[error("{what}: the server answers {status} {body}")]
    Refused {
        /// The call.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        body: String,
    },
    /// The answer is not what the contract says.
    #[error("{what}: the answer cannot be read ({why}): {body}")]
    Unreadable {
        /// The call.
        what: String,
        /// What is wrong with it.
        why: String,
        /// What came.
        body: String,
    },
}

/// A campaign as the server shows it: the members that are used here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CampaignJson {
    pub(crate) stock: u64,
    pub(crate) won: u64,
    #[serde(default)]
    pub(crate) held: u64,
    pub(crate) remaining: u64,
    pub(crate) issued: u64,
    pub(crate) opens_at: String,
    pub(crate) per_user_limit: u32,
    #[serde(default)]
    pub(crate) hold_seconds: u32,
    #[serde(default)]
    pub(crate) waitlist: u64,
}

impl CampaignJson {
    /// How many coupon rows there will be once the issuer has caught up: held wins have none yet.
    pub(crate) fn issuable(&self) -> u64 {
        self.won.saturating_sub(self.held)
    }

    /// How long until the opening; zero once it is past.
    pub(crate) fn opens_in(&self) -> Result<Duration, String> {
        let opens = humantime::parse_rfc3339(&self.opens_at).map_err(|e| format!("opens_at: {e}"))?;
        Ok(opens.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

/// A win as a check keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownWin {
    pub(crate) user: String,
    pub(crate) rank: u32,
    pub(crate) code: Option<Box<str>>,
    pub(crate) offset: u64,
    /// `cancelled` or `expired`: it does not count any more.
    pub(crate) dead: bool,
}

/// What the server shows of a user's claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ShownClaim {
    Win(ShownWin),
    Waiting,
    Nothing,
}

/// Asks the server, again and again while it says so or is away, for at most `patience` a call.
pub(crate) struct Api {
    caller: Caller,
    patience: Duration,
}

impl Api {
    pub(crate) fn new(target: &Target, patience: Duration) -> Api {
        Api { caller: Caller::new(target), patience }
    }

    /// Connects without any retry: nobody there at the very start is an address mistyped, not a restart.
    pub(crate) async fn connect(&mut self) -> Result<(), WireError> {
        self.caller.connect().await
    }

    pub(crate) async fn create(
        &mut self,
        id: &CampaignId,
        stock: u64,
        opens: SystemTime,
    ) -> Result<(), ApiError> {
        let opens_at = humantime::format_rfc3339_millis(opens);
        let body = format!(r#"{{"id":"{id}","stock":{stock},"opens_at":"{opens_at}"}}"#);
        let reply = self.call(Method::POST, "/v1/campaigns", Some(body.into())).await?;
        match reply.status {
            200 | 201 => Ok(()),
            _ => Err(refused(&format!("create the campaign {id}"), &reply)),
        }
    }

    pub(crate) async fn campaign(&mut self, id: &CampaignId) -> Result<CampaignJson, ApiError> {
        let path = format!("/v1/campaigns/{}", segment(id.as_str()));
        let reply = self.call(Method::GET, &path, None).await?;
        let what = format!("read the campaign {id}");
        if reply.status == 200 { parse(&what, &reply) } else { Err(refused(&what, &reply)) }
    }

    pub(crate) async fn claim_of(&mut self, id: &CampaignId, user: &str) -> Result<ShownClaim, ApiError> {
        let path = format!("/v1/campaigns/{}/claims/{}", segment(id.as_str()), segment(user));
        let reply = self.call(Method::GET, &path, None).await?;
        let what = format!("read the claim of {user}");
        match reply.status {
            404 => Ok(ShownClaim::Nothing),
            200 => match parse::<VerdictOnly>(&what, &reply)?.verdict.as_deref() {
                Some("waitlisted") => Ok(ShownClaim::Waiting),
                _ => Ok(ShownClaim::Win(shown(&what, &reply)?)),
            },
            _ => Err(refused(&what, &reply)),
        }
    }

    /// The win that has this code; `None` when the server knows no such coupon.
    pub(crate) async fn coupon(&mut self, id: &CampaignId, code: &str) -> Result<Option<ShownWin>, ApiError> {
        let path = format!("/v1/coupons/{}?campaign={}", segment(code), segment(id.as_str()));
        let reply = self.call(Method::GET, &path, None).await?;
        let what = format!("read the coupon {code}");
        match reply.status {
            404 => Ok(None),
            200 => Ok(Some(shown(&what, &reply)?)),
            _ => Err(refused(&what, &reply)),
        }
    }

    async fn call(&mut self, method: Method, path: &str, body: Option<Bytes>) -> Result<Reply, ApiError> {
        let begun = Instant::now();
        for attempt in 0.. {
            let request = self.caller.target().request(method.clone(), path, body.clone());
            let (why, retry_after) = match self.caller.exchange(request).await {
                Ok(reply) if reply.status != 429 && reply.status < 500 => return Ok(reply),
                Ok(reply) => (format!("the server answers {}", reply.status), reply.retry_after),
                Err(error) => (error.to_string(), None),
            };
            let pause = pause(attempt, retry_after, fastrand::f64());
            if begun.elapsed() + pause > self.patience {
                return Err(ApiError::Unreachable { what: format!("{method} {path}"), why });
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop ends by patience")
    }
}

/// How long to wait before the attempt after number `attempt`: what the server asks for, or else twice as
/// long each time; spread by `jitter` (0 to 1) so that those refused together do not come back together.
pub(crate) fn pause(attempt: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
    let base = match retry_after {
        Some(asked) => asked,
        None => FIRST_PAUSE * 2u32.pow(attempt.min(7)),
    };
    (base.mul_f64(1.0 + jitter / 2.0)).min(LONGEST_PAUSE).max(FIRST_PAUSE)
}

/// The verdict with its text owned, where the reply is parsed twice.
#[derive(Deserialize)]
struct VerdictOnly {
    #[serde(default)]
    verdict: Option<String>,
}

fn shown(what: &str, reply: &Reply) -> Result<ShownWin, ApiError> {
    let win: WinJson<'_> = serde_json::from_slice(&reply.body).map_err(|e| unreadable(what, &e, reply))?;
    Ok(ShownWin {
        user: win.user.into_owned(),
        rank: win.rank,
        code: win.code.map(|code| code.into()),
        offset: win.claim.offset,
        dead: matches!(&*win.state, "cancelled" | "expired"),
    })
}

fn parse<T: DeserializeOwned>(what: &str, reply: &Reply) -> Result<T, ApiError> {
    serde_json::from_slice(&reply.body).map_err(|e| unreadable(what, &e, reply))
}

fn refused(what: &str, reply: &Reply) -> ApiError {
    ApiError::Refused { what: what.to_owned(), status: reply.status, body: excerpt(&reply.body) }
}

fn unreadable(what: &str, why: &serde_json::Error, reply: &Reply) -> ApiError {
    ApiError::Unreadable { what: what.to_owned(), why: why.to_string(), body: excerpt(&reply.body) }
}

/// The start of a body, as text.
pub(crate) fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_and_is_bounded() {
        assert_eq!(pause(0, None, 0.0), Duration::from_millis(10));
        assert_eq!(pause(3, None, 0.0), Duration::from_millis(80));
        assert_eq!(pause(99, None, 0.0), Duration::from_millis(1_280));
        assert_eq!(pause(0, Some(Duration::from_secs(1)), 1.0), Duration::from_millis(1_500));
        assert_eq!(pause(0, Some(Duration::from_secs(999)), 0.0), LONGEST_PAUSE);
        assert_eq!(pause(0, Some(Duration::ZERO), 0.0), FIRST_PAUSE);
    }
}
