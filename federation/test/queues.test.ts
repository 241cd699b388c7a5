import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Database } from '@trellis/storage/database.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import type { DeviceUpdates } from '../outbound/device-backlog.ts';
import { DestinationServer } from './destination-server.ts';
import { ALICE, HERE, SendingServer } from './sending-server.ts';

let db: Database;
let closeDb: () => Promise<void>;
let one: DestinationServer;
let two: DestinationServer;
let here: SendingServer;
const bob = () => `@bob:${one.name}`;
const carol = () => `@carol:${two.name}`;

before(async () => {
  ({ db, close: closeDb } = await testDatabase());
});
after(() => closeDb());
beforeEach(async () => {
  [one, two] = [new DestinationServer(), new DestinationServer()];
  await Promise.all([one.start(), two.start()]);
  here = await SendingServer.start(db);
});
afterEach(async () => {
  await here.stop();
  await Promise.all([one.stop(), two.stop()]);
  for (const table of ['backlog', 'device_backlog', 'edus', 'backoff'])
    await db.query(`DELETE FROM federation_${table}`);
  for (const table of ['duty_marks', 'duty_handovers']) await db.query(`DELETE FROM ${table}`);
  assert.deepEqual(here.warnings, []);
});

async function until(condition: () => unknown, limitMs = 10_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!condition()) {
    assert.ok(performance.now() < end, `not in time: ${condition}`);
    await sleep(10);
  }
}

const numbers = (count: number) => Array.from({ length: count }, (_, index) => index);

async function sayAll(roomId: string, bodies: readonly number[]): Promise<void> {
  // As fast as the writer takes them; the room's lock keeps their order.
  for (let at = 0; at < bodies.length; at += 500)
    await Promise.all(bodies.slice(at, at + 500).map((body) => here.say(roomId, body)));
}

async function backlogRows(): Promise<number> {
  const [row] = await db.query<{ count: number }>('SELECT count(*) FROM federation_backlog');
  return row!.count;
}

test('events go to the servers in the room, in order, one transaction at a time', async () => {
  one.delayMs = 20;
  const room = await here.room(bob(), carol());
  const alone = await here.room();
  await here.say(alone, 'nobody else is here');
  await sayAll(room, numbers(200));
  await until(() => one.bodies.length >= 200 && two.bodies.length >= 200);
  assert.deepEqual(one.bodies, numbers(200));
  assert.deepEqual(two.bodies, numbers(200));
  assert.equal(one.mostInFlight, 1);
  assert.ok(one.transactions.every(({ pdus }) => pdus.length <= 50));
  assert.equal(new Set(one.transactions.map(({ id }) => id)).size, one.transactions.length);
});

test('a server that leaves gets the event that it left with, and nothing after', async () => {
  const room = await here.room(bob(), carol());
  await here.say(room, 1);
  // At once, so that the kick is applied before the message is announced.
  await Promise.all([here.say(room, 2), here.kick(room, bob()), here.say(room, 3)]);
  await until(() => two.bodies.length === 3);
  await until(() => one.pdus.length === 3);
  assert.deepEqual(one.bodies, [1, 2]);
  assert.equal(one.pdus.at(-1)!.type, 'm.room.member');
});

test('an event that a server handed in is passed on to the others', async () => {
  const room = await here.room(bob(), carol());
  const dave = `@dave:${one.name}`;
  await here.member(room, dave, 'join', one.name);
  await until(() => two.pdus.length === 1);
  assert.equal(two.pdus[0]!.state_key, dave);
  await sleep(50);
  assert.equal(one.requests, 0);
  // Which ones are passed on is known as long as somebody lacks them.
  const relayed = async () => (await db.query('SELECT pos FROM relayed_events')).length;
  await two.stop();
  await here.member(room, `@dora:${one.name}`, 'join', one.name);
  await here.stop();
  here = await SendingServer.start(db);
  assert.equal(await relayed(), 1);
  await two.start();
  await until(() => two.pdus.length === 2);
  await here.stop();
  here = await SendingServer.start(db);
  assert.equal(await relayed(), 0);
});

test('a server whose knock is turned down hears of it', async () => {
  const room = await here.room();
  await here.member(room, bob(), 'knock');
  await here.kick(room, bob());
  await until(() => one.pdus.length === 1);
  assert.equal((one.pdus[0]!.content as { membership: string }).membership, 'leave');
});

test('names that are not talked to get nothing', async () => {
  const room = await here.room('@a:denied.test', '@b:', '@c:not a name', bob());
  await here.say(room, 1);
  await until(() => one.bodies.length === 1);
  assert.deepEqual(here.warnings, []);
  assert.equal(await backlogRows(), 0);
});

test('what gets no answer is sent again with its id', async () => {
  one.answers.push({ status: 502 });
  const room = await here.room(bob());
  await here.say(room, 1);
  await until(() => one.transactions.length === 1);
  await here.say(room, 2);
  await until(() => one.transactions.length === 2);
  assert.deepEqual(one.bodies, [1, 2]);
  assert.equal(one.requests, 3);
});

