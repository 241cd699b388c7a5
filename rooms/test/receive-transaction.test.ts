import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { StagedPdus } from '@trellis/storage/staged-pdus.ts';
import { checkIncoming } from '../incoming-event.ts';
import { IncomingPdus } from '../incoming-pdus.ts';
import { storeOutOfBand } from '../out-of-band.ts';
import { sendEvent } from '../send.ts';
import { jsonForServer } from '../server-visibility.ts';
import { ForeignRoom, type TestEngine, testEngine, testVerifier } from './engine.ts';
import { ALICE, FOUNDER, RemoteGraph, receiverOf } from './remote-graph.ts';

const BOB = '@bob:near';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

function incomingBy(graph: RemoteGraph, patience?: number): IncomingPdus {
  return new IncomingPdus({
    rooms: engine.rooms,
    remote: graph,
    verifier: testVerifier,
    receiver: receiverOf(engine, graph),
    staged: new StagedPdus(engine.db),
    joined: async () => {},
    log: { warn: () => {} },
    patience,
  });
}

async function sharedRoom(version?: string) {
  const graph = new RemoteGraph(version);
  graph.member(BOB, 'join');
  const room = await graph.joinFrom(engine);
  return { graph, room };
}

const stagedCount = async () =>
  (await engine.db.query<{ n: number }>('SELECT count(*) AS n FROM staged_pdus'))[0]!.n;
const statusOf = async (event: RoomEvent) => (await engine.rooms.parts.events.get(event.eventId))?.status;

test('each PDU of a transaction has its own outcome', async () => {
  const { graph } = await sharedRoom();
  const elsewhere = await sharedRoom();
  const good = graph.message(BOB, 'good');
  const forged = graph.message(FOUNDER, 'forged');
  const notAllowed = graph.topic(BOB, 'no power', { prev: [good] });
  const other = elsewhere.graph.message(BOB, 'in another room');
  const results = await incomingBy(graph).take('near', [
    good.pdu,
    { ...forged.pdu, signatures: good.pdu.signatures! },
    notAllowed.pdu,
    other.pdu,
    { type: 'm.room.message', room_id: graph.roomId },
    { room_id: '!nowhere:far' },
    {},
  ]);
  assert.deepEqual(results[good.eventId], {});
  assert.deepEqual(results[other.eventId], {});
  assert.match(results[forged.eventId]!.error!, /signed/);
  assert.deepEqual(results[notAllowed.eventId], {});
  assert.equal(await statusOf(forged), undefined);
  assert.equal(await statusOf(notAllowed), 'rejected');
});

test('an event with the wrong hash goes on redacted, one given twice is looked at once', async () => {
  const { graph } = await sharedRoom();
  const event = graph.message(BOB, 'as it was');
  const changed: Pdu = { ...event.pdu, content: { body: 'changed' } };
  const [first, second] = await checkIncoming([changed, event.pdu], graph.version, testVerifier);
  assert.equal(first?.event?.eventId, event.eventId);
  assert.deepEqual(first?.event?.content, {});
  assert.ok(second?.error);
});

test('long state keys of others are measured as the room version has it', async () => {
  for (const [version, isTaken] of [
    ['10', true],
    ['11', false],
  ] as const) {
    const { graph } = await sharedRoom(version);
    const long = graph.add({ sender: FOUNDER, type: 'x', stateKey: '💥'.repeat(70) });
    const [incoming] = await checkIncoming([long.pdu], graph.version, testVerifier);
    assert.equal(incoming?.event !== undefined, isTaken);
  }
});

test('a slow server is not waited for: its event is kept, also over a restart', async () => {
  const { graph, room } = await sharedRoom();
  const quick = await sharedRoom();
  graph.message(BOB, 'missing');
  const waits = graph.message(BOB, 'waits for it');
  const beside = quick.graph.message(BOB, 'elsewhere');
  const answered = Promise.withResolvers<void>();
  const truth = graph.missingEvents.bind(graph);
  graph.missingEvents = async (...query) => {
    await answered.promise;
    return truth(...query);
  };
  const first = incomingBy(graph, 50);
  const results = await first.take('near', [waits.pdu, beside.pdu]);
  assert.deepEqual(results, { [waits.eventId]: {}, [beside.eventId]: {} });
  assert.equal(await statusOf(beside), 'accepted');
  assert.equal(await statusOf(waits), undefined);
  assert.equal(await stagedCount(), 1);
  // Meanwhile neither local users nor other servers wait.
  const draft = { type: 'm.room.message', sender: ALICE, content: {} };
  graph.adopt(await sendEvent(engine.rooms, room.roomId, draft));
  const founders = graph.message(FOUNDER, 'from another', { prev: [graph.ends[0]!] });
  assert.deepEqual(await incomingBy(graph).take('far', [founders.pdu]), { [founders.eventId]: {} });

  first.close();
  const second = incomingBy(graph);
  answered.resolve();
  await second.resume();
  assert.equal(await statusOf(waits), 'accepted');
  for (let i = 0; (await stagedCount()) > 0 && i < 50; i++) await delay(10);
  assert.equal(await stagedCount(), 0);
});

