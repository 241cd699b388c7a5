import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { type ChainedEvent, indexAuthChains } from '../auth-chain-writer.ts';
import {
  authChainNids,
  authDifferenceNids,
  conflictedSubgraphNids,
  powerLevelsChainNids,
} from '../auth-chains.ts';
import type { Database } from '../database.ts';
import { testDatabase } from '../testing.ts';

let opened: Awaited<ReturnType<typeof testDatabase>>;
let db: Database;

before(async () => {
  opened = await testDatabase();
  db = opened.db;
});
after(() => opened.close());

/** Event of a test graph: auth events by their distance back. */
interface Draft {
  readonly kind: 'member' | 'levels' | 'rules' | 'topic';
  readonly user: number;
  readonly auth: readonly number[];
}

const draft: fc.Arbitrary<Draft> = fc.record({
  kind: fc.constantFrom<Draft['kind'][]>('member', 'member', 'levels', 'rules', 'topic'),
  user: fc.nat(4),
  auth: fc.array(fc.nat(9), { maxLength: 4 }),
});

const TYPES = {
  member: 'm.room.member',
  levels: 'm.room.power_levels',
  rules: 'm.room.join_rules',
  topic: 'm.room.topic',
};

let nextNid = 1;

/** A graph with a create event that all others have among their auth events, or none has (room version 12). */
function graphOf(drafts: readonly Draft[], namesCreate: boolean): ChainedEvent[] {
  const first = nextNid;
  nextNid += drafts.length + 1;
  const events: ChainedEvent[] = [
    { nid: first, eventId: `$${first}`, type: 'm.room.create', stateKey: '', authEvents: [] },
  ];
  for (const { kind, user, auth } of drafts) {
    const nid = first + events.length;
    const ids = new Set(auth.map((back) => events[Math.max(0, events.length - 1 - back)]!.eventId));
    if (namesCreate) ids.add(`$${first}`);
    else ids.delete(`$${first}`);
    events.push({
      nid,
      eventId: `$${nid}`,
      type: TYPES[kind],
      stateKey: kind === 'member' ? `@${user}:a\0` : '',
      authEvents: [...ids],
    });
  }
  return events;
}

async function store(events: readonly ChainedEvent[]): Promise<void> {
  await db.query(
    `INSERT INTO events (nid, event_id, room, depth, origin_server_ts, sender, type, state_key, json)
     SELECT nid, event_id, 1, 1, 1, '', type, state_key, '' FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[])
       AS n(nid, event_id, type, state_key)`,
    [
      events.map(({ nid }) => nid),
      events.map(({ eventId }) => eventId),
      events.map(({ type }) => type),
      events.map(({ stateKey }) => stateKey!.replaceAll('\0', '\u2400')),
    ],
  );
}

const index = (events: readonly ChainedEvent[]) => db.transaction((tx) => indexAuthChains(tx, events));

/** All that is reached from the events by walking, these only when they are reached. */
function walk(events: readonly ChainedEvent[], from: readonly number[]): Set<number> {
  const byId = new Map(events.map((event) => [event.eventId, event]));
  const byNid = new Map(events.map((event) => [event.nid, event]));
  const reached = new Set<number>();
  const queue = [...from];
  for (let nid = queue.pop(); nid !== undefined; nid = queue.pop())
    for (const id of byNid.get(nid)!.authEvents) {
      const auth = byId.get(id);
      if (!auth || reached.has(auth.nid)) continue;
      reached.add(auth.nid);
      queue.push(auth.nid);
    }
  return reached;
}

const withOwn = (events: readonly ChainedEvent[], nids: readonly number[]) =>
  new Set([...walk(events, nids), ...nids]);

const sorted = (nids: Iterable<number>) => [...nids].sort((a, b) => a - b);

const pick = (events: readonly ChainedEvent[], numbers: readonly number[]) => [
  ...new Set(numbers.map((n) => events[n % events.length]!.nid)),
];

/** Stores and indexes a graph in batches of a few, in the order of `shuffle`. */
async function grow(events: readonly ChainedEvent[], shuffle: readonly number[]): Promise<void> {
  const order = events.map((event, i) => ({ event, key: shuffle[i] ?? i })).sort((a, b) => a.key - b.key);
  for (let i = 0; i < order.length; i += 3) {
    const batch = order.slice(i, i + 3).map(({ event }) => event);
    await store(batch);
    await index(batch);
  }
}

const drafts = fc.array(draft, { maxLength: 30 });
const numbers = fc.array(fc.nat(), { minLength: 1, maxLength: 4 });
/** Mostly in order, or not at all. */
const order = fc.oneof(fc.constant([]), fc.array(fc.nat(30), { maxLength: 31 }));

