import { setTimeout as delay } from 'node:timers/promises';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { JoinsUnderWay } from '@trellis/rooms/joins-under-way.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { UserDirectory } from '@trellis/users/user-directory.ts';
import type { FastifyBaseLogger } from 'fastify';

const BATCH = 200;
/** Of those who can wait: one batch keeps the database busy for less time than anybody notices. */
const PATIENT_BATCH = 50;
/** For so many times as long as a batch of them took the next one waits. */
const PATIENCE = 3;
/** How long it is let pass at a time who joins a room meanwhile, in milliseconds, and how often in a row. */
const WAY = 50;
const MAX_WAYS = 20;
/** Users waiting to be entered; what a flood of joins brings beyond is entered when it is next seen. */
const MAX_WAITING = 100_000;
/** The members of a room that was large to join wait for so long, in milliseconds: whoever looks at it is served first. */
const HEAD_START = 1_000;

interface Queue {
  /** By user the room that they were last seen in. */
  readonly waiting: Map<string, string>;
  readonly isPatient: boolean;
  running: Promise<void> | undefined;
}

/** Enters users of other servers in the user directory as they are seen in rooms, behind the events' back. */
export class DirectoryFeed {
  readonly #rooms: Rooms;
  readonly #directory: UserDirectory;
  readonly #joins: Pick<JoinsUnderWay, 'isAny'>;
  readonly #log: FastifyBaseLogger;
  readonly #live: Queue = { waiting: new Map(), isPatient: false, running: undefined };
  /** Members of rooms that were joined without being told them. */
  readonly #backlog: Queue = { waiting: new Map(), isPatient: true, running: undefined };
  readonly #closing = new AbortController();

  constructor(
    rooms: Rooms,
    directory: UserDirectory,
    joins: Pick<JoinsUnderWay, 'isAny'>,
    log: FastifyBaseLogger,
  ) {
    this.#rooms = rooms;
    this.#directory = directory;
    this.#joins = joins;
    this.#log = log;
    // By the process that has stored the join; if it dies on the way they are entered when they are next seen.
    rooms.parts.stream.subscribe((_pos, { roomId, memberships, resynced, isFromElsewhere }) => {
      if (isFromElsewhere) {
        for (const { userId } of memberships) directory.noteElsewhere(userId);
        return;
      }
      for (const { userId, after } of memberships)
        if (after === 'join' && serverNameOf(userId) !== rooms.parts.serverName)
          this.#note(resynced ? this.#backlog : this.#live, userId, roomId);
    });
  }

  /** Resolves when nothing waits any more; nobody else is served now. */
  async close(): Promise<void> {
    this.#closing.abort();
    for (const queue of [this.#live, this.#backlog]) while (queue.running) await queue.running;
  }

  #note(queue: Queue, userId: string, roomId: string): void {
    if (queue.waiting.size >= MAX_WAITING) return;
    queue.waiting.set(userId, roomId);
    queue.running ??= this.#run(queue).finally(() => {
      queue.running = undefined;
    });
  }

  async #run({ waiting, isPatient }: Queue): Promise<void> {
    // What is noted within one turn goes together.
    await new Promise<void>((next) => setImmediate(next));
    if (isPatient) await this.#pause(HEAD_START);
    while (waiting.size > 0) {
      if (isPatient) await this.#makeWay();
      const begun = performance.now();
      const batch = [...waiting.entries().take(isPatient ? PATIENT_BATCH : BATCH)];
      for (const [userId] of batch) waiting.delete(userId);
      await this.#enter(batch).catch((err: unknown) => this.#log.warn({ err }, 'user directory not updated'));
      if (isPatient) await this.#pause(PATIENCE * (performance.now() - begun));
    }
  }

  async #makeWay(): Promise<void> {
    for (let i = 0; i < MAX_WAYS && this.#joins.isAny; i++) await this.#pause(WAY);
  }

  async #pause(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#closing.signal }).catch(() => {});
  }

  async #enter(batch: ReadonlyArray<[userId: string, roomId: string]>): Promise<void> {
    const eventIds = new Map<string, string>();
    for (const [userId, roomId] of batch) {
      const member = (await this.#rooms.get(roomId))?.member(userId);
      if (member?.membership === 'join') eventIds.set(userId, member.eventId);
    }
    const contents = await this.#contents(eventIds);
    await this.#directory.noteProfiles(
      [...contents].map(([userId, { displayname, avatar_url }]) => ({
        userId,
        displayName: displayname,
        avatarUrl: avatar_url,
      })),
    );
  }

  /** Of memberships by user; past the cache, in which a large room's members would leave nothing else. */
  async #contents(eventIds: ReadonlyMap<string, string>): Promise<Map<string, JsonObject>> {
    const { events } = this.#rooms.parts;
    const contents = new Map<string, JsonObject>();
    const unread: string[] = [];
    for (const [userId, eventId] of eventIds) {
      const event = events.cached(eventId);
      if (event) contents.set(userId, event.content);
      else unread.push(eventId);
    }
    for (const json of await events.jsonByIds(unread)) {
      const { state_key: userId, content } = decodeJson(json) as { state_key: string; content: JsonObject };
      contents.set(userId, content);
    }
    return contents;
  }
}
