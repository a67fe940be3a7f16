//! Every operation and every status of the document, once at least.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    contract::{Api, DOCUMENT, Seen},
    http::Connection,
    server::{KEY, Server, run, until},
    shortage,
};

/// What stands in the document and cannot be brought about from outside within a test.
const NOT_SEEN: [(&str, u16, &str); 1] = [("ready", 503, "a log too short to be replayed for long")];
/// Types of problems that only those answers have, or none: a held win has no code to be redeemed by.
const NOT_SEEN_TYPES: [&str; 2] = ["not_ready", "unconfirmed"];

#[test]
fn everything_documented_is_so() {
    let seen = Seen::default();
    let server = Server::start(&["--admin-key", KEY]);
    let api = Api::noting(&server.address, &seen);
    creates(&api);
    lists(&api);
    changes(&api);
    imports(&api);
    claims(&api);
    holds(&api);
    cancels(&api);
    several_each(&api);
    redeems(&api);
    ambiguous(&api);
    operations(&api);
    watches(&api);
    receipts(&api);
    refusals(&api);
    with_user_header(&seen);
    late(&seen);
    unreadable(&seen);
    shortage::unwritable(&server, &api);
    shortage::overloaded(&seen);
    covered(&seen);
}

/// The document against what was seen.
fn covered(seen: &Seen) {
    let mut missing = BTreeSet::new();
    let seen_answers = seen.answers.lock().unwrap();
    for operation in
        DOCUMENT["paths"].as_object().unwrap().values().flat_map(|m| m.as_object().unwrap().values())
    {
        for status in operation["responses"].as_object().unwrap().keys() {
            missing.insert((operation["operationId"].as_str().unwrap().to_owned(), status.parse().unwrap()));
        }
    }
    missing.retain(|answer| !seen_answers.contains(answer));
    let excused = NOT_SEEN.map(|(name, status, _)| (name.to_owned(), status));
    assert_eq!(missing, excused.into(), "documented answers that were not seen (left)");
    let seen_types = seen.problems.lock().unwrap();
    let types =
        DOCUMENT["components"]["schemas"]["Problem"]["properties"]["type"]["enum"].as_array().unwrap();
    let names = types.iter().map(|t| t.as_str().unwrap());
    let unseen: BTreeSet<&str> =
        names.filter(|t| !seen_types.contains(*t)).map(|t| t.rsplit(':').next().unwrap()).collect();
    // Unknown paths and methods have no operation; the other two are one failed write, seen before or after it.
    let elsewhere = ["no_such_route", "method_not_allowed"];
    let either = ["unavailable", "outcome_unknown"];
    assert!(either.iter().any(|e| !unseen.contains(e)));
    let unseen: BTreeSet<&str> = unseen.into_iter().filter(|t| !either.contains(t)).collect();
    assert_eq!(unseen, NOT_SEEN_TYPES.into_iter().chain(elsewhere).collect());
}

/// Operations with a body, as paths on which it is read.
const WITH_BODY: [&str; 6] = [
    "/v1/campaigns",
    "/v1/campaigns/x/restock",
    "/v1/campaigns/x/claims",
    "/v1/campaigns/x/claims/u/confirm",
    "/v1/campaigns/x/claims/u/cancel",
    "/v1/coupons/x/redeem",
];

/// Bodies that never come.
fn late(seen: &Seen) {
    let server = Server::start(&["--body-ms", "1", "--import-ms", "1"]);
    let api = Api::noting(&server.address, seen);
    for path in WITH_BODY.into_iter().chain(["/v1/campaigns/x/codes"]) {
        let mut connection = Connection::open(&api.address);
        connection.send(format!("POST {path} HTTP/1.1\r\nhost: dibs\r\ncontent-length: 10\r\n\r\n{{"));
        let reply = connection.reply().expect("an answer");
        api.check("POST", path, &reply);
        reply.refused(408, "timeout");
    }
}

