import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import type { JsonObject, JsonValue, Pdu } from '@trellis/protocol/event.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { ForeignRoom, keyOf } from '@trellis/rooms/test/engine.ts';
import { type Answer, type LoopbackServer, loopbackServer } from './loopback.ts';

const ALICE = '@alice:home';
const EVE = '@eve:evil';

type HostileRequest = Parameters<LoopbackServer['request']>[1];

let home: LoopbackServer;
/** A server that answers whatever the test says. */
let evil: { request: LoopbackServer['request'] };
let close: () => Promise<void>;
/** What `home` has sent to `evil`, all of it signed by `home`. */
const got: Array<{ path: string; body: JsonObject }> = [];
let answer: (request: HostileRequest) => JsonValue | undefined;

before(async () => {
  home = await loopbackServer('home');
  const server = await loopbackServer('evil');
  close = () => server.close();
  evil = server;
  evil.request = async (_origin, request): Promise<Answer> => {
    if (request.body !== undefined)
      got.push({ path: request.path, body: structuredClone(request.body) as JsonObject });
    const body = answer(request);
    return body === undefined ? { status: 404, body: { errcode: 'M_NOT_FOUND' } } : { status: 200, body };
  };
});
after(async () => {
  await close?.();
  await home?.close();
});
beforeEach(() => {
  got.length = 0;
  answer = () => undefined;
});

describe('a confused deputy (CVE-2025-68667, GHSA-22fw-4jq7-g8r8; CVE-2026-24471, GHSA-m5p2-vccg-8c9v)', () => {
  const good = (far: ForeignRoom, membership: string): Pdu => {
    const { pdu } = far.build(ALICE, 'm.room.member', ALICE, { membership });
    const { signatures: _signatures, hashes: _hashes, ...template } = pdu;
    return template;
  };
  /** Events that a server would like to have in Alice's name, or in that of somebody else of her server. */
  const wishes: JsonObject[] = [
    { type: 'm.room.power_levels', state_key: '', content: { users: { [EVE]: 100 } } },
    { type: 'm.room.create', state_key: '', content: {} },
    { type: 'm.room.message', content: { body: 'I confess' } },
    { type: 'm.room.redaction', redacts: '$x', content: { redacts: '$x' } },
    { type: 'm.room.tombstone', state_key: '', content: { replacement_room: '!evil:evil' } },
    { type: 'm.room.server_acl', state_key: '', content: { allow: [] } },
    { sender: '@admin:home', state_key: '@admin:home' },
    { state_key: '@admin:home' },
    { state_key: EVE },
    { sender: EVE, state_key: EVE },
    { room_id: '!other:home' },
    { room_id: 7 },
    { content: { membership: 'ban' } },
    { content: { membership: 'invite' } },
    { content: null },
    { content: [] },
    { depth: 1.5 },
    { depth: -1 },
    { prev_events: [], auth_events: [] },
    { prev_events: [7] },
    { prev_events: Array.from({ length: 1000 }, (_, i) => `$${i}`) },
    { auth_events: 'x' },
  ];
  /** What is passed by, however much of it there is. */
  const additions: JsonObject[] = [
    { redacts: '$x', event_id: '$x:home', origin: 'home', unsigned: { age: 1 }, membership: 'ban' },
    { hashes: { sha256: 'x' }, signatures: { home: { 'ed25519:test': 'x' } }, 'm.custom': { a: 1 } },
    { origin_server_ts: 1, prev_state: ['$x'], msc4354_sticky: { duration_ms: 1 } },
  ];

  for (const [kind, membership] of [
    ['make_join', 'join'],
    ['make_leave', 'leave'],
    ['make_knock', 'knock'],
  ] as const)
    test(`signs nothing but its own ${membership} by a template of /${kind}`, async () => {
      const attempt = async (change: JsonObject) => {
        const versionId = '10';
        const far = new ForeignRoom(EVE, versionId);
        const content: JsonObject = { membership, 'org.evil': 'x', join_authorised_via_users_server: ALICE };
        let template: JsonObject = { ...good(far, membership), ...change };
        if (Object.keys(change).length === 0) template = { ...template, content };
        answer = ({ path }) =>
          path.includes(`/${kind}/`) ? { room_version: versionId, event: template } : undefined;
        if (membership === 'leave') {
          const invite = far.build(EVE, 'm.room.member', ALICE, { membership: 'invite' });
          const path = `/_matrix/federation/v2/invite/${far.roomId}/${encodeURIComponent(invite.eventId)}`;
          const body = { room_version: versionId, event: invite.pdu, invite_room_state: far.statePdus };
          assert.equal((await home.request('evil', { method: 'PUT', path, body })).status, 200);
        }
        const act =
          membership === 'join'
            ? home.remote.join(far.roomId, ALICE, ['evil'], { membership })
            : membership === 'knock'
              ? home.remote.knock(far.roomId, ALICE, ['evil'], { membership })
              : home.remote.leave(far.roomId, ALICE, {});
        await act.catch(() => {});
        return far;
      };
      for (const change of [...wishes, ...additions, {}]) {
        got.length = 0;
        const { roomId } = await attempt(change);
        for (const { path, body } of got) {
          assert.match(path, new RegExp(`/send_${membership}/`));
          const { auth_events, depth, hashes, origin_server_ts, prev_events, signatures, ...rest } = body;
          assert.deepEqual(
            rest,
            {
              room_id: roomId,
              type: 'm.room.member',
              sender: ALICE,
              state_key: ALICE,
              content: { membership },
            },
            JSON.stringify(change),
          );
          assert.deepEqual(Object.keys(signatures as JsonObject), ['home']);
          assert.ok(auth_events && prev_events && hashes && Number.isSafeInteger(depth));
          assert.ok(Math.abs((origin_server_ts as number) - Date.now()) < 60_000);
        }
        if (wishes.includes(change)) assert.deepEqual(got, [], JSON.stringify(change));
      }
    });

  test('signs no invite that comes back as another event, and puts none into the room', async () => {
    const roomId = await home.createRoom(ALICE, { preset: 'private_chat', room_version: '10' });
    const { pdu } = new ForeignRoom(EVE).build(EVE, 'm.room.power_levels', '', { users: { [EVE]: 100 } });
    for (const change of [
      pdu,
      { content: { membership: 'join' } },
      { sender: EVE },
      { state_key: '@other:evil' },
      { unsigned: { x: 1 }, depth: 1 },
    ] as JsonObject[]) {
      answer = ({ body }) => ({ event: { ...((body as JsonObject).event as JsonObject), ...change } });
      await assert.rejects(home.members.invite(roomId, ALICE, EVE));
      assert.equal((await home.rooms.require(roomId)).membership(EVE), undefined);
    }
    // Not signed by the invited user's server either.
    answer = ({ body }) => ({ event: (body as JsonObject).event as JsonObject });
    await assert.rejects(home.members.invite(roomId, ALICE, EVE));
  });
});

