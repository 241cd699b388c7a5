import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** Events that a room keeps in memory at the most. */
const MAX_EVENTS = 200;
/** Bytes of event JSON that a room keeps in memory at the most. */
const MAX_BYTES = 512 * 1024;

/**
 * The newest events of a room's order, in memory: what nearly every sync asks for. Holds all accepted events with a
 * position above `from`, and none below.
 */
export class TimelineTail {
  #events: StoredEvent[];
  #from: number;
  #bytes = 0;

  /**
   * @param from everything above this position is in `events`, and nothing is missing there; -Infinity when the
   *   room's whole order is
   * @param events oldest first
   */
  constructor(from: number, events: readonly StoredEvent[]) {
    this.#from = from;
    this.#events = [...events];
    for (const event of events) this.#bytes += event.json.length;
  }

  /** All accepted events above this position are here. */
  get from(): number {
    return this.#from;
  }

  get events(): readonly StoredEvent[] {
    return this.#events;
  }

  get newest(): StoredEvent | undefined {
    return this.#events.at(-1);
  }

  /** The oldest event in memory above a position. */
  firstAfter(pos: number): StoredEvent | undefined {
    return this.#events[this.#indexAfter(pos)];
  }

  find(eventId: string): StoredEvent | undefined {
    return this.#events.findLast((event) => event.eventId === eventId);
  }

  push(event: StoredEvent): void {
    this.#events.push(event);
    this.#bytes += event.json.length;
    if (this.#events.length <= MAX_EVENTS && this.#bytes <= MAX_BYTES) return;
    // Half at a time, so that a busy room does not shift its array for every event.
    const drop = Math.max(1, this.#events.length >> 1);
    const dropped = this.#events.slice(0, drop);
    for (const old of dropped) this.#bytes -= old.json.length;
    this.#events = this.#events.slice(drop);
    this.#from = dropped.at(-1)!.pos!;
  }

  /**
   * An event is about to come at that position some of whose predecessors are not here. What lies before it is no
   * longer next to what comes after, so the tail begins anew.
   */
  cut(pos: number): void {
    this.#events = [];
    this.#bytes = 0;
    this.#from = pos - 1;
  }

  /** Begins anew with the events that were read again, oldest first, as what became of them has changed. */
  reset(from: number, events: readonly StoredEvent[]): void {
    this.#events = [...events];
    this.#from = from;
    this.#bytes = 0;
    for (const event of events) this.#bytes += event.json.length;
  }

  /** Older events were put into the order: from here on only what lies above the oldest event in memory is sure. */
  backfilled(): void {
    this.#from = Math.max(this.#from, (this.#events[0]?.pos ?? Number.MAX_SAFE_INTEGER) - 1);
  }

  /**
   * The newest `limit` events at `after < pos <= upTo`, oldest first, and whether there are more in between that were
   * left out. `undefined` when memory does not reach back far enough to say.
   */
  between(
    after: number,
    upTo: number,
    limit: number,
  ): { events: StoredEvent[]; limited: boolean } | undefined {
    const end = this.#indexAfter(upTo);
    const start = this.#indexAfter(after);
    if (after >= this.#from) {
      const first = Math.max(start, end - limit);
      return { events: this.#events.slice(first, end), limited: first > start };
    }
    if (end < limit || end === 0) return undefined;
    return { events: this.#events.slice(end - limit, end), limited: true };
  }

  /** Index of the first event with a position above `pos`. */
  #indexAfter(pos: number): number {
    let low = 0;
    let high = this.#events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#events[middle]!.pos! <= pos) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
