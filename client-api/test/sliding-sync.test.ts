import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { bodies, type Json, SlidingServer, stateOf, userId } from './sliding.ts';

let server: SlidingServer;
before(async () => {
  server = await SlidingServer.start();
});
after(() => server.close());

let users = 0;
/** Nobody else's rooms are in the way. */
const newUser = () => `user${++users}`;

const NO_STATE = { include: [] };
const list = (over: object = {}) => ({ timeline_limit: 1, required_state: NO_STATE, range: [0, 9], ...over });
const order = (answer: Json): string[] => Object.keys(answer.rooms);
const join = (user: string, roomId: string) => server.engine.membership().join(roomId, userId(user), []);

describe('lists', () => {
  it('have the rooms by their newest event, in windows that can grow, and tell each room once', async () => {
    const user = newUser();
    const rooms = [];
    for (const name of ['a', 'b', 'c', 'd']) rooms.push(await server.room(user, { name }));
    const [a, b, c, d] = rooms as [string, string, string, string];
    await server.say(user, b, 'up');
    const first = await server.sync(user, { lists: { all: list({ range: [0, 1] }) } });
    assert.deepEqual([order(first), first.lists.all], [[b, d], { count: 4 }]);
    assert.deepEqual(first.rooms[b].initial, true);
    const second = await server.sync(user, { pos: first.pos, lists: { all: list({ range: [0, 3] }) } });
    assert.deepEqual(order(second), [c, a]);
    await server.say(user, a, 'news');
    const third = await server.sync(user, { pos: second.pos, lists: { all: list({ range: [0, 0] }) } });
    assert.deepEqual(order(third), [a]);
    assert.deepEqual([third.rooms[a].initial, bodies(third.rooms[a])], [undefined, ['news']]);
    const fourth = await server.sync(user, { pos: third.pos, lists: { all: list() } });
    assert.deepEqual(order(fourth), []);
  });

  it('catch a room up when it comes back into sight', async () => {
    const user = newUser();
    const [a, b] = [await server.room(user), await server.room(user)];
    const both = await server.sync(user, { lists: { all: list() } });
    await server.say(user, a, 'one');
    await server.say(user, b, 'two');
    const top = await server.sync(user, { pos: both.pos, lists: { all: list({ range: [0, 0] }) } });
    assert.deepEqual(order(top), [b]);
    await server.say(user, b, 'three');
    const again = await server.sync(user, { pos: top.pos, lists: { all: list({ timeline_limit: 1 }) } });
    assert.deepEqual([bodies(again.rooms[a]), bodies(again.rooms[b])], [['one'], ['three']]);
    assert.equal(again.rooms[a].initial, undefined);
    assert.equal(again.rooms[a].num_live, 0);
    assert.equal(again.rooms[b].num_live, 1);
  });

  it('are filtered by everything there is to filter by', async () => {
    const user = newUser();
    const encryption = { type: 'm.room.encryption', content: { algorithm: 'm.megolm.v1.aes-sha2' } };
    const secret = await server.room(user, { name: 'Secret', initial_state: [encryption] });
    const space = await server.room(user, { creation_content: { type: 'm.space' } });
    const child = await server.room(user, { name: 'Child play' });
    await server.send(user, space, 'm.space.child', { via: ['here'] }, child);
    await server.send(user, space, 'm.space.child', {}, secret);
    const dm = await server.room(user, { invite: [userId('other')] });
    const host = newUser();
    const invite = await server.room(host, { name: 'Come in', invite: [userId(user)] });
    await server.accountData.set(userId(user), null, 'm.direct', { '@other:here': [dm] });
    await server.accountData.set(userId(user), child, 'm.tag', { tags: { 'm.favourite': {} } });

    const found = async (filters: object) => {
      const lists = { all: list({ filters }) };
      const { rooms } = await server.sync(user, { conn_id: 'filters', lists });
      const names = new Map([
        [secret, 'secret'],
        [space, 'space'],
        [child, 'child'],
        [dm, 'dm'],
        [invite, 'invite'],
      ]);
      return Object.keys(rooms)
        .map((roomId) => names.get(roomId))
        .sort()
        .join(' ');
    };
    const expected: Array<[object, string]> = [
      [{}, 'child dm invite secret space'],
      [{ is_dm: true }, 'dm'],
      [{ is_dm: false }, 'child invite secret space'],
      [{ is_encrypted: true }, 'secret'],
      [{ is_invited: true }, 'invite'],
      [{ is_invite: false, is_dm: false, is_encrypted: false }, 'child space'],
      [{ room_types: ['m.space'] }, 'space'],
      [{ room_types: [null, 'm.space'], not_room_types: ['m.space'] }, 'child dm invite secret'],
      [{ tags: ['m.favourite', 'x'] }, 'child'],
      [{ not_tags: ['m.favourite'] }, 'dm invite secret space'],
      [{ spaces: [space, '!unknown:here'] }, 'child'],
      [{ spaces: [secret] }, ''],
      [{ room_name_like: 'CHILD' }, 'child'],
    ];
    for (const [filters, names] of expected)
      assert.equal(await found(filters), names, JSON.stringify(filters));

    // And follow what changes.
    await server.send(user, child, 'm.room.encryption', { algorithm: 'm.megolm.v1.aes-sha2' }, '');
    assert.equal(await found({ is_encrypted: true }), 'child secret');
    await server.accountData.set(userId(user), null, 'm.direct', {});
    assert.equal(await found({ is_dm: true }), '');
    await server.accountData.set(userId(user), secret, 'm.tag', { tags: { x: {} } });
    assert.equal(await found({ tags: ['m.favourite', 'x'] }), 'child secret');
    await server.send(user, space, 'm.space.child', { via: ['here'] }, dm);
    assert.equal(await found({ spaces: [space] }), 'child dm');
    await join(user, invite);
    assert.equal(await found({ is_invited: true }), '');
  });

  it('leave out invites of ignored users', async () => {
    const [user, host] = [newUser(), newUser()];
    await server.room(host, { invite: [userId(user)] });
    assert.equal((await server.sync(user, { lists: { all: list() } })).lists.all.count, 1);
    await server.accountData.set(userId(user), null, 'm.ignored_user_list', {
      ignored_users: { [userId(host)]: {} },
    });
    const { lists, rooms } = await server.sync(user, { lists: { all: list() } });
    assert.deepEqual([lists.all.count, rooms], [0, {}]);
  });

  it('of which there are too many are refused, as are those that make no sense', async () => {
    const many = Object.fromEntries(Array.from({ length: 101 }, (_, i) => [`l${i}`, list()]));
    for (const [body, errcode] of [
      [{ lists: many }, 'M_INVALID_PARAM'],
      [{ lists: { x: list({ range: [5, 2] }) } }, 'M_INVALID_PARAM'],
      [{ lists: { x: list({ range: [-1, 2] }) } }, 'M_BAD_JSON'],
      [{ lists: { x: { range: [0, 2] } } }, 'M_BAD_JSON'],
      [{ set_presence: 'asleep' }, 'M_INVALID_PARAM'],
      [{ pos: 'nonsense' }, 'M_UNKNOWN_POS'],
    ] as const) {
      const answer = await server.ask('nobody', 'POST', '/v4/sync', body);
      assert.deepEqual(
        [answer.status, answer.body.errcode],
        [400, errcode],
        JSON.stringify(body).slice(0, 80),
      );
    }
  });
});

