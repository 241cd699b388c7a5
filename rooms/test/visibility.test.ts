import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { sendEvent } from '../send.ts';
import { jsonForServer } from '../server-visibility.ts';
import { endOfLastStay, membershipsAt, visibleEvents } from '../visibility.ts';
import { type TestEngine, testEngine } from './engine.ts';

const alice = '@alice:here';
const bob = '@bob:here';
const stranger = '@stranger:here';
let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

async function makeRoom(visibility: string): Promise<string> {
  return engine.createRoom(alice, {
    preset: 'public_chat',
    initial_state: [{ type: 'm.room.history_visibility', content: { history_visibility: visibility } }],
  });
}

const say = (roomId: string, body: string) =>
  sendEvent(engine.rooms, roomId, {
    type: 'm.room.message',
    sender: alice,
    content: { msgtype: 'm.text', body },
  });
const setState = (roomId: string, type: string, content: JsonObject) =>
  sendEvent(engine.rooms, roomId, { type, sender: alice, stateKey: '', content });

/** Bodies of the messages, and the states of memberships and visibility, that a user sees, in their order. */
async function seen(roomId: string, userId: string): Promise<string[]> {
  const room = await engine.rooms.require(roomId);
  const all = await engine.rooms.parts.events.timeline(room.nid, { direction: 'forward', limit: 1000 });
  return (await visibleEvents(engine.rooms, room, userId, all)).flatMap((event) => labelOf(event) ?? []);
}

function labelOf({ type, content, stateKey }: StoredEvent): string | undefined {
  if (type === 'm.room.message') return content.body as string;
  if (type === 'm.room.member' && stateKey === bob) return `bob ${content.membership}`;
  if (type === 'm.room.history_visibility') return `visibility ${content.history_visibility}`;
  return undefined;
}

const messages = (labels: string[]) => labels.filter((label) => !/^(bob|visibility) /.test(label));

for (const [visibility, whileInvited, afterJoin, afterLeaving, afterRejoin] of [
  [
    'world_readable',
    'before invited',
    'before invited joined',
    'before invited joined left',
    'before invited joined left again',
  ],
  ['shared', '', 'before invited joined', 'before invited joined', 'before invited joined left again'],
  ['invited', '', 'invited joined', 'invited joined', 'invited joined again'],
  ['joined', '', 'joined', 'joined', 'joined again'],
] as const)
  test(`history that is ${visibility} is seen as the user comes and goes`, async () => {
    const membership = engine.membership();
    const roomId = await makeRoom(visibility);
    await say(roomId, 'before');
    await membership.invite(roomId, alice, bob);
    await say(roomId, 'invited');
    assert.deepEqual(messages(await seen(roomId, bob)).join(' '), whileInvited);
    await membership.join(roomId, bob, []);
    await say(roomId, 'joined');
    assert.equal(messages(await seen(roomId, bob)).join(' '), afterJoin);
    await membership.leave(roomId, bob);
    await say(roomId, 'left');
    assert.equal(messages(await seen(roomId, bob)).join(' '), afterLeaving);
    assert.ok((await seen(roomId, bob)).includes('bob leave'));
    await membership.join(roomId, bob, []);
    await say(roomId, 'again');
    assert.equal(messages(await seen(roomId, bob)).join(' '), afterRejoin);
    const outside = messages(await seen(roomId, stranger)).join(' ');
    assert.equal(outside, visibility === 'world_readable' ? 'before invited joined left again' : '');
  });

test('an event is judged by the visibility at its time, a change of it by the laxer of the two', async () => {
  const roomId = await makeRoom('joined');
  await say(roomId, 'one');
  await setState(roomId, 'm.room.history_visibility', { history_visibility: 'world_readable' });
  await say(roomId, 'two');
  await setState(roomId, 'm.room.history_visibility', { history_visibility: 'invited' });
  await say(roomId, 'three');
  assert.deepEqual(await seen(roomId, stranger), ['visibility world_readable', 'two', 'visibility invited']);
  await engine.membership().join(roomId, bob, []);
  // The first setting follows on "shared", the default.
  assert.deepEqual(await seen(roomId, bob), [
    'visibility joined',
    'visibility world_readable',
    'two',
    'visibility invited',
    'bob join',
  ]);
});

test('a kick and a ban after it do not move the end of a stay', async () => {
  const membership = engine.membership();
  const roomId = await makeRoom('shared');
  await membership.join(roomId, bob, []);
  await say(roomId, 'in');
  await membership.kick(roomId, alice, bob);
  await say(roomId, 'out');
  await membership.ban(roomId, alice, bob);
  await membership.unban(roomId, alice, bob);
  const room = await engine.rooms.require(roomId);
  assert.equal((await endOfLastStay(engine.rooms, room, bob))?.content.membership, 'leave');
  assert.deepEqual(messages(await seen(roomId, bob)), ['in']);
});

test('a visibility that nobody understands counts as shared', async () => {
  const roomId = await makeRoom('for my friends');
  await say(roomId, 'before');
  await engine.membership().join(roomId, bob, []);
  assert.deepEqual(messages(await seen(roomId, bob)), ['before']);
});

test('tells the membership at each event', async () => {
  const membership = engine.membership();
  const roomId = await makeRoom('shared');
  await say(roomId, 'before');
  await membership.invite(roomId, alice, bob);
  await say(roomId, 'invited');
  await membership.join(roomId, bob, []);
  const last = await say(roomId, 'joined');
  const room = await engine.rooms.require(roomId);
  const all = await engine.rooms.parts.events.timeline(room.nid, { direction: 'forward', limit: 100 });
  const at = await membershipsAt(engine.rooms, room, bob, all);
  assert.ok(at instanceof Map);
  const labelled = all.flatMap((event) =>
    labelOf(event) ? [`${labelOf(event)}: ${at.get(event.eventId)}`] : [],
  );
  assert.deepEqual(labelled.slice(1), [
    'before: leave',
    'bob invite: invite',
    'invited: invite',
    'bob join: join',
    'joined: join',
  ]);
  assert.equal(await membershipsAt(engine.rooms, room, bob, [last]), 'join');
});

test('what erased users sent is redacted for those who come later, users and servers', async () => {
  const erin = '@erin:here';
  const membership = engine.membership();
  const roomId = await makeRoom('shared');
  await membership.join(roomId, erin, []);
  const { eventId } = await sendEvent(engine.rooms, roomId, {
    type: 'm.room.message',
    sender: erin,
    content: { msgtype: 'm.text', body: 'regretted' },
  });
  await setState(roomId, 'm.room.topic', { topic: 'before' });
  await membership.join(roomId, '@early:here', []);
  await membership.leave(roomId, erin);
  await engine.rooms.parts.erased!.erase(erin, engine.rooms.parts.stream.current);
  await membership.join(roomId, '@late:here', []);
  const bodyFor = async (userId: string) => {
    const room = await engine.rooms.require(roomId);
    const event = (await engine.rooms.parts.events.get(eventId))!;
    return (await visibleEvents(engine.rooms, room, userId, [event]))[0]!.content.body;
  };
  assert.equal(await bodyFor(alice), 'regretted');
  assert.equal(await bodyFor('@early:here'), 'regretted');
  assert.equal(await bodyFor('@late:here'), undefined);
  const stored = (await engine.rooms.parts.events.get(eventId))!;
  const [text] = await jsonForServer(engine.rooms, 'elsewhere', [stored]);
  assert.equal(JSON.parse(text!).content.body, undefined);
  assert.equal(stored.content.body, 'regretted');
});
