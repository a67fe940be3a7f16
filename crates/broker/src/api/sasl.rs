//! SaslHandshake and SaslAuthenticate: who is at the other end (KIP-43, KIP-152).

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
    },
};

use super::{Answering, Context, api_versions, text};
use crate::{
    connection::{Client, Hangup},
    security::sasl::{Auth, Mechanism, Refused},
    server::{Shared, base64url},
    topics::random_uuid,
};

const HANDSHAKE: i16 = 17;
const AUTHENTICATE: i16 = 36;

/// Whether a request may be answered before, while or after its sender says who it is.
pub(crate) fn may(auth: &Auth, key: i16) -> Result<(), Hangup> {
    let early = matches!(key, api_versions::KEY | HANDSHAKE | AUTHENTICATE);
    match auth {
        Auth::Done(_) => Ok(()),
        Auth::Failed => Err(Hangup::Refused("a request after a failed authentication".into())),
        _ if early => Ok(()),
        _ => Err(Hangup::Refused(format!("API {key} before the authentication"))),
    }
}

pub(crate) async fn handshake(cx: Context, request: SaslHandshakeRequest) -> SaslHandshakeResponse {
    let config = &cx.shared.config;
    let enabled = config.security.mechanisms.get(&config.listeners[cx.client.listener].name);
    let mut auth = cx.client.auth();
    let Some(enabled) = enabled.filter(|_| matches!(*auth, Auth::None)) else {
        return SaslHandshakeResponse::default().with_error_code(ResponseError::IllegalSaslState.code());
    };
    let response =
        SaslHandshakeResponse::default().with_mechanisms(enabled.iter().map(|m| text(m.name())).collect());
    match Mechanism::named(&request.mechanism).filter(|m| enabled.contains(m)) {
        Some(mechanism) => {
            *auth = Auth::Begun { mechanism, raw: cx.version == 0 };
            response
        }
        None => response.with_error_code(ResponseError::UnsupportedSaslMechanism.code()),
    }
}

pub(crate) async fn authenticate(cx: Context, request: SaslAuthenticateRequest) -> SaslAuthenticateResponse {
    let response = SaslAuthenticateResponse::default();
    if matches!(*cx.client.auth(), Auth::None | Auth::Done(_)) {
        let why = "SaslAuthenticate request received after successful authentication or before a handshake";
        return response
            .with_error_code(ResponseError::IllegalSaslState.code())
            .with_error_message(Some(text(why)));
    }
    match step(&cx.shared, &cx.client, &request.auth_bytes) {
        Ok(bytes) => response.with_auth_bytes(Bytes::from(bytes)),
        Err(Refused(why)) => response
            .with_error_code(ResponseError::SaslAuthenticationFailed.code())
            .with_error_message(Some(text(why))),
    }
}

/// A token that came without a request around it; its answer goes out in the same way.
pub(crate) fn token(shared: &Arc<Shared>, client: &Arc<Client>, token: &Bytes) -> Result<Answering, Hangup> {
    let answer = step(shared, client, token).map_err(|Refused(why)| Hangup::Refused(why.into()))?;
    let mut out = BytesMut::with_capacity(4 + answer.len());
    out.put_i32(answer.len() as i32);
    out.extend_from_slice(&answer);
    Ok(Answering { future: Box::pin(async { Ok(Some(out)) }), pipelined: false })
}

fn step(shared: &Shared, client: &Client, token: &[u8]) -> Result<Vec<u8>, Refused> {
    let random = base64url(random_uuid().as_bytes());
    let outcome = client.auth().step(token, &shared.users, &random);
    match (&outcome, &*client.auth()) {
        (Err(Refused(why)), _) => tracing::info!(host = client.host, "{why}"),
        (Ok(_), Auth::Done(principal)) => tracing::debug!(host = client.host, principal, "authenticated"),
        (Ok(_), _) => {}
    }
    outcome
}
