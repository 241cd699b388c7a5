import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MergeEnds } from '../merge-ends.ts';
import { sendEvent } from '../send.ts';
import { type TestEngine, testEngine } from './engine.ts';
import { ALICE, FOUNDER, RemoteGraph, receiverOf } from './remote-graph.ts';

const BOB = '@bob:near';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

async function sharedRoom() {
  const graph = new RemoteGraph();
  graph.member(BOB, 'join');
  const room = await graph.joinFrom(engine);
  const fork = graph.ends;
  const receiver = receiverOf(engine, graph);
  let now = 0;
  const warnings: unknown[] = [];
  const ends = new MergeEnds(engine.rooms, { warn: (data) => void warnings.push(data) }, () => now);
  return {
    graph,
    roomId: room.roomId,
    receiver,
    ends,
    warnings,
    pass: (ms: number) => {
      now += ms;
    },
    count: async () => (await engine.rooms.require(room.roomId)).extremities.length,
    /** Others' events that all build on one. */
    async forks(n: number): Promise<void> {
      for (let i = 0; i < n; i++)
        await receiver.receive('near', graph.message(BOB, `fork ${i}`, { prev: fork }));
    },
  };
}

test('ends that pile up are joined by an event that nobody hears of', async () => {
  const { graph, roomId, receiver, ends, forks, count, pass, warnings } = await sharedRoom();
  await forks(10);
  assert.equal(ends.note(roomId), undefined, 'few enough');
  await forks(15);
  assert.equal(await count(), 25);
  const announced = engine.changes.length;
  await ends.note(roomId);
  assert.equal(await count(), 6);
  assert.equal(engine.changes.length, announced);
  const room = await engine.rooms.require(roomId);
  const dummy = (await engine.rooms.parts.events.get(room.extremities[0]!))!;
  assert.deepEqual(
    [dummy.type, dummy.sender, dummy.status],
    ['org.matrix.dummy_event', ALICE, 'soft-failed'],
  );
  assert.equal(dummy.prevEvents.length, 20);
  assert.ok(!room.timeline.events.includes(dummy));

  // Not again at once, unless the forks come very fast.
  await forks(10);
  assert.equal(ends.note(roomId), undefined);
  await forks(20);
  await ends.note(roomId);
  assert.ok((await count()) <= 10);
  pass(61_000);
  await forks(10);
  await ends.note(roomId);
  assert.ok((await count()) <= 10);

  // What follows builds on it, here and elsewhere, and the room goes on after it is read anew.
  const local = await sendEvent(engine.rooms, roomId, {
    type: 'm.room.message',
    sender: ALICE,
    content: { body: 'on top' },
  });
  graph.adopt(local, graph.stateAfter.get(graph.ends[0]!.eventId));
  engine.rooms.drop(await engine.rooms.require(roomId));
  const next = graph.message(BOB, 'and on', { prev: [local] });
  assert.equal((await receiver.receive('near', next))?.status, 'accepted');
  assert.ok((await engine.rooms.require(roomId)).extremities.includes(next.eventId));
  assert.deepEqual(warnings, []);
});

test('a room in which nobody here may send is left alone', async () => {
  const { graph, roomId, receiver, ends, forks, count, pass } = await sharedRoom();
  const levels = graph.add({
    sender: FOUNDER,
    type: 'm.room.power_levels',
    stateKey: '',
    content: { users: { [FOUNDER]: 100, [BOB]: 50 }, events_default: 50 },
  });
  await receiver.receive('far', levels);
  const fork = graph.ends;
  for (let i = 0; i < 12; i++)
    await receiver.receive('near', graph.message(BOB, `fork ${i}`, { prev: fork }));
  await ends.note(roomId);
  assert.equal(await count(), 12);
  await forks(25);
  assert.equal(ends.note(roomId), undefined);
  pass(60 * 60_000 + 1);
  assert.ok(ends.note(roomId));
});
