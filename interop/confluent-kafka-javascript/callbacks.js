// The callbacks and events, as users of node-rdkafka know them.
const {
  AdminClient, CODES, ConsumerGroupStates, HighLevelProducer, IsolationLevel, KafkaConsumer, OffsetSpec, Producer,
  createReadStream, createWriteStream
} = require('@confluentinc/kafka-javascript')
const { bootstrap, check, fresh, range, refused, that, until } = require('./kit')

const base = { 'bootstrap.servers': bootstrap, log_level: 0 }
const errors = CODES.ERRORS

/** Calls a method that takes a callback. */
const call = (object, method, ...args) => new Promise((resolve, reject) => {
  object[method](...args, (error, value) => error ? reject(error) : resolve(value))
})

/** Calls with a client that is connected, and disconnects it. */
async function using (client, run) {
  await call(client, 'connect', {})
  try {
    return await run(client)
  } finally {
    await call(client, 'disconnect')
  }
}

async function withAdmin (run) {
  const admin = AdminClient.create(base)
  try {
    return await run(admin)
  } finally {
    admin.disconnect()
  }
}

async function topic (partitions = 1, config = {}) {
  const name = fresh('ckjs')
  const wish = { topic: name, num_partitions: partitions, replication_factor: 1, config }
  await withAdmin(admin => call(admin, 'createTopic', wish, 10_000))
  return name
}

/** A producer that is polled, and keeps what it is told. */
function producer (settings = {}) {
  const client = new Producer({ ...base, 'linger.ms': 0, dr_cb: true, ...settings }, {})
  client.reports = []
  client.on('delivery-report', (error, report) => client.reports.push({ ...report, error }))
  client.on('event.error', () => {})
  client.setPollInterval(20)
  return client
}

async function send (topic, values, partition = 0, settings = {}) {
  await using(producer(settings), async p => {
    for (const value of values) p.produce(topic, partition, Buffer.from(value))
    await call(p, 'flush', 20_000)
    await until('all are reported', () => p.reports.length === values.length)
    that(p.reports.every(report => !report.error), p.reports)
  })
}

const consumer = (settings = {}, group = fresh('g')) => new KafkaConsumer({
  ...base,
  'group.id': group,
  'enable.auto.commit': false,
  'session.timeout.ms': 6000,
  'heartbeat.interval.ms': 300,
  'fetch.wait.max.ms': 100,
  ...settings
}, { 'auto.offset.reset': 'earliest' })

/** Consumes until there are `count` messages. */
async function take (client, count) {
  const messages = []
  client.setDefaultConsumeTimeout(100)
  await until(`${count} messages`, async () => {
    messages.push(...await call(client, 'consume', count - messages.length))
    return messages.length === count
  })
  return messages
}

/** Reads a partition from an offset on. */
const read = (topic, count, { partition = 0, offset = 0, settings = {} } = {}) => using(consumer(settings), async c => {
  c.assign([{ topic, partition, offset }])
  return take(c, count)
})

const texts = messages => messages.map(m => m.value.toString())

check('callbacks: topics and metadata', () => withAdmin(async admin => {
  const name = await topic(2, { 'retention.ms': '1000' })
  const wish = { topic: name, num_partitions: 1, replication_factor: 1 }
  that((await refused(call(admin, 'createTopic', wish))).code === errors.ERR_TOPIC_ALREADY_EXISTS)
  await call(admin, 'createPartitions', name, 4)
  that((await refused(call(admin, 'createPartitions', name, 3))).code === errors.ERR_INVALID_PARTITIONS)
  // A broker hears of partitions after they were made.
  const described = async () => (await call(admin, 'describeTopics', [name], { includeAuthorizedOperations: true }))[0]
  await until('they are known', async () => (await described()).partitions.length === 4)
  that((await described()).name === name && (await described()).authorizedOperations.length > 0)
  that((await call(admin, 'listTopics')).includes(name))
  const [missing] = await call(admin, 'describeTopics', [fresh('nowhere')], {})
  that(missing.error.code === errors.ERR_UNKNOWN_TOPIC_OR_PART, missing)
  await using(producer(), async p => {
    const { brokers, topics } = await call(p, 'getMetadata', { topic: name, allTopics: false, timeout: 10_000 })
    that(brokers.length === 1 && topics.length === 1 && topics[0].partitions.length === 4, [brokers, topics])
    const all = await call(p, 'getMetadata', { timeout: 10_000 })
    that(all.topics.some(t => t.name === name))
  })
  await call(admin, 'deleteTopic', name)
  await until('it is gone', async () => !(await call(admin, 'listTopics')).includes(name))
  that((await refused(call(admin, 'deleteTopic', name))).code === errors.ERR_UNKNOWN_TOPIC_OR_PART)
}))

