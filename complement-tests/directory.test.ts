import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually, path, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('directories', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({ name: 'directory' });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());
  const alias = (name: string) => `#${name}:${server.serverName}`;
  const entry = (name: string) => path`/v3/directory/room/${alias(name)}`;

  describe('of aliases', () => {
    it('name rooms, until they are taken away', async () => {
      const room = await alice.createRoom();
      await alice.put(entry('garden'), { room_id: room });
      const found = await request(server.url, 'GET', `/_matrix/client${entry('garden')}`);
      assert.deepEqual([found.body.room_id, found.body.servers], [room, [server.serverName]]);
      assert.deepEqual((await alice.get(path`/v3/rooms/${room}/aliases`)).aliases, [alias('garden')]);
      await refused(alice.put(entry('garden'), { room_id: room }), 409);
      await refused(bob.delete(entry('garden')), 403, 'M_FORBIDDEN');
      await alice.delete(entry('garden'));
      await refused(alice.get(entry('garden')), 404, 'M_NOT_FOUND');
      await refused(alice.delete(entry('garden')), 404, 'M_NOT_FOUND');
    });

    it('belong to this server and have a form', async () => {
      const room = await alice.createRoom();
      await refused(alice.put(path`/v3/directory/room/${'#x:elsewhere.example'}`, { room_id: room }), 400);
      await refused(
        alice.put(path`/v3/directory/room/${'no alias'}`, { room_id: room }),
        400,
        'M_INVALID_PARAM',
      );
      await refused(alice.put(entry('nowhere'), { room_id: 'no room' }), 400);
      await refused(alice.get(path`/v3/directory/room/${'garden'}`), 400, 'M_INVALID_PARAM');
    });

    it('must be real to be canonical', async () => {
      const room = await alice.createRoom({ room_alias_name: 'real' });
      await alice.setState(room, 'm.room.canonical_alias', { alias: alias('real') });
      await refused(
        alice.setState(room, 'm.room.canonical_alias', { alias: alias('unreal') }),
        400,
        'M_BAD_ALIAS',
      );
      await refused(
        alice.setState(room, 'm.room.canonical_alias', { alias: alias('real'), alt_aliases: ['nonsense'] }),
        400,
        'M_INVALID_PARAM',
      );
    });
  });

  describe('of public rooms', () => {
    it('show what is published', async () => {
      const room = await alice.createRoom({
        visibility: 'public',
        name: 'Sunflowers',
        topic: 'Yellow and tall',
        room_alias_name: 'sunflowers',
        initial_state: [
          { type: 'm.room.history_visibility', content: { history_visibility: 'world_readable' } },
        ],
      });
      const hidden = await alice.createRoom({ preset: 'public_chat', name: 'Hidden' });
      await bob.join(room);
      const { chunk } = (await request(server.url, 'GET', '/_matrix/client/v3/publicRooms')).body;
      assert.ok(!chunk.some((r: Json) => r.room_id === hidden));
      const entry = chunk.find((r: Json) => r.room_id === room);
      assert.deepEqual(
        [
          entry.name,
          entry.topic,
          entry.canonical_alias,
          entry.num_joined_members,
          entry.world_readable,
          entry.guest_can_join,
          entry.join_rule,
        ],
        ['Sunflowers', 'Yellow and tall', alias('sunflowers'), 2, true, false, 'public'],
      );
      const visibility = path`/v3/directory/list/room/${room}`;
      assert.equal((await alice.get(visibility)).visibility, 'public');
      await refused(bob.put(visibility, { visibility: 'private' }), 403, 'M_FORBIDDEN');
      await alice.put(visibility, { visibility: 'private' });
      const later = (await alice.get('/v3/publicRooms')).chunk;
      assert.ok(!later.some((r: Json) => r.room_id === room));
    });

    it('are searched, and read page by page', async () => {
      const rooms: string[] = [];
      for (const name of ['Rose one', 'Rose two', 'Rose three', 'Tulip'])
        rooms.push(await alice.createRoom({ visibility: 'public', name }));
      const search = await bob.post('/v3/publicRooms', { filter: { generic_search_term: 'rose' } });
      assert.deepEqual(search.chunk.map((r: Json) => r.name).sort(), ['Rose one', 'Rose three', 'Rose two']);
      const seen: string[] = [];
      let since: string | undefined;
      do {
        const page = await bob.post('/v3/publicRooms', { limit: 2, since });
        assert.ok(page.chunk.length <= 2);
        seen.push(...page.chunk.map((r: Json) => r.room_id));
        since = page.next_batch;
      } while (since);
      for (const room of rooms) assert.equal(seen.filter((r) => r === room).length, 1);
      await refused(bob.get('/v3/publicRooms', { limit: 'x' }), 400);
    });
  });

  describe('of users', () => {
    const search = async (who: Client, term: string, limit = 10) =>
      (await who.post('/v3/user_directory/search', { search_term: term, limit })) as Json;

    it('find those whom one shares a room with, or who are in public rooms', async () => {
      const carol = await server.register('carolina');
      await carol.put(path`/v3/profile/${carol.userId}/displayname`, { displayname: 'Zebra Keeper' });
      const room = await carol.createRoom();
      await eventually(
        'carol in the directory',
        async () => (await search(bob, 'zebra')).results.length === 1,
      );
      const { results, limited } = await search(bob, 'carolin');
      assert.deepEqual(
        [results[0].user_id, results[0].display_name, limited],
        [carol.userId, 'Zebra Keeper', false],
      );
      await carol.leave(room);
      await eventually('carol gone', async () => (await search(bob, 'zebra')).results.length === 0);
      await refused(bob.post('/v3/user_directory/search', {}), 400);
    });

    it('do not tell of users in private rooms of others', async () => {
      const dora = await server.register('hermit');
      const home = await dora.createRoom({ preset: 'private_chat', invite: [alice.userId] });
      await alice.join(home);
      await eventually('found by alice', async () => (await search(alice, 'hermit')).results.length === 1);
      assert.deepEqual((await search(bob, 'hermit')).results, []);
    });
  });
});
