import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import {
  assertOneLine,
  type ClusterEngines,
  clusterEngines,
  type MemberEngine,
  SERVER,
} from '@trellis/rooms/test/cluster-engine.ts';
import { type TransactionSend, TransactionSends } from '../transaction-sends.ts';

const ALICE = `@alice:${SERVER}`;

describe('sends with transaction ids by several processes', () => {
  let all: ClusterEngines;
  let sends: Map<MemberEngine, TransactionSends>;
  before(async () => {
    sends = new Map();
    all = await clusterEngines(3, (engine) => void sends.set(engine, new TransactionSends(engine)));
  });
  after(() => all.close());

  const request = (roomId: string, txnId: string, sender = ALICE): TransactionSend => ({
    requester: { userId: sender, deviceId: 'DEVICE', tokenId: '1' },
    roomId,
    txnId,
    draft: { type: 'm.room.message', sender, content: { body: txnId } },
  });

  test('give one event when the same comes to all at the same time, and later', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    const ids = await Promise.all([...sends.values()].map((each) => each.send(request(roomId, 'one'))));
    ids.push(await sends.get(all.engines[2]!)!.send(request(roomId, 'one')));
    assert.equal(new Set(ids).size, 1);
  });

  test('are refused as the home refuses them', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    for (const each of sends.values())
      await assert.rejects(each.send(request(roomId, 'x', `@eve:${SERVER}`)), {
        status: 403,
        errcode: 'M_FORBIDDEN',
      });
  });

  test('are not made something else on the way', async () => {
    const roomId = await all.engines[0]!.createRoom(ALICE);
    for (const each of sends.values()) {
      const { draft, ...rest } = request(roomId, 'number');
      const send = { ...rest, draft: { ...draft, content: { a: [JSON.parse('1e400')] } } };
      await assert.rejects(each.send(send), { status: 400, errcode: 'M_BAD_JSON' });
    }
  });

  test('give one event each while processes come, go and die', async () => {
    const roomIds = await Promise.all(Array.from({ length: 5 }, () => all.engines[0]!.createRoom(ALICE)));
    const victim = all.engines[2]!;
    const steady = [all.engines[0]!, all.engines[1]!];
    const answers = new Map<string, string>();
    let going = true;
    let count = 0;
    const clients = Array.from({ length: 6 }, async () => {
      while (going) {
        const txn = `${++count}`;
        const roomId = roomIds[count % roomIds.length]!;
        // By one, and at once or later by the other.
        const once = sends.get(steady[count % 2]!)!.send(request(roomId, txn));
        await delay(Math.random() * 10);
        const again = sends.get(steady[(count + 1) % 2]!)!.send(request(roomId, txn));
        const [first, second] = await Promise.all([once, again]);
        assert.equal(first, second);
        answers.set(txn, first);
      }
    });
    const guest = await all.join();
    await delay(80);
    await all.kill(victim);
    await delay(80);
    await all.leave(guest);
    await delay(80);
    going = false;
    await Promise.all(clients);
    assert.equal(new Set(answers.values()).size, count);
    const stored = new Set((await Promise.all(roomIds.map((id) => assertOneLine(all.db, id)))).flat());
    for (const eventId of answers.values()) assert.ok(stored.has(eventId));
    const [row] = await all.db.query<{ twice: number }>(
      `SELECT count(*) AS twice FROM (SELECT FROM events WHERE txn_id IS NOT NULL AND sender = $1
       GROUP BY room, txn_id HAVING count(*) > 1) t`,
      [ALICE],
    );
    assert.equal(row!.twice, 0);
  });
});
