//! Errors and refusals as RFC 9457 problem details. `type` is stable: `urn:dibs:problem:NAME`.

use axum::response::IntoResponse;
use bytes::Bytes;
use dibs_flow::Unanswered;
use dibs_model::Verdict;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};
use serde_json::{Map, Value, json};

/// One problem.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    name: &'static str,
    title: &'static str,
    detail: Option<String>,
    /// Seconds after which asking again may help.
    retry_after: Option<u32>,
    more: Map<String, Value>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, name: &'static str, title: &'static str) -> Problem {
        Problem { status, name, title, detail: None, retry_after: None, more: Map::new() }
    }

    pub(crate) fn detail(mut self, detail: impl ToString) -> Problem {
        self.detail = Some(detail.to_string());
        self
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(name.into(), value.into());
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Problem {
        self.retry_after = Some(seconds);
        self
    }

    pub(crate) fn invalid(detail: impl ToString) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request is not valid")
            .detail(detail)
    }

    pub(crate) fn body_too_large() -> Problem {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The body is too large")
    }

    pub(crate) fn body_late() -> Problem {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "The body did not arrive in time")
    }

    pub(crate) fn forbidden() -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "admin_key_required", "The admin key is required")
            .detail("send it as Authorization: Bearer KEY")
    }

    pub(crate) fn unknown_campaign(id: &str) -> Problem {
        Problem::verdict(Verdict::UnknownCampaign).detail(format!("there is no campaign {id:?}"))
    }

    /// A refusal of a claim.
    pub(crate) fn verdict(verdict: Verdict) -> Problem {
        let (status, title) = match verdict {
            Verdict::UnknownCampaign => (StatusCode::NOT_FOUND, "No such campaign"),
            Verdict::NotOpen => (StatusCode::TOO_EARLY, "Not open yet"),
            Verdict::Paused => (StatusCode::LOCKED, "Paused"),
            Verdict::Closed => (StatusCode::GONE, "Closed"),
            Verdict::SoldOut => (StatusCode::CONFLICT, "Sold out"),
            Verdict::Conflict => (StatusCode::CONFLICT, "A campaign with this id and other content exists"),
            Verdict::NoSuchWin => (StatusCode::CONFLICT, "There is no such win"),
            Verdict::InUse => (StatusCode::CONFLICT, "The coupon has been used"),
            Verdict::Unconfirmed => (StatusCode::CONFLICT, "The win is not confirmed yet"),
            Verdict::NotRedeemed => (StatusCode::CONFLICT, "The coupon is not in use"),
            Verdict::AlreadyRedeemed { .. } => (StatusCode::CONFLICT, "The coupon has been used already"),
            Verdict::Expired { .. } => (StatusCode::CONFLICT, "The hold has run out"),
            Verdict::StockLimit => (StatusCode::UNPROCESSABLE_ENTITY, "The stock would exceed its limit"),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "Refused"),
        };
        let name = if verdict == Verdict::Conflict { "campaign_conflict" } else { verdict.name() };
        let problem = Problem::new(status, name, title).with("verdict", verdict.name());
        if verdict == Verdict::Paused { problem.retry_after(1) } else { problem }
    }

    /// The problem as JSON.
    pub(crate) fn body(self) -> Vec<u8> {
        let mut body = json!({
            "type": format!("urn:dibs:problem:{}", self.name),
            "title": self.title,
            "status": self.status.as_u16(),
        });
        let members = body.as_object_mut().expect("an object");
        if let Some(detail) = self.detail {
            members.insert("detail".into(), detail.into());
        }
        members.extend(self.more);
        body.to_string().into_bytes()
    }

    /// The problem as HTTP.
    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let mut response =
            Response::builder().status(self.status).header(header::CONTENT_TYPE, "application/problem+json");
        if let Some(seconds) = self.retry_after {
            response = response.header(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response = response.header(header::WWW_AUTHENTICATE, "Bearer");
        }
        response.body(Full::new(self.body().into())).expect("a valid response")
    }
}

impl From<Unanswered> for Problem {
    fn from(error: Unanswered) -> Problem {
        match error {
            Unanswered::Overloaded => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", "Too many claims at once")
                    .detail("nothing was written; ask again")
                    .retry_after(1)
            }
            Unanswered::Unavailable(why) => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The log cannot be written now")
                    .detail(why)
                    .retry_after(2)
            }
            Unanswered::Unknown => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", "The outcome is unknown")
                    .detail("ask again: the same request gives the same answer")
                    .retry_after(1)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        self.response().map(axum::body::Body::new)
    }
}
