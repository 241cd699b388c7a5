import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { type CreateRoomRequest, createRoom } from '@trellis/rooms/create-room.ts';
import { RoomReading, userId } from './room-reading.ts';

let server: RoomReading;
before(async () => {
  server = await RoomReading.start();
});
after(() => server.close());

// biome-ignore lint/suspicious/noExplicitAny: answers of every shape
type Any = any;
const encode = encodeURIComponent;
const create = (user: string, request: CreateRoomRequest = {}) =>
  createRoom(server.createParts, userId(user), { preset: 'public_chat', ...request });
const join = (user: string, room: string) => server.engine.membership().join(room, userId(user), []);
const stateOf = async (room: string, type: string, user = 'alice') =>
  (await server.get(user, `/v3/rooms/${encode(room)}/state/${type}`)).body;

describe('aliases', () => {
  const entry = (name: string) => `/v3/directory/room/${encode(`#${name}:here`)}`;

  test('are set by members, taken away by their makers and those with power', async () => {
    const room = await create('alice');
    await join('bob', room);
    const put = (user: string, name: string) => server.put(user, entry(name), { room_id: room });
    assert.equal((await put('stranger', 'a')).body.errcode, 'M_FORBIDDEN');
    assert.equal((await put('bob', 'a')).status, 200);
    assert.deepEqual((await put('alice', 'a')).body.errcode, 'M_UNKNOWN');
    await put('alice', 'b');
    const listed = (user: string) => server.get(user, `/v3/rooms/${encode(room)}/aliases`);
    assert.deepEqual((await listed('bob')).body.aliases, ['#a:here', '#b:here']);
    assert.equal((await listed('stranger')).status, 403);
    assert.equal((await server.delete('bob', entry('b'))).body.errcode, 'M_FORBIDDEN');
    assert.equal((await server.delete('alice', entry('a'))).status, 200);
    assert.equal((await server.delete('alice', entry('a'))).body.errcode, 'M_NOT_FOUND');
    assert.equal((await server.delete('admin', entry('b'))).status, 200);
  });

  test('leave the canonical alias when they go', async () => {
    const room = await create('alice', { room_alias_name: 'canonical' });
    await server.put('alice', entry('other'), { room_id: room });
    const content = { alias: '#canonical:here', alt_aliases: ['#other:here'] };
    await server.send('alice', room, 'm.room.canonical_alias', content, '');
    await server.delete('alice', entry('other'));
    assert.deepEqual(await stateOf(room, 'm.room.canonical_alias'), { alias: '#canonical:here' });
    await server.delete('alice', entry('canonical'));
    assert.deepEqual(await stateOf(room, 'm.room.canonical_alias'), {});
  });

  test('have a form, a server, and sometimes an owner', async () => {
    const room = await create('alice');
    const put = (alias: string, room_id = room) =>
      server.put('alice', `/v3/directory/room/${encode(alias)}`, { room_id });
    assert.equal((await put('no alias')).body.errcode, 'M_INVALID_PARAM');
    assert.equal((await put('#x:elsewhere')).body.errcode, 'M_INVALID_PARAM');
    assert.equal((await put('#bridge_x:here')).body.errcode, 'M_EXCLUSIVE');
    assert.equal((await put('#x:here', 'no room')).status, 400);
  });
});

