import assert from 'node:assert/strict';
import { after, before, describe, type TestContext, test } from 'node:test';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { SigningKey, signJson } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import Fastify from 'fastify';
import { keyRoutes } from '../inbound/keys.ts';
import { KeyFetcher, type TrustedKeyServer } from '../key-fetcher.ts';
import { readKeyResponse } from '../key-response.ts';
import { KeyRing } from '../key-ring.ts';
import { KeyStore } from '../key-store.ts';
import type { FederationClient, FederationRequest } from '../outbound/client.ts';

const HERE = 'here.test';
const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const ownKey = SigningKey.generate('own');

let db: Database;
let close: () => Promise<void>;
before(async () => {
  ({ db, close } = await testDatabase());
});
after(() => close());

/** Publishes what the test says; servers are asked without a network. */
const published = new Map<string, () => JsonObject>();
const notaries = new Map<string, (query: JsonObject) => JsonObject[]>();
const asked: string[] = [];
const client = {
  serverName: HERE,
  async request({ destination, path, body }: FederationRequest) {
    asked.push(destination);
    if (path.includes('/query')) {
      const notary = notaries.get(destination);
      if (!notary) throw new Error('down');
      return { server_keys: notary(body as JsonObject) };
    }
    const answer = published.get(destination);
    if (!answer) throw new Error('down');
    return answer();
  },
} as unknown as FederationClient;

function keysOf(
  server: string,
  keys: readonly SigningKey[],
  more: { validUntil?: number; old?: JsonObject; signer?: SigningKey } = {},
): JsonObject {
  return signJson(
    {
      server_name: server,
      valid_until_ts: more.validUntil ?? Date.now() + DAY,
      verify_keys: Object.fromEntries(keys.map((key) => [key.keyId, { key: key.publicKeyBase64 }])),
      old_verify_keys: more.old ?? {},
    },
    server,
    more.signer ?? keys[0]!,
  );
}

function ring(options: {
  trusted?: readonly TrustedKeyServer[];
  distrusted?: readonly string[];
  clock?: () => number;
}) {
  const store = new KeyStore(db);
  const { clock } = options;
  const fetcher = new KeyFetcher({ client, store, trustedKeyServers: options.trusted, clock });
  const ownKeys = [{ keyId: ownKey.keyId, publicKey: ownKey.publicKeyBase64 }];
  const { distrusted } = options;
  const keyRing = new KeyRing({ serverName: HERE, ownKeys, store, fetcher, distrusted, clock });
  return { keyRing, store, fetcher, ownKeys };
}

let names = 0;
const newName = () => `peer${names++}.test`;

function eventOf(server: string, key: SigningKey, ts = Date.now(), version = '10') {
  return buildEvent(
    {
      room_id: '!r:x',
      sender: `@user:${server}`,
      type: 'm.test',
      content: { n: String(Math.random()) },
      prev_events: [],
      auth_events: [],
      depth: 1,
      origin_server_ts: ts,
    },
    { version: roomVersion(version)!, key, serverName: server },
  );
}

const isTaken = async (keyRing: KeyRing, event: ReturnType<typeof eventOf>) =>
  (await keyRing.verifyEventSignatures([event])).get(event.eventId) === undefined;

