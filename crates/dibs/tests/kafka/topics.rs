//! `dibs topic`.

use serde_json::json;

use crate::broker::{Kafka, fresh, until};

#[test]
fn a_topic_is_made_shown_changed_and_deleted() {
    let kafka = Kafka::start();
    let t = fresh("orders");
    let create = ["topic", "create", "--topic", &t, "--partitions", "2", "--config", "retention.ms=60000"];
    assert_eq!(kafka.ok(&create), format!("Created topic {t}.\n"));
    let (_, said) = kafka.ends(&create, 1);
    assert!(said.contains("already exists") && said.contains("TOPIC_ALREADY_EXISTS"), "{said}");
    let again = ["topic", "create", "--topic", &t, "--if-not-exists"];
    assert_eq!(kafka.ok(&again), "");
    assert_eq!(kafka.json(&again), json!({ "topic": t, "created": false }));

    let shown = until("it is known", || {
        let shown = kafka.command(&["topic", "describe", "--topic", &t]).output().unwrap();
        shown.status.success().then(|| String::from_utf8(shown.stdout).unwrap())
    });
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with(&format!("Topic: {t}\tTopicId: ")), "{shown}");
    assert!(lines[0].contains("\tPartitionCount: 2\tReplicationFactor: 1\tConfigs: "), "{shown}");
    assert!(lines[0].contains("retention.ms=60000"), "{shown}");
    assert_eq!(lines[2], format!("\tTopic: {t}\tPartition: 1\tLeader: 1\tReplicas: 1\tIsr: 1"), "{shown}");

    let alter = ["topic", "alter", "--topic", &t, "--partitions", "3", "--config", "max.message.bytes=5000"];
    assert_eq!(kafka.ok(&alter), format!("Altered topic {t}.\n"));
    kafka.ok(&["topic", "alter", "--topic", &t, "--delete-config", "retention.ms"]);
    until("the change is known", || {
        let now = kafka.json(&["topic", "describe", "--topic", &t]);
        let configs = now[0]["configs"].as_object().unwrap();
        let done = now[0]["partition_count"] == 3
            && configs.get("max.message.bytes") == Some(&json!("5000"))
            && !configs.contains_key("retention.ms");
        done.then_some(())
    });
    let (_, said) = kafka.ends(&["topic", "alter", "--topic", &t, "--partitions", "1"], 1);
    assert!(said.contains("INVALID_PARTITIONS"), "{said}");

    assert_eq!(kafka.ok(&["topic", "delete", "--topic", &t]), format!("Deleted topic {t}.\n"));
    until("it is gone", || (!kafka.ok(&["topic", "list"]).lines().any(|l| l == t)).then_some(()));
    kafka.ends(&["topic", "delete", "--topic", &t], 1);
    assert_eq!(kafka.ok(&["topic", "delete", "--topic", &t, "--if-exists"]), "");
}

#[test]
fn topics_are_listed_and_chosen_by_pattern() {
    let kafka = Kafka::start();
    let stem = fresh("stem");
    for end in ["a", "b", "c"] {
        // As Kafka's own scripts say it.
        kafka.ok(&["topic", "--create", "--topic", &format!("{stem}.{end}")]);
    }
    let pattern = format!("{stem}[.][ab]");
    until("all are known", || {
        (kafka.ok(&["topic", "--list", "--topic", &pattern]) == format!("{stem}.a\n{stem}.b\n")).then_some(())
    });
    assert_eq!(
        kafka.json(&["topic", "list", "--topic", &pattern]),
        json!([format!("{stem}.a"), format!("{stem}.b")])
    );
    let shown = kafka.json(&["topic", "--describe", "--topic", &pattern]);
    assert_eq!(shown.as_array().unwrap().len(), 2);
    assert_eq!(kafka.json(&["topic", "delete", "--topic", &pattern])["deleted"].as_array().unwrap().len(), 2);
    until("they are gone", || {
        (kafka.ok(&["topic", "list", "--topic", &format!("{stem}.*")]) == format!("{stem}.c\n")).then_some(())
    });
}

#[test]
fn kafkas_own_topics_can_be_left_out() {
    let kafka = Kafka::start();
    let (t, g) = (kafka.topic(1), fresh("g"));
    // Whoever joins a group makes the offsets topic.
    kafka.ok(&["consume", "--topic", &t, "--group", &g, "--timeout-ms", "300"]);
    let all = kafka.ok(&["topic", "list"]);
    let own = kafka.ok(&["topic", "list", "--exclude-internal"]);
    assert!(own.lines().any(|l| l == t) && !own.contains("__consumer_offsets"), "{own}");
    assert!(all.contains("__consumer_offsets"), "{all}");
    assert!(!kafka.ok(&["topic", "describe", "--exclude-internal"]).contains("__consumer_offsets"));
}

#[test]
fn health_and_overrides_choose_what_is_shown() {
    let kafka = Kafka::start();
    let t = kafka.topic(2);
    let describe = |flag: &str| kafka.ok(&["topic", "describe", "--topic", &t, flag]);
    for none in ["--under-replicated-partitions", "--unavailable-partitions", "--under-min-isr-partitions"] {
        assert_eq!(describe(none), "", "{none}");
    }
    assert_eq!(describe("--at-min-isr-partitions").lines().count(), 2);
    assert_eq!(describe("--topics-with-overrides"), "");
    kafka.ok(&["topic", "alter", "--topic", &t, "--config", "retention.ms=1000000"]);
    until("the setting is known", || {
        (describe("--topics-with-overrides").lines().count() == 1).then_some(())
    });
}

#[test]
fn what_was_meant_is_asked() {
    let kafka = Kafka::start();
    let t = fresh("coupon_create");
    kafka.ok(&["topic", "create", "--topic", &t]);
    let typo = t.replace('_', "-");
    let meant = format!("Did you mean {t}?");
    until("it is known", || {
        kafka.command(&["topic", "describe", "--topic", &t]).output().unwrap().status.success().then_some(())
    });
    for args in [
        vec!["topic", "describe", "--topic", &typo],
        vec!["topic", "alter", "--topic", &typo, "--partitions", "2"],
        vec!["topic", "delete", "--topic", &typo],
        vec!["consume", "--topic", &typo, "--timeout-ms", "1000"],
        vec!["produce", "--topic", &typo],
        vec!["perf", "consume", "--topic", &typo, "--messages", "1"],
        vec!["perf", "produce", "--topic", &typo, "--num-records", "1", "--record-size", "1"],
        vec!["group", "reset-offsets", "--group", "g", "--topic", &typo, "--to-earliest"],
    ] {
        let (out, said) = kafka.ends(&args, 1);
        assert!(said.contains(&meant) && out.is_empty(), "{args:?}: {said}");
    }
    assert!(!kafka.ok(&["topic", "list"]).contains(&typo), "a slip makes no topic");
    let (_, said) = kafka.ends(&["topic", "describe", "--topic", "quite-another-thing"], 1);
    assert!(said.contains("there is no topic quite-another-thing") && !said.contains("mean"), "{said}");
}
