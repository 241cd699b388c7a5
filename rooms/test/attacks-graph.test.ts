import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import { stateKeyOf } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { Backfill } from '../backfill.ts';
import { newestGap } from '../gaps.ts';
import { readHistory } from '../history.ts';
import { MergeEnds } from '../merge-ends.ts';
import type { RemoteServers } from '../remote-servers.ts';
import { sendEvent } from '../send.ts';
import { isServerAllowed } from '../server-acl.ts';
import { keyOf, type TestEngine, testEngine, testVerifier } from './engine.ts';
import { ALICE, asObject, FOUNDER, RemoteGraph, receiverOf, stateOf } from './remote-graph.ts';

const BOB = '@bob:near';
const EVE = '@eve:evil';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

async function sharedRoom(version?: string) {
  const graph = new RemoteGraph(version);
  graph.member(BOB, 'join');
  graph.member(EVE, 'join');
  const room = await graph.joinFrom(engine);
  const { roomId } = room;
  return {
    graph,
    roomId,
    receiver: receiverOf(engine, graph),
    current: () => engine.rooms.require(roomId),
  };
}

const message = (body: string) => ({ type: 'm.room.message', sender: ALICE, content: { body } });

describe('rejected events (CVE-2022-39374, GHSA-p9qp-c452-f9r7)', () => {
  for (const version of ['6', '11', '12'])
    test(`do not enter the state by resolution or as auth events, version ${version}`, async () => {
      const { graph, receiver, current } = await sharedRoom(version);
      const fork = graph.ends;
      // What Eve may not do, done on one of two branches that are joined afterwards.
      const users: JsonObject = version === '12' ? { [EVE]: 100 } : { [FOUNDER]: 100, [EVE]: 100 };
      const rejected = graph.add({
        sender: EVE,
        type: 'm.room.power_levels',
        stateKey: '',
        content: { users },
        prev: fork,
      });
      const topic = graph.topic(FOUNDER, 'right', { prev: fork });
      assert.equal((await receiver.receive('evil', rejected))?.status, 'rejected');
      await receiver.receive('far', topic);
      const auth = (event: RoomEvent) =>
        event.authEvents
          .map((id) => graph.events.get(id)!)
          .map((each) => (each.type === rejected.type ? rejected : each));
      const template = graph.topic(EVE, 'template', { prev: [rejected] });
      const byIt = graph.topic(EVE, 'by the power that it claims', {
        prev: [rejected, topic],
        auth: auth(template),
      });
      assert.equal((await receiver.receive('evil', byIt))?.status, 'rejected');
      const joined = graph.message(BOB, 'joins both', { prev: [rejected, topic] });
      assert.equal((await receiver.receive('near', joined))?.status, 'accepted');
      const { state } = await current();
      assert.equal(state.get('m.room.topic', '')?.eventId, topic.eventId);
      assert.notEqual(state.get('m.room.power_levels', '')?.eventId, rejected.eventId);
    });

  test('are taken out of a state that another server tells', async () => {
    const { graph, receiver } = await sharedRoom();
    const rejected = graph.topic(EVE, 'no power');
    await receiver.receive('evil', rejected);
    const last = graph.message(BOB, 'last');
    graph.lies.stateIds = async () => {
      const truth = graph.stateBefore.get(last.eventId)!;
      return { stateIds: [...truth.values(), rejected.eventId], authChainIds: [] };
    };
    const told = await receiver.remoteStates.before(
      await engine.rooms.require(graph.roomId),
      'evil',
      last.eventId,
    );
    assert.ok(told);
    assert.equal(told.get('m.room.topic', ''), undefined);
  });

  test('do not end pagination where a page is full of them (CVE-2026-45076, GHSA-6qf2-7x63-mm6v)', async () => {
    const { graph, receiver, current } = await sharedRoom();
    const older = graph.message(BOB, 'older');
    await receiver.receive('near', older);
    for (let i = 0; i < 60; i++)
      assert.equal((await receiver.receive('evil', graph.topic(EVE, `no ${i}`)))?.status, 'rejected');
    const newer = graph.message(BOB, 'newer');
    await receiver.receive('near', newer);
    const noMore = { before: async () => false };
    const bodies: unknown[] = [];
    let from: number | undefined = Number.MAX_SAFE_INTEGER;
    for (let pages = 0; from !== undefined && pages < 5; pages++) {
      const page = await readHistory({ rooms: engine.rooms, backfill: noMore }, await current(), {
        userId: ALICE,
        direction: 'backward',
        from,
        limit: 5,
      });
      bodies.push(...page.events.map(({ content }) => content.body ?? content.membership));
      from = page.end;
    }
    assert.deepEqual(bodies.slice(0, 3), ['newer', 'older', 'join']);
  });
});

