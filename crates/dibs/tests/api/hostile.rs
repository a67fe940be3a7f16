//! What no decent client sends. Each gets a clear answer or is cut; afterwards the server answers as before, and
//! its memory has a bound that stands in the test.

use std::io::Write;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::{
    contract::{Api, is_problem},
    http::{Connection, Reply},
    server::{KEY, Server, until},
};

const MIB: u64 = 1024 * 1024;
/// What an allocator and a ledger's cache may keep, and what no request may add to.
const NOISE: u64 = 32 * MIB;

/// A server with an open campaign `c`, and what it may come to.
struct Target {
    server: Server,
    memory: u64,
}

impl Target {
    fn new(more: &[&str]) -> Target {
        let server = Server::start(more);
        let api = Api::new(&server.address);
        api.post("/v1/campaigns", &json!({"id": "c", "stock": 100_000, "per_user_limit": 1_000})).is(201);
        api.claim("c", "first").is(201);
        let memory = server.memory();
        Target { server, memory }
    }

    fn api(&self) -> Api<'static> {
        Api::new(&self.server.address)
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.server.address)
    }

    /// Sends bytes and reads what comes back, if anything.
    fn raw(&self, bytes: impl AsRef<[u8]>) -> Option<Reply> {
        let mut connection = self.connect();
        connection.send(bytes);
        connection.reply()
    }

    /// Answers as if nothing had happened, and has not grown by more than this.
    #[track_caller]
    fn is_well(&self, within: u64) {
        let user = format!("after-{}", self.server.open_files());
        let win = self.api().claim("c", &user);
        assert!([200, 201].contains(&win.status), "{}", win.text());
        assert_eq!(self.api().get("/healthz").status, 200);
        let grown = self.server.memory().saturating_sub(self.memory);
        assert!(grown <= within, "it has grown by {} KiB, more than {} KiB", grown / 1024, within / 1024);
    }
}

const CREATE: &str = "/v1/campaigns";
const CLAIM: &str = "/v1/campaigns/c/claims";
const RESTOCK: &str = "/v1/campaigns/c/restock";
const CONFIRM: &str = "/v1/campaigns/c/claims/first/confirm";
const REDEEM: &str = "/v1/coupons/x/redeem";

/// 422 with a reason, as documented.
#[track_caller]
fn invalid(api: &Api<'_>, path: &str, body: impl AsRef<[u8]>) -> Value {
    let body = body.as_ref();
    let reply = api.call("POST", path, &[], body);
    let start = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    assert_eq!(reply.status, 422, "{path} {start}: {}", reply.text());
    let problem = reply.refused(422, "invalid_request");
    assert!(problem["detail"].as_str().is_some_and(|d| d.len() > 10), "{start}: {problem}");
    problem
}

#[test]
fn ten_megabytes_are_too_large_everywhere() {
    let target = Target::new(&[]);
    let large = vec![b'['; 10 * MIB as usize];
    for path in [CREATE, CLAIM, RESTOCK, CONFIRM, "/v1/campaigns/c/claims/first/cancel", REDEEM] {
        target.api().call("POST", path, &[], &large).refused(413, "too_large");
        // The same without saying so before.
        let mut connection = target.connect();
        connection.send(format!("POST {path} HTTP/1.1\r\nhost: dibs\r\ntransfer-encoding: chunked\r\n\r\n"));
        connection.send(format!("{:x}\r\n", large.len()));
        connection.send(&large);
        connection.reply().expect("an answer").refused(413, "too_large");
    }
    // Routes without a body do not read one.
    assert_eq!(target.api().call("GET", "/v1/campaigns", &[], &large).status, 200);
    target.is_well(NOISE);
}

/// An import may be large, so whoever sends it must show the key first.
#[test]
fn an_import_without_the_key_is_not_read() {
    let server = Server::start(&["--admin-key", KEY]);
    let before = server.memory();
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut connection = Connection::open(&server.address);
        let length = 60 * MIB;
        connection.send(format!(
            "POST /v1/campaigns/c/codes HTTP/1.1\r\nhost: dibs\r\ncontent-length: {length}\r\n\r\n"
        ));
        connection.send(vec![b'\n'; length as usize]);
        connections.push(connection);
    }
    for mut connection in connections {
        connection.reply().expect("an answer").refused(401, "admin_key_required");
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < NOISE, "{grown}");
}

