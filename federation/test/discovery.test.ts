import assert from 'node:assert/strict';
import type { RequestListener } from 'node:http';
import { type TestContext, test } from 'node:test';
import { Discovery, type SrvRecord } from '../discovery.ts';
import { testFetch, tlsServer } from './peers.ts';

const noSrv = async () => {
  throw Object.assign(new Error('ENOTFOUND'), { code: 'ENOTFOUND' });
};

interface World {
  discovery: Discovery;
  /** Well-known requests so far. */
  asked: () => number;
  advance: (ms: number) => void;
}

async function world(
  t: TestContext,
  wellKnown: RequestListener,
  srv: Record<string, SrvRecord[]> = {},
): Promise<World> {
  let asked = 0;
  let now = Date.now();
  const port = await tlsServer(t, (request, response) => {
    if (request.url === '/.well-known/matrix/server') asked++;
    wellKnown(request, response);
  });
  const discovery = new Discovery({
    fetch: testFetch(t),
    resolveSrv: async (name) => srv[name] ?? noSrv(),
    wellKnownPort: port,
    wellKnownTimeoutMs: 500,
    clock: () => now,
  });
  return {
    discovery,
    asked: () => asked,
    advance: (ms) => {
      now += ms;
    },
  };
}

const answer =
  (server: unknown, headers: Record<string, string> = {}): RequestListener =>
  (_request, response) => {
    response.writeHead(200, headers).end(JSON.stringify({ 'm.server': server }));
  };
const none: RequestListener = (_request, response) => void response.writeHead(404).end();
const srvRecord = (name: string, port: number, priority = 0): SrvRecord => ({
  name,
  port,
  priority,
  weight: 1,
});

test('steps 1 and 2: literals and ports ask nobody', async (t) => {
  const { discovery, asked } = await world(t, none);
  const direct = async (name: string) => (await discovery.resolve(name))[0];
  assert.deepEqual(await direct('1.2.3.4'), { connectHost: '1.2.3.4', port: 8448, hostHeader: '1.2.3.4' });
  assert.deepEqual(await direct('1.2.3.4:1'), { connectHost: '1.2.3.4', port: 1, hostHeader: '1.2.3.4:1' });
  assert.deepEqual(await direct('[::1]'), { connectHost: '::1', port: 8448, hostHeader: '[::1]' });
  assert.deepEqual(await direct('[::1]:5'), { connectHost: '::1', port: 5, hostHeader: '[::1]:5' });
  assert.deepEqual(await direct('host.docker.internal:44'), {
    connectHost: 'host.docker.internal',
    port: 44,
    hostHeader: 'host.docker.internal:44',
  });
  assert.equal(asked(), 0);
  for (const name of ['', 'a b', 'a/b', '1.2.3', 'a:0', 'a:99999', '[zz]', 'user@host', 'x'.repeat(300)])
    await assert.rejects(discovery.resolve(name), /not a server name/, name);
});

test('step 3: the delegate of the well-known', async (t) => {
  const srv = {
    '_matrix-fed._tcp.srv.test': [srvRecord('target.test', 4444)],
    '_matrix._tcp.srv.test': [srvRecord('old.test', 1)],
    '_matrix._tcp.old.test': [srvRecord('target.test', 5555)],
  };
  const cases: Array<[delegate: string, expected: object]> = [
    ['1.2.3.4', { connectHost: '1.2.3.4', port: 8448, hostHeader: '1.2.3.4' }],
    ['d.test:99', { connectHost: 'd.test', port: 99, hostHeader: 'd.test:99' }],
    ['srv.test', { connectHost: 'target.test', port: 4444, hostHeader: 'srv.test' }],
    ['old.test', { connectHost: 'target.test', port: 5555, hostHeader: 'old.test' }],
    ['plain.test', { connectHost: 'plain.test', port: 8448, hostHeader: 'plain.test' }],
  ];
  for (const [delegate, expected] of cases) {
    const { discovery } = await world(t, answer(delegate), srv);
    assert.deepEqual((await discovery.resolve('name.test'))[0], expected, delegate);
  }
});

