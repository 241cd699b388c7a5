import { LRUCache } from 'lru-cache';

/**
 * A bounded cache before the database. What is forgotten while it is being read is not kept: a revoked token cannot
 * come back by a read that began before it was revoked.
 */
export class ReadThroughCache<V extends object> {
  readonly #kept: LRUCache<string, V>;
  readonly #load: (key: string) => Promise<V | undefined>;
  readonly #loading = new Map<string, Promise<V | undefined>>();

  constructor(max: number, load: (key: string) => Promise<V | undefined>, ttl?: number) {
    this.#kept = new LRUCache(ttl === undefined ? { max } : { max, ttl });
    this.#load = load;
  }

  get(key: string): V | undefined | Promise<V | undefined> {
    return this.#kept.get(key) ?? this.#loading.get(key) ?? this.#read(key);
  }

  /** What is kept, without reading. */
  peek(key: string): V | undefined {
    return this.#kept.get(key);
  }

  forget(key: string): void {
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
