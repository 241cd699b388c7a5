import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { RoomEvent } from '@trellis/protocol/event.ts';
import { StagedPdus } from '@trellis/storage/staged-pdus.ts';
import { IncomingPdus } from '../incoming-pdus.ts';
import { type EngineCluster, engineCluster, type ProcessEngine, until } from './cluster-processes.ts';
import { testVerifier } from './engine.ts';
import { RemoteGraph, receiverOf } from './remote-graph.ts';

const BOB = '@bob:near';
const PATIENCE = 20_000;

let processes: EngineCluster;
let graph: RemoteGraph;
const incoming = new Map<ProcessEngine, IncomingPdus>();
/** What a process waits for that asks for missing events. */
let answers: Promise<void> = Promise.resolve();
let asking: string[] = [];

before(async () => {
  graph = new RemoteGraph();
  graph.member(BOB, 'join');
  processes = await engineCluster(2, compose);
  await graph.joinFrom(processes.engines[0]!);
});
after(async () => {
  for (const pdus of incoming.values()) pdus.close();
  await processes?.close();
});

function compose(engine: ProcessEngine): void {
  const remote = new Proxy(graph, {
    get(target, name) {
      if (name === 'missingEvents')
        return async (...query: Parameters<RemoteGraph['missingEvents']>) => {
          asking.push(engine.member.self);
          await answers;
          // Nothing is heard of the dead.
          if (engine.member.dead) await new Promise(() => {});
          return target.missingEvents(...query);
        };
      const value = Reflect.get(target, name, target) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const { rooms, db } = engine;
  const parts = { rooms, remote, verifier: testVerifier, receiver: receiverOf(engine, remote) };
  const log = { warn: () => {} };
  incoming.set(
    engine,
    new IncomingPdus({
      ...{ ...parts, staged: new StagedPdus(db), joined: async () => {}, log, patience: PATIENCE },
    }),
  );
}

const home = () => processes.homeOf(graph.roomId);
const other = () => processes.otherThanHome(graph.roomId);
const through = (engine: ProcessEngine, events: readonly RoomEvent[]) =>
  incoming.get(engine)!.take(
    'near',
    events.map(({ pdu }) => pdu),
  );

async function stored(event: RoomEvent): Promise<string[]> {
  const rows = await home().db.query<{ status: number }>(
    'SELECT status FROM events WHERE event_id = $1 AND pos IS NOT NULL',
    [event.eventId],
  );
  return rows.map(({ status }) => (status === 0 ? 'accepted' : 'refused'));
}
const stagedCount = async () =>
  (await home().db.query<{ n: number }>('SELECT count(*) AS n FROM staged_pdus'))[0]!.n;

/** Has a process come that gets the room. */
async function moveRoom(): Promise<void> {
  const before = home();
  await processes.join(compose, processes.cluster.heir('room', graph.roomId));
  assert.notEqual(home(), before);
}

test('a transaction may come to any process, and to two at once', async () => {
  const good = graph.message(BOB, 'good');
  const notAllowed = graph.topic(BOB, 'no power', { prev: [good] });
  const forged = { ...graph.message('@founder:far', 'forged'), signatures: good.pdu.signatures };
  const pdus = [good.pdu, notAllowed.pdu, { ...forged.pdu, signatures: good.pdu.signatures! }];
  const results = await Promise.all(
    [home(), other(), other()].map((engine) => incoming.get(engine)!.take('near', pdus)),
  );
  for (const result of results) {
    assert.deepEqual(result[good.eventId], {});
    assert.deepEqual(result[notAllowed.eventId], {});
    assert.match(result[forged.eventId]!.error!, /signed/);
  }
  assert.deepEqual(await stored(good), ['accepted']);
  assert.deepEqual(await stored(notAllowed), ['refused']);
  assert.deepEqual(await stored(forged), []);
  for (const engine of processes.engines)
    assert.equal((await engine.rooms.require(graph.roomId)).timeline.newest?.eventId, good.eventId);
});

test('when the room becomes another process’s meanwhile, what is not done is put aside and taken up there', async () => {
  const missing = graph.message(BOB, 'missing');
  const waits = graph.message(BOB, 'waits for it', { prev: [missing] });
  const behind = graph.message(BOB, 'is behind it', { prev: [waits] });
  const { promise, resolve } = Promise.withResolvers<void>();
  answers = promise;
  asking = [];
  const first = home();
  const taken = through(other(), [waits, behind]);
  await until(() => asking.length > 0, 'the question');
  assert.deepEqual(asking, [first.member.self]);
  await moveRoom();
  assert.deepEqual(await taken, { [waits.eventId]: {}, [behind.eventId]: {} });
  assert.equal(await stagedCount(), 2);
  resolve();
  await until(async () => (await stagedCount()) === 0, 'an end of the work');
  assert.ok(asking.includes(home().member.self));
  for (const event of [missing, waits, behind]) assert.deepEqual(await stored(event), ['accepted']);
});

test('when the process whose the room is dies, the next one is asked', async () => {
  const missing = graph.message(BOB, 'missing too');
  const waits = graph.message(BOB, 'waits', { prev: [missing] });
  const { promise, resolve } = Promise.withResolvers<void>();
  answers = promise;
  asking = [];
  const first = home();
  const taken = through(other(), [waits]);
  await until(() => asking.length > 0, 'the question');
  await processes.cluster.kill(first.member);
  incoming.get(first)!.close();
  await until(() => asking.length > 1, 'another question');
  resolve();
  assert.deepEqual(await taken, { [waits.eventId]: {} });
  for (const event of [missing, waits]) assert.deepEqual(await stored(event), ['accepted']);
});
