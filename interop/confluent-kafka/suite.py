"""librdkafka through its Python client."""
import os
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from checks import BOOTSTRAP, check, end, eventually, fresh

from confluent_kafka import (OFFSET_BEGINNING, Consumer, ConsumerGroupState, ConsumerGroupTopicPartitions,
                             KafkaError, KafkaException, Producer, TopicPartition)
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions,
                                   NewTopic, OffsetSpec, ResourceType)

admin = AdminClient({"bootstrap.servers": BOOTSTRAP})


def topic(partitions=1, config=None):
    name = fresh("ck")
    admin.create_topics([NewTopic(name, partitions, 1, config=config or {})])[name].result(10)
    eventually(lambda: name in admin.list_topics(timeout=5).topics)
    return name


def producer(**config):
    return Producer({"bootstrap.servers": BOOTSTRAP, "linger.ms": 0, **{k.replace("_", "."): v for k, v in config.items()}})


def consumer(group=None, **config):
    base = {"bootstrap.servers": BOOTSTRAP, "group.id": group or fresh("g"), "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
    return Consumer({**base, **{k.replace("_", "."): v for k, v in config.items()}})


def send(name, values, p=None, **kw):
    p = p or producer()
    errors = []
    for value in values:
        p.produce(name, value, on_delivery=lambda e, m: errors.append(e) if e else None, **kw)
        p.poll(0)
    assert p.flush(20) == 0
    assert not errors, errors


def take(c, count, seconds=20):
    messages, end_at = [], time.time() + seconds
    while len(messages) < count and time.time() < end_at:
        m = c.poll(0.2)
        if m is not None:
            assert not m.error(), m.error()
            messages.append(m)
    assert len(messages) == count, f"{len(messages)} of {count}"
    return messages


def assigned(name, partition=0, offset=OFFSET_BEGINNING, **config):
    c = consumer(**config)
    c.assign([TopicPartition(name, partition, offset)])
    return c


for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
    def compression():
        name = topic()
        values = [b"value %d " % i * 20 for i in range(500)]
        send(name, values, producer(compression_type=codec))
        c = assigned(name)
        assert [m.value() for m in take(c, 500)] == values
        c.close()
    compression.__name__ = f"compression_{codec}"
    check(compression)

for acks in [0, 1, "all"]:
    def acknowledged():
        name = topic()
        send(name, [b"a", b"b"], producer(acks=acks))
        c = assigned(name)
        assert [m.value() for m in take(c, 2)] == [b"a", b"b"]
        c.close()
    acknowledged.__name__ = f"acks_{acks}"
    check(acknowledged)


@check
def idempotent_producer_keeps_order():
    name = topic()
    values = [b"%d" % i for i in range(5000)]
    send(name, values, producer(enable_idempotence=True, batch_num_messages=50))
    c = assigned(name)
    messages = take(c, 5000)
    assert [m.value() for m in messages] == values
    assert [m.offset() for m in messages] == list(range(5000))
    c.close()


@check
def keys_headers_nulls():
    name = topic()
    send(name, [b"v"], key=b"k", headers=[("a", b"1"), ("a", b"2"), ("n", None)])
    send(name, [None], key=b"gone")
    c = assigned(name)
    first, second = take(c, 2)
    assert first.key() == b"k" and first.headers() == [("a", b"1"), ("a", b"2"), ("n", None)]
    assert second.key() == b"gone" and second.value() is None
    c.close()


@check
def fetch_from_the_middle_of_a_batch():
    name = topic()
    send(name, [b"%d" % i for i in range(100)], producer(linger_ms=100))
    c = assigned(name, offset=57)
    assert take(c, 1)[0].offset() == 57
    c.close()


@check
def whoever_fetches_by_an_old_version_gets_zstd_too():
    # Some clients (rskafka) read zstd and ask by a version from before it. librdkafka takes the newest, hence by hand.
    name = topic()
    send(name, [b"value"] * 100, producer(compression_type="zstd"))
    text = lambda t: struct.pack(">h", len(t)) + t.encode()
    wanted = struct.pack(">i", 1) + text(name) + struct.pack(">iiqi", 1, 0, 0, 1 << 20)
    body = struct.pack(">hhi", 1, 4, 7) + text("old") + struct.pack(">iiiib", -1, 5000, 1, 1 << 20, 0) + wanted
    host, port = BOOTSTRAP.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as s, s.makefile("rb") as answers:
        s.sendall(struct.pack(">i", len(body)) + body)
        answer = answers.read(struct.unpack(">i", answers.read(4))[0])
    # Correlation id, throttle time, number of topics, name, number of partitions; then the partition.
    assert struct.unpack_from(">ihq", answer, 12 + len(text(name)) + 4) == (0, 0, 100)


@check
def long_poll_wakes_at_once():
    name = topic()
    c = assigned(name, fetch_wait_max_ms=5000)
    assert c.poll(1) is None
    started = time.time()
    send(name, [b"now"])
    take(c, 1)
    assert time.time() - started < 2.5
    c.close()


@check
def offset_out_of_range_resets():
    name = topic()
    send(name, [b"a"])
    c = assigned(name, offset=1000)
    assert take(c, 1)[0].offset() == 0
    c.close()


@check
def watermarks_and_offsets_by_time():
    name = topic()
    send(name, [b"1"])
    time.sleep(0.05)
    between = int(time.time() * 1000)
    time.sleep(0.05)
    send(name, [b"2"])
    c = consumer()
    assert c.get_watermark_offsets(TopicPartition(name, 0)) == (0, 2)
    assert c.offsets_for_times([TopicPartition(name, 0, between)])[0].offset == 1
    late = admin.list_offsets({TopicPartition(name, 0): OffsetSpec.latest()})
    assert list(late.values())[0].result().offset == 2
    c.close()


@check
def too_large_is_refused():
    name = topic(config={"max.message.bytes": "1000"})
    errors = []
    p = producer(enable_idempotence=False)
    p.produce(name, os.urandom(5000), on_delivery=lambda e, m: errors.append(e))
    p.flush(10)
    assert errors[0].code() == KafkaError.MSG_SIZE_TOO_LARGE, errors


@check
def unknown_topic_is_an_error():
    c = consumer(allow_auto_create_topics=False)
    c.subscribe([fresh("nowhere")])
    m = c.poll(5)
    assert m is not None and m.error().code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    c.close()


@check
def topics_are_made_automatically():
    name = fresh("auto")
    send(name, [b"x"])
    assert name in admin.list_topics(timeout=5).topics


@check
def group_commits_and_goes_on():
    name, group = topic(2), fresh("g")
    send(name, [b"%d" % i for i in range(100)], partition=0)
    c = consumer(group)
    c.subscribe([name])
    take(c, 60)
    c.commit(offsets=[TopicPartition(name, 0, 60, metadata="my note")], asynchronous=False)
    assert c.committed([TopicPartition(name, 0)])[0].metadata == "my note"
    c.close()
    c = consumer(group)
    c.subscribe([name])
    assert take(c, 40)[0].offset() == 60
    c.close()


@check
def group_rebalances_without_loss():
    name, group = topic(4), fresh("g")
    seen, lock, stop = {}, threading.Lock(), threading.Event()

    def work(strategy):
        c = consumer(group, partition_assignment_strategy=strategy)
        c.subscribe([name])
        while not stop.is_set():
            m = c.poll(0.1)
            if m is not None and not m.error():
                with lock:
                    seen[m.value()] = seen.get(m.value(), 0) + 1
                c.commit(m, asynchronous=False)
        c.close()

    threads = [threading.Thread(target=work, args=("range",)) for _ in range(3)]
    for i, thread in enumerate(threads):
        thread.start()
        send(name, [b"%d-%d" % (i, n) for n in range(100)])
        time.sleep(1)
    end_at = time.time() + 30
    while len(seen) < 300 and time.time() < end_at:
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(seen) == 300, len(seen)


@check
def cooperative_rebalance():
    name, group = topic(4), fresh("g")
    a = consumer(group, partition_assignment_strategy="cooperative-sticky")
    b = consumer(group, partition_assignment_strategy="cooperative-sticky")
    a.subscribe([name])
    end_at = time.time() + 20
    while len(a.assignment()) < 4 and time.time() < end_at:
        a.poll(0.1)
    b.subscribe([name])
    while (len(a.assignment()), len(b.assignment())) != (2, 2) and time.time() < end_at:
        a.poll(0.1)
        b.poll(0.1)
    assert (len(a.assignment()), len(b.assignment())) == (2, 2)
    a.close()
    b.close()


@check
def static_member_comes_back_without_a_rebalance():
    name, group = topic(2), fresh("g")
    rebalances = []
    a = consumer(group, group_instance_id="a")
    a.subscribe([name], on_assign=lambda c, ps: rebalances.append(len(ps)))
    b = consumer(group, group_instance_id="b")
    b.subscribe([name])
    end_at = time.time() + 20
    while (len(a.assignment()), len(b.assignment())) != (1, 1) and time.time() < end_at:
        a.poll(0.1)
        b.poll(0.1)
    before = len(rebalances)
    b.close()
    b = consumer(group, group_instance_id="b")
    b.subscribe([name])
    while len(b.assignment()) != 1 and time.time() < end_at:
        a.poll(0.1)
        b.poll(0.1)
    assert len(b.assignment()) == 1 and len(rebalances) == before
    a.close()
    b.close()


@check
def silent_member_is_taken_out():
    name, group = topic(2), fresh("g")
    a = consumer(group, max_poll_interval_ms=6000)
    b = consumer(group)
    a.subscribe([name])
    b.subscribe([name])
    end_at = time.time() + 40
    while (len(a.assignment()), len(b.assignment())) != (1, 1) and time.time() < end_at:
        a.poll(0.1)
        b.poll(0.1)
    while len(b.assignment()) != 2 and time.time() < end_at:
        b.poll(0.2)
    assert len(b.assignment()) == 2
    b.close()
    a.close()


@check
def groups_are_described_listed_deleted():
    name, group = topic(), fresh("g")
    send(name, [b"x"])
    c = consumer(group)
    c.subscribe([name])
    take(c, 1)
    c.commit(asynchronous=False)
    described = admin.describe_consumer_groups([group])[group].result(10)
    assert described.state == ConsumerGroupState.STABLE and len(described.members) == 1
    assert described.members[0].assignment.topic_partitions[0].topic == name
    assert group in [g.group_id for g in admin.list_consumer_groups().result(10).valid]
    c.close()
    offsets = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(10)
    assert offsets.topic_partitions[0].offset == 1
    admin.delete_consumer_groups([group])[group].result(10)
    assert group not in [g.group_id for g in admin.list_consumer_groups().result(10).valid]


def modern(group=None, **config):
    """A consumer with the new group protocol (KIP-848); the broker sets its times."""
    base = {"bootstrap.servers": BOOTSTRAP, "group.id": group or fresh("g"), "group.protocol": "consumer",
            "auto.offset.reset": "earliest", "enable.auto.commit": False}
    return Consumer({**base, **{k.replace("_", "."): v for k, v in config.items()}})


def until_assigned(wanted, *consumers, seconds=40):
    """Polls until the consumers have so many partitions each."""
    end_at = time.time() + seconds
    while [len(c.assignment()) for c in consumers] != wanted and time.time() < end_at:
        for c in consumers:
            c.poll(0.1)
    assert [len(c.assignment()) for c in consumers] == wanted, [c.assignment() for c in consumers]


for assignor in ["uniform", "range"]:
    def consumer_protocol():
        name, group = topic(4), fresh("g")
        send(name, [b"%d" % i for i in range(100)])
        a, b = modern(group, group_remote_assignor=assignor), modern(group, group_remote_assignor=assignor)
        a.subscribe([name])
        take(a, 100)
        a.commit(asynchronous=False)
        b.subscribe([name])
        until_assigned([2, 2], a, b)
        b.close()
        until_assigned([4], a)
        send(name, [b"more"])
        assert take(a, 1)[0].value() == b"more"
        a.close()
    consumer_protocol.__name__ = f"consumer_protocol_{assignor}"
    check(consumer_protocol)


@check
def consumer_protocol_goes_on_from_offsets():
    name, group = topic(2), fresh("g")
    send(name, [b"%d" % i for i in range(50)], partition=1)
    c = modern(group)
    c.subscribe([name])
    take(c, 50)
    c.commit(asynchronous=False)
    assert c.committed([TopicPartition(name, 1)])[0].offset == 50
    c.close()
    send(name, [b"last"], partition=1)
    c = modern(group)
    c.subscribe([name])
    assert take(c, 1)[0].offset() == 50
    c.close()


@check
def who_assigns_itself_commits_under_both_protocols():
    name, group = topic(1), fresh("g")
    send(name, [b"%d" % i for i in range(10)])
    for round in range(2):
        for make in (consumer, modern):
            c = make(group)
            c.assign([TopicPartition(name, 0, 0)])
            take(c, 10)
            for offset in (3 + round, 7 + round):
                c.commit(offsets=[TopicPartition(name, 0, offset)], asynchronous=False)
                assert c.committed([TopicPartition(name, 0)])[0].offset == offset
            c.close()


@check
def consumer_protocol_static_member():
    name, group = topic(2), fresh("g")
    a, b = modern(group, group_instance_id="a"), modern(group, group_instance_id="b")
    a.subscribe([name])
    b.subscribe([name])
    until_assigned([1, 1], a, b)
    mine = b.assignment()
    b.close()
    b = modern(group, group_instance_id="b")
    b.subscribe([name])
    until_assigned([1, 1], a, b)
    assert b.assignment() == mine
    a.close()
    b.close()


@check
def consumer_protocol_by_pattern():
    prefix = fresh("re2")
    admin.create_topics([NewTopic(prefix + "-a", 1, 1)])[prefix + "-a"].result(10)
    c = modern(topic_metadata_refresh_interval_ms=1000)
    c.subscribe(["^" + prefix + "-.*"])
    until_assigned([1], c)
    admin.create_topics([NewTopic(prefix + "-b", 2, 1)])[prefix + "-b"].result(10)
    until_assigned([3], c)
    c.close()


@check
def group_changes_its_protocol_at_work():
    name, group = topic(4), fresh("g")
    a = consumer(group, partition_assignment_strategy="cooperative-sticky")
    a.subscribe([name])
    until_assigned([4], a)
    b = modern(group)
    b.subscribe([name])
    until_assigned([2, 2], a, b)
    b.close()
    until_assigned([4], a)
    a.close()


@check
def offsets_are_altered():
    name, group = topic(), fresh("g")
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(name, 0, 5)])
    admin.alter_consumer_group_offsets([wanted])[group].result(10)
    got = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(10)
    assert got.topic_partitions[0].offset == 5


