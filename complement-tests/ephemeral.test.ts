import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('receipts, typing and presence', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let room: string;
  before(async () => {
    server = await startServer({ name: 'ephemeral', config: { presence: { enabled: true } } });
    alice = await server.register('alice');
    bob = await server.register('bob');
    room = await alice.createRoom();
    await bob.join(room);
    await alice.syncUntil('the room', (s) => s.rooms?.join?.[room]);
    await bob.syncUntil('the room', (s) => s.rooms?.join?.[room]);
  });
  after(() => server.close());
  const ephemeral = (sync: Json, type: string): Json =>
    sync.rooms?.join?.[room]?.ephemeral?.events?.find((e: Json) => e.type === type)?.content;

  describe('receipts', () => {
    it('show others how far one has read', async () => {
      const id = await alice.sendText(room, 'read me');
      await bob.post(path`/v3/rooms/${room}/receipt/m.read/${id}`);
      const receipt = await alice.syncUntil(
        'the receipt',
        (s) => ephemeral(s, 'm.receipt')?.[id]?.['m.read']?.[bob.userId],
      );
      assert.ok(Math.abs(receipt.ts - Date.now()) < 60_000);
      const initial = ephemeral(await alice.sync(), 'm.receipt');
      assert.ok(initial[id]['m.read'][bob.userId]);
    });

    it('stay private when they are so', async () => {
      const id = await alice.sendText(room, 'secretly');
      await alice.syncUntil('the message', (s) => JSON.stringify(s).includes(id));
      await bob.post(path`/v3/rooms/${room}/receipt/m.read.private/${id}`);
      await bob.syncUntil(
        'the own receipt',
        (s) => ephemeral(s, 'm.receipt')?.[id]?.['m.read.private']?.[bob.userId],
      );
      const marker = await bob.sendText(room, 'marker');
      await alice.syncUntil('the marker', (s) => {
        assert.ok(!JSON.stringify(s).includes('m.read.private'));
        return JSON.stringify(s).includes(marker);
      });
    });

    it('belong to threads', async () => {
      const root = await alice.sendText(room, 'root');
      const reply = await alice.send(room, 'm.room.message', {
        msgtype: 'm.text',
        body: 'in the thread',
        'm.relates_to': { rel_type: 'm.thread', event_id: root },
      });
      await bob.post(path`/v3/rooms/${room}/receipt/m.read/${reply}`, { thread_id: root });
      const receipt = await alice.syncUntil(
        'the receipt',
        (s) => ephemeral(s, 'm.receipt')?.[reply]?.['m.read']?.[bob.userId],
      );
      assert.equal(receipt.thread_id, root);
      await refused(bob.post(path`/v3/rooms/${room}/receipt/m.read/${reply}`, { thread_id: 7 }), 400);
    });

    it('refuse other kinds, and strangers', async () => {
      const id = await alice.sendText(room, 'x');
      await refused(bob.post(path`/v3/rooms/${room}/receipt/m.eaten/${id}`), 400);
      const stranger = await server.register();
      await refused(stranger.post(path`/v3/rooms/${room}/receipt/m.read/${id}`), 403);
    });

    it('are set together with the fully-read marker', async () => {
      const id = await alice.sendText(room, 'all read');
      await bob.post(path`/v3/rooms/${room}/read_markers`, { 'm.fully_read': id, 'm.read': id });
      await bob.syncUntil('the marker', (s) =>
        s.rooms?.join?.[room]?.account_data?.events?.some(
          (e: Json) => e.type === 'm.fully_read' && e.content.event_id === id,
        ),
      );
      await alice.syncUntil('the receipt', (s) => ephemeral(s, 'm.receipt')?.[id]?.['m.read']?.[bob.userId]);
    });
  });

  describe('typing', () => {
    const typing = (who: Client, body: Json) => who.put(path`/v3/rooms/${room}/typing/${who.userId}`, body);

    it('shows who types, until they stop', async () => {
      await typing(bob, { typing: true, timeout: 30_000 });
      await alice.syncUntil('bob typing', (s) => ephemeral(s, 'm.typing')?.user_ids.includes(bob.userId));
      await typing(bob, { typing: false });
      await alice.syncUntil('nobody typing', (s) => ephemeral(s, 'm.typing')?.user_ids.length === 0);
    });

    it('ends by itself when the time is up', async () => {
      await typing(bob, { typing: true, timeout: 500 });
      await alice.syncUntil('bob typing', (s) => ephemeral(s, 'm.typing')?.user_ids.includes(bob.userId));
      await alice.syncUntil('nobody typing', (s) => ephemeral(s, 'm.typing')?.user_ids.length === 0);
    });

    it('is for members and for oneself', async () => {
      await refused(
        alice.put(path`/v3/rooms/${room}/typing/${bob.userId}`, { typing: true }),
        403,
        'M_FORBIDDEN',
      );
      const stranger = await server.register();
      await refused(typing(stranger, { typing: true, timeout: 100 }), 403, 'M_FORBIDDEN');
    });
  });

  describe('presence', () => {
    const presence = (who: Client, body: Json) => who.put(path`/v3/presence/${who.userId}/status`, body);

    it('is seen by those who share a room', async () => {
      await presence(bob, { presence: 'unavailable', status_msg: 'at lunch' });
      const event = await alice.syncUntil('bob at lunch', (s) =>
        s.presence?.events?.find((e: Json) => e.sender === bob.userId && e.content.status_msg === 'at lunch'),
      );
      assert.equal(event.content.presence, 'unavailable');
      const asked = await alice.get(path`/v3/presence/${bob.userId}/status`);
      assert.equal(asked.status_msg, 'at lunch');
    });

    it('is not seen by those who do not', async () => {
      const stranger = await server.register();
      await refused(stranger.get(path`/v3/presence/${bob.userId}/status`), 403, 'M_FORBIDDEN');
      const sync = await stranger.sync();
      assert.ok(!JSON.stringify(sync.presence ?? {}).includes(bob.userId));
    });

    it('can only be set for oneself, to what there is', async () => {
      await refused(
        alice.put(path`/v3/presence/${bob.userId}/status`, { presence: 'online' }),
        403,
        'M_FORBIDDEN',
      );
      await refused(presence(bob, { presence: 'asleep' }), 400);
    });

    it('follows the sync', async () => {
      const carol = await server.register();
      await carol.join(room);
      await carol.sync({ setPresence: 'online' });
      await alice.syncUntil('carol online', (s) =>
        s.presence?.events?.some((e: Json) => e.sender === carol.userId && e.content.presence === 'online'),
      );
    });
  });
});
