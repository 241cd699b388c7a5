import type { Cluster } from '@trellis/cluster/cluster.ts';

/** Which destinations are this process's, and since when it follows what concerns them. */
export class OwnedNames {
  readonly #cluster: Cluster;
  readonly #maySettle: () => boolean;
  /** Position in the stream of events after which each is followed. */
  readonly #since = new Map<string, number>();
  #settledAt = 0;
  #isLost: ((name: string) => boolean) | undefined;
  /** The owned ones of arrays that stay the same from event to event. */
  #ofArrays = new WeakMap<readonly string[], readonly string[]>();

  /** @param maySettle whether those that are new to this process can be told from those it had */
  constructor(cluster: Cluster, maySettle: () => boolean) {
    this.#cluster = cluster;
    this.#maySettle = maySettle;
  }

  /** Whether it is this process that delivers to the server; if so, it is followed from now on. */
  has(name: string): boolean {
    if (!this.#cluster.shared) return true;
    if (!this.#owns(name)) return false;
    if (this.#since.has(name)) return true;
    if (!this.#maySettle()) return false;
    this.#since.set(name, this.#settledAt);
    return true;
  }

  /** It has come to this process, and nothing has happened for it here. */
  isNew(name: string): boolean {
    return this.#owns(name) && !this.#since.has(name);
  }

  /** Whether this process has heard of what happened for it at a position. */
  isFollowed(name: string, pos: number): boolean {
    const since = this.#since.get(name);
    return since !== undefined && pos > since;
  }

  /** Those of a list that are this process's. */
  of(names: readonly string[]): readonly string[] {
    if (!this.#cluster.shared) return names;
    let owned = this.#ofArrays.get(names);
    if (!owned) {
      owned = names.filter((name) => this.#owns(name));
      this.#ofArrays.set(names, owned);
    }
    return owned;
  }

  release(isLost: (name: string) => boolean): void {
    this.#isLost = isLost;
    for (const name of this.#since.keys()) if (isLost(name)) this.#since.delete(name);
    this.#ofArrays = new WeakMap();
  }

  taken(): void {
    this.#isLost = undefined;
    this.#ofArrays = new WeakMap();
  }

  /** All that is new from now on has been looked up as of this position. */
  settle(pos: number): void {
    this.#settledAt = pos;
  }

  #owns(name: string): boolean {
    return this.#cluster.owns('destination', name) && this.#isLost?.(name) !== true;
  }
}
