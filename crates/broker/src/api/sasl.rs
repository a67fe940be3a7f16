//! SaslHandshake and SaslAuthenticate: who is at the other end (KIP-43, KIP-152), and is still (KIP-368).

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes};
use kafka_protocol::{
    ResponseError,
    messages::{
        SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
    },
};

use super::{Answering, Context, api_versions, text};
use crate::{
    clock,
    connection::{Client, Hangup},
    security::sasl::{Auth, Mechanism, Refused},
    server::{Shared, base64url},
    topics::random_uuid,
    wire::Reply,
};

const HANDSHAKE: i16 = 17;
const AUTHENTICATE: i16 = 36;

/// Whether a request may be answered before, while or after its sender says who it is. `now_ms` never goes back.
pub(crate) fn may(auth: &Auth, key: i16, now_ms: u64) -> Result<(), Hangup> {
    let early = matches!(key, api_versions::KEY | HANDSHAKE | AUTHENTICATE);
    match auth {
        Auth::Done(identity) if key != HANDSHAKE && identity.until_ms.is_some_and(|until| until < now_ms) => {
            Err(Hangup::Refused("the session has expired without a new authentication".into()))
        }
        Auth::Done(_) => Ok(()),
        Auth::Failed => Err(Hangup::Refused("a request after a failed authentication".into())),
        _ if early => Ok(()),
        _ => Err(Hangup::Refused(format!("API {key} before the authentication"))),
    }
}

pub(crate) async fn handshake(cx: Context, request: SaslHandshakeRequest) -> SaslHandshakeResponse {
    let config = cx.shared.config();
    let enabled = config.security.mechanisms.get(&config.listeners[cx.client.listener].name);
    let illegal = SaslHandshakeResponse::default().with_error_code(ResponseError::IllegalSaslState.code());
    let Some(enabled) = enabled else { return illegal };
    let response =
        SaslHandshakeResponse::default().with_mechanisms(enabled.iter().map(|m| text(m.name())).collect());
    match Mechanism::named(&request.mechanism).filter(|m| enabled.contains(m)) {
        Some(mechanism) if cx.client.auth().begin(mechanism, cx.version == 0) => response,
        Some(_) => illegal,
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
        Ok(bytes) => response.with_auth_bytes(Bytes::from(bytes)).with_session_lifetime_ms(lifetime(&cx)),
        Err(Refused(why)) => {
            slow_down(&cx.shared).await;
            response
                .with_error_code(ResponseError::SaslAuthenticationFailed.code())
                .with_error_message(Some(text(why)))
        }
    }
}

/// For how many milliseconds the authentication that has just ended holds, 0 for ever. Who does not know of it
/// (before version 1) is not asked again.
fn lifetime(cx: &Context) -> i64 {
    let lifetime = cx.shared.config().reauthentication_ms;
    match &mut *cx.client.auth() {
        Auth::Done(identity) if lifetime > 0 && cx.version >= 1 => {
            identity.until_ms = Some(clock::mono_ms() + lifetime);
            lifetime as i64
        }
        _ => 0,
    }
}

/// A token that came without a request around it; its answer goes out in the same way.
pub(crate) fn token(shared: &Arc<Shared>, client: &Arc<Client>, token: &Bytes) -> Result<Answering, Hangup> {
    let answer = match step(shared, client, token) {
        Ok(answer) => answer,
        Err(Refused(why)) => {
            let shared = shared.clone();
            let future = async move {
                slow_down(&shared).await;
                Err(Hangup::Refused(why.into()))
            };
            return Ok(Answering { future: Box::pin(future), pipelined: false });
        }
    };
    let mut out = Reply::default();
    out.bytes.put_i32(answer.len() as i32);
    out.bytes.extend_from_slice(&answer);
    Ok(Answering { future: Box::pin(async { Ok(Some(out)) }), pipelined: false })
}

/// Who could not be authenticated learns it late, so that passwords are not guessed fast (KIP-306).
async fn slow_down(shared: &Shared) {
    tokio::time::sleep(Duration::from_millis(shared.config().failed_authentication_ms)).await;
}