check('callbacks: offsets and records by the admin client', () => withAdmin(async admin => {
  const name = await topic()
  await using(producer(), async p => {
    range(10).forEach(i => p.produce(name, 0, Buffer.from(`${i}`), null, i === 3 ? 9000 : 1000 + i))
    await call(p, 'flush', 20_000)
  })
  const at = async spec => {
    const [found] = await call(admin, 'listOffsets', [{ topic: name, partition: 0, offset: spec }],
      { isolationLevel: IsolationLevel.READ_UNCOMMITTED })
    return found.offset
  }
  that(await at(OffsetSpec.EARLIEST) === 0 && await at(OffsetSpec.LATEST) === 10)
  that(await at(OffsetSpec.MAX_TIMESTAMP) === 3)
  that(await at(new OffsetSpec(1005)) === 3 && await at(new OffsetSpec(1002)) === 2)
  const [deleted] = await call(admin, 'deleteRecords', [{ topic: name, partition: 0, offset: 6 }], {})
  that(deleted.lowWatermark === 6, deleted)
  that(await at(OffsetSpec.EARLIEST) === 6)
  const [beyond] = await call(admin, 'deleteRecords', [{ topic: name, partition: 0, offset: 11 }], {})
  that(beyond.error.code === errors.ERR_OFFSET_OUT_OF_RANGE, beyond)
}))

check('callbacks: deliveries are reported', async () => {
  const name = await topic()
  await using(producer({ dr_msg_cb: true, dr_cb: undefined }), async p => {
    for (const i of range(20)) p.produce(name, 0, Buffer.from(`v${i}`), `k${i}`, 1_700_000_000_000 + i, { number: i }, [{ h: `${i}` }])
    await call(p, 'flush', 20_000)
    await until('all are reported', () => p.reports.length === 20)
    that(p.reports.every((r, i) => r.offset === i && r.opaque.number === i && r.value.toString() === `v${i}`), p.reports)
  })
  const messages = await read(name, 20)
  that(messages.every((m, i) => m.key.toString() === `k${i}` && m.timestamp === 1_700_000_000_000 + i), messages)
  that(messages[7].headers[0].h.toString() === '7', messages[7])
})

check('callbacks: a producer of a higher level', async () => {
  const name = await topic()
  const p = new HighLevelProducer({ ...base, 'enable.idempotence': true, 'linger.ms': 0 }, {})
  p.setKeySerializer(key => Buffer.from(`key ${key}`))
  p.setValueSerializer(async value => Buffer.from(JSON.stringify(value)))
  await using(p, async () => {
    for (const i of range(5)) that(await call(p, 'produce', name, 0, { i }, i, Date.now(), [{ h: 'x' }]) === i)
  })
  const messages = await read(name, 5)
  that(texts(messages).join() === range(5).map(i => `{"i":${i}}`).join(), texts(messages))
  that(messages[2].key.toString() === 'key 2' && messages[2].headers[0].h.toString() === 'x', messages[2])
})

for (const codec of ['none', 'gzip', 'snappy', 'lz4', 'zstd']) {
  check(`callbacks: compression ${codec}`, async () => {
    const name = await topic()
    const values = range(200).map(i => `value ${i} `.repeat(20))
    await send(name, values, 0, { 'compression.codec': codec, 'linger.ms': 20 })
    that(texts(await read(name, 200, { settings: { 'check.crcs': true } })).join() === values.join())
    // From the middle of a batch.
    that(texts(await read(name, 1, { offset: 77 }))[0] === values[77])
  })
}

check('callbacks: errors of delivery', async () => {
  const name = await topic(1, { 'max.message.bytes': '1000' })
  await using(producer(), async p => {
    p.produce(name, 0, Buffer.alloc(5000, 'x'))
    await until('it is reported', () => p.reports.length === 1)
    that(p.reports[0].error.code === errors.ERR_MSG_SIZE_TOO_LARGE, p.reports)
  })
})

check('callbacks: messages flow by themselves', () => using(consumer({ 'enable.partition.eof': true }), async c => {
  const name = await topic()
  await send(name, range(50).map(String))
  const [messages, ends] = [[], []]
  c.on('data', message => messages.push(message))
  c.on('partition.eof', end => ends.push(end))
  c.subscribe([name])
  c.consume()
  await until('all are read', () => messages.length === 50 && ends.length > 0)
  that(texts(messages).join() === range(50).join() && ends[0].offset === 50, ends)
  that(c.subscription().join() === name && c.assignments().length === 1)
}))

