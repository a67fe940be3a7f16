//! The command line: starting, stopping, every command against a real server, and what the audit finds.

use std::{path::Path, process::Output};

use rusqlite::Connection as Db;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    contract::Api,
    http::Connection,
    server::{KEY, Server, dibs, run, until},
};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// It ended with this code, and what it said on stderr.
#[track_caller]
fn ended(output: &Output, code: i32) -> String {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}{}", stdout(output));
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A command with `--json` that succeeds, and what it printed.
#[track_caller]
fn json_of(args: &[&str]) -> Value {
    let output = run(args);
    ended(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stdout(&output)))
}

/// Waits until the ledger has so many coupons, those that were given up included.
fn issued(api: &Api<'_>, campaign: &str, coupons: usize) {
    until("every coupon is written", || {
        (api.get(&format!("/v1/campaigns/{campaign}")).is(200)["issued"] == coupons).then_some(())
    });
}

/// A folder with a campaign `c`, five winners of ten coupons, one used and one given up, and its receipts.
fn filled(folder: &Path) -> Vec<Value> {
    let mut server = Server::on(folder, &[]);
    let api = Api::new(&server.address);
    api.post("/v1/campaigns", &json!({"id": "c", "stock": 10})).is(201);
    let wins: Vec<Value> = (1..=5).map(|i| api.claim("c", &format!("u-{i}")).is(201)).collect();
    let code = wins[0]["code"].as_str().unwrap();
    api.post(&format!("/v1/coupons/{code}/redeem"), &json!({"by": "till 7"})).is(200);
    api.post("/v1/campaigns/c/claims/u-2/cancel", &Value::Null).is(200);
    assert_eq!(server.stop().code(), Some(0));
    wins
}

#[test]
fn a_folder_serves_one_process() {
    let server = Server::start(&[]);
    let folder = server.folder().to_str().unwrap();
    let into = server.folder().join("built.db");
    for args in [
        vec!["serve", "--listen", "127.0.0.1:0", "--data", folder],
        vec!["audit", "--data", folder],
        vec!["replay", "--data", folder, "--into", into.to_str().unwrap()],
    ] {
        let said = ended(&run(&args), 3);
        assert!(said.contains(folder) && said.contains("in use"), "{said}");
    }
    assert!(!into.exists());
    assert_eq!(Api::new(&server.address).get("/healthz").status, 200);
}

#[test]
fn a_port_serves_one_process() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let said = ended(&run(&["serve", "--listen", &server.address, "--data", folder]), 3);
    assert!(said.contains("another server"), "{said}");
}

#[test]
fn what_would_be_used_is_printed_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dibs.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:9\"\nissue_rate = \"7\"\nin_flight = 5\n").unwrap();
    let mut command =
        dibs(&["serve", "--print-config", "--issue-rate", "9/s", "--config", file.to_str().unwrap()]);
    let secret = "ab".repeat(32);
    command.envs([("DIBS_ADMIN_KEY", KEY), ("DIBS_SECRET", &secret), ("DIBS_HOLD_MS", "17")]);
    let output = command.output().unwrap();
    ended(&output, 0);
    let printed = stdout(&output);
    assert!(!printed.contains(KEY) && !printed.contains(&secret), "{printed}");
    for line in [
        "data = \"dibs-data\"",
        "listen = \"127.0.0.1:9\"",
        "issue_rate = \"9/s\"",
        "in_flight = 5",
        "hold_ms = 17",
        "connections = 16384",
        "partitions = 1",
    ] {
        assert!(printed.lines().any(|l| l == line), "{line}: {printed}");
    }
    // What is printed is itself a configuration, once the secrets are said again.
    let without: String =
        printed.lines().filter(|l| !l.contains("not shown")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&file, &without).unwrap();
    let again = run(&["serve", "--print-config", "--config", file.to_str().unwrap()]);
    ended(&again, 0);
    assert_eq!(stdout(&again), without);
}