@check
def configs_are_described_and_altered():
    name = topic(config={"retention.ms": "1000"})
    resource = ConfigResource(ResourceType.TOPIC, name)
    config = admin.describe_configs([resource])[resource].result(10)
    assert config["retention.ms"].value == "1000" and not config["retention.ms"].is_default
    assert config["cleanup.policy"].value == "delete" and config["cleanup.policy"].is_default
    change = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.APPEND)
    altered = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[change])
    admin.incremental_alter_configs([altered])[altered].result(10)
    described = lambda: admin.describe_configs([resource])[resource].result(10)
    eventually(lambda: described()["cleanup.policy"].value == "delete,compact")
    broker = ConfigResource(ResourceType.BROKER, str(list(admin.list_topics(timeout=5).brokers)[0]))
    assert "num.partitions" in admin.describe_configs([broker])[broker].result(10)


@check
def partitions_are_added():
    name = topic(1)
    admin.create_partitions([NewPartitions(name, 3)])[name].result(10)
    eventually(lambda: len(admin.list_topics(name, timeout=5).topics[name].partitions) == 3)
    try:
        admin.create_partitions([NewPartitions(name, 2)])[name].result(10)
        raise AssertionError("a topic shrank")
    except KafkaException as e:
        assert e.args[0].code() == KafkaError.INVALID_PARTITIONS


