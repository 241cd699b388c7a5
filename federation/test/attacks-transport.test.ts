import assert from 'node:assert/strict';
import type { lookup } from 'node:dns';
import { once } from 'node:events';
import type { RequestListener } from 'node:http';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import { SigningKey } from '@trellis/protocol/signing.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { Discovery } from '../discovery.ts';
import { AddressGuard } from '../outbound/address-guard.ts';
import { Backoff } from '../outbound/backoff.ts';
import { boundedBody, type Pace } from '../outbound/bounded-body.ts';
import { FederationClient } from '../outbound/client.ts';
import type { FederationError } from '../outbound/federation-error.ts';
import { guardedAgent, guardedConnector } from '../outbound/guarded-dispatcher.ts';
import { collect, createGuardedFetch } from '../outbound/guarded-fetch.ts';
import { testCa, testDispatcher, testFetch, tlsServer } from './peers.ts';

const noDb: Queryable = { query: async () => [] };
const failure = (kind: FederationError['kind']) => ({ name: 'FederationError', kind });

function clientOf(t: TestContext, pace?: Pace) {
  const client = new FederationClient({
    serverName: 'here.test',
    signingKey: SigningKey.generate('test'),
    discovery: new Discovery({
      fetch: () => Promise.reject(new Error('no well-known')),
      resolveSrv: async () => [],
    }),
    connector: guardedConnector(testDispatcher()),
    backoff: new Backoff(noDb),
    userAgent: 'test',
    pace,
  });
  t.after(() => client.close());
  return (port: number, more: object = {}) =>
    client.request({
      method: 'GET',
      destination: `one.test:${port}`,
      path: '/x',
      ignoreBackoff: true,
      ...more,
    });
}

describe('answers that come slowly (slow loris)', () => {
  const pace: Pace = { graceMs: 300, bytesPerSecond: 1000 };

  test('are given up when nothing comes, and when it drips', { timeout: 20_000 }, async (t) => {
    const get = clientOf(t, pace);
    const handlers: RequestListener[] = [
      (_request, response) => {
        response.writeHead(200).flushHeaders();
        response.write('{"a":');
      },
      async (_request, response) => {
        response.writeHead(200).flushHeaders();
        for (let i = 0; i < 1000 && !response.destroyed; i++) {
          response.write(' ');
          await delay(20);
        }
      },
    ];
    for (const handler of handlers) {
      const port = await tlsServer(t, handler);
      const start = performance.now();
      await assert.rejects(get(port), failure('timeout'));
      assert.ok(performance.now() - start < 5_000);
    }
  });

  test('may take their time where much comes, or the answer is long in the making', async (t) => {
    const get = clientOf(t, pace);
    const port = await tlsServer(t, async (_request, response) => {
      await delay(500);
      response.write('{"a":"');
      for (let i = 0; i < 8; i++) {
        response.write('x'.repeat(2000));
        await delay(60);
      }
      response.end('"}');
    });
    assert.equal(((await get(port)) as { a: string }).a.length, 16_000);
  });

  test('are not blamed for a reader that is slow itself', async () => {
    async function* source() {
      for (let i = 0; i < 4; i++) yield Buffer.from('x');
    }
    const body = Object.assign(source(), { destroy() {} }) as never;
    for await (const _ of boundedBody(body, 100, { graceMs: 50, bytesPerSecond: 1000 })) await delay(40);
  });

  test('whose head never ends are given up', { timeout: 20_000 }, async (t) => {
    const get = clientOf(t);
    const port = await tlsServer(t, (request) => {
      const { socket } = request;
      socket.write('HTTP/1.1 200 OK\r\n');
      const timer = setInterval(() => socket.write(`x-${'y'.repeat(4000)}: 1\r\n`), 1);
      socket.on('close', () => clearInterval(timer)).on('error', () => {});
    });
    await assert.rejects(get(port, { timeoutMs: 5_000 }), failure('unreachable'));
  });
});

describe('decompression bombs (CWE-409, continuwuity 0.5.6)', () => {
  test('are not decompressed: nobody was asked to compress', async (t) => {
    const get = clientOf(t);
    let asked: string | undefined;
    const bomb = gzipSync(Buffer.alloc(50 * 1024 * 1024, ' '));
    const port = await tlsServer(t, (request, response) => {
      asked = request.headers['accept-encoding'];
      response.writeHead(200, { 'content-encoding': 'gzip' }).end(bomb);
    });
    const before = process.memoryUsage().rss;
    await assert.rejects(get(port), failure('invalid'));
    assert.equal(asked, 'identity');
    assert.ok(process.memoryUsage().rss - before < 40 * 1024 * 1024);
  });
});

