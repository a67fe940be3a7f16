//! Who is asking: the body, a trusted header, or a verified JWT. Nobody claims in another's name.

use std::time::{SystemTime, UNIX_EPOCH};

use ring::{hmac, rand::SystemRandom, signature};
use serde_json::{Value, json};

use crate::{
    contract::Api,
    http::Reply,
    server::{KEY, Server, fixture, run},
};

/// A claim in campaign `c` with this token, checked against the document.
fn claim(api: &Api<'_>, token: &str) -> Reply {
    let authorization = format!("Bearer {token}");
    api.call("POST", "/v1/campaigns/c/claims", &[("authorization", &authorization)], b"")
}

fn with_key(file: &str) -> Server {
    let server = Server::start(&["--jwt-key", &fixture(file), "--admin-key", KEY]);
    Api::new(&server.address).post("/v1/campaigns", &json!({"id": "c", "stock": 1_000})).is(201);
    server
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Claims of a token that is good for an hour.
fn good(user: &str) -> Value {
    json!({"sub": user, "exp": now() + 3_600, "iat": now(), "aud": "shop", "iss": "login"})
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(fixture(file)).unwrap()
}

/// What signs tokens.
enum Key {
    Secret(Vec<u8>),
    Rsa(signature::RsaKeyPair),
    Ed25519(signature::Ed25519KeyPair),
    P256(signature::EcdsaKeyPair),
}

impl Key {
    /// RFC 7518, 3.1.
    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match (self, algorithm) {
            (Key::Secret(s), "HS256") => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, s), message).as_ref().to_vec()
            }
            (Key::Secret(s), "HS512") => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, s), message).as_ref().to_vec()
            }
            (Key::Rsa(key), _) => {
                let padding: &dyn signature::RsaEncoding = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_SHA256,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    other => panic!("{other}"),
                };
                let mut signed = vec![0; key.public().modulus_len()];
                key.sign(padding, &random, message, &mut signed).unwrap();
                signed
            }
            (Key::Ed25519(key), "EdDSA") => key.sign(message).as_ref().to_vec(),
            (Key::P256(key), "ES256") => key.sign(&random, message).unwrap().as_ref().to_vec(),
            (_, other) => panic!("{other}"),
        }
    }
}

/// What a PEM file holds.
fn der(file: &str) -> Vec<u8> {
    let text = String::from_utf8(read(file)).unwrap();
    let base64: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    data_encoding::BASE64.decode(base64.as_bytes()).unwrap()
}

fn rsa() -> Key {
    Key::Rsa(signature::RsaKeyPair::from_pkcs8(&der("rsa.pem")).unwrap())
}

fn ed25519() -> Key {
    Key::Ed25519(signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der("ed25519.pem")).unwrap())
}

fn p256() -> Key {
    let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = signature::EcdsaKeyPair::from_pkcs8(algorithm, &der("p256.pem"), &SystemRandom::new());
    Key::P256(key.unwrap())
}

fn hs256() -> Key {
    secret(read("hs256.txt").trim_ascii())
}

fn secret(bytes: &[u8]) -> Key {
    Key::Secret(bytes.to_vec())
}

fn signed(header: &Value, claims: &Value, key: &Key) -> String {
    let part = |json: &Value| data_encoding::BASE64URL_NOPAD.encode(json.to_string().as_bytes());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(header["alg"].as_str().unwrap(), message.as_bytes());
    format!("{message}.{}", data_encoding::BASE64URL_NOPAD.encode(&signature))
}

fn token(algorithm: &str, claims: &Value, key: &Key) -> String {
    signed(&json!({"typ": "JWT", "alg": algorithm}), claims, key)
}

fn with_kid(kid: &str, algorithm: &str, key: &Key) -> String {
    signed(&json!({"alg": algorithm, "kid": kid}), &good("u"), key)
}