test('a server that sends faster than it can be answered has to wait', async () => {
  const { graph } = await sharedRoom();
  graph.message(BOB, 'missing');
  const waits = graph.message(BOB, 'waits');
  graph.missingEvents = () => new Promise(() => {});
  const incoming = incomingBy(graph, 1);
  const many = Array.from({ length: 50 }, () => waits.pdu);
  for (let i = 0; i < 10; i++) await incoming.take('near', many);
  await assert.rejects(incoming.take('near', [waits.pdu]), { errcode: 'M_LIMIT_EXCEEDED' });
  assert.deepEqual(await incoming.take('far', []), {});
  await engine.db.query('DELETE FROM staged_pdus');
});

test('denied servers are refused by the access list, whatever the letter case', async () => {
  const { graph } = await sharedRoom();
  graph.member('@m:Evil.Example', 'join');
  const incoming = incomingBy(graph);
  await incoming.take('Evil.Example', [graph.ends[0]!.pdu]);
  const acl = graph.add({
    sender: FOUNDER,
    type: 'm.room.server_acl',
    stateKey: '',
    content: { allow: ['*'], deny: ['*.EXAMPLE', '1.2.3.4'] },
  });
  assert.deepEqual(await incoming.take('far', [acl.pdu]), { [acl.eventId]: {} });
  const denied = graph.message('@m:Evil.Example', 'still here');
  assert.match((await incoming.take('Evil.Example', [denied.pdu]))[denied.eventId]!.error!, /denied/);
  assert.match((await incoming.take('1.2.3.4:8448', [denied.pdu]))[denied.eventId]!.error!, /denied/);
  const closed = graph.add({
    ...FOUNDER_ACL,
    content: { allow: ['here', 'far', '[*'], allow_ip_literals: false },
  });
  await incoming.take('far', [closed.pdu]);
  const last = graph.message(BOB, 'from near');
  assert.match((await incoming.take('near', [last.pdu]))[last.eventId]!.error!, /denied/);
  assert.match((await incoming.take('[::1]', [last.pdu]))[last.eventId]!.error!, /denied/);
  assert.deepEqual(await incoming.take('far:8448', [last.pdu]), { [last.eventId]: {} });
});
const FOUNDER_ACL = { sender: FOUNDER, type: 'm.room.server_acl', stateKey: '' };

test('an invite is taken back in a room that this server is not in, by its own server only', async () => {
  const far = new ForeignRoom(FOUNDER, '11');
  const invite = far.add(FOUNDER, 'm.room.member', ALICE, { membership: 'invite' });
  await storeOutOfBand(engine.rooms, invite, '[]');
  const incoming = incomingBy(new RemoteGraph());
  const foreign = far.build('@x:evil', 'm.room.member', ALICE, { membership: 'leave' });
  assert.ok((await incoming.take('evil', [foreign.pdu]))[foreign.eventId]!.error);
  const taken = far.build(FOUNDER, 'm.room.member', ALICE, { membership: 'leave' });
  assert.deepEqual(await incoming.take('far', [taken.pdu]), { [taken.eventId]: {} });
  assert.equal((await engine.rooms.require(far.roomId)).membership(ALICE), 'leave');
});

test('other servers are shown events as their users could see them', async () => {
  const { graph, room } = await sharedRoom();
  const receiver = receiverOf(engine, graph);
  const setting = graph.add({
    sender: FOUNDER,
    type: 'm.room.history_visibility',
    stateKey: '',
    content: { history_visibility: 'joined' },
  });
  const before = graph.message(FOUNDER, 'before they came');
  const join = graph.member('@late:late', 'join');
  const since = graph.message(FOUNDER, 'since they came');
  for (const event of [setting, before, join, since]) await receiver.receive('far', event);
  const { events } = engine.rooms.parts;
  const stored = await events.timeline(room.nid, { direction: 'forward', limit: 100 });
  const shown = async (server: string) => {
    const texts = await jsonForServer(engine.rooms, server, stored);
    return texts.join().match(/(before|since) they came/g);
  };
  assert.deepEqual(await shown('late'), ['since they came']);
  assert.deepEqual(await shown('near'), ['before they came', 'since they came']);
});