describe('signing keys (CVE-2026-24044, GHSA-qwcj-h6m8-vp6q; expiry, reuse)', () => {
  test('that are known to be in the wrong hands count for nothing', async () => {
    const server = newName();
    const key = SigningKey.generate('bad');
    published.set(server, () => keysOf(server, [key]));
    const { keyRing } = ring({ distrusted: [`${key.publicKeyBase64}=`] });
    assert.equal(await isTaken(keyRing, eventOf(server, key)), false);
    await assert.rejects(keyRing.verifyRequest(server, key.keyId, key.sign('x'), 'x'), { status: 401 });
    await assert.rejects(keyRing.verifyJson(server, signJson({ a: 1 }, server, key)));
    assert.equal(await isTaken(ring({}).keyRing, eventOf(server, key)), true);
  });

  test('are valid for 7 days at the most, whatever their server says', async () => {
    const server = newName();
    const key = SigningKey.generate('a');
    published.set(server, () => keysOf(server, [key], { validUntil: Date.now() + 1000 * DAY }));
    const { keyRing } = ring({});
    assert.equal(await isTaken(keyRing, eventOf(server, key, Date.now() + 6 * DAY)), true);
    assert.equal(await isTaken(keyRing, eventOf(server, key, Date.now() + 8 * DAY)), false);
    // Rooms of the first versions do not look at it.
    assert.equal(await isTaken(keyRing, eventOf(server, key, Date.now() + 8 * DAY, '4')), true);
  });

  test('that have expired sign no requests, and no later events', async () => {
    const server = newName();
    const key = SigningKey.generate('a');
    published.set(server, () => keysOf(server, [key], { validUntil: Date.now() - HOUR }));
    const { keyRing } = ring({});
    await assert.rejects(keyRing.verifyRequest(server, key.keyId, key.sign('x'), 'x'), { status: 401 });
    assert.equal(await isTaken(keyRing, eventOf(server, key)), false);
    assert.equal(await isTaken(keyRing, eventOf(server, key, Date.now() - 2 * HOUR)), true);
  });

  test("of one server are not another's, and a key id is not a key", async () => {
    const [one, two] = [newName(), newName()];
    const key = SigningKey.generate('same');
    const other = SigningKey.generate('same');
    published.set(one, () => keysOf(one, [key]));
    published.set(two, () => keysOf(two, [other]));
    const { keyRing } = ring({});
    assert.equal(await isTaken(keyRing, eventOf(two, key)), false);
    assert.equal(await isTaken(keyRing, eventOf(one, other)), false);
    // Signed by another server than the sender's.
    const { pdu, ...view } = eventOf(one, key);
    const signatures = { [two]: (pdu.signatures as JsonObject)[one]! };
    assert.equal(await isTaken(keyRing, { ...view, pdu: { ...pdu, signatures } }), false);
  });

  test('do not come back once they are retired', async () => {
    const server = newName();
    const [old, now] = [SigningKey.generate('old'), SigningKey.generate('new')];
    const retired = Date.now() - HOUR;
    published.set(server, () =>
      keysOf(server, [now], { old: { [old.keyId]: { key: old.publicKeyBase64, expired_ts: retired } } }),
    );
    assert.equal(await isTaken(ring({}).keyRing, eventOf(server, now)), true);
    // Whoever has the old key plays it back as a current one, by themselves or by way of a notary.
    published.set(server, () => keysOf(server, [old]));
    const later = ring({});
    await later.fetcher.fetchDirect(server);
    assert.equal(await isTaken(later.keyRing, eventOf(server, old)), false);
    assert.equal(await isTaken(later.keyRing, eventOf(server, old, retired - 1)), true);
  });

  test('come in answers of any form without harm', () => {
    const server = 'x.test';
    const key = SigningKey.generate('a');
    const right = keysOf(server, [key]);
    for (const [name, values] of Object.entries({
      server_name: [null, 7, 'other', {}],
      valid_until_ts: [null, '1', 1.5, 2 ** 60, -1.5, {}],
      verify_keys: [null, [], {}, { 'ed25519:a': null }, { 'ed25519:a': { key: 7 } }, { x: { key: 'AAAA' } }],
      signatures: [null, [], {}, { [server]: null }, { [server]: { 'ed25519:a': 'x' } }],
      old_verify_keys: [{ 'ed25519:a': { key: key.publicKeyBase64, expired_ts: 'x' } }],
    }))
      for (const value of values)
        assert.throws(
          () => readKeyResponse({ ...right, [name]: value } as JsonObject, server, Date.now()),
          Error,
          `${name}: ${JSON.stringify(value)}`,
        );
    const many = Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`ed25519:k${i}`, { key: 'x' }]));
    assert.throws(() => readKeyResponse({ ...right, verify_keys: many }, server, Date.now()));
  });
});