test('one event that a server refuses does not keep the others from it', async () => {
  const room = await here.room(bob());
  one.delayMs = 50;
  await here.say(room, 0);
  one.answers.push({ status: 200 });
  for (let i = 0; i < 6; i++) one.answers.push({ status: 400, body: { errcode: 'M_BAD_JSON' } });
  await sayAll(room, numbers(60).slice(1));
  await until(() => one.bodies.at(-1) === 59, 40_000);
  assert.deepEqual(one.bodies, [0, ...numbers(60).slice(2)]);
  // Somebody should know.
  assert.equal(here.warnings.splice(0).length, 1);
});

test('a server that was down gets everything once it is back, within seconds', async () => {
  const room = await here.room(bob(), carol());
  await one.stop();
  await sayAll(room, numbers(700));
  await until(() => two.bodies.length === 700);
  await sleep(1_500);
  await one.start();
  await until(() => one.bodies.length >= 700);
  assert.deepEqual(one.bodies, numbers(700));
  await here.say(room, 700);
  await until(() => one.bodies.length === 701);
});

test('a server that failed, and is not talked to any more, is not tried over and over', async () => {
  const room = await here.room(bob());
  await one.stop();
  await here.say(room, 1);
  await until(() => here.backoff.get(one.name));
  here.refused.add(one.name);
  await until(() => here.refusals > 0);
  await sleep(500);
  assert.equal(here.refusals, 1);
});

test('a server that speaks to us is tried at once', async () => {
  const room = await here.room(bob());
  await one.stop();
  await here.say(room, 1);
  for (let i = 0; i < 30; i++) await here.backoff.failed(one.name, Number.MAX_SAFE_INTEGER);
  await one.start();
  await sleep(50);
  assert.equal(one.requests, 0);
  await here.backoff.reachable(one.name);
  await until(() => one.bodies.length === 1, 2_000);
});

test('a backlog of 10,000 events survives kill -9', async (t) => {
  const room = await here.room(bob(), carol());
  const other = await here.room(bob());
  await one.stop();
  await here.say(other, 'elsewhere');
  await sayAll(room, numbers(9_000));
  await sleep(1_200);
  // These are in no row of the queues' when the process ends.
  await Promise.all(
    numbers(10_000)
      .slice(9_000)
      .map((body) => here.say(room, body)),
  );
  await here.kill();
  here = await SendingServer.start(db);
  await one.start();
  const started = performance.now();
  await until(() => one.bodies.length >= 10_001, 60_000);
  t.diagnostic(`10,000 events delivered in ${Math.round(performance.now() - started)} ms`);
  assert.deepEqual(
    one.bodies.filter((body) => body !== 'elsewhere'),
    numbers(10_000),
  );
  await here.stop();
  assert.equal(await backlogRows(), 0);
  here = await SendingServer.start(db);
});

test('events just committed when the process is killed go to those who were in the room', async () => {
  const room = await here.room(bob(), carol());
  await until(() => here.rooms.parts.stream.current > 0);
  await sleep(1_200);
  await Promise.all([one.stop(), two.stop()]);
  await here.say(room, 1);
  await here.kick(room, bob());
  await here.say(room, 2);
  await here.member(room, `@dave:${two.name}`, 'join', two.name);
  await here.kill();
  here = await SendingServer.start(db);
  await Promise.all([one.start(), two.start()]);
  await until(() => two.bodies.length === 2 && one.pdus.length === 2);
  assert.deepEqual(one.bodies, [1]);
  assert.equal(one.pdus[1]!.state_key, bob());
  assert.equal(two.pdus.length, 3);
});

test('a server that was down gets nothing of the time when it was not in the room', async () => {
  const room = await here.room(bob(), carol());
  await one.stop();
  await here.say(room, 'before');
  await until(() => here.backoff.get(one.name));
  await here.member(room, bob(), 'leave');
  await here.say(room, 'without it');
  await here.member(room, bob(), 'join');
  await here.say(room, 'after');
  await here.stop();
  here = await SendingServer.start(db);
  await one.start();
  await until(() => one.bodies.length === 2);
  assert.deepEqual(one.bodies, ['before', 'after']);
});

test('a server that keeps up leaves nothing behind', async () => {
  const room = await here.room(bob());
  await sayAll(room, numbers(100));
  await until(() => one.bodies.length === 100);
  await sleep(1_200);
  assert.equal(await backlogRows(), 0);
  const [progress] = await db.query<{ pos: number }>('SELECT events_pos AS pos FROM duty_marks');
  assert.equal(progress?.pos, here.rooms.parts.stream.current);
});

