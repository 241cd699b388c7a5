import type { EventChange } from '@trellis/rooms/rooms.ts';
import type { Stream } from '@trellis/storage/streams.ts';

/** Waits for news of rooms, whoever is in them: for those who look into a room from outside. */
export class RoomWaits {
  readonly #stream: Stream<EventChange>;
  readonly #waiting = new Map<string, Set<() => void>>();

  constructor(stream: Stream<EventChange>) {
    this.#stream = stream;
    stream.subscribe(
      (_pos, { roomId }) => {
        for (const wake of this.#waiting.get(roomId) ?? []) wake();
      },
      // What was missed is in the database.
      () => this.wakeAll(),
    );
  }

  wakeAll(): void {
    for (const waiting of this.#waiting.values()) for (const wake of waiting) wake();
  }

  /** Returns once something happens in one of the rooms after position `seen`, the time is up, or `signal` aborts. */
  async wait(
    roomIds: readonly string[],
    seen: number,
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<void> {
    if (this.#stream.current > seen || signal.aborted) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, timeoutMs);
    signal.addEventListener('abort', () => resolve(), { once: true });
    for (const roomId of roomIds) {
      const waiting = this.#waiting.get(roomId);
      if (waiting) waiting.add(resolve);
      else this.#waiting.set(roomId, new Set([resolve]));
    }
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      for (const roomId of roomIds) {
        const waiting = this.#waiting.get(roomId);
        waiting?.delete(resolve);
        if (waiting?.size === 0) this.#waiting.delete(roomId);
      }
    }
  }
}
