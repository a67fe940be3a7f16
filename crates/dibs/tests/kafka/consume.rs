//! `dibs produce` and `dibs consume`: what goes in comes out.

use std::{io::Write, process::Stdio};

use serde_json::{Value, json};

use crate::broker::{Kafka, Running, ended, fresh, run_with, until};

fn all<'a>(topic: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["consume", "--topic", topic, "--from-beginning"];
    args.extend(more);
    args
}

#[test]
fn java_longs_and_other_formats_come_back_as_they_went_in() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    let keyed = ["--property", "parse.key=true", "--property", "key.separator=:"];
    let produce = |formats: [&str; 2], line: &str| {
        let mut args = keyed.to_vec();
        args.extend(["--key-format", formats[0], "--value-format", formats[1]]);
        kafka.produce(&t, &args, line);
    };
    produce(["long", "json"], "-7:{\"a\": [1, 2]}\n");
    produce(["int", "hex"], "258:00ff\n");
    produce(["base64", "double"], "AP8=:1.5\n");
    let consume = |formats: [&str; 2], offset: &str| {
        let mut args =
            vec!["consume", "--topic", &t, "--partition", "0", "--offset", offset, "--max-messages", "1"];
        args.extend([
            "--key-format",
            formats[0],
            "--value-format",
            formats[1],
            "--property",
            "print.key=true",
        ]);
        kafka.ok(&args)
    };
    assert_eq!(consume(["long", "json"], "0"), "-7\t{\"a\": [1, 2]}\n");
    assert_eq!(consume(["hex", "string"], "0"), "fffffffffffffff9\t{\"a\": [1, 2]}\n");
    assert_eq!(consume(["int", "hex"], "1"), "258\t00ff\n");
    assert_eq!(consume(["hex", "base64"], "1"), "00000102\tAP8=\n");
    assert_eq!(consume(["base64", "double"], "2"), "AP8=\t1.5\n");
    let one = ["--max-messages", "1", "--key-format", "long", "--value-format", "json"];
    let seen = &kafka.json_lines(&all(&t, &one))[0];
    assert_eq!((&seen["key"], &seen["value"]), (&json!(-7), &json!({ "a": [1, 2] })));
    // What Java people type.
    let class = "org.apache.kafka.common.serialization.LongDeserializer";
    let java = format!("key.deserializer={class}");
    let args = all(&t, &["--max-messages", "1", "--property", "print.key=true", "--property", &java]);
    assert!(kafka.ok(&args).starts_with("-7\t"));

    let (_, said) = kafka.ends(&all(&t, &["--max-messages", "2", "--key-format", "long"]), 0);
    assert!(
        said.contains("Processed a total of 2 messages"),
        "a key that is not printed is not looked at: {said}"
    );
    let shown = ["--max-messages", "2", "--key-format", "long", "--property", "print.key=true"];
    let (out, said) = kafka.ends(&all(&t, &shown), 1);
    assert!(
        out.starts_with("-7\t") && said.contains("offset 1: key: 4 bytes are not a long of 8"),
        "{out}{said}"
    );
    let mut passing = all(&t, &shown);
    passing.push("--skip-message-on-error");
    kafka.ok(&passing);
}

#[test]
fn nulls_tombstones_and_headers_come_back() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    let args = [
        "--property",
        "parse.key=true",
        "--property",
        "parse.headers=true",
        "--property",
        "null.marker=NULL",
        "--property",
        "headers.delimiter=|",
        "--property",
        "key.separator==",
    ];
    kafka.produce(&t, &args, "h:1,i:NULL|k=v\nNULL|k=NULL\nNULL|NULL=v\n");
    let seen = kafka.json_lines(&all(&t, &["--max-messages", "3"]));
    let facts: Vec<Value> =
        seen.iter().map(|r| json!([r["key"], r["value"], r["headers"], r["offset"]])).collect();
    assert_eq!(
        facts,
        [
            json!(["k", "v", [["h", "1"], ["i", null]], 0]),
            json!(["k", null, [], 1]),
            json!([null, "v", [], 2])
        ]
    );
    let printed = kafka.ok(&all(
        &t,
        &[
            "--max-messages",
            "2",
            "--property",
            "print.key=true",
            "--property",
            "print.headers=true",
            "--property",
            "print.offset=true",
            "--property",
            "print.partition=true",
            "--property",
            "null.literal=-",
            "--property",
            "key.separator= / ",
        ],
    ));
    assert_eq!(
        printed,
        "Partition:0 / Offset:0 / h:1,i:- / k / v\nPartition:0 / Offset:1 / NO_HEADERS / k / -\n"
    );
    let stamped = kafka.ok(&all(&t, &["--max-messages", "1", "--property", "print.timestamp=true"]));
    let (time, value) = stamped.trim().split_once('\t').unwrap();
    assert_eq!(value, "v");
    assert!(time.strip_prefix("CreateTime:").unwrap().parse::<u64>().unwrap() > 1_600_000_000_000);
}

