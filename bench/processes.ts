/**
 * What a message costs that is sent and delivered, with one process and with several, at the same rate: rooms of a few
 * people who all wait in a sync. Several processes are measured twice: as they share out connections by themselves, and with
 * each connection to the next. All servers run at the same time and are asked in turn; CPU time is theirs and that of their
 * databases.
 *
 *   node bench/processes.ts [WORKERS] [MESSAGES A SECOND] [SECONDS] [ROOMS] [MEMBERS]
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Agent, request } from 'undici';

const [workers = 4, rate = 100, seconds = 10, rooms = 20, members = 10] = process.argv.slice(2).map(Number);
const ROOT = new URL('..', import.meta.url).pathname;
const ROUNDS = 3;
/** Rounds before that: code gets warm, and connections come to where they are to be. */
const WARM_UP = 2;
/** Ticks of /proc are 10 ms. */
const TICK_MS = 10;

interface Person {
  readonly token: string;
  since: string;
}

interface JoinedRoom {
  readonly timeline?: { readonly events?: ReadonlyArray<{ readonly type: string }> };
}

class Server {
  readonly name: string;
  readonly #folder = mkdtempSync(join(tmpdir(), 'trellis-bench-'));
  readonly #port: number;
  readonly #child: ChildProcess;
  readonly #agent = new Agent({ connections: 1000, keepAliveTimeout: 60_000 });
  readonly rooms: Array<{ id: string; people: Person[] }> = [];
  delivered = 0;
  sent = 0;
  #stopped = false;
  readonly #waiting: Promise<void>[] = [];

