import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { stateKeyOf } from '@trellis/protocol/event.ts';
import { Database } from '../database.ts';
import { IdAllocator } from '../id-allocator.ts';
import { migrate } from '../migrate.ts';
import { Snapshot, StateSnapshots } from '../state-snapshots.ts';
import { reserveStreamPositions } from '../stream-positions.ts';
import { testDatabase } from '../testing.ts';

const PROCESSES = 4;

let opened: Awaited<ReturnType<typeof testDatabase>>;

before(async () => {
  opened = await testDatabase();
});
after(() => opened.close());

/** Runs `work` with as many pools as there would be processes, on a database in which there is nothing. */
async function onEmptyDatabase(name: string, work: (pools: Database[]) => Promise<void>): Promise<void> {
  await opened.db.query(`CREATE DATABASE ${name}`);
  const options = { ...opened.db.pool.options, database: name, max: 4 };
  const pools = Array.from({ length: PROCESSES }, () => new Database(options));
  try {
    await work(pools);
  } finally {
    await Promise.all(pools.map((pool) => pool.close()));
  }
}

test('processes that start together on an empty database migrate it once', async () => {
  for (let round = 0; round < 5; round++)
    await onEmptyDatabase(`together${round}`, async (pools) => {
      // Connections are there already, so that all begin in the same moment.
      await Promise.all(pools.map((db) => db.query('SELECT 1')));
      const applied = await Promise.all(pools.map(migrate));
      const marked = await pools[0]!.query<{ name: string }>(
        'SELECT name FROM schema_migrations ORDER BY name',
      );
      assert.deepEqual(
        applied.flat().sort(),
        marked.map(({ name }) => name),
      );
    });
});

test('processes share neither ids nor positions, and give a state key one id', async () => {
  await onEmptyDatabase('apart', async (pools) => {
    await migrate(pools[0]!);
    const streams = ['one', 'two'];
    const processes = await Promise.all(
      pools.map(async (db) => {
        const [ids, starts] = await Promise.all([
          IdAllocator.create(db),
          reserveStreamPositions(db, streams),
        ]);
        return { ids, starts, snapshots: new StateSnapshots(db, ids) };
      }),
    );
    for (const stream of streams) {
      const starts = processes.map(({ starts }) => starts.get(stream)!).sort((a, b) => a - b);
      starts.slice(1).forEach((start, i) => {
        assert.ok(start - starts[i]! >= 2 ** 32);
      });
    }

    await Promise.all(processes.map(({ ids }) => ids.ensure(200_000)));
    const taken = processes.flatMap(({ ids }) => Array.from({ length: 100_000 }, () => ids.next()));
    assert.equal(new Set(taken).size, taken.length);

    for (let round = 0; round < 20; round++) {
      const keys = Array.from({ length: 50 }, (_, i) => stateKeyOf('m.room.member', `@u${i}:s${round}`));
      await Promise.all(
        processes.map(async ({ snapshots }, i) => {
          const own = i % 2 === 0 ? keys : keys.toReversed();
          const entries = new Map(own.map((key, n) => [key, { eventId: `$${n}`, nid: n + 1 }]));
          await snapshots.store(snapshots.derive(1, Snapshot.empty, entries));
        }),
      );
    }
    const stored = await pools[0]!.query<{ id: number; keys: string[] }>(
      'SELECT id, keys FROM state_snapshots',
    );
    assert.equal(stored.length, 20 * PROCESSES);
    const used = new Set(stored.flatMap(({ keys }) => keys));
    assert.equal(used.size, 20 * 50);
  });
});
