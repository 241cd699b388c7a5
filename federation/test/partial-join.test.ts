import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { completeRoom } from '@trellis/rooms/partial-state/partial-rooms.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { keyOf } from '@trellis/rooms/test/engine.ts';
import { type LoopbackServer, loopbackServer, unreachable } from './loopback.ts';

const ALICE = '@alice:one';
const BOB = '@bob:two';
const CARL = '@carl:three';
const MEMBERS = Array.from({ length: 60 }, (_, i) => `@member${i}:one`);

let one: LoopbackServer;
let two: LoopbackServer;
let three: LoopbackServer;
before(async () => {
  [one, two, three] = await Promise.all([
    loopbackServer('one'),
    loopbackServer('two', { partial: true }),
    loopbackServer('three'),
  ]);
});
after(() => Promise.all([one?.close(), two?.close(), three?.close()]));

/** A room that is large enough for its members to be left out; server three is in it too. */
async function largeRoom(): Promise<string> {
  const roomId = await one.createRoom(ALICE, { preset: 'public_chat', room_version: '11' });
  for (const userId of MEMBERS) await one.members.join(roomId, userId, []);
  await three.members.join(roomId, CARL, ['one']);
  return roomId;
}

async function joined(roomId: string): Promise<Room> {
  await two.members.join(roomId, BOB, ['one']);
  const room = await two.rooms.require(roomId);
  assert.ok(room.partial, 'the members were to be left out');
  // As server one's queue would.
  await three.receiver.receive('one', one.changes.at(-1)!.event);
  return room;
}

async function completed(roomId: string): Promise<Room> {
  const resync = two.newResync();
  await resync.start();
  const room = (await completeRoom(two.rooms, roomId))!;
  resync.close();
  return room;
}

async function stateIds(server: LoopbackServer, roomId: string): Promise<string[]> {
  const { state } = await server.rooms.require(roomId);
  return Array.from(state.entries(), ([, { eventId }]) => eventId).sort();
}

interface Wanted {
  readonly type: string;
  readonly sender: string;
  readonly stateKey?: string;
  readonly content?: JsonObject;
  /** User ids whose joins are named as auth events. */
  readonly members: readonly string[];
}

/** An event of server one that builds on what server two has, authorised by joins that need not be in force any more. */
async function lie(
  roomId: string,
  { type, sender, stateKey, content = {}, members }: Wanted,
): Promise<RoomEvent> {
  const ours = await two.rooms.require(roomId);
  const theirs = await one.rooms.require(roomId);
  const rules = ['m.room.create', 'm.room.power_levels'].map((key) => theirs.state.get(key, '')!.eventId);
  const joins = members.map(
    (userId) =>
      one.changes.find(
        ({ event }) =>
          event.roomId === roomId && event.stateKey === userId && event.content.membership === 'join',
      )!.event.eventId,
  );
  return buildEvent(
    {
      room_id: roomId,
      type,
      sender,
      ...(stateKey === undefined ? {} : { state_key: stateKey }),
      content,
      prev_events: ours.extremities,
      auth_events: [...rules, ...joins],
      depth: ours.depth + 1,
      origin_server_ts: Date.now(),
    },
    { version: ours.version, key: keyOf('one'), serverName: 'one' },
  );
}

test('a room is used before its members are here, and is what it is elsewhere once they are', async () => {
  const roomId = await largeRoom();
  const room = await joined(roomId);
  // Bob, and those by whom the room is called as it has no name.
  assert.equal(room.count('join'), 6);
  assert.deepEqual([...room.otherServers].sort(), ['one', 'three']);
  await sendEvent(two.rooms, roomId, { type: 'm.room.message', sender: BOB, content: { body: 'hello' } });
  const message = await lie(roomId, { type: 'm.room.message', sender: MEMBERS[7]!, members: [MEMBERS[7]!] });
  assert.equal((await two.receiver.receive('one', message))?.status, 'accepted');
  const waiting = completeRoom(two.rooms, roomId);

  const complete = await completed(roomId);
  assert.equal(await waiting, complete);
  assert.equal(complete.count('join'), 63);
  assert.deepEqual([...complete.otherServers].sort(), ['one', 'three']);
  assert.deepEqual(await stateIds(two, roomId), await stateIds(one, roomId));
  const change = two.changes.at(-1)!;
  assert.deepEqual(change.resynced, { missed: [], deviceListsPos: 0 });
  assert.equal(change.memberships.length, 57);
  const stored = await two.rooms.parts.events.get(message.eventId);
  const before = await two.rooms.parts.snapshots.load(stored!.stateBefore!);
  assert.ok(before.get('m.room.member', MEMBERS[20]!), 'the state before events is whole');

  two.rooms.drop(complete);
  const again = await two.rooms.require(roomId);
  assert.deepEqual([again.partial, again.count('join')], [undefined, 63]);
  assert.equal(again.completeSince, complete.completeSince);
});