test('steps 4 to 6: without a usable well-known, SRV records and then port 8448', async (t) => {
  const srv = { '_matrix-fed._tcp.b.test': [srvRecord('late.test', 2, 20), srvRecord('first.test', 1, 10)] };
  const { discovery } = await world(t, none, srv);
  assert.deepEqual(await discovery.resolve('a.test'), [
    { connectHost: 'a.test', port: 8448, hostHeader: 'a.test' },
  ]);
  assert.deepEqual(await discovery.resolve('b.test'), [
    { connectHost: 'first.test', port: 1, hostHeader: 'b.test' },
    { connectHost: 'late.test', port: 2, hostHeader: 'b.test' },
  ]);
});

test('a well-known that is not valid is passed over', async (t) => {
  const bad: RequestListener[] = [
    answer(5),
    answer('not a name'),
    answer(undefined),
    (_request, response) => void response.end('[1'),
    (_request, response) => void response.end('null'),
    // Larger than 50 KB, with and without saying so.
    (_request, response) =>
      void response.end(JSON.stringify({ 'm.server': 'x.test:1', pad: 'x'.repeat(60_000) })),
    (_request, response) => {
      response.write(`{"m.server":"x.test:1","pad":"`);
      const timer = setInterval(() => response.write('x'.repeat(10_000)), 5);
      response.on('close', () => clearInterval(timer));
    },
    // Never answers; answers drop by drop; redirects for ever; redirects to plain HTTP and to an address inside.
    () => {},
    (_request, response) => {
      const timer = setInterval(() => response.write(' '), 50);
      response.on('close', () => clearInterval(timer));
    },
    (request, response) =>
      void response.writeHead(302, { location: `${request.url}?${Math.random()}` }).end(),
    (_request, response) => void response.writeHead(302, { location: 'http://localhost:1/' }).end(),
    (_request, response) =>
      void response.writeHead(302, { location: 'https://169.254.169.254/latest' }).end(),
  ];
  for (const [index, handler] of bad.entries()) {
    const { discovery } = await world(t, handler);
    const started = performance.now();
    const [found] = await discovery.resolve('name.test');
    assert.deepEqual(
      found,
      { connectHost: 'name.test', port: 8448, hostHeader: 'name.test' },
      `case ${index}`,
    );
    assert.ok(performance.now() - started < 2_000, `case ${index} is slow`);
  }
});

test('redirects of the well-known are followed', async (t) => {
  const { discovery } = await world(t, (request, response) => {
    if (request.url === '/moved') return answer('d.test:7')(request, response);
    response.writeHead(302, { location: '/moved' }).end();
  });
  assert.equal((await discovery.resolve('name.test'))[0]!.hostHeader, 'd.test:7');
});

test('answers are kept as long as their headers say, within bounds', async (t) => {
  const hour = 3_600_000;
  const lifetimes: Array<[headers: Record<string, string>, kept: number]> = [
    [{}, 24 * hour],
    [{ 'cache-control': 'public, max-age=7200' }, 2 * hour],
    [{ 'cache-control': 'max-age=99999999' }, 48 * hour],
    [{ 'cache-control': 'no-store' }, hour / 12],
    [{ 'cache-control': 'max-age=0' }, hour / 12],
  ];
  for (const [headers, kept] of lifetimes) {
    const { discovery, asked, advance } = await world(t, answer('d.test:7', headers));
    await Promise.all([discovery.resolve('n.test'), discovery.resolve('n.test')]);
    advance(kept - 1000);
    await discovery.resolve('n.test');
    assert.equal(asked(), 1, JSON.stringify(headers));
    advance(2000);
    await discovery.resolve('n.test');
    assert.equal(asked(), 2, JSON.stringify(headers));
  }
});

test('errors are kept too, longer at each failure, up to an hour', async (t) => {
  const { discovery, asked, advance } = await world(t, none);
  await discovery.resolve('n.test');
  await discovery.resolve('n.test');
  assert.equal(asked(), 1);
  advance(61_000);
  await discovery.resolve('n.test');
  assert.equal(asked(), 2);
  advance(61_000);
  await discovery.resolve('n.test');
  assert.equal(asked(), 2);
  for (let i = 0; i < 10; i++) {
    advance(3_600_001);
    await discovery.resolve('n.test');
  }
  assert.equal(asked(), 12);
});
