//! Claims: the hot path, and what becomes of a claim afterwards.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use dibs_flow::{Claimed, Unanswered};
use dibs_model::{CampaignId, Command, RequestKey, UserId, Verdict};
use http_body_util::Full;
use hyper::{StatusCode, header};
use serde::Deserialize;

use super::{
    App,
    extract::{Body, Path},
    problem::Problem,
    view::{self, WinView},
};

/// The answer of the hot path: a body in one piece.
pub(crate) type Plain = hyper::Response<Full<Bytes>>;

#[derive(Deserialize)]
struct Claim<'a> {
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
}

/// `POST /v1/campaigns/{id}/claims`, from its parts.
pub(crate) async fn claim(app: &App, id: &str, headers: &HeaderMap, body: &[u8]) -> Plain {
    match try_claim(app, id, headers, body).await {
        Ok(response) => response,
        Err(problem) => problem.response(),
    }
}

/// The same by way of the router.
pub(crate) async fn routed(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(body): Body,
) -> Response {
    claim(&app, &id, &headers, &body).await.map(axum::body::Body::new)
}

async fn try_claim(app: &App, id: &str, headers: &HeaderMap, body: &[u8]) -> Result<Plain, Problem> {
    CampaignId::check(id).map_err(Problem::invalid)?;
    let user = match app.users.user(headers)? {
        Some(user) => Cow::Owned(user),
        None => {
            let body: Claim<'_> = serde_json::from_slice(body).map_err(|e| {
                Problem::invalid(format!(r#"the body must be JSON such as {{"user":"u-1"}}: {e}"#))
            })?;
            let user = body.user.ok_or_else(|| Problem::invalid("the body must name the user"))?;
            UserId::check(&user).map_err(Problem::invalid)?;
            user
        }
    };
    let key = request_key(headers)?;
    let partition = app.flow.partition(id);
    match partition.claim(id, &user, key).await? {
        Claimed::Refused(verdict) => Ok(refused(app, id, &user, verdict)),
        Claimed::Answered(answer) => {
            let Verdict::Won { rank } = answer.verdict else {
                return Ok(refused(app, id, &user, answer.verdict));
            };
            let (group, index) = answer.receipt.expect("a win has a receipt");
            let receipt = group.receipt(index, app.flow.signatory());
            let state = partition.state();
            let campaign = state.campaign(id).expect("a decided campaign exists");
            let win = campaign.win_at(rank).expect("a decided win exists");
            let mut out = Vec::with_capacity(1_024);
            WinView { verdict: "won", campaign, win, receipt: &receipt }
                .write(&app.flow, partition, &mut out);
            drop(state);
            Ok(json(StatusCode::CREATED, out))
        }
    }
}

/// The answer to a claim that did not win now.
fn refused(app: &App, id: &str, user: &str, verdict: Verdict) -> Plain {
    match verdict {
        Verdict::AlreadyWon { rank } => {
            let partition = app.flow.partition(id);
            let state = partition.state();
            let campaign = state.campaign(id).expect("a decided campaign exists");
            let win = campaign.win_at(rank).expect("a decided win exists");
            json(StatusCode::OK, view::win(&app.flow, partition, campaign, win, Some(verdict)))
        }
        Verdict::Waitlisted { position } => json(StatusCode::ACCEPTED, waiting(id, user, position)),
        // Nearly all answers of a rush: made once, sent a million times.
        Verdict::SoldOut => {
            let response = hyper::Response::builder()
                .status(StatusCode::CONFLICT)
                .header(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
            response.body(Full::new(Bytes::from_static(&SOLD_OUT))).expect("a valid response")
        }
        Verdict::NotOpen => {
            let mut problem = Problem::verdict(verdict);
            if let Some(campaign) = app.flow.partition(id).state().campaign(id) {
                problem = problem.with("opens_at", view::time(campaign.spec().opens_at));
            }
            problem.response()
        }
        Verdict::UnknownCampaign => Problem::unknown_campaign(id).response(),
        other => Problem::verdict(other).response(),
    }
}

fn waiting(id: &str, user: &str, position: u64) -> Vec<u8> {
    let body = serde_json::json!({
        "verdict": "waitlisted", "campaign": id, "user": user, "position": position,
    });
    body.to_string().into_bytes()
}

pub(crate) fn json(status: StatusCode, body: Vec<u8>) -> Plain {
    let response = hyper::Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response.body(Full::new(body.into())).expect("a valid response")
}

/// The body of a sold-out answer. Static, so that no two cores count references to it.
static SOLD_OUT: LazyLock<Vec<u8>> = LazyLock::new(|| Problem::verdict(Verdict::SoldOut).body());

/// `Idempotency-Key`, empty without one.
pub(crate) fn request_key(headers: &HeaderMap) -> Result<&str, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok("") };
    let key = std::str::from_utf8(value.as_bytes());
    let key = key.map_err(|_| Problem::invalid("the Idempotency-Key is not UTF-8"))?;
    RequestKey::check(key).map_err(Problem::invalid)?;
    Ok(key)
}

