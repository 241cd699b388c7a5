import type { Cluster } from '@trellis/cluster/cluster.ts';
import type { Stream, TypingChange } from '@trellis/storage/streams.ts';

/** Milliseconds that a user types when they do not say, and at the most. */
const DEFAULT_TIMEOUT = 30_000;
const MAX_TIMEOUT = 120_000;
/** Other servers are told again that a user goes on typing, as they forget it after a while. */
const RENEWAL = 30_000;
/** Users who type in one room at the same time, and rooms in which someone types: more are not told of. */
const MAX_IN_ROOM = 100;
const MAX_ROOMS = 10_000;

interface Typist {
  timer: NodeJS.Timeout;
  announced: number;
  /** When it is over. */
  until: number;
}

const NOBODY: readonly string[] = [];
const NONE: ReadonlyMap<string, Typist> = new Map();

/**
 * Who types where (spec: "Typing Notifications"). In memory only: the process that has a room keeps the typists and
 * their time, all others know what it announces.
 */
export class Typing {
  readonly #stream: Stream<TypingChange>;
  readonly #cluster: Cluster | undefined;
  readonly #rooms = new Map<string, Map<string, Typist>>();
  /** As announced, and until when at the most. */
  readonly #shown = new Map<string, { userIds: readonly string[]; until: number }>();
  /** Typists of rooms that another process takes over. */
  #given: Array<{ roomId: string; userId: string; until: number }> = [];

  constructor(stream: Stream<TypingChange>, cluster?: Cluster) {
    this.#stream = stream;
    this.#cluster = cluster?.shared ? cluster : undefined;
    stream.subscribe((_pos, { roomId, userIds }) => {
      if (userIds.length === 0) this.#shown.delete(roomId);
      else this.#shown.set(roomId, { userIds, until: Date.now() + MAX_TIMEOUT });
    });
    this.#cluster?.serve('typing.start', async (args: { userId: string; timeout: number }, roomId) => {
      await this.#start(roomId, args.userId, args.timeout);
      return null;
    });
    this.#cluster?.serve('typing.stop', async (userId: string, roomId) => {
      await this.#stop(roomId, userId);
      return null;
    });
    this.#cluster?.onHandover({
      release: (lost) => this.#release((roomId) => lost('room', roomId)),
      take: () => this.#take(),
    });
  }

  in(roomId: string): readonly string[] {
    const shown = this.#shown.get(roomId);
    if (!shown) return NOBODY;
    // Whoever was to say that it is over has not.
    return this.#cluster && shown.until < Date.now() ? NOBODY : shown.userIds;
  }

  /** @param timeout milliseconds until it is over, unless the user says again that they type */
  start(roomId: string, userId: string, timeout = DEFAULT_TIMEOUT): void | Promise<void> {
    if (this.#owns(roomId)) return this.#start(roomId, userId, timeout);
    return this.#cluster!.call('room', roomId, 'typing.start', { userId, timeout }).then(() => {});
  }

  stop(roomId: string, userId: string): void | Promise<void> {
    if (this.#owns(roomId)) return this.#stop(roomId, userId);
    return this.#cluster!.call('room', roomId, 'typing.stop', userId).then(() => {});
  }

  /** All processes hear that a user is no longer in a room: the one that has it acts. */
  left(roomId: string, userId: string): void {
    if (this.#owns(roomId)) quietly(this.#stop(roomId, userId));
  }

  close(): void {
    for (const typists of this.#rooms.values()) for (const { timer } of typists.values()) clearTimeout(timer);
    this.#rooms.clear();
    this.#shown.clear();
  }

  #start(roomId: string, userId: string, timeout: number): void | Promise<void> {
    let typists = this.#rooms.get(roomId);
    if (!typists) {
      if (this.#rooms.size >= MAX_ROOMS) return;
      typists = new Map();
      this.#rooms.set(roomId, typists);
    }
    const known = typists.get(userId);
    if (!known && typists.size >= MAX_IN_ROOM) return;
    clearTimeout(known?.timer);
    const now = Date.now();
    const announce = !known || now - known.announced >= RENEWAL;
    const left = Math.min(Math.max(timeout, 1), MAX_TIMEOUT);
    const timer = setTimeout(() => quietly(this.#stop(roomId, userId)), left).unref();
    typists.set(userId, { timer, announced: announce ? now : known.announced, until: now + left });
    if (announce) return this.#announce(roomId, userId, true);
  }

  #stop(roomId: string, userId: string): void | Promise<void> {
    const typists = this.#rooms.get(roomId);
    const known = typists?.get(userId);
    if (!typists || !known) return;
    clearTimeout(known.timer);
    typists.delete(userId);
    if (typists.size === 0) this.#rooms.delete(roomId);
    return this.#announce(roomId, userId, false);
  }

  #owns(roomId: string): boolean {
    return !this.#cluster || this.#cluster.owns('room', roomId);
  }

  #announce(roomId: string, userId: string, typing: boolean): void | Promise<void> {
    const userIds = [...(this.#rooms.get(roomId) ?? NONE).keys()];
    return this.#stream.tell([{ roomId, userIds, changed: { userId, typing } }]);
  }

  #release(lost: (roomId: string) => boolean): void {
    for (const [roomId, typists] of this.#rooms) {
      if (!lost(roomId)) continue;
      for (const [userId, { timer, until }] of typists) {
        clearTimeout(timer);
        this.#given.push({ roomId, userId, until });
      }
      this.#rooms.delete(roomId);
    }
  }

  /** The next process may never have heard of them; who dies leaves what was announced to the next. */
  #take(): void {
    const now = Date.now();
    for (const { roomId, userId, until } of this.#given.splice(0))
      quietly(this.start(roomId, userId, Math.max(1, until - now)));
    for (const [roomId, { userIds }] of this.#shown) {
      if (!this.#owns(roomId)) continue;
      for (const userId of userIds)
        if (!this.#rooms.get(roomId)?.has(userId)) quietly(this.#start(roomId, userId, DEFAULT_TIMEOUT));
    }
  }
}

/** Who is not told of it has lost nothing that lasts. */
function quietly(told: void | Promise<void>): void {
  told?.catch(() => {});
}
