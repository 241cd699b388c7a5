import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue, Pdu } from '@trellis/protocol/event.ts';
import { buildEvent, type EventProto } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { SigningKey, signJson } from '@trellis/protocol/signing.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { ForeignRoom, keyOf } from '@trellis/rooms/test/engine.ts';
import type { SignedInvite } from '@trellis/rooms/third-party-invites.ts';
import { type Answer, type LoopbackServer, loopbackServer } from './loopback.ts';

const ALICE = '@alice:home';
const EVE = '@eve:evil';
const V10 = roomVersion('10')!;

let home: LoopbackServer;
before(async () => {
  home = await loopbackServer('home', {
    isLocalUser: async (userId) => userId !== '@nobody:home',
    mayInvite: async ({ target }) => {
      if (target === '@closed:home') throw new MatrixError(403, 'M_INVITE_BLOCKED', 'No invites please');
    },
  });
});
after(() => home?.close());

const get = (path: string, query: JsonObject = {}, origin = 'evil') =>
  home.request(origin, { method: 'GET', path: `/_matrix/federation/${path}`, query: query as never });
const put = (path: string, body: JsonValue, origin = 'evil') =>
  home.request(origin, { method: 'PUT', path: `/_matrix/federation/${path}`, body });
const outcome = ({ status, body }: Answer) => [status, (body as JsonObject).errcode];

async function publicRoom(version = '10'): Promise<string> {
  return home.createRoom(ALICE, { preset: 'public_chat', room_version: version });
}

/** A member event by the template that the server gives, changed and signed by its sender's server or another. */
async function fromTemplate(roomId: string, changes: Partial<EventProto> = {}, signer = 'evil') {
  const { body } = await get(`v1/make_join/${roomId}/${EVE}`, { ver: ['10'] });
  const { room_id, type, sender, state_key, content, prev_events, auth_events, depth } = (body as JsonObject)
    .event as unknown as EventProto;
  const proto = { room_id, type, sender, state_key, content, prev_events, auth_events, depth };
  return buildEvent(
    { ...proto, origin_server_ts: Date.now(), ...changes },
    { version: V10, key: keyOf(signer), serverName: signer },
  );
}

test('templates are made for users of the server that asks, in rooms that it may know', async () => {
  const roomId = await publicRoom();
  for (const kind of ['make_join', 'make_leave', 'make_knock']) {
    const ver = ['10'];
    assert.deepEqual(
      outcome(await get(`v1/${kind}/${roomId}/@bob:good`, { ver })),
      [403, 'M_FORBIDDEN'],
      kind,
    );
    assert.deepEqual(
      outcome(await get(`v1/${kind}/!nowhere:home/${EVE}`, { ver })),
      [404, 'M_NOT_FOUND'],
      kind,
    );
  }
  const other = await get(`v1/make_join/${roomId}/${EVE}`, { ver: ['1', '12'] });
  assert.deepEqual(outcome(other), [400, 'M_INCOMPATIBLE_ROOM_VERSION']);
  assert.equal((other.body as JsonObject).room_version, '10');
  // Without the parameter it is version 1 that is known.
  assert.deepEqual(outcome(await get(`v1/make_join/${roomId}/${EVE}`)), [400, 'M_INCOMPATIBLE_ROOM_VERSION']);
  assert.deepEqual(outcome(await get(`v1/make_leave/${roomId}/${EVE}`)), [403, 'M_FORBIDDEN']);
  assert.deepEqual(outcome(await get(`v1/make_knock/${roomId}/${EVE}`, { ver: '10' })), [403, 'M_FORBIDDEN']);
  await sendEvent(home.rooms, roomId, {
    type: 'm.room.server_acl',
    sender: ALICE,
    stateKey: '',
    content: { allow: ['*'], deny: ['evil'] },
  });
  assert.deepEqual(outcome(await get(`v1/make_join/${roomId}/${EVE}`, { ver: '10' })), [403, 'M_FORBIDDEN']);
});

