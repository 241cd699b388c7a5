import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { bodies, type Json, SlidingServer, userId } from './sliding.ts';

let server: SlidingServer;
before(async () => {
  server = await SlidingServer.start();
});
after(() => server.close());

let users = 0;
const newUser = () => `user${++users}`;
const join = (user: string, roomId: string) => server.engine.membership().join(roomId, userId(user), []);
const list = (over: object = {}) => ({
  timeline_limit: 1,
  required_state: { include: [] },
  range: [0, 9],
  ...over,
});

async function read(user: string, roomId: string, eventId: string, type = 'm.read'): Promise<void> {
  const event = await server.engine.rooms.parts.events.get(eventId);
  const eventPos = event!.pos!;
  await server.receipts.set({ userId: userId(user), roomId, eventId, type, threadId: null, eventPos, ts: 1 });
}

describe('account data', () => {
  const extensions = { account_data: { enabled: true } };

  it('comes with each room the first time, then as it changes, also out of sight', async () => {
    const user = newUser();
    const [a, b] = [await server.room(user), await server.room(user)];
    for (const room of [a, b]) await server.accountData.set(userId(user), room, 'x', { room });
    await server.accountData.set(userId(user), null, 'g', { n: 1 });
    const top = { all: list({ range: [0, 0] }) };
    const first = await server.sync(user, { lists: top, extensions });
    const { global, rooms } = first.extensions.account_data;
    assert.deepEqual(global.map((item: Json) => item.type).sort(), ['g', 'm.push_rules']);
    assert.deepEqual(rooms, { [b]: [{ type: 'x', content: { room: b } }] });
    const second = await server.sync(user, { pos: first.pos, lists: { all: list() }, extensions });
    assert.deepEqual(second.extensions.account_data, {
      global: [],
      rooms: { [a]: [{ type: 'x', content: { room: a } }] },
    });
    await server.accountData.set(userId(user), a, 'x', { changed: true });
    await server.accountData.set(userId(user), null, 'g', { n: 2 });
    const third = await server.sync(user, { pos: second.pos, lists: top, extensions });
    assert.deepEqual(third.extensions.account_data, {
      global: [{ type: 'g', content: { n: 2 } }],
      rooms: {},
    });
    const fourth = await server.sync(user, { pos: third.pos, lists: { all: list() }, extensions });
    assert.deepEqual(fourth.extensions.account_data.rooms, {
      [a]: [{ type: 'x', content: { changed: true } }],
    });
    const fifth = await server.sync(user, { pos: fourth.pos, lists: { all: list() }, extensions });
    assert.deepEqual(fifth.extensions.account_data, { global: [], rooms: {} });
  });

  it('is of the lists and subscriptions that are named', async () => {
    const user = newUser();
    const [a, b] = [await server.room(user), await server.room(user)];
    for (const room of [a, b]) await server.accountData.set(userId(user), room, 'x', { y: 1 });
    const request = {
      lists: { top: list({ range: [0, 0] }), none: list({ filters: { is_dm: true } }) },
      room_subscriptions: { [a]: { timeline_limit: 1, required_state: {} } },
    };
    for (const [args, rooms] of [
      [{}, [a, b]],
      [{ lists: ['top'], rooms: [] }, [b]],
      [{ lists: ['none'] }, [a]],
      [{ lists: [], rooms: [a, b] }, [a]],
    ] as const) {
      const extensions = { account_data: { enabled: true, ...args } };
      const answer = await server.sync(user, { ...request, extensions });
      assert.deepEqual(Object.keys(answer.extensions.account_data.rooms).sort(), [...rooms].sort());
    }
  });
});

describe('receipts', () => {
  const extensions = { receipts: { enabled: true } };

  it('of a new room are those on events that are shown, and the own ones; then all', async () => {
    const [user, other, third] = [newUser(), newUser(), newUser()];
    const room = await server.room(user);
    for (const member of [other, third]) await join(member, room);
    const [old, shown] = [await server.say(user, room, 'old'), await server.say(user, room, 'shown')];
    await read(other, room, old);
    await read(third, room, shown);
    await read(user, room, old, 'm.read.private');
    const first = await server.sync(user, { lists: { all: list() }, extensions });
    assert.deepEqual(first.extensions.receipts.rooms[room], {
      type: 'm.receipt',
      content: {
        [old]: { 'm.read.private': { [userId(user)]: { ts: 1 } } },
        [shown]: { 'm.read': { [userId(third)]: { ts: 1 } } },
      },
    });
    await read(other, room, shown);
    const second = await server.sync(user, { pos: first.pos, lists: { all: list() }, extensions });
    assert.deepEqual(second.rooms, {});
    assert.deepEqual(second.extensions.receipts.rooms[room].content, {
      [shown]: { 'm.read': { [userId(other)]: { ts: 1 } } },
    });
    const theirs = await server.sync(other, { lists: { all: list() }, extensions });
    assert.ok(!JSON.stringify(theirs.extensions).includes('private'));
  });

  it('are kept for those who do not ask for them now', async () => {
    const [user, other] = [newUser(), newUser()];
    const room = await server.room(user);
    await join(other, room);
    const event = await server.say(user, room, 'hi');
    const first = await server.sync(user, { lists: { all: list() }, extensions });
    await read(other, room, event);
    const second = await server.sync(user, { pos: first.pos, lists: { all: list() } });
    assert.equal(second.extensions.receipts, undefined);
    const third = await server.sync(user, { pos: second.pos, lists: { all: list() }, extensions });
    assert.ok(third.extensions.receipts.rooms[room].content[event]);
  });

  it('wake who waits', async () => {
    const [user, other] = [newUser(), newUser()];
    const room = await server.room(user);
    await join(other, room);
    const event = await server.say(user, room, 'hi');
    const first = await server.sync(user, { lists: { all: list() }, extensions });
    const waiting = server.sync(user, {
      pos: first.pos,
      timeout: 20_000,
      lists: { all: list() },
      extensions,
    });
    await read(other, room, event);
    assert.ok((await waiting).extensions.receipts.rooms[room].content[event]);
  });
});

