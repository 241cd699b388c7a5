import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Aliases } from '@trellis/rooms/aliases.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import {
  type ClusterEngines,
  clusterEngines,
  type MemberEngine,
  SERVER,
} from '@trellis/rooms/test/cluster-engine.ts';
import type { Streams } from '@trellis/storage/streams.ts';
import { AppserviceClient } from '../client.ts';
import { Deliveries } from '../deliveries.ts';
import { Queries } from '../queries.ts';
import { Registrar } from '../registrar.ts';
import { Appservices } from '../registry.ts';
import { RoomAliases } from '../room-aliases.ts';
import { Bridge, until } from './bridge.ts';

const ALICE = `@alice:${SERVER}`;
const STREAMS = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'] as const;
const SERVICES = 5;
const idOf = (i: number) => `service${i}`;

interface Process extends MemberEngine {
  readonly services: Appservices;
  readonly deliveries: Deliveries;
  readonly registrar: Registrar;
  readonly queries: Queries;
  readonly client: AppserviceClient;
  readonly streams: Streams;
}

let all: ClusterEngines;
let roomId: string;
const bridges: Bridge[] = [];
const processes = new Map<MemberEngine, Process>();
const log = { warn: () => {}, info: () => {} };

async function compose(engine: MemberEngine): Promise<void> {
  const { member, rooms, memberships } = engine;
  const registrations = bridges.map((bridge, i) =>
    bridge.registration({
      id: idOf(i),
      asToken: `as${i}`,
      senderLocalpart: `bot${i}`,
      users: [{ regex: `@s${i}_.*`, exclusive: true }],
      receiveEphemeral: true,
    }),
  );
  const services = new Appservices(registrations, SERVER);
  const client = new AppserviceClient();
  const streams = Object.fromEntries(
    STREAMS.map((name) => [name, member.stream(name)]),
  ) as unknown as Streams;
  const deliveries = new Deliveries({
    cluster: member,
    services,
    client,
    rooms,
    memberships,
    aliases: new RoomAliases(new Aliases(rooms.parts.db, rooms, async () => undefined)),
    streams,
    keyCounts: async () => ({ oneTimeKeys: {}, unusedFallbackTypes: [] }),
    received: async () => {},
    log,
  });
  const registrar = new Registrar({
    cluster: member,
    db: rooms.parts.db,
    services,
    deliveries,
    makeSender: async () => {},
    log,
  });
  const queries = new Queries(services, client, member);
  processes.set(engine, { ...engine, services, deliveries, registrar, queries, client, streams });
}

async function start({ registrar, deliveries }: Process): Promise<void> {
  await registrar.load();
  await deliveries.prepare();
  deliveries.start();
}

const living = () => [...processes.values()].filter(({ member }) => !member.dead);
const anyone = () => living()[randomInt(living().length)]!;
const ownerOf = (id: string) => living().find(({ member }) => member.owns('appservice', id))!;
const engineOf = (process: Process) => [...processes].find(([, other]) => other === process)![0];

async function join(): Promise<void> {
  await start(processes.get(await all.join())!);
}

async function leave(process: Process): Promise<void> {
  await all.leave(engineOf(process));
  await process.deliveries.close();
  await process.client.close();
}

before(async () => {
  for (let i = 0; i < SERVICES; i++) {
    const bridge = new Bridge();
    await bridge.start();
    bridges.push(bridge);
  }
  all = await clusterEngines(3, compose);
  for (const process of living()) await start(process);
  const { createRoom, membership } = anyone();
  roomId = await createRoom(ALICE);
  for (let i = 0; i < SERVICES; i++) await membership.join(roomId, `@s${i}_puppet:${SERVER}`, []);
});
after(async () => {
  for (const { deliveries, client } of living()) {
    await deliveries.close();
    await client.close();
  }
  for (const bridge of bridges) bridge.stop();
  await all.close();
});

async function say(body: string): Promise<void> {
  const { rooms, member } = anyone();
  await sendEvent(rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body } }).catch(
    (error: unknown) => assert.ok(member.dead, String(error)),
  );
}

async function sent(): Promise<string[]> {
  const rows = await all.db.query<{ json: string }>(
    `SELECT json FROM events WHERE type = 'm.room.message' AND status = 0 ORDER BY pos`,
  );
  return rows.map(({ json }) => (JSON.parse(json) as { content: { body: string } }).content.body);
}

