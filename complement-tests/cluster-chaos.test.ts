import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Random } from './harness/chaos/random.ts';
import type { Client } from './harness/client.ts';
import { Installation, type Process } from './harness/cluster-chaos/installation.ts';
import { type Acknowledged, Listener, Speaker } from './harness/cluster-chaos/people.ts';
import { register, startServer, type TestServer } from './harness/server.ts';
import { redisServer } from './harness/surroundings.ts';

/** See README.md for the long form. */
const SECONDS = Number(process.env.TRELLIS_CLUSTER_CHAOS_SECONDS ?? 20);
const ROOMS = Number(process.env.TRELLIS_CLUSTER_CHAOS_ROOMS ?? 6);
const SEED = process.env.TRELLIS_CLUSTER_CHAOS_SEED ?? randomBytes(4).toString('hex');
const PROCESSES = 4;
const SPEAKERS = 8;
const LISTENERS = 6;
/** Rooms of a process that has died are served by others again within this. */
const HAND_OVER_MS = 5_000;
/** In the short form that is the longest of a few, on a machine with other tests. */
const HAND_OVER_LIMIT_MS = SECONDS >= 300 ? HAND_OVER_MS : 8_000;
/** Whoever waits in a sync is served within this once Redis is there again, empty. */
const SERVED_AGAIN_MS = 5_000;
const REDIS_ROUNDS = SECONDS > 60 ? 10 : 2;
/** After everything is whole again all have to have heard everything within this. */
const HEALED_WITHIN_MS = 60_000;

const skip = redisServer() ? false : 'there is no redis-server here: TRELLIS_REDIS_SERVER names one';