test('the directory is sorted, searched, paged both ways, and changed by those with power', async () => {
  const rooms: string[] = [];
  for (const name of ['Rose one', 'Rose two', 'Tulip', 'Rose space'])
    rooms.push(
      await create('alice', {
        visibility: 'public',
        name,
        ...(name === 'Rose space' && { creation_content: { type: 'm.space' } }),
      }),
    );
  await join('bob', rooms[1]!);
  const list = async (body: object) => (await server.post('bob', '/v3/publicRooms', body)).body;
  const ids = (page: Any) => page.chunk.map((entry: Any) => entry.room_id);
  const all = await list({});
  assert.deepEqual([all.chunk.length, all.total_room_count_estimate, ids(all)[0]], [4, 4, rooms[1]]);
  assert.equal(all.chunk[0].num_joined_members, 2);
  const first = await list({ limit: 3 });
  const second = await list({ limit: 3, since: first.next_batch });
  assert.deepEqual([...ids(first), ...ids(second)], ids(all));
  assert.deepEqual([second.next_batch, first.prev_batch], [undefined, undefined]);
  assert.deepEqual(ids(await list({ limit: 3, since: second.prev_batch })), ids(first));
  const roses = await list({ filter: { generic_search_term: 'ROSE', room_types: [null] } });
  assert.deepEqual(ids(roses).sort(), rooms.slice(0, 2).sort());
  assert.deepEqual(ids(await list({ filter: { room_types: ['m.space'] } })), [rooms[3]]);
  // A change shows at once.
  await server.send('alice', rooms[2]!, 'm.room.name', { name: 'Rosehip' }, '');
  assert.equal((await list({ filter: { generic_search_term: 'rosehip' } })).chunk.length, 1);
  const entry = `/v3/directory/list/room/${encode(rooms[1]!)}`;
  assert.equal((await server.put('bob', entry, { visibility: 'private' })).status, 403);
  await server.put('alice', entry, { visibility: 'private' });
  assert.equal((await server.get('bob', entry)).body.visibility, 'private');
  assert.equal((await list({})).chunk.length, 3);
  assert.equal((await server.put('alice', entry, { visibility: 'secret' })).status, 400);
  assert.equal((await list({ since: 'x' })).errcode, 'M_INVALID_PARAM');
  assert.equal((await server.get('bob', '/v3/publicRooms?limit=x')).status, 400);
  const network = `/v3/directory/list/appservice/irc/${encode(rooms[1]!)}`;
  assert.equal((await server.put('bridge', network, { visibility: 'public' })).status, 200);
  assert.deepEqual(ids(await list({ third_party_instance_id: 'bridge|irc' })), [rooms[1]]);
  assert.equal((await list({ include_all_networks: true })).chunk.length, 4);
});

