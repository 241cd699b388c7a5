import assert from 'node:assert/strict';
import type { RequestListener } from 'node:http';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { alone } from '@trellis/cluster/cluster.ts';
import { SigningKey, verifyKey, verifySignature } from '@trellis/protocol/signing.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { Discovery, type SrvRecord } from '../discovery.ts';
import type { AddressRules } from '../outbound/address-guard.ts';
import { Backoff } from '../outbound/backoff.ts';
import { FederationClient, path } from '../outbound/client.ts';
import type { FederationError } from '../outbound/federation-error.ts';
import { guardedConnector } from '../outbound/guarded-dispatcher.ts';
import { parseXMatrix, signedText } from '../x-matrix.ts';
import { testDispatcher, tlsServer } from './peers.ts';

const key = SigningKey.generate('test');
const noDb: Queryable = { query: async () => [] };

function clientOf(
  t: TestContext,
  options: { rules?: AddressRules; srv?: SrvRecord[]; clock?: () => number; maxRequests?: number } = {},
) {
  const backoff = new Backoff(noDb, options.clock);
  const client = new FederationClient({
    serverName: 'here.test',
    signingKey: key,
    discovery: new Discovery({
      fetch: () => Promise.reject(new Error('no well-known')),
      resolveSrv: async (name) => (name.startsWith('_matrix-fed._tcp.') ? (options.srv ?? []) : []),
    }),
    connector: guardedConnector(testDispatcher(options.rules)),
    backoff,
    userAgent: 'test',
    isAllowed: (name) => name !== 'denied.test',
    maxRequests: options.maxRequests,
  });
  t.after(() => client.close());
  const get = (destination: string, more: object = {}) =>
    client.request({ method: 'GET', destination, path: '/_matrix/x', ...more });
  return { client, backoff, get };
}

const ok: RequestListener = (_request, response) => void response.end('{"fine":true}');
const failure = (kind: FederationError['kind']) => ({ name: 'FederationError', kind });

test('requests are signed over what goes over the wire', async (t) => {
  let seen: { uri: string; body: string; header: string; host: string } | undefined;
  const port = await tlsServer(t, async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    const { authorization = '', host = '' } = request.headers;
    seen = { uri: request.url!, body, header: authorization, host };
    response.end('{"fine":true}');
  });
  const destination = `one.test:${port}`;
  const { client } = clientOf(t);
  const answer = await client.request({
    method: 'PUT',
    destination,
    path: path`/_matrix/a/${'b/c d'}`,
    query: { v: ['1', '2'], empty: undefined },
    body: { z: 1, a: 'ü' },
  });
  assert.deepEqual(answer, { fine: true });
  assert.equal(seen?.uri, '/_matrix/a/b%2Fc%20d?v=1&v=2');
  assert.equal(seen.body, '{"a":"ü","z":1}');
  assert.equal(seen.host, destination);
  const header = parseXMatrix(seen.header)!;
  const text = signedText({
    method: 'PUT',
    uri: seen.uri,
    origin: 'here.test',
    destination,
    content: seen.body,
  });
  assert.equal(header.origin, 'here.test');
  assert.ok(verifySignature(verifyKey(key.publicKeyBase64)!, text, header.sig));
});

test('the certificate must be for the name, and the address allowed', async (t) => {
  const port = await tlsServer(t, ok);
  const { get } = clientOf(t);
  await get(`one.test:${port}`);
  await get(`127.0.0.1:${port}`);
  // On the same address, but not among the certificate's names.
  await assert.rejects(get(`stranger.test:${port}`), failure('unreachable'));
  for (const name of ['one.test', '127.0.0.1'])
    await assert.rejects(clientOf(t, { rules: {} }).get(`${name}:${port}`), failure('unreachable'));
  for (const name of ['here.test', 'no name', 'a/b'])
    await assert.rejects(get(name), failure('invalid'), name);
  await assert.rejects(get('denied.test'), failure('unreachable'));
});

test('servers are tried in the order of their SRV records, under their own name', async (t) => {
  let host: string | undefined;
  const port = await tlsServer(t, (request, response) => {
    host = request.headers.host;
    response.end('{}');
  });
  const record = (priority: number, at: number) => ({ name: 'two.test', port: at, priority, weight: 1 });
  const { get } = clientOf(t, { srv: [record(20, port), record(10, 1)] });
  await get('one.test');
  assert.equal(host, 'one.test');
});

