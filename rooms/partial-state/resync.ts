import { setTimeout as delay } from 'node:timers/promises';
import { partialRoomIds, storePartialRoom } from '@trellis/storage/partial-rooms.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { Receiver } from '../receive.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import { completeState } from './complete.ts';
import type { PartialState } from './partial-rooms.ts';

export interface ResyncParts {
  readonly rooms: Rooms;
  readonly receiver: Pick<Receiver, 'remoteStates' | 'states'>;
  readonly deviceListsPosition: () => number;
  readonly log: {
    info(data: object, message: string): void;
    warn(data: object, message: string): void;
  };
  /** After a round in which no server had the state, in milliseconds; doubled each time. */
  readonly retryMs?: number;
}

/** Servers asked in one round. */
const MAX_SERVERS = 20;
const RETRY_MS = 2_000;
const MAX_RETRY_MS = 5 * 60_000;

/**
 * Fetches the members of rooms that this server has joined without being told them, from any server of the room that
 * has them, and goes on with that after a restart. Until then the room is used with what is known of it.
 */
export class Resync {
  readonly #parts: ResyncParts;
  readonly #running = new Set<string>();
  readonly #closing = new AbortController();

  constructor(parts: ResyncParts) {
    this.#parts = parts;
  }

  /** Takes up what the last run of the server has left. */
  async start(): Promise<void> {
    const { rooms } = this.#parts;
    for (const roomId of await partialRoomIds(rooms.parts.db)) this.begin(roomId);
  }

  close(): void {
    this.#closing.abort();
  }

  /** For `RemoteMembershipByHandshake`: where device lists are when a room is joined. */
  deviceListsPosition(): number {
    return this.#parts.deviceListsPosition();
  }

  /** Rooms whose members are being fetched. */
  get roomIds(): ReadonlySet<string> {
    return this.#running;
  }

  begin(roomId: string): void {
    if (this.#running.has(roomId)) return;
    this.#running.add(roomId);
    this.#run(roomId)
      .catch((err: unknown) => {
        if (!this.#closing.signal.aborted)
          this.#parts.log.warn({ err, roomId }, 'fetching the members of a room has ended');
      })
      .finally(() => this.#running.delete(roomId));
  }

  async #run(roomId: string): Promise<void> {
    const { rooms, log, retryMs = RETRY_MS } = this.#parts;
    const begun = performance.now();
    for (let wait = retryMs; ; wait = Math.min(wait * 2, MAX_RETRY_MS)) {
      const room = await rooms.get(roomId);
      if (!room?.partial) break;
      rooms.partial.begin(roomId, room.partial.servers);
      if (await this.#round(room)) continue;
      if (!(await rooms.require(roomId)).isResident && (await this.#giveUp(roomId))) break;
      await delay(wait, undefined, { signal: this.#closing.signal, ref: false });
    }
    rooms.partial.end(roomId);
    log.info({ roomId, ms: Math.round(performance.now() - begun) }, 'the state of a room is complete');
  }

  /** Whether there is any progress. */
  async #round(room: Room): Promise<boolean> {
    const partial = room.partial!;
    const servers = new Set([partial.server, ...partial.servers, ...room.otherServers]);
    for (const server of [...servers].slice(0, MAX_SERVERS)) {
      this.#closing.signal.throwIfAborted();
      const done = await this.#attempt(room, partial, server, [...servers]).catch((err: unknown) => {
        this.#parts.log.warn({ err, roomId: room.roomId, server }, 'the members of a room could not be had');
        return false;
      });
      // A join since has made it another question.
      const current = (await this.#parts.rooms.get(room.roomId))?.partial;
      if (done || current?.joins.join() !== partial.joins.join()) return true;
    }
    return false;
  }

  async #attempt(
    room: Room,
    partial: PartialState,
    server: string,
    servers: readonly string[],
  ): Promise<boolean> {
    const { rooms, receiver } = this.#parts;
    const before = new Map<string, Snapshot>();
    for (const joinId of partial.joins) {
      const join = await rooms.parts.events.get(joinId);
      const [prev, ...others] = join?.prevEvents ?? [];
      if (prev === undefined) return false;
      // More servers have what the join builds on than have the join; but then one state is to be fetched for each.
      const state =
        others.length === 0
          ? await receiver.remoteStates.after(room, server, prev, servers)
          : await receiver.remoteStates.before(room, server, joinId, servers);
      if (!state) return false;
      before.set(joinId, state);
    }
    return completeState(rooms, receiver.states, room.roomId, partial, before);
  }

  /** Nobody tells the members to a server that is no longer in the room. */
  #giveUp(roomId: string): Promise<boolean> {
    const { rooms } = this.#parts;
    return rooms.exclusive(roomId, async (room) => {
      if (room.isResident) return false;
      await storePartialRoom(rooms.parts.db, room.nid, undefined);
      room.setPartial(undefined);
      return true;
    });
  }
}
