import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { sendEvent } from '../send.ts';
import {
  assertOneLine,
  assertReplicas,
  type ClusterEngines,
  clusterEngines,
  type MemberEngine,
  SERVER,
} from './cluster-engine.ts';

const ALICE = `@alice:${SERVER}`;

function send({ rooms }: MemberEngine, roomId: string, body: string) {
  return sendEvent(rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body } });
}

describe('rooms of several processes', () => {
  let all: ClusterEngines;
  before(async () => {
    all = await clusterEngines(3);
  });
  after(() => all.close());

  test('are written to from each of them in one line, and read the same in all', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    const sent = await Promise.all(
      Array.from({ length: 50 }, async (_, i) => {
        await delay(Math.random() * 20);
        return (await send(all.engines[i % 3]!, roomId, `${i}`)).eventId;
      }),
    );
    const line = await assertOneLine(all.db, roomId);
    assert.deepEqual(line.filter((id) => sent.includes(id)).sort(), [...sent].sort());
    await assertReplicas(all, roomId);
  });

  test('are known to the writer when it is answered, wherever it asks', async () => {
    const roomId = await all.engines[1]!.createRoom(ALICE);
    for (const [i, writer] of all.engines.entries()) {
      const { eventId } = await send(writer, roomId, `${i}`);
      for (const { rooms } of all.engines)
        assert.equal((await rooms.require(roomId)).timeline.newest?.eventId, eventId);
    }
  });

  test('are made by all at once', async () => {
    const made = await Promise.all(
      Array.from({ length: 9 }, (_, i) => all.engines[i % 3]!.createRoom(ALICE)),
    );
    assert.equal(new Set(made).size, 9);
    for (const roomId of made) await assertReplicas(all, roomId);
  });

  test('give back positions that nobody needs', async () => {
    const [writer] = all.engines;
    const roomId = await writer!.createRoom(ALICE);
    const stranger = { type: 'm.room.message', sender: `@eve:${SERVER}`, content: {} };
    const refused = Array.from({ length: 10 }, () => sendEvent(writer!.rooms, roomId, stranger));
    const accepted = send(writer!, roomId, 'in between');
    for (const each of refused) await assert.rejects(each, { errcode: 'M_FORBIDDEN' });
    await accepted;
    await send(all.engines[1]!, roomId, 'after');
  });
});

describe('a process that becomes the home of a room while it waits for it', () => {
  let all: ClusterEngines;
  /** What the next process does before it has duties. */
  let first: ((engine: MemberEngine) => void) | undefined;
  before(async () => {
    all = await clusterEngines(2, (engine) => first?.(engine));
  });
  after(() => all.close());
  const homeOf = (roomId: string) => all.engines.find(({ member }) => member.owns('room', roomId))!;

  test('does not wait for itself', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    const { member, rooms } = homeOf(roomId);
    const borrow = { by: member.self, loan: 'own' };
    await rooms.exclusive(roomId, async () => {
      // As it is when it asked the home before, and is asked itself in its place.
      const granted = member.call('room', roomId, 'room.borrow', borrow);
      assert.deepEqual(await Promise.race([granted, delay(1_000, 'waits')]), { moved: true });
    });
  });

  test('does not wait for who waits for it', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    const old = homeOf(roomId);
    const gate = Promise.withResolvers<void>();
    const work = [old.rooms.exclusive(roomId, () => gate.promise)];
    work.push(send(old, roomId, 'of the old home').then(() => {}));
    first = (engine) => {
      work.push(send(engine, roomId, 'of the new home').then(() => {}));
      setTimeout(gate.resolve, 50);
    };
    const heir = await all.join(all.cluster.heir('room', roomId));
    assert.equal(homeOf(roomId), heir);
    assert.equal(await Promise.race([Promise.all(work).then(() => 'done'), delay(5_000, 'waits')]), 'done');
    await assertOneLine(all.db, roomId);
    await assertReplicas(all, roomId);
  });
});

describe('a process that', () => {
  let all: ClusterEngines;
  before(async () => {
    all = await clusterEngines(3);
  });
  after(() => all.close());

  test('comes or goes fails no request', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    const others = await Promise.all(Array.from({ length: 6 }, () => all.engines[0]!.createRoom(ALICE)));
    let going = true;
    let count = 0;
    const senders = all.engines.slice(0, 3).map(async (engine) => {
      while (going) {
        await Promise.all([send(engine, roomId, 'on'), send(engine, others[count++ % others.length]!, 'on')]);
      }
    });
    const fourth = await all.join();
    await delay(100);
    await all.join();
    await delay(100);
    await all.leave(fourth);
    await delay(100);
    going = false;
    await Promise.all(senders);
    assert.ok(count > 10);
    for (const id of [roomId, ...others]) {
      await assertOneLine(all.db, id);
      await assertReplicas(all, id);
    }
  });

  for (const who of ['the home', 'a borrower'])
    test(`is ${who} and dies loses nothing that was acknowledged`, async () => {
      const victim = all.engines.find(({ member }) => !member.dead)!;
      const survivors = all.engines.filter((engine) => engine !== victim && !engine.member.dead);
      let roomId: string;
      do roomId = await survivors[0]!.createRoom(ALICE);
      while (victim.member.owns('room', roomId) !== (who === 'the home'));
      const acknowledged: string[] = [];
      let going = true;
      const senders = [victim, ...survivors, ...survivors].map(async (engine) => {
        while (going && !engine.member.dead) {
          try {
            const sent = await Promise.race([send(engine, roomId, 'on'), engine.member.died.promise]);
            if (sent) acknowledged.push(sent.eventId);
          } catch (error) {
            if (!engine.member.dead) throw error;
            assert.ok(error instanceof MatrixError);
          }
        }
      });
      await delay(100);
      await all.kill(victim);
      const before = acknowledged.length;
      await delay(200);
      going = false;
      await Promise.all(senders);
      assert.ok(acknowledged.length > before, 'nothing was sent after the death');
      const line = new Set(await assertOneLine(all.db, roomId));
      for (const eventId of acknowledged) assert.ok(line.has(eventId));
      await assertReplicas(all, roomId);
    });
});