#[test]
fn what_is_wrong_is_named_with_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |args: &[&str], env: &[(&str, &str)], file: &str| {
        let path = folder.path().join("dibs.toml");
        std::fs::write(&path, file).unwrap();
        let data = folder.path().join("data");
        let mut all = vec!["serve", "--data", data.to_str().unwrap(), "--config", path.to_str().unwrap()];
        all.extend(args);
        let output = dibs(&all).envs(env.iter().copied()).output().unwrap();
        assert!(!data.exists(), "nothing is made before the configuration holds");
        ended(&output, 2)
    };
    for (args, env, file, says) in [
        (&["--lisen", "x"][..], &[][..], "", "--listen"),
        (&["--partitions", "many"], &[], "", "--partitions"),
        (&["--partitions", "-1"], &[], "", "-1"),
        (&["--partitions", "0"], &[], "", "1 to 1000"),
        (&["--listen", "localhost"], &[], "", "127.0.0.1:8080"),
        (&["--listen", "127.0.0.1:99999"], &[], "", "127.0.0.1:99999"),
        (&["--listen", "0.0.0.0:0"], &[], "", "--admin-key"),
        (&["--listen", "[::]:0"], &[], "", "--admin-key"),
        (&["--listen", "0.0.0.0:0", "--admin-key", "short"], &[], "", "at least 16"),
        (&["--issue-rate", "fast"], &[], "", "500/s"),
        (&["--issue-rate", "0"], &[], "", "500/s"),
        (&["--user-header", "a b"], &[], "", "a b"),
        (&["--user-header", "x", "--jwt-key", "y"], &[], "", "exclude each other"),
        (&["--secret", "abc"], &[], "", "64 hex"),
        (&["--in-flight", "0"], &[], "", "at least 1"),
        (&["--idle-ms", "0"], &[], "", "at least 1"),
        (&[], &[("DIBS_IN_FLIGHT", "many")], "", "many"),
        (&[], &[("DIBS_LISTEN", "nowhere")], "", "nowhere"),
        (&[], &[("DIBS_ISSUE_RATE", "-5")], "", "-5"),
        (&[], &[], "lisen = \"127.0.0.1:1\"", "lisen"),
        (&[], &[], "partitions = \"one\"", "partitions"),
        (&[], &[], "partitions = -1", "partitions"),
        (&[], &[], "listen = ", "dibs.toml"),
    ] {
        let said = serve(args, env, file);
        assert!(said.contains(says), "{args:?} {env:?} {file:?}: {said}");
    }
    let said = ended(&run(&["serve", "--config", "/nowhere/dibs.toml"]), 2);
    assert!(said.contains("/nowhere/dibs.toml"), "{said}");
    for args in [
        &["claims"][..],
        &["campaign"],
        &["campaign", "create", "c"],
        &["claim", "c"],
        &["completions", "cmd"],
    ] {
        ended(&run(args), 2);
    }
}

/// Without the key of an existing installation every code would change.
#[test]
fn a_folder_whose_secret_is_gone_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let secret = folder.path().join("secret.key");
    std::fs::rename(&secret, folder.path().join("kept")).unwrap();
    let data = folder.path().to_str().unwrap();
    let said = ended(&run(&["serve", "--listen", "127.0.0.1:0", "--data", data]), 3);
    assert!(said.contains("secret.key"), "{said}");
    let hex = std::fs::read_to_string(folder.path().join("kept")).unwrap();
    assert_eq!(json_of(&["audit", "--json", "--data", data, "--secret", hex.trim()])["exact"], true);
}

/// A request that has begun when the signal comes is answered; nobody new is taken; everything is there afterwards.
#[test]
fn a_signal_ends_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::on(folder.path(), &[]);
        let api = Api::new(&server.address);
        api.post("/v1/campaigns", &json!({"id": "c", "stock": 10})).is(201);
        let before = api.claim("c", "before").is(201);
        let mut kept = Connection::open(&server.address);
        assert_eq!(kept.ask("GET", "/healthz", &[], b"").status, 200);
        let mut stream = Connection::open(&server.address);
        stream.send("GET /v1/campaigns/c/events HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(stream.head().unwrap().status, 200);
        let mut begun = Connection::open(&server.address);
        let head = "POST /v1/campaigns/c/claims HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 17\r\n\r\n";
        begun.send(head);
        assert_eq!(begun.head().unwrap().status, 100);
        kill_process(server.pid(), signal).unwrap();
        until("nobody new is taken", || std::net::TcpStream::connect(&server.address).is_err().then_some(()));
        assert!(kept.ended());
        begun.send(r#"{"user":"during"}"#);
        let during = begun.reply().expect("what has begun is answered").is(201);
        assert!(begun.ended());
        assert_eq!(server.wait().code(), Some(0));
        let server = Server::on(folder.path(), &[]);
        let api = Api::new(&server.address);
        for win in [before, during] {
            let again = api.claim("c", win["user"].as_str().unwrap()).is(200);
            assert_eq!((&again["rank"], &again["code"]), (&win["rank"], &win["code"]));
        }
        assert_eq!(api.claim("c", "after").is(201)["rank"], 3);
    }
}

