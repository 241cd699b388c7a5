import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { ContentLocks } from './content-locks.ts';

export interface MediaName {
  origin: string;
  mediaId: string;
}

/** Media that nobody asked for since `before`. */
export interface Unused {
  where: 'local' | 'remote';
  before: number;
  /** Only what is larger, in bytes. */
  largerThan?: number;
  /** Avatars of users too. */
  avatarsToo?: boolean;
}

/** Content under one of its names. */
export interface MediaInfo {
  origin: string;
  mediaId: string;
  userId: string | null;
  createdTs: number;
  sha256: Buffer;
  size: number;
  contentType: string;
  filename: string | null;
  /** Not to be served by the unauthenticated endpoints. */
  authenticated: boolean;
  /** The administrator who decided that it is served to nobody. */
  quarantinedBy: string | null;
}

/** A name without content: a user's, or one of another server that is quarantined before it was ever asked for. */
export interface Reservation {
  userId: string | null;
  expiresTs: number | null;
  quarantinedBy: string | null;
}

interface MediaRow {
  origin: string;
  media_id: string;
  user_id: string | null;
  created_ts: number;
  sha256: Buffer | null;
  size: number;
  content_type: string;
  filename: string | null;
  expires_ts: number | null;
  authenticated: boolean;
  quarantined_by: string | null;
}

/** Name, content hash and owner of all media: the `media` table. */
export class MediaTable {
  readonly #db: Database;
  readonly #locks: ContentLocks;

  constructor(db: Database, locks: ContentLocks) {
    this.#db = db;
    this.#locks = locks;
  }

