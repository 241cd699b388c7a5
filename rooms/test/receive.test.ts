import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import fc from 'fast-check';
import { newestGap } from '../gaps.ts';
import { storeOutliers } from '../outliers.ts';
import { sendEvent } from '../send.ts';
import { type TestEngine, testEngine } from './engine.ts';
import { ALICE, asObject, FOUNDER, RemoteGraph, receiverOf, stateOf } from './remote-graph.ts';

const BOB = '@bob:near';
const MALLORY = '@mallory:evil';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

/** A room with Bob and Mallory in it, that Alice has joined. */
async function sharedRoom(version?: string) {
  const graph = new RemoteGraph(version);
  graph.member(BOB, 'join');
  graph.member(MALLORY, 'join');
  const room = await graph.joinFrom(engine);
  return {
    graph,
    room,
    receiver: receiverOf(engine, graph),
    current: () => engine.rooms.require(room.roomId),
  };
}

const statusOf = async (event: RoomEvent) => (await engine.rooms.parts.events.get(event.eventId))?.status;

test('a message takes its place at the end, once', async () => {
  const { graph, receiver, current } = await sharedRoom();
  const message = graph.message(BOB, 'hello');
  const announced = engine.changes.length;
  const [one, two] = await Promise.all([receiver.receive('near', message), receiver.receive('far', message)]);
  assert.equal(one?.status, 'accepted');
  assert.equal(one?.pos, two?.pos);
  assert.deepEqual((await current()).extremities, [message.eventId]);
  assert.equal((await receiver.receive('near', message))?.pos, one?.pos);
  assert.deepEqual(
    engine.changes.slice(announced).map(({ event }) => event.eventId),
    [message.eventId],
  );
  assert.deepEqual(graph.calls, []);
});

test('an event is stored once that comes to its place while it is being stored without one', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const elsewhere = (await sharedRoom()).room.roomId;
  const topic = graph.topic(FOUNDER, 'new');
  let work: Array<Promise<unknown>> = [];
  await engine.db.transaction(async (tx) => {
    // What is written meanwhile goes into one batch.
    await tx.query('LOCK TABLE events IN EXCLUSIVE MODE');
    work = [
      sendEvent(engine.rooms, elsewhere, { type: 'm.room.message', sender: ALICE, content: {} }),
      storeOutliers(engine.rooms, room, [topic]),
      sleep(100).then(() => receiver.receive('near', topic)),
    ];
    await sleep(300);
  });
  await Promise.all(work);
  const stored = await engine.rooms.parts.events.get(topic.eventId);
  assert.equal(stored?.status, 'accepted');
  const rows = await engine.db.query('SELECT nid, pos FROM events WHERE event_id = $1', [topic.eventId]);
  assert.deepEqual(rows, [{ nid: stored?.nid, pos: stored?.pos }]);
});

test('two branches are both ends until an event joins them; their states are resolved', async () => {
  const { graph, room, receiver, current } = await sharedRoom();
  const fork = graph.ends;
  const one = graph.topic(FOUNDER, 'one', { prev: fork });
  const two = graph.topic(FOUNDER, 'two', { prev: fork });
  await receiver.receive('far', one);
  await receiver.receive('far', two);
  assert.deepEqual(new Set((await current()).extremities), new Set([one.eventId, two.eventId]));
  assert.deepEqual(stateOf(await current()), asObject(graph.resolved([one, two])));
  const local = await sendEvent(engine.rooms, room.roomId, {
    type: 'm.room.message',
    sender: ALICE,
    content: { body: 'both' },
  });
  assert.deepEqual(new Set(local.prevEvents), new Set([one.eventId, two.eventId]));
  assert.deepEqual((await current()).extremities, [local.eventId]);
  const rows = await engine.db.query<{ state: number }>('SELECT state FROM rooms WHERE nid = $1', [room.nid]);
  assert.equal(rows[0]!.state, (await current()).state.id);
});

