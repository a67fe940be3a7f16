//! `dibs group`, and `dibs consume --group`.

use serde_json::{Value, json};

use crate::broker::{Kafka, Running, ended, fresh, until};

/// A group that has read `read` of five records `0..5` of a topic with one partition.
fn group(kafka: &Kafka, read: u32) -> (String, String) {
    let (t, g) = (kafka.topic(1), fresh("g"));
    kafka.produce(&t, &[], "0\n1\n2\n3\n4\n");
    let read = read.to_string();
    let args = ["consume", "--topic", &t, "--group", &g, "--from-beginning", "--max-messages", &read];
    kafka.ok(&args);
    (t, g)
}

/// The partitions of a group as `describe --json` shows them.
fn offsets(kafka: &Kafka, g: &str) -> Vec<Value> {
    kafka.json(&["group", "describe", "--group", g])[0]["partitions"].as_array().unwrap().clone()
}

fn current(kafka: &Kafka, g: &str) -> Value {
    offsets(kafka, g)[0]["current_offset"].clone()
}

#[test]
fn a_group_goes_on_where_it_was_and_its_lag_is_shown() {
    let kafka = Kafka::start();
    let (t, g) = group(&kafka, 2);
    assert!(kafka.ok(&["group", "list"]).lines().any(|l| l == g));
    let (out, said) = kafka.ends(&["group", "describe", "--group", &g], 0);
    assert!(said.contains(&format!("Consumer group '{g}' has no active members.")), "{said}");
    let lines: Vec<Vec<&str>> = out.trim().lines().map(|l| l.split_whitespace().collect()).collect();
    let columns = [
        "GROUP",
        "TOPIC",
        "PARTITION",
        "CURRENT-OFFSET",
        "LOG-END-OFFSET",
        "LAG",
        "CONSUMER-ID",
        "HOST",
        "CLIENT-ID",
    ];
    assert_eq!(lines[0], columns);
    assert_eq!(lines[1], [g.as_str(), &t, "0", "2", "5", "3", "-", "-", "-"]);
    let again = ["consume", "--topic", &t, "--group", &g, "--max-messages", "3"];
    assert_eq!(kafka.ok(&again), "2\n3\n4\n");
    assert_eq!(
        kafka
            .json(&["group", "describe", "--all-groups"])
            .as_array()
            .unwrap()
            .iter()
            .find(|d| d["group"] == g)
            .unwrap()["lag"],
        0
    );
    let state = &kafka.json(&["group", "describe", "--group", &g, "--state"])[0];
    assert_eq!((&state["state"], &state["members"]), (&json!("Empty"), &json!(0)));
    let listed = kafka.ok(&["group", "list", "--state", "Empty"]);
    assert!(
        listed.starts_with("GROUP") && listed.lines().any(|l| l.split_whitespace().eq([g.as_str(), "Empty"])),
        "{listed}"
    );
    let (_, said) = kafka.ends(&["group", "describe", "--group", &format!("{g}x")], 1);
    assert!(said.contains(&format!("Did you mean {g}?")), "{said}");
}

#[test]
fn members_share_partitions_and_take_over_from_each_other() {
    let kafka = Kafka::start();
    let (t, g) = (kafka.topic(4), fresh("g"));
    let join = || {
        let args =
            ["consume", "--topic", &t, "--group", &g, "--command-property", "heartbeat.interval.ms=100"];
        Running::start(kafka.command(&args))
    };
    let shares = || -> Vec<usize> {
        let output =
            kafka.command(&["group", "describe", "--group", &g, "--members", "--json"]).output().unwrap();
        let Ok(shown) = serde_json::from_slice::<Value>(&output.stdout) else { return Vec::new() };
        let members = shown[0]["members"].as_array().unwrap().clone();
        members.iter().map(|m| m["assignment"].as_array().unwrap().len()).collect()
    };
    let first = join();
    until("one has all", || (shares() == [4]).then_some(()));
    let second = join();
    until("two share", || (shares() == [2, 2]).then_some(()));
    let shown = kafka.ok(&["group", "describe", "--group", &g, "--members", "--verbose"]);
    assert!(shown.contains("ASSIGNMENT") && shown.contains(&format!("{t}(0,1)")), "{shown}");
    let (_, said) =
        kafka.ends(&["group", "reset-offsets", "--group", &g, "--topic", &t, "--to-latest", "--execute"], 1);
    assert!(said.contains("its state is Stable"), "{said}");
    let (_, said) = kafka.ends(&["group", "delete", "--group", &g, "--execute"], 1);
    assert!(said.contains("NON_EMPTY_GROUP"), "{said}");
    ended(&second.interrupt(), 0);
    until("the first has all again", || (shares() == [4]).then_some(()));
    ended(&first.interrupt(), 0);
    // It has left: nobody waits for its session to time out.
    assert_eq!(kafka.json(&["group", "describe", "--group", &g, "--state"])[0]["state"], "Empty");
}

