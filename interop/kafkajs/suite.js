// kafkajs, the client in JavaScript that most of Node's programs use. Usage: node suite.js BOOTSTRAP
const { Kafka, logLevel, CompressionTypes, ConfigResourceTypes } = require('kafkajs')

const kafka = new Kafka({ brokers: [process.argv[2] || '127.0.0.1:9092'], logLevel: logLevel.NOTHING })
const admin = kafka.admin()
let passed = 0
let failed = 0
let number = 0

const fresh = prefix => `${prefix}-${process.pid}-${Date.now()}-${number++}`
const that = (holds, seen) => { if (!holds) throw new Error(`it does not hold: ${JSON.stringify(seen)}`) }
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

async function check (name, run) {
  try {
    await run()
    passed++
  } catch (e) {
    failed++
    console.log(`FAILED ${name}`, e)
  }
}

async function topic (numPartitions = 1, configEntries = []) {
  const name = fresh('js')
  await admin.createTopics({ topics: [{ topic: name, numPartitions, configEntries }] })
  return name
}

async function send (topic, values, options = {}) {
  const producer = kafka.producer(options.producer)
  await producer.connect()
  const messages = values.map(value => ({ key: `k${value}`, value, headers: { h: '1' } }))
  const sent = await producer.send({ topic, messages, acks: options.acks, compression: options.compression })
  await producer.disconnect()
  return sent
}

// Reads until there are `count` messages, and hands back what it read.
async function read (topic, count, groupId = fresh('g')) {
  const consumer = kafka.consumer({ groupId, sessionTimeout: 6000, heartbeatInterval: 500 })
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  const messages = []
  await consumer.run({ eachMessage: async ({ partition, message }) => { messages.push({ partition, ...message }) } })
  for (let i = 0; i < 200 && messages.length < count; i++) await sleep(100)
  await consumer.disconnect()
  that(messages.length === count, messages.length)
  return messages
}