test('nothing but the event that an endpoint is for gets through it', async () => {
  const roomId = await publicRoom();
  const events: Record<string, [Pdu, string]> = {};
  const add = async (what: string, changes: Partial<EventProto>, signer?: string) => {
    const { pdu, eventId } = await fromTemplate(roomId, changes, signer);
    events[what] = [pdu, eventId];
  };
  await add('a message', { type: 'm.room.message', state_key: undefined, content: { body: 'x' } });
  await add('no state event', { state_key: undefined });
  await add("another user's", { state_key: '@friend:evil' });
  await add("another server's user", { sender: '@bob:good', state_key: '@bob:good' }, 'good');
  await add('another membership', { content: { membership: 'ban' } });
  await add('another room', { room_id: '!other:home' });
  await add('signed by another', {}, 'good');
  const { pdu, eventId } = await fromTemplate(roomId);
  events['a changed content'] = [{ ...pdu, content: { membership: 'join', displayname: 'X' } }, eventId];
  events['another id'] = [pdu, '$other'];
  events['no event'] = [{ hello: 'there' }, '$other'];
  for (const kind of ['v1/send_join', 'v2/send_join', 'v1/send_leave', 'v2/send_leave', 'v1/send_knock'])
    for (const [what, [body, id]] of Object.entries(events)) {
      const answer = await put(`${kind}/${roomId}/${encodeURIComponent(id)}`, body);
      assert.equal(answer.status, 400, `${kind}: ${what}: ${JSON.stringify(answer.body)}`);
    }
  assert.deepEqual([...(await home.rooms.require(roomId)).members()].length, 1);
});

test('a join is checked like any event, answered with the state before, and accepted once more', async () => {
  const roomId = await publicRoom();
  const event = await fromTemplate(roomId);
  await sendEvent(home.rooms, roomId, {
    type: 'm.room.member',
    sender: ALICE,
    stateKey: EVE,
    content: { membership: 'ban' },
  });
  const path = `send_join/${roomId}/${encodeURIComponent(event.eventId)}`;
  assert.deepEqual(outcome(await put(`v2/${path}`, event.pdu)), [403, 'M_FORBIDDEN']);

  const open = await publicRoom();
  const join = await fromTemplate(open);
  const before = (await home.rooms.require(open)).state;
  const openPath = `send_join/${open}/${encodeURIComponent(join.eventId)}`;
  const { body } = await put(`v2/${openPath}`, join.pdu);
  const answer = body as unknown as { state: Pdu[]; auth_chain: Pdu[]; event: Pdu };
  assert.equal(answer.state.length, [...before.entries()].length);
  assert.ok(!answer.state.some(({ state_key }) => state_key === EVE));
  assert.deepEqual(
    new Set(answer.auth_chain.map(({ type }) => type)),
    new Set(['m.room.create', 'm.room.member', 'm.room.power_levels', 'm.room.join_rules']),
  );
  const again = await put(`v1/${openPath}`, join.pdu);
  assert.deepEqual(again, { status: 200, body: [200, body] });
});

test('a join is answered without the members where asked to, in small rooms too', async () => {
  const roomId = await publicRoom();
  const join = await fromTemplate(roomId);
  const { body } = await home.request('evil', {
    method: 'PUT',
    path: `/_matrix/federation/v2/send_join/${roomId}/${encodeURIComponent(join.eventId)}`,
    query: { omit_members: 'true' },
    body: join.pdu,
  });
  const answer = body as unknown as JsonObject & { state: Pdu[]; auth_chain: Pdu[] };
  assert.equal(answer.members_omitted, true);
  assert.deepEqual(answer.servers_in_room, ['home']);
  // The creator is there as the hero by whom a room without a name is called.
  const members = answer.state.filter(({ type }) => type === 'm.room.member');
  assert.deepEqual(
    members.map(({ state_key }) => state_key),
    [ALICE],
  );
  const given = new Set(answer.state.map((pdu) => JSON.stringify(pdu)));
  assert.ok(!answer.auth_chain.some((pdu) => given.has(JSON.stringify(pdu))));
});

test('a join that names our user as authorising is signed only when it is theirs to authorise', async () => {
  const roomId = await publicRoom();
  const content = { membership: 'join', join_authorised_via_users_server: ALICE };
  const event = await fromTemplate(roomId, { content });
  const path = `v2/send_join/${roomId}/${encodeURIComponent(event.eventId)}`;
  assert.deepEqual(outcome(await put(path, event.pdu)), [403, 'M_FORBIDDEN']);
  await sendEvent(home.rooms, roomId, {
    type: 'm.room.join_rules',
    sender: ALICE,
    stateKey: '',
    content: { join_rule: 'restricted', allow: [{ type: 'm.room_membership', room_id: '!far:away' }] },
  });
  assert.deepEqual(outcome(await put(path, event.pdu)), [400, 'M_UNABLE_TO_AUTHORISE_JOIN']);
  const asked = await get(`v1/make_join/${roomId}/${EVE}`, { ver: '10' });
  assert.deepEqual(outcome(asked), [400, 'M_UNABLE_TO_AUTHORISE_JOIN']);
});