describe('state that is reset (CVE-2025-49090, CVE-2025-54315; MSC4289, MSC4291, MSC4297)', () => {
  for (const version of ['10', '11', '12'])
    test(`a room has one create event, version ${version}`, async () => {
      const { graph, receiver, roomId, current } = await sharedRoom(version);
      const { version: ofRoom } = graph;
      const create = buildEvent(
        {
          ...(ofRoom.roomIdIsCreateHash ? {} : { room_id: roomId }),
          sender: EVE,
          type: 'm.room.create',
          state_key: '',
          content: { room_version: version, ...(ofRoom.implicitCreator ? {} : { creator: EVE }) },
          prev_events: [],
          auth_events: [],
          depth: 1,
          origin_server_ts: 1,
        },
        { version: ofRoom, key: keyOf('evil'), serverName: 'evil' },
      );
      const before = stateOf(await current());
      assert.notEqual((await receiver.receive('evil', create))?.status, 'accepted');
      // As an auth event it makes its own room, of which this one is none.
      const stateEvents = [...graph.stateAfter.get(graph.ends[0]!.eventId)!.values()];
      const join = graph.add({
        sender: EVE,
        type: 'm.room.member',
        stateKey: EVE,
        content: { membership: 'join' },
        auth: [create],
      });
      graph.events.set(create.eventId, create);
      assert.notEqual((await receiver.receive('evil', join))?.status, 'accepted');
      graph.lies.stateIds = async () => ({
        stateIds: [create.eventId, ...stateEvents.slice(1)],
        authChainIds: [],
      });
      const told = await receiver.remoteStates.before(await current(), 'evil', graph.ends[0]!.eventId);
      assert.equal(told, undefined, 'a state without the create event is none of this room');
      assert.deepEqual(stateOf(await current()), before);
    });

  test('nobody demotes a creator in version 12', async () => {
    const { graph, receiver, current } = await sharedRoom('12');
    const levels = graph.add({
      sender: FOUNDER,
      type: 'm.room.power_levels',
      stateKey: '',
      content: { users: { [EVE]: 2 ** 53 - 1 } },
    });
    assert.equal((await receiver.receive('far', levels))?.status, 'accepted');
    const demotions: JsonObject[] = [{ [EVE]: 2 ** 53 - 1, [FOUNDER]: 0 }, { [FOUNDER]: -1 }];
    for (const users of demotions) {
      const content = { users };
      const fork = graph.ends;
      const demotion = graph.add({ sender: EVE, type: 'm.room.power_levels', stateKey: '', content });
      assert.equal((await receiver.receive('evil', demotion))?.status, 'rejected');
      const kick = graph.member(FOUNDER, 'leave', { sender: EVE, prev: fork });
      assert.equal((await receiver.receive('evil', kick))?.status, 'rejected');
    }
    assert.equal((await current()).membership(FOUNDER), 'join');
  });

  test('an old branch that is brought up later does not undo a ban', async () => {
    for (const version of ['11', '12']) {
      const { graph, receiver, current } = await sharedRoom(version);
      const fork = graph.ends;
      const ban = graph.member(EVE, 'ban', { sender: FOUNDER, prev: fork });
      const after = graph.topic(FOUNDER, 'after', { prev: [ban] });
      for (const event of [ban, after]) await receiver.receive('far', event);
      // Eve writes on where she was still in the room, with any time and depth that she likes.
      let last = fork;
      for (let i = 0; i < 20; i++) {
        const event = graph.add({
          sender: EVE,
          type: 'm.room.member',
          stateKey: EVE,
          content: { membership: 'join', displayname: `${i}` },
          prev: last,
          ts: i % 2 === 0 ? 1 : Date.now() + 10 ** 9,
          depth: 1000 + i,
        });
        await receiver.receive('evil', event);
        last = [event];
      }
      const joined = graph.message(BOB, 'joins both', { prev: [after, ...last] });
      await receiver.receive('near', joined);
      const room = await current();
      assert.equal(room.membership(EVE), 'ban');
      assert.equal(room.state.get('m.room.topic', '')?.eventId, after.eventId);
      assert.deepEqual(stateOf(room), asObject(graph.resolved(graph.ends)));
    }
  });
});

