//! `dibs perf`: the shape of what is printed, and that the numbers are those of what was done.

use crate::broker::Kafka;

#[test]
fn producing_and_consuming_are_counted_as_kafkas_tools_do() {
    let kafka = Kafka::start();
    let t = kafka.topic(2);
    let produce = ["perf", "produce", "--topic", &t, "--num-records", "5000", "--record-size", "100"];
    let mut with = produce.to_vec();
    with.extend(["--throughput", "-1", "--producer-props", "acks=all", "linger.ms=1"]);
    let out = kafka.ok(&with);
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("5000 records sent, ") && last.ends_with(" ms 99.9th."), "{out}");
    for part in [
        " records/sec (",
        " MB/sec), ",
        " ms avg latency, ",
        " ms max latency, ",
        " ms 50th, ",
        " ms 95th, ",
        " ms 99th, ",
    ] {
        assert!(last.contains(part), "{part}: {out}");
    }
    let mut slow = produce.to_vec();
    slow.splice(5..6, ["500"]);
    slow.extend(["--throughput", "2000", "--warmup-records", "100"]);
    let measured = kafka.json(&slow);
    assert_eq!((&measured["records"], &measured["failed"]), (&500.into(), &0.into()));
    assert!(measured["records_per_second"].as_f64().unwrap() < 2100.0, "{measured}");
    assert!(
        measured["latency_ms"]["p999"].as_f64().unwrap() >= measured["latency_ms"]["p50"].as_f64().unwrap()
    );

    let out = kafka.ok(&["perf", "consume", "--topic", &t, "--messages", "5600"]);
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines[0].starts_with("start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, "),
        "{out}"
    );
    let fields: Vec<&str> = lines[1].split(", ").collect();
    assert_eq!((fields.len(), fields[2], fields[4]), (10, "0.5341", "5600"), "{out}");
    let read = kafka.json(&["perf", "consume", "--topic", &t, "--messages", "5601", "--timeout", "500"]);
    assert_eq!(read["records"], 5600, "it ends when nothing more comes");
}

#[test]
fn a_group_goes_on_where_it_has_read_to() {
    let kafka = Kafka::start();
    let t = kafka.topic(2);
    kafka.ok(&["perf", "produce", "--topic", &t, "--num-records", "900", "--record-size", "10"]);
    let read = |n: &str| {
        let args = ["--messages", n, "--group", "g", "--timeout", "3000"];
        kafka.json(&[&["perf", "consume", "--topic", &t][..], &args].concat())
    };
    let first = read("500");
    assert_eq!(first["records"], 500);
    assert!(first["rebalance_seconds"].as_f64().unwrap() > 0.0, "{first}");
    assert_eq!(read("401")["records"], 400, "what others of the group have read is not read again");
    assert_eq!(kafka.json(&["group", "describe", "--group", "g"])[0]["lag"], 0);
    let alone = kafka.json(&["perf", "consume", "--topic", &t, "--messages", "900"]);
    assert_eq!((&alone["records"], &alone["rebalance_seconds"]), (&900.into(), &0.0.into()));
}

#[test]
fn payloads_come_from_a_file() {
    let kafka = Kafka::start();
    let t = kafka.topic(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one\ntwo\n").unwrap();
    let path = file.path().to_str().unwrap();
    kafka.ok(&["perf", "produce", "--topic", &t, "--num-records", "100", "--payload-file", path]);
    let seen = kafka.ok(&["consume", "--topic", &t, "--from-beginning", "--max-messages", "100"]);
    assert!(seen.lines().all(|l| l == "one" || l == "two"), "{seen}");
    assert!(seen.contains("one") && seen.contains("two"));
}

#[test]
fn latency_is_measured_from_end_to_end() {
    let kafka = Kafka::start();
    let t = kafka.topic(2);
    kafka.produce(&t, &[], "there before\n");
    let out = kafka.ok(&["perf", "latency", "--topic", &t, "--num-records", "20", "--record-size", "10"]);
    assert!(
        out.starts_with("0\t") && out.contains("\nAvg latency: ") && out.contains("Percentiles: 50th = "),
        "{out}"
    );
    let measured =
        kafka.json(&["perf", "latency", "--topic", &t, "--num-records", "5", "--producer-acks", "1"]);
    assert_eq!(measured["records"], 5);
}
