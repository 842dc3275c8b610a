// A webhook receiver as WorkOS's documentation and the frameworks' examples suggest: fastify reads the body, the official
// SDK verifies it, and the event is published to JetStream before the answer. Prints its address when it is ready.
import { WorkOS } from '@workos-inc/node'
import fastify from 'fastify'
import { connect } from 'nats'

const { NATS_URL, SECRET } = process.env
const workos = new WorkOS('sk_of_the_benchmark')
const nats = await connect({ servers: NATS_URL })
const log = nats.jetstream()
const app = fastify()

app.post('/webhooks/workos', async (request, reply) => {
  let event
  try {
    event = await workos.webhooks.constructEvent({
      payload: request.body,
      sigHeader: request.headers['workos-signature'],
      secret: SECRET
    })
  } catch {
    return reply.code(401).send({ error: 'unauthorized' })
  }
  await log.publish(`peer.${event.event}`, JSON.stringify(request.body), { msgID: event.id })
  return { status: 'accepted' }
})

const address = await app.listen({ host: '127.0.0.1', port: 0 })
console.log(address.replace('http://', ''))
