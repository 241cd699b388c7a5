import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { RedisBus } from '../bus-redis.ts';
import type { RedisPlace } from '../redis-place.ts';
import { freePort, redisProgram, startRedis, type TestRedis } from '../testing-redis.ts';
import { closeAll, type Ends, ends, pause, range, until } from './bus-cases.ts';

const skip =
  !process.env.TRELLIS_REDIS_TOPOLOGIES && 'takes half a minute; runs where TRELLIS_REDIS_TOPOLOGIES is set';
const program = skip ? undefined : await redisProgram();
const servers: TestRedis[] = [];

function busesAt(redis: RedisPlace): Promise<Ends[]> {
  const make = (self: string) => new RedisBus({ self, redis, installation: 'i', secret: 's', silence: 3000 });
  return ends({ make, child: () => assert.fail(), death: { why: 'silent', within: 0 } }, 4);
}

/** All send to all, until told to end; then all must have come, once and in order. */
async function traffic(all: readonly Ends[], meanwhile: () => Promise<void>): Promise<void> {
  const ids = all.map(({ bus }) => bus.self);
  for (const { bus } of all)
    for (const other of all) bus.connect({ id: other.bus.self, address: other.bus.address });
  let going = true;
  let sent = 0;
  const sending = (async () => {
    for (; going; sent++, await pause(1)) for (const { bus } of all) bus.send(ids, sent);
  })();
  await meanwhile();
  going = false;
  await sending;
  await until('all', () => all.every(({ ear }) => ear.messages.length >= sent * (all.length - 1)));
  await pause(50);
  for (const { bus, ear } of all)
    for (const id of ids) assert.deepEqual(ear.from(id), id === bus.self ? [] : range(sent));
  assert.deepEqual(
    all.flatMap(({ ear }) => ear.downs),
    [],
  );
}

/** Milliseconds until something comes again from all to all. */
async function back(all: readonly Ends[]): Promise<number> {
  const began = performance.now();
  const counts = () => all.flatMap(({ ear }) => all.map(({ bus }) => ear.from(bus.self).length));
  const before = counts();
  const pairs = all.length * (all.length - 1);
  await until('traffic', () => counts().filter((count, i) => count > before[i]!).length === pairs, 20_000);
  return performance.now() - began;
}

describe('a bus over several Redis servers', { concurrency: false, skip }, () => {
  after(async () => {
    await closeAll();
    await Promise.all(servers.map((server) => server.close()));
  });

  test('one server by TLS, with a password', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'trellis-tls-'));
    const [key, cert] = [join(dir, 'key.pem'), join(dir, 'cert.pem')];
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
    const openssl = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '1', ...subject];
    execFileSync('openssl', [...openssl, '-keyout', key, '-out', cert], { stdio: 'ignore' });
    const port = await freePort();
    const tls = ['--tls-port', String(port), '--tls-cert-file', cert, '--tls-key-file', key];
    const server = await startRedis({ args: [...tls, '--tls-auth-clients', 'no'] });
    servers.push(server);
    await server.cli('config', 'set', 'requirepass', 'a:b@c');
    const url = `rediss://:${encodeURIComponent('a:b@c')}@localhost:${port}`;
    const all = await busesAt({ url, tls: { ca: await readFile(cert) } });
    await traffic(all, async () => void (await back(all)));
    await rm(dir, { recursive: true });
  });

  test('Sentinels name another one when the first dies', async (t) => {
    const first = await startRedis();
    const second = await startRedis({ args: ['--replicaof', `127.0.0.1 ${first.port}`] });
    const sentinel = [
      `sentinel monitor us 127.0.0.1 ${first.port} 2`,
      'sentinel down-after-milliseconds us 500',
      'sentinel failover-timeout us 3000',
    ];
    const sentinels = await Promise.all(range(3).map(() => startRedis({ sentinel })));
    servers.push(first, second, ...sentinels);
    for (let tries = 0; tries < 100; tries++, await pause(100)) {
      const answer = await sentinels[0]!.cli('sentinel', 'ckquorum', 'us').catch(() => '');
      const replicas = await sentinels[0]!.cli('sentinel', 'replicas', 'us').catch(() => '');
      if (answer.startsWith('OK 3') && replicas.includes(String(second.port))) break;
    }
    const all = await busesAt({
      name: 'us',
      sentinels: sentinels.map(({ port }) => ({ host: '127.0.0.1', port })),
    });
    await traffic(all, async () => {
      await back(all);
      await first.kill();
      const ms = await back(all);
      t.diagnostic(`traffic ${Math.round(ms)} ms after the death of the first server`);
      assert.ok((await second.cli('pubsub', 'channels')).includes('trellis:i:'));
      // Moved while both live.
      await first.restart();
      await pause(2500);
      await sentinels[0]!.cli('sentinel', 'failover', 'us');
      await pause(1000);
      const moved = await back(all);
      t.diagnostic(`traffic ${Math.round(moved)} ms after, one second from the order to move`);
    });
  });

  test('a Cluster loses a node', async (t) => {
    const nodes: TestRedis[] = [];
    for (const _ of range(3)) {
      // The port of its own bus is 10,000 higher.
      let port = await freePort();
      while (port > 55_000) port = await freePort();
      const args = ['--cluster-enabled', 'yes', '--cluster-node-timeout', '1000'];
      nodes.push(await startRedis({ port, args }));
    }
    servers.push(...nodes);
    const cli = program!.replace(/redis-server$/, 'redis-cli');
    const addresses = nodes.map(({ port }) => `127.0.0.1:${port}`);
    execFileSync(cli, ['--cluster', 'create', ...addresses, '--cluster-yes'], { stdio: 'ignore' });
    const all = await busesAt({ nodes: nodes.map(({ port }) => ({ host: '127.0.0.1', port })) });
    await traffic(all, async () => {
      await back(all);
      for (const node of nodes) {
        await node.kill();
        const ms = await back(all);
        t.diagnostic(`traffic ${Math.round(ms)} ms after the death of a node`);
        await node.restart();
        await pause(1500);
        await back(all);
      }
    });
  });
});
