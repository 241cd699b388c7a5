import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { stateKeyOf } from '@trellis/protocol/event.ts';
import type { Database } from '../database.ts';
import { IdAllocator } from '../id-allocator.ts';
import { Snapshot, StateSnapshots } from '../state-snapshots.ts';
import { testDatabase } from '../testing.ts';

let opened: Awaited<ReturnType<typeof testDatabase>>;
let db: Database;

before(async () => {
  opened = await testDatabase();
  db = opened.db;
});
after(() => opened.close());

test('states with the same new keys are stored at the same time', async () => {
  const ids = await IdAllocator.create(db);
  const snapshots = new StateSnapshots(db, ids);
  for (let round = 0; round < 20; round++) {
    const keys = Array.from({ length: 40 }, (_, i) =>
      stateKeyOf('m.room.member', `@user${i}:server${round}`),
    );
    const stateOf = (own: readonly string[]) =>
      snapshots.derive(
        1,
        Snapshot.empty,
        new Map(own.map((key, i) => [key, { eventId: `$${i}`, nid: i + 1 }])),
      );
    await ids.ensure(200);
    const states = Array.from({ length: 4 }, (_, i) => stateOf(i % 2 === 0 ? keys : keys.toReversed()));
    await Promise.all(states.map((state) => snapshots.store(state)));
    const found = await db.query<{ length: number }>(
      'SELECT cardinality(keys)::int AS length FROM state_snapshots WHERE id = ANY($1)',
      [states.map(({ id }) => id)],
    );
    assert.deepEqual(
      found.map(({ length }) => length),
      states.map(() => keys.length),
    );
  }
});
