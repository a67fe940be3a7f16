// The promises, as users of kafkajs know them.
const {
  Kafka, logLevel, CompressionTypes, ErrorCodes, ConsumerGroupStates, ConsumerGroupTypes, IsolationLevel
} = require('@confluentinc/kafka-javascript').KafkaJS
const { bootstrap, check, fresh, range, refused, that, until } = require('./kit')

const kafka = new Kafka({ kafkaJS: { brokers: [bootstrap], logLevel: logLevel.NOTHING } })

/** Calls with a client that is connected, and disconnects it. */
async function using (client, run) {
  await client.connect()
  try {
    return await run(client)
  } finally {
    await client.disconnect()
  }
}

const withAdmin = run => using(kafka.admin(), run)

async function topic (numPartitions = 1, configEntries = []) {
  const name = fresh('ckjs')
  that(await withAdmin(admin => admin.createTopics({ topics: [{ topic: name, numPartitions, configEntries }] })))
  return name
}

const producer = (kafkaJS = {}, settings = {}) => kafka.producer({ kafkaJS, 'linger.ms': 0, ...settings })

/** Sends values, or whole messages. */
function send (topic, messages, kafkaJS = {}, settings = {}) {
  messages = messages.map(m => typeof m === 'string' ? { value: m } : m)
  return using(producer(kafkaJS, settings), p => p.send({ topic, messages }))
}

const classic = (groupId, kafkaJS = {}, settings = {}) => kafka.consumer({
  kafkaJS: { groupId, fromBeginning: true, autoCommit: false, sessionTimeout: 6000, heartbeatInterval: 300, ...kafkaJS },
  'fetch.wait.max.ms': 100,
  ...settings
})

// The broker assigns, and sets the times (KIP-848).
const modern = (groupId, kafkaJS = {}, settings = {}) => kafka.consumer({
  kafkaJS: { groupId, fromBeginning: true, autoCommit: false, ...kafkaJS },
  'group.protocol': 'consumer',
  'fetch.wait.max.ms': 100,
  ...settings
})

/** Reads until there are `count` messages, calls `then` with the consumer, and hands back what it read. */
function read (topic, count, { consumer = classic(fresh('g')), then = async () => {} } = {}) {
  return using(consumer, async () => {
    const messages = []
    await consumer.subscribe({ topics: [topic] })
    await consumer.run({ eachMessage: async ({ partition, message }) => { messages.push({ partition, ...message }) } })
    await until(`${count} messages`, () => messages.length >= count)
    that(messages.length === count, messages.length)
    await then(consumer)
    return messages
  })
}

const texts = messages => messages.map(m => m.value.toString())
const isolated = readUncommitted => classic(fresh('g'), { readUncommitted })

// Topics.

check('promises: topics', () => withAdmin(async admin => {
  const name = await topic(3)
  that(await admin.createTopics({ topics: [{ topic: name }] }) === false)
  // A broker hears of a topic after it was made.
  await until('it is known', async () => (await admin.listTopics()).includes(name))
  const [metadata] = await admin.fetchTopicMetadata({ topics: [name] })
  that(metadata.name === name && metadata.partitions.length === 3 && !metadata.isInternal, metadata)
  that(metadata.topicId !== undefined && metadata.partitions.every(p => p.isr.length === 1), metadata)
  await admin.deleteTopics({ topics: [name] })
  await until('it is gone', async () => !(await admin.listTopics()).includes(name))
  const error = await refused(admin.deleteTopics({ topics: [name] }))
  that(error.code === ErrorCodes.ERR_UNKNOWN_TOPIC_OR_PART, error)
}))

check('promises: topics are refused for reasons', () => withAdmin(async admin => {
  for (const [wish, code] of [
    [{ topic: fresh('t'), replicationFactor: 3 }, ErrorCodes.ERR_INVALID_REPLICATION_FACTOR],
    [{ topic: 'a/b' }, ErrorCodes.ERR_TOPIC_EXCEPTION],
    [{ topic: fresh('t'), configEntries: [{ name: 'retention.ms', value: 'soon' }] }, ErrorCodes.ERR_INVALID_CONFIG]
  ]) {
    const { errors: [error] } = await refused(admin.createTopics({ topics: [wish] }))
    that(error.code === code && error.topic === wish.topic, error)
  }
}))