describe('a notary', () => {
  const notaryKey = SigningKey.generate('notary');
  const trusted = (serverName: string) => [
    { serverName, verifyKeys: new Map([[notaryKey.keyId, notaryKey.publicKeyBase64]]) },
  ];

  test('that lies is not believed over the server itself', async () => {
    const [server, notary] = [newName(), newName()];
    const [right, wrong] = [SigningKey.generate('a'), SigningKey.generate('a')];
    published.set(server, () => keysOf(server, [right]));
    notaries.set(notary, () => [signJson(keysOf(server, [wrong]), notary, notaryKey)]);
    const first = ring({ trusted: trusted(notary) });
    assert.equal(await isTaken(first.keyRing, eventOf(server, right)), true);
    published.delete(server);
    const later = ring({ trusted: trusted(notary) });
    const future = Date.now() + 3 * DAY;
    assert.equal(await isTaken(later.keyRing, eventOf(server, wrong, future)), false);
    assert.equal(await isTaken(later.keyRing, eventOf(server, right)), true);
  });

  test('is believed only where server and notary have signed, and of what was asked', async () => {
    const [server, other, notary] = [newName(), newName(), newName()];
    const key = SigningKey.generate('a');
    const answers: Array<() => JsonObject[]> = [
      () => [keysOf(server, [key])],
      () => [signJson(keysOf(server, [key]), notary, SigningKey.generate('notary'))],
      () => [signJson(keysOf(server, [key], { signer: SigningKey.generate('a') }), notary, notaryKey)],
      () => [signJson(keysOf(other, [key]), notary, notaryKey)],
      () => [null, 7, 'x', [], {}] as unknown as JsonObject[],
    ];
    for (const [i, answer] of answers.entries()) {
      notaries.set(notary, answer);
      const { keyRing } = ring({ trusted: trusted(notary) });
      assert.equal(await isTaken(keyRing, eventOf(server, key)), false, `case ${i}`);
    }
    notaries.set(notary, () => [signJson(keysOf(server, [key]), notary, notaryKey)]);
    assert.equal(await isTaken(ring({ trusted: trusted(notary) }).keyRing, eventOf(server, key)), true);
  });

  test('as which this server works hands no key on for longer than half its life', async (t: TestContext) => {
    const server = newName();
    const key = SigningKey.generate('a');
    published.set(server, () => keysOf(server, [key], { validUntil: Date.now() + 10_000 * DAY }));
    let now = Date.now();
    const { store, fetcher, ownKeys } = ring({ clock: () => now });
    const app = Fastify();
    t.after(() => app.close());
    keyRoutes(app, { serverName: HERE, signingKey: ownKey, ownKeys, store, fetcher, clock: () => now });
    const get = async (query = '') => {
      asked.length = 0;
      const answer = await app.inject(`/_matrix/key/v2/query/${server}${query}`);
      return { asked: asked.length, keys: (answer.json() as { server_keys: unknown[] }).server_keys };
    };
    assert.deepEqual(((await get()).keys as JsonObject[]).length, 1);
    assert.equal((await get()).asked, 0);
    now += 3 * DAY;
    assert.equal((await get()).asked, 0);
    // Its server was asked a moment ago by the real clock.
    now += DAY;
    const again = ring({ clock: () => now });
    const fresh = Fastify();
    t.after(() => fresh.close());
    keyRoutes(fresh, { serverName: HERE, signingKey: ownKey, ...again, clock: () => now });
    asked.length = 0;
    await fresh.inject(`/_matrix/key/v2/query/${server}`);
    assert.deepEqual(asked, [server]);
  });
});