fn step(shared: &Shared, client: &Client, token: &[u8]) -> Result<Vec<u8>, Refused> {
    let random = base64url(random_uuid().as_bytes());
    let outcome = client.auth().step(token, &shared.users, &shared.config().security.plain, &random);
    match (&outcome, &*client.auth()) {
        (Err(Refused(why)), _) => tracing::info!(host = client.host, "{why}"),
        (Ok(_), auth @ Auth::Done(_)) => {
            tracing::debug!(host = client.host, principal = auth.principal(), "authenticated");
        }
        (Ok(_), _) => {}
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::broker_with;

    const METADATA: i16 = 3;

    async fn handshake_with(cx: &Context, mechanism: &str) -> i16 {
        let request = SaslHandshakeRequest::default().with_mechanism(text(mechanism));
        handshake(Context { version: 1, ..cx.clone() }, request).await.error_code
    }

    async fn authenticate_as(cx: &Context, user: &str) -> (i16, i64) {
        let token = Bytes::from(format!("\0{user}\0{user}-secret"));
        let request = SaslAuthenticateRequest::default().with_auth_bytes(token);
        let response = authenticate(cx.clone(), request).await;
        (response.error_code, response.session_lifetime_ms)
    }

    fn allowed(cx: &Context, key: i16, in_ms: u64) -> bool {
        may(&cx.client.auth(), key, clock::mono_ms() + in_ms).is_ok()
    }

    /// A new connection, and how a client of a version sees it.
    fn connect(shared: &Arc<Shared>, version: i16) -> Context {
        let client = Arc::new(Client::new("/127.0.0.1".into(), 0, shared.bound[0], Auth::None));
        Context { shared: shared.clone(), client, client_id: String::new(), version }
    }

    #[tokio::test]
    async fn who_has_authenticated_does_it_again_in_time() {
        let (broker, _) = broker_with(&[
            ("listeners", "SASL_PLAINTEXT://127.0.0.1:0"),
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256"),
            (
                "listener.name.sasl_plaintext.plain.sasl.jaas.config",
                "org.apache.kafka.common.security.plain.PlainLoginModule required \
                 user_kim=\"kim-secret\" user_lee=\"lee-secret\";",
            ),
            ("connections.max.reauth.ms", "60000"),
            ("connection.failed.authentication.delay.ms", "0"),
        ])
        .await;
        let cx = connect(broker.shared(), 2);
        assert!(!allowed(&cx, METADATA, 0));
        for _ in 0..2 {
            assert_eq!(handshake_with(&cx, "PLAIN").await, 0);
            assert!(!allowed(&cx, METADATA, 0));
            assert_eq!(authenticate_as(&cx, "kim").await, (0, 60_000));
            assert!(allowed(&cx, METADATA, 0));
            // After that time, nothing but another authentication will do.
            assert!(!allowed(&cx, METADATA, 60_001) && !allowed(&cx, api_versions::KEY, 60_001));
            assert!(allowed(&cx, HANDSHAKE, 60_001));
        }
        // In the same way, and as the same.
        assert_eq!(handshake_with(&cx, "SCRAM-SHA-256").await, ResponseError::IllegalSaslState.code());
        assert_eq!(handshake_with(&cx, "PLAIN").await, 0);
        assert_eq!(cx.client.auth().principal(), "User:kim");
        assert_eq!(authenticate_as(&cx, "lee").await.0, ResponseError::SaslAuthenticationFailed.code());
        assert!(!allowed(&cx, METADATA, 0));
        // Who cannot be told is not asked.
        let old = connect(broker.shared(), 0);
        assert_eq!(handshake_with(&old, "PLAIN").await, 0);
        assert_eq!(authenticate_as(&old, "lee").await, (0, 0));
        assert!(allowed(&old, METADATA, 1 << 40));
        assert_eq!(handshake_with(&old, "PLAIN").await, ResponseError::IllegalSaslState.code());
        broker.stop().await;
    }
}
