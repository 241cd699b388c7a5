import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { deviceJson } from '../e2ee/key-answers.ts';
import { Keys } from '../e2ee/keys.ts';
import { RemoteDeviceLists } from '../e2ee/remote-device-lists.ts';
import { deviceKeysOf, e2eeFixture } from './e2ee-fixture.ts';

const THERE = 'there.example';
const BOB = `@bob:${THERE}`;
const VIEWER = '@alice:here.example';

describe('device lists of other servers', () => {
  let database: Awaited<ReturnType<typeof testDatabase>>;
  let fixture: ReturnType<typeof e2eeFixture>;
  let lists: RemoteDeviceLists;
  let keys: Keys;
  /** What the other server has. */
  let remote: { streamId: number; devices: Record<string, string>; down: boolean };
  let shared: boolean;
  let asked: string[];
  /** Runs while the other server's answer is on its way. */
  let meanwhile: (() => Promise<void>) | undefined;

  before(async () => {
    database = await testDatabase();
    fixture = e2eeFixture(database.db);
  });
  after(async () => {
    await fixture.devices.close();
    await database.close();
  });
  beforeEach(async () => {
    await database.db.query('TRUNCATE remote_device_lists, remote_devices');
    remote = { streamId: 10, devices: { ONE: 'a' }, down: false };
    shared = true;
    asked = [];
    meanwhile = undefined;
    const devices = () =>
      Object.entries(remote.devices).map(([id, key]) => ({
        device_id: id,
        keys: deviceKeysOf(BOB, id, key),
      }));
    const servers = {
      userDevices: async () => {
        asked.push('devices');
        if (remote.down) throw new Error('down');
        const answer = { user_id: BOB, stream_id: remote.streamId, devices: devices() };
        const during = meanwhile;
        meanwhile = undefined;
        await during?.();
        return answer;
      },
      queryKeys: async () => {
        asked.push('query');
        if (remote.down) throw new Error('down');
        const found = Object.fromEntries(devices().map((device) => [device.device_id, device.keys]));
        return { device_keys: { [BOB]: found } };
      },
      claimKeys: async () => ({ one_time_keys: {} }),
    };
    const { db, lists: changes, deviceKeys } = fixture;
    lists = new RemoteDeviceLists({ db, lists: changes, servers, sharesRoom: async () => shared });
    keys = new Keys({ db, serverName: 'here.example', deviceKeys, remoteLists: lists, servers });
    fixture.listChanges.length = 0;
  });

  /** The identity keys by device, as a local user sees them. */
  const seen = async () => {
    const { users, failures } = await keys.query(VIEWER, [BOB], 500);
    if (failures.size > 0) return [...failures];
    const devices = Object.entries(deviceJson(users.get(BOB)!)) as Array<[string, JsonObject]>;
    return Object.fromEntries(
      devices.map(([id, device]) => [id, Object.values(device.keys as JsonObject)[0]]),
    );
  };
  const update = (device: string, streamId: number, prev: number[], rest: JsonObject = {}) =>
    lists.deviceListUpdate(THERE, {
      user_id: BOB,
      device_id: device,
      stream_id: streamId,
      prev_id: prev,
      keys: deviceKeysOf(BOB, device, remote.devices[device]),
      ...rest,
    });
  const changes = () => fixture.listChanges.filter(({ userId }) => userId === BOB).length;
  const eventually = async (check: () => Promise<boolean> | boolean) => {
    for (let i = 0; i < 100; i++)
      if (await check()) return;
      else await sleep(10);
    assert.fail('it never happened');
  };

  it('are asked for once, then kept up to date by updates that follow on each other', async () => {
    assert.deepEqual(await seen(), { ONE: 'a' });
    remote.devices.TWO = 'b';
    await update('TWO', 11, [10]);
    assert.deepEqual(await seen(), { ONE: 'a', TWO: 'b' });
    await update('ONE', 12, [11], { deleted: true });
    assert.deepEqual(await seen(), { TWO: 'b' });
    assert.deepEqual(asked, ['devices']);
    assert.equal(changes(), 2);
    // Delivered twice: nothing new.
    await update('TWO', 11, [10], { deleted: true });
    assert.deepEqual(await seen(), { TWO: 'b' });
    assert.equal(changes(), 2);
  });

  it('are asked for again when an update is missing, and only then announced', async () => {
    await seen();
    remote = { ...remote, devices: { ONE: 'a', TWO: 'b', THREE: 'c' }, streamId: 12 };
    await update('THREE', 12, [11]);
    await eventually(() => changes() === 1);
    assert.deepEqual(await seen(), { ONE: 'a', TWO: 'b', THREE: 'c' });
    assert.deepEqual(asked, ['devices', 'devices']);
    // The copy is made of what the answer says it is made of.
    remote.devices.TWO = 'B';
    await update('TWO', 13, [12]);
    assert.deepEqual(await seen(), { ONE: 'a', TWO: 'B', THREE: 'c' });
    assert.equal(asked.length, 2);
  });

  it('are not shown when an update is missing and the server does not answer', async () => {
    await seen();
    remote.down = true;
    await update('TWO', 12, [11]);
    await eventually(() => changes() === 1);
    assert.deepEqual(await seen(), [THERE]);
    remote = { down: false, streamId: 12, devices: { TWO: 'b' } };
    assert.deepEqual(await seen(), { TWO: 'b' });
  });

  it('are asked for again when an update overtakes the answer', async () => {
    meanwhile = async () => {
      remote = { ...remote, streamId: 11, devices: { ONE: 'new' } };
      await update('ONE', 11, [10]);
    };
    assert.deepEqual(await seen(), { ONE: 'new' });
    assert.deepEqual(asked, ['devices', 'devices']);
  });

  it('that nobody asked for are only announced, and not for devices without keys', async () => {
    await update('ONE', 11, [10], { keys: undefined as unknown as JsonObject });
    assert.equal(changes(), 0);
    await update('ONE', 12, [11]);
    assert.equal(changes(), 1);
    assert.deepEqual(asked, []);
  });

  it('are neither kept nor taken in of users who share no room', async () => {
    await seen();
    shared = false;
    await lists.dropUnshared([BOB]);
    await update('ONE', 11, [10]);
    assert.equal(changes(), 0);
    assert.deepEqual(await seen(), { ONE: 'a' });
    remote.devices.ONE = 'later';
    assert.deepEqual(await seen(), { ONE: 'later' });
    assert.deepEqual(asked, ['devices', 'query', 'query']);
    shared = true;
    assert.deepEqual(await seen(), { ONE: 'later' });
    assert.equal(asked.at(-1), 'devices');
  });

  it('are changed by their own server alone, and by nothing malformed', async () => {
    await seen();
    await lists.deviceListUpdate('evil.example', {
      user_id: BOB,
      device_id: 'X',
      stream_id: 11,
      prev_id: [10],
    });
    await update('X', 11, [10], { keys: deviceKeysOf('@eve:there.example', 'X', 'forged') });
    await lists.deviceListUpdate(THERE, { user_id: BOB, device_id: 7, stream_id: 'x' });
    assert.deepEqual(await seen(), { ONE: 'a' });
  });

  it('have the cross-signing keys that updates bring', async () => {
    await seen();
    const key = (usage: string, bytes: string) => ({
      user_id: BOB,
      usage: [usage],
      keys: { [`ed25519:${bytes}`]: bytes },
    });
    const master = key('master', 'A'.repeat(43));
    await lists.signingKeyUpdate(THERE, { user_id: BOB, master_key: master });
    assert.deepEqual(await keys.masterKey(BOB), master);
    await lists.signingKeyUpdate('evil.example', { user_id: BOB, master_key: key('master', 'B'.repeat(43)) });
    await lists.signingKeyUpdate(THERE, { user_id: BOB, master_key: key('master', 'no key') });
    assert.deepEqual(await keys.masterKey(BOB), master);
  });
});
