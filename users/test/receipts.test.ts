import assert from 'node:assert/strict';
import { beforeEach, describe, it } from 'node:test';
import { type ReceiptChange, Stream } from '@trellis/storage/streams.ts';
import { receiptEdus } from '../receipt-edus.ts';
import { type NewReceipt, Receipts } from '../receipts.ts';
import { databaseForFile } from './fixture.ts';

const ALICE = '@alice:example.org';
const BOB = '@bob:example.org';
const db = await databaseForFile();
let rooms = 0;

describe('receipts', () => {
  const stream = new Stream<ReceiptChange>('receipts', 0);
  let receipts: Receipts;
  let roomId: string;
  beforeEach(async () => {
    receipts = new Receipts({ db, stream });
    rooms += 1;
    roomId = `!room${rooms}:example.org`;
    await db.query(`INSERT INTO rooms (nid, room_id, version) VALUES ($1, $2, '11')`, [rooms, roomId]);
  });

  const set = (userId: string, eventPos: number | null, more: Partial<NewReceipt> = {}) =>
    receipts.set({
      roomId,
      userId,
      type: 'm.read',
      threadId: null,
      eventId: `$event${eventPos}`,
      eventPos,
      ts: 5,
      ...more,
    });
  const content = (userId: string, from?: number, of = receipts) =>
    of.contentFor(roomId, userId, from, stream.current);
  const read = (user: string, thread?: string) => {
    const receipt = thread === undefined ? { ts: 5 } : { ts: 5, thread_id: thread };
    return { 'm.read': { [user]: receipt } };
  };

  it('are told of since a position, and all of them at first', async () => {
    assert.equal(await content(ALICE), undefined);
    await set(BOB, 1);
    const from = stream.current;
    await set(BOB, 2);
    await set(ALICE, 2);
    const both = { $event2: { 'm.read': { [ALICE]: { ts: 5 }, [BOB]: { ts: 5 } } } };
    assert.deepEqual(await content(ALICE, from), both);
    assert.equal(await content(ALICE, from), await content(BOB, from), 'made once for all');
    assert.equal(await content(ALICE, stream.current), undefined);
    assert.deepEqual(await content(ALICE), both);
    const restarted = new Receipts({ db, stream });
    assert.deepEqual(await content(ALICE, undefined, restarted), both);
    assert.deepEqual(await content(ALICE, from, restarted), both);
  });

  it('do not go back, each kind and thread by itself', async () => {
    await set(BOB, 5);
    await set(BOB, 4);
    await set(BOB, 3, { threadId: 'main' });
    await set(BOB, 6, { type: 'm.read.private' });
    assert.deepEqual(await content(ALICE), { $event5: read(BOB), $event3: read(BOB, 'main') });
    assert.deepEqual(await receipts.readUpTo(BOB, roomId), {
      unthreaded: 6,
      threads: new Map([['main', 3]]),
    });
    await set(BOB, null, { eventId: '$unknown' });
    assert.ok('$unknown' in (await content(ALICE))!);
  });

  it('of the private kind are shown to their user only', async () => {
    const from = stream.current;
    await set(BOB, 1, { type: 'm.read.private' });
    await set(ALICE, 1);
    const own = { $event1: { 'm.read': { [ALICE]: { ts: 5 } }, 'm.read.private': { [BOB]: { ts: 5 } } } };
    for (const since of [from, undefined]) {
      assert.deepEqual(await content(BOB, since), own);
      assert.deepEqual(await content(ALICE, since), { $event1: read(ALICE) });
    }
  });

  it('without a thread go before those with one on the same event (MSC4102)', async () => {
    await set(BOB, 1);
    await set(BOB, 1, { threadId: '$root' });
    assert.deepEqual(await content(ALICE), { $event1: read(BOB) });
    const change = { roomId, userId: BOB, eventId: '$event1', type: 'm.read', ts: 5 };
    const edus = receiptEdus([
      { ...change, threadId: null },
      { ...change, threadId: '$root' },
      { ...change, type: 'm.read.private', threadId: 'main' },
    ]);
    assert.deepEqual(edus, [
      { [roomId]: { 'm.read': { [BOB]: { event_ids: ['$event1'], data: { ts: 5 } } } } },
      {
        [roomId]: { 'm.read': { [BOB]: { event_ids: ['$event1'], data: { ts: 5, thread_id: '$root' } } } },
      },
    ]);
  });

  it('say how far a user has read, in memory and after a restart', async () => {
    const before = await receipts.readUpTo(BOB, roomId);
    assert.equal(receipts.readUpTo(BOB, roomId), before, 'in memory by now');
    await set(BOB, 7);
    await set(BOB, 9, { threadId: '$root' });
    const expected = { unthreaded: 7, threads: new Map([['$root', 9]]) };
    assert.deepEqual(receipts.readUpTo(BOB, roomId), expected);
    assert.deepEqual(await new Receipts({ db, stream }).readUpTo(BOB, roomId), expected);
  });

  it('that come at the same time are all stored, and end where the furthest is', async () => {
    await Promise.all([3, 9, 5].map((pos) => set(BOB, pos)));
    await Promise.all(Array.from({ length: 50 }, (_, i) => set(`@user${i}:example.org`, i)));
    const restarted = new Receipts({ db, stream });
    const found = (await content(ALICE, undefined, restarted)) as Record<string, Record<string, object>>;
    assert.ok('$event9' in found);
    assert.equal(Object.values(found).flatMap((types) => Object.keys(types['m.read']!)).length, 51);
  });

  it('of a user are bounded: the oldest of a thread makes room', async () => {
    for (let i = 0; i < 1005; i++) await set(BOB, i, { threadId: `$root${i}` });
    const found = (await content(ALICE)) as Record<string, unknown>;
    assert.equal(Object.keys(found).length, 1000);
    assert.ok(!('$event0' in found) && '$event1004' in found);
  });
});
