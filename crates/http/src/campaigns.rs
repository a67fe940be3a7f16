//! Campaigns: create, list, show, change, import codes, watch.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use dibs_flow::FlowError;
use dibs_model::{
    CampaignId, CampaignSpec, CodeSource, Command, IntakeFormat, IntakeTopic, Pattern, Timestamp, Verdict,
};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App,
    claims::request_key,
    extract::{Admin, Body, ImportBody, Path, Query},
    problem::Problem,
    view,
};

/// At least so long between two events of one stream.
const EVENT_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    id: String,
    title: Option<String>,
    stock: u64,
    opens_at: Option<String>,
    closes_at: Option<String>,
    per_user_limit: Option<u32>,
    code_pattern: Option<String>,
    #[serde(default)]
    imported_codes: bool,
    #[serde(default)]
    hold_seconds: u32,
    #[serde(default)]
    waitlist: u64,
    intake_topic: Option<String>,
    intake_format: Option<String>,
}

impl Create {
    fn spec(self) -> Result<(CampaignId, CampaignSpec), Problem> {
        let id = CampaignId::new(&self.id).map_err(Problem::invalid)?;
        let time = |text: Option<&String>, field: &str, default: Timestamp| match text {
            None => Ok(default),
            Some(text) => view::parse_time(text).map_err(|e| Problem::invalid(format!("{field}: {e}"))),
        };
        let codes = match (&self.code_pattern, self.imported_codes) {
            (Some(_), true) => {
                return Err(Problem::invalid("code_pattern and imported_codes exclude each other"));
            }
            (None, true) => CodeSource::Imported,
            (None, false) => CodeSource::Pattern(Pattern::default()),
            (Some(pattern), false) => CodeSource::Pattern(Pattern::new(pattern).map_err(Problem::invalid)?),
        };
        let format = self.intake_format.as_deref().map(|name| {
            let wrong = || Problem::invalid("intake_format must be string, long or json");
            IntakeFormat::parse(name).ok_or_else(wrong)
        });
        let intake = match (self.intake_topic, format.transpose()?) {
            (None, Some(_)) => return Err(Problem::invalid("intake_format needs an intake_topic")),
            (topic, format) => {
                topic.map(|t| IntakeTopic { topic: t.into(), format: format.unwrap_or_default() })
            }
        };
        let spec = CampaignSpec {
            title: self.title.unwrap_or(self.id).into(),
            stock: self.stock,
            // Without an opening the campaign is open at once: an instant would make a retry another campaign.
            opens_at: time(self.opens_at.as_ref(), "opens_at", Timestamp(0))?,
            closes_at: time(self.closes_at.as_ref(), "closes_at", Timestamp::NEVER)?,
            per_user_limit: self.per_user_limit.unwrap_or(1),
            codes,
            hold_seconds: self.hold_seconds,
            waitlist: self.waitlist,
            intake,
        };
        spec.check().map_err(Problem::invalid)?;
        Ok((id, spec))
    }
}

/// `POST /v1/campaigns`
pub(crate) async fn create(
    _: Admin,
    State(app): State<Arc<App>>,
    Body(body): Body,
) -> Result<Response, Problem> {
    let request: Create = parse(&body)?;
    let (id, spec) = request.spec()?;
    let imported = spec.codes == CodeSource::Imported;
    if imported {
        enough_codes(&app, &id, spec.stock)?;
    }
    let partition = app.flow.partition(id.as_str());
    let existed = partition.state().campaign(id.as_str()).is_some();
    let answer = partition.command(id.as_str(), &Command::Create(Box::new(spec))).await?;
    match answer.verdict {
        Verdict::Created => {
            if imported {
                app.flow.announce_codes(&id).await?;
            }
            let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
            Ok((status, Json(shown(&app, id.as_str())?)).into_response())
        }
        other => Err(Problem::verdict(other)),
    }
}

fn enough_codes(app: &App, id: &CampaignId, stock: u64) -> Result<(), Problem> {
    let imported = app.flow.codes().imported(id);
    if imported >= stock {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "codes_missing", "There are fewer codes than coupons")
        .detail(format!("{imported} codes are imported for a stock of {stock}: import the others first"))
        .with("imported", imported))
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| Problem::invalid(format!("the body: {e}")))
}

fn shown(app: &App, id: &str) -> Result<Value, Problem> {
    let partition = app.flow.partition(id);
    let state = partition.state();
    let campaign = state.campaign(id).ok_or_else(|| Problem::unknown_campaign(id))?;
    Ok(view::campaign(campaign, partition, state.now()))
}

#[derive(Deserialize)]
pub(crate) struct Page {
    #[serde(default = "fifty")]
    limit: usize,
    after: Option<String>,
}

fn fifty() -> usize {
    50
}