describe('spaces', () => {
  const space = { creation_content: { type: 'm.space' } };
  const link = (parent: string, child: string, more = {}) =>
    server.send('alice', parent, 'm.space.child', { via: ['here'], ...more }, child);
  const walk = async (room: string, query = '', user = 'alice') =>
    (await server.get(user, `/v1/rooms/${encode(room)}/hierarchy${query}`)).body;
  const ids = (body: Any) => body.rooms.map((entry: Any) => entry.room_id);

  test('are walked depth first, in their order, page by page', async () => {
    const root = await create('alice', space);
    const inner = await create('alice', space);
    const [one, two, leaf] = [await create('alice'), await create('alice'), await create('alice')];
    await link(root, one);
    await link(root, inner);
    await link(root, two, { order: 'a', suggested: true });
    await link(inner, leaf);
    await link(inner, root);
    assert.deepEqual(ids(await walk(root)), [root, two, one, inner, leaf]);
    const first = await walk(root, '?limit=3');
    const second = await walk(root, `?limit=3&from=${first.next_batch}`);
    assert.deepEqual(
      [...ids(first), ...ids(second), second.next_batch],
      [root, two, one, inner, leaf, undefined],
    );
    assert.deepEqual(ids(await walk(root, '?max_depth=1')), [root, two, one, inner]);
    const suggested = await walk(root, '?suggested_only=true');
    assert.deepEqual([ids(suggested), suggested.rooms[0].children_state.length], [[root, two], 1]);
    assert.equal((await walk(root, `?max_depth=1&from=${first.next_batch}`)).errcode, 'M_INVALID_PARAM');
    await server.send('alice', root, 'm.space.child', {}, inner);
    assert.deepEqual(ids(await walk(root)), [root, two, one]);
  });

  test('show each user the rooms that they could join or read', async () => {
    const root = await create('alice', space);
    const secret = await create('alice', { preset: 'private_chat' });
    const restricted = await create('alice', {
      initial_state: [
        {
          type: 'm.room.join_rules',
          content: { join_rule: 'restricted', allow: [{ type: 'm.room_membership', room_id: root }] },
        },
      ],
    });
    await link(root, secret);
    await link(root, restricted);
    assert.deepEqual(ids(await walk(root, '', 'bob')), [root]);
    await join('bob', root);
    assert.deepEqual(ids(await walk(root, '', 'bob')), [root, restricted]);
    await server.engine.membership().invite(secret, userId('alice'), userId('bob'));
    assert.deepEqual(ids(await walk(root, '', 'bob')), [root, secret, restricted]);
    assert.equal((await walk(secret, '', 'stranger')).errcode, 'M_FORBIDDEN');
    assert.equal((await walk('!nowhere:here')).errcode, 'M_FORBIDDEN');
  });

  test('reach into other servers, by what each tells', async () => {
    const root = await create('alice', space);
    const far = { num_joined_members: 3, world_readable: false, guest_can_join: false, children_state: [] };
    await link(root, '!far:elsewhere', { via: ['elsewhere'] });
    const asked: string[] = [];
    server.others.hierarchy = async (name, roomId) => {
      asked.push(`${name} ${roomId}`);
      if (roomId !== '!far:elsewhere') return undefined;
      const child = (id: string) => ({
        type: 'm.space.child' as const,
        state_key: id,
        content: { via: ['elsewhere'] },
        sender: '@x:elsewhere',
        origin_server_ts: 1,
      });
      return {
        room: {
          ...far,
          room_id: roomId,
          room_type: 'm.space',
          join_rule: 'public',
          children_state: ['!a:elsewhere', '!b:elsewhere', '!c:elsewhere'].map(child),
        },
        children: [
          { ...far, room_id: '!a:elsewhere', join_rule: 'restricted', allowed_room_ids: [root] },
          { ...far, room_id: '!b:elsewhere', join_rule: 'invite' },
        ],
        inaccessible: ['!c:elsewhere'],
      };
    };
    assert.deepEqual(ids(await walk(root)), [root, '!far:elsewhere', '!a:elsewhere']);
    assert.deepEqual(ids(await walk(root, '', 'bob')), [root, '!far:elsewhere']);
    assert.deepEqual(asked, ['elsewhere !far:elsewhere']);
    const summary = (user: string) =>
      server.get(user, `/v1/room_summary/${encode('!far:elsewhere')}?via=elsewhere`);
    const { children_state: _none, ...expected } = far;
    assert.deepEqual((await summary('bob')).body, {
      ...expected,
      room_id: '!far:elsewhere',
      room_type: 'm.space',
      join_rule: 'public',
      membership: 'leave',
    });
  });

  test('are summarised for who may know of them', async () => {
    const room = await create('alice', { name: 'Named', room_alias_name: 'named' });
    const secret = await create('alice', { preset: 'private_chat' });
    const summary = (user: string, target: string) => server.get(user, `/v1/room_summary/${encode(target)}`);
    const { body } = await summary('alice', '#named:here');
    assert.deepEqual(
      [body.room_id, body.name, body.membership, body.room_version, body.allowed_room_ids],
      [room, 'Named', 'join', '11', undefined],
    );
    assert.equal((await summary('bob', secret)).body.errcode, 'M_NOT_FOUND');
    assert.equal((await summary('alice', secret)).body.join_rule, 'invite');
  });
});

