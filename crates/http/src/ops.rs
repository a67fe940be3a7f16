//! For operators: health, metrics, keys, the audit, the description of the API.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use hyper::{StatusCode, header};
use serde_json::{Value, json};

use super::{App, extract::Admin, problem::Problem};

/// The OpenAPI 3.1 description. A test holds it against the real routes and answers.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

/// `GET /healthz`: the process lives.
pub(crate) async fn health() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the decider has caught up with the log, and the log can be written.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, Problem> {
    if app.flow.is_ready() {
        return Ok("ready\n");
    }
    let why = match app.flow.is_broken() {
        true => "The log cannot be written any more: restart the server, which verifies it",
        false => "The log is still being replayed",
    };
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why).retry_after(1))
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.render_metrics())
}

/// `GET /v1/keys`
pub(crate) async fn keys(State(app): State<Arc<App>>) -> Json<Value> {
    Json(
        json!({ "keys": [{ "use": "receipts", "algorithm": "Ed25519", "public_key": app.flow.signatory().public_key() }] }),
    )
}

/// `GET /v1/openapi.json`
pub(crate) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

/// `POST /v1/audit`: recomputes every win from the log and compares the ledger.
pub(crate) async fn audit(_: Admin, State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    let found = dibs_flow::audit::audit(app.flow.store(), &*app.ledger, app.flow.codes()).await;
    match found {
        Ok(audit) => {
            let mut shown = serde_json::to_value(&audit).expect("an audit is JSON");
            shown["exact"] = audit.is_exact().into();
            Ok(Json(shown))
        }
        Err(error) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "audit_failed", "The audit could not be made")
                .detail(error))
        }
    }
}
