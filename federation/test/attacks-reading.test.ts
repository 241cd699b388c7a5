import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { isServerAllowed } from '@trellis/rooms/server-acl.ts';
import { type TestEngine, testEngine, testVerifier } from '@trellis/rooms/test/engine.ts';
import { ALICE, FOUNDER, RemoteGraph, receiverOf } from '@trellis/rooms/test/remote-graph.ts';
import type { ThirdPartyInvites } from '@trellis/rooms/third-party-invites.ts';
import { Stream } from '@trellis/storage/streams.ts';
import { Receipts } from '@trellis/users/receipts.ts';
import { Typing } from '@trellis/users/typing.ts';
import Fastify, { type FastifyInstance } from 'fastify';
import { backfillRoutes } from '../inbound/backfill.ts';
import { ephemeralEduHandlers } from '../inbound/ephemeral-edus.ts';
import { eventRoutes } from '../inbound/events.ts';
import { hierarchyRoutes } from '../inbound/hierarchy.ts';
import { inviteRoutes } from '../inbound/invite.ts';
import { joinRoutes } from '../inbound/join.ts';
import { knockRoutes } from '../inbound/knock.ts';
import { leaveRoutes } from '../inbound/leave.ts';
import { stateRoutes } from '../inbound/state.ts';
import { thirdPartyInviteRoutes } from '../inbound/third-party-invite.ts';
import { timestampRoutes } from '../inbound/timestamp.ts';

const EVE = '@eve:evil';

let engine: TestEngine;
let app: FastifyInstance;
before(async () => {
  engine = await testEngine('here');
  const { rooms } = engine;
  app = Fastify({ ajv: { customOptions: { coerceTypes: false } } });
  app.decorateRequest('xMatrix', undefined);
  app.addHook('onRequest', async (request) => {
    const origin = String(request.headers['x-origin']);
    request.xMatrix = { origin, destination: 'here', key: '', sig: '' };
  });
  app.setErrorHandler((error: Error & { validation?: unknown }, _request, reply) => {
    if (error instanceof MatrixError) return reply.code(error.status).send(error.toBody());
    return reply.code(error.validation ? 400 : 500).send({ error: String(error.stack) });
  });
  const deps = { rooms, receiver: receiverOf(engine, new RemoteGraph()), verifier: testVerifier };
  for (const routes of [joinRoutes, leaveRoutes, knockRoutes]) routes(app, deps);
  inviteRoutes(app, { ...deps, isLocalUser: async () => true });
  for (const routes of [backfillRoutes, eventRoutes, stateRoutes]) routes(app, { rooms });
  hierarchyRoutes(app, rooms);
  timestampRoutes(app, rooms);
  const unused = {} as unknown as ThirdPartyInvites;
  thirdPartyInviteRoutes(app, { rooms, thirdPartyInvites: unused });
  await app.ready();
});
after(async () => {
  await app.close();
  await engine.close();
});

async function call(origin: string, method: 'GET' | 'POST' | 'PUT', path: string, body?: JsonValue) {
  const answer = await app.inject({
    method,
    url: `/_matrix/federation/${path}`,
    headers: { 'x-origin': origin },
    ...(body === undefined ? {} : { payload: body as JsonObject }),
  });
  return { status: answer.statusCode, text: answer.body };
}

const SECRET = 'something private';

/** A room of Alice, the founder and Eve, with a message in it that is not Eve's. */
async function roomWithEve() {
  const graph = new RemoteGraph('10');
  graph.member(EVE, 'join');
  const room = await graph.joinFrom(engine);
  const event = await sendEvent(engine.rooms, room.roomId, {
    type: 'm.room.message',
    sender: ALICE,
    content: { body: SECRET },
  });
  return { graph, room, event };
}

/** Every way to read from a room. */
function reads(roomId: string, eventId: string) {
  const event = encodeURIComponent(eventId);
  return [
    ['GET', `v1/event/${event}`],
    ['GET', `v1/event_auth/${roomId}/${event}`],
    ['GET', `v1/state/${roomId}?event_id=${event}`],
    ['GET', `v1/state_ids/${roomId}?event_id=${event}`],
    ['GET', `v1/backfill/${roomId}?v=${event}&limit=10`],
    ['POST', `v1/get_missing_events/${roomId}`, { earliest_events: [], latest_events: [eventId] }],
    ['GET', `v1/timestamp_to_event/${roomId}?ts=1&dir=f`],
  ] as Array<['GET' | 'POST', string, JsonObject?]>;
}

