import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { bareJoin } from './bare-join.ts';
import { BenchClient } from './client.ts';
import { ProcessStats, untilIdle } from './process-stats.ts';
import type { Served } from './server.ts';

/**
 * Joins a homeserver to large rooms that simulated servers hand out, one after the other, and prints for each when a
 * client sees it, when the server has all its members, and how much memory that took. See README.md beside this folder.
 */
const { values } = parseArgs({
  options: {
    url: { type: 'string', default: 'http://127.0.0.1:8008' },
    members: { type: 'string', default: '10000' },
    servers: { type: 'string', default: '10' },
    port: { type: 'string', default: '18600' },
    /** Joined one after the other, each on servers of its own: the homeserver is warm from the second on. */
    rooms: { type: 'string', default: '1' },
    /** Processes of the homeserver, without those of its database. */
    pids: { type: 'string', default: '' },
    full: { type: 'boolean', default: false },
    timeout: { type: 'string', default: '900' },
    /** Prints when each request of the homeserver came and was answered, until the client saw the room. */
    requests: { type: 'boolean', default: false },
  },
});
const members = Number(values.members);
const pids = values.pids.split(',').filter(Boolean).map(Number);
const MAX_UNTIL_IDLE = 60_000;
const LAZY = encodeURIComponent(
  JSON.stringify({
    room: { timeline: { limit: 1 }, state: { lazy_load_members: true } },
    presence: { types: [] },
  }),
);
/** The simulated servers are to be warm: what they take is in the way of whoever is measured. */
const BARE_JOINS = values.full ? 3 : 30;

let running: ChildProcess | undefined;
process.on('exit', () => running?.kill());

for (let i = 0; i < Number(values.rooms); i++) {
  const { resident, roomId } = await startResident(Number(values.port) + i * Number(values.servers));
  try {
    console.log(JSON.stringify({ room: i + 1, ...(await measure(resident, roomId)) }));
  } finally {
    resident.kill('SIGTERM');
  }
}

async function startResident(port: number): Promise<{ resident: ChildProcess; roomId: string }> {
  const { servers, full } = values;
  const args = ['--members', values.members, '--servers', servers, '--port', String(port)];
  const script = join(import.meta.dirname, 'serve.ts');
  const child = spawn(process.execPath, [script, ...args, ...(full ? ['--full'] : [])], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  running = child;
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  child.once('message', (roomId) => resolve(String(roomId)));
  child.once('exit', () => reject(new Error('the simulated servers did not start')));
  return { resident: child, roomId: await promise };
}

async function measure(resident: ChildProcess, roomId: string): Promise<object> {
  const via = roomId.slice(roomId.indexOf(':') + 1);
  const bare: number[] = [];
  for (let i = 0; i < BARE_JOINS; i++) bare.push(await bareJoin(roomId, via));
  await served(resident);
  await untilIdle(pids, MAX_UNTIL_IDLE);
  const client = new BenchClient(values.url, Number(values.timeout) * 1000);
  await client.register();
  const first = await client.get(`/sync?timeout=0&filter=${LAZY}`);
  // A client that is there waits already.
  const stats = new ProcessStats(pids);
  const start = performance.now();
  const seconds = () => Number(((performance.now() - start) / 1000).toFixed(3));
  const path = `/join/${encodeURIComponent(roomId)}?server_name=${via}&via=${via}`;
  const joining = client.post(path, {}).then(seconds);
  const seen = await untilSeen(client, roomId, String(first.next_batch), seconds);
  const requests = await served(resident);
  const joined = await joining;
  const complete = await untilComplete(client, roomId, seconds);
  if (values.requests) printRequests(requests, performance.timeOrigin + start);
  return {
    members,
    full: values.full,
    bare_s: Number((bare.slice(-Math.ceil(BARE_JOINS / 3)).sort((a, b) => a - b)[0]! / 1000).toFixed(3)),
    joined_s: joined,
    seen_s: seen,
    complete_s: complete,
    ...stats.stop(),
  };
}

/** What the simulated servers were asked for since this was called last. */
function served(resident: ChildProcess): Promise<Served[]> {
  const { promise, resolve } = Promise.withResolvers<Served[]>();
  resident.once('message', (requests) => resolve(requests as Served[]));
  resident.send('requests');
  return promise;
}

function printRequests(requests: readonly Served[], start: number): void {
  for (const { name, begun, done } of requests)
    console.log(`  ${name.padEnd(30)} ${(begun - start).toFixed(1)} to ${(done - start).toFixed(1)} ms`);
}

async function untilSeen(
  client: BenchClient,
  roomId: string,
  begin: string,
  seconds: () => number,
): Promise<number> {
  for (let since = begin; seconds() < Number(values.timeout); ) {
    const path = `/sync?timeout=5000&since=${since}&filter=${LAZY}`;
    const sync = (await client.get(path)) as { next_batch: string; rooms?: { join?: object } };
    if (sync.rooms?.join && roomId in sync.rooms.join) return seconds();
    since = sync.next_batch;
  }
  throw new Error('the room was not seen in time');
}

/** The list of members waits until it is complete, or is asked for again. */
async function untilComplete(client: BenchClient, roomId: string, seconds: () => number): Promise<number> {
  while (seconds() < Number(values.timeout)) {
    const path = `/rooms/${encodeURIComponent(roomId)}/joined_members`;
    const list = (await client.get(path).catch(() => undefined)) as { joined: object } | undefined;
    if (list && Object.keys(list.joined).length === members + 1) return seconds();
    await delay(100);
  }
  throw new Error('the members were not complete in time');
}
