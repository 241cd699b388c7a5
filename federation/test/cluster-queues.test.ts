import assert from 'node:assert/strict';
import { randomBytes, randomInt } from 'node:crypto';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import {
  type ClusterEngines,
  clusterEngines,
  type MemberEngine,
  SERVER,
} from '@trellis/rooms/test/cluster-engine.ts';
import type { DeviceListChange, Stream, Streams } from '@trellis/storage/streams.ts';
import { Discovery } from '../discovery.ts';
import { Backoff } from '../outbound/backoff.ts';
import { FederationClient } from '../outbound/client.ts';
import { DeliveryStore } from '../outbound/delivery-store.ts';
import { OutgoingEdus } from '../outbound/edus.ts';
import { guardedConnector } from '../outbound/guarded-dispatcher.ts';
import { FederationQueues } from '../outbound/queues.ts';
import { DestinationServer } from './destination-server.ts';
import { testDispatcher } from './peers.ts';
import { setRemoteMember } from './sending-server.ts';

const ALICE = `@alice:${SERVER}`;
const STREAMS = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'] as const;
const SERVERS = 5;
const EVENTS = 200;
const key = SigningKey.generate('test');

interface Process extends MemberEngine {
  readonly queues: FederationQueues;
  readonly client: FederationClient;
  readonly backoff: Backoff;
  readonly store: DeliveryStore;
  readonly streams: Streams;
}

let all: ClusterEngines;
const processes = new Map<MemberEngine, Process>();
const servers: DestinationServer[] = [];
const warnings: unknown[] = [];

async function compose(engine: MemberEngine): Promise<void> {
  const { member, rooms, memberships } = engine;
  const { db } = rooms.parts;
  const streams = Object.fromEntries(
    STREAMS.map((name) => [name, member.stream(name)]),
  ) as unknown as Streams;
  const backoff = new Backoff(db, Date.now, member);
  await backoff.load();
  const client = new FederationClient({
    serverName: SERVER,
    signingKey: key,
    discovery: new Discovery({ fetch: () => Promise.reject(new Error('no well-known')) }),
    connector: guardedConnector(testDispatcher()),
    backoff,
    userAgent: 'test',
  });
  const store = new DeliveryStore(db, SERVER);
  const log = { warn: (details: object, words: string) => void warnings.push([member.self, words, details]) };
  const queues = new FederationQueues({
    store,
    client,
    rooms,
    memberships,
    deviceLists: streams.deviceLists as Stream<DeviceListChange>,
    devices: { edus: async () => [], changes: async () => [] },
    cluster: member,
    isAllowed: () => true,
    log,
  });
  new OutgoingEdus({
    queues,
    store,
    cluster: member,
    rooms,
    memberships,
    streams,
    newServers: async () => {},
    log,
  });
  await queues.prepare();
  processes.set(engine, { ...engine, queues, client, backoff, store, streams });
}

const living = () => [...processes.values()].filter(({ member }) => !member.dead);
const anyone = () => living()[randomInt(living().length)]!;
const ownerOf = (name: string) => living().find(({ member }) => member.owns('destination', name))!;
const engineOf = (process: Process) => [...processes].find(([, other]) => other === process)![0];

async function until(condition: () => unknown, limitMs = 20_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await condition())) {
    assert.ok(performance.now() < end, `not in time: ${condition} ${JSON.stringify(warnings)}`);
    await sleep(20);
  }
}

async function join(): Promise<void> {
  await processes.get(await all.join())!.queues.start();
}

/** In the middle of what it does. */
async function kill(process: Process): Promise<void> {
  const closing = process.client.close();
  await all.kill(engineOf(process));
  await closing;
}

async function leave(process: Process): Promise<void> {
  await all.leave(engineOf(process));
  await process.queues.close();
  await process.client.close();
}

before(async () => {
  for (let i = 0; i < SERVERS; i++) {
    const server = new DestinationServer();
    await server.start();
    servers.push(server);
  }
  all = await clusterEngines(3, compose);
  for (const { queues } of processes.values()) await queues.start();
});
after(async () => {
  for (const { queues, client } of living()) {
    await queues.close();
    await client.close();
  }
  await Promise.all(servers.map((server) => server.stop()));
  await all.close();
});

async function roomOfAll(): Promise<string> {
  const { createRoom, rooms } = anyone();
  const roomId = await createRoom(ALICE);
  for (const { name } of servers)
    await setRemoteMember(rooms, roomId, { userId: `@bob:${name}`, membership: 'join' });
  return roomId;
}

/** Bodies of messages as they stand in a room. */
async function sentIn(roomId: string): Promise<unknown[]> {
  const rows = await all.db.query<{ json: string }>(
    `SELECT e.json FROM events e JOIN rooms r ON r.nid = e.room
     WHERE r.room_id = $1 AND e.type = 'm.room.message' AND e.status = 0 ORDER BY e.pos`,
    [roomId],
  );
  return rows.map(({ json }) => (JSON.parse(json) as { content: { body: unknown } }).content.body);
}

/** Without repetitions, in the order of their coming. */
function receivedIn(server: DestinationServer, roomId: string): unknown[] {
  const ofRoom = server.pdus.filter(({ room_id, type }) => room_id === roomId && type === 'm.room.message');
  return [...new Set(ofRoom.map(({ content }) => (content as { body: unknown }).body))];
}