/// What no server may take, whatever its key: faults of the claims, signed with the right key.
fn wrong_claims(api: &Api<'_>, algorithm: &str, key: &Key) {
    // A leeway of a minute for clocks that differ is usual; an hour is beyond it.
    for (what, claims) in [
        ("expired", json!({"sub": "u", "exp": now() - 3_600})),
        ("not valid yet", json!({"sub": "u", "exp": now() + 7_200, "nbf": now() + 3_600})),
        ("no exp", json!({"sub": "u"})),
        ("no sub", json!({"exp": now() + 3_600, "user": "u"})),
        ("sub is no text", json!({"sub": 17, "exp": now() + 3_600})),
        ("sub is null", json!({"sub": null, "exp": now() + 3_600})),
        ("exp is no number", json!({"sub": "u", "exp": "tomorrow"})),
    ] {
        let refused = claim(api, &token(algorithm, &claims, key));
        assert_eq!(refused.status, 401, "{what}: {}", refused.text());
        refused.refused(401, "user_unknown");
    }
    for user in ["", "a\u{0}b", &"x".repeat(129)] {
        claim(api, &token(algorithm, &good(user), key)).refused(422, "invalid_request");
    }
}

/// Tokens that were altered, or never signed.
fn forged(api: &Api<'_>, algorithm: &str, key: &Key) {
    let real = token(algorithm, &good("u"), key);
    let parts: Vec<&str> = real.split('.').collect();
    let other = token(algorithm, &good("v"), key);
    let other: Vec<&str> = other.split('.').collect();
    // {"alg":"none"}, {"alg":"None","typ":"JWT"}
    let (none, capital) = ("eyJhbGciOiJub25lIn0", "eyJhbGciOiJOb25lIiwidHlwIjoiSldUIn0");
    for bad in [
        String::new(),
        "x".into(),
        "..".into(),
        "a.b.c.d".into(),
        "é.é.é".into(),
        parts[..2].join("."),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{}", parts[0], other[1], parts[2]),
        format!("{}.{}.{}", none, parts[1], parts[2]),
        format!("{}.{}.", none, parts[1]),
        format!("{}.{}", none, parts[1]),
        format!("{}.{}.", capital, parts[1]),
        format!("{}.{}.{}", parts[0], parts[1], &parts[2][..parts[2].len() - 4]),
        format!("{}.{}.{}", parts[0], "A".repeat(8_000), parts[2]),
    ] {
        let refused = claim(api, &bad);
        assert_eq!(refused.status, 401, "{bad}: {}", refused.text());
        refused.refused(401, "user_unknown");
    }
}

#[test]
fn a_secret_verifies_hs256_and_nothing_else() {
    let server = with_key("hs256.txt");
    let api = Api::new(&server.address);
    let win = claim(&api, &token("HS256", &good("김철수"), &hs256())).is(201);
    assert_eq!(win["user"], "김철수");
    let again = claim(&api, &token("HS256", &good("김철수"), &hs256())).is(200);
    assert_eq!(again["rank"], win["rank"]);
    let wrong = secret(b"another-secret-of-the-same-length-more");
    claim(&api, &token("HS256", &good("u"), &wrong)).refused(401, "user_unknown");
    claim(&api, &token("HS512", &good("u"), &hs256())).refused(401, "user_unknown");
    claim(&api, &token("RS256", &good("u"), &rsa())).refused(401, "user_unknown");
    wrong_claims(&api, "HS256", &hs256());
    forged(&api, "HS256", &hs256());
    assert_eq!(api.get("/v1/campaigns/c").is(200)["won"], 1);
}

#[test]
fn a_public_rsa_key_verifies_rs256_and_is_no_secret() {
    let server = with_key("rsa.pub.pem");
    let api = Api::new(&server.address);
    assert_eq!(claim(&api, &token("RS256", &good("u"), &rsa())).is(201)["user"], "u");
    // Everybody knows the public key: taken for a secret it would sign for everybody.
    let pem = read("rsa.pub.pem");
    for text in [&pem[..], pem.trim_ascii(), &pem[..pem.len() - 1]] {
        let confused = token("HS256", &good("u"), &secret(text));
        claim(&api, &confused).refused(401, "user_unknown");
    }
    claim(&api, &token("EdDSA", &good("u"), &ed25519())).refused(401, "user_unknown");
    claim(&api, &token("PS256", &good("u"), &rsa())).refused(401, "user_unknown");
    wrong_claims(&api, "RS256", &rsa());
    forged(&api, "RS256", &rsa());
}