/** By id: a transaction that comes again is the same. */
function transactionsOf(bridge: Bridge): Map<string, unknown> {
  const found = new Map<string, unknown>();
  for (const { path, body } of bridge.transactions) {
    const ids = body.events.map(({ event_id }: { event_id: string }) => event_id);
    if (found.has(path)) assert.deepEqual(found.get(path), ids);
    else found.set(path, ids);
  }
  return found;
}

/** What the events of all transactions say, each transaction counted once. */
function bodiesOf(bridge: Bridge): string[] {
  const seen = new Set<string>();
  return bridge.transactions.flatMap(({ path, body }) => {
    if (seen.has(path)) return [];
    seen.add(path);
    return body.events
      .filter(({ type }: { type: string }) => type === 'm.room.message')
      .map(({ content }: { content: { body: string } }) => content.body);
  });
}

test('transactions come in order and without loss while processes come, go and die', async () => {
  for (let i = 0; i < 120; i++) {
    const saying = say(`${i}`);
    // A dead process is as one that sleeps: it has its connections still.
    if (i === 30) await all.kill(engineOf(ownerOf(idOf(0))));
    if (i === 60) await join();
    if (i === 90) await leave(ownerOf(idOf(1)));
    if (i % 5 !== 0) await Promise.race([saying, sleep(1_000)]);
  }
  await sleep(100);
  const expected = await sent();
  assert.ok(expected.length >= 118);
  await until(
    'all of it',
    () => bridges.every((bridge) => bodiesOf(bridge).length >= expected.length),
    15_000,
  );
  for (const bridge of bridges) {
    assert.deepEqual(bodiesOf(bridge), expected);
    transactionsOf(bridge);
  }
});

test('a service that shows itself in any process is tried again by the one that delivers', async () => {
  const [bridge] = bridges;
  bridge!.stop();
  await say('nobody there');
  await sleep(3_500);
  await bridge!.start();
  const other = living().find((process) => process !== ownerOf(idOf(0)))!;
  const shown = Date.now();
  other.deliveries.seenAlive(other.services.get(idOf(0))!, true);
  await until('the event', () => bodiesOf(bridge!).includes('nobody there'));
  assert.ok(Date.now() - shown < 1_000);
});

test('typing is told by whoever delivers', async () => {
  const { streams } = anyone();
  const change = { roomId, userIds: [ALICE], changed: { userId: ALICE, typing: true } };
  await streams.typing.write([change], async () => {});
  const typing = (bridge: Bridge) =>
    bridge.transactions.flatMap(({ body }) =>
      (body.ephemeral ?? []).filter(({ type }: { type: string }) => type === 'm.typing'),
    );
  await until('who types', () => bridges.every((bridge) => typing(bridge).length === 1));
});

test('a registration counts in every process once it is answered, and is gone with its deletion', async () => {
  const bridge = new Bridge();
  await bridge.start();
  const whole = await living()[0]!.registrar.put('late', {
    url: bridge.url,
    sender_localpart: 'latebot',
    rate_limited: false,
    namespaces: { users: [{ regex: '@late_.*', exclusive: true }], rooms: [], aliases: [] },
  });
  for (const { services } of living()) assert.equal(services.byToken(String(whole.as_token))?.id, 'late');
  await anyone().membership.join(roomId, `@late_a:${SERVER}`, []);
  await say('to the late one');
  await until('it', () => bodiesOf(bridge).includes('to the late one'));
  await join();
  for (const { services } of living()) assert.equal(services.byToken(String(whole.as_token))?.id, 'late');
  await living().at(-1)!.registrar.delete('late');
  for (const { services } of living()) assert.equal(services.get('late'), undefined);
  await say('to nobody');
  await until('the others', () => bridges.every((other) => bodiesOf(other).includes('to nobody')));
  assert.ok(!bodiesOf(bridge).includes('to nobody'));
  assert.deepEqual(await all.db.query(`SELECT 1 FROM appservice_deliveries WHERE id = 'late'`), []);
  bridge.stop();
});

test('a question is put once, whichever processes ask', async () => {
  const [bridge] = bridges;
  bridge!.answer = async ({ method }) => {
    if (method === 'GET') await sleep(50);
    return { status: method === 'GET' ? 404 : 200 };
  };
  const answers = await Promise.all(living().map(({ queries }) => queries.madeUser(`@s0_who:${SERVER}`)));
  assert.ok(answers.every((made) => !made));
  assert.equal(bridge!.requests.filter(({ path }) => path.startsWith('/_matrix/app/v1/users/')).length, 1);
});