test('typing, receipts and presence are gathered, and dropped for who does not answer', async () => {
  const room = await here.room(bob());
  const { typing, receipts, presence } = here.streams;
  const type = (userId: string, typing_: boolean) =>
    typing.write([{ roomId: room, userIds: [], changed: { userId, typing: typing_ } }], async () => {});
  const read = (userId: string, eventId: string, kind = 'm.read', threadId: string | null = null) =>
    receipts.write([{ roomId: room, userId, eventId, type: kind, threadId, ts: 5 }], async () => {});
  await type(ALICE, true);
  await type(bob(), true);
  for (const eventId of ['$1', '$2', '$3']) await read(ALICE, eventId);
  await read(ALICE, '$4', 'm.read.private');
  await read(ALICE, '$5', 'm.read', 'main');
  await read(bob(), '$6');
  const state = { presence: 'online', statusMsg: 'hi', lastActiveTs: Date.now(), currentlyActive: true };
  await presence.write([{ userId: ALICE, state }], async () => {});
  await until(() => one.edus('m.receipt').length === 2 && one.edus('m.presence').length === 1);
  assert.deepEqual(one.edus('m.typing'), [{ room_id: room, user_id: ALICE, typing: true }]);
  const receipt = (eventId: string, data: object) => ({
    [room]: { 'm.read': { [ALICE]: { event_ids: [eventId], data } } },
  });
  assert.deepEqual(one.edus('m.receipt'), [
    receipt('$3', { ts: 5 }),
    receipt('$5', { ts: 5, thread_id: 'main' }),
  ]);
  const [{ push }] = one.edus('m.presence') as unknown as [{ push: Array<Record<string, unknown>> }];
  assert.equal(push.length, 1);
  assert.equal(push[0]!.user_id, ALICE);
  assert.equal(push[0]!.status_msg, 'hi');

  await one.stop();
  await here.say(room, 1);
  await until(() => here.backoff.get(one.name));
  await type(ALICE, false);
  await one.start();
  await until(() => one.bodies.length === 1);
  await sleep(50);
  assert.equal(one.edus('m.typing').length, 1);
});

test('EDUs for devices survive restarts, in order, at most 100 in a transaction', async () => {
  await one.stop();
  const edus = numbers(250).map((n) => ({
    destination: one.name,
    eduType: 'm.direct_to_device',
    content: { message_id: String(n) },
  }));
  await db.transaction((tx) => here.store.addEdus(tx, edus));
  here.queues.wake([one.name]);
  await until(() => here.backoff.get(one.name));
  await here.kill();
  here = await SendingServer.start(db);
  await one.start();
  await until(() => one.edus('m.direct_to_device').length === 250);
  assert.deepEqual(
    one.edus('m.direct_to_device').map(({ message_id }) => message_id),
    numbers(250).map(String),
  );
  assert.ok(one.transactions.every(({ edus }) => edus.length <= 100));
  await here.stop();
  assert.deepEqual(await here.store.destinationsWithEdus(), []);
  here = await SendingServer.start(db);
});

test('changes of device lists reach servers that share a room, also those that were down', async () => {
  const changes: Array<{ pos: number; userId: string; servers: string[] | null }> = [];
  const devices: DeviceUpdates = {
    edus: async (userId, destination, from, to) =>
      changes
        .filter((change) => change.userId === userId && change.pos > from && change.pos <= to)
        .filter(({ servers }) => servers?.includes(destination) ?? true)
        .map(({ pos }) => ({
          eduType: 'm.device_list_update',
          content: { user_id: userId, stream_id: pos },
        })),
    changes: async (from, to, limit) => changes.filter(({ pos }) => pos > from && pos <= to).slice(0, limit),
  };
  await here.stop();
  here = await SendingServer.start(db, devices);
  await here.room(bob());
  const change = (userId: string, servers?: string[], onlyFor?: string) =>
    here.streams.deviceLists.write([{ userId, servers, onlyFor }], async (pos) => {
      if (onlyFor === undefined) changes.push({ pos, userId, servers: servers ?? null });
    });
  const heard = (server: DestinationServer) =>
    server.edus('m.device_list_update').map(({ stream_id }) => stream_id);
  await change(ALICE);
  await change(`@nobody:${HERE}`);
  await change(ALICE, undefined, `@someone:${HERE}`);
  await change(ALICE, [two.name]);
  await until(() => heard(one).length === 1 && heard(two).length === 1);
  assert.deepEqual(heard(one), [1]);
  assert.deepEqual(heard(two), [4]);
  await one.stop();
  await change(ALICE);
  await until(() => here.backoff.get(one.name));
  await sleep(1_200);
  await change(ALICE);
  await here.kill();
  here = await SendingServer.start(db, devices, 1_000);
  await one.start();
  await until(() => heard(one).length >= 3);
  assert.deepEqual(heard(one), [1, 5, 6]);
});

test('servers that are new to a user are told of the devices', async () => {
  const room = await here.room(bob());
  await here.member(room, carol(), 'join');
  const bea = `@bea:${HERE}`;
  const other = await here.room(bob(), carol());
  here.newServers.length = 0;
  await here.member(other, bea, 'join');
  await until(() => here.newServers.length === 1);
  assert.deepEqual(here.newServers[0], [bea, [one.name, two.name]]);
  await here.member(room, bea, 'join');
  await sleep(50);
  assert.equal(here.newServers.length, 1);
});
