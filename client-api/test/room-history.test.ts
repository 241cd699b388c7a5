import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { RoomReading, userId } from './room-reading.ts';

let server: RoomReading;
before(async () => {
  server = await RoomReading.start();
});
after(() => server.close());

// biome-ignore lint/suspicious/noExplicitAny: events of every shape
type Any = any;
const bodies = (events: Any[]) => events.flatMap((event) => event.content.body ?? []);
const encode = encodeURIComponent;

async function publicRoom(...joining: string[]): Promise<string> {
  const roomId = await server.engine.createRoom(userId('alice'), {
    preset: 'public_chat',
    room_version: '11',
  });
  for (const user of joining) await server.engine.membership().join(roomId, userId(user), []);
  return roomId;
}

describe('/messages', () => {
  let room: string;
  beforeEach(async () => {
    room = await publicRoom('bob');
    for (let i = 0; i < 12; i++) await server.say(i % 2 ? 'bob' : 'alice', room, `m${i}`);
  });
  const messages = (user: string, query: string) =>
    server.get(user, `/v3/rooms/${encode(room)}/messages?${query}`);

  test('goes through the room page by page, either way, and says when there is no more', async () => {
    for (const dir of ['b', 'f']) {
      const ids: string[] = [];
      let from = '';
      for (;;) {
        const { body } = await messages('alice', `dir=${dir}&limit=5${from && `&from=${from}`}`);
        ids.push(...body.chunk.map((event: Any) => event.event_id));
        if (body.end === undefined) break;
        from = body.end;
        assert.ok(ids.length < 50);
      }
      const { chunk } = (await messages('alice', `dir=${dir}&limit=100`)).body;
      assert.deepEqual(
        ids,
        chunk.map((event: Any) => event.event_id),
      );
      assert.equal(chunk.length, new Set(ids).size);
      assert.equal(chunk[dir === 'f' ? 0 : chunk.length - 1].type, 'm.room.create');
    }
  });

  test('lets a selective filter look further than the limit', async () => {
    const filter = encode(JSON.stringify({ types: ['m.room.create'] }));
    const { body } = await messages('alice', `dir=b&limit=1&filter=${filter}`);
    assert.deepEqual(
      body.chunk.map((event: Any) => event.type),
      ['m.room.create'],
    );
    assert.equal(body.end, undefined);
  });

  test('gives the members of the senders with lazy loading', async () => {
    const filter = encode(JSON.stringify({ lazy_load_members: true }));
    const { body } = await messages('alice', `dir=b&limit=1&filter=${filter}`);
    assert.deepEqual(
      body.state.map((event: Any) => event.state_key),
      [userId('bob')],
    );
  });

  test('leaves out what ignored users say', async () => {
    server.ignored.set(userId('alice'), new Set([userId('bob')]));
    const { body } = await messages('alice', 'dir=b&limit=3');
    server.ignored.clear();
    assert.deepEqual(bodies(body.chunk), ['m10', 'm8', 'm6']);
  });

  test('shows those who left what was before, and those who forgot nothing', async () => {
    await server.engine.membership().leave(room, userId('bob'));
    await server.say('alice', room, 'later');
    const { body } = await messages('bob', 'dir=b&limit=2');
    assert.deepEqual(
      body.chunk.map((event: Any) => event.content.membership ?? event.content.body),
      ['leave', 'm11'],
    );
    const forward = await messages('bob', `dir=f&from=${body.start}`);
    assert.deepEqual(forward.body.chunk, []);
    await server.engine.memberships.of(userId('bob'));
    await server.engine.memberships.forget(userId('bob'), room);
    const forgotten = await messages('bob', '');
    assert.deepEqual([forgotten.status, forgotten.body.errcode], [403, 'M_FORBIDDEN']);
  });

  test('fills gaps from other servers, and goes on where one request ends', async () => {
    const live = await server.engine.rooms.require(room);
    const gapAt = async (body: string) => {
      const all = await server.engine.rooms.parts.events.timeline(live.nid, {
        direction: 'forward',
        limit: 100,
      });
      const { pos, eventId } = all.find((event) => event.content.body === body)!;
      await server.engine.db.query(
        'INSERT INTO backward_extremities (room, event_id, successor, pos) VALUES ($1, $2, $3, $4)',
        [live.nid, `$missing-${body}`, eventId, pos],
      );
      return pos!;
    };
    const gaps = [await gapAt('m8'), await gapAt('m4')];
    const asked: number[] = [];
    server.others.backfill = async (_room, pos) => {
      asked.push(pos);
      await server.engine.db.query('DELETE FROM backward_extremities WHERE pos = $1', [pos]);
      return true;
    };
    const near = await messages('alice', 'dir=b&limit=2');
    assert.deepEqual([bodies(near.body.chunk), asked], [['m11', 'm10'], []]);
    const all = await messages('alice', 'dir=b&limit=100');
    assert.deepEqual([asked, bodies(all.body.chunk).length], [gaps, 12]);

    await gapAt('m8');
    server.others.backfill = async () => true;
    const cut = await messages('alice', 'dir=b&limit=100');
    assert.deepEqual(bodies(cut.body.chunk), ['m11', 'm10', 'm9', 'm8']);
    asked.length = 0;
    server.others.backfill = async (_room, pos) => {
      asked.push(pos);
      return false;
    };
    const rest = await messages('alice', `dir=b&limit=3&from=${cut.body.end}`);
    assert.deepEqual([bodies(rest.body.chunk), asked], [['m7', 'm6', 'm5'], [gaps[0]]]);
  });

  test('refuses what it does not understand', async () => {
    for (const query of [
      '',
      'dir=x',
      'dir=b&limit=ten',
      'dir=b&from=y',
      'dir=b&to=-',
      'dir=b&filter=%7B',
      'dir=b&dir=f',
    ])
      assert.equal((await messages('alice', query)).status, 400, query);
    assert.equal((await messages('stranger', 'dir=b')).status, 403);
  });
});

