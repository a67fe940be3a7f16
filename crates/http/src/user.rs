//! Who is asking: a field of the body, a header that a trusted gateway sets, or a verified JWT.

use std::path::Path;

use anyhow::{Context, bail};
use dibs_model::UserId;
use hyper::{HeaderMap, header};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, JwkSet, PublicKeyUse},
};
use serde::Deserialize;

use super::{jwt, problem::Problem};

/// Where the user of a request is named.
pub enum UserSource {
    /// `user` in the body (or the path).
    Body,
    /// A header of this name.
    Header(header::HeaderName),
    /// `sub` of a JWT in `Authorization: Bearer`.
    Jwt(Verifier),
}

impl UserSource {
    /// The user that the request itself proves; `None` where the body or the path names it.
    pub(crate) fn user(&self, headers: &HeaderMap) -> Result<Option<String>, Problem> {
        match self {
            UserSource::Body => Ok(None),
            UserSource::Header(name) => {
                let mut values = headers.get_all(name).iter();
                let value = values.next().ok_or_else(|| {
                    unauthorized(format!("the header {name} is missing; the gateway before Dibs must set it"))
                })?;
                // One of them is the client's own, and nobody can tell which.
                if values.next().is_some() {
                    return Err(Problem::invalid(format!(
                        "the header {name} is there twice; the gateway before Dibs must replace it"
                    )));
                }
                let text = std::str::from_utf8(value.as_bytes());
                let text = text.map_err(|_| Problem::invalid(format!("the header {name} is not UTF-8")))?;
                UserId::check(text).map_err(Problem::invalid)?;
                Ok(Some(text.to_owned()))
            }
            UserSource::Jwt(verifier) => {
                let token = bearer(headers)
                    .ok_or_else(|| unauthorized("send a JWT as Authorization: Bearer TOKEN"))?;
                verifier.subject(token).map(Some)
            }
        }
    }
}

/// The token of `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn unauthorized(detail: impl ToString) -> Problem {
    Problem::new(hyper::StatusCode::UNAUTHORIZED, "user_unknown", "The request does not say who the user is")
        .detail(detail)
}

/// Verifies JWTs with one key, or with the key of a set that the token names.
pub struct Verifier {
    keys: Vec<(Option<String>, Algorithm, DecodingKey)>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl Verifier {
    /// Reads a key file: a JWKS (JSON), a public key or certificate (PEM; RSA, Ed25519, P-256 or P-384), or else
    /// the raw secret of HS256.
    pub fn read(path: &Path) -> anyhow::Result<Verifier> {
        jwt::install();
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read the JWT key {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let keys = if text.trim_start().starts_with('{') {
            Self::jwks(&text)?
        } else if text.contains("-----BEGIN") {
            let (algorithm, key) = jwt::public_key(&bytes)?;
            vec![(None, algorithm, key)]
        } else {
            let secret = text.trim().as_bytes();
            if secret.len() < 32 {
                bail!("the secret of HS256 must have at least 32 bytes, this has {}", secret.len());
            }
            vec![(None, Algorithm::HS256, DecodingKey::from_secret(secret))]
        };
        Ok(Verifier { keys })
    }

    fn jwks(text: &str) -> anyhow::Result<Vec<(Option<String>, Algorithm, DecodingKey)>> {
        let set: JwkSet = serde_json::from_str(text).context("the JWT key file is JSON but not a JWKS")?;
        let mut keys = Vec::new();
        // Providers publish keys that are for something else beside those that sign tokens.
        for jwk in set.keys.iter().filter(|k| k.common.public_key_use != Some(PublicKeyUse::Encryption)) {
            let algorithm = match (jwk.common.key_algorithm, &jwk.algorithm) {
                (Some(named), _) => match named.to_string().parse() {
                    Ok(algorithm) => algorithm,
                    Err(_) => {
                        tracing::warn!(kid = ?jwk.common.key_id, %named, "a key of the JWKS is not used");
                        continue;
                    }
                },
                (None, AlgorithmParameters::RSA(_)) => Algorithm::RS256,
                (None, AlgorithmParameters::OctetKeyPair(_)) => Algorithm::EdDSA,
                (None, AlgorithmParameters::OctetKey(_)) => Algorithm::HS256,
                (None, _) => Algorithm::ES256,
            };
            keys.push((jwk.common.key_id.clone(), algorithm, DecodingKey::from_jwk(jwk)?));
        }
        if keys.is_empty() {
            bail!("the JWKS has no key that signs tokens");
        }
        Ok(keys)
    }

    fn subject(&self, token: &str) -> Result<String, Problem> {
        let header = decode_header(token).map_err(|e| unauthorized(format!("the JWT is malformed: {e}")))?;
        // A key serves only its own algorithm, so that a public key is never taken for a secret.
        let fitting = self.keys.iter().filter(|(id, algorithm, _)| {
            *algorithm == header.alg && (id.is_none() || header.kid.is_none() || *id == header.kid)
        });
        // A token without a kid may be any key's: while keys are exchanged there are two.
        let mut verified = Err(unauthorized("no configured key fits the JWT's alg and kid"));
        for (_, algorithm, key) in fitting {
            let mut validation = Validation::new(*algorithm);
            validation.validate_aud = false;
            validation.validate_nbf = true;
            verified = decode::<Claims>(token, key, &validation)
                .map_err(|e| unauthorized(format!("the JWT is not valid: {e}")));
            if verified.is_ok() {
                break;
            }
        }
        let claims = verified?.claims;
        UserId::check(&claims.sub).map_err(Problem::invalid)?;
        Ok(claims.sub)
    }
}