check('callbacks: streams', async () => {
  const name = await topic()
  const writer = createWriteStream({ ...base, 'linger.ms': 0 }, {}, { topic: name, pollInterval: 20 })
  writer.on('error', error => console.log(error))
  for (const value of ['a', 'b', 'c']) writer.write(Buffer.from(value))
  const settings = { ...base, 'group.id': fresh('g'), 'enable.auto.commit': false, 'fetch.wait.max.ms': 100 }
  const reader = createReadStream(settings, { 'auto.offset.reset': 'earliest' }, { topics: [name], waitInterval: 0 })
  const values = []
  reader.on('data', message => values.push(message.value.toString()))
  await until('all are read', () => values.length === 3)
  that(values.join() === 'a,b,c', values)
  await Promise.all([new Promise(resolve => writer.close(resolve)), new Promise(resolve => reader.close(resolve))])
})

check('callbacks: seeking, pausing and positions', () => using(consumer(), async c => {
  const name = await topic(2)
  await send(name, range(10).map(String), 0)
  await send(name, range(10).map(String), 1)
  c.assign(range(2).map(partition => ({ topic: name, partition, offset: 0 })))
  await take(c, 20)
  that(c.position().every(p => p.offset === 10), c.position())
  await call(c, 'seek', { topic: name, partition: 1, offset: 8 }, 10_000)
  const again = await take(c, 2)
  that(again.map(m => `${m.partition} ${m.offset}`).join() === '1 8,1 9', again)
  c.pause([{ topic: name, partition: 0 }])
  await send(name, ['more'], 0)
  await send(name, ['more'], 1)
  that((await take(c, 1))[0].partition === 1)
  that((await call(c, 'consume', 1)).length === 0)
  c.resume([{ topic: name, partition: 0 }])
  that((await take(c, 1))[0].partition === 0)
}))

check('callbacks: watermarks and offsets by time', () => using(consumer(), async c => {
  const name = await topic()
  await using(producer(), async p => {
    range(10).forEach(i => p.produce(name, 0, Buffer.from(`${i}`), null, 1000 + i))
    await call(p, 'flush', 20_000)
  })
  const asked = await call(c, 'queryWatermarkOffsets', name, 0, 10_000)
  that(asked.lowOffset === 0 && asked.highOffset === 10, asked)
  const found = await call(c, 'offsetsForTimes', [{ topic: name, partition: 0, offset: 1004 }], 10_000)
  that(found[0].offset === 4, found)
  c.assign([{ topic: name, partition: 0, offset: 0 }])
  await take(c, 10)
  that(c.getWatermarkOffsets(name, 0).highOffset === 10)
}))

