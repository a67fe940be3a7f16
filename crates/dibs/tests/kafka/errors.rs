//! What goes wrong is said in words that help, with an exit code, and it never takes for ever.

use std::{io::Read, net::TcpListener};

use crate::broker::{Kafka, dibs, ended, run_with};

/// Every command that talks to a broker.
const COMMANDS: &[&[&str]] = &[
    &["topic", "list"],
    &["topic", "create", "--topic", "t"],
    &["produce", "--topic", "t"],
    &["consume", "--topic", "t"],
    &["consume", "--topic", "t", "--group", "g"],
    &["group", "describe", "--group", "g"],
    &["perf", "produce", "--topic", "t", "--num-records", "1", "--record-size", "1"],
    &["perf", "consume", "--topic", "t", "--messages", "1"],
    &["perf", "latency", "--topic", "t", "--num-records", "1"],
];

#[test]
fn nobody_there() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for args in COMMANDS {
        let mut all = args.to_vec();
        all.extend(["--bootstrap-server", &port]);
        let (out, said) = ended(&dibs(&all).output().unwrap(), 3);
        assert!(
            out.is_empty() && said.contains(&format!("cannot reach {port}: connection refused")),
            "{said}"
        );
        assert!(said.contains("--bootstrap-server takes HOST:PORT"), "{said}");
    }
    let (_, said) = ended(
        &dibs(&["topic", "list", "--bootstrap-server", "no-such-host.invalid:9092"]).output().unwrap(),
        3,
    );
    assert!(said.contains("cannot reach no-such-host.invalid:9092"), "{said}");
}

#[test]
fn one_of_several_is_enough() {
    let kafka = Kafka::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let servers = format!("{closed},{}", kafka.bootstrap);
    ended(&dibs(&["topic", "list", "--bootstrap-server", &servers]).output().unwrap(), 0);
}

#[test]
fn somebody_else_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            // Reads the request, and has nothing to say to it.
            let _ = (&socket).read(&mut [0; 4]);
        }
    });
    let (_, said) = ended(&dibs(&["topic", "list", "--bootstrap-server", &address]).output().unwrap(), 3);
    assert!(
        said.contains("does not answer as a Kafka broker") && said.contains("security.protocol"),
        "{said}"
    );
}

#[test]
fn somebody_who_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let setting = "socket.connection.setup.timeout.ms=300";
    let args = ["topic", "list", "--bootstrap-server", &address, "--command-property", setting];
    let (_, said) = ended(&dibs(&args).output().unwrap(), 3);
    assert!(said.contains("no answer within"), "{said}");
}

#[test]
fn an_advertised_address_that_cannot_be_reached() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let advertised = format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}");
    let kafka = Kafka::own(&[&advertised]);
    let words = format!("broker 1 is at 127.0.0.1:{port}, and that address cannot be reached");
    let wanting = ["--command-property", "default.api.timeout.ms=1000"];
    kafka.ok(&["topic", "list"]);
    for args in [&["topic", "create", "--topic", "t"][..], &["group", "describe", "--group", "g"]] {
        let mut all = args.to_vec();
        all.extend(wanting);
        let (_, said) = kafka.ends(&all, 3);
        assert!(said.contains(&words) && said.contains("advertised.listeners"), "{said}");
    }
}

