//! What handlers take out of a request. The extractors of axum answer what they cannot read with plain text; these
//! answer with problems, as everything else does.

use std::{sync::Arc, time::Duration};

use axum::extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection};
use bytes::Bytes;
use hyper::{StatusCode, http::request::Parts};
use serde::de::DeserializeOwned;

use super::{App, problem::Problem};

/// The variable segments of the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let axum::extract::Path(path) = axum::extract::Path::from_request_parts(parts, state)
            .await
            .map_err(|e| Problem::invalid(format!("the path: {e}")))?;
        Ok(Path(path))
    }
}

/// The query of the URL.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let axum::extract::Query(query) = axum::extract::Query::from_request_parts(parts, state)
            .await
            .map_err(|e| Problem::invalid(format!("the query: {}", e.body_text())))?;
        Ok(Query(query))
    }
}

/// Shown by whoever knows the admin key, or by everybody where there is none. An extractor, so that nobody else's
/// body is even read.
pub(crate) struct Admin;

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        app.admin(&parts.headers).map(|()| Admin)
    }
}

/// The whole body, within the route's size limit and [`Patience::body`](super::Patience::body).
pub(crate) struct Body(pub(crate) Bytes);

impl FromRequest<Arc<App>> for Body {
    type Rejection = Problem;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        whole(request, app.patience.body).await.map(Body)
    }
}

/// The whole body of a code import, within [`Patience::import`](super::Patience::import).
pub(crate) struct ImportBody(pub(crate) Bytes);

impl FromRequest<Arc<App>> for ImportBody {
    type Rejection = Problem;
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        whole(request, app.patience.import).await.map(ImportBody)
    }
}

async fn whole(request: Request, within: Duration) -> Result<Bytes, Problem> {
    match tokio::time::timeout(within, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(unread(&error)),
        Err(_) => Err(Problem::body_late()),
    }
}

fn unread(error: &BytesRejection) -> Problem {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::body_too_large(),
        _ => Problem::invalid(format!("the body could not be read: {}", error.body_text())),
    }
}