test('who asks to join where nobody here may invite is sent on to others, whatever is known of them here', async () => {
  const [roomId, club] = [await publicRoom(), await publicRoom()];
  const send = (type: string, content: JsonObject) =>
    sendEvent(home.rooms, roomId, { type, sender: ALICE, stateKey: '', content });
  await send('m.room.join_rules', {
    join_rule: 'restricted',
    allow: [{ type: 'm.room_membership', room_id: club }],
  });
  const ask = async () => outcome(await get(`v1/make_join/${roomId}/${EVE}`, { ver: '10' }));
  assert.deepEqual(await ask(), [403, 'M_FORBIDDEN']);
  await send('m.room.power_levels', { users: { [ALICE]: 50 }, invite: 100 });
  assert.deepEqual(await ask(), [400, 'M_UNABLE_TO_GRANT_JOIN']);
});

test('an invite is looked at wholly before it is signed', async () => {
  const far = new ForeignRoom(EVE);
  const target = '@bob:home';
  const good = far.build(EVE, 'm.room.member', target, { membership: 'invite' });
  const invite = (event: Pdu, eventId = good.eventId, more: JsonObject = {}, origin = 'evil') =>
    put(
      `v2/invite/${far.roomId}/${encodeURIComponent(eventId)}`,
      { room_version: '10', event, invite_room_state: far.statePdus, ...more },
      origin,
    );
  const variant = (stateKey: string, content: JsonObject, type = 'm.room.member') => {
    const { pdu, eventId } = far.build(EVE, type, stateKey, content);
    return [pdu, eventId] as const;
  };
  const bad: Array<readonly [string, Promise<Answer>, number, string]> = [
    ['from another server', invite(good.pdu, good.eventId, {}, 'good'), 400, 'M_INVALID_PARAM'],
    [
      'of an unknown version',
      invite(good.pdu, good.eventId, { room_version: '99' }),
      400,
      'M_INCOMPATIBLE_ROOM_VERSION',
    ],
    ['with another id', invite(good.pdu, '$other'), 400, 'M_INVALID_PARAM'],
    [
      'for a user of another server',
      invite(...variant('@bob:good', { membership: 'invite' })),
      400,
      'M_INVALID_PARAM',
    ],
    ['for nobody', invite(...variant('@nobody:home', { membership: 'invite' })), 403, 'M_FORBIDDEN'],
    [
      'that the user does not want',
      invite(...variant('@closed:home', { membership: 'invite' })),
      403,
      'M_INVITE_BLOCKED',
    ],
    ['that is a ban', invite(...variant(target, { membership: 'ban' })), 400, 'M_INVALID_PARAM'],
    [
      'that is no membership',
      invite(...variant(target, { membership: 'invite' }, 'm.room.topic')),
      400,
      'M_INVALID_PARAM',
    ],
    [
      'changed afterwards',
      invite({ ...good.pdu, content: { membership: 'invite', reason: 'x' } }),
      400,
      'M_INVALID_PARAM',
    ],
    ['not signed', invite({ ...good.pdu, signatures: {} }), 400, 'M_INVALID_PARAM'],
    [
      'too large',
      invite({ ...good.pdu, content: { membership: 'invite', x: 'x'.repeat(70_000) } }),
      413,
      'M_TOO_LARGE',
    ],
    [
      'with endless state',
      invite(good.pdu, good.eventId, { invite_room_state: Array(500).fill({}) }),
      400,
      'M_BAD_JSON',
    ],
  ];
  for (const [what, answer, status, errcode] of bad)
    assert.deepEqual(outcome(await answer), [status, errcode], what);
  assert.equal(await home.rooms.get(far.roomId), undefined);

  const junk = [
    ...far.statePdus,
    'junk',
    { type: 'm.room.name' },
    { type: 'x', state_key: '', sender: EVE, content: 1 },
  ];
  const taken = await invite({ ...good.pdu, unsigned: { age: 5 } }, good.eventId, {
    invite_room_state: junk,
  });
  assert.equal(taken.status, 200);
  const { event } = taken.body as { event: Pdu };
  assert.deepEqual(Object.keys(event.signatures as JsonObject).sort(), ['evil', 'home']);
  assert.deepEqual({ ...event, signatures: good.pdu.signatures }, { ...good.pdu, unsigned: { age: 5 } });
  const shown = JSON.parse((await home.memberships.strippedState(target, far.roomId))!) as JsonObject[];
  assert.equal(shown.length, far.statePdus.length);
  assert.deepEqual(Object.keys(shown.at(-1)!).sort(), ['content', 'sender', 'state_key', 'type']);
  // Sent again after it was refused, it is no new invite.
  await home.members.leave(far.roomId, target);
  assert.equal((await invite(good.pdu)).status, 200);
  assert.equal((await home.memberships.of(target)).get(far.roomId)!.membership, 'leave');
});