test('the members come from another server when the first one is lost, and after a restart', async () => {
  const roomId = await largeRoom();
  const room = await joined(roomId);
  two.rooms.drop(room);
  assert.ok((await two.rooms.require(roomId)).partial);
  unreachable.add('one');
  try {
    assert.equal((await completed(roomId)).count('join'), 63);
  } finally {
    unreachable.delete('one');
  }
});

test('what was let through or refused for want of the members is put right', async () => {
  const roomId = await largeRoom();
  // None of those by whom the room is called: these are known.
  const [gone, moderator] = MEMBERS.slice(40) as [string, string];
  await one.members.leave(roomId, gone);
  const levels = { users: { [ALICE]: 100, [gone]: 60, [moderator]: 50 } };
  await sendEvent(one.rooms, roomId, {
    type: 'm.room.power_levels',
    sender: ALICE,
    stateKey: '',
    content: levels,
  });
  await joined(roomId);

  const intrusion = await lie(roomId, {
    type: 'm.room.member',
    sender: gone,
    stateKey: moderator,
    content: { membership: 'ban' },
    members: [gone, moderator],
  });
  assert.equal((await two.receiver.receive('one', intrusion))?.status, 'accepted');
  const topic = await lie(roomId, {
    type: 'm.room.topic',
    sender: moderator,
    stateKey: '',
    content: { topic: 'allowed after all' },
    members: [moderator],
  });
  assert.equal((await two.receiver.receive('one', topic))?.status, 'rejected');

  const complete = await completed(roomId);
  const status = async ({ eventId }: RoomEvent) => (await two.rooms.parts.events.get(eventId))?.status;
  assert.deepEqual([await status(intrusion), await status(topic)], ['rejected', 'accepted']);
  assert.deepEqual(complete.extremities, [topic.eventId]);
  assert.equal(complete.state.get('m.room.topic', '')?.eventId, topic.eventId);
  assert.equal(complete.membership(moderator), 'join');
  assert.ok(!complete.timeline.events.some(({ eventId }) => eventId === intrusion.eventId));
});

test('a server without the members sends others elsewhere for what takes them', async () => {
  const roomId = await largeRoom();
  await joined(roomId);
  for (const [method, path] of [
    ['GET', `/_matrix/federation/v1/make_join/${encodeURIComponent(roomId)}/@new:three`],
    ['GET', `/_matrix/federation/v1/make_leave/${encodeURIComponent(roomId)}/${CARL}`],
  ] as const) {
    const { status, body } = await two.request('three', { method, path, query: { ver: ['11'] } });
    assert.deepEqual([status, (body as JsonObject).errcode], [404, 'M_NOT_FOUND'], path);
  }
  const { extremities } = await two.rooms.require(roomId);
  const { status } = await two.request('one', {
    method: 'GET',
    path: `/_matrix/federation/v1/state_ids/${encodeURIComponent(roomId)}`,
    query: { event_id: extremities[0]! },
  });
  assert.equal(status, 403);
});

test('leaving and coming back while the members are fetched keeps what was asked for', async () => {
  const roomId = await largeRoom();
  await joined(roomId);
  await two.members.leave(roomId, BOB);
  assert.equal((await two.rooms.require(roomId)).isResident, false);
  await sendEvent(one.rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body: 'gone?' } });
  await two.members.join(roomId, BOB, ['one']);
  assert.equal((await two.rooms.require(roomId)).partial?.joins.length, 2);
  const complete = await completed(roomId);
  assert.equal(complete.membership(BOB), 'join');
  assert.equal(complete.count('join'), 63);
});
