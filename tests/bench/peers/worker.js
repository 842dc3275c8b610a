// The worker behind the receiver: reads from a durable consumer, upserts each user in one statement, and acknowledges. It
// handles as many events at once as the pool has connections.
import { AckPolicy, connect } from 'nats'
import pg from 'pg'

const AT_ONCE = 10
const { NATS_URL, DATABASE_URL, STREAM } = process.env
const pool = new pg.Pool({ connectionString: DATABASE_URL, max: AT_ONCE })
const nats = await connect({ servers: NATS_URL })
const manager = await nats.jetstreamManager()
await manager.consumers.add(STREAM, { durable_name: 'worker', ack_policy: AckPolicy.Explicit, max_ack_pending: 1000 })
const consumer = await nats.jetstream().consumers.get(STREAM, 'worker')

const UPSERT = {
  name: 'upsert',
  text: `insert into peer_users (id, directory_id, organization_id, state, job_title, raw_attributes, updated_at)
    values ($1, $2, $3, $4, $5, $6, $7)
    on conflict (id) do update set
      directory_id = excluded.directory_id, organization_id = excluded.organization_id, state = excluded.state,
      job_title = excluded.job_title, raw_attributes = excluded.raw_attributes, updated_at = excluded.updated_at
    where peer_users.updated_at <= excluded.updated_at`
}

async function apply (message) {
  const { data } = message.json()
  const values = [
    data.id, data.directory_id, data.organization_id, data.state, data.job_title, data.raw_attributes, data.updated_at
  ]
  await pool.query({ ...UPSERT, values })
  message.ack()
}

const messages = await consumer.consume({ max_messages: 1000 })
console.log('ready')
const busy = new Set()
for await (const message of messages) {
  const task = apply(message).finally(() => busy.delete(task))
  busy.add(task)
  if (busy.size >= AT_ONCE) await Promise.race(busy)
}