/// `GET /v1/campaigns`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Query(page): Query<Page>,
) -> Result<Json<Value>, Problem> {
    if !(1..=1_000).contains(&page.limit) {
        return Err(Problem::invalid("limit must be 1 to 1000"));
    }
    let mut ids: Vec<CampaignId> = Vec::new();
    for partition in app.flow.partitions() {
        ids.extend(partition.state().campaigns().iter().map(|c| c.id().clone()));
    }
    ids.sort();
    let start = page.after.map_or(0, |after| ids.partition_point(|id| id.as_str() <= after.as_str()));
    let some: Vec<&CampaignId> = ids[start..].iter().take(page.limit).collect();
    let campaigns: Result<Vec<Value>, Problem> = some.iter().map(|id| shown(&app, id.as_str())).collect();
    let mut body = json!({ "campaigns": campaigns? });
    if let Some(last) = some.last().filter(|_| start + page.limit < ids.len()) {
        body["next"] = last.as_str().into();
    }
    Ok(Json(body))
}

/// `GET /v1/campaigns/{id}`
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    shown(&app, &id).map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restock {
    units: u64,
}

/// `POST /v1/campaigns/{id}/restock`
pub(crate) async fn restock(
    _: Admin,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Json<Value>, Problem> {
    let request: Restock = parse(&body)?;
    if !(1..=dibs_model::limits::STOCK).contains(&request.units) {
        return Err(Problem::invalid(format!("units must be 1 to {}", dibs_model::limits::STOCK)));
    }
    let imported = {
        let state = app.flow.partition(&id).state();
        let campaign = state.campaign(&id).ok_or_else(|| Problem::unknown_campaign(&id))?;
        let stock = campaign.stock() + request.units;
        (campaign.spec().codes == CodeSource::Imported).then(|| (campaign.id().clone(), stock))
    };
    if let Some((id, stock)) = imported {
        enough_codes(&app, &id, stock)?;
    }
    let key = request_key(&headers)?.to_owned();
    change(&app, &id, Command::Restock { units: request.units, key: key.into() }).await
}

/// `POST /v1/campaigns/{id}/pause`
pub(crate) async fn pause(
    _: Admin,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    change(&app, &id, Command::Pause).await
}

/// `POST /v1/campaigns/{id}/resume`
pub(crate) async fn resume(
    _: Admin,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    change(&app, &id, Command::Resume).await
}

/// `POST /v1/campaigns/{id}/close`
pub(crate) async fn close(
    _: Admin,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    change(&app, &id, Command::Close).await
}

async fn change(app: &App, id: &str, command: Command<'_>) -> Result<Json<Value>, Problem> {
    if app.flow.partition(id).state().campaign(id).is_none() {
        return Err(Problem::unknown_campaign(id));
    }
    match app.flow.partition(id).command(id, &command).await?.verdict {
        Verdict::Done | Verdict::Restocked { .. } => shown(app, id).map(Json),
        other => Err(Problem::verdict(other)),
    }
}

/// `POST /v1/campaigns/{id}/codes`: one code a line.
pub(crate) async fn import_codes(
    _: Admin,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    ImportBody(body): ImportBody,
) -> Result<Json<Value>, Problem> {
    let id = CampaignId::new(&id).map_err(Problem::invalid)?;
    let text = String::from_utf8(body.into()).map_err(|_| Problem::invalid("the codes are not UTF-8"))?;
    let before = app.flow.codes().imported(&id);
    let flow = app.flow.clone();
    let campaign = id.clone();
    let import = tokio::task::spawn_blocking(move || flow.import_codes(&campaign, text.lines()));
    match import.await.expect("importing does not panic") {
        Ok(total) => {
            app.flow.announce_codes(&id).await?;
            Ok(Json(json!({ "imported": total - before, "total": total })))
        }
        Err(FlowError::Import(error)) => Err(Problem::invalid(error)),
        Err(error) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The log cannot be written now")
                .detail(error)
                .retry_after(2))
        }
    }
}

/// `GET /v1/campaigns/{id}/events`: the campaign as it changes, as server-sent events.
pub(crate) async fn events(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let first = shown(&app, &id)?;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Event, Infallible>>(1);
    tokio::spawn(async move {
        let mut last = None;
        let mut next = Some(first);
        loop {
            if let Some(campaign) = next.take().filter(|c| Some(c) != last.as_ref()) {
                let event = Event::default().event("progress").data(campaign.to_string());
                if sender.send(Ok(event)).await.is_err() {
                    return; // Nobody listens any more.
                }
                last = Some(campaign);
            }
            tokio::select! {
                () = tokio::time::sleep(EVENT_INTERVAL) => {}
                () = sender.closed() => return,
                () = app.stopping() => return,
            }
            next = shown(&app, &id).ok();
        }
    });
    let stream = ReceiverStream(receiver);
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

struct ReceiverStream<T>(tokio::sync::mpsc::Receiver<T>);

impl<T> futures_core::Stream for ReceiverStream<T> {
    type Item = T;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}
