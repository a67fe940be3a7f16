"""TLS and SASL: librdkafka against a broker that lets in only whom it knows."""
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from checks import check, end, fresh

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (AclBinding, AclBindingFilter, AclOperation, AclPermissionType, AdminClient,
                                   ConfigResource, NewTopic, ResourcePatternType, ResourceType,
                                   ScramCredentialInfo,
                                   ScramMechanism, UserScramCredentialDeletion, UserScramCredentialUpsertion)

DIBS = os.environ["DIBS"]
folder = tempfile.TemporaryDirectory()
path = lambda name: os.path.join(folder.name, name)


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=folder.name)


def certificates():
    """An authority, a server of its, and a client of its; and a client that nobody vouches for."""
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE")
    for name, subject in [("server", "/CN=localhost"), ("client", "/O=Dibs/CN=till seven")]:
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", subject)
        with open(path(f"{name}.ext"), "w") as f:
            f.write("basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-out", f"{name}.pem", "-extfile", f"{name}.ext")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "stranger.key", "-out", "stranger.pem",
            "-days", "2", "-subj", "/CN=stranger")
    with open(path("keystore.pem"), "w") as out:
        for name in ["server.key", "server.pem"]:
            out.write(open(path(name)).read())


class Broker:
    def __init__(self, *more, data="data", **own):
        jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required user_kim=\"secret\";"
        listeners = ["SASL_PLAINTEXT://localhost:0", "SSL://localhost:0", "MTLS://localhost:0", "SASL_SSL://localhost:0"]
        settings = {
            "listeners": ",".join(listeners),
            "listener.security.protocol.map": "MTLS:SSL",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": jaas,
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "ssl.keystore.type": "PEM", "ssl.keystore.location": path("keystore.pem"),
            "ssl.truststore.type": "PEM", "ssl.truststore.location": path("ca.pem"),
            "listener.name.mtls.ssl.client.auth": "required",
            "offsets.topic.num.partitions": "2",
        }
        settings.update((name.replace("_", "."), value) for name, value in own.items())
        args = [DIBS, "broker", "--data", path(data), *more]
        for name, value in settings.items():
            args += ["--set", f"{name}={value}"]
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=open(path("log"), "a"), text=True)
        lines = [self.process.stdout.readline() for _ in listeners]
        self.ports = [int(line.rsplit(":", 1)[1]) for line in lines]

    def at(self, index):
        return f"localhost:{self.ports[index]}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


def sasl(user, password, mechanism="PLAIN", of=None):
    return {"bootstrap.servers": (of or broker).at(0), "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": mechanism,
            "sasl.username": user, "sasl.password": password}


def tls(index, **more):
    return {"bootstrap.servers": broker.at(index), "security.protocol": "SSL", "ssl.ca.location": path("ca.pem"),
            **{k.replace("_", "."): v for k, v in more.items()}}


def round_trip(config):
    name = fresh("secure")
    admin = AdminClient(config)
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(10)
    errors = []
    p = Producer(config)
    p.produce(name, b"x" * 100_000, on_delivery=lambda e, m: errors.append(e))
    assert p.flush(10) == 0 and errors == [None], errors
    c = Consumer({**config, "group.id": fresh("g"), "auto.offset.reset": "earliest"})
    c.subscribe([name])
    for _ in range(100):
        m = c.poll(0.2)
        if m is not None:
            assert not m.error() and len(m.value()) == 100_000
            c.commit(asynchronous=False)
            break
    else:
        raise AssertionError("nothing was read")
    c.close()


def refused(config, *codes):
    seen = []
    p = Producer({**config, "error_cb": lambda e: seen.append(e.code()), "log_level": 0})
    for _ in range(50):
        p.poll(0.1)
        if any(c in seen for c in codes):
            return
    raise AssertionError(f"not refused: {seen}")


certificates()
broker = Broker("--add-scram", "SCRAM-SHA-256=[name=lee,password=pencil]",
                "--add-scram", "SCRAM-SHA-512=[name=lee,password=pencil,iterations=8192]")


@check
def plain_lets_in_whom_it_knows():
    round_trip(sasl("kim", "secret"))
    refused(sasl("kim", "wrong"), KafkaError._AUTHENTICATION)
    refused(sasl("park", "secret"), KafkaError._AUTHENTICATION)


@check
def scram_lets_in_whom_it_knows():
    round_trip(sasl("lee", "pencil", "SCRAM-SHA-256"))
    round_trip(sasl("lee", "pencil", "SCRAM-SHA-512"))
    refused(sasl("lee", "pen", "SCRAM-SHA-256"), KafkaError._AUTHENTICATION)
    refused(sasl("kim", "secret", "SCRAM-SHA-256"), KafkaError._AUTHENTICATION)


