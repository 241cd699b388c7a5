import type { Cluster } from '@trellis/cluster/cluster.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import { ReadThroughCache } from '@trellis/users/read-through-cache.ts';

const MAX_ROOMS = 20_000;

/** Aliases of rooms, kept for the question that comes with each event. */
export class RoomAliases {
  readonly #cache: ReadThroughCache<string[]>;

  /** @param cluster where changes may have been missed */
  constructor(aliases: Pick<Aliases, 'ofRoom' | 'onChanged'>, cluster?: Pick<Cluster, 'onGap'>) {
    this.#cache = new ReadThroughCache(MAX_ROOMS, (roomId) => aliases.ofRoom(roomId));
    aliases.onChanged((roomId) => this.#cache.drop(roomId));
    cluster?.onGap(() => this.#cache.clear());
  }

  async of(roomId: string): Promise<readonly string[]> {
    return (await this.#cache.get(roomId)) ?? [];
  }
}