#[test]
fn resetting_is_shown_first_and_done_when_told_to() {
    let kafka = Kafka::start();
    let (t, g) = group(&kafka, 2);
    let reset = |args: &[&str]| {
        let mut all = vec!["group", "reset-offsets", "--group", &g, "--topic", &t];
        all.extend(args);
        kafka.json(&all)["groups"][0]["offsets"][0]["new_offset"].clone()
    };
    let dry = ["group", "reset-offsets", "--group", &g, "--topic", &t, "--to-earliest"];
    let (out, said) = kafka.ends(&dry, 0);
    assert!(out.starts_with("GROUP") && said.contains("--execute"), "{out}{said}");
    let row: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, [g.as_str(), &t, "0", "0"]);
    assert_eq!(current(&kafka, &g), 2, "nothing was changed");
    for (args, offset) in [
        (&["--to-latest"][..], 5),
        (&["--to-earliest"], 0),
        (&["--to-offset", "3"], 3),
        (&["--shift-by", "-1"], 2),
        (&["--shift-by", "-10"], 0),
        (&["--to-offset", "99"], 5),
        (&["--to-datetime", "2020-01-01T00:00:00.000"], 0),
        (&["--by-duration", "PT0S"], 5),
        (&["--to-current"], 5),
        (&["--to-offset", "1"], 1),
    ] {
        let mut with = args.to_vec();
        with.push("--execute");
        assert_eq!(reset(&with), offset, "{args:?}");
        assert_eq!(current(&kafka, &g), offset, "{args:?}");
    }
    assert_eq!(reset(&["--to-latest", "--dry-run"]), 5);
    assert_eq!(current(&kafka, &g), 1);
    let on = ["consume", "--topic", &t, "--group", &g, "--max-messages", "1"];
    assert_eq!(kafka.ok(&on), "1\n");
}

#[test]
fn offsets_are_saved_and_brought_back() {
    let kafka = Kafka::start();
    let (t, g) = group(&kafka, 3);
    let saved =
        kafka.ok(&["group", "reset-offsets", "--group", &g, "--all-topics", "--to-current", "--export"]);
    assert_eq!(saved, format!("\"{t}\",0,3\n"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &saved).unwrap();
    // For a group that is not there yet, too.
    let other = fresh("other");
    for group in [&g, &other] {
        let to_latest = [
            "group",
            "reset-offsets",
            "--group",
            group,
            "--topic",
            &format!("{t}:0"),
            "--to-latest",
            "--execute",
        ];
        kafka.ok(&to_latest);
        assert_eq!(current(&kafka, group), 5);
        let path = file.path().to_str().unwrap();
        kafka.ok(&["group", "reset-offsets", "--group", group, "--from-file", path, "--execute"]);
        assert_eq!(current(&kafka, group), 3);
    }
}

#[test]
fn deleting_is_shown_first_and_done_when_told_to() {
    let kafka = Kafka::start();
    let (t, g) = group(&kafka, 1);
    let (out, said) = kafka.ends(&["group", "delete", "--group", &g], 0);
    assert!(out == format!("Would delete group {g}.\n") && said.contains("--execute"), "{out}{said}");
    assert_eq!(current(&kafka, &g), 1);

    kafka.ok(&["group", "delete-offsets", "--group", &g, "--topic", &t]);
    assert_eq!(current(&kafka, &g), 1);
    let other = kafka.topic(1);
    kafka.ok(&["group", "reset-offsets", "--group", &g, "--topic", &other, "--to-latest", "--execute"]);
    assert_eq!(offsets(&kafka, &g).len(), 2);
    let done = kafka.json(&["group", "delete-offsets", "--group", &g, "--topic", &other, "--execute"]);
    assert_eq!(done["offsets"][0]["deleted"], true);
    assert_eq!(offsets(&kafka, &g).len(), 1);

    assert_eq!(kafka.ok(&["group", "delete", "--group", &g, "--execute"]), format!("Deleted group {g}.\n"));
    assert!(!kafka.ok(&["group", "list"]).lines().any(|l| l == g));
    kafka.ends(&["group", "delete", "--group", &g, "--execute"], 1);
}
