//! What handlers take out of a request. The extractors of axum answer what they cannot read with plain text; these
//! answer with problems, as everything else does.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection};
use bytes::Bytes;
use hyper::{StatusCode, http::request::Parts};
use serde::de::DeserializeOwned;

use super::problem::Problem;

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

/// The whole body, within the route's size limit, if it arrives within `SECONDS`.
pub(crate) struct Body<const SECONDS: u64>(pub(crate) Bytes);

impl<const SECONDS: u64, S: Send + Sync> FromRequest<S> for Body<SECONDS> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, state);
        match tokio::time::timeout(Duration::from_secs(SECONDS), body).await {
            Ok(Ok(body)) => Ok(Body(body)),
            Ok(Err(error)) => Err(unread(&error)),
            Err(_) => Err(Problem::body_late()),
        }
    }
}

fn unread(error: &BytesRejection) -> Problem {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::body_too_large(),
        _ => Problem::invalid(format!("the body could not be read: {}", error.body_text())),
    }
}
