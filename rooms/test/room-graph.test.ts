import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MergeEnds } from '../merge-ends.ts';
import { RoomInspector } from '../room-graph/room-inspector.ts';
import { sendEvent } from '../send.ts';
import { type TestEngine, testEngine } from './engine.ts';
import { ALICE, asObject, FOUNDER, RemoteGraph, receiverOf, stateOf } from './remote-graph.ts';

const BOB = '@bob:near';
const CARL = '@carl:near';

let engine: TestEngine;
let inspector: RoomInspector;
before(async () => {
  engine = await testEngine('here');
  inspector = new RoomInspector(engine.rooms);
});
after(() => engine.close());

/** A room with a fork, an event that is rejected, and two ends. */
async function sharedRoom() {
  const graph = new RemoteGraph();
  graph.member(BOB, 'join');
  const room = await graph.joinFrom(engine);
  const receiver = receiverOf(engine, graph);
  const fork = graph.ends;
  const events = [
    graph.topic(FOUNDER, 'one', { prev: fork }),
    graph.member(CARL, 'join', { prev: fork }),
    graph.message(BOB, 'joined again'),
    graph.topic(BOB, 'has no power'),
    graph.message(FOUNDER, 'between'),
  ];
  const tip = graph.ends;
  events.push(graph.message(BOB, 'left', { prev: tip }), graph.topic(FOUNDER, 'right', { prev: tip }));
  for (const event of events) await receiver.receive('near', event);
  const ends = events.slice(-2).map(({ eventId }) => eventId);
  const isAsItWas = async () => {
    engine.rooms.drop(await engine.rooms.require(room.roomId));
    const current = await engine.rooms.require(room.roomId);
    assert.deepEqual(stateOf(current), asObject(graph.resolved(events.slice(-2))));
    assert.deepEqual([...current.extremities].sort(), [...ends].sort());
    for (const userId of [ALICE, BOB, CARL, FOUNDER]) assert.ok(current.isJoined(userId), userId);
    assert.ok((await inspector.check(room.roomId)).sound);
  };
  await isAsItWas();
  return { graph, roomId: room.roomId, nid: room.nid, events, ends, isAsItWas };
}

test('the graph of a room is described', async () => {
  const { roomId, ends, events } = await sharedRoom();
  const seen = await inspector.describe(roomId);
  assert.deepEqual(seen.extremities.map(({ event_id }) => event_id).sort(), [...ends].sort());
  assert.equal(seen.members.join, 4);
  assert.equal(seen.events.rejected, 1);
  assert.equal(seen.refused[0]?.event_id, events[3]!.eventId);
  assert.equal(seen.gap_count, 1);
  assert.equal(seen.gaps.length, 1);
  assert.equal(seen.events.max_depth, Math.max(...events.map(({ depth }) => depth)));
  assert.equal(seen.state.layers[0] !== undefined, true);
  await assert.rejects(inspector.describe('!nowhere:far'), { status: 404 });
});

test('ends, state and members that were damaged are found and rebuilt', async () => {
  const { roomId, nid, events, ends, isAsItWas } = await sharedRoom();
  const first = await engine.rooms.parts.events.get(events[0]!.eventId);
  await engine.db.query('UPDATE rooms SET extremities = $2, state = $3, depth = 1 WHERE nid = $1', [
    nid,
    [events[0]!.eventId],
    first!.stateBefore,
  ]);
  await engine.db.query('DELETE FROM room_members WHERE room = $1 AND user_id = $2', [nid, CARL]);
  await engine.db.query(
    `INSERT INTO room_members (user_id, room, membership, event_id, sender, pos)
     VALUES ('@ghost:near', $1, 'join', '$ghost', '@ghost:near', 1)`,
    [nid],
  );
  await engine.db.query(`UPDATE room_members SET membership = 'leave' WHERE room = $1 AND user_id = $2`, [
    nid,
    BOB,
  ]);
  const report = await inspector.check(roomId);
  assert.ok(!report.sound && report.whole);
  assert.deepEqual([...report.extremities.fresh].sort(), [...ends].sort());
  assert.deepEqual(report.extremities.stored, [events[0]!.eventId]);
  assert.deepEqual(report.state.entries.map(({ type }) => type).sort(), ['m.room.member', 'm.room.topic']);
  assert.deepEqual(report.members.users.map(({ user_id }) => user_id).sort(), [BOB, CARL, '@ghost:near']);
  assert.equal(report.states_before.differing, 0);

  const announced = engine.changes.length;
  assert.ok(!(await inspector.rebuild(roomId)).sound);
  const change = engine.changes.at(-1)!;
  assert.equal(engine.changes.length, announced + 1);
  assert.deepEqual(change.memberships.map(({ userId }) => userId).sort(), [BOB, CARL, '@ghost:near']);
  await isAsItWas();
  // Nothing more is to be done, and the room goes on.
  assert.ok((await inspector.rebuild(roomId)).sound);
  assert.equal(engine.changes.length, announced + 1);
  const draft = { type: 'm.room.message', sender: ALICE, content: {} };
  const sent = await sendEvent(engine.rooms, roomId, draft);
  assert.deepEqual([...sent.prevEvents].sort(), [...ends].sort());
});

test('states before events that were damaged, or are lost, are worked out anew', async () => {
  const { roomId, nid, events, isAsItWas } = await sharedRoom();
  const { stateBefore: early } = (await engine.rooms.parts.events.get(events[0]!.eventId))!;
  await engine.db.query('UPDATE events SET state_before = $2 WHERE event_id = $1', [
    events[4]!.eventId,
    early,
  ]);
  await engine.db.query('UPDATE events SET state_before = 4711 WHERE event_id = $1', [events[5]!.eventId]);
  await engine.db.query('UPDATE rooms SET state = 4712 WHERE nid = $1', [nid]);
  for (const { eventId } of events) engine.rooms.parts.events.forget(eventId);
  await assert.rejects(inspector.check(roomId), { status: 409 });
  const report = await inspector.rebuild(roomId);
  assert.deepEqual(new Set(report.states_before.events), new Set([events[4]!.eventId, events[5]!.eventId]));
  assert.deepEqual(report.unreadable, []);
  await isAsItWas();
});

test('our own event that joins ends is an end', async () => {
  const { graph, roomId } = await sharedRoom();
  const receiver = receiverOf(engine, graph);
  const fork = graph.ends;
  for (let i = 0; i < 12; i++) await receiver.receive('near', graph.message(BOB, `${i}`, { prev: fork }));
  await new MergeEnds(engine.rooms, { warn: () => {} }).note(roomId);
  const { extremities } = await engine.rooms.require(roomId);
  assert.equal(extremities.length, 1);
  const report = await inspector.check(roomId);
  assert.deepEqual(report.extremities.fresh, extremities);
  assert.ok(report.sound, JSON.stringify(report));
});
