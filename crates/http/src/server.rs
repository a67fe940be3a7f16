//! The accept loop: connections, their limits, and a graceful end.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response,
    body::{Body as _, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tower::ServiceExt;

use super::{App, BODY_BYTES, claims, problem::Problem, router};

/// Connections still busy so long after the server was asked to stop are cut.
const GRACE: Duration = Duration::from_secs(10);

type Body = Either<Full<Bytes>, axum::body::Body>;

/// Serves until `stop` is true, then answers what is in flight and returns. At most `connections` are open at a
/// time; more wait in the kernel's queue.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    connections: usize,
    mut stop: watch::Receiver<bool>,
) {
    let routes = router(app.clone());
    let room = Arc::new(Semaphore::new(connections));
    let mut open = JoinSet::new();
    loop {
        // Beyond the limit connections wait in the kernel's queue, where they cost us nothing.
        let permit = tokio::select! {
            permit = room.clone().acquire_owned() => permit.expect("never closed"),
            _ = stop.wait_for(|s| *s) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|s| *s) => break,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (app, routes, stop) = (app.clone(), routes.clone(), stop.clone());
                open.spawn(async move {
                    connection(stream, app, routes, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would only spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let drained = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, drained).await.is_err() {
        tracing::warn!("some connections did not end in time and are cut");
    }
}

/// What the requests of one connection share. Counted by connection, because counters that all cores share cost
/// more than what they guard.
struct Connection {
    app: Arc<App>,
    routes: Router,
    /// Requests begun and not answered, and answers that are streams.
    busy: AtomicU32,
    /// Requests begun.
    begun: AtomicU32,
}

async fn connection(stream: TcpStream, app: Arc<App>, routes: Router, mut stop: watch::Receiver<bool>) {
    // Answers are small and whole: waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    let shared = Arc::new(Connection { app, routes, busy: AtomicU32::new(0), begun: AtomicU32::new(0) });
    let requests = shared.clone();
    let service = service_fn(move |request| answer(requests.clone(), request));
    let connection = http1::Builder::new()
        // No `pipeline_flush`: with it an answer is kept back while part of another request is there, and is lost
        // if that one is malformed.
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // One timer for each look and not one for each request: setting a timer costs a twentieth of a refused claim.
    let idle = async {
        let mut seen = None;
        loop {
            let begun = shared.begun.load(Ordering::Relaxed);
            if seen == Some(begun) && shared.busy.load(Ordering::Relaxed) == 0 {
                return;
            }
            seen = Some(begun);
            tokio::time::sleep(shared.app.patience.idle).await;
        }
    };
    tokio::select! {
        biased;
        // A broken connection is the client's affair.
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|s| *s) => {}
        () = idle => return,
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    connection.begun.fetch_add(1, Ordering::Relaxed);
    let busy = Busy::new(&connection);
    if request.method() == Method::POST && claim_path(request.uri().path()).is_some() {
        return Ok(claim(&connection.app, request).await.map(Either::Left));
    }
    let response = connection.routes.clone().oneshot(request.map(axum::body::Body::new)).await?;
    let is_stream = response.body().size_hint().exact().is_none();
    Ok(response.map(|body| {
        Either::Right(if is_stream { axum::body::Body::new(Stream { body, _busy: busy }) } else { body })
    }))
}

/// Counts as busy on its connection while it lives.
struct Busy(Arc<Connection>);

impl Busy {
    fn new(connection: &Arc<Connection>) -> Busy {
        connection.busy.fetch_add(1, Ordering::Relaxed);
        Busy(connection.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an event stream: its connection is not idle, however long nothing else is asked for on it.
struct Stream {
    body: axum::body::Body,
    _busy: Busy,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

/// The campaign of `/v1/campaigns/{id}/claims`. What is percent-encoded is left to the router: a valid id needs
/// no encoding.
fn claim_path(path: &str) -> Option<&str> {
    let id = path.strip_prefix("/v1/campaigns/")?.strip_suffix("/claims")?;
    (!id.contains(['/', '%'])).then_some(id)
}

async fn claim(app: &App, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let id = claim_path(parts.uri.path()).expect("the caller has looked");
    let body = tokio::time::timeout(app.patience.body, Limited::new(body, BODY_BYTES).collect()).await;
    match body {
        Ok(Ok(body)) => claims::claim(app, id, &parts.headers, &body.to_bytes()).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Problem::body_too_large().detail(format!("a claim is at most {BODY_BYTES} bytes")).response()
        }
        Ok(Err(error)) => Problem::invalid(format!("the body could not be read: {error}")).response(),
        Err(_) => Problem::body_late().response(),
    }
}
