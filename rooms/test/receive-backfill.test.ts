import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { Backfill } from '../backfill.ts';
import type { RemoteServers } from '../remote-servers.ts';
import type { Room } from '../room.ts';
import { visibleEvents } from '../visibility.ts';
import { type TestEngine, testEngine, testVerifier } from './engine.ts';
import { ALICE, asObject, FOUNDER, RemoteGraph, receiverOf } from './remote-graph.ts';

const BOB = '@bob:near';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

function backfillBy(remote: RemoteServers, clock?: () => number): Backfill {
  const parts = { rooms: engine.rooms, remote, verifier: testVerifier };
  return new Backfill(parts, receiverOf(engine, remote), clock);
}

async function gapOf(room: Room): Promise<number | undefined> {
  const [row] = await engine.db.query<{ pos: number | null }>(
    'SELECT max(pos) AS pos FROM backward_extremities WHERE room = $1',
    [room.nid],
  );
  return row?.pos ?? undefined;
}

async function fillAll(room: Room, backfill: Backfill, limit: number): Promise<number> {
  let rounds = 0;
  for (let pos = await gapOf(room); pos !== undefined; pos = await gapOf(room)) {
    assert.ok(await backfill.before(room, pos, limit));
    rounds++;
  }
  return rounds;
}

async function timelineOf(room: Room): Promise<string[]> {
  const events = await engine.rooms.parts.events.timeline(room.nid, { direction: 'forward', limit: 1000 });
  return events.map(({ eventId }) => eventId);
}

const idsOf = (events: Iterable<RoomEvent>) => Array.from(events, ({ eventId }) => eventId);

test('history comes in order to the very beginning, and is no news', async () => {
  const graph = new RemoteGraph();
  graph.member(BOB, 'join');
  for (let i = 0; i < 120; i++)
    if (i % 10 === 0) graph.topic(FOUNDER, `topic ${i}`);
    else graph.message(BOB, `old ${i}`);
  const room = await graph.joinFrom(engine);
  const announced = engine.changes.length;
  const { state, extremities } = room;
  assert.equal(await fillAll(room, backfillBy(graph), 50), 3);
  assert.deepEqual(await timelineOf(room), idsOf(graph.events.values()));
  assert.equal(engine.changes.length, announced);
  assert.equal(room.state, state);
  assert.deepEqual(room.extremities, extremities);
  for (const event of graph.events.values()) {
    const stored = (await engine.rooms.parts.events.get(event.eventId))!;
    const before = await engine.rooms.parts.snapshots.load(stored.stateBefore!);
    assert.deepEqual(asObject(before.toMap()), asObject(graph.stateBefore.get(event.eventId)!));
    assert.equal(stored.backfilled, event.stateKey !== ALICE);
  }
});

test('branches come each after its predecessors', async () => {
  const graph = new RemoteGraph('10');
  graph.member(BOB, 'join');
  const fork = graph.ends;
  for (const topic of ['left', 'right']) {
    let last = graph.topic(FOUNDER, topic, { prev: fork });
    for (let i = 0; i < 40; i++) last = graph.message(BOB, `${topic} ${i}`, { prev: [last] });
  }
  graph.message(BOB, 'joined again');
  const room = await graph.joinFrom(engine);
  await fillAll(room, backfillBy(graph), 50);
  const places = new Map((await timelineOf(room)).map((id, i) => [id, i]));
  assert.equal(places.size, graph.events.size);
  for (const { eventId, prevEvents } of graph.events.values())
    for (const prev of prevEvents) assert.ok(places.get(prev)! < places.get(eventId)!);
});

test('what users may see of it is judged by the setting of its time', async () => {
  const graph = new RemoteGraph();
  graph.member(BOB, 'join');
  const shared = graph.message(BOB, 'for all who come');
  const visibility = (history_visibility: string) =>
    graph.add({
      sender: FOUNDER,
      type: 'm.room.history_visibility',
      stateKey: '',
      content: { history_visibility },
    });
  visibility('joined');
  const closed = graph.message(BOB, 'among us');
  visibility('shared');
  const again = graph.message(BOB, 'for all again');
  const room = await graph.joinFrom(engine);
  await fillAll(room, backfillBy(graph), 50);
  const events = await engine.rooms.parts.events.timeline(room.nid, { direction: 'forward', limit: 100 });
  const seen = idsOf(await visibleEvents(engine.rooms, room, ALICE, events));
  assert.ok(seen.includes(shared.eventId) && seen.includes(again.eventId));
  assert.ok(!seen.includes(closed.eventId));
});

test('another server is asked when the first has nothing, and rejected history is not shown', async () => {
  const graph = new RemoteGraph();
  graph.member(BOB, 'join');
  graph.member('@carol:third', 'join');
  const seized = graph.topic(BOB, 'not allowed');
  const target = graph.message(BOB, 'oops');
  const redaction = graph.add({ sender: BOB, type: 'm.room.redaction', redacts: target.eventId });
  const room = await graph.joinFrom(engine);
  const asked: string[] = [];
  const truth = graph.backfill.bind(graph);
  graph.backfill = async (server, ...rest) => {
    asked.push(server);
    if (server !== 'third') throw new Error('down');
    return truth(server, ...rest);
  };
  await fillAll(room, backfillBy(graph), 50);
  assert.ok(asked.length > 1 && asked.at(-1) === 'third');
  assert.ok(!(await timelineOf(room)).includes(seized.eventId));
  assert.equal((await engine.rooms.parts.events.get(seized.eventId))?.status, 'rejected');
  const emptied = await engine.rooms.parts.events.get(target.eventId);
  assert.deepEqual(emptied?.content, {});
  assert.equal(emptied?.redactedBy?.eventId, redaction.eventId);
  graph.backfill = async () => [];
  assert.equal(await backfillBy(graph).before(room, 12345, 10), false);
});

test('the only server that has the history is asked among many larger ones that came later', async () => {
  const graph = new RemoteGraph();
  for (let i = 0; i < 15; i++) for (const user of ['one', 'two']) graph.member(`@${user}:later${i}`, 'join');
  graph.topic(FOUNDER, 'what it is about');
  const room = await graph.joinFrom(engine);
  const truth = graph.backfill.bind(graph);
  graph.backfill = async (server, ...rest) => (server === 'far' ? truth(server, ...rest) : []);
  await fillAll(room, backfillBy(graph), 50);
  assert.deepEqual(await timelineOf(room), idsOf(graph.events.values()));
});

test('a gap is left alone when nobody had what is missing, for long only if all have answered', async () => {
  const graph = new RemoteGraph();
  graph.member('@carol:third', 'join');
  const room = await graph.joinFrom(engine);
  const gap = (await gapOf(room))!;
  let now = 0;
  const restsAre = async (answer: () => Promise<[]>) => {
    let asked = 0;
    graph.backfill = () => {
      asked++;
      return answer();
    };
    const backfill = backfillBy(graph, () => now);
    const rests: number[] = [];
    for (let i = 0; i < 9; i++) {
      await backfill.before(room, gap, 10);
      const [before, since] = [asked, now];
      while (asked === before) {
        now += 5_000;
        await backfill.before(room, gap, 10);
      }
      rests.push((now - since) / 1_000);
      // The next rest has begun.
    }
    return rests;
  };
  assert.deepEqual((await restsAre(async () => [])).slice(0, 4), [60, 120, 240, 480]);
  const unanswered = await restsAre(async () => {
    throw new Error('down');
  });
  assert.deepEqual(unanswered, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
});
