import assert from 'node:assert/strict';
import { after, before, type TestContext, test } from 'node:test';
import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { SigningKey, signJson, verifyJson } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import Fastify, { type FastifyInstance } from 'fastify';
import { Discovery } from '../discovery.ts';
import { authenticateServers, originOf } from '../inbound/authentication.ts';
import { keyRoutes } from '../inbound/keys.ts';
import { versionRoutes } from '../inbound/version.ts';
import { KeyFetcher, type TrustedKeyServer } from '../key-fetcher.ts';
import { KeyRing } from '../key-ring.ts';
import { KeyStore } from '../key-store.ts';
import { Backoff } from '../outbound/backoff.ts';
import { FederationClient } from '../outbound/client.ts';
import { guardedConnector } from '../outbound/guarded-dispatcher.ts';
import { formatXMatrix, signedText } from '../x-matrix.ts';
import { testDispatcher, tlsServer } from './peers.ts';

const HOUR = 3_600_000;
const HERE = 'here.test';
const ownKey = SigningKey.generate('own');

let db: Database;
let close: () => Promise<void>;
before(async () => {
  ({ db, close } = await testDatabase());
});
after(() => close());

/** A server that publishes keys; each test has its own names. */
class Peer {
  key = SigningKey.generate('a');
  validUntil = Date.now() + HOUR;
  old: Record<string, { key: string; expired_ts: number }> = {};
  asked = 0;
  /** In the place of the right answer. */
  answer: (() => JsonObject | undefined) | undefined;
  name = '';

  async start(t: TestContext, host = 'one.test'): Promise<this> {
    const port = await tlsServer(t, (_request, response) => {
      this.asked++;
      const answer = this.answer ? this.answer() : this.response();
      if (answer) response.end(JSON.stringify(answer));
      else response.writeHead(500).end('{}');
    });
    this.name = `${host}:${port}`;
    return this;
  }

  response(): JsonObject {
    return signJson(
      {
        server_name: this.name,
        valid_until_ts: this.validUntil,
        verify_keys: { [this.key.keyId]: { key: this.key.publicKeyBase64 } },
        old_verify_keys: this.old,
      },
      this.name,
      this.key,
    );
  }
}

async function ring(t: TestContext, trustedKeyServers: TrustedKeyServer[] = []) {
  const client = new FederationClient({
    serverName: HERE,
    signingKey: ownKey,
    discovery: new Discovery({ fetch: () => Promise.reject(new Error('no well-known')) }),
    connector: guardedConnector(testDispatcher()),
    backoff: new Backoff(db),
    userAgent: 'test',
  });
  t.after(() => client.close());
  const store = new KeyStore(db);
  const fetcher = new KeyFetcher({ client, store, trustedKeyServers });
  const ownKeys = [{ keyId: ownKey.keyId, publicKey: ownKey.publicKeyBase64 }];
  const keyRing = new KeyRing({ serverName: HERE, ownKeys, store, fetcher });
  return { keyRing, store, fetcher, ownKeys };
}

function eventOf(peer: { name: string; key: SigningKey }, version = '10', ts = Date.now()) {
  return buildEvent(
    {
      room_id: '!r:x',
      sender: `@user:${peer.name}`,
      type: 'm.test',
      content: { n: String(Math.random()) },
      prev_events: [],
      auth_events: [],
      depth: 1,
      origin_server_ts: ts,
    },
    { version: roomVersion(version)!, key: peer.key, serverName: peer.name },
  );
}

test('events are verified with keys that are asked for once', async (t) => {
  const peer = await new Peer().start(t);
  const { keyRing } = await ring(t);
  const good = [eventOf(peer), eventOf(peer), eventOf({ name: HERE, key: ownKey })];
  const bad = eventOf({ name: peer.name, key: SigningKey.generate('a') });
  const unknown = eventOf({ name: peer.name, key: SigningKey.generate('b') });
  const results = await keyRing.verifyEventSignatures([...good, bad, unknown]);
  for (const { eventId } of good) assert.equal(results.get(eventId), undefined);
  assert.match(results.get(bad.eventId)!.message, /wrong/);
  assert.match(results.get(unknown.eventId)!.message, /no key/);
  assert.equal(peer.asked, 1);
});

test('keys are good for events of their time only, where the room version says so', async (t) => {
  const peer = await new Peer().start(t);
  const oldKey = SigningKey.generate('old');
  const retired = Date.now() - HOUR;
  peer.old = { [oldKey.keyId]: { key: oldKey.publicKeyBase64, expired_ts: retired } };
  const { keyRing } = await ring(t);
  const old = { name: peer.name, key: oldKey };
  const inTime = eventOf(old, '10', retired - 1000);
  const late = eventOf(old, '10', retired + 1000);
  const lateInOldRoom = eventOf(old, '4', retired + 1000);
  const future = eventOf(peer, '10', peer.validUntil + 1000);
  const results = await keyRing.verifyEventSignatures([inTime, late, lateInOldRoom, future]);
  assert.equal(results.get(inTime.eventId), undefined);
  assert.equal(results.get(lateInOldRoom.eventId), undefined);
  assert.ok(results.get(late.eventId) && results.get(future.eventId));
});