describe('upgrades', () => {
  const upgrade = (user: string, room: string, body: object) =>
    server.post(user, `/v3/rooms/${encode(room)}/upgrade`, body);

  test('copy the room, leave a tombstone, and take aliases along', async () => {
    const room = await create('alice', {
      name: 'Old',
      room_alias_name: 'moving',
      visibility: 'public',
      creation_content: { type: 'org.example.kind', 'org.example.other': 1 },
      room_version: '9',
    });
    await join('bob', room);
    await server.engine.membership().ban(room, userId('alice'), userId('mallory'), { reason: 'spam' });
    const levels = await stateOf(room, 'm.room.power_levels');
    levels.users[userId('bob')] = '50';
    await server.send('alice', room, 'm.room.power_levels', levels, '');
    assert.equal((await upgrade('bob', room, { new_version: '11' })).body.errcode, 'M_FORBIDDEN');
    assert.equal(
      (await upgrade('alice', room, { new_version: 'x' })).body.errcode,
      'M_UNSUPPORTED_ROOM_VERSION',
    );
    const replacement = (await upgrade('alice', room, { new_version: '11' })).body.replacement_room;
    assert.equal((await stateOf(room, 'm.room.tombstone')).replacement_room, replacement);
    const created = await stateOf(replacement, 'm.room.create');
    assert.deepEqual(
      [created.type, created.room_version, created['org.example.other']],
      ['org.example.kind', '11', undefined],
    );
    assert.equal(created.predecessor.room_id, room);
    assert.equal((await stateOf(replacement, 'm.room.name')).name, 'Old');
    assert.equal((await stateOf(replacement, 'm.room.join_rules')).join_rule, 'public');
    const { users, events } = await stateOf(replacement, 'm.room.power_levels');
    assert.deepEqual([users[userId('bob')], users[userId('alice')], events], [50, 100, levels.events]);
    assert.equal((await stateOf(replacement, `m.room.member/${userId('mallory')}`)).reason, 'spam');
    const closed = await stateOf(room, 'm.room.power_levels');
    assert.deepEqual([closed.events_default, closed.invite], [50, 50]);
    const alias = await server.get('bob', `/v3/directory/room/${encode('#moving:here')}`);
    assert.equal(alias.body.room_id, replacement);
    assert.deepEqual(await stateOf(room, 'm.room.canonical_alias'), {});
    assert.equal((await stateOf(replacement, 'm.room.canonical_alias')).alias, '#moving:here');
    const published = async (id: string) =>
      (await server.get('bob', `/v3/directory/list/room/${encode(id)}`)).body.visibility;
    assert.deepEqual([await published(room), await published(replacement)], ['private', 'public']);
  });

  test('into version 12 and out of it, translate who stands above all', async () => {
    const room = await create('alice', { room_version: '10' });
    await join('bob', room);
    const levels = await stateOf(room, 'm.room.power_levels');
    levels.users[userId('bob')] = 100;
    await server.send('alice', room, 'm.room.power_levels', levels, '');
    const twelve = (
      await upgrade('alice', room, { new_version: '12', additional_creators: [userId('carol')] })
    ).body.replacement_room;
    assert.deepEqual((await stateOf(twelve, 'm.room.create')).additional_creators, [userId('carol')]);
    assert.deepEqual((await stateOf(twelve, 'm.room.power_levels')).users, { [userId('bob')]: 100 });
    const back = (await upgrade('alice', twelve, { new_version: '11' })).body.replacement_room;
    const expected = { [userId('alice')]: 100, [userId('bob')]: 100, [userId('carol')]: 100 };
    assert.deepEqual((await stateOf(back, 'm.room.power_levels')).users, expected);
  });

  test('by a moderator give them no more power than they had', async () => {
    const room = await create('alice');
    await join('bob', room);
    const levels = await stateOf(room, 'm.room.power_levels');
    levels.users[userId('bob')] = 50;
    levels.events['m.room.tombstone'] = 50;
    await server.send('alice', room, 'm.room.power_levels', levels, '');
    const replacement = (await upgrade('bob', room, { new_version: '11' })).body.replacement_room;
    assert.equal((await stateOf(replacement, 'm.room.power_levels', 'bob')).users[userId('bob')], 50);
    assert.equal(
      (await stateOf(replacement, 'm.room.history_visibility', 'bob')).history_visibility,
      'shared',
    );
    assert.equal((await stateOf(room, 'm.room.tombstone')).replacement_room, replacement);
  });
});