check('promises: offsets of topics', () => withAdmin(async admin => {
  const name = await topic(2)
  await send(name, range(10).map(i => ({ value: `${i}`, partition: 0, timestamp: `${1000 + i}` })))
  const [zero, one] = await admin.fetchTopicOffsets(name)
  that(zero.low === '0' && zero.high === '10' && one.high === '0', [zero, one])
  that((await admin.fetchTopicOffsetsByTimestamp(name, 1004))[0].offset === '4')
  that((await admin.fetchTopicOffsetsByTimestamp(name))[0].offset === '10')
  const partitions = [{ partition: 0, offset: '4' }]
  const [deleted] = await admin.deleteTopicRecords({ topic: name, partitions })
  that(deleted.lowWatermark === 4, deleted)
  that((await admin.fetchTopicOffsets(name))[0].low === '4')
  that(texts(await read(name, 6)).join() === '4,5,6,7,8,9')
}))

check('promises: groups are listed, described and deleted', () => withAdmin(async admin => {
  const name = await topic(2)
  await send(name, ['a'])
  for (const [member, type] of [[classic, ConsumerGroupTypes.CLASSIC], [modern, ConsumerGroupTypes.CONSUMER]]) {
    const group = fresh('g')
    const listed = async options => (await admin.listGroups(options)).groups.find(g => g.groupId === group)
    await read(name, 1, {
      consumer: member(group),
      then: async consumer => {
        await consumer.commitOffsets([{ topic: name, partition: 0, offset: '1', metadata: 'm' }])
        const found = await listed({ matchConsumerGroupStates: [ConsumerGroupStates.STABLE], matchConsumerGroupTypes: [type] })
        that(found.state === ConsumerGroupStates.STABLE && found.type === type, found)
        const { groups: [described] } = await admin.describeGroups([group], { includeAuthorizedOperations: true })
        that(described.state === ConsumerGroupStates.STABLE && described.type === type, described)
        that(described.members.length === 1 && described.authorizedOperations.length > 0, described)
        that(described.members[0].assignment.topicPartitions.length === 2, described)
        const error = await refused(admin.deleteGroups([group]))
        that(error.groups[0].errorCode === ErrorCodes.ERR_NON_EMPTY_GROUP, error)
      }
    })
    await until('it is empty', async () => (await listed())?.state === ConsumerGroupStates.EMPTY)
    const [{ partitions: [offset] }] = await admin.fetchOffsets({ groupId: group, topics: [name], requireStableOffsets: true })
    that(offset.offset === '1' && offset.metadata === 'm', offset)
    await admin.deleteGroups([group])
    that(await listed() === undefined)
    const error = await refused(admin.deleteGroups([group]))
    that(error.groups[0].errorCode === ErrorCodes.ERR_GROUP_ID_NOT_FOUND, error)
  }
}))

// Producing.

for (const compression of Object.values(CompressionTypes)) {
  check(`promises: compression ${compression}`, async () => {
    const name = await topic()
    const values = range(300).map(i => `value ${i} `.repeat(20))
    await send(name, values, { compression }, { 'linger.ms': 20 })
    const messages = await read(name, 300, { consumer: classic(fresh('g'), {}, { 'check.crcs': true }) })
    that(texts(messages).join() === values.join())
  })
}

for (const acks of [0, 1, -1]) {
  check(`promises: acks ${acks}`, async () => {
    const name = await topic()
    const [sent] = await send(name, ['a', 'b'], { acks })
    that(acks === 0 || sent.baseOffset === '0', sent)
    that(texts(await read(name, 2)).join() === 'a,b')
  })
}