test('/context shows what is round an event', async () => {
  const room = await publicRoom();
  const ids: string[] = [];
  for (let i = 0; i < 7; i++) ids.push(await server.say('alice', room, `c${i}`));
  const { body } = await server.get('alice', `/v3/rooms/${encode(room)}/context/${encode(ids[3]!)}?limit=3`);
  assert.equal(body.event.event_id, ids[3]);
  assert.deepEqual([bodies(body.events_before), bodies(body.events_after)], [['c2'], ['c4', 'c5']]);
  const older = await server.get(
    'alice',
    `/v3/rooms/${encode(room)}/messages?dir=b&limit=1&from=${body.start}`,
  );
  const newer = await server.get(
    'alice',
    `/v3/rooms/${encode(room)}/messages?dir=f&limit=1&from=${body.end}`,
  );
  assert.deepEqual([...bodies(older.body.chunk), ...bodies(newer.body.chunk)], ['c1', 'c6']);
  const hidden = await server.get('bob', `/v3/rooms/${encode(room)}/context/${encode(ids[3]!)}`);
  assert.deepEqual([hidden.status, hidden.body.errcode], [404, 'M_NOT_FOUND']);
});

describe('relations', () => {
  let room: string;
  let root: string;
  const relate = (rel_type: string, event_id: string) => ({ 'm.relates_to': { rel_type, event_id } });
  const relations = async (path: string, user = 'alice') =>
    (await server.get(user, `/v1/rooms/${encode(room)}/relations/${encode(root)}${path}`)).body;
  const bundled = async (id: string, user = 'alice') =>
    (await server.get(user, `/v3/rooms/${encode(room)}/event/${encode(id)}`)).body.unsigned['m.relations'];
  beforeEach(async () => {
    room = await publicRoom('bob');
    root = await server.say('alice', room, 'root');
  });

  test('are listed by type, in both directions, page by page, and by way of others', async () => {
    const replies: string[] = [];
    for (let i = 0; i < 5; i++)
      replies.push(await server.say('bob', room, `r${i}`, relate('m.thread', root)));
    const reaction = (
      await server.send('alice', room, 'm.reaction', {
        'm.relates_to': { rel_type: 'm.annotation', event_id: replies[0]!, key: 'x' },
      })
    ).eventId;
    const ids = (body: Any) => body.chunk.map((event: Any) => event.event_id);
    assert.deepEqual(ids(await relations('')), replies.toReversed());
    const first = await relations('/m.thread?dir=f&limit=2');
    assert.deepEqual(ids(first), replies.slice(0, 2));
    const second = await relations(`/m.thread?dir=f&limit=2&from=${first.next_batch}`);
    assert.deepEqual([ids(second), second.prev_batch], [replies.slice(2, 4), first.next_batch]);
    assert.deepEqual(ids(await relations('/m.thread/m.sticker')), []);
    const deep = await relations('?recurse=true');
    assert.deepEqual([ids(deep), deep.recursion_depth], [[reaction, ...replies.toReversed()], 3]);
    assert.deepEqual(ids(await relations('/m.annotation?recurse=true')), []);
    await server.redact('bob', room, replies[4]!);
    assert.deepEqual(ids(await relations('?limit=1')), [replies[3]]);
    assert.equal((await relations('', 'stranger')).errcode, 'M_NOT_FOUND');
  });

  test('sum up a thread for each user', async () => {
    assert.equal(await bundled(root), undefined);
    await server.say('bob', room, 'r1', relate('m.thread', root));
    const last = await server.say('carol', room, 'x', relate('m.thread', root)).catch(() => undefined);
    assert.equal(last, undefined);
    const latest = await server.say('bob', room, 'r2', relate('m.thread', root));
    await server.say('bob', room, '* r2', {
      'm.new_content': { body: 'r2!' },
      ...relate('m.replace', latest),
    });
    const thread = (await bundled(root, 'bob'))['m.thread'];
    assert.deepEqual(
      [thread.count, thread.current_user_participated, thread.latest_event.event_id],
      [2, true, latest],
    );
    assert.equal(thread.latest_event.unsigned['m.relations']['m.replace'].content.body, '* r2');
    server.ignored.set(userId('alice'), new Set([userId('bob')]));
    assert.equal(await bundled(root), undefined);
    server.ignored.clear();
    await server.redact('bob', room, latest);
    assert.equal((await bundled(root))['m.thread'].count, 1);
  });

  test('show the newest valid edit, and none of a redacted event', async () => {
    const edit = (body: string, user = 'alice', more: object = { 'm.new_content': { body } }) =>
      server.say(user, room, body, { ...more, ...relate('m.replace', root) });
    await edit('one');
    const second = await edit('two');
    await edit('not mine', 'bob');
    await edit('nothing new', 'alice', {});
    assert.equal((await bundled(root))['m.replace'].event_id, second);
    await server.redact('alice', room, second);
    assert.equal((await bundled(root))['m.replace'].content.body, 'one');
    await server.redact('alice', room, root);
    assert.equal((await bundled(root))?.['m.replace'], undefined);
  });

  test('name references, and none from after the user left', async () => {
    const one = await server.say('bob', room, 'one', relate('m.reference', root));
    await server.engine.membership().leave(room, userId('bob'));
    const two = await server.say('alice', room, 'two', relate('m.reference', root));
    const chunk = (ids: string[]) => ({ 'm.reference': { chunk: ids.map((event_id) => ({ event_id })) } });
    assert.deepEqual(await bundled(root), chunk([one, two]));
    assert.deepEqual(await bundled(root, 'bob'), chunk([one]));
  });

  test('make threads, the newest first', async () => {
    const other = await server.say('bob', room, 'other root');
    await server.say('bob', room, 'r', relate('m.thread', root));
    await server.say('bob', room, 'r', relate('m.thread', other));
    const threads = async (query = '', user = 'alice') =>
      (await server.get(user, `/v1/rooms/${encode(room)}/threads${query}`)).body;
    const ids = (body: Any) => body.chunk.map((event: Any) => event.event_id);
    assert.deepEqual(ids(await threads()), [other, root]);
    await server.say('alice', room, 'r', relate('m.thread', root));
    const page = await threads('?limit=1');
    assert.deepEqual(ids(page), [root]);
    assert.equal(page.chunk[0].unsigned['m.relations']['m.thread'].count, 2);
    assert.deepEqual(ids(await threads(`?limit=1&from=${page.next_batch}`)), [other]);
    assert.deepEqual(ids(await threads('?include=participated')), [root]);
    assert.deepEqual(ids(await threads('?include=participated', 'bob')), [root, other]);
    assert.equal((await threads('?from=x')).errcode, 'M_INVALID_PARAM');
    assert.equal((await threads('', 'stranger')).errcode, 'M_FORBIDDEN');
  });
});

