import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('room creation and state', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({ name: 'rooms' });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());

  for (const [preset, rule, visibility, guests] of [
    ['private_chat', 'invite', 'shared', 'can_join'],
    ['trusted_private_chat', 'invite', 'shared', 'can_join'],
    ['public_chat', 'public', 'shared', 'forbidden'],
  ] as const) {
    it(`gives the state of the preset ${preset}`, async () => {
      const room = await alice.createRoom({ preset });
      assert.equal((await alice.getState(room, 'm.room.join_rules')).join_rule, rule);
      assert.equal((await alice.getState(room, 'm.room.history_visibility')).history_visibility, visibility);
      assert.equal(
        (await alice.getState(room, 'm.room.guest_access').catch(() => ({}))).guest_access ?? 'forbidden',
        guests,
      );
      assert.equal((await alice.getState(room, 'm.room.member', alice.userId)).membership, 'join');
    });
  }

  it('makes different rooms of requests that come in the same millisecond', async () => {
    // The id of a room of version 12 is the hash of its create event.
    const names = Array.from({ length: 20 }, (_, i) => `Room ${i}`);
    const rooms = await Promise.all(names.map((name) => alice.createRoom({ room_version: '12', name })));
    assert.equal(new Set(rooms).size, names.length);
    for (const [i, room] of rooms.entries())
      assert.equal((await alice.getState(room, 'm.room.name')).name, names[i]);
  });

  it('follows the visibility where no preset is given', async () => {
    const open = await alice.createRoom({ visibility: 'public' });
    assert.equal((await alice.getState(open, 'm.room.join_rules')).join_rule, 'public');
    const closed = await alice.createRoom({});
    assert.equal((await alice.getState(closed, 'm.room.join_rules')).join_rule, 'invite');
  });

  it('applies the options in the order of the specification', async () => {
    const room = await alice.createRoom({
      preset: 'private_chat',
      name: 'The name',
      topic: 'The topic',
      room_alias_name: 'options',
      creation_content: { 'org.example.colour': 'green', 'm.federate': true },
      initial_state: [
        { type: 'm.room.join_rules', content: { join_rule: 'knock' } },
        { type: 'm.room.name', content: { name: 'Overruled' } },
        { type: 'org.example.state', state_key: 'key', content: { value: 1 } },
      ],
      power_level_content_override: { events_default: 10 },
      invite: [bob.userId],
      is_direct: true,
    });
    assert.equal((await alice.getState(room, 'm.room.name')).name, 'The name');
    assert.equal((await alice.getState(room, 'm.room.topic')).topic, 'The topic');
    assert.equal((await alice.getState(room, 'm.room.join_rules')).join_rule, 'knock');
    assert.equal((await alice.getState(room, 'org.example.state', 'key')).value, 1);
    assert.equal((await alice.getState(room, 'm.room.power_levels')).events_default, 10);
    const create = await alice.getState(room, 'm.room.create');
    assert.deepEqual([create['org.example.colour'], create.room_version], ['green', '12']);
    const alias = `#options:${server.serverName}`;
    assert.equal((await alice.getState(room, 'm.room.canonical_alias')).alias, alias);
    assert.equal((await alice.get(path`/v3/directory/room/${alias}`)).room_id, room);
    const invite = await alice.getState(room, 'm.room.member', bob.userId);
    assert.deepEqual([invite.membership, invite.is_direct], ['invite', true]);
    const { chunk } = await alice.get(path`/v3/rooms/${room}/messages`, { dir: 'f', limit: 50 });
    const order = chunk.map((event: Json) => event.type);
    assert.deepEqual(order.slice(0, 3), ['m.room.create', 'm.room.member', 'm.room.power_levels']);
    assert.ok(order.indexOf('org.example.state') < order.lastIndexOf('m.room.name'));
    assert.equal(order.at(-1), 'm.room.member');
  });

  it('makes rooms of every version from 1 to 12', async () => {
    for (let version = 1; version <= 12; version++) {
      const room = await alice.createRoom({ preset: 'public_chat', room_version: String(version) });
      assert.equal((await alice.getState(room, 'm.room.create')).room_version, String(version));
      assert.match(room, version < 12 ? /^!.+:127\.0\.0\.1/ : /^![A-Za-z0-9_-]{43}$/);
      await bob.join(room);
      const id = await bob.sendText(room, `hello version ${version}`);
      assert.match(id, version < 3 ? /^\$.+:127\.0\.0\.1/ : /^\$[A-Za-z0-9+/_-]{43}$/);
      assert.equal((await alice.event(room, id)).content.body, `hello version ${version}`);
    }
  });

  it('names the creator in the form of the room version', async () => {
    const ten = await alice.createRoom({ room_version: '10' });
    assert.equal((await alice.getState(ten, 'm.room.create')).creator, alice.userId);
    assert.equal((await alice.getState(ten, 'm.room.power_levels')).users[alice.userId], 100);
    const twelve = await alice.createRoom({ room_version: '12' });
    assert.ok(!(alice.userId in ((await alice.getState(twelve, 'm.room.power_levels')).users ?? {})));
  });

  it('makes invited users of a trusted chat as powerful as the creator', async () => {
    const options = { preset: 'trusted_private_chat', invite: [bob.userId] };
    const eleven = await alice.createRoom({ ...options, room_version: '11' });
    assert.equal((await alice.getState(eleven, 'm.room.power_levels')).users[bob.userId], 100);
    const twelve = await alice.createRoom({ ...options, room_version: '12' });
    assert.deepEqual((await alice.getState(twelve, 'm.room.create')).additional_creators, [bob.userId]);
  });

  it('refuses versions it does not know, aliases that are taken, and nonsense', async () => {
    await refused(alice.createRoom({ room_version: '999' }), 400, 'M_UNSUPPORTED_ROOM_VERSION');
    await refused(alice.createRoom({ room_version: 12 }), 400, 'M_BAD_JSON');
    await alice.createRoom({ room_alias_name: 'once' });
    await refused(alice.createRoom({ room_alias_name: 'once' }), 400, 'M_ROOM_IN_USE');
    await refused(alice.createRoom({ invite: ['not a user id'] }), 400);
    await refused(alice.createRoom({ power_level_content_override: { users: { 'no user': 1 } } }), 400);
  });

  it('takes no second create event, and no power levels for creators', async () => {
    for (const room_version of ['11', '12']) {
      const room = await alice.createRoom({ room_version });
      const create = alice.put(path`/v3/rooms/${room}/state/m.room.create/`, { room_version, other: true });
      await refused(create, 400, 'M_INVALID_PARAM');
    }
    const room = await alice.createRoom({
      room_version: '12',
      creation_content: { additional_creators: [bob.userId] },
    });
    for (const { userId } of [alice, bob]) {
      const levels = alice.put(path`/v3/rooms/${room}/state/m.room.power_levels/`, {
        users: { [userId]: 9 },
      });
      await refused(levels, 400, 'M_INVALID_PARAM');
    }
  });

  it('upgrades a room to a new one, which takes over its name, state and aliases', async () => {
    const old = await alice.createRoom({
      preset: 'public_chat',
      room_version: '11',
      name: 'Old',
      room_alias_name: 'moves',
    });
    await bob.join(old);
    const upgrade = (who: Client, new_version: string) =>
      who.post(path`/v3/rooms/${old}/upgrade`, { new_version });
    await refused(upgrade(bob, '12'), 403, 'M_FORBIDDEN');
    await refused(upgrade(alice, '999'), 400, 'M_UNSUPPORTED_ROOM_VERSION');
    const { replacement_room } = await upgrade(alice, '12');
    assert.equal((await alice.getState(old, 'm.room.tombstone')).replacement_room, replacement_room);
    const create = await alice.getState(replacement_room, 'm.room.create');
    assert.deepEqual([create.room_version, create.predecessor.room_id], ['12', old]);
    assert.equal((await alice.getState(replacement_room, 'm.room.name')).name, 'Old');
    const alias = await alice.get(path`/v3/directory/room/${`#moves:${server.serverName}`}`);
    assert.equal(alias.room_id, replacement_room);
    await refused(bob.sendText(old, 'still here'), 403, 'M_FORBIDDEN');
  });

  it('lists the rooms of a user', async () => {
    const carol = await server.register('carol');
    const rooms = [await carol.createRoom(), await carol.createRoom()];
    const left = await carol.createRoom();
    await carol.leave(left);
    assert.deepEqual((await carol.get('/v3/joined_rooms')).joined_rooms.sort(), rooms.sort());
  });

  describe('state', () => {
    it('reads a piece of state as content, or as a whole event', async () => {
      const room = await alice.createRoom({ name: 'First' });
      const id = await alice.setState(room, 'm.room.name', { name: 'Second' });
      assert.deepEqual(await alice.getState(room, 'm.room.name'), { name: 'Second' });
      const event = await alice.get(path`/v3/rooms/${room}/state/m.room.name/`, { format: 'event' });
      assert.deepEqual([event.event_id, event.sender, event.state_key], [id, alice.userId, '']);
      assert.deepEqual(await alice.get(path`/v3/rooms/${room}/state/m.room.name`), { name: 'Second' });
      await refused(alice.getState(room, 'm.room.name', 'other'), 404, 'M_NOT_FOUND');
    });

    it('gives the whole state, each piece once', async () => {
      const room = await alice.createRoom({ name: 'First' });
      await alice.setState(room, 'm.room.name', { name: 'Second' });
      const state = await alice.get(path`/v3/rooms/${room}/state`);
      const names = state.filter((e: Json) => e.type === 'm.room.name');
      assert.deepEqual(
        names.map((e: Json) => e.content.name),
        ['Second'],
      );
      for (const event of state) {
        assert.equal(typeof event.state_key, 'string');
        assert.ok(event.event_id && event.origin_server_ts && event.sender);
        assert.ok(!('auth_events' in event) && !('hashes' in event));
      }
    });

    it('keeps strangers out, and shows those who left the state as they left it', async () => {
      const room = await alice.createRoom({ preset: 'public_chat', name: 'Before' });
      await refused(bob.get(path`/v3/rooms/${room}/state`), 403, 'M_FORBIDDEN');
      await bob.join(room);
      await bob.leave(room);
      await alice.setState(room, 'm.room.name', { name: 'After' });
      assert.equal((await bob.getState(room, 'm.room.name')).name, 'Before');
      await refused(bob.setState(room, 'm.room.name', { name: 'x' }), 403, 'M_FORBIDDEN');
    });

    it('lets only those with the power change it', async () => {
      const room = await alice.createRoom();
      await bob.join(room);
      await refused(bob.setState(room, 'm.room.name', { name: 'Mine' }), 403, 'M_FORBIDDEN');
      const levels = await alice.getState(room, 'm.room.power_levels');
      await alice.setState(room, 'm.room.power_levels', {
        ...levels,
        users: { ...levels.users, [bob.userId]: 50 },
      });
      await bob.setState(room, 'm.room.name', { name: 'Mine' });
      await refused(
        bob.setState(room, 'm.room.power_levels', {
          ...levels,
          users: { ...levels.users, [bob.userId]: 100 },
        }),
        403,
        'M_FORBIDDEN',
      );
    });

    it("lets nobody set state under another user's id", async () => {
      const room = await alice.createRoom({
        preset: 'public_chat',
        power_level_content_override: { state_default: 0 },
      });
      await bob.join(room);
      await bob.setState(room, 'org.example.mine', { ok: true }, bob.userId);
      await refused(bob.setState(room, 'org.example.mine', { ok: true }, alice.userId), 403, 'M_FORBIDDEN');
    });

    it('names the joined members', async () => {
      const room = await alice.createRoom();
      await bob.join(room);
      const { joined } = await alice.get(path`/v3/rooms/${room}/joined_members`);
      assert.deepEqual(Object.keys(joined).sort(), [alice.userId, bob.userId].sort());
      const stranger = await server.register();
      await refused(stranger.get(path`/v3/rooms/${room}/joined_members`), 403, 'M_FORBIDDEN');
    });

    it('filters the members by membership, and at a point in time', async () => {
      const room = await alice.createRoom();
      const { next_batch: before } = await alice.sync();
      await bob.join(room);
      await bob.leave(room);
      const members = async (query: Json) =>
        (await alice.get(path`/v3/rooms/${room}/members`, query)).chunk.map((e: Json) => [
          e.state_key,
          e.content.membership,
        ]);
      assert.deepEqual(await members({ membership: 'join' }), [[alice.userId, 'join']]);
      assert.deepEqual(await members({ not_membership: 'join' }), [[bob.userId, 'leave']]);
      assert.deepEqual(await members({ at: before }), [[alice.userId, 'join']]);
    });
  });
});
