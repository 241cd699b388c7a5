import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('spaces and summaries of rooms', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let space: string;
  let garden: string;
  let cellar: string;
  before(async () => {
    server = await startServer({ name: 'spaces' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    const creation_content = { type: 'm.space' };
    space = await alice.createRoom({ preset: 'public_chat', name: 'House', creation_content });
    garden = await alice.createRoom({
      preset: 'public_chat',
      name: 'Garden',
      topic: 'Plants',
      room_alias_name: 'garden',
    });
    cellar = await alice.createRoom({ preset: 'private_chat', name: 'Cellar' });
    const via = [server.serverName];
    await alice.setState(space, 'm.space.child', { via, order: 'b' }, cellar);
    await alice.setState(space, 'm.space.child', { via, order: 'a', suggested: true }, garden);
  });
  after(() => server.close());

  const hierarchy = (who: Client, query: Json = {}) => who.get(path`/v1/rooms/${space}/hierarchy`, query);
  const ids = ({ rooms }: Json) => rooms.map(({ room_id }: Json) => room_id);

  it('have a hierarchy, of which everybody sees what they may', async () => {
    const { rooms } = await hierarchy(alice);
    assert.deepEqual(
      rooms.map((room: Json) => [room.room_id, room.name, room.room_type]),
      [
        [space, 'House', 'm.space'],
        [garden, 'Garden', undefined],
        [cellar, 'Cellar', undefined],
      ],
    );
    assert.equal(rooms[0].children_state.length, 2);
    assert.ok(rooms[0].children_state.every((e: Json) => e.type === 'm.space.child' && e.origin_server_ts));
    assert.deepEqual(ids(await hierarchy(bob)), [space, garden]);
    const secret = path`/v1/rooms/${cellar}/hierarchy`;
    await refused(bob.get(secret), 403, 'M_FORBIDDEN');
  });

  it('come page by page, as deep as wanted, or with what is suggested only', async () => {
    const first = await hierarchy(alice, { limit: 2 });
    assert.deepEqual(ids(first), [space, garden]);
    assert.deepEqual(ids(await hierarchy(alice, { limit: 2, from: first.next_batch })), [cellar]);
    assert.deepEqual(ids(await hierarchy(alice, { max_depth: 0 })), [space]);
    assert.deepEqual(ids(await hierarchy(alice, { suggested_only: true })), [space, garden]);
    await refused(hierarchy(alice, { from: 'nonsense' }), 400, 'M_INVALID_PARAM');
    await refused(hierarchy(alice, { limit: 0 }), 400);
  });

  it('are summed up by id or alias, for those who might join', async () => {
    const summary = await bob.get(path`/v1/room_summary/${`#garden:${server.serverName}`}`);
    assert.equal(summary.room_id, garden);
    assert.deepEqual(
      [summary.name, summary.topic, summary.num_joined_members, summary.join_rule, summary.membership],
      ['Garden', 'Plants', 1, 'public', 'leave'],
    );
    const own = await alice.get(path`/v1/room_summary/${cellar}`);
    assert.deepEqual([own.membership, own.join_rule, own.guest_can_join], ['join', 'invite', true]);
    await refused(bob.get(path`/v1/room_summary/${cellar}`), 404, 'M_NOT_FOUND');
  });
});
