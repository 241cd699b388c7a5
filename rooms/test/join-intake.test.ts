import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Pdu } from '@trellis/protocol/event.ts';
import { installRoom } from '../install-room.ts';
import { JoinIntake } from '../join-intake.ts';
import { completeRoom } from '../partial-state/partial-rooms.ts';
import { Resync } from '../partial-state/resync.ts';
import { type TestEngine, testEngine, testVerifier } from './engine.ts';
import { ALICE, asObject, FOUNDER, RemoteGraph, receiverOf, stateOf } from './remote-graph.ts';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

/** A room of 40 members whose state, and what authorises it, come in pieces of 7. */
function largeRoom() {
  const graph = new RemoteGraph();
  for (let i = 0; i < 40; i++) graph.member(`@user${i}:near`, 'join');
  graph.member('@gone:elsewhere', 'join');
  graph.member('@gone:elsewhere', 'leave');
  graph.topic(FOUNDER, 'large');
  const join = graph.member(ALICE, 'join');
  const state = [...graph.stateBefore.get(join.eventId)!.values()].map((id) => graph.events.get(id)!.pdu);
  const chain = [...graph.events.values()].filter(({ pdu }) => !state.includes(pdu) && pdu !== join.pdu);
  const take = async (intake: JoinIntake, changed: readonly Pdu[] = state) => {
    for (let i = 0; i < changed.length; i += 7) await intake.take(changed.slice(i, i + 7), 'state');
    await intake.take(
      chain.map(({ pdu }) => pdu),
      'auth_chain',
    );
  };
  const wanted = { server: 'far', roomId: graph.roomId, version: graph.version };
  const intake = (maxHeld?: number) =>
    new JoinIntake({ rooms: engine.rooms, verifier: testVerifier }, wanted, maxHeld);
  return { graph, join, state, take, intake };
}

test('a small room is held as it came', async () => {
  const { state, take, intake } = largeRoom();
  const small = intake();
  await take(small);
  const { servers, ...held } = await small.finish();
  assert.equal(servers, undefined);
  assert.deepEqual(held.state, state);
});

test('of a large room only what it is entered with is held; the rest is stored, and completes it', async () => {
  const { graph, join, take, intake } = largeRoom();
  const large = intake(10);
  await take(large);
  const { state, authChain, servers = [] } = await large.finish();
  assert.deepEqual(state.map(({ type }) => type).sort(), [
    'm.room.create',
    'm.room.join_rules',
    'm.room.power_levels',
    'm.room.topic',
  ]);
  assert.deepEqual([...servers].sort(), ['far', 'near']);
  const partial = { servers, deviceListsPos: 0 };
  await installRoom(engine.rooms, testVerifier, { server: 'far', join, state, authChain, partial });
  const room = await engine.rooms.require(graph.roomId);
  assert.ok(room.partial && room.isJoined(ALICE));

  const log = { info: () => {}, warn: () => {} };
  const receiver = receiverOf(engine, graph);
  const resync = new Resync({ rooms: engine.rooms, receiver, log, deviceListsPosition: () => 0 });
  await resync.start();
  const complete = (await completeRoom(engine.rooms, graph.roomId))!;
  resync.close();
  assert.deepEqual(stateOf(complete), asObject(graph.stateAfter.get(join.eventId)!));
  assert.equal(complete.count('join'), 42);
  assert.ok(!graph.calls.some((call) => call.startsWith('state ')), 'the members were here already');
});

test('of a room of another version than was said nothing is stored', async () => {
  const { state, take, intake } = largeRoom();
  const lies = state.map((pdu) =>
    pdu.type === 'm.room.create'
      ? { ...pdu, content: { ...(pdu.content as object), room_version: '10' } }
      : pdu,
  );
  await assert.rejects(take(intake(10), lies), { status: 502 });
});