  async find(origin: string, mediaId: string): Promise<MediaInfo | Reservation | undefined> {
    const [row] = await this.#db.query<MediaRow>(
      { name: 'media_find', text: 'SELECT * FROM media WHERE origin = $1 AND media_id = $2' },
      [origin, mediaId],
    );
    if (!row) return undefined;
    return row.sha256 === null
      ? { userId: row.user_id, expiresTs: row.expires_ts, quarantinedBy: row.quarantined_by }
      : toInfo(row, row.sha256);
  }

  /** @returns `false` when the user has `max` reservations open already */
  async reserve(
    origin: string,
    mediaId: string,
    userId: string,
    now: number,
    expiresTs: number,
    max: number,
    authenticated: boolean,
  ): Promise<boolean> {
    return this.#db.transaction(async (tx) => {
      // One at a time for a user, or parallel requests would all count the same.
      await tx.query('SELECT pg_advisory_xact_lock(hashtextextended($1, 4))', [userId]);
      const [count] = await tx.query<{ n: number }>(
        'SELECT count(*) AS n FROM media WHERE user_id = $1 AND sha256 IS NULL AND expires_ts > $2',
        [userId, now],
      );
      if (count!.n >= max) return false;
      await tx.query(
        `INSERT INTO media (origin, media_id, user_id, created_ts, last_access_ts, expires_ts, authenticated)
         VALUES ($1, $2, $3, $4, $4, $5, $6)`,
        [origin, mediaId, userId, now, expiresTs, authenticated],
      );
      return true;
    });
  }

  /**
   * Names content. `commit` puts the content into the store while no one can find it unreferenced and delete it.
   * Content that is quarantined under another name is so under this one too.
   *
   * @returns `undefined` when that name has content already
   */
  async insert(
    info: Omit<MediaInfo, 'quarantinedBy'>,
    commit: () => Promise<void>,
  ): Promise<MediaInfo | undefined> {
    return this.#locks.run(info.sha256, async (tx) => {
      const [row] = await tx.query<{ quarantined_by: string | null }>(
        `INSERT INTO media AS m
           (origin, media_id, user_id, created_ts, last_access_ts, sha256, size, content_type, filename, authenticated,
            quarantined_by)
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8, $9,
                 (SELECT q.quarantined_by FROM media q
                  WHERE q.sha256 = $5 AND q.quarantined_by IS NOT NULL LIMIT 1))
         ON CONFLICT (origin, media_id) DO UPDATE
         SET sha256 = excluded.sha256, size = excluded.size, content_type = excluded.content_type,
             filename = excluded.filename, expires_ts = NULL,
             quarantined_by = coalesce(m.quarantined_by, excluded.quarantined_by)
         WHERE m.sha256 IS NULL
         RETURNING quarantined_by`,
        [
          info.origin,
          info.mediaId,
          info.userId,
          info.createdTs,
          info.sha256,
          info.size,
          info.contentType,
          info.filename,
          info.authenticated,
        ],
      );
      if (!row) return undefined;
      await commit();
      return { ...info, quarantinedBy: row.quarantined_by };
    });
  }

  async touch(origin: string, mediaId: string, now: number): Promise<void> {
    await this.#db.query(
      'UPDATE media SET last_access_ts = $3 WHERE origin = $1 AND media_id = $2 AND last_access_ts < $3',
      [origin, mediaId, now],
    );
  }

  /** Bytes that a user has uploaded. */
  async sizeOf(userId: string): Promise<number> {
    const [row] = await this.#db.query<{ total: string | number }>(
      'SELECT coalesce(sum(size), 0) AS total FROM media WHERE user_id = $1',
      [userId],
    );
    return Number(row!.total);
  }

  /** Removes a name. @returns the hash of its content */
  async remove(origin: string, mediaId: string): Promise<Buffer | undefined> {
    const [row] = await this.#db.query<{ sha256: Buffer | null }>(
      'DELETE FROM media WHERE origin = $1 AND media_id = $2 RETURNING sha256',
      [origin, mediaId],
    );
    return row?.sha256 ?? undefined;
  }

  /** Calls `erase` when nothing refers to the content any more, and nothing can begin to meanwhile. */
  async eraseUnreferenced(sha256: Buffer, erase: (tx: Queryable) => Promise<void>): Promise<void> {
    await this.#locks.run(sha256, async (tx) => {
      const used = await tx.query(
        `SELECT 1 FROM media WHERE sha256 = $1
         UNION ALL SELECT 1 FROM media_thumbnails WHERE thumbnail_sha256 = $1 AND sha256 <> $1 LIMIT 1`,
        [sha256],
      );
      if (used.length === 0) await erase(tx);
    });
  }

  /** Reservations that ran out. */
  async removeExpired(now: number): Promise<void> {
    await this.#db.query('DELETE FROM media WHERE sha256 IS NULL AND expires_ts < $1', [now]);
  }

  /** Images of previews that were not asked for since `before`. */
  async unownedSince(localName: string, before: number, limit: number): Promise<MediaName[]> {
    const rows = await this.#db.query<{ origin: string; media_id: string }>(
      `SELECT origin, media_id FROM media
       WHERE user_id IS NULL AND origin = $1 AND last_access_ts < $2 AND quarantined_by IS NULL
       ORDER BY last_access_ts LIMIT $3`,
      [localName, before, limit],
    );
    return rows.map((row) => ({ origin: row.origin, mediaId: row.media_id }));
  }

  /** Uploads of users here, or media of other servers; without what is quarantined or protected from deletion. */
  async unused(localName: string, unused: Unused, limit: number): Promise<MediaName[]> {
    const rows = await this.#db.query<{ origin: string; media_id: string }>(
      `SELECT origin, media_id FROM media AS m
       WHERE ${unused.where === 'local' ? 'origin = $1 AND user_id IS NOT NULL' : 'origin <> $1'}
         AND sha256 IS NOT NULL AND last_access_ts < $2 AND size > $3
         AND quarantined_by IS NULL AND NOT protected
         AND ($4 OR NOT EXISTS (
           SELECT 1 FROM profile_fields AS p
           WHERE p.field = 'avatar_url' AND p.value = '"mxc://' || m.origin || '/' || m.media_id || '"'))
       LIMIT $5`,
      [localName, unused.before, unused.largerThan ?? -1, unused.avatarsToo ?? false, limit],
    );
    return rows.map((row) => ({ origin: row.origin, mediaId: row.media_id }));
  }

  /** Media of other servers, those not asked for the longest first, that make the cache larger than `maxBytes`. */
  async remoteBeyond(localName: string, maxBytes: number, limit: number): Promise<MediaName[]> {
    const rows = await this.#db.query<{ origin: string; media_id: string }>(
      `SELECT origin, media_id FROM (
         SELECT origin, media_id, last_access_ts, sum(size) OVER (ORDER BY last_access_ts DESC, origin, media_id) AS total
         FROM media WHERE origin <> $1 AND quarantined_by IS NULL
       ) AS cached WHERE total > $2 ORDER BY last_access_ts LIMIT $3`,
      [localName, maxBytes, limit],
    );
    return rows.map((row) => ({ origin: row.origin, mediaId: row.media_id }));
  }
}

export function isReservation(found: MediaInfo | Reservation): found is Reservation {
  return !('sha256' in found);
}

function toInfo(row: MediaRow, sha256: Buffer): MediaInfo {
  return {
    origin: row.origin,
    mediaId: row.media_id,
    userId: row.user_id,
    createdTs: row.created_ts,
    sha256,
    size: row.size,
    contentType: row.content_type,
    filename: row.filename,
    authenticated: row.authenticated,
    quarantinedBy: row.quarantined_by,
  };
}
