import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Redis } from 'ioredis';
import type { BusOptions } from '../bus.ts';
import { RedisBus, type RedisBusOptions } from '../bus-redis.ts';
import { redisProgram, startRedis, type TestRedis } from '../testing-redis.ts';
import {
  busCases,
  closeAll,
  type Ends,
  ends,
  pause,
  range,
  startChild,
  type Transport,
  turn,
  until,
} from './bus-cases.ts';

const program = await redisProgram();
const skip = program
  ? false
  : 'NO REDIS: there is no redis-server in the path, and TRELLIS_REDIS_SERVER names none';
if (skip) console.warn(skip);

let redis: TestRedis;
const options = (self: string, more: Partial<BusOptions> = {}): RedisBusOptions => ({
  self,
  redis: { url: redis.url },
  installation: 'test.example',
  secret: 'between us',
  ...more,
});
const transport: Transport = {
  make: (self, more) => new RedisBus(options(self, more)),
  child: (self, more) => ({ transport: 'redis', options: options(self, more) }),
  death: { why: 'silent', within: 1600 },
};

/** Two that send to each other all the time, until told to end; then all must have come, once and in order. */
async function traffic(a: Ends, b: Ends, meanwhile: () => Promise<void>): Promise<void> {
  let going = true;
  let sent = 0;
  const sending = (async () => {
    for (; going; await pause(1))
      for (let i = 0; i < 10; i++, sent++) {
        a.bus.send(b.bus.self, sent);
        b.bus.send(a.bus.self, sent);
      }
  })();
  await pause(100);
  await meanwhile();
  going = false;
  await sending;
  await until('all', () => [a, b].every(({ ear }) => ear.messages.length >= sent));
  await pause(50);
  assert.deepEqual(a.ear.from(b.bus.self), range(sent));
  assert.deepEqual(b.ear.from(a.bus.self), range(sent));
  assert.deepEqual([...a.ear.downs, ...b.ear.downs], []);
}

async function pair(more?: Partial<BusOptions>): Promise<[Ends, Ends]> {
  const [a, b] = await ends(transport, 2, more);
  a!.bus.connect({ id: b!.bus.self, address: b!.bus.address });
  b!.bus.connect({ id: a!.bus.self, address: a!.bus.address });
  return [a!, b!];
}

/** Milliseconds until something comes again on both sides. */
async function back(a: Ends, b: Ends): Promise<number> {
  const began = performance.now();
  const before = [a, b].map(({ ear }) => ear.messages.length);
  await until('traffic', () => [a, b].every(({ ear }, i) => ear.messages.length > before[i]! + 10));
  return performance.now() - began;
}

describe('a bus over Redis', { concurrency: false, skip }, () => {
  before(async () => {
    redis = await startRedis();
  });
  after(async () => {
    await closeAll();
    await redis?.close();
  });
  busCases(transport);
  after(closeAll);

  test('Redis is killed and comes back empty: nothing is lost or doubled, nobody held for dead', async () => {
    const [a, b] = await pair({ silence: 800 });
    await traffic(a, b, async () => {
      for (const away of [0, 2000, 100]) {
        await redis.kill();
        await pause(away);
        await redis.restart();
        const ms = await back(a, b);
        assert.ok(ms < 2000, `traffic after ${ms} ms`);
      }
    });
  });

  test('Redis is flushed, connections are cut, scripts and clients too', async () => {
    const [a, b] = await pair({ silence: 800 });
    await traffic(a, b, async () => {
      for (const type of ['pubsub', 'normal', 'pubsub']) {
        await redis.cli('flushall');
        await redis.cli('client', 'kill', 'type', type);
        const ms = await back(a, b);
        assert.ok(ms < 1500, `traffic after ${ms} ms`);
      }
    });
  });

  test('Redis does not answer for a while', async () => {
    const [a, b] = await pair({ silence: 800 });
    await traffic(a, b, async () => {
      process.kill(redis.pid, 'SIGSTOP');
      await pause(3000);
      process.kill(redis.pid, 'SIGCONT');
      const ms = await back(a, b);
      assert.ok(ms < 2000, `traffic after ${ms} ms`);
    });
  });

  test('who dies while Redis is away is down once it is back', async () => {
    const [a] = await ends(transport, 1, { silence: 800 });
    const child = await startChild(transport, { silence: 800 });
    a!.bus.connect(child);
    a!.bus.send(child.id, 'ping');
    await until('an answer', () => a!.ear.messages.length > 0);
    await redis.kill();
    child.process.kill('SIGKILL');
    await pause(2000);
    assert.deepEqual(a!.ear.downs, []);
    await redis.restart();
    await until('down', () => a!.ear.downOf(child.id), 3000);
  });

  test('with another secret, nothing is understood', async () => {
    const [a] = await ends(transport, 1, { silence: 600 });
    const [stranger] = await ends(transport, 1, { silence: 600, secret: 'something else' });
    stranger!.bus.connect({ id: a!.bus.self, address: a!.bus.address });
    stranger!.bus.send(a!.bus.self, 'let me in');
    await until('down', () => stranger!.ear.downs.length > 0);
    assert.deepEqual([...a!.ear.messages, ...a!.ear.downs], []);
  });

  test('what others publish is ignored: forged, replayed, changed, led astray', async () => {
    const [a, b] = await pair();
    const [c] = await ends(transport, 1);
    const seen: Buffer[] = [];
    const listener = new Redis(redis.url);
    const attacker = new Redis(redis.url);
    await listener.subscribe(b.bus.address);
    listener.on('messageBuffer', (_channel: Buffer, bytes: Buffer) => seen.push(bytes));
    for (const n of range(50)) {
      a.bus.send(b.bus.self, `hush ${n}`);
      await turn();
    }
    await until('all', () => b.ear.messages.length === 50);
    await pause(100);
    listener.disconnect();
    assert.ok(seen.length > 20);
    for (const bytes of seen) assert.ok(!bytes.includes('hush'), 'is encrypted');
    for (const bytes of seen) {
      const changed = Buffer.from(bytes);
      changed[changed.length - 20]! ^= 1;
      const later = Buffer.from(bytes);
      // The last byte of the counter.
      later[2 + bytes[1]! + 7]! ^= 0x80;
      for (const forged of [
        bytes,
        changed,
        later,
        bytes.subarray(0, 30),
        bytes.subarray(0, 1),
        Buffer.alloc(0),
      ])
        await attacker.publish(b.bus.address, forged);
      // To another one, and back to where it came from.
      for (const other of [c!, a]) await attacker.publish(other.bus.address, bytes);
    }
    a.bus.send(b.bus.self, 'end');
    b.bus.send(a.bus.self, 'end');
    await until('the end', () => b.ear.messages.length >= 51 && a.ear.messages.length >= 1);
    await pause(100);
    assert.deepEqual(b.ear.from(a.bus.self), [...range(50).map((n) => `hush ${n}`), 'end']);
    assert.deepEqual(a.ear.from(b.bus.self), ['end']);
    assert.deepEqual(c!.ear.messages, []);
    assert.deepEqual([...a.ear.downs, ...b.ear.downs, ...c!.ear.downs], []);

    // After both are gone, a newcomer of the same name does not take old ones for new.
    await Promise.all([a, b].map(({ bus }) => bus.close()));
    const again = new RedisBus(options(b.bus.self));
    const heard: unknown[] = [];
    await again.start({
      message: (_from, message) => void heard.push(message),
      down: () => heard.push('down'),
    });
    for (const bytes of seen) await attacker.publish(again.address, bytes);
    await pause(100);
    assert.deepEqual(heard, []);
    await again.close();
    attacker.disconnect();
  });
});
