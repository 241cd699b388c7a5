import { MAIN_TIMELINE } from './thread-of.ts';

export interface UnreadCounts {
  /** Of the main timeline. */
  readonly notify: number;
  readonly highlight: number;
  /** By thread root; only threads with something unread. */
  readonly threads: ReadonlyMap<string, { notify: number; highlight: number }>;
}

/** Up to where a user has read a room: by unthreaded receipts, and by those for `main` and for threads. */
export interface ReadUpTo {
  readonly unthreaded: number;
  readonly threads: ReadonlyMap<string, number>;
}

interface Count {
  notify: number;
  highlight: number;
  /** Positions of the oldest and the newest event that is counted. */
  first: number;
  last: number;
}

export const NOTHING_UNREAD: UnreadCounts = { notify: 0, highlight: 0, threads: new Map() };

/** Where the user has read to as far as that thread is concerned. */
export function readPosition(read: ReadUpTo, thread: string): number {
  return Math.max(read.unthreaded, read.threads.get(thread) ?? 0);
}

/** What a user has unread in a room, as counted up to a position. */
export class UnreadCounter {
  /** Where the membership began that this counts for. */
  readonly joinedPos: number;
  /** Everything in the stream of events up to here is counted. */
  pos: number;
  /** The newest event that was looked at. */
  lastEvent: number;
  /** What was taken off already. */
  read: ReadUpTo | undefined;
  /** Events looked at since this was stored. */
  unsaved = 0;
  readonly #counts: Map<string, Count>;
  #shown: UnreadCounts | undefined;

  constructor(joinedPos: number, pos: number, counts?: Iterable<[string, Count]>) {
    this.joinedPos = joinedPos;
    this.pos = pos;
    this.lastEvent = pos;
    this.#counts = new Map(counts);
  }

  static fromJson(joinedPos: number, pos: number, json: string): UnreadCounter {
    return new UnreadCounter(joinedPos, pos, JSON.parse(json) as Array<[string, Count]>);
  }

  toJson(): string {
    return JSON.stringify([...this.#counts]);
  }

  get shown(): UnreadCounts {
    this.#shown ??= this.#show();
    return this.#shown;
  }

  /** Position of the oldest event that is counted; `undefined` when there is nothing unread. */
  get oldest(): number | undefined {
    let oldest: number | undefined;
    for (const { first } of this.#counts.values()) oldest = Math.min(first, oldest ?? first);
    return oldest;
  }

  add(thread: string, pos: number, highlight: boolean): void {
    this.#shown = undefined;
    const count = this.#counts.get(thread);
    if (!count) this.#counts.set(thread, { notify: 1, highlight: highlight ? 1 : 0, first: pos, last: pos });
    else {
      count.notify++;
      if (highlight) count.highlight++;
      count.first = Math.min(count.first, pos);
      count.last = Math.max(count.last, pos);
    }
  }

  /**
   * Takes off what has been read.
   *
   * @returns threads of which a part was read: they are taken off as well, and to be counted again
   */
  takeOff(read: ReadUpTo): Set<string> {
    this.read = read;
    const again = new Set<string>();
    for (const [thread, { first, last }] of this.#counts) {
      const pos = readPosition(read, thread);
      if (pos < first) continue;
      this.#shown = undefined;
      this.#counts.delete(thread);
      if (pos < last) again.add(thread);
    }
    return again;
  }

  /** Takes off all that was counted of a thread. */
  readThread(thread: string): void {
    if (this.#counts.delete(thread)) this.#shown = undefined;
  }

  /** Takes everything off. @returns the threads that had something unread */
  clear(): Set<string> {
    const threads = new Set(this.#counts.keys());
    this.#counts.clear();
    this.#shown = undefined;
    return threads;
  }

  #show(): UnreadCounts {
    if (this.#counts.size === 0) return NOTHING_UNREAD;
    const { notify = 0, highlight = 0 } = this.#counts.get(MAIN_TIMELINE) ?? {};
    const threads = new Map<string, { notify: number; highlight: number }>();
    for (const [thread, count] of this.#counts)
      if (thread !== MAIN_TIMELINE) threads.set(thread, { notify: count.notify, highlight: count.highlight });
    return { notify, highlight, threads };
  }
}
