//! HTTP: claims directly on hyper, everything else through a router.

mod campaigns;
mod claims;
mod coupons;
mod extract;
mod jwt;
mod ops;
mod problem;
mod server;
mod user;
mod view;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::HeaderMap,
    routing::{get, post},
};
use dibs_flow::Flow;
use dibs_ledger::SqliteLedger;
use hyper::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use problem::Problem;
pub use server::serve;
pub use user::{UserSource, Verifier};

/// Largest body of a request, in bytes.
const BODY_BYTES: usize = 64 * 1024;
/// Largest body of a code import, in bytes.
const IMPORT_BYTES: usize = 64 * 1024 * 1024;

/// How long a client may take. Whoever takes longer holds a connection and memory for nothing.
pub struct Patience {
    /// A connection is looked at so often; one on which no request was begun since the last look and none is being
    /// answered is closed. So a client must send a request line and headers within twice this time.
    pub idle: Duration,
    /// A body must arrive within so long of its headers.
    pub body: Duration,
    /// The same for a code import, which is a thousand times as large.
    pub import: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            idle: Duration::from_secs(15),
            body: Duration::from_secs(10),
            import: Duration::from_secs(300),
        }
    }
}

/// What the handlers share.
pub struct App {
    flow: Arc<Flow>,
    ledger: Arc<SqliteLedger>,
    users: UserSource,
    admin_key: Option<String>,
    patience: Patience,
    metrics: PrometheusHandle,
    stop: watch::Receiver<bool>,
}

impl App {
    /// Campaigns and coupons are changed by whoever shows `admin_key`, and by everybody if there is none. `stop`
    /// ends what would otherwise go on for ever, such as event streams.
    pub fn new(
        flow: Arc<Flow>,
        ledger: Arc<SqliteLedger>,
        users: UserSource,
        admin_key: Option<String>,
        patience: Patience,
        metrics: PrometheusHandle,
        stop: watch::Receiver<bool>,
    ) -> App {
        App { flow, ledger, users, admin_key, patience, metrics, stop }
    }

    /// Refuses whoever does not show the admin key, if there is one.
    fn admin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(key) = &self.admin_key else { return Ok(()) };
        let shown = user::bearer(headers).unwrap_or("");
        // Every byte is looked at, whatever the first difference: the time tells nothing about the key.
        let same =
            shown.len() == key.len() && shown.bytes().zip(key.bytes()).fold(0, |d, (a, b)| d | (a ^ b)) == 0;
        if same { Ok(()) } else { Err(Problem::forbidden()) }
    }

    /// Ends when the server is asked to stop.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // An error means that the sender is gone, which is the end too.
        let _ = stop.wait_for(|s| *s).await;
    }

    /// Prometheus text. Gauges are set at the moment they are asked for.
    pub(crate) fn render_metrics(&self) -> String {
        use std::fmt::Write;
        let mut text = self.metrics.render();
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&dibs_flow::Partition) -> u64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            for p in self.flow.partitions() {
                let _ = writeln!(text, "{name}{{partition=\"{}\"}} {}", p.number, value(p));
            }
        };
        gauge("dibs_log_high_watermark", "Offset after the last durable record.", &|p| {
            p.log().high_watermark()
        });
        gauge("dibs_decided_offset", "Offset after the last decided record.", &|p| p.state().next_offset());
        gauge("dibs_issued_offset", "Offset up to which the ledger is written.", &|p| {
            p.issuance.next_offset()
        });
        gauge("dibs_issue_lag_records", "Decided records that the issuer has not read.", &|p| {
            p.state().next_offset().saturating_sub(p.issuance.next_offset())
        });
        gauge("dibs_in_flight", "Commands appended and not decided.", &|p| p.in_flight());
        gauge("dibs_issuer_fenced", "1 when another issuer has taken over.", &|p| {
            p.issuance.is_fenced().into()
        });
        text
    }
}

/// Every route. Claims come here only if the fast path has left them.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/campaigns", post(campaigns::create).get(campaigns::list))
        .route("/v1/campaigns/{id}", get(campaigns::show))
        .route("/v1/campaigns/{id}/restock", post(campaigns::restock))
        .route("/v1/campaigns/{id}/pause", post(campaigns::pause))
        .route("/v1/campaigns/{id}/resume", post(campaigns::resume))
        .route("/v1/campaigns/{id}/close", post(campaigns::close))
        .route(
            "/v1/campaigns/{id}/codes",
            post(campaigns::import_codes).layer(DefaultBodyLimit::max(IMPORT_BYTES)),
        )
        .route("/v1/campaigns/{id}/events", get(campaigns::events))
        .route("/v1/campaigns/{id}/claims", post(claims::routed))
        .route("/v1/campaigns/{id}/claims/{user}", get(claims::show))
        .route("/v1/campaigns/{id}/claims/{user}/confirm", post(claims::confirm))
        .route("/v1/campaigns/{id}/claims/{user}/cancel", post(claims::cancel))
        .route("/v1/coupons/{code}", get(coupons::show))
        .route("/v1/coupons/{code}/redeem", post(coupons::redeem))
        .route("/v1/coupons/{code}/unredeem", post(coupons::unredeem))
        .route("/v1/users/{user}/coupons", get(coupons::of_user))
        .route("/v1/keys", get(ops::keys))
        .route("/v1/audit", post(ops::audit))
        .route("/v1/openapi.json", get(ops::openapi))
        .route("/healthz", get(ops::health))
        .route("/readyz", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .fallback(|| async {
            Problem::new(StatusCode::NOT_FOUND, "no_such_route", "There is nothing here")
                .detail("the routes are described at /v1/openapi.json")
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This route has other methods")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(app)
}
