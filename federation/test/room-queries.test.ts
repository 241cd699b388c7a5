import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { Aliases } from '@trellis/rooms/aliases.ts';
import { PublicRooms } from '@trellis/rooms/public-rooms.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { type TestEngine, testEngine } from '@trellis/rooms/test/engine.ts';
import Fastify, { type FastifyInstance } from 'fastify';
import { hierarchyRoutes } from '../inbound/hierarchy.ts';
import { publicRoomsRoutes } from '../inbound/public-rooms.ts';
import { queryRoutes } from '../inbound/query.ts';
import { timestampRoutes } from '../inbound/timestamp.ts';

const alice = '@alice:here';
let engine: TestEngine;
let aliases: Aliases;
let app: FastifyInstance;
before(async () => {
  engine = await testEngine('here');
  const { rooms, db } = engine;
  aliases = new Aliases(db, rooms, async () => undefined);
  app = Fastify();
  app.decorateRequest('xMatrix', undefined);
  // Stands for the check of the signature.
  app.addHook('onRequest', async (request) => {
    request.xMatrix = { origin: 'elsewhere', destination: 'here', key: 'k', sig: 's' };
  });
  app.setErrorHandler((error: Error, _request, reply) =>
    error instanceof MatrixError
      ? reply.code(error.status).send(error.toBody())
      : reply.code(500).send({ error: error.stack }),
  );
  hierarchyRoutes(app, rooms);
  timestampRoutes(app, rooms);
  publicRoomsRoutes(app, new PublicRooms(db, rooms));
  queryRoutes(app, {
    serverName: 'here',
    aliases,
    profiles: { get: async () => ({ displayname: 'Alice', avatar_url: 'mxc://here/a' }) },
  });
});
after(async () => {
  await app.close();
  await engine.close();
});

async function get(path: string) {
  const response = await app.inject({ method: 'GET', url: `/_matrix/federation/v1${path}` });
  return { status: response.statusCode, body: response.json() };
}

/** Puts a user of the other server into a room, as far as membership goes. */
async function admit(roomId: string): Promise<void> {
  const room = await engine.rooms.require(roomId);
  const member = { membership: 'join', eventId: '$join', sender: '@x:elsewhere', pos: 1 };
  room.setMember('@x:elsewhere', member);
}

test('a space is described with those children that the other server may know of', async () => {
  const space = await engine.createRoom(alice, {
    preset: 'public_chat',
    creation_content: { type: 'm.space' },
    name: 'Space',
  });
  const open = await engine.createRoom(alice);
  const secret = await engine.createRoom(alice, { preset: 'private_chat' });
  const gate = await engine.createRoom(alice, { preset: 'private_chat' });
  const restricted = await engine.createRoom(alice, {
    preset: 'private_chat',
    initial_state: [
      {
        type: 'm.room.join_rules',
        content: { join_rule: 'restricted', allow: [{ type: 'm.room_membership', room_id: gate }] },
      },
    ],
  });
  for (const child of [open, secret, restricted, '!far:elsewhere'])
    await sendEvent(engine.rooms, space, {
      type: 'm.space.child',
      sender: alice,
      stateKey: child,
      content: { via: ['here'], suggested: child === open },
    });
  const ids = (list: Array<{ room_id: string }>) => list.map(({ room_id }) => room_id).sort();
  const { body } = await get(`/hierarchy/${encodeURIComponent(space)}`);
  assert.deepEqual([body.room.name, body.room.children_state.length], ['Space', 4]);
  assert.deepEqual(
    [ids(body.children), body.inaccessible_children.sort()],
    [[open], [secret, restricted].sort()],
  );
  await admit(gate);
  const later = (await get(`/hierarchy/${encodeURIComponent(space)}`)).body;
  assert.deepEqual(ids(later.children), [open, restricted].sort());
  assert.deepEqual(
    later.children.find((room: { room_id: string }) => room.room_id === restricted).allowed_room_ids,
    [gate],
  );
  const suggested = (await get(`/hierarchy/${encodeURIComponent(space)}?suggested_only=true`)).body;
  assert.deepEqual([ids(suggested.children), suggested.inaccessible_children], [[open], []]);
  const hidden = await get(`/hierarchy/${encodeURIComponent(secret)}`);
  assert.deepEqual([hidden.status, hidden.body.errcode], [404, 'M_NOT_FOUND']);
});

test('the closest event is told to servers in the room only', async () => {
  const room = await engine.createRoom(alice);
  const ask = (query: string) => get(`/timestamp_to_event/${encodeURIComponent(room)}?${query}`);
  assert.equal((await ask('ts=0&dir=f')).body.errcode, 'M_FORBIDDEN');
  await admit(room);
  const { body } = await ask('ts=0&dir=f');
  assert.equal((await engine.rooms.parts.events.get(body.event_id))?.type, 'm.room.create');
  assert.equal((await ask('ts=0&dir=b')).body.errcode, 'M_NOT_FOUND');
  assert.equal((await ask('ts=x&dir=b')).body.errcode, 'M_INVALID_PARAM');
});

test('aliases, profiles and published rooms are told', async () => {
  const room = await engine.createRoom(alice, { preset: 'public_chat', visibility: 'public', name: 'Open' });
  await aliases.set('#open:here', room, alice, ['here']);
  const directory = (alias: string) => get(`/query/directory?room_alias=${encodeURIComponent(alias)}`);
  assert.deepEqual((await directory('#open:here')).body, { room_id: room, servers: ['here'] });
  assert.equal((await directory('#other:here')).body.errcode, 'M_NOT_FOUND');
  assert.equal((await directory('#open:elsewhere')).body.errcode, 'M_NOT_FOUND');
  assert.equal((await directory('open')).body.errcode, 'M_INVALID_PARAM');
  assert.deepEqual((await get(`/query/profile?user_id=${alice}&field=displayname`)).body, {
    displayname: 'Alice',
  });
  assert.deepEqual((await get(`/query/profile?user_id=${alice}&field=m.tz`)).body, {});
  assert.equal((await get('/query/profile?user_id=@x:elsewhere')).status, 404);
  assert.deepEqual(
    (await get('/publicRooms')).body.chunk.map((entry: { name: string }) => entry.name),
    ['Open'],
  );
});
