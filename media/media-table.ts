import type { Database, Queryable } from '@trellis/storage/database.ts';

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
}

export interface Reservation {
  userId: string;
  expiresTs: number;
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
}

/** Name, content hash and owner of all media: the `media` table. */
export class MediaTable {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  async find(origin: string, mediaId: string): Promise<MediaInfo | Reservation | undefined> {
    const [row] = await this.#db.query<MediaRow>(
      { name: 'media_find', text: 'SELECT * FROM media WHERE origin = $1 AND media_id = $2' },
      [origin, mediaId],
    );
    if (!row) return undefined;
    return row.sha256 === null
      ? { userId: row.user_id!, expiresTs: row.expires_ts! }
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
   *
   * @returns `false` when that name has content already
   */
  async insert(info: MediaInfo, commit: () => Promise<void>): Promise<boolean> {
    return withContentLock(this.#db, info.sha256, async (tx) => {
      const rows = await tx.query(
        `INSERT INTO media AS m
           (origin, media_id, user_id, created_ts, last_access_ts, sha256, size, content_type, filename, authenticated)
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (origin, media_id) DO UPDATE
         SET sha256 = excluded.sha256, size = excluded.size, content_type = excluded.content_type,
             filename = excluded.filename, expires_ts = NULL
         WHERE m.sha256 IS NULL
         RETURNING 1`,
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
      if (rows.length === 0) return false;
      await commit();
      return true;
    });
  }

  async touch(origin: string, mediaId: string, now: number): Promise<void> {
    await this.#db.query('UPDATE media SET last_access_ts = $3 WHERE origin = $1 AND media_id = $2', [
      origin,
      mediaId,
      now,
    ]);
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
    await withContentLock(this.#db, sha256, async (tx) => {
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
  async unownedSince(
    localName: string,
    before: number,
    limit: number,
  ): Promise<Array<{ origin: string; mediaId: string }>> {
    const rows = await this.#db.query<{ origin: string; media_id: string }>(
      `SELECT origin, media_id FROM media
       WHERE user_id IS NULL AND origin = $1 AND last_access_ts < $2 ORDER BY last_access_ts LIMIT $3`,
      [localName, before, limit],
    );
    return rows.map((row) => ({ origin: row.origin, mediaId: row.media_id }));
  }

  /** Media of other servers, those not asked for the longest first, that make the cache larger than `maxBytes`. */
  async remoteBeyond(
    localName: string,
    maxBytes: number,
    limit: number,
  ): Promise<Array<{ origin: string; mediaId: string }>> {
    const rows = await this.#db.query<{ origin: string; media_id: string }>(
      `SELECT origin, media_id FROM (
         SELECT origin, media_id, last_access_ts, sum(size) OVER (ORDER BY last_access_ts DESC, origin, media_id) AS total
         FROM media WHERE origin <> $1
       ) AS cached WHERE total > $2 ORDER BY last_access_ts LIMIT $3`,
      [localName, maxBytes, limit],
    );
    return rows.map((row) => ({ origin: row.origin, mediaId: row.media_id }));
  }
}

/** Runs `work` while no one else names or erases the content. */
export async function withContentLock<T>(
  db: Database,
  sha256: Buffer,
  work: (tx: Queryable) => Promise<T>,
): Promise<T> {
  return db.transaction(async (tx) => {
    await tx.query('SELECT pg_advisory_xact_lock($1)', [sha256.readBigInt64BE(0).toString()]);
    return work(tx);
  });
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
  };
}
