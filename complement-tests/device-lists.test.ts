import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, startServer, type TestServer } from './harness/server.ts';

describe('device lists between two servers', () => {
  let one: TestServer;
  let two: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    [one, two] = await Promise.all([startServer({ name: 'lists-one' }), startServer({ name: 'lists-two' })]);
  });
  after(() => Promise.all([one?.close(), two?.close()]));
  /** Two users who share nothing yet. */
  const strangers = async () => {
    alice = await one.register();
    bob = await two.register();
  };
  const join = async (room: string) => {
    await bob.join(room, one.serverName);
    await alice.seesMember(room, bob.userId, 'join');
  };
  const upload = async (who: Client): Promise<string> => {
    const key = randomBytes(32).toString('base64').replace(/=+$/, '');
    const device_keys = {
      user_id: who.userId,
      device_id: who.deviceId,
      algorithms: ['m.megolm.v1.aes-sha2'],
      keys: { [`ed25519:${who.deviceId}`]: key },
      signatures: {},
    };
    await who.post('/v3/keys/upload', { device_keys });
    return key;
  };
  const keysOf = async (who: Client, devices: string[] = []) => {
    const { device_keys, failures } = await alice.post('/v3/keys/query', {
      device_keys: { [who.userId]: devices },
    });
    assert.deepEqual(failures, {});
    return Object.values(device_keys[who.userId] ?? {}).flatMap((device: Json) => Object.values(device.keys));
  };
  const changed = (who: Client) => (sync: Json) => sync.device_lists?.changed?.includes(who.userId);
  /**
   * What bob's server tells alice's when it is new to him may come after the join, and tells of him once more. So she
   * does as clients do: asks each time that she hears of him, until she has the key.
   */
  const hearsOfKey = async (key: string) => {
    do await alice.syncUntil(`bob has the key ${key}`, changed(bob));
    while ((await keysOf(bob)).join() !== key);
  };
  const left = (who: Client) => (sync: Json) => sync.device_lists?.left?.includes(who.userId);

  it('begin with a shared room, and follow every change', async () => {
    await strangers();
    const room = await alice.createRoom({ preset: 'public_chat' });
    let key = await upload(bob);
    assert.deepEqual(await keysOf(bob), [key]);
    await alice.syncUntil('now', () => true);
    await join(room);
    await alice.syncUntil('bob is new', changed(bob));
    assert.deepEqual(await keysOf(bob), [key]);
    key = await upload(bob);
    await hearsOfKey(key);
    const second = await login(two.url, bob.userId);
    const other = await upload(second);
    await eventually('both devices', async () => (await keysOf(bob)).length === 2);
    await second.post('/v3/logout');
    await eventually('one device', async () => (await keysOf(bob)).length === 1);
    assert.deepEqual([await keysOf(bob), await keysOf(bob, [second.deviceId])], [[key], []]);
    assert.notEqual(key, other);
  });

  it('are not kept of those who left, and are new when they return', async () => {
    await strangers();
    await upload(bob);
    const room = await alice.createRoom({ preset: 'public_chat' });
    await join(room);
    await keysOf(bob);
    await alice.syncUntil('now', () => true);
    await bob.leave(room);
    await alice.syncUntil('bob left', left(bob));
    const key = await upload(bob);
    assert.deepEqual(await keysOf(bob), [key]);
    const sync = await alice.sync({ since: alice.since });
    assert.ok(!changed(bob)(sync));
    const later = await upload(bob);
    await bob.join(room, one.serverName);
    await alice.syncUntil('bob is back', changed(bob));
    assert.deepEqual(await keysOf(bob), [later]);
  });

  it('are not kept when the last one here leaves', async () => {
    await strangers();
    await upload(bob);
    const room = await alice.createRoom({ preset: 'public_chat' });
    await join(room);
    await keysOf(bob);
    await alice.syncUntil('now', () => true);
    await alice.leave(room);
    await alice.syncUntil('alice left', left(bob));
    const key = await upload(bob);
    await eventually('the new key', async () => (await keysOf(bob))[0] === key);
  });

  it('make up for what was missed while a server was down', async () => {
    await strangers();
    const room = await alice.createRoom({ preset: 'public_chat' });
    await upload(bob);
    await join(room);
    await keysOf(bob);
    await alice.syncUntil('now', () => true);
    await one.stop();
    await upload(bob);
    const key = await upload(bob);
    await one.start();
    await eventually('the last key', async () => (await keysOf(bob))[0] === key);
  });
});
