// What the checks of both APIs share: names, waiting, and running some checks at once.

const bootstrap = process.argv[2] || '127.0.0.1:9092'
const checks = []
let number = 0

// How many checks run at once, and how long one may take, in milliseconds.
const AT_ONCE = 6
const LIMIT = 90_000

/** A name that no other check uses. */
const fresh = prefix => `${prefix}-${process.pid}-${Date.now()}-${number++}`
const that = (holds, seen) => { if (!holds) throw new Error(`it does not hold: ${JSON.stringify(seen)?.slice(0, 1000)}`) }
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const range = count => [...Array(count).keys()]

/** Waits until it holds. */
async function until (what, holds) {
  for (const since = Date.now(); !(await holds()); await sleep(20)) {
    if (Date.now() - since > 45_000) throw new Error(`never: ${what}`)
  }
}

/** Whatever it is refused with. */
async function refused (promise) {
  const error = await promise.then(() => null, error => error)
  that(error !== null, 'it was not refused')
  return error
}

function check (name, run) {
  checks.push({ name, run })
}

async function passes ({ name, run }) {
  let timer
  const late = new Promise((resolve, reject) => { timer = setTimeout(() => reject(new Error('it has not ended')), LIMIT) })
  try {
    await Promise.race([run(), late])
    return true
  } catch (e) {
    console.log(`FAILED ${name}`, e)
    return false
  } finally {
    clearTimeout(timer)
  }
}

/** Runs all checks and ends the process. */
async function runAll () {
  const chosen = checks.filter(({ name }) => name.includes(process.argv[3] || ''))
  let [next, passed, failed] = [0, 0, 0]
  await Promise.all(range(AT_ONCE).map(async () => {
    while (next < chosen.length) {
      if (await passes(chosen[next++])) passed++
      else failed++
    }
  }))
  console.log(`${passed} passed, ${failed} failed`)
  process.exit(failed === 0 ? 0 : 1)
}

module.exports = { bootstrap, check, fresh, range, refused, runAll, sleep, that, until }
