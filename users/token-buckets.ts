import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';

export interface Rate {
  /** How many are let through in a second in the long run. */
  readonly perSecond: number;
  /** How many may come at once. */
  readonly burst: number;
}

/** A token bucket for each key, in bounded memory: the keys that were not seen for longest are forgotten. */
export class TokenBuckets {
  readonly #rate: Rate;
  /** When each bucket will be full again: one number says all of a bucket. */
  readonly #fullAt: RecentlyUsed<string, number>;
  readonly #now: () => number;

  constructor(rate: Rate, { max = 100_000, now = Date.now }: { max?: number; now?: () => number } = {}) {
    this.#rate = rate;
    this.#fullAt = new RecentlyUsed(max);
    this.#now = now;
  }

  /** Takes one token; with none left, says in how many milliseconds there will be one. */
  take(key: string): number {
    const wait = this.wait(key);
    if (wait === 0) this.#fullAt.set(key, this.#reach(key));
    return wait;
  }

  /** Takes tokens that were given out elsewhere, also when there are not as many; says as `wait` for the next one. */
  spend(key: string, count: number): number {
    const { perSecond, burst } = this.#rate;
    const now = this.#now();
    const full = Math.max(this.#fullAt.get(key) ?? 0, now) + (1000 * count) / perSecond;
    // What is too much is not held against anyone for longer than another burst takes to come back.
    this.#fullAt.set(key, Math.min(full, now + (2 * 1000 * burst) / perSecond));
    return this.wait(key);
  }

  /** As `take` would say, without taking. */
  wait(key: string): number {
    const room = (this.#rate.burst * 1000) / this.#rate.perSecond;
    return Math.max(0, Math.ceil(this.#reach(key) - this.#now() - room));
  }

  #reach(key: string): number {
    return Math.max(this.#fullAt.get(key) ?? 0, this.#now()) + 1000 / this.#rate.perSecond;
  }
}
