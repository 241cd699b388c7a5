import type { Database } from '@trellis/storage/database.ts';
import type { DeviceListChanges } from '../device-lists.ts';

export interface UnplacedUpdatesDeps {
  readonly db: Database;
  readonly lists: DeviceListChanges;
  /** Whether the user is in a room together with anyone of this server. */
  readonly sharesRoom: (userId: string) => Promise<boolean>;
  /** Whether users of the server may be in a room whose members are still being fetched. */
  readonly mayShareRoom: (server: string) => boolean;
}

/** Users remembered: what is more is not told, and found out when a client asks for their keys. */
const MAX_USERS = 10_000;
/** Changes of local users' devices during the fetching of a room's members that are looked at. */
const MAX_CHANGES = 10_000;

/**
 * Device lists while it is not known who is in a room: changes of users who turn out to be in it are told to clients
 * then, and servers that turn out to be in it get the changes that they have missed.
 */
export class UnplacedUpdates {
  readonly #deps: UnplacedUpdatesDeps;

  constructor(deps: UnplacedUpdatesDeps) {
    this.#deps = deps;
  }

  /** An update came for a user who is not known to share a room. */
  async note(server: string, userId: string): Promise<void> {
    if (!this.#deps.mayShareRoom(server)) return;
    await this.#deps.db.query(
      `INSERT INTO partial_device_lists SELECT $1 WHERE (SELECT count(*) FROM partial_device_lists) < $2
       ON CONFLICT DO NOTHING`,
      [userId, MAX_USERS],
    );
  }

  /** The members of a room have become known. */
  async place(isAnyLeft: boolean): Promise<void> {
    const { db, lists, sharesRoom } = this.#deps;
    const rows = await db.query<{ userId: string }>('SELECT user_id AS "userId" FROM partial_device_lists');
    const placed: string[] = [];
    for (const { userId } of rows) if (await sharesRoom(userId)) placed.push(userId);
    if (placed.length === 0 && isAnyLeft) return;
    await lists.record(async (tx, announce) => {
      for (const userId of placed) announce({ userId });
      await tx.query('DELETE FROM partial_device_lists WHERE $2 OR user_id = ANY($1)', [placed, !isAnyLeft]);
    });
  }

  /** Tells servers of those of the local users whose devices have changed since. */
  async tellMissed(userIds: ReadonlySet<string>, since: number, servers: readonly string[]): Promise<void> {
    if (servers.length === 0) return;
    const { lists } = this.#deps;
    const changes = await lists.localChanges(since, Number.MAX_SAFE_INTEGER, MAX_CHANGES);
    const changed = new Set(changes.map(({ userId }) => userId).filter((userId) => userIds.has(userId)));
    for (const userId of changed) await lists.newServers(userId, servers);
  }
}