test('answers that are not right are not believed', async (t) => {
  const wrong: Array<(peer: Peer) => JsonObject | undefined> = [
    () => undefined,
    (peer) => ({ ...peer.response(), server_name: 'other.test' }),
    (peer) => ({ ...peer.response(), valid_until_ts: peer.validUntil + 1 }),
    (peer) => ({ ...peer.response(), signatures: {} }),
    (peer) => ({ ...peer.response(), verify_keys: {} }),
    () => ({ verify_keys: [] }) as unknown as JsonObject,
  ];
  for (const [index, answer] of wrong.entries()) {
    const peer = await new Peer().start(t);
    peer.answer = () => answer(peer);
    const { keyRing } = await ring(t);
    const event = eventOf(peer);
    assert.ok((await keyRing.verifyEventSignatures([event])).get(event.eventId), `case ${index}`);
  }
});

test('a server that fails is not asked at each event, and a notary helps out', async (t) => {
  const peer = await new Peer().start(t);
  peer.answer = () => undefined;
  const notaryKey = SigningKey.generate('n');
  let notaryAsked = 0;
  const notaryPort = await tlsServer(t, (_request, response) => {
    notaryAsked++;
    const forged = signJson(peer.response(), 'someone.test', notaryKey);
    const right = signJson(peer.response(), notary, notaryKey);
    response.end(JSON.stringify({ server_keys: notaryAsked === 1 ? [forged] : [right] }));
  });
  const notary = `notary.test:${notaryPort}`;
  const verifyKeys = new Map([[notaryKey.keyId, notaryKey.publicKeyBase64]]);
  const { keyRing } = await ring(t, [
    { serverName: 'down.test:1', verifyKeys: new Map() },
    { serverName: notary, verifyKeys },
  ]);
  const isGood = async () => {
    const event = eventOf(peer);
    return !(await keyRing.verifyEventSignatures([event])).get(event.eventId);
  };
  assert.equal(await isGood(), false, 'not signed by the notary');
  assert.equal(await isGood(), false, 'asked a moment ago');
  assert.equal(peer.asked, 1);
  assert.equal(notaryAsked, 1);
  // The memory of recent questions runs by the real clock, so another ring takes the place of a later time.
  const later = await ring(t, [{ serverName: notary, verifyKeys }]);
  const event = eventOf(peer);
  assert.equal((await later.keyRing.verifyEventSignatures([event])).get(event.eventId), undefined);
});

test('keys of this server, and as a notary those of others', async (t) => {
  const peer = await new Peer().start(t);
  const { store, fetcher, ownKeys } = await ring(t);
  const app = Fastify();
  t.after(() => app.close());
  const retired = { keyId: 'ed25519:gone', publicKey: SigningKey.generate('gone').publicKeyBase64 };
  keyRoutes(app, {
    serverName: HERE,
    signingKey: ownKey,
    ownKeys: [...ownKeys, { ...retired, expiredTs: 5 }],
    store,
    fetcher,
  });
  versionRoutes(app, { name: 'Trellis', version: '1' });
  const get = async (url: string) => (await app.inject(url)).json() as JsonObject;
  const text = (await app.inject('/_matrix/key/v2/server')).body;
  const own = JSON.parse(text) as JsonObject;
  assert.equal(text, canonicalJson(own), 'some verify the text as it comes');
  assert.ok(verifyJson(own, HERE, ownKey.keyId, ownKey.publicKeyBase64));
  assert.deepEqual(own.verify_keys, { [ownKey.keyId]: { key: ownKey.publicKeyBase64 } });
  assert.deepEqual(own.old_verify_keys, { 'ed25519:gone': { key: retired.publicKey, expired_ts: 5 } });
  assert.ok((own.valid_until_ts as number) > Date.now());
  assert.deepEqual(await get('/_matrix/federation/v1/version'), {
    server: { name: 'Trellis', version: '1' },
  });

  const answer = await app.inject({
    method: 'POST',
    url: '/_matrix/key/v2/query',
    payload: { server_keys: { [peer.name]: {}, [HERE]: {}, 'not a name': {} } },
  });
  const { server_keys } = answer.json() as { server_keys: JsonObject[] };
  const byName = new Map(server_keys.map((keys) => [keys.server_name, keys]));
  assert.deepEqual(new Set(byName.keys()), new Set([peer.name, HERE]));
  const notarised = byName.get(peer.name)!;
  assert.ok(verifyJson(notarised, HERE, ownKey.keyId, ownKey.publicKeyBase64));
  assert.ok(verifyJson(notarised, peer.name, peer.key.keyId, peer.key.publicKeyBase64));
  // What is good for a while is not asked again; what is to be valid for longer is.
  const one = `/_matrix/key/v2/query/${encodeURIComponent(peer.name)}`;
  assert.equal(((await get(one)).server_keys as unknown[]).length, 1);
  assert.equal(peer.asked, 1);
  assert.equal((await app.inject(`${one}?minimum_valid_until_ts=x`)).statusCode, 400);
});