async function main () {
  await admin.connect()
  for (const compression of [CompressionTypes.None, CompressionTypes.GZIP]) {
    await check(`compression ${compression}`, async () => {
      const name = await topic()
      const values = [...Array(200).keys()].map(i => `v${i}`)
      await send(name, values, { compression })
      const messages = await read(name, 200)
      that(messages.map(m => m.value.toString()).join() === values.join())
      that(messages[3].key.toString() === 'kv3' && messages[3].headers.h.toString() === '1')
    })
  }
  for (const acks of [0, 1, -1]) {
    await check(`acks ${acks}`, async () => {
      const name = await topic()
      await send(name, ['a', 'b'], { acks })
      await read(name, 2)
    })
  }
  await check('idempotent', async () => {
    const name = await topic()
    const sent = await send(name, ['a'], { producer: { idempotent: true, maxInFlightRequests: 1 } })
    that(sent[0].baseOffset === '0', sent)
  })
  await check('a group goes on where it was', async () => {
    const name = await topic()
    const group = fresh('g')
    await send(name, ['a', 'b'])
    await read(name, 2, group)
    await send(name, ['c'])
    that((await read(name, 1, group))[0].value.toString() === 'c')
  })
  await check('two members share', async () => {
    const name = await topic(4)
    const groupId = fresh('g')
    const sizes = {}
    const members = []
    for (const i of [0, 1]) {
      // It looks for a rebalance only between two fetches: they must be shorter than one may take.
      const member = kafka.consumer({ groupId, sessionTimeout: 6000, heartbeatInterval: 300, rebalanceTimeout: 5000, maxWaitTimeInMs: 500 })
      await member.connect()
      await member.subscribe({ topics: [name] })
      member.on(member.events.GROUP_JOIN, e => { sizes[i] = (e.payload.memberAssignment[name] || []).length })
      await member.run({ eachMessage: async () => {} })
      members.push(member)
    }
    for (let i = 0; i < 200 && !(sizes[0] === 2 && sizes[1] === 2); i++) await sleep(100)
    that(sizes[0] === 2 && sizes[1] === 2, sizes)
    const described = await admin.describeGroups([groupId])
    that(described.groups[0].state === 'Stable' && described.groups[0].members.length === 2, described)
    for (const member of members) await member.disconnect()
    await admin.deleteGroups([groupId])
  })
  await check('offsets', async () => {
    const name = await topic()
    const groupId = fresh('g')
    await send(name, ['a', 'b', 'c'])
    that((await admin.fetchTopicOffsets(name))[0].high === '3')
    that((await admin.fetchTopicOffsetsByTimestamp(name, 1))[0].offset === '0')
    await admin.setOffsets({ groupId, topic: name, partitions: [{ partition: 0, offset: '2' }] })
    const offsets = await admin.fetchOffsets({ groupId, topics: [name] })
    that(offsets[0].partitions[0].offset === '2', offsets)
    that((await read(name, 1, groupId))[0].value.toString() === 'c')
  })
  await check('topics', async () => {
    const name = await topic(2, [{ name: 'retention.ms', value: '1000' }])
    await admin.createPartitions({ topicPartitions: [{ topic: name, count: 3 }] })
    const metadata = await admin.fetchTopicMetadata({ topics: [name] })
    that(metadata.topics[0].partitions.length === 3, metadata)
    const resources = [{ type: ConfigResourceTypes.TOPIC, name }]
    await admin.alterConfigs({ resources: [{ ...resources[0], configEntries: [{ name: 'retention.ms', value: '5' }] }] })
    const configs = await admin.describeConfigs({ resources, includeSynonyms: false })
    that(configs.resources[0].configEntries.find(e => e.configName === 'retention.ms').configValue === '5')
    await admin.deleteTopics({ topics: [name] })
    that(!(await admin.listTopics()).includes(name))
  })
  await check('records are deleted', async () => {
    const name = await topic()
    await send(name, ['a', 'b', 'c'])
    await admin.fetchTopicOffsets(name)
    await admin.deleteTopicRecords({ topic: name, partitions: [{ partition: 0, offset: '2' }] })
    that((await admin.fetchTopicOffsets(name))[0].low === '2')
  })
  await check('transactions', async () => {
    const [source, target, groupId, transactionalId] = [await topic(), await topic(), fresh('g'), fresh('tx')]
    const options = { transactionalId, maxInFlightRequests: 1, idempotent: true }
    const producer = kafka.producer(options)
    await producer.connect()
    for (let i = 0; i < 6; i++) {
      const transaction = await producer.transaction()
      await transaction.send({ topic: target, messages: [{ value: `a${i}` }, { value: `b${i}` }] })
      const partitions = [{ partition: 0, offset: `${i + 1}` }]
      await transaction.sendOffsets({ consumerGroupId: groupId, topics: [{ topic: source, partitions }] })
      if (i % 3 === 2) await transaction.abort()
      else await transaction.commit()
    }
    const values = (await read(target, 8)).map(m => m.value.toString())
    that(values.join() === 'a0,b0,a1,b1,a3,b3,a4,b4', values)
    const offsets = await admin.fetchOffsets({ groupId, topics: [source] })
    that(offsets[0].partitions[0].offset === '5', offsets)
    // Another one with its name: the first is fenced.
    const open = await producer.transaction()
    await open.send({ topic: target, messages: [{ value: 'zombie' }] })
    const next = kafka.producer(options)
    await next.connect()
    const transaction = await next.transaction()
    await transaction.send({ topic: target, messages: [{ value: 'new' }] })
    await transaction.commit()
    const fenced = await open.commit().then(() => null, e => e)
    that(fenced !== null && /epoch|fenced/i.test(fenced.type + fenced.message), fenced)
    that((await read(target, 9)).pop().value.toString() === 'new')
    await producer.disconnect()
    await next.disconnect()
  })
  await admin.disconnect()
  console.log(`${passed} passed, ${failed} failed`)
  process.exit(failed === 0 ? 0 : 1)
}

main()