describe(`a server of ${PROCESSES} processes that die (seed ${SEED})`, { skip }, () => {
  const random = new Random(SEED);
  let home: Installation;
  /** Of other names, with which it shares rooms. */
  let others: TestServer[];
  let people: Client[];
  let remote: Client[];
  const rooms: string[] = [];

  before(async () => {
    process.stderr.write(`TRELLIS_CLUSTER_CHAOS_SEED=${SEED}\n`);
    home = await Installation.start(PROCESSES);
    others = await Promise.all(['other-1', 'other-2'].map((name) => startServer({ name })));
    const doors = home.processes.map(({ url }) => url);
    people = [];
    for (let i = 0; i < SPEAKERS; i++) people.push(await register(doors[i % PROCESSES]!, `person${i}`));
    remote = await Promise.all(others.map((server) => server.register('friend')));
    for (let i = 0; i < ROOMS; i++) {
      const room = await people[i % SPEAKERS]!.createRoom();
      for (const person of people) await person.join(room);
      for (const friend of remote) await friend.join(room, home.serverName);
      rooms.push(room);
    }
  });
  after(async () => {
    await home?.close();
    await Promise.all(others?.map((server) => server.close()) ?? []);
  });

  it('shows every acknowledged event to everybody, once and in order', async (t) => {
    const doorRandom = random.for('doors');
    // Clients know nothing of what goes wrong: any door, also of a dead process.
    const anyDoor = () => doorRandom.pick(home.processes).url;
    const listeners = people.slice(0, LISTENERS).map((client) => new Listener(client, anyDoor));
    const speakers = people.map((client) => new Speaker(client, anyDoor));
    const friends = remote.map((client, i) => new Speaker(client, () => others[i]!.url));
    for (const listener of listeners) await listener.sync(0);
    const working = [
      ...listeners.map((listener) => listener.run()),
      ...[...speakers, ...friends].map((speaker, i) => speaker.run(random.for(`speaker ${i}`), rooms, 200)),
    ];
    const faults = new Faults(home, random.for('faults'), t);
    await faults.run(SECONDS);
    for (const speaker of [...speakers, ...friends]) speaker.stopped = true;
    await faults.heal();

    const acknowledged = [...speakers, ...friends].flatMap((speaker) => speaker.acknowledged);
    const complete = () => listeners.every((listener) => missing(listener, acknowledged).length === 0);
    for (const end = Date.now() + HEALED_WITHIN_MS; Date.now() < end && !complete(); ) await sleep(200);
    for (const listener of listeners) listener.stopped = true;
    await Promise.all(working);

    const handOver = faults.deaths.flatMap((at) =>
      acknowledged
        .filter(({ tried, taken }) => tried < at + HAND_OVER_MS && taken > at)
        .map(({ tried, taken }) => taken - Math.max(tried, at)),
    );
    t.diagnostic(
      `${acknowledged.length} events acknowledged, ${faults.count} faults; from a death to the answer: ` +
        `median ${quantile(handOver, 0.5)} ms, p99 ${quantile(handOver, 0.99)} ms, longest ${quantile(handOver, 1)} ms ` +
        `of ${handOver.length}; ended by themselves: ${home.processes.flatMap(({ endings }) => endings).length}`,
    );
    for (const { failures } of [...listeners, ...speakers, ...friends]) assert.deepEqual(failures, []);
    for (const listener of listeners) {
      assert.deepEqual(missing(listener, acknowledged), []);
      assert.deepEqual(repeated(listener), []);
      assert.deepEqual(disordered(listener, acknowledged), []);
    }
    for (const room of rooms)
      for (const listener of listeners)
        assert.deepEqual(listener.shown.get(room), listeners[0]!.shown.get(room), 'all see one order');
    assert.ok(acknowledged.length > SECONDS * 5, `${acknowledged.length} acknowledged`);
    assert.ok(quantile(handOver, 0.99) < HAND_OVER_LIMIT_MS);
  });

  it('loses nothing with Redis, and serves those who wait soon after it is back', async (t) => {
    const anyDoor = () => random.pick(home.processes).url;
    const listeners = people.slice(0, LISTENERS).map((client) => new Listener(client, anyDoor));
    const speakers = people.map((client) => new Speaker(client, anyDoor, 'says meanwhile'));
    for (const listener of listeners) await listener.sync(0);
    const working = [
      ...listeners.map((listener) => listener.run()),
      ...speakers.map((speaker, i) => speaker.run(random.for(`redis ${i}`), rooms, 100)),
    ];
    const probe = new Speaker(people[0]!, anyDoor, 'asks');
    const delays: number[] = [];
    for (let round = 0; round < REDIS_ROUNDS; round++) {
      await sleep(1_000);
      if (round % 2 === 0) await home.redis.flush();
      else {
        await home.redis.kill();
        await sleep(random.between(100, 1_500));
        await home.redis.restart();
      }
      const back = Date.now();
      await probe.say(rooms[round % ROOMS]!);
      const { room, body } = probe.acknowledged.at(-1)!;
      for (const listener of listeners) {
        while (!listener.shown.get(room)?.includes(body) && Date.now() < back + HEALED_WITHIN_MS)
          await sleep(10);
        delays.push(Date.now() - back);
      }
    }
    for (const speaker of speakers) speaker.stopped = true;
    const acknowledged = () => [...speakers, probe].flatMap((speaker) => speaker.acknowledged);
    await sleep(500);
    const complete = () => listeners.every((listener) => missing(listener, acknowledged()).length === 0);
    for (const end = Date.now() + HEALED_WITHIN_MS; Date.now() < end && !complete(); ) await sleep(100);
    for (const listener of listeners) listener.stopped = true;
    await Promise.all(working);
    t.diagnostic(
      `served ${quantile(delays, 0.5)} ms after Redis is back at the median, ${Math.max(...delays)} at the most`,
    );
    for (const { failures } of [...listeners, ...speakers, probe]) assert.deepEqual(failures, []);
    for (const listener of listeners) {
      assert.deepEqual(missing(listener, acknowledged()), []);
      assert.deepEqual(repeated(listener), []);
      for (const { acknowledged: own } of [...speakers, probe])
        assert.deepEqual(disordered(listener, own), []);
    }
    assert.ok(Math.max(...delays) < SERVED_AGAIN_MS, `${delays}`);
  });

  it('is restarted process by process without a failed request', async () => {
    const alive = new Set<Process>(home.processes);
    const doorRandom = random.for('restart doors');
    const door = () => doorRandom.pick([...alive]).url;
    let done = 0;
    const failed: string[] = [];
    let going = true;
    const asking = people.map(async (client, i) => {
      while (going) {
        const url = door();
        try {
          const body = { msgtype: 'm.text', body: `restart ${i} ${done}` };
          const target = `/v3/rooms/${encodeURIComponent(rooms[i % ROOMS]!)}/send/m.room.message/restart-${i}-${done++}`;
          const answer = await fetch(`${url}/_matrix/client${target}`, {
            method: 'PUT',
            body: JSON.stringify(body),
            headers: { authorization: `Bearer ${client.accessToken}`, 'content-type': 'application/json' },
          });
          if (answer.status !== 200) failed.push(`${answer.status} ${await answer.text()}`);
        } catch (error) {
          failed.push(String((error as Error).cause ?? error));
        }
        await sleep(20);
      }
    });
    for (const each of home.processes) {
      // As a load balancer does, which asks whether a process is ready.
      alive.delete(each);
      await sleep(50);
      await each.stop();
      await each.start();
      alive.add(each);
      await sleep(300);
    }
    going = false;
    await Promise.all(asking);
    assert.deepEqual(failed, []);
    assert.ok(done > 100);
  });
});

