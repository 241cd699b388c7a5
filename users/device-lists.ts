import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { DeviceListChange, Stream } from '@trellis/storage/streams.ts';
import type { DeviceLists } from './devices.ts';

/** A change as the stream keeps it. */
export interface ListChange extends DeviceListChange {
  /** The device of a local user; left out for cross-signing keys and for users of other servers. */
  readonly deviceId?: string;
}

export interface DeviceListChangesDeps {
  readonly db: Database;
  readonly stream: Stream<DeviceListChange>;
  readonly serverName: string;
}

/** Changes kept in memory: a sync that is not further behind asks no table. */
const MAX_TAIL = 10_000;
/** How long each single change is kept for servers that could not be reached, in milliseconds. */
const HISTORY_MS = 30 * 24 * 3600_000;

/** The stream of device lists: who changed devices or keys, for syncs and for other servers. */
export class DeviceListChanges implements DeviceLists {
  readonly #db: Database;
  readonly #stream: Stream<DeviceListChange>;
  readonly #serverName: string;
  #tail: Array<{ pos: number; userId: string; onlyFor: string | undefined }> = [];
  #tailSince: number;

  constructor({ db, stream, serverName }: DeviceListChangesDeps) {
    this.#db = db;
    this.#stream = stream;
    this.#serverName = serverName;
    this.#tailSince = stream.current;
    stream.subscribe(
      (pos, { userId, servers, onlyFor }) => {
        if (servers) return;
        this.#tail.push({ pos, userId, onlyFor });
        if (this.#tail.length <= MAX_TAIL) return;
        const dropped = this.#tail.splice(0, MAX_TAIL / 2);
        this.#tailSince = dropped.at(-1)!.pos;
      },
      ({ to }) => {
        this.#tail = [];
        this.#tailSince = to;
      },
    );
  }

  isLocal(userId: string): boolean {
    return serverNameOf(userId) === this.#serverName;
  }

  /**
   * Runs `work` in a transaction together with the changes that it announces: either both are stored or neither,
   * and readers hear of them after the commit.
   */
  async record<T>(work: (tx: Queryable, announce: (change: ListChange) => void) => Promise<T>): Promise<T> {
    const reserved: Array<{ position: number; change: ListChange }> = [];
    let committed = false;
    try {
      const result = await this.#db.transaction(async (tx) => {
        const changes: ListChange[] = [];
        const result = await work(tx, (change) => changes.push(change));
        if (changes.length === 0) return result;
        const first = await this.#stream.reserveMany(changes.length);
        const guard = this.#stream.guard();
        for (const [i, change] of changes.entries()) reserved.push({ position: first + i, change });
        await guard(tx);
        await insertChanges(tx, reserved);
        return result;
      });
      committed = true;
      return result;
    } finally {
      await Promise.all(
        reserved.map(({ position, change }) => this.#stream.conclude(position, committed ? [change] : [])),
      );
    }
  }

  async changed(userId: string, deviceIds: readonly string[]): Promise<void> {
    await this.record(async (tx, announce) => {
      for (const deviceId of deviceIds) announce({ userId, deviceId });
      await tx.query('DELETE FROM device_list_unannounced WHERE user_id = $1 AND device_id = ANY($2)', [
        userId,
        deviceIds,
      ]);
    });
  }

  /** Notes a deletion in the transaction that makes it: `changed` is called after the commit, or by `resume`. */
  async noteDeleted(tx: Queryable, userId: string, deviceIds: readonly string[]): Promise<void> {
    await tx.query(
      `INSERT INTO device_list_unannounced SELECT $1, id FROM unnest($2::text[]) AS u (id) ON CONFLICT DO NOTHING`,
      [userId, deviceIds],
    );
  }

