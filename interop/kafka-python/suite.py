"""kafka-python, a client in pure Python."""
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from checks import BOOTSTRAP, check, end, fresh

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)


def topic(partitions=1):
    name = fresh("kp")
    admin.create_topics([NewTopic(name, partitions, 1)])
    return name


def send(name, values, **config):
    p = KafkaProducer(bootstrap_servers=BOOTSTRAP, **config)
    futures = [p.send(name, value) for value in values]
    offsets = [f.get(20).offset for f in futures]
    p.close()
    return offsets


def read(name, count, **config):
    c = KafkaConsumer(name, bootstrap_servers=BOOTSTRAP, auto_offset_reset="earliest", consumer_timeout_ms=15000,
                      group_id=config.pop("group_id", None), **config)
    records = []
    for record in c:
        records.append(record)
        if len(records) == count:
            break
    if c.config["group_id"]:
        c.commit()
    c.close()
    assert len(records) == count, f"{len(records)} of {count}"
    return records


for codec in [None, "gzip", "snappy", "lz4", "zstd"]:
    def compression():
        name = topic()
        values = [b"value %d " % i * 20 for i in range(200)]
        assert send(name, values, compression_type=codec) == list(range(200))
        assert [r.value for r in read(name, 200)] == values
    compression.__name__ = f"compression_{codec}"
    check(compression)


@check
def keys_headers_timestamps():
    name = topic()
    p = KafkaProducer(bootstrap_servers=BOOTSTRAP)
    p.send(name, b"v", key=b"k", headers=[("h", b"1")]).get(10)
    p.close()
    record = read(name, 1)[0]
    assert (record.key, record.headers) == (b"k", [("h", b"1")])
    assert abs(record.timestamp / 1000 - time.time()) < 60


@check
def group_goes_on_where_it_was():
    name, group = topic(), fresh("g")
    send(name, [b"%d" % i for i in range(10)])
    read(name, 10, group_id=group)
    send(name, [b"more"])
    assert read(name, 1, group_id=group)[0].value == b"more"


@check
def two_members_share():
    name, group = topic(4), fresh("g")
    sizes, stop = {}, threading.Event()

    def work(i):
        c = KafkaConsumer(name, bootstrap_servers=BOOTSTRAP, group_id=group, session_timeout_ms=6000,
                          heartbeat_interval_ms=500)
        while not stop.is_set():
            c.poll(1000)
            sizes[i] = len(c.assignment())
        c.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(2)
    end_at = time.time() + 25
    while list(sizes.values()) != [2, 2] and time.time() < end_at:
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(sizes.values()) == [2, 2], sizes


@check
def offsets_begin_end_and_by_time():
    name = topic()
    send(name, [b"a", b"b"])
    c = KafkaConsumer(bootstrap_servers=BOOTSTRAP)
    tp = TopicPartition(name, 0)
    assert c.beginning_offsets([tp]) == {tp: 0} and c.end_offsets([tp]) == {tp: 2}
    assert c.offsets_for_times({tp: 1})[tp].offset == 0
    c.close()


@check
def topics_are_listed_and_deleted():
    name = topic()
    assert name in admin.list_topics()
    admin.delete_topics([name])
    assert name not in admin.list_topics()


end()
