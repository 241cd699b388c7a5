import { setTimeout as sleep } from 'node:timers/promises';
import type { Random } from '../chaos/random.ts';
import { type Answer, type Client, nextTransactionId, path, request } from '../client.ts';
import type { Json } from '../json.ts';

const REQUEST_LIMIT_MS = 30_000;
/** A message that nobody has taken after so long is a failure. */
const GIVE_UP_MS = 60_000;
const SYNC_MS = 10_000;

/** Where a client may send its requests. */
export type Doors = () => string;

export interface Acknowledged {
  readonly room: string;
  readonly body: string;
  readonly sender: string;
  /** Milliseconds since the start of time at which it was first tried, and at which it was taken. */
  readonly tried: number;
  readonly taken: number;
  readonly attempts: number;
}

/** Asks at a door; at another one when there is no answer, or one that says to try again. */
async function insist(
  client: Client,
  doors: Doors,
  method: string,
  target: string,
  options: { body?: Json; query?: Record<string, string>; limit?: number },
  failures: string[],
): Promise<{ answer: Answer; attempts: number } | undefined> {
  const { limit = GIVE_UP_MS, ...rest } = options;
  const end = Date.now() + limit;
  for (let attempts = 1; Date.now() < end; attempts++) {
    try {
      const signal = AbortSignal.timeout(REQUEST_LIMIT_MS);
      const answer = await request(doors(), method, target, { ...rest, token: client.accessToken, signal });
      if (answer.status === 200) return { answer, attempts };
      if (answer.status !== 503 && answer.status !== 502 && answer.status !== 429)
        failures.push(`${method} ${target}: ${answer.status} ${JSON.stringify(answer.body)}`);
    } catch {
      // No answer.
    }
    await sleep(50);
  }
  return undefined;
}

/** Says things in rooms, one after the other, each until it is taken. */
export class Speaker {
  readonly acknowledged: Acknowledged[] = [];
  readonly failures: string[] = [];
  readonly #client: Client;
  readonly #doors: Doors;
  readonly #name: string;
  #n = 0;
  stopped = false;

  /** @param name makes what it says differ from what others say for the same client */
  constructor(client: Client, doors: Doors, name = 'says') {
    this.#client = client;
    this.#doors = doors;
    this.#name = name;
  }

  async run(random: Random, rooms: readonly string[], pause: number): Promise<void> {
    while (!this.stopped) {
      await this.say(random.pick(rooms));
      await sleep(random.between(0.2, 1.8) * pause);
    }
  }

  async say(room: string): Promise<void> {
    const sender = this.#client.userId;
    const body = `${sender} ${this.#name} ${this.#n++}`;
    const tried = Date.now();
    const target = `/_matrix/client${path`/v3/rooms/${room}/send/m.room.message/${nextTransactionId()}`}`;
    const content = { msgtype: 'm.text', body };
    const taken = await insist(this.#client, this.#doors, 'PUT', target, { body: content }, this.failures);
    if (!taken) {
      this.failures.push(`${body} was not taken for ${GIVE_UP_MS} ms`);
      return;
    }
    this.acknowledged.push({ room, body, sender, tried, taken: Date.now(), attempts: taken.attempts });
  }
}

/** Syncs for ever, through whatever door answers, and keeps what it is shown. */
export class Listener {
  /** Bodies by room, in the order in which they were shown. */
  readonly shown = new Map<string, string[]>();
  readonly failures: string[] = [];
  /** When answers came, in milliseconds since the start of time. */
  lastAnswer = Date.now();
  readonly #client: Client;
  readonly #doors: Doors;
  #since: string | undefined;
  stopped = false;

  constructor(client: Client, doors: Doors) {
    this.#client = client;
    this.#doors = doors;
  }

  async run(): Promise<void> {
    while (!this.stopped) await this.sync(SYNC_MS);
  }

  async sync(timeout: number): Promise<void> {
    const query: Record<string, string> = {
      timeout: String(this.#since === undefined ? 0 : timeout),
      filter: JSON.stringify({ room: { timeline: { limit: 100 } }, presence: { types: [] } }),
      ...(this.#since === undefined ? {} : { since: this.#since }),
    };
    const from = this.#since;
    const got = await insist(
      this.#client,
      this.#doors,
      'GET',
      '/_matrix/client/v3/sync',
      { query },
      this.failures,
    );
    if (!got) {
      this.failures.push(`${this.#client.userId} had no answer to a sync for ${GIVE_UP_MS} ms`);
      return;
    }
    this.lastAnswer = Date.now();
    const { next_batch: next, rooms } = got.answer.body;
    for (const [roomId, { timeline }] of Object.entries<Json>(rooms?.join ?? {})) {
      const events = [...(timeline?.events ?? [])];
      if (timeline?.limited && from !== undefined)
        events.unshift(...(await this.#between(roomId, timeline.prev_batch, from)));
      const shown = this.shown.get(roomId) ?? [];
      for (const event of events)
        if (event.type === 'm.room.message' && event.content?.body) shown.push(event.content.body);
      this.shown.set(roomId, shown);
    }
    this.#since = next;
  }

  /** What a limited timeline left out, oldest first. */
  async #between(roomId: string, back: string, to: string): Promise<Json[]> {
    const events: Json[] = [];
    for (let from: string | undefined = back; from !== undefined; ) {
      const query: Record<string, string> = { dir: 'b', from, to, limit: '100' };
      const target = `/_matrix/client${path`/v3/rooms/${roomId}/messages`}`;
      const got = await insist(this.#client, this.#doors, 'GET', target, { query }, this.failures);
      if (!got) break;
      events.push(...got.answer.body.chunk);
      from = got.answer.body.end;
    }
    return events.reverse();
  }
}