#[test]
fn a_public_ed25519_key_verifies_eddsa() {
    let server = with_key("ed25519.pub.pem");
    let api = Api::new(&server.address);
    assert_eq!(claim(&api, &token("EdDSA", &good("u"), &ed25519())).is(201)["user"], "u");
    let confused = secret(&read("ed25519.pub.pem"));
    claim(&api, &token("HS256", &good("u"), &confused)).refused(401, "user_unknown");
    claim(&api, &token("RS256", &good("u"), &rsa())).refused(401, "user_unknown");
    wrong_claims(&api, "EdDSA", &ed25519());
    forged(&api, "EdDSA", &ed25519());
}

/// The same key as openssl writes it in other ways, and a curve of NIST's.
#[test]
fn a_public_key_may_stand_in_a_file_as_openssl_writes_it() {
    for (file, algorithm, key) in [
        ("rsa.pkcs1.pem", "RS256", rsa()),
        ("p256.pub.pem", "ES256", p256()),
        ("p256.crt.pem", "ES256", p256()),
    ] {
        let server = with_key(file);
        let api = Api::new(&server.address);
        assert_eq!(claim(&api, &token(algorithm, &good("u"), &key)).is(201)["user"], "u", "{file}");
        forged(&api, algorithm, &key);
    }
}

#[test]
fn a_jwks_verifies_with_the_key_that_the_token_names() {
    let server = with_key("jwks.json");
    let api = Api::new(&server.address);
    claim(&api, &with_kid("rsa-1", "RS256", &rsa())).is(201);
    claim(&api, &with_kid("ed-1", "EdDSA", &ed25519())).is(200);
    // Without a kid the algorithm leads to the key.
    claim(&api, &token("RS256", &good("v"), &rsa())).is(201);
    for bad in [
        with_kid("rsa-2", "RS256", &rsa()),
        with_kid("ed-1", "RS256", &rsa()),
        with_kid("rsa-1", "EdDSA", &ed25519()),
        with_kid("rsa-1", "HS256", &secret(&read("rsa.pub.pem"))),
        with_kid("ed-1", "HS256", &hs256()),
    ] {
        claim(&api, &bad).refused(401, "user_unknown");
    }
    wrong_claims(&api, "EdDSA", &ed25519());
    forged(&api, "RS256", &rsa());
}