describe('members', () => {
  test('are told by membership, at a point, and at leaving', async () => {
    const room = await publicRoom('bob');
    const place = server.engine.rooms.parts.stream.current;
    const membership = server.engine.membership();
    await membership.join(room, userId('carol'), []);
    await membership.leave(room, userId('bob'));
    await membership.join(room, userId('dora'), []);
    const members = async (query: string, user = 'alice') =>
      (await server.get(user, `/v3/rooms/${encode(room)}/members${query}`)).body.chunk
        .map((event: Any) => `${event.state_key.slice(1, -5)} ${event.content.membership}`)
        .sort();
    assert.deepEqual(await members(''), ['alice join', 'bob leave', 'carol join', 'dora join']);
    assert.deepEqual(await members('?membership=leave'), ['bob leave']);
    assert.deepEqual(await members('?not_membership=join'), ['bob leave']);
    assert.deepEqual(await members(`?at=p${place}`), ['alice join', 'bob join']);
    assert.deepEqual(await members('', 'bob'), ['alice join', 'bob leave', 'carol join']);
  });

  test('who are joined are told to members and to application services', async () => {
    const room = await publicRoom('bridge_bob');
    const joined = (user: string) => server.get(user, `/v3/rooms/${encode(room)}/joined_members`);
    const expected = { display_name: null, avatar_url: null };
    assert.deepEqual((await joined('alice')).body.joined, {
      [userId('alice')]: expected,
      [userId('bridge_bob')]: expected,
    });
    assert.equal((await joined('bridge')).status, 200);
    assert.equal((await joined('stranger')).status, 403);
  });
});

