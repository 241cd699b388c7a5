import { setTimeout as delay } from 'node:timers/promises';
import { partialRooms, storePartialRoom } from '@trellis/storage/partial-rooms.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import { announce } from '../announce.ts';
import type { Receiver } from '../receive.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import { Slots } from '../slots.ts';
import { completeState } from './complete.ts';
import type { Come } from './members.ts';
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
/** Rooms whose members are fetched at a time: each may take a hundred megabytes. */
const MAX_AT_ONCE = 4;
/** Who waits for a room is shown it before the work on its members begins, in milliseconds. */
const HEAD_START = 30;
const RETRY_MS = 2_000;
const MAX_RETRY_MS = 5 * 60_000;

/** What processes tell each other: of which room members are being fetched; no servers when they are no longer. */
interface Told {
  readonly roomId: string;
  readonly servers: readonly string[] | null;
}

/**
 * Fetches the members of rooms that this server has joined without being told them, from any server of the room that
 * has them, and goes on with that after a restart. Until then the room is used with what is known of it.
 *
 * Of several processes the one whose the room is does this, until it is another's; all know of it.
 */
export class Resync {
  readonly #parts: ResyncParts;
  readonly #running = new Map<string, AbortController>();
  readonly #closing = new AbortController();
  readonly #come = new Map<string, Come>();
  readonly #slots = new Slots(MAX_AT_ONCE);
  /** Rooms that began or ceased to be partial, as far as that was heard. */
  #changes = 0;

