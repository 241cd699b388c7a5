import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { Database } from '../database.ts';
import { type EventWrite, EventWriter } from '../event-writer.ts';
import { IdAllocator } from '../id-allocator.ts';
import { migrate } from '../migrate.ts';
import { StateSnapshots } from '../state-snapshots.ts';
import { StoredEvent } from '../stored-event.ts';
import { type ReplicatedPostgres, startReplicated } from '../testing-replica.ts';
import { DatabaseAwayError } from '../unavailable.ts';

const ROOMS = 8;

let servers: ReplicatedPostgres;
let db: Database;
let ids: IdAllocator;
let position = 0;

/** Rooms alternate: every other gets state events, which take a transaction of several statements. */
function eventWrite(room: number): EventWrite {
  const nid = ids.next();
  const event = {
    version: roomVersion('11')!,
    eventId: `$${nid}`,
    roomId: `!room${room}:a.test`,
    type: 'm.test',
    sender: '@user:a.test',
    stateKey: room % 2 === 0 ? undefined : '',
    originServerTs: 1,
    depth: 1,
    authEvents: [],
    prevEvents: [],
    content: {},
    pdu: { room_id: `!room${room}:a.test`, content: {} },
  } as unknown as RoomEvent;
  const stored = new StoredEvent(
    event,
    { nid, pos: ++position, status: 'accepted', stateBefore: 0 },
    { json: '{}' },
  );
  return {
    roomNid: room + 1,
    event: stored,
    snapshots: [],
    memberships: [],
    room: { extremities: [stored.eventId], state: 0, depth: position },
  };
}

before(async () => {
  servers = await startReplicated();
  db = new Database({ connectionString: servers.url });
  await migrate(db);
  ids = await IdAllocator.create(db);
  for (let room = 0; room < ROOMS; room++)
    await db.query(`INSERT INTO rooms (nid, room_id, version) VALUES ($1, $2, '11')`, [
      room + 1,
      `!room${room}:a.test`,
    ]);
});
after(async () => {
  await db.close();
  await servers.close();
});

/** Writers of events, one a room, each waiting for its last; and whether what they were told is so. */
class Load {
  readonly failures: unknown[] = [];
  acknowledged = 0;
  readonly #outcomes = new Map<string, boolean>();
  readonly #last = new Map<number, string>();
  readonly #senders: Promise<void>[];
  #isOver = false;

  constructor(target: Database) {
    const writer = new EventWriter(target, new StateSnapshots(target, ids), async () => {});
    this.#senders = Array.from({ length: ROOMS }, (_, room) => this.#send(writer, room));
  }

  async #send(writer: EventWriter, room: number): Promise<void> {
    while (!this.#isOver) {
      const write = eventWrite(room);
      const { eventId } = write.event;
      try {
        await writer.write([write]);
        this.#outcomes.set(eventId, true);
        this.#last.set(room, eventId);
        this.acknowledged++;
      } catch (error) {
        this.#outcomes.set(eventId, false);
        this.failures.push(error);
        await sleep(5);
      }
    }
  }

  async end(): Promise<void> {
    this.#isOver = true;
    await Promise.all(this.#senders);
    const rows = await db.query<{ event_id: string }>(
      'SELECT event_id FROM events WHERE event_id = ANY($1::text[])',
      [[...this.#outcomes.keys()]],
    );
    const stored = new Set(rows.map((row) => row.event_id));
    for (const [eventId, isStored] of this.#outcomes) assert.equal(stored.has(eventId), isStored, eventId);
    const rooms = await db.query<{ nid: number; extremities: string[] }>(
      'SELECT nid, extremities FROM rooms',
    );
    for (const { nid, extremities } of rooms) assert.deepEqual(extremities, [this.#last.get(nid - 1)]);
    for (const failure of this.failures) assert.ok(failure instanceof DatabaseAwayError, String(failure));
  }
}

test('connections that are cut under load: the writer is right about each event', async () => {
  let doubts = 0;
  db.onDoubt(() => doubts++);
  const load = new Load(db);
  const other = new Database({ connectionString: servers.primaryUrl, max: 1 });
  try {
    for (let round = 0; round < 60; round++) {
      await sleep(Math.random() * 25);
      await other.query(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name LIKE 'trellis %' AND pid <> pg_backend_pid()`,
      );
    }
  } finally {
    await other.close();
    await load.end();
  }
  assert.ok(load.acknowledged > 20, `${load.acknowledged} events`);
  assert.ok(doubts > 0, 'nothing was cut while it was being stored');
});

test('a primary that is killed under load: the promoted one goes on and has all that was acknowledged', async () => {
  const away: boolean[] = [];
  db.onAway((error) => away.push(error !== undefined));
  const load = new Load(db);
  await sleep(500);
  await servers.killPrimary();
  await assert.rejects(
    db.query(`INSERT INTO event_writers VALUES ('other', 1)`),
    (error) => error instanceof DatabaseAwayError && error.toMatrixError().status === 503,
  );
  await sleep(300);
  const before = load.acknowledged;
  await servers.promote();
  await sleep(1000);
  await load.end();
  assert.ok(before > 20 && load.acknowledged - before > 20, `${before}, then ${load.acknowledged} events`);
  assert.deepEqual(away, [true, false]);
});

test('a primary that hangs is given up for the promoted one, and is not heard when it wakes up', async () => {
  const frozen = await startReplicated();
  const options = { connectionString: frozen.url, patienceMs: 300, connectionTimeoutMillis: 300 };
  const target = new Database(options);
  try {
    await target.query('CREATE TABLE numbers (n int)');
    await target.query('INSERT INTO numbers VALUES (1)');
    await frozen.freezePrimary();
    const stuck = target.query('INSERT INTO numbers VALUES (2)').then(
      () => 'stored',
      (error: unknown) => error,
    );
    await frozen.promote();
    assert.ok((await stuck) instanceof DatabaseAwayError);
    assert.deepEqual(await target.query('SELECT n FROM numbers'), [{ n: 1 }]);
    await frozen.thawPrimary();
    await target.query('INSERT INTO numbers VALUES (3)');
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => target.query('SELECT n FROM numbers ORDER BY n')),
    );
    for (const answer of answers) assert.deepEqual(answer, [{ n: 1 }, { n: 3 }]);
  } finally {
    await target.close();
    await frozen.close();
  }
});
