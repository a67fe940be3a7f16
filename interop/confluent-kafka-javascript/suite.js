// Confluent's client in JavaScript: librdkafka with promises like those of kafkajs, and with the callbacks of
// node-rdkafka. Usage: node suite.js BOOTSTRAP [PART OF A CHECK'S NAME]

// librdkafka's calls block a thread each; Node's default are four.
process.env.UV_THREADPOOL_SIZE = '48'

require('./promises')
require('./callbacks')
require('./kit').runAll()