@check
def nothing_is_answered_before_the_authentication():
    for key, version in [(3, 1), (1, 4), (0, 3)]:
        with socket.create_connection(("localhost", broker.ports[0]), 5) as s:
            s.sendall(struct.pack(">ihhih", 14, key, version, 1, -1) + struct.pack(">i", 0))
            s.settimeout(5)
            assert s.recv(100) == b""


@check
def the_oldest_handshake_takes_bare_tokens():
    def frame(body):
        s.sendall(struct.pack(">i", len(body)) + body)
        size = struct.unpack(">i", s.recv(4, socket.MSG_WAITALL))[0]
        return s.recv(size, socket.MSG_WAITALL) if size else b""
    with socket.create_connection(("localhost", broker.ports[0]), 5) as s:
        answer = frame(struct.pack(">hhih", 17, 0, 7, -1) + struct.pack(">h", 5) + b"PLAIN")
        assert struct.unpack(">ih", answer[:6]) == (7, 0)
        assert frame(b"\0kim\0secret") == b""
        # Metadata, version 1, of no topics.
        answer = frame(struct.pack(">hhih", 3, 1, 8, -1) + struct.pack(">i", 0))
        assert struct.unpack(">i", answer[:4]) == (8,)


@check
def credentials_are_altered_and_described():
    admin = AdminClient(sasl("kim", "secret"))
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    upsert = UserScramCredentialUpsertion("choi", info, b"long enough")
    admin.alter_user_scram_credentials([upsert])["choi"].result(10)
    round_trip(sasl("choi", "long enough", "SCRAM-SHA-256"))
    described = admin.describe_user_scram_credentials(["choi"])["choi"].result(10)
    assert [(i.mechanism, i.iterations) for i in described.scram_credential_infos] == [
        (ScramMechanism.SCRAM_SHA_256, 4096)]
    assert set(admin.describe_user_scram_credentials().result(10)) == {"choi", "lee"}
    try:
        admin.describe_user_scram_credentials(["nobody"])["nobody"].result(10)
        raise AssertionError("nobody was found")
    except KafkaException as e:
        assert e.args[0].code() == KafkaError.RESOURCE_NOT_FOUND
    deletion = UserScramCredentialDeletion("choi", ScramMechanism.SCRAM_SHA_256)
    admin.alter_user_scram_credentials([deletion])["choi"].result(10)
    refused(sasl("choi", "long enough", "SCRAM-SHA-256"), KafkaError._AUTHENTICATION)