describe('what a server reads that is not in the room (CVE-2022-39335, GHSA-45cj-f97f-ggwv)', () => {
  test('is nothing, by any endpoint', async () => {
    const { room, event } = await roomWithEve();
    for (const [method, path, body] of reads(room.roomId, event.eventId)) {
      assert.equal((await call('evil', method, path, body)).status, 200, path);
      const answer = await call('stranger', method, path, body);
      assert.ok(answer.status === 403 || answer.status === 404, `${path}: ${answer.status}`);
      assert.ok(!answer.text.includes(SECRET) && !answer.text.includes(FOUNDER), path);
    }
    // Of a private room it is not even told that it is a child of a space.
    assert.equal((await call('stranger', 'GET', `v1/hierarchy/${room.roomId}`)).status, 200, 'a public room');
    const secret = await engine.createRoom(ALICE, { preset: 'private_chat', room_version: '10' });
    assert.equal((await call('stranger', 'GET', `v1/hierarchy/${secret}`)).status, 404);
  });

  test('is nothing by way of a room that it is in', async () => {
    const { room } = await roomWithEve();
    const other = await engine.createRoom(ALICE, { preset: 'private_chat', room_version: '10' });
    const hidden = await sendEvent(engine.rooms, other, {
      type: 'm.room.message',
      sender: ALICE,
      content: { body: SECRET },
    });
    for (const [method, path, body] of reads(room.roomId, hidden.eventId)) {
      const answer = await call('evil', method, path, body);
      assert.ok(!answer.text.includes(SECRET), path);
      assert.ok(!answer.text.includes(hidden.eventId), path);
    }
  });

  test('is redacted where its users were not there, if the room says so', async () => {
    const graph = new RemoteGraph('10');
    const room = await graph.joinFrom(engine);
    graph.add({
      sender: FOUNDER,
      type: 'm.room.history_visibility',
      stateKey: '',
      content: { history_visibility: 'joined' },
    });
    const receiver = receiverOf(engine, graph);
    await receiver.receive('far', graph.ends[0]!);
    const before = graph.message(FOUNDER, SECRET);
    await receiver.receive('far', before);
    await receiver.receive('evil', graph.member(EVE, 'join'));
    for (const [method, path, body] of reads(room.roomId, before.eventId)) {
      const answer = await call('evil', method, path, body);
      assert.ok(!answer.text.includes(SECRET), path);
    }
  });
});

describe('a server that the access list denies (conduwuit 0.4.1)', () => {
  test('gets an answer from no endpoint of the room', async () => {
    const { room, event, graph } = await roomWithEve();
    const { roomId } = room;
    const acl = graph.add({
      sender: FOUNDER,
      type: 'm.room.server_acl',
      stateKey: '',
      content: { allow: ['*'], deny: ['EV?L'] },
    });
    await receiverOf(engine, graph).receive('far', acl);
    const { pdu, eventId } = graph.member('@mallory:evil', 'join');
    const id = encodeURIComponent(eventId);
    const invite = graph.add({
      sender: EVE,
      type: 'm.room.member',
      stateKey: '@new:here',
      content: { membership: 'invite' },
    });
    const all: Array<['GET' | 'POST' | 'PUT', string, JsonObject?]> = [
      ...reads(roomId, event.eventId),
      ...['make_join', 'make_leave', 'make_knock'].map((name): ['GET', string] => [
        'GET',
        `v1/${name}/${roomId}/${EVE}?ver=10`,
      ]),
      ...['v1/send_join', 'v2/send_join', 'v1/send_leave', 'v2/send_leave', 'v1/send_knock'].map(
        (name): ['PUT', string, JsonObject] => ['PUT', `${name}/${roomId}/${id}`, pdu],
      ),
      [
        'PUT',
        `v2/invite/${roomId}/${encodeURIComponent(invite.eventId)}`,
        { room_version: '10', event: invite.pdu, invite_room_state: [] },
      ],
      [
        'PUT',
        `v1/exchange_third_party_invite/${roomId}`,
        {
          type: 'm.room.member',
          room_id: roomId,
          sender: ALICE,
          state_key: EVE,
          content: {
            membership: 'invite',
            third_party_invite: { signed: { mxid: EVE, token: 't', signatures: {} } },
          },
        },
      ],
    ];
    for (const [method, path, body] of all)
      assert.equal((await call('evil', method, path, body)).status, 403, `${method} ${path}`);
  });

  test('tells nothing of the room by EDUs, nor of others, of rooms or users that are not its own', async () => {
    const { room, event, graph } = await roomWithEve();
    const { db, rooms, memberships } = engine;
    const receipts = new Receipts({ db, stream: new Stream('receipts', 0) });
    const typing = new Typing(new Stream('typing', 0));
    const handlers = ephemeralEduHandlers({
      rooms,
      memberships,
      receipts,
      typing,
      presence: { enabled: false } as never,
      isServerAllowed: (of, server) => isServerAllowed(rooms, of, server),
    });
    const { roomId } = room;
    const edus = async (origin: string, userId: string) => {
      await handlers.get('m.typing')!(origin, { room_id: roomId, user_id: userId, typing: true });
      await handlers.get('m.receipt')!(origin, {
        [roomId]: { 'm.read': { [userId]: { event_ids: [event.eventId], data: { ts: 1 } } } },
      });
      const told = [typing.in(roomId), (await receipts.contentFor(roomId, ALICE, undefined, 100)) ?? {}];
      typing.stop(roomId, userId);
      return told;
    };
    // CVE-2023-42453 (GHSA-7565-cq32-vx2x): for another server's user, and for who is not in the room.
    for (const userId of [FOUNDER, ALICE, '@nobody:evil', '@eve:evil:80', 'eve', '@eve:EVIL'])
      assert.deepEqual(await edus('evil', userId), [[], {}], userId);
    const acl = { allow: ['*'], deny: ['evil'] };
    const denial = graph.add({ sender: FOUNDER, type: 'm.room.server_acl', stateKey: '', content: acl });
    await receiverOf(engine, graph).receive('far', denial);
    assert.deepEqual(await edus('evil', EVE), [[], {}]);
    typing.close();
  });
});