test('all arrives, in the order of each room, while processes come, go and die', async () => {
  const rooms = [await roomOfAll(), await roomOfAll()];
  const messages: string[] = [];
  for (let i = 0; i < EVENTS; i++) {
    const { rooms: sender, store, queues, member } = anyone();
    const sending = sendEvent(sender, rooms[i % 2]!, {
      type: 'm.room.message',
      sender: ALICE,
      content: { body: i },
    }).catch((error: unknown) => assert.ok(member.dead, String(error)));
    if (i % 2 === 0) {
      const messageId = randomBytes(8).toString('hex');
      messages.push(messageId);
      await all.db.transaction((tx) =>
        store.addEdus(
          tx,
          servers.map(({ name: destination }) => ({
            destination,
            eduType: 'm.direct_to_device',
            content: { message_id: messageId },
          })),
        ),
      );
      queues.wake(servers.map(({ name }) => name));
    }
    if (i === 60) await kill(ownerOf(servers[0]!.name));
    if (i === 110) await join();
    if (i === 160) await leave(ownerOf(servers[1]!.name));
    if (i % 10 !== 0) await Promise.race([sending, sleep(1_000)]);
  }
  const expected = await Promise.all(rooms.map(sentIn));
  await until(() =>
    servers.every((server) =>
      rooms.every((roomId, index) => receivedIn(server, roomId).length >= expected[index]!.length),
    ),
  );
  assert.ok(expected.flat().length > EVENTS - 10);
  for (const server of servers)
    for (const [index, roomId] of rooms.entries())
      assert.deepEqual(receivedIn(server, roomId), expected[index]);
  const idsAt = (server: DestinationServer) =>
    server.edus('m.direct_to_device').map(({ message_id }) => message_id as string);
  await until(() => servers.every((server) => new Set(idsAt(server)).size === messages.length));
  for (const server of servers) {
    const ids = idsAt(server);
    // What is repeated, as its answer was lost with a process, has the id that it had.
    assert.deepEqual(new Set(ids), new Set(messages));
    assert.ok(ids.length - messages.length <= 60, `${ids.length} for ${messages.length}`);
  }
  await until(async () => (await all.db.query('SELECT 1 FROM federation_edus')).length === 0);
});

test('in good order nothing is sent twice', async () => {
  const roomId = await roomOfAll();
  for (let i = 0; i < 60; i++) {
    await sendEvent(anyone().rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body: i } });
    if (i === 20) await join();
    if (i === 40) await leave(ownerOf(servers[2]!.name));
  }
  await until(() => servers.every((server) => receivedIn(server, roomId).length === 60));
  await sleep(300);
  for (const server of servers) {
    const bodies = server.pdus
      .filter(({ room_id, type }) => room_id === roomId && type === 'm.room.message')
      .map(({ content }) => (content as { body: number }).body);
    assert.deepEqual(
      bodies,
      Array.from({ length: 60 }, (_, i) => i),
    );
  }
});

test('a server that was down gets all from whoever has it by then, once it speaks to any process', async () => {
  const roomId = await roomOfAll();
  const [server] = servers;
  await server!.stop();
  const say = (body: number) =>
    sendEvent(anyone().rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body } });
  await say(0);
  await until(() => living().every(({ backoff }) => backoff.get(server!.name)));
  await leave(ownerOf(server!.name));
  await say(1);
  await join();
  await join();
  await say(2);
  await kill(ownerOf(server!.name));
  await say(3);
  await server!.start();
  await living()
    .find((process) => process !== ownerOf(server!.name))!
    .backoff.reachable(server!.name);
  await until(() => receivedIn(server!, roomId).length === 4, 5_000);
  assert.deepEqual(receivedIn(server!, roomId), [0, 1, 2, 3]);
  await until(async () => (await all.db.query('SELECT 1 FROM federation_backlog')).length === 0);
});

test('what a server lacks is known to others, whoever gives up other servers and dies then', async () => {
  const roomId = await roomOfAll();
  await join();
  const server = servers[1]!;
  await server.stop();
  const owner = ownerOf(server.name);
  await sendEvent(owner.rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body: 0 } });
  await until(() => owner.backoff.get(server.name));
  // Until it waits for the server, and before the next time that it writes down what is outstanding.
  await sleep(100);
  await leave(living().find((process) => process !== owner)!);
  await kill(owner);
  await server.start();
  await anyone().backoff.reachable(server.name);
  await until(() => receivedIn(server, roomId).length === 1, 5_000);
});

test('who types is told to every server by whoever delivers to it', async () => {
  const roomId = await roomOfAll();
  const { streams } = anyone();
  const change = { roomId, userIds: [ALICE], changed: { userId: ALICE, typing: true } };
  await streams.typing.write([change], async () => {});
  const typing = (server: DestinationServer) =>
    server.edus('m.typing').filter(({ room_id }) => room_id === roomId);
  await until(() => servers.every((server) => typing(server).length > 0), 5_000);
  await sleep(50);
  for (const server of servers) assert.equal(typing(server).length, 1);
});
