import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('relations of events', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let room: string;
  let root: string;
  const replies: string[] = [];
  let reaction: string;
  let edit: string;

  before(async () => {
    server = await startServer({ name: 'relations' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    room = await alice.createRoom();
    await bob.join(room);
    root = await alice.sendText(room, 'who comes?');
    reaction = await bob.send(room, 'm.reaction', {
      'm.relates_to': { rel_type: 'm.annotation', event_id: root, key: '👍' },
    });
    for (const [who, body] of [
      [bob, 'I do'],
      [alice, 'good'],
    ] as const)
      replies.push(
        await who.send(room, 'm.room.message', {
          msgtype: 'm.text',
          body,
          'm.relates_to': { rel_type: 'm.thread', event_id: root },
        }),
      );
    edit = await alice.send(room, 'm.room.message', {
      msgtype: 'm.text',
      body: '* who comes tonight?',
      'm.new_content': { msgtype: 'm.text', body: 'who comes tonight?' },
      'm.relates_to': { rel_type: 'm.replace', event_id: root },
    });
  });
  after(() => server.close());

  const relations = (rest = '', query: Json = {}) =>
    alice.get(`${path`/v1/rooms/${room}/relations/${root}`}${rest}`, query);
  const ids = ({ chunk }: Json) => chunk.map(({ event_id }: Json) => event_id);

  it('are listed: all, of a relation, of a type of events', async () => {
    assert.deepEqual(ids(await relations()), [edit, ...[...replies].reverse(), reaction]);
    assert.deepEqual(ids(await relations('', { dir: 'f' })), [reaction, ...replies, edit]);
    assert.deepEqual(ids(await relations('/m.thread')), [...replies].reverse());
    assert.deepEqual(ids(await relations('/m.annotation/m.reaction')), [reaction]);
    assert.deepEqual(ids(await relations('/m.thread/m.reaction')), []);
  });

  it('come page by page', async () => {
    const first = await relations('', { limit: 3 });
    assert.equal(first.chunk.length, 3);
    const second = await relations('', { limit: 3, from: first.next_batch });
    assert.deepEqual(ids(second), [reaction]);
    assert.equal(second.next_batch, undefined);
    await refused(relations('', { from: 'nonsense' }), 400);
    await refused(relations('', { dir: 'up' }), 400);
  });

  it('are summed up with the event', async () => {
    const { content, unsigned } = await alice.event(room, root);
    assert.equal(content.body, 'who comes?');
    const summed = unsigned['m.relations'];
    assert.equal(summed['m.replace'].event_id, edit);
    assert.equal(summed['m.thread'].count, 2);
    assert.equal(summed['m.thread'].current_user_participated, true);
    assert.equal(summed['m.thread'].latest_event.event_id, replies[1]);
  });

  it('are nobody’s business outside of the room', async () => {
    const carol = await server.register('carol');
    const target = path`/v1/rooms/${room}/relations/${root}`;
    await refused(carol.get(target), 404);
    await refused(
      relations('').then(() => alice.get(path`/v1/rooms/${room}/relations/${'$no'}`)),
      404,
    );
  });

  it('make threads, which are listed by their last events', async () => {
    const later = await bob.sendText(room, 'another thing');
    const reply = await bob.send(room, 'm.room.message', {
      msgtype: 'm.text',
      body: 'to myself',
      'm.relates_to': { rel_type: 'm.thread', event_id: later },
    });
    const threads = (query: Json = {}) => alice.get(path`/v1/rooms/${room}/threads`, query);
    const all = await threads();
    assert.deepEqual(ids(all), [later, root]);
    assert.equal(all.chunk[0].unsigned['m.relations']['m.thread'].latest_event.event_id, reply);
    assert.deepEqual(ids(await threads({ include: 'participated' })), [root]);
    const first = await threads({ limit: 1 });
    assert.deepEqual(ids(first), [later]);
    assert.deepEqual(ids(await threads({ limit: 1, from: first.next_batch })), [root]);
    await refused(threads({ limit: 'x' }), 400);
  });
});