test('answers are bounded in size and time', async (t) => {
  const port = await tlsServer(t, (request, response) => {
    if (request.url === '/slow') return;
    if (request.url === '/drops') {
      const timer = setInterval(() => response.write(' '), 20);
      response.on('close', () => clearInterval(timer));
      return;
    }
    if (request.url === '/endless') {
      const timer = setInterval(() => response.write('x'.repeat(10_000)), 1);
      response.on('close', () => clearInterval(timer));
      return;
    }
    response.end(request.url === '/text' ? 'hello' : '[1]');
  });
  const destination = `one.test:${port}`;
  const { get, backoff } = clientOf(t);
  const asked = (path: string, more: object) => get(destination, { path, ignoreBackoff: true, ...more });
  await assert.rejects(asked('/text', {}), failure('invalid'));
  await assert.rejects(asked('/list', {}), failure('invalid'));
  await assert.rejects(asked('/endless', { maxBytes: 100_000 }), failure('invalid'));
  assert.equal(backoff.get(destination), undefined);
  await assert.rejects(asked('/drops', { timeoutMs: 150 }), failure('timeout'));
  await assert.rejects(asked('/slow', { timeoutMs: 150 }), failure('timeout'));
  assert.equal(backoff.get(destination)?.failures, 1);
});

test('a server that does not answer is left alone for longer each time, up to a day', async (t) => {
  let now = 1_000_000;
  const port = await tlsServer(t, (_request, response) => void response.writeHead(503).end());
  const destination = `one.test:${port}`;
  const { get, backoff } = clientOf(t, { clock: () => now });
  const waits: number[] = [];
  for (let i = 0; i < 40; i++) {
    await assert.rejects(get(destination), { kind: 'http', status: 503 });
    await assert.rejects(get(destination), failure('backoff'));
    waits.push(backoff.waitUntil(destination)! - now);
    now = backoff.waitUntil(destination)! + 1;
  }
  assert.ok(waits[0]! < 1_500 && waits[5]! < 10_000, String(waits));
  assert.ok(waits.at(-1)! > 20 * 3_600_000 && waits.at(-1)! < 27 * 3_600_000, String(waits.at(-1)));
  let recovered = 0;
  backoff.onRecovered(() => recovered++);
  await backoff.reachable(destination);
  await backoff.reachable(destination);
  assert.equal(recovered, 1);
  assert.equal(backoff.get(destination), undefined);
});

test('a server that has recovered does not fail again because older rows are read', async () => {
  const rows = [{ destination: 'one.test', failing_since_ts: 1, failures: 1, retry_after_ts: 1 }];
  let gap = () => {};
  const gates: Promise<void>[] = [];
  const db = {
    // Rows as they are when it is asked, an answer when the gate is open.
    query: async (sql: string) => {
      const found = sql.startsWith('SELECT') ? [...rows] : [];
      await gates.shift();
      return found;
    },
  } as unknown as Queryable;
  const cluster = Object.assign(alone(), {
    onGap(handler: () => void) {
      gap = handler;
    },
  });
  for (const readFirst of [true, false]) {
    const backoff = new Backoff(db, Date.now, cluster);
    await backoff.load();
    assert.ok(backoff.get('one.test'));
    const gate = Promise.withResolvers<void>();
    gates.push(gate.promise);
    if (readFirst) gap();
    const recovering = backoff.reachable('one.test');
    if (!readFirst) gap();
    await sleep(10);
    gate.resolve();
    await recovering;
    await sleep(10);
    assert.equal(backoff.get('one.test'), undefined, readFirst ? 'read first' : 'recovered first');
  }
});

test('requests beyond the limit wait, and no longer than they may', async (t) => {
  let inFlight = 0;
  let most = 0;
  const port = await tlsServer(t, (_request, response) => {
    most = Math.max(most, ++inFlight);
    setTimeout(() => {
      inFlight--;
      response.end('{}');
    }, 50);
  });
  const { get } = clientOf(t, { maxRequests: 2 });
  const destination = `one.test:${port}`;
  const late = assert.rejects(async () => {
    await new Promise((wake) => setTimeout(wake, 5));
    await get(destination, { timeoutMs: 20 });
  }, failure('timeout'));
  await Promise.all([...Array.from({ length: 6 }, () => get(destination)), late]);
  assert.equal(most, 2);
});