@check
def topics_are_refused_for_reasons():
    name = topic()
    for new, code in [(NewTopic(name, 1, 1), KafkaError.TOPIC_ALREADY_EXISTS),
                      (NewTopic(fresh("t"), 1, 3), KafkaError.INVALID_REPLICATION_FACTOR),
                      (NewTopic("a/b", 1, 1), KafkaError.TOPIC_EXCEPTION),
                      (NewTopic(fresh("t"), 1, 1, config={"no.such": "1"}), KafkaError.INVALID_CONFIG)]:
        try:
            admin.create_topics([new])[new.topic].result(10)
            raise AssertionError(f"{new} was made")
        except KafkaException as e:
            assert e.args[0].code() == code, e
    dry = NewTopic(fresh("dry"), 1, 1)
    admin.create_topics([dry], validate_only=True)[dry.topic].result(10)
    assert dry.topic not in admin.list_topics(timeout=5).topics


@check
def topics_are_deleted():
    name = topic()
    admin.delete_topics([name])[name].result(10)
    eventually(lambda: name not in admin.list_topics(timeout=5).topics)


@check
def records_are_deleted():
    name = topic()
    send(name, [b"%d" % i for i in range(10)])
    for deleted in admin.delete_records([TopicPartition(name, 0, 4)]).values():
        deleted.result(10)
    c = assigned(name)
    assert take(c, 6)[0].offset() == 4
    c.close()


