import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { type LoopbackServer, loopbackServer, unreachable } from './loopback.ts';

const ALICE = '@alice:one';
const BOB = '@bob:two';
const CARL = '@carl:two';

let one: LoopbackServer;
let two: LoopbackServer;
before(async () => {
  [one, two] = await Promise.all([loopbackServer('one'), loopbackServer('two')]);
});
after(() => Promise.all([one?.close(), two?.close()]));

const refused = (promise: Promise<unknown>, status: number, errcode?: string) =>
  assert.rejects(promise, (error) => {
    assert.ok(error instanceof MatrixError, String(error));
    assert.deepEqual([error.status, errcode ?? error.errcode], [status, error.errcode], error.message);
    return true;
  });

async function membershipAt(server: LoopbackServer, roomId: string, userId: string) {
  return (await server.rooms.get(roomId))?.membership(userId);
}

async function stateIds(server: LoopbackServer, roomId: string) {
  const { state } = await server.rooms.require(roomId);
  return new Set([...state.entries()].map(([, { eventId }]) => eventId));
}

/** Hands over what one server has sent since, as its queue would. */
async function pass(from: LoopbackServer, to: LoopbackServer, roomId: string) {
  for (const { event } of from.changes.filter((change) => change.roomId === roomId && !change.outOfBand))
    if ((await to.rooms.require(roomId)).isResident) await to.receiver.receive(from.serverName, event);
}

for (const version of ['1', '6', '10', '12'])
  test(`a room of version ${version} is joined by another server's user, left and joined again`, async () => {
    const roomId = await one.createRoom(ALICE, { preset: 'public_chat', room_version: version });
    await two.members.join(roomId, BOB, ['one']);
    assert.equal(await membershipAt(one, roomId, BOB), 'join');
    assert.deepEqual(await stateIds(two, roomId), await stateIds(one, roomId));
    const join = one.changes.findLast((change) => change.roomId === roomId)!;
    assert.equal(join.relayFrom, 'two');
    assert.deepEqual(join.servers, { before: [], after: ['two'] });
    assert.equal(two.changes.findLast((change) => change.roomId === roomId)!.passedOnByOthers, true);

    await two.members.leave(roomId, BOB);
    await pass(two, one, roomId);
    assert.equal(await membershipAt(one, roomId, BOB), 'leave');
    await sendEvent(one.rooms, roomId, {
      type: 'm.room.topic',
      sender: ALICE,
      stateKey: '',
      content: { topic: 'while you were away' },
    });
    await two.members.join(roomId, BOB, ['one']);
    assert.deepEqual(await stateIds(two, roomId), await stateIds(one, roomId));
  });

test('only the servers that are named are asked, and known ones where none is named', async () => {
  const roomId = await one.createRoom(ALICE, { preset: 'public_chat', room_version: '10' });
  unreachable.add('three');
  await refused(two.members.join(roomId, BOB, ['three']), 502);
  await refused(two.members.join('!nothing:three', BOB, []), 404, 'M_NOT_FOUND');
  await two.members.join(roomId, BOB, []);
  await two.members.leave(roomId, BOB);
  await pass(two, one, roomId);
  await refused(two.members.join(roomId, BOB, ['three']), 502);
  await two.members.join(roomId, BOB, ['two']);
});

test('two users of a server join at once, the second without help', async () => {
  const roomId = await one.createRoom(ALICE);
  await Promise.all([two.members.join(roomId, BOB, ['one']), two.members.join(roomId, CARL, ['one'])]);
  const room = await two.rooms.require(roomId);
  assert.ok(room.isJoined(BOB) && room.isJoined(CARL));
  assert.equal(room.extremities.length, 1);
  await pass(two, one, roomId);
  assert.deepEqual(await stateIds(two, roomId), await stateIds(one, roomId));
});

test('servers are tried in order, and the most telling refusal is reported', async () => {
  const roomId = await one.createRoom(ALICE);
  unreachable.add('three');
  await two.members.join(roomId, BOB, ['three', 'one']);
  const closed = await one.createRoom(ALICE, { preset: 'private_chat' });
  await refused(two.members.join(closed, BOB, ['three', 'one']), 403, 'M_FORBIDDEN');
  await refused(two.members.join('!unknown:nowhere', BOB, ['one']), 404, 'M_NOT_FOUND');
  await refused(two.members.join(closed, BOB, ['three']), 502);
});

