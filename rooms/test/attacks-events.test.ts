import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { JsonObject, JsonValue, Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { contentHash } from '@trellis/protocol/hashes.ts';
import { buildEvent, signEvent, viewOf } from '@trellis/protocol/make-event.ts';
import { StagedPdus } from '@trellis/storage/staged-pdus.ts';
import { Backfill } from '../backfill.ts';
import { newestGap } from '../gaps.ts';
import { checkIncoming } from '../incoming-event.ts';
import { IncomingPdus } from '../incoming-pdus.ts';
import { installRoom } from '../install-room.ts';
import type { RemoteServers } from '../remote-servers.ts';
import { sendEvent } from '../send.ts';
import { keyOf, type TestEngine, testEngine, testVerifier } from './engine.ts';
import { ALICE, FOUNDER, RemoteGraph, receiverOf } from './remote-graph.ts';

const BOB = '@bob:near';
const EVE = '@eve:evil';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

function incomingBy(graph: RemoteServers): IncomingPdus {
  return new IncomingPdus({
    rooms: engine.rooms,
    remote: graph,
    verifier: testVerifier,
    receiver: receiverOf(engine, graph),
    staged: new StagedPdus(engine.db),
    joined: async () => {},
    log: { warn: () => {} },
  });
}

async function sharedRoom(version?: string) {
  const graph = new RemoteGraph(version);
  graph.member(BOB, 'join');
  graph.member(EVE, 'join');
  const room = await graph.joinFrom(engine);
  return { graph, room, roomId: room.roomId, receiver: receiverOf(engine, graph) };
}

const known = (event: RoomEvent) => engine.rooms.parts.events.get(event.eventId);

/** Takes the right signature off, here and in what the other server hands out. The id stays what it is. */
function forge(graph: RemoteGraph, event: RoomEvent): RoomEvent {
  const signatures = { far: { 'ed25519:test': keyOf('evil').sign('something else') } };
  const forged = viewOf({ ...event.pdu, signatures }, event.eventId, event.version);
  graph.events.set(event.eventId, forged);
  return forged;
}

/** The room still takes what is right. */
async function goesOn(graph: RemoteGraph, roomId: string): Promise<void> {
  const local = await sendEvent(engine.rooms, roomId, {
    type: 'm.room.message',
    sender: ALICE,
    content: { body: 'still here' },
  });
  assert.equal(local.status, 'accepted');
  const room = await engine.rooms.require(roomId);
  const prev = room.extremities.flatMap((id) => graph.events.get(id) ?? []);
  const depth = Math.min(room.depth + 1, Number.MAX_SAFE_INTEGER);
  const next = graph.message(BOB, 'and on', { prev: prev.length > 0 ? prev : graph.ends, depth });
  const results = await incomingBy(graph).take('near', [next.pdu]);
  assert.deepEqual(results[next.eventId], {});
}

describe('an event that its server has not signed (CVE-2022-39200, GHSA-pfw4-xjgm-267c)', () => {
  test('is not taken from /send', async () => {
    const { graph } = await sharedRoom();
    const forged = forge(graph, graph.message(FOUNDER, 'forged'));
    const results = await incomingBy(graph).take('evil', [forged.pdu]);
    assert.match(results[forged.eventId]!.error!, /signed/);
    assert.equal(await known(forged), undefined);
  });

  test('is not taken from /get_missing_events', async () => {
    const { graph, receiver } = await sharedRoom();
    const forged = forge(graph, graph.topic(FOUNDER, 'forged'));
    const next = graph.message(EVE, 'on top of it');
    assert.equal(await receiver.receive('evil', next), undefined);
    assert.equal(await known(forged), undefined);
  });

  test('is not taken from /event_auth or /event', async () => {
    const { graph, receiver } = await sharedRoom();
    const prev = graph.ends;
    const levels = { users: { [FOUNDER]: 100, [EVE]: 100 } };
    const forged = forge(
      graph,
      graph.add({ sender: FOUNDER, type: 'm.room.power_levels', stateKey: '', content: levels }),
    );
    const topic = graph.topic(EVE, 'by power that nobody gave');
    const withForgedAuth = graph.add({
      sender: EVE,
      type: 'm.room.topic',
      stateKey: '',
      content: { topic: 'mine' },
      prev,
      auth: topic.authEvents.map((id) => graph.events.get(id)!),
    });
    assert.ok(withForgedAuth.authEvents.includes(forged.eventId));
    assert.equal(await receiver.receive('evil', withForgedAuth), undefined);
    assert.deepEqual(
      graph.calls.map((call) => call.split(' ')[0]),
      ['eventAuth', ...graph.calls.slice(1).map(() => 'event')],
    );
    assert.equal(await known(forged), undefined);
  });

  for (const members of [5, 60])
    test(`is not taken from ${members > 50 ? '/state' : '/state_ids and /event'}`, async () => {
      const { graph, receiver, room } = await sharedRoom();
      const joins = Array.from({ length: members }, (_, i) => graph.member(`@u${i}:far`, 'join'));
      const forged = forge(graph, joins[2]!);
      const last = graph.message(EVE, 'last');
      const state = await receiver.remoteStates.before(room, 'evil', last.eventId);
      assert.ok(graph.calls.some((call) => call.startsWith(members > 50 ? 'state ' : 'event ')));
      assert.equal(state?.get('m.room.member', '@u2:far'), undefined);
      assert.ok(state?.get('m.room.member', '@u3:far'));
      assert.equal(await known(forged), undefined);
    });

  test('is not taken from /backfill', async () => {
    const graph = new RemoteGraph();
    graph.member(BOB, 'join');
    const old = Array.from({ length: 10 }, (_, i) => graph.message(BOB, `old ${i}`));
    const forged = forge(graph, old[5]!);
    const room = await graph.joinFrom(engine);
    const backfill = new Backfill(
      { rooms: engine.rooms, remote: graph, verifier: testVerifier },
      receiverOf(engine, graph),
    );
    const gap = await newestGap(engine.rooms, room, Number.NEGATIVE_INFINITY, Number.MAX_SAFE_INTEGER);
    assert.ok(await backfill.before(room, gap!, 50));
    assert.equal((await known(old[9]!))?.status, 'accepted');
    assert.equal(await known(forged), undefined);
  });

  test('is not taken from the state or the auth chain of /send_join', async () => {
    const graph = new RemoteGraph();
    const topic = graph.topic(FOUNDER, 'not signed');
    const join = graph.member(ALICE, 'join');
    const forged = forge(graph, topic);
    const state = [...graph.stateBefore.get(join.eventId)!.values()].map((id) => graph.events.get(id)!.pdu);
    await installRoom(engine.rooms, testVerifier, {
      server: 'far',
      join,
      state,
      authChain: [...state, forged.pdu],
    });
    const room = await engine.rooms.require(graph.roomId);
    assert.equal(room.state.get('m.room.topic', ''), undefined);
    assert.equal(await known(forged), undefined);
  });
});

describe('a broken content hash', () => {
  for (const version of ['10', '11'])
    test(`makes no invite in another's name out of one by third-party invite, version ${version}`, async () => {
      const { graph, room } = await sharedRoom(version);
      const { pdu } = graph.add({
        sender: FOUNDER,
        type: 'm.room.member',
        stateKey: '@accomplice:evil',
        content: { membership: 'invite', third_party_invite: { display_name: 'x' } },
      });
      // Nobody's signature is asked for on such an invite; without its hash it would be redacted to a plain one.
      const { signatures: _signatures, ...unsigned } = pdu;
      const attack: Pdu = { ...unsigned, hashes: { sha256: 'AAAA' }, signatures: { evil: {} } };
      const results = await incomingBy(graph).take('evil', [attack]);
      assert.equal(room.membership('@accomplice:evil'), undefined);
      assert.equal((await engine.rooms.require(room.roomId)).membership('@accomplice:evil'), undefined);
      const [id] = Object.keys(results);
      const stored = await engine.rooms.parts.events.get(id!);
      assert.ok(stored?.status === undefined || stored.status === 'rejected');
    });

  test('leaves a signed event redacted, whatever else it claims', async () => {
    const { graph } = await sharedRoom();
    const event = graph.message(BOB, 'as it was');
    const changed: Pdu = { ...event.pdu, content: { body: 'changed' }, unsigned: { redacted_because: {} } };
    const [checked] = await checkIncoming([changed], graph.version, testVerifier);
    assert.deepEqual(checked?.event?.content, {});
    assert.equal(checked?.event?.pdu.unsigned, undefined);
  });
});

describe('a malformed event (CVE-2025-30355, GHSA-v56r-hwv5-mxg6)', () => {
  const deep = (levels: number): JsonValue => {
    let value: JsonValue = 1;
    for (let i = 0; i < levels; i++) value = [value];
    return value;
  };
  const odd: JsonValue[] = [
    null,
    true,
    0,
    -1,
    1.5,
    -0,
    2 ** 53,
    1e300,
    '',
    'x',
    '\ud800',
    '\0',
    'x'.repeat(70_000),
    [],
    [null],
    [[]],
    [['$x:y', {}]],
    Array.from({ length: 1000 }, (_, i) => `$${i}`),
    {},
    { '': '' },
    JSON.parse('{"__proto__":{"sha256":"x"}}') as JsonObject,
    { evil: null },
    { evil: { 'ed25519:test': 7 } },
    deep(400),
    deep(600),
  ];
  const fields = [
    'auth_events',
    'content',
    'depth',
    'event_id',
    'hashes',
    'origin',
    'origin_server_ts',
    'prev_events',
    'redacts',
    'room_id',
    'sender',
    'signatures',
    'state_key',
    'type',
    'unsigned',
    'msc4354_sticky',
  ];

  for (const version of ['1', '3', '6', '11', '12'])
    test(`of version ${version} does no harm, whatever stands in whichever field`, async () => {
      const { graph, roomId } = await sharedRoom(version);
      const incoming = incomingBy(graph);
      const signer = { version: graph.version, key: keyOf('evil'), serverName: 'evil' };
      const { pdu } = graph.message(EVE, 'template');
      for (const field of fields) {
        const pdus: Pdu[] = [];
        for (const value of [...odd, undefined]) {
          const changed: Pdu = { ...pdu, [field]: value as JsonValue };
          if (value === undefined) delete changed[field];
          pdus.push(changed);
        }
        const results = await incoming.take('evil', pdus);
        for (const result of Object.values(results))
          assert.ok(result.error === undefined || result.error !== '');
      }
      // Signed as they are, as far as that can be.
      const contents: JsonObject[] = [
        { membership: 5 },
        { membership: 'join', displayname: {}, avatar_url: 7, third_party_invite: 'x' },
        { users: [], events: 'x', ban: '50', invite: null },
        { join_rule: { x: 1 }, allow: [null, 7, { type: 5, room_id: [] }] },
        { allow: 'x', deny: { '*': 1 }, allow_ip_literals: 'no' },
        { 'm.relates_to': { event_id: {}, rel_type: [], key: 7 } },
        { 'm.relates_to': 'x', 'm.mentions': { user_ids: { a: 1 }, room: 'yes' } },
      ];
      const types = ['m.room.member', 'm.room.power_levels', 'm.room.join_rules', 'm.room.server_acl', 'x'];
      const signed = types.flatMap((type) =>
        contents.map(
          (content) =>
            buildEvent(
              {
                room_id: roomId,
                sender: EVE,
                type,
                ...(type === 'x' ? {} : { state_key: type === 'm.room.member' ? EVE : '' }),
                content,
                prev_events: graph.message(EVE, 'prev').prevEvents,
                auth_events: graph.message(EVE, 'auth').authEvents,
                depth: Number.MAX_SAFE_INTEGER,
                origin_server_ts: Number.MIN_SAFE_INTEGER,
              },
              signer,
            ).pdu,
        ),
      );
      await incoming.take('evil', signed);
      await goesOn(graph, roomId);
    });

  test('with the largest depth does not keep the room from going on', async () => {
    const { graph, roomId, receiver } = await sharedRoom();
    const deepest = graph.message(EVE, 'deepest', { depth: Number.MAX_SAFE_INTEGER });
    assert.equal((await receiver.receive('evil', deepest))?.status, 'accepted');
    await goesOn(graph, roomId);
    const [tooDeep] = await checkIncoming([{ ...deepest.pdu, depth: 2 ** 53 }], graph.version, testVerifier);
    assert.equal(tooDeep?.event, undefined);
  });
});

describe('references that lead astray', () => {
  test('auth events of another room reject the event (CVE-2020-26257)', async () => {
    const { graph, receiver } = await sharedRoom();
    const other = await sharedRoom();
    const levels = [...other.graph.events.values()].find(({ type }) => type === 'm.room.power_levels')!;
    const own = graph.message(EVE, 'template');
    const auth = own.authEvents
      .map((id) => graph.events.get(id)!)
      .map((event) => (event.type === 'm.room.power_levels' ? levels : event));
    const prev = own.prevEvents.map((id) => graph.events.get(id)!);
    const event = graph.message(EVE, 'by the power of another room', { prev, auth });
    assert.equal((await receiver.receive('evil', event))?.status, 'rejected');
  });

  test('an event of another room than its transaction says is of its own room', async () => {
    const { graph } = await sharedRoom();
    const other = await sharedRoom();
    const event = other.graph.message(BOB, 'from elsewhere');
    const results = await incomingBy(graph).take('evil', [{ ...event.pdu, room_id: graph.roomId }]);
    assert.ok(Object.values(results).every(({ error }) => error !== undefined));
    assert.equal(await known(event), undefined);
  });

  test('auth events and predecessors that go round in a circle are given up', async () => {
    // Only where servers choose the ids of their events can there be a circle at all.
    const { graph, roomId, receiver } = await sharedRoom('1');
    const template = graph.message(EVE, 'template');
    const circle = (name: string, other: string, part: 'auth_events' | 'prev_events'): RoomEvent => {
      const signer = { version: graph.version, key: keyOf('evil'), serverName: 'evil' };
      const { pdu } = buildEvent(
        {
          room_id: roomId,
          sender: EVE,
          type: 'm.room.message',
          content: { body: name },
          prev_events: part === 'prev_events' ? [other] : template.prevEvents,
          auth_events: part === 'auth_events' ? [...template.authEvents, other] : template.authEvents,
          depth: 50,
          origin_server_ts: 1,
        },
        signer,
      );
      const named: Pdu = { ...pdu, event_id: name, signatures: {} };
      return signEvent({ ...named, hashes: { sha256: contentHash(named, graph.version) } }, signer);
    };
    for (const part of ['auth_events', 'prev_events'] as const) {
      const [a, b] = [`$a-${part}:evil`, `$b-${part}:evil`] as const;
      const one = circle(a, b, part);
      const two = circle(b, a, part);
      graph.events.set(a, one).set(b, two);
      for (const name of ['event', 'eventAuth', 'missingEvents', 'backfill'] as const)
        graph[name] = (async () => (name === 'event' ? two.pdu : [one.pdu, two.pdu])) as never;
      const [checked] = await checkIncoming([one.pdu], graph.version, testVerifier);
      assert.ok(checked?.event !== undefined, String(checked?.error));
      assert.equal(await receiver.receive('evil', one), undefined);
      assert.equal(await known(one), undefined);
    }
    await goesOn(graph, roomId);
  });

  test('more references than an event may have are refused by format', async () => {
    const { graph } = await sharedRoom();
    const { pdu } = graph.message(EVE, 'template');
    const many = (n: number) => Array.from({ length: n }, (_, i) => `$${i}`);
    const checked = await checkIncoming(
      [
        { ...pdu, prev_events: many(21) },
        { ...pdu, auth_events: many(11) },
        { ...pdu, prev_events: many(100_000) },
      ],
      graph.version,
      testVerifier,
    );
    assert.deepEqual(
      checked.map(({ event }) => event),
      [undefined, undefined, undefined],
    );
  });

  test('an event with twenty unknown predecessors costs one question, and is not taken', async () => {
    const { graph, receiver } = await sharedRoom();
    const unknown = Array.from({ length: 20 }, (_, i) => graph.message(EVE, `withheld ${i}`));
    for (const { eventId } of unknown) graph.withheld.add(eventId);
    graph.lies.missingEvents = async () => [];
    const event = graph.message(EVE, 'attack', { prev: unknown });
    assert.equal(await receiver.receive('evil', event), undefined);
    assert.deepEqual(graph.calls, [`missingEvents ${event.eventId}`]);
  });
});