test('a gap is filled, in order and without asking for state', async () => {
  const { graph, receiver } = await sharedRoom();
  const missing = [1, 2, 3].map((n) => graph.message(BOB, `missing ${n}`));
  const last = graph.message(BOB, 'last');
  const announced = engine.changes.length;
  assert.equal((await receiver.receive('near', last))?.status, 'accepted');
  assert.deepEqual(
    engine.changes.slice(announced).map(({ event }) => event.eventId),
    [...missing, last].map(({ eventId }) => eventId),
  );
  assert.deepEqual(graph.calls, [`missingEvents ${last.eventId}`]);
});

test('behind a gap too wide to fill the state is asked for, and is resolved with ours', async () => {
  const { graph, room, receiver, current } = await sharedRoom();
  const lost = Array.from({ length: 60 }, (_, n) =>
    n === 3 ? graph.topic(FOUNDER, 'in the gap') : graph.message(BOB, `lost ${n}`),
  );
  const last = graph.message(BOB, 'last');
  const placed = await receiver.receive('near', last);
  assert.equal(placed?.status, 'accepted');
  assert.ok(graph.calls.some((call) => call.startsWith('stateIds')));
  assert.deepEqual(stateOf(await current()), asObject(graph.stateAfter.get(last.eventId)!));
  const gaps = await engine.db.query<{ event_id: string }>(
    'SELECT event_id FROM backward_extremities WHERE room = $1 AND event_id = ANY($2)',
    [room.nid, lost.map(({ eventId }) => eventId)],
  );
  assert.equal(gaps.length, 1);
  // Clients are told that something is missing: neither memory nor what is read again reaches across.
  const gap = await newestGap(engine.rooms, room, Number.NEGATIVE_INFINITY, placed!.pos!);
  assert.equal((await current()).timeline.from, gap! - 1);
  engine.rooms.drop(await current());
  assert.ok((await current()).timeline.from >= gap! - 1);
  assert.equal((await current()).timeline.events.at(-1)?.eventId, last.eventId);
});

test('an event whose predecessors are withheld is not taken, and is when they are there', async () => {
  const { graph, receiver, current } = await sharedRoom();
  const first = graph.message(BOB, 'first');
  const second = graph.message(BOB, 'second');
  graph.withheld.add(first.eventId);
  assert.equal(await receiver.receive('near', second), undefined);
  assert.equal((await receiver.receive('near', first))?.status, 'accepted');
  assert.equal((await receiver.receive('near', second))?.status, 'accepted');
  assert.deepEqual((await current()).extremities, [second.eventId]);
});

test('what authorises an event is fetched, by its chain or one by one', async () => {
  for (const chain of [true, false]) {
    const { graph, receiver } = await sharedRoom();
    const fork = graph.ends;
    const again = graph.member(MALLORY, 'join', {
      prev: fork,
      content: { membership: 'join', displayname: 'M' },
    });
    const event = graph.message(MALLORY, 'x', { prev: [...fork], auth: undefined });
    const { state } = { state: graph.stateBefore.get(event.eventId)! };
    const auth = ['m.room.create\0', 'm.room.power_levels\0']
      .map((key) => state.get(key))
      .filter((id) => id !== undefined)
      .map((id) => graph.events.get(id)!);
    const relying = graph.message(MALLORY, 'relying', { prev: fork, auth: [...auth, again] });
    if (!chain) graph.eventAuth = async () => [];
    assert.equal((await receiver.receive('evil', relying))?.status, 'accepted');
    assert.equal(await statusOf(again), 'accepted');
  }
});