class Guarded:
    """A broker on which only kim may do what no list permits."""

    def __init__(self):
        self.start("--add-scram", "SCRAM-SHA-256=[name=lee,password=pencil]")
        self.topic = fresh("guarded")
        self.admin.create_topics([NewTopic(self.topic, 1, 1)])[self.topic].result(10)

    def start(self, *more):
        self.broker = Broker(*more, data="guarded", super_users="User:kim",
                             authorizer_class_name="org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        self.admin = AdminClient(sasl("kim", "secret", of=self.broker))
        self.lee = sasl("lee", "pencil", "SCRAM-SHA-256", of=self.broker)

    def permit(self, kind, name, operation, pattern=ResourcePatternType.LITERAL, permission=AclPermissionType.ALLOW,
               principal="User:lee"):
        acl = AclBinding(kind, name, pattern, principal, "*", operation, permission)
        self.admin.create_acls([acl])[acl].result(10)

    def produced(self, topic):
        errors = []
        p = Producer({**self.lee, "log_level": 0})
        p.produce(topic, b"x", on_delivery=lambda e, m: errors.append(e))
        p.flush(10)
        return errors[0] and errors[0].code()

    def consumed(self, topic, group):
        c = Consumer({**self.lee, "group.id": group, "auto.offset.reset": "earliest", "log_level": 0})
        c.subscribe([topic])
        try:
            for _ in range(100):
                m = c.poll(0.2)
                if m is not None:
                    return m.error() and m.error().code()
            raise AssertionError("nothing was read")
        finally:
            c.close()


def code_of(future):
    try:
        future.result(10)
    except KafkaException as e:
        return e.args[0].code()


guarded = Guarded()


@check
def who_is_on_no_list_is_refused():
    lee = AdminClient(guarded.lee)
    assert guarded.produced(guarded.topic) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert guarded.consumed(guarded.topic, "g") in (KafkaError.TOPIC_AUTHORIZATION_FAILED,
                                                    KafkaError.GROUP_AUTHORIZATION_FAILED)
    assert list(lee.list_topics(timeout=10).topics) == []
    assert code_of(lee.create_topics([NewTopic("other", 1, 1)])["other"]) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert code_of(lee.delete_topics([guarded.topic])[guarded.topic]) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    acl = AclBinding(ResourceType.TOPIC, "x", ResourcePatternType.LITERAL, "User:lee", "*", AclOperation.ALL,
                     AclPermissionType.ALLOW)
    assert code_of(lee.create_acls([acl])[acl]) == KafkaError.CLUSTER_AUTHORIZATION_FAILED


@check
def lists_permit_and_deny():
    guarded.permit(ResourceType.TOPIC, "guarded", AclOperation.WRITE, ResourcePatternType.PREFIXED)
    guarded.permit(ResourceType.TOPIC, guarded.topic, AclOperation.READ)
    guarded.permit(ResourceType.GROUP, "g", AclOperation.READ, ResourcePatternType.PREFIXED)
    assert guarded.produced(guarded.topic) is None
    assert guarded.consumed(guarded.topic, "g1") is None
    assert guarded.consumed(guarded.topic, "other") == KafkaError.GROUP_AUTHORIZATION_FAILED
    assert list(AdminClient(guarded.lee).list_topics(timeout=10).topics) == [guarded.topic]
    guarded.permit(ResourceType.TOPIC, guarded.topic, AclOperation.WRITE, permission=AclPermissionType.DENY)
    assert guarded.produced(guarded.topic) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert guarded.consumed(guarded.topic, "g2") is None


@check
def lists_are_described_deleted_and_kept():
    def described(pattern, name=None, operation=AclOperation.ANY):
        f = AclBindingFilter(ResourceType.ANY, name, pattern, None, None, operation, AclPermissionType.ANY)
        return {(a.name, a.operation, a.permission_type) for a in guarded.admin.describe_acls(f).result(10)}
    before = described(ResourcePatternType.ANY)
    assert len(before) == 4 and ("g", AclOperation.READ, AclPermissionType.ALLOW) in before, before
    assert len(described(ResourcePatternType.MATCH, guarded.topic)) == 4
    assert len(described(ResourcePatternType.LITERAL, guarded.topic)) == 2
    guarded.broker.stop()
    guarded.start()
    assert described(ResourcePatternType.ANY) == before
    deny = AclBindingFilter(ResourceType.TOPIC, None, ResourcePatternType.ANY, None, None, AclOperation.ANY,
                            AclPermissionType.DENY)
    assert len(guarded.admin.delete_acls([deny])[deny].result(10)) == 1
    assert len(described(ResourcePatternType.ANY)) == 3
    assert guarded.produced(guarded.topic) is None
    open_admin = AdminClient(sasl("kim", "secret"))
    assert code_of(open_admin.delete_acls([deny])[deny]) == KafkaError.SECURITY_DISABLED

@check
def tls_is_spoken_and_checked():
    round_trip(tls(1))
    refused(tls(1, ssl_ca_location=path("stranger.pem")), KafkaError._SSL)
    refused({"bootstrap.servers": broker.at(1)}, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)


@check
def clients_show_certificates():
    round_trip(tls(2, ssl_certificate_location=path("client.pem"), ssl_key_location=path("client.key")))
    refused(tls(2), KafkaError._SSL, KafkaError._ALL_BROKERS_DOWN)
    refused(tls(2, ssl_certificate_location=path("stranger.pem"), ssl_key_location=path("stranger.key")),
            KafkaError._SSL, KafkaError._ALL_BROKERS_DOWN)


@check
def sasl_goes_over_tls():
    over = {**tls(3), "security.protocol": "SASL_SSL", "sasl.username": "lee", "sasl.password": "pencil"}
    round_trip({**over, "sasl.mechanism": "SCRAM-SHA-512"})
    refused({**over, "sasl.mechanism": "SCRAM-SHA-256"}, KafkaError._AUTHENTICATION)


@check
def secrets_are_not_shown():
    admin = AdminClient(sasl("kim", "secret"))
    resource = ConfigResource(ResourceType.BROKER, "1")
    configs = admin.describe_configs([resource])[resource].result(10)
    assert configs["ssl.keystore.key"].is_sensitive and configs["ssl.keystore.key"].value is None
    assert not any("secret" in str(c.value) for c in configs.values())


@check
def credentials_survive_a_restart():
    global broker
    broker.stop()
    broker = Broker()
    round_trip(sasl("lee", "pencil", "SCRAM-SHA-512"))


broker.stop()
guarded.broker.stop()
end()
