import type { Item, ToCoordinator } from './messages.ts';

/** Whom to tell once everybody has taken in a part of the order. */
export interface Waiter {
  readonly member: string;
  readonly n: number;
}

interface Reserved {
  readonly by: string;
  done?: { readonly changes: string; readonly isUrgent: boolean; readonly waiter: Waiter | undefined };
  /** Its writer has died, and may have stored something there. */
  lost?: boolean;
}

interface Sequence {
  next: number;
  current: number;
  /** In the order of positions, as a Map keeps that of insertion. */
  readonly reserved: Map<number, Reserved>;
}

/**
 * The coordinator's mind: the positions of all streams, and the one order in which members are told of everything.
 * Without I/O; what is to be told comes out by `emit`.
 */
export class Order {
  readonly #sequences = new Map<string, Sequence>();
  readonly #emit: (item: Item, waiter: Waiter | undefined) => void;

  /** @param starts where each stream begins: above all positions that were ever given */
  constructor(starts: ReadonlyMap<string, number>, emit: (item: Item, waiter: Waiter | undefined) => void) {
    for (const [stream, start] of starts)
      this.#sequences.set(stream, { next: start, current: start, reserved: new Map() });
    this.#emit = emit;
  }

  positions(): Record<string, number> {
    return Object.fromEntries([...this.#sequences].map(([stream, { current }]) => [stream, current]));
  }

  /** Whether positions are open. */
  get busy(): boolean {
    for (const { reserved } of this.#sequences.values()) if (reserved.size > 0) return true;
    return false;
  }

  /** @returns the first of `count` positions; `undefined` for a stream that there is not */
  reserve(by: string, stream: string, count: number, gapBefore: number): number | undefined {
    const sequence = this.#sequences.get(stream);
    if (!sequence) return undefined;
    const first = sequence.next + 1 + gapBefore;
    for (let i = 0; i < count; i++) sequence.reserved.set(first + i, { by });
    sequence.next = first + count - 1;
    return first;
  }

  /** @returns whether the position was that member's and open */
  complete(
    by: string,
    { s: stream, p: position, x: changes, u: isUrgent, n }: Extract<ToCoordinator, { t: 'complete' }>,
  ): boolean {
    const sequence = this.#sequences.get(stream);
    const entry = sequence?.reserved.get(position);
    if (!sequence || entry?.by !== by || entry.done || entry.lost) return false;
    entry.done = { changes, isUrgent, waiter: { member: by, n } };
    this.#advance(stream, sequence);
    return true;
  }

  /** A member has died, and can store nothing any more: what it has reserved and not completed is passed over. */
  abandon(member: string): void {
    for (const [stream, sequence] of this.#sequences) {
      for (const entry of sequence.reserved.values())
        if (entry.by === member && !entry.done) entry.lost = true;
      this.#advance(stream, sequence);
    }
  }

  #advance(stream: string, sequence: Sequence): void {
    for (const [position, { done, lost }] of sequence.reserved) {
      if (!done && !lost) break;
      sequence.reserved.delete(position);
      sequence.current = position;
      if (done) this.#emit(['change', stream, position, done.changes, done.isUrgent], done.waiter);
      else this.#emit(['skip', stream, position], undefined);
    }
  }
}
