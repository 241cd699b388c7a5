import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Database } from '../database.ts';
import { EventStore } from '../events.ts';
import { testDatabase } from '../testing.ts';

let db: Database;
let close: () => Promise<void>;

before(async () => {
  ({ db, close } = await testDatabase());
});
after(() => close());

test('looking up many events takes no longer where plans were made while there were few', async () => {
  const count = 20_000;
  const ids = Array.from({ length: count }, (_, n) => `$event${n + 1}`);
  const nids = ids.map((_, n) => n + 1);
  await db.query("INSERT INTO rooms (nid, room_id, version) VALUES (1, '!room:test', '11')");
  await db.transaction(async (tx) => {
    const store = new EventStore(tx);
    const lookUps = [
      () => store.nidsOf(ids).then(({ size }) => size),
      () => store.idsOf(nids).then(({ length }) => length),
      () => store.jsonByIds(ids).then(({ length }) => length),
      () => store.jsonByNids(nids).then(({ length }) => length),
    ];
    await insert(tx, 1, 5);
    // From the sixth time on, PostgreSQL may go by a plan that is for any list.
    for (const lookUp of lookUps) for (let i = 0; i < 10; i++) assert.equal(await lookUp(), 5);
    await insert(tx, 6, count);
    for (const lookUp of lookUps) {
      const begun = performance.now();
      assert.equal(await lookUp(), count);
      assert.ok(performance.now() - begun < 1500, `${lookUp} took ${performance.now() - begun} ms`);
    }
  });
});

async function insert(tx: Pick<Database, 'query'>, from: number, to: number): Promise<void> {
  await tx.query(
    `INSERT INTO events (nid, event_id, room, status, backfilled, depth, origin_server_ts, sender, type, json)
     SELECT n, '$event' || n, 1, 0, false, 1, 1, '@user:test', 'm.test', '{}' FROM generate_series($1::int, $2::int) AS n`,
    [from, to],
  );
}
