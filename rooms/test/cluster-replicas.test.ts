import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { append } from '../append.ts';
import { storeOutOfBand } from '../out-of-band.ts';
import { buildDraft, type Draft, sendEvent } from '../send.ts';
import {
  assertReplicas,
  type ClusterEngines,
  clusterEngines,
  type MemberEngine,
  SERVER,
} from './cluster-engine.ts';
import { ForeignRoom } from './engine.ts';

const seed = Number(process.env.TRELLIS_SEED ?? randomInt(2 ** 31));
const STEPS = Number(process.env.TRELLIS_STEPS ?? 150);
const ALICE = `@alice:${SERVER}`;
const USERS = [ALICE, `@bob:${SERVER}`, `@carl:${SERVER}`];

/** Numbers that are the same for the same seed. */
function randomFrom(start: number): (below: number) => number {
  let state = start;
  return (below) => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    const mixed = Math.imul(state ^ (state >>> 13), 0x297a2d39);
    return ((mixed ^ (mixed >>> 16)) >>> 0) % below;
  };
}

describe(`replicas of rooms (seed ${seed})`, () => {
  let all: ClusterEngines;
  before(async () => {
    all = await clusterEngines(3);
  });
  after(() => all.close());

  test('are what the database says after whatever was done by whichever process', async () => {
    const random = randomFrom(seed);
    const [first] = all.engines;
    const rooms = [await first!.createRoom(ALICE), await first!.createRoom(ALICE)];
    const sent: string[] = [];
    for (let round = 0; round < 5; round++) {
      await Promise.all(
        Array.from({ length: STEPS / 5 }, async () => {
          const engine = all.engines[random(3)]!;
          const roomId = rooms[random(2)]!;
          const action = random(12);
          const user = USERS[random(3)]!;
          const target = sent[random(sent.length + 1)];
          await delay(random(60));
          try {
            const eventId = await act(engine, roomId, action, user, target);
            if (eventId) sent.push(eventId);
          } catch (error) {
            // Who is not in the room may not send.
            if (!(error instanceof MatrixError) || error.status >= 500) throw error;
          }
        }),
      );
      for (const roomId of rooms) await assertReplicas(all, roomId);
    }
    const [one, ...others] = all.engines.map(({ seen }) => seen);
    assert.deepEqual(
      one,
      [...one!].sort((a, b) => a - b),
    );
    assert.equal(new Set(one).size, one!.length);
    for (const other of others) assert.deepEqual(other, one);
    assert.ok(sent.length > STEPS / 8);
  });

  test('show redactions and relations in all processes', async () => {
    const [first, second, third] = all.engines;
    const roomId = await first!.createRoom(ALICE);
    const send = (engine: MemberEngine, draft: Omit<Draft, 'sender'>) =>
      sendEvent(engine.rooms, roomId, { ...draft, sender: ALICE });
    const { eventId } = await send(first!, { type: 'm.room.message', content: { body: 'x' } });
    for (const { rooms } of all.engines) {
      await rooms.require(roomId);
      (await rooms.parts.events.get(eventId))!.hasRelations = false;
    }
    await send(second!, {
      type: 'm.reaction',
      content: { 'm.relates_to': { rel_type: 'm.annotation', event_id: eventId, key: 'y' } },
    });
    for (const { rooms } of all.engines)
      assert.equal((await rooms.parts.events.get(eventId))!.hasRelations, true);
    await send(third!, { type: 'm.room.redaction', content: {}, redacts: eventId });
    for (const { rooms } of all.engines) {
      assert.deepEqual((await rooms.parts.events.get(eventId))!.content, {});
      assert.deepEqual((await rooms.require(roomId)).timeline.find(eventId)?.content, {});
    }
  });

  test('know of invites from other servers', async () => {
    const foreign = new ForeignRoom('@far:two.test');
    const invite = foreign.build('@far:two.test', 'm.room.member', ALICE, { membership: 'invite' });
    for (const { rooms } of all.engines) await rooms.create(foreign.roomId, foreign.version);
    await storeOutOfBand(all.engines[1]!.rooms, invite, null);
    for (const { rooms } of all.engines)
      assert.equal((await rooms.require(foreign.roomId)).membership(ALICE), 'invite');
    await assertReplicas(all, foreign.roomId);
  });

  test('are read again when a process dies', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    for (const { rooms } of all.engines) await rooms.require(roomId);
    const victim = all.engines.at(-1)!;
    const body = (i: number) => ({ type: 'm.room.message', sender: ALICE, content: { body: `${i}` } });
    const under = Array.from({ length: 10 }, (_, i) =>
      Promise.race([sendEvent(victim.rooms, roomId, body(i)), victim.member.died.promise]).catch(() => {}),
    );
    await delay(8);
    await all.kill(victim);
    await Promise.all(under);
    await assertReplicas(all, roomId);
    await sendEvent(all.engines[0]!.rooms, roomId, body(0));
    await assertReplicas(all, roomId);
  });
});

async function act(
  { rooms, membership }: MemberEngine,
  roomId: string,
  action: number,
  user: string,
  target: string | undefined,
): Promise<string | undefined> {
  const send = async (draft: Omit<Draft, 'sender'>, sender = user) =>
    (await sendEvent(rooms, roomId, { ...draft, sender })).eventId;
  switch (action) {
    case 0:
      return void (await membership.join(roomId, user, []));
    case 1:
      if (user !== ALICE) await membership.leave(roomId, user);
      return undefined;
    case 2:
      return send({ type: 'm.room.topic', stateKey: '', content: { topic: `${Math.random()}` } }, ALICE);
    case 3:
      return send({ type: 'a.b', stateKey: `${Math.random()}`, content: { '5': 1, '3': 'ü\ud800' } }, ALICE);
    case 4:
      if (target === undefined) return undefined;
      return void (await send({ type: 'm.room.redaction', content: {}, redacts: target }, ALICE));
    case 5:
      if (target === undefined) return undefined;
      return send({
        type: 'm.reaction',
        content: { 'm.relates_to': { rel_type: 'm.annotation', event_id: target, key: 'k' } },
      });
    case 6:
      return rooms.exclusive(roomId, async (room) => void rooms.drop(room));
    case 7:
      return void (await sendUnheard(rooms, roomId));
    case 8:
      return void (await membership.kick(roomId, ALICE, USERS[1]!));
    default:
      return send({ type: 'm.room.message', content: { body: `${Math.random()}` } });
  }
}

/** An event that changes the room and is not announced, as those that join the ends of its graph. */
async function sendUnheard(rooms: MemberEngine['rooms'], roomId: string): Promise<void> {
  const { committed } = await rooms.exclusive(roomId, async (room) => {
    const event = await buildDraft(rooms, room, { type: 'dummy', sender: ALICE, content: {} });
    return append(rooms, room, {
      event,
      status: 'soft-failed',
      stateBefore: room.state,
      after: { extremities: [event.eventId], state: room.state, changes: new Map() },
    });
  });
  await committed;
}
