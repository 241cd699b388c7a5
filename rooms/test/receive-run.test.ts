import assert from 'node:assert/strict';
import { after, before, mock, test } from 'node:test';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { StagedPdus } from '@trellis/storage/staged-pdus.ts';
import { IncomingPdus } from '../incoming-pdus.ts';
import { storeOutliers } from '../outliers.ts';
import { type TestEngine, testEngine, testVerifier } from './engine.ts';
import { FOUNDER, RemoteGraph, receiverOf } from './remote-graph.ts';

const BOB = '@bob:near';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

async function sharedRoom(version?: string) {
  const graph = new RemoteGraph(version);
  graph.member(BOB, 'join');
  const room = await graph.joinFrom(engine);
  const incoming = new IncomingPdus({
    rooms: engine.rooms,
    remote: graph,
    verifier: testVerifier,
    receiver: receiverOf(engine, graph),
    staged: new StagedPdus(engine.db),
    joined: async () => {},
    log: { warn: () => {} },
  });
  const take = (events: readonly RoomEvent[]) =>
    incoming.take(
      'near',
      events.map(({ pdu }) => pdu),
    );
  return { graph, room, take, current: () => engine.rooms.require(room.roomId) };
}

const stored = (event: RoomEvent) => engine.rooms.parts.events.get(event.eventId);
const statusOf = async (event: RoomEvent) => (await stored(event))?.status;

test('what follows in a chain is stored together, in its order', async () => {
  const { graph, take, current } = await sharedRoom();
  const chain = Array.from({ length: 30 }, (_, n) => graph.message(BOB, `${n}`));
  const announced = engine.changes.length;
  const query = mock.method(engine.db, 'query');
  await take(chain);
  query.mock.restore();
  assert.ok(query.mock.callCount() < 10, `${query.mock.callCount()} statements`);
  assert.deepEqual(
    engine.changes.slice(announced).map(({ event }) => event.eventId),
    chain.map(({ eventId }) => eventId),
  );
  assert.deepEqual((await current()).extremities, [chain.at(-1)!.eventId]);
  for (const event of chain) engine.rooms.parts.events.forget(event.eventId);
  for (const event of chain) assert.equal(await statusOf(event), 'accepted');
  assert.deepEqual(graph.calls, []);
});

test('events that are here already, with and without a place, do not disturb those around them', async () => {
  const { graph, room, take, current } = await sharedRoom();
  const chain = Array.from({ length: 8 }, (_, n) => graph.message(BOB, `${n}`));
  await storeOutliers(engine.rooms, room, [chain[4]!]);
  engine.rooms.parts.events.forget(chain[4]!.eventId);
  await take(chain.slice(0, 2));
  const announced = engine.changes.length;
  await take(chain);
  assert.deepEqual(
    engine.changes.slice(announced).map(({ event }) => event.eventId),
    chain.slice(2).map(({ eventId }) => eventId),
  );
  assert.deepEqual((await current()).extremities, [chain.at(-1)!.eventId]);
  const rows = await engine.db.query('SELECT nid FROM events WHERE event_id = $1', [chain[4]!.eventId]);
  assert.equal(rows.length, 1);
});

test('a redaction takes effect on what comes after it in the same transaction', async () => {
  const { graph, take } = await sharedRoom();
  const fork = graph.ends;
  const target = graph.message(BOB, 'to go', { prev: fork });
  const redaction = graph.add({
    sender: BOB,
    type: 'm.room.redaction',
    redacts: target.eventId,
    prev: fork,
  });
  const last = graph.message(BOB, 'last', { prev: [target, redaction] });
  await take([redaction, target, last]);
  assert.equal((await stored(target))?.redactedBy?.eventId, redaction.eventId);
  assert.deepEqual((await stored(target))?.content, {});
  assert.equal(await statusOf(last), 'accepted');
});

test('state that comes between decides on what follows it', async () => {
  const { graph, take } = await sharedRoom();
  const before = [graph.message(BOB, 'one'), graph.message(BOB, 'two')];
  const silenced = graph.add({
    sender: FOUNDER,
    type: 'm.room.power_levels',
    stateKey: '',
    content: { users: { [FOUNDER]: 100 }, events_default: 50 },
  });
  const refused = [graph.message(BOB, 'three'), graph.message(BOB, 'four')];
  const heard = graph.message(FOUNDER, 'five', { prev: [refused[1]!] });
  await take([...before, silenced, ...refused, heard]);
  for (const event of [...before, silenced, heard]) assert.equal(await statusOf(event), 'accepted');
  for (const event of refused) assert.equal(await statusOf(event), 'rejected');
});

test('a gap in the middle is filled, what lies behind it goes on', async () => {
  const { graph, take, current } = await sharedRoom();
  const first = [graph.message(BOB, '1'), graph.message(BOB, '2')];
  const missing = graph.message(BOB, 'missing');
  const second = [graph.message(BOB, '3'), graph.message(BOB, '4')];
  await take([...first, ...second]);
  for (const event of [...first, missing, ...second]) assert.equal(await statusOf(event), 'accepted');
  assert.deepEqual((await current()).extremities, [second[1]!.eventId]);
  assert.deepEqual(graph.calls, [`missingEvents ${second[0]!.eventId}`]);
});

test('in room version 12 too', async () => {
  const { graph, take } = await sharedRoom('12');
  const chain = Array.from({ length: 5 }, (_, n) => graph.message(BOB, `${n}`));
  await take(chain);
  for (const event of chain) assert.equal(await statusOf(event), 'accepted');
});