/// Killed in the middle of claims: whoever was told of a win has it, and the audit is exact.
#[test]
fn a_kill_loses_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::on(folder.path(), &[]);
    Api::new(&server.address).post("/v1/campaigns", &json!({"id": "c", "stock": 100_000})).is(201);
    let (told, pid) = (std::sync::Mutex::new(Vec::new()), server.pid());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (told, address) = (&told, &server.address);
            scope.spawn(move || {
                let mut connection = Connection::open(address);
                for i in 0.. {
                    let body = format!(r#"{{"user":"{thread}-{i}"}}"#);
                    let head = format!(
                        "POST /v1/campaigns/c/claims HTTP/1.1\r\nhost: x\r\ncontent-length: {}",
                        body.len()
                    );
                    connection.send(format!("{head}\r\n\r\n{body}"));
                    let Some(reply) = connection.reply().filter(|r| r.status == 201) else { return };
                    told.lock().unwrap().push(reply.json());
                }
            });
        }
        until("some have won", || (told.lock().unwrap().len() > 200).then_some(()));
        kill_process(pid, Signal::KILL).unwrap();
    });
    assert_eq!(server.wait().code(), None);
    let mut server = Server::on(folder.path(), &[]);
    let api = Api::new(&server.address);
    for win in told.into_inner().unwrap() {
        let again = api.claim("c", win["user"].as_str().unwrap()).is(200);
        for member in ["rank", "code", "claim"] {
            assert_eq!(again[member], win[member], "{member}");
        }
    }
    let won = api.get("/v1/campaigns/c").is(200)["won"].as_u64().unwrap() as usize;
    issued(&api, "c", won);
    assert_eq!(json_of(&["audit", "--json", "--url", &server.url()])["exact"], true);
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(json_of(&["audit", "--json", "--data", folder.path().to_str().unwrap()])["exact"], true);
}

