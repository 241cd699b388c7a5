import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { UserDirectory } from '@trellis/users/user-directory.ts';
import type { FastifyBaseLogger } from 'fastify';

const BATCH = 200;
/** Users waiting to be entered; what a flood of joins brings beyond is entered when it is next seen. */
const MAX_WAITING = 100_000;

/** Enters users of other servers in the user directory as they are seen in rooms, behind the events' back. */
export class DirectoryFeed {
  readonly #rooms: Rooms;
  readonly #directory: UserDirectory;
  readonly #log: FastifyBaseLogger;
  /** By user the room that they were last seen in. */
  readonly #waiting = new Map<string, string>();
  #running: Promise<void> | undefined;

  constructor(rooms: Rooms, directory: UserDirectory, log: FastifyBaseLogger) {
    this.#rooms = rooms;
    this.#directory = directory;
    this.#log = log;
    // By the process that has stored the join; if it dies on the way they are entered when they are next seen.
    rooms.parts.stream.subscribe((_pos, { roomId, memberships, isFromElsewhere }) => {
      if (isFromElsewhere) {
        for (const { userId } of memberships) directory.noteElsewhere(userId);
        return;
      }
      for (const { userId, after } of memberships)
        if (after === 'join' && serverNameOf(userId) !== rooms.parts.serverName) this.#note(userId, roomId);
    });
  }

  /** Resolves when nothing waits any more. */
  async idle(): Promise<void> {
    while (this.#running) await this.#running;
  }

  #note(userId: string, roomId: string): void {
    if (this.#waiting.size >= MAX_WAITING) return;
    this.#waiting.set(userId, roomId);
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
    });
  }

  async #run(): Promise<void> {
    // What is noted within one turn goes together.
    await new Promise<void>((next) => setImmediate(next));
    while (this.#waiting.size > 0) {
      const batch = [...this.#waiting.entries().take(BATCH)];
      for (const [userId] of batch) this.#waiting.delete(userId);
      await this.#enter(batch).catch((err: unknown) => this.#log.warn({ err }, 'user directory not updated'));
    }
  }

  async #enter(batch: ReadonlyArray<[userId: string, roomId: string]>): Promise<void> {
    const eventIds = new Map<string, string>();
    for (const [userId, roomId] of batch) {
      const member = (await this.#rooms.get(roomId))?.member(userId);
      if (member?.membership === 'join') eventIds.set(userId, member.eventId);
    }
    const events = await this.#rooms.parts.events.getMany(eventIds.values());
    await this.#directory.noteProfiles(
      [...eventIds].map(([userId, eventId]) => {
        const { displayname, avatar_url } = events.get(eventId)?.content ?? {};
        return { userId, displayName: displayname, avatarUrl: avatar_url };
      }),
    );
  }
}
