import type { Cluster } from '@trellis/cluster/cluster.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { sharedForgetting } from './shared-forgetting.ts';

export interface ReadThroughCacheOptions {
  /** How long something is kept, in milliseconds. */
  readonly ttl?: number;
  /** Where other processes keep copies of the same: all forget together. */
  readonly cluster?: Cluster | undefined;
  /** Which cache it is among those of the process. */
  readonly name?: string;
}

/**
 * A bounded cache before the database. What is forgotten while it is being read is not kept: a revoked token cannot
 * come back by a read that began before it was revoked.
 */
export class ReadThroughCache<V extends object> {
  readonly #kept: RecentlyUsed<string, V>;
  readonly #load: (key: string) => Promise<V | undefined>;
  readonly #loading = new Map<string, Promise<V | undefined>>();
  readonly #tell: ((keys: readonly string[]) => Promise<void>) | undefined;

  constructor(
    max: number,
    load: (key: string) => Promise<V | undefined>,
    { ttl, cluster, name }: ReadThroughCacheOptions = {},
  ) {
    this.#kept = new RecentlyUsed(max, ttl === undefined ? {} : { ttl });
    this.#load = load;
    if (cluster?.shared && name !== undefined)
      this.#tell = sharedForgetting(cluster, name, {
        drop: (key) => this.drop(key),
        clear: () => this.clear(),
      });
    else cluster?.onGap(() => this.clear());
  }

  get(key: string): V | undefined | Promise<V | undefined> {
    return this.#kept.get(key) ?? this.#loading.get(key) ?? this.#read(key);
  }

  /** What is kept, without reading. */
  peek(key: string): V | undefined {
    return this.#kept.get(key);
  }

  /** To be called, and awaited, after the commit and before anybody is told: no process knows the old value then. */
  forget(...keys: readonly string[]): void | Promise<void> {
    for (const key of keys) this.drop(key);
    if (keys.length > 0) return this.#tell?.(keys);
  }

  /** In this process, where each learns by itself what has changed. */
  drop(key: string): void {
    this.#kept.delete(key);
    this.#loading.delete(key);
  }

  clear(): void {
    this.#kept.clear();
    this.#loading.clear();
  }

  #read(key: string): Promise<V | undefined> {
    const reading: Promise<V | undefined> = this.#load(key).then(
      (value) => {
        if (this.#loading.get(key) === reading) {
          this.#loading.delete(key);
          if (value !== undefined) this.#kept.set(key, value);
        }
        return value;
      },
      (error) => {
        if (this.#loading.get(key) === reading) this.#loading.delete(key);
        throw error;
      },
    );
    this.#loading.set(key, reading);
    return reading;
  }
}
