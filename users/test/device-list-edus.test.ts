import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type DeviceListChange, Stream } from '@trellis/storage/streams.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { DeviceListChanges } from '../device-lists.ts';
import { deviceListEdus, deviceListPosition } from '../e2ee/device-list-edus.ts';
import { deviceKeysOf, e2eeFixture, HERE } from './e2ee-fixture.ts';

const THERE = 'there.example';

describe('updates of device lists for other servers', () => {
  let database: Awaited<ReturnType<typeof testDatabase>>;
  let fixture: ReturnType<typeof e2eeFixture>;
  before(async () => {
    database = await testDatabase();
    fixture = e2eeFixture(database.db);
  });
  after(async () => {
    await fixture.devices.close();
    await database.close();
  });
  const now = () => fixture.stream.current;
  const edus = (userId: string, from: number, to = now(), server = THERE) =>
    deviceListEdus(database.db, userId, server, from, to);
  const links = (found: Awaited<ReturnType<typeof edus>>) =>
    found.map(({ content }) => [content.device_id, content.stream_id, content.prev_id]);

  it('form one chain however they are divided, the last of each device once', async () => {
    const alice = await fixture.user('alice', 'A', 'B');
    const start = now();
    const positions: number[] = [];
    for (const device of ['A', 'B', 'A', 'B', 'B']) {
      await fixture.lists.changed(alice, [device]);
      positions.push(now());
    }
    const [, , third, , last] = positions;
    const known = await deviceListPosition(database.db, alice, THERE, start);
    assert.deepEqual(links(await edus(alice, start)), [
      ['A', third, [known]],
      ['B', last, [third]],
    ]);
    assert.deepEqual(links(await edus(alice, start, positions[0])), [['A', positions[0], [known]]]);
    assert.deepEqual(links(await edus(alice, positions[3]!)), [['B', last, [positions[3]]]]);
    assert.deepEqual(await edus(alice, now()), []);
  });

  it('show the device as it is: its name, its keys, or that it is gone', async () => {
    const bob = await fixture.user('bob', 'A', 'B');
    const start = now();
    await fixture.deviceKeys.upload(bob, 'A', { deviceKeys: deviceKeysOf(bob, 'A') });
    await fixture.devices.rename(bob, 'A', 'Phone');
    await fixture.devices.delete(bob, ['B']);
    const [first, second] = (await edus(bob, start)).map(({ content }) => content);
    assert.deepEqual(first!.keys, deviceKeysOf(bob, 'A'));
    assert.equal(first!.device_display_name, 'Phone');
    assert.deepEqual([second!.device_id, second!.deleted], ['B', true]);
  });

  it('that introduce a user go to the new servers alone, and syncs do not show them', async () => {
    const carol = await fixture.user('carol', 'A');
    const start = now();
    await fixture.lists.newServers(carol, ['new.example']);
    assert.deepEqual(await edus(carol, start), []);
    const introduction = await edus(carol, start, now(), 'new.example');
    assert.deepEqual(links(introduction)[0]!.slice(0, 2), ['A', now()]);
    assert.equal((await fixture.lists.usersChanged(start, now(), '@x:y')).size, 0);
    // For the others the chain has no gap.
    const known = await deviceListPosition(database.db, carol, THERE);
    await fixture.lists.changed(carol, ['A']);
    assert.deepEqual(links(await edus(carol, start)), [['A', now(), [known]]]);
  });

  it('do not tell whom a user has verified; only that user sees it', async () => {
    const dave = await fixture.user('dave', 'A');
    const start = now();
    await fixture.lists.record(async (_tx, announce) =>
      announce({ userId: dave, onlyFor: '@eve:here.example' }),
    );
    assert.deepEqual(await edus(dave, start), []);
    const stream = new Stream<DeviceListChange>('after a restart', now());
    const fresh = new DeviceListChanges({ db: database.db, stream, serverName: HERE });
    for (const lists of [fixture.lists, fresh]) {
      assert.deepEqual([...(await lists.usersChanged(start, now(), '@eve:here.example'))], [dave]);
      assert.deepEqual([...(await lists.usersChanged(start, now(), '@mallory:here.example'))], []);
    }
  });

  it('are stored with what they tell of, or not at all', async () => {
    const erin = await fixture.user('erin', 'A');
    const start = now();
    await assert.rejects(
      fixture.lists.record(async (tx, announce) => {
        announce({ userId: erin, deviceId: 'A' });
        await tx.query('SELECT no_such_function()');
      }),
    );
    assert.equal((await edus(erin, start)).length, 0);
    await fixture.lists.changed(erin, ['A']);
    assert.equal((await edus(erin, start)).length, 1);
  });
});
