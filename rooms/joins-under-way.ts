import { setTimeout as delay } from 'node:timers/promises';
import { Lock } from './lock.ts';

/** How long what arrives for a room waits for a join. */
const MAX_WAIT = 30_000;

/**
 * Of one process, the one whose the rooms are: joins by way of other servers that run now, one at a time for a room.
 * The room's other servers begin to send its events before this server has put the room together: whoever receives them waits with `settled`.
 */
export class JoinsUnderWay {
  readonly #rooms = new Map<string, { lock: Lock; running: number; last: Promise<unknown> }>();

  async run<T>(roomId: string, task: () => Promise<T>): Promise<T> {
    let room = this.#rooms.get(roomId);
    if (!room) {
      room = { lock: new Lock(), running: 0, last: Promise.resolve() };
      this.#rooms.set(roomId, room);
    }
    room.running++;
    const result = room.lock.run(task);
    room.last = result.catch(() => {});
    try {
      return await result;
    } finally {
      if (--room.running === 0) this.#rooms.delete(roomId);
    }
  }

  get isAny(): boolean {
    return this.#rooms.size > 0;
  }

  /** Waits until no join to the room is under way, within limits. */
  async settled(roomId: string): Promise<void> {
    const last = this.#rooms.get(roomId)?.last;
    if (!last) return;
    const stop = new AbortController();
    await Promise.race([
      last,
      delay(MAX_WAIT, undefined, { signal: stop.signal, ref: false }).catch(() => {}),
    ]);
    stop.abort();
  }
}