/// Every command that talks to a server, with `--json` and in words.
#[test]
fn commands_speak_to_a_server() {
    let server = Server::start(&["--admin-key", KEY]);
    let url = server.url();
    let command = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--url", &url, "--admin-key", KEY, "--json"]);
        json_of(&all)
    };
    let made = command(&[
        "campaign",
        "create",
        "c",
        "--stock",
        "2",
        "--title",
        "봄",
        "--opens-at",
        "2020-01-01T00:00:00Z",
        "--closes-at",
        "2099-01-01T00:00:00Z",
        "--per-user-limit",
        "2",
        "--code-pattern",
        "C-####-####",
        "--hold-seconds",
        "60",
        "--waitlist",
        "3",
    ]);
    assert_eq!(made, Api::new(&server.address).get("/v1/campaigns/c").is(200));
    assert_eq!(
        (&made["title"], &made["hold_seconds"], &made["waitlist"]),
        (&json!("봄"), &json!(60), &json!(3))
    );
    command(&["campaign", "create", "d", "--stock", "1"]);
    let all = command(&["campaign", "list"]);
    assert_eq!(all.as_array().unwrap().iter().map(|c| &c["id"]).collect::<Vec<_>>(), ["c", "d"]);
    assert_eq!(command(&["campaign", "show", "d"])["state"], "open");
    assert_eq!(command(&["campaign", "restock", "d", "4", "--key", "k"])["stock"], 5);
    assert_eq!(command(&["campaign", "restock", "d", "4", "--key", "k"])["stock"], 5);
    assert_eq!(command(&["campaign", "pause", "d"])["state"], "paused");
    assert_eq!(command(&["campaign", "resume", "d"])["state"], "open");
    let win = command(&["claim", "d", "a/b"]);
    assert_eq!((&win["user"], &win["rank"]), (&json!("a/b"), &json!(1)));
    assert_eq!(command(&["claim", "d", "a/b"])["verdict"], "already_won");
    assert_ne!(
        command(&["claim", "c", "u", "--key", "1"])["rank"],
        command(&["claim", "c", "u", "--key", "2"])["rank"]
    );
    let code = win["code"].as_str().unwrap();
    assert_eq!(command(&["coupon", "show", code])["user"], "a/b");
    assert_eq!(command(&["coupon", "redeem", code, "--by", "till 7", "--key", "r"])["redeemed_by"], "till 7");
    assert_eq!(command(&["coupon", "redeem", code, "--by", "till 7", "--key", "r"])["state"], "redeemed");
    let refused = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--url", &url]);
        ended(&run(&all), 1)
    };
    let used = refused(&["coupon", "redeem", code, "--by", "till 8", "--admin-key", KEY]);
    assert!(used.contains("has been used already"), "{used}");
    assert_eq!(command(&["coupon", "unredeem", code])["state"], "won");
    assert_eq!(command(&["campaign", "close", "d"])["state"], "closed");
    assert!(refused(&["campaign", "close", "d"]).contains("admin key"));
    assert!(refused(&["campaign", "show", "none"]).contains("none"));
    assert!(refused(&["claim", "d", "late"]).contains("Closed"));
    assert!(refused(&["claim", "c", ""]).contains("empty"));
    assert_eq!(command(&["audit"])["differences"], 0);
    // In words.
    let words = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--url", &url, "--admin-key", KEY]);
        let output = run(&all);
        ended(&output, 0);
        stdout(&output)
    };
    let lines = |text: &str| {
        text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert!(lines(&words(&["campaign", "show", "d"])).contains(&"state closed".into()));
    assert!(lines(&words(&["campaign", "list"])).iter().any(|l| l.starts_with("d closed 5 1 4")));
    assert!(lines(&words(&["coupon", "show", code])).contains(&format!("code {code}")));
    assert!(words(&["audit"]).contains("exact: the ledger says what the log says"));
    let nobody = run(&["campaign", "list", "--url", "http://127.0.0.1:1"]);
    assert!(ended(&nobody, 3).contains("is `dibs serve` running?"));
}

#[test]
fn codes_are_imported_from_a_file_or_standard_input() {
    let server = Server::start(&[]);
    let url = server.url();
    let file = server.folder().join("codes.txt");
    std::fs::write(&file, "P-1\nP-2\n").unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(
        json_of(&["campaign", "import-codes", "p", path, "--url", &url, "--json"]),
        json!({"imported": 2, "total": 2})
    );
    let mut piped = dibs(&["campaign", "import-codes", "p", "-", "--url", &url]);
    let output = piped.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    ended(&output, 0);
    assert_eq!(stdout(&output), "0 codes imported, 2 in all\n");
    let create = ["campaign", "create", "p", "--stock", "3", "--imported-codes", "--url", &url];
    assert!(ended(&run(&create), 1).contains("2 codes are imported for a stock of 3"));
    let create = ["campaign", "create", "p", "--stock", "2", "--imported-codes", "--url", &url, "--json"];
    assert_eq!(json_of(&create)["imported_codes"], true);
    assert_eq!(json_of(&["claim", "p", "u", "--url", &url, "--json"])["code"], "P-1");
    std::fs::write(&file, "P-3\nP 4\n").unwrap();
    assert!(ended(&run(&["campaign", "import-codes", "p", path, "--url", &url]), 1).contains("line 2"));
    ended(&run(&["campaign", "import-codes", "p", "/nowhere", "--url", &url]), 3);
}

/// Every table of a ledger but who has it: epochs count takeovers.
fn tables(file: &Path) -> Vec<String> {
    let db = Db::open(file).unwrap();
    let mut rows = Vec::new();
    for table in ["campaigns", "campaign_counts", "coupons", "outbox", "windows", "progress"] {
        let mut query = db.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
        let names: Vec<String> = query.column_names().map(String::from).collect();
        let mut found = query.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let mut text = table.to_owned();
            for (i, name) in names.iter().enumerate().filter(|(_, n)| *n != "epoch") {
                text += &format!(" {name}={:?}", row.get_ref(i).unwrap());
            }
            rows.push(text);
        }
    }
    rows
}