describe('rooms', () => {
  const subscribe = (roomId: string, over: object = {}) => ({
    room_subscriptions: { [roomId]: { timeline_limit: 10, required_state: NO_STATE, ...over } },
  });

  it('tell their state as far as it is asked for, and its changes', async () => {
    const [user, other] = [newUser(), newUser()];
    const room = await server.room(user, { name: 'Old', topic: 'Talk' });
    await join(other, room);
    const named = {
      include: [
        { type: 'm.room.name', state_key: '' },
        { type: 'm.room.member', state_key: userId(user) },
        { type: 'org.x' },
      ],
    };
    const first = await server.sync(user, subscribe(room, { required_state: named }));
    assert.deepEqual(stateOf(first.rooms[room]), [`m.room.member ${userId(user)}`, 'm.room.name ']);
    assert.equal(first.rooms[room].name, 'Old');
    assert.equal(first.rooms[room].heroes, undefined);
    assert.deepEqual([first.rooms[room].joined_count, first.rooms[room].invited_count], [2, 0]);
    assert.equal(first.rooms[room].membership, 'join');

    await server.send(user, room, 'm.room.name', { name: 'New' }, '');
    await server.send(user, room, 'm.room.topic', { topic: 'unasked' }, '');
    await server.send(user, room, 'org.x', {}, 'k');
    const second = await server.sync(user, { pos: first.pos, ...subscribe(room, { required_state: named }) });
    assert.deepEqual(stateOf(second.rooms[room]), ['m.room.name ', 'org.x k']);
    assert.deepEqual([second.rooms[room].name, second.rooms[room].joined_count], ['New', undefined]);

    // More is asked for: only that is told, at once.
    const wide = { include: [{}], exclude: [{ type: 'm.room.power_levels' }], lazy_members: true };
    const third = await server.sync(user, { pos: second.pos, ...subscribe(room, { required_state: wide }) });
    const told = stateOf(third.rooms[room]);
    assert.ok(told.includes('m.room.topic ') && told.includes('m.room.create '));
    for (const absent of ['m.room.name ', 'm.room.power_levels ', 'org.x k'])
      assert.ok(!told.includes(absent), absent);
    await server.send(user, room, 'm.room.name', {}, '');
    const fourth = await server.sync(user, { pos: third.pos, ...subscribe(room, { required_state: wide }) });
    assert.equal(fourth.rooms[room].name, null);
    assert.deepEqual(
      fourth.rooms[room].heroes.map((hero: Json) => hero.user_id),
      [userId(other)],
    );
  });

  it('load members lazily', async () => {
    const [user, other, third] = [newUser(), newUser(), newUser()];
    const room = await server.room(user);
    await join(other, room);
    await join(third, room);
    await server.say(other, room, 'hi');
    const config = { timeline_limit: 1, required_state: { include: [], lazy_members: true } };
    const first = await server.sync(user, subscribe(room, config));
    assert.deepEqual(stateOf(first.rooms[room]), [`m.room.member ${userId(other)}`]);
    await server.say(other, room, 'again');
    const second = await server.sync(user, { pos: first.pos, ...subscribe(room, config) });
    assert.deepEqual([bodies(second.rooms[room]), stateOf(second.rooms[room])], [['again'], []]);
    await server.engine.membership().leave(room, userId(third));
    const fourth = await server.sync(user, { pos: second.pos, ...subscribe(room, config) });
    assert.deepEqual(stateOf(fourth.rooms[room]), [`m.room.member ${userId(third)}`]);
    assert.equal(fourth.rooms[room].joined_count, 2);
  });

  it('say when the timeline is limited, and expand it', async () => {
    const user = newUser();
    const room = await server.room(user);
    for (let i = 0; i < 6; i++) await server.say(user, room, `m${i}`);
    const first = await server.sync(user, subscribe(room, { timeline_limit: 1 }));
    assert.deepEqual([bodies(first.rooms[room]), first.rooms[room].limited], [['m5'], true]);
    const more = await server.sync(user, { pos: first.pos, ...subscribe(room, { timeline_limit: 3 }) });
    assert.deepEqual(bodies(more.rooms[room]), ['m3', 'm4', 'm5']);
    assert.deepEqual(
      [more.rooms[room].expanded_timeline, more.rooms[room].initial, more.rooms[room].num_live],
      [true, undefined, 0],
    );
    // Going back and forth tells nothing twice while the client misses nothing.
    const less = await server.sync(user, { pos: more.pos, ...subscribe(room, { timeline_limit: 1 }) });
    await server.say(user, room, 'm6');
    const again = await server.sync(user, { pos: less.pos, ...subscribe(room, { timeline_limit: 3 }) });
    assert.deepEqual([bodies(again.rooms[room]), again.rooms[room].expanded_timeline], [['m6'], undefined]);
    // With `pos` as a place the history goes on.
    const page = await server.ask(
      user,
      'GET',
      `/v3/rooms/${encodeURIComponent(room)}/messages?dir=b&limit=1&from=${again.pos}`,
    );
    assert.equal(page.body.chunk[0].content.body, 'm6');
    const older = await server.ask(
      user,
      'GET',
      `/v3/rooms/${encodeURIComponent(room)}/messages?dir=b&limit=1&from=${more.rooms[room].prev_batch}`,
    );
    assert.equal(older.body.chunk[0].content.body, 'm2');
  });

  it('of others are no business of the user', async () => {
    const [user, owner] = [newUser(), newUser()];
    const room = await server.room(owner);
    const answer = await server.sync(user, subscribe(room));
    assert.deepEqual(answer.rooms, {});
  });

  it('show invites and knocks from outside, and the room once joined', async () => {
    const [user, owner] = [newUser(), newUser()];
    const room = await server.room(owner, { name: 'Party', preset: 'private_chat', invite: [userId(user)] });
    const first = await server.sync(user, { lists: { all: list() } });
    const { stripped_state: stripped, timeline, required_state: state } = first.rooms[room];
    assert.ok(stripped.some((event: Json) => event.type === 'm.room.name' && event.content.name === 'Party'));
    assert.deepEqual([timeline, state, first.rooms[room].membership], [undefined, undefined, 'invite']);
    await join(user, room);
    const second = await server.sync(user, { pos: first.pos, lists: { all: list() } });
    assert.deepEqual([second.rooms[room].initial, second.rooms[room].membership], [true, 'join']);
  });

  it('tell those who leave or are removed up to that, and nothing after', async () => {
    const [user, owner] = [newUser(), newUser()];
    const [left, kicked] = [await server.room(owner), await server.room(owner)];
    for (const room of [left, kicked]) await join(user, room);
    const lists = { all: list({ timeline_limit: 10, required_state: { include: [{ type: 'org.x' }] } }) };
    const first = await server.sync(user, { lists });
    await server.engine.membership().leave(left, userId(user));
    await server.engine.membership().set(kicked, userId(owner), userId(user), { membership: 'ban' });
    for (const room of [left, kicked]) {
      await server.say(owner, room, 'secret');
      await server.send(owner, room, 'org.x', {}, '');
    }
    const second = await server.sync(user, { pos: first.pos, lists });
    for (const [room, membership] of [
      [left, 'leave'],
      [kicked, 'ban'],
    ] as const) {
      const result = second.rooms[room];
      assert.deepEqual(
        [result.membership, bodies(result), stateOf(result)],
        [membership, [], [`m.room.member ${userId(user)}`]],
      );
      assert.equal(result.timeline.at(-1).content.membership, membership);
    }
    assert.equal(second.lists.all.count, 1);
    await server.say(owner, kicked, 'secret');
    const third = await server.sync(user, { pos: second.pos, lists, ...subscribe(kicked) });
    assert.deepEqual(third.rooms, {});
    const anew = await server.sync(user, { conn_id: 'anew', lists });
    assert.deepEqual(order(anew), [kicked]);
    assert.ok(!bodies(anew.rooms[kicked]).includes('secret'));
    await join(user, left);
    const back = await server.sync(user, { pos: third.pos, lists });
    assert.equal(back.rooms[left].initial, true);
  });

  it('rank by activity that counts', async () => {
    const user = newUser();
    const room = await server.room(user);
    await server.say(user, room, 'hi');
    const first = await server.sync(user, subscribe(room));
    await server.send(user, room, 'm.reaction', {});
    const second = await server.sync(user, { pos: first.pos, ...subscribe(room) });
    assert.equal(second.rooms[room].bump_stamp, first.rooms[room].bump_stamp);
    await server.say(user, room, 'ho');
    const third = await server.sync(user, { pos: second.pos, ...subscribe(room) });
    assert.ok(third.rooms[room].bump_stamp > first.rooms[room].bump_stamp);
  });

  it('say whether they are direct chats when that changes', async () => {
    const user = newUser();
    const room = await server.room(user);
    const first = await server.sync(user, { lists: { all: list() } });
    assert.equal(first.rooms[room].is_dm, undefined);
    await server.accountData.set(userId(user), null, 'm.direct', { '@x:here': [room] });
    const second = await server.sync(user, { pos: first.pos, lists: { all: list() } });
    assert.deepEqual([second.rooms[room].is_dm, second.rooms[room].lists], [true, ['all']]);
  });
});