#[test]
fn keys_go_where_javas_partitioner_puts_them() {
    let kafka = Kafka::start();
    let t = kafka.topic(3);
    let args = ["--property", "parse.key=true", "--property", "key.separator=:"];
    kafka.produce(&t, &args, "21:x\nfoobar:x\na-little-bit-long-string:x\n");
    // Kafka's own test states the hashes; (hash & 0x7fffffff) % 3.
    for (key, hash) in
        [("21", -973_932_308_i32), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536)]
    {
        let partition = ((hash & i32::MAX) % 3).to_string();
        let at = [
            "consume",
            "--topic",
            &t,
            "--partition",
            &partition,
            "--offset",
            "earliest",
            "--timeout-ms",
            "800",
        ];
        let seen = kafka.json_lines(&at);
        assert!(seen.iter().any(|r| r["key"] == key), "{key} is not in {partition}: {seen:?}");
    }
}

#[test]
fn every_codec_and_every_acks_writes_what_is_read() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    let mut expected = String::new();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let lines: String =
            (0..200).map(|i| format!("{codec} {i} and some more text of the same kind\n")).collect();
        kafka.produce(&t, &["--compression-codec", codec], &lines);
        expected.push_str(&lines);
    }
    for acks in ["0", "1", "-1"] {
        kafka.produce(&t, &["--request-required-acks", acks], &format!("acks {acks}\n"));
        expected.push_str(&format!("acks {acks}\n"));
        // Nobody says when a record with acks=0 has arrived.
        until("it has arrived", || {
            let last = kafka.ok(&["consume", "--topic", &t, "--from-beginning", "--timeout-ms", "500"]);
            last.ends_with(&format!("acks {acks}\n")).then_some(())
        });
    }
    kafka.produce(&t, &["--sync", "--producer-property", "enable.idempotence=false"], "one\ntwo\n");
    kafka.produce(&t, &["--producer-property", "linger.ms=0"], "no line end");
    expected.push_str("one\ntwo\nno line end\n");
    let lines = expected.lines().count().to_string();
    assert_eq!(kafka.ok(&all(&t, &["--max-messages", &lines])), expected);
}

#[test]
fn many_lines_in_small_batches_keep_their_order() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    let lines: String = (0..20_000).map(|i| format!("{i}\n")).collect();
    kafka.produce(&t, &["--batch-size", "500", "--producer-property", "linger.ms=0"], &lines);
    assert_eq!(kafka.ok(&all(&t, &["--max-messages", "20000"])), lines);
    // Without keys, records spread over partitions batch by batch.
    let t = kafka.topic(3);
    kafka.produce(&t, &["--batch-size", "500"], &lines);
    let seen = kafka.json_lines(&all(&t, &["--max-messages", "20000"]));
    let in_partition = |p: i64| seen.iter().filter(|r| r["partition"] == p).count();
    assert!(
        (0..3).all(|p| in_partition(p) > 1000),
        "{:?}",
        [in_partition(0), in_partition(1), in_partition(2)]
    );
}

#[test]
fn reading_begins_and_ends_where_it_is_told_to() {
    let kafka = Kafka::start();
    let t = kafka.topic(2);
    kafka.produce(&t, &["--partition", "1"], "a\nb\nc\n");
    let from = |offset: &str| {
        kafka.ok(&["consume", "--topic", &t, "--partition", "1", "--offset", offset, "--timeout-ms", "500"])
    };
    assert_eq!(from("earliest"), "a\nb\nc\n");
    assert_eq!(from("2"), "c\n");
    assert_eq!(from("latest"), "");
    // Out of range: as without an offset, at the end.
    assert_eq!(from("99"), "");
    assert_eq!(kafka.ok(&["consume", "--topic", &t, "--timeout-ms", "500"]), "");
    let (out, said) = kafka.ends(&all(&t, &["--max-messages", "2"]), 0);
    assert_eq!((out.as_str(), said.as_str()), ("a\nb\n", "Processed a total of 2 messages\n"));
    let (_, said) = kafka.ends(&["consume", "--topic", &t, "--partition", "7", "--offset", "0"], 1);
    assert!(said.contains("no partition 7: it has 0 to 1"), "{said}");
    let (_, said) = kafka.ends(&["produce", "--topic", &t, "--partition", "7"], 0);
    assert_eq!(said, "");
    let args = ["produce", "--topic", &t, "--partition", "7", "--bootstrap-server", &kafka.bootstrap];
    assert!(ended(&run_with(&args, b"x\n"), 1).1.contains("no partition 7: it has 0 to 1"));
}