/** What goes wrong, by chance. */
class Faults {
  /** When processes died or fell asleep, in milliseconds since the start of time. */
  readonly deaths: number[] = [];
  count = 0;
  readonly #home: Installation;
  readonly #random: Random;
  readonly #t: TestContext;
  readonly #ends: Array<Promise<void>> = [];
  #failedOver = false;
  #begun = 0;

  constructor(home: Installation, random: Random, t: TestContext) {
    this.#home = home;
    this.#random = random;
    this.#t = t;
  }

  async run(seconds: number): Promise<void> {
    this.#begun = Date.now();
    const end = this.#begun + seconds * 1000;
    const every = Math.min(8_000, (seconds * 1000) / 5);
    while (Date.now() < end) {
      await sleep(this.#random.between(0.5, 1.5) * every);
      if (Date.now() > end) break;
      await this.#one(Date.now() > this.#begun + seconds * 500);
    }
  }

  async heal(): Promise<void> {
    await Promise.all(this.#ends);
  }

  async #one(late: boolean): Promise<void> {
    this.count++;
    if (late && !this.#failedOver) {
      this.#failedOver = true;
      this.#say('the primary of PostgreSQL dies');
      return this.#home.postgres.failOver();
    }
    const well = this.#home.processes.filter(({ trouble }) => trouble === undefined);
    const kind = this.#random.weighted({ kill: 5, pause: 2, redis: 2, stop: 1 });
    if (kind === 'redis') {
      this.#say('Redis dies, and comes back empty');
      await this.#home.redis.kill();
      await sleep(this.#random.between(100, 1_500));
      return this.#home.redis.restart();
    }
    // Half of them stay.
    if (well.length <= this.#home.processes.length / 2) return;
    const process = this.#random.pick(well);
    this.#say(`${process.name}: ${kind}`);
    const lasts = this.#random.between(500, 6_000);
    if (kind !== 'stop') this.deaths.push(Date.now());
    if (kind === 'pause') process.pause();
    else if (kind === 'kill') process.kill();
    const stopped = kind === 'stop' ? process.stop() : Promise.resolve();
    this.#ends.push(
      stopped.then(() => sleep(lasts)).then(() => (kind === 'pause' ? process.resume() : process.start())),
    );
  }

  #say(what: string): void {
    this.#t.diagnostic(`${((Date.now() - this.#begun) / 1000).toFixed(1)} s: ${what}`);
  }
}

function missing(listener: Listener, acknowledged: readonly Acknowledged[]): string[] {
  return acknowledged
    .filter(({ room, body }) => !listener.shown.get(room)?.includes(body))
    .map(({ body }) => body);
}

function repeated(listener: Listener): string[] {
  return [...listener.shown.values()].flatMap((bodies) =>
    bodies.filter((body, i) => bodies.indexOf(body) !== i),
  );
}

/** A person's messages in a room come in the order in which they were sent, each after the one before was taken. */
function disordered(listener: Listener, acknowledged: readonly Acknowledged[]): string[] {
  const wrong: string[] = [];
  const last = new Map<string, number>();
  for (const { room, body, sender } of acknowledged) {
    const at = listener.shown.get(room)!.indexOf(body);
    const before = last.get(`${room} ${sender}`) ?? -1;
    if (at < before) wrong.push(body);
    last.set(`${room} ${sender}`, at);
  }
  return wrong;
}

function quantile(values: readonly number[], q: number): number {
  if (values.length === 0) return 0;
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]!;
}
