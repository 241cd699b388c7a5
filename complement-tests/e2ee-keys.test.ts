import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, PASSWORD, startServer, type TestServer } from './harness/server.ts';

const unpadded = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64').replace(/=+$/, '');

interface Signer {
  publicKey: string;
  privateKey: KeyObject;
}

function makeSigner(): Signer {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  return { publicKey: unpadded(publicKey.export({ type: 'spki', format: 'der' }).subarray(-32)), privateKey };
}

/** Enough of canonical JSON for keys in ASCII. */
function canonical(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.keys(value)
    .sort()
    .map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
  return `{${members.join(',')}}`;
}

function signed(object: Json, userId: string, keyId: string, signer: Signer): Json {
  const { signatures = {}, unsigned: _, ...rest } = object;
  const signature = unpadded(sign(null, Buffer.from(canonical(rest)), signer.privateKey));
  return {
    ...object,
    signatures: { ...signatures, [userId]: { ...signatures[userId], [keyId]: signature } },
  };
}

describe('end-to-end encryption keys', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({ name: 'e2ee-keys' });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());

  const deviceKeys = (who: Client, signer: Signer) =>
    signed(
      {
        user_id: who.userId,
        device_id: who.deviceId,
        algorithms: ['m.olm.v1.curve25519-aes-sha2', 'm.megolm.v1.aes-sha2'],
        keys: { [`curve25519:${who.deviceId}`]: 'curve', [`ed25519:${who.deviceId}`]: signer.publicKey },
      },
      who.userId,
      `ed25519:${who.deviceId}`,
      signer,
    );

  it('of a device are uploaded and asked for', async () => {
    const keys = deviceKeys(alice, makeSigner());
    const { one_time_key_counts } = await alice.post('/v3/keys/upload', { device_keys: keys });
    assert.equal(one_time_key_counts.signed_curve25519 ?? 0, 0);
    const { device_keys } = await bob.post('/v3/keys/query', { device_keys: { [alice.userId]: [] } });
    const { unsigned, ...found } = device_keys[alice.userId][alice.deviceId];
    assert.deepEqual(found, keys);
    assert.equal(typeof (unsigned ?? {}), 'object');
    const other = await bob.post('/v3/keys/query', { device_keys: { [alice.userId]: ['OTHER'] } });
    assert.deepEqual(other.device_keys[alice.userId] ?? {}, {});
    const nobody = await bob.post('/v3/keys/query', {
      device_keys: { [`@nobody:${server.serverName}`]: [] },
    });
    assert.deepEqual(nobody.failures ?? {}, {});
  });

  it('are refused under another name', async () => {
    const keys = deviceKeys(alice, makeSigner());
    await refused(bob.post('/v3/keys/upload', { device_keys: keys }), 400);
    await refused(bob.post('/v3/keys/query', { device_keys: [] }), 400);
    await refused(bob.post('/v3/keys/query', { device_keys: { [alice.userId]: 'all' } }), 400);
    await refused(bob.post('/v3/keys/query', { device_keys: { '@line\nbreak:x': 'all' } }), 400);
    await refused(bob.post('/v3/keys/signatures/upload', { '@line\nbreak:x': null }), 400);
  });

  it('for one time are counted, and given to one only', async () => {
    const keys = Object.fromEntries(
      Array.from({ length: 5 }, (_, i) => [`signed_curve25519:K${i}`, { key: `key${i}`, signatures: {} }]),
    );
    const { one_time_key_counts } = await alice.post('/v3/keys/upload', { one_time_keys: keys });
    assert.equal(one_time_key_counts.signed_curve25519, 5);
    assert.equal((await alice.sync()).device_one_time_keys_count.signed_curve25519, 5);
    const claim = () =>
      bob.post('/v3/keys/claim', {
        one_time_keys: { [alice.userId]: { [alice.deviceId]: 'signed_curve25519' } },
      });
    const answers = await Promise.all(Array.from({ length: 8 }, claim));
    const given = answers.flatMap((a) => Object.keys(a.one_time_keys[alice.userId]?.[alice.deviceId] ?? {}));
    assert.equal(given.length, 5);
    assert.equal(new Set(given).size, 5);
    assert.equal((await alice.sync()).device_one_time_keys_count.signed_curve25519 ?? 0, 0);
    // The same key again is fine, another under the same name is not.
    await alice.post('/v3/keys/upload', {
      one_time_keys: { 'signed_curve25519:N': { key: 'a', signatures: {} } },
    });
    await alice.post('/v3/keys/upload', {
      one_time_keys: { 'signed_curve25519:N': { key: 'a', signatures: {} } },
    });
    await refused(
      alice.post('/v3/keys/upload', {
        one_time_keys: { 'signed_curve25519:N': { key: 'b', signatures: {} } },
      }),
      400,
    );
  });

  it('to fall back on are given when the others are used up', async () => {
    const carol = await server.register();
    const fallback = { 'signed_curve25519:F': { key: 'last', fallback: true, signatures: {} } };
    await carol.post('/v3/keys/upload', { fallback_keys: fallback });
    assert.deepEqual((await carol.sync()).device_unused_fallback_key_types, ['signed_curve25519']);
    for (let i = 0; i < 2; i++) {
      const { one_time_keys } = await bob.post('/v3/keys/claim', {
        one_time_keys: { [carol.userId]: { [carol.deviceId]: 'signed_curve25519' } },
      });
      assert.deepEqual(one_time_keys[carol.userId][carol.deviceId], fallback);
    }
    assert.deepEqual((await carol.sync()).device_unused_fallback_key_types, []);
  });

  it('that change are announced to those who share a room', async () => {
    const dora = await server.register('dora');
    const room = await bob.createRoom();
    await bob.syncUntil('now', () => true);
    await dora.join(room);
    await bob.syncUntil('dora in device_lists', (s) => s.device_lists?.changed?.includes(dora.userId));
    const from = bob.since!;
    await dora.post('/v3/keys/upload', { device_keys: deviceKeys(dora, makeSigner()) });
    await bob.syncUntil('dora changed', (s) => s.device_lists?.changed?.includes(dora.userId));
    const changes = await bob.get('/v3/keys/changes', { from, to: bob.since });
    assert.ok(changes.changed.includes(dora.userId));
    await dora.leave(room);
    await bob.syncUntil('dora left', (s) => s.device_lists?.left?.includes(dora.userId));
    const stranger = await server.register();
    await stranger.post('/v3/keys/upload', { device_keys: deviceKeys(stranger, makeSigner()) });
    const sync = await bob.sync({ since: bob.since });
    assert.ok(!sync.device_lists?.changed?.includes(stranger.userId));
  });

  it('go away with their device', async () => {
    const second = await login(server.url, 'alice');
    await second.post('/v3/keys/upload', { device_keys: deviceKeys(second, makeSigner()) });
    await second.post('/v3/logout');
    const { device_keys } = await bob.post('/v3/keys/query', { device_keys: { [alice.userId]: [] } });
    assert.ok(!(second.deviceId in device_keys[alice.userId]));
  });

  describe('for cross-signing', () => {
    const setup = async (name: string) => {
      const who = await server.register(name);
      const device = makeSigner();
      await who.post('/v3/keys/upload', { device_keys: deviceKeys(who, device) });
      const [master, selfSigning, userSigning] = [makeSigner(), makeSigner(), makeSigner()];
      const key = (usage: string, signer: Signer) => ({
        user_id: who.userId,
        usage: [usage],
        keys: { [`ed25519:${signer.publicKey}`]: signer.publicKey },
      });
      const sub = (usage: string, signer: Signer) =>
        signed(key(usage, signer), who.userId, `ed25519:${master.publicKey}`, master);
      const keys = {
        master_key: key('master', master),
        self_signing_key: sub('self_signing', selfSigning),
        user_signing_key: sub('user_signing', userSigning),
      };
      return { who, device, master, selfSigning, userSigning, keys };
    };
    const auth = (who: Client) => ({
      type: 'm.login.password',
      identifier: { type: 'm.id.user', user: who.userId },
      password: PASSWORD,
    });

    it('are uploaded once without, then with the password', async () => {
      const { who, keys } = await setup('erin');
      await who.post('/v3/keys/device_signing/upload', keys);
      const { master_keys, self_signing_keys, user_signing_keys } = await who.post('/v3/keys/query', {
        device_keys: { [who.userId]: [] },
      });
      assert.deepEqual(Object.keys(master_keys[who.userId].keys), Object.keys(keys.master_key.keys));
      assert.ok(self_signing_keys[who.userId] && user_signing_keys[who.userId]);
      const seenByBob = await bob.post('/v3/keys/query', { device_keys: { [who.userId]: [] } });
      assert.ok(seenByBob.master_keys[who.userId] && seenByBob.self_signing_keys[who.userId]);
      assert.ok(!seenByBob.user_signing_keys?.[who.userId], 'nobody else sees the user-signing key');
      // The same keys again change nothing; others need the password.
      await who.post('/v3/keys/device_signing/upload', keys);
      const { keys: others } = { keys: (await setup('erin2')).keys };
      const foreign = JSON.parse(JSON.stringify(others).replaceAll('@erin2:', '@erin:'));
      const body = { master_key: foreign.master_key };
      const asked = await who.request('POST', '/_matrix/client/v3/keys/device_signing/upload', { body });
      assert.equal(asked.status, 401);
      assert.ok(asked.body.flows);
      const done = await who.request('POST', '/_matrix/client/v3/keys/device_signing/upload', {
        body: { ...body, auth: { ...auth(who), session: asked.body.session } },
      });
      assert.equal(done.status, 200, JSON.stringify(done.body));
    });

    it('sign devices and users', async () => {
      const frank = await setup('frank');
      await frank.who.post('/v3/keys/device_signing/upload', frank.keys);
      const ssk = `ed25519:${frank.selfSigning.publicKey}`;
      const device = signed(deviceKeys(frank.who, frank.device), frank.who.userId, ssk, frank.selfSigning);
      const { failures } = await frank.who.post('/v3/keys/signatures/upload', {
        [frank.who.userId]: { [frank.who.deviceId]: device },
      });
      assert.deepEqual(failures ?? {}, {});
      const { device_keys } = await bob.post('/v3/keys/query', { device_keys: { [frank.who.userId]: [] } });
      assert.ok(device_keys[frank.who.userId][frank.who.deviceId].signatures[frank.who.userId][ssk]);

      const grace = await setup('grace');
      await grace.who.post('/v3/keys/device_signing/upload', grace.keys);
      const usk = `ed25519:${frank.userSigning.publicKey}`;
      const vouched = signed(grace.keys.master_key, frank.who.userId, usk, frank.userSigning);
      const upload = await frank.who.post('/v3/keys/signatures/upload', {
        [grace.who.userId]: { [grace.master.publicKey]: vouched },
      });
      assert.deepEqual(upload.failures ?? {}, {});
      const asked = (who: Client) => who.post('/v3/keys/query', { device_keys: { [grace.who.userId]: [] } });
      const own = (await asked(frank.who)).master_keys[grace.who.userId];
      assert.ok(own.signatures[frank.who.userId][usk]);
      // Only the one who made a signature on another user sees it.
      assert.ok(!(await asked(bob)).master_keys[grace.who.userId].signatures?.[frank.who.userId]);
    });

    it('make failures of signatures that are wrong', async () => {
      const heidi = await setup('heidi');
      await heidi.who.post('/v3/keys/device_signing/upload', heidi.keys);
      const forged = signed(
        deviceKeys(heidi.who, heidi.device),
        heidi.who.userId,
        `ed25519:${heidi.selfSigning.publicKey}`,
        makeSigner(),
      );
      const { failures } = await heidi.who.post('/v3/keys/signatures/upload', {
        [heidi.who.userId]: { [heidi.who.deviceId]: forged },
      });
      assert.ok(failures[heidi.who.userId][heidi.who.deviceId].errcode);
    });
  });

  describe('in a backup', () => {
    const info = {
      algorithm: 'm.megolm_backup.v1.curve25519-aes-sha2',
      auth_data: { public_key: 'abcdefg', signatures: {} },
    };
    const session = (first_message_index: number, forwarded_count = 0, is_verified = false) => ({
      first_message_index,
      forwarded_count,
      is_verified,
      session_data: { ciphertext: 'c', mac: 'm', ephemeral: 'e' },
    });

    it('have versions', async () => {
      const ivan = await server.register('ivan');
      await refused(ivan.get('/v3/room_keys/version'), 404, 'M_NOT_FOUND');
      const { version } = await ivan.post('/v3/room_keys/version', info);
      const latest = await ivan.get('/v3/room_keys/version');
      assert.deepEqual(
        [latest.version, latest.algorithm, latest.auth_data, latest.count],
        [version, info.algorithm, info.auth_data, 0],
      );
      const changed = { ...info, auth_data: { ...info.auth_data, signatures: { x: {} } } };
      await ivan.put(path`/v3/room_keys/version/${version}`, changed);
      assert.deepEqual((await ivan.get(path`/v3/room_keys/version/${version}`)).auth_data, changed.auth_data);
      await refused(ivan.put(path`/v3/room_keys/version/${version}`, { ...info, algorithm: 'other' }), 400);
      const { version: second } = await ivan.post('/v3/room_keys/version', info);
      assert.notEqual(second, version);
      const stale = await ivan.request('PUT', '/_matrix/client/v3/room_keys/keys', {
        query: { version },
        body: { rooms: {} },
      });
      assert.deepEqual([stale.status, stale.body.errcode], [403, 'M_WRONG_ROOM_KEYS_VERSION']);
      assert.equal(stale.body.current_version, second);
      await ivan.delete(path`/v3/room_keys/version/${second}`);
      assert.equal((await ivan.get('/v3/room_keys/version')).version, version);
    });

    it('are kept by room and session, the better one of two', async () => {
      const judy = await server.register('judy');
      const { version } = await judy.post('/v3/room_keys/version', info);
      const query = { version };
      const target = path`/v3/room_keys/keys/${'!room:x'}/${'session/1'}`;
      const put = (data: Json) => judy.api('PUT', target, data, { query });
      const first = await put(session(10));
      assert.equal(first.count, 1);
      await put(session(20)); // worse: starts later
      assert.equal((await judy.get(target, query)).first_message_index, 10);
      const better = await put(session(10, 0, true));
      assert.equal((await judy.get(target, query)).is_verified, true);
      assert.notEqual(better.etag, first.etag);
      await judy.api(
        'PUT',
        '/v3/room_keys/keys',
        {
          rooms: {
            '!room:x': { sessions: { two: session(0) } },
            '!b:x': { sessions: { three: session(1) } },
          },
        },
        { query },
      );
      const all = await judy.get('/v3/room_keys/keys', query);
      assert.deepEqual(Object.keys(all.rooms['!room:x'].sessions).sort(), ['session/1', 'two']);
      assert.equal((await judy.get('/v3/room_keys/version')).count, 3);
      await judy.api('DELETE', path`/v3/room_keys/keys/${'!room:x'}`, undefined, { query });
      assert.deepEqual((await judy.get(path`/v3/room_keys/keys/${'!room:x'}`, query)).sessions, {});
      await refused(judy.get(target, query), 404, 'M_NOT_FOUND');
      const room = { sessions: { one: session(0), two: session(1) } };
      await judy.api('PUT', path`/v3/room_keys/keys/${'!room:x'}`, room, { query });
      const one = path`/v3/room_keys/keys/${'!room:x'}/${'one'}`;
      assert.equal((await judy.api('DELETE', one, undefined, { query })).count, 2);
      await refused(judy.get(one, query), 404, 'M_NOT_FOUND');
      assert.equal((await judy.api('DELETE', '/v3/room_keys/keys', undefined, { query })).count, 0);
      const bobs = await bob.request('GET', '/_matrix/client/v3/room_keys/keys', { query });
      assert.equal(bobs.status, 404);
    });
  });
});