#[test]
fn a_replay_builds_the_same_ledger() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    let data = folder.path().to_str().unwrap();
    let ledger = folder.path().join("ledger.db");
    let built = folder.path().join("built.db");
    let output = run(&["replay", "--data", data, "--into", built.to_str().unwrap()]);
    ended(&output, 0);
    assert!(stdout(&output).starts_with("5 coupons of 1 partitions"), "{}", stdout(&output));
    let rows = tables(&ledger);
    assert_eq!(rows.iter().filter(|r| r.starts_with("coupons ")).count(), 5);
    assert_eq!(tables(&built), rows);
    assert_eq!(
        json_of(&["audit", "--json", "--data", data, "--ledger", built.to_str().unwrap()])["exact"],
        true
    );
    let again = run(&["replay", "--data", data, "--into", built.to_str().unwrap()]);
    assert!(ended(&again, 3).contains("not empty"));
    // A server goes on with it as if nothing had happened.
    std::fs::rename(&built, folder.path().join("ledger.db")).unwrap();
    let server = Server::on(folder.path(), &[]);
    let api = Api::new(&server.address);
    assert_eq!(api.claim("c", "u-6").is(201)["rank"], 6);
    issued(&api, "c", 6);
    assert_eq!(json_of(&["audit", "--json", "--url", &server.url()])["exact"], true);
}

#[test]
fn a_folder_without_a_log_is_no_data_folder() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("built.db");
    let data = folder.path().join("data");
    for data in [data.to_str().unwrap(), "/dev/null/x"] {
        ended(&run(&["replay", "--data", data, "--into", into.to_str().unwrap()]), 3);
        ended(&run(&["audit", "--data", data]), 3);
    }
    assert!(!data.exists(), "looking makes nothing");
    assert!(!into.exists());
    let used = folder.path().join("used");
    filled(&used);
    let args = ["audit", "--data", used.to_str().unwrap(), "--ledger", into.to_str().unwrap()];
    assert!(ended(&run(&args), 3).contains("dibs replay"));
    assert!(!into.exists());
}

