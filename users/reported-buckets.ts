import type { Cluster } from '@trellis/cluster/cluster.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { type Rate, TokenBuckets } from './token-buckets.ts';

const MAX_KEYS = 100_000;

/**
 * Token buckets that let through on the spot and report to the owner of a key what was taken, a part of the burst at a
 * time: nobody waits for another process, most keys cost no call at all, and through n processes at the most n such
 * parts more are let through than by one. Once the owner has none to give all processes know.
 */
export class ReportedBuckets {
  readonly #rate: Rate;
  readonly #name: string;
  readonly #cluster: Cluster | undefined;
  readonly #here: TokenBuckets;
  /** What all processes report. */
  readonly #all: TokenBuckets;
  readonly #unreported = new RecentlyUsed<string, number>(MAX_KEYS);
  /** Until when the owner has none to give. */
  readonly #emptyUntil = new RecentlyUsed<string, number>(MAX_KEYS);

  /** @param name which buckets they are among those of the process */
  constructor(rate: Rate, name: string, cluster?: Cluster) {
    this.#rate = rate;
    this.#name = `buckets.${name}`;
    this.#cluster = cluster?.shared && Number.isFinite(rate.perSecond) ? cluster : undefined;
    this.#here = new TokenBuckets(rate);
    this.#all = new TokenBuckets(rate);
    cluster?.serve(this.#name, (count: number, key) => this.#all.spend(key, count));
    cluster?.onAnnounce(this.#name, ([key, wait]: [key: string, wait: number]) =>
      this.#emptyUntil.set(key, Date.now() + wait),
    );
  }

  /** As `TokenBuckets.take`. */
  take(key: string): number {
    if (!this.#cluster) return this.#here.take(key);
    const empty = (this.#emptyUntil.get(key) ?? 0) - Date.now();
    if (empty > 0) return empty;
    const wait = this.#here.take(key);
    if (wait > 0) return wait;
    const unreported = (this.#unreported.get(key) ?? 0) + 1;
    const isDue = unreported >= Math.max(1, this.#rate.burst / 4);
    this.#unreported.set(key, isDue ? 0 : unreported);
    if (isDue) this.#report(this.#cluster, key, unreported);
    return 0;
  }

  #report(cluster: Cluster, key: string, count: number): void {
    cluster
      .call<number>('user', key, this.#name, count)
      .then((wait) => {
        if (wait <= 0) return undefined;
        this.#emptyUntil.set(key, Date.now() + wait);
        // Who asks another process next is to wait as well.
        return cluster.announce(this.#name, [key, wait]);
      })
      .catch(() => {});
  }
}
