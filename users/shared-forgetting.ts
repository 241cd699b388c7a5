import type { Cluster } from '@trellis/cluster/cluster.ts';

/** Something that keeps copies of what is in the database. */
export interface Forgetful {
  drop(key: string): void;
  clear(): void;
}

const TOPIC = 'cache';

const caches = new WeakMap<Cluster, Map<string, Forgetful>>();

/**
 * Ties what is kept under one name in all processes together. After a gap all of it is dropped.
 *
 * @returns has all processes forget these keys, and resolves when they have
 */
export function sharedForgetting(
  cluster: Cluster,
  name: string,
  cache: Forgetful,
): (keys: readonly string[]) => Promise<void> {
  const named = caches.get(cluster) ?? follow(cluster);
  named.set(name, cache);
  cluster.onGap(() => cache.clear());
  return (keys) => cluster.announce(TOPIC, [name, keys]);
}

function follow(cluster: Cluster): Map<string, Forgetful> {
  const named = new Map<string, Forgetful>();
  caches.set(cluster, named);
  cluster.onAnnounce(TOPIC, ([name, keys]: [string, readonly string[]]) => {
    const cache = named.get(name);
    for (const key of keys) cache?.drop(key);
  });
  return named;
}