  constructor(parts: ResyncParts) {
    this.#parts = parts;
    const { rooms } = parts;
    const { cluster, stream } = rooms.parts;
    cluster.serve(
      'room.resync',
      async (_none, roomId) => {
        await this.#begin(roomId);
        return undefined;
      },
      { drained: false },
    );
    cluster.onAnnounce('partial-rooms', (told: Told) => this.#hear(told));
    stream.subscribe((_pos, { roomId, resynced, isFromElsewhere }) => {
      if (resynced && isFromElsewhere) this.#hear({ roomId, servers: null });
    });
    cluster.onGap(() => void this.#takeUp());
    cluster.onHandover({
      release: (lost) => {
        for (const [roomId, stop] of this.#running) if (lost('room', roomId)) stop.abort();
      },
      take: () => void this.#takeUp(),
    });
  }

  /** Takes up what the last run of the server has left. */
  start(): Promise<void> {
    return this.#takeUp();
  }

  close(): void {
    this.#closing.abort();
    for (const stop of this.#running.values()) stop.abort();
  }

  #hear({ roomId, servers }: Told): void {
    this.#changes++;
    const { partial } = this.#parts.rooms;
    if (servers) partial.begin(roomId, servers);
    else partial.end(roomId);
  }

  /** Learns which rooms are partial, and begins with those that are this process's. */
  async #takeUp(): Promise<void> {
    const { rooms, log } = this.#parts;
    while (!this.#closing.signal.aborted)
      try {
        const changes = this.#changes;
        const found = await partialRooms(rooms.parts.db);
        if (changes !== this.#changes) continue;
        const still = new Set(found.map(({ roomId }) => roomId));
        for (const roomId of [...rooms.partial.roomIds]) if (!still.has(roomId)) rooms.partial.end(roomId);
        for (const { roomId, servers } of found) rooms.partial.begin(roomId, servers);
        for (const { roomId } of found) if (rooms.parts.cluster.owns('room', roomId)) this.#run(roomId);
        return;
      } catch (err) {
        log.warn({ err }, 'which rooms lack members could not be read');
        await delay(RETRY_MS, undefined, { signal: this.#closing.signal, ref: false }).catch(() => {});
      }
  }

  #tell(told: Told): Promise<void> {
    return announce(this.#parts.rooms.parts.cluster, 'partial-rooms', { ...told });
  }

  /** For `RemoteMembershipByHandshake`: where device lists are when a room is joined. */
  deviceListsPosition(): number {
    return this.#parts.deviceListsPosition();
  }

  /** Rooms whose members are being fetched. */
  get roomIds(): ReadonlySet<string> {
    return new Set(this.#running.keys());
  }

  /**
   * Resolves when all processes know that members are missing; fetching them goes on.
   *
   * @param members those who came with the join all the same
   */
  async begin(roomId: string, members?: Come): Promise<void> {
    if (members) this.#come.set(roomId, members);
    await this.#parts.rooms.parts.cluster.call('room', roomId, 'room.resync', null);
    // By another process, or not at all.
    if (!this.#running.has(roomId)) this.#come.delete(roomId);
  }

  async #begin(roomId: string): Promise<void> {
    const partial = (await this.#parts.rooms.get(roomId))?.partial;
    if (!partial) return;
    await this.#tell({ roomId, servers: partial.servers });
    this.#run(roomId, HEAD_START);
  }

  #run(roomId: string, after = 0): void {
    if (this.#running.has(roomId)) return;
    const stop = new AbortController();
    this.#running.set(roomId, stop);
    delay(after, undefined, { signal: stop.signal, ref: false })
      .then(() => this.#fetch(roomId, stop.signal))
      .catch((err: unknown) => {
        if (!stop.signal.aborted)
          this.#parts.log.warn({ err, roomId }, 'fetching the members of a room has ended');
      })
      .finally(() => {
        this.#running.delete(roomId);
        this.#come.delete(roomId);
        // It may have come back meanwhile.
        if (stop.signal.aborted) void this.#takeUp();
      });
  }

  async #fetch(roomId: string, signal: AbortSignal): Promise<void> {
    const { rooms, log, retryMs = RETRY_MS } = this.#parts;
    const begun = performance.now();
    let servers: readonly string[] | undefined;
    for (let wait = retryMs; ; wait = Math.min(wait * 2, MAX_RETRY_MS)) {
      const room = await rooms.get(roomId);
      signal.throwIfAborted();
      if (!room?.partial) break;
      if (servers !== room.partial.servers) {
        servers = room.partial.servers;
        await this.#tell({ roomId, servers });
      }
      if (await this.#slots.run(() => this.#round(room, signal))) continue;
      if (!(await rooms.require(roomId)).isResident && (await this.#giveUp(roomId))) break;
      await delay(wait, undefined, { signal, ref: false });
    }
    await this.#tell({ roomId, servers: null });
    log.info({ roomId, ms: Math.round(performance.now() - begun) }, 'the state of a room is complete');
  }

  /** Whether there is any progress. */
  async #round(room: Room, signal: AbortSignal): Promise<boolean> {
    const { partial } = room;
    signal.throwIfAborted();
    // It may have been completed while others were fetched.
    if (!partial) return true;
    const servers = new Set([partial.server, ...partial.servers, ...room.otherServers]);
    for (const server of [...servers].slice(0, MAX_SERVERS)) {
      signal.throwIfAborted();
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
    const whole = { servers, members: this.#come.get(room.roomId) ?? new Map() };
    for (const joinId of partial.joins) {
      const join = await rooms.parts.events.get(joinId);
      const [prev, ...others] = join?.prevEvents ?? [];
      if (prev === undefined) return false;
      // More servers have what the join builds on than have the join; but then one state is to be fetched for each.
      const state =
        others.length === 0
          ? await receiver.remoteStates.after(room, server, prev, whole)
          : await receiver.remoteStates.before(room, server, joinId, whole);
      if (!state) return false;
      before.set(joinId, state);
    }
    return completeState(rooms, receiver.states, room.roomId, partial, { before, members: whole.members });
  }

  /** Nobody tells the members to a server that is no longer in the room. */
  #giveUp(roomId: string): Promise<boolean> {
    const { rooms } = this.#parts;
    return rooms.exclusive(roomId, async (room) => {
      if (room.isResident) return false;
      await storePartialRoom(rooms.parts.db, room.nid, undefined);
      room.setPartial(undefined);
      await rooms.changed(roomId);
      return true;
    });
  }
}
