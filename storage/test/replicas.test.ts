import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Database } from '../database.ts';
import { Replicas } from '../replicas.ts';
import { type ReplicatedPostgres, startReplicated } from '../testing-replica.ts';

let servers: ReplicatedPostgres;
let db: Database;
let replica: Database;
let history: Replicas;
let written = 0;

before(async () => {
  servers = await startReplicated({ synchronous: false });
  db = new Database({ connectionString: servers.url });
  await db.query('CREATE TABLE numbers (n int)');
  await db.query('INSERT INTO numbers VALUES (0)');
  replica = new Database({ connectionString: servers.replicaUrl, readOnly: true });
  history = new Replicas(db, [new Database({ connectionString: servers.replicaUrl, readOnly: true })]);
});
after(async () => {
  await history.close();
  await replica.close();
  await db.close();
  await servers.close();
});

/** Writes and then reads `times` times; each read has to have what was written. @returns how many a replica answered */
async function readYourWrites(times: number): Promise<number> {
  let atReplica = 0;
  for (let i = 0; i < times; i++) {
    await db.query('UPDATE numbers SET n = $1', [++written]);
    const rows = await Promise.all(
      [0, 1, 2].map(() =>
        history.query<{ n: number; replica: boolean }>(
          'SELECT n, pg_is_in_recovery() AS replica FROM numbers',
        ),
      ),
    );
    for (const [row] of rows) assert.equal(row!.n, written);
    if (rows.every(([row]) => row!.replica)) atReplica++;
  }
  return atReplica;
}

test('a replica is read from, and has what was written before', async () => {
  const atReplica = await readYourWrites(100);
  assert.ok(atReplica > 40, `${atReplica} of 100 at the replica`);
});

test('a replica that falls behind is not read from, nor waited for each time', async () => {
  await replica.query('SELECT pg_wal_replay_pause()');
  await sleep(100);
  try {
    const begun = Date.now();
    assert.equal(await readYourWrites(100), 0);
    assert.ok(Date.now() - begun < 6_000, `${Date.now() - begun} ms`);
  } finally {
    await replica.query('SELECT pg_wal_replay_resume()');
  }
  await sleep(1_200);
  const atReplica = await readYourWrites(50);
  assert.ok(atReplica > 15, `${atReplica} of 50 at the replica`);
});

test('a statement that the replica gives up is done at the primary', async () => {
  const rows = await history.query<{ replica: boolean }>(
    // Fails where there is recovery.
    `SELECT pg_is_in_recovery() AS replica, 1 / (CASE WHEN pg_is_in_recovery() THEN 0 ELSE 1 END) AS one`,
  );
  assert.deepEqual(rows, [{ replica: false, one: 1 }]);
  await sleep(1_100);
});

test('after a failover the promoted replica serves as the primary that it is', async () => {
  await servers.killPrimary();
  await servers.promote();
  assert.equal(await readYourWrites(20), 0);
});