  constructor(name: string, port: number, settings: string) {
    this.name = name;
    this.#port = port;
    const config = join(this.#folder, 'config.yaml');
    writeFileSync(
      config,
      `data_dir: ${join(this.#folder, 'data')}\nserver_name: bench\nhttp: {port: ${port}}\nregistration: {open: true}\n` +
        `rate_limits: {enabled: false}\npasswords: {memory_kib: 64, passes: 1}\npresence: {enabled: false}\n` +
        `log: {level: warn}\n${settings}`,
    );
    this.#child = spawn(process.execPath, [join(ROOT, 'homeserver/main.ts'), '--config', config], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  }

  // biome-ignore lint/suspicious/noExplicitAny: answers are looked into, and a wrong one ends the measurement
  async ask(method: 'GET' | 'PUT' | 'POST', path: string, token?: string, body?: object): Promise<any> {
    const answer = await request(`http://127.0.0.1:${this.#port}/_matrix/client/v3${path}`, {
      method,
      dispatcher: this.#agent,
      headers: { ...(token && { authorization: `Bearer ${token}` }), 'content-type': 'application/json' },
      ...(body && { body: JSON.stringify(body) }),
    });
    const json = (await answer.body.json()) as object;
    if (answer.statusCode !== 200)
      throw new Error(`${method} ${path}: ${answer.statusCode} ${JSON.stringify(json)}`);
    return json;
  }

  async setUp(): Promise<void> {
    for (let i = 0; i < 300; i++) {
      const up = await request(`http://127.0.0.1:${this.#port}/_matrix/client/versions`).catch(
        () => undefined,
      );
      await up?.body.dump();
      if (up?.statusCode === 200) break;
      await sleep(100);
    }
    for (let r = 0; r < rooms; r++) {
      const people: Person[] = [];
      for (let m = 0; m < members; m++) {
        const auth = { type: 'm.login.dummy' };
        const body = { username: `u${r}-${m}`, password: 'correct horse', auth };
        people.push({
          token: (await this.ask('POST', '/register', undefined, body)).access_token,
          since: '',
        });
      }
      const { room_id: id } = await this.ask('POST', '/createRoom', people[0]!.token, {
        preset: 'public_chat',
      });
      for (const { token } of people.slice(1))
        await this.ask('POST', `/join/${encodeURIComponent(id)}`, token, {});
      this.rooms.push({ id, people });
    }
    for (const { people } of this.rooms)
      for (const person of people) {
        person.since = (await this.ask('GET', '/sync?timeout=0', person.token)).next_batch;
        this.#waiting.push(this.#wait(person));
      }
  }

  async #wait(person: Person): Promise<void> {
    while (!this.#stopped) {
      const answer = await this.ask('GET', `/sync?timeout=30000&since=${person.since}`, person.token).catch(
        () => undefined,
      );
      if (!answer) continue;
      person.since = answer.next_batch;
      for (const room of Object.values<JoinedRoom>(answer.rooms?.join ?? {}))
        for (const { type } of room.timeline?.events ?? []) if (type === 'm.room.message') this.delivered++;
    }
  }

  async run(): Promise<{ cpuMs: number; sent: number; delivered: number; latency: number }> {
    const before = { cpu: this.#cpu(), sent: this.sent, delivered: this.delivered };
    const end = performance.now() + seconds * 1000;
    const sending: Promise<void>[] = [];
    let latency = 0;
    for (let n = 0; performance.now() < end; n++) {
      const { id, people } = this.rooms[n % rooms]!;
      const begun = performance.now();
      const path = `/rooms/${encodeURIComponent(id)}/send/m.room.message/${this.sent++}`;
      const body = { msgtype: 'm.text', body: 'What a message costs that is sent and delivered. '.repeat(3) };
      sending.push(
        this.ask('PUT', path, people[n % members]!.token, body).then(() => {
          latency += performance.now() - begun;
        }),
      );
      await sleep(Math.max(0, begun + 1000 / rate - performance.now()));
    }
    await Promise.all(sending);
    await sleep(500);
    const sent = this.sent - before.sent;
    return {
      cpuMs: this.#cpu() - before.cpu,
      sent,
      delivered: this.delivered - before.delivered,
      latency: latency / sent,
    };
  }

  /** Of the server, its workers and its database, in milliseconds. */
  #cpu(): number {
    const parents = new Map<number, number>();
    const ticks = new Map<number, number>();
    for (const name of readdirSync('/proc')) {
      if (!/^\d+$/.test(name)) continue;
      try {
        const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
        const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
        parents.set(Number(name), Number(fields[1]));
        ticks.set(Number(name), Number(fields[11]) + Number(fields[12]));
      } catch {
        // Ended meanwhile.
      }
    }
    const postmaster = Number(
      readFileSync(join(this.#folder, 'data/postgres/postmaster.pid'), 'utf8').split('\n')[0],
    );
    const roots = new Set([this.#child.pid!, postmaster]);
    const isOurs = (pid: number | undefined): boolean =>
      pid !== undefined && pid > 1 && (roots.has(pid) || isOurs(parents.get(pid)));
    let sum = 0;
    for (const [pid, count] of ticks) if (isOurs(pid)) sum += count * TICK_MS;
    return sum;
  }

  async close(): Promise<void> {
    this.#stopped = true;
    const ended = new Promise((done) => this.#child.once('exit', done));
    this.#child.kill('SIGTERM');
    await Promise.all(this.#waiting);
    await ended;
    await this.#agent.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

const servers = [
  new Server('one process', 18201, ''),
  new Server(`${workers} processes`, 18202, `workers: ${workers}\n`),
  new Server(`${workers} processes in turn`, 18203, `workers: ${workers}\ncluster: {fill: 0}\n`),
];
await Promise.all(servers.map((server) => server.setUp()));
console.log(`${rate} messages/s in ${rooms} rooms of ${members}, who all wait in a sync`);
const costs = new Map<string, number[]>();
for (let round = 0; round < WARM_UP + ROUNDS; round++)
  for (const server of servers) {
    const { cpuMs, sent, delivered, latency } = await server.run();
    if (round < WARM_UP) continue;
    const cost = (1000 * cpuMs) / sent;
    costs.set(server.name, [...(costs.get(server.name) ?? []), cost]);
    console.log(
      `${server.name}: ${sent} sent, ${delivered} delivered, ${cost.toFixed(0)} µs of CPU a message with its ` +
        `deliveries, answered after ${latency.toFixed(1)} ms`,
    );
  }
const median = ({ name }: Server) => costs.get(name)!.toSorted((a, b) => a - b)[Math.floor(ROUNDS / 2)]!;
const [one, ...others] = servers;
for (const several of others)
  console.log(`${several.name} ÷ ${one!.name}, medians: ${(median(several) / median(one!)).toFixed(2)}`);
for (const server of servers) await server.close();
process.exit(0);
