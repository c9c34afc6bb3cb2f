// The JavaScript implementation of Secret Handshake and box stream on standard input and output: an echo that answers
// each piece in capitals. Arguments: server NETWORK SEED | client NETWORK SEED SERVER_KEY (hex).
'use strict'
const shs = require('secret-handshake')
const pull = require('pull-stream')
const sodium = require('chloride')

const [role, network, seed, serverKey] = process.argv.slice(2)
const hex = (text) => Buffer.from(text, 'hex')
const keys = sodium.crypto_sign_seed_keypair(hex(seed))
const wire = {
  source: (() => {
    const pieces = []
    let waiting = null, ended = false
    process.stdin.on('data', (data) => { pieces.push(data); next() })
    process.stdin.on('end', () => { ended = true; next() })
    function next () {
      if (!waiting) return
      if (pieces.length) { const cb = waiting; waiting = null; cb(null, pieces.shift()) }
      else if (ended) { const cb = waiting; waiting = null; cb(true) }
    }
    return (abort, cb) => { if (abort) return cb(abort); waiting = cb; next() }
  })(),
  sink: pull.drain((data) => { process.stdout.write(data) }, () => { process.stdout.end() })
}
function connected (error, stream) {
  if (error) { console.error(String(error)); process.exit(1) }
  pull(stream, pull.map((data) => Buffer.from(data.toString().toUpperCase())), stream)
}
const duplex = role === 'server'
  ? shs.createServer(keys, (id, cb) => cb(null, true), hex(network), 5000)(connected)
  : shs.createClient(keys, hex(network), 5000)(hex(serverKey), connected)
pull(wire, duplex, wire)
