import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { DelayedEventStore } from '@trellis/storage/delayed-events.ts';
import { DelayedEvents } from '../delayed-events.ts';
import { type EngineCluster, engineCluster, type ProcessEngine, until } from './cluster-processes.ts';

const ALICE = '@alice:here';

let processes: EngineCluster;
const delayed = new Map<ProcessEngine, DelayedEvents>();
before(async () => {
  processes = await engineCluster(3, (engine) => {
    const events = new DelayedEvents({
      rooms: engine.rooms,
      membership: engine.membership(),
      store: new DelayedEventStore(engine.db),
      mayAct: async () => true,
      maxDelay: 60_000,
      maxScheduled: 100,
      onFailure: () => {},
    });
    events.start();
    delayed.set(engine, events);
  });
});
after(async () => {
  await Promise.all([...delayed.values()].map((events) => events.close()));
  await processes?.close();
});

const message = (roomId: string, body: string) => ({ roomId, type: 'm.room.message', content: { body } });
const at = (i: number) => delayed.get(processes.engines[i]!)!;

async function bodies(): Promise<string[]> {
  const rows = await processes.engines[0]!.db.query<{ json: string }>(
    "SELECT json FROM events WHERE type = 'm.room.message' AND pos IS NOT NULL ORDER BY pos",
  );
  return rows.map(({ json }) => JSON.parse(json).content.body as string);
}

test('each event is sent once, whichever processes it was scheduled and asked about at', async () => {
  const roomIds: string[] = [];
  for (let i = 0; i < 6; i++) roomIds.push(await processes.engines[i % 3]!.createRoom(ALICE));
  const expected: string[] = [];
  for (const [i, roomId] of roomIds.entries())
    for (let from = 0; from < 3; from++) {
      expected.push(`${i} ${from}`);
      await at(from).schedule(ALICE, message(roomId, `${i} ${from}`), 1000, undefined);
    }
  const cancelled = await at(0).schedule(ALICE, message(roomIds[0]!, 'never'), 1000, undefined);
  const sentBy = await at(1).schedule(ALICE, message(roomIds[1]!, 'now'), 60_000, undefined);
  const restarted = await at(2).schedule(ALICE, message(roomIds[2]!, 'later'), 1000, undefined);
  await at(2).cancel(cancelled);
  await assert.rejects(at(1).cancel(cancelled), { errcode: 'M_NOT_FOUND' });
  const outcomes = await Promise.allSettled([0, 1, 2].map((i) => at(i).send(sentBy)));
  assert.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 1);
  await sleep(600);
  await at(0).restart(restarted);
  await until(async () => (await at(1).scheduled(ALICE)).length === 0, 'an end');
  const sent = await bodies();
  assert.equal(sent.at(-1), 'later');
  assert.deepEqual([...sent].sort(), [...expected, 'now', 'later'].sort());
});

test('a transaction that two processes get at once schedules one event', async () => {
  const roomId = await processes.engines[0]!.createRoom(ALICE);
  const ids = await Promise.all(
    [0, 1, 2].map((i) => at(i).schedule(ALICE, message(roomId, 'once'), 60_000, 'DEVICE 1')),
  );
  assert.equal(new Set(ids).size, 1);
  await at(0).cancel(ids[0]!);
});

test('when the process dies that has the timer another sends it, once', async () => {
  const roomId = await processes.engines[0]!.createRoom(ALICE);
  const owner = processes.homeOf(roomId);
  const other = processes.otherThanHome(roomId);
  await delayed.get(other)!.schedule(ALICE, message(roomId, 'despite all'), 700, undefined);
  await processes.cluster.kill(owner.member);
  await until(async () => (await bodies()).includes('despite all'), 'the event');
  await sleep(200);
  assert.equal((await bodies()).filter((body) => body === 'despite all').length, 1);
});