#[test]
fn the_audit_names_what_was_tampered_with() {
    let folder = tempfile::tempdir().unwrap();
    let wins = filled(folder.path());
    let data = folder.path().to_str().unwrap();
    let ledger = folder.path().join("ledger.db");
    let good = json_of(&["audit", "--json", "--data", data]);
    assert_eq!((&good["rows"], &good["differences"]), (&json!(5), &json!(0)));
    let code = wins[2]["code"].as_str().unwrap();
    let all = "SELECT count(*) FROM coupons";
    for (sql, differences, names) in [
        ("DELETE FROM coupons WHERE rank_no = 3", 1, &["c rank 3", "u-3", "no row"][..]),
        ("UPDATE coupons SET code = 'FORGED' WHERE rank_no = 3", 1, &["c rank 3", "FORGED", code]),
        ("UPDATE coupons SET rank_no = 9 WHERE rank_no = 3", 2, &["c rank 3", "c rank 9", "no such win"]),
        ("UPDATE coupons SET user_id = 'thief' WHERE rank_no = 3", 1, &["c rank 3", "thief"]),
        (
            "UPDATE coupons SET status = 'issued', redeemed_by = NULL, redeemed_at = NULL WHERE rank_no = 1",
            1,
            &["c rank 1"],
        ),
        ("UPDATE coupons SET redeemed_by = 'till 8' WHERE rank_no = 1", 1, &["c rank 1", "till 8"]),
        ("UPDATE coupons SET status = 'issued' WHERE rank_no = 2", 1, &["c rank 2"]),
        ("UPDATE coupons SET claimed_at = claimed_at + 1 WHERE rank_no = 3", 1, &["c rank 3"]),
        (
            "INSERT INTO coupons SELECT campaign_id, 6, 'thief', 'X', status, log_partition, 99, claimed_at, NULL, NULL \
             FROM coupons WHERE rank_no = 3",
            1,
            &["c rank 6", "thief", "no such win"],
        ),
        (
            "INSERT INTO campaigns SELECT 'forged', title, stock, state, opens_at, closes_at, log_partition, \
             created_offset FROM campaigns WHERE campaign_id = 'c'",
            1,
            &["forged", "the log does not"],
        ),
    ] {
        let db = Db::open(&ledger).unwrap();
        db.query_row(all, [], |row| row.get::<_, i64>(0)).unwrap();
        let copy = folder.path().join("tampered.db");
        let _ = std::fs::remove_file(&copy);
        db.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
        assert_eq!(Db::open(&copy).unwrap().execute(sql, []).unwrap(), 1, "{sql}");
        let output = run(&["audit", "--json", "--data", data, "--ledger", copy.to_str().unwrap()]);
        ended(&output, 1);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&found["exact"], &found["differences"]),
            (&json!(false), &json!(differences)),
            "{sql}: {found}"
        );
        for name in names {
            assert!(found["named"].to_string().contains(name), "{sql}: {name}: {found}");
        }
        let words = run(&["audit", "--data", data, "--ledger", copy.to_str().unwrap()]);
        ended(&words, 1);
        assert!(
            stdout(&words).contains(names[0]) && stdout(&words).contains("NOT exact"),
            "{}",
            stdout(&words)
        );
    }
    // A running server finds it too.
    Db::open(&ledger).unwrap().execute("DELETE FROM coupons WHERE rank_no = 4", []).unwrap();
    let server = Server::on(folder.path(), &[]);
    let output = run(&["audit", "--url", &server.url()]);
    ended(&output, 1);
    assert!(
        stdout(&output).contains("c rank 4: the log has u-4, the ledger has no row"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn receipts_are_checked_against_key_and_log() {
    let folder = tempfile::tempdir().unwrap();
    let wins = filled(folder.path());
    let data = folder.path().to_str().unwrap();
    let receipt = |i: usize| wins[i]["receipt"].as_str().unwrap();
    let mut server = Server::on(folder.path(), &[]);
    let key = Api::new(&server.address).get("/v1/keys").is(200)["keys"][0]["public_key"]
        .as_str()
        .unwrap()
        .to_owned();
    server.stop();
    let verify = |receipt: &str, key: &str| run(&["receipt", "verify", receipt, "--public-key", key]);
    let says: Value = serde_json::from_slice(&verify(receipt(0), &key).stdout).unwrap();
    assert_eq!((&says["campaign"], &says["user"], &says["rank"]), (&json!("c"), &json!("u-1"), &json!(1)));
    // Somebody else's proof, another key, half of it.
    let parts: Vec<&str> = receipt(0).split('.').collect();
    let swapped = format!("{}.{}", receipt(1).split('.').next().unwrap(), parts[1..].join("."));
    assert!(ended(&verify(&swapped, &key), 1).contains("signature does not match"));
    assert!(ended(&verify(receipt(0), &"ab".repeat(32)), 1).contains("dibs: "));
    assert!(ended(&verify(parts[0], &key), 1).contains("not a receipt"));
    assert!(ended(&verify(receipt(0), "xyz"), 1).contains("64 hexadecimal digits"));
    let file = folder.path().join("receipts.txt");
    std::fs::write(&file, format!("{}\n\n{}\n", receipt(0), receipt(4))).unwrap();
    let mut piped = dibs(&["receipt", "verify", "-", "--public-key", &key]);
    std::fs::write(folder.path().join("one"), format!("{}\n", receipt(3))).unwrap();
    let output = piped.stdin(std::fs::File::open(folder.path().join("one")).unwrap()).output().unwrap();
    ended(&output, 0);
    assert!(stdout(&output).contains("u-4"));
    let audit = ["audit", "--json", "--data", data, "--receipts", file.to_str().unwrap()];
    assert_eq!(json_of(&audit)["receipts"], 2);
    std::fs::write(&file, format!("{}\n{swapped}\n", receipt(0))).unwrap();
    let output = run(&audit);
    ended(&output, 1);
    assert!(stdout(&output).contains("receipt 2: the signature does not match"), "{}", stdout(&output));
}

#[test]
fn completions_and_help_are_printed() {
    for (shell, has) in [
        ("bash", "complete"),
        ("zsh", "#compdef dibs"),
        ("fish", "complete -c dibs"),
        ("powershell", "Register"),
    ] {
        let output = run(&["completions", shell]);
        ended(&output, 0);
        assert!(stdout(&output).contains(has) && stdout(&output).contains("import-codes"), "{shell}");
    }
    for command in [&["--help"][..], &["serve", "--help"], &["campaign", "create", "--help"], &["--version"]]
    {
        let output = run(command);
        ended(&output, 0);
        assert!(!stdout(&output).is_empty());
    }
}
