import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { AuthView } from '@trellis/protocol/event.ts';
import { type EventSource, resolveAsync, resolveWith } from '@trellis/protocol/state-resolution/index.ts';
import { entriesOf, versionOf } from '@trellis/protocol/test/graph.ts';
import { type Graph, growRoom, step } from '@trellis/protocol/test/random-room.ts';
import { indexAuthChains } from '@trellis/storage/auth-chain-writer.ts';
import type { Database } from '@trellis/storage/database.ts';
import { EventStore } from '@trellis/storage/events.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import fc from 'fast-check';
import { authChain, stateResLoader } from '../auth-chain.ts';

let opened: Awaited<ReturnType<typeof testDatabase>>;
let db: Database;
let nextNid = 1;

before(async () => {
  opened = await testDatabase();
  db = opened.db;
});
after(() => opened.close());

/** Stores a room's graph under ids of its own, so that many rooms find place in one database. */
async function store(graph: Graph): Promise<(id: string) => string> {
  const room = nextNid++;
  const rename = (id: string) => `${id}/${room}`;
  const roomId = `!${room}`;
  await db.query('INSERT INTO rooms (nid, room_id, version) VALUES ($1, $2, $3)', [
    room,
    roomId,
    graph.version.id,
  ]);
  const events = [...graph.events.values()].map((event) => ({ event, nid: nextNid++ }));
  const pduOf = (event: AuthView) => ({
    room_id: event.roomId,
    type: event.type,
    sender: event.sender,
    ...(event.stateKey !== undefined && { state_key: event.stateKey }),
    content: event.content,
    origin_server_ts: event.originServerTs,
    depth: event.depth,
    prev_events: [],
    auth_events: event.authEvents.map(rename),
  });
  await db.query(
    `INSERT INTO events (nid, event_id, room, depth, origin_server_ts, sender, type, state_key, json)
     SELECT nid, event_id, $1, 1, 1, '', type, state_key, json
     FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[]) AS n(nid, event_id, type, state_key, json)`,
    [
      room,
      events.map(({ nid }) => nid),
      events.map(({ event }) => rename(event.eventId)),
      events.map(({ event }) => event.type),
      events.map(({ event }) => event.stateKey ?? null),
      events.map(({ event }) => JSON.stringify(pduOf(event))),
    ],
  );
  const state = events.filter(({ event }) => event.stateKey !== undefined);
  await db.transaction((tx) =>
    indexAuthChains(
      tx,
      state.map(({ event, nid }) => ({
        ...event,
        nid,
        eventId: rename(event.eventId),
        authEvents: event.authEvents.map(rename),
      })),
    ),
  );
  return rename;
}

test('state resolved from the database is that resolved in memory', async () => {
  await fc.assert(
    fc.asyncProperty(
      // A room of version 12 is named by its create event, whose id is another here: its algorithm runs without.
      fc.constantFrom(...['1', '2', '11'].map(versionOf), {
        ...versionOf('11'),
        stateResolution: 'v2.1' as const,
      }),
      fc.array(step, { maxLength: 40 }),
      fc.array(fc.nat(), { minLength: 2, maxLength: 4 }),
      async (version, steps, numbers) => {
        const graph = growRoom(version, steps);
        const rename = await store(graph);
        const renamed = new Map(
          [...graph.events].map(([id, event]) => [
            rename(id),
            { ...event, eventId: rename(id), authEvents: event.authEvents.map(rename) },
          ]),
        );
        const source: EventSource = { event: (id) => renamed.get(id) };
        const maps = [...graph.stateAfter.values()];
        const states = numbers.map(
          (n) => new Map([...maps[n % maps.length]!].map(([key, id]) => [key, rename(id)])),
        );
        const events = new EventStore(db);
        const resolved = await resolveAsync(version, states, stateResLoader(db, events));
        assert.deepEqual(entriesOf(resolved), entriesOf(resolveWith(version, states, source)));

        const chain = await authChain(db, events, [...resolved.values()]);
        const expected = new Set<string>();
        const queue = [...resolved.values()];
        for (let id = queue.pop(); id !== undefined; id = queue.pop())
          for (const auth of renamed.get(id)!.authEvents) {
            if (!expected.has(auth)) queue.push(auth);
            expected.add(auth);
          }
        assert.deepEqual(new Set(chain.map(({ eventId }) => eventId)), expected);
      },
    ),
    { numRuns: 60 },
  );
});