test('state is given whole, by key, and as it was at leaving', async () => {
  const room = await publicRoom('bob');
  const name = await server.send('alice', room, 'm.room.name', { name: 'One' }, '');
  await server.engine.membership().leave(room, userId('bob'));
  await server.send('alice', room, 'm.room.name', { name: 'Two' }, '');
  const state = (user: string, path = '') => server.get(user, `/v3/rooms/${encode(room)}/state${path}`);
  assert.deepEqual((await state('bob', '/m.room.name')).body, { name: 'One' });
  assert.deepEqual((await state('bob', '/m.room.name/?format=event')).body.event_id, name.eventId);
  assert.deepEqual((await state('alice', '/m.room.name/')).body, { name: 'Two' });
  assert.equal((await state('alice', '/m.room.name/x')).body.errcode, 'M_NOT_FOUND');
  assert.equal((await state('alice', '/m.room.name?format=x')).status, 400);
  assert.equal((await state('stranger')).body.errcode, 'M_FORBIDDEN');
  const names = (await state('bob')).body.filter((event: Any) => event.type === 'm.room.name');
  assert.deepEqual(
    names.map((event: Any) => event.content.name),
    ['One'],
  );
});

test('/events waits for what comes, also for those who only look in', async () => {
  const room = await publicRoom();
  await server.send('alice', room, 'm.room.history_visibility', { history_visibility: 'world_readable' }, '');
  const start = (await server.get('guest', `/v3/rooms/${encode(room)}/initialSync`)).body;
  assert.ok(start.state.length >= 5 && start.messages.chunk.length === 1);
  const waiting = server.get(
    'guest',
    `/v3/events?room_id=${encode(room)}&from=${start.messages.end}&timeout=5000`,
  );
  await server.say('alice', room, 'news');
  const { body } = await waiting;
  assert.deepEqual(bodies(body.chunk), ['news']);
  const own = await server.get('alice', `/v3/events?from=${start.messages.end}&timeout=0`);
  assert.deepEqual(bodies(own.body.chunk), ['news']);
  assert.equal((await server.get('guest', '/v3/events?timeout=0')).status, 400);
  const all = (await server.get('alice', '/v3/initialSync?limit=1')).body;
  assert.equal(all.rooms.find((info: Any) => info.room_id === room).messages.chunk[0].content.body, 'news');
});