describe('an event for another room than the path says (CVE-2020-26257)', () => {
  test('is taken by none of the handshakes', async () => {
    const roomId = await home.createRoom(ALICE, { preset: 'public_chat', room_version: '10' });
    const other = await home.createRoom(ALICE, { preset: 'public_chat', room_version: '10' });
    const far = new ForeignRoom(EVE);
    const put = (path: string, body: JsonValue) =>
      home.request('evil', { method: 'PUT', path: `/_matrix/federation/${path}`, body });
    for (const membership of ['join', 'leave', 'knock'] as const) {
      const { pdu, eventId } = far.build(EVE, 'm.room.member', EVE, { membership });
      for (const room of [roomId, other]) {
        const own = await put(`v2/send_${membership}/${room}/${encodeURIComponent(eventId)}`, pdu);
        assert.ok(own.status >= 400 && own.status < 500, `${membership}: ${own.status}`);
      }
    }
    const { pdu, eventId } = far.build(EVE, 'm.room.member', ALICE, { membership: 'invite' });
    const body = { room_version: '10', event: pdu, invite_room_state: far.statePdus };
    const answered = await put(`v2/invite/${roomId}/${encodeURIComponent(eventId)}`, body);
    assert.equal(answered.status, 400);
    assert.equal((await home.rooms.require(roomId)).membership(EVE), undefined);
  });
});

