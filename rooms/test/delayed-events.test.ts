import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { type DelayedEvent, DelayedEventStore } from '@trellis/storage/delayed-events.ts';
import { DelayedEvents, type DelayedEventsParts } from '../delayed-events.ts';
import { sendEvent } from '../send.ts';
import { type TestEngine, testEngine } from './engine.ts';

const ALICE = '@alice:here';
const BOB = '@bob:here';
const MESSAGE = 'm.room.message';

let engine: TestEngine;
let roomId: string;
const running = new Set<DelayedEvents>();
before(async () => {
  engine = await testEngine('here');
  roomId = await engine.createRoom(ALICE, { preset: 'public_chat', room_version: '11' });
});
after(async () => {
  await Promise.all([...running].map((delayed) => delayed.close()));
  await engine?.close();
});

function delayedEvents(parts: Partial<DelayedEventsParts> = {}): DelayedEvents {
  const delayed = new DelayedEvents({
    rooms: engine.rooms,
    membership: engine.membership(),
    store: new DelayedEventStore(engine.db),
    mayAct: async () => true,
    maxDelay: 60_000,
    maxScheduled: 20,
    onFailure: () => {},
    ...parts,
  });
  running.add(delayed);
  return delayed;
}

const message = (body: string) => ({ roomId, type: MESSAGE, content: { body } });
const sent = () =>
  engine.changes.filter(({ event }) => event.type === MESSAGE).map(({ event }) => event.content.body);
const refused = (promise: Promise<unknown>, status: number, errcode: string) =>
  assert.rejects(promise, (error) => {
    assert.ok(error instanceof MatrixError, String(error));
    assert.deepEqual([error.status, error.errcode], [status, errcode], error.message);
    return true;
  });

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await condition()); tries++) {
    if (tries > 1000) assert.fail('it did not come to that');
    await sleep(10);
  }
}

test('events are sent when they are due, in that order, each once', async () => {
  const delayed = delayedEvents();
  delayed.start();
  await delayed.schedule(ALICE, message('second'), 1000, undefined);
  await delayed.schedule(ALICE, message('first'), 500, undefined);
  assert.deepEqual(sent(), []);
  assert.equal((await delayed.scheduled(ALICE)).length, 2);
  assert.deepEqual(await delayed.scheduled(BOB), []);
  await until(async () => (await delayed.scheduled(ALICE)).length === 0);
  assert.deepEqual(sent(), ['first', 'second']);
});

test('what became due while the server was down is sent when it comes back', async () => {
  const before = delayedEvents();
  await before.schedule(ALICE, message('late'), 1, undefined);
  await before.close();
  await sleep(20);
  assert.ok(!sent().includes('late'));
  delayedEvents().start();
  await until(() => sent().includes('late'));
});

test('events are cancelled, restarted and sent by their id, and then are gone', async () => {
  const delayed = delayedEvents();
  delayed.start();
  const cancelled = await delayed.schedule(ALICE, message('never'), 1000, undefined);
  const restarted = await delayed.schedule(ALICE, message('later'), 1000, undefined);
  const now = await delayed.schedule(ALICE, message('now'), 60_000, undefined);
  await delayed.cancel(cancelled);
  await delayed.send(now);
  assert.equal(sent().at(-1), 'now');
  await sleep(600);
  await delayed.restart(restarted);
  await sleep(600);
  assert.equal(sent().at(-1), 'now');
  await until(() => sent().at(-1) === 'later');
  for (const id of [cancelled, restarted, now, 'unknown'])
    for (const action of ['cancel', 'restart', 'send'] as const)
      await refused(delayed[action](id), 404, 'M_NOT_FOUND');
  assert.ok(!sent().includes('never'));
});

test('of a cancellation and a sending at once only one happens', async () => {
  const delayed = delayedEvents();
  for (let i = 0; i < 5; i++) {
    const id = await delayed.schedule(ALICE, message(`either ${i}`), 60_000, undefined);
    const [send, cancel] = await Promise.allSettled([delayed.send(id), delayed.cancel(id)]);
    assert.notEqual(send.status, cancel.status);
    assert.equal(sent().includes(`either ${i}`), send.status === 'fulfilled');
  }
});

