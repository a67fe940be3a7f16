"""Ordinary Kafka clients claim: `dibs serve` with its Kafka side open, librdkafka beside HTTP."""
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from checks import check, end

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

DIBS = os.environ["DIBS"]
folder = tempfile.TemporaryDirectory()


class Server:
    def __init__(self):
        args = [DIBS, "serve", "--data", folder.name, "--listen", "127.0.0.1:0", "--kafka-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = self.process.stdout.readline().split()[-1]
        self.kafka = self.process.stdout.readline().split()[-1].removeprefix("kafka://")

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(30)

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as e:
            return e.code, json.load(e)

    def create(self, id, stock, **more):
        status, shown = self.call("/v1/campaigns", {"id": id, "stock": stock, **more})
        assert status == 201, (status, shown)

    def issued(self, id, count):
        """Waits until the ledger has so many coupons, and none more."""
        return until(lambda: self.call(f"/v1/campaigns/{id}")[1]["issued"] == count, f"{count} coupons of {id}")

    def winner(self, id, user):
        status, shown = self.call(f"/v1/campaigns/{id}/claims/{user}")
        return shown.get("rank") if status == 200 else None


def until(look, what, seconds=20):
    deadline = time.time() + seconds
    while not look():
        assert time.time() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def produce(topic, records, **config):
    """Sends records of one producer in order; the errors that came back."""
    p = Producer({"bootstrap.servers": server.kafka, "enable.idempotence": True, "linger.ms": 5,
                  **{k.replace("_", "."): v for k, v in config.items()}})
    errors = []
    for key, value in records:
        p.produce(topic, value, key, on_delivery=lambda e, m: errors.append(e) if e else None)
        p.poll(0)
    assert p.flush(20) == 0
    return errors


def read(topic, count):
    c = Consumer({"bootstrap.servers": server.kafka, "group.id": "letters", "enable.auto.commit": False})
    c.assign([TopicPartition(topic, 0, 0)])
    found, deadline = [], time.time() + 20
    while len(found) < count and time.time() < deadline:
        m = c.poll(0.2)
        if m is not None and not m.error():
            found.append(m)
    c.close()
    assert len(found) == count, f"{len(found)} of {count} in {topic}"
    return found


def claim(user, **more):
    return json.dumps({"type": "claim", "user": user, **more})


server = Server()


@check
def claims_by_kafka_are_decided_in_their_order():
    server.create("plain", 5)
    assert not produce("dibs.claims", [("plain", claim(f"u-{i}")) for i in range(20)])
    server.issued("plain", 5)
    assert [server.winner("plain", f"u-{i}") for i in range(5)] == [1, 2, 3, 4, 5]
    assert server.winner("plain", "u-5") is None
    assert server.call("/v1/campaigns/plain")[1]["state"] == "sold_out"


@check
def compressed_claims_are_claims():
    for codec in ["gzip", "snappy", "lz4", "zstd"]:
        server.create(codec, 50)
        assert not produce("dibs.claims", [(codec, claim(f"u-{i}")) for i in range(50)], compression_type=codec)
        server.issued(codec, 50)


@check
def the_two_ways_share_one_stock():
    server.create("both", 3)
    status, won = server.call("/v1/campaigns/both/claims", {"user": "http"})
    assert (status, won["rank"]) == (201, 1)
    assert not produce("dibs.claims", [("both", claim(u)) for u in ["http", "k-1", "k-2", "k-3"]])
    server.issued("both", 3)
    assert server.call("/v1/campaigns/both/claims", {"user": "late"})[0] == 409
    status, again = server.call("/v1/campaigns/both/claims", {"user": "k-2"})
    assert (status, again["rank"]) == (200, 3)


@check
def what_is_no_claim_is_a_dead_letter():
    wrong = [("plain", "{"), ("nobody", claim("u")), (None, claim("u")), ("plain", None)]
    assert not produce("dibs.claims", wrong)
    letters = read("dibs.claims-dlt", 4)
    headers = [dict(m.headers()) for m in letters]
    assert [h["kafka_dlt-exception-fqcn"] for h in headers] == [
        b"dibs.Malformed", b"dibs.UnknownCampaign", b"dibs.Malformed", b"dibs.Malformed"], headers
    assert letters[0].value() == b"{" and letters[0].key() == b"plain"
    assert headers[0]["kafka_dlt-original-topic"] == b"dibs.claims"
    assert struct.unpack(">i", headers[0]["kafka_dlt-original-partition"]) == (0,)
    offsets = [struct.unpack(">q", h["kafka_dlt-original-offset"])[0] for h in headers]
    assert offsets == list(range(offsets[0], offsets[0] + 4)), offsets


@check
def an_existing_topic_of_longs_keeps_its_producer():
    admin = AdminClient({"bootstrap.servers": server.kafka})
    admin.create_topics([NewTopic("coupon_create", 1, 1)])["coupon_create"].result(10)
    server.create("longs", 10, intake_topic="coupon_create", intake_format="long")
    assert not produce("coupon_create", [(None, struct.pack(">q", i)) for i in range(100, 130)])
    server.issued("longs", 10)
    assert [server.winner("longs", i) for i in range(100, 110)] == list(range(1, 11))
    assert not produce("coupon_create", [(None, "no long")])
    letter = read("coupon_create-dlt", 1)[0]
    assert dict(letter.headers())["kafka_dlt-exception-fqcn"] == b"dibs.MalformedUser"


@check
def the_topics_of_dibs_are_its_own():
    admin = AdminClient({"bootstrap.servers": server.kafka})

    def refused(future):
        try:
            future.result(10)
        except KafkaException as e:
            return e.args[0].code()
        return None

    assert refused(admin.delete_topics(["dibs.claims"])["dibs.claims"]) == KafkaError.POLICY_VIOLATION
    grown = admin.create_partitions([NewPartitions("dibs.claims", 4)])["dibs.claims"]
    assert refused(grown) == KafkaError.POLICY_VIOLATION
    cut = admin.delete_records([TopicPartition("dibs.claims", 0, 5)])
    assert refused(list(cut.values())[0]) == KafkaError.POLICY_VIOLATION
    assert [e.code() for e in produce("dibs.codes", [("c", "CODE")])] == [KafkaError.TOPIC_AUTHORIZATION_FAILED]


@check
def nothing_is_lost_or_doubled_by_a_kill():
    global server
    server.create("killed", 1000, intake_topic="presses", intake_format="string")
    assert not produce("presses", [(None, f"u-{i}") for i in range(300)])
    until(lambda: server.call("/v1/campaigns/killed")[1]["won"] > 0, "the first win")
    server.stop(signal.SIGKILL)
    server = Server()
    assert not produce("presses", [(None, f"u-{i}") for i in range(200, 500)])
    server.issued("killed", 500)
    ranks = [server.winner("killed", f"u-{i}") for i in range(500)]
    assert ranks == list(range(1, 501)), ranks


@check
def the_audit_agrees():
    assert server.stop() == 0
    done = subprocess.run([DIBS, "audit", "--data", folder.name, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


end()
