import type { Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError } from '@trellis/protocol/errors.ts';
import { type Rate, TokenBuckets } from './token-buckets.ts';

/**
 * Token buckets of which each is kept by one process, the owner of its key: strict, at the price of asking it. When the
 * owner changes, buckets are full again.
 */
export class SharedBuckets {
  readonly #buckets: TokenBuckets;
  readonly #name: string;
  readonly #cluster: Cluster | undefined;

  /** @param name which buckets they are among those of the process */
  constructor(rate: Rate, name: string, cluster?: Cluster) {
    this.#buckets = new TokenBuckets(rate);
    this.#name = `buckets.${name}`;
    this.#cluster = cluster?.shared ? cluster : undefined;
    cluster?.serve(this.#name, (isTaking: boolean, key) =>
      isTaking ? this.#buckets.take(key) : this.#buckets.wait(key),
    );
  }

  /** As `TokenBuckets.take`. */
  take(key: string): number | Promise<number> {
    return this.#cluster ? this.#ask(this.#cluster, key, true) : this.#buckets.take(key);
  }

  /** As `TokenBuckets.wait`. */
  wait(key: string): number | Promise<number> {
    return this.#cluster ? this.#ask(this.#cluster, key, false) : this.#buckets.wait(key);
  }

  /** The owner's buckets die with it: whoever has just asked it asks the next one. */
  async #ask(cluster: Cluster, key: string, isTaking: boolean): Promise<number> {
    try {
      return await cluster.call<number>('user', key, this.#name, isTaking);
    } catch (error) {
      if (!(error instanceof MatrixError && error.status === 503)) throw error;
      return cluster.call<number>('user', key, this.#name, isTaking);
    }
  }
}