/// A ledger whose tables somebody has moved away.
fn unreadable(seen: &Seen) {
    let server = Server::start(&[]);
    let api = Api::noting(&server.address, seen);
    api.post("/v1/campaigns", &json!({"id": "x", "stock": 1})).is(201);
    api.claim("x", "u").is(201);
    until("its coupon is written", || (api.get("/v1/campaigns/x").is(200)["issued"] == 1).then_some(()));
    let ledger = rusqlite::Connection::open(server.folder().join("ledger.db")).unwrap();
    ledger.execute_batch("ALTER TABLE coupons RENAME TO elsewhere").unwrap();
    api.post("/v1/audit", &Value::Null).refused(503, "audit_failed");
    ledger.execute_batch("ALTER TABLE elsewhere RENAME TO coupons").unwrap();
    assert_eq!(api.post("/v1/audit", &Value::Null).is(200)["exact"], true);
}

fn creates(api: &Api<'_>) {
    let summer = json!({"id": "summer", "title": "Summer", "stock": 2, "opens_at": "2020-07-01T12:00:00Z",
        "closes_at": "2099-07-02T00:00:00Z", "code_pattern": "SUMMER-####-####"});
    let made = api.post("/v1/campaigns", &summer).is(201);
    assert_eq!(made["state"], "open");
    assert_eq!(made["opens_at"], "2020-07-01T12:00:00.000Z");
    assert_eq!(api.post("/v1/campaigns", &summer).is(200), made);
    let mut other = summer.clone();
    other["stock"] = 3.into();
    api.post("/v1/campaigns", &other).refused(409, "campaign_conflict");
    assert_eq!(api.get("/v1/campaigns/summer").is(200)["stock"], 2);
    let plain = api.post("/v1/campaigns", &json!({"id": "plain", "stock": 1})).is(201);
    assert_eq!((&plain["title"], &plain["code_pattern"]), (&json!("plain"), &json!("####-####-####")));
    for wrong in [
        json!({"id": "x"}),
        json!({"id": "x", "stock": 1, "opens_at": "tomorrow"}),
        json!({"id": "x", "stock": 1, "code_pattern": "X-####", "imported_codes": true}),
        json!({"id": "x", "stock": 1_000, "code_pattern": "X-####"}),
        json!({"id": "x", "stock": 1, "opens_at": "2030-01-01T00:00:00Z", "closes_at": "2029-01-01T00:00:00Z"}),
    ] {
        api.post("/v1/campaigns", &wrong).refused(422, "invalid_request");
    }
    api.get("/v1/campaigns/none").refused(404, "unknown_campaign");
}