describe('the index of auth chains finds what walking finds', () => {
  const check = (
    property: (events: ChainedEvent[], numbers: number[], others: number[]) => Promise<void>,
  ): Promise<void> =>
    fc.assert(
      fc.asyncProperty(drafts, fc.boolean(), order, numbers, numbers, async (drafts, named, order, a, b) => {
        const events = graphOf(drafts, named);
        await grow(events, order);
        await property(events, a, b);
      }),
      { numRuns: 60 },
    );

  test('as chain', () =>
    check(async (events, numbers) => {
      const nids = pick(events, numbers);
      assert.deepEqual(sorted(await authChainNids(db, nids)), sorted(walk(events, nids)));
    }));

  test('as chain of power levels', () =>
    check(async (events, numbers) => {
      const nids = pick(events, numbers);
      const levels = events.filter(({ type }) => type === 'm.room.power_levels').map(({ nid }) => nid);
      const expected = levels.filter((nid) => withOwn(events, nids).has(nid));
      assert.deepEqual(sorted(await powerLevelsChainNids(db, nids)), sorted(expected));
    }));

  test('as difference', () =>
    check(async (events, numbers, others) => {
      const sets = [pick(events, numbers), pick(events, others), pick(events, [...numbers, ...others])];
      const chains = sets.map((set) => withOwn(events, set));
      const expected = events
        .map(({ nid }) => nid)
        .filter((nid) => chains.some((chain) => chain.has(nid)) && !chains.every((chain) => chain.has(nid)));
      assert.deepEqual(sorted(await authDifferenceNids(db, sets)), sorted(expected));
    }));

  test('as difference beside common events', () =>
    check(async (events, numbers, others) => {
      const sets = numbers.map((n) => pick(events, [n]));
      const shared = pick(events, others);
      const common = withOwn(events, shared);
      const chains = sets.map((set) => withOwn(events, set));
      const expected = new Set(
        events
          .map(({ nid }) => nid)
          .filter((nid) => chains.some((chain) => chain.has(nid)) && !chains.every((chain) => chain.has(nid)))
          .filter((nid) => !common.has(nid)),
      );
      const found = await authDifferenceNids(db, sets, {
        has: (id) => shared.some((nid) => `$${nid}` === id),
        nids: async () => shared,
      });
      // The sets themselves are conflicted anyway: whether they are in the difference makes no difference.
      const own = new Set(sets.flat());
      const besides = (nids: Iterable<number>) => sorted([...nids].filter((nid) => !own.has(nid)));
      assert.deepEqual(besides(found), besides(expected));
    }));

  test('as conflicted subgraph', () =>
    check(async (events, numbers, others) => {
      const nids = pick(events, [...numbers, ...others]);
      const reachable = withOwn(events, nids);
      const expected = [...reachable].filter((nid) =>
        nids.some((target) => target === nid || walk(events, [nid]).has(target)),
      );
      assert.deepEqual(sorted(await conflictedSubgraphNids(db, nids)), sorted(expected));
    }));
});

test('an event is laid out once, however often it comes', async () => {
  const events = graphOf([{ kind: 'member', user: 0, auth: [0] }], true);
  await store(events);
  await index(events);
  await index([...events, ...events]);
  assert.deepEqual(await authChainNids(db, [events[1]!.nid]), [events[0]!.nid]);
});

test('rejected events are left out', async () => {
  const events = graphOf([{ kind: 'member', user: 0, auth: [0] }], true);
  await store(events);
  await index(events.map((event) => ({ ...event, rejected: true })));
  assert.deepEqual(await authChainNids(db, [events[1]!.nid]), []);
});

test('of what waits for its auth events the known ones are found', async () => {
  const events = graphOf(
    [
      { kind: 'levels', user: 0, auth: [0] },
      { kind: 'member', user: 0, auth: [0] },
      { kind: 'member', user: 0, auth: [0, 1] },
    ],
    true,
  );
  const [create, levels, join, rename] = events as [ChainedEvent, ChainedEvent, ChainedEvent, ChainedEvent];
  await store(events);
  await index([create, join, rename]);
  assert.deepEqual(sorted(await authChainNids(db, [rename.nid])), sorted([create.nid, levels.nid, join.nid]));
  await index([levels]);
  assert.deepEqual(sorted(await authChainNids(db, [rename.nid])), sorted([create.nid, levels.nid, join.nid]));
  const pending = await db.query('SELECT 1 FROM auth_chain_pending WHERE event = ANY($1)', [
    [join.nid, rename.nid],
  ]);
  assert.equal(pending.length, 0);
});

test('a large room has a chain and a link for each member', async () => {
  const users = 2000;
  const first = nextNid;
  nextNid += users + 4;
  const create: ChainedEvent = {
    nid: first,
    eventId: `$${first}`,
    type: 'm.room.create',
    stateKey: '',
    authEvents: [],
  };
  const event = (i: number, type: string, stateKey: string, authEvents: string[]): ChainedEvent => ({
    nid: first + i,
    eventId: `$${first + i}`,
    type,
    stateKey,
    authEvents: [create.eventId, ...authEvents],
  });
  const admin = event(1, 'm.room.member', '@admin:a', []);
  const levels = event(2, 'm.room.power_levels', '', [admin.eventId]);
  const rules = event(3, 'm.room.join_rules', '', [admin.eventId, levels.eventId]);
  const members = Array.from({ length: users }, (_, i) =>
    event(i + 4, 'm.room.member', `@user${i}:a`, [levels.eventId, rules.eventId]),
  );
  const all = [create, admin, levels, rules, ...members];
  await store(all);
  await index(all);
  const [size] = await db.query<{ links: number }>(
    'SELECT count(*) AS links FROM auth_chain_links WHERE origin_chain >= $1',
    [first],
  );
  assert.equal(size?.links, users);
  assert.equal(
    (
      await authChainNids(
        db,
        members.map(({ nid }) => nid),
      )
    ).length,
    4,
  );
});
