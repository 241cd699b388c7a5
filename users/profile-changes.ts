import type { Cluster } from '@trellis/cluster/cluster.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { PresenceChange, Stream } from '@trellis/storage/streams.ts';

export interface ProfileChangesDeps {
  readonly db: Queryable;
  /**
   * Changes of profiles take their positions from the stream of presence, which concerns the same readers: those who
   * share a room with the user.
   */
  readonly stream: Stream<PresenceChange>;
  /** Wakes the syncs of those who share a room with the user. */
  readonly wake: (userId: string) => void;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
}

/** Changes kept in memory: who is not further behind asks no table. */
const MAX_LOG = 5_000;
/** Fields of all users that one answer brings. */
const MAX_VALUES = 50_000;

/** Which fields of local users' profiles changed when, and what they are, for syncs (MSC4429, MSC4262). */
export class ProfileChanges {
  readonly #deps: ProfileChangesDeps;
  #log: Array<{ pos: number; userId: string; field: string }> = [];
  #logFrom: number;

  constructor(deps: ProfileChangesDeps) {
    this.#deps = deps;
    this.#logFrom = deps.stream.current;
    const { cluster, stream, wake } = deps;
    stream.subscribe(
      () => {},
      ({ to }) => {
        this.#log = [];
        this.#logFrom = to;
      },
    );
    if (!cluster?.shared) return;
    cluster.onAnnounce('profile-changed', ([pos, userId, field]: [number, string, string]) =>
      this.#note(pos, userId, field),
    );
    cluster.onAnnounce('profile-wake', wake);
  }

  async record(userId: string, field: string): Promise<void> {
    const { db, stream, wake, cluster } = this.#deps;
    const pos = await stream.reserve();
    try {
      await db.query(
        {
          name: 'profile-changed',
          text: `INSERT INTO profile_changes (user_id, field, pos) VALUES ($1, $2, $3)
                 ON CONFLICT (user_id, field) DO UPDATE SET pos = excluded.pos`,
        },
        [userId, field, pos],
      );
      // Before the position is reached anywhere, so that nobody looks there in vain.
      if (cluster?.shared) await cluster.announce('profile-changed', [pos, userId, field]);
      else this.#note(pos, userId, field);
    } finally {
      await stream.complete(pos, []);
    }
    if (cluster?.shared) await cluster.announce('profile-wake', userId);
    else wake(userId);
  }

  #note(pos: number, userId: string, field: string): void {
    this.#log.push({ pos, userId, field });
    // Two changes may be stored in another order than they have positions, so that the cut is made at the highest.
    if (this.#log.length > MAX_LOG)
      for (const old of this.#log.splice(0, MAX_LOG / 2)) this.#logFrom = Math.max(this.#logFrom, old.pos);
  }

  /** Fields by user that changed in (from, to]. */
  async between(from: number, to: number): Promise<Map<string, Set<string>>> {
    const found = new Map<string, Set<string>>();
    if (from >= to) return found;
    const rows =
      from >= this.#logFrom
        ? this.#log.filter(({ pos }) => pos > from && pos <= to)
        : await this.#deps.db.query<{ userId: string; field: string }>(
            {
              name: 'profile-changes',
              text: `SELECT user_id AS "userId", field FROM profile_changes WHERE pos > $1 AND pos <= $2
                     ORDER BY pos DESC LIMIT $3`,
            },
            [from, to, MAX_VALUES],
          );
    for (const { userId, field } of rows) found.set(userId, (found.get(userId) ?? new Set()).add(field));
    return found;
  }

  /** The fields of these users' profiles that they have, among those named. */
  async values(
    userIds: readonly string[],
    fields: readonly string[],
  ): Promise<Map<string, Record<string, unknown>>> {
    const found = new Map<string, Record<string, unknown>>();
    if (userIds.length === 0 || fields.length === 0) return found;
    const rows = await this.#deps.db.query<{ userId: string; field: string; value: string }>(
      {
        name: 'profile-values',
        text: `SELECT user_id AS "userId", field, value FROM profile_fields
               WHERE user_id = ANY($1::text[]) AND field = ANY($2::text[]) LIMIT $3`,
      },
      [userIds, fields, MAX_VALUES],
    );
    for (const { userId, field, value } of rows) {
      const values = found.get(userId) ?? {};
      values[field] = decodeJson(value);
      found.set(userId, values);
    }
    return found;
  }
}