describe('typing', () => {
  it('is told as it begins and ends', async () => {
    const [user, other] = [newUser(), newUser()];
    const room = await server.room(user);
    await join(other, room);
    const body = { lists: { all: list() }, extensions: { typing: { enabled: true } } };
    const first = await server.sync(user, body);
    assert.deepEqual(first.extensions.typing.rooms, {});
    server.typing.start(room, userId(other), 10_000);
    const second = await server.sync(user, { ...body, pos: first.pos });
    assert.deepEqual(second.extensions.typing.rooms[room].content, { user_ids: [userId(other)] });
    server.typing.stop(room, userId(other));
    const third = await server.sync(user, { ...body, pos: second.pos });
    assert.deepEqual(third.extensions.typing.rooms[room].content, { user_ids: [] });
  });
});

describe('thread subscriptions', () => {
  const NAME = 'io.element.msc4308.thread_subscriptions';
  const pathOf = (room: string, thread: string) =>
    `/unstable/io.element.msc4306/rooms/${encodeURIComponent(room)}/thread/${encodeURIComponent(thread)}/subscription`;

  it('are told, with those left out to page back to', async () => {
    const user = newUser();
    const room = await server.room(user);
    const roots = [];
    for (let i = 0; i < 4; i++) roots.push(await server.say(user, room, `root${i}`));
    const ask = (pos: string | undefined, limit: number) =>
      server.sync(user, { ...(pos && { pos }), extensions: { [NAME]: { enabled: true, limit } } });
    const first = await ask(undefined, 2);
    assert.equal(first.extensions[NAME], undefined);
    for (const root of roots)
      assert.equal((await server.ask(user, 'PUT', pathOf(room, root), {})).status, 200);
    await server.ask(user, 'DELETE', pathOf(room, roots[3]!));
    const second = await ask(first.pos, 2);
    const { subscribed, unsubscribed, prev_batch: token } = second.extensions[NAME];
    assert.deepEqual(Object.keys(subscribed[room]), [roots[2]]);
    assert.equal(subscribed[room][roots[2]!].automatic, false);
    assert.ok(unsubscribed[room][roots[3]!].bump_stamp > subscribed[room][roots[2]!].bump_stamp);
    const page = (query: string) =>
      server.ask(user, 'GET', `/unstable/io.element.msc4308/thread_subscriptions?${query}`);
    const older = await page(`dir=b&limit=1&from=${token}&to=${first.pos}`);
    assert.deepEqual(Object.keys(older.body.subscribed[room]), [roots[1]]);
    const oldest = await page(`dir=b&from=${older.body.end}&to=${first.pos}`);
    assert.deepEqual([Object.keys(oldest.body.subscribed[room]), oldest.body.end], [[roots[0]], undefined]);
    const none = await page(`dir=b&to=${second.pos}`);
    assert.deepEqual(none.body, {});
    for (const query of ['', 'dir=f', 'dir=b&limit=0', 'dir=b&from=x'])
      assert.equal((await page(query)).status, 400, query);
    // To a new connection what is over is no news.
    assert.equal((await ask(undefined, 10)).extensions[NAME].unsubscribed, undefined);
  });

  it('of threads that the user cannot see do not exist', async () => {
    const [user, owner] = [newUser(), newUser()];
    const room = await server.room(owner, { preset: 'private_chat' });
    const root = await server.say(owner, room, 'root');
    for (const method of ['GET', 'PUT', 'DELETE'] as const) {
      const { status, body } = await server.ask(
        user,
        method,
        pathOf(room, root),
        method === 'PUT' ? {} : undefined,
      );
      assert.deepEqual([status, body.errcode], [404, 'M_NOT_FOUND']);
    }
  });

  it('survive in the database', async () => {
    const user = newUser();
    const room = await server.room(user);
    const root = await server.say(user, room, 'root');
    await server.ask(user, 'PUT', pathOf(room, root), {});
    const { ThreadSubscriptions } = await import('@trellis/users/thread-subscriptions.ts');
    const again = new ThreadSubscriptions({ db: server.engine.db, stream: server.streams.accountData });
    assert.equal((await again.get(userId(user), room, root))?.automatic, false);
    assert.equal((await again.subscribedTo(userId(user)))?.(room, root), true);
    assert.equal(await again.subscribedTo(userId(newUser())), undefined);
    await again.erase(userId(user));
    assert.equal(await again.get(userId(user), room, root), undefined);
  });
});

describe('rooms without a list', () => {
  it('are not told, and their news is not lost', async () => {
    const user = newUser();
    const room = await server.room(user);
    const first = await server.sync(user, { lists: { all: list() } });
    await server.say(user, room, 'one');
    const second = await server.sync(user, { pos: first.pos });
    assert.deepEqual(second.rooms, {});
    const third = await server.sync(user, { pos: second.pos, lists: { all: list({ timeline_limit: 1 }) } });
    assert.deepEqual(bodies(third.rooms[room]), ['one']);
  });
});