async function authenticated(t: TestContext, peer: Peer, isAllowed?: (name: string) => boolean) {
  const { keyRing } = await ring(t);
  const contacts: string[] = [];
  const app: FastifyInstance = Fastify();
  t.after(() => app.close());
  app.setErrorHandler((error: Error & { status?: number; errcode?: string }, _request, reply) =>
    reply.code(error.status ?? 500).send({ errcode: error.errcode }),
  );
  authenticateServers(app, {
    serverName: HERE,
    keyRing,
    isAllowed,
    onContact: (name) => contacts.push(name),
  });
  app.put('/_matrix/federation/v1/echo/:id', async (request) => ({ origin: originOf(request) }));
  const send = async (
    changes: {
      origin?: string;
      destination?: string;
      key?: SigningKey;
      signedBody?: JsonObject;
      uri?: string;
    } = {},
  ) => {
    const { origin = peer.name, destination = HERE, key = peer.key } = changes;
    const uri = '/_matrix/federation/v1/echo/a%2Fb?x=%7B';
    const content = JSON.stringify(changes.signedBody ?? { a: 1 });
    const text = signedText({ method: 'PUT', uri: changes.uri ?? uri, origin, destination, content });
    const authorization = formatXMatrix({ origin, destination, key: key.keyId, sig: key.sign(text) });
    return app.inject({ method: 'PUT', url: uri, headers: { authorization }, payload: { a: 1 } });
  };
  return { app, send, contacts };
}

test('requests are taken from the server that signed them', async (t) => {
  const peer = await new Peer().start(t);
  const { app, send, contacts } = await authenticated(t, peer);
  const answer = await send();
  assert.equal(answer.statusCode, 200, answer.body);
  assert.deepEqual(answer.json(), { origin: peer.name });
  assert.deepEqual(contacts, [peer.name]);
  const refused = [
    await app.inject({ method: 'PUT', url: '/_matrix/federation/v1/echo/x', payload: {} }),
    await send({ destination: 'other.test' }),
    await send({ origin: HERE }),
    await send({ origin: 'not a name' }),
    await send({ key: SigningKey.generate('a') }),
    await send({ key: SigningKey.generate('unknown') }),
    await send({ signedBody: { a: 2 } }),
    await send({ uri: '/_matrix/federation/v1/echo/a/b?x=%7B' }),
  ];
  for (const [index, { statusCode, body }] of refused.entries()) {
    assert.equal(statusCode, 401, `case ${index}`);
    assert.deepEqual(JSON.parse(body), { errcode: 'M_UNAUTHORIZED' });
  }
  assert.equal(contacts.length, 1);
});

test('requests of servers that are not allowed are refused unread', async (t) => {
  const peer = await new Peer().start(t);
  const { send } = await authenticated(t, peer, (name) => name !== peer.name);
  assert.equal((await send()).statusCode, 403);
  assert.equal(peer.asked, 0);
});

test('a retired key signs no requests', async (t) => {
  const peer = await new Peer().start(t);
  const oldKey = SigningKey.generate('old');
  peer.old = { [oldKey.keyId]: { key: oldKey.publicKeyBase64, expired_ts: Date.now() - 1000 } };
  const { send } = await authenticated(t, peer);
  assert.equal((await send({ key: oldKey })).statusCode, 401);
  assert.equal((await send()).statusCode, 200);
});

test('keys of a server that is about to send events are fetched before they come', async (t) => {
  const { keyRing } = await ring(t);
  const peer = await new Peer().start(t);
  await keyRing.expect(peer.name);
  assert.equal(peer.asked, 1);
  const event = eventOf(peer);
  assert.equal((await keyRing.verifyEventSignatures([event])).get(event.eventId), undefined);
  assert.equal(peer.asked, 1);
  // Known ones do, whoever asks, until they expire.
  const { keyRing: later } = await ring(t);
  await later.expect(peer.name);
  assert.equal(peer.asked, 1);
  // Both are one request when they come at the same time.
  const other = await new Peer().start(t, 'two.test');
  const early = eventOf(other);
  const [, verified] = await Promise.all([
    keyRing.expect(other.name),
    keyRing.verifyEventSignatures([early]),
  ]);
  assert.equal(verified.get(early.eventId), undefined);
  assert.equal(other.asked, 1);
});
