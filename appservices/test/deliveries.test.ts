import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { alone } from '@trellis/cluster/cluster.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import { storeOutOfBand } from '@trellis/rooms/out-of-band.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { ForeignRoom, type TestEngine, testEngine } from '@trellis/rooms/test/engine.ts';
import { Stream, type Streams } from '@trellis/storage/streams.ts';
import { AppserviceClient } from '../client.ts';
import { Deliveries } from '../deliveries.ts';
import type { Registration } from '../registration.ts';
import { Appservices } from '../registry.ts';
import { RoomAliases } from '../room-aliases.ts';
import { Bridge, until } from './bridge.ts';

const ALICE = '@alice:here';
const IRC = '@irc_carol:here';

let engine: TestEngine;
let aliases: Aliases;
let streams: Streams;
let bridge: Bridge;
let deliveries: Deliveries | undefined;
let services: Appservices;
const client = new AppserviceClient();
const received: unknown[] = [];
const counts = new Map<string, number>();

before(async () => {
  engine = await testEngine('here');
  aliases = engine.aliases;
  const names = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'];
  streams = Object.fromEntries(names.map((name) => [name, new Stream(name, 0)])) as unknown as Streams;
});
after(async () => {
  await client.close();
  await engine.close();
});
beforeEach(async () => {
  bridge = new Bridge();
  await bridge.start();
  received.length = 0;
});
afterEach(async () => {
  await deliveries?.close();
  bridge.stop();
  await engine.db.query('DELETE FROM appservice_deliveries');
});

async function start(more: Partial<Registration> = {}): Promise<void> {
  services = new Appservices([bridge.registration(more)], 'here');
  deliveries = new Deliveries({
    cluster: alone(),
    services,
    client,
    rooms: engine.rooms,
    memberships: engine.memberships,
    aliases: new RoomAliases(aliases),
    streams,
    keyCounts: async (_userId, deviceId) => ({
      oneTimeKeys: { signed_curve25519: counts.get(deviceId) ?? 0 },
      unusedFallbackTypes: ['signed_curve25519'],
    }),
    received: async (...told) => void received.push(told),
    log: { warn: () => {}, info: () => {} },
  });
  await deliveries.prepare();
  deliveries.start();
}

async function restart(more: Partial<Registration> = {}): Promise<void> {
  await deliveries?.close();
  await start(more);
}

function say(roomId: string, body: string, sender = ALICE) {
  return sendEvent(engine.rooms, roomId, { type: 'm.room.message', sender, content: { body } });
}

/** A room that the service is told of. */
async function bridgedRoom(): Promise<string> {
  const roomId = await engine.createRoom(ALICE);
  await engine.membership().join(roomId, IRC, []);
  return roomId;
}