describe('well-known documents', () => {
  test('that are large, also behind a redirect, are cut off (CVE-2021-21274)', async (t) => {
    let sent = 0;
    const endless: RequestListener = async (request, response) => {
      if (request.url!.startsWith('/.well-known')) {
        response.writeHead(302, { location: '/large' }).end();
        return;
      }
      response.writeHead(200);
      while (!response.destroyed && sent < 100 * 1024 * 1024) {
        sent += 64 * 1024;
        if (!response.write(Buffer.alloc(64 * 1024, ' ')))
          await Promise.race([once(response, 'drain'), delay(50)]);
      }
      response.end();
    };
    const port = await tlsServer(t, endless);
    const discovery = new Discovery({
      fetch: testFetch(t),
      resolveSrv: async () => [],
      wellKnownPort: port,
    });
    assert.deepEqual(await discovery.resolve('name.test'), [
      { connectHost: 'name.test', port: 8448, hostHeader: 'name.test' },
    ]);
    assert.ok(sent < 8 * 1024 * 1024, `${sent} bytes`);
  });

  test('lead nowhere inside, by redirect or by name (CVE-2021-21273, CVE-2024-52594)', async (t) => {
    const reached: string[] = [];
    const inside = await tlsServer(t, (request, response) => {
      reached.push(request.url!);
      response.end('{"m.server":"inside.test:1"}');
    });
    // Names of tests are on 127.0.0.1: allowed alone, it is the outside; everything else here is inside.
    const rules = { deny: ['::/0', '0.0.0.0/0'], allow: ['127.0.0.1'] };
    for (const location of [
      `https://127.0.0.2:${inside}/a`,
      `https://[::1]:${inside}/b`,
      `https://[::ffff:127.0.0.2]:${inside}/c`,
      `https://2130706434:${inside}/d`,
      `https://0x7f.0.0.2:${inside}/e`,
      `http://127.0.0.1:${inside}/f`,
      'file:///etc/passwd',
      'data:application/json,{}',
      `https://user:password@127.0.0.1:${inside}/g`,
    ]) {
      const port = await tlsServer(t, (_request, response) => {
        response.writeHead(307, { location }).end();
      });
      const fetch = testFetch(t, rules);
      await assert.rejects(
        fetch(`https://name.test:${port}/.well-known/matrix/server`, {
          maxBytes: 1000,
          timeoutMs: 5_000,
          maxRedirects: 5,
          httpsOnly: true,
        }),
        location,
      );
    }
    assert.deepEqual(reached, []);
  });

  test('are asked at the address that was checked, whatever DNS says next (rebinding)', async (t) => {
    let lookups = 0;
    let reached = 0;
    const port = await tlsServer(t, (_request, response) => {
      reached++;
      response.end('{}');
    });
    // The first answer is a public address, which a check before the connection would have seen.
    const rebinding = ((
      _name: string,
      options: { all?: boolean },
      callback: (...args: unknown[]) => void,
    ) => {
      const address = lookups++ === 0 ? '192.0.2.1' : '127.0.0.1';
      if (options.all) callback(null, [{ address, family: 4 }]);
      else callback(null, address, 4);
    }) as unknown as typeof lookup;
    const guard = new AddressGuard({ deny: ['127.0.0.0/8', '192.0.2.0/24'] });
    const agent = guardedAgent({ guard, lookup: rebinding, extraCa: [testCa], connectTimeoutMs: 500 });
    t.after(() => agent.destroy());
    const fetch = createGuardedFetch(agent, 'test');
    for (let i = 0; i < 3; i++)
      await assert.rejects(fetch(`https://name.test:${port}/`, { maxBytes: 100, timeoutMs: 3_000 }));
    assert.equal(reached, 0);
    assert.ok(lookups >= 3);
  });

  test('are not read slowly for ever either', { timeout: 20_000 }, async (t) => {
    const port = await tlsServer(t, async (_request, response) => {
      response.writeHead(200);
      while (!response.destroyed) {
        response.write(' ');
        await delay(20);
      }
    });
    const fetch = testFetch(t);
    const answer = await fetch(`https://name.test:${port}/`, { maxBytes: 1000, timeoutMs: 1_000 });
    await assert.rejects(collect(answer.body));
  });
});