test('an invite is signed by both, shown with the room, refused and accepted', async () => {
  const roomId = await one.createRoom(ALICE, {
    preset: 'private_chat',
    name: 'Far away',
    room_version: '12',
  });
  await one.members.invite(roomId, ALICE, BOB);
  const invite = (await one.rooms.require(roomId)).state.get('m.room.member', BOB)!;
  const { pdu } = (await one.rooms.parts.events.get(invite.eventId))!;
  assert.deepEqual(Object.keys(pdu.signatures as JsonObject).sort(), ['one', 'two']);
  const known = (await two.memberships.of(BOB)).get(roomId)!;
  assert.deepEqual([known.membership, known.eventId], ['invite', invite.eventId]);
  const shown = JSON.parse((await two.memberships.strippedState(BOB, roomId))!) as JsonObject[];
  assert.ok(
    shown.some(({ type, content }) => type === 'm.room.name' && (content as JsonObject).name === 'Far away'),
  );
  const create = shown.find(({ type }) => type === 'm.room.create')!;
  assert.equal(create.event_id, `$${roomId.slice(1)}`);
  assert.equal(typeof create.origin_server_ts, 'number');
  assert.equal(two.changes.at(-1)!.outOfBand, true);

  await two.members.leave(roomId, BOB);
  assert.equal(await membershipAt(one, roomId, BOB), 'leave');
  assert.equal((await two.memberships.of(BOB)).get(roomId)!.membership, 'leave');
  await refused(two.members.join(roomId, BOB, ['one']), 403);
  await one.members.invite(roomId, ALICE, BOB, { is_direct: true });
  await two.members.join(roomId, BOB, []);
  const join = two.changes.at(-1)!.event;
  assert.equal(join.replaces?.content.is_direct, true);
  assert.equal(await membershipAt(one, roomId, BOB), 'join');
  // Where both servers are in the room already, the invite has its place in it at once.
  await one.members.invite(roomId, ALICE, CARL);
  await two.members.join(roomId, CARL, []);
  assert.equal(await membershipAt(two, roomId, CARL), 'join');
});

test('an invite is refused here even when nobody is there to hear of it', async () => {
  const roomId = await one.createRoom(ALICE, { preset: 'private_chat', invite: [BOB] });
  await one.members.leave(roomId, ALICE);
  await two.members.leave(roomId, BOB);
  assert.equal((await two.memberships.of(BOB)).get(roomId)!.membership, 'leave');
  const gone = await one.createRoom(ALICE, { preset: 'private_chat', invite: [BOB] });
  unreachable.add('one');
  await two.members.leave(gone, BOB);
  unreachable.delete('one');
  assert.equal((await two.memberships.of(BOB)).get(gone)!.membership, 'leave');
  await refused(one.members.invite(gone, ALICE, '@nobody:three'), 502);
});

test('a user knocks, takes it back, and knocks again', async () => {
  const roomId = await one.createRoom(ALICE, {
    preset: 'private_chat',
    initial_state: [{ type: 'm.room.join_rules', content: { join_rule: 'knock' } }],
  });
  await two.members.knock(roomId, BOB, ['one'], { reason: 'hello?' });
  assert.equal(await membershipAt(one, roomId, BOB), 'knock');
  assert.equal((await two.memberships.of(BOB)).get(roomId)!.membership, 'knock');
  assert.match((await two.memberships.strippedState(BOB, roomId))!, /m\.room\.create/);
  await two.members.leave(roomId, BOB);
  assert.equal(await membershipAt(one, roomId, BOB), 'leave');
  await two.members.knock(roomId, BOB, ['one']);
  await one.members.invite(roomId, ALICE, BOB);
  await refused(two.members.knock(roomId, BOB, ['one']), 403, 'M_FORBIDDEN');
  await two.members.join(roomId, BOB, []);
  assert.equal(await membershipAt(one, roomId, BOB), 'join');
});

test('a restricted join is authorised and signed by the resident server', async () => {
  const club = await one.createRoom(ALICE);
  const roomId = await one.createRoom(ALICE, {
    preset: 'private_chat',
    initial_state: [
      {
        type: 'm.room.join_rules',
        content: { join_rule: 'restricted', allow: [{ type: 'm.room_membership', room_id: club }] },
      },
    ],
  });
  await refused(two.members.join(roomId, BOB, ['one']), 403, 'M_FORBIDDEN');
  await two.members.join(club, BOB, ['one']);
  await two.members.join(roomId, BOB, ['one']);
  const join = two.changes.at(-1)!.event;
  assert.equal(join.content.join_authorised_via_users_server, ALICE);
  assert.deepEqual(Object.keys(join.pdu.signatures as JsonObject).sort(), ['one', 'two']);
  // Nobody of the second server may invite: its users are let in by the first.
  await two.members.join(club, CARL, ['one']);
  await pass(two, one, club);
  await sendEvent(one.rooms, roomId, {
    type: 'm.room.power_levels',
    sender: ALICE,
    stateKey: '',
    content: { invite: 50 },
  });
  await pass(one, two, roomId);
  await two.members.join(roomId, CARL, []);
  assert.equal((await two.rooms.require(roomId)).membership(CARL), 'join');
  const asked = await two.request('three', {
    method: 'GET',
    path: `/_matrix/federation/v1/make_join/${roomId}/@dora:three`,
    query: { ver: ['12'] },
  });
  assert.deepEqual([asked.status, (asked.body as JsonObject).errcode], [403, 'M_FORBIDDEN']);
});
