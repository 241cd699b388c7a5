import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { Database } from '../database.ts';
import { type EventWrite, EventWriter } from '../event-writer.ts';
import { FencedError, requireMember } from '../fence.ts';
import { IdAllocator } from '../id-allocator.ts';
import { StateSnapshots } from '../state-snapshots.ts';
import { StoredEvent } from '../stored-event.ts';
import { testDatabase } from '../testing.ts';

let opened: Awaited<ReturnType<typeof testDatabase>>;
let db: Database;
let ids: IdAllocator;

before(async () => {
  opened = await testDatabase();
  db = opened.db;
  ids = await IdAllocator.create(db);
});
after(() => opened.close());

const ROUNDS = 500;
const ROOM = 1;

let position = 0;

/** A write of an event of a kind: each goes another way through the writer. */
function eventWrite(kind: 'message' | 'state' | 'outlier'): EventWrite {
  const pos = kind === 'outlier' ? undefined : ++position;
  const nid = ids.next();
  const event = {
    version: roomVersion('11')!,
    eventId: `$${nid}`,
    roomId: '!room:a.test',
    type: kind === 'state' ? 'm.room.topic' : 'm.room.message',
    sender: '@user:a.test',
    stateKey: kind === 'state' ? '' : undefined,
    originServerTs: 1,
    depth: 1,
    authEvents: [],
    prevEvents: [],
    content: {},
    pdu: { room_id: '!room:a.test', content: {} },
  } as unknown as RoomEvent;
  const stored = new StoredEvent(event, { nid, pos, status: 'accepted', stateBefore: 0 }, { json: '{}' });
  return { roomNid: ROOM, event: stored, snapshots: [], memberships: [] };
}

function writerOf(memberId: string, term = 1, target = db): EventWriter {
  return new EventWriter(target, new StateSnapshots(db, ids), async () => {}, { memberId, term: () => term });
}

async function join(id: string, term = 1): Promise<void> {
  await db.query(
    `INSERT INTO cluster_members (id, term, roles, address, started_ts) VALUES ($1, $2, '', '', 0)`,
    [id, term],
  );
}

/** Which of the events are stored. */
async function stored(writes: readonly EventWrite[]): Promise<Set<string>> {
  const rows = await db.query<{ event_id: string }>(
    'SELECT event_id FROM events WHERE event_id = ANY($1::text[])',
    [writes.map(({ event }) => event.eventId)],
  );
  return new Set(rows.map((row) => row.event_id));
}

test('a process without its row stores nothing, of any kind, nor with the row of another term', async () => {
  await join('here', 2);
  for (const writer of [writerOf('gone'), writerOf('here', 1)])
    for (const kind of ['message', 'state', 'outlier'] as const) {
      const write = eventWrite(kind);
      await assert.rejects(writer.write([write]), (error: Error) => {
        assert.ok(error instanceof FencedError);
        assert.equal(error.toMatrixError().status, 503);
        return true;
      });
      assert.equal((await stored([write])).size, 0, kind);
    }
  const writes = (['message', 'state', 'outlier'] as const).map(eventWrite);
  for (const write of writes) await writerOf('here', 2).write([write]);
  assert.equal((await stored(writes)).size, 3);
});

test('the row is asked for once in a statement of many events', async () => {
  await join('counted');
  await db.query(`ALTER ROLE CURRENT_USER SET track_functions = 'pl'`);
  const own = new Database({ ...db.pool.options, max: 1 });
  try {
    const calls = async () => {
      await own.query('SELECT pg_stat_force_next_flush()');
      const [row] = await own.query<{ calls: number }>(
        `SELECT coalesce(sum(calls), 0)::bigint AS calls FROM pg_stat_user_functions WHERE funcname = 'require_member'`,
      );
      return row!.calls;
    };
    const before = await calls();
    const writes = Array.from({ length: 50 }, () => eventWrite('message'));
    await writerOf('counted', 1, own).write(writes);
    assert.equal((await calls()) - before, 1);
  } finally {
    await own.close();
  }
});

test('shutting a process out waits for its commits, and none comes after it', {
  timeout: 240_000,
}, async () => {
  let refused = 0;
  let accepted = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const id = `m${round}`;
    await join(id);
    const writer = writerOf(id);
    const writes: EventWrite[] = [];
    const acknowledged = new Set<string>();
    let isFenced = false;
    const senders = [0, 1, 2].map(async (sender) => {
      while (!isFenced) {
        const write = eventWrite(sender === 2 ? 'state' : 'message');
        writes.push(write);
        try {
          await writer.write([write]);
          acknowledged.add(write.event.eventId);
        } catch (error) {
          assert.ok(error instanceof FencedError, String(error));
          isFenced = true;
        }
      }
    });
    await sleep(randomInt(6));
    await db.query('DELETE FROM cluster_members WHERE id = $1', [id]);
    // What others find from now on is all there will ever be.
    const found = await stored(writes.slice());
    await Promise.all(senders);
    const all = await stored(writes);
    assert.deepEqual(all, found);
    assert.deepEqual(all, acknowledged);
    accepted += all.size;
    refused += writes.length - all.size;
  }
  assert.ok(accepted > ROUNDS && refused >= ROUNDS, `${accepted} accepted, ${refused} refused`);
});

test('a transaction that has shown the row is waited for', async () => {
  await join('slow');
  const shown = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  const fence = { memberId: 'slow', term: () => 1 };
  const order: string[] = [];
  const transaction = db
    .transaction(async (tx) => {
      await requireMember(tx, fence);
      shown.resolve();
      await go.promise;
    })
    .then(() => order.push('committed'));
  await shown.promise;
  const shutOut = db
    .query(`DELETE FROM cluster_members WHERE id = 'slow'`)
    .then(() => order.push('shut out'));
  await sleep(50);
  assert.deepEqual(order, []);
  go.resolve();
  // Which of the answers is read first is left to chance.
  await Promise.all([transaction, shutOut]);
  await assert.rejects(
    db.transaction((tx) => requireMember(tx, fence)),
    FencedError,
  );
});
