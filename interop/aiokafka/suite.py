"""aiokafka, a client for asyncio."""
import asyncio
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from checks import BOOTSTRAP, check, end, fresh

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ProducerFenced


def asynchronous(function):
    def run():
        asyncio.run(asyncio.wait_for(function(), 40))
    run.__name__ = function.__name__
    return check(run)


async def topic(partitions=1):
    name = fresh("aio")
    admin = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await admin.start()
    await admin.create_topics([NewTopic(name, partitions, 1)])
    await admin.close()
    return name


async def send(name, values, **config):
    async with AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, **config) as p:
        for future in [await p.send(name, v, partition=0) for v in values]:
            await future


async def read(name, count, **config):
    async with AIOKafkaConsumer(name, bootstrap_servers=BOOTSTRAP, auto_offset_reset="earliest", **config) as c:
        records = [await c.getone() for _ in range(count)]
        if config.get("group_id"):
            await c.commit()
        return records


for codec in [None, "gzip", "snappy", "lz4", "zstd"]:
    async def compression():
        name = await topic()
        values = [b"value %d " % i * 20 for i in range(200)]
        await send(name, values, compression_type=codec)
        assert [r.value for r in await read(name, 200)] == values
    compression.__name__ = f"compression_{codec}"
    asynchronous(compression)


@asynchronous
async def idempotent():
    name = await topic()
    await send(name, [b"%d" % i for i in range(500)], enable_idempotence=True)
    assert [r.offset for r in await read(name, 500)] == list(range(500))


@asynchronous
async def group_goes_on_where_it_was():
    name, group = await topic(), fresh("g")
    await send(name, [b"1", b"2"])
    await read(name, 2, group_id=group)
    await send(name, [b"3"])
    assert (await read(name, 1, group_id=group))[0].value == b"3"


@asynchronous
async def two_members_share():
    name, group = await topic(4), fresh("g")
    options = dict(bootstrap_servers=BOOTSTRAP, group_id=group, session_timeout_ms=6000, heartbeat_interval_ms=300)
    a, b = AIOKafkaConsumer(name, **options), AIOKafkaConsumer(name, **options)
    await a.start()
    await b.start()
    while (len(a.assignment()), len(b.assignment())) != (2, 2):
        await a.getmany(timeout_ms=100)
        await b.getmany(timeout_ms=100)
    await a.stop()
    await b.stop()


@asynchronous
async def seeks_and_long_polls():
    name = await topic()
    await send(name, [b"1", b"2", b"3"])
    async with AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, fetch_max_wait_ms=5000) as c:
        tp = TopicPartition(name, 0)
        c.assign([tp])
        c.seek(tp, 2)
        assert (await c.getone()).value == b"3"
        waiting = asyncio.create_task(c.getone())
        await send(name, [b"4"])
        assert (await asyncio.wait_for(waiting, 3)).value == b"4"


@asynchronous
async def transactions():
    source, target, group, name = await topic(), await topic(), fresh("g"), fresh("tx")
    await send(source, [b"%d" % i for i in range(20)])
    tp = TopicPartition(source, 0)
    async with AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=name) as p:
        for i in range(4):
            await p.begin_transaction()
            for j in range(5):
                await p.send(target, b"%d" % (i * 5 + j))
            await p.send_offsets_to_transaction({tp: i * 5 + 5}, group)
            if i % 2:
                await p.abort_transaction()
            else:
                await p.commit_transaction()
        committed = await read(target, 10, isolation_level="read_committed")
        assert [r.value for r in committed] == [b"%d" % i for i in [*range(5), *range(10, 15)]]
        async with AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=group) as c:
            c.assign([tp])
            assert await c.committed(tp) == 15
        # Another one with its name: the first is fenced.
        await p.begin_transaction()
        await p.send_and_wait(target, b"zombie")
        async with AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=name):
            try:
                await p.commit_transaction()
                raise AssertionError("a zombie has committed")
            except ProducerFenced:
                pass


end()