describe('connections', () => {
  it('answer again what may not have arrived', async () => {
    const user = newUser();
    const room = await server.room(user);
    const lists = { all: list({ required_state: { include: [], lazy_members: true } }) };
    const first = await server.sync(user, { lists });
    await server.say(user, room, 'one');
    const lost = await server.sync(user, { pos: first.pos, lists });
    await server.say(user, room, 'two');
    const again = await server.sync(user, { pos: first.pos, lists: { all: list({ timeline_limit: 5 }) } });
    assert.deepEqual(
      [bodies(lost.rooms[room]), bodies(again.rooms[room]).slice(-2)],
      [['one'], ['one', 'two']],
    );
    const unknown = await server.ask(user, 'POST', '/v4/sync', { pos: lost.pos, lists });
    assert.equal(unknown.body.errcode, 'M_UNKNOWN_POS');
    const next = await server.sync(user, { pos: again.pos, lists });
    assert.deepEqual(next.rooms, {});
    const behind = await server.ask(user, 'POST', '/v4/sync', { pos: first.pos, lists });
    assert.equal(behind.body.errcode, 'M_UNKNOWN_POS');
  });

  it('belong to one user, device and name', async () => {
    const user = newUser();
    await server.room(user);
    const { pos } = await server.sync(user, { conn_id: 'a', lists: { all: list() } });
    for (const [asker, connId] of [
      [newUser(), 'a'],
      [`${user}/OTHER`, 'a'],
      [user, 'b'],
    ] as const) {
      const answer = await server.ask(asker, 'POST', '/v4/sync', { pos, conn_id: connId });
      assert.deepEqual([answer.status, answer.body.errcode], [400, 'M_UNKNOWN_POS']);
    }
    await server.sync(user, { pos, conn_id: 'a', lists: { all: list() } });
  });

  it('are few for each user', async () => {
    const user = newUser();
    const { pos } = await server.sync(user, { conn_id: 'first' });
    for (let i = 0; i < 20; i++) await server.sync(user, { conn_id: `c${i}` });
    const answer = await server.ask(user, 'POST', '/v4/sync', { pos, conn_id: 'first' });
    assert.equal(answer.body.errcode, 'M_UNKNOWN_POS');
  });

  it('wait for news, and end when another request comes', async () => {
    const user = newUser();
    const room = await server.room(user);
    const lists = { all: list() };
    const first = await server.sync(user, { lists });
    const waiting = server.sync(user, { pos: first.pos, lists, timeout: 20_000 });
    await new Promise((wake) => setTimeout(wake, 50));
    await server.say(user, room, 'wake');
    const second = await waiting;
    assert.deepEqual(bodies(second.rooms[room]), ['wake']);
    const begun = Date.now();
    const givenUp = server.sync(user, { pos: second.pos, lists, timeout: 20_000 });
    await new Promise((wake) => setTimeout(wake, 50));
    const other = await server.sync(user, { pos: second.pos, lists, timeout: 100 });
    await givenUp;
    assert.ok(Date.now() - begun < 5_000);
    await server.say(user, room, 'more');
    const last = await server.sync(user, { pos: other.pos, lists });
    assert.deepEqual(bodies(last.rooms[room]), ['more']);
  });
});