describe('search', () => {
  const search = async (user: string, term: string, more: object = {}, query = '') =>
    (
      await server.post(user, `/v3/search${query}`, {
        search_categories: { room_events: { search_term: term, ...more } },
      })
    ).body.search_categories?.room_events;
  const found = (answer: Any) => answer.results.map((entry: Any) => entry.result.content.body);

  test('finds words in what the user may see', async () => {
    const room = await create('alice', { topic: 'All of gardening' });
    await server.say('alice', room, 'Hello, World');
    const gone = await server.say('alice', room, 'hello to be redacted');
    await server.redact('alice', room, gone);
    await server.say('alice', room, '今日は世界');
    assert.deepEqual(found(await search('alice', 'HELLO')), ['Hello, World']);
    assert.deepEqual(found(await search('alice', '世界')), ['今日は世界']);
    assert.deepEqual(found(await search('alice', 'hello mars')), []);
    const topic = await search('alice', 'gardening', { keys: ['content.topic'] });
    assert.equal(topic.results[0].result.type, 'm.room.topic');
    assert.equal((await search('alice', 'gardening', { keys: ['content.body'] })).count, 0);
    assert.equal((await search('bob', 'hello')).count, 0);
    await join('bob', room);
    await server.engine.membership().leave(room, userId('bob'));
    await server.say('alice', room, 'hello after leaving');
    assert.deepEqual(found(await search('bob', 'hello')), ['Hello, World']);
    assert.deepEqual(found(await search('alice', 'hello', { order_by: 'recent' })), [
      'hello after leaving',
      'Hello, World',
    ]);
    await server.send('alice', room, 'm.room.encryption', { algorithm: 'm.megolm.v1.aes-sha2' }, '');
    assert.equal((await search('alice', 'hello')).count, 0);
  });

  test('gives context, groups and pages', async () => {
    const room = await create('alice');
    await join('bob', room);
    for (let i = 0; i < 9; i++) await server.say(i % 2 ? 'bob' : 'alice', room, `number ${i} banana`);
    const criteria = { order_by: 'recent', filter: { limit: 4, rooms: [room] } };
    const context = await search('alice', 'banana 4', {
      ...criteria,
      event_context: { before_limit: 2, after_limit: 1, include_profile: true },
      include_state: true,
    });
    assert.equal(context.count, 1);
    const { events_before, events_after, profile_info } = context.results[0].context;
    assert.deepEqual(
      [...events_before, ...events_after].map((event: Any) => event.content.body),
      ['number 3 banana', 'number 2 banana', 'number 5 banana'],
    );
    assert.deepEqual(Object.keys(profile_info).sort(), [userId('alice'), userId('bob')]);
    assert.ok(context.state[room].length > 5);
    const grouped = { ...criteria, groupings: { group_by: [{ key: 'sender' }] } };
    const first = await search('alice', 'banana', grouped);
    assert.equal(first.groups.sender[userId('bob')].results.length, 2);
    const second = await search('alice', 'banana', criteria, `?next_batch=${first.next_batch}`);
    assert.deepEqual(
      found(second),
      [4, 3, 2, 1].map((i) => `number ${i} banana`),
    );
    const ofBob = await search(
      'alice',
      'banana',
      criteria,
      `?next_batch=${first.groups.sender[userId('bob')].next_batch}`,
    );
    assert.deepEqual(
      found(ofBob),
      [3, 1].map((i) => `number ${i} banana`),
    );
    const ranked = await search('alice', 'banana', { filter: { limit: 5, rooms: [room] } });
    const rest = await search(
      'alice',
      'banana',
      { filter: { limit: 5, rooms: [room] } },
      `?next_batch=${ranked.next_batch}`,
    );
    assert.equal(new Set([...found(ranked), ...found(rest)]).size, 9);
  });

  test('refuses what it does not know', async () => {
    const status = async (more: object, query = '') =>
      (
        await server.post('alice', `/v3/search${query}`, {
          search_categories: { room_events: { search_term: 'x', ...more } },
        })
      ).status;
    assert.equal(await status({ order_by: 'taste' }), 400);
    assert.equal(await status({ keys: ['content.secret'] }), 400);
    assert.equal(await status({ groupings: { group_by: [{ key: 'mood' }] } }), 400);
    assert.equal(await status({}, '?next_batch=x'), 400);
    assert.equal((await server.post('alice', '/v3/search', {})).status, 400);
  });
});