/// A provider's set while it changes keys: an older key of the same kind first, and keys for other uses.
#[test]
fn a_jwks_may_hold_keys_that_are_not_for_us() {
    let folder = tempfile::tempdir().unwrap();
    let mut set: Value = serde_json::from_slice(&read("jwks.json")).unwrap();
    let mut older = set["keys"][1].clone();
    older["kid"] = "ed-0".into();
    // The public key of RFC 8037's example.
    older["x"] = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into();
    let mut unused = set["keys"][0].clone();
    unused["use"] = "enc".into();
    unused["alg"] = "RSA-OAEP".into();
    let mut unknown = set["keys"][0].clone();
    unknown["kid"] = "other".into();
    unknown["alg"] = "RSA-OAEP-256".into();
    unknown.as_object_mut().unwrap().remove("use");
    set["keys"].as_array_mut().unwrap().splice(0..0, [unused.clone(), unknown.clone(), older]);
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, set.to_string()).unwrap();
    let server = with_key(file.to_str().unwrap());
    let api = Api::new(&server.address);
    claim(&api, &token("EdDSA", &good("u"), &ed25519())).is(201);
    claim(&api, &with_kid("rsa-1", "RS256", &rsa())).is(200);
    std::fs::write(&file, json!({"keys": [unused, unknown]}).to_string()).unwrap();
    let none = run(&["serve", "--jwt-key", file.to_str().unwrap(), "--print-config"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no key that signs tokens"));
}

/// Whose claim it is, is what the token says: not the body, not the path, not a header of the old days.
#[test]
fn a_token_speaks_for_its_own_user_only() {
    let server = with_key("hs256.txt");
    let api = Api::new(&server.address);
    let as_u = format!("Bearer {}", token("HS256", &good("u"), &hs256()));
    let as_u = [("authorization", &*as_u), ("x-user-id", "v")];
    let win = api.call("POST", "/v1/campaigns/c/claims", &as_u, br#"{"user":"v"}"#).is(201);
    assert_eq!(win["user"], "u");
    assert_eq!(api.call("GET", "/v1/campaigns/c/claims/v", &as_u, b"").is(200)["user"], "u");
    assert_eq!(api.call("GET", "/v1/users/v/coupons", &as_u, b"").is(200)["coupons"][0]["user"], "u");
    let confirmed = api.call("POST", "/v1/campaigns/c/claims/v/confirm", &as_u, b"").is(200);
    assert_eq!(confirmed["user"], "u");
    assert_eq!(api.call("POST", "/v1/campaigns/c/claims/v/cancel", &as_u, b"").is(200)["user"], "u");
    // A user is no admin, and the admin is no user.
    api.call("POST", "/v1/campaigns/c/close", &as_u, b"").refused(401, "admin_key_required");
    api.claim("c", "w").refused(401, "user_unknown");
    for scheme in ["Basic dTp1", "Bearer", "bearer", "", "Token x"] {
        let shown = [("authorization", scheme)];
        api.call("POST", "/v1/campaigns/c/claims", &shown, b"").refused(401, "user_unknown");
    }
}

#[test]
fn the_body_names_the_user_where_nothing_else_does() {
    let server = Server::start(&[]);
    let api = Api::new(&server.address);
    api.post("/v1/campaigns", &json!({"id": "c", "stock": 10})).is(201);
    let as_v = [("x-user-id", "v"), ("authorization", "Bearer x")];
    let win = api.call("POST", "/v1/campaigns/c/claims", &as_v, br#"{"user":"u","note":1}"#).is(201);
    assert_eq!(win["user"], "u");
    for body in ["", "{}", "null", "[]", r#""u""#, r#"{"user":null}"#, r#"{"user":1}"#, r#"{"User":"u"}"#] {
        let refused = api.call("POST", "/v1/campaigns/c/claims", &[], body.as_bytes());
        assert_eq!(refused.status, 422, "{body}: {}", refused.text());
    }
}

#[test]
fn a_trusted_header_names_the_user() {
    let server = Server::start(&["--user-header", "X-User-Id"]);
    let api = Api::new(&server.address);
    api.post("/v1/campaigns", &json!({"id": "c", "stock": 10})).is(201);
    let claim = |headers: &[(&str, &str)]| api.call("POST", "/v1/campaigns/c/claims", headers, b"");
    assert_eq!(claim(&[("x-user-id", "u")]).is(201)["user"], "u");
    assert_eq!(claim(&[("X-USER-ID", "김철수")]).is(201)["user"], "김철수");
    claim(&[]).refused(401, "user_unknown");
    claim(&[("x-user-id", "")]).refused(422, "invalid_request");
    // A gateway that adds its header and leaves the client's: who is right cannot be known.
    claim(&[("x-user-id", "u"), ("x-user-id", "v")]).refused(422, "invalid_request");
}

#[test]
fn a_key_that_cannot_serve_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (path, says) in [
        (file("short", "too-short"), "at least 32 bytes"),
        (file("empty.json", r#"{"keys":[]}"#), "no key"),
        (file("other.json", r#"{"a":1}"#), "not a JWKS"),
        (file("broken.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"), "no RSA"),
        (fixture("rsa.pem"), "is a private key"),
        ("/nowhere/at/all".into(), "/nowhere/at/all"),
    ] {
        let ended = run(&["serve", "--print-config", "--jwt-key", &path]);
        let error = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{error}");
        assert!(error.contains(says), "{error}");
    }
}
