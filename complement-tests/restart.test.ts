import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Client } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

const WORKERS = 4;
const ROOMS = 4;
const USERS = 8;
/** After the last was acknowledged all have seen all within this. */
const SEEN_WITHIN_MS = 10_000;
/** Between two messages of a user, in milliseconds: up to. */
const PAUSE = 60;

/** A user who sends, and reads what all send, until told to stop. */
class Chatter {
  readonly failures: string[] = [];
  /** What was acknowledged, in this order, by room. */
  readonly sent = new Map<string, string[]>();
  /** What came by sync, in this order, by room. */
  readonly seen = new Map<string, string[]>();
  readonly #client: Client;
  readonly #rooms: readonly string[];
  #sending = true;
  #reading = true;
  #reader: Promise<void> = Promise.resolve();
  #sender: Promise<void> = Promise.resolve();

  constructor(client: Client, rooms: readonly string[]) {
    this.#client = client;
    this.#rooms = rooms;
  }

  /** From here on all is seen that anybody sends: nobody may send before everybody does this. */
  async startReading(): Promise<void> {
    const { next_batch } = await this.#client.sync();
    this.#reader = this.#read(next_batch);
  }

  startSending(): void {
    this.#sender = this.#send();
  }

  async #send(): Promise<void> {
    for (let n = 0; this.#sending; n++) {
      const room = this.#rooms[n % this.#rooms.length]!;
      try {
        append(this.sent, room, await this.#client.sendText(room, String(n)));
      } catch (error) {
        this.failures.push(`send: ${error}`);
      }
      await pause(Math.random() * PAUSE);
    }
  }

  async #read(since: string): Promise<void> {
    let token = since;
    while (this.#reading) {
      try {
        const sync = await this.#client.sync({ since: token, timeout: 2_000, filter: WHOLE });
        for (const [room, { timeline }] of Object.entries<Json>(sync.rooms?.join ?? {})) {
          if (timeline.limited) this.failures.push(`a gap in ${room}`);
          for (const { type, event_id } of timeline.events)
            if (type === 'm.room.message') append(this.seen, room, event_id);
        }
        token = sync.next_batch;
      } catch (error) {
        this.failures.push(`sync: ${error}`);
      }
    }
  }

  async stopSending(): Promise<void> {
    this.#sending = false;
    await this.#sender;
  }

  async stop(): Promise<void> {
    this.#reading = false;
    await this.#reader;
  }
}

const pause = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

const WHOLE = { room: { timeline: { limit: 1000 } } };

function append(lists: Map<string, string[]>, key: string, value: string): void {
  const list = lists.get(key);
  if (list) list.push(value);
  else lists.set(key, [value]);
}

describe('all workers replaced under load', () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({ name: 'replaced', config: { workers: WORKERS } });
  });
  after(() => server.close());

  it('fail no request, lose no event, and show each once', async () => {
    const clients = await Promise.all(Array.from({ length: USERS }, () => server.register()));
    const rooms = await Promise.all(clients.slice(0, ROOMS).map((client) => client.createRoom()));
    for (const client of clients) for (const room of rooms) await client.join(room);
    const chatters = clients.map((client) => new Chatter(client, rooms));
    await Promise.all(chatters.map((chatter) => chatter.startReading()));
    for (const chatter of chatters) chatter.startSending();
    assert.match(await server.run('restart'), /All are replaced/);
    await Promise.all(chatters.map((chatter) => chatter.stopSending()));
    // What was acknowledged is seen by all with the next sync, which may take a while on a busy machine.
    const sum = (lists: 'sent' | 'seen') => (chatter: Chatter) =>
      [...chatter[lists].values()].reduce((count, list) => count + list.length, 0);
    const total = chatters.map(sum('sent')).reduce((a, b) => a + b);
    for (const end = Date.now() + SEEN_WITHIN_MS; Date.now() < end; await pause(50))
      if (chatters.map(sum('seen')).every((count) => count >= total)) break;
    await pause(500);
    await Promise.all(chatters.map((chatter) => chatter.stop()));

    assert.deepEqual(
      chatters.flatMap(({ failures }) => failures),
      [],
    );
    for (const room of rooms) {
      const sent = chatters.map((chatter) => chatter.sent.get(room) ?? []);
      const all = sent.flat().sort();
      assert.ok(all.length > 50, `only ${all.length} were sent`);
      const [first] = chatters;
      for (const chatter of chatters) {
        const seen = chatter.seen.get(room) ?? [];
        assert.deepEqual([...seen].sort(), all, 'each that was acknowledged is seen once');
        assert.deepEqual(seen, first!.seen.get(room), 'all see them in one order');
        for (const ofOne of sent) {
          const theirs = new Set(ofOne);
          assert.deepEqual(
            seen.filter((id) => theirs.has(id)),
            ofOne,
            'those of a sender come in their order',
          );
        }
      }
    }
  });
});