def transactional(name=None, **config):
    p = producer(**{"transactional.id": name or fresh("tx"), **config})
    p.init_transactions(20)
    return p


def values(name, count, isolation="read_committed"):
    c = assigned(name, isolation_level=isolation)
    messages = take(c, count)
    # Nothing more comes.
    assert c.poll(0.3) is None
    c.close()
    return [m.value() for m in messages]


@check
def transactions_are_committed_and_aborted():
    name = topic(1)
    p = transactional()
    for i in range(12):
        p.begin_transaction()
        send(name, [b"%d %d" % (i, j) for j in range(10)], p)
        if i % 3 == 1:
            p.abort_transaction(10)
        else:
            p.commit_transaction(10)
    # An abort that drops what has not been sent yet.
    p.begin_transaction()
    p.produce(name, b"dropped")
    p.abort_transaction(10)
    assert values(name, 80) == [b"%d %d" % (i, j) for i in range(12) if i % 3 != 1 for j in range(10)]
    assert len(values(name, 120, "read_uncommitted")) >= 120


@check
def transactions_fence_older_producers():
    name, transactional_id = topic(1), fresh("tx")
    old = transactional(transactional_id)
    old.begin_transaction()
    send(name, [b"zombie"], old)
    new = transactional(transactional_id)
    try:
        old.commit_transaction(10)
        raise AssertionError("a zombie has committed")
    except KafkaException as e:
        assert e.args[0].fatal() and e.args[0].code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED), e
    new.begin_transaction()
    send(name, [b"new"], new)
    new.commit_transaction(10)
    assert values(name, 1) == [b"new"]