test('the event closest to a time is found here, or by another server', async () => {
  const room = await create('alice');
  const now = Date.now() + 1_000_000;
  const at = async (ts: number, body: string) => {
    const { sendEvent } = await import('@trellis/rooms/send.ts');
    const draft = { type: 'm.room.message', sender: userId('alice'), content: { body }, originServerTs: ts };
    return (await sendEvent(server.engine.rooms, room, draft)).eventId;
  };
  const [first, second, third] = [await at(now, 'a'), await at(now, 'b'), await at(now + 10, 'c')];
  const closest = async (ts: number, dir: string, user = 'alice') =>
    (await server.get(user, `/v1/rooms/${encode(room)}/timestamp_to_event?ts=${ts}&dir=${dir}`)).body;
  assert.equal((await closest(now, 'f')).event_id, first);
  assert.equal((await closest(now, 'b')).event_id, second);
  assert.deepEqual(await closest(now + 1, 'f'), { event_id: third, origin_server_ts: now + 10 });
  assert.equal((await closest(now + 11, 'f')).errcode, 'M_NOT_FOUND');
  assert.equal((await closest(0, 'b')).errcode, 'M_NOT_FOUND');
  assert.equal((await closest(now, 'f', 'stranger')).errcode, 'M_FORBIDDEN');
  assert.equal((await closest(now, 'x')).errcode, 'M_INVALID_PARAM');

  const live = await server.engine.rooms.require(room);
  live.setMember('@far:elsewhere', { membership: 'join', eventId: '$x', sender: '@far:elsewhere', pos: 1 });
  await server.engine.db.query(
    'INSERT INTO backward_extremities (room, event_id, successor, pos) VALUES ($1, $2, $3, $4)',
    [live.nid, '$missing', first, 1],
  );
  server.others.timestamp = async () => ({ eventId: '$remote', originServerTs: now + 5 });
  assert.equal((await closest(now + 1, 'f')).event_id, '$remote');
  assert.equal((await closest(now + 9, 'f')).event_id, third);
  live.setMember('@far:elsewhere', undefined);
});

test('rooms and events are reported', async () => {
  const room = await create('alice');
  await join('bob', room);
  const event = await server.say('alice', room, 'bad');
  const report = (user: string, path: string, body: object) =>
    server.post(user, `/v3/rooms/${encode(room)}/report${path}`, body);
  assert.equal((await report('bob', `/${encode(event)}`, { reason: 'rude', score: -50 })).status, 200);
  assert.equal(
    (await report('stranger', `/${encode(event)}`, { reason: 'rude' })).body.errcode,
    'M_NOT_FOUND',
  );
  assert.equal((await report('bob', '/$unknown', { reason: 'rude' })).body.errcode, 'M_NOT_FOUND');
  assert.equal((await report('stranger', '', { reason: 'all of it' })).status, 200);
  assert.equal((await report('stranger', '', {})).status, 400);
  const rows = await server.engine.db.query(
    'SELECT reporter, event_id, reason FROM content_reports ORDER BY id',
  );
  assert.deepEqual(rows, [
    { reporter: userId('bob'), event_id: event, reason: 'rude' },
    { reporter: userId('stranger'), event_id: null, reason: 'all of it' },
  ]);
});
