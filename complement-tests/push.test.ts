import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { freePort } from './harness/ports.ts';
import { startServer, type TestServer } from './harness/server.ts';

const ENABLED = 'org.matrix.msc3881.enabled';

describe('push notifications', () => {
  let gateway: Server;
  let url: string;
  const got: Json[] = [];
  const failures: number[] = [];
  let server: TestServer;
  let alice: Client;
  let bob: Client;

  before(async () => {
    gateway = createServer((incoming, response) => {
      const chunks: Buffer[] = [];
      incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
      incoming.on('end', () => {
        const status = failures.shift() ?? 200;
        if (status === 200) got.push(JSON.parse(Buffer.concat(chunks).toString()).notification);
        response.writeHead(status, { 'content-type': 'application/json' });
        response.end('{"rejected":[]}');
      });
    });
    const port = await freePort();
    await new Promise<void>((done) => gateway.listen(port, '127.0.0.1', done));
    url = `http://127.0.0.1:${port}/_matrix/push/v1/notify`;
    server = await startServer({
      name: 'push',
      config: { push: { allow_insecure: true, allow_addresses: ['127.0.0.1'] } },
    });
    alice = await server.register('alice');
    bob = await server.register('bob');
    await alice.put(path`/v3/profile/${alice.userId}/displayname`, { displayname: 'Alice' });
  });
  after(async () => {
    await server.close();
    gateway.closeAllConnections();
    gateway.close();
  });

  const pusher = (more: object = {}) => ({
    kind: 'http',
    app_id: 'org.example.app',
    pushkey: 'key',
    app_display_name: 'App',
    device_display_name: 'Phone',
    lang: 'en',
    data: { url },
    ...more,
  });
  const notified = (eventId: string) =>
    eventually(`a push of ${eventId}`, async () => got.find(({ event_id }) => event_id === eventId));

  it('come, count, and count less when read', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await bob.post('/v3/pushers/set', pusher());
    const first = await notified(await alice.sendText(room, 'one'));
    assert.deepEqual([first.room_id, first.sender, first.counts.unread], [room, alice.userId, 1]);
    assert.equal(first.sender_display_name, 'Alice');
    const last = await alice.sendText(room, 'two');
    assert.equal((await notified(last)).counts.unread, 2);
    await bob.post(path`/v3/rooms/${room}/receipt/m.read/${last}`);
    await eventually('the badge to be empty', async () => {
      const { event_id, counts } = got.at(-1);
      return event_id === undefined && counts.unread === undefined;
    });
  });

  it('come after a restart, when the gateway was out of order before', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    failures.push(500, 500);
    const event = await alice.sendText(room, 'patience');
    await eventually('a failure', async () => failures.length < 2);
    await server.kill();
    await server.start();
    await notified(event);
    assert.equal(got.filter(({ event_id }) => event_id === event).length, 1);
  });

  it('can be switched off from another device', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await bob.post('/v3/pushers/set', pusher({ [ENABLED]: false }));
    const [shown] = (await bob.get('/v3/pushers')).pushers;
    assert.equal(shown[ENABLED], false);
    assert.equal(shown['org.matrix.msc3881.device_id'], bob.deviceId);
    const silent = await alice.sendText(room, 'quiet');
    await bob.post('/v3/pushers/set', pusher({ [ENABLED]: true }));
    await notified(await alice.sendText(room, 'loud'));
    assert.ok(!got.some(({ event_id }) => event_id === silent));
  });

  it('go to no address that is not allowed', async () => {
    const closed = await startServer({ name: 'push-closed', config: { push: { allow_insecure: true } } });
    try {
      const carol = await closed.register('carol');
      const dave = await closed.register('dave');
      const room = await carol.createRoom();
      await dave.join(room);
      await dave.post('/v3/pushers/set', pusher());
      const event = await carol.sendText(room, 'not out');
      await new Promise((wake) => setTimeout(wake, 1_000));
      assert.ok(!got.some(({ event_id }) => event_id === event));
    } finally {
      await closed.close();
    }
  });

  it('need HTTPS unless that is configured otherwise', async () => {
    const wrong = pusher({ data: { url: 'ftp://example.org/_matrix/push/v1/notify' } });
    await refused(bob.post('/v3/pushers/set', wrong), 400, 'M_INVALID_PARAM');
  });
});