describe('costs', () => {
  const MAX_MS = 20_000;

  test('of forks and auth chains stay in proportion (CVE-2024-31208, GHSA-3h7q-rfh9-xm4v)', async () => {
    const { graph, receiver, roomId, current } = await sharedRoom('11');
    const room = await current();
    const ends = new MergeEnds(engine.rooms, { warn: (data) => assert.fail(JSON.stringify(data)) });
    const rows = async () => {
      const counts = await Promise.all(
        ['state_snapshots', 'auth_chain_links'].map(async (table) => {
          const exists = await engine.db.query<{ n: number }>(
            `SELECT count(*)::int AS n FROM pg_class WHERE relname = $1`,
            [table],
          );
          if (exists[0]!.n === 0) return 0;
          return (await engine.db.query<{ n: number }>(`SELECT count(*)::int AS n FROM ${table}`))[0]!.n;
        }),
      );
      return counts.reduce((a, b) => a + b, 0);
    };
    const bytes = async () =>
      (await engine.db.query<{ n: number }>('SELECT pg_database_size(current_database())::int AS n'))[0]!.n;
    // Eve's own membership, changed from old places again and again: many ends, each with a state of its own.
    const fork = graph.ends;
    const [rowsBefore, bytesBefore] = [await rows(), await bytes()];
    let took = 0;
    const branches: RoomEvent[] = [];
    for (let i = 0; i < 150; i++) {
      const prev = i % 3 === 0 ? fork : branches.slice(-(1 + (i % 7)));
      const event = graph.add({
        sender: EVE,
        type: 'm.room.member',
        stateKey: EVE,
        content: { membership: 'join', displayname: `${i}` },
        prev,
      });
      branches.push(event);
      const start = performance.now();
      await receiver.receive('evil', event);
      await ends.note(roomId);
      took += performance.now() - start;
    }
    assert.ok(took < MAX_MS, `took ${took} ms`);
    assert.ok((await rows()) - rowsBefore < 150 * 30, `${(await rows()) - rowsBefore} rows`);
    assert.ok((await bytes()) - bytesBefore < 16 * 1024 * 1024, `${(await bytes()) - bytesBefore} bytes`);
    assert.ok((await current()).extremities.length <= 31);
    assert.equal(room.roomId, roomId);
  });

  test('of an access list with 10,000 patterns are paid once for each server (CVE-2023-45129)', async () => {
    const { graph, receiver, current } = await sharedRoom();
    // As many as an event has room for, and those that make a backtracking matcher despair.
    const nasty = Array.from({ length: 120 }, (_, i) => `${'*a'.repeat(100)}${i}*b`);
    const many = Array.from({ length: 3_000 }, (_, i) => `*${i.toString(36)}*`);
    const acl = graph.add({
      sender: FOUNDER,
      type: 'm.room.server_acl',
      stateKey: '',
      content: { allow: ['*'], deny: [...nasty, ...many] },
    });
    assert.equal((await receiver.receive('far', acl))?.status, 'accepted');
    const room = await current();
    const start = performance.now();
    const name = `${'a.'.repeat(120)}test`;
    for (let i = 0; i < 1000; i++) await isServerAllowed(engine.rooms, room, name);
    for (let i = 0; i < 50; i++) await isServerAllowed(engine.rooms, room, `host-${i}.test`);
    const took = performance.now() - start;
    assert.ok(took < 2_000, `took ${took} ms`);
  });

  test("of one room are not the others' (CVE-2026-45078, GHSA-8q93-326v-3m7g)", async () => {
    const busy = await sharedRoom();
    const quiet = await sharedRoom();
    // As requests come: each by itself.
    const flood: Array<Promise<unknown>> = [];
    let done = 0;
    let before: number | undefined;
    for (let i = 0; i < 400; i++) {
      const sent = sendEvent(engine.rooms, busy.roomId, message(`flood ${i}`));
      flood.push(sent.then(() => done++));
      if (i === 200)
        flood.push(
          sendEvent(engine.rooms, quiet.roomId, message('at once')).then(() => {
            before = done;
          }),
        );
      await setImmediate();
    }
    await Promise.all(flood);
    assert.ok(before !== undefined && before < 400, `came after ${before} of 400`);
  });
});