test('rejection spreads along auth_events, but not to what follows', async () => {
  const { graph, receiver, current } = await sharedRoom();
  const seized = graph.add({
    sender: MALLORY,
    type: 'm.room.power_levels',
    stateKey: '',
    content: { users: { [MALLORY]: 100 } },
  });
  assert.equal((await receiver.receive('evil', seized))?.status, 'rejected');
  assert.deepEqual((await current()).extremities, seized.prevEvents);
  const honest = graph.message(BOB, 'after a rejected one');
  assert.deepEqual(honest.prevEvents, [seized.eventId]);
  assert.equal((await receiver.receive('near', honest))?.status, 'accepted');
  assert.deepEqual((await current()).extremities, [honest.eventId]);
  const at = (type: string, key: string) =>
    graph.events.get(graph.stateAfter.get(honest.eventId)!.get(`${type}\0${key}`)!)!;
  const auth = [at('m.room.create', ''), at('m.room.member', MALLORY), seized];
  const onIt = graph.topic(MALLORY, 'mine', { auth });
  assert.equal((await receiver.receive('evil', onIt))?.status, 'rejected');
  assert.equal(
    (await current()).state.get('m.room.power_levels', '')?.eventId,
    at('m.room.power_levels', '').eventId,
  );
});

test('an event that the current state forbids is soft-failed, and counts once others build on it', async () => {
  const { graph, receiver, current } = await sharedRoom();
  const fork = graph.ends;
  const ban = graph.member(MALLORY, 'ban', { sender: FOUNDER, prev: fork });
  const evading = graph.message(MALLORY, 'still here', { prev: fork });
  await receiver.receive('far', ban);
  const announced = engine.changes.length;
  assert.equal((await receiver.receive('evil', evading))?.status, 'soft-failed');
  assert.deepEqual((await current()).extremities, [ban.eventId]);
  assert.equal(engine.changes.length, announced);
  const joining = graph.message(BOB, 'saw both', { prev: [ban, evading] });
  assert.equal((await receiver.receive('near', joining))?.status, 'accepted');
  assert.deepEqual((await current()).extremities, [joining.eventId]);
  assert.equal((await current()).membership(MALLORY), 'ban');
});

test('an old state told behind a gap does not take the place of ours', async () => {
  const { graph, receiver, current } = await sharedRoom();
  const atFork = graph.ends;
  const before = graph.stateAfter.get(atFork[0]!.eventId)!;
  const ban = graph.member(MALLORY, 'ban', { sender: FOUNDER });
  const levels = graph.add({
    sender: FOUNDER,
    type: 'm.room.power_levels',
    stateKey: '',
    content: { users: graph.version.privilegedCreators ? {} : { [FOUNDER]: 100 }, events_default: 10 },
  });
  for (const event of [ban, levels]) assert.equal((await receiver.receive('far', event))?.status, 'accepted');
  // Mallory's server pretends that a long branch leads from the time before the ban.
  const hidden = graph.message(MALLORY, 'hidden', { prev: atFork });
  const pulled = graph.message(MALLORY, 'pulled', { prev: [hidden], depth: 90 });
  const sent = graph.message(MALLORY, 'sent', { prev: [pulled], depth: 91 });
  graph.lies.missingEvents = async () => [pulled.pdu];
  graph.lies.stateIds = async () => ({ stateIds: [...before.values()], authChainIds: [] });
  await receiver.receive('evil', sent);
  const room = await current();
  assert.equal(room.membership(MALLORY), 'ban');
  assert.equal(room.state.get('m.room.power_levels', '')?.eventId, levels.eventId);
  assert.ok(room.extremities.includes(levels.eventId));
});

test('a redaction that comes first empties its target when that comes', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const fork = graph.ends;
  const target = graph.message(BOB, 'oops', { prev: fork });
  const redaction = graph.add({ sender: BOB, type: 'm.room.redaction', redacts: target.eventId, prev: fork });
  await receiver.receive('near', redaction);
  const placed = await receiver.receive('near', target);
  assert.deepEqual(placed?.content, {});
  assert.equal(placed?.redactedBy?.eventId, redaction.eventId);
  const rows = await engine.db.query<{ json: string; redacted_by: string }>(
    'SELECT json, redacted_by FROM events WHERE room = $1 AND event_id = $2',
    [room.nid, target.eventId],
  );
  assert.equal(rows[0]!.redacted_by, redaction.eventId);
  assert.ok(!rows[0]!.json.includes('oops'));
});