test('since room version 12 an invite has to prove which room it is for', async () => {
  const far = new ForeignRoom(EVE, '12');
  const invite = far.build(EVE, 'm.room.member', '@bob:home', { membership: 'invite' });
  const send = (state: JsonValue[]) =>
    put(`v2/invite/${far.roomId}/${encodeURIComponent(invite.eventId)}`, {
      room_version: '12',
      event: invite.pdu,
      invite_room_state: state,
    });
  const [create, ...others] = far.statePdus;
  const elsewhere = new ForeignRoom(EVE, '12').statePdus[0]!;
  const { type, sender, state_key, content } = create!;
  for (const state of [[], others, [elsewhere], [{ type, sender, state_key, content }] as JsonObject[]])
    assert.deepEqual(outcome(await send(state)), [400, 'M_INVALID_PARAM']);
  assert.equal((await send([create!])).status, 200);
});

test('an old server invites by the first version of the endpoint', async () => {
  const far = new ForeignRoom(EVE, '1');
  const { pdu, eventId } = far.build(EVE, 'm.room.member', '@bob:home', { membership: 'invite' });
  const unsigned = { invite_room_state: far.statePdus };
  const answer = await put(`v1/invite/${far.roomId}/${encodeURIComponent(eventId)}`, { ...pdu, unsigned });
  const [status, { event }] = answer.body as unknown as [number, { event: Pdu }];
  assert.deepEqual([answer.status, status], [200, 200]);
  assert.ok((event.signatures as JsonObject).home);
  assert.match((await home.memberships.strippedState('@bob:home', far.roomId))!, /m\.room\.join_rules/);
});

test('a third-party invite becomes one for the user who proves to be meant', async () => {
  const identity = SigningKey.generate('id');
  const roomId = await home.createRoom(ALICE, { preset: 'private_chat', room_version: '10' });
  await sendEvent(home.rooms, roomId, {
    type: 'm.room.third_party_invite',
    sender: ALICE,
    stateKey: 'token',
    content: {
      display_name: 'E…',
      public_key: identity.publicKeyBase64,
      key_validity_url: 'https://id/valid',
    },
  });
  const far = await loopbackServer('evil');
  try {
    const exchange = (signed: JsonObject, changes: JsonObject = {}) =>
      put(`v1/exchange_third_party_invite/${roomId}`, {
        type: 'm.room.member',
        room_id: roomId,
        sender: ALICE,
        state_key: EVE,
        content: { membership: 'invite', third_party_invite: { display_name: 'whatever', signed } },
        ...changes,
      });
    const signed = signJson({ mxid: EVE, token: 'token' }, 'id', identity);
    const stranger = signJson({ mxid: EVE, token: 'token' }, 'id', SigningKey.generate('id'));
    assert.deepEqual(outcome(await exchange(stranger)), [403, 'M_FORBIDDEN']);
    assert.deepEqual(outcome(await exchange({ ...signed, token: 'other' })), [403, 'M_FORBIDDEN']);
    assert.deepEqual(outcome(await exchange(signed, { state_key: '@bob:good' })), [403, 'M_FORBIDDEN']);
    assert.deepEqual(outcome(await exchange(signed, { sender: '@other:home' })), [403, 'M_FORBIDDEN']);
    assert.deepEqual(outcome(await exchange(signed, { room_id: '!x:home' })), [400, 'M_INVALID_PARAM']);
    assert.deepEqual(await exchange(signed), { status: 200, body: {} });
    const member = (await home.rooms.require(roomId)).member(EVE)!;
    const event = (await home.rooms.parts.events.get(member.eventId))!;
    assert.equal(event.sender, ALICE);
    assert.deepEqual(event.content.third_party_invite, { display_name: 'E…', signed });
    assert.equal((await far.memberships.of(EVE)).get(roomId)!.membership, 'invite');

    // Asked for by the invited user's server, when a client of theirs brings the signed token.
    const mallory = '@mallory:evil';
    const other = signJson({ mxid: mallory, token: 'token' }, 'id', identity) as unknown as SignedInvite;
    await assert.rejects(far.thirdPartyInvites.takeUp(roomId, '@other:home', other), {
      errcode: 'M_FORBIDDEN',
    });
    await far.thirdPartyInvites.takeUp(roomId, ALICE, other);
    await far.members.join(roomId, mallory, []);
    assert.equal((await home.rooms.require(roomId)).membership(mallory), 'join');
    const here = signJson({ mxid: '@bob:home', token: 'token' }, 'id', identity) as unknown as SignedInvite;
    await home.thirdPartyInvites.takeUp(roomId, ALICE, here);
    assert.equal((await home.rooms.require(roomId)).membership('@bob:home'), 'invite');
  } finally {
    await far.close();
  }
});