check('promises: keys, headers, timestamps and nulls', async () => {
  const name = await topic()
  await send(name, [
    { key: 'k', value: 'v', headers: { a: ['1', '2'], b: Buffer.from('3'), empty: '' }, timestamp: '1700000000123' },
    { key: 'gone', value: null },
    { value: 'alone' }
  ])
  const [first, second, third] = await read(name, 3)
  that(first.key.toString() === 'k' && first.timestamp === '1700000000123', first)
  that(first.headers.a.map(String).join() === '1,2' && first.headers.b.toString() === '3', first)
  that(first.headers.empty.length === 0 && second.headers === undefined, first)
  that(second.key.toString() === 'gone' && second.value === null, second)
  that(third.key === null && third.value.toString() === 'alone', third)
})

check('promises: an idempotent producer keeps order', async () => {
  const name = await topic()
  const values = range(3000).map(String)
  const sent = await send(name, values, { idempotent: true, maxInFlightRequests: 5 }, { 'batch.num.messages': 50 })
  that(sent[0].errorCode === 0, sent)
  const messages = await read(name, 3000)
  that(texts(messages).join() === values.join() && messages.every((m, i) => m.offset === `${i}`))
})

check('promises: many topics in one batch', async () => {
  const names = [await topic(2), await topic(2)]
  const topicMessages = names.map(topic => ({ topic, messages: range(4).map(i => ({ value: `${i}`, partition: i % 2 })) }))
  const sent = await using(producer(), p => p.sendBatch({ topicMessages }))
  that(sent.length === 4 && sent.every(s => s.baseOffset === '0'), sent)
  for (const name of names) that(texts(await read(name, 4)).sort().join() === '0,1,2,3')
})

check('promises: keys go where those of Java go', async () => {
  const name = await topic(7)
  // Kafka's own examples of murmur2.
  const hashes = { 21: -973932308, foobar: -790332482, 'a-little-bit-long-string': -985981536, abc: 479470107 }
  await send(name, Object.keys(hashes).map(key => ({ key, value: 'v' })))
  for (const m of await read(name, 4)) that(m.partition === (hashes[m.key] & 0x7fffffff) % 7, m)
})

check('promises: what is too large is refused', async () => {
  const name = await topic(1, [{ name: 'max.message.bytes', value: '1000' }])
  for (const idempotent of [false, true]) {
    const error = await refused(send(name, ['x'.repeat(5000)], { idempotent }))
    that(error.code === ErrorCodes.ERR_MSG_SIZE_TOO_LARGE, error)
  }
})

check('promises: a topic that is not there', async () => {
  const settings = { 'topic.metadata.propagation.max.ms': 500 }
  const error = await refused(send(fresh('nowhere'), ['a'], { allowAutoTopicCreation: false }, settings))
  that([ErrorCodes.ERR__UNKNOWN_TOPIC, ErrorCodes.ERR_UNKNOWN_TOPIC_OR_PART].includes(error.code), error)
  const name = fresh('auto')
  await send(name, ['a'])
  const [{ partitions }] = await withAdmin(admin => admin.fetchTopicMetadata({ topics: [name] }))
  that(partitions.length === 2, partitions)
})

// Consuming.

check('promises: batches', () => using(classic(fresh('g')), async consumer => {
  const name = await topic()
  await send(name, range(100).map(String))
  const seen = []
  await consumer.subscribe({ topics: [name] })
  await consumer.run({
    eachBatchAutoResolve: false,
    eachBatch: async ({ batch, resolveOffset, commitOffsetsIfNecessary, heartbeat }) => {
      that(batch.topic === name && batch.partition === 0 && !batch.isEmpty(), batch)
      that(batch.lastOffset() === batch.messages.at(-1).offset, batch)
      // One at a time is done with, and the others come again.
      const [message] = batch.messages
      seen.push(message.offset)
      resolveOffset(message.offset)
      await heartbeat()
      await commitOffsetsIfNecessary()
    }
  })
  await until('ten are done', () => seen.length >= 10)
  that(seen.every((offset, i) => offset === `${i}`), seen)
}))

