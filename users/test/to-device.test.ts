import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { ToDevice } from '../to-device.ts';
import { countQueries, e2eeFixture, HERE } from './e2ee-fixture.ts';

describe('send-to-device messages', () => {
  let database: Awaited<ReturnType<typeof testDatabase>>;
  let fixture: ReturnType<typeof e2eeFixture>;
  let toDevice: ToDevice;
  let delivered: Array<{ destination: string; eduType: string; content: JsonObject }>;
  let woken: string[];
  let sender: { userId: string; deviceId: string };
  before(async () => {
    database = await testDatabase();
    fixture = e2eeFixture(database.db);
    delivered = [];
    woken = [];
    toDevice = new ToDevice({
      db: database.db,
      stream: fixture.toDeviceStream,
      serverName: HERE,
      devices: fixture.devices,
      remote: {
        store: async (tx, edus) => {
          await tx.query('SELECT 1');
          delivered.push(...edus);
        },
        wake: (destinations) => woken.push(...destinations),
      },
    });
    sender = { userId: await fixture.user('sender', 'S'), deviceId: 'S' };
  });
  after(async () => {
    await fixture.devices.close();
    await database.close();
  });
  const inbox = async (userId: string, deviceId: string, from = 0, limit = 100) => {
    const { current } = fixture.toDeviceStream;
    const { events, upTo, more } = await toDevice.pending(userId, deviceId, from, current, limit);
    return { contents: (events as Array<{ content: JsonObject }>).map(({ content }) => content), upTo, more };
  };
  const edu = (messageId: string, messages: JsonObject, from = '@x:there.example') =>
    toDevice.receive('there.example', { sender: from, type: 't', message_id: messageId, messages });

  it('to one device go before those to all of them, one to each', async () => {
    const alice = await fixture.user('alice', 'A', 'B');
    await toDevice.send(sender, 't', '1', { [alice]: { '*': { to: 'all' }, B: { to: 'B' } } });
    assert.deepEqual((await inbox(alice, 'A')).contents, [{ to: 'all' }]);
    assert.deepEqual((await inbox(alice, 'B')).contents, [{ to: 'B' }]);
  });

  it('are sent once for a transaction, even when it comes twice at once', async () => {
    const bob = await fixture.user('bob', 'A');
    const remote = '@r:there.example';
    const send = () => toDevice.send(sender, 't', '2', { [bob]: { A: {} }, [remote]: { '*': {} } });
    delivered.length = 0;
    await Promise.all([send(), send(), send()]);
    assert.equal((await inbox(bob, 'A')).contents.length, 1);
    assert.equal(delivered.length, 1);
    await toDevice.send(sender, 'another type', '2', { [bob]: { A: {} } });
    assert.equal((await inbox(bob, 'A')).contents.length, 2);
  });

  it('to other servers are EDUs for each, of a size that they take', async () => {
    delivered.length = 0;
    woken.length = 0;
    const big = Object.fromEntries(
      Array.from({ length: 9 }, (_, i) => [`D${i}`, { text: 'x'.repeat(20_000) }]),
    );
    await toDevice.send(sender, 't', '3', { '@a:one.example': big, '@b:two.example': { '*': { n: 1 } } });
    assert.deepEqual(new Set(woken), new Set(['one.example', 'two.example']));
    const toOne = delivered.filter(({ destination }) => destination === 'one.example');
    assert.ok(toOne.every(({ content }) => JSON.stringify(content).length < 65_000));
    const devices = toOne.flatMap(({ content }) =>
      Object.keys((content.messages as JsonObject)['@a:one.example']!),
    );
    assert.deepEqual(devices.sort(), Object.keys(big));
    assert.equal(new Set(delivered.map(({ content }) => content.message_id)).size, delivered.length);
  });

  it('of other servers are taken in once, and only from the sender’s server', async () => {
    const carol = await fixture.user('carol', 'A');
    await Promise.all([1, 2, 3].map(() => edu('m1', { [carol]: { A: { n: 1 } } })));
    await edu('m2', { [carol]: { A: { n: 2 } } }, '@x:elsewhere.example');
    await edu('x'.repeat(33), { [carol]: { A: { n: 3 } } });
    await edu('m3', { [carol]: { A: 'text', '*': { n: 4 } } });
    assert.deepEqual((await inbox(carol, 'A')).contents, [{ n: 1 }, { n: 4 }]);
  });

  it('stay until they are received, and come in portions', async () => {
    const dave = await fixture.user('dave', 'A');
    for (let i = 0; i < 5; i++) await toDevice.send(sender, 't', `dave${i}`, { [dave]: { A: { i } } });
    const first = await inbox(dave, 'A', 0, 2);
    assert.deepEqual([first.contents, first.more], [[{ i: 0 }, { i: 1 }], true]);
    assert.deepEqual((await inbox(dave, 'A', first.upTo, 2)).contents, [{ i: 2 }, { i: 3 }]);
    await toDevice.received(dave, 'A', first.upTo);
    assert.deepEqual((await inbox(dave, 'A')).contents, [{ i: 2 }, { i: 3 }, { i: 4 }]);
    await toDevice.received(dave, 'A', fixture.toDeviceStream.current);
    assert.deepEqual((await inbox(dave, 'A')).contents, []);
    const [row] = await database.db.query<{ n: number }>(
      'SELECT count(*) AS n FROM to_device_messages WHERE user_id = $1',
      [dave],
    );
    assert.equal(row!.n, 0);
  });

  it('that are not there cost no query', async () => {
    const erin = await fixture.user('erin', 'A');
    await inbox(erin, 'A');
    const queries = countQueries(database.db);
    for (let i = 0; i < 5; i++) {
      await inbox(erin, 'A', i);
      await toDevice.received(erin, 'A', fixture.toDeviceStream.current);
    }
    assert.equal(queries(), 0);
    await toDevice.send(sender, 't', 'erin', { [erin]: { A: { n: 1 } } });
    assert.deepEqual((await inbox(erin, 'A')).contents, [{ n: 1 }]);
  });

  it('go with the device; its next namesake gets none of them', async () => {
    const frank = await fixture.user('frank', 'A');
    await toDevice.send(sender, 't', 'frank', { [frank]: { A: { n: 1 } } });
    await fixture.devices.delete(frank, ['A']);
    await fixture.devices.create(frank, 'A', undefined);
    assert.deepEqual((await inbox(frank, 'A')).contents, []);
  });
});
