//! Coupons: looked up by code, used, un-used.

use std::sync::Arc;

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use dibs_decide::{Status, Win};
use dibs_model::{CampaignId, Command, Rank, Verdict};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::{
    App,
    campaigns::parse,
    claims::{request_key, whole},
    extract::{Admin, Body, Path, Query},
    problem::Problem,
    view,
};

#[derive(Deserialize)]
pub(crate) struct In {
    campaign: Option<String>,
}

/// Which win a code belongs to. The code leads back to its rank, so no table is asked.
fn find(app: &App, code: &str, within: &In) -> Result<(CampaignId, Rank), Problem> {
    let mut found = Vec::new();
    for partition in app.flow.partitions() {
        let state = partition.state();
        for campaign in state.campaigns() {
            if within.campaign.as_deref().is_some_and(|id| id != campaign.id().as_str()) {
                continue;
            }
            let has_coupon = |rank: &Rank| campaign.win_at(*rank).is_some_and(|w| w.issued);
            if let Some(rank) = app.flow.codes().rank(campaign, code).filter(has_coupon) {
                found.push((campaign.id().clone(), rank));
            }
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Problem::new(StatusCode::NOT_FOUND, "unknown_coupon", "There is no such coupon")),
        _ => {
            let ids: Vec<Value> = found.iter().map(|(id, _)| id.as_str().into()).collect();
            Err(Problem::new(StatusCode::CONFLICT, "ambiguous_code", "More than one campaign has this code")
                .detail("add ?campaign=ID")
                .with("campaigns", ids))
        }
    }
}

fn shown(app: &App, id: &CampaignId, rank: Rank, verdict: Option<Verdict>) -> Response {
    let partition = app.flow.partition(id.as_str());
    let state = partition.state();
    let campaign = state.campaign(id.as_str()).expect("a found campaign exists");
    let win = campaign.win_at(rank).expect("a found win exists");
    whole(StatusCode::OK, view::win(&app.flow, partition, campaign, win, verdict))
}

/// `GET /v1/coupons/{code}`
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path(code): Path<String>,
    Query(within): Query<In>,
) -> Result<Response, Problem> {
    let (id, rank) = find(&app, &code, &within)?;
    Ok(shown(&app, &id, rank, None))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Redeem {
    by: String,
}

/// `POST /v1/coupons/{code}/redeem`
pub(crate) async fn redeem(
    _: Admin,
    State(app): State<Arc<App>>,
    Path(code): Path<String>,
    Query(within): Query<In>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Problem> {
    let request: Redeem = parse(&body)?;
    let long = request.by.len() > dibs_model::limits::REDEEMER_BYTES;
    if request.by.is_empty() || long || request.by.chars().any(char::is_control) {
        return Err(Problem::invalid("by must be 1 to 128 bytes without control characters"));
    }
    let key = request_key(&headers)?;
    let (id, rank) = find(&app, &code, &within)?;
    let command = Command::Redeem { rank, by: request.by.as_str().into(), key: key.into() };
    let partition = app.flow.partition(id.as_str());
    match partition.command(id.as_str(), &command).await?.verdict {
        verdict @ Verdict::Redeemed { .. } => Ok(shown(&app, &id, rank, Some(verdict))),
        verdict @ Verdict::AlreadyRedeemed { at, .. } => {
            let state = partition.state();
            let used = state.campaign(id.as_str()).and_then(|c| c.redemption(rank));
            let by = used.map_or_else(String::new, |u| u.by.to_string());
            Err(Problem::verdict(verdict).with("redeemed_by", by).with("redeemed_at", view::time(at)))
        }
        other => Err(Problem::verdict(other)),
    }
}

/// `POST /v1/coupons/{code}/unredeem`
pub(crate) async fn unredeem(
    _: Admin,
    State(app): State<Arc<App>>,
    Path(code): Path<String>,
    Query(within): Query<In>,
) -> Result<Response, Problem> {
    let (id, rank) = find(&app, &code, &within)?;
    let partition = app.flow.partition(id.as_str());
    match partition.command(id.as_str(), &Command::Unredeem { rank }).await?.verdict {
        verdict @ Verdict::Unredeemed { .. } => Ok(shown(&app, &id, rank, Some(verdict))),
        other => Err(Problem::verdict(other)),
    }
}

/// `GET /v1/users/{user}/coupons`: what the user holds, in every campaign.
pub(crate) async fn of_user(
    State(app): State<Arc<App>>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let user = app.users.user(&headers)?.unwrap_or(user);
    let mut coupons = Vec::new();
    for partition in app.flow.partitions() {
        let state = partition.state();
        for campaign in state.campaigns() {
            let wins: Vec<Win<'_>> = campaign.wins_of(&user).collect();
            for win in wins.into_iter().rev().filter(|w| w.issued || w.status == Status::Held) {
                let shown = view::win(&app.flow, partition, campaign, win, None);
                coupons.push(serde_json::from_slice::<Value>(&shown).expect("our own JSON"));
            }
        }
    }
    Ok(Json(serde_json::json!({ "coupons": coupons })))
}
