import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, startServer, type TestServer } from './harness/server.ts';

describe('send-to-device messages', () => {
  let server: TestServer;
  let alice: Client;
  let phone: Client;
  let laptop: Client;
  before(async () => {
    server = await startServer({ name: 'to-device' });
    alice = await server.register('alice');
    phone = await server.register('bob');
    laptop = await login(server.url, 'bob');
  });
  after(() => server.close());
  const send = (messages: Json, transaction: string, type = 'org.example.ping') =>
    alice.put(path`/v3/sendToDevice/${type}/${transaction}`, { messages });
  const inbox = (who: Client, since?: string) =>
    who.sync({ since }).then((s) => [s.to_device?.events ?? [], s.next_batch]);

  it('reach one device, and only that', async () => {
    await send({ [phone.userId]: { [phone.deviceId]: { n: 1 } } }, 'one');
    const [events] = await inbox(phone);
    assert.deepEqual(events, [{ type: 'org.example.ping', sender: alice.userId, content: { n: 1 } }]);
    assert.deepEqual((await inbox(laptop))[0], []);
  });

  it('come again until the next sync says that they were received', async () => {
    const [, since] = await inbox(laptop);
    await send({ [laptop.userId]: { [laptop.deviceId]: { n: 2 } } }, 'again');
    const [first, next] = await inbox(laptop, since);
    const [second] = await inbox(laptop, since);
    assert.equal(first.length, 1);
    assert.deepEqual(second, first);
    const [third] = await inbox(laptop, next);
    assert.deepEqual(third, []);
    // Even with the older token: it was confirmed.
    assert.deepEqual((await inbox(laptop, since))[0], []);
  });

  it('reach every device with *, wake it, and come once for a transaction', async () => {
    for (const who of [phone, laptop]) await who.syncUntil('now', () => true);
    const waiting = [phone, laptop].map((who) =>
      who.syncUntil('the message', (s) => s.to_device?.events?.find((e: Json) => e.content.n === 3)),
    );
    await send({ [phone.userId]: { '*': { n: 3 } } }, 'star');
    await send({ [phone.userId]: { '*': { n: 3 } } }, 'star');
    await Promise.all(waiting);
    for (const who of [phone, laptop]) assert.deepEqual((await inbox(who, who.since))[0], []);
  });

  it('keep their order, over a restart too, and come in portions', async () => {
    const [, since] = await inbox(phone);
    for (let i = 0; i < 130; i++) await send({ [phone.userId]: { [phone.deviceId]: { i } } }, `row${i}`);
    await server.stop();
    await server.start();
    const seen: number[] = [];
    let token = since;
    for (let rounds = 0; seen.length < 130 && rounds < 20; rounds++) {
      const [events, next] = await inbox(phone, token);
      seen.push(...events.map((e: Json) => e.content.i));
      token = next;
    }
    assert.deepEqual(
      seen,
      Array.from({ length: 130 }, (_, i) => i),
    );
  });

  it('to unknown devices and users go nowhere; nonsense is refused', async () => {
    await send({ [phone.userId]: { NOTHERE: {} }, [`@nobody:${server.serverName}`]: { '*': {} } }, 'void');
    await refused(send('all' as unknown as Json, 'bad1'), 400);
    await refused(alice.put(path`/v3/sendToDevice/x/${'bad2'}`, {}), 400);
    await refused(send({ [phone.userId]: { '*': 'text' } }, 'bad3'), 400);
  });
});