const USERS = [FOUNDER, BOB, MALLORY, '@dave:far', '@eve:near'] as const;
const act = fc.record({
  after: fc.array(fc.nat(6), { minLength: 1, maxLength: 3 }),
  actor: fc.nat(USERS.length - 1),
  target: fc.integer({ min: 1, max: USERS.length - 1 }),
  kind: fc.constantFrom('join', 'leave', 'kick', 'ban', 'levels', 'topic', 'topic', 'message', 'message'),
  ts: fc.nat(20),
});

type Act = typeof act extends fc.Arbitrary<infer T> ? T : never;

/** Adds to the graph what somebody tries, behind Alice's join; it may be refused, and is in the graph all the same. */
function tryAct(graph: RemoteGraph, since: readonly RoomEvent[], step: Act): RoomEvent {
  const { actor, target, kind, ts } = step;
  const sender = USERS[actor]!;
  const recent = [...since];
  const prev = [...new Set(step.after.map((back) => recent[Math.max(0, recent.length - 1 - back)]!))];
  const other = { sender, prev, ts };
  switch (kind) {
    case 'join':
      return graph.member(sender, 'join', { prev, ts });
    case 'leave':
      return actor === 0
        ? graph.message(sender, 'stays', { prev, ts })
        : graph.member(sender, 'leave', { prev, ts });
    case 'kick':
      return graph.member(USERS[target]!, 'leave', other);
    case 'ban':
      return graph.member(USERS[target]!, 'ban', other);
    case 'levels': {
      const users: JsonObject = graph.version.privilegedCreators ? {} : { [FOUNDER]: 100 };
      return graph.add({
        ...other,
        type: 'm.room.power_levels',
        stateKey: '',
        content: { users: { ...users, [USERS[target]!]: 50 } },
      });
    }
    case 'topic':
      return graph.topic(sender, `${ts}`, { prev, ts });
    default:
      return graph.message(sender, 'm', { prev, ts });
  }
}

test('whatever the order of arrival, the state is that of the whole graph', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom('1', '6', '10', '11', '12'),
      fc.array(act, { minLength: 3, maxLength: 25 }),
      fc.array(fc.nat(), { minLength: 30, maxLength: 30 }),
      async (version, steps, picks) => {
        const graph = new RemoteGraph(version);
        for (const user of USERS.slice(1)) graph.member(user, 'join', { ts: 0 });
        const room = await graph.joinFrom(engine);
        const receiver = receiverOf(engine, graph);
        const since = [...graph.ends];
        for (const step of steps) since.push(tryAct(graph, since, step));
        const end = graph.message(FOUNDER, 'the end', { prev: graph.ends.slice(0, 20) });
        fc.pre(graph.ends.length === 1);
        const waiting = since.slice(1);
        for (const pick of picks) {
          const [event] = waiting.splice(pick % Math.max(1, waiting.length), 1);
          if (event) await receiver.receive('far', event);
        }
        // Those that would have been rejected anyway were not worth filling a gap.
        for (const event of since.slice(1)) assert.ok(await receiver.receive('far', event));
        assert.ok(await receiver.receive('far', end));
        const current = await engine.rooms.require(room.roomId);
        assert.deepEqual(current.extremities, [end.eventId]);
        assert.deepEqual(stateOf(current), asObject(graph.stateAfter.get(end.eventId)!));
        for (const event of since.slice(1)) {
          const stored = (await engine.rooms.parts.events.get(event.eventId))!;
          assert.equal(stored.rejected, graph.rejected.has(event.eventId), event.type);
          const state = await engine.rooms.parts.snapshots.load(stored.stateBefore!);
          assert.deepEqual(asObject(state.toMap()), asObject(graph.stateBefore.get(event.eventId)!));
        }
        // What the live room holds is what is read again.
        const live = { state: stateOf(current), members: [...current.members()].sort() };
        engine.rooms.drop(current);
        const again = await engine.rooms.require(room.roomId);
        assert.deepEqual({ state: stateOf(again), members: [...again.members()].sort() }, live);
      },
    ),
    { numRuns: 40 },
  );
});