#[test]
fn wrong_arguments_are_named_before_anybody_is_asked() {
    let nobody = ["--bootstrap-server", "127.0.0.1:1"];
    for (args, says) in [
        (&["topic", "create"][..], "--topic"),
        (&["topic", "create", "--topic", "t", "--partitions", "many"], "many"),
        (&["topic", "create", "--topic", "t", "--partitions", "0"], "at least 1"),
        (&["topic", "create", "--topic", "t", "--config", "x"], "NAME=VALUE"),
        (&["topic", "create", "--topic", "t", "--replica-assignment", "a"], "1:2,2:3"),
        (&["topic", "alter", "--topic", "t"], "nothing to alter"),
        (&["topic"], "create"),
        (&["produce"], "--topic"),
        (&["produce", "--topic", "t", "--compression-codec", "rar"], "rar"),
        (&["produce", "--topic", "t", "--request-required-acks", "2"], "0, 1, all"),
        (&["produce", "--topic", "t", "--property", "parse.key=maybe"], "parse.key"),
        (&["produce", "--topic", "t", "--property", "key.separator="], "empty"),
        (&["produce", "--topic", "t", "--key-format", "avro"], "base64"),
        (&["produce", "--topic", "t", "--producer-property", "linger.ms=soon"], "linger.ms=soon"),
        (&["consume"], "--topic"),
        (&["consume", "--topic", "t", "--include", "x"], "--include"),
        (&["consume", "--include", "("], "regular expression"),
        (&["consume", "--topic", "t", "--offset", "5"], "--partition <N>"),
        (&["consume", "--topic", "t", "--partition", "0", "--offset", "middle"], "middle"),
        (&["consume", "--topic", "t", "--partition", "0", "--group", "g"], "--group"),
        (&["consume", "--topic", "t", "--isolation-level", "serializable"], "read_committed"),
        (&["consume", "--topic", "t", "--key-deserializer", "x.AvroDeserializer"], "AvroDeserializer"),
        (&["group", "describe"], "--all-groups"),
        (&["group", "reset-offsets", "--group", "g", "--topic", "t"], "--to-earliest"),
        (
            &["group", "reset-offsets", "--group", "g", "--topic", "t", "--to-earliest", "--to-latest"],
            "--to-latest",
        ),
        (&["group", "reset-offsets", "--group", "g", "--to-earliest"], "--all-topics"),
        (&["group", "reset-offsets", "--topic", "t", "--to-earliest"], "--group"),
        (&["group", "reset-offsets", "--group", "g", "--topic", "t", "--to-datetime", "today"], "today"),
        (&["group", "reset-offsets", "--group", "g", "--topic", "t", "--by-duration", "soon"], "PT1H30M"),
        (&["group", "reset-offsets", "--group", "g", "--from-file", "/no/such/file"], "/no/such/file"),
        (&["perf", "produce", "--topic", "t", "--num-records", "1"], "--record-size"),
        (
            &[
                "perf",
                "produce",
                "--topic",
                "t",
                "--num-records",
                "1",
                "--record-size",
                "1",
                "--throughput",
                "0",
            ],
            "-1",
        ),
        (&["topic", "list", "--command-config", "/no/such/file"], "/no/such/file"),
        (&["topic", "list", "--command-property", "security.protocol=QUIC"], "SASL_SSL"),
        (&["topic", "list", "--command-property", "security.protocol=SASL_SSL"], "SCRAM-SHA-512"),
        (&["topic", "list", "--command-property", "ssl.truststore.location=a.jks"], "PEM"),
    ] {
        let mut all = args.to_vec();
        if args.len() > 1 {
            all.extend(nobody);
        }
        let output = run_with(&all, b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(says), "{args:?}: {said}");
    }
    let (_, said) = ended(&dibs(&["topic", "list", "--bootstrap-server", "localhost"]).output().unwrap(), 2);
    assert!(said.contains("127.0.0.1:9092"), "{said}");
}

#[test]
fn settings_that_nobody_knows_are_warned_of() {
    let kafka = Kafka::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let text =
        format!("bootstrap.servers={}\nclient.id=mine\nlinger.ms=1\nsasl.mechanizm=PLAIN\n", kafka.bootstrap);
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap();
    let (_, said) = ended(&dibs(&["topic", "list", "--command-config", path]).output().unwrap(), 0);
    assert_eq!(said, "dibs: warning: the setting sasl.mechanizm is not known here and has no effect\n");
    // The names under which Kafka's other tools have it.
    for args in [
        vec!["consume", "--topic", "t", "--consumer.config", path],
        vec!["produce", "--topic", "t", "--producer.config", path],
    ] {
        let (_, said) = ended(&run_with(&args, b""), if args[0] == "produce" { 0 } else { 1 });
        assert!(said.contains("sasl.mechanizm"), "{said}");
    }
}

#[test]
fn completions_know_the_commands() {
    let (script, _) = ended(&dibs(&["completions", "bash"]).output().unwrap(), 0);
    for word in ["reset-offsets", "--from-beginning", "--bootstrap-server", "--producer-props"] {
        assert!(script.contains(word), "{word}");
    }
}