check('promises: seeking', async () => {
  const name = await topic()
  await send(name, range(10).map(String))
  await using(classic(fresh('g')), async consumer => {
    const seen = []
    await consumer.subscribe({ topics: [name] })
    await consumer.run({ eachMessage: async ({ message }) => { seen.push(message.offset) } })
    await until('all are read', () => seen.length === 10)
    consumer.seek({ topic: name, partition: 0, offset: '7' })
    await until('three come again', () => seen.length === 13)
    that(seen.slice(10).join() === '7,8,9', seen)
  })
})

check('promises: pausing and resuming', async () => {
  const name = await topic(2)
  await using(classic(fresh('g')), async consumer => {
    const seen = [0, 0]
    await consumer.subscribe({ topics: [name] })
    await consumer.run({ partitionsConsumedConcurrently: 2, eachMessage: async ({ partition }) => { seen[partition]++ } })
    await until('it is assigned', () => consumer.assignment().length === 2)
    consumer.pause([{ topic: name, partitions: [0] }])
    that(consumer.paused()[0].partitions.join() === '0', consumer.paused())
    await send(name, range(10).map(i => ({ value: 'v', partition: i % 2 })))
    await until('one is read', () => seen[1] === 5)
    that(seen[0] === 0, seen)
    consumer.resume([{ topic: name, partitions: [0] }])
    await until('both are read', () => seen[0] === 5)
  })
})

for (const [protocol, member] of Object.entries({ classic, modern })) {
  check(`promises: ${protocol}: a group goes on where it was`, async () => {
    const [name, group] = [await topic(), fresh('g')]
    const offsets = (offset, metadata) => [{ topic: name, partition: 0, offset, metadata }]
    await send(name, ['a', 'b', 'c'])
    await read(name, 3, {
      consumer: member(group),
      then: async consumer => {
        await consumer.commitOffsets(offsets('2', 'two'))
        const [committed] = await consumer.committed()
        that(committed.offset === '2' && committed.metadata === 'two', committed)
      }
    })
    that(texts(await read(name, 1, { consumer: member(group) })).join() === 'c')
  })

  check(`promises: ${protocol}: commits by itself`, async () => {
    const [name, group] = [await topic(), fresh('g')]
    await send(name, ['a', 'b'])
    const consumer = () => member(group, { autoCommit: true, autoCommitInterval: 200 })
    await read(name, 2, {
      consumer: consumer(),
      then: c => until('it is committed', async () => (await c.committed())[0].offset === '2')
    })
    await send(name, ['c'])
    that(texts(await read(name, 1, { consumer: consumer() })).join() === 'c')
  })

  check(`promises: ${protocol}: two members share`, async () => {
    const [name, group] = [await topic(4), fresh('g')]
    const told = []
    const one = member(group, {}, { rebalance_cb: (error, assignment) => { told.push([error.code, assignment.length]) } })
    const two = member(group)
    const values = []
    const start = async consumer => {
      await consumer.connect()
      await consumer.subscribe({ topics: [name] })
      await consumer.run({ eachMessage: async ({ message }) => { values.push(message.value.toString()) } })
    }
    const sizes = () => [one, two].map(consumer => consumer.assignment().length)
    await start(one)
    await until('one has all', () => one.assignment().length === 4)
    await start(two)
    await until('they share', () => sizes().join() === '2,2')
    await send(name, range(40).map(i => ({ value: `${i}`, partition: i % 4 })))
    await until('all is read', () => new Set(values).size === 40)
    await two.disconnect()
    await until('one has all again', () => one.assignment().length === 4)
    await one.disconnect()
    that(told[0].join() === `${ErrorCodes.ERR__ASSIGN_PARTITIONS},4`, told)
    that(told.some(([code]) => code === ErrorCodes.ERR__REVOKE_PARTITIONS), told)
  })

  check(`promises: ${protocol}: topics by pattern`, async () => {
    const prefix = fresh('pattern')
    const make = suffix => withAdmin(admin => admin.createTopics({ topics: [{ topic: `${prefix}-${suffix}`, numPartitions: 1 }] }))
    await make('a')
    await using(member(fresh('g'), {}, { 'topic.metadata.refresh.interval.ms': 300 }), async consumer => {
      await consumer.subscribe({ topics: [new RegExp(`^${prefix}-.*`)] })
      await consumer.run({ eachMessage: async () => {} })
      await until('the first is assigned', () => consumer.assignment().length === 1)
      await make('b')
      await until('the second is assigned', () => consumer.assignment().length === 2)
    })
  })
}