describe('history that never ends', () => {
  async function oldRoom(backfill: RemoteServers['backfill']) {
    const graph = new RemoteGraph();
    graph.member(EVE, 'join');
    for (let i = 0; i < 30; i++) graph.message(EVE, `old ${i}`);
    const room = await graph.joinFrom(engine);
    const gap = await newestGap(engine.rooms, room, Number.NEGATIVE_INFINITY, Number.MAX_SAFE_INTEGER);
    let asked = 0;
    graph.backfill = async (...query) => {
      asked++;
      return backfill(...query);
    };
    let now = 0;
    const parts = { rooms: engine.rooms, remote: graph, verifier: testVerifier };
    const filler = new Backfill(parts, receiverOf(engine, graph), () => now);
    return {
      graph,
      room,
      gap: gap!,
      filler,
      asked: () => asked,
      pass: (ms: number) => {
        now += ms;
      },
    };
  }

  test('a gap that nobody can fill is asked for less and less often', async () => {
    const { room, gap, filler, asked, pass } = await oldRoom(async () => []);
    const servers = room.otherServers.length;
    for (let i = 0; i < 5; i++) assert.equal(await filler.before(room, gap, 50), false);
    assert.equal(asked(), servers);
    pass(60_001);
    await filler.before(room, gap, 50);
    pass(60_001);
    await filler.before(room, gap, 50);
    assert.equal(asked(), 2 * servers);
    pass(60_001);
    await filler.before(room, gap, 50);
    assert.equal(asked(), 3 * servers);
  });

  test('what leads nowhere, or is far too much, is no history', async () => {
    const { graph, room, gap, filler, asked } = await oldRoom(async () => {
      const junk: JsonObject[] = Array.from({ length: 1000 }, (_, i) => ({ junk: i }));
      const other = new RemoteGraph();
      for (let i = 0; i < 50; i++) other.message(FOUNDER, `of another room ${i}`);
      return [...junk, ...[...other.events.values()].map(({ pdu }) => pdu)];
    });
    assert.equal(await filler.before(room, gap, 50), false);
    assert.ok(asked() <= 5);
    // The true history is still taken from who has it.
    graph.backfill = RemoteGraph.prototype.backfill.bind(graph);
    const parts = { rooms: engine.rooms, remote: graph, verifier: testVerifier };
    assert.ok(await new Backfill(parts, receiverOf(engine, graph)).before(room, gap, 50));
  });

  test('an endless chain of events that were never sent before is fetched a page at a time', async () => {
    // Each answer brings an older piece: a reader who goes on gets on, one who does not costs nothing.
    const graph = new RemoteGraph();
    graph.member(EVE, 'join');
    for (let i = 0; i < 450; i++) graph.message(EVE, `long ago ${i}`);
    const room = await graph.joinFrom(engine);
    const page = await readHistory(
      {
        rooms: engine.rooms,
        backfill: new Backfill(
          { rooms: engine.rooms, remote: graph, verifier: testVerifier },
          receiverOf(engine, graph),
        ),
      },
      room,
      { userId: ALICE, direction: 'backward', from: Number.MAX_SAFE_INTEGER, limit: 10 },
    );
    assert.equal(page.events.length, 10);
    assert.ok(graph.calls.filter((call) => call.startsWith('backfill')).length <= 3);
  });
});

test('a state that another server tells stands for nothing alone (poisoned state)', async () => {
  const { graph, receiver, current } = await sharedRoom('11');
  const fork = graph.ends;
  const old = graph.stateAfter.get(fork[0]!.eventId)!;
  const ban = graph.member(EVE, 'ban', { sender: FOUNDER });
  const levels = graph.add({
    sender: FOUNDER,
    type: 'm.room.power_levels',
    stateKey: '',
    content: { users: { [FOUNDER]: 100, [BOB]: 50 } },
  });
  for (const event of [ban, levels]) await receiver.receive('far', event);
  for (const drop of ['m.room.power_levels\0', stateKeyOf('m.room.member', FOUNDER), 'm.room.join_rules\0']) {
    const hidden = graph.message(EVE, `hidden ${drop}`, { prev: fork });
    const pulled = graph.message(EVE, 'pulled', { prev: [hidden], depth: 90 });
    const sent = graph.message(EVE, 'sent', { prev: [pulled], depth: 91 });
    graph.lies.missingEvents = async () => [pulled.pdu];
    graph.lies.stateIds = async () => ({
      stateIds: [...old].filter(([key]) => key !== drop).map(([, id]) => id),
      authChainIds: [],
    });
    await receiver.receive('evil', sent);
    const room = await current();
    assert.equal(room.membership(EVE), 'ban');
    assert.equal(room.membership(FOUNDER), 'join');
    assert.equal(room.state.get('m.room.power_levels', '')?.eventId, levels.eventId);
  }
});
