import { LRUCache } from 'lru-cache';

export interface RecentlyUsedOptions<K, V> {
  /** How long an entry is kept at the most, in milliseconds; from its last use on with `updateAgeOnGet`. */
  readonly ttl?: number;
  readonly updateAgeOnGet?: boolean;
  /** Told of each entry that is forgotten or replaced. */
  readonly dispose?: (value: V, key: K) => void;
}

/**
 * Keeps the entries that were used last, at most so many. `lru-cache` by itself takes the memory for all that it may
 * ever hold at once, which adds up to more than a server in use needs: this grows by what is in it.
 */
export class RecentlyUsed<K extends {}, V extends {}> extends LRUCache<K, V> {
  constructor(entries: number, options: RecentlyUsedOptions<K, V> = {}) {
    super({ ...options, maxSize: entries, sizeCalculation: one });
  }
}

function one(): number {
  return 1;
}
