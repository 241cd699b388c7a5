import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';

/**
 * Joins a homeserver to a large room that simulated servers hand out, and prints when a client sees it, when the server
 * has all its members, and how much memory that took. See README.md beside this folder.
 */
const { values } = parseArgs({
  options: {
    url: { type: 'string', default: 'http://127.0.0.1:8008' },
    members: { type: 'string', default: '10000' },
    servers: { type: 'string', default: '10' },
    port: { type: 'string', default: '18600' },
    /** Processes of the homeserver, without those of its database. */
    pids: { type: 'string', default: '' },
    full: { type: 'boolean', default: false },
    timeout: { type: 'string', default: '900' },
  },
});
const members = Number(values.members);
const SAMPLE_MS = 50;
const LAZY = JSON.stringify({
  room: { timeline: { limit: 1 }, state: { lazy_load_members: true } },
  presence: { types: [] },
});

const { resident, roomId } = await startResident();
try {
  console.log(JSON.stringify(await measure()));
} finally {
  resident.kill('SIGTERM');
}

async function startResident(): Promise<{ resident: ChildProcess; roomId: string }> {
  const { servers, port, full } = values;
  const args = ['--members', values.members, '--servers', servers, '--port', port];
  const script = join(import.meta.dirname, 'serve.ts');
  const child = spawn(process.execPath, [script, ...args, ...(full ? ['--full'] : [])], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  process.on('exit', () => child.kill());
  for await (const line of child.stdout) return { resident: child, roomId: String(line).trim() };
  throw new Error('the simulated servers did not start');
}

async function measure(): Promise<object> {
  const token = await register();
  const first = await get(token, `/sync?timeout=0&filter=${encodeURIComponent(LAZY)}`);
  const memory = watchMemory(values.pids.split(',').filter(Boolean).map(Number));
  const start = performance.now();
  const seconds = () => Number(((performance.now() - start) / 1000).toFixed(2));
  const cpuBefore = memory.cpuSeconds();
  const via = roomId.slice(roomId.indexOf(':') + 1);
  const joining = call(
    'POST',
    token,
    `/join/${encodeURIComponent(roomId)}?server_name=${via}&via=${via}`,
    {},
  ).then(seconds);
  const seen = await untilSeen(token, String(first.next_batch), seconds);
  const joined = await joining;
  const complete = await untilComplete(token, seconds);
  return {
    members,
    full: values.full,
    joined_s: joined,
    seen_s: seen,
    complete_s: complete,
    cpu_s: Number((memory.cpuSeconds() - cpuBefore).toFixed(2)),
    ...memory.stop(),
  };
}

async function untilSeen(token: string, begin: string, seconds: () => number): Promise<number> {
  for (let since = begin; seconds() < Number(values.timeout); ) {
    const path = `/sync?timeout=5000&since=${since}&filter=${encodeURIComponent(LAZY)}`;
    const sync = (await get(token, path)) as { next_batch: string; rooms?: { join?: object } };
    if (sync.rooms?.join && roomId in sync.rooms.join) return seconds();
    since = sync.next_batch;
  }
  throw new Error('the room was not seen in time');
}

/** The list of members waits until it is complete, or is asked for again. */
async function untilComplete(token: string, seconds: () => number): Promise<number> {
  while (seconds() < Number(values.timeout)) {
    const path = `/rooms/${encodeURIComponent(roomId)}/joined_members`;
    const list = (await get(token, path).catch(() => undefined)) as { joined: object } | undefined;
    if (list && Object.keys(list.joined).length === members + 1) return seconds();
    await delay(100);
  }
  throw new Error('the members were not complete in time');
}

async function register(): Promise<string> {
  const body = {
    username: `bench${randomBytes(4).toString('hex')}`,
    password: 'bench-password-1',
    auth: { type: 'm.login.dummy' },
  };
  const { access_token: token } = await call('POST', undefined, '/register', body);
  return String(token);
}

function get(token: string, path: string): Promise<Record<string, unknown>> {
  return call('GET', token, path);
}

async function call(
  method: string,
  token: string | undefined,
  path: string,
  body?: object,
): Promise<Record<string, unknown>> {
  const response = await fetch(`${values.url}/_matrix/client/v3${path}`, {
    method,
    headers: { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) },
    ...(body ? { body: JSON.stringify(body) } : {}),
    signal: AbortSignal.timeout(Number(values.timeout) * 1000),
  });
  const answer = (await response.json()) as Record<string, unknown>;
  if (!response.ok) throw new Error(`${path}: ${response.status} ${JSON.stringify(answer)}`);
  return answer;
}

/** Follows the resident memory of processes. */
function watchMemory(pids: readonly number[]) {
  const before = residentMb(pids);
  let peak = before;
  const timer = setInterval(() => {
    peak = Math.max(peak, residentMb(pids));
  }, SAMPLE_MS);
  return {
    cpuSeconds: () => pids.reduce((sum, pid) => sum + cpuOf(pid), 0),
    stop() {
      clearInterval(timer);
      return { rss_before_mb: Math.round(before), rss_peak_mb: Math.round(peak) };
    },
  };
}

function residentMb(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + Number(/VmRSS:\s+(\d+)/.exec(statusOf(pid))?.[1] ?? 0) / 1024, 0);
}

function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, 'utf8');
  } catch {
    return '';
  }
}

function cpuOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