#[test]
fn a_pattern_reads_all_topics_that_match() {
    let kafka = Kafka::start();
    let stem = fresh("stem");
    let (a, b, c) = (format!("{stem}.a"), format!("{stem}.b"), format!("{stem}x"));
    for t in [&a, &b, &c] {
        kafka.ok(&["topic", "create", "--topic", t]);
        until("it is known", || {
            kafka
                .command(&["topic", "describe", "--topic", t])
                .output()
                .unwrap()
                .status
                .success()
                .then_some(())
        });
        kafka.produce(t, &[], &format!("{t}\n"));
    }
    let pattern = format!("{stem}[.].*");
    let args = ["consume", "--include", &pattern, "--from-beginning", "--max-messages", "2"];
    let mut seen: Vec<_> = kafka.ok(&args).lines().map(str::to_owned).collect();
    seen.sort();
    assert_eq!(seen, [a, b]);
}

#[test]
fn lines_that_cannot_be_records_are_named() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    let args = [
        "produce",
        "--topic",
        &t,
        "--bootstrap-server",
        &kafka.bootstrap,
        "--property",
        "parse.key=true",
        "--key-format",
        "long",
    ];
    for (line, says) in [("x\ty\n", "\"x\" is not a long"), ("1 y\n", "there is no key.separator")] {
        let (_, said) = ended(&run_with(&args, format!("1\tfine\n{line}").as_bytes()), 1);
        assert!(said.contains("line 2: ") && said.contains(says), "{said}");
    }
    // What stood before it was sent.
    assert_eq!(kafka.ok(&all(&t, &["--timeout-ms", "500"])), "fine\nfine\n");
    kafka.ok(&["topic", "alter", "--topic", &t, "--config", "max.message.bytes=1000"]);
    until("the limit is known", || {
        kafka.ok(&["topic", "describe", "--topic", &t]).contains("max.message.bytes").then_some(())
    });
    let args = ["produce", "--topic", &t, "--bootstrap-server", &kafka.bootstrap, "--json"];
    let input = format!("before\n{}\nafter\n", "x".repeat(3000));
    let (out, said) = ended(&run_with(&args, input.as_bytes()), 1);
    let done: Value = serde_json::from_str(&out).unwrap();
    assert!(said.contains("MESSAGE_TOO_LARGE"), "{said}");
    assert_eq!((&done["sent"], &done["failed"]), (&json!(2), &json!(1)), "the others arrive: {said}");
}

#[test]
fn ctrl_c_ends_in_order() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    kafka.produce(&t, &[], "a\n");
    let mut command = kafka.command(&all(&t, &[]));
    let path = std::env::temp_dir().join(fresh("out"));
    command.stdout(std::fs::File::create(&path).unwrap());
    let reading = Running::start(command);
    until("it has read", || (std::fs::read_to_string(&path).unwrap() == "a\n").then_some(()));
    let (_, said) = ended(&reading.interrupt(), 0);
    assert_eq!(said, "Processed a total of 1 messages\n");
    std::fs::remove_file(&path).unwrap();

    let mut command = kafka.command(&["produce", "--topic", &t, "--sync"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // Its standard input stays open: it ends because of Ctrl-C alone.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"typed\n").unwrap();
    until("it has sent", || (kafka.ok(&all(&t, &["--timeout-ms", "300"])) == "a\ntyped\n").then_some(()));
    ended(&Running::of(child).interrupt(), 0);
    drop(stdin);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    kafka.produce(&t, &[], &"line\n".repeat(50_000));
    let mut child = kafka.command(&all(&t, &[])).spawn().unwrap();
    let mut first = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