for (const [protocol, settings] of Object.entries({
  classic: { 'session.timeout.ms': 6000, 'heartbeat.interval.ms': 300 },
  // The broker assigns, and sets the times (KIP-848).
  consumer: { 'group.protocol': 'consumer' }
})) {
  const member = (group, more = {}) => new KafkaConsumer({
    ...base, 'group.id': group, 'enable.auto.commit': false, 'fetch.wait.max.ms': 100, ...settings, ...more
  }, { 'auto.offset.reset': 'earliest' })

  check(`callbacks: ${protocol}: commits`, async () => {
    const [name, group] = [await topic(), fresh('g')]
    await send(name, range(10).map(String))
    const partition = { topic: name, partition: 0 }
    const told = []
    await using(member(group, { offset_commit_cb: (error, partitions) => told.push([error, partitions]) }), async c => {
      c.subscribe([name])
      const messages = await take(c, 10)
      const committed = async () => (await call(c, 'committed', [partition], 10_000))[0]
      that((await committed()).offset === undefined || (await committed()).offset < 0, await committed())
      c.commitMessageSync(messages[2])
      that((await committed()).offset === 3)
      c.commitSync({ ...partition, offset: 5, metadata: 'five' })
      that((await committed()).offset === 5 && (await committed()).metadata === 'five')
      c.commit({ ...partition, offset: 7 })
      await until('it is committed', async () => (await committed()).offset === 7)
      // While it consumes.
      await until('it is told', async () => {
        await call(c, 'consume', 1)
        return told.some(([error, [p]]) => !error && p.offset === 7)
      })
    })
    await using(member(group), async c => {
      c.subscribe([name])
      that(texts(await take(c, 3)).join() === '7,8,9')
    })
    const admin = AdminClient.create(base)
    const [found] = await call(admin, 'listConsumerGroupOffsets', [{ groupId: group }], { requireStableOffsets: true })
    that(found.groupId === group && found.partitions[0].offset === 7, found)
    await until('it is empty', async () => {
      const { groups: [described] } = await call(admin, 'describeGroups', [group])
      return described.state === ConsumerGroupStates.EMPTY
    })
    const [deleted] = await call(admin, 'deleteGroups', [group])
    that(deleted.groupId === group && !deleted.error, deleted)
    const { groups } = await call(admin, 'listGroups', {})
    that(!groups.some(g => g.groupId === group), groups)
    admin.disconnect()
  })

  check(`callbacks: ${protocol}: two members share`, async () => {
    const [name, group] = [await topic(4), fresh('g')]
    const told = []
    const strategy = protocol === 'classic' ? { 'partition.assignment.strategy': 'cooperative-sticky' } : {}
    const one = member(group, { ...strategy, rebalance_cb: true })
    const two = member(group, strategy)
    one.on('rebalance', (error, partitions) => told.push([error.code, partitions.length]))
    await using(one, async () => {
      one.subscribe([name])
      one.consume()
      await until('one has all', () => one.assignments().length === 4)
      await using(two, async () => {
        two.subscribe([name])
        two.consume()
        await until('they share', () => one.assignments().length === 2 && two.assignments().length === 2)
        that(new Set([...one.assignments(), ...two.assignments()].map(a => a.partition)).size === 4)
        two.unsubscribe()
      })
      await until('one has all again', () => one.assignments().length === 4)
      one.unsubscribe()
    })
    that(told[0].join() === `${errors.ERR__ASSIGN_PARTITIONS},4`, told)
    that(told.some(([code, count]) => code === errors.ERR__REVOKE_PARTITIONS && count === 2), told)
  })

  check(`callbacks: ${protocol}: offsets are part of transactions`, async () => {
    const [source, target, group] = [await topic(), await topic(), fresh('g')]
    await send(source, ['a', 'b'])
    await using(producer({ 'transactional.id': fresh('tx') }), async p => {
      await call(p, 'initTransactions', 20_000)
      await using(member(group), async c => {
        c.subscribe([source])
        const messages = await take(c, 2)
        const committed = async () => (await call(c, 'committed', [{ topic: source, partition: 0 }], 10_000))[0].offset
        for (const end of ['abortTransaction', 'commitTransaction']) {
          await call(p, 'beginTransaction')
          for (const message of messages) p.produce(target, 0, Buffer.from(`${end} ${message.value}`))
          await call(p, 'sendOffsetsToTransaction', [{ topic: source, partition: 0, offset: 2 }], c, 20_000)
          await call(p, end, 20_000)
          that((await committed() === 2) === (end === 'commitTransaction'), await committed())
        }
      })
    })
    const values = texts(await read(target, 2, { settings: { 'isolation.level': 'read_committed' } }))
    that(values.join() === 'commitTransaction a,commitTransaction b', values)
  })
}

check('callbacks: another fences', async () => {
  const [name, id] = [await topic(), fresh('tx')]
  const [old, next] = [producer({ 'transactional.id': id }), producer({ 'transactional.id': id })]
  await using(old, () => using(next, async () => {
    await call(old, 'initTransactions', 20_000)
    await call(old, 'beginTransaction')
    old.produce(name, 0, Buffer.from('zombie'))
    await call(next, 'initTransactions', 20_000)
    const error = await refused(call(old, 'commitTransaction', 20_000))
    that(error.isFatal && [errors.ERR__FENCED, errors.ERR_PRODUCER_FENCED].includes(error.code), error)
    await call(next, 'beginTransaction')
    next.produce(name, 0, Buffer.from('new'))
    await call(next, 'commitTransaction', 20_000)
    that(texts(await read(name, 1, { settings: { 'isolation.level': 'read_committed' } }))[0] === 'new')
  }))
})

check('callbacks: statistics', async () => {
  const p = producer({ 'statistics.interval.ms': 100 })
  const statistics = []
  p.on('event.stats', event => statistics.push(JSON.parse(event.message)))
  await using(p, async () => {
    const name = await topic()
    p.produce(name, 0, Buffer.from('v'))
    await until('it is counted', () => statistics.at(-1)?.topics[name]?.partitions[0]?.txmsgs === 1)
  })
})