fn lists(api: &Api<'_>) {
    let mut ids = Vec::new();
    let mut path = "/v1/campaigns?limit=1".to_owned();
    loop {
        let page = api.get(&path).is(200);
        ids.extend(page["campaigns"].as_array().unwrap().iter().map(|c| c["id"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/campaigns?limit=1&after={next}");
    }
    assert_eq!(ids, ["plain", "summer"]);
    for wrong in ["limit=0", "limit=1001", "limit=many", "limit=-1"] {
        api.get(&format!("/v1/campaigns?{wrong}")).refused(422, "invalid_request");
    }
}

fn changes(api: &Api<'_>) {
    api.post("/v1/campaigns", &json!({"id": "changed", "stock": 1})).is(201);
    let restock = |key: &str| api.keyed("/v1/campaigns/changed/restock", key, &json!({"units": 5})).is(200);
    assert_eq!(restock("a")["stock"], 6);
    assert_eq!(restock("a")["stock"], 6);
    assert_eq!(restock("b")["stock"], 11);
    let too_many = json!({"units": 1_000_000_000});
    api.post("/v1/campaigns/changed/restock", &too_many).refused(422, "stock_limit");
    api.post("/v1/campaigns/changed/restock", &json!({"units": 0})).refused(422, "invalid_request");
    let change = |what: &str| api.post(&format!("/v1/campaigns/changed/{what}"), &Value::Null).is(200);
    assert_eq!(change("pause")["state"], "paused");
    assert_eq!(change("pause")["state"], "paused");
    api.claim("changed", "u").refused(423, "paused");
    assert_eq!(change("resume")["state"], "open");
    api.claim("changed", "u").is(201);
    assert_eq!(change("close")["state"], "closed");
    api.claim("changed", "v").refused(410, "closed");
    assert_eq!(api.claim("changed", "u").is(200)["verdict"], "already_won");
    api.post("/v1/campaigns/changed/restock", &json!({"units": 1})).refused(410, "closed");
    for what in ["pause", "resume", "close"] {
        api.post(&format!("/v1/campaigns/none/{what}"), &Value::Null).refused(404, "unknown_campaign");
    }
    api.post("/v1/campaigns/none/restock", &json!({"units": 1})).refused(404, "unknown_campaign");
}

fn imports(api: &Api<'_>) {
    let admin = [("authorization", &*format!("Bearer {KEY}"))];
    let import = |text: &str| api.call("POST", "/v1/campaigns/partner/codes", &admin, text.as_bytes());
    let partner = json!({"id": "partner", "stock": 2, "imported_codes": true});
    assert_eq!(import("P-1\r\nP-1\n\n").is(200), json!({"imported": 1, "total": 1}));
    let few = api.post("/v1/campaigns", &partner).refused(422, "codes_missing");
    assert_eq!(few["imported"], 1);
    assert_eq!(import("P-1\nP-2\n").is(200), json!({"imported": 1, "total": 2}));
    let made = api.post("/v1/campaigns", &partner).is(201);
    assert_eq!(made["imported_codes"], true);
    assert_eq!(api.claim("partner", "u").is(201)["code"], "P-1");
    api.post("/v1/campaigns/partner/restock", &json!({"units": 1})).refused(422, "codes_missing");
    let wrong = import("P-3\nP 4\n").refused(422, "invalid_request");
    assert!(wrong["detail"].as_str().unwrap().contains("line 2"), "{wrong}");
    assert_eq!(import("P-3").is(200)["total"], 3);
    api.post("/v1/campaigns/partner/restock", &json!({"units": 1})).is(200);
    assert_eq!(api.get("/v1/coupons/P-1").is(200)["user"], "u");
    api.get("/v1/coupons/P-2").refused(404, "unknown_coupon");
}

fn claims(api: &Api<'_>) {
    let first = api.claim("summer", "u-1").is(201);
    assert_eq!(
        (&first["verdict"], &first["rank"], &first["state"]),
        (&json!("won"), &json!(1), &json!("won"))
    );
    let again = api.claim("summer", "u-1").is(200);
    for member in ["rank", "code", "claim"] {
        assert_eq!(first[member], again[member], "{member}");
    }
    assert_eq!(api.claim("summer", "김철수").is(201)["user"], "김철수");
    assert_eq!(api.claim("summer", "u-3").refused(409, "sold_out")["verdict"], "sold_out");
    assert_eq!(api.get("/v1/campaigns/summer").is(200)["state"], "sold_out");
    api.claim("none", "u").refused(404, "unknown_campaign");
    api.claim("summer", "").refused(422, "invalid_request");
    api.post("/v1/campaigns", &json!({"id": "later", "stock": 1, "opens_at": "2099-01-01T00:00:00Z"}))
        .is(201);
    let early = api.claim("later", "u").refused(425, "not_open");
    assert_eq!(early["opens_at"], "2099-01-01T00:00:00.000Z");
    assert_eq!(api.get("/v1/campaigns/later").is(200)["state"], "scheduled");
    let over = json!({"id": "over", "stock": 1, "closes_at": "2020-01-01T00:00:00Z"});
    api.post("/v1/campaigns", &over).is(201);
    api.claim("over", "u").refused(410, "closed");
    let shown = api.get("/v1/campaigns/summer/claims/u-1").is(200);
    assert_eq!((&shown["code"], &shown["verdict"]), (&first["code"], &json!("won")));
    let encoded = "%EA%B9%80%EC%B2%A0%EC%88%98";
    assert_eq!(api.get(&format!("/v1/campaigns/summer/claims/{encoded}")).is(200)["rank"], 2);
    api.get("/v1/campaigns/summer/claims/nobody").refused(404, "no_claim");
    api.get("/v1/campaigns/none/claims/u").refused(404, "unknown_campaign");
    let mine = api.get("/v1/users/u-1/coupons").is(200);
    assert_eq!(mine["coupons"].as_array().unwrap().len(), 1);
    assert_eq!(api.get("/v1/users/nobody/coupons").is(200), json!({"coupons": []}));
    until("both coupons are written", || {
        let issued = api.get("/v1/campaigns/summer").is(200)["issued"] == 2;
        issued.then(|| assert_eq!(api.claim("summer", "u-1").is(200)["issuance"], json!({"state": "issued"})))
    });
}

/// One unit that must be confirmed: it passes from one to the next as each lets it go.
fn holds(api: &Api<'_>) {
    let path = |user: &str, what: &str| format!("/v1/campaigns/held/claims/{user}/{what}");
    let held = json!({"id": "held", "stock": 1, "hold_seconds": 1, "waitlist": 4});
    api.post("/v1/campaigns", &held).is(201);
    let win = api.claim("held", "a").is(201);
    assert_eq!((&win["state"], win.get("code")), (&json!("held"), None));
    assert!(win["confirm_by"].is_string());
    for (i, user) in ["b", "c", "d"].into_iter().enumerate() {
        assert_eq!(api.claim("held", user).is(202)["position"], i + 1);
    }
    assert_eq!(api.claim("held", "c").is(202)["position"], 2);
    assert_eq!(api.get("/v1/campaigns/held/claims/d").is(200)["position"], 3);
    assert_eq!(
        api.post(&path("d", "cancel"), &Value::Null).is(200),
        json!({"verdict": "cancelled", "campaign": "held", "user": "d"})
    );
    api.get("/v1/campaigns/held/claims/d").refused(404, "no_claim");
    let state = |user: &str| api.get(&format!("/v1/campaigns/held/claims/{user}")).is(200)["state"].clone();
    // Nobody confirms, so the unit passes on by itself.
    until("a's hold runs out", || (state("a") == "expired").then_some(()));
    api.post(&path("a", "confirm"), &Value::Null).refused(409, "expired");
    api.post(&path("a", "cancel"), &json!({"rank": 1})).refused(409, "expired");
    let again = api.claim("held", "a").is(200);
    assert_eq!((&again["verdict"], &again["state"]), (&json!("already_won"), &json!("expired")));
    until("b or c has confirmed", || {
        // b's or c's second may pass on a busy machine; somebody is quick enough, or comes anew.
        ["b", "c"].iter().find(|u| api.post(&path(u, "confirm"), &Value::Null).status == 200).map(|user| {
            let kept = api.get(&format!("/v1/campaigns/held/claims/{user}")).is(200);
            assert_eq!(kept["state"], "won");
            assert!(kept["code"].is_string());
            assert_eq!(api.post(&path(user, "confirm"), &Value::Null).is(200)["verdict"], "confirmed");
        })
    });
    api.post(&path("nobody", "confirm"), &Value::Null).refused(409, "no_such_win");
    api.post(&path("nobody", "cancel"), &Value::Null).refused(409, "no_such_win");
    api.post(&path("a", "confirm"), &json!({"rank": 0})).refused(422, "invalid_request");
    api.post(&path("a", "cancel"), &json!({"rank": "x"})).refused(422, "invalid_request");
    for what in ["confirm", "cancel"] {
        let none = format!("/v1/campaigns/none/claims/u/{what}");
        api.post(&none, &Value::Null).refused(404, "unknown_campaign");
    }
}

/// A win that is given up goes to the first in line; its user has had the chance.
fn cancels(api: &Api<'_>) {
    api.post("/v1/campaigns", &json!({"id": "given", "stock": 1, "waitlist": 1})).is(201);
    let first = api.claim("given", "a").is(201);
    assert_eq!(api.claim("given", "b").is(202)["position"], 1);
    api.claim("given", "c").refused(409, "sold_out");
    let cancel = "/v1/campaigns/given/claims/a/cancel";
    assert_eq!(api.post(cancel, &json!({"rank": 1})).is(200)["state"], "cancelled");
    assert_eq!(api.post(cancel, &json!({"rank": 1})).is(200)["verdict"], "cancelled");
    let second = api.claim("given", "b").is(200);
    assert_eq!(second["rank"], 2);
    assert_ne!(second["code"], first["code"]);
    let again = api.claim("given", "a").is(200);
    assert_eq!((&again["rank"], &again["state"]), (&json!(1), &json!("cancelled")));
    let code = first["code"].as_str().unwrap();
    api.post(&format!("/v1/coupons/{code}/redeem"), &json!({"by": "till"})).refused(409, "no_such_win");
    api.post(&format!("/v1/coupons/{code}/unredeem"), &Value::Null).refused(409, "no_such_win");
    api.post("/v1/campaigns/given/claims/a/confirm", &Value::Null).refused(409, "no_such_win");
}

fn several_each(api: &Api<'_>) {
    api.post("/v1/campaigns", &json!({"id": "twice", "stock": 5, "per_user_limit": 2})).is(201);
    let press = |key: &str| api.keyed("/v1/campaigns/twice/claims", key, &json!({"user": "u"}));
    assert_eq!(press("one").is(201)["rank"], 1);
    assert_eq!(press("one").is(200)["rank"], 1);
    assert_eq!(press("two").is(201)["rank"], 2);
    assert_eq!(press("three").is(200)["rank"], 2);
    assert_eq!(press("one").is(200)["rank"], 1);
    let mine = api.get("/v1/users/u/coupons").is(200);
    let ranks =
        |v: &Value| v["coupons"].as_array().unwrap().iter().filter(|c| c["campaign"] == "twice").count();
    assert_eq!(ranks(&mine), 2);
}

fn redeems(api: &Api<'_>) {
    let code = api.get("/v1/campaigns/summer/claims/u-1").is(200)["code"].as_str().unwrap().to_owned();
    let (show, redeem) = (format!("/v1/coupons/{code}"), format!("/v1/coupons/{code}/redeem"));
    let unredeem = format!("/v1/coupons/{code}/unredeem");
    assert_eq!(api.get(&show).is(200)["user"], "u-1");
    api.post(&unredeem, &Value::Null).refused(409, "not_redeemed");
    let used = api.keyed(&redeem, "k-1", &json!({"by": "till 7"})).is(200);
    assert_eq!((&used["verdict"], &used["state"]), (&json!("redeemed"), &json!("redeemed")));
    assert_eq!(
        api.keyed(&redeem, "k-1", &json!({"by": "till 7"})).is(200)["redeemed_at"],
        used["redeemed_at"]
    );
    let late = api.keyed(&redeem, "k-2", &json!({"by": "till 8"})).refused(409, "already_redeemed");
    assert_eq!((&late["redeemed_by"], &late["redeemed_at"]), (&json!("till 7"), &used["redeemed_at"]));
    assert_eq!(api.get(&show).is(200)["redeemed_by"], "till 7");
    api.post("/v1/campaigns/summer/claims/u-1/cancel", &Value::Null).refused(409, "in_use");
    assert_eq!(api.post(&unredeem, &Value::Null).is(200)["state"], "won");
    assert_eq!(api.get(&show).is(200).get("redeemed_by"), None);
    // A coupon that was un-used can be used again, by somebody else.
    api.post(&redeem, &json!({"by": "till 8"})).is(200);
    // Read aloud in small letters it is the same code.
    let spoken = code.replace("SUMMER", "summer").to_lowercase().replace("summer", "SUMMER");
    assert_eq!(api.get(&format!("/v1/coupons/{spoken}")).is(200)["rank"], 1);
    for wrong in [json!({}), json!({"by": ""}), json!({"by": "a\u{0}"}), json!({"by": "x".repeat(129)})] {
        api.post(&redeem, &wrong).refused(422, "invalid_request");
    }
    let none = "/v1/coupons/SUMMER-0000-0000";
    api.get(none).refused(404, "unknown_coupon");
    api.post(&format!("{none}/redeem"), &json!({"by": "x"})).refused(404, "unknown_coupon");
    api.post(&format!("{none}/unredeem"), &Value::Null).refused(404, "unknown_coupon");
}

/// Two partners with the same code.
fn ambiguous(api: &Api<'_>) {
    let admin = [("authorization", &*format!("Bearer {KEY}"))];
    for id in ["left", "right"] {
        api.call("POST", &format!("/v1/campaigns/{id}/codes"), &admin, b"SAME").is(200);
        api.post("/v1/campaigns", &json!({"id": id, "stock": 1, "imported_codes": true})).is(201);
        assert_eq!(api.claim(id, id).is(201)["code"], "SAME");
    }
    let both = api.get("/v1/coupons/SAME").refused(409, "ambiguous_code");
    assert_eq!(both["campaigns"].as_array().unwrap().len(), 2);
    api.post("/v1/coupons/SAME/redeem", &json!({"by": "x"})).refused(409, "ambiguous_code");
    api.post("/v1/coupons/SAME/unredeem", &Value::Null).refused(409, "ambiguous_code");
    assert_eq!(api.get("/v1/coupons/SAME?campaign=right").is(200)["user"], "right");
    assert_eq!(
        api.post("/v1/coupons/SAME/redeem?campaign=left", &json!({"by": "x"})).is(200)["user"],
        "left"
    );
    assert_eq!(api.get("/v1/coupons/SAME?campaign=right").is(200)["state"], "won");
}

fn operations(api: &Api<'_>) {
    assert_eq!(api.get("/healthz").text(), "ok\n");
    assert_eq!(until("ready", || Some(api.get("/readyz")).filter(|r| r.status == 200)).text(), "ready\n");
    assert_eq!(api.get("/v1/openapi.json").is(200), *DOCUMENT);
    let metrics = api.get("/metrics");
    for name in [
        "dibs_log_high_watermark",
        "dibs_decided_offset",
        "dibs_issued_offset",
        "dibs_issue_lag_records",
        "dibs_in_flight",
        "dibs_issuer_fenced",
    ] {
        assert!(metrics.text().contains(&format!("\n{name}{{partition=\"0\"}} ")), "{name}");
    }
    let audit = until("every coupon is written", || {
        let audit = api.post("/v1/audit", &Value::Null).is(200);
        (audit["not_yet_issued"] == 0).then_some(audit)
    });
    assert_eq!((&audit["exact"], &audit["rows"]), (&json!(true), &audit["coupons"]));
}

fn watches(api: &Api<'_>) {
    api.post("/v1/campaigns", &json!({"id": "watched", "stock": 2})).is(201);
    let path = "/v1/campaigns/watched/events";
    let mut stream = Connection::open(&api.address);
    stream.send(format!("GET {path} HTTP/1.1\r\nhost: dibs\r\n\r\n"));
    let head = stream.head().unwrap();
    api.check("GET", path, &head);
    assert_eq!(head.status, 200);
    let campaign = &DOCUMENT["components"]["schemas"]["Campaign"];
    let mut event = |won: u64| {
        until("a progress event", || {
            let line = stream.line().expect("the stream goes on");
            let data: Value = serde_json::from_str(line.strip_prefix("data: ")?).unwrap();
            crate::contract::fits(campaign, &data, "").unwrap();
            (data["won"] == won).then_some(())
        });
    };
    event(0);
    api.claim("watched", "u").is(201);
    event(1);
    api.claim("watched", "v").is(201);
    event(2);
    api.get("/v1/campaigns/none/events").refused(404, "unknown_campaign");
}

/// Receipts prove a win to whoever has the public key.
fn receipts(api: &Api<'_>) {
    let key = api.get("/v1/keys").is(200)["keys"][0]["public_key"].as_str().unwrap().to_owned();
    let now = api.claim("plain", "r").is(201);
    let later = api.get("/v1/campaigns/plain/claims/r").is(200);
    for win in [now, later] {
        let receipt = win["receipt"].as_str().unwrap();
        let checked = run(&["receipt", "verify", receipt, "--public-key", &key]);
        assert_eq!(checked.status.code(), Some(0));
        let says: Value = serde_json::from_slice(&checked.stdout).unwrap();
        assert_eq!((&says["user"], &says["offset"]), (&json!("r"), &win["claim"]["offset"]));
        let altered = receipt.replacen('A', "B", 1);
        assert_eq!(run(&["receipt", "verify", &altered, "--public-key", &key]).status.code(), Some(1));
    }
}

/// What every operation says to a wrong key, a body too large, a path that is no text.
fn refusals(api: &Api<'_>) {
    let wrong_key = [("authorization", "Bearer 0123456789abcdeF")];
    for path in [
        "/v1/campaigns",
        "/v1/campaigns/summer/restock",
        "/v1/campaigns/summer/pause",
        "/v1/campaigns/summer/resume",
        "/v1/campaigns/summer/close",
        "/v1/campaigns/summer/codes",
        "/v1/coupons/x/redeem",
        "/v1/coupons/x/unredeem",
        "/v1/audit",
    ] {
        api.call("POST", path, &[], b"{}").refused(401, "admin_key_required");
        api.call("POST", path, &wrong_key, b"{}").refused(401, "admin_key_required");
    }
    let admin = [("authorization", &*format!("Bearer {KEY}"))];
    let large = vec![b' '; 64 * 1024 + 1];
    for path in WITH_BODY {
        api.call("POST", path, &admin, &large).refused(413, "too_large");
    }
    api.call("POST", "/v1/campaigns/x/codes", &admin, &vec![b' '; 64 * 1024 * 1024 + 1])
        .refused(413, "too_large");
    for path in ["/v1/coupons/%FF", "/v1/users/%FF/coupons", "/v1/campaigns/summer/claims/%FF"] {
        api.get(path).refused(422, "invalid_request");
    }
    api.post("/v1/coupons/%FF/unredeem", &Value::Null).refused(422, "invalid_request");
}

fn with_user_header(seen: &Seen) {
    let server = Server::start(&["--user-header", "x-user-id"]);
    let api = Api::noting(&server.address, seen);
    api.post("/v1/campaigns", &json!({"id": "h", "stock": 1})).is(201);
    let claim = "/v1/campaigns/h/claims";
    for path in [claim, "/v1/campaigns/h/claims/u/confirm", "/v1/campaigns/h/claims/u/cancel"] {
        api.call("POST", path, &[], b"").refused(401, "user_unknown");
    }
    for path in ["/v1/campaigns/h/claims/u", "/v1/users/u/coupons"] {
        api.get(path).refused(401, "user_unknown");
    }
    // The header counts, whatever the body or the path says.
    let as_u = [("x-user-id", "u")];
    assert_eq!(api.call("POST", claim, &as_u, br#"{"user":"v"}"#).is(201)["user"], "u");
    assert_eq!(api.call("GET", "/v1/campaigns/h/claims/v", &as_u, b"").is(200)["user"], "u");
    let coupons = api.call("GET", "/v1/users/v/coupons", &as_u, b"").is(200);
    assert_eq!(coupons["coupons"][0]["user"], "u");
    api.call("POST", claim, &[("x-user-id", &"x".repeat(129))], b"").refused(422, "invalid_request");
}