/// `GET /v1/campaigns/{id}/claims/{user}`
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path((id, user)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let user = app.users.user(&headers)?.unwrap_or(user);
    let partition = app.flow.partition(&id);
    let state = partition.state();
    let campaign = state.campaign(&id).ok_or_else(|| Problem::unknown_campaign(&id))?;
    if let Some(win) = campaign.wins_of(&user).next() {
        return Ok(whole(StatusCode::OK, view::win(&app.flow, partition, campaign, win, None)));
    }
    let position = campaign.position_of(&user).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "no_claim", "This user holds nothing and does not wait here")
    })?;
    Ok(whole(StatusCode::OK, waiting(&id, &user, position)))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    rank: Option<u32>,
}

fn which(body: &[u8]) -> Result<Option<u32>, Problem> {
    if body.is_empty() {
        return Ok(None);
    }
    let which: Which = serde_json::from_slice(body).map_err(|e| {
        Problem::invalid(format!(r#"the body must be empty or JSON such as {{"rank":17}}: {e}"#))
    })?;
    match which.rank {
        Some(0) => Err(Problem::invalid("ranks count from 1")),
        rank => Ok(rank),
    }
}

/// `POST …/confirm`
pub(crate) async fn confirm(
    State(app): State<Arc<App>>,
    Path((id, user)): Path<(String, String)>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Problem> {
    let user = app.users.user(&headers)?.unwrap_or(user);
    UserId::check(&user).map_err(Problem::invalid)?;
    let command = Command::Confirm { user: user.as_str().into(), rank: which(&body)? };
    after(&app, &id, &user, &command).await
}

/// `POST …/cancel`
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    Path((id, user)): Path<(String, String)>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Problem> {
    let user = app.users.user(&headers)?.unwrap_or(user);
    UserId::check(&user).map_err(Problem::invalid)?;
    let command = Command::Cancel { user: user.as_str().into(), rank: which(&body)? };
    after(&app, &id, &user, &command).await
}

async fn after(app: &App, id: &str, user: &str, command: &Command<'_>) -> Result<Response, Problem> {
    let partition = app.flow.partition(id);
    if partition.state().campaign(id).is_none() {
        return Err(Problem::unknown_campaign(id));
    }
    let answer = partition.command(id, command).await?;
    let state = partition.state();
    let campaign = state.campaign(id).ok_or(Unanswered::Unknown)?;
    let asked = match command {
        Command::Confirm { rank, .. } | Command::Cancel { rank, .. } => *rank,
        _ => None,
    };
    let win = match (answer.verdict, asked) {
        (Verdict::Confirmed { rank }, _) => campaign.win_at(rank),
        (Verdict::Cancelled, Some(rank)) => campaign.win_at(rank),
        (Verdict::Cancelled, None) => campaign.wins_of(user).next(),
        (other, _) => return Err(Problem::verdict(other)),
    };
    Ok(match win {
        Some(win) => {
            let body = view::win(&app.flow, partition, campaign, win, Some(answer.verdict));
            whole(StatusCode::OK, body)
        }
        // A place on the waitlist that was given up leaves nothing to show.
        None => axum::Json(serde_json::json!({"verdict": "cancelled", "campaign": id, "user": user}))
            .into_response(),
    })
}

pub(crate) fn whole(status: StatusCode, body: Vec<u8>) -> Response {
    json(status, body).map(axum::body::Body::new)
}