test('a transaction schedules one event, however often it comes', async () => {
  const delayed = delayedEvents();
  const id = await delayed.schedule(ALICE, message('once'), 60_000, 'DEVICE 1');
  assert.equal(await delayedEvents().schedule(ALICE, message('once'), 60_000, 'DEVICE 1'), id);
  assert.notEqual(await delayed.schedule(ALICE, message('twice'), 60_000, 'DEVICE 2'), id);
  await delayed.erase(ALICE);
  assert.deepEqual(await delayed.scheduled(ALICE), []);
});

test('state is set, also where it is set so already', async () => {
  const delayed = delayedEvents();
  const topic = { roomId, type: 'm.room.topic', stateKey: '', content: { topic: 'soon' } };
  for (let i = 0; i < 2; i++) await delayed.send(await delayed.schedule(ALICE, topic, 1000, undefined));
  assert.equal(engine.changes.filter(({ event }) => event.content.topic === 'soon').length, 1);
  const leave = { roomId, type: 'm.room.member', stateKey: BOB, content: { membership: 'leave' } };
  await engine.membership().join(roomId, BOB, []);
  await delayed.send(await delayed.schedule(BOB, leave, 1000, undefined));
  assert.equal((await engine.rooms.require(roomId)).membership(BOB), 'leave');
  assert.deepEqual(await delayed.scheduled(BOB), []);
});

test('whether an event is allowed is decided when it is sent: by hand it stays, by time it goes', async () => {
  const failures: Array<DelayedEvent | undefined> = [];
  const delayed = delayedEvents({ onFailure: (_error, event) => failures.push(event) });
  await engine.membership().join(roomId, BOB, []);
  const topic: JsonObject = { topic: 'by Bob' };
  const draft = { roomId, type: 'm.room.topic', stateKey: '', content: topic };
  const id = await delayed.schedule(BOB, draft, 50, undefined);
  await refused(delayed.send(id), 403, 'M_FORBIDDEN');
  assert.equal((await delayed.scheduled(BOB)).length, 1);
  delayed.start();
  await until(async () => (await delayed.scheduled(BOB)).length === 0);
  assert.deepEqual(
    failures.map((event) => event?.delayId),
    [id],
  );
  const suspended = delayedEvents({ mayAct: async () => false });
  const other = await suspended.schedule(BOB, message('suspended'), 1000, undefined);
  await refused(suspended.send(other), 403, 'M_FORBIDDEN');
});

test('redactions take away only what their sender may redact', async () => {
  const delayed = delayedEvents();
  const { eventId: redacts } = await sendEvent(engine.rooms, roomId, {
    type: MESSAGE,
    sender: ALICE,
    content: { body: 'for a while' },
  });
  const redaction = { roomId, type: 'm.room.redaction', content: { redacts } };
  await refused(delayed.send(await delayed.schedule(BOB, redaction, 1000, undefined)), 403, 'M_FORBIDDEN');
  await delayed.send(await delayed.schedule(ALICE, redaction, 1000, undefined));
  assert.deepEqual((await engine.rooms.parts.events.get(redacts))?.content, {});
});

test('delays and numbers have their limits', async () => {
  const delayed = delayedEvents({ maxScheduled: 2 });
  await delayed.erase(ALICE);
  await refused(delayed.schedule(ALICE, message('x'), 60_001, undefined), 400, 'M_UNKNOWN');
  await refused(delayed.schedule(ALICE, message('x'), -1, undefined), 400, 'M_INVALID_PARAM');
  await refused(delayed.schedule('@eve:here', message('x'), 1, undefined), 403, 'M_FORBIDDEN');
  await refused(delayed.schedule(ALICE, message('x'.repeat(66_000)), 1, undefined), 413, 'M_TOO_LARGE');
  for (let i = 0; i < 2; i++) await delayed.schedule(ALICE, message('x'), 60_000, undefined);
  await refused(delayed.schedule(ALICE, message('x'), 60_000, undefined), 429, 'M_LIMIT_EXCEEDED');
  await refused(
    delayedEvents({ maxDelay: 0 }).schedule(ALICE, message('x'), 1, undefined),
    403,
    'M_FORBIDDEN',
  );
});