describe('events', () => {
  it('go in order to those who have to do with them', async () => {
    await start();
    const other = await engine.createRoom(ALICE);
    const roomId = await engine.createRoom(ALICE);
    await say(roomId, 'before the bridge is in');
    await engine.membership().join(roomId, IRC, []);
    await say(other, 'elsewhere');
    const event = await say(roomId, 'first');
    await say(roomId, 'second');
    await until('the events', () => bridge.bodies.includes('second'));
    assert.deepEqual(bridge.bodies, ['first', 'second']);
    const { method, path, token, body } = bridge.transactions[0]!;
    assert.equal(method, 'PUT');
    assert.match(path, /^\/_matrix\/app\/v1\/transactions\/\S+$/);
    assert.equal(token, 'Bearer hs');
    const [join] = body.events;
    assert.deepEqual([join.type, join.state_key, join.content.membership], ['m.room.member', IRC, 'join']);
    const sent = bridge.transactions
      .flatMap(({ body }) => body.events)
      .find((e) => e.event_id === event.eventId);
    const { age, ...unsigned } = sent.unsigned;
    assert.ok(age >= 0);
    assert.deepEqual(
      { ...sent, unsigned },
      {
        type: 'm.room.message',
        sender: ALICE,
        room_id: roomId,
        event_id: event.eventId,
        origin_server_ts: event.originServerTs,
        content: { body: 'first' },
        unsigned: {},
      },
    );
  });

  it('go of rooms with an alias or an id in a namespace, as long as they have it', async () => {
    const byId = await engine.createRoom(ALICE);
    await start({
      users: [],
      rooms: [{ regex: byId.replaceAll(/[^\w]/g, '.'), exclusive: false }],
      aliases: [{ regex: '#irc_', exclusive: false }],
    });
    const byAlias = await engine.createRoom(ALICE);
    await say(byAlias, 'without alias');
    // An alias has no place among the events: it counts from when it is looked for.
    await new Promise((wake) => setTimeout(wake, 100));
    await aliases.set('#irc_a:here', byAlias, ALICE, []);
    await say(byAlias, 'with alias');
    await until('the first', () => bridge.bodies.length === 1);
    await aliases.remove('#irc_a:here');
    await say(byAlias, 'without again');
    await say(byId, 'by id');
    await until('the second', () => bridge.bodies.length === 2);
    assert.deepEqual(bridge.bodies, ['with alias', 'by id']);
  });

  it('go at the most a hundred at a time, when the service was away', async () => {
    await start();
    const roomId = await bridgedRoom();
    await say(roomId, '0');
    await until('the first', () => bridge.bodies.length === 1);
    await deliveries!.close();
    for (let i = 1; i <= 230; i++) await say(roomId, String(i));
    await start();
    await until('all', () => bridge.bodies.length === 231);
    assert.deepEqual(
      bridge.bodies,
      Array.from({ length: 231 }, (_, i) => String(i)),
    );
    const sizes = bridge.transactions.map(({ body }) => body.events.length);
    assert.ok(Math.max(...sizes) === 100, String(sizes));
    assert.equal(new Set(bridge.transactions.map(({ path }) => path)).size, sizes.length);
  });

  it('are the same under the same id when tried again, also by the next run of the server', async () => {
    await start();
    const roomId = await bridgedRoom();
    await until('the join', () => bridge.transactions.length > 0);
    bridge.requests.length = 0;
    bridge.answer = () => ({ status: 500 });
    await say(roomId, 'try');
    await until('two tries', () => bridge.transactions.length >= 2);
    await say(roomId, 'later');
    bridge.answer = () => ({ status: 200 });
    await restart();
    await until('what came later', () => bridge.bodies.includes('later'));
    const tries = bridge.transactions.filter(({ path }) => path === bridge.transactions[0]!.path);
    assert.ok(tries.length >= 3);
    const ids = ({ body }: (typeof tries)[number]) => body.events.map((e: JsonObject) => e.event_id);
    for (const attempt of tries) assert.deepEqual(ids(attempt), ids(tries[0]!));
    await restart();
    await say(roomId, 'at last');
    await until('the last', () => bridge.bodies.includes('at last'));
    assert.equal(bridge.bodies.filter((body) => body === 'later').length, 1);
  });

  it('are those of the time that the service was in the room, though it was away', async () => {
    await start();
    const roomId = await bridgedRoom();
    await say(roomId, 'in');
    await until('the first', () => bridge.bodies.length === 1);
    await deliveries!.close();
    const membership = engine.membership();
    await say(roomId, 'still in');
    await membership.leave(roomId, IRC);
    await say(roomId, 'out');
    const other = await engine.createRoom(ALICE);
    await say(other, 'not yet in');
    await membership.join(other, IRC, []);
    await say(other, 'now in');
    await start();
    await until('the last', () => bridge.bodies.includes('now in'));
    assert.deepEqual(bridge.bodies, ['in', 'still in', 'now in']);
  });

  it('include invites from elsewhere, with what there is to see of the room', async () => {
    await start();
    await deliveries!.close();
    const foreign = new ForeignRoom('@bob:there');
    const invite = foreign.build('@bob:there', 'm.room.member', IRC, { membership: 'invite' });
    const toAlice = foreign.build('@bob:there', 'm.room.member', ALICE, { membership: 'invite' });
    await storeOutOfBand(engine.rooms, invite, '[{"type":"m.room.name"}]');
    await storeOutOfBand(engine.rooms, toAlice, '[]');
    await start();
    await until('the invite', () => bridge.transactions.length > 0);
    const events = bridge.transactions.flatMap(({ body }) => body.events);
    assert.deepEqual(
      events.map(({ event_id }) => event_id),
      [invite.eventId],
    );
    assert.deepEqual(events[0].unsigned.invite_room_state, [{ type: 'm.room.name' }]);
  });

  it('go to services that know the older paths only, and to none whose URL is null', async () => {
    await start();
    bridge.answer = ({ path }) => ({ status: path.startsWith('/_matrix/app/v1') ? 404 : 200 });
    const roomId = await bridgedRoom();
    await until('the fallback', () => bridge.transactions.some(({ path }) => /^\/transactions\//.test(path)));
    await restart({ url: undefined });
    const before = bridge.requests.length;
    await say(roomId, 'silence');
    assert.equal(bridge.requests.length, before);
    assert.deepEqual(await engine.db.query('SELECT id FROM appservice_deliveries'), []);
  });

  it('wait for a service that does not answer, and go at once when it shows itself', async () => {
    await start();
    const roomId = await bridgedRoom();
    await until('the join', () => bridge.transactions.length > 0);
    bridge.stop();
    await say(roomId, 'nobody there');
    await new Promise((wake) => setTimeout(wake, 3_500));
    await bridge.start();
    const shown = Date.now();
    deliveries!.seenAlive(services.get('irc')!, true);
    await until('the event', () => bridge.bodies.includes('nobody there'));
    assert.ok(Date.now() - shown < 1_000);
  });
});

describe('what passes', () => {
  const ephemeral = () => bridge.transactions.flatMap(({ body }) => body.ephemeral ?? []);
  const receipt = (roomId: string, userId: string, type: string) => ({
    roomId,
    userId,
    eventId: '$event',
    type,
    threadId: null,
    ts: 5,
  });

  it('is told of rooms and people that the service has to do with', async () => {
    await start({ receiveEphemeral: true });
    const roomId = await bridgedRoom();
    const other = await engine.createRoom('@bob:here');
    const state = { presence: 'online', statusMsg: null, lastActiveTs: 0, currentlyActive: true };
    const tell = <C>(stream: Stream<C>, ...changes: C[]) => stream.write(changes, async () => {});
    await tell(streams.receipts, receipt(other, ALICE, 'm.read'), receipt(roomId, ALICE, 'm.read'));
    await tell(
      streams.receipts,
      receipt(roomId, ALICE, 'm.read.private'),
      receipt(roomId, IRC, 'm.read.private'),
    );
    await tell(streams.presence, { userId: '@bob:here', state }, { userId: ALICE, state });
    const changed = { userId: ALICE, typing: true };
    await tell(
      streams.typing,
      { roomId: other, userIds: [ALICE], changed },
      { roomId, userIds: [ALICE], changed },
    );
    await until('all of it', () => ephemeral().length >= 3);
    const byType = new Map(ephemeral().map((event) => [event.type, event]));
    assert.equal(ephemeral().length, 3);
    assert.deepEqual(byType.get('m.receipt'), {
      type: 'm.receipt',
      room_id: roomId,
      content: { $event: { 'm.read': { [ALICE]: { ts: 5 } }, 'm.read.private': { [IRC]: { ts: 5 } } } },
    });
    assert.deepEqual(byType.get('m.typing'), {
      type: 'm.typing',
      room_id: roomId,
      content: { user_ids: [ALICE] },
    });
    assert.equal(byType.get('m.presence').sender, ALICE);
    assert.equal(byType.get('m.presence').content.presence, 'online');
  });

  it('is told to nobody who does not ask for it', async () => {
    await start();
    const roomId = await bridgedRoom();
    await streams.receipts.write([receipt(roomId, ALICE, 'm.read')], async () => {});
    await say(roomId, 'done');
    await until('the event', () => bridge.bodies.includes('done'));
    assert.ok(bridge.transactions.every(({ body }) => Object.keys(body).join() === 'events'));
  });
});

describe('devices', () => {
  const deliver = async (userId: string, deviceId: string, n: number) => {
    const json = JSON.stringify({ type: 'm.secret', sender: ALICE, content: { n } });
    await streams.toDevice.write([{ userId, deviceId }], (pos) =>
      engine.db.query('INSERT INTO to_device_messages VALUES ($1, $2, $3, $4)', [
        userId,
        deviceId,
        pos,
        json,
      ]),
    );
  };

  it('get their messages once, and have no need of those that are only theirs', async () => {
    const users = [
      { regex: '@irc_.*', exclusive: true },
      { regex: '@shared', exclusive: false },
    ];
    await start({ pushEphemeral: true, users });
    const messages = () =>
      bridge.transactions.flatMap(({ body }) => body['de.sorunome.msc2409.to_device'] ?? []);
    await deliver(IRC, 'D', 1);
    await deliver(ALICE, 'D', 2);
    await until('the first', () => messages().length === 1);
    await deliveries!.close();
    await deliver('@shared:here', 'S', 3);
    for (let n = 4; n < 150; n++) await deliver(IRC, 'D', n);
    await start({ pushEphemeral: true, users });
    await until('the rest', () => messages().length === 148);
    await restart({ pushEphemeral: true, users });
    await deliver(IRC, 'D', 150);
    await until('one more', () => messages().length === 149);
    assert.deepEqual(messages()[0], {
      type: 'm.secret',
      sender: ALICE,
      content: { n: 1 },
      to_user_id: IRC,
      to_device_id: 'D',
    });
    assert.deepEqual(
      messages().map(({ content }) => content.n),
      [1, ...Array.from({ length: 148 }, (_, i) => i + 3)],
    );
    await until('all are told to be received', () => received.length >= 4);
    assert.ok(received.every((told) => (told as string[])[0] === IRC));
  });

  it('of people who share a room change, and keys run out', async () => {
    await engine.db.query(
      "INSERT INTO accounts (user_id, created_ts, is_admin, is_guest, appservice_id) VALUES ($1, 1, false, false, 'irc')",
      [IRC],
    );
    await engine.db.query("INSERT INTO device_keys VALUES ($1, 'D', '{}')", [IRC]);
    counts.set('D', 7);
    await start({ deviceNews: true });
    const dora = '@dora:here';
    const roomId = await engine.createRoom(dora);
    await engine.membership().join(roomId, IRC, []);
    const lists = () =>
      bridge.transactions.flatMap(({ body }) => body['org.matrix.msc3202.device_lists'] ?? []);
    await until('those in the room', () => lists().length === 1);
    assert.deepEqual(lists()[0], { changed: [dora], left: [] });
    const key = 'org.matrix.msc3202.device_one_time_keys_count';
    assert.deepEqual(bridge.transactions.find(({ body }) => body[key])?.body[key], {
      [IRC]: { D: { signed_curve25519: 7 } },
    });
    for (const userId of ['@stranger:here', dora])
      await streams.deviceLists.write([{ userId }], (pos) =>
        engine.db.query('INSERT INTO device_list_changes (pos, user_id, ts) VALUES ($1, $2, 1)', [
          pos,
          userId,
        ]),
      );
    await until('the change', () => lists().length === 2);
    assert.deepEqual(lists()[1], { changed: [dora], left: [] });
    counts.set('D', 6);
    await engine.membership().leave(roomId, dora);
    await until('the end', () => lists().length === 3);
    assert.deepEqual(lists()[2], { changed: [], left: [dora] });
    assert.ok(
      bridge.transactions.filter(({ body }) => body[key]).length === 2,
      'counts only when they changed',
    );
  });
});
