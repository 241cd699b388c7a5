import { alone, type Cluster } from '@trellis/cluster/cluster.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { announce } from './announce.ts';
import type { Room } from './room.ts';

/** Where the stream of events was when a user was erased. */
export type Erasures = ReadonlyMap<string, number>;

const NONE: Erasures = new Map();
const NEVER = -1;

/**
 * Users of this server whose accounts ended with a wish to be erased: who joins a room after that sees what they sent
 * there as if it were redacted (spec: `POST /account/deactivate`, `erase`).
 */
export class ErasedUsers {
  readonly #db: Queryable;
  readonly #serverName: string;
  readonly #known = new RecentlyUsed<string, number>(10_000);

  readonly #cluster: Cluster;
  /** What was being read before a change is not to be kept. */
  #changes = 0;

  constructor(db: Queryable, serverName: string, cluster: Cluster = alone()) {
    this.#db = db;
    this.#serverName = serverName;
    this.#cluster = cluster;
    cluster.onAnnounce('erased-users', (userId: string) => {
      this.#changes++;
      this.#known.delete(userId);
    });
    cluster.onGap(() => {
      this.#changes++;
      this.#known.clear();
    });
  }

  async erase(userId: string, pos: number): Promise<void> {
    await this.#db.query(
      'INSERT INTO erased_users (user_id, pos) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING',
      [userId, pos],
    );
    await announce(this.#cluster, 'erased-users', userId);
  }

  /** Those who sent something of what is asked for and were erased: only who has left the room can be. */
  async among(room: Room, events: readonly StoredEvent[]): Promise<Erasures> {
    const senders = new Set<string>();
    for (const { sender } of events)
      if (!room.isJoined(sender) && serverNameOf(sender) === this.#serverName) senders.add(sender);
    if (senders.size === 0) return NONE;
    const known = new Map<string, number>();
    for (const userId of senders) {
      const pos = this.#known.get(userId);
      if (pos !== undefined) known.set(userId, pos);
    }
    const unknown = [...senders].filter((userId) => !known.has(userId));
    const found = new Map<string, number>();
    if (unknown.length > 0) {
      const changes = this.#changes;
      const rows = await this.#db.query<{ userId: string; pos: number }>(
        {
          name: 'erased-users',
          text: 'SELECT user_id AS "userId", pos FROM erased_users WHERE user_id = ANY($1::text[])',
        },
        [unknown],
      );
      for (const userId of unknown) found.set(userId, NEVER);
      for (const { userId, pos } of rows) found.set(userId, pos);
      for (const [userId, pos] of changes === this.#changes ? found : []) this.#known.set(userId, pos);
    }
    for (const userId of senders) if (!found.has(userId)) found.set(userId, known.get(userId) ?? NEVER);
    for (const [userId, pos] of found) if (pos === NEVER) found.delete(userId);
    return found;
  }
}

/** State is the room's, whoever set it; a membership is its user's own. */
export function isErasable({ type, stateKey }: StoredEvent): boolean {
  return stateKey === undefined || type === 'm.room.member';
}
