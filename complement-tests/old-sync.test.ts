import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('what clients used before /sync', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let room: string;
  before(async () => {
    server = await startServer({ name: 'old-sync' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    room = await alice.createRoom({ preset: 'public_chat', name: 'Old' });
    await alice.sendText(room, 'before');
  });
  after(() => server.close());

  it('/initialSync has the rooms, /events what comes after', async () => {
    const start = await alice.get('/v3/initialSync', { limit: 1 });
    const [old] = start.rooms;
    assert.deepEqual([old.room_id, old.membership, old.visibility], [room, 'join', 'private']);
    assert.deepEqual(
      old.messages.chunk.map((e: Json) => e.content.body),
      ['before'],
    );
    assert.ok(old.state.some((e: Json) => e.type === 'm.room.name' && e.content.name === 'Old'));
    const waiting = alice.get('/v3/events', { from: start.end, timeout: 10_000 });
    const sent = await alice.sendText(room, 'after');
    const { chunk, end } = await waiting;
    assert.ok(chunk.some((e: Json) => e.event_id === sent && e.room_id === room));
    assert.deepEqual((await alice.get('/v3/events', { from: end, timeout: 0 })).chunk, []);
    await refused(alice.get('/v3/events', { from: 'nonsense', timeout: 0 }), 400);
  });

  it('a room has an /initialSync of its own, and an event needs no room to be found', async () => {
    const start = await alice.get(path`/v3/rooms/${room}/initialSync`);
    assert.deepEqual([start.room_id, start.membership], [room, 'join']);
    const { event_id } = start.messages.chunk.at(-1);
    assert.equal((await alice.get(path`/v3/events/${event_id}`)).event_id, event_id);
    await refused(bob.get(path`/v3/rooms/${room}/initialSync`), 403, 'M_FORBIDDEN');
    await refused(bob.get(path`/v3/events/${event_id}`), 404, 'M_NOT_FOUND');
  });

  it('rooms that the world can read are peeked into', async () => {
    const open = await alice.createRoom({
      preset: 'public_chat',
      initial_state: [
        { type: 'm.room.history_visibility', content: { history_visibility: 'world_readable' } },
      ],
    });
    const start = await bob.get(path`/v3/rooms/${open}/initialSync`);
    assert.equal(start.room_id, open);
    const waiting = bob.get('/v3/events', { room_id: open, from: start.messages.end, timeout: 10_000 });
    const sent = await alice.sendText(open, 'to the world');
    assert.ok((await waiting).chunk.some((e: Json) => e.event_id === sent));
  });
});