@check
def transactions_time_out():
    name = topic(1)
    p = transactional(**{"transaction.timeout.ms": 1000, "message.timeout.ms": 1000})
    p.begin_transaction()
    send(name, [b"late"], p)
    # The next one is seen as soon as the broker has aborted what stands before it.
    send(name, [b"after"])
    assert values(name, 1) == [b"after"]
    try:
        p.commit_transaction(10)
        raise AssertionError("it was committed after its time")
    except KafkaException as e:
        assert e.args[0].fatal() or e.args[0].txn_requires_abort(), e


@check
def offsets_are_part_of_transactions():
    source, target, group = topic(1), topic(1), fresh("g")
    send(source, [b"%d" % i for i in range(60)])
    transactional_id, done, rounds = fresh("tx"), 0, 0
    while done < 60:
        rounds += 1
        # Every round is a new process, and every other one is stopped at a bad moment.
        c, p = consumer(group, isolation_level="read_committed"), transactional(transactional_id)
        c.subscribe([source])
        for batch in range(3):
            if done == 60:
                break
            messages = take(c, 10)
            p.begin_transaction()
            for m in messages:
                p.produce(target, m.value())
            p.send_offsets_to_transaction(c.position(c.assignment()), c.consumer_group_metadata(), 10)
            if batch == 2 and rounds % 2:
                p.abort_transaction(10)
            else:
                p.commit_transaction(10)
                done += 10
                assert c.committed([TopicPartition(source, 0)], 10)[0].offset == done
        c.close()
    assert values(target, 60) == [b"%d" % i for i in range(60)]


@check
def cluster_is_described():
    cluster = admin.describe_cluster().result(10)
    assert len(cluster.nodes) == 1 and cluster.cluster_id and cluster.controller is not None


end()
