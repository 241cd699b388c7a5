import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

/** TRELLIS_CRASH_ROUNDS=20 for a thorough run. */
const ROUNDS = Number(process.env.TRELLIS_CRASH_ROUNDS ?? 2);
const SENDERS = 64;
const ROOMS = 8;

interface Acknowledged {
  room: string;
  eventId: string;
  body: string;
}

describe('kill -9 of the whole process group', () => {
  let server: TestServer;
  const senders: Client[] = [];
  const rooms: string[] = [];
  before(async () => {
    server = await startServer({ name: 'crash' });
    for (let i = 0; i < SENDERS; i += 8)
      senders.push(...(await Promise.all(Array.from({ length: 8 }, (_, k) => server.register(`s${i + k}`)))));
    for (let i = 0; i < ROOMS; i++) rooms.push(await senders[i]!.createRoom());
    await Promise.all(senders.map((sender, i) => sender.join(rooms[i % ROOMS]!)));
  });
  after(() => server?.close());

  /** Sends one message after the other until the server is gone. */
  async function sendOn(
    sender: Client,
    room: string,
    round: number,
    acknowledged: Acknowledged[],
  ): Promise<void> {
    for (let n = 0; ; n++) {
      const body = `${sender.localpart} r${round} n${n}`;
      const target = `/_matrix/client${path`/v3/rooms/${room}/send/m.room.message/r${round}n${n}`}`;
      try {
        const answer = await sender.request('PUT', target, { body: { msgtype: 'm.text', body } });
        assert.equal(answer.status, 200, JSON.stringify(answer.body));
        acknowledged.push({ room, eventId: answer.body.event_id, body });
      } catch (error) {
        if (error instanceof assert.AssertionError) throw error;
        return;
      }
    }
  }

  async function timeline(room: string, since: number): Promise<Json[]> {
    const events: Json[] = [];
    const reader = senders[rooms.indexOf(room)]!;
    for (let from: string | undefined; ; ) {
      const page: Json = await reader.get(path`/v3/rooms/${room}/messages`, { dir: 'b', from, limit: 500 });
      events.push(...page.chunk.filter((e: Json) => e.type === 'm.room.message'));
      from = page.end;
      if (
        from === undefined ||
        page.chunk.length === 0 ||
        events.some((e) => e.content.body.includes(` r${since - 1} `))
      )
        break;
    }
    return events.reverse();
  }

  for (let round = 0; round < ROUNDS; round++) {
    it(`loses no acknowledged message of ${SENDERS} senders, round ${round + 1}`, async (t) => {
      const acknowledged: Acknowledged[] = [];
      const sending = senders.map((sender, i) => sendOn(sender, rooms[i % ROOMS]!, round, acknowledged));
      // However slow the machine is: a moment in which all are at work.
      const end = Date.now() + 60_000;
      while (acknowledged.length <= SENDERS && Date.now() < end)
        await new Promise((wake) => setTimeout(wake, 20));
      await new Promise((wake) => setTimeout(wake, Math.random() * 1200));
      await server.kill();
      await Promise.all(sending);
      t.diagnostic(`${acknowledged.length} messages were acknowledged`);
      assert.ok(acknowledged.length > SENDERS, 'the senders were at work');
      await server.start();

      for (const room of rooms) {
        const events = await timeline(room, round);
        const places = new Map<string, number[]>();
        events.forEach((event, i) => {
          const list = places.get(event.content.body);
          if (list) list.push(i);
          else places.set(event.content.body, [i]);
        });
        const last = new Map<string, number>();
        for (const { eventId, body } of acknowledged.filter((a) => a.room === room)) {
          const at = places.get(body);
          assert.ok(at, `"${body}" was acknowledged and is lost`);
          assert.equal(at.length, 1, `"${body}" is there ${at.length} times`);
          assert.equal(events[at[0]!].event_id, eventId);
          const sender = body.split(' ')[0]!;
          assert.ok(at[0]! > (last.get(sender) ?? -1), `"${body}" is out of order`);
          last.set(sender, at[0]!);
        }
      }
      // The server works on, and a repeated transaction is still known.
      const lastOne = acknowledged.at(-1)!;
      const [sender, , n] = lastOne.body.split(' ');
      const again = await senders
        .find((s) => s.localpart === sender)!
        .send(lastOne.room, 'm.room.message', { msgtype: 'm.text', body: lastOne.body }, `r${round}${n}`);
      assert.equal(again, lastOne.eventId);
    });
  }
});
