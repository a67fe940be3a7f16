//! A log that cannot be written, and more claims than may be in flight.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::{
    contract::{Api, Seen},
    http::Connection,
    server::{Server, until},
};

/// Every operation that writes into the log, on a campaign that is there with a win of `u`.
fn writes(campaign: &str, code: &str) -> Vec<(String, Value)> {
    let of = |rest: &str| format!("/v1/campaigns/{campaign}{rest}");
    vec![
        ("/v1/campaigns".into(), json!({"id": format!("{campaign}-2"), "stock": 1})),
        (of("/restock"), json!({"units": 1})),
        // Before the pause: a resume that is not written leaves the gate closed.
        (of("/claims"), json!({"user": "w"})),
        (of("/pause"), Value::Null),
        (of("/resume"), Value::Null),
        (of("/claims/u/confirm"), Value::Null),
        (format!("/v1/coupons/{code}/redeem"), json!({"by": "till"})),
        (format!("/v1/coupons/{code}/unredeem"), Value::Null),
        (of("/claims/u/cancel"), Value::Null),
        (of("/close"), Value::Null),
    ]
}

fn prepared(api: &Api<'_>, campaign: &str) -> String {
    api.post("/v1/campaigns", &json!({"id": campaign, "stock": 1_000_000})).is(201);
    let code = api.claim(campaign, "u").is(201)["code"].as_str().unwrap().to_owned();
    until("its coupon is written", || {
        (api.get(&format!("/v1/campaigns/{campaign}")).is(200)["issued"] == 1).then_some(())
    });
    code
}

/// Files may not grow: every change is answered 503, reads go on; once files may grow again, so does the log.
pub(crate) fn unwritable(server: &Server, api: &Api<'_>) {
    let code = prepared(api, "full");
    let pid = Some(server.pid());
    let before = prlimit(pid, Resource::Fsize, Rlimit { current: Some(0), maximum: None }).unwrap();
    for (path, body) in writes("full", &code) {
        let reply = api.post(&path, &body);
        assert_eq!(reply.status, 503, "{path}: {}", reply.text());
    }
    let codes = api.post("/v1/campaigns/full/codes", &json!(0));
    codes.refused(503, "unavailable");
    let shown = api.get("/v1/campaigns/full").is(200);
    assert_eq!((&shown["state"], &shown["won"]), (&json!("open"), &json!(1)));
    prlimit(pid, Resource::Fsize, before).unwrap();
    let win = until("the log is written again", || Some(api.claim("full", "w")).filter(|r| r.status != 503));
    assert_eq!(win.is(201)["rank"], 2);
    until("codes are imported again", || {
        Some(api.post("/v1/campaigns/full/codes", &json!(0))).filter(|r| r.status != 503)
    })
    .is(200);
}

/// One command may be in flight, and others are sent all the time: each operation is answered 429 sooner or later.
pub(crate) fn overloaded(seen: &Seen) {
    let server = Server::start(&["--in-flight", "1"]);
    let api = Api::noting(&server.address, seen);
    let code = prepared(&api, "busy");
    // The others' claims go to a campaign of their own, or the first pause would end them.
    api.post("/v1/campaigns", &json!({"id": "noise", "stock": 1_000_000})).is(201);
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (enough, address) = (&enough, &server.address);
            scope.spawn(move || {
                let mut connection = Connection::open(address);
                for i in 0.. {
                    if enough.load(Ordering::Relaxed) {
                        return;
                    }
                    let path = "/v1/campaigns/noise/claims";
                    connection.ask("POST", path, &[], format!(r#"{{"user":"{thread}-{i}"}}"#).as_bytes());
                }
            });
        }
        let stop = StopAtEnd(&enough);
        for (path, body) in writes("busy", &code) {
            let mut attempt = 0;
            until(&format!("{path} is answered 429"), || {
                attempt += 1;
                // A claim that has won is answered without the log: each attempt is another user's.
                let body = if path.ends_with("/claims") {
                    json!({"user": format!("w{attempt}")})
                } else {
                    body.clone()
                };
                Some(api.post(&path, &body)).filter(|r| r.status == 429)
            })
            .refused(429, "overloaded");
        }
        drop(stop);
    });
}

/// Ends the others even if an assertion fails: a scope waits for its threads.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