describe('the older dialect', () => {
  const older = async (user: string, body: object, query = ''): Promise<Json> => {
    const url = `/unstable/org.matrix.simplified_msc3575/sync${query}`;
    const answer = await server.ask(user, 'POST', url, body);
    assert.equal(answer.status, 200, JSON.stringify(answer.body));
    return answer.body;
  };

  it('has its own names for the same', async () => {
    const [user, owner] = [newUser(), newUser()];
    const room = await server.room(user, { name: 'Room' });
    for (let i = 0; i < 3; i++) await server.say(user, room, `m${i}`);
    const invite = await server.room(owner, { invite: [userId(user)] });
    const lists = {
      all: {
        ranges: [
          [0, 0],
          [1, 5],
        ],
        timeline_limit: 1,
        required_state: [
          ['m.room.member', '$ME'],
          ['m.room.*', ''],
          ['*', 'odd'],
          ['m.room.create', '*'],
        ],
      },
    };
    await server.send(user, room, 'org.x', {}, 'odd');
    const first = await older(user, { txn_id: 't', lists });
    assert.equal(first.txn_id, 't');
    assert.deepEqual(first.lists.all, {
      count: 2,
      ops: [
        { op: 'SYNC', range: [0, 0], room_ids: [room] },
        { op: 'SYNC', range: [1, 5], room_ids: [invite] },
      ],
    });
    assert.deepEqual(stateOf(first.rooms[room]), [
      'm.room.create ',
      `m.room.member ${userId(user)}`,
      'org.x odd',
    ]);
    assert.ok(first.rooms[invite].invite_state.length > 0);
    assert.deepEqual([first.rooms[room].notification_count, first.rooms[room].membership], [0, undefined]);
    const room_subscriptions = {
      [room]: {
        timeline_limit: 3,
        required_state: [
          ['*', '*'],
          ['m.room.member', '$LAZY'],
        ],
      },
    };
    const second = await older(user, { lists, room_subscriptions }, `?pos=${first.pos}&timeout=0`);
    assert.equal(second.rooms[room].unstable_expanded_timeline, true);
    assert.equal(second.rooms[room].timeline.length, 3);
    assert.ok(stateOf(second.rooms[room]).includes('m.room.name '));
  });
});
