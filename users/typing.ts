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
}

const NOBODY: readonly string[] = [];

/** Who types where (spec: "Typing Notifications"). In memory only. */
export class Typing {
  readonly #stream: Stream<TypingChange>;
  readonly #rooms = new Map<string, { typists: Map<string, Typist>; userIds: readonly string[] }>();

  constructor(stream: Stream<TypingChange>) {
    this.#stream = stream;
  }

  in(roomId: string): readonly string[] {
    return this.#rooms.get(roomId)?.userIds ?? NOBODY;
  }

  /** @param timeout milliseconds until it is over, unless the user says again that they type */
  start(roomId: string, userId: string, timeout = DEFAULT_TIMEOUT): void {
    let room = this.#rooms.get(roomId);
    if (!room) {
      if (this.#rooms.size >= MAX_ROOMS) return;
      room = { typists: new Map(), userIds: NOBODY };
      this.#rooms.set(roomId, room);
    }
    const known = room.typists.get(userId);
    if (!known && room.typists.size >= MAX_IN_ROOM) return;
    clearTimeout(known?.timer);
    const now = Date.now();
    const announce = !known || now - known.announced >= RENEWAL;
    const timer = setTimeout(
      () => this.stop(roomId, userId),
      Math.min(Math.max(timeout, 1), MAX_TIMEOUT),
    ).unref();
    room.typists.set(userId, { timer, announced: announce ? now : known.announced });
    if (!known) room.userIds = [...room.typists.keys()];
    if (announce) this.#announce(roomId, userId, true);
  }

  stop(roomId: string, userId: string): void {
    const room = this.#rooms.get(roomId);
    const known = room?.typists.get(userId);
    if (!room || !known) return;
    clearTimeout(known.timer);
    room.typists.delete(userId);
    room.userIds = [...room.typists.keys()];
    if (room.typists.size === 0) this.#rooms.delete(roomId);
    this.#announce(roomId, userId, false);
  }

  close(): void {
    for (const { typists } of this.#rooms.values())
      for (const { timer } of typists.values()) clearTimeout(timer);
    this.#rooms.clear();
  }

  #announce(roomId: string, userId: string, typing: boolean): void {
    const changes = [{ roomId, userIds: this.in(roomId), changed: { userId, typing } }];
    void this.#stream.write(changes, async () => {});
  }
}
