import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import { type Json, SlidingServer, userId } from './sliding.ts';

const FEW = 'few';
const MANY = 'many';
/** Rooms that both are in, and all that the one is in. */
const SHARED = 100;
const ROOMS = 10_000;

let server: SlidingServer;
const shared: string[] = [];
before(async () => {
  server = await SlidingServer.start();
  await addOldRooms(ROOMS - SHARED);
  for (let i = 0; i < SHARED; i++) {
    const room = await server.room(FEW, { name: `Room ${i}` });
    await server.engine.membership().join(room, userId(MANY), []);
    shared.push(room);
  }
});
after(() => server.close());

/** Rooms in which nothing happened for long, each with a create event: put into the database behind the engine's back. */
async function addOldRooms(count: number): Promise<void> {
  const { db } = server.engine;
  const room = await server.room('old');
  const [key] = await db.query<{ nid: number }>(
    `SELECT nid FROM state_keys WHERE key = '["m.room.create",""]'`,
  );
  await db.query(
    `INSERT INTO rooms (nid, room_id, version, extremities, state, depth)
     SELECT -i, '!old' || i || ':here', version, ARRAY['$old' || i], -i, 1
     FROM rooms, generate_series(1, $2::int) AS i WHERE room_id = $1`,
    [room, count],
  );
  await db.query(
    `INSERT INTO events (nid, event_id, room, pos, state_before, depth, origin_server_ts, sender, type, state_key, json)
     SELECT -i, '$old' || i, -i, -i, 0, 1, 1, '@old:here', 'm.room.create', '',
            '{"type":"m.room.create","sender":"@old:here","state_key":"","depth":1,"origin_server_ts":1,' ||
            '"auth_events":[],"prev_events":[],"hashes":{},"room_id":"!old' || i || ':here","content":' ||
            CASE WHEN i % 10 = 0 THEN '{"type":"m.space"}' ELSE '{}' END || '}'
     FROM generate_series(1, $1::int) AS i`,
    [count],
  );
  await db.query(
    `INSERT INTO state_snapshots (id, room, keys, events)
     SELECT -i, -i, ARRAY[$2::bigint], ARRAY[-i]::bigint[] FROM generate_series(1, $1::int) AS i`,
    [count, key!.nid],
  );
  await db.query(
    `INSERT INTO room_members (user_id, room, membership, event_id, sender, pos)
     SELECT $2, -i, 'join', '$old' || i, $2, -i FROM generate_series(1, $1::int) AS i`,
    [count, userId(MANY)],
  );
}

/** As Element X asks for its first screen. */
const FIRST_SCREEN = {
  lists: {
    all_rooms: {
      range: [0, 19],
      timeline_limit: 1,
      filters: { not_room_types: ['m.space'] },
      required_state: {
        include: ['m.room.name', 'm.room.encryption', 'm.room.create', 'm.room.power_levels'].map((type) => ({
          type,
          state_key: '',
        })),
        lazy_members: true,
      },
    },
  },
  extensions: { account_data: { enabled: true }, receipts: { enabled: true }, typing: { enabled: true } },
};

async function timed(run: () => Promise<Json>): Promise<number> {
  const begun = performance.now();
  await run();
  return performance.now() - begun;
}

/** The middle one of several measurements, taken in turns. */
async function compare(run: (user: string) => Promise<Json>): Promise<{ few: number; many: number }> {
  const times: Record<string, number[]> = { [FEW]: [], [MANY]: [] };
  for (let i = 0; i < 31; i++)
    for (const user of [FEW, MANY]) times[user]!.push(await timed(() => run(user)));
  const middle = (user: string) => times[user]!.sort((a, b) => a - b)[15]!;
  return { few: middle(FEW), many: middle(MANY) };
}

it('shows the first screen of an account in 10,000 rooms at the cost of what it shows', async (t) => {
  const cold = await timed(() => server.sync(MANY, FIRST_SCREEN));
  const answer = await server.sync(MANY, FIRST_SCREEN);
  assert.deepEqual(Object.keys(answer.rooms), shared.slice(-20).reverse());
  assert.equal(answer.lists.all_rooms.count, ROOMS - Math.floor((ROOMS - SHARED) / 10));
  const live = Array.from({ length: ROOMS - SHARED }, (_, i) =>
    server.engine.rooms.peek(`!old${i + 1}:here`),
  );
  assert.ok(
    live.every((room) => room === undefined),
    'no room is loaded that is not shown',
  );

  const { few, many } = await compare((user) => server.sync(user, FIRST_SCREEN));
  t.diagnostic(
    `first screen: ${few.toFixed(2)} ms in ${SHARED} rooms, ${many.toFixed(2)} ms in ${ROOMS}; cold ${cold.toFixed(0)} ms`,
  );
  assert.ok(many < 2 * few + 1, `${many} ms in ${ROOMS} rooms, ${few} ms in ${SHARED}`);
  assert.ok(cold < 30_000, `the first time ${cold} ms`);
});

it('tells what is new at the cost of what is new', async (t) => {
  const pos = new Map<string, string>();
  for (const user of [FEW, MANY]) pos.set(user, (await server.sync(user, FIRST_SCREEN)).pos);
  const { few, many } = await compare(async (user) => {
    await server.say(FEW, shared[50]!, 'news');
    const answer = await server.sync(user, { ...FIRST_SCREEN, pos: pos.get(user) });
    assert.deepEqual(Object.keys(answer.rooms), [shared[50]]);
    pos.set(user, answer.pos);
    return answer;
  });
  t.diagnostic(`an update: ${few.toFixed(2)} ms in ${SHARED} rooms, ${many.toFixed(2)} ms in ${ROOMS}`);
  assert.ok(many < 2 * few + 1, `${many} ms in ${ROOMS} rooms, ${few} ms in ${SHARED}`);
});

it('keeps a large window in sight without looking at each room again', async (t) => {
  const window = (last: number) => ({
    conn_id: `window ${last}`,
    lists: {
      all_rooms: { ...FIRST_SCREEN.lists.all_rooms, range: [0, last], timeline_limit: 0, required_state: {} },
    },
  });
  const times = new Map<number, number[]>();
  const pos = new Map<number, string>();
  for (const last of [19, 999]) {
    times.set(last, []);
    pos.set(last, (await server.sync(MANY, window(last))).pos);
  }
  for (let i = 0; i < 15; i++) {
    await server.say(FEW, shared[i]!, 'news');
    for (const last of [19, 999]) {
      const update = async () => {
        const answer = await server.sync(MANY, { ...window(last), pos: pos.get(last) });
        assert.ok(answer.rooms[shared[i]!]);
        pos.set(last, answer.pos);
      };
      times.get(last)!.push(await timed(update));
    }
  }
  const [few, many] = [19, 999].map((last) => times.get(last)!.sort((a, b) => a - b)[7]!) as [number, number];
  t.diagnostic(`an update: ${few.toFixed(2)} ms with 20 rooms in sight, ${many.toFixed(2)} ms with 1,000`);
  assert.ok(many < 5 * few + 2, `${many} ms with 1,000 rooms in sight, ${few} ms with 20`);
});