  /** Announces deletions that a stop cut off. To be called at the start. */
  async resume(): Promise<void> {
    const rows = await this.#db.query<{ userId: string; deviceIds: string[] }>(
      `SELECT user_id AS "userId", array_agg(device_id) AS "deviceIds" FROM device_list_unannounced
       GROUP BY user_id LIMIT 10000`,
    );
    for (const { userId, deviceIds } of rows) await this.changed(userId, deviceIds);
  }

  /** Users whose devices or keys changed in (from, to], as far as the viewer may know. */
  async usersChanged(from: number, to: number, viewer: string): Promise<Set<string>> {
    const users = new Set<string>();
    if (from >= this.#tailSince) {
      for (let i = this.#tail.length - 1; i >= 0; i--) {
        const { pos, userId, onlyFor } = this.#tail[i]!;
        if (pos <= from) break;
        if (pos <= to && (onlyFor === undefined || onlyFor === viewer)) users.add(userId);
      }
      return users;
    }
    const rows = await this.#db.query<{ userId: string }>(
      {
        name: 'device-list-users-changed',
        text: `SELECT DISTINCT user_id AS "userId" FROM device_list_changes
               WHERE pos > $1 AND pos <= $2 AND servers IS NULL AND (only_for IS NULL OR only_for = $3)`,
      },
      [from, to, viewer],
    );
    for (const { userId } of rows) users.add(userId);
    return users;
  }

  /**
   * Local users of whom other servers have to be told something in (from, to]; to which servers, if not to all. At
   * the most `limit` of them, oldest first.
   */
  localChanges(
    from: number,
    to: number,
    limit: number,
  ): Promise<Array<{ pos: number; userId: string; servers: string[] | null }>> {
    return this.#db.query(
      {
        name: 'device-list-local-changes',
        text: `SELECT pos, user_id AS "userId", servers FROM device_list_changes
               WHERE pos > $1 AND pos <= $2 AND only_for IS NULL
                 AND substr(user_id, strpos(user_id, ':') + 1) = $3
               ORDER BY pos LIMIT $4`,
      },
      [from, to, this.#serverName, limit],
    );
  }

  /**
   * A local user begins to share a room with these servers, which may have an old copy of the devices or none.
   *
   * @param options.withKeys only of devices that messages can be encrypted for
   */
  async newServers(
    userId: string,
    servers: readonly string[],
    options: { readonly withKeys?: boolean } = {},
  ): Promise<void> {
    await this.record(async (tx, announce) => {
      const devices = await tx.query<{ deviceId: string }>(
        `SELECT device_id AS "deviceId" FROM devices d WHERE user_id = $1
           AND (NOT $2 OR EXISTS (SELECT FROM device_keys k WHERE k.user_id = $1 AND k.device_id = d.device_id))
         ORDER BY created_ts DESC LIMIT 20`,
        [userId, options.withKeys === true],
      );
      for (const { deviceId } of devices.reverse()) announce({ userId, deviceId, servers });
    });
  }

  /** Drops old changes; the last of each user stays, so that a sync from long ago still learns of them. */
  async prune(): Promise<void> {
    await this.#db.query(
      `DELETE FROM device_list_changes c WHERE ts < $1 AND (servers IS NOT NULL OR EXISTS (
         SELECT 1 FROM device_list_changes n
         WHERE n.user_id = c.user_id AND n.pos > c.pos AND n.servers IS NULL
           AND n.only_for IS NOT DISTINCT FROM c.only_for))`,
      [Date.now() - HISTORY_MS],
    );
  }
}

async function insertChanges(
  tx: Queryable,
  rows: ReadonlyArray<{ position: number; change: ListChange }>,
): Promise<void> {
  await tx.query(
    {
      name: 'device-list-insert',
      text: `INSERT INTO device_list_changes (pos, user_id, device_id, servers, only_for, ts)
             SELECT pos, user_id, device_id, string_to_array(servers, ' '), only_for, $6
             FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[])
               AS c (pos, user_id, device_id, servers, only_for)`,
    },
    [
      rows.map(({ position }) => position),
      rows.map(({ change }) => change.userId),
      rows.map(({ change }) => change.deviceId ?? null),
      rows.map(({ change }) => change.servers?.join(' ') ?? null),
      rows.map(({ change }) => change.onlyFor ?? null),
      Date.now(),
    ],
  );
}