describe('a poisoned answer to /send_join', () => {
  async function joinBy(poison: (far: ForeignRoom) => JsonObject) {
    const far = new ForeignRoom(EVE);
    const { pdu } = far.build(ALICE, 'm.room.member', ALICE, { membership: 'join' });
    const { signatures: _signatures, hashes: _hashes, ...event } = pdu;
    answer = ({ path }) => {
      if (path.includes('/make_join/')) return { room_version: '10', event };
      if (path.includes('/send_join/')) return poison(far);
      return undefined;
    };
    const error = await home.members.join(far.roomId, ALICE, ['evil']).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    return { far, error, room: await home.rooms.get(far.roomId) };
  }
  const truth = (far: ForeignRoom) => ({ origin: 'evil', state: far.statePdus, auth_chain: far.chainPdus });

  test('is refused as a whole where it is no room, or another one', async () => {
    const elsewhere = new ForeignRoom(EVE);
    const poisons: Array<(far: ForeignRoom) => JsonObject> = [
      () => ({}),
      () => ({ state: 'x', auth_chain: {} }),
      () => ({ state: [], auth_chain: [] }),
      () => ({ state: [null, 7, 'x', [], {}], auth_chain: [null] }),
      () => truth(elsewhere),
      (far) => ({ ...truth(far), state: far.statePdus.slice(1) }),
      (far) => ({ ...truth(far), state: [...far.statePdus.slice(1), elsewhere.statePdus[0]!] }),
    ];
    for (const [i, poison] of poisons.entries()) {
      const { error, room } = await joinBy(poison);
      assert.ok(error, `case ${i}`);
      assert.notEqual(room?.isResident, true, `case ${i}`);
    }
  });

  test('has what it may not have left out, and what is forged', async () => {
    const { error, room } = await joinBy((far) => {
      const taken = far.build('@stranger:evil', 'm.room.power_levels', '', {
        users: { '@stranger:evil': 100 },
      });
      const forged = far.build('@victim:good', 'm.room.member', '@victim:good', { membership: 'join' });
      const { pdu } = forged;
      return {
        ...truth(far),
        state: [
          ...far.statePdus,
          taken.pdu,
          { ...pdu, signatures: { good: { 'ed25519:test': 'AAAA' } } },
          { ...pdu, content: { membership: 'join', displayname: 'changed' } },
        ],
      };
    });
    assert.equal(error, undefined);
    assert.ok(room);
    assert.ok(room.isJoined(ALICE));
    assert.equal(room.isJoined('@victim:good'), false);
    assert.equal(room.isJoined('@stranger:evil'), false);
    const levels = room.state.get('m.room.power_levels', '')!;
    const event = (await home.rooms.parts.events.get(levels.eventId))!;
    assert.equal(event.sender, EVE);
  });
});

test('a storm of joins is answered, each once, and the room goes on (join storms)', async () => {
  const roomId = await home.createRoom(ALICE, { preset: 'public_chat', room_version: '10' });
  const users = Array.from({ length: 60 }, (_, i) => `@storm${i}:evil`);
  const joins = await Promise.all(
    users.map(async (userId) => {
      const path = `/_matrix/federation/v1/make_join/${roomId}/${encodeURIComponent(userId)}`;
      const made = await home.request('evil', { method: 'GET', path, query: { ver: ['10'] } });
      const template = (made.body as { event: Pdu }).event;
      const { origin: _origin, ...proto } = template;
      return buildEvent(proto as never, {
        version: roomVersion('10')!,
        key: keyOf('evil'),
        serverName: 'evil',
      });
    }),
  );
  const send = ({ eventId, pdu }: { eventId: string; pdu: Pdu }) =>
    home.request('evil', {
      method: 'PUT',
      path: `/_matrix/federation/v2/send_join/${roomId}/${encodeURIComponent(eventId)}`,
      body: pdu,
    });
  const answers = await Promise.all([...joins, ...joins].map(send));
  assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([200]));
  const room = await home.rooms.require(roomId);
  assert.equal(room.count('join'), 61);
  const sent = await sendEvent(home.rooms, roomId, {
    type: 'm.room.message',
    sender: ALICE,
    content: { body: 'still here' },
  });
  assert.ok(sent.prevEvents.length <= 10);
});
