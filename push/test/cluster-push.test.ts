import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { compileRules } from '@trellis/protocol/push-rules/index.ts';
import { PushEvaluation } from '@trellis/rooms/push-evaluation.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import {
  type ClusterEngines,
  clusterEngines,
  type MemberEngine,
  SERVER,
} from '@trellis/rooms/test/cluster-engine.ts';
import { Unread } from '@trellis/rooms/unread.ts';
import type { ReceiptChange } from '@trellis/storage/streams.ts';
import { Devices } from '@trellis/users/devices.ts';
import { Pushers } from '@trellis/users/pushers.ts';
import { Receipts } from '@trellis/users/receipts.ts';
import { Badges } from '../badges.ts';
import { Candidates } from '../candidates.ts';
import { Gateway } from '../gateway.ts';
import { HttpDelivery } from '../http-delivery.ts';
import { PusherTable } from '../pusher-table.ts';
import { Pushes } from '../pushes.ts';
import { plainFetch, TestGateway } from './test-gateway.ts';

const ALICE = `@alice:${SERVER}`;
const USERS = Array.from({ length: 12 }, (_, i) => `@user${i}:${SERVER}`);

interface Process extends MemberEngine {
  readonly pushes: Pushes;
  readonly pushers: Pushers;
  /** From then on it reaches no gateway. */
  isCut: boolean;
}

let all: ClusterEngines;
let gateway: TestGateway;
let devices: Devices;
let roomId: string;
const processes = new Map<MemberEngine, Process>();

async function compose(engine: MemberEngine): Promise<void> {
  const { member, rooms, memberships } = engine;
  const { db } = rooms.parts;
  const stream = member.stream<ReceiptChange>('receipts');
  const receipts = new Receipts({ db, stream });
  const evaluation = new PushEvaluation(rooms, {
    compiled: () => compileRules(undefined),
    ignoredUsers: async () => new Set(),
  });
  const table = new PusherTable(db);
  const badges = new Badges({
    db,
    memberships,
    unread: new Unread({ rooms, evaluation, reads: receipts }),
    counted: 'messages',
  });
  const pushers = new Pushers({
    db,
    devices,
    eventPosition: () => rooms.parts.stream.current,
    allowInsecure: true,
  });
  const fetch: typeof plainFetch = async (...request) => {
    if (process.isCut) throw new Error('cut off');
    return plainFetch(...request);
  };
  const pushes = new Pushes({
    cluster: member,
    rooms,
    receipts: stream,
    table,
    badges,
    candidates: new Candidates({ rooms, evaluation, reads: receipts, hidesInvite: () => false }),
    http: new HttpDelivery({
      rooms,
      gateway: new Gateway(fetch, { allowInsecure: true }),
      badges,
      progressed: ({ row }) => void table.save(row),
    }),
    mail: undefined,
    log: { warn: () => {}, info: () => {} },
  });
  pushers.onChange((userId) => void pushes.changed(userId));
  await pushes.prepare();
  const process: Process = { ...engine, pushes, pushers, isCut: false };
  processes.set(engine, process);
}

const living = () => [...processes.values()].filter(({ member }) => !member.dead);
const anyone = () => living()[randomInt(living().length)]!;
const ownerOf = (userId: string) => living().find(({ member }) => member.owns('pusher', userId))!;
const engineOf = (process: Process) => [...processes].find(([, other]) => other === process)![0];

async function until(what: string, condition: () => unknown, limitMs = 15_000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!(await condition())) {
    assert.ok(performance.now() < end, `waited in vain for ${what}`);
    await sleep(20);
  }
}

async function join(): Promise<void> {
  await processes.get(await all.join())!.pushes.start();
}

async function leave(process: Process): Promise<void> {
  await all.leave(engineOf(process));
  await process.pushes.close();
}

async function kill(process: Process): Promise<void> {
  process.isCut = true;
  await all.kill(engineOf(process));
}

before(async () => {
  gateway = new TestGateway();
  await gateway.listen();
  all = await clusterEngines(3, async (engine) => {
    devices ??= new Devices({
      db: engine.rooms.parts.db,
      deviceLists: { changed: async () => {} },
      flushIntervalMs: 1e9,
    });
    await compose(engine);
  });
  for (const { pushes } of living()) await pushes.start();
  const { createRoom, membership } = anyone();
  roomId = await createRoom(ALICE);
  for (const userId of USERS) await membership.join(roomId, userId, []);
  for (const userId of USERS)
    await anyone().pushers.set(userId, undefined, {
      pushkey: userId,
      kind: 'http',
      app_id: 'org.example.app',
      app_display_name: 'App',
      device_display_name: 'Phone',
      lang: 'en',
      data: { url: gateway.url },
    });
});
after(async () => {
  for (const { pushes } of living()) await pushes.close();
  await devices.close();
  gateway.close();
  await all.close();
});

async function send(body: string): Promise<string | undefined> {
  const { rooms, member } = anyone();
  const content = { msgtype: 'm.text', body };
  try {
    return (await sendEvent(rooms, roomId, { type: 'm.room.message', sender: ALICE, content })).eventId;
  } catch (error) {
    assert.ok(member.dead, String(error));
    return undefined;
  }
}

/** Ids of events that a user was told of, in the order of their coming. */
function toldTo(userId: string): string[] {
  return gateway.got
    .filter((told) => told.devices[0].pushkey === userId && told.event_id !== undefined)
    .map(({ event_id }) => event_id as string);
}

test('each is told once and in order while processes come and go', async () => {
  const sent: string[] = [];
  for (let i = 0; i < 60; i++) {
    sent.push((await send(`${i}`))!);
    if (i === 20) await join();
    if (i === 40) await leave(ownerOf(USERS[0]!));
  }
  await until('all of it', () => USERS.every((userId) => toldTo(userId).length >= sent.length));
  await sleep(300);
  for (const userId of USERS) assert.deepEqual(toldTo(userId), sent);
});

test('each is told when a process dies in the middle', async () => {
  gateway.got.length = 0;
  const sent: Array<string | undefined> = [];
  for (let i = 0; i < 30; i++) {
    const sending = send(`${i}`);
    if (i === 10) await kill(ownerOf(USERS[1]!));
    sent.push(await Promise.race([sending, sleep(1_000, undefined)]));
  }
  const expected = sent.filter((eventId) => eventId !== undefined);
  assert.ok(expected.length >= 28);
  await until('all of it', () =>
    USERS.every((userId) => expected.every((eventId) => toldTo(userId).includes(eventId))),
  );
});

test('a pusher that is set or removed in any process counts at once', async () => {
  await join();
  gateway.got.length = 0;
  const [userId] = USERS;
  const other = living().find((process) => process !== ownerOf(userId!))!;
  await other.pushers.delete(userId!, 'org.example.app', userId!);
  await sleep(50);
  await send('silence');
  await until('the others', () => toldTo(USERS[1]!).length === 1);
  await other.pushers.set(userId!, undefined, {
    pushkey: userId!,
    kind: 'http',
    app_id: 'org.example.app',
    app_display_name: 'App',
    device_display_name: 'Phone',
    lang: 'en',
    data: { url: gateway.url },
  });
  const heard = await send('again');
  await until('the last', () => toldTo(userId!).length > 0);
  assert.deepEqual(toldTo(userId!), [heard]);
});