for (const assignor of ['range', 'roundrobin']) {
  check(`promises: assignor ${assignor}`, async () => {
    const [name, group] = [await topic(6), fresh('g')]
    const members = range(3).map(() => classic(group, { partitionAssignors: [assignor] }))
    for (const member of members) {
      await member.connect()
      await member.subscribe({ topics: [name] })
      await member.run({ eachMessage: async () => {} })
    }
    await until('they share', () => members.every(m => m.assignment().length === 2))
    const all = members.flatMap(m => m.assignment().map(a => a.partition))
    that(new Set(all).size === 6, all)
    const { groups: [described] } = await withAdmin(admin => admin.describeGroups([group]))
    that(described.partitionAssignor === assignor && described.members.length === 3, described)
    await Promise.all(members.map(m => m.disconnect()))
  })
}

// Transactions.

check('promises: transactions', async () => {
  const name = await topic()
  const sender = producer({ transactionalId: fresh('tx') })
  await using(sender, async () => {
    for (const i of range(6)) {
      const transaction = await sender.transaction()
      await transaction.send({ topic: name, messages: [{ value: `a${i}` }, { value: `b${i}` }] })
      if (i % 3 === 2) await transaction.abort()
      else await transaction.commit()
    }
    const values = texts(await read(name, 8, { consumer: isolated(false) }))
    that(values.join() === 'a0,b0,a1,b1,a3,b3,a4,b4', values)
    await read(name, 12, { consumer: isolated(true) })

    const open = await sender.transaction()
    await open.send({ topic: name, messages: [{ value: 'open' }] })
    const ends = level => withAdmin(admin => admin.fetchTopicOffsets(name, { isolationLevel: level }))
    that((await ends(IsolationLevel.READ_COMMITTED))[0].high === '18')
    that((await ends(IsolationLevel.READ_UNCOMMITTED))[0].high === '19')
    await open.abort()
    that((await ends(IsolationLevel.READ_COMMITTED))[0].high === '20')
  })
})

for (const [protocol, member] of Object.entries({ classic, modern })) {
  check(`promises: ${protocol}: offsets are part of transactions`, async () => {
    const [source, target, group] = [await topic(), await topic(), fresh('g')]
    await send(source, ['a', 'b'])
    await using(producer({ transactionalId: fresh('tx') }), async sender => {
      for (const aborted of [true, false]) {
        await read(source, 2, {
          consumer: member(group),
          then: async consumer => {
            const transaction = await sender.transaction()
            await transaction.send({ topic: target, messages: [{ value: `${aborted}` }] })
            const topics = [{ topic: source, partitions: [{ partition: 0, offset: '2' }] }]
            await transaction.sendOffsets({ consumer, topics })
            await (aborted ? transaction.abort() : transaction.commit())
          }
        })
      }
    })
    that(texts(await read(target, 1, { consumer: isolated(false) })).join() === 'false')
    const [{ partitions: [stored] }] = await withAdmin(admin => admin.fetchOffsets({ groupId: group, topics: [source] }))
    that(stored.offset === '2', stored)
  })
}

check('promises: another fences', async () => {
  const [name, transactionalId] = [await topic(), fresh('tx')]
  const [old, next] = [producer({ transactionalId }), producer({ transactionalId })]
  await old.connect()
  const zombie = await old.transaction()
  await zombie.send({ topic: name, messages: [{ value: 'zombie' }] })
  await using(next, async () => {
    const error = await refused(zombie.commit())
    that([ErrorCodes.ERR__FENCED, ErrorCodes.ERR_PRODUCER_FENCED].includes(error.code), error)
    const transaction = await next.transaction()
    await transaction.send({ topic: name, messages: [{ value: 'new' }] })
    await transaction.commit()
  })
  await old.disconnect()
  that(texts(await read(name, 1, { consumer: isolated(false) })).join() === 'new')
})
