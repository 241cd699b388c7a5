import { setTimeout as delay } from 'node:timers/promises';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';

/** What is known of a room that this server has joined without being told its members (spec: `omit_members`). */
export interface PartialState {
  /** The joins that brought this server into the room, the first one first: the full state before them is missing. */
  readonly joins: readonly string[];
  /** The server that answered the last of them. */
  readonly server: string;
  /** Other servers in the room, as that server says. */
  readonly servers: readonly string[];
  /** Where the stream of device lists was at the first join. */
  readonly deviceListsPos: number;
}

/** How long a request for the members waits for them. In milliseconds. */
const PATIENCE = 10 * 60_000;

/** The rooms whose members are being fetched now, and who waits for them. */
export class PartialRooms {
  readonly #servers = new Map<string, readonly string[]>();
  readonly #waiting = new Map<string, PromiseWithResolvers<void>>();

  /** The members of the room are being fetched. */
  begin(roomId: string, servers: readonly string[]): void {
    this.#servers.set(roomId, servers);
  }

  /** They are here, or will never be. */
  end(roomId: string): void {
    this.#servers.delete(roomId);
    this.#waiting.get(roomId)?.resolve();
    this.#waiting.delete(roomId);
  }

  /** Whether the server is said to be in one of these rooms: anyone of it may be. */
  includes(server: string): boolean {
    for (const servers of this.#servers.values()) if (servers.includes(server)) return true;
    return false;
  }

  get roomIds(): Iterable<string> {
    return this.#servers.keys();
  }

  get isAny(): boolean {
    return this.#servers.size > 0;
  }

  wait(roomId: string): Promise<void> {
    let waiting = this.#waiting.get(roomId);
    if (!waiting) {
      waiting = Promise.withResolvers();
      this.#waiting.set(roomId, waiting);
    }
    return waiting.promise;
  }
}

/** The room once all its members are known; at once for nearly every room. */
export async function completeRoom(rooms: Rooms, roomId: string): Promise<Room | undefined> {
  const until = performance.now() + PATIENCE;
  for (;;) {
    const room = await rooms.get(roomId);
    if (!room?.partial) return room;
    const stop = new AbortController();
    const tooLong = delay(until - performance.now(), true, { signal: stop.signal, ref: false }).catch(
      () => {},
    );
    const late = await Promise.race([rooms.partial.wait(roomId), tooLong]);
    stop.abort();
    if (late) throw new MatrixError(504, 'M_UNKNOWN', 'The members of the room are still being fetched');
  }
}