#[test]
fn numbers_out_of_range_are_named() {
    let target = Target::new(&[]);
    let api = target.api();
    let wrong = [
        "18446744073709551616",
        "-1",
        "1.5",
        "1e400",
        "1e3",
        "-0.0",
        "\"5\"",
        "null",
        "true",
        "[1]",
        "NaN",
        "0x1",
    ];
    for number in wrong {
        invalid(&api, CREATE, format!(r#"{{"id":"n","stock":{number}}}"#));
        invalid(&api, RESTOCK, format!(r#"{{"units":{number}}}"#));
        for field in ["hold_seconds", "waitlist"] {
            invalid(&api, CREATE, format!(r#"{{"id":"n","stock":1,"{field}":{number}}}"#));
        }
        if number != "null" {
            // These may be left out.
            invalid(&api, CREATE, format!(r#"{{"id":"n","stock":1,"per_user_limit":{number}}}"#));
            invalid(&api, CONFIRM, format!(r#"{{"rank":{number}}}"#));
        }
    }
    for (field, number) in [
        ("stock", "0"),
        ("stock", "1000000001"),
        ("stock", "18446744073709551615"),
        ("per_user_limit", "0"),
        ("per_user_limit", "4294967296"),
        ("hold_seconds", "4294967295"),
        ("waitlist", "10000001"),
        ("waitlist", "18446744073709551615"),
    ] {
        let stock = if field == "stock" { "" } else { r#""stock":1,"# };
        invalid(&api, CREATE, format!(r#"{{"id":"n",{stock}"{field}":{number}}}"#));
    }
    invalid(&api, RESTOCK, r#"{"units":18446744073709551615}"#);
    invalid(&api, CONFIRM, r#"{"rank":4294967296}"#);
    for limit in ["18446744073709551616", "-1", "1.5", "", "%00", "1e2"] {
        api.get(&format!("/v1/campaigns?limit={limit}")).refused(422, "invalid_request");
    }
    for time in
        ["", "0", "2026-13-01T00:00:00Z", "2026-07-01", "+010000-01-01T00:00:00Z", "9999999-01-01T00:00:00Z"]
    {
        invalid(&api, CREATE, json!({"id": "n", "stock": 1, "opens_at": time}).to_string());
    }
    api.get("/v1/campaigns/n").refused(404, "unknown_campaign");
    target.is_well(NOISE);
}

#[test]
fn ids_with_slashes_nuls_and_a_thousand_characters() {
    let target = Target::new(&[]);
    let api = target.api();
    let long = "x".repeat(1_000);
    for id in [
        "a/b",
        "a b",
        "a%2Fb",
        "..",
        ".",
        "-a",
        "",
        "é",
        "a\u{0}",
        "a\n",
        "a\"b",
        "a\\b",
        &long,
        &"y".repeat(65),
    ] {
        invalid(&api, CREATE, json!({"id": id, "stock": 1}).to_string());
    }
    // In a path a slash ends the segment; encoded it is part of the id, and no campaign has it.
    is_problem(
        &target.raw("GET /v1/campaigns/a/b HTTP/1.1\r\nhost: x\r\n\r\n").unwrap(),
        404,
        "no_such_route",
    );
    let own = ["a%2Fb", "%2e%2e", "..", "%00", "%F0%9F%8E%9F", &long];
    for id in own {
        api.get(&format!("/v1/campaigns/{id}")).refused(404, "unknown_campaign");
        api.get(&format!("/v1/campaigns/{id}/claims/u")).refused(404, "unknown_campaign");
        api.post(&format!("/v1/campaigns/{id}/close"), &Value::Null).refused(404, "unknown_campaign");
        api.post(&format!("/v1/campaigns/{id}/restock"), &json!({"units": 1}))
            .refused(404, "unknown_campaign");
        api.post(&format!("/v1/campaigns/{id}/codes"), &Value::Null).refused(422, "invalid_request");
        api.claim(id, "u").refused(422, "invalid_request");
        api.get(&format!("/v1/coupons/{id}")).refused(404, "unknown_coupon");
        api.get(&format!("/v1/coupons/x?campaign={id}")).refused(404, "unknown_coupon");
    }
    api.claim("", "u").refused(422, "invalid_request");
    for path in [
        "/v1/campaigns/c/",
        "//v1/campaigns/c",
        "/v1//campaigns/c",
        "/v1/campaigns/c/claims/",
        "/V1/campaigns",
        "/",
    ] {
        let reply = target.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).unwrap();
        is_problem(&reply, 404, "no_such_route");
    }
    for (method, path) in
        [("DELETE", "/v1/campaigns/c"), ("PUT", "/v1/campaigns"), ("PURGE", "/healthz"), ("GET", CLAIM)]
    {
        let reply = target.raw(format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n")).unwrap();
        assert!([404, 405].contains(&reply.status), "{method} {path}");
        is_problem(&reply, 405, "method_not_allowed");
    }
    // Users are anybody's names: everything but control characters, also in a path.
    for (user, encoded) in
        [("a/b", "a%2Fb"), ("..", ".."), ("a b%", "a%20b%25"), ("🎟", "%F0%9F%8E%9F"), ("'; --", "'%3B%20--")]
    {
        let rank = api.claim("c", user).is(201)["rank"].clone();
        assert_eq!(api.get(&format!("/v1/campaigns/c/claims/{encoded}")).is(200)["rank"], rank);
        assert_eq!(api.get(&format!("/v1/users/{encoded}/coupons")).is(200)["coupons"][0]["rank"], rank);
    }
    for user in ["a\u{0}", "\u{7f}", "a\nb", &long, &"é".repeat(65)] {
        api.claim("c", user).refused(422, "invalid_request");
    }
    for key in ["x".repeat(65), "é".repeat(40)] {
        api.keyed(CLAIM, &key, &json!({"user": "k"})).refused(422, "invalid_request");
    }
    target.is_well(NOISE);
}

#[test]
fn bodies_that_are_not_the_json_they_should_be() {
    let target = Target::new(&[]);
    let api = target.api();
    let deep = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let mut bad: Vec<Vec<u8>> = vec![
        b"{\"user\":\"\xff\xfe\"}".into(),
        b"\xef\xbb\xbf{\"user\":\"u\"}".into(),
        b"{\"user\":\"\xed\xa0\x80\"}".into(),
        b"\0\0\0\0".into(),
        b"{\"user\":\"a\0b\"}".into(),
    ];
    bad.extend(
        [
            r#"{"user":"\ud800"}"#,
            r#"{"user":"\u0000"}"#,
            r#"{"user":"u","user":"v"}"#,
            r#"{"user":"u"} {"user":"v"}"#,
            r#"{"user":"u",}"#,
            r#"{'user':'u'}"#,
            r#"{"user":"u""#,
            r#"user=u"#,
            "<user>u</user>",
        ]
        .map(Vec::from),
    );
    bad.push(deep("[", "]", 10_000).into());
    bad.push(deep(r#"{"user":"#, "}", 5_000).into());
    bad.push(format!(r#"{{"user":{}}}"#, deep("[", "]", 10_000)).into());
    for body in &bad {
        invalid(&api, CLAIM, body);
        invalid(&api, CREATE, body);
        invalid(&api, RESTOCK, body);
        invalid(&api, CONFIRM, body);
        invalid(&api, REDEEM, body);
    }
    for body in [
        r#"{"id":"d","id":"d","stock":1}"#,
        r#"{"id":"d","stock":1,"stock":2}"#,
        r#"{"id":"d","stock":1,"stok":2}"#,
    ] {
        invalid(&api, CREATE, body);
    }
    invalid(&api, RESTOCK, r#"{"units":1,"units":1}"#);
    invalid(&api, "/v1/campaigns/c/codes", b"A-1\n\xff\n");
    invalid(&api, "/v1/campaigns/c/codes", b"A-1\nA\0B\n");
    invalid(&api, "/v1/campaigns/c/codes", "x".repeat(65));
    // The content type is not looked at: the body is JSON or it is not.
    for kind in [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "\"",
        "",
    ] {
        let reply = api.call("POST", CLAIM, &[("content-type", kind)], br#"{"user":"first"}"#);
        assert_eq!(reply.status, 200, "{kind}: {}", reply.text());
        let reply = api.call("POST", CLAIM, &[("content-type", kind)], b"user=first");
        reply.refused(422, "invalid_request");
    }
    target.is_well(NOISE);
}

/// What is not HTTP is the HTTP layer's affair: a 4xx, or the end of the connection.
#[test]
fn requests_that_are_not_http() {
    let target = Target::new(&[]);
    let post = |headers: &str, body: &str| format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}");
    let body = r#"{"user":"smuggled"}"#;
    let length = body.len();
    let flood: String = (0..10_000).map(|i| format!("x-{i}: y\r\n")).collect();
    for bytes in [
        "\0\0\0\0\r\n\r\n".to_owned(),
        "GET /healthz\0 HTTP/1.1\r\n\r\n".into(),
        "GET /health z HTTP/1.1\r\n\r\n".into(),
        "GET /healthz HTTP/1.1\r\nx: \0\r\n\r\n".into(),
        "GET /healthz HTTP/1.1\r\n: y\r\n\r\n".into(),
        "GET /healthz HTTP/1.1\r\nx : y\r\n\r\n".into(),
        "GET /healthz HTTP/9.9\r\n\r\n".into(),
        "GET /healthz\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n".into(),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000)),
        format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(MIB as usize)),
        format!("GET /healthz HTTP/1.1\r\n{flood}\r\n"),
        post("content-length: -1\r\n", body),
        post("content-length: x\r\n", body),
        post("content-length: 99999999999999999999999\r\n", body),
        post(&format!("content-length: {length}\r\ncontent-length: 3\r\n"), body),
        post("transfer-encoding: chunked\r\n", &format!("zz\r\n{body}\r\n0\r\n\r\n")),
        post("transfer-encoding: chunked\r\n", &format!("fffffffffffffffff\r\n{body}")),
        post(
            "transfer-encoding: chunked\r\n",
            &format!("{length:x};{}\r\n{body}\r\n0\r\n\r\n", "e".repeat(100_000)),
        ),
        post("transfer-encoding: identity, gzip\r\n", body),
    ] {
        let start = &bytes[..bytes.len().min(120)];
        let Some(reply) = target.raw(&bytes) else {
            assert!(start.starts_with("PRI") || start.contains("chunked"), "{start:?}: no answer");
            continue;
        };
        assert!((400..500).contains(&reply.status), "{start:?}: {}", reply.status);
    }
    // Bytes that are no request at all, and a client that leaves in the middle.
    for _ in 0..200 {
        drop(target.connect());
        let mut connection = target.connect();
        connection.send(post("content-length: 100\r\n", r#"{"user":"#));
    }
    target.api().get("/v1/campaigns/c/claims/smuggled").refused(404, "no_claim");
    target.is_well(NOISE);
}

/// Without a length there is no body; what follows is the next request, and it is none.
#[test]
fn a_body_without_a_length_is_no_body() {
    let target = Target::new(&[]);
    let mut connection = target.connect();
    connection.send(format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\n\r\n{{\"user\":\"nolength\"}}\r\n\r\n"));
    connection.reply().unwrap().refused(422, "invalid_request");
    assert!(connection.reply().is_none_or(|r| r.status == 400));
    assert!(connection.ended());
    target.api().get("/v1/campaigns/c/claims/nolength").refused(404, "no_claim");
    target.is_well(NOISE);
}

/// Both a length and chunks: two servers in a row might disagree where the request ends. The chunks count, and
/// nothing after them is taken for a request of this connection.
#[test]
fn a_length_beside_chunks_smuggles_nothing() {
    let target = Target::new(&[]);
    let hidden =
        format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{{\"user\":\"smuggled\"}}\n");
    for headers in [
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", 5 + hidden.len()),
        format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n", 5 + hidden.len()),
    ] {
        let mut connection = target.connect();
        connection.send(format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\n{headers}\r\n0\r\n\r\n{hidden}"));
        let first = connection.reply().expect("an answer");
        assert!([400, 422].contains(&first.status), "{}", first.status);
        assert!(connection.reply().is_none(), "what was hidden in the body was answered");
    }
    target.api().get("/v1/campaigns/c/claims/smuggled").refused(404, "no_claim");
    target.is_well(NOISE);
}

#[test]
fn chunks_of_any_size_make_a_body() {
    let target = Target::new(&[]);
    let body = r#"{"user":"chunked"}"#;
    let chunks: String = body.chars().map(|c| format!("1;x=y\r\n{c}\r\n")).collect();
    let head = format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let win = target.raw(format!("{head}{chunks}0\r\ntrailer: x\r\n\r\n")).unwrap();
    target.api().check("POST", CLAIM, &win);
    assert_eq!(win.is(201)["user"], "chunked");
    target.is_well(NOISE);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let target = Target::new(&[]);
    let mut connection = target.connect();
    let mut all = String::new();
    for i in 0..200 {
        let body = json!({"user": format!("p-{i}")}).to_string();
        all += &format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        all += &format!("GET /v1/campaigns/c/claims/p-{i} HTTP/1.1\r\nhost: x\r\n\r\n");
        all += "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n";
    }
    connection.send(all);
    for i in 0..200 {
        let win = connection.reply().unwrap().is(201);
        assert_eq!((&win["user"], &win["rank"]), (&json!(format!("p-{i}")), &json!(i + 2)));
        assert_eq!(connection.reply().unwrap().is(200)["rank"], i + 2);
        is_problem(&connection.reply().unwrap(), 404, "no_such_route");
    }
    target.is_well(NOISE);
}

/// An answer does not wait for the end of the next request, nor is it lost if that one is malformed.
#[test]
fn an_answer_does_not_wait_for_the_next_request() {
    let target = Target::new(&[]);
    let mut connection = target.connect();
    let body = r#"{"user":"early"}"#;
    let claim = format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection.send(format!("{claim}GET /hea"));
    assert_eq!(connection.reply().unwrap().is(201)["user"], "early");
    connection.send("lthz HTTP/1.1\r\n\r\n");
    assert_eq!(connection.reply().unwrap().status, 200);
    connection.send(format!("{claim}{claim}\0"));
    for _ in 0..2 {
        assert_eq!(connection.reply().unwrap().is(200)["user"], "early");
    }
    assert_eq!(connection.reply().unwrap().status, 400);
    target.is_well(NOISE);
}

/// Whoever asks and never reads is not read from any more, and cut.
#[test]
fn a_client_that_does_not_read_fills_no_memory() {
    let target = Target::new(&["--idle-ms", "200"]);
    let mut connection = target.connect();
    let requests = "GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1_000);
    while connection.try_send(&requests) {
        target.is_well(NOISE);
    }
    target.is_well(NOISE);
}

/// A byte now and then: headers that never end, bodies that never end, connections that say nothing.
#[test]
fn slow_requests_are_cut() {
    let target = Target::new(&["--idle-ms", "50", "--body-ms", "50", "--import-ms", "50"]);
    let mut headers = target.connect();
    headers.send("GET /healthz HTTP/1.1\r\nhost: x\r\n");
    headers.trickle("a: b\r\n");
    assert!(headers.reply().is_none());
    let mut line = target.connect();
    line.trickle("G");
    assert!(line.reply().is_none());
    let mut silent = target.connect();
    assert!(silent.ended());
    let mut kept = target.connect();
    assert_eq!(kept.ask("GET", "/healthz", &[], b"").status, 200);
    assert!(kept.ended());
    for path in [CLAIM, CREATE, "/v1/campaigns/c/codes"] {
        for length in ["content-length: 1000000", "transfer-encoding: chunked"] {
            let mut body = target.connect();
            body.send(format!("POST {path} HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n"));
            let piece = if length.starts_with('t') { "1\r\n \r\n" } else { " " };
            body.trickle(piece);
            let late = body.reply().expect("an answer");
            target.api().check("POST", path, &late);
            late.refused(408, "timeout");
        }
    }
    target.is_well(NOISE);
}

/// Being busy is not being idle: an answer that takes long, and a stream on which nothing is asked.
#[test]
fn long_answers_are_not_cut() {
    let target = Target::new(&["--idle-ms", "50", "--body-ms", "60000"]);
    let mut slow = target.connect();
    slow.send(format!(
        "POST {CLAIM} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 15\r\n\r\n"
    ));
    assert_eq!(slow.head().unwrap().status, 100);
    let mut stream = target.connect();
    stream.send("GET /v1/campaigns/c/events HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(stream.head().unwrap().status, 200);
    // Others that came later are cut meanwhile, several times over.
    for _ in 0..4 {
        assert!(target.connect().ended());
    }
    slow.send(r#"{"user":"slow"}"#);
    assert_eq!(slow.reply().unwrap().is(201)["user"], "slow");
    until("the stream shows the win", || {
        let line = stream.line().expect("the stream goes on");
        let data: Value = serde_json::from_str(line.strip_prefix("data: ")?).unwrap();
        (data["won"] == 2).then_some(())
    });
    target.is_well(NOISE);
}

/// Ten thousand connections that have begun a request, or as many as the machine permits.
#[test]
fn ten_thousand_half_open_connections() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { ..limit }).unwrap();
    // The rest is for the other tests of this process, and for the server's own files.
    let room = limit.maximum.map_or(u64::MAX, |m| m.saturating_sub(500));
    let many = room.min(10_000) as usize;
    if many < 10_000 {
        // Not by a macro, whose words a test that succeeds keeps to itself.
        let limit = limit.maximum;
        let words = format!("\nONLY {many} CONNECTIONS: {limit:?} files may be open, 10,500 are needed\n");
        std::io::stderr().write_all(words.as_bytes()).unwrap();
    }
    let target = Target::new(&["--idle-ms", "600000", "--body-ms", "600000"]);
    let mut open: Vec<Connection> = Vec::with_capacity(many);
    for i in 0..many {
        let mut connection = target.connect();
        connection.send(match i % 3 {
            0 => "",
            1 => "POST /v1/campaigns/c/claims HTTP/1.1\r\nhost: x\r\nx-",
            _ => "POST /v1/campaigns/c/claims HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{\"us",
        });
        open.push(connection);
    }
    until("all are taken", || (target.server.open_files() >= many).then_some(()));
    // 32 KiB for each of them.
    target.is_well(many as u64 * 32 * 1024);
    drop(open);
    until("all are let go", || (target.server.open_files() < 100).then_some(()));
    target.is_well(many as u64 * 32 * 1024);
}

/// Bodies that stop a byte before their end: the limit of a body bounds each.
#[test]
fn a_thousand_bodies_that_stop_before_the_end() {
    let target = Target::new(&["--body-ms", "600000"]);
    let most = vec![b' '; 64 * 1024 - 1];
    let mut open = Vec::new();
    for _ in 0..1_000 {
        let mut connection = target.connect();
        connection.send(format!("POST {CLAIM} HTTP/1.1\r\nhost: x\r\ncontent-length: 65536\r\n\r\n"));
        connection.send(&most);
        open.push(connection);
    }
    until("all are taken", || (target.server.open_files() >= 1_000).then_some(()));
    // 64 KiB of body and as much again.
    target.is_well(1_000 * 128 * 1024);
    for mut connection in open {
        connection.send("x");
        connection.reply().expect("an answer").refused(422, "invalid_request");
    }
}

/// Beyond `--connections` the kernel lets them wait; whoever is first gets the room that becomes free.
#[test]
fn connections_beyond_the_limit_wait() {
    let server = Server::start(&["--connections", "2", "--idle-ms", "600000"]);
    let mut first = Connection::open(&server.address);
    assert_eq!(first.ask("GET", "/healthz", &[], b"").status, 200);
    let mut second = Connection::open(&server.address);
    assert_eq!(second.ask("GET", "/healthz", &[], b"").status, 200);
    let mut third = Connection::open(&server.address);
    third.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(first.ask("GET", "/healthz", &[], b"").status, 200);
    assert!(!third.has_answer());
    // The queue is longer than the usual 128; beyond it a connection would not come about at all.
    let _waiting: Vec<Connection> = (0..400).map(|_| Connection::open(&server.address)).collect();
    drop(second);
    assert_eq!(third.reply().unwrap().status, 200);
}
